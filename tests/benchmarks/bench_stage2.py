"""What the parts of a stage-2 step cost, as ratios: python -m tests.benchmarks.bench_stage2 nano

Each pair is run turn about in one process, on the same batch of drawn tokens and clouds, and the
median of the ratios is printed with its smallest and largest; peak memory is that of a process of
its own. `minigpt3d` runs on a GPU, with random weights; elsewhere its operations are counted. The
training loop itself is run at every published batch, on the GPU or on a simulated one, and its peak
held against the one computed and the 22 GiB. Nothing is written.

What it says:

- Aligned over baseline step: 1.001 at published sizes, counted. At nano, on two idle cores, the
  median of 50 pairs of steps of 0.41 s, turn about, is 1.017 with a 95 % interval of 1.007 to
  1.031 (by the processor's time 1.016, 1.009 to 1.027): the goal is 1.02. Single ratios scatter
  more widely than that, so few rounds on a busy machine say nothing.
- The same at small (103 million parameters), on two idle cores: 0.999, the median of five pairs of
  steps of 3.5 s, turn about; uncached over cached there 1.45.
- Uncached over cached step: 1.17 at nano. At published sizes the goal of 3 is out of reach by
  arithmetic: a batch of 10 x 160 tokens takes 17.2 TFLOP (2.5 billion weights, 2 operations each,
  forward and once more for the gradients of the activations; no block recomputed, which would
  make it half as much again), its frozen front 0.62: a ratio of 1.036, 1.022 for 6 x 256 tokens
  and 1.011 for 4 x 512. For 3 the front would have to cost two steps. The head is a small part of
  a step, so that answering briefly doesn't change this; only far shorter conversations would.
- Full over answer-only head: 1.02 at published sizes, counted; 1.00 at nano.
- Peaks at published batches in bf16: 12.6, 12.7 and 14.5 GiB, computed as by `--dry-run`; with
  `--recipe release` in fp16, its front at every step, 14.2, 13.4 and 19.5; with blocks recomputed
  7.4 to 7.8. No GPU has measured them: where there is none, the training loop runs on a simulated
  one (see `fake_gpu`), where torch's tracker finds 12.4, 12.5 and 14.3; 13.9, 13.2 and 19.3; 7.3
  to 7.6. What is computed is 1 to 3 % more since it has the gradients in memory throughout, which
  is so where steps are accumulated and where several processes share a batch. The stages of
  MiniGPT-3D, which read clouds at every step, take 9.2, 10.1, 14.7 and 13.5 on the simulated one.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import fake_gpu
from train.alignment import Stage2Objective
from train.batches import Drawn
from train.budget import CARD, GIB, LENGTHS, size, training_memory
from train.checkpoint import train_only
from train.config import MODELS, STAGE1, STAGE2, ModelConfig, Stage2Config, with_recipe
from train.forecast import trains
from train.loop import Schedule, Training, fit
from train.losses import AlignmentProjector
from train.models.llm import bare, hold_in
from train.models.minigpt3d import MiniGPT3D, build, set_switches
from train.objectives import CaptionObjective, language_parameters
from train.prompts import UNLABELLED, Batch
from train.stages import add_experts, learner, plan

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
        self.batch = drawn_batch(sizes, samples, tokens, answers)
        self.target = torch.randn(samples, sizes.queries, sizes.qformer_width, device=DEVICE)

    def _objective(self, config: Stage2Config, weight: float):
        objective = Stage2Objective(self.model, config, weight).to(DEVICE)
        train_only(objective, trains(objective))
        trained = [p for p in objective.parameters() if p.requires_grad]
        return objective, torch.optim.AdamW(trained, lr=1e-6)

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


def drawn_batch(sizes: ModelConfig, samples: int, tokens: int, answers: int) -> Batch:
    """Random tokens with the point tokens near the front and the answers at the end."""
    ids = torch.randint(sizes.vocabulary, (samples, tokens))
    labels = torch.full_like(ids, UNLABELLED)
    labels[:, -answers:] = ids[:, -answers:]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, POINTS_BEGIN : POINTS_BEGIN + sizes.queries] = True
    return Batch(ids, labels, torch.ones_like(ids), mask).to(DEVICE)


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
    if CUDA:
        torch.cuda.empty_cache()  # a process of its own follows for each peak
    for step in ("baseline", "align", "uncached", "short_head", "full_head"):
        print(f"  peak memory of {step:<19}{peak(preset, sizes, step):8.0f} MiB beyond the model")


def by_operations(sizes: ModelConfig, samples: int, tokens: int, answers: int) -> None:
    """The ratios of a model too large to run here, from its operations.

    Farthest-point sampling has next to no multiplications and takes a GPU its time all the same:
    the true ratio of uncached over cached is larger.
    """
    count = counted(sizes, samples, tokens, answers)
    step, align = count["step"], count["align"]
    print(
        f"{samples} samples of {tokens} tokens, {answers} of them answers: "
        f"{step / 1e12:.2f} TFLOP a step, {count['front'] / 1e12:.2f} the front, counted"
    )
    print(f"  aligned over baseline step        {1 + align / step:6.3f}")
    print(
        f"  uncached over cached step         {1 + count['front'] / (step + align):6.3f}  at least"
    )
    print(f"  full over answer-only head        {count['full'] / step:6.3f}")


def counted(sizes: ModelConfig, samples: int, tokens: int, answers: int) -> dict[str, int]:
    """Floating-point operations of matrix products, a multiplication and an addition each, of a
    baseline `step`, the same with the `full` head, what `align` adds, and of the frozen `front`.

    A step is the forward pass and the gradients of the activations: of frozen matrices none are
    computed for the weights. Nothing is recomputed, which would make the step larger by half.
    """
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

    return {
        "step": operations(lambda: step(answers)),
        "full": operations(lambda: step(tokens)),
        "align": operations(lambda: projector(states).sum().backward()),
        "front": operations(front),
    }


def published_batches(preset: str) -> dict[str, tuple[int, int, int]]:
    """Kind of conversation -> samples, tokens and answer tokens of a batch with long ones."""
    return {kind: (count, *LENGTHS[kind]) for kind, count in STAGE2[preset].batch_sizes.items()}


def peaks(preset: str, recompute: bool) -> None:
    """Peak memory of training at each published batch: on a GPU, or simulated, and computed."""
    sizes, half = MODELS[preset], torch.bfloat16 if preset == "minigpt3d" else None
    recipes = {
        "": STAGE2[preset],
        ", --recipe release in fp16": with_recipe(STAGE2[preset], "release"),
    }
    for name, config in recipes.items():
        config = replace(config, gradient_checkpointing=recompute)
        half = torch.float16 if name else half
        print(f"{preset}: peak of training{name}{', blocks recomputed' if recompute else ''}")
        batches = published_batches(preset)
        steps = [
            {"config": config, "sizes": sizes, "half": half, "shape": shape, "cached": not name}
            for shape in batches.values()
        ]
        for kind, step, found in zip(batches, steps, found_peaks(steps), strict=True):
            told = size(expected_peak(config, sizes, half, kind))
            count, tokens, _ = step["shape"]
            print(f"  {count:>2} {kind:<22}{tokens:>4} tokens  {told:>9} computed  {found}")


def stage_peaks(preset: str) -> None:
    """The same of MiniGPT-3D's stages, the largest batch of each."""
    brief = {"simple_description": (9, *LENGTHS["simple_description"])}
    steps, names = [], []
    for stage in ("I", "II", "III", "IV"):
        batches = brief if stage in ("I", "II") else published_batches(preset)
        kind, shape = max(batches.items(), key=lambda each: each[1][0] * each[1][1])
        names.append(f"stage {stage:<4}{shape[0]:>2} {kind:<22}{shape[1]:>4} tokens")
        common = {"config": STAGE2[preset], "sizes": MODELS[preset], "half": torch.bfloat16}
        steps.append(common | {"shape": shape, "stage": stage})
    for name, found in zip(names, found_peaks(steps), strict=True):
        print(f"  {name}  {found}")


