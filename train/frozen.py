"""The frozen front, run once for each object: clouds to encoder tokens, and on to the targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from train.data.objects import Objects
from train.models.minigpt3d import MiniGPT3D
from train.progress import track

AT_ONCE = 32
"""Objects that pass through the front together."""


def thinned(objects: Objects, points: int, label: str) -> Iterator[Tensor]:
    """Clouds in batches (samples, points or fewer, 6), in order.

    A cloud of more points than the model takes keeps the same evenly drawn rows as all others.
    """
    keep = np.arange(objects.count)
    if objects.count > points:
        keep = np.sort(np.random.default_rng(0).permutation(objects.count)[:points])
    starts = range(0, len(objects.ids), AT_ONCE)
    for start in track(starts, label, total=len(starts)):
        rows = range(start, min(start + AT_ONCE, len(objects.ids)))
        yield torch.from_numpy(objects.points(rows)[:, keep])


@torch.no_grad()
def encode_all(
    model: MiniGPT3D, objects: Objects, points: int, device: torch.device | str
) -> Tensor:
    """Encoder tokens of all objects, (objects, tokens, encoder width), kept on the CPU."""
    model.point_encoder.eval()
    batches = thinned(objects, points, "encode clouds")
    return torch.cat([model.point_encoder(cloud.to(device)).cpu() for cloud in batches])


@torch.no_grad()
def target_all(
    model: MiniGPT3D, objects: Objects, points: int, device: torch.device | str
) -> Tensor:
    """Q-Former outputs of all objects, (objects, queries, Q-Former width), kept on the CPU."""
    model.eval()
    batches = thinned(objects, points, "encode clouds")
    return torch.cat([model.encode(cloud.to(device)).cpu() for cloud in batches])
