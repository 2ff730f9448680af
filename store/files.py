"""Parts of one file, read without the rest: of this disk, behind a URL, or already in memory."""

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import local
from typing import Any

import numpy as np

from store.place import Place
from store.remote import Unreachable

AHEAD = 32 * 2**20  # bytes that are fetched together from behind a URL, before they are asked for

Span = tuple[int, int]
NOWAIT = getattr(os, "RWF_NOWAIT", None)  # read what is in the page cache, and nothing else
LARGE = 2**20  # bytes of a part that may be read past the page cache
PAGE = 4096  # where such a part begins and ends, on the disk and in memory
BUFFER = 4 * 2**20  # bytes of memory for such parts, at least
COIN = Random(0)  # taking turns could leave out the same files each time
OWN = local()  # memory for such parts, of each thread


class DiskFile:
    """A file of this disk; close it after use."""

    def __init__(self, path: str | Path):
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._ahead: Sequence[Span] = ()
        self._past_cache = False

    def announce(self, spans: Sequence[Span]) -> None:
        """Prepare to read (start, stop) of each span, for when the first is missed.

        What lies in the page cache is read from there. Once something does not, the system is
        told of all spans, to fetch them together. Half of the files that begin with a large part
        are read past the page cache instead: the system fetches into it in pages of 4 KiB, which
        takes twice as long as the disk does. What is read again and again is in the cache soon,
        as half of what is missing comes into it each time.
        """
        self._ahead = spans

    def fill(self, start: int, pieces: Sequence[Any], size: int) -> int:
        """Fill `pieces` (uint8, `size` in all), one after the other, from `start` on.

        Returns how many bytes there were.
        """
        if not hasattr(os, "preadv"):
            os.lseek(self._file, start, os.SEEK_SET)
            return _deal(np.frombuffer(os.read(self._file, size), np.uint8), pieces)
        if self._ahead:
            # of a byte first: looking for more has the system fetch what it does not find
            if size >= LARGE and self.cached(start, [bytearray(1)]) == 0:
                self._past_cache = COIN.random() < 0.5
            elif self.cached(start, pieces) == size:
                return size
            if not self._past_cache:
                self.fetch(self._ahead)
            self._ahead = ()
        if self._past_cache and (content := self.direct(start, size)) is not None:
            return _deal(content, pieces)
        return os.preadv(self._file, pieces, start)

    def cached(self, start: int, pieces: Sequence[Any]) -> int | None:
        """Fill `pieces` from the page cache: how many bytes, None where the system can't say."""
        if NOWAIT is None:
            return None
        try:
            return os.preadv(self._file, pieces, start, NOWAIT)
        except BlockingIOError:
            return 0
        except OSError:  # a file system that has no such way, of a network for instance
            return None

    def fetch(self, spans: Sequence[Span]) -> None:
        """Have the system fetch (start, stop) of each span, without waiting for it."""
        if hasattr(os, "posix_fadvise"):
            for first, last in spans:
                os.posix_fadvise(self._file, first, last - first, os.POSIX_FADV_WILLNEED)

    def direct(self, start: int, size: int) -> np.ndarray | None:
        """A part, past the page cache; None where that is not to be had, or the file ends in it."""
        first, last = start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE
        with suppress(OSError, AttributeError):  # of a system without it
            file = os.open(f"/proc/self/fd/{self._file}", os.O_RDONLY | os.O_DIRECT)
            try:
                memory = _memory(last - first)[: last - first]
                found = os.preadv(file, [memory], first)
            finally:
                os.close(file)
            if found >= start - first + size:
                return memory[start - first :][:size]
        return None

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

    def announce(self, spans: Sequence[Span]) -> None:
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


def _memory(size: int) -> Any:
    """Memory of this thread (uint8, `size` or more), in large pages.

    A disk of a virtual machine is handed every page: small ones take it three times as long.
    """
    memory = getattr(OWN, "memory", np.empty(0, np.uint8))
    if memory.size < size:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        pages = mmap.mmap(-1, max(size, BUFFER), flags=private)
        pages.madvise(mmap.MADV_HUGEPAGE)
        memory = OWN.memory = np.frombuffer(pages, np.uint8)
    return memory


def _deal(content: np.ndarray, pieces: Sequence[Any]) -> int:
    """Copy what there is into the pieces, one after the other; returns bytes copied."""
    at = 0
    for piece in pieces:
        part = content[at : at + piece.size]
        piece[: part.size] = part
        at += part.size
    return at
