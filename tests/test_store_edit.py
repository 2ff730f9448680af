"""Parts of runs, joined runs, smaller runs: the states in them are those that were captured."""

import importlib.util
import json
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import xarray as xr

import store
from store.edit import merge, prune
from store.export import export, subset

ROWS, LAYERS = 9, [0, 4, 8]


def states(seed, steps=0):
    rng = np.random.default_rng(seed)
    shape = (len(LAYERS), ROWS, 2, 3)
    return rng.normal(size=(steps, *shape) if steps else shape).astype(np.float16)


def make(path, variants, own=None, **changes):
    """A complete run of nine samples; variants: {name: seed}, or {name: (seed, steps)}.

    own : how many of its two tokens are each sample's own; the target is then one token
    """
    steps = {name: list(range(10, 10 + v[1])) for name, v in variants.items() if type(v) is tuple}
    number = np.arange(ROWS)
    given = {
        "samples": {
            "id": [f"object-{i}" for i in number],
            "label": number % 2,
            "class_name": [f"class {i % 2}" for i in number],
            "split": np.where(number < 6, "gallery", "query"),
            "caption": [f"Thing {i}, żółw" for i in number],
        },
        "layers": LAYERS,
        "variants": list(variants),
        "tokens": 2,
        "dim": 3,
        "target_dim": 3,
        "steps": steps,
        "encoder_dim": 5,
        "patches": 4,
        "points": np.ones((ROWS, 5, 6)),
        "provenance": {"seed": 1},
    }
    few = 2
    if own is not None:
        given["samples"]["n_tokens"], few = own, 1
        given["target_tokens"] = few
    writer = store.create_run(path, **(given | changes))
    for rows in writer.pending("target"):
        writer.append_target(rows, states(99)[0][rows, :few])
        ones = np.ones((rows.stop - rows.start, few, 4)), np.ones((rows.stop - rows.start, 4, 3))
        writer.append_attention(rows, *ones)
        writer.append_encoder(rows, np.full((rows.stop - rows.start, 5), 0.5))
        for name, seed in variants.items():
            if type(seed) is tuple:
                for at, step in enumerate(steps[name]):
                    writer.append(name, rows, states(*seed)[at][:, rows], step=step)
            else:
                writer.append(name, rows, states(seed)[:, rows])
    writer.finish()
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = make(tmp_path_factory.mktemp("edit") / "one", {"stage1": 1, "aligned": (2, 3)})
    return store.open_run(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".nc"])
