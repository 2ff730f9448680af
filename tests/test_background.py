"""The thread that writes: everything, in order, in the memory of a batch, and never in silence."""

import threading
import time
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import store
from store.shards import Encoder
from tests.test_capture_cli import config
from tests.test_store import LAYERS as STORED
from tests.test_store import SAMPLES, contents, plan, states
from train.background import in_background
from train.capture_job import capture

LAYERS = 8


def make(batches, number, layers=LAYERS):
    for layer in range(layers):
        batches.keep("states", layer, torch.full((1, 3), float(number + layer)))
    batches.put(slice(number, number + 1))


def test_everything_is_written_in_order_when_the_with_ends():
    written = []

    def write(rows, arrays):
        written.append((rows.start, np.stack(list(arrays["states"]))))

    with in_background(write, 1) as batches:
        for number in range(20):
            make(batches, number)
    assert [start for start, _ in written] == list(range(20))
    for start, layers in written:
        np.testing.assert_array_equal(layers[:, 0, 0], start + np.arange(LAYERS))


def test_parts_of_a_batch_are_joined_and_half_precision_arrives_as_its_bits():
    first, second = torch.randn(2, 3).bfloat16(), torch.randn(1, 3).bfloat16()
    finer = torch.randn(3, 3)  # behind embeddings of half precision
    seen = {}

    def write(_rows, arrays):
        seen["target"], seen["states"] = arrays["target"], [*map(np.copy, arrays["states"])]

    with in_background(write, 4) as batches:  # the last one has fewer than it may have
        for rows, part in ((slice(0, 2), first), (slice(2, 3), second)):
            batches.keep("states", 4, finer[rows])  # a layer may come before one below it
            batches.keep("states", 0, part)
        first[:] = 0  # the model writes over its own
        batches.put(slice(0, 3), {"target": second})
    assert torch.equal(torch.from_numpy(seen["target"]).view(torch.bfloat16), second)
    embeddings = torch.from_numpy(seen["states"][0]).view(torch.bfloat16)
    assert torch.equal(embeddings[2:], second) and embeddings[:2].any()
    assert torch.equal(torch.from_numpy(seen["states"][1]), finer)


@pytest.fixture
def held(monkeypatch):
    """Bytes of what is allocated for layers now, and at most: what is freed is seen to end."""
    found = {"now": 0, "most": 0}

    def add(size):
        found["now"] += size
        found["most"] = max(found.values())

    def empty(*shape, empty=torch.empty, **options):
        if "pin_memory" not in options:  # of a model
            return empty(*shape, **options)
        ((shape,), dtype) = shape, options["dtype"]
        memory = np.empty((int(np.prod(shape)), dtype.itemsize), np.uint8)
        add(memory.nbytes)
        weakref.finalize(memory, add, -memory.nbytes)
        return torch.from_numpy(memory).view(dtype).view(shape)

    monkeypatch.setattr("train.background.torch.empty", empty)
    return found


def test_the_model_waits_for_a_slow_disk_instead_of_filling_the_memory(held):
    disk, made, written = threading.Semaphore(0), [], []

    def write(rows, arrays):
        while next(arrays["states"], None) is not None:  # holds on to none
            disk.acquire()
        written.append(rows.start)

    def work():
        with in_background(write, 1) as batches:
            for number in range(10):
                make(batches, number)
                made.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    for layer in range(3 * LAYERS):
        time.sleep(0.01)
        assert len(made) <= 1 + layer // LAYERS and held["now"] <= LAYERS * 12
        disk.release()
    disk.release(10 * LAYERS)
    worker.join()
    assert written == list(range(10)) and held == {"now": 0, "most": LAYERS * 12}


def slowly(encoder, pieces=Encoder.pieces):
    """The pieces of a file, on a slow disk."""
    for piece in pieces(encoder):
        time.sleep(0.001)
        yield piece


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_batch_is_all_that_a_capture_holds_and_the_store_is_the_same(
    dtype, slow, held, tmp_path, monkeypatch
):
    given = torch.from_numpy(states())  # (layers, samples, tokens, dim) of float16
    given = given.float() if dtype == "float16" else given.to(getattr(torch, dtype))
    about = plan(variants=["stage1"], dtype=dtype, points=None)
    whole, writer = (store.create_run(tmp_path / name, **about) for name in ("whole", "run"))
    layer = given[0, : writer.chunk].nbytes
    computing = []

    def write(rows, arrays):
        writer.append("stage1", rows, arrays["states"])

    with monkeypatch.context() as patch:
        if slow:
            patch.setattr(Encoder, "pieces", slowly)
        with in_background(write, writer.chunk, held=layer) as batches:
            for rows in writer.pending("stage1"):
                for number in range(len(STORED)):
                    computing.append(held["now"])
                    batches.keep("states", number, given[number, rows])
                batches.put(rows)
    assert held == {"now": 0, "most": len(STORED) * layer}
    assert max(computing) == (len(STORED) - 1) * layer
    bits = given.view(torch.uint16) if dtype == "bfloat16" else given
    for rows in whole.pending("stage1"):
        whole.append("stage1", rows, bits.numpy()[:, rows])
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert writer.chunk < SAMPLES


