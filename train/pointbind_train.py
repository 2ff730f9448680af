"""What Point-Bind minimises, and the batches it sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.anchors import TextAnchor
from train.data.objects import Objects
from train.models.pointbind import LARGEST_SCALE, PointBind, contrastive_loss, joined
from train.progress import track
from train.zeroshot import class_features

AT_ONCE = 32


@dataclass(frozen=True)
class BindBatch:
    centres: Tensor
    """(samples, groups, 3)"""
    patches: Tensor
    """(samples, groups, group_size, channels)"""
    anchors: list[Tensor]
    """Unit vectors (samples, dim), one tensor for each thing that an object is bound to."""


class BindBatches:
    """Random objects, augmented as in ULIP, each with the vectors it is bound to.

    Patches are cut once: they do not depend on the weights, and turning, scaling and shifting a
    cloud turns, scales and shifts its patches and leaves the choice of points as it is. (ULIP also
    drops points at random, which would change the choice; that is left out.)
    """

    def __init__(
        self,
        model: PointBind,
        objects: Objects,
        anchor: TextAnchor,
        *,
        anchors: str,
        size: int,
        seed: int,
    ):
        self.seed, self.size = seed, size
        cut = []
        starts = range(0, len(objects), AT_ONCE)
        for start in track(starts, "cut patches", total=len(starts)):
            rows = range(start, min(start + AT_ONCE, len(objects)))
            with torch.no_grad():
                cut.append(model.point_encoder.group(torch.from_numpy(objects.points(rows))))  # type: ignore[operator]
        self.centres = torch.cat([centres for centres, _ in cut])
        self.patches = torch.cat([patches for _, patches in cut])
        self.bound = []
        if anchors in ("class", "both"):
            kinds = class_features(anchor, objects.class_names)
            self.bound.append(kinds[torch.from_numpy(objects.labels)])
        if anchors in ("caption", "both"):
            self.bound.append(anchor(objects.captions))

    def __call__(self, index: int) -> BindBatch:
        rng = np.random.default_rng([self.seed, index])
        rows = rng.permutation(len(self.centres))[: self.size]
        centres, patches = augmented(self.centres[rows], self.patches[rows], rng)
        return BindBatch(centres, patches, [vectors[rows] for vectors in self.bound])


def augmented(centres: Tensor, patches: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Scale by 0.8 to 1.25, shift by up to 0.1 an axis, turn by a small angle about each axis.

    centres : (samples, groups, 3)    patches : (samples, groups, group_size, channels)

    ULIP's numbers (sigma 0.06, at most 0.18 rad), but for its full turn about the vertical axis:
    the objects here stand as they are, and a set's vertical axis is not known.
    """
    samples = len(centres)
    scale = rng.uniform(0.8, 1.25, (samples, 1, 1))
    angles = np.clip(0.06 * rng.standard_normal((samples, 3)), -0.18, 0.18)
    turn = torch.from_numpy((scale * rotations(angles)).astype(np.float32))
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (samples, 1, 3)).astype(np.float32))
    relative = torch.einsum("sgpi,sij->sgpj", patches[..., :3], turn)
    centres = torch.einsum("sgi,sij->sgj", centres, turn) + shift
    return centres, torch.cat([relative, patches[..., 3:]], dim=-1)


def rotations(angles: np.ndarray) -> np.ndarray:
    """(samples, 3, 3), turning about x, y and z in this order by angles (samples, 3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", angles).as_matrix()


@torch.no_grad()
def settle_norms(model: PointBind, batches: BindBatches, count: int = 20) -> None:
    """Take the statistics of batch norms anew, as means over some batches; leaves eval mode.

    Training itself uses those of each batch. What it gathers on the way is in no checkpoint of
    `train.loop`; taken from the final weights, they are the same after an interrupted training.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    device = model.logit_scale.device
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for index in range(count):
        batch = batches(index)
        model.point_encoder.encode(batch.centres.to(device), batch.patches.to(device))  # type: ignore[operator]
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


class BindObjective(nn.Module):
    """The sum of the contrastive losses against each thing an object is bound to."""

    def __init__(self, model: PointBind):
        super().__init__()
        self.model = model

    def forward(self, batch: BindBatch) -> dict[str, Tensor]:
        scale = self.model.logit_scale
        with torch.no_grad():
            scale.clamp_(0, LARGEST_SCALE)
        device = scale.device
        tokens = self.model.point_encoder.encode(batch.centres.to(device), batch.patches.to(device))  # type: ignore[operator]
        vectors = F.normalize(self.model.project(joined(tokens)), dim=-1)
        losses = [
            contrastive_loss(vectors, anchors.to(device), scale.exp()) for anchors in batch.anchors
        ]
        return {"loss": torch.stack(losses).sum(), "scale": scale.detach().exp()}