def test_an_exported_part_holds_the_captured_states(run, tmp_path, ending):
    if ending == ".nc":
        pytest.importorskip("netCDF4")
    part = subset(run, variants=["stage1", "aligned"], layers=[8, 0], samples="query")
    out = tmp_path / f"part{ending}"
    export(part, out)
    if ending == ".npz":
        with np.load(out, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        assert found["caption"][0] == "Thing 6, żółw"
    elif ending == ".safetensors":
        from safetensors import safe_open

        with safe_open(out, framework="np") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            assert json.loads(file.metadata()["caption"])[0] == "Thing 6, żółw"
    else:
        with xr.open_dataset(out) as file:
            found = {str(name): file[name].values for name in file.variables}
        assert found["stage1"].dtype == np.float32 and found["caption"][0] == "Thing 6, żółw"
    np.testing.assert_array_equal(found["stage1"], states(1)[[2, 0], 6:])
    np.testing.assert_array_equal(found["aligned"], states(2, 3)[:, [2, 0], 6:])
    assert found["layer"].tolist() == [8, 0] and found["step_aligned"].tolist() == [10, 11, 12]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(FileExistsError, match="name another file"):
        export(part, out)


def test_a_part_is_picked_by_rows_or_ids(run):
    assert subset(run, samples="2-4")["sample"].values.tolist() == [
        f"object-{i}" for i in (2, 3, 4)
    ]
    part = subset(run, variants=["stage1"], samples="object-7,object-1")
    np.testing.assert_array_equal(part["stage1"], states(1)[:, [7, 1]])
    for samples, message in (("0-9", "has rows 0-8"), ("object-77", "no sample 'object-77'")):
        with pytest.raises(store.StoreError, match=message):
            subset(run, samples=samples)
    with pytest.raises(store.StoreError, match="has no layer 5: it has 0, 4, 8"):
        subset(run, layers=[5])


def test_a_part_of_an_unfinished_run_is_of_its_finished_samples(tmp_path):
    path = make(tmp_path / "run", {"stage1": 1})
    (path / "activations.zarr" / "stage1" / "hidden_crc32c" / "c.1").unlink()  # of the last sample
    unfinished = store.open_run(path)
    with pytest.warns(store.UnfinishedRunWarning, match="8 of 9 samples"):
        part = subset(unfinished)
    np.testing.assert_array_equal(part["stage1"], states(1)[:, :8])
    np.testing.assert_array_equal(part["caption"], unfinished.samples()["caption"][:8])
    with (
        pytest.warns(store.UnfinishedRunWarning),
        pytest.raises(store.StoreError, match="has none of samples 8-8, so there is nothing"),
    ):
        subset(unfinished, samples="8-8")


def test_a_part_of_samples_of_many_lengths_says_how_many_tokens_are_their_own(tmp_path):
    own = np.arange(ROWS) % 2 + 1
    path = make(tmp_path / "run", {"stage1": 1}, own=own)
    part = subset(store.open_run(path), samples="query")
    assert part["n_tokens"].values.tolist() == own[6:].tolist()
    assert dict(part.sizes) == {**part.sizes, "token": 2, "target_token": 1}
    export(part, tmp_path / "part.nc")
    with xr.open_dataset(tmp_path / "part.nc") as read:
        np.testing.assert_array_equal(read["stage1"], states(1)[:, 6:])


def test_an_export_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="No space left"):
        export(subset(run), tmp_path / "part.npz")
    with pytest.raises(ValueError, match=r"end it with \.npz, \.safetensors"):
        export(subset(run), tmp_path / "part.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_hugging_face_dataset_needs_its_library(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        export(subset(run), tmp_path / "part", "huggingface")


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")
def test_a_hugging_face_dataset_holds_the_captured_states(run, tmp_path):
    import datasets

    export(subset(run, samples="query"), tmp_path / "part", "huggingface")
    back = datasets.load_from_disk(str(tmp_path / "part"))
    assert back["sample"][:] == ["object-6", "object-7", "object-8"]
    assert back.features["stage1"].feature.feature.feature.dtype == "float16"
    np.testing.assert_array_equal(np.array(back[1]["stage1"], np.float16), states(1)[:, 7])
    for seed in (3, 4):  # the library would keep what it once made of a path
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        there = store.open_run(make(tmp_path / "run", {"stage1": seed}))
        export(subset(there), tmp_path / f"of-{seed}", "huggingface")
        back = datasets.load_from_disk(str(tmp_path / f"of-{seed}"))
        np.testing.assert_array_equal(np.array(back[0]["stage1"], np.float16), states(seed)[:, 0])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"part", "run", "of-3", "of-4"}


def test_merged_runs_keep_every_state_under_a_name_of_its_own(tmp_path):
    first = make(tmp_path / "seed0", {"stage1": 1, "aligned": (2, 2)})
    second = make(tmp_path / "seed-1", {"stage1": 1, "aligned": (3, 2), "baseline": 4})
    both = merge([first, second], tmp_path / "both")
    assert both.variants == ["stage1", "aligned_seed0", "aligned_seed_1", "baseline"]
    np.testing.assert_array_equal(both.hidden("stage1"), states(1))
    np.testing.assert_array_equal(both.hidden("aligned_seed0"), states(2, 2))
    np.testing.assert_array_equal(both.hidden("aligned_seed_1").sel(step=11), states(3, 2)[1])
    np.testing.assert_array_equal(both.hidden("baseline"), states(4))
    np.testing.assert_array_equal(both.target(), states(99)[0])
    assert both.attrs["provenance"]["variants"]["aligned_seed_1"] == ["seed-1", "aligned"]
    assert both.samples().equals(store.open_run(first).samples())
    assert store.verify_run(tmp_path / "both") == []


