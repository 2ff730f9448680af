"""The tokens of one layer: held where they are few, else read a block of objects at a time."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

HELD_BYTES = 2**27  # in float32; what is larger is read again by whoever asks
BLOCK_BYTES = 2**25
SPREAD = 4  # objects that lie in a span of so many times their number are read with what is between


class Tokens:
    """(samples, tokens, dim) in float32, whatever they are stored in: `tokens[rows]`.

    Of objects with different numbers of tokens, which therefore can't be set side by side, it is
    the mean over each one's own, (samples, 1, dim). Memory grows with the mean tokens and norms of
    the objects, not with all their tokens.
    """

    def __init__(self, stored: xr.DataArray | np.ndarray):
        states: Any = stored
        if isinstance(stored, xr.DataArray) and "n_tokens" in stored.coords:
            states = OwnMeans(stored)
        self.shape: tuple[int, ...] = states.shape
        self.ndim = len(self.shape)
        held = 4 * int(np.prod(self.shape)) <= HELD_BYTES
        self._stored = states[:].astype(np.float32) if held else states

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The tokens of some objects, by a slice or by their rows."""
        if isinstance(rows, np.ndarray) and len(rows):
            first, last = int(rows.min()), int(rows.max()) + 1
            if last - first <= SPREAD * len(rows):
                return self[first:last][rows - first]
        return np.asarray(self._stored[rows], np.float32)

    def place(self, at: int) -> np.ndarray:
        """One token of every object, (samples, dim)."""
        return np.asarray(self._stored[:, at], np.float32)

    @cached_property
    def pooled(self) -> np.ndarray:
        """Mean token of each object, (samples, dim) in float64."""
        with np.errstate(invalid="ignore"):  # of both infinities, which who reads them refuses
            return np.concatenate([block.mean(axis=1, dtype=np.float64) for block in self._all()])

    @cached_property
    def norms(self) -> np.ndarray:
        """(samples, tokens)."""
        return np.concatenate([np.linalg.norm(block, axis=-1) for block in self._all()])

    @cached_property
    def digest(self) -> str:
        """Hash of shape and numbers."""
        found = hashlib.sha256(repr(self.shape).encode())
        for block in self._all():
            found.update(np.ascontiguousarray(block).data)
        return found.hexdigest()

    def _all(self) -> Iterator[np.ndarray]:
        return (self[rows] for rows in blocks(len(self), self.shape))


class OwnMeans:
    """(samples, 1, dim) of a stored (samples, tokens, dim): the mean over an object's own tokens,
    of which it has `n_tokens`; behind them are zeros."""

    def __init__(self, stored: xr.DataArray):
        self._stored, self._own = stored, stored["n_tokens"].values
        self.shape = (stored.shape[0], 1, stored.shape[2])

    def __getitem__(self, key: slice | np.ndarray | tuple[slice, int]) -> np.ndarray:
        if isinstance(key, tuple):  # one token of every object
            return self[key[0]][:, key[1]]
        rows = np.arange(self.shape[0])[key]
        found = np.empty((len(rows), *self.shape[1:]), np.float32)
        for part in blocks(len(rows), self._stored.shape):
            some = rows[part]
            whole = len(some) > 0 and some[-1] - some[0] == len(some) - 1
            block = self._stored[slice(some[0], some[-1] + 1) if whole else some]
            total = np.asarray(block, np.float32).sum(axis=1, keepdims=True, dtype=np.float64)
            found[part] = total / self._own[some][:, None, None]
        return found


def blocks(count: int, shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of `count` objects of tokens (samples, tokens, dim), one or more objects each."""
    step = max(1, BLOCK_BYTES // (4 * int(np.prod(shape[1:]))))
    return (slice(at, min(at + step, count)) for at in range(0, count, step))
