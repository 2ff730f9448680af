"""Sweeps: which runs there are, what they share, and what is made of their answers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import store
from train import sweep, sweep_jobs
from train.config import STAGE2, Stage2Config
from train.record import write_record
from train.sweep import SweepConfig, main
from train.sweep_jobs import Job, Setting, jobs_of, settings

NANO = STAGE2["nano"]


def test_each_over_varies_one_setting_and_leaves_out_the_default():
    found = settings(["align_layer=8,16,12+16+20", "align-weight=0.3"], Stage2Config())
    assert [str(one) for one in found] == [
        "default",
        "align_layer=8",
        "align_layer=12+16+20",
        "align_weight=0.3",
    ]
    assert found[2].words == ["--align-layer", "12,16,20"]


@pytest.mark.parametrize("wrong", ["no_such=1", "align_layer", "seed=3", "out=x"])
def test_what_stage_2_does_not_have_is_said_in_a_sentence(wrong):
    with pytest.raises(ValueError, match="a setting of python -m train"):
        settings([wrong], Stage2Config())


def test_a_wrong_value_stops_before_anything_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        jobs_of(["align_loss=cosine,nonsense"], [0], tmp_path / "sweep", NANO, [])
    assert stopped.value.code == 2 and "nonsense" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--store is of one run"):
        jobs_of([], [0], tmp_path / "sweep", NANO, ["--store", "s3://bucket/run"])
    assert not (tmp_path / "sweep").exists()


def test_a_wrong_way_to_ask_stops_before_anything_runs():
    with pytest.raises(ValueError, match="modelnet and objaverse"):
        SweepConfig(ask="nothing")
    with pytest.raises(ValueError, match="--judge-model"):
        SweepConfig(judge="http://localhost:1/v1")


def test_the_command_line_gives_its_other_flags_to_stage_2(tmp_path):
    jobs = jobs_of(["align_layer=8"], [0, 1], tmp_path, NANO, ["--steps", "7"])
    assert [(str(job.setting), job.seed) for job in jobs] == [
        ("default", 0),
        ("default", 1),
        ("align_layer=8", 0),
        ("align_layer=8", 1),
    ]
    assert jobs[3].words[:4] == ["--steps", "7", "--align-layer", "8"]


def test_the_defaults_baseline_serves_where_only_the_alignment_differs():
    assert Job(Setting("align_layer", "8"), 0, Path(), []).variants == ("aligned",)
    assert Setting("align_layer", "8").baseline == "baseline"
    fraction = Job(Setting("data_fraction", "0.1"), 0, Path(), [])
    assert fraction.variants == ("baseline", "aligned")
    assert fraction.setting.baseline == "baseline, data_fraction=0.1"


def finished(folder: Path, log: Path):
    """What stage 2 leaves behind, as far as a sweep looks at it."""
    write_record(folder, {"status": "complete"})
    with log.open("a") as file:
        file.write(folder.name + "\n")


@pytest.fixture
def fake_stage2(monkeypatch, tmp_path):
    """In the place of training: a finished folder, and answers that depend on its name."""
    log = tmp_path / "trained"

    def ask(config, job, data_root):
        rng = np.random.default_rng(sum(job.folder.name.encode()))
        right = (rng.random((2, 200)) < 0.7).astype(float)
        return {name: {"run": right * (name == "aligned")} for name in job.variants}

    def gains(folders):
        values = np.zeros((len(folders), 2))
        parts = {f"cka_{part}": (("setting", "layer"), values) for part in ("mean", "low", "high")}
        return xr.Dataset(parts, {"setting": np.array(list(folders), object), "layer": [0, 16]})

    monkeypatch.setattr(sweep_jobs, "_train", lambda job, asking, gpu: finished(job.folder, log))
    monkeypatch.setattr(sweep_jobs, "share", lambda default, job: None)
    monkeypatch.setattr(sweep, "ask", ask)
    monkeypatch.setattr(sweep, "cka_gains", gains)
    return log


def test_a_sweep_trains_what_is_missing_and_writes_the_tables(fake_stage2, tmp_path, capsys):
    config = SweepConfig(over=("align_layer=8,12",), seeds="0,1", out=tmp_path / "sweep")
    finished(tmp_path / "sweep" / "default-seed1", fake_stage2)
    main((config, []))
    trained = fake_stage2.read_text().split()
    assert len(trained) == 6 and trained.count("default-seed1") == 1
    shown = capsys.readouterr().out
    assert "6 runs, 1 of them finished" in shown and "align_layer (Table 5)" in shown
    page = (tmp_path / "sweep" / "ablations.md").read_text()
    assert "| 12 | " in page and "Published: PointAlign" in page
    assert (tmp_path / "sweep" / "ablations.png").stat().st_size > 1000
    main((config, []))
    assert len(fake_stage2.read_text().split()) == 6


def test_what_is_finished_has_its_table_and_the_rest_is_named(fake_stage2, tmp_path):
    config = SweepConfig(
        over=("align_layer=8", "data_fraction=0.1"), out=tmp_path / "sweep", finished=True
    )
    with pytest.raises(ValueError, match="no run of the default is finished"):
        main((config, []))
    for name in ("default-seed0", "data_fraction=0.1-seed0"):
        finished(tmp_path / "sweep" / name, fake_stage2)
    main((config, []))
    assert len(fake_stage2.read_text().split()) == 2  # nothing was trained
    page = (tmp_path / "sweep" / "ablations.md").read_text()
    assert "with them: align_layer=8-seed0." in page and "(Table 5)" not in page
    assert "41.95, 41.77" in page  # Fig. 4 at a tenth of the data
    found = xr.open_zarr(tmp_path / "sweep" / "ablations.zarr", consolidated=False)
    assert "baseline, data_fraction=0.1" in found.setting.values


def test_a_sweep_of_nothing_compares_the_default_with_its_baseline(fake_stage2, tmp_path, capsys):
    main((SweepConfig(seeds="0,1", out=tmp_path / "sweep"), []))
    assert "less the baseline: +7" in capsys.readouterr().out


def test_a_run_that_fails_is_named_with_its_last_line(tmp_path, monkeypatch):
    job = Job(Setting("", ""), 0, tmp_path / "default-seed0", ["--steps", "none"])
    monkeypatch.setattr(sys, "executable", "/bin/sh")  # which can't open "-m"
    with pytest.raises(ChildProcessError, match=r"default-seed0 failed .*its log is"):
        sweep_jobs._train(job, [], None)


def test_a_run_of_another_alignment_begins_with_all_but_the_aligned_model(tmp_path, monkeypatch):
    default = tmp_path / "default-seed0"
    for name in ("cache/train.npy", "checkpoints/baseline/a", "evaluation/targets-modelnet.npy"):
        (default / name).parent.mkdir(parents=True, exist_ok=True)
        (default / name).write_text(name)
    (default / "checkpoints/aligned").mkdir()
    begun = []
    monkeypatch.setattr(
        sweep_jobs, "begin_like", lambda old, new, without: begun.append((old, without))
    )
    folders = [tmp_path / name for name in ("align_layer=8-seed0", "steps=9-seed0")]
    for folder, setting in zip(folders, (("align_layer", "8"), ("steps", "9")), strict=True):
        sweep_jobs.share(default, Job(Setting(*setting), 0, folder, []))
    one, other = ({str(path.relative_to(f)) for path in f.rglob("*.*")} for f in folders)
    assert one == {"run.json", "cache/train.npy", "evaluation/targets-modelnet.npy"}
    assert (folders[0] / "checkpoints/baseline/a").is_file()
    assert other == {"run.json", "cache/train.npy"} and begun == [(default, ["aligned"])]
    assert not (folders[0] / "checkpoints/aligned").exists()


@pytest.mark.slow
def test_a_sweep_of_real_runs(tiny_checkpoint, solids_folder, tmp_path, capsys):
    words = ["--stage1", str(tiny_checkpoint), "--data", "modelnet"]
    words += ["--data-root", str(solids_folder), "--steps", "4", "--warmup-steps", "1"]
    words += ["--capture-layers", "2", "--gallery-per-class", "6", "--query-per-class", "4"]
    words += ["--align-layer", "2", "--batch-size", "4", "--neighbours", "1"]
    main((SweepConfig(over=("align_layer=1",), out=tmp_path / "sweep"), words))
    assert "CKA at layer 2" in (tmp_path / "sweep" / "ablations.md").read_text()
    runs = [tmp_path / "sweep" / f"{name}-seed0" for name in ("default", "align_layer=1")]
    adapters = [(run / "checkpoints/baseline/model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
    one, other = (store.open_run(run) for run in runs)
    for variant in ("stage1", "baseline", "untrained"):
        np.testing.assert_array_equal(one.hidden(variant), other.hidden(variant))
    assert not np.array_equal(one.hidden("aligned"), other.hidden("aligned"))
    assert store.verify_run(runs[1]) == []
