"""All phases of stage 1, a step or two each, and the checkpoint that comes out and ships."""

import json
import subprocess
import sys

import pytest
import torch

from train.checkpoint import load_model, load_strictly
from train.config import NANO, SHIPPED
from train.models.minigpt3d import build

PHASES = ["language", "encoder", "bridge", "I-mlp", "II-brief", "III-mixed"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, what was printed) of a stage 1 of one step a phase."""
    out = tmp_path_factory.mktemp("stage1")
    call = [sys.executable, "-m", "train.stage1", "--speed", "0.001", "--batch-size", "4"]
    sizes = ["--train-per-class", "1", "--query-per-class", "1", "--threads", "1"]
    folders = ["--out", str(out / "run"), "--data-root", str(out / "data")]
    result = subprocess.run([*call, *sizes, *folders], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return out / "run", result.stdout


def test_the_phases_run_in_order_and_end_with_the_measured_accuracy(trained):
    folder, printed = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["variant"] for line in lines)) == PHASES
    assert "unseen objects of the embedded shapes" in printed and "95 % interval" in printed


def test_the_checkpoint_holds_the_whole_nano_model(trained):
    model, tokenizer, sizes = load_model(trained[0] / "checkpoint")
    assert sizes == NANO
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert not model.training


def test_the_shipped_checkpoint_loads_and_says_how_good_it_is():
    model, _, sizes = load_model(SHIPPED)
    assert sizes == NANO
    card = json.loads((SHIPPED / "card.json").read_text())
    assert card["unseen"]["low"] > 10 * card["unseen"]["chance"]
    assert {"command", "commit", "seed", "versions", "hashes"} <= card.keys()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_checkpoint_with_a_tensor_too_few_is_refused_by_name():
    model = build(NANO)
    tensors = model.state_dict()
    del tensors["mlp.first.bias"]
    with pytest.raises(ValueError, match=r"another architecture.*mlp\.first\.bias"):
        load_strictly(model, tensors, "here")
    assert torch.equal(model.mlp.first.bias, build(NANO).mlp.first.bias)
