"""States as an array that xarray reads when values are asked for."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from store.files import DiskFile, RemoteFile
from store.layout import Part
from store.place import AT_A_TIME, Place
from store.schema import StoreError
from store.shards import Damaged, Shard, decode

CORES = min(16, max(2, os.cpu_count() or 2))
"""Files of a disk that are read at a time: more threads than cores wait for each other (from the
page cache 1.3 times as long with 16 on 2 cores), and what is announced comes together anyway."""

Index = np.ndarray | slice


def lazy_states(store: Place, part: Part, array: Any) -> xr.Variable:
    """A part of the store as a lazy variable; `array` is the same as zarr opened it."""
    states = indexing.LazilyIndexedArray(States(store, part, array))
    chunks = {"step": 1, "layer": 1, "sample": part.chunk}
    preferred = {dim: chunks.get(dim, n) for dim, n in zip(part.dims, part.shape, strict=True)}
    return xr.Variable(part.dims, states, dict(array.attrs), {"preferred_chunks": preferred})


class States(BackendArray):
    """Reads shards part by part, what has none by zarr; decodes bfloat16.

    A shard gives what zarr gives, every chunk held against its checksum, without zarr's copies:
    the chunks of a layer lie one after the other and are read in one go. A file that is lost is an
    error, where zarr would make up its values.
    """

    def __init__(self, store: Place, part: Part, array: Any):
        self.store, self.part, self.array = store, part, array
        self.shape = part.shape
        self.dtype = np.dtype("float32" if part.dtype == "bfloat16" else part.dtype)
        self._stored = np.dtype(array.dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at an index array, slice or integer for each dimension."""
        if self.array.shards is None:
            return self._by_zarr(key)
        dims = self.part.dims
        found = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)]
        at = dict(zip(dims, found, strict=True))
        values = found[dims.index("sample") + 1 :]
        pick = None if all(map(_is_all, values, self.part.values)) else np.ix_(*values)
        steps = [self.part.steps[i] for i in at["step"]] if "step" in at else [None]
        layers, rows = at.get("layer", np.zeros(1, int)), at["sample"]
        out = np.empty((len(steps), len(layers), len(rows), *map(len, values)), self.dtype)
        jobs = [
            (block, where, number, step, layers, rows[where], pick)
            for step, block in zip(steps, out, strict=True)
            for number, where in _groups(rows, self.part.chunk)
        ]
        if len(jobs) < 2:
            for job in jobs:
                self._read_shard(*job)
        else:
            at_a_time = AT_A_TIME if self.store.local is None else CORES
            with ThreadPoolExecutor(at_a_time) as pool:
                list(pool.map(lambda job: self._read_shard(*job), jobs))
        kept = [
            len(i) for i, k in zip(found, key, strict=True) if np.ndim(k) or isinstance(k, slice)
        ]
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

    def _read_shard(self, out, where, number, step, layers, rows, pick) -> None:
        part = self.part
        key = part.shard(number, step)
        plain = pick is None and self._stored == self.dtype
        runs = list(_runs(rows - number * part.chunk, part.inner))
        try:
            with closing(open_parts(self.store, key)) as file:
                file.announce(self._spans(number, layers, runs))
                shard = Shard(file, part.grid)
                for place, layer in zip(out, layers, strict=True):
                    for first, count, to, within in runs:
                        to = _compose(where, to)
                        if plain and _is_whole(to, within, count * part.inner):
                            shard.read(int(layer), first, self._bytes(place[to], count))
                            continue
                        stored = np.empty((count * part.inner, *part.values), self._stored)
                        shard.read(int(layer), first, self._bytes(stored, count))
                        states = decode(stored[within], part.dtype)
                        place[to] = states if pick is None else states[(slice(None), *pick)]
        except FileNotFoundError:
            raise StoreError(f"{self.store.name} is damaged: {key} is lost") from None
        except Damaged as error:
            raise StoreError(f"{self.store.name} is damaged: {key}: {error}") from error

    def _bytes(self, memory: np.ndarray, chunks: int) -> np.ndarray:
        return memory.reshape(-1).view(np.uint8).reshape(chunks, self.part.chunk_bytes)

    def _spans(self, number: int, layers: np.ndarray, runs: list) -> list[tuple[int, int]]:
        """Where in a shard's file the chunks lie that will be read.

        They lie in order; should a file be otherwise, its table says so and only time is lost.
        """
        rows = min(self.part.chunk, self.part.samples - number * self.part.chunk)
        in_layer, size = -(-rows // self.part.inner), self.part.chunk_bytes + 4
        spans = []
        for first, count, *_ in runs:
            for layer in layers:
                start = (int(layer) * in_layer + first) * size
                spans.append((start, start + count * size))
        return spans


def open_parts(store: Place, key: str) -> DiskFile | RemoteFile:
    """A file of the store to read parts of."""
    return RemoteFile(store, key) if store.local is None else DiskFile(inside(store, key))


def inside(store: Place, key: str) -> Path:
    """The file of a key on this disk. Raises StoreError where a link leads out of the store."""
    assert store.local is not None
    path = str(store.local)
    for name in key.split("/"):
        path = f"{path}/{name}"
        if os.path.islink(path):  # a tenth of the time of pathlib's resolve, for every file read
            raise StoreError(f"{store.name}: {key} leads out of the store, it is not read")
    return Path(path)


def _groups(rows: np.ndarray, size: int) -> Iterator[tuple[int, Index]]:
    """Number of each block of `size` that rows lie in, and which of the rows these are."""
    blocks = rows // size
    order = np.argsort(blocks, kind="stable")
    for where in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
        if len(where):
            yield int(blocks[where[0]]), _span(where)


def _runs(rows: np.ndarray, size: int) -> Iterator[tuple[int, int, Index, Index]]:
    """Stretches of neighbouring blocks of `size` that rows lie in.

    Of each: its first block, how many blocks, which of the rows they are, and where in the stretch.
    """
    blocks = np.unique(rows // size)
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        first, count = int(run[0]), len(run)
        here = np.flatnonzero((rows >= first * size) & (rows < (first + count) * size))
        yield first, count, _span(here), _span(rows[here] - first * size)


def _is_whole(to: Index, within: Index, size: int) -> bool:
    """Whether memory is filled in order by all rows of a stretch, which can be read right there."""
    return isinstance(to, slice) and isinstance(within, slice) and within == slice(0, size)


def _compose(outer: Index, inner: Index) -> Index:
    """The index that `inner` into `outer` is."""
    if isinstance(outer, slice):
        start = outer.start
        if isinstance(inner, slice):
            return slice(start + inner.start, start + inner.stop)
        return start + inner
    return outer[inner]


def _is_all(index: np.ndarray, size: int) -> bool:
    return len(index) == size and np.array_equal(index, np.arange(size))


def _span(index: np.ndarray) -> Index:
    """Consecutive numbers as a slice, which numpy copies faster."""
    if len(index) and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
