"""Point-LLM as a host: what of it is captured, and how it is asked.

No position of its sequence holds the cloud: one vector is added at every position in every layer.
So what is captured is the states at the positions of the prompt, which the vector has entered, and
beside them what enters; the target is the joint embedding itself. A depth curve of these states
tells how much of the vector a reader of the text stream could still find there, not whether point
tokens keep it: there are none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from train.capture import short_forward
from train.models.bindllm import PointLLM

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:"
)
"""Alpaca's, with nothing behind the last colon; a token that begins the text stands before it."""
DESCRIBE = "Describe the 3D object in detail."


def prompt(instruction: str = DESCRIBE) -> str:
    """What is asked of Point-LLM. Raises ValueError for an empty instruction."""
    if not instruction.strip():
        raise ValueError("an empty instruction: say what to ask about the object")
    return PROMPT.format(instruction)


def prompt_states(
    model: PointLLM,
    ids: Tensor,
    vectors: Tensor,
    layers: Sequence[int],
    positions: slice | None = None,
) -> dict[int, Tensor]:
    """States at the prompt of samples that are shown `vectors`: {layer: (samples, tokens, dim)}.

    ids       : (tokens,), one prompt for all, or (samples, tokens)
    vectors   : (samples, space), from `mix` or `VisualCache`
    positions : of the prompt; all if not given

    Layer 0, what enters block 1, is the same for all samples: the vector first enters in block 1.
    """
    if ids.ndim == 1:
        ids = ids.expand(len(vectors), -1)
    with torch.no_grad(), model.shown(vectors):
        embeds = model.body.get_input_embeddings()(ids)
        return short_forward(model, embeds, layers, positions)


@torch.no_grad()
def entering(model: PointLLM, vectors: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """What the vector adds to the residual stream in each block: {layer: (samples, dim)}.

    tanh(gate) * V(vector + query of the layer), through the output projection with its LoRA but
    without its bias; the same at every position. There is none at layer 0.
    """
    if wrong := [layer for layer in layers if not 1 <= layer <= model.config.num_hidden_layers]:
        raise ValueError(f"nothing enters at {wrong}: layers go from 1")
    found = {}
    for layer in layers:
        project = model.body.model.layers[layer - 1].self_attn.o_proj
        term = model.term(vectors, layer)
        found[layer] = project(term) - project(torch.zeros_like(term))
    return found


def unembedding(model: PointLLM) -> nn.Module:
    """Final norm and head together, which read states as next-token logits."""
    return nn.Sequential(model.body.model.norm, model.body.lm_head)
