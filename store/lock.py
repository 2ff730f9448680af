"""Nobody else writes here: a lock on a run that a crash releases."""

import json
import os
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from store.place import Place
from store.remote import Unreachable

LEASE = 60.0  # seconds after which a silent holder on another machine counts as dead
RENEW = 15.0  # seconds between two signs of life


class Locked(RuntimeError):
    """Another process is writing this run."""


def lock(run: Place, slot: int) -> "FolderLock | Lease":
    """Hold the right to write `run` as its process number `slot`, until released or dead.

    Raises Locked, naming the holder. On a disk this is a lock of the operating system, which ends
    with the process. On an object store it is a file that the holder renews, and that counts as
    left behind when its process is gone or silent for a minute. One process may hold a lock twice.
    Either file is removed on release; what a killed process left behind, the next holder takes.
    """
    if run.local:
        return FolderLock(run, slot)
    with Lease.guard:
        lease = Lease.held.get(f"{run.name}/{_name(slot)}") or Lease(run, slot)
        lease.holds += 1
        return lease


class FolderLock:
    def __init__(self, run: Place, slot: int):
        assert run.local is not None
        run.local.mkdir(parents=True, exist_ok=True)
        self._path = run.local.resolve() / _name(slot)  # one lock for every way to write a path
        self._lock: Any = FileLock(self._path, timeout=0, thread_local=False, is_singleton=True)
        try:
            self._lock.acquire()
        except Timeout:
            holder: dict[str, Any] = {}
            with suppress(FileNotFoundError):  # released in this moment
                holder = _read(self._path.read_bytes())
            raise Locked(_sentence(run, holder)) from None
        self._path.write_bytes(_me())

    def check(self) -> None:
        """Nobody can take a lock of the operating system over."""

    def release(self) -> None:
        if self._lock.lock_counter == 1:
            # Before the release, while nobody else can hold it: filelock gives up a lock on a
            # file that has lost its name. Windows, where an open file stays, removes it itself.
            with suppress(PermissionError):
                self._path.unlink(missing_ok=True)
        self._lock.release()


class Lease:
    held: dict[str, "Lease"] = {}  # noqa: RUF012  those of this process
    guard = threading.RLock()

    def __init__(self, run: Place, slot: int):
        self.holds = 0
        self._run, self._key = run, _name(slot)
        self._alive = time.time()
        self._taken_by: dict[str, Any] = {}
        self._over = threading.Event()
        self._take()
        self.held[f"{run.name}/{self._key}"] = self
        threading.Thread(target=self._renew, daemon=True, name="lease").start()

    def check(self) -> None:
        """Raises Locked where somebody took the lease over while this process was silent."""
        if time.time() - self._alive > LEASE / 2:
            self._give_sign()
        if self._taken_by:
            raise Locked(_sentence(self._run, self._taken_by))

    def release(self) -> None:
        with self.guard:
            self.holds -= 1
            if self.holds == 0:
                self._over.set()
                del self.held[f"{self._run.name}/{self._key}"]
                if not self._taken_by:
                    with suppress(Unreachable):  # then it ends with this process
                        self._run.remove(self._key)

    def _take(self) -> None:
        try:
            self._run.create(self._key, _me())
            return
        except FileExistsError:
            holder = _read(self._run.read(self._key))
        if not _gone(holder) and holder.get("token") != _token():  # ours: it could not be removed
            raise Locked(_sentence(self._run, holder))
        mine = _me()
        self._run.write(self._key, [mine])
        time.sleep(0.2)  # of two that find a dead holder at once, the later write stays
        if self._run.read(self._key) != mine:
            raise Locked(_sentence(self._run, _read(self._run.read(self._key))))

    def _renew(self) -> None:
        while not self._over.wait(RENEW):
            with suppress(Exception):  # the network is away: the next sign may get through
                self._give_sign()

    def _give_sign(self) -> None:
        with self.guard:
            if self._over.is_set():
                return
            holder = _read(self._run.read(self._key))
            if holder.get("token") != _token():
                self._taken_by = holder
                return
            self._run.write(self._key, [_me()])
            self._alive = time.time()


def _name(slot: int) -> str:
    return f".writer-{slot}.lock"


_DRAWN = uuid.uuid4().hex


def _token() -> str:
    return f"{_DRAWN}-{os.getpid()}"


def _me() -> bytes:
    about = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(sys.orig_argv)[:200],
        "alive": time.time(),
        "token": _token(),
    }
    return json.dumps(about).encode()


def _read(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}  # its holder has yet to write who it is
    return found if isinstance(found, dict) else {}


def _gone(holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname():
        try:
            os.kill(int(holder["process"]), 0)
        except (ProcessLookupError, KeyError):
            return True
        except PermissionError:
            pass
    return time.time() - holder.get("alive", time.time()) > LEASE


def _sentence(run: Place, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('process', 'unknown')} on {holder.get('host', 'this machine')}"
    command = f" ({holder['command']})" if holder.get("command") else ""
    return f"{run.name} is being written by {who}{command}: wait for it, or name another place"
