"""What a run would cost, before it starts: the memory of training, the size of the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from train.config import ModelConfig, Stage2Config
from train.data.objects import Conversation
from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D
from train.prompts import UNLABELLED, encode_conversation

MIB, GIB = 2**20, 2**30
CARD = 22 * GIB
"""What a run may take of a card of 24 GiB; the driver and torch's allocator have the rest."""
LENGTHS = {
    "simple_description": (96, 32),
    "detailed_description": (256, 200),
    "single_round": (160, 96),
    "multi_round": (512, 320),
}
"""Tokens of a long conversation of each kind, point tokens among them, and how many it answers."""
ROUNDED_UP = ("pow", "rsqrt", "layer_norm", "softmax", "sum")
"""What autocast computes in float32 on a GPU, of what language models do; not so on a CPU."""


@dataclass(frozen=True)
class Memory:
    """Bytes of training one model on one device, at the worst moment of a step."""

    weights: int
    gradients: int
    """Twice where several processes share a batch: theirs, and the buckets they exchange."""
    optimiser: int
    """AdamW's two moments."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    logits: int
    """Scores at the answers, their logarithms and their gradients."""
    backward: int
    """Gradients of one block's activations, and these where they are computed again; the logits
    are gone by then."""

    @property
    def total(self) -> int:
        """Bytes at the worst moment: the loss, or the backward pass of a block."""
        always = self.weights + self.gradients + self.optimiser + self.activations
        return always + max(self.logits, self.backward)

    def lines(self) -> list[str]:
        """A line for each part, the total, and whether a card of 24 GiB will do."""
        lines = [f"{field.name:<12}{size(getattr(self, field.name))}" for field in fields(self)]
        lines[-1] += ", when the logits are gone"
        fits = "within" if self.total <= CARD else "more than"
        lines.append(f"{'total':<12}{size(self.total)}, {fits} the {size(CARD)} of a 24 GiB card")
        if self.total > CARD:
            lines[-1] += ": try --gradient-checkpointing, or smaller batches and --accumulate"
        return lines


def size(count: int) -> str:
    """Bytes for reading: 5.5 GiB, or MiB where that is small."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / MIB:.1f} MiB"


