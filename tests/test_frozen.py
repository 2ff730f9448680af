"""The cache of the frozen front: shared by processes, gone on with, never of another model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import CLASSES, TINY, solids
from train.attention import read_attention
from train.data.objects import Objects
from train.frozen import AT_ONCE, begin_cache, fill_cache, keep_targets, kept, kept_targets
from train.models.minigpt3d import build

COUNT = 2 * AT_ONCE + 5
PARTS = ("target", "encoder", "weights", "centres", "done")


@pytest.fixture(scope="module")
def model():
    return build(TINY, seed=3)


@pytest.fixture(scope="module")
def objects():
    clouds, labels = solids(COUNT, seed=0)
    return Objects(
        ids=[f"solid-{row}" for row in range(COUNT)],
        labels=labels,
        class_names=list(CLASSES),
        captions=[CLASSES[label] for label in labels],
        conversations=[],
        read=lambda row: clouds[row].astype(np.float32),
        count=clouds.shape[1],
        identity="solids",
    )


def files(path):
    return {each.name: each.read_bytes() for each in path.parent.glob("*.npy")}


def fill(path, model, objects, *shares, seed=0):
    begin_cache(path, "a", model, objects, seen=True)
    for process, processes in shares:
        fill_cache(
            path, model, objects, TINY.points, "cpu", seed, process=process, processes=processes
        )


def test_what_two_processes_keep_has_the_bytes_of_one(model, objects, tmp_path):
    one, two = tmp_path / "one" / "query.npy", tmp_path / "two" / "query.npy"
    fill(one, model, objects, (0, 1))
    fill(two, model, objects, (1, 2))
    assert kept(two, "done").bool().tolist() == [False, True, False]
    assert not kept(two, "target")[:AT_ONCE].any()
    fill(two, model, objects, (0, 2))
    assert len(files(one)) == len(PARTS) and files(one) == files(two)


def test_what_is_kept_is_what_the_front_gives_and_looks_at(model, objects, tmp_path):
    path = tmp_path / "query.npy"
    fill(path, model, objects, (0, 1))
    rows = np.sort(np.random.default_rng(0).permutation(objects.count)[: TINY.points])
    cloud = torch.from_numpy(objects.points(range(AT_ONCE, 2 * AT_ONCE))[:, rows])
    with torch.no_grad(), read_attention(model) as reading:
        target = model.eval().encode(cloud)
        features = model.point_encoder(cloud)
    here = slice(AT_ONCE, 2 * AT_ONCE)
    assert torch.equal(kept_targets(path)[here], target)
    assert torch.equal(kept(path, "weights")[here], reading.weights())
    assert torch.equal(kept(path, "centres")[here], reading.centres)
    pooled = torch.cat([features[:, 0], features[:, 1:].max(dim=1).values], dim=1)
    assert torch.equal(kept(path, "encoder")[here], pooled)


def test_a_stopped_front_goes_on_with_the_draws_of_an_uninterrupted_one(objects, tmp_path):
    model = build(TINY, seed=3)
    model.faithful(fps_start="random", qformer_dropout=True, neighbour_precision="float32")
    whole, cut = tmp_path / "whole" / "query.npy", tmp_path / "cut" / "query.npy"
    fill(whole, model, objects, (0, 1), seed=5)
    calls = []

    def read(row):
        calls.append(row)
        if len(calls) > AT_ONCE + 3:
            raise KeyboardInterrupt
        return objects.read(row)

    with pytest.raises(KeyboardInterrupt):
        fill(cut, model, replace(objects, read=read), (0, 1), seed=5)
    assert kept(cut, "done").bool().tolist() == [True, False, False]
    fill(cut, model, objects, (0, 1), seed=5)
    assert files(cut) == files(whole)


@pytest.mark.parametrize("damage", ["key", "gone", "cut", "header", "done", "nothing"])
def test_a_cache_of_something_else_or_not_whole_is_made_anew(model, objects, tmp_path, damage):
    path = tmp_path / "query.npy"
    fill(path, model, objects, (0, 1))
    good = files(path)
    weights, done = path.with_suffix(".weights.npy"), path.with_suffix(".done.npy")
    if damage == "key":
        path.write_bytes(path.read_bytes()[:-8] + bytes(8))
        path.with_suffix(".json").write_text(json.dumps({"key": "b"}))
    elif damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(good[weights.name][:-5])
    elif damage == "header":
        weights.write_bytes(b"\x80\x04X" + good[weights.name][3:])
    elif damage == "done":
        done.write_bytes(b"")
    fill(path, model, objects, (0, 1))
    assert files(path) == good


@pytest.mark.parametrize("part", ["", ".encoder", ".weights", ".centres", ".done"])
def test_only_a_batch_with_a_flipped_bit_is_computed_again(model, objects, tmp_path, part):
    path = tmp_path / "query.npy"
    fill(path, model, objects, (0, 1))
    good = files(path)
    damaged = path.with_suffix(f"{part}.npy")
    data = bytearray(damaged.read_bytes())
    data[-3] ^= 4
    damaged.write_bytes(data)
    read = []
    watched = replace(objects, read=lambda row: read.append(row) or objects.read(row))
    fill(path, model, watched, (0, 1))
    assert files(path) == good
    assert sorted(read) == list(range(2 * AT_ONCE, COUNT))  # the last batch alone


def test_targets_alone_are_kept_without_what_was_looked_at(model, objects, tmp_path):
    path = tmp_path / "targets.npy"
    keep_targets(path, "a", model, objects, TINY.points, "cpu")
    assert kept_targets(path).shape == (COUNT, TINY.queries, TINY.qformer_width)
    assert sorted(files(path)) == ["targets.done.npy", "targets.npy"]
