"""Write what a model has made while it makes the next, in the memory of one batch.

Each layer is copied once, in the hook of its block, to the memory of the CPU: pinned, and on a
stream of its own, where it comes from a GPU. A thread writes a whole batch layer by layer and gives
up each. Meanwhile the next forward pass goes on as far as there is room for its layers: where the
disk or the network is slower than the model, the model waits. What has to be encoded first is so by
threads of the store (`store.shards.Encoder`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Write = Callable[[slice, dict[str, Any]], None]
Layers = dict[str, dict[int, Tensor]]


@contextmanager
def in_background(write: Write, samples: int, held: int = 0) -> Iterator[Batches]:
    """Yields what takes batches, and a thread hands them to `write`.

    write   : called as write(rows, arrays) with each batch in the order of the puts. What was kept
              is an iterator of layers in rising order, each given up when the next is asked for;
              what was put beside is an array. bfloat16 comes as its bit patterns (uint16).
    samples : in a batch, at most
    held    : bytes that `write` takes beside the layers (`store.RunWriter.held`); with them the
              layers are never more than one batch

    An error of `write` comes out of the next `keep` or `put` or of the end of the `with`, and
    nothing is written after it; nor after an error inside the `with`. When it ends without one,
    everything is written.
    """
    batches = Batches(write, samples, held)
    thread = threading.Thread(target=batches.work, name="writer")
    thread.start()
    try:
        yield batches
    except BaseException as error:
        batches.failed.append(error)
        raise
    finally:
        batches.waiting.put(None)
        thread.join()
    if batches.failed:
        raise batches.failed[0]


class Batches:
    """The layers of the batch that is made, and those of the one before it that are not written."""

    def __init__(self, write: Write, samples: int, held: int):
        self.failed: list[BaseException] = []
        self.waiting: queue.Queue[Any] = queue.Queue()
        self._write, self._samples, self._held = write, samples, held
        self._made: Layers = {}
        self._filled: dict[tuple[str, int], int] = {}
        self._written: Layers | None = None
        self._most = 0
        self._changed = threading.Condition()
        self._streams: dict[torch.device, Any] = {}

    def keep(self, name: str, layer: int, states: Tensor) -> None:
        """Copy the next samples of a layer, (samples, ...), once there is room for it."""
        places = self._made.setdefault(name, {})
        if layer not in places:
            self._wait_for_room(self._samples * (states.nbytes // len(states)))
            places[layer] = _place(states, self._samples)
        begin = self._filled.get((name, layer), 0)
        end = self._filled[name, layer] = begin + len(states)
        self._copy(states, places[layer][begin:end])

    def put(self, rows: slice, beside: Mapping[str, Tensor] | None = None) -> None:
        """Hand over what was kept of the samples `rows`, and some smaller tensors beside it."""
        self._wait_for(lambda: self._written is None)
        self._most = _bytes(self._made)
        arrays = {
            name: self._copy(some, _place(some, len(some))) if some.is_cuda else some.detach()
            for name, some in (beside or {}).items()
        }
        copied = [stream.record_event() for stream in self._streams.values()]
        self._written, self._made, self._filled = self._made, {}, {}
        self.waiting.put((rows, arrays, copied))
        if not self._streams:  # the next pass takes memory of the CPU from its beginning on
            self._wait_for_room(0)

    def work(self) -> None:
        """What the thread does: write what is put, until that is None."""
        while (item := self.waiting.get()) is not None:
            try:
                if not self.failed:
                    self._write_batch(*item)
            except BaseException as error:
                self.failed.append(error)
            del item
            with self._changed:
                self._written = None
                self._changed.notify_all()

    def _write_batch(self, rows: slice, beside: dict[str, Tensor], copied: list[Any]) -> None:
        for event in copied:
            event.synchronize()
        arrays: dict[str, Any] = {name: _array(beside.pop(name)) for name in list(beside)}
        for name in self._written or ():
            arrays[name] = self._layers(name, rows.stop - rows.start)
        self._write(rows, arrays)

    def _layers(self, name: str, samples: int) -> Iterator[np.ndarray]:
        assert self._written is not None
        places = self._written[name]
        for layer in sorted(places):
            yield _array(places[layer][:samples])
            with self._changed:
                del places[layer]
                self._changed.notify_all()

    def _wait_for_room(self, more: int) -> None:
        made = _bytes(self._made) + self._held + more
        self._wait_for(lambda: self._written is None or made + _bytes(self._written) <= self._most)

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.failed or ready())
        if self.failed:
            raise self.failed[0]

    def _copy(self, some: Tensor, place: Tensor) -> Tensor:
        """Fill a place on the CPU: from a GPU on a stream beside the one that computes."""
        if not some.is_cuda:
            return place.copy_(some)
        if some.device not in self._streams:
            self._streams[some.device] = torch.cuda.Stream(some.device)
        side = self._streams[some.device]
        some = some.clone()  # the model may write over its own
        side.wait_stream(torch.cuda.current_stream(some.device))
        with torch.cuda.stream(side):
            place.copy_(some, non_blocking=True)
        some.record_stream(side)  # its memory is not given away before it is copied
        return place


def _bytes(layers: Layers) -> int:
    return sum(place.nbytes for places in layers.values() for place in places.values())


def _place(some: Tensor, samples: int) -> Tensor:
    """Memory of the CPU for so many samples of the same kind."""
    return torch.empty((samples, *some.shape[1:]), dtype=some.dtype, pin_memory=some.is_cuda)


def _array(tensor: Tensor) -> np.ndarray:
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
