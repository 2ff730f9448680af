"""What pulls point tokens at one layer toward their targets: a projector and its distances."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.pointbert import check_names


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

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load `alignment_projector.projector.*`, or the same without the first part.

        Raises ValueError that names each key that does not fit; nothing is loaded then.
        """
        prefix = "alignment_projector."
        wanted = {prefix + name: value for name, value in self.state_dict().items()}
        given = {
            key if key.startswith(prefix) else prefix + key: value
            for key, value in state_dict.items()
        }
        check_names("AlignmentProjector", wanted, given)
        self.load_state_dict({key.removeprefix(prefix): value for key, value in given.items()})


def alignment_loss(projected: Tensor, target: Tensor, kind: str = "cosine") -> Tensor:
    """Mean distance of projected point tokens from their targets, a scalar, 0 when they agree.

    projected, target : (samples, tokens, target_size), token j paired with token j.
    kind : `cosine` is 1 - cosine, in [0, 2] (the published loss); `l1` and `l2` are the mean
           absolute and mean squared error (the paper's ablation).

    The target is detached: it teaches and does not learn. Raises ValueError on shapes that
    differ, no token at all, or an unknown kind.
    """
    _check_pair(projected, target)
    target = target.detach()
    if kind == "cosine":
        return (1 - F.cosine_similarity(projected, target, dim=-1)).mean()
    if kind == "l1":
        return F.l1_loss(projected, target)
    if kind == "l2":
        return F.mse_loss(projected, target)
    raise ValueError(f"alignment loss {kind!r}: choose cosine, l1 or l2")


class LearnedCosine(nn.Module):
    """Cosine distance under learned weights of the target's dimensions; at first the plain one.

    The weights are not negative and sum to the number of dimensions, so that no scaling can shrink
    the distance. Half of their sum is spread evenly, the softmax of `logits` shares out the other
    half: the few dimensions that are easiest to match can't become all that counts.
    """

    def __init__(self, target_size: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(target_size))

    @property
    def weights(self) -> Tensor:
        """(target_size,), each at least 1/2."""
        raised = (self.logits - self.logits.detach().max()).exp()
        return (1 + raised / raised.mean()) / 2

    def forward(self, projected: Tensor, target: Tensor) -> Tensor:
        """A scalar in [0, 2] of two tensors (samples, tokens, target_size), as `alignment_loss`."""
        _check_pair(projected, target)
        scale = self.weights.sqrt()
        return (1 - F.cosine_similarity(projected * scale, target.detach() * scale, dim=-1)).mean()


def contrastive_alignment(
    projected: Tensor,
    target: Tensor,
    temperature: float = 0.07,
    *,
    all_targets: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """InfoNCE: token j of a sample must find its own target among token j of all samples.

    projected, target : (samples, tokens, target_size), compared by cosine.
    temperature       : that of Wu et al. 2018 (arXiv:1805.01978); CLIP begins with it too.
    all_targets       : (all samples, tokens, target_size), where these samples are a part of a
                        larger batch; `target` is then its rows from `offset` on.

    Returns a scalar, the mean over samples and tokens; log(all samples) is chance. The targets
    are detached. Two samples of one object do no harm: they pull the same way. Raises ValueError
    on shapes that differ and when there are not two samples to tell apart. InfoNCE is that of van
    den Oord et al. 2018 (arXiv:1807.03748).
    """
    _check_pair(projected, target)
    every = target if all_targets is None else all_targets
    if len(every) < 2:
        raise ValueError(
            f"contrastive alignment of {len(every)} sample: it needs 2 or more in a batch, each "
            "one's negatives are the others"
        )
    samples, tokens, _ = projected.shape
    ours, theirs = F.normalize(projected, dim=-1), F.normalize(every.detach(), dim=-1)
    logits = torch.einsum("sjd,kjd->sjk", ours, theirs) / temperature
    own = offset + torch.arange(samples, device=logits.device)
    return F.cross_entropy(logits.flatten(0, 1), own.repeat_interleave(tokens))


def _check_pair(projected: Tensor, target: Tensor) -> None:
    if projected.shape != target.shape:
        raise ValueError(
            f"alignment of {tuple(projected.shape)} with a target of {tuple(target.shape)}: "
            "both must be (samples, tokens, target_size)"
        )
    if not projected.numel():
        raise ValueError("alignment of no tokens: the batch holds no point token")
