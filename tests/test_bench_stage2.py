"""The benchmark of stage 2 on a model small enough for a test: what a GPU will run runs here."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.benchmarks import bench_stage2
from tests.conftest import TINY
from train.budget import MIB, training_memory
from train.config import STAGE2
from train.losses import AlignmentProjector

CONFIG = replace(STAGE2["minigpt3d"], align_layer=2)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_is_that_of_the_training_loop_itself(recompute):
    config = replace(CONFIG, gradient_checkpointing=recompute)
    peak = bench_stage2.measured_peak(config, TINY, None, (2, 40, 8))
    assert peak > 50 * MIB  # of the process, where there is no GPU


def test_the_computed_peak_is_that_of_a_dry_run_for_the_largest_batch():
    sizes = replace(TINY, llm_context=512)
    half = torch.bfloat16
    each = [bench_stage2.expected_peak(CONFIG, sizes, half, kind) for kind in CONFIG.batch_sizes]
    whole = training_memory(bench_stage2.stage2(CONFIG, sizes, half, "meta"), CONFIG, half=half)
    assert max(each) == whole.total


def test_operations_are_those_of_the_matrices():
    """Two a weight and token forward; as many for the gradient of what enters, and of the weight
    where it trains."""
    samples, tokens, answers = 2, 40, 8
    count = bench_stage2.counted(TINY, samples, tokens, answers)
    head = TINY.llm_width * TINY.vocabulary
    assert count["full"] - count["step"] == 4 * head * samples * (tokens - answers)
    layers = [each for each in AlignmentProjector(32, 16).modules() if isinstance(each, nn.Linear)]
    weights = sum(each.weight.numel() for each in layers)
    assert count["align"] == 6 * weights * samples * TINY.queries
    assert count["front"] < count["step"]
