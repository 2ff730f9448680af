"""Schedule against the published numbers; a stopped training against one that never stopped."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.golden import golden
from train.loop import Schedule, Training, fit, parameter_groups

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


def test_only_matrices_decay():
    layer = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, rest = parameter_groups(layer.named_parameters(), 0.05)
    assert [p.ndim for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.05
    assert [p.ndim for p in rest["params"]] == [1, 1, 1] and rest["weight_decay"] == 0


class Regression(nn.Module):
    """A small network with dropout, so that the random numbers of a step matter."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, batch):
        return {"loss": (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()}


def batch_at(index: int) -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(index))


def trained(folder, stop_at=None):
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
