"""What Point-Bind minimises, and the batches it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.anchors import FrozenSpace, ImageAnchor, TextAnchor
from train.data.objects import DataSet, Objects
from train.models.pointbind import LARGEST_SCALE, PointBind, contrastive_loss, joined
from train.progress import track
from train.renderings import renderings
from train.zeroshot import class_features

AT_ONCE = 32


@dataclass(frozen=True)
class BindBatch:
    centres: Tensor
    """(samples, groups, 3)"""
    patches: Tensor
    """(samples, groups, group_size, channels)"""
    anchors: list[Tensor]
    """Unit vectors (samples, dim), one tensor for each thing that an object is bound to; a row of
    zeros where an object has none (a silent class)."""


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
        views: Tensor | None = None,
        sounds: Sounds | None = None,
    ):
        """views : of the objects' renderings, (objects, views, dim); each batch draws one."""
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
        if sounds is not None:
            kinds = sounds.by_class(len(objects.class_names))
            self.bound.append(kinds[torch.from_numpy(objects.labels)])
        self.views = views

    def __call__(self, index: int) -> BindBatch:
        rng = np.random.default_rng([self.seed, index])
        rows = rng.permutation(len(self.centres))[: self.size]
        centres, patches = augmented(self.centres[rows], self.patches[rows], rng)
        bound = [vectors[rows] for vectors in self.bound]
        if self.views is not None:
            bound.append(self.views[rows, rng.integers(0, self.views.shape[1], len(rows))])
        return BindBatch(centres, patches, bound)


class Sounds(NamedTuple):
    """What is heard of the classes."""

    vectors: Tensor
    """(files, dim), unit vectors"""
    labels: np.ndarray
    """(files,)"""

    def by_class(self, classes: int) -> Tensor:
        """(classes, dim): the mean of a class as a unit vector, zeros for a silent one."""
        total = torch.zeros(classes, self.vectors.shape[1])
        total.index_add_(0, torch.from_numpy(self.labels), self.vectors)
        return F.normalize(total, dim=1)


class Besides:
    """What objects are bound to besides text: renderings and sounds, where asked for.

    views  : of each object; 0 for none    up : axis that points up
    sounds : folder of CLASS/*.wav, or None
    """

    def __init__(self, space: FrozenSpace, data: DataSet, views: int, up: str, sounds: Path | None):
        self.train: Tensor | None = None
        """Vectors of the training objects' renderings, (objects, views, dim)"""
        self.query: Tensor | None = None
        if views:
            self.train = views_of(data.train, space.image, views, up)
            self.query = views_of(data.query, space.image, views, up)
        self.sounds = sounds_of(sounds, space, data.train.class_names) if sounds else None


def sounds_of(folder: Path, space: FrozenSpace, class_names: Sequence[str]) -> Sounds:
    """Vectors of folder/CLASS/*.wav; ValueError where no class of these has a sound."""
    found = [
        (path, label)
        for label, name in enumerate(class_names)
        for path in sorted((folder / name).glob("*.wav"))
    ]
    if not found:
        raise ValueError(
            f"--sounds {folder}: no CLASS/*.wav for any class of the data, such as {class_names[0]}"
        )
    vectors = torch.stack([space.sound(path) for path, _ in found])
    return Sounds(vectors, np.array([label for _, label in found]))


def views_of(objects: Objects, image: ImageAnchor, views: int, up: str) -> Tensor:
    """Vectors of each object's renderings, (objects, views, dim), unit vectors."""
    rows = range(len(objects))
    parts = [
        image(list(renderings(objects.points([row])[0], views, up=up)))
        for row in track(rows, "renderings", total=len(rows))
    ]
    return torch.stack(parts)


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
        losses = []
        for anchors in batch.anchors:
            told = anchors.any(dim=1)
            if told.any():  # an object of a silent class is left out of the loss on sounds
                bound = anchors[told].to(device)
                losses.append(contrastive_loss(vectors[told.to(device)], bound, scale.exp()))
        return {"loss": torch.stack(losses).sum(), "scale": scale.detach().exp()}
