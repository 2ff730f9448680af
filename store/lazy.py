"""States as an array that xarray reads when values are asked for."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from store.files import DiskFile, RemoteFile
from store.layout import Part
from store.place import AT_A_TIME, Place
from store.schema import StoreError
from store.shards import Damaged, Shard, decode, span_of

THREADS = min(16, 2 * (os.cpu_count() or 1))
"""Files of a disk that are read at a time: with one for each core the last file keeps others idle
(of 3 files on 2 cores from the page cache 1.3 times as long, of 10 from disk 1.15 times); many wait
for each other (1.1 times as long with 4 for each core)."""

Index = np.ndarray | slice


class Checked:
    """Which chunks were held against their checksums since a run was opened.

    Those need no second look while their file stays what it was: its inode, size and times say
    so. One that is written anew, a part of it too, is checked anew. A byte for each chunk.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}

    def of(self, key: str, file: DiskFile | RemoteFile, grid: tuple[int, int]) -> np.ndarray:
        """Flags of a file's chunks, bool (layers, chunks), to be read and set."""
        identity = file.identity()
        if identity is None:
            return np.zeros(grid, bool)
        known = self._known.get(key)
        if known is None or known[0] != identity:
            known = self._known[key] = identity, np.zeros(grid, bool)
        return known[1]


def lazy_states(store: Place, part: Part, array: Any, checked: Checked) -> xr.Variable:
    """A part of the store as a lazy variable; `array` is the same as zarr opened it."""
    states = indexing.LazilyIndexedArray(States(store, part, array, checked))
    chunks = {"step": 1, "layer": 1, "sample": part.chunk}
    preferred = {dim: chunks.get(dim, n) for dim, n in zip(part.dims, part.shape, strict=True)}
    return xr.Variable(part.dims, states, dict(array.attrs), {"preferred_chunks": preferred})


