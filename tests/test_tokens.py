"""Tokens of a layer that are read a block of objects at a time give what they give held whole."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from probe import tokens as module
from probe.cells import CELLS, Objects, Settings
from probe.drift import MAPS, drift_parts
from probe.tokens import Tokens


class Counted:
    """Stands for states in a store: remembers how many objects were read at once."""

    def __init__(self, values):
        self.values, self.most = values, 0
        self.shape, self.ndim, self.size = values.shape, values.ndim, values.size

    def __getitem__(self, rows):
        found = self.values[rows]
        self.most = max(self.most, found.size // 60)
        return found


@pytest.fixture
def few(monkeypatch):
    """Nothing is held, and a block is 7 objects of 5 tokens of 12 numbers."""
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    monkeypatch.setattr(module, "BLOCK_BYTES", 7 * 5 * 12 * 4 + 3)


def states(samples=90):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 5, 12)).astype(np.float16)
    x[3, 2] *= 60  # a massive token
    return x, rng.normal(size=(samples, 5, 6)).astype(np.float16)


def test_rows_means_norms_and_hash_are_those_of_the_array(few):
    x, _ = states()
    stored = Counted(x)
    some = Tokens(stored)
    np.testing.assert_array_equal(some.pooled, x.astype(np.float32).mean(axis=1, dtype=float))
    np.testing.assert_allclose(some.norms, np.linalg.norm(x.astype(float), axis=-1), rtol=1e-6)
    assert stored.most == 7
    for rows in (slice(3, 9), np.array([5, 4, 8]), np.array([80, 2]), np.array([], int)):
        np.testing.assert_array_equal(some[rows], x[rows].astype(np.float32))
    other = x.copy()
    other[50, 1, 1] += np.float16(1)
    assert some.digest == Tokens(Counted(x)).digest != Tokens(Counted(other)).digest
    assert some[:1].dtype == np.float32


def test_every_probe_gives_the_same_from_blocks_as_from_the_whole(monkeypatch, few):
    x, target = states()
    labels = np.arange(90) % 3
    rows = np.arange(90)
    gallery, query = rows[rows % 3 > 0], rows[rows % 3 == 0]
    labels = labels[np.random.default_rng(1).permutation(90)]

    def cells(read):
        own = read(target)
        data = Objects(90, labels, gallery, query, (0, 0), own, rows)
        ask = Settings((1, 3), 0)
        names = ("knn", "drift", "dimension", "variants", "similarity")
        return {name: CELLS[name](data, read(x), ask) for name in names}

    blocked = cells(lambda values: Tokens(Counted(values)))
    monkeypatch.undo()
    whole = cells(lambda values: Tokens(xr.DataArray(values)))
    for name, cell in whole.items():
        for key, values in cell.items():
            np.testing.assert_allclose(blocked[name][key], values, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("map", MAPS)
def test_drift_reads_a_block_at_a_time_whatever_the_map(map, few, monkeypatch):
    monkeypatch.setattr("probe.drift.FIT_TOKENS", 100)
    x, target = states()
    target = x if map == "none" else target
    more = {"projector": lambda tokens: tokens[..., :6]} if map == "alignment" else {}
    rows = {"gallery": np.arange(60), "query": np.arange(60, 90), **more}
    stored, goal = Counted(x), Counted(target)
    found = drift_parts(Tokens(stored), Tokens(goal), map, **rows)
    held = drift_parts(x.astype(np.float32), target.astype(np.float32), map, **rows)
    for one, other in zip(found, held, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert stored.most <= 7 and goal.most <= module.SPREAD * 7


@given(st.lists(st.integers(1, 4), min_size=1, max_size=20), st.randoms())
def test_tokens_of_different_numbers_are_the_mean_over_an_objects_own(own, random):
    values = np.random.default_rng(0).normal(size=(len(own), 4, 3))
    means = [one[:count].mean(axis=0) for one, count in zip(values, own, strict=True)]
    for one, count in zip(values, own, strict=True):
        one[count:] = 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "BLOCK_BYTES", 2 * 4 * 4 * 3)  # two objects
        for held in (0, module.HELD_BYTES):
            patched.setattr(module, "HELD_BYTES", held)
            stored = xr.DataArray(values, {"n_tokens": ("sample", own)}, ("sample", "token", "dim"))
            tokens = Tokens(stored)
            assert tokens.shape == (len(own), 1, 3)
            np.testing.assert_allclose(tokens.pooled, means, atol=1e-6)
            np.testing.assert_allclose(tokens.place(0), means, atol=1e-6)
            rows = np.array(random.sample(range(len(own)), len(own)))
            np.testing.assert_allclose(tokens[rows][:, 0], np.array(means)[rows], atol=1e-6)
