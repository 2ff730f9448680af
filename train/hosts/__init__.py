"""One published system a file: its point positions, its target and its unembedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from train.data.objects import DataSet
    from train.verify import Proofs

Keep = Callable[[str, int, "Tensor"], object]
"""Called with site, layer and (samples, tokens, dim), which may be the model's own: copy them."""
FROZEN = ("target", "encoder", "weights", "centres")
"""What a host gives of each object beside its states, with the samples first."""


@dataclass(frozen=True)
class Site:
    """What is stored at one place of a model."""

    layers: list[int]
    tokens: int
    dim: int


class Host(Protocol):
    """A system whose states are captured.

    Made from the settings alone, so that a wrong call ends before anything heavy is read.
    """

    def load(self, data: DataSet, device: torch.device) -> None:
        """Read the model."""

    @property
    def variants(self) -> list[str]:
        """Names of its models in the store."""

    @property
    def sites(self) -> dict[str, Site]:
        """Where it is captured: `resid`, which lies in the run itself, before all others."""

    @property
    def own_tokens(self) -> np.ndarray | None:
        """How many of a site's tokens are each object's own, (samples,), the first ones; None where
        all are. The target is then one token, the mean."""

    @property
    def target_dim(self) -> int: ...

    @property
    def encoder_dim(self) -> int | None:
        """Width of what its point encoder makes of a cloud, where it is captured."""

    @property
    def patches(self) -> int | None:
        """Patches of a cloud, where it is known which of them each token reads."""

    @property
    def hashes(self) -> dict[str, str]:
        """Digests of what the model was read from."""

    @property
    def about(self) -> dict[str, Any]:
        """What else a reader of the store should know."""

    def model_of(self, variant: str) -> AbstractContextManager[Any]:
        """Inside the `with`, the model has the weights of this variant."""

    def prove(self, rows: np.ndarray) -> Proofs:
        """Verify the capture on some objects; CaptureError where it fails."""

    def states(self, rows: np.ndarray, sites: list[str], keep: Keep) -> Mapping[str, Tensor]:
        """Of some objects what is in `FROZEN`; the layers of each site go to `keep` while the model
        computes. The sites have equally many tokens, and so has the target."""
