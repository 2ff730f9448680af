"""What the parts of a stage-2 step cost, as ratios: python -m tests.benchmarks.bench_stage2 nano

Each pair is run turn about in one process, on the same batch of drawn tokens and clouds, and the
median of the ratios is printed with its smallest and largest; peak memory is that of a process of
its own. `minigpt3d` runs on a GPU; elsewhere its operations are counted. Nothing is written.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from train.alignment import Stage2Objective
from train.batches import Drawn
from train.checkpoint import train_only
from train.config import MODELS, ModelConfig, Stage2Config
from train.losses import AlignmentProjector
from train.models.llm import bare, hold_in
from train.models.minigpt3d import MiniGPT3D, build
from train.objectives import language_parameters
from train.prompts import UNLABELLED, Batch

SHAPES = {"nano": (16, 112, 48), "small": (16, 112, 48), "minigpt3d": (10, 160, 96)}
"""Samples, tokens and answer tokens of a batch."""
POINTS_BEGIN = 5
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Bench:
    """A model with random weights, a batch, and the kinds of step that are compared."""

    def __init__(self, preset: str, sizes: ModelConfig):
        samples, tokens, answers = SHAPES[preset]
        config = Stage2Config(align_layer=str(max(1, sizes.llm_depth // 2)))
        model = build(sizes, branch_scale=sizes.llm_branch_scale)
        if CUDA:
            hold_in(model.llm, torch.bfloat16)
        self.model: MiniGPT3D = model.to(DEVICE).train()
        self.plain, self.aligned = (
            self._objective(config, weight) for weight in (0.0, config.align_weight)
        )
        torch.manual_seed(0)
        self.points = torch.rand(samples, sizes.points, 6, device=DEVICE)
        self.batch = self._batch(sizes, samples, tokens, answers)
        self.target = torch.randn(samples, sizes.queries, sizes.qformer_width, device=DEVICE)

    def _objective(self, config: Stage2Config, weight: float):
        objective = Stage2Objective(self.model, config, weight).to(DEVICE)
        wanted = {f"model.llm.{name}" for name in language_parameters(self.model.llm)}
        train_only(objective, lambda name: name in wanted or name.startswith("alignment_"))
        trained = [p for p in objective.parameters() if p.requires_grad]
        return objective, torch.optim.AdamW(trained, lr=1e-6)

    def _batch(self, sizes: ModelConfig, samples: int, tokens: int, answers: int) -> Batch:
        ids = torch.randint(sizes.vocabulary, (samples, tokens))
        labels = torch.full_like(ids, UNLABELLED)
        labels[:, -answers:] = ids[:, -answers:]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, POINTS_BEGIN : POINTS_BEGIN + sizes.queries] = True
        return Batch(ids, labels, torch.ones_like(ids), mask).to(DEVICE)

    def baseline(self) -> None:
        """A step of the baseline from cached targets."""
        self._step(*self.plain, self.target)

    def align(self) -> None:
        """A step of the aligned model from cached targets."""
        self._step(*self.aligned, self.target)

    def uncached(self) -> None:
        """A step of the aligned model that runs the frozen front first."""
        self._step(*self.aligned, self.front())

    @torch.no_grad()
    def front(self) -> torch.Tensor:
        return self.model.encode(self.points)

    def short_head(self) -> None:
        """Loss and gradients with the head at the answers only."""
        self.model(self.batch, target=self.target).loss.backward()

    def full_head(self) -> None:
        """Loss and gradients with the head at every token."""
        self.model(self.batch, target=self.target, logits=True).loss.backward()

    def _step(self, objective, optimiser, target: torch.Tensor) -> None:
        rows = torch.arange(len(target))
        objective(Drawn(self.batch, target, rows))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def seconds(step: Callable[[], object]) -> float:
    """On a CPU those of the processor, which neighbours on the machine don't change."""
    if not CUDA:
        begun = time.process_time()
        step()
        return time.process_time() - begun
    torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def turn_about(rounds: int, *steps: Callable[[], object]) -> list[list[float]]:
    """Seconds of each step in each round, after one round that doesn't count."""
    for step in steps:
        step()
    return [[seconds(step) for step in steps] for _ in range(rounds)]