class States(BackendArray):
    """Reads shards part by part, what has none by zarr; decodes bfloat16.

    A shard gives what zarr gives, every chunk held against its checksum once, without its copies:
    the chunks of a layer lie one after the other and are read in one go. A file that is lost is an
    error, where zarr would make up its values.
    """

    def __init__(self, store: Place, part: Part, array: Any, checked: Checked):
        self.store, self.part, self.array, self.checked = store, part, array, checked
        self.shape = part.shape
        self.dtype = np.dtype("float32" if part.dtype == "bfloat16" else part.dtype)
        self._stored = np.dtype(array.dtype)
        self._chunk_bytes = part.chunk_bytes

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        if isinstance(key, indexing.BasicIndexer | indexing.OuterIndexer):
            return self._read(key.tuple)
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at an index array, slice or integer for each dimension."""
        if self.array.shards is None:
            return self._by_zarr(key)
        dims, sample = self.part.dims, self.part.dims.index("sample")
        at = dict(zip(dims, map(_numbers, key[: sample + 1], self.shape), strict=False))
        wanted = key[sample + 1 :]
        pick, values = None, self.part.values
        if not all(map(_is_all, wanted, values)):
            found = [_numbers(k, n) for k, n in zip(wanted, values, strict=True)]
            pick, values = np.ix_(*found), tuple(map(len, found))
        steps = [self.part.steps[i] for i in at["step"]] if "step" in at else [None]
        layers, rows = at.get("layer", [0]), at["sample"]
        out = np.empty((len(steps), len(layers), len(rows), *values), self.dtype)
        jobs = [
            self._job(number, step, layers, [rows[i] for i in to], to, block)
            for step, block in zip(steps, out, strict=True)
            for number, to in _groups(rows, self.part.chunk)
        ]
        work = partial(self._read_shard, layers=layers, pick=pick)
        if len(jobs) < 2:
            list(map(work, jobs))
        else:
            at_a_time = AT_A_TIME if self.store.local is None else THREADS
            with ThreadPoolExecutor(at_a_time) as pool:
                list(pool.map(work, jobs))
        sizes = [*map(len, at.values()), *values]
        kept = [n for n, k in zip(sizes, key, strict=True) if np.ndim(k) or isinstance(k, slice)]
        return out.reshape(kept)

    def _by_zarr(self, key: tuple[Any, ...]) -> np.ndarray:
        """Clouds, and states of schema 1: finite all of them, and NaN where a file is lost."""
        where = f"{self.store.name} is damaged: {self.part.path}"
        try:
            values = decode(np.asarray(self.array.oindex[key]), self.part.dtype)
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{where} cannot be read: {error}") from error
        if not np.isfinite(values).all():
            raise StoreError(f"{where}: a chunk is lost; python -m store verify names it")
        return values

    def _job(
        self,
        number: int,
        step: int | None,
        layers: list[int],
        rows: list[int],
        to: list[int],
        out: np.ndarray,
    ) -> "Job":
        part, start = self.part, number * self.part.chunk
        runs = list(_runs([row - start for row in rows], part.inner))
        chunks = -(-min(part.chunk, part.samples - start) // part.inner)
        size = self._chunk_bytes
        spans = [span_of(n, first, k, chunks, size) for first, k, *_ in runs for n in layers]
        return Job(part.shard(number, step), chunks, runs, spans, to, out)

    def _read_shard(self, job: "Job", layers: list[int], pick: tuple[Any, ...] | None) -> None:
        part, key, out = self.part, job.key, job.out
        plain = pick is None and self._stored == self.dtype
        try:
            with closing(open_parts(self.store, key)) as file:
                file.announce(job.spans)
                checked = self.checked.of(key, file, part.grid)
                shard = Shard(file, job.chunks, self._chunk_bytes, checked)
                for first, count, found, within in job.runs:
                    places = _span([job.to[i] for i in found])
                    size = count * part.inner
                    whole = isinstance(places, slice) and _is_all(within, size)
                    if direct := plain and whole:
                        stored = out[:, places]
                    else:
                        stored = np.empty((len(layers), size, *part.values), self._stored)
                    memory = stored.reshape(len(layers), count, -1).view(np.uint8)
                    shard.read(layers, first, memory)
                    if not direct:
                        states = decode(stored[:, within], part.dtype)
                        out[:, places] = states if pick is None else states[:, :, *pick]
        except FileNotFoundError:
            raise StoreError(f"{self.store.name} is damaged: {key} is lost") from None
        except Damaged as error:
            raise StoreError(f"{self.store.name} is damaged: {key}: {error}") from error


class Job(NamedTuple):
    """What to read of one shard of so many `chunks` a layer, and the places `to` of `out` for it.

    out : (layers, samples, ...)
    """

    key: str
    chunks: int
    runs: list[tuple[int, int, list[int], Index]]
    spans: list[tuple[int, int]]
    to: list[int]
    out: np.ndarray


def open_parts(store: Place, key: str) -> DiskFile | RemoteFile:
    """A file of the store to read parts of."""
    return RemoteFile(store, key) if store.local is None else DiskFile(inside(store, key))


def inside(store: Place, key: str) -> str:
    """The file of a key on this disk. Raises StoreError where a link leads out of the store."""
    assert store.local is not None
    path = str(store.local)
    for name in key.split("/"):
        path = f"{path}/{name}"
        if os.path.islink(path):  # a tenth of the time of pathlib's resolve, for every file read
            raise StoreError(f"{store.name}: {key} leads out of the store, it is not read")
    return path


def _groups(rows: list[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """Number of each block of `size` that rows lie in, and which of the rows these are."""
    blocks: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        blocks.setdefault(row // size, []).append(at)
    return iter(sorted(blocks.items()))


def _runs(rows: list[int], size: int) -> Iterator[tuple[int, int, list[int], Index]]:
    """Stretches of neighbouring blocks of `size` that rows lie in.

    Of each: its first block, how many blocks, which of the rows they are, and where in the stretch.
    """
    blocks = {row // size for row in rows}
    firsts = sorted(block for block in blocks if block - 1 not in blocks)
    stops = sorted(block + 1 for block in blocks if block + 1 not in blocks)
    for first, stop in zip(firsts, stops, strict=True):
        here = [at for at, row in enumerate(rows) if first * size <= row < stop * size]
        yield first, stop - first, here, _span([rows[at] - first * size for at in here])


def _numbers(index: Any, size: int) -> list[int]:
    """Which of `size` things an integer, a slice or an array of numbers asks for."""
    if isinstance(index, slice):
        return list(range(size)[index])
    return (
        np.atleast_1d(np.arange(size)[index]).tolist() if np.ndim(index) else [range(size)[index]]
    )


def _is_all(index: Any, size: int) -> bool:
    return isinstance(index, slice) and index.indices(size) == (0, size, 1)


def _span(index: list[int]) -> Index:
    """Consecutive numbers as a slice, which numpy copies faster."""
    first, last = index[0], index[-1] + 1
    return slice(first, last) if index == list(range(first, last)) else np.array(index)