def training_memory(
    objective: nn.Module,
    config: Stage2Config,
    *,
    half: torch.dtype | None = None,
    lengths: Mapping[str, tuple[int, int]] = LENGTHS,
    processes: int = 1,
) -> Memory:
    """What training takes, from the module itself: nothing is computed and no memory taken.

    objective : with `model`, a `MiniGPT3D`; on the meta device, its dtypes and what requires a
                gradient as in training.
    half      : of autocast, None for none.
    lengths   : kind of conversation -> tokens and answer tokens of a long one, see `lengths_of`.
    processes : that share a batch.

    The largest of the kinds of batches counts. The frozen front is taken to come from the cache,
    and gradients to be there throughout, as in the later batches of an accumulated step.
    The forward pass of the LLM runs on tensors without numbers, and what autograd would keep is
    summed up; attention is counted as torch's fused one unless the LLM is set to eager. With
    gradient checkpointing that is what enters each block, and the inside of one.
    """
    parameters = list(objective.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    model = objective.get_submodule("model")
    assert isinstance(model, MiniGPT3D)
    steps = [
        _step_memory(model, config, half, ceil(samples / processes), *lengths[kind])
        for kind, samples in config.batch_sizes.items()
    ]
    return Memory(
        weights=_bytes([*parameters, *objective.buffers()]),
        gradients=4 * trained * (1 if processes == 1 else 2),
        optimiser=8 * trained,
        **max(
            steps, key=lambda parts: parts["activations"] + max(parts["logits"], parts["backward"])
        ),
    )


def lengths_of(
    conversations: Iterable[Conversation],
    tokenizer: Any,
    *,
    queries: int,
    context: int,
    most: int = 500,
) -> dict[str, tuple[int, int]]:
    """`lengths` for `training_memory` from the data: the longest conversation of each kind.

    most : conversations of a kind that are read, evenly spaced.
    """
    kinds: dict[str, list[Conversation]] = {}
    for each in conversations:
        kinds.setdefault(each.kind, []).append(each)
    longest = {}
    for kind, said in kinds.items():
        encoded = [
            encode_conversation(tokenizer, each.turns, points=queries, context=context)
            for each in said[:: ceil(len(said) / most)]
        ]
        answered = [sum(label != UNLABELLED for label in each.labels) for each in encoded]
        longest[kind] = (max(len(each.input_ids) for each in encoded), max(answered))
    return longest


def _step_memory(
    model: MiniGPT3D,
    config: Stage2Config,
    half: torch.dtype | None,
    samples: int,
    tokens: int,
    answers: int,
) -> dict[str, int]:
    llm = bare(model.llm)
    depth, width = llm.config.num_hidden_layers, llm.config.hidden_size
    tokens = min(tokens, llm.config.max_position_embeddings)
    kept = forward_memory(model.llm, samples, tokens, half)
    backward = block = kept // depth
    if config.gradient_checkpointing:
        kept = (depth + 1) * 4 * samples * tokens * width  # the final norm keeps what enters it too
        backward += block
    score = 12 if half is None else 14  # scores, their logarithms and gradients; half ones too
    logits = score * samples * answers * llm.config.vocab_size
    return {"activations": kept, "logits": logits, "backward": backward}


def forward_memory(llm: nn.Module, samples: int, tokens: int, half: torch.dtype | None) -> int:
    """Bytes that autograd keeps of one forward pass through the body of an LLM on the meta device.

    Parameters are not counted, but the half-precision copies that autocast makes of them are.
    """
    body: Any = deepcopy(bare(llm).base_model).train()
    for block in body.modules():
        if hasattr(block, "gradient_checkpointing"):
            block.gradient_checkpointing = False
    kept: dict[int, Tensor] = {}
    with FakeTensorMode():
        own: dict[str, Tensor] = {
            name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
            for name, p in body.named_parameters()
        }
        own |= {name: torch.empty(b.shape, dtype=b.dtype) for name, b in body.named_buffers()}
        counted_elsewhere = {_storage(tensor) for tensor in own.values()}

        def keep(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in counted_elsewhere:
                kept[_storage(tensor)] = tensor
            return tensor

        embeds = torch.empty(samples, tokens, body.config.hidden_size)
        with saved_tensors_hooks(keep, lambda tensor: tensor), _AsOnGpu(half):
            functional_call(body, own, kwargs={"inputs_embeds": embeds, "use_cache": False})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _AsOnGpu(TorchFunctionMode):
    """CPU tensors of which is kept what a GPU keeps: in autocast some operations in float32, and of
    a dropout a byte for each value, where a CPU keeps another value."""

    def __init__(self, half: torch.dtype | None):
        super().__init__()
        self.half = half
        self.autocast = torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None)

    def __enter__(self):
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.autocast.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.dropout and kwargs["training"] and kwargs["p"]:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        if self.half is not None and getattr(func, "__name__", "") in ROUNDED_UP:
            args = [
                each.float() if isinstance(each, Tensor) and each.dtype == self.half else each
                for each in args
            ]
        return func(*args, **(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def store_bytes(config: Stage2Config, sizes: ModelConfig, layers: int, objects: int, variants: int):
    """Bytes of the store: states, what the frozen front makes of each object, and clouds."""
    width = 4 if config.capture_dtype == "float32" else 2
    if config.capture_every:  # the two models in training are captured several times
        variants += 2 * (config.steps // config.capture_every - 1)
    states = variants * layers * objects * sizes.queries * sizes.llm_width * width
    targets = objects * sizes.queries * sizes.qformer_width * width
    encoded = objects * 2 * sizes.encoder_width * width
    attention = objects * sizes.groups * (sizes.queries * 2 + 3 * 4)  # shares, and patch centres
    return states + targets + encoded + attention + objects * SHOWN_POINTS * 6 * 4


SHOWN_POINTS = 2048
"""Points of each cloud kept in the store for looking at."""
