"""One stage-2 run: its folder, its data and models, and the steps that fill it."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from peft import PeftModel
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from store.writer import RunWriter, create_run
from train.batches import MIX, Batches
from train.budget import MIB, SHOWN_POINTS, store_bytes, training_memory
from train.capture import capture_hidden_states, capture_objects
from train.checkpoint import load_model, sha256, train_only, write_tensors
from train.config import VARIANTS, ModelConfig, Stage2Config
from train.data.load import load_data
from train.data.objects import DataSet
from train.frozen import target_all
from train.loop import Schedule, Training, fit, trained_tensors
from train.losses import AlignmentProjector, alignment_loss
from train.models.minigpt3d import MiniGPT3D, build
from train.models.phi import bare
from train.objectives import language_parameters
from train.prompts import prefix
from train.provenance import provenance

UNTRAINED_SEED = 1_000_000
"""Added to the seed for the weights of the untrained LLM, which no training has seen."""
NOT_PART_OF_A_RUN = ("out", "config", "threads", "dry_run", "save_every", "log_every", "data_root")
"""Settings that may differ when an interrupted run goes on: they don't change its numbers."""


class Stage2Objective(nn.Module):
    """Next-token loss and, with a weight, the alignment of one layer's point tokens."""

    def __init__(self, model: MiniGPT3D, config: Stage2Config, weight: float):
        super().__init__()
        self.model, self.weight = model, weight
        self.layer, self.kind = config.align_layer, config.align_loss
        self.alignment_projector = None
        if weight:
            hidden = bare(model.llm).config.hidden_size
            target = model.qformer.query_tokens.shape[-1]
            # Its own generator: the dropouts of both models then see the same random numbers.
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                self.alignment_projector = AlignmentProjector(
                    hidden, target, config.align_projector_layers
                )

    def forward(self, batch) -> dict[str, Tensor]:
        """batch : `train.batches.Drawn`, showing targets (samples, queries, width)."""
        if self.alignment_projector is None:
            loss = self.model(batch.tokens, target=batch.shown).loss
            return {"loss": loss, "ntp_loss": loss.detach()}
        mask = batch.tokens.point_mask
        with capture_hidden_states(self.model.llm, [self.layer], mask, detach=False) as states:
            ntp = self.model(batch.tokens, target=batch.shown).loss
        projected = self.alignment_projector(states[self.layer])
        align = alignment_loss(projected, batch.shown, self.kind)
        return {
            "loss": ntp + self.weight * align,
            "ntp_loss": ntp.detach(),
            "align_loss": align.detach(),
        }


