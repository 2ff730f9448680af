"""Nobody else writes here: a lock on a run that a crash releases."""

import json
import os
import socket
import sys
import threading
import time
import uuid
from typing import Any

from filelock import FileLock, Timeout

from store.place import Place

LEASE = 60.0  # seconds after which a silent holder on another machine counts as dead
RENEW = 15.0  # seconds between two signs of life


class Locked(RuntimeError):
    """Another process is writing this run."""


def lock(run: Place, slot: int) -> "FolderLock | Lease":
    """Hold the right to write `run` as its process number `slot`, until released or dead.

    Raises Locked, naming the holder. On a disk this is a lock of the operating system, which ends
    with the process. On an object store it is a file that the holder renews, and that counts as
    left behind when its process is gone or silent for a minute. One process may hold a lock twice.
    """
    return FolderLock(run, slot) if run.local else Lease(run, slot)


class FolderLock:
    def __init__(self, run: Place, slot: int):
        assert run.local is not None
        run.local.mkdir(parents=True, exist_ok=True)
        path = run.local / _name(slot)
        self._lock: Any = FileLock(path, timeout=0, thread_local=False, is_singleton=True)
        try:
            self._lock.acquire()
        except Timeout:
            holder = _read(path.read_bytes())
            raise Locked(_sentence(run, holder)) from None
        path.write_bytes(_me())

    def release(self) -> None:
        self._lock.release()


class Lease:
    _held: dict[str, int] = {}  # noqa: RUF012  this process's leases, by key, with how often

    def __init__(self, run: Place, slot: int):
        self._run, self._key = run, _name(slot)
        self._where = f"{run.name}/{self._key}"
        if self._held.get(self._where):
            self._held[self._where] += 1
            return
        self._take()
        self._held[self._where] = 1
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        left = self._held.get(self._where, 0) - 1
        self._held[self._where] = max(left, 0)
        if left == 0:
            self._run.remove(self._key)

    def _take(self) -> None:
        try:
            self._run.create(self._key, _me())
            return
        except FileExistsError:
            holder = _read(self._run.read(self._key))
        if not _gone(holder):
            raise Locked(_sentence(self._run, holder))
        mine = _me()
        self._run.write(self._key, [mine])
        time.sleep(0.2)  # of two that find a dead holder at once, the later write stays
        if self._run.read(self._key) != mine:
            raise Locked(_sentence(self._run, _read(self._run.read(self._key))))

    def _renew(self) -> None:
        while self._held.get(self._where):
            time.sleep(RENEW)
            if self._held.get(self._where):
                self._run.write(self._key, [_me()])


def _name(slot: int) -> str:
    return f".writer-{slot}.lock"


_TOKEN = uuid.uuid4().hex


def _me() -> bytes:
    about = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join(sys.orig_argv)[:200],
        "alive": time.time(),
        "token": f"{_TOKEN}-{os.getpid()}",
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
