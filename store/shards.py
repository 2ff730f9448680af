"""One shard of zarr v3: the states of some samples at every layer, in one file.

The file is what the specification calls `sharding_indexed` (zarr-specs, v3/codecs): inner chunks,
each the plain little-endian bytes of one layer of a few samples and their crc32c, then the offset
and length of every chunk, then the crc32c of that table. It is written here by hand, because a
disk takes 2 GB/s and zarr's own encoder copies the states three times on the way: any zarr reads
it. Chunks lie in C order, so that one layer of the samples is one stretch of the file.
"""

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np

ABSENT = np.uint64(2**64 - 1)  # offset and length of a chunk that is not there
PIECES = 1024  # buffers that one call of the system fills, at most
AT_ONCE = 2**30  # bytes, likewise
BITS = {"float16": (0x7C00, "u2"), "bfloat16": (0x7F80, "u2"), "float32": (0x7F800000, "u4")}


class Damaged(ValueError):
    """Bytes of a shard are not those that were written."""


class Overflow(ValueError):
    """A finite value that the stored dtype has no room for; `at` is its place in the chunk."""

    def __init__(self, value: float, at: tuple[int, ...]):
        super().__init__(f"{value} does not fit")
        self.value, self.at = value, at


class Encoder:
    """The pieces of one shard's file, chunk by chunk; afterwards what is known of them.

    states : (layers, samples, ...) of any float dtype, or uint16 bit patterns of bfloat16
    dtype  : float16, bfloat16 or float32, what is stored
    inner  : samples in an inner chunk; `capacity` : samples the shard is for (the last has fewer)

    After the pieces are used up, `crc` is the crc32c of the chunks' checksums in their order (one
    of the whole file would be the same for all files, as every chunk is followed by its own), and
    `nonfinite` the counts of NaN and infinity, (layers, samples, 2). Raises Overflow for a finite
    value that would become infinite.
    """

    def __init__(self, states: np.ndarray, dtype: str, inner: int, capacity: int):
        self.states, self.dtype, self.inner = states, dtype, inner
        self.grid = (len(states), capacity // inner)
        self.crc = 0
        self.nonfinite = np.zeros((*states.shape[:2], 2), np.uint32)

    def pieces(self) -> Iterator[np.ndarray]:
        """Every piece of the file, in order; each is valid until the next is asked for."""
        index = np.full((*self.grid, 2), ABSENT, "<u8")
        offset = 0
        for layer, states in enumerate(self.states):
            for at, start in enumerate(range(0, len(states), self.inner)):
                rows = slice(start, start + self.inner)
                try:
                    chunk = convert(states[rows], self.dtype)
                except Overflow as error:
                    row, *rest = error.at
                    raise Overflow(error.value, (layer, start + row, *rest)) from None
                if has_nonfinite(chunk, self.dtype):
                    self.nonfinite[layer, rows] = count_nonfinite(chunk, self.dtype)
                if len(chunk) < self.inner:  # of the last samples: zarr knows whole chunks only
                    filler = np.full((self.inner - len(chunk), *chunk.shape[1:]), fill(self.dtype))
                    chunk = np.concatenate([chunk, filler.astype(chunk.dtype)])
                data = chunk.reshape(-1).view(np.uint8)
                mark = checksum(data)
                self.crc = google_crc32c.extend(self.crc, mark)
                yield data
                yield mark
                index[layer, at] = offset, data.nbytes + 4
                offset += data.nbytes + 4
        table = index.reshape(-1).view(np.uint8)
        yield table
        yield checksum(table)


def checksum(data: np.ndarray) -> np.ndarray:
    """crc32c of uint8 `data`, as its four bytes."""
    return np.array([google_crc32c.value(data)], "<u4").view(np.uint8)


def fill(dtype: str) -> float | int:
    """What states that were never written read as: NaN."""
    return 0x7FC0 if dtype == "bfloat16" else float("nan")


def convert(states: np.ndarray, dtype: str) -> np.ndarray:
    """States in their stored form, C-contiguous; not copied where they are so already.

    bfloat16 is stored as its bit patterns in uint16: given those it keeps them, given wider
    floats it rounds to the nearest, ties to even, which is exact for what was bfloat16.
    """
    if states.dtype == np.uint16 and dtype == "bfloat16":
        return np.ascontiguousarray(states)
    if states.dtype == np.uint16:
        states = decode(states, "bfloat16")
    if dtype == "bfloat16":
        stored = to_bfloat16(np.ascontiguousarray(states, np.float32))
    elif states.dtype == dtype:
        return np.ascontiguousarray(states)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.ascontiguousarray(states, np.dtype(dtype))
    if has_nonfinite(stored, dtype):
        lost = np.isfinite(states) & ~np.isfinite(decode(stored, dtype))
        if lost.any():
            at = tuple(int(i) for i in np.argwhere(lost)[0])
            raise Overflow(float(states[at]), at)
    return stored


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values rounded to the nearest bfloat16."""
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)  # a NaN stays one whatever its low bits
    return np.where(np.isnan(values), quiet, rounded)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as numbers: bfloat16 becomes float32, which holds each of them exactly."""
    if dtype != "bfloat16":
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)


