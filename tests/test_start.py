"""What stage 2 begins with, and its switches, as a user runs them on a tiny model."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from store import open_run
from tests.conftest import TINY
from tests.test_published import Weights
from tests.test_stage2 import SETTINGS, call, here, refuse, typed
from train.capture_job import capture
from train.cli import read_config, run
from train.config import MODELS, STAGE2, CaptureConfig, Stage2Config, with_recipe
from train.data.load import told
from train.data.objects import Conversation, Objects
from train.start import model_sizes, starting_folder

PUBLISHED = ("--preset", "minigpt3d", *SETTINGS)


def from_weights(weights, data, out, *more):
    begin = [*PUBLISHED, "--weights", str(weights), "--data-root", str(data)]
    return here([*begin, "--out", str(out), *more])


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny_tokenizer):
    """A folder in the published layout, of a tiny model."""
    folder = tmp_path_factory.mktemp("published") / "weights"
    folder.mkdir()
    weights = Weights(folder, tiny_tokenizer)
    (folder / "config.json").write_text(json.dumps(asdict(TINY)))
    return weights


def test_a_run_starts_from_the_published_files(published, solids_folder, tmp_path):
    out = tmp_path / "run"
    result = from_weights(published.folder, solids_folder, out)
    assert result.returncode == 0, result.stderr
    assert "pretrain.pth" in result.stdout
    hashes = json.loads((out / "run.json").read_text())["hashes"]
    assert any(name.endswith("pretrain.pth") for name in hashes)
    run = open_run(out)
    target = torch.from_numpy(run.target().values.astype(np.float32))
    first, second = (
        (published.pretrain[f"{name}.weight"], published.pretrain[f"{name}.bias"])
        for name in ("llama_proj", "llama_proj2")
    )
    entering = torch.nn.functional.linear(torch.nn.functional.linear(target, *first), *second)
    stored = torch.from_numpy(run.hidden("aligned").sel(layer=0).values.astype(np.float32))
    torch.testing.assert_close(stored, entering, rtol=1e-2, atol=1e-2)


def test_a_half_precision_language_model_trains_and_is_captured(published, solids_folder, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the first precision
    out = tmp_path / "run"
    result = from_weights(published.folder, solids_folder, out, "--precision", "bf16")
    assert result.returncode == 0, result.stderr
    AcceleratorState._reset_state(reset_partial_state=True)
    states = open_run(out).hidden("aligned").values.astype(np.float32)
    assert np.isfinite(states).all()


def test_the_published_aligned_model_is_captured_beside_the_one_before(
    published, solids_folder, tmp_path
):
    def states(start, name):
        asked = {"weights": published.folder, "data": "modelnet", "data_root": solids_folder}
        capture(CaptureConfig(out=tmp_path / start, start=start, layers="0,4", threads=1, **asked))
        run = open_run(tmp_path / start)
        assert run.variants == [name]
        return run.hidden(name).values

    before, after = (
        states("pointalign-pretrain", "stage1"),
        states("pointalign-finetune", "aligned"),
    )
    assert np.array_equal(before[0], after[0]) and not np.allclose(before[1], after[1], atol=1e-2)
    with pytest.raises(ValueError, match="--start stage-4 goes with --weights"):
        CaptureConfig(start="stage-4")


def test_missing_published_files_are_listed(published, solids_folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "run"
    refuse(from_weights(empty, solids_folder, out), 2, "Phi-2", "BLIP-2", "pretrain")
    assert not out.exists()


def test_the_dry_run_at_published_sizes_reads_no_weight(solids_folder, tmp_path):
    (tmp_path / "weights").mkdir()
    more = ("--dry-run", "--capture-layers", "4,8,...,32", "--align-layer", "16")
    result = from_weights(tmp_path / "weights", solids_folder, tmp_path / "run", *more)
    assert result.returncode == 0, result.stderr
    assert "39,939,584" in result.stdout  # PointAlign's trained parameters
    # What it takes on the GPU it is meant for, whatever this machine has.
    assert "training in bfloat16" in result.stdout and "within the 22.0 GiB" in result.stdout


@pytest.fixture(scope="module")
def plain(tiny_checkpoint, solids_folder, tmp_path_factory):
    """A run without another switch, to hold others against."""
    out = tmp_path_factory.mktemp("plain") / "run"
    result = typed(tiny_checkpoint, solids_folder, out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.slow
def test_the_cache_changes_no_number(plain, tiny_checkpoint, solids_folder, tmp_path):
    other = tmp_path / "not"
    result = typed(tiny_checkpoint, solids_folder, other, "--no-cache")
    assert result.returncode == 0, result.stderr
    for name in ("baseline", "aligned"):
        kept, computed = (open_run(out).hidden(name).values for out in (plain, other))
        np.testing.assert_allclose(kept, computed, atol=2e-3)
    assert (plain / "cache" / "train.npy").exists()
    assert not (other / "cache" / "train.npy").exists()


def test_the_release_recipe_runs_and_says_so(tiny_checkpoint, solids_folder, tmp_path):
    out = tmp_path / "run"
    result = typed(tiny_checkpoint, solids_folder, out, "--recipe", "release")
    assert result.returncode == 0, result.stderr
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["recipe"], config["fps_start"]) == ("release", "random")
    assert config["align_positions"] == "release"


@pytest.mark.parametrize(
    "more",
    [
        ("--align-loss", "l1", "--align-target", "projector-mid", "--align-layer", "1,3"),
        pytest.param(
            ("--align-loss", "contrastive", "--align-schedule", "rise", "--data-fraction", "0.5"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--align-loss", "learned", "--align-layer", "2-4", "--align-projector-layers", "1"),
            marks=pytest.mark.slow,
        ),
        (
            *("--gradient-checkpointing", "--attention", "eager", "--decay", "linear"),
            *("--accumulate", "2", "--batch-size", "2,4,2", "--no-single-turn-template"),
        ),
    ],
)
def test_every_ablation_is_a_flag(more, tiny_checkpoint, solids_folder, tmp_path):
    out = tmp_path / "run"
    result = typed(tiny_checkpoint, solids_folder, out, "--steps", "2", *more)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "run.json").read_text())["status"] == "complete"


def test_a_model_is_captured_while_it_trains(plain, tiny_checkpoint, solids_folder, tmp_path):
    every = tmp_path / "every"
    result = typed(tiny_checkpoint, solids_folder, every, "--capture-every", "3")
    assert result.returncode == 0, result.stderr
    watched, last = open_run(every), open_run(plain)
    assert watched.hidden("aligned").dims[0] == "step" and watched.steps("aligned") == [3, 6]
    assert "step" not in watched.hidden("stage1").dims
    for name in last.variants:
        assert np.array_equal(watched.final(name).values, last.hidden(name).values)
    first, final = watched.hidden("aligned").values
    assert not np.array_equal(first, final)
    proofs = json.loads((every / "run.json").read_text())["proofs"]
    assert set(proofs) == set(last.variants) and all(proofs.values())


@pytest.mark.slow  # of the loop alone: test_processes.py
def test_two_processes_end_with_the_model_of_one_and_the_bytes_of_what_does_not_train(
    tiny_checkpoint, solids_folder, tmp_path
):
    still = tmp_path / "checkpoint"  # each process draws dropout for its own rows
    shutil.copytree(tiny_checkpoint, still)
    sizes = json.loads((still / "config.json").read_text())
    without = {"llm_dropout": 0.0, "llm_lora_dropout": 0.0}
    (still / "config.json").write_text(json.dumps(sizes | without))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    out, single = tmp_path / "two", tmp_path / "one"
    settings = ["--stage1", still, "--data-root", solids_folder, "--out", out]
    result = subprocess.run(
        [*launch, "-m", "train.stage2", *SETTINGS, *map(str, settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("picture") == 1
    assert call(still, solids_folder, single).returncode == 0
    runs = [open_run(folder) for folder in (out, single)]
    for name in ("baseline", "aligned"):  # gradients are summed in another order
        np.testing.assert_allclose(*(run.hidden(name).values for run in runs), atol=5e-3)
    assert runs[0].attrs["chunk"] < len(runs[0].samples().sample)  # both have rows to capture
    kept = [path.relative_to(single) for path in (single / "cache").glob("*.npy")]
    for part in ("target", "encoder", "attention", "stage1", "untrained"):
        store = single / "activations.zarr" / part
        kept += [path.relative_to(single) for path in store.rglob("*") if path.is_file()]
    assert len(kept) > 50
    for path in kept:
        assert (out / path).read_bytes() == (single / path).read_bytes(), path
    assert not list(out.glob(".writer-*"))


def test_the_published_sizes_need_a_folder():
    with pytest.raises(ValueError, match="--weights DIR"):
        starting_folder(Stage2Config(preset="minigpt3d"))
    with pytest.raises(ValueError, match="--preset minigpt3d"):
        Stage2Config(weights="weights")


def test_a_weights_folder_has_the_published_sizes(tmp_path):
    config = Stage2Config(preset="minigpt3d", weights=tmp_path)
    assert model_sizes(config) == MODELS["minigpt3d"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--clip", "-1"], ["--clip", "-1"]),
        (["--log-every", "0"], ["--log-every", "0"]),
        (["--learning-rate", "3e-4", "--recipe", "paper"], ["--floor-rate", "0.000666"]),
        (["--align-weight", "nan"], ["--align-weight", "nan"]),
        (["--neighbours", "0"], ["--neighbours", "0"]),
        (["--threads", "-1"], ["--threads", "-1"]),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_anything_runs(more, words, capsys):
    with pytest.raises(SystemExit) as stop:
        read_config(STAGE2, arguments=more, recipe=with_recipe)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert all(word in said.err for word in words)


def spoiled(checkpoint, tmp_path, name, text):
    other = tmp_path / "spoiled"
    shutil.copytree(checkpoint, other)
    (other / name).write_text(text)
    return other


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("card.json", '{"stage": "I"}', ["of stage I", "III"]),
        ("config.json", '{"llm_width": "x"}', ["config.json", "llm_width is 'x'"]),
        ("tokenizer.json", "{}", ["tokenizer.json"]),
    ],
)
def test_a_checkpoint_that_cannot_begin_stage_2_is_one_sentence(
    name, text, words, tiny_checkpoint, solids_folder, tmp_path
):
    other = spoiled(tiny_checkpoint, tmp_path, name, text)
    out = tmp_path / "run"
    refuse(typed(other, solids_folder, out), 2, *words)
    assert not out.exists()


def test_a_gpu_without_memory_is_a_failed_job_and_says_what_to_try(capsys):
    def main(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(SystemExit) as stop:
        run(main, None)
    assert stop.value.code == 1 and "--gradient-checkpointing" in capsys.readouterr().err


def test_objects_that_stage_2_is_told_nothing_of_are_left_out_before_the_share():
    objects = Objects(
        ids=list("abcd"),
        labels=np.zeros(4, np.int64),
        class_names=["thing"],
        captions=["thing"] * 4,
        conversations=[
            *(Conversation(row, "simple_description", (("?", "a"),)) for row in range(4)),
            Conversation(2, "multi_round", (("?", "a"), ("?", "b"))),
            Conversation(0, "single_round", (("?", "a"),)),
        ],
        read=lambda row: np.zeros((1, 3)),
        count=1,
        identity="x",
    )
    left = told(objects)
    assert left.ids == ["a", "c"] and [each.object for each in left.conversations] == [0, 0, 1, 1]
