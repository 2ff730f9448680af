"""What the frozen front sees: the encoder's readout, and the patches each query token reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from train.models.minigpt3d import MiniGPT3D
from train.models.pointbert import readout


@dataclass
class Reading:
    """What one pass of the frozen front looked at."""

    steps: list[Tensor] = field(default_factory=list)
    """Attention maps in the order of the pass, (samples, heads, queries, queries or tokens)."""
    centres: Tensor | None = None
    """(samples, patches, 3), where the patches are."""
    encoder: Tensor | None = None
    """(samples, 2 * encoder width), what the encoder made of each cloud, as `pointbert.readout`."""

    def weights(self) -> Tensor:
        """(samples, queries, patches): how much each query token reads of each patch; rows sum
        to 1. The class token, which has no place in the cloud, is left out."""
        queries = self.steps[0].shape[2]
        rolled = rollout([step.float().mean(dim=1) for step in self.steps], queries)
        patches = rolled[..., 1:] + torch.finfo(torch.float32).tiny
        return patches / patches.sum(dim=-1, keepdim=True)


def rollout(steps: Sequence[Tensor], queries: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, arXiv:2005.00928, section 3) onto what is read.

    steps   : maps in the order they act, each (samples, queries, queries) for self-attention or
              (samples, queries, tokens) for cross-attention; rows sum to 1. A map as wide as there
              are queries is self-attention.
    queries : how many query tokens there are.

    As in the paper each map is averaged with the identity for the residual stream. The tokens that
    are read do not change on the way, so a query is a mixture of the first queries and of the
    tokens; returned is the second part, scaled to rows that sum to 1: (samples, queries, tokens).
    Raises ValueError when nothing is read.
    """
    widths = {step.shape[-1] for step in steps} - {queries}
    if len(widths) != 1:
        raise ValueError(
            f"attention maps of widths {sorted(widths)} beside {queries} queries: rollout needs "
            "cross-attention over one number of tokens, other than that of the queries"
        )
    samples, tokens = len(steps[0]), widths.pop()
    read = steps[0].new_zeros(samples, queries, tokens)
    for step in steps:
        gained = step @ read if step.shape[-1] == queries else step
        read = (gained + read) / 2
    return read / read.sum(dim=-1, keepdim=True)


@contextmanager
def read_attention(model: MiniGPT3D) -> Iterator[Reading]:
    """Watch the frozen front: inside the `with`, one `model.encode` fills what is yielded."""
    reading = Reading()

    def step(_module, _args, output):
        reading.steps.append(output[1].detach())

    def centres(_module, args):
        reading.centres = args[0].detach().float()

    def encoded(_module, _args, tokens):
        reading.encoder = readout(tokens.detach().float())

    with ExitStack() as stack:
        stack.callback(model.point_encoder.register_forward_hook(encoded).remove)
        for module in model.qformer.modules():
            if isinstance(module, Blip2QFormerMultiHeadAttention):
                stack.callback(module.register_forward_hook(step).remove)
        # The one module of the encoder that is given the places of the patches.
        place = model.point_encoder.pos_embed.register_forward_pre_hook(centres)
        stack.callback(place.remove)
        yield reading