def has_nonfinite(stored: np.ndarray, dtype: str) -> bool:
    """Whether there is a NaN or infinity, by two maxima of the bits (5 x faster than isfinite)."""
    top, unsigned = BITS[dtype]
    bits = stored.reshape(-1).view(unsigned)
    sign = 1 << (8 * bits.itemsize - 1)
    if not bits.size:
        return False
    return bool(bits.view(unsigned.replace("u", "i")).max() >= top or bits.max() >= (sign | top))


def count_nonfinite(stored: np.ndarray, dtype: str) -> np.ndarray:
    """NaNs and infinities of each sample, (samples, 2)."""
    values = decode(stored, dtype).reshape(len(stored), -1)
    return np.stack([np.isnan(values).sum(1), np.isinf(values).sum(1)], 1).astype(np.uint32)


class Shard:
    """The chunks of one shard's file; each is held against its checksum when it is read.

    file    : what gives parts of it, see `store.files`
    grid    : layers, and chunks of each
    checked : bool (layers, chunks), those that need not be checked again; what is, is noted there
    """

    def __init__(self, file: Any, grid: tuple[int, int], checked: np.ndarray | None = None):
        self._file = file
        self._checked = np.zeros(grid, bool) if checked is None else checked
        length = 16 * grid[0] * grid[1]
        table = file.tail(length + 4)
        if len(table) != length + 4 or google_crc32c.value(table[:-4]) != int(
            table[-4:].view("<u4")[0]
        ):
            raise Damaged("its table of chunks is damaged")
        self._index = table[:-4].view("<u8").reshape(*grid, 2)

    def read(self, layer: int, first: int, into: np.ndarray) -> None:
        """Fill `into` (chunks, bytes), uint8, with a layer's chunks from number `first` on.

        Raises Damaged where they are not what was written.
        """
        count, size = len(into), into.shape[1] + 4
        spans = self._index[layer, first : first + count].tolist()
        start = spans[0][0]
        if spans != [[start + at * size, size] for at in range(count)]:
            raise Damaged("its table of chunks is not what was written")
        marks = np.empty((count, 1), "<u4")
        chunks = list(into)
        pieces = [
            piece for pair in zip(chunks, marks.view(np.uint8), strict=True) for piece in pair
        ]
        at_once = max(1, min(PIECES // 2, AT_ONCE // size))
        for at in range(0, count, at_once):
            some = pieces[2 * at : 2 * (at + at_once)]
            if self._file.fill(start + at * size, some) < len(some) // 2 * size:
                raise Damaged("it is cut off")
        known = self._checked[layer, first : first + count]
        for at in np.flatnonzero(~known).tolist():
            if google_crc32c.value(chunks[at]) != marks[at, 0]:
                raise Damaged("its checksum is wrong")
        known[:] = True
