"""The four stages of MiniGPT-3D: what each is shown, how fast it learns, and what in it learns.

| | I | II | III | IV |
|---|---|---|---|---|
| conversations | brief | brief | detailed, single, multi 2:3:3 | as III |
| batch | 9 | 9 | 6, 10, 4 of them | as III |
| steps | 70,000 | 70,000 | 30,000 | 10,000 |
| rate | 3e-5 to 1e-5 | 3e-5 to 1e-5 | 1e-5 to 1e-6 | 5e-6 to 1e-6 |
| begins with | TinyGPT-V | stage I | stage II | stage III |
| trains | MLP | MLP, queries, projector, LoRA, norms | as II | experts, router |
| parameters | 1,378,432 | 47,417,984 | 47,417,984 | 395,528 |

LoRA and the weights of the norms are those of the Q-Former and of the LLM. Expert 0 is the
Q-Former's own queries as stage III left them, the other seven begin with BLIP-2's.

Tang et al. 2024 (arXiv 2405.01413) and its released configurations; every stage warms up from 1e-6
over a tenth of its steps, which are in the presets of `train.config`. The published stage I has no
LoRA in its Q-Former. Ours has it with B at zero, where it changes nothing.

A model that begins from nothing goes through three phases first, which stand for what the published
one begins with: `language` (Phi-2), `encoder` (ULIP-2's PointBERT) and `bridge` (BLIP-2's Q-Former
and TinyGPT-V's projector).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from train.batches import BRIEF, MIX
from train.config import ModelConfig, Stage1Config
from train.loop import Schedule
from train.models.minigpt3d import MiniGPT3D, build_experts
from train.objectives import (
    CaptionObjective,
    ContrastiveObjective,
    LanguageObjective,
    language_parameters,
)

PRIORS = "priors"
ORDER = (PRIORS, "I", "II", "III", "IV")
EXPERTS = 8
Router = Literal["sparse", "soft", "constant"]
BY_KIND = {"detailed_description": 6, "single_round": 10, "multi_round": 4}
PUBLISHED_RATES = {"I": (3e-5, 1e-5), "II": (3e-5, 1e-5), "III": (1e-5, 1e-6), "IV": (5e-6, 1e-6)}
"""Stage -> its peak and floor."""
PUBLISHED_START = 1e-6


@dataclass(frozen=True)
class Phase:
    """One training on one kind of data: a prior's, or a stage."""

    name: str
    """In `metrics.jsonl`, and of its folder."""
    kinds: dict[str, int]
    """Kind of conversation -> how often it is drawn."""
    size: int | dict[str, int]
    """Samples of a batch, of any kind or of each kind."""
    schedule: Schedule


def parse_stages(text: str) -> list[str]:
    """Read a list of stages such as `I,II,III`; ValueError unless each follows the one before."""
    stages = [item.strip() for item in text.split(",")]
    if unknown := [item for item in stages if item not in ORDER]:
        raise ValueError(
            f"--stages {text!r}: there is no stage {unknown[0]!r}; they are {', '.join(ORDER)}"
        )
    for before, after in pairwise(stages):
        if after == ORDER[0] or stage_before(after) != before:
            raise ValueError(
                f"--stages {text!r}: {after} does not follow {before}; the order is "
                f"{', '.join(ORDER)}"
            )
    return stages


def stage_before(stage: str) -> str:
    """The stage whose checkpoint this one takes up."""
    return ORDER[ORDER.index(stage) - 1]


