"""Cells are made once: what did not change is not measured again, and what did is."""

import ast
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


@pytest.mark.parametrize("damage", [lambda whole: whole[:-30], lambda whole: b"", bytes.upper])
def test_what_a_disk_has_damaged_is_measured_again(tmp_path, damage):
    made = {"hits": np.eye(2)}
    cache.kept(tmp_path, "knn", "key", lambda: made)
    file = tmp_path / "knn-key.npz"
    file.write_bytes(damage(file.read_bytes()))
    for _ in range(2):  # and is whole afterwards
        np.testing.assert_equal(cache.kept(tmp_path, "knn", "key", lambda: made), made)
    np.testing.assert_equal(cache.kept(tmp_path, "knn", "key", lambda: pytest.fail("made")), made)


def test_two_threads_may_keep_one_cell_at_a_time_and_a_full_disk_leaves_nothing(
    tmp_path, monkeypatch
):
    both = threading.Barrier(2)

    def make():
        both.wait(10)  # neither has found the other's file
        return {"hits": np.zeros(200_000)}

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(cache.kept, tmp_path, "knn", "key", make) for _ in range(2)]
        assert [len(job.result()["hits"]) for job in jobs] == [200_000] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["knn-key.npz"]

    def full(file, **_):
        file.write_bytes(b"begun")
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        cache.kept(tmp_path, "knn", "other", lambda: {"hits": np.eye(2)})
    assert [file.name for file in tmp_path.iterdir()] == ["knn-key.npz"]


def test_what_is_kept_holds_no_code_and_is_whole_or_not_there(tmp_path):
    made = cache.kept(tmp_path / "cells", "knn", "key", lambda: {"hits": np.eye(2)})
    kept = cache.kept(tmp_path / "cells", "knn", "key", lambda: pytest.fail("made twice"))
    np.testing.assert_array_equal(kept["hits"], made["hits"])
    with pytest.raises(ValueError, match="allow_pickle"):
        cache.kept(tmp_path / "cells", "knn", "other", lambda: {"hits": np.array([print])})
    assert [path.name for path in (tmp_path / "cells").glob("*other.npz")] != ["knn-other.npz"]


def test_every_module_that_a_measure_is_made_of_is_part_of_its_key():
    """A cell would else be taken for good after what made it has changed."""
    folder = Path(cells.__file__).parent

    def imported(name):
        tree = ast.parse((folder / f"{name}.py").read_text())
        for node in tree.body:  # what is imported within a function is of other uses
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probe"):
                names = [alias.name for alias in node.names]
                yield from names if node.module == "probe" else [node.module.split(".")[1]]

    found, left = set(), ["cells", "pairs"]
    while left:
        name = left.pop()
        if name not in found and (folder / f"{name}.py").exists():
            found.add(name)
            left += imported(name)
    assert {"knn", "products", "hsic"} < found <= set(cache.MEASURES)
