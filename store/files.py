"""Parts of one file, read without the rest: of this disk, behind a URL, or already in memory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store.place import Place

AHEAD = 32 * 2**20  # bytes that are fetched together from behind a URL, before they are asked for

Span = tuple[int, int]


class DiskFile:
    """A file of this disk; close it after use."""

    def __init__(self, path: Path):
        self._file = path.open("rb", buffering=0)

    def announce(self, spans: Sequence[Span]) -> None:
        """Have the system fetch (start, stop) of each span, all at once, before it is asked for."""
        if hasattr(os, "posix_fadvise"):
            for start, stop in spans:
                os.posix_fadvise(self._file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def tail(self, count: int) -> bytes:
        """The last `count` bytes, or all of a shorter file."""
        self._file.seek(max(0, self._file.seek(0, os.SEEK_END) - count))
        return self._file.read(count)

    def fill(self, start: int, pieces: Sequence[Any]) -> int:
        """Fill `pieces` (uint8), one after the other, from `start` on; returns bytes found."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), pieces, start)
        self._file.seek(start)
        return sum(self._file.readinto(piece) or 0 for piece in pieces)

    def close(self) -> None:
        self._file.close()


class Content:
    """A file that was read whole."""

    def __init__(self, content: bytes):
        self._content = np.frombuffer(content, np.uint8)

    def tail(self, count: int) -> bytes:
        return self._content[-count:].tobytes()

    def fill(self, start: int, pieces: Sequence[Any]) -> int:
        return _deal(self._content[start:], pieces)


class RemoteFile:
    """A file behind a URL: every part is a request, those that are announced go out together."""

    def __init__(self, store: Place, key: str):
        self._store, self._key = store, key
        self._fetched: dict[Span, bytes] = {}

    def announce(self, spans: Sequence[Span]) -> None:
        if len(spans) > 1 and sum(stop - start for start, stop in spans) <= AHEAD:
            parts = self._store.read_parts(self._key, spans)
            self._fetched = dict(zip(spans, parts, strict=True))

    def tail(self, count: int) -> bytes:
        return self._store.read_part(self._key, -count)

    def fill(self, start: int, pieces: Sequence[Any]) -> int:
        stop = start + sum(piece.size for piece in pieces)
        found = self._fetched.pop((start, stop), b"") or self._store.read_part(
            self._key, start, stop
        )
        return _deal(np.frombuffer(found, np.uint8), pieces)

    def close(self) -> None:
        self._fetched = {}


def _deal(content: np.ndarray, pieces: Sequence[Any]) -> int:
    """Copy what there is into the pieces, one after the other; returns bytes copied."""
    at = 0
    for piece in pieces:
        part = content[at : at + piece.size]
        piece[: part.size] = part
        at += part.size
    return at
