"""Two processes train what one trains: real ones, on the CPU, that talk over gloo."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.conftest import TINY
from tests.test_batches import batches
from train.alignment import Stage2Objective
from train.checkpoint import train_only
from train.config import Stage2Config
from train.loop import Schedule, Training, fit
from train.models.minigpt3d import build, set_switches
from train.objectives import language_parameters

STEPS = 8
WIDTH = 12


class Reader(nn.Module):
    """Next token from this one and the cloud, with the loss of a MiniGPT-3D.

    As in the full model a part is frozen, and a block is computed again in the backward pass.
    """

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(300, WIDTH).requires_grad_(False)
        self.cloud = nn.Linear(TINY.qformer_width, WIDTH)
        self.block = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.head = nn.Linear(WIDTH, 300)
        self.broken_at = None
        self.order = []

    def forward(self, batch):
        self.order.append(batch.objects.tolist())
        hidden = self.words(batch.input_ids) + self.cloud(batch.shown.mean(1))[:, None]
        hidden = hidden + checkpoint(self.block, hidden, use_reentrant=False)
        follows = batch.tokens.labels[:, 1:]
        scores = self.head(hidden[:, :-1])[follows != -100]
        loss = F.cross_entropy(scores, follows[follows != -100]) * batch.share
        spread = hidden.square().mean() * batch.row_share  # a mean over equally long rows
        if len(self.order) - 1 == self.broken_at:
            loss = loss * float("nan")
        return {"loss": loss + spread, "ntp_loss": loss.detach()}


def schedule(steps: int, accumulate: int = 1) -> Training:
    rate = Schedule(steps=steps, warmup=2, start=0, peak=0.02, floor=0)
    return Training(schedule=rate, accumulate=accumulate, save_every=3, log_every=2)


def train(folder: Path, accumulate: int = 1, stop: int | None = None, broken: bool = False):
    """One training, in as many processes as this one has been told that there are."""
    accelerator = Accelerator(cpu=True)
    number, count = accelerator.process_index, accelerator.num_processes
    drawn = batches(process=number, processes=count, accumulate=accumulate)
    objective = Reader()
    if broken and number == count - 1:
        objective.broken_at = 3

    def batch_at(index):
        if index == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return drawn(index)

    training = schedule(STEPS, accumulate)
    fit("reader", objective, batch_at, training, accelerator, folder, folder / "metrics.jsonl")
    (folder / f"order-{number}-of-{count}.json").write_text(json.dumps(objective.order))


def train_both(folder: Path):
    """Stage 2 as it is: the baseline, then the aligned model, from the same frozen weights."""
    accelerator = Accelerator(cpu=True)
    drawn = batches(process=accelerator.process_index, processes=accelerator.num_processes)
    model = build(replace(TINY, llm_dropout=0, llm_lora_dropout=0), seed=1)
    config = Stage2Config(align_layer="2", gradient_checkpointing=True)
    set_switches(model, config)
    learning = {f"model.llm.{name}" for name in language_parameters(model.llm)}
    for name, weight in (("baseline", 0.0), ("aligned", 0.5)):
        objective = Stage2Objective(model, config, weight)
        train_only(objective, lambda name: name in learning or name.startswith("alignment_"))
        own = folder / name
        fit(name, objective, drawn, schedule(3), accelerator, own, own / "metrics.jsonl")


def first_job(folder: Path):
    train(folder / "plain")
    train(folder / "summed", accumulate=2)
    train_both(folder)
    train(folder / "cut", stop=5)


def second_job(folder: Path):
    train(folder / "cut")
    try:
        train(folder / "broken", broken=True)
    except FloatingPointError as error:
        (folder / f"error-{os.environ['RANK']}").write_text(str(error))


def in_two_processes(job: Callable[[Path], None], folder: Path) -> list[int | None]:
    """Exit codes of two processes that do a job together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def one_of_two(rank: str):
        os.environ.update(address, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
        job(folder)

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=one_of_two, args=(rank,)) for rank in "01"]
    for each in started:
        each.start()
    for each in started:
        each.join(60)
        each.kill()  # where it waits for the other for ever
    return [each.exitcode for each in started]


def both_jobs(folder: Path):
    """One after the other, forked from a process that has imported torch and computed nothing."""
    codes = [in_two_processes(job, folder) for job in (first_job, second_job)]
    (folder / "codes.json").write_text(json.dumps(codes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of what one process trained, and of what two did, one of it in two sittings."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train(one / "plain")
    train(one / "summed", accumulate=2)
    train_both(one)
    code = (
        "from pathlib import Path; from tests.test_processes import both_jobs; "
        f"both_jobs(Path({str(two)!r}))"
    )
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=alone, check=True)
    codes = json.loads((two / "codes.json").read_text())
    assert codes == [[-signal.SIGKILL] * 2, [0, 0]]
    return one, two


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["plain", "summed"])
def test_two_processes_train_the_weights_of_one(trained, name):
    one, two = (load_file(each / name / "trainer.safetensors") for each in trained)
    assert one.keys() == two.keys()
    weights = [key for key in one if key.startswith("model/")]
    assert len(weights) == 8
    for key in weights:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    start = Reader().state_dict()
    assert all((one[key] - start[key.removeprefix("model/")]).abs().max() > 0.01 for key in weights)


@pytest.mark.parametrize("name", ["baseline", "aligned"])
def test_two_processes_train_the_stage_2_models_of_one(trained, name):
    one, two = (load_file(each / name / "trainer.safetensors") for each in trained)
    weights = [key for key in one if key.startswith("model/")]
    assert any("lora_B" in key for key in weights)
    for key in weights:
        torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-6)
    losses = [[(line["loss"], line["ntp_loss"]) for line in lines(each / name)] for each in trained]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["plain", "summed"])
def test_the_processes_share_the_samples_in_the_order_of_one(trained, name):
    one, two = trained
    whole = json.loads((one / name / "order-0-of-1.json").read_text())
    halves = [json.loads((two / name / f"order-{rank}-of-2.json").read_text()) for rank in (0, 1)]
    for rank in (0, 1):
        assert halves[rank] == [each[rank::2] for each in whole]


@pytest.mark.parametrize("name", ["plain", "summed"])
def test_the_logged_losses_are_those_of_whole_batches_and_logged_once(trained, name):
    one, two = (lines(each / name) for each in trained)
    assert [line["step"] for line in two] == [2, 4, 6, 8]
    for part in ("loss", "ntp_loss"):
        assert [line[part] for line in two] == pytest.approx([line[part] for line in one], rel=1e-6)


def test_two_killed_processes_resume_to_the_numbers_of_an_uninterrupted_training(trained):
    _, two = trained
    whole, cut = (load_file(two / name / "trainer.safetensors") for name in ("plain", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())
    assert [line["loss"] for line in lines(two / "cut")] == [
        line["loss"] for line in lines(two / "plain")
    ]


def test_a_loss_that_breaks_in_one_process_stops_both(trained):
    _, two = trained
    said = {(two / f"error-{rank}").read_text() for rank in (0, 1)}
    assert said == {"reader: the loss is nan at step 3"}
