"""Write what a GPU has made while it makes the next: in order, never far behind.

A batch goes through copies to pinned memory on a stream of their own, a queue with room for one,
and a thread that writes. What it writes is encoded by threads of the store, a few layers ahead,
where that takes longer than the disk (`store.shards.Encoder`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

WAITING = 0
"""Finished batches that may wait beside the one that is being written; then the model waits, and
memory stays flat. Each would take the memory of a batch and save no time in the mean."""

Write = Callable[[slice, dict[str, np.ndarray]], None]
Arrays = Mapping[str, Tensor | list[Tensor]]


@contextmanager
def in_background(write: Write) -> Iterator[Callable[[slice, Arrays], None]]:
    """Yields `put(rows, tensors)`, which hands a batch to one thread that calls `write`.

    write : called with each batch in the order of the puts; bfloat16 comes as float32, which holds
            it exactly. A list of tensors, as of layers, comes as one array, bfloat16 there as its
            bit patterns (uint16), and is empty afterwards: each is given up once it is copied.

    `put` waits while `WAITING` + 1 batches are not written. An error of `write` comes out of the
    next `put` or of the end of the `with`, and nothing is written after it; nor after an error
    inside the `with`. When it ends without one, everything is written. Copies from a GPU go to
    pinned memory on a stream of their own, beside the computation.
    """
    waiting: queue.Queue[Any] = queue.Queue()
    room = threading.Semaphore(WAITING + 1)
    failed: list[BaseException] = []

    def work() -> None:
        while (item := waiting.get()) is not None:
            try:
                if not failed:
                    _written(write, *item)
            except BaseException as error:
                failed.append(error)
            del item  # its memory is free before the model is let on
            room.release()

    def put(rows: slice, tensors: Arrays) -> None:
        room.acquire()
        if failed:
            room.release()
            raise failed[0]
        waiting.put((rows, *_to_host(tensors, streams)))

    streams: dict[torch.device, Any] = {}
    thread = threading.Thread(target=work, name="writer")
    thread.start()
    try:
        yield put
    except BaseException as error:
        failed.append(error)
        raise
    finally:
        waiting.put(None)
        thread.join()
    if failed:
        raise failed[0]


def _written(write: Write, rows: slice, tensors: dict[str, Tensor], copied: Any) -> None:
    if copied is not None:
        copied.synchronize()
    half = torch.bfloat16  # which numpy lacks
    plain = {name: t.float() if t.dtype == half else t for name, t in tensors.items()}
    write(rows, {name: tensor.numpy() for name, tensor in plain.items()})


def _to_host(tensors: Arrays, streams: dict) -> tuple[dict[str, Tensor], Any]:
    """Copies on the CPU, and the event after which they are whole (None: they already are)."""
    parts = [
        part for some in tensors.values() for part in ([some] if isinstance(some, Tensor) else some)
    ]
    devices = {part.device for part in parts if part.is_cuda}
    del parts
    if not devices:
        return {name: _copied(some, None) for name, some in tensors.items()}, None
    (device,) = devices  # a batch is made on one
    side = streams.setdefault(device, torch.cuda.Stream(device))
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        host = {name: _copied(some, side) for name, some in tensors.items()}
        copied = torch.cuda.Event()
        copied.record(side)
    return host, copied


def _copied(some: Tensor | list[Tensor], side: Any) -> Tensor:
    """A tensor on the CPU, pinned and filled on the stream `side` where there is one."""
    if isinstance(some, Tensor):
        return some.detach().cpu() if side is None else _copied([some], side).view(some.dtype)[0]
    # Embeddings may be of half precision where the stream behind them is not.
    dtype = reduce(torch.promote_types, {part.dtype for part in some})
    host = torch.empty((len(some), *some[0].shape), dtype=dtype, pin_memory=side is not None)
    for at in range(len(host)):
        part = some.pop(0)
        host[at].copy_(part, non_blocking=side is not None)
        if part.is_cuda:
            part.record_stream(side)  # its memory is not given away before it is copied
    return host.view(torch.uint16) if host.dtype == torch.bfloat16 else host
