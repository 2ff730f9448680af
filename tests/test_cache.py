"""Cells are made once: what did not change is not measured again, and what did is."""

import numpy as np
import pytest
import zarr

import store
from probe import cache, cells
from probe.sweep import cells_of
from tests.test_sweep import write_run

MODELS = ["baseline", "aligned"]


@pytest.fixture
def made(monkeypatch):
    """What is measured from here on: (probe, states) of each cell."""
    found = []

    def watched(probe, measure):
        def cell(data, tokens, ask):
            found.append(probe)
            return measure(data, tokens, ask)

        return cell

    for probe, measure in list(cells.CELLS.items()):
        monkeypatch.setitem(cells.CELLS, probe, watched(probe, measure))
    return found


def test_only_what_changed_is_measured_again(tmp_path, made, monkeypatch):
    run = write_run(tmp_path / "run")

    def asked(probes=("knn", "drift"), layers=(0, 4), **more):
        made.clear()
        found = cells_of(run, probes, layers, MODELS, **more)
        return found.cells, sorted(made)

    first, count = asked()
    assert count == ["drift"] * 4 + ["knn"] * 5  # the target is a cell too, but has no drift
    again, count = asked()
    np.testing.assert_equal(again, first)
    assert not count
    assert asked(layers=(0, 4, 8))[1] == ["drift"] * 2 + ["knn"] * 2
    assert asked(k=(3,))[1] == ["knn"] * 5
    assert asked(seed=1)[1] == ["drift"] * 4 + ["knn"] * 5
    assert asked(keep=False)[1] == ["drift"] * 4 + ["knn"] * 5

    # one layer of one model is written over
    states = zarr.open_group(run.path / "activations.zarr", mode="r+")["aligned/hidden"]
    states[1, 300:310] = states[1, 300:310] + np.float16(0.5)  # query objects
    run = store.open_run(run.path)
    changed, count = asked()
    assert count == ["drift", "knn"]
    assert [place for place in first["drift"] if differ(first, changed, place)] == [("aligned", 4)]

    monkeypatch.setattr(cache, "code", lambda: "another way to measure")
    assert asked()[1] == ["drift"] * 4 + ["knn"] * 5


def differ(first, changed, place):
    return not np.array_equal(first["drift"][place]["cka"], changed["drift"][place]["cka"])


def test_what_is_kept_holds_no_code_and_is_whole_or_not_there(tmp_path):
    made = cache.kept(tmp_path / "cells", "knn", "key", lambda: {"hits": np.eye(2)})
    kept = cache.kept(tmp_path / "cells", "knn", "key", lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(kept["hits"], made["hits"])
    with pytest.raises(ValueError, match="allow_pickle"):
        cache.kept(tmp_path / "cells", "knn", "other", lambda: {"hits": np.array([print])})
    assert [path.name for path in (tmp_path / "cells").glob("*other.npz")] != ["knn-other.npz"]
