"""The thread that writes: everything, in order, and never without saying so when it fails."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from train.background import WAITING, in_background


def batch(number):
    return slice(number, number + 1), {"states": torch.full((2, 3), float(number))}


def test_everything_is_written_in_order_when_the_with_ends():
    written = []
    with in_background(lambda rows, arrays: written.append((rows.start, arrays["states"]))) as put:
        for number in range(20):
            put(*batch(number))
    assert [start for start, _ in written] == list(range(20))
    assert all((states == start).all() for start, states in written)


def test_half_precision_arrives_exactly_as_float32_and_layers_as_their_bits():
    values = torch.randn(100).bfloat16()
    seen, layers = {}, [values, -values]
    with in_background(lambda _, arrays: seen.update(arrays)) as put:
        put(slice(0, 1), {"target": values, "states": layers})
    assert seen["target"].dtype == np.float32
    assert torch.equal(torch.from_numpy(seen["target"]).bfloat16(), values)
    bits = torch.from_numpy(seen["states"]).view(torch.bfloat16)
    assert torch.equal(bits, torch.stack([values, -values])) and layers == []
    finer = torch.randn(100)  # behind embeddings of half precision
    with in_background(lambda _, arrays: seen.update(arrays)) as put:
        put(slice(0, 1), {"states": [values, finer]})
    assert torch.equal(torch.from_numpy(seen["states"]), torch.stack([values.float(), finer]))


def test_the_model_waits_for_a_slow_disk_instead_of_filling_the_memory():
    disk, made, written = threading.Semaphore(0), [], []

    def write(rows, _arrays):
        disk.acquire()
        written.append(rows.start)

    def work():
        with in_background(write) as put:
            for number in range(10):
                put(*batch(number))
                made.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.2)
    assert len(made) <= WAITING + 1  # those that wait, and the one in the writer's hands
    disk.release(10)
    worker.join()
    assert written == list(range(10))


def test_an_error_of_the_disk_stops_the_run_with_its_sentence_and_nothing_follows_it():
    written = []

    def write(rows, _arrays):
        if rows.start == 3:
            raise OSError("the disk is full")
        written.append(rows.start)

    with pytest.raises(OSError, match="the disk is full"), in_background(write) as put:
        for number in range(50):
            put(*batch(number))
    assert written == [0, 1, 2]


def test_an_error_on_the_last_batch_is_not_lost():
    def write(_rows, _arrays):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), in_background(write) as put:
        put(*batch(0))


def test_an_error_of_the_model_comes_out_and_the_thread_ends():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), in_background(lambda *_: None) as put:
        put(*batch(0))
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_what_a_gpu_copies_is_read_after_its_event_and_its_memory_is_not_given_away(monkeypatch):
    """The path of a GPU, walked with tensors that have shapes and devices and no values."""
    seen = []

    class Stream:
        def __init__(self, device):
            self.wait_stream = lambda other: seen.append(f"wait for {other}")

    class Event:
        def record(self, stream):
            seen.append("record")

        def synchronize(self):
            seen.append(f"synchronize in {threading.current_thread().name}")

    @contextmanager
    def on(stream):
        assert isinstance(stream, Stream)
        seen.append("begin")
        yield
        seen.append("end")

    def copy(self, other, non_blocking):
        seen.append(f"copy {other.device.type} to {self.device.type}, {non_blocking}")

    for name, value in (("Stream", Stream), ("Event", Event), ("stream", on)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the model")
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: seen.append("keep"))
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: seen.append("read"))
    with FakeTensorMode(), in_background(lambda *_: seen.append("write")) as put:
        put(slice(0, 1), {"states": [torch.empty(3, device="cuda") for _ in range(2)]})
    copied = ["copy cuda to cpu, True", "keep"]
    assert seen == [
        *("wait for the model", "begin", *copied, *copied, "record", "end"),
        *("synchronize in writer", "read", "write"),
    ]