def test_runs_of_other_data_are_not_merged(tmp_path):
    first = make(tmp_path / "a", {"stage1": 1})
    other = make(tmp_path / "b", {"stage1": 1}, points=np.zeros((ROWS, 5, 6)))
    with pytest.raises(ValueError, match=r"cannot merge .*b with .*a: their points differ"):
        merge([first, other], tmp_path / "both")
    wider = make(tmp_path / "c", {"stage1": 1}, dtype="float32")
    with pytest.raises(ValueError, match="their dtype are float16 and float32"):
        merge([first, wider], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_pruned_run_lost_what_was_named_and_nothing_else(tmp_path):
    path = make(tmp_path / "run", {"stage1": 1, "aligned": (2, 3)})
    store.open_run(path).write_probe("knn", xr.Dataset({"mean": ("layer", [1.0, 2, 3])}))
    left = prune(path, layers=[4], steps=[11])
    assert left.layers == [0, 8] and left.steps("aligned") == [10, 12]
    np.testing.assert_array_equal(left.hidden("stage1"), states(1)[[0, 2]])
    np.testing.assert_array_equal(left.hidden("aligned"), states(2, 3)[[0, 2]][:, [0, 2]])
    assert left.probes("knn")["mean"].values.tolist() == [1, 2, 3]
    assert store.verify_run(path) == []
    assert [child.name for child in path.iterdir()] == ["activations.zarr"]
    with pytest.raises(store.StoreError, match="has no layer 4: it was dropped already"):
        prune(path, layers=[4])
    with pytest.raises(ValueError, match="nothing would be left"):
        prune(path, layers=[0, 8])


@pytest.mark.parametrize("when", ["copying", "between the renames", "after"])
def test_a_prune_that_is_killed_loses_nothing_and_goes_on(tmp_path, monkeypatch, when):
    path = make(tmp_path / "run", {"stage1": 1})

    class Killed(BaseException):
        pass

    def die(*_args, **_kwargs):
        raise Killed

    target = {
        "copying": "RunWriter.finish",
        "between the renames": "_finish_swap",
        "after": "shutil",
    }
    with monkeypatch.context() as patch:
        if when == "copying":
            patch.setattr("store.writer.RunWriter.finish", die)
        elif when == "after":
            patch.setattr("store.edit.shutil.rmtree", die)
        else:
            swap = __import__("store.edit").edit._finish_swap
            calls = []
            patch.setattr(
                "store.edit._finish_swap", lambda p: die() if calls else calls.append(swap(p))
            )
        with pytest.raises(Killed):
            prune(path, layers=[4])
    assert target[when]
    try:
        left = prune(path, layers=[4])
    except store.StoreError:  # it was through already
        left = store.open_run(path)
    np.testing.assert_array_equal(left.hidden("stage1"), states(1)[[0, 2]])
    assert store.verify_run(path) == []
    assert [child.name for child in path.iterdir()] == ["activations.zarr"]


def test_another_prune_may_follow_one_that_was_killed(tmp_path, monkeypatch):
    path = make(tmp_path / "run", {"stage1": 1})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("store.writer.RunWriter.finish", Mock(side_effect=KeyboardInterrupt))
        prune(path, layers=[4])
    assert prune(path, layers=[8]).layers == [0, 4]
    assert prune(path, layers=[0]).attrs["provenance"]["pruned"]["layers"] == [8, 0]
    assert store.verify_run(path) == []


def test_a_pruned_copy_leaves_the_run_alone(run, tmp_path):
    left = prune(run.path, layers=[0], out=tmp_path / "copy")
    assert left.layers == [4, 8] and store.open_run(run.path).layers == LAYERS


def test_the_command_line_exports_merges_and_prunes(tmp_path, monkeypatch, capsys):
    from store.__main__ import main

    first, second = make(tmp_path / "a", {"stage1": 1}), make(tmp_path / "b", {"aligned": 2})

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["store", *map(str, arguments)])
        return main()

    out = tmp_path / "part.npz"
    assert call("export", first, out, "--layers", "0,8,...,8", "--samples", "0-3") == 0
    with np.load(out) as file:
        np.testing.assert_array_equal(file["stage1"], states(1)[[0, 2], :4])
    assert call("merge", tmp_path / "both", first, second) == 0
    assert call("prune", tmp_path / "both", "--layers", "4") == 0
    assert call("verify", tmp_path / "both") == 0
    assert call("info", tmp_path / "both") == 0
    assert "stage1" in capsys.readouterr().out
    assert call("prune", first) == 2
    assert call("export", first, "s3://bucket/part.npz") == 2
    assert "written to this disk" in capsys.readouterr().err
    assert call("export", first, out) == 2 and "exists" in capsys.readouterr().err
    assert call("export", first, tmp_path / "x.npz", "--layers", "a,b") == 2
    assert call("ls", tmp_path) == 0 and "2 layers, stage1, aligned" in capsys.readouterr().out
    assert call("ls", tmp_path / "both") == 0 and "2 layers" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    assert call("ls", tmp_path / "none") == 0 and "holds no runs" in capsys.readouterr().out