def test_a_capture_of_all_sites_in_parts_holds_one_batch_where_the_disk_is_slow(
    held, tmp_path, tiny_checkpoint, solids_folder, monkeypatch
):
    monkeypatch.setattr(Encoder, "pieces", slowly)
    monkeypatch.setattr(store.RunWriter, "held", 0)
    about = {"layers": "1-4", "sites": "resid,attn,mlp", "batch_size": 16}
    capture(config(tmp_path / "run", tiny_checkpoint, solids_folder, **about))
    run = store.open_run(tmp_path / "run")
    assert run.attrs["chunk"] == 64 < run.attrs["samples"]
    batch = 3 * run.hidden("stage1").isel(sample=slice(0, 64)).nbytes
    assert held == {"now": 0, "most": batch}


def test_an_error_of_the_disk_stops_the_run_with_its_sentence_and_nothing_follows_it():
    written = []

    def write(rows, _arrays):
        if rows.start == 3:
            raise OSError("the disk is full")
        written.append(rows.start)

    with pytest.raises(OSError, match="the disk is full"), in_background(write, 1) as batches:
        for number in range(50):
            make(batches, number)
    assert written == [0, 1, 2]


def test_a_model_that_waits_for_room_is_told_of_the_error():
    waiting = threading.Event()

    def write(_rows, arrays):
        next(arrays["states"])
        next(arrays["states"])
        assert waiting.wait(10)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), in_background(write, 1) as batches:
        make(batches, 0)
        threading.Timer(0.1, waiting.set).start()
        make(batches, 1)
        pytest.fail("there was no room for it")


def test_an_error_on_the_last_batch_is_not_lost():
    def write(_rows, _arrays):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"), in_background(write, 1) as batches:
        make(batches, 0)


def test_an_error_of_the_model_comes_out_and_the_thread_ends():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), in_background(lambda *_: None, 1) as batches:
        make(batches, 0)
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_what_a_gpu_copies_is_read_after_its_event_and_its_memory_is_not_given_away(monkeypatch):
    """The path of a GPU, walked with tensors that have shapes and devices and no values."""
    seen = []

    class Stream:
        def __init__(self, device):
            self.wait_stream = lambda other: seen.append(f"wait for {other}")

        def record_event(self):
            seen.append("record")
            return Event()

    class Event:
        def synchronize(self):
            seen.append(f"synchronize in {threading.current_thread().name}")

    @contextmanager
    def on(stream):
        assert isinstance(stream, Stream)
        seen.append("begin")
        yield
        seen.append("end")

    def clone(self):
        seen.append("clone")
        return self

    def copy(self, other, non_blocking):
        seen.append(f"copy {other.device.type} to {self.device.type}, {non_blocking}")

    def empty(shape, dtype, pin_memory, empty=torch.empty):
        seen.append(f"pinned: {pin_memory}")
        return empty(shape, dtype=dtype)

    for name, value in (("Stream", Stream), ("stream", on)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the model")
    monkeypatch.setattr(torch.Tensor, "clone", clone)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: seen.append("keep"))
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: seen.append("read"))
    with FakeTensorMode():
        layers = [torch.empty((1, 3), device="cuda") for _ in range(2)]
        monkeypatch.setattr("train.background.torch.empty", empty)

        def write(_rows, arrays):
            seen.extend(["write", *arrays["states"]][:1])

        with in_background(write, 1) as batches:
            for layer, states in enumerate(layers):
                batches.keep("states", layer, states)
            batches.put(slice(0, 1))
    one = ("pinned: True", "clone", "wait for the model", "begin", "copy cuda to cpu, True", "end")
    assert seen == [
        *(*one, "keep", *one, "keep", "record"),
        *("synchronize in writer", "read", "read", "write"),
    ]
