"""Sweeps: which runs there are, how they are put together, and the intervals over seeds."""

import sys
from pathlib import Path

import numpy as np
import pytest

from train import sweep
from train.config import Stage2Config
from train.record import write_record
from train.sweep import Setting, SweepConfig, jobs_of, main, over_seeds, published, settings


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
    config = SweepConfig(over=("align_loss=cosine,nonsense",), out=tmp_path / "sweep")
    with pytest.raises(SystemExit) as stopped:
        jobs_of(config, [])
    assert stopped.value.code == 2 and "nonsense" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_the_command_line_gives_its_other_flags_to_stage_2(tmp_path):
    config = SweepConfig(over=("align_layer=8",), seeds="0,1", out=tmp_path)
    jobs = jobs_of(config, ["--steps", "7"])
    assert [(str(job.setting), job.seed) for job in jobs] == [
        ("default", 0),
        ("default", 1),
        ("align_layer=8", 0),
        ("align_layer=8", 1),
    ]
    assert jobs[3].words[:4] == ["--steps", "7", "--align-layer", "8"]


def test_one_seed_has_the_interval_of_its_objects_and_scatter_of_seeds_widens_it():
    rng = np.random.default_rng(0)
    hits = [(rng.random(600) < 0.6).astype(float) for _ in range(3)]
    mean, low, high = over_seeds(hits[:1])
    error = hits[0].std(ddof=1) / np.sqrt(600)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=1e-5)
    apart = [hits[0], np.roll(hits[1], 1) * 0, hits[2] * 0 + 1]
    mean, low, high = over_seeds(apart)
    means = [one.mean() for one in apart]
    half = 4.303 * np.std(means, ddof=1) / np.sqrt(3)  # Student's t with 2 degrees of freedom
    assert high - low == pytest.approx(2 * half, rel=0.01)


@pytest.mark.parametrize(("seeds", "scatter"), [(1, 0.0), (2, 0.0), (3, 0.01), (5, 0.03)])
def test_the_interval_over_seeds_holds_its_level(seeds, scatter):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        shares = 0.6 + scatter * rng.standard_normal(seeds)
        _, low, high = over_seeds([(rng.random(600) < share) * 1.0 for share in shares])
        held += low <= 0.6 <= high
    assert held / 400 > 0.87  # 0.90 to 0.96 with 1,500 draws


def finished(job_folder: Path, log: Path):
    (job_folder / "cache").mkdir(parents=True, exist_ok=True)
    (job_folder / "cache" / "train.npy").write_text("frozen front")
    (job_folder / "checkpoints" / "baseline").mkdir(parents=True, exist_ok=True)
    write_record(job_folder, {"status": "complete"})
    with log.open("a") as file:
        file.write(job_folder.name + "\n")


@pytest.fixture
def fake_stage2(monkeypatch, tmp_path):
    """In the place of training: a finished folder, and answers that depend on its name."""
    log = tmp_path / "trained"

    def train(job, gpu):
        shared = (job.folder / "cache" / "train.npy").exists()
        assert shared == bool(job.setting.name)
        finished(job.folder, log)

    def ask(folder):
        rng = np.random.default_rng(sum(folder.name.encode()))
        right = (rng.random((2, 200)) < 0.7).astype(float)
        both = np.array([*right, right.mean(axis=0)])
        return {"aligned": both, "baseline": both * 0}

    monkeypatch.setattr(sweep, "_train", train)
    monkeypatch.setattr(sweep, "ask", ask)
    return log


def test_a_sweep_trains_what_is_missing_and_prints_the_table(fake_stage2, tmp_path, capsys):
    config = SweepConfig(over=("align_layer=8,12",), seeds="0,1", out=tmp_path / "sweep")
    finished(tmp_path / "sweep" / "default-seed1", fake_stage2)
    main((config, []))
    trained = fake_stage2.read_text().split()
    assert len(trained) == 6 and trained.count("default-seed1") == 1
    shown = capsys.readouterr().out
    assert "6 runs, 1 of them finished" in shown
    assert "align_layer=12" in shown and "60.58" in shown  # published weight 0, the baseline
    main((config, []))
    assert len(fake_stage2.read_text().split()) == 6


def test_the_results_hold_paired_differences_on_the_same_objects(fake_stage2, tmp_path):
    import xarray as xr

    config = SweepConfig(over=("align_layer=8",), seeds="0,1,2", out=tmp_path / "sweep")
    main((config, []))
    found = xr.open_zarr(tmp_path / "sweep" / "sweep.zarr", consolidated=False)
    assert found.by_seed.shape == (3, 3, 3)
    assert found.setting.values.tolist() == ["baseline", "default", "align_layer=8"]
    same = found.sel(setting="default")
    assert float(abs(same.difference_mean).max()) == 0
    gap = found.sel(setting="baseline")
    assert gap.difference_mean.values == pytest.approx(-same["mean"].values)
    own = found.sel(setting="align_layer=8")
    assert own["mean"].values == pytest.approx(own.by_seed.mean("seed").values)


def test_a_run_that_fails_is_named_with_its_last_line(tmp_path, monkeypatch):
    job = sweep.Job(Setting("", ""), 0, tmp_path / "default-seed0", ["--steps", "none"])
    monkeypatch.setattr(sys, "executable", "/bin/sh")  # which can't open "-m"
    with pytest.raises(ChildProcessError, match=r"default-seed0 failed .*its log is"):
        sweep._train(job, None)


def test_the_published_row_of_a_setting():
    assert published("align_layer=12+16+20") == "61.63, 60.21, 69.0, 66.5"
    assert published("baseline") == "60.58, 60.29, 69.5, 68.5"
    assert published("steps=100") == ""
    assert "53.05" in published("data_fraction=1.0")


@pytest.mark.slow
def test_a_sweep_of_real_runs(tiny_checkpoint, solids_folder, tmp_path, capsys):
    words = ["--stage1", str(tiny_checkpoint), "--data", "modelnet"]
    words += ["--data-root", str(solids_folder), "--steps", "4", "--warmup-steps", "1"]
    words += ["--capture-layers", "2", "--gallery-per-class", "6", "--query-per-class", "4"]
    words += ["--align-layer", "2", "--batch-size", "4", "--neighbours", "1"]
    main((SweepConfig(over=("align_layer=1",), out=tmp_path / "sweep"), words))
    shown = capsys.readouterr().out
    assert "align_layer=1" in shown
    runs = [tmp_path / "sweep" / f"{name}-seed0" for name in ("default", "align_layer=1")]
    adapters = [(run / "checkpoints/baseline/model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
