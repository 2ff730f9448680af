"""The thread that writes: everything, in order, and never without saying so when it fails."""

import threading
import time

import numpy as np
import pytest
import torch

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
