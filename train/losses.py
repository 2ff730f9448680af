"""The alignment of PointAlign: point tokens at one layer, pulled toward the Q-Former output."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class AlignmentProjector(nn.Module):
    """LLM hidden states -> the width of the target, in training only (Su et al. 2026, section 3).

    Linear layers with SiLU between, all hidden ones as wide as the mean of both ends: for
    2560 -> 768 that is 1664, 1664, the published 8,310,784 parameters.
    """

    def __init__(self, hidden_size: int, target_size: int, layers: int = 3):
        super().__init__()
        if layers < 1:
            raise ValueError(f"an alignment projector of {layers} layers: it needs 1 or more")
        middle = (hidden_size + target_size) // 2
        widths = [hidden_size, *[middle] * (layers - 1), target_size]
        modules: list[nn.Module] = []
        for width, following in pairwise(widths):
            modules += [nn.Linear(width, following), nn.SiLU()]
        self.projector = nn.Sequential(*modules[:-1])

    def forward(self, hidden: Tensor) -> Tensor:
        """(samples, tokens, hidden_size) -> (samples, tokens, target_size)."""
        return self.projector(hidden)

    def load_published(self, state_dict: dict[str, Tensor]) -> None:
        """Load `alignment_projector.projector.*`; ValueError names each key that does not fit."""
        prefix = "alignment_projector."
        given = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        wanted = self.state_dict()
        wrong = sorted(given.keys() ^ wanted.keys()) + [
            key for key in given.keys() & wanted.keys() if given[key].shape != wanted[key].shape
        ]
        if wrong:
            raise ValueError(
                f"alignment projector: {', '.join(wrong)} missing, unexpected or of another shape; "
                f"wanted {[f'{key} {tuple(value.shape)}' for key, value in wanted.items()]}"
            )
        self.load_state_dict(given)


def alignment_loss(projected: Tensor, target: Tensor, kind: str = "cosine") -> Tensor:
    """Mean distance of projected point tokens from their targets, a scalar, 0 when they agree.

    projected, target : (samples, tokens, target_size), token j paired with token j.
    kind : `cosine` is 1 - cosine, in [0, 2] (the published loss); `l1` and `l2` are the mean
           absolute and mean squared error (the paper's ablation).

    The target is detached: it teaches and does not learn. Raises ValueError on shapes that
    differ, no token at all, or an unknown kind.
    """
    if projected.shape != target.shape:
        raise ValueError(
            f"alignment of {tuple(projected.shape)} with a target of {tuple(target.shape)}: "
            "both must be (samples, tokens, target_size)"
        )
    if not projected.numel():
        raise ValueError("alignment of no tokens: the batch holds no point token")
    target = target.detach()
    if kind == "cosine":
        return (1 - F.cosine_similarity(projected, target, dim=-1)).mean()
    if kind == "l1":
        return F.l1_loss(projected, target)
    if kind == "l2":
        return F.mse_loss(projected, target)
    raise ValueError(f"alignment loss {kind!r}: choose cosine, l1 or l2")
