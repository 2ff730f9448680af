"""The frozen front, run once for each object: clouds to encoder tokens, and on to the targets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.data.objects import Objects
from train.models.minigpt3d import MiniGPT3D
from train.progress import track

AT_ONCE = 32
"""Objects that pass through the front together."""


def kept_rows(objects: Objects, points: int) -> np.ndarray:
    """Rows of a cloud that the model takes: all, or the same evenly drawn ones of every cloud."""
    if objects.count <= points:
        return np.arange(objects.count)
    return np.sort(np.random.default_rng(0).permutation(objects.count)[:points])


def thinned(objects: Objects, points: int, label: str, first: int = 0) -> Iterator[Tensor]:
    """Clouds in batches (samples, points or fewer, 6), in order, from object `first` on."""
    keep = kept_rows(objects, points)
    starts = range(first, len(objects.ids), AT_ONCE)
    total = -(-len(objects.ids) // AT_ONCE)
    for start in track(starts, label, total=total, completed=total - len(starts)):
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


@torch.no_grad()
def keep_targets(
    path: Path,
    key: str,
    model: MiniGPT3D,
    objects: Objects,
    points: int,
    device: torch.device | str,
    seed: int = 0,
) -> None:
    """`target_all` into the .npy file `path`, going on where it was stopped.

    key  : of what the targets depend on (weights, data, switches); with another one they are
           computed anew.
    seed : of a front that draws (a random first centre, dropout), set anew for each batch.
    """
    model.eval()
    shape = (len(objects), *model.qformer.query_tokens.shape[1:])
    note = path.with_suffix(".json")
    done = _done(path, note, key)
    if done == len(objects):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.lib.format.open_memmap(
        path, "r+" if done else "w+", dtype=np.float32, shape=shape if not done else None
    )
    for cloud in thinned(objects, points, f"encode {path.stem}", first=done):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + done)
            table[done : done + len(cloud)] = model.encode(cloud.to(device)).cpu().numpy()
        done += len(cloud)
        table.flush()
        fresh = note.with_suffix(".new")
        fresh.write_text(json.dumps({"key": key, "done": done}))
        fresh.replace(note)


def kept_targets(path: Path) -> Tensor:
    """What `keep_targets` wrote, (objects, queries, width), read from the disk as it is used."""
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # torch wants it writable; it is not


def _done(path: Path, note: Path, key: str) -> int:
    try:
        before = json.loads(note.read_text())
        return before["done"] if path.is_file() and before["key"] == key else 0
    except (OSError, ValueError, KeyError):
        return 0