def found_peaks(steps: list[dict[str, Any]]) -> list[str]:
    """What `measured_peak` finds in a process of its own, on a GPU or a simulated one."""
    if CUDA:
        found = []
        for step in steps:
            with get_context("spawn").Pool(1) as pool:
                found.append(pool.apply(measured_peak, (), step))
    elif why := fake_gpu.unavailable():
        return [why] * len(steps)
    else:
        found = fake_gpu.peaks(steps)
    how = "measured" if CUDA else "simulated"
    within = ("within" if each <= CARD else "OVER" for each in found)
    pairs = zip(found, within, strict=True)
    return [f"{each / GIB:5.2f} GiB {how}, {said} {size(CARD)}" for each, said in pairs]


def expected_peak(
    config: Stage2Config, sizes: ModelConfig, half: torch.dtype | None, kind: str
) -> int:
    """Bytes that `--dry-run` would state where this were the largest of the batches."""
    objective = stage2(config, sizes, half, "meta")
    one = {each: LENGTHS[kind] if each == kind else (sizes.queries + 8, 1) for each in LENGTHS}
    return training_memory(objective, config, half=half, lengths=one).total


def measured_peak(
    config: Stage2Config,
    sizes: ModelConfig,
    half: torch.dtype | None,
    shape: tuple[int, int, int],
    weight: float | None = None,
    cached: bool = True,
    stage: str = "",
) -> int:
    """Bytes that the device held at most in two steps of the training loop itself.

    shape  : samples, tokens and answer tokens of the batch.
    weight : of the alignment, 0 for the baseline; the config's if not given.
    cached : with targets as a cache has them; without, the frozen front runs at every step.
    stage  : I to IV of MiniGPT-3D instead, which read clouds at every step.
    """
    precision = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half]
    accelerator = Accelerator(cpu=not CUDA, mixed_precision=precision)
    if stage:
        objective: nn.Module = stage1(stage, sizes, half, DEVICE)
    else:
        objective = stage2(config, sizes, half, DEVICE, weight)
    samples = shape[0]
    tokens, rows = drawn_batch(sizes, *shape), torch.arange(samples, device=DEVICE)
    tokens.attention_mask[0, -1] = 0  # the shorter ones of a real batch are padded: there is a mask
    target = torch.randn(samples, sizes.queries, sizes.qformer_width, device=DEVICE)
    points = torch.rand(samples, sizes.points, 6, device=DEVICE)

    @torch.no_grad()
    def drawn(_: int) -> Drawn:
        if stage:
            return Drawn(tokens, points, rows)
        return Drawn(tokens, target if cached else objective.model.encode(points), rows)

    rate = Schedule(steps=2, warmup=1, start=0, peak=1e-6, floor=0)
    training = Training(
        schedule=rate, clip=config.clip, accumulate=config.accumulate, save_every=10, log_every=10
    )
    if CUDA:  # the weights were made in float32
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        fit("peak", objective, drawn, training, accelerator, place, place / "metrics")
    return torch.cuda.max_memory_allocated() if CUDA else int(_taken() * 2**20)


