"""Does a store hold what it says? Reads every file of it once."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import google_crc32c
import numpy as np
import zarr

from store.files import Content
from store.guard import check_group
from store.layout import Part, metadata, parts, seal_of
from store.lazy import inside
from store.place import Place
from store.reader import Run, open_run
from store.schema import CHANNELS, STORE, StoreError, digest
from store.shards import Damaged, Shard, checksum, span_of, table
from store.writer import finished

FAILURES = (ValueError, RuntimeError, OSError, KeyError, TypeError)
Names = Callable[[slice], str]


def verify_run(path: str | PurePath) -> list[str]:
    """Problems of the run in `path`, a sentence each; none when it is whole.

    Every file is read and held against a checksum that was recorded when it was written: shards
    and their marks by crc32c, the table of samples and the clouds by SHA-256 of their values, all
    metadata by the seal of the root. Damaged samples are named. An unfinished store is no
    problem, unless it says that it is complete. Raises StoreError where there is no run at all.
    """
    run = open_run(path)
    store = Place(path).child(STORE)
    if foreign := [*_guarded(_foreign(store))]:
        return [*_guarded(_metadata(store)), *foreign]
    with warnings.catch_warnings():
        # of a folder without its metadata, which is reported here in another way
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        names = _namer(run, store)
        checks = [_metadata(store), _table(run, store), _clouds(run, store, names)]
        for group in parts(run.attrs).values():
            checks += [_states(run, store, part, group[0], names) for part in group]
        checks += [_counts(run, store, names), _probes(store)]
        return [problem for check in checks for problem in _guarded(check)]


def _guarded(check: Iterator[str]) -> Iterator[str]:
    try:
        yield from check
    except FAILURES as error:
        yield f"what follows cannot be read: {error}"


def _metadata(store: Place) -> Iterator[str]:
    root = json.loads(store.read("zarr.json"))
    if "seal" not in root["attributes"]:
        return  # of schema 1
    if seal_of(root) != root["attributes"]["seal"]:
        yield "zarr.json, the plan of the run, is not what was written"
    sealed = root["consolidated_metadata"]["metadata"]
    there = metadata(store)
    for key in sorted({*there, *(f"{name}/zarr.json" for name in sealed)}):
        name = key.removesuffix("zarr.json").rstrip("/")
        if not name:
            continue
        try:
            about = json.loads(there.get(key) or store.read(key))  # its group may be damaged
        except FileNotFoundError:
            yield f"{key} is lost"
            continue
        except ValueError as error:
            yield f"{key} cannot be read: {error}"
            continue
        for node in (about, sealed.get(name, {})):
            node.pop("consolidated_metadata", None)
        if about != sealed.get(name):
            yield f"{key} is not what was written"


def _table(run: Run, store: Place) -> Iterator[str]:
    for name, recorded in run.attrs["digests"].items():
        if name == "points":
            continue
        column = name.removeprefix("samples.")
        key = "sample" if column == "id" else column
        try:
            array = _array(store, key)
            if run.attrs["schema_version"] > 1 and not store.exists(f"{key}/c/0"):
                yield f"{key} of the samples is lost"
            elif array.shape != (run.attrs["samples"],) or digest(array[:]) != recorded:
                yield f"{key} of the samples is not what was written"
        except FAILURES as error:
            yield f"{key} of the samples cannot be read: {error}"


def _clouds(run: Run, store: Place, names: Names) -> Iterator[str]:
    if run.attrs["points"] is None:
        return
    points = _array(store, "points/points")
    if points.shape != (run.attrs["samples"], *run.attrs["points"]):
        yield f"points are {points.shape}, the plan says otherwise"
        return
    content = hashlib.sha256(repr(points.shape).encode())
    content.update(np.dtype("float32").str.encode())
    whole, have = True, _numbers(store, "points/points", r"(\d+)[./]0[./]0")
    total, size = -(-points.shape[0] // points.chunks[0]), points.chunks[0]
    for before, number in pairwise([-1, *(sorted(n for n in have if n < total)), total]):
        if number - before > 1:
            whole, lost = False, slice((before + 1) * size, min(number * size, points.shape[0]))
            many = "a chunk is" if number - before == 2 else f"{number - before - 1} chunks are"
            yield f"points, {names(lost)}: {many} lost"
        if number == total:
            break
        rows = slice(number * size, min((number + 1) * size, points.shape[0]))
        values = yield from _read(points, rows, f"points, {names(rows)}")
        whole &= values is not None
        if values is not None:
            content.update(np.ascontiguousarray(values).data)
    if whole and content.hexdigest() != run.attrs["digests"]["points"]:
        yield "points are not what was written"
    if not np.array_equal(_array(store, "points/channel")[:], CHANNELS):
        yield "the channels of the points are not what was written"


def _read(array: Any, index: Any, where: str):
    """Values of one chunk, or None and a problem."""
    try:
        values = np.asarray(array[index])
    except FAILURES as error:
        yield f"{where}: unreadable ({error})"
        return None
    if not np.isfinite(values).all():
        yield f"{where}: a chunk is lost"
        return None
    return values


def _states(run: Run, store: Place, part: Part, first: Part, names: Names) -> Iterator[str]:
    """Of one part of a group; `first` has the mark that says what of all of them is there."""
    samples = run.attrs["samples"]
    array = _array(store, part.path)
    if run.attrs["schema_version"] > 1 and array.shape != part.shape:
        yield f"{part.path} is {array.shape}, the plan says {part.shape}"
        return
    for name, expected in (("step", part.steps), ("layer", run.layers)):
        if name in part.dims and list(_array(store, f"{part.group}/{name}")[:]) != list(expected):
            yield f"{part.group}, coordinate {name} is not what was written"
    for step, have in finished(store, first, first.steps or (None,)).items():
        where = part.group if step is None else f"{part.group}, step {step}"
        total = -(-samples // part.chunk)
        there = sorted(number for number in have if number < total)
        if run.complete and len(there) < total:
            yield (
                f"{where} lacks {total - len(there)} of {total} chunks of samples, yet the "
                "store says it is complete"
            )
        for number in there:
            rows = slice(number * part.chunk, min((number + 1) * part.chunk, samples))
            if array.shards is None:
                yield from _old_shard(run, array, where, rows, names)
            else:
                yield from _shard(run, store, part, where, number, step, rows, names)


def _old_shard(run: Run, array: Any, where: str, rows: slice, names: Names) -> Iterator[str]:
    """Of schema 1: a file a layer, with a checksum inside, where a lost one reads as NaN."""
    if array.ndim == 3:
        yield from _read(array, rows, f"{where}, {names(rows)}")
        return
    for at, layer in enumerate(run.layers):
        place = f"{where}, layer {layer}, {names(rows)}"
        yield from _read(array, (at, rows), place)


def _shard(run, store, part: Part, where, number, step, rows: slice, names: Names) -> Iterator[str]:
    key = part.shard(number, step)
    try:
        data = _bytes(store, key)
    except FileNotFoundError:
        yield f"{where}, {names(rows)}: a chunk is lost ({key})"
        return
    except (Damaged, StoreError) as error:
        yield f"{where}, {names(rows)}: {error} ({key})"
        return
    count = rows.stop - rows.start
    if part.last_mark == "written":
        mark = _mark(store, part.mark("written", number, step))
        if mark is None or not np.array_equal(mark.view(bool), np.arange(part.chunk) < count):
            yield f"{where}, {names(rows)}: its mark of being written is damaged"
    recorded = _mark(store, part.mark("crc32c", number, step))
    if recorded is None:
        yield f"{where}, {names(rows)}: its recorded checksum is lost or damaged"
    chunks = -(-count // part.inner)
    shard = Shard(Content(data), chunks, part.chunk_bytes, np.zeros(part.grid, bool))
    found, crc = False, 0
    chunk = np.empty((1, 1, part.chunk_bytes), np.uint8)
    for layer in range(part.layers):
        depth = f", layer {run.layers[layer]}" if "layer" in part.dims else ""
        for at, inner in enumerate(_spans(count, part.inner)):
            span = slice(rows.start + inner.start, rows.start + inner.stop)
            try:
                shard.read([layer], at, chunk)
                crc = google_crc32c.extend(crc, checksum(chunk[0, 0]))
            except Damaged as error:
                found = True
                yield f"{where}{depth}, {names(span)}: {error}"
    end, _ = span_of(part.layers, 0, 0, chunks, part.chunk_bytes)
    if data[end:] != table(part.grid, chunks, part.chunk_bytes).tobytes():
        found = True
        yield f"{where}, {names(rows)}: its table of chunks is damaged"
    known = recorded is None or crc == int(recorded.view("<u4")[0])
    if not found and not known:
        yield f"{where}, {names(rows)}: it is not the file that was written there"


def _counts(run: Run, store: Place, names: Names) -> Iterator[str]:
    """The counts of NaN and infinity: every file of them, and their sum."""
    for name in run.variants if run.attrs["schema_version"] > 1 else []:
        counts = _array(store, f"{name}/nonfinite")
        total = np.zeros((len(run.layers), 2), np.int64)
        files = _numbers(store, f"{name}/nonfinite", r"(?:\d+[./])?0[./](\d+)[./]0")
        for number in sorted(files):  # a shard without any has none
            rows = slice(number * run.attrs["chunk"], (number + 1) * run.attrs["chunk"])
            try:
                part = counts[..., rows, :]
            except FAILURES as error:
                yield f"{name}, {names(rows)}: counts of NaN unreadable ({error})"
                break
            total += part.sum(axis=(*range(part.ndim - 3), part.ndim - 2), dtype=np.int64)
        else:
            layers = zip(run.layers, total.tolist(), strict=True)
            found = {str(layer): {"nan": n, "inf": i} for layer, (n, i) in layers if n or i}
            if run.complete and found != run.nonfinite().get(name, {}):
                yield f"{name}: the counts of NaN are not what was written"


def _probes(store: Place) -> Iterator[str]:
    for key, about in metadata(store).items():
        path = key.removesuffix("/zarr.json")
        if not path.startswith("probes/") or "shape" not in json.loads(about):
            continue
        try:
            array = _array(store, path)
            array[...]
            held = store.exists(f"{path}/c")
        except FAILURES as error:
            yield f"{path} cannot be read: {error}"
        else:
            if not held or array.nchunks_initialized < array.nchunks:
                yield f"{path}: a chunk is lost"


def _foreign(store: Place) -> Iterator[str]:
    """What is never read: links out of the store, types and codecs that are not ours."""
    if store.local is not None:
        for key in list(store.keys()):
            try:
                inside(store, key)
            except StoreError as error:
                yield str(error)
    groups = {key.removesuffix("zarr.json").rstrip("/") for key in metadata(store)}
    for group in sorted({"", *(name.rpartition("/")[0] for name in groups)}):
        try:
            check_group(store, group)
        except StoreError as error:
            if "is damaged" not in str(error):  # that is found later, by name
                yield str(error)


def _bytes(store: Place, key: str) -> bytes:
    return Path(inside(store, key)).read_bytes() if store.local is not None else store.read(key)


def _mark(store: Place, key: str) -> np.ndarray | None:
    """What a mark says, uint8; None where it is lost or damaged."""
    try:
        data = np.frombuffer(store.read(key), np.uint8)
    except OSError:
        return None
    if len(data) < 4 or google_crc32c.value(data[:-4]) != int(data[-4:].view("<u4")[0]):
        return None
    return data[:-4]


def _numbers(store: Place, array: str, at: str) -> set[int]:
    """Which chunks of an array have a file; `at` is where in the name their number is."""
    found = (re.fullmatch(f"{array}/c[./]{at}", key) for key in store.keys(array))
    return {int(match[1]) for match in found if match}


def _array(store: Place, path: str) -> Any:
    return zarr.open_array(store.zarr(), path=path, mode="r", zarr_format=3)


def _spans(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _namer(run: Run, store: Place) -> Callable[[slice], str]:
    """Says which samples some rows are, by number and, where the table can be read, by id."""
    try:
        lost = run.attrs["schema_version"] > 1 and not store.exists("sample/c/0")
        ids: Any = () if lost else run.samples()["sample"].values
    except FAILURES:
        ids = ()

    def names(rows: slice) -> str:
        span = f"samples {rows.start}-{rows.stop - 1}"
        if rows.stop > len(ids):
            return span
        first, last = ids[rows.start], ids[rows.stop - 1]
        return f"{span} ({first})" if first == last else f"{span} ({first} to {last})"

    return names
