"""Stage 1: python -m train.stage1 --preset nano. From random weights to a model that sees shapes.

It trains MiniGPT-3D as far as PointAlign takes it up: the priors that the published model begins
with, then its stages I, II and III. Stage IV, and every stage by itself, are a flag away:

    python -m train.stage1 --stages IV --from runs/stage1/checkpoint
    python -m train.stage1 --preset minigpt3d --weights DIR --data-root DIR --stages I,II

`train.stages` says what each stage is shown and trains.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from train.beginning import Begin, begin_sizes, begins_with, check_start, load_start
from train.cli import read_config, run
from train.config import STAGE1, Stage1Config

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from train.data.objects import DataSet, Objects
    from train.stages import Phase

DROPPED_OUT = {"off": (), "training": ("II", "III"), "always": ("II", "III", "IV")}
"""Stages with LoRA dropout in the Q-Former, by the setting of this name."""
NOT_PART_OF_A_RUN = (
    *("out", "config", "threads", "save_every", "data_root", "start", "weights", "llm"),
    *("cache", "gradient_checkpointing", "dry_run"),
)
"""Settings that may differ when an interrupted training goes on: they don't change its numbers, or
what they name is known by its hash."""


def main(config: Stage1Config) -> None:
    """Train the stages, measure on unseen objects, write the checkpoint."""
    from train.stages import parse_stages

    stages = parse_stages(config.stages)
    check_start(config, stages[0])
    if config.dry_run:
        describe(config, stages)
        return

    import torch

    from train.loop import launched, refuse_shards

    refuse_shards()
    if config.threads:
        torch.set_num_threads(config.threads)
    accelerator = launched(precision(config))
    with accelerator.main_process_first():  # it may have to make the data and the tokenizer
        data = load(config)
        begin = load_start(config, stages[0], data.train, precision(config))
    recipe = Recipe(config, begin, data.train, accelerator)
    if accelerator.is_main_process:
        recipe.check_same()
    for stage in stages:
        recipe.train(stage)
    if accelerator.is_main_process:
        recipe.finish(stages[-1], data.query)


def precision(config: Stage1Config) -> str:
    """Mixed precision of the training, in accelerate's words."""
    import torch

    from train.loop import bf16_in_hardware

    if config.precision != "auto":
        return config.precision
    if not torch.cuda.is_available():
        return "no"
    return "bf16" if bf16_in_hardware() else "fp16"


def load(config: Stage1Config) -> DataSet:
    """Train and query objects."""
    if config.data == "shapes":
        from train.data.shapes import shapes

        return shapes(
            config.data_root,
            seed=config.seed,
            train_per_class=config.train_per_class,
            gallery_per_class=config.query_per_class,
            query_per_class=config.query_per_class,
        )
    from train.data.objaverse import objaverse

    return objaverse(config.data_root, seed=config.seed, partial=config.skip_missing)