def ratio(name: str, times: list[list[float]]) -> None:
    ratios = sorted(above / below for above, below in times)
    above, below = (median(column) for column in zip(*times, strict=True))
    print(
        f"  {name:<34}{median(ratios):6.3f}  [{ratios[0]:.3f}, {ratios[-1]:.3f}]  "
        f"{above:.3f} s over {below:.3f} s"
    )


def peak(preset: str, sizes: ModelConfig, step: str) -> float:
    """MiB that two steps take beyond the model, in a process of their own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (preset, sizes, step))


def _peak(preset: str, sizes: ModelConfig, step: str) -> float:
    bench = Bench(preset, sizes)
    before = _taken()
    for _ in range(2):
        getattr(bench, step)()
    return _taken() - before


def _taken() -> float:
    if CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux: what getrusage says, a process inherits from the one that started it.
    if (status := Path("/proc/self/status")).exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def whole(preset: str, rounds: int) -> None:
    """All ratios of a model that runs whole."""
    sizes = MODELS[preset]
    bench = Bench(preset, sizes)
    samples, tokens = bench.batch.input_ids.shape
    print(f"{preset}: {samples} samples of {tokens} tokens, {rounds} rounds, {DEVICE}")
    ratio("aligned over baseline step", turn_about(rounds, bench.align, bench.baseline))
    ratio("uncached over cached step", turn_about(rounds, bench.uncached, bench.align))
    ratio("full over answer-only head", turn_about(rounds, bench.full_head, bench.short_head))
    del bench
    for step in ("baseline", "align", "uncached", "short_head", "full_head"):
        print(f"  peak memory of {step:<19}{peak(preset, sizes, step):8.0f} MiB beyond the model")


def by_operations(preset: str) -> None:
    """The same for a model too large to run here, as multiplications on the meta device.

    Farthest-point sampling has next to none and takes a GPU its time all the same: the true ratio
    of uncached over cached is larger.
    """
    sizes = MODELS[preset]
    samples, tokens, answers = SHAPES[preset]
    with torch.device("meta"):
        model = build(sizes).train()
        learning = language_parameters(model.llm)
        train_only(model, lambda name: name.removeprefix("llm.") in learning)
        patches = torch.empty(samples, sizes.groups, sizes.group_size, 6)
        embeds = torch.empty(samples, tokens, sizes.llm_width)
        mask = torch.empty(samples, 1, tokens, tokens, dtype=torch.bool)
        states = torch.empty(samples, sizes.queries, sizes.llm_width, requires_grad=True)
        projector = AlignmentProjector(sizes.llm_width, sizes.qformer_width)

    def step(scored: int) -> None:
        llm = bare(model.llm)
        hidden = llm.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        llm.get_output_embeddings()(hidden.last_hidden_state[:, :scored]).sum().backward()

    @torch.no_grad()
    def front() -> None:
        model.read(model.point_encoder.encode(patches[:, :, 0, :3], patches))

    short, full = operations(lambda: step(answers)), operations(lambda: step(tokens))
    align = operations(lambda: projector(states).sum().backward())
    encode = operations(front)
    print(
        f"{preset}: {samples} samples of {tokens} tokens, {short / 1e12:.1f} TFLOP a step, counted"
    )
    print(f"  aligned over baseline step        {1 + align / short:6.3f}")
    print(f"  uncached over cached step         {1 + encode / (short + align):6.3f}  at least")
    print(f"  full over answer-only head        {full / short:6.3f}")


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["nano"], choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    for preset in asked.presets:
        if preset == "minigpt3d" and not CUDA:
            by_operations(preset)
        else:
            whole(preset, asked.rounds)


if __name__ == "__main__":
    main()
