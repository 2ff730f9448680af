"""The main job as a user runs it, on a model and a data set small enough for a test."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from errno import ENOSPC
from io import StringIO

import numpy as np
import pytest
import torch
import xarray as xr
from peft import PeftModel
from safetensors.torch import load_file

from store import StoreError, open_run
from store.place import Place
from store.remote import Unreachable
from store.schema import STORE
from tests.conftest import TINY
from train.checkpoint import load_model
from train.cli import read_config, run
from train.config import STAGE2, with_recipe
from train.finished import captured_of
from train.models.phi import build_phi
from train.stage2 import main

JOB = ("--steps", "6", "--batch-size", "4", "--save-every", "2", "--log-every", "1")
SETTINGS = (
    *JOB,
    *("--capture-layers", "0,2,4", "--align-layer", "2", "--neighbours", "1,3"),
    *("--warmup-steps", "1", "--data", "modelnet", "--threads", "1"),
)


def command(checkpoint, data, out, *more):
    module = [sys.executable, "-m", "train.stage2", *SETTINGS, "--stage1", str(checkpoint)]
    return [*module, "--data-root", str(data), "--out", str(out), *more]


def call(*arguments, **options):
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, **options
    )


def typed(*arguments):
    """As `call`, in this process: a process of its own takes seconds to import what it needs."""
    return here(command(*arguments)[3:])


def here(arguments):
    """`python -m train.stage2` with these arguments, in this process."""
    out, err, code = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            run(main, read_config(STAGE2, arguments=arguments, recipe=with_recipe))
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_checkpoint, solids_folder):
    """(folder, what was printed) of a main job that ran through."""
    out = tmp_path_factory.mktemp("main") / "run"
    result = call(tiny_checkpoint, solids_folder, out)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_the_job_prints_the_table_and_where_everything_is(finished):
    out, printed = finished
    for word in ("stage1", "baseline", "aligned", "untrained", "depth.png", "depth.html", "open"):
        assert word in printed
    assert (out / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "plotly" in (out / "depth.html").read_text().lower()


def test_the_run_records_how_it_was_made(finished):
    record = json.loads((finished[0] / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["config"]["align_layer"] == 2
    assert set(record["hashes"]) == {"stage1", "train", "gallery", "query"}
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["variant"] == "aligned"] == [1, 2, 3, 4, 5, 6]
    assert all("align_loss" in line for line in lines if line["variant"] == "aligned")
    assert not any("align_loss" in line for line in lines if line["variant"] == "baseline")


def test_layer_0_in_the_store_is_the_projectors_output_of_the_target(finished, tiny_checkpoint):
    run = open_run(finished[0])
    model, _, _ = load_model(tiny_checkpoint)
    target = torch.from_numpy(run.target().values.astype(np.float32))
    with torch.no_grad():
        entering = model.projector(target).numpy()
    for variant in ("stage1", "baseline", "aligned", "untrained"):
        stored = run.hidden(variant).sel(layer=0).values
        np.testing.assert_allclose(stored, entering, atol=2e-3)


def test_both_models_moved_and_apart_from_each_other(finished):
    run = open_run(finished[0])
    last = {name: run.hidden(name).sel(layer=4).values for name in run.variants}
    assert not np.array_equal(last["stage1"], last["baseline"])
    assert not np.array_equal(last["baseline"], last["aligned"])


def test_the_store_opens_with_stock_xarray(finished):
    tree = xr.open_datatree(finished[0] / "activations.zarr", engine="zarr")
    assert tree["aligned"]["hidden"].dims == ("layer", "sample", "token", "dim")


def test_stock_peft_loads_the_adapter(finished):
    adapter = finished[0] / "checkpoints" / "aligned" / "adapter"
    loaded = PeftModel.from_pretrained(build_phi(TINY), str(adapter))
    ours = load_file(finished[0] / "checkpoints" / "aligned" / "model.safetensors")
    name = next(name for name in ours if name.endswith("dense.lora_B.default.weight"))
    theirs = dict(loaded.named_parameters())[name.removeprefix("model.llm.")]
    assert torch.equal(ours[name], theirs)


@pytest.mark.slow  # test_loop.py kills training, this the whole job
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(
    finished, tmp_path, tiny_checkpoint, solids_folder
):
    for moment in ("metrics.jsonl", "checkpoints/aligned/trainer.safetensors"):
        out = tmp_path / moment.replace("/", "-")
        with subprocess.Popen(
            command(tiny_checkpoint, solids_folder, out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as job:
            while not (out / moment).exists() and job.poll() is None:
                time.sleep(0.002)
            os.kill(job.pid, signal.SIGKILL)
        assert json.loads((out / "run.json").read_text())["status"] == "running"
        assert call(tiny_checkpoint, solids_folder, out).returncode == 0
        assert states(out) == states(finished[0])
        assert losses(out) == losses(finished[0])


def test_a_model_split_over_gpus_is_refused_before_anything_is_made(
    tmp_path, tiny_checkpoint, solids_folder
):
    out = tmp_path / "run"
    asked = os.environ | {"ACCELERATE_USE_FSDP": "true"}
    refuse(call(tiny_checkpoint, solids_folder, out, env=asked), 2, "FSDP", "--multi_gpu")
    assert not out.exists()


def states(folder):
    run = open_run(folder)
    hidden = {name: run.hidden(name).values.tobytes() for name in run.variants}
    return hidden | {"encoder": run.encoder().values.tobytes()}


def test_the_states_can_lie_in_a_bucket_and_the_run_goes_on_there(
    finished, tmp_path, tiny_checkpoint, solids_folder, monkeypatch, capsys
):
    words = command(
        tiny_checkpoint, solids_folder, tmp_path / "run", "--store", "memory://bucket/run"
    )
    config = read_config(STAGE2, arguments=words[3:])
    write = Place.write

    def lose(lost, error):
        def until(self, key, *rest):
            if key == lost:
                raise error
            write(self, key, *rest)

        return until

    for key, error in (
        ("target/tokens/c.0.0.0", OSError(ENOSPC, "full")),  # the store is laid out, no more
        ("aligned/hidden/c.0.1.0.0", Unreachable("memory://bucket/run can't be reached")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(Place, "write", lose(key, error))
            with pytest.raises(SystemExit, match="1"):
                run(main, config)
    assert not open_run("memory://bucket/run").complete
    main(config)
    stored, plain = Place("memory://bucket/run/activations.zarr"), Place(finished[0] / STORE)
    theirs, ours = (
        {key: place.read(key) for key in list(place.keys()) if not key.startswith("probes/")}
        for place in (plain, stored)
    )
    assert ours == theirs
    assert losses(tmp_path / "run") == losses(finished[0])
    assert "python -m probe memory://bucket/run" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    assert "python -m probe memory://bucket/run" in page and "hash of stage1" in page
    assert not (tmp_path / "run" / STORE).exists()
    assert captured_of(tmp_path / "run").name == "memory://bucket/run"
    with pytest.raises(StoreError, match="its states are in memory://bucket/run"):
        open_run(tmp_path / "run")
    with pytest.raises(FileExistsError, match="another --store"):
        main(replace(config, out=tmp_path / "other"))


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["variant"], line["step"], line["loss"]) for line in lines]


def test_the_dry_run_changes_nothing(tmp_path, tiny_checkpoint, solids_folder):
    out = tmp_path / "run"
    result = typed(tiny_checkpoint, solids_folder, out, "--dry-run")
    assert result.returncode == 0, result.stderr
    for word in ("LLM LoRA", "LLM norms", "alignment projector", "0, 2, 4", "MiB"):
        assert word in result.stdout
    assert not out.exists()


def refuse(result, code, *words):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert all(word in said[0] for word in words), said[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--capture-layers", "40"], ["40", "0", "4"]),
        (["--capture-layers", "4,8.."], ["8.."]),
        (["--align-layer", "9"], ["9", "1 to 4"]),
        (["--neighbours", "500"], ["500", "gallery"]),
        (["--stage1", "no-such-folder"], ["no-such-folder", "train.stage1"]),
        (["--data-root", "no-such-data"], ["no-such-data"]),
    ],
)
def test_a_wrong_call_is_one_sentence_and_leaves_nothing(
    more, words, tmp_path, tiny_checkpoint, solids_folder
):
    out = tmp_path / "run"
    refuse(typed(tiny_checkpoint, solids_folder, out, *more), 2, *words)
    assert not out.exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, tiny_checkpoint, solids_folder):
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    sizes = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(sizes | {"llm_width": 48}))
    refuse(typed(other, solids_folder, tmp_path / "run"), 2, "another architecture", "48")


def test_a_cloud_with_nan_is_named_and_leaves_nothing(tmp_path, tiny_checkpoint, solids_folder):
    data = tmp_path / "data"
    shutil.copytree(solids_folder, data)
    arrays = dict(np.load(data / "test.npz"))
    arrays["points"][4, 7] = np.nan
    np.savez(data / "test.npz", **arrays)
    out = tmp_path / "run"
    refuse(typed(tiny_checkpoint, data, out), 2, "NaN", arrays["ids"][4])
    assert not out.exists()


def test_clouds_smaller_than_the_groups_are_refused(tmp_path, tiny_checkpoint, solids_folder):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        arrays = dict(np.load(solids_folder / f"{split}.npz"))
        arrays["points"] = arrays["points"][:, :6]
        np.savez(data / f"{split}.npz", **arrays)
    out = tmp_path / "run"
    refuse(typed(tiny_checkpoint, data, out), 2, "6 points", "8 groups")
    assert not out.exists()


def test_a_folder_that_exists_is_left_as_it_is(finished, tmp_path, tiny_checkpoint, solids_folder):
    before = (finished[0] / "run.json").read_bytes()
    refuse(typed(tiny_checkpoint, solids_folder, finished[0]), 2, "complete run", "--out")
    assert (finished[0] / "run.json").read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    refuse(typed(tiny_checkpoint, solids_folder, tmp_path), 2, "no run of ours", "--out")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_is_not_continued_with_other_settings(
    finished, tmp_path, tiny_checkpoint, solids_folder
):
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"status": "running"}))
    refuse(typed(tiny_checkpoint, solids_folder, out, "--seed", "5"), 2, "seed was 0, now 5")