class Recipe:
    """One model on its way through the stages; each goes on where it was stopped."""

    def __init__(self, config: Stage1Config, begin: Begin, data: Objects, accelerator: Accelerator):
        from train.models.llm import checkpoint_blocks
        from train.provenance import provenance

        self.config, self.data, self.accelerator = config, data, accelerator
        self.model, self.tokenizer, self.sizes = begin.model, begin.tokenizer, begin.sizes
        self.first_queries = begin.first_queries
        self.encoded: Tensor | None = None
        self.seed = config.seed
        self.record = provenance(config, {"data": data.fingerprint()} | begin.hashes)
        self.model.to(accelerator.device)
        if config.gradient_checkpointing:
            checkpoint_blocks(self.model.llm)

    def check_same(self) -> None:
        """Refuse to go on with a training that began with other settings, data or weights."""
        settings = self.record["config"].items()
        own = {name: value for name, value in settings if name not in NOT_PART_OF_A_RUN}
        own |= self.record["hashes"]
        path = self.config.folder / "training" / "began.json"
        if path.is_file():
            before = json.loads(path.read_text())
            if wrong := [
                f"{name} was {before.get(name)}, now {own.get(name)}"
                for name in sorted(before.keys() | own.keys())
                if before.get(name) != own.get(name)
            ]:
                raise ValueError(
                    f"{self.config.folder} holds a training with other settings "
                    f"({'; '.join(wrong)}); repeat its command, or choose another --out"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own, indent=2) + "\n")

    def train(self, stage: str) -> None:
        """Train one stage, or the priors."""
        from train.stages import add_experts, plan

        if stage == "IV":
            if self.first_queries is None and self.accelerator.is_main_process:
                print("the checkpoint is without the queries before stage II: experts begin as now")
            self.sizes = add_experts(
                self.model, self.sizes, self.first_queries, self.config.router, self.config.seed
            )
        self.model.faithful(
            fps_start=self.config.fps_start,
            qformer_dropout=stage in DROPPED_OUT[self.config.qformer_dropout],
            neighbour_precision=self.config.neighbour_precision,
        )
        for phase in plan(stage, self.config):
            self._fit(phase)
        # What is measured and written is the same each time.
        self.model.faithful(
            fps_start="first",
            qformer_dropout=False,
            neighbour_precision=self.config.neighbour_precision,
        )
        if stage == "priors":
            self.first_queries = self.model.qformer.query_tokens.detach().cpu().clone()

    def finish(self, stage: str, query: Objects) -> None:
        """Measure, where the classes of the unseen objects are known, and write the checkpoint."""
        from train.checkpoint import save_model
        from train.classify import classify
        from train.frozen import target_all

        small = self.config.preset != "minigpt3d"
        if small:
            self.model.half().float()  # what ships is in half precision: that is what is measured
        self.model.eval()
        card = self.record | {"stage": stage}
        if self.config.data == "shapes":
            device = self.accelerator.device
            targets = target_all(self.model, query, self.sizes.points, device)
            result = classify(self.model, self.tokenizer, targets, query.labels, query.class_names)
            print(result.sentence("unseen objects of the embedded shapes"))
            card |= {"unseen": result.card()}
        folder = self.config.folder / "checkpoint"
        save_model(
            folder,
            self.model,
            self.tokenizer,
            self.sizes,
            card,
            half=small,
            first_queries=self.first_queries,
        )
        print(f"checkpoint: {folder}")

    def _fit(self, phase: Phase) -> None:
        import torch

        from train.checkpoint import train_only
        from train.loop import Training, fit
        from train.stages import learner

        config, steps = self.config, phase.schedule.steps
        batches = self._batches(phase)
        # The new heads of a prior are the same whether the phase before ran now or earlier.
        torch.manual_seed(self.seed)
        self.seed = config.seed * 1_000_003 + steps - 1  # that of its last step
        objective, wanted = learner(
            phase.name, self.model, self.sizes, encoded=self.encoded is not None
        )
        trained = train_only(objective, wanted)
        if self.accelerator.is_main_process:
            print(
                f"{phase.name}: {sum(trained.values()):,} parameters in {len(trained)} tensors, "
                f"{steps} steps"
            )
        training = Training(
            schedule=phase.schedule,
            clip=config.clip,
            seed=config.seed,
            save_every=config.save_every,
        )
        fit(
            phase.name,
            objective,
            batches,
            training,
            self.accelerator,
            config.folder / "training" / phase.name,
            config.folder / "metrics.jsonl",
        )

    def _batches(self, phase: Phase):
        from train.batches import Batches
        from train.frozen import encode_all
        from train.objectives import LanguageBatches, PatchBatches

        common: dict[str, Any] = {
            "size": phase.size,
            "seed": self.config.seed,
            "device": self.accelerator.device,
        }
        if phase.name == "language":
            return LanguageBatches(
                self.data.conversations, self.tokenizer, queries=self.sizes.queries, **common
            )
        if phase.name == "encoder":
            return PatchBatches(
                self.model.point_encoder,
                self.data,
                self.tokenizer,
                points=self.sizes.points,
                **common,
            )
        if self.config.cache and self.config.fps_start == "first" and self.encoded is None:
            self.encoded = encode_all(
                self.model, self.data, self.sizes.points, self.accelerator.device
            )
        return Batches(
            self.data.conversations,
            self._clouds if self.encoded is None else self.encoded,
            self.tokenizer,
            weights=phase.kinds,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            ids=self.data.ids,
            **common,
        )

    def _clouds(self, rows: Tensor) -> Tensor:
        import torch

        from train.frozen import kept_rows

        keep = kept_rows(self.data, self.sizes.points)
        return torch.from_numpy(self.data.points(rows.tolist())[:, keep])


def describe(config: Stage1Config, stages: list[str]) -> None:
    """Say what each phase would train, on what and how fast; nothing is read or written."""
    import torch

    from train.checkpoint import train_only
    from train.models.minigpt3d import build
    from train.stages import add_experts, learner, plan

    sizes = begin_sizes(config)
    print(f"begins with {begins_with(config, stages[0])}")
    with torch.device("meta"):
        model = build(sizes)
        for stage in stages:
            if stage == "IV":
                sizes = add_experts(model, sizes, None, config.router, config.seed)
            for phase in plan(stage, config):
                objective, wanted = learner(phase.name, model, sizes)
                trained, rate = train_only(objective, wanted), phase.schedule
                print(f"{phase.name}: {sum(trained.values()):,} parameters, {len(trained)} tensors")
                for part, (tensors, numbers) in by_part(trained).items():
                    print(f"  {part}: {numbers:,} in {tensors}")
                print(f"  batches of {in_words(phase)}")
                print(
                    f"  {rate.steps:,} steps, rate {rate.start:g} to {rate.peak:g} over the first "
                    f"{rate.warmup:,}, down to {rate.floor:g}"
                )
    print(f"checkpoint: {config.folder / 'checkpoint'}")


def in_words(phase: Phase) -> str:
    """The batches of a phase: how many conversations of which kind, and how often each."""
    if not phase.kinds:
        return f"{phase.size}"
    total = sum(phase.kinds.values())
    sizes = {k: phase.size if isinstance(phase.size, int) else phase.size[k] for k in phase.kinds}
    return ", or of ".join(
        f"{sizes[kind]} {kind} ({often} in {total})" for kind, often in phase.kinds.items()
    )


def by_part(trained: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Part of the model -> tensors and numbers of it that train."""
    parts: dict[str, tuple[int, int]] = {}
    for name, size in trained.items():
        part = ".".join(name.split(".")[: 2 if name.startswith("model.") else 1])
        tensors, numbers = parts.get(part, (0, 0))
        parts[part] = (tensors + 1, numbers + size)
    return parts


if __name__ == "__main__":
    run(main, read_config(STAGE1))
