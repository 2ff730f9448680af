"""One shard of zarr v3: the states of some samples at every layer, in one file.

The file is what the specification calls `sharding_indexed` (zarr-specs, v3/codecs): inner chunks,
each the plain little-endian bytes of one layer of a few samples and their crc32c, then the offset
and length of every chunk, then the crc32c of that table. It is written here by hand, because a
disk takes 2 GB/s and zarr's own encoder copies the states three times on the way: any zarr reads
it. Chunks lie in C order, so that one layer of the samples is one stretch of the file.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import google_crc32c
import numpy as np

ABSENT = np.uint64(2**64 - 1)  # offset and length of a chunk that is not there
PIECES = 1024  # buffers that one call of the system fills, at most
AT_ONCE = 2**30  # bytes, likewise
ENCODERS = 2  # threads that make chunks ready while others are written
AHEAD = 8  # chunks that they are ahead of the disk at most
BITS = {"float16": (0x7C00, "u2"), "bfloat16": (0x7F80, "u2"), "float32": (0x7F800000, "u4")}


Chunk = tuple[np.ndarray, np.ndarray]  # its bytes, and their checksum


class Damaged(ValueError):
    """Bytes of a shard are not those that were written."""


class Overflow(ValueError):
    """A finite value that the stored dtype has no room for; `at` is its place in the chunk."""

    def __init__(self, value: float, at: tuple[int, ...]):
        super().__init__(f"{value} does not fit")
        self.value, self.at = value, at


class Encoder:
    """The pieces of one shard's file, chunk by chunk; afterwards what is known of them.

    states : (layers, samples, ...) of any float dtype, or uint16 bit patterns of bfloat16; or what
             gives the layers one by one, whose memory is its own again when it is asked for the
             next (or says that there is none)
    dtype  : float16, bfloat16 or float32, what is stored
    inner  : samples in an inner chunk; `capacity` : samples the shard is for (the last has fewer)

    After the pieces are used up, `crc` is the crc32c of the chunks' checksums in their order (one
    of the whole file would be the same for all files, as every chunk is followed by its own), and
    `nonfinite` the counts of NaN and infinity, (samples, 2) for each layer. Raises Overflow for a
    finite value that would become infinite.
    """

    def __init__(self, states: Iterable[np.ndarray], dtype: str, inner: int, capacity: int):
        self.states, self.dtype, self.inner, self.capacity = states, dtype, inner, capacity
        self.crc = 0
        self.nonfinite: list[np.ndarray] = []

    def pieces(self) -> Generator[np.ndarray, None, None]:
        """Every piece of the file, in order. Close it where not all of them are taken."""
        chunks = 0
        with closing(self._chunks()) as made:
            for data, mark in made:
                chunks, size = chunks + 1, data.nbytes
                self.crc = google_crc32c.extend(self.crc, mark)
                yield data
                yield mark
                del data  # may be a view of its layer
        layers = len(self.nonfinite)
        yield table((layers, self.capacity // self.inner), chunks // layers, size)

    def _chunks(self) -> Generator[Chunk, None, None]:
        """The chunks of each layer, made by threads a few chunks ahead where that takes long.

        numpy makes half precision of wider floats one number at a time, slower than a disk takes
        them. All else is made faster than it is handed over (see tests/benchmarks).
        """
        ahead: deque[Future[Chunk]] = deque()
        with ThreadPoolExecutor(ENCODERS, "encoder") as pool:  # which starts none until it has to
            for states in self.states:
                layer = len(self.nonfinite)
                self.nonfinite.append(np.zeros((len(states), 2), np.uint32))
                slow = self.dtype == "float16" and states.dtype != np.float16
                for start in range(0, len(states), self.inner):
                    if slow:
                        ahead.append(pool.submit(self._chunk, states, layer, start))
                    while len(ahead) > (AHEAD if slow else 0):
                        yield ahead.popleft().result()
                    if not slow:
                        yield self._chunk(states, layer, start)
                wait(ahead)
                del states  # nothing reads the layer any more
            while ahead:
                yield ahead.popleft().result()

    def _chunk(self, states: np.ndarray, layer: int, start: int) -> Chunk:
        """A chunk of a layer, from the sample `start` on, with its checksum."""
        rows = slice(start, start + self.inner)
        try:
            chunk = convert(states[rows], self.dtype)
        except Overflow as error:
            row, *rest = error.at
            raise Overflow(error.value, (layer, start + row, *rest)) from None
        if has_nonfinite(chunk, self.dtype):
            self.nonfinite[layer][rows] = count_nonfinite(chunk, self.dtype)
        if len(chunk) < self.inner:  # of the last samples: zarr knows whole chunks only
            filler = np.full((self.inner - len(chunk), *chunk.shape[1:]), fill(self.dtype))
            chunk = np.concatenate([chunk, filler.astype(chunk.dtype)])
        data = chunk.reshape(-1).view(np.uint8)
        return data, checksum(data)


def table(grid: tuple[int, int], chunks: int, size: int) -> np.ndarray:
    """The end of a file, uint8: offset and length of every chunk, and the crc32c of these.

    grid : layers, and chunks of each that there is room for, of which there are `chunks`
    """
    index = np.full((*grid, 2), ABSENT, "<u8")
    index[:, :chunks, 0] = np.arange(grid[0] * chunks).reshape(grid[0], chunks) * (size + 4)
    index[:, :chunks, 1] = size + 4
    content = index.reshape(-1).view(np.uint8)
    return np.concatenate([content, checksum(content)])


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
    rounded = bits >> 16
    rounded &= 1  # in place: three times as fast as with a new array for each step
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    stored = rounded.astype(np.uint16)
    if has_nonfinite(values, "float32"):
        quiet = ((bits >> 16) | 0x40).astype(np.uint16)  # a NaN stays one whatever its low bits
        return np.where(np.isnan(values), quiet, stored)
    return stored


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


def span_of(layer: int, first: int, count: int, chunks: int, size: int) -> tuple[int, int]:
    """Where `count` chunks of a layer begin and end in a file of `chunks` a layer, each `size`."""
    start = (layer * chunks + first) * (size + 4)
    return start, start + count * (size + 4)


class Shard:
    """The chunks of one shard's file; each is held against its checksum when it is read.

    They lie where `table` says, which is read by `store.integrity` only: a chunk that is elsewhere
    doesn't have its checksum here.

    file    : what gives parts of it, see `store.files`
    chunks  : in a layer; `size` : bytes of one, without its checksum
    checked : bool (layers, chunks), those that need not be checked again; what is, is noted there
    """

    def __init__(self, file: Any, chunks: int, size: int, checked: np.ndarray):
        self._file, self._checked = file, checked
        self._chunks, self._bytes, self._size = chunks, size, size + 4

    def read(self, layers: Sequence[int], first: int, into: np.ndarray) -> None:
        """Fill `into` (layers, chunks, bytes), uint8, with the layers' chunks from `first` on.

        Raises Damaged where they are not what was written.
        """
        count = into.shape[1]
        checked = self._checked[layers, first : first + count].tolist()
        marks = list(np.empty((count, 4), np.uint8))
        at_once = 2 * max(1, min(PIECES // 2, AT_ONCE // self._size))
        for layer, known, chunks in zip(layers, checked, map(list, into), strict=True):
            start, _ = span_of(layer, first, count, self._chunks, self._bytes)
            pieces = [piece for pair in zip(chunks, marks, strict=True) for piece in pair]
            for at in range(0, len(pieces), at_once):
                some = pieces[at : at + at_once]
                size = len(some) // 2 * self._size
                if self._file.fill(start + at // 2 * self._size, some, size) < size:
                    raise Damaged("it is cut off")
            for chunk, mark, sure in zip(chunks, marks, known, strict=True):
                if not sure and google_crc32c.value(chunk) != int.from_bytes(mark, "little"):
                    raise Damaged("its checksum is wrong")
        self._checked[layers, first : first + count] = True
