"""Schedule against the published numbers; a stopped training against one that never stopped."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from tests.golden import golden
from train.config import Stage1Config
from train.loop import PROCESS_SEED, Schedule, Training, fit, parameter_groups
from train.stage1 import precision

PUBLISHED = Schedule(steps=10_000, warmup=1000, start=1e-7, peak=3e-6, floor=1e-7)


def test_the_schedule_gives_the_published_learning_rates():
    _, arrays = golden("lr_schedule")
    steps, rates = (np.asarray(arrays[name]) for name in sorted(arrays))
    ours = [PUBLISHED.rate(int(step)) for step in steps]
    np.testing.assert_allclose(ours, rates, rtol=1e-12)


def test_the_rate_steps_down_where_the_warm_up_ends():
    assert PUBLISHED.rate(999) == pytest.approx(2.9971e-6, rel=1e-4)
    assert PUBLISHED.rate(1000) == pytest.approx(2.9290e-6, rel=1e-4)
    assert PUBLISHED.rate(9999) == pytest.approx(1e-7, rel=1e-3)


def test_the_paper_s_rate_falls_in_a_line_from_the_first_step():
    paper = Schedule(steps=10_000, warmup=0, start=1e-7, peak=3e-6, floor=1e-6, decay="linear")
    ours = [paper.rate(step) for step in range(10_000)]
    np.testing.assert_allclose(ours, np.linspace(3e-6, 1e-6, 10_001)[:-1], rtol=1e-12)


def test_a_line_begins_where_the_warm_up_ends():
    schedule = Schedule(steps=50, warmup=10, start=0, peak=1, floor=0.2, decay="linear")
    assert [schedule.rate(step) for step in (5, 10, 30)] == pytest.approx([0.5, 1, 0.6])


def test_a_cosine_without_warm_up_begins_at_its_peak():
    schedule = Schedule(steps=10, warmup=0, start=0, peak=1, floor=0)
    assert [schedule.rate(step) for step in (0, 5)] == pytest.approx([1, 0.5])


def test_no_two_processes_ever_draw_with_the_same_seed():
    index = np.arange(20_000)
    seeds = [(index + process * PROCESS_SEED) % 2**32 for process in range(16)]
    assert len(np.unique(seeds)) == 16 * len(index)


def test_only_matrices_decay():
    layer = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, rest = parameter_groups(layer.named_parameters(), 0.05)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.05
    assert [p.ndim for p in rest["params"]] == [1, 1, 1] and rest["weight_decay"] == 0


class Regression(nn.Module):
    """A small network with dropout, so that the random numbers of a step matter, and running
    statistics, which no gradient reaches."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(8)
        self.net = nn.Sequential(nn.Linear(5, 8), norm, nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch):
        return {"loss": (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()}


def batch_at(index: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(index))


def trained(folder, stop_at=None):
    torch.set_num_threads(1)  # sums round by their number, which other tests change
    torch.manual_seed(0)
    training = Training(
        schedule=Schedule(steps=20, warmup=2, start=0, peak=0.1, floor=0), save_every=3
    )

    def batches(index):
        if index == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch_at(index)

    model = fit(
        "net",
        Regression(),
        batches,
        training,
        Accelerator(cpu=True),
        folder,
        folder / "metrics.jsonl",
    )
    return model.state_dict()


def test_without_clipping_the_steps_are_those_of_plain_adamw(tmp_path):
    schedule = Schedule(steps=8, warmup=0, start=0, peak=0.05, floor=0, decay="linear")
    ends = {}
    for clip in (0.0, 0.01):
        torch.manual_seed(0)
        training = Training(schedule=schedule, clip=clip)
        place = tmp_path / str(clip)
        objective = Regression().eval()
        fit("net", objective, batch_at, training, Accelerator(cpu=True), place, place / "m")
        ends[clip] = objective.state_dict()
    torch.manual_seed(0)
    plain = Regression()
    optimizer = torch.optim.AdamW(parameter_groups(plain.named_parameters(), 0.05))
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        torch.manual_seed(step)
        optimizer.zero_grad()
        plain(batch_at(step))["loss"].backward()
        optimizer.step()
    assert all(torch.equal(ends[0.0][name], value) for name, value in plain.state_dict().items())
    assert not torch.equal(ends[0.0]["net.0.weight"], ends[0.01]["net.0.weight"])


def test_a_resumed_training_goes_on_with_the_scale_of_the_gradients(tmp_path):
    """The first steps overflow and are skipped, later the scale grows again every 3 steps."""
    schedule = Schedule(steps=24, warmup=2, start=0, peak=0.1, floor=0)
    training = Training(schedule=schedule, clip=0, save_every=1, log_every=1)

    class Stopped(Exception):
        pass

    def train(folder, accelerator, stops=()):
        """Train, beginning again after each stop as another process would."""
        for stop in (*stops, None):
            torch.manual_seed(0)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=3)
            objective = Regression()

            def batches(index, stop=stop):
                if index == stop:
                    raise Stopped
                return batch_at(index)

            try:
                fit("net", objective, batches, training, accelerator, folder, folder / "m")
            except Stopped:
                accelerator.free_memory()
        assert accelerator.scaler.get_scale() == 2.0**127  # as the next model will find it
        return objective.state_dict()

    whole = train(tmp_path / "whole", Accelerator(cpu=True))
    cut = train(tmp_path / "cut", Accelerator(cpu=True), stops=(1, 13))  # 1: no step was taken yet
    assert all(torch.equal(cut[name], value) for name, value in whole.items())
    kept = [
        load_file(tmp_path / name / "trainer.safetensors")["step/net.0.weight"].item()
        for name in ("whole", "cut")
    ]
    assert kept[0] == kept[1] < 24


def test_a_killed_training_resumes_to_the_numbers_of_an_uninterrupted_one(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = trained(whole)
    code = (
        "from pathlib import Path; from tests.test_loop import trained; "
        f"trained(Path({str(cut)!r}), 11)"
    )
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = trained(cut)
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, cut)
    ]
    assert [(one["step"], one["loss"]) for one in lines[0]] == [
        (one["step"], one["loss"]) for one in lines[1]
    ]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    class Broken(Regression):
        def forward(self, batch):
            return {"loss": super().forward(batch)["loss"] * float("nan")}

    training = Training(schedule=Schedule(steps=2, warmup=1, start=0, peak=0.1, floor=0))
    with pytest.raises(FloatingPointError, match="step 0"):
        fit("net", Broken(), batch_at, training, Accelerator(cpu=True), tmp_path, tmp_path / "m")


def test_a_gpu_that_only_emulates_bf16_trains_in_fp16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for major, half in ((7, "fp16"), (8, "bf16")):
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        told = SimpleNamespace(major=major)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, told=told: told)
        assert precision(Stage1Config()) == half
