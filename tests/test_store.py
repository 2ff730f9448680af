"""A store gives back what went in, survives a kill, and refuses what does not fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import store
from store import StoreError, UnfinishedRunWarning
from store.begin import begin, copy_states
from store.layout import seal
from store.place import Place

ROOT = Path(__file__).parents[1]
SAMPLES, TOKENS, DIM, TARGET_DIM, LAYERS = 300, 4, 8, 6, [0, 4, 8]


def plan(**changes):
    """What create_run takes, for a run of 300 samples in chunks of 128."""
    number = np.arange(SAMPLES)
    samples = {
        "id": [f"object-{i:04d}" for i in number],
        "label": number % 5,
        "class_name": [f"class {i % 5}" for i in number],
        "split": np.where(number < 200, "gallery", "query"),
        "caption": [f"A shape, number {i} – żółw" for i in number],
    }
    points = np.random.default_rng(0).random((SAMPLES, 16, 6), np.float32)
    values = {
        "samples": samples,
        "layers": LAYERS,
        "variants": ["stage1", "aligned"],
        "tokens": TOKENS,
        "dim": DIM,
        "target_dim": TARGET_DIM,
        "points": points,
        "provenance": {"seed": 0, "config": {"rate": 0.1}},
    }
    return values | changes


def states(variant="stage1"):
    rng = np.random.default_rng([7, len(variant)])
    return rng.normal(size=(len(LAYERS), SAMPLES, TOKENS, DIM)).astype(np.float16)


def targets():
    return np.random.default_rng(9).normal(size=(SAMPLES, TOKENS, TARGET_DIM)).astype(np.float16)


def fill(writer, pause=0.0):
    """Capture everything that is still missing."""
    for name in ["target", "stage1", "aligned"]:
        for start in range(writer.done(name), SAMPLES, writer.chunk):
            rows = slice(start, min(start + writer.chunk, SAMPLES))
            if name == "target":
                writer.append_target(rows, targets()[rows])
            else:
                writer.append(name, rows, states(name)[:, rows])
            time.sleep(pause)
    writer.finish()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    fill(store.create_run(path, **plan()))
    return path


def contents(path):
    folder = path / "activations.zarr"
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_a_finished_store_gives_back_what_went_in(finished):
    run = store.open_run(finished)
    assert run.complete and run.variants == ["stage1", "aligned"] and run.layers == LAYERS
    hidden = run.hidden("aligned")
    assert hidden.dims == ("layer", "sample", "token", "dim")
    np.testing.assert_array_equal(hidden, states("aligned"))
    np.testing.assert_array_equal(run.target(), targets())
    np.testing.assert_array_equal(run.points(), plan()["points"])
    one = hidden.sel(layer=4, sample="object-0123")
    np.testing.assert_array_equal(one, states("aligned")[1, 123])
    assert one.label == 3 and one.split == "gallery" and one.class_name == "class 3"
    assert run.samples().caption.values[7] == "A shape, number 7 – żółw"
    assert store.verify_run(finished) == []


class Read:
    """Clouds that are made when they are asked for, as those of a data set are read."""

    def __init__(self, clouds):
        self.clouds, self.shape, self.most = clouds, clouds.shape, 0

    def __getitem__(self, rows):
        part = self.clouds[rows]
        self.most = max(self.most, len(part))
        return part


def test_clouds_that_are_read_a_block_at_a_time_give_the_bytes_of_an_array(tmp_path, finished):
    read = Read(plan()["points"])
    fill(store.create_run(tmp_path / "run", **plan(points=read)))
    assert contents(tmp_path / "run") == contents(finished)
    assert read.most == 128 < SAMPLES
    other = Read(plan()["points"] + 1)
    with pytest.raises(ValueError, match="points have changed"):
        store.resume_run(tmp_path / "run", **plan(points=other))
    assert other.most == 128


def test_stock_xarray_opens_the_store(finished):
    tree = xr.open_datatree(finished / "activations.zarr", engine="zarr")
    np.testing.assert_array_equal(tree["/stage1"].ds.hidden, states())
    assert list(tree["/stage1"].ds.layer.values) == LAYERS
    assert tree.attrs["schema_version"] == 3 and tree.attrs["provenance"]["seed"] == 0
    for node in tree.subtree:
        assert all("long_name" in variable.attrs for variable in node.variables.values())
    tree.close()


def test_an_unfinished_store_gives_its_finished_samples_and_says_so(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan())
    writer.append("stage1", slice(0, 128), states()[:, :128])
    writer.append("stage1", slice(256, 300), states()[:, 256:])  # after a gap: does not count
    assert writer.done("stage1") == 128
    (tmp_path / "run" / store.schema.STORE / "zarr.json.partial").write_text("{")  # by a kill
    run = store.open_run(tmp_path / "run")
    assert not run.complete
    with pytest.warns(UnfinishedRunWarning, match="stage1 has 128 of 300 samples"):
        hidden = run.hidden("stage1")
    np.testing.assert_array_equal(hidden, states()[:, :128])
    with pytest.raises(ValueError, match="target has 0 of 300 samples"):
        writer.finish()
    assert store.verify_run(tmp_path / "run") == []


def test_a_killed_capture_resumes_to_the_same_bytes(tmp_path, finished):
    script = (
        "import sys; from tests.test_store import *\n"
        "fill(store.create_run(sys.argv[1], **plan()), pause=0.1)"
    )
    path = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT)
    shards = path / "activations.zarr" / "stage1" / "hidden"
    deadline = time.time() + 120
    while not any(shards.glob("c.*")) and time.time() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    writer = store.resume_run(path, **plan())
    assert writer.done("target") == SAMPLES and writer.done("aligned") < SAMPLES
    fill(writer)
    assert contents(path) == contents(finished)


def test_a_failed_creation_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.layout.seal", full)
    with pytest.raises(OSError, match="No space left"):
        store.create_run(tmp_path / "run", **plan())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [0, 4]}, r"layers is \[0, 4, 8\] in the store and \[0, 4\] now"),
        ({"provenance": {"seed": 1, "config": {"rate": 0.1}}}, "provenance.seed is 0 .* 1 now"),
        ({"points": np.zeros((SAMPLES, 16, 6))}, "points have changed"),
        ({"dtype": "float32"}, "dtype is 'float16'"),
    ],
)
def test_resuming_with_another_plan_is_refused(finished, change, message):
    with pytest.raises(ValueError, match=message):
        store.resume_run(finished, **plan(**change))


def test_creating_over_a_run_is_refused_and_loses_nothing(finished):
    before = contents(finished)
    with pytest.raises(FileExistsError, match="already holds a run"):
        store.create_run(finished, **plan())
    assert contents(finished) == before


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70000.0), ("bfloat16", -3.4e38)])
def test_states_that_do_not_fit_are_refused_by_name(tmp_path, dtype, value):
    writer = store.create_run(tmp_path / "run", **plan(dtype=dtype))
    hidden = states().astype(np.float32)[:, :128]
    hidden[1, 5, 2, 3] = value
    with pytest.raises(ValueError, match=r"aligned, layer 4, sample object-0005: .*does not"):
        writer.append("aligned", slice(0, 128), hidden)
    assert writer.done("aligned") == 0
    assert not any(file.is_file() for file in tmp_path.rglob("aligned/hidden/c*"))


def test_a_target_that_is_not_finite_is_refused_by_name(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan())
    tokens = targets()[:128]
    tokens[7, 1, 1] = np.nan
    with pytest.raises(ValueError, match="target/tokens, sample object-0007"):
        writer.append_target(slice(0, 128), tokens)
    assert writer.done("target") == 0


def test_rows_across_a_chunk_are_refused(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan())
    with pytest.raises(ValueError, match=r"rows 0-100 do not fit: 300 samples .* chunks of 128"):
        writer.append("stage1", slice(0, 100), states()[:, :100])
    with pytest.raises(ValueError, match="no variant 'stage9'"):
        writer.append("stage9", slice(0, 128), states()[:, :128])


def test_samples_of_different_numbers_of_tokens_say_how_many_are_their_own(tmp_path):
    own = np.arange(SAMPLES) % TOKENS + 1
    samples = plan()["samples"] | {"n_tokens": own}
    different = plan(samples=samples, target_tokens=1, patches=5)
    writer = store.create_run(tmp_path / "run", **different)
    rows = slice(0, writer.chunk)
    writer.append_target(rows, targets()[rows, :1])
    writer.append_attention(rows, np.ones((writer.chunk, 1, 5)), np.zeros((writer.chunk, 5, 3)))
    writer.append("stage1", rows, states()[:, rows])
    with pytest.warns(UnfinishedRunWarning):
        run = store.open_run(tmp_path / "run")
        assert run.hidden("stage1").n_tokens.values.tolist() == own[rows].tolist()
        np.testing.assert_array_equal(run.target(), targets()[rows, :1])
        assert run.attention().weights.shape == (writer.chunk, 1, 5)
        assert "n_tokens" not in run.target().coords
    assert store.resume_run(tmp_path / "run", **different).done("stage1") == writer.chunk
    with pytest.raises(ValueError, match="target_tokens is 1 in the store and None now"):
        store.resume_run(tmp_path / "run", **different | {"target_tokens": None})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [4, 4]}, "layers"),
        ({"target_tokens": 0}, "target_tokens=0: must be whole numbers"),
        (
            {"samples": plan()["samples"] | {"n_tokens": np.full(SAMPLES, TOKENS + 1)}},
            "samples column n_tokens: whole numbers from 1 to 4",
        ),
        ({"variants": ["points"]}, "variant 'points'"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"points": np.zeros((3, 16, 6))}, r"points have shape \(3, 16, 6\)"),
    ],
)
def test_a_plan_that_makes_no_store_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        store.create_run(tmp_path / "run", **plan(**change))
    assert list(tmp_path.iterdir()) == []


def test_duplicate_ids_are_refused(tmp_path):
    samples = plan()["samples"] | {"id": ["a", "b"] + ["c"] * 298}
    with pytest.raises(ValueError, match="sample id c occurs 298 times"):
        store.create_run(tmp_path / "run", **plan(samples=samples))


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"is no run: it holds no activations\.zarr"):
        store.open_run(tmp_path)
    with pytest.raises(StoreError, match="is no run: there is no such folder"):
        store.open_run(tmp_path / "nowhere")


def test_a_later_schema_is_refused(tmp_path):
    store.create_run(tmp_path / "run", **plan())
    file = tmp_path / "run" / "activations.zarr" / "zarr.json"
    root = json.loads(file.read_text())
    root["attributes"]["schema_version"] = 9
    file.write_text(json.dumps(root))
    with pytest.raises(StoreError, match="schema version 9, and this program reads up to 3"):
        store.open_run(tmp_path / "run")


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_verify_finds_a_damaged_chunk(tmp_path, damage):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan()))
    chunk = path / "activations.zarr" / "aligned" / "hidden" / "c.0.0.0.0"
    if damage == "flip":
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        chunk.write_bytes(bytes(content))
    else:
        chunk.unlink()
    problems = store.verify_run(path)
    layer = ", layer 4" if damage == "flip" else ""
    assert len(problems) == 1
    assert problems[0].startswith(f"aligned{layer}, samples 0-127 (object-0000 to object-0127)")
    if damage == "flip":
        with pytest.raises(
            StoreError, match=r"aligned/hidden/c\.0\.0\.0\.0: its checksum is wrong"
        ):
            store.open_run(path).hidden("aligned").sel(layer=4).load()


def test_results_of_a_probe_replace_older_ones(tmp_path):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan()))
    run = store.open_run(path)
    results = xr.Dataset(
        {"mean": (("variant", "layer"), np.ones((2, 3)), {"long_name": "accuracy"})},
        coords={"variant": ["stage1", "aligned"], "layer": LAYERS},
        attrs={"seed": 3},
    )
    run.write_probe("knn", results)
    run.write_probe("knn", results + 1)
    back = run.probes("knn")
    assert float(back["mean"].sel(variant="aligned", layer=4)) == 2
    with pytest.raises(StoreError, match="no results of 'cka': it has knn"):
        run.probes("cka")
    with pytest.raises(ValueError, match="have 5 samples, the run has 300"):
        run.write_probe("part", xr.Dataset({"x": ("sample", np.zeros(5))}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xr.open_datatree(path / "activations.zarr", engine="zarr").close()


def test_the_command_line_reports_and_fails_as_promised(finished, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "store", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert "300" in call("ls", finished.parent).stdout
    assert "aligned" in call("info", finished).stdout
    assert call("verify", finished).returncode == 0
    fill(store.create_run(tmp_path / "run", **plan()))
    (tmp_path / "run" / "activations.zarr" / "target" / "tokens" / "c.0.0.0").unlink()
    damaged = call("verify", tmp_path / "run")
    assert (
        damaged.returncode == 1
        and "target, samples 0-127 (object-0000 to object-0127): a chunk is lost" in damaged.stderr
    )
    wrong = call("verify", tmp_path)
    assert wrong.returncode == 2 and "is no run" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_store_of_the_schema_before_is_read_and_gone_on_with_as_it_was_begun(tmp_path):
    """One that the program of schema 2 wrote, of 300 small samples with all that a run can have."""
    with zipfile.ZipFile(ROOT / "tests/data/store-schema2.zip") as file:
        file.extractall(tmp_path / "whole")
    assert store.verify_run(tmp_path / "whole") == []
    run, before = store.open_run(tmp_path / "whole"), contents(tmp_path / "whole")
    assert run.attrs["schema_version"] == 2 and "stage1/hidden/c/0/1/0/0" in before
    assert run.hidden("aligned")[1, 1, 200, 0].isnull().values.tolist() == [False, True]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    folder = tmp_path / "cut/activations.zarr"
    for key in ("target/written/c/0", "aligned/written/c/1/2", "aligned/hidden/c/1/0/1/0/0"):
        (folder / key).unlink()  # the last one is torn: it has its mark
    seal(Place(folder), complete=False)
    steps = {name: run.steps(name) for name in run.variants}
    about = {"layers": run.layers, "steps": steps, "provenance": run.attrs["provenance"]}
    writer = begin(run, tmp_path / "cut", **about)
    assert writer.done("target") == SAMPLES and writer.done("stage1") == SAMPLES
    assert writer.done("aligned") == 128 and writer.done("aligned", 10) == SAMPLES
    copy_states(writer, "aligned", run, "aligned")
    with pytest.warns(store.NonFiniteWarning):
        writer.finish()
    assert contents(tmp_path / "cut") == before
    newer = begin(run, tmp_path / "newer", **about)
    for name in run.variants:
        copy_states(newer, name, run, name)
    with pytest.warns(store.NonFiniteWarning):
        newer.finish()
    newer = store.open_run(tmp_path / "newer")
    assert newer.attrs["schema_version"] == 3 and store.verify_run(tmp_path / "newer") == []
    np.testing.assert_array_equal(newer.hidden("aligned"), run.hidden("aligned"))