class Stage2Run:
    """A run in its folder; every step goes on where an interrupted one stopped."""

    def __init__(
        self, config: Stage2Config, checkpoint: Path, sizes: ModelConfig, layers: list[int]
    ):
        self.config, self.sizes, self.layers = config, sizes, layers
        self.folder = config.folder
        self.console = Console()
        if config.threads:
            torch.set_num_threads(config.threads)
        self._check_folder()
        self.start_model, self.tokenizer, _ = load_model(checkpoint)
        self.data = load_data(config)
        self.accelerator = Accelerator(mixed_precision=self._precision())
        self.record = provenance(
            config,
            {
                "stage1": sha256(checkpoint / "model.safetensors"),
                "train": self.data.train.fingerprint(),
                "gallery": self.data.gallery.fingerprint(),
                "query": self.data.query.fingerprint(),
            },
        )
        self._check_same()
        self._check_neighbours()

    def describe(self) -> None:
        """Say what the run would do and cost, and change nothing."""
        objective = Stage2Objective(self.start_model, self.config, self.config.align_weight)
        trained = train_only(objective, self._trains(objective))
        objects = len(self.data.gallery) + len(self.data.query)
        parameters = sum(p.numel() for p in objective.parameters())
        count = sum(trained.values())
        memory = training_memory(self.config, self.sizes, parameters, count)
        size = store_bytes(self.config, self.sizes, len(self.layers), objects, len(VARIANTS))
        say = self.console.print
        say(f"run        {self.folder}")
        say(f"data       {_sizes(self.data)}")
        say(f"trains     {count:,} of {parameters:,} parameters, {len(trained)} tensors:")
        for name, (tensors, numbers) in _by_part(trained).items():
            say(f"             {name}: {numbers:,} in {tensors} tensors")
        say("           the baseline the same, without the alignment projector")
        say(f"steps      {self.config.steps} of {self.config.batch_size} conversations, each model")
        say(f"layers     {', '.join(map(str, self.layers))}; aligned at {self.config.align_layer}")
        say(f"memory     about {memory / MIB:,.0f} MiB for training, estimated")
        say(f"store      {size / MIB:,.0f} MiB before compression, {objects} objects")

    def start(self) -> None:
        """Make the folder, run the frozen front once for each object, lay out the store.

        A failure in here leaves no new folder behind: nothing in it would be worth going on from.
        """
        new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lay_out()
        except BaseException:
            if new:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _lay_out(self) -> None:
        self._write_record(status="running")
        self.console.print(f"data: {_sizes(self.data)}; run: {self.folder}")
        self.targets = self._targets()
        self.captured = torch.cat([self.targets["gallery"], self.targets["query"]])
        self.writer = self._store()
        for start in range(self.writer.done("target"), len(self.captured), self.writer.chunk):
            rows = slice(start, min(start + self.writer.chunk, len(self.captured)))
            self.writer.append_target(rows, self.captured[rows].numpy())

    def train(self, variant: str) -> None:
        """Train one of the two models from the stage-1 weights; its last state is kept."""
        model = deepcopy(self.start_model)
        weight = self.config.align_weight if variant == "aligned" else 0.0
        objective = Stage2Objective(model, self.config, weight)
        train_only(objective, self._trains(objective))
        objective.to(self.accelerator.device)
        batches = Batches(
            self.data.train.conversations,
            self.targets["train"],
            self.tokenizer,
            weights=MIX,
            size=self.config.batch_size,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            seed=self.config.seed,
            device=self.accelerator.device,
        )
        folder = self.folder / "checkpoints" / variant
        metrics = self.folder / "metrics.jsonl"
        fit(variant, objective, batches, self._training(), self.accelerator, folder, metrics)
        self._keep(objective, folder)

    def capture(self, variant: str) -> None:
        """Append the point tokens of one model to the store, where they are not there yet."""
        if self.writer.done(variant) == self.writer.samples:
            return
        model = self._model(variant).to(self.accelerator.device).eval()
        start = prefix(self.tokenizer, self.sizes.queries)
        capture_objects(model, self.captured, start, self.layers, self.writer, variant)

    def measure(self) -> None:
        """Run the probes over the finished store; print the table, draw the pictures."""
        from probe.plots import save_depth_html, save_depth_png
        from probe.report import print_table, progress_bar
        from probe.sweep import sweep
        from store import open_run

        self.writer.finish()
        captured = open_run(self.folder)
        with progress_bar() as progress:
            self.scores = sweep(
                captured, k=tuple(self.config.ks), seed=self.config.seed, progress=progress
            )
        captured.write_probe("sweep", self.scores)
        self.console.print()
        print_table(self.scores, self.console)
        save_depth_png(self.scores, self.folder / "depth.png")
        save_depth_html(self.scores, self.folder / "depth.html")

    def finish(self, seconds: float) -> None:
        """Record that the run is complete and say where everything is."""
        self._write_record(status="complete", seconds=round(seconds, 1))
        say = self.console.print
        say(f"\nrun      {self.folder}", soft_wrap=True)
        say(f"picture  {self.folder / 'depth.png'}", soft_wrap=True)
        say(f"page     {self.folder / 'depth.html'}", soft_wrap=True)
        say(f"open     python -m webbrowser -t {self.folder / 'depth.html'}", soft_wrap=True)
        say(f"explore  streamlit run dashboards/app.py -- {self.folder.parent}", soft_wrap=True)
        say(f"took     {seconds:.0f} s")

    def _check_folder(self) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        path = self.folder / "run.json"
        if not path.is_file():
            raise FileExistsError(
                f"{self.folder} exists and is no run of ours; choose another --out"
            )
        if json.loads(path.read_text()).get("status") == "complete":
            raise FileExistsError(
                f"{self.folder} already holds a complete run; see it with python -m probe "
                f"{self.folder}, or choose another --out"
            )

    def _check_same(self) -> None:
        """An interrupted run goes on only with the settings, data and weights it began with."""
        path = self.folder / "run.json"
        if not path.is_file():
            return
        before = json.loads(path.read_text())
        differences = [
            f"{name} was {old[name]}, now {new.get(name)}"
            for old, new in (
                (before["config"], self.record["config"]),
                (before["hashes"], self.record["hashes"]),
            )
            for name in old
            if name not in NOT_PART_OF_A_RUN and old[name] != new.get(name)
        ]
        if differences:
            raise ValueError(
                f"{self.folder} holds an interrupted run with other settings "
                f"({'; '.join(differences)}); repeat its command, or choose another --out"
            )

    def _check_neighbours(self) -> None:
        if (most := max(self.config.ks)) > len(self.data.gallery):
            raise ValueError(
                f"--neighbours {self.config.neighbours}: K={most} is more than the gallery's "
                f"{len(self.data.gallery)} objects"
            )

    def _precision(self) -> str:
        if self.config.precision != "auto":
            return self.config.precision
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"

    def _trains(self, objective: Stage2Objective):
        wanted = {f"model.llm.{name}" for name in language_parameters(objective.model.llm)}
        return lambda name: name in wanted or name.startswith("alignment_projector.")

    def _training(self) -> Training:
        config = self.config
        schedule = Schedule(
            steps=config.steps,
            warmup=config.warmup_steps,
            start=config.warmup_rate,
            peak=config.learning_rate,
            floor=config.floor_rate,
        )
        return Training(
            schedule=schedule,
            decay=config.weight_decay,
            clip=config.clip,
            accumulate=config.accumulate,
            seed=config.seed,
            log_every=config.log_every,
            save_every=config.save_every,
        )

    def _targets(self) -> dict[str, Tensor]:
        """Q-Former outputs of the three splits, computed once and kept with the run."""
        path = self.folder / "cache" / "targets.safetensors"
        splits = {"train": self.data.train, "gallery": self.data.gallery, "query": self.data.query}
        key = json.dumps(self.record["hashes"], sort_keys=True)
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return load_file(path)
        device = self.accelerator.device
        model = self.start_model.to(device)
        targets = {
            name: target_all(model, objects, self.sizes.points, device)
            for name, objects in splits.items()
        }
        self.start_model.to("cpu")
        write_tensors(path, targets, {"key": key})
        return targets

    def _store(self) -> RunWriter:
        parts = {"gallery": self.data.gallery, "query": self.data.query}
        names = self.data.query.class_names
        samples = {
            "id": [name for part in parts.values() for name in part.ids],
            "label": np.concatenate([part.labels for part in parts.values()]),
            "class_name": [names[label] for part in parts.values() for label in part.labels],
            "split": [split for split, part in parts.items() for _ in part.ids],
            "caption": [caption for part in parts.values() for caption in part.captions],
        }
        keep = _even_rows(self.data.query.count)
        points = [
            part.points([row])[:, keep] for part in parts.values() for row in range(len(part))
        ]
        return create_run(
            self.folder,
            samples=samples,
            layers=self.layers,
            variants=VARIANTS,
            tokens=self.sizes.queries,
            dim=self.sizes.llm_width,
            target_dim=self.sizes.qformer_width,
            points=np.concatenate(points),
            dtype=self.config.capture_dtype,
            provenance={name: self.record[name] for name in ("hashes", "seed")},
            resume=True,
        )

    def _model(self, variant: str) -> MiniGPT3D:
        """The model that is captured under this name."""
        if variant == "stage1":
            return self.start_model
        if variant == "untrained":
            fresh = build(
                self.sizes,
                seed=UNTRAINED_SEED + self.config.seed,
                branch_scale=self.sizes.llm_branch_scale,
            )
            model = deepcopy(self.start_model)
            model.llm = fresh.llm
            return model
        model = deepcopy(self.start_model)
        tensors = load_file(self.folder / "checkpoints" / variant / "model.safetensors")
        own = model.state_dict()
        own |= {
            name.removeprefix("model."): tensor
            for name, tensor in tensors.items()
            if name.startswith("model.")
        }
        model.load_state_dict(own)
        return model

    def _keep(self, objective: Stage2Objective, folder: Path) -> None:
        """Write what was trained, and the adapter in the form that stock peft loads."""
        if not self.accelerator.is_main_process:
            return
        tensors = {name: tensor.cpu() for name, tensor in trained_tensors(objective).items()}
        write_tensors(folder / "model.safetensors", tensors)
        llm = objective.model.llm
        assert isinstance(llm, PeftModel)
        llm.save_pretrained(str(folder / "adapter"))

    def _write_record(self, **changes: Any) -> None:
        path = self.folder / "run.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(self.record | changes, indent=2) + "\n")
        fresh.replace(path)


def _even_rows(count: int) -> np.ndarray:
    """The rows of a cloud that are kept for looking at: the same for all, evenly drawn."""
    return np.sort(np.random.default_rng(0).permutation(count)[:SHOWN_POINTS])


def _sizes(data: DataSet) -> str:
    return (
        f"{data.name}: {len(data.train)} objects to train on, gallery {len(data.gallery)}, "
        f"query {len(data.query)}, {len(data.query.class_names)} classes"
    )


def _by_part(trained: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Kind of weight -> tensors and numbers."""
    kinds: dict[str, tuple[int, int]] = {}
    for name, size in trained.items():
        if name.startswith("alignment_projector"):
            kind = "alignment projector"
        else:
            kind = "LLM LoRA" if "lora_" in name else "LLM norms"
        tensors, numbers = kinds.get(kind, (0, 0))
        kinds[kind] = (tensors + 1, numbers + size)
    return kinds
