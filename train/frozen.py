"""The frozen front, run once for each object: clouds to encoder tokens, and on to the targets."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.attention import read_attention
from train.data.objects import Objects
from train.models.minigpt3d import MiniGPT3D
from train.progress import track

AT_ONCE = 32
"""Objects that pass through the front together."""
SEEN = ("encoder", "weights", "centres")
"""What the front looks at, kept beside the targets of what is captured."""
DRAWN = 1_000_003
"""Times the seed, plus the first row of a batch: the seed of a front that draws."""


def kept_rows(objects: Objects, points: int, draw: int = 0) -> np.ndarray:
    """Rows of a cloud that the model takes: all, or the same evenly drawn ones of every cloud.

    draw : any but 0 draws others, in no order, so that patches begin at another point as well
    """
    rows = np.random.default_rng(draw).permutation(objects.count)[:points]
    return rows if draw else np.sort(rows)


def batch_count(objects: Objects) -> int:
    """Batches of `AT_ONCE` objects, the last one perhaps smaller."""
    return -(-len(objects) // AT_ONCE)


def batch_rows(objects: Objects, number: int) -> slice:
    """Rows of the objects in one of these batches."""
    return slice(number * AT_ONCE, min((number + 1) * AT_ONCE, len(objects)))


def thinned(objects: Objects, points: int, label: str) -> Iterator[Tensor]:
    """All clouds in order, in batches (samples, points or fewer, 6)."""
    count = batch_count(objects)
    for number in track(range(count), label, total=count):
        yield _clouds(objects, points, batch_rows(objects, number))


def _clouds(objects: Objects, points: int, rows: slice) -> Tensor:
    keep = kept_rows(objects, points)
    return torch.from_numpy(objects.points(range(rows.start, rows.stop))[:, keep])


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


def keep_targets(
    path: Path,
    key: str,
    model: MiniGPT3D,
    objects: Objects,
    points: int,
    device: torch.device | str,
    seed: int = 0,
) -> None:
    """`target_all` into the .npy file `path`, going on where it was stopped: see the two parts."""
    begin_cache(path, key, model, objects)
    fill_cache(path, model, objects, points, device, seed)


def begin_cache(
    path: Path, key: str, model: MiniGPT3D, objects: Objects, *, seen: bool = False
) -> None:
    """Lay out the .npy file `path` for the targets, unless it is there already with this key.

    key  : of what the targets depend on (weights, data, switches); with another one they are
           computed anew, and so they are where a file is gone, cut short or of something else.
    seen : with a file each, beside it, for what the front looks at: `encoder` (objects, 2 * encoder
           width), `weights` (objects, queries, patches) and `centres` (objects, patches, 3), as in
           `train.attention.Reading`.
    """
    queries, width = model.qformer.query_tokens.shape[1:]
    encoder, patches = model.point_encoder.cls_token.shape[-1], model.point_encoder.groups
    shapes: dict[str, tuple[int, ...]] = {"target": (queries, width)}
    if seen:
        shapes |= {"encoder": (2 * encoder,), "weights": (queries, patches)}
        shapes["centres"] = (patches, 3)
    tables: dict[Path, tuple[Any, tuple[int, ...]]] = {
        _file(path, part): (np.float32, (len(objects), *shape)) for part, shape in shapes.items()
    }
    tables[_file(path, "done")] = (np.int64, (batch_count(objects),))
    note = path.with_suffix(".json")
    if _key(note) == key and all(_laid_out(file, *table) for file, table in tables.items()):
        return
    note.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    for file, (dtype, shape) in tables.items():
        np.lib.format.open_memmap(file, "w+", dtype, shape)
    fresh = note.with_suffix(".new")
    fresh.write_text(json.dumps({"key": key}))
    fresh.replace(note)


@torch.no_grad()
def fill_cache(
    path: Path,
    model: MiniGPT3D,
    objects: Objects,
    points: int,
    device: torch.device | str,
    seed: int = 0,
    *,
    process: int = 0,
    processes: int = 1,
) -> None:
    """Compute what is missing, or damaged, of what `begin_cache` laid out.

    `done` holds a checksum of each batch: one that does not have it any more is computed again.

    seed      : of a front that draws (a random first centre, dropout), set anew for each batch.
    processes : that fill it together, on one machine; each takes every so manieth batch. The
                numbers are those that one process computes.
    """
    model.eval()
    done = np.load(_file(path, "done"))
    own = range(process, len(done), processes)
    seen = _file(path, "weights").is_file()
    tables = {part: kept(path, part) for part in (("target", *SEEN) if seen else ("target",))}
    left = [
        number
        for number in own
        if not done[number] or done[number] != _checksum(tables, batch_rows(objects, number))
    ]
    label = f"encode {path.stem}"
    for number in track(left, label, total=len(own), completed=len(own) - len(left)):
        rows = batch_rows(objects, number)
        cloud = _clouds(objects, points, rows).to(device)
        with torch.random.fork_rng(devices=[]), read_attention(model) as reading:
            torch.manual_seed(seed * DRAWN + rows.start)
            parts = {"target": model.encode(cloud)}
        if seen:
            assert reading.encoder is not None and reading.centres is not None
            parts |= {"encoder": reading.encoder, "weights": reading.weights()}
            parts["centres"] = reading.centres
        for part, values in parts.items():
            _put(_file(path, part), rows.start, values.cpu().numpy())
        mark = np.array([_checksum(parts, slice(None))])
        _put(_file(path, "done"), number, mark)


def kept_targets(path: Path) -> Tensor:
    """What `keep_targets` wrote, (objects, queries, width), read from the disk as it is used."""
    return kept(path, "target")


def kept(path: Path, part: str) -> Tensor:
    """A part of a cache, see `begin_cache`, (objects, ...), read from the disk as it is used."""
    # torch wants it writable; it is not: a write would go to a copy of the page.
    return torch.from_numpy(np.load(_file(path, part), mmap_mode="c"))


def _file(path: Path, part: str) -> Path:
    return path if part == "target" else path.with_suffix(f".{part}.npy")


def _laid_out(file: Path, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Whether a .npy file is one of these, and whole."""
    head = io.BytesIO()
    form = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, form)
    size = len(head.getvalue()) + np.dtype(dtype).itemsize * int(np.prod(shape))
    if not file.is_file() or file.stat().st_size != size:
        return False
    with file.open("rb") as read:
        return read.read(len(head.getvalue())) == head.getvalue()


def _checksum(parts: Mapping[str, Tensor], rows: slice) -> int:
    """CRC-32 of these rows of all parts, never 0, which stands for a batch that is not there."""
    found = 0
    for name in sorted(parts):
        found = zlib.crc32(parts[name][rows].contiguous().cpu().numpy().data, found)
    return 2**32 + found


def _put(file: Path, row: int, values: np.ndarray) -> None:
    """Write rows of a .npy file. Not through a map: there a full disk ends the process."""
    table = np.load(file, mmap_mode="r")
    with file.open("r+b") as out:
        out.seek(table.offset + row * table.strides[0])
        out.write(np.ascontiguousarray(values, table.dtype).tobytes())
        out.flush()
        os.fsync(out.fileno())  # the mark that follows must not outlive what it stands for


def _key(note: Path) -> str | None:
    try:
        return json.loads(note.read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
