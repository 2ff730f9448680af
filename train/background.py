"""Write what a GPU has made while it makes the next: one thread, in order, never far behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

WAITING = 2
"""Finished batches that may wait for the disk; then the model waits, and memory stays flat."""

Write = Callable[[slice, dict[str, np.ndarray]], None]


@contextmanager
def in_background(write: Write) -> Iterator[Callable[[slice, dict[str, Tensor]], None]]:
    """Yields `put(rows, tensors)`, which hands a batch to one thread that calls `write`.

    write : called with each batch in the order of the puts; half precision comes as float32, which
            holds it exactly.

    `put` waits while `WAITING` batches are not written. An error of `write` comes out of the next
    `put` or of the end of the `with`, and nothing is written after it; nor after an error inside
    the `with`. When it ends without one, everything is written. Copies from a GPU go to pinned
    memory on a stream of their own, beside the computation.
    """
    waiting: queue.Queue[Any] = queue.Queue(WAITING)
    failed: list[BaseException] = []

    def work() -> None:
        while (item := waiting.get()) is not None:
            if failed:
                continue  # only make room, so that nobody waits for ever
            try:
                rows, tensors, copied = item
                if copied is not None:
                    copied.synchronize()
                write(rows, {name: tensor.float().numpy() for name, tensor in tensors.items()})
            except BaseException as error:
                failed.append(error)

    def put(rows: slice, tensors: dict[str, Tensor]) -> None:
        if failed:
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


def _to_host(tensors: dict[str, Tensor], streams: dict) -> tuple[dict[str, Tensor], Any]:
    """Copies on the CPU, and the event after which they are whole (None: they already are)."""
    devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
    if not devices:
        return {name: tensor.detach() for name, tensor in tensors.items()}, None
    (device,) = devices  # a batch is made on one
    side = streams.setdefault(device, torch.cuda.Stream(device))
    side.wait_stream(torch.cuda.current_stream(device))
    host = {}
    with torch.cuda.stream(side):
        for name, tensor in tensors.items():
            host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host[name].copy_(tensor, non_blocking=True)
            tensor.record_stream(side)  # its memory is not given away before it is copied
        copied = torch.cuda.Event()
        copied.record(side)
    return host, copied
