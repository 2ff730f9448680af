"""A file system elsewhere, whose failures are said in one sentence."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

import zarr.storage
from fsspec.spec import AbstractBufferedFile

WRITING = ("pipe_file", "put_file", "open")
PART = 5 * 2**20  # bytes of a large file that are sent together, the least that S3 takes
COPIES = 3  # of a part: what is collected, what is sent, what the network's library has of it


class Unreachable(OSError):
    """A place elsewhere that can't be read or written now; nothing that is there is lost."""


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Failures inside become Unreachable, naming the place; that a file is absent or there stays.

    Every object store has errors of its own (botocore's, aiohttp's), which are no OSError. Those
    of Python that are mistakes of a program stay what they are.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, Unreachable):
        raise
    except Exception as error:
        if type(error).__module__ == "builtins" and not isinstance(error, OSError):
            raise
        raise Unreachable(
            f"{name} can't be reached ({_said(error)}): check the network, the endpoint and the "
            "credentials; what is stored stays, and the same command goes on from there"
        ) from error


class Remote:
    """The operations of an fsspec file system, `name` being the URL that they are for."""

    def __init__(self, fs: Any, name: str):
        self._fs, self._name = fs, name

    def upload(self, key: str, pieces: Iterable[Any]) -> None:
        """Put bytes-like pieces as they are made, while little more than a part of them is held."""
        part, rest = bytearray(), iter(pieces)
        while len(part) < PART and (piece := next(rest, None)) is not None:
            part.extend(piece)
        if len(part) < PART:
            self.pipe_file(key, bytes(part))
            return
        file = self.open(key, "wb", block_size=PART)
        try:
            for piece in chain([part], rest):
                with reaching(self._name):
                    file.write(piece)
                part.clear()
            with reaching(self._name):
                file.close()
        except BaseException:
            self._give_up(file, key)
            raise

    def _give_up(self, file: Any, key: str) -> None:
        """Leave nothing of a file that was half written."""
        with suppress(Exception):  # of a network that is away, where nothing is seen of it
            if not isinstance(file, AbstractBufferedFile):  # in memory, say
                self._fs.rm_file(key)
                return
            file.closed = True  # or it would be sent when it is collected
            file.discard()

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._fs, operation)

        def reached(*args: Any, **kwargs: Any) -> Any:
            try:
                with reaching(self._name):
                    return call(*args, **kwargs)
            except FileNotFoundError as error:
                if operation not in WRITING:
                    raise
                raise FileNotFoundError(
                    f"{self._name} can't be written ({_said(error)}): make its bucket, or name "
                    "another place"
                ) from error

        return reached


class RemoteStore(zarr.storage.FsspecStore):
    """What zarr reads from; the same failures."""

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        with reaching(self._name):
            return await super().get(*args, **kwargs)

    async def exists(self, key: str) -> bool:
        with reaching(self._name):
            return await super().exists(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        with reaching(self._name):
            async for name in super().list_dir(prefix):
                yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        with reaching(self._name):
            async for name in super().list_prefix(prefix):
                yield name

    @property
    def _name(self) -> str:
        return self.fs.unstrip_protocol(self.path)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
