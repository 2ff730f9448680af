"""States as an array that xarray reads when values are asked for."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from store.layout import Part
from store.place import Place
from store.schema import StoreError
from store.shards import Damaged, Shard, decode

Index = np.ndarray | slice


def lazy_states(store: Place, part: Part, array: Any) -> xr.Variable:
    """A part of the store as a lazy variable; `array` is the same as zarr opened it."""
    states = indexing.LazilyIndexedArray(States(store, part, array))
    chunks = {"step": 1, "layer": 1, "sample": part.chunk}
    preferred = {dim: chunks.get(dim, n) for dim, n in zip(part.dims, part.shape, strict=True)}
    return xr.Variable(part.dims, states, dict(array.attrs), {"preferred_chunks": preferred})


class States(BackendArray):
    """Reads shards on a disk directly, all else by zarr; decodes bfloat16.

    The direct way gives what zarr gives, every chunk held against its checksum, without zarr's
    copies: the chunks of a layer lie one after the other and are read in one go.
    """

    def __init__(self, store: Place, part: Part, array: Any):
        self.store, self.part, self.array = store, part, array
        self.shape = part.shape
        self.dtype = np.dtype("float32" if part.dtype == "bfloat16" else part.dtype)
        self._stored = np.dtype(array.dtype)
        self._direct = store.local is not None and array.shards is not None

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Values at an index array, slice or integer for each dimension."""
        if not self._direct:
            return decode(np.asarray(self.array.oindex[key]), self.part.dtype)
        dims = self.part.dims
        found = [np.atleast_1d(np.arange(n)[k]) for n, k in zip(self.shape, key, strict=True)]
        at = dict(zip(dims, found, strict=True))
        values = found[dims.index("sample") + 1 :]
        pick = None if all(map(_is_all, values, self.part.values)) else np.ix_(*values)
        steps = [self.part.steps[i] for i in at["step"]] if "step" in at else [None]
        layers, rows = at.get("layer", np.zeros(1, int)), at["sample"]
        out = np.empty((len(steps), len(layers), len(rows), *map(len, values)), self.dtype)
        for step, block in zip(steps, out, strict=True):
            for number, where in _groups(rows, self.part.chunk):
                self._read_shard(block, where, number, step, layers, rows[where], pick)
        kept = [
            len(i) for i, k in zip(found, key, strict=True) if np.ndim(k) or isinstance(k, slice)
        ]
        return out.reshape(kept)

    def _read_shard(self, out, where, number, step, layers, rows, pick) -> None:
        part = self.part
        key = part.shard(number, step)
        try:
            local = rows - number * part.chunk
            wanted = [
                (at, _compose(where, within), _span(local[within] - at * part.inner))
                for at, within in _groups(local, part.inner)
            ]
            spare = np.empty((1, part.chunk_bytes), np.uint8)
            with inside(self.store, key).open("rb", buffering=0) as file:
                shard = Shard(file, part.grid)
                for place, layer in zip(out, layers, strict=True):
                    if pick is None and (straight := self._straight(place, wanted)) is not None:
                        shard.read(int(layer), wanted[0][0], straight)
                        continue
                    for at, to, within in wanted:
                        shard.read(int(layer), at, spare)
                        stored = spare.view(self._stored).reshape(-1, *part.values)
                        states = decode(stored[within], part.dtype)
                        place[to] = states if pick is None else states[(slice(None), *pick)]
        except FileNotFoundError:
            raise StoreError(f"{self.store.name} is damaged: {key} is lost") from None
        except Damaged as error:
            raise StoreError(f"{self.store.name} is damaged: {key}: {error}") from error

    def _straight(self, out: np.ndarray, wanted: list) -> np.ndarray | None:
        """The memory of `out` as the bytes of the wanted chunks, if these are all of it, in order.

        Then they are read there and not copied once more.
        """
        whole = slice(0, self.part.inner)
        slices = all(isinstance(to, slice) and isinstance(own, slice) for _, to, own in wanted)
        if self._stored != self.dtype or not slices or any(own != whole for _, _, own in wanted):
            return None
        spans = [to for _, to, _ in wanted]
        if any(one.stop != other.start for one, other in pairwise(spans)) or any(
            at + 1 != other for (at, *_), (other, *_) in pairwise(wanted)
        ):
            return None
        rows = out[spans[0].start : spans[-1].stop]
        return rows.reshape(-1).view(np.uint8).reshape(len(wanted), self.part.chunk_bytes)


def inside(store: Place, key: str) -> Any:
    """The file of a key on this disk. Raises StoreError where a link leads out of the store."""
    assert store.local is not None
    root = store.local.resolve()
    path = root / key
    if path.resolve() != path:
        raise StoreError(f"{store.name}: {key} leads out of the store, it is not read")
    return path


def _groups(rows: np.ndarray, size: int) -> Iterator[tuple[int, Index]]:
    """Number of each block of `size` that rows lie in, and which of the rows these are."""
    blocks = rows // size
    for block in np.unique(blocks):
        yield int(block), _span(np.flatnonzero(blocks == block))


def _span(index: np.ndarray) -> Index:
    """Consecutive numbers as a slice, which numpy copies faster."""
    if len(index) and (np.diff(index) == 1).all():
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


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
