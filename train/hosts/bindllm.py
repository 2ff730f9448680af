"""Point-LLM as a host: what of it is captured, and how it is asked.

No position of its sequence holds the cloud: one vector is added at every position in every layer.
So what is captured is the states at the positions of the prompt, which the vector has entered, and
beside them what enters; the target is the joint embedding itself, the same for every position. A
depth curve of these states tells how much of the vector a reader of the text stream could still
find there, not whether point tokens keep it: there are none. It begins at layer 1, since what
enters block 1 is the prompt alone and the same for every object.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train.capture import capture_hidden_states, short_forward
from train.captured import clouds
from train.config import CaptureConfig, parse_layers
from train.data.objects import DataSet
from train.hosts import Keep, Site
from train.models.bindllm import PointLLM
from train.prompts import bos_id, encode_ids
from train.verify import CaptureError, Proofs, verify_capture

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:"
)
"""Alpaca's, with nothing behind the last colon; a token that begins the text stands before it."""
DESCRIBE = "Describe the 3D object in detail."
VARIANT = "pointllm"
INJECTED = "injected"


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
    told = Told(model)
    return short_forward(told, told.embed(ids, vectors), layers, positions)


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


class Told(nn.Module):
    """Point-LLM whose input embeddings carry each sample's vector behind the text's dimensions.

    So a batch, a part of it and a longer one keep text and vector together, and the capture and its
    proofs run on Point-LLM as on any language model.
    """

    def __init__(self, model: PointLLM):
        super().__init__()
        self.point_llm = model
        self.train(model.training)

    @property
    def config(self) -> Any:
        return self.point_llm.config

    @torch.no_grad()
    def embed(self, ids: Tensor, vectors: Tensor) -> Tensor:
        """(samples, tokens, width + space). ids : (tokens,) or (samples, tokens)."""
        text = self.point_llm.body.get_input_embeddings()(ids)
        text = text.expand(len(vectors), -1, -1)
        return torch.cat([text, vectors[:, None].expand(-1, text.shape[1], -1).to(text)], dim=-1)

    def forward(self, inputs_embeds: Tensor, **more: Any) -> Any:
        text, vectors = inputs_embeds.tensor_split([self.config.hidden_size], dim=-1)
        return self.point_llm(inputs_embeds=text, vectors=vectors[:, 0], **more)


class BindLLMHost:
    """See `train.hosts.Host`. What enters lies in a run of its own, OUT/injected."""

    def __init__(self, config: CaptureConfig):
        from train.hosts import bindllm_files

        self.config = config
        self.folder = config.weights or config.checkpoint
        depth = bindllm_files.depth(self.folder)
        asked = "1-" + str(depth) if config.layers == "all" else config.layers
        self.layers = parse_layers(asked, depth)
        if self.layers[0] == 0:
            raise ValueError(
                f"--layers {config.layers}: Point-LLM's layers begin at 1; what enters block 1 is "
                "the prompt, the same for every object"
            )

    def load(self, data: DataSet, device: torch.device) -> None:
        from train.hosts import bindllm_files

        self.data, self.device = data, device
        self.loaded = bindllm_files.load(self.folder)
        self.hashes = self.loaded.hashes
        self.model = self.loaded.model.to(device)
        self.loaded.encoder.to(device)
        text = prompt(self.config.question)
        tokenizer = self.loaded.tokenizer
        self.ids = torch.tensor([bos_id(tokenizer), *encode_ids(tokenizer, text)], device=device)
        drawn = " drawn to its neighbours by the visual cache" if self.config.cache else ""
        self.about = {
            "captured": f"{len(self.ids)} positions of the prompt that asks "
            f"{self.config.question!r}, {INJECTED}: what enters at all of them",
            "target": f"the joint embedding; shown is the same vector{drawn}",
        }

    @property
    def variants(self) -> list[str]:
        return [VARIANT]

    @property
    def sites(self) -> dict[str, Site]:
        tokens = len(self.ids) if self.config.pool == "none" else 1
        width = self.model.config.hidden_size
        own = {site: Site(self.layers, tokens, width) for site in self.config.site_list}
        return own | {INJECTED: Site(self.layers, 1, width)}

    @property
    def own_tokens(self) -> None:
        return None

    @property
    def target_dim(self) -> int:
        return self.model.bind.image_bind_proj.in_features

    @property
    def encoder_dim(self) -> None:
        return None

    @property
    def patches(self) -> None:
        return None

    @contextmanager
    def model_of(self, variant: str) -> Iterator[PointLLM]:
        """There is one model."""
        yield self.model

    def prove(self, rows: np.ndarray) -> Proofs:
        told = Told(self.model).eval()
        _, shown = self._vectors(rows)
        embeds = told.embed(self.ids, shown)
        proofs = verify_capture(told, embeds, slice(None), self.layers, sites=self.config.site_list)
        proofs["layer 0"] = "the prompt's embeddings, the same for every object"
        proofs[INJECTED] = check_entering(told, embeds, shown)
        return proofs

    @torch.no_grad()
    def states(self, rows: np.ndarray, sites: list[str], keep: Keep) -> dict[str, Tensor]:
        target, shown = self._vectors(rows)
        if INJECTED in sites:
            for layer, term in entering(self.model, shown, self.layers).items():
                keep(INJECTED, layer, term[:, None])
        if "resid" in sites:
            self._stream(shown, [site for site in sites if site != INJECTED], keep)
        tokens = self.sites[sites[0]].tokens
        return {"target": target[:, None].expand(-1, tokens, -1)}

    def _stream(self, shown: Tensor, sites: list[str], keep: Keep) -> None:
        """The stream and the branches at the prompt, from one pass."""
        told = Told(self.model).eval()

        def pooled(site: str, layer: int, states: Tensor) -> None:
            means = self.config.pool == "mean"
            keep(site, layer, states.float().mean(dim=1, keepdim=True) if means else states)

        with ExitStack() as stack:
            for site in sites:
                if site != "resid":
                    hooks = capture_hidden_states(
                        told, self.layers, site=site, keep=partial(pooled, site)
                    )
                    stack.enter_context(hooks)
            embeds = told.embed(self.ids, shown)
            short_forward(told, embeds, self.layers, keep=partial(pooled, "resid"))

    def _vectors(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The joint embeddings of some objects, and what the LLM is shown: (samples, space)."""
        from train.hosts.bindllm_files import vectors_of

        shown = clouds(self.data, rows, self.data.query.count, self.config.draw).to(self.device)
        return vectors_of(self.loaded, shown, cache=self.config.cache)


@torch.no_grad()
def check_entering(told: Told, embeds: Tensor, vectors: Tensor) -> str:
    """What `entering` gives for block 1 is what its attention adds more than without a vector."""
    with capture_hidden_states(told, [1], site="attn") as more:
        told(inputs_embeds=embeds)
    with capture_hidden_states(told, [1], site="attn") as less:
        told.point_llm(inputs_embeds=embeds[..., : told.config.hidden_size])
    gap = more[1] - less[1]
    wanted = entering(told.point_llm, vectors, [1])[1][:, None]
    apart = float((gap - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    rounding = torch.finfo(gap.dtype).eps ** 0.5
    if apart > rounding and wanted.any():
        raise CaptureError(f"{INJECTED}: attention of block 1 adds another term ({apart:.2g} off)")
    return f"what block 1 adds more than without a vector, to {apart:.1g} of its size"
