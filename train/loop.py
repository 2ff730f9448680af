"""The training loop that every recipe shares: published optimiser, schedule, logging, resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from train.checkpoint import load_trainer, save_trainer
from train.progress import track

PROCESS_SEED = 2_654_435_761
"""Added to a step's seed once for each process before this one: too far for two steps to meet.
It is 2**32 over the golden ratio, for torch seeds a CPU with the last 32 bits alone."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up from `start` to `peak` (none with `warmup` 0), then a fall to `floor`.

    decay : `cosine` is MiniGPT-3D's, counted from step 0: the rate steps down where they join.
            `linear` falls evenly from the end of the warm-up to `steps`, as PointAlign's paper
            says (3e-6 to 1e-6; its code has the cosine).
    """

    steps: int
    warmup: int
    start: float
    peak: float
    floor: float
    decay: Literal["cosine", "linear"] = "cosine"

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0."""
        if step < self.warmup:
            return min(self.peak, self.start + (self.peak - self.start) * step / self.warmup)
        if self.decay == "linear":
            left = (self.steps - step) / (self.steps - self.warmup)
            return self.floor + (self.peak - self.floor) * left
        turn = math.pi * step / self.steps
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(turn))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], decay: float) -> list[dict]:
    """AdamW groups as published: matrices decay, vectors (biases, norm scales) don't."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def refuse_shards() -> None:
    """Raise ValueError where the launcher would split one model over several GPUs.

    Every process has a model of its own here, whose gradients are averaged (DDP).
    """
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true", "yes"):
            raise ValueError(
                f"the launcher asks for {kind.replace('_', '-')}, which would split one model over "
                "several GPUs; here each has the whole model (--dry-run says what that takes), so "
                "launch with accelerate launch --multi_gpu --num_processes N -m"
            )


def launched(mixed_precision: str) -> Accelerator:
    """The accelerator of this process: on a GPU of its own, or on the CPU where there is none.

    The others wait for the main process while it makes the data or reads the weights: hours at
    most, where the collectives of GPUs would else give up after ten minutes.
    """
    return Accelerator(
        # Told so, accelerate lets several processes share a machine without a GPU.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=mixed_precision,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=24))],
    )


def bf16_in_hardware() -> bool:
    """Whether the GPU computes in bf16 itself; an older one emulates it, far slower than fp16."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one model is trained, apart from its data and its loss."""

    schedule: Schedule
    decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    accumulate: int = 1
    seed: int = 0
    log_every: int = 10
    save_every: int = 50


def fit(
    name: str,
    objective: nn.Module,
    batch_at: Callable[[int], Any],
    training: Training,
    accelerator: Accelerator,
    folder: Path,
    metrics: Path,
    watch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train what requires a gradient in `objective`; go on from `folder` where it was stopped.

    objective : called with a batch, gives a dict of scalars with `loss` among them. With several
                processes each sees its rows of a batch, and gradients and logged values are means
                over the processes: scaled by its share (`train.batches.Drawn`), a loss gives
                those of the whole batch.
    batch_at  : the batch of a step; it depends on the step alone, and every step reseeds the
                random generators, so a resumed run gives the numbers of an uninterrupted one.
    folder    : where `trainer.safetensors` is kept, which the processes share.
    metrics   : a JSON line is added here every `log_every` steps.
    watch     : called after each step with their number so far, by all processes and before the
                step is saved: what it leaves behind may be cut short, then the step comes again.

    Raises FloatingPointError, with the step and in all processes at once, when the loss is no
    longer finite, and ValueError where the launcher asks for a model split over GPUs.
    """
    refuse_shards()
    main = accelerator.is_main_process
    objective.to(accelerator.device)
    groups = parameter_groups(objective.named_parameters(), training.decay)
    optimizer = torch.optim.AdamW(groups, lr=training.schedule.start, betas=(0.9, 0.999), eps=1e-8)
    # One accelerator trains several models in turn: each begins with the scale of the first.
    scaler = accelerator.scaler
    untouched = scaler.state_dict() if scaler else {}
    first = load_trainer(folder, objective, optimizer, scaler)
    if main:
        _forget_lines_from(metrics, name, first)
    # Stage 2 trains two models in one process: only what is prepared here is this model's.
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    wrapped.train()
    clock, tokens, steps = time.perf_counter(), 0.0, training.schedule.steps
    ahead = range(first, steps)
    for step in track(ahead, name, total=steps, completed=first) if main else ahead:
        for group in optimizer.param_groups:
            group["lr"] = training.schedule.rate(step)
        sums = _backward(wrapped, batch_at, training, accelerator, step)
        tokens += sums.pop("tokens")
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(f"{name}: the loss is {sums['loss']} at step {step}")
        if training.clip:
            accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if watch:
            watch(done)
            wrapped.train()
        if main and (done % training.log_every == 0 or done == steps):
            seconds = time.perf_counter() - clock
            line = {"variant": name, "step": done, **sums, "lr": training.schedule.rate(step)}
            line |= {"tokens_per_s": tokens / seconds, "memory_mib": peak_memory(accelerator)}
            _append(metrics, line)
            clock, tokens = time.perf_counter(), 0.0
        if main and (done % training.save_every == 0 or done == steps):
            save_trainer(folder, accelerator.unwrap_model(wrapped), optimizer, done, scaler)
    accelerator.wait_for_everyone()
    if scaler:
        scaler.load_state_dict(untouched)
    del wrapped, optimizer  # with several processes it holds the gradients once more
    accelerator.free_memory()
    return objective.eval()


def _backward(
    wrapped: nn.Module,
    batch_at: Callable[[int], Any],
    training: Training,
    accelerator: Accelerator,
    step: int,
) -> dict[str, float]:
    """Sum up the gradients of a step; its losses and `tokens`, over its batches and processes."""
    sums = {"tokens": 0.0}
    for part in range(training.accumulate):
        index = step * training.accumulate + part
        seed = training.seed * 1_000_003 + index
        torch.manual_seed(seed + PROCESS_SEED * accelerator.process_index)
        last = part == training.accumulate - 1
        # The processes exchange the gradients of a step once, when they are complete.
        with nullcontext() if last else accelerator.no_sync(wrapped):
            batch = batch_at(index)
            losses = wrapped(batch)
            accelerator.backward(losses["loss"] / training.accumulate)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + value.item() / training.accumulate
        sums["tokens"] += batch.input_ids.numel() if hasattr(batch, "input_ids") else 0
    if accelerator.num_processes > 1:  # a NaN in one process is then a NaN in all
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=accelerator.device)
        sums = dict(zip(sums, accelerator.reduce(values, "mean").tolist(), strict=True))
        sums["tokens"] *= accelerator.num_processes
    return sums


def peak_memory(accelerator: Accelerator) -> float:
    """Peak memory in MiB: of the GPU where there is one, else of the process."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.write(json.dumps(line) + "\n")


def _forget_lines_from(path: Path, name: str, step: int) -> None:
    """Drop lines of steps that will be done again, and a last line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("variant") != name or entry.get("step", 0) <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of all that requires a gradient."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
