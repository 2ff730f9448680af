"""The training loop that every recipe shares: published optimiser, schedule, logging, resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.checkpoint import load_trainer, save_trainer
from train.progress import track


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, then a cosine counted from step 0: the rate steps down where they join."""

    steps: int
    warmup: int
    start: float
    peak: float
    floor: float

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0, as MiniGPT-3D's scheduler gives it."""
        if step < self.warmup:
            return min(self.peak, self.start + (self.peak - self.start) * step / self.warmup)
        turn = math.pi * step / self.steps
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(turn))


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], decay: float) -> list[dict]:
    """AdamW groups as published: matrices decay, vectors (biases, norm scales) don't."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one model is trained, apart from its data and its loss."""

    schedule: Schedule
    decay: float = 0.05
    clip: float = 1.0
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
) -> nn.Module:
    """Train what requires a gradient in `objective`; go on from `folder` where it was stopped.

    objective : called with a batch, gives a dict of scalars with `loss` among them.
    batch_at  : the batch of a step; it depends on the step alone, and every step reseeds the
                random generators, so a resumed run gives the numbers of an uninterrupted one.
    folder    : where `trainer.safetensors` and `trainer.json` are kept.
    metrics   : a JSON line is added here every `log_every` steps.

    Raises FloatingPointError, with the step, when the loss is no longer finite.
    """
    objective.to(accelerator.device)
    groups = parameter_groups(objective.named_parameters(), training.decay)
    optimizer = torch.optim.AdamW(groups, lr=training.schedule.start, betas=(0.9, 0.999), eps=1e-8)
    first = load_trainer(folder, objective, optimizer)
    _forget_lines_from(metrics, name, first)
    # Stage 2 trains two models in one process: only what is prepared here is this model's.
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    wrapped.train()
    clock, tokens, steps = time.perf_counter(), 0, training.schedule.steps
    for step in track(range(first, steps), name, total=steps, completed=first):
        for group in optimizer.param_groups:
            group["lr"] = training.schedule.rate(step)
        sums: dict[str, float] = {}
        for part in range(training.accumulate):
            index = step * training.accumulate + part
            torch.manual_seed(training.seed * 1_000_003 + index + accelerator.process_index)
            batch = batch_at(index)
            losses = wrapped(batch)
            accelerator.backward(losses["loss"] / training.accumulate)
            for key, value in losses.items():
                sums[key] = sums.get(key, 0.0) + value.item() / training.accumulate
            tokens += batch.input_ids.numel() if hasattr(batch, "input_ids") else 0
        if not math.isfinite(sums["loss"]):
            raise FloatingPointError(f"{name}: the loss is {sums['loss']} at step {step}")
        accelerator.clip_grad_norm_(wrapped.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if accelerator.is_main_process and (done % training.log_every == 0 or done == steps):
            seconds = time.perf_counter() - clock
            line = {"variant": name, "step": done, **sums, "lr": training.schedule.rate(step)}
            line |= {"tokens_per_s": tokens / seconds, "memory_mib": peak_memory(accelerator)}
            _append(metrics, line)
            clock, tokens = time.perf_counter(), 0
        if accelerator.is_main_process and (done % training.save_every == 0 or done == steps):
            save_trainer(folder, accelerator.unwrap_model(wrapped), optimizer, done)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return objective.eval()


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
