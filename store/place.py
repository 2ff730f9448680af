"""Where a store lives: a folder of this disk, or any fsspec URL, with the same few operations."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import zarr.storage

from store.remote import COPIES, PART, Remote, RemoteStore, reaching

PARTIAL = ".partial"
MAKING = ".making"  # lies in a bucket while an empty store is uploaded to it
AT_A_TIME = 16  # files that are waited for together
LARGE = 2**20  # bytes; a smaller file can wait to be written with others
OPTIONS = {"use_listings_cache": False}  # another process may have written since we last looked


class Place:
    """Files under one folder or URL; keys are their names below it, with `/`.

    A file is written whole or not at all: on a disk beside its name, then renamed; on an object
    store by one upload, which is atomic there, of a large one in parts. Options of a file system
    (an endpoint, credentials) come from fsspec's configuration or the environment, as for every
    fsspec program. What can't be reached there raises `store.remote.Unreachable`.
    """

    def __init__(self, path: str | PurePath):
        text = str(path)
        self.local: Path | None = None
        if "://" not in text or text.startswith(("file://", "local://")):
            self.local = Path(text.partition("://")[2] if "://" in text else path)
            self.path: PurePath = self.local
        else:
            import fsspec

            try:
                with reaching(text):
                    fs, self._root = fsspec.core.url_to_fs(text.rstrip("/"), **OPTIONS)
            except (ImportError, ValueError) as error:
                raise ValueError(f"{text} cannot be opened: {error}") from error
            self._fs = Remote(fs, text)
            self.path = PurePosixPath(text)
        self.name = text

    @property
    def held(self) -> int:
        """Bytes of a file that are held at most while it is written."""
        return 0 if self.local else COPIES * PART

    def child(self, name: str) -> "Place":
        """The place one level below."""
        return Place(self.local / name if self.local else f"{self.name.rstrip('/')}/{name}")

    def exists(self, key: str = "") -> bool:
        if self.local:
            return (self.local / key).exists()
        return self._fs.exists(self._key(key))

    def read(self, key: str) -> bytes:
        """Content of a file. Raises FileNotFoundError."""
        if self.local:
            return (self.local / key).read_bytes()
        return self._fs.cat_file(self._key(key))

    def read_part(self, key: str, start: int, stop: int | None = None) -> bytes:
        """Bytes of a file from `start` to `stop`; the last of them where `start` is negative."""
        if self.local:
            with (self.local / key).open("rb") as file:
                file.seek(start, os.SEEK_END if start < 0 else os.SEEK_SET)
                return file.read(-1 if stop is None else stop - start)
        return self._fs.cat_file(self._key(key), start=start, end=stop)

    def read_parts(self, key: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """`read_part` of each span, asked for together; nothing of those that can't be read."""
        if self.local:
            return [self.read_part(key, *span) for span in spans]
        starts, stops = (list(ends) for ends in zip(*spans, strict=True))
        keys = [self._key(key)] * len(spans)
        found = self._fs.cat_ranges(keys, starts, stops, on_error="return")
        return [part if isinstance(part, bytes) else b"" for part in found]

    def read_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Content of those of the files that exist."""
        if self.local:
            return {key: self.read(key) for key in keys if (self.local / key).is_file()}
        full = {self._key(key).strip("/"): key for key in keys}
        found = self._fs.cat(list(full), on_error="return") if full else {}  # all at once
        contents = {}
        for name, content in found.items():
            if isinstance(content, bytes):
                contents[full[str(name).strip("/")]] = content
            elif not isinstance(content, FileNotFoundError):
                with reaching(self.name):
                    raise content
        return contents

    def write(self, key: str, pieces: Iterable[Any], owner: str = "") -> None:
        """Put bytes-like `pieces`, one after the other, in place of what `key` held.

        `owner` tells the unfinished files of several processes apart.
        """
        if not self.local:
            self._fs.upload(self._key(key), pieces)
            return
        path = self.local / key
        partial = path.with_name(f"{path.name}{owner}{PARTIAL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                if file.tell() > LARGE:
                    _start_writing(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def create(self, key: str, content: bytes) -> None:
        """Put a file that must not exist yet. Raises FileExistsError."""
        if self.local:
            with (self.local / key).open("xb") as file:
                file.write(content)
        else:
            self._fs.pipe_file(self._key(key), content, mode="create")

    def remove(self, key: str) -> None:
        if self.local:
            (self.local / key).unlink(missing_ok=True)
        elif self._fs.exists(self._key(key)):
            self._fs.rm_file(self._key(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All files below `prefix`, in no particular order."""
        if self.local:
            for folder, _, names in os.walk(self.local / prefix):
                inside = Path(folder).relative_to(self.local).as_posix()
                yield from (name if inside == "." else f"{inside}/{name}" for name in names)
        else:
            top = self._key(prefix)
            below = len(self._root.strip("/")) + 1
            yield from (str(name).strip("/")[below:] for name in self._fs.find(top))

    def names(self, prefix: str) -> list[str]:
        """Names of the files and folders directly below `prefix`; none where it is absent."""
        try:
            if self.local:
                return os.listdir(self.local / prefix)
            found = self._fs.ls(self._key(prefix), detail=False)
        except FileNotFoundError:
            return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def sync(self) -> None:
        """Come back when every file is on the disk, and not only on its way there."""
        if self.local is None:
            return
        with ThreadPoolExecutor(AT_A_TIME) as pool:  # a disk takes many waits as one
            list(pool.map(_fsync, (self.local / key for key in self.keys())))

    def length(self, key: str) -> int:
        """Bytes of a file, -1 where there is none."""
        try:
            return (
                (self.local / key).stat().st_size if self.local else self._fs.size(self._key(key))
            )
        except FileNotFoundError:
            return -1

    def size(self) -> int:
        """Bytes of all files."""
        if self.local:
            return sum((self.local / key).stat().st_size for key in self.keys())
        return self._fs.du(self._root)

    def zarr(self) -> zarr.storage.LocalStore | zarr.storage.FsspecStore:
        """The same files as a store that zarr and xarray read from."""
        if self.local:
            return zarr.storage.LocalStore(self.local, read_only=True)
        return RemoteStore.from_url(self.name, OPTIONS, read_only=True)

    def adopt(self, folder: Path) -> None:
        """Make what is in a local folder the content of this place, seen whole or not at all.

        On a disk this is a rename of the folder, which must lie beside. Elsewhere the root's
        metadata, without which there is no store, is uploaded last.
        """
        if self.local:
            folder.rename(self.local)
            return
        keys = sorted(Place(folder).keys(), key=lambda key: (key == "zarr.json", key))
        if leftover := list(self.keys()):
            if MAKING not in leftover:
                raise FileExistsError(
                    f"{self.name} holds {len(leftover)} files but no zarr.json: it is a damaged "
                    "store or none of ours; name another place"
                )
            self._fs.rm([self._key(key) for key in leftover])
        self._fs.pipe_file(self._key(MAKING), b"")
        *rest, root = keys
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda key: self._fs.put_file(str(folder / key), self._key(key)), rest))
        self._fs.put_file(str(folder / root), self._key(root))
        self.remove(MAKING)

    def clear(self) -> None:
        """Remove everything here."""
        if self.local:
            shutil.rmtree(self.local, ignore_errors=True)
        elif self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)

    def _key(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root


def _start_writing(file: int) -> None:
    """Ask the system to write a file's new pages to the disk now, beside what comes next.

    By itself it waits until a tenth of the memory is unwritten, and then makes us wait.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