def plan(stage: str, config: Stage1Config) -> list[Phase]:
    """The phases of a stage: batches, steps and rates as the config has them."""

    def steps(count: int) -> int:
        return max(1, round(count * config.speed))

    own = config.batch_size
    if stage == PRIORS:
        return [
            Phase("language", {}, own, quick_schedule(steps(config.language_steps), 2e-3)),
            Phase("encoder", {}, 2 * own, quick_schedule(steps(config.encoder_steps), 2e-3)),
            Phase("bridge", BRIEF | MIX, own, quick_schedule(steps(config.bridge_steps), 1e-3)),
        ]
    name, kinds, count, peak = {
        "I": ("I-mlp", BRIEF, config.mlp_steps, 3e-4),
        "II": ("II-brief", BRIEF, config.brief_steps, 5e-4),
        "III": ("III-mixed", MIX, config.mixed_steps, 5e-4),
        "IV": ("IV-experts", MIX, config.expert_steps, 5e-4),
    }[stage]
    size = own or {"simple_description": 9} | BY_KIND
    if config.preset == "minigpt3d":
        return [Phase(name, kinds, size, published_schedule(stage, steps(count)))]
    return [Phase(name, kinds, size, quick_schedule(steps(count), peak))]


def published_schedule(stage: str, steps: int) -> Schedule:
    """Learning rates of MiniGPT-3D's stages, for any number of steps."""
    peak, floor = PUBLISHED_RATES[stage]
    warmup = max(1, steps // 10)
    return Schedule(steps=steps, warmup=warmup, start=PUBLISHED_START, peak=peak, floor=floor)


def quick_schedule(steps: int, peak: float) -> Schedule:
    """Learning rates of a small model that begins from nothing."""
    warmup = max(1, steps // 20)
    return Schedule(steps=steps, warmup=warmup, start=peak / 50, peak=peak, floor=peak / 20)


def learner(
    phase: str, model: MiniGPT3D, sizes: ModelConfig, *, encoded: bool = True
) -> tuple[nn.Module, Callable[[str], bool]]:
    """The objective of a phase, by its name, and which of its parameters learn, by theirs.

    encoded : as in `CaptionObjective`.
    """
    if phase == "language":
        return LanguageObjective(model.llm), lambda name: "lora_" not in name
    if phase == "encoder":
        objective = ContrastiveObjective(model.point_encoder, sizes.encoder_width, sizes.vocabulary)
        return objective, lambda _: True
    if phase == "bridge":
        return (
            CaptionObjective(model, contrast=True, encoded=encoded),
            lambda name: "point_encoder." not in name and "lora_" not in name,
        )
    stage = phase.split("-")[0]
    return CaptionObjective(model, encoded=encoded), trained_in(stage, model)


def add_experts(
    model: MiniGPT3D, sizes: ModelConfig, queries: Tensor | None, router: Router, seed: int
) -> ModelConfig:
    """Give a model the query experts of stage IV; returns its sizes with them.

    queries : (1, queries, width) as before stage II, where experts 1 and up begin as published; the
              model's own of now where they are not known. Expert 0 is always the model's own.
    """
    sizes = replace(sizes, experts=EXPERTS, router=router)
    own = model.qformer.query_tokens
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = build_experts(sizes).to(own.device)
    experts.share_queries(own)
    experts.begin_from(own if queries is None else queries)
    model.experts = experts
    return sizes


def trained_in(stage: str, model: MiniGPT3D) -> Callable[[str], bool]:
    """Which parameters of a `CaptionObjective` one of the four stages trains, by name."""
    if stage == "I":
        return lambda name: name.startswith("model.mlp.")
    if stage == "IV":
        return _experts(model).__contains__
    wanted = {f"model.qformer.{name}" for name in model.qformer.lora_and_norm_parameters()}
    wanted |= {f"model.llm.{name}" for name in language_parameters(model.llm)}
    return lambda name: name in wanted or name.startswith(("model.mlp.", "model.projector."))


def _experts(model: MiniGPT3D) -> set[str]:
    """The query experts, the first of which is the Q-Former's own queries, and their router."""
    if model.experts is None:
        raise ValueError("stage IV trains query experts, and this model has none")
    names = {f"model.experts.{name}" for name, _ in model.experts.named_parameters()}
    if model.experts.router == "constant":  # which no gradient reaches
        names = {name for name in names if ".query_router." not in name}
    return names | {"model.qformer.query_tokens"}
