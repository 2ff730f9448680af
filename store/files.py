"""Parts of one file, read without the rest: of this disk, behind a URL, or already in memory."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from store.place import Place
from store.remote import Unreachable

AHEAD = 32 * 2**20  # bytes that are fetched together from behind a URL, before they are asked for

Span = tuple[int, int]
NOWAIT = getattr(os, "RWF_NOWAIT", None)  # read what is in the page cache, and nothing else


class DiskFile:
    """A file of this disk; close it after use."""

    def __init__(self, path: str | Path):
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._ahead: Sequence[Span] = ()

    def announce(self, spans: Sequence[Span], missed: Callable[[], None]) -> None:
        """Have the system fetch (start, stop) of each span, all at once, when the first is missed.

        What lies in the page cache is read without the system being told of it. Where something
        does not, `missed` is called, before it is waited for.
        """
        self._ahead, self._missed = spans, missed

    def fetch(self, spans: Sequence[Span]) -> None:
        """Have the system fetch (start, stop) of each span, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            for first, last in spans:
                os.posix_fadvise(self._file, first, last - first, os.POSIX_FADV_WILLNEED)

    def fill(self, start: int, pieces: Sequence[Any], size: int) -> int:
        """Fill `pieces` (uint8, `size` in all), one after the other, from `start` on.

        Returns how many bytes there were.
        """
        if not hasattr(os, "preadv"):
            os.lseek(self._file, start, os.SEEK_SET)
            return _deal(np.frombuffer(os.read(self._file, size), np.uint8), pieces)
        if self._ahead and NOWAIT is not None:
            try:
                if os.preadv(self._file, pieces, start, NOWAIT) == size:
                    return size
            except OSError:  # none of it is in the cache, or this file system can't say
                pass
        if self._ahead:
            self.fetch(self._ahead)
            self._ahead = ()
            self._missed()
        return os.preadv(self._file, pieces, start)

    def identity(self) -> tuple[int, ...]:
        """What changes when the file is written anew, in its place or in another's."""
        about = os.fstat(self._file)
        return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns

    def close(self) -> None:
        os.close(self._file)


class Content:
    """A file that was read whole."""

    def __init__(self, content: bytes):
        self._content = np.frombuffer(content, np.uint8)

    def fill(self, start: int, pieces: Sequence[Any], size: int) -> int:
        return _deal(self._content[start : start + size], pieces)


class RemoteFile:
    """A file behind a URL: every part is a request, those that are announced go out together."""

    def __init__(self, store: Place, key: str):
        self._store, self._key = store, key
        self._fetched: dict[Span, bytes] = {}

    def announce(self, spans: Sequence[Span], missed: Callable[[], None]) -> None:
        """`missed` is never called: there is no page cache."""
        if len(spans) > 1 and sum(stop - start for start, stop in spans) <= AHEAD:
            parts = self._store.read_parts(self._key, spans)
            self._fetched = dict(zip(spans, parts, strict=True))

    def fill(self, start: int, pieces: Sequence[Any], size: int) -> int:
        stop = start + size
        found = self._fetched.pop((start, stop), b"")
        try:
            found = found or self._store.read_part(self._key, start, stop)
        except Unreachable:  # so S3 answers, too, where a file ends before `start`
            if self._store.length(self._key) > start:
                raise
        return _deal(np.frombuffer(found, np.uint8), pieces)

    def identity(self) -> None:
        """Asking for it would be one more request, and what is read has crossed a network."""

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
