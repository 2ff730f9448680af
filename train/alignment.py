"""Stage 2 of PointAlign as an objective: which layers are pulled where, how hard, and when."""

from __future__ import annotations

import torch
import torch.distributed as dist
from accelerate.utils import gather, pad_across_processes
from torch import Tensor, nn

from train.batches import Drawn
from train.capture import capture_hidden_states, transformer_blocks
from train.config import Stage2Config
from train.losses import (
    AlignmentProjector,
    LearnedCosine,
    alignment_loss,
    contrastive_alignment,
)
from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D
from train.prompts import UNLABELLED, Batch


class Stage2Objective(nn.Module):
    """Next-token loss and, with a weight, the alignment of the point tokens at some layers.

    A single layer has an `alignment_projector`, under its published name; several have
    `alignment_projectors`, one each, and the loss is the mean over them (Su et al. 2026,
    Tables 4 to 8). What `align_loss` learns is in `alignment_distance`.
    """

    def __init__(self, model: MiniGPT3D, config: Stage2Config, weight: float):
        """weight : of the alignment; 0 is the baseline, which has no projector.

        Raises ValueError for layers that the LLM does not have.
        """
        super().__init__()
        self.model, self.weight, self.config = model, weight, config
        self.layers: list[int] = []
        if not weight:
            return
        self.layers = config.aligned_layers(len(transformer_blocks(model.llm)))
        hidden, target = bare(model.llm).config.hidden_size, self._target_width()
        # Their own generator: the dropouts of both models then see the same random numbers.
        with torch.random.fork_rng(devices=[]):  # they are made on the CPU
            torch.manual_seed(config.seed)
            projectors = {
                str(layer): AlignmentProjector(hidden, target, config.align_projector_layers)
                for layer in self.layers
            }
        if len(projectors) == 1:
            self.alignment_projector = projectors.popitem()[1]
        else:
            self.alignment_projectors = nn.ModuleDict(projectors)
        if config.align_loss == "learned":
            self.alignment_distance = LearnedCosine(target)

    @property
    def projectors(self) -> dict[int, nn.Module]:
        """The alignment projector of each aligned layer."""
        if len(self.layers) == 1:
            return {self.layers[0]: self.alignment_projector}
        return {layer: self.alignment_projectors[str(layer)] for layer in self.layers}

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Losses of a batch that shows targets (samples, queries, Q-Former width).

        Each is multiplied by this process's share of the whole batch (of its labelled tokens, or
        of its samples): the mean over processes is the loss of the whole batch.
        """
        tokens = batch.tokens
        if not self.layers:
            ntp = self.model(tokens, target=batch.shown).loss * batch.share
            return {"loss": ntp, "ntp_loss": ntp.detach()}
        released = self.config.align_positions == "release"
        mask = release_positions(tokens, batch.longest_prompt) if released else tokens.point_mask
        with capture_hidden_states(self.model.llm, self.layers, mask, detach=False) as states:
            ntp = self.model(tokens, target=batch.shown).loss * batch.share
        align = self._alignment(states, batch.shown) * batch.row_share
        schedule = self.config.align_schedule
        weight = weight_at(batch.step, self.config.steps, self.weight, schedule)
        losses = {
            "loss": ntp + weight * align,
            "ntp_loss": ntp.detach(),
            "align_loss": align.detach(),
        }
        if schedule != "constant":
            losses["align_weight"] = ntp.new_tensor(weight)
        return losses

    def _alignment(self, states: dict[int, Tensor], shown: Tensor) -> Tensor:
        """Mean distance over the layers, in the targets' float32 whatever the LLM computes in."""
        kind = self.config.align_loss
        with torch.autocast(shown.device.type, enabled=False):
            target = self._target(shown)
            every, offset = every_target(target) if kind == "contrastive" else (None, 0)
            losses = []
            for layer, projector in self.projectors.items():
                projected = projector(states[layer].to(target.dtype))
                if kind == "learned":
                    loss = self.alignment_distance(projected, target)
                elif kind == "contrastive":
                    loss = contrastive_alignment(
                        projected, target, all_targets=every, offset=offset
                    )
                else:
                    loss = alignment_loss(projected, target, kind)
                losses.append(loss)
            return torch.stack(losses).mean()

    def _target(self, shown: Tensor) -> Tensor:
        """What the point tokens are pulled to, (samples, queries, target width), without gradient.

        The projector's output is layer 0 of the same object (Table 8).
        """
        projector, wanted = self.model.projector, self.config.align_target
        if wanted == "qformer":
            return shown.detach()
        with torch.no_grad():
            middle = projector.first(shown)
            return middle if wanted == "projector-mid" else projector.second(middle)

    def _target_width(self) -> int:
        projector = self.model.projector
        return {
            "qformer": self.model.qformer.query_tokens.shape[-1],
            "projector-mid": projector.first.out_features,
            "projector": projector.second.out_features,
        }[self.config.align_target]


def weight_at(step: int, steps: int, weight: float, schedule: str) -> float:
    """Weight of the alignment at a step counted from 0: `constant`, or a straight `rise` or `fall`.

    A rise is 0 at the first step and `weight` at the last, a fall the reverse; a single step
    counts as the first.
    """
    if schedule == "constant":
        return weight
    done = step / max(steps - 1, 1)
    return weight * (done if schedule == "rise" else 1 - done)


def release_positions(batch: Batch, longest_prompt: int = 0) -> Tensor:
    """Mask (samples, tokens) of the positions that PointAlign's released code aligns.

    longest_prompt : tokens before the first answer, bos included, at most, in the whole batch of
                     which `batch` may be a part.

    These are the last positions of the longest prompt, as many as there are point tokens and the
    same in every row. The points stand before the question, so it takes question, answer or
    padding for most of them, and no point token meets its own target (`points` aligns those).
    """
    queries = int(batch.point_mask[0].sum())
    before_answer = (batch.labels != UNLABELLED).int().argmax(dim=1)
    end = max(longest_prompt, int(before_answer.max()))
    place = torch.arange(batch.labels.shape[1], device=batch.labels.device)
    return ((end - queries <= place) & (place < end)).expand_as(batch.labels)


def every_target(target: Tensor) -> tuple[Tensor, int]:
    """Targets of all processes in a row, and the row at which this process's begin.

    target : (samples, tokens, target_size), as many samples as this process has.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return target, 0
    counts = gather(torch.tensor([len(target)], device=target.device)).tolist()
    padded = gather(pad_across_processes(target.contiguous()))
    parts = padded.unflatten(0, (len(counts), max(counts)))
    every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return every, sum(counts[: dist.get_rank()])