def stage2(
    config: Stage2Config,
    sizes: ModelConfig,
    half: torch.dtype | None,
    device: torch.device | str,
    weight: float | None = None,
) -> Stage2Objective:
    """The model as stage 2 trains it, aligned unless `weight` is 0, its random weights made where
    they stay."""
    with torch.device(device):
        model = build(sizes)
        objective = Stage2Objective(
            model, config, config.align_weight if weight is None else weight
        )
    if half:
        hold_in(model.llm, half)
    set_switches(model, config)
    train_only(objective, trains(objective))
    return objective


def stage1(
    stage: str, sizes: ModelConfig, half: torch.dtype | None, device: torch.device | str
) -> CaptionObjective:
    """The model as a stage of MiniGPT-3D trains it, with random weights made where they stay."""
    phase = plan(stage, STAGE1["minigpt3d"])[0]
    with torch.device(device):
        model = build(sizes)
        if stage == "IV":
            sizes = add_experts(model, sizes, None, "sparse", seed=0)
    if half:
        hold_in(model.llm, half)
    objective, wanted = learner(phase.name, model, sizes, encoded=False)
    train_only(objective, wanted)
    return cast(CaptionObjective, objective)


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("presets", nargs="*", default=["nano"], choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    asked = parser.parse_args()
    for preset in asked.presets:
        if preset != "minigpt3d" or CUDA:
            whole(preset, asked.rounds)
        if preset == "minigpt3d":
            print(f"{preset}: operations")
            for shape in (SHAPES[preset], *published_batches(preset).values()):
                by_operations(MODELS[preset], *shape)
            peaks(preset, asked.gradient_checkpointing)
            stage_peaks(preset)


if __name__ == "__main__":
    main()
