"""One stage-2 run: its folder, its data and models, and the steps that fill it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from store.place import Place
from store.remote import Unreachable
from store.schema import STORE
from store.writer import RunWriter, create_run, resume_run
from train.alignment import Stage2Objective
from train.batches import MIX, Batches, Drawn
from train.capture import capture_objects
from train.captured import sample_table, shown_points
from train.checkpoint import train_only
from train.config import TRAINED, VARIANTS, ModelConfig, Stage2Config
from train.data.load import load_data
from train.data.objects import Objects
from train.forecast import check_said, describe, in_words, trains
from train.frozen import begin_cache, fill_cache, kept, kept_rows, kept_targets
from train.loop import Schedule, Training, bf16_in_hardware, fit, launched, refuse_shards
from train.models.minigpt3d import MiniGPT3D, set_switches
from train.prompts import prefix, prefix_text
from train.provenance import provenance
from train.record import (
    check_elsewhere,
    check_new,
    check_same,
    is_new,
    read_record,
    write_record,
)
from train.start import load_start
from train.variants import Variants, checkpoint_of, keep

NOT_PART_OF_A_RUN = (
    *("out", "config", "threads", "dry_run", "save_every", "log_every", "data_root"),
    *("weights", "stage1", "cache", "gradient_checkpointing"),
)
"""Settings that may differ when an interrupted run goes on: they don't change its numbers, or
what they name is known by its hash."""
FEWEST = 5
"""Objects to query, for the jackknife of CKA; and in the gallery, for the folds of the maps."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stage2Run:
    """A run in its folder; every step goes on where an interrupted one stopped."""

    def __init__(self, config: Stage2Config, sizes: ModelConfig, layers: list[int]):
        self.config, self.sizes, self.layers = config, sizes, layers
        self.folder = config.folder
        refuse_shards()
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = launched(self._precision())
        self.process = self.accelerator.process_index
        self.processes = self.accelerator.num_processes
        self.console = Console(quiet=not self.accelerator.is_main_process)
        if not config.dry_run:
            check_new(self.folder)
            check_elsewhere(self.folder, config.store)
        with self.accelerator.main_process_first():  # it may have to make the data
            self.data = load_data(config)
        self._check_neighbours()
        self.proofs: dict[str, dict[str, str]] = read_record(self.folder).get("proofs", {})

    def load(self) -> None:
        """Read the model that the run begins with; refuse a folder begun with something else."""
        dtype = DTYPES[self._precision()]
        begin = load_start(self.config, self.sizes, dtype)
        self.model, self.tokenizer = begin.model, begin.tokenizer
        for line in begin.files:
            self.console.print(f"weights: {line}")
        set_switches(self.model, self.config)
        check_said(self.config, self.sizes, self.data, self.tokenizer)
        self.models = Variants(self.model, self.config, self.sizes)
        splits = {"train": self.data.train, "gallery": self.data.gallery, "query": self.data.query}
        digests = {name: objects.fingerprint() for name, objects in splits.items()}
        self.record = provenance(self.config, begin.hashes | digests)
        check_same(self.folder, self.record, NOT_PART_OF_A_RUN)

    def describe(self) -> None:
        """Say what the run would do and cost, and change nothing.

        A published model is meant for a GPU: what it takes there is said where there is none, too.
        """
        card = self.config.preset == "minigpt3d"
        describe(
            self.config,
            self.sizes,
            self.layers,
            self.data,
            dtype=DTYPES[self._precision(card)],
            processes=self.processes,
            say=self.console.print,
        )

    def start(self) -> None:
        """Make the folder, run the frozen front once for each object, lay out the store.

        The processes share the objects. What the main process can't make leaves no new folder
        behind: nothing in it would be worth going on from, unless part of it is elsewhere already.
        """
        main, new = self.accelerator.is_main_process, is_new(self.folder)
        self.accelerator.wait_for_everyone()  # all have looked at the folder before it changes
        try:
            with self.accelerator.main_process_first():
                if main:
                    self._lay_out()
            self._encode()
            self.accelerator.wait_for_everyone()  # the caches are whole
            with self.accelerator.main_process_first():
                writer = self.writer
            self._store_front(writer)
        except Exception as error:
            if main and new and not self._begun_elsewhere(error):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()

    def _begun_elsewhere(self, error: Exception) -> bool:
        """Whether the store that this run has begun lies behind --store, or may: only this folder
        can go on with it."""
        if isinstance(error, Unreachable):
            return True
        return bool(self.config.store) and Place(self.place).exists(f"{STORE}/zarr.json")

    @property
    def cached(self) -> bool:
        """Whether training reads targets computed once: not where the front draws at random."""
        return self.config.cache and not self.config.stochastic_front

    def _lay_out(self) -> None:
        """The folder, its record, and room for what the frozen front makes of each object."""
        write_record(self.folder, self.record | {"status": "running", "proofs": self.proofs})
        self.console.print(f"data: {in_words(self.data)}; run: {self.folder}")
        switches = (self.config.fps_start, self.config.qformer_dropout)
        key = json.dumps(
            [self.record["hashes"], *switches, self.config.neighbour_precision], sort_keys=True
        )
        for name, objects in self._encoded.items():
            begin_cache(self._cache(name), key, self.model, objects, seen=name != "train")

    def _encode(self) -> None:
        self.model.to(self.accelerator.device)
        for name, objects in self._encoded.items():
            fill_cache(
                self._cache(name),
                self.model,
                objects,
                self.sizes.points,
                self.accelerator.device,
                self.config.seed,
                process=self.process,
                processes=self.processes,
            )

    def _store_front(self, writer: RunWriter) -> None:
        """Append the targets, and what the front looked at, where they are not there yet."""
        for name, parts, append in (
            ("target", ["target"], writer.append_target),
            ("encoder", ["encoder"], writer.append_encoder),
            ("attention", ["weights", "centres"], writer.append_attention),
        ):
            if left := list(writer.pending(name, self.process, self.processes)):
                tables = [self._seen(part) for part in parts]
                for rows in left:
                    append(rows, *(table[rows].numpy() for table in tables))

    def train(self, variant: str) -> None:
        """Train one of the two models from the weights of the start; its last state is kept."""
        self.models.begin()
        weight = self.config.align_weight if variant == "aligned" else 0.0
        objective = Stage2Objective(self.model, self.config, weight)
        train_only(objective, trains(objective))
        objective.to(self.accelerator.device)
        folder = checkpoint_of(self.folder, variant)
        fit(
            variant,
            objective,
            self._batches(),
            self._training(),
            self.accelerator,
            folder,
            self.folder / "metrics.jsonl",
            watch=lambda step: self._watch(variant, step),
        )
        if self.accelerator.is_main_process:
            keep(objective, folder)
        self.accelerator.wait_for_everyone()

    def _watch(self, variant: str, step: int) -> None:
        """With --capture-every, capture the model as it is after this step of its training."""
        every = self.config.capture_every
        if every and step % every == 0:
            self._append_states(self.model, variant, step)
            self.accelerator.wait_for_everyone()

    def _batches(self) -> Callable[[int], Drawn]:
        """The batches of a step, with targets from the cache or computed on the way."""
        config, objects = self.config, self.data.train
        batches = Batches(
            objects.conversations,
            kept_targets(self._cache("train")) if self.cached else self._clouds,
            self.tokenizer,
            weights=MIX,
            size=config.batch_sizes,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            seed=config.seed,
            device=self.accelerator.device,
            accumulate=config.accumulate,
            template=config.single_turn_template,
            process=self.process,
            processes=self.processes,
            ids=objects.ids,
        )
        if self.cached:
            return batches

        @torch.no_grad()
        def encoded(index: int) -> Drawn:
            drawn = batches(index)
            return replace(drawn, shown=self.model.encode(drawn.shown))

        return encoded

    def _clouds(self, rows: Tensor) -> Tensor:
        keep = kept_rows(self.data.train, self.sizes.points)
        return torch.from_numpy(self.data.train.points(rows.tolist())[:, keep])

    def capture(self, variant: str) -> None:
        """Append the point tokens of one model to the store, where they are not there yet."""
        if not (self.config.capture_every and variant in TRAINED):  # captured while it trained
            with self.models.captured(variant) as model:
                self._append_states(model.to(self.accelerator.device), variant)
        self.accelerator.wait_for_everyone()

    def _append_states(self, model: MiniGPT3D, variant: str, step: int | None = None) -> None:
        """The rows of this process."""
        proofs = capture_objects(
            model.eval(),
            self.captured,
            prefix(self.tokenizer, self.sizes.queries),
            self.layers,
            self.writer,
            variant,
            step=step,
            share=(self.process, self.processes),
        )
        if proofs and self.accelerator.is_main_process:  # none where all its rows were there
            self.proofs[variant] = proofs
            running = {"status": "running", "proofs": self.proofs}
            write_record(self.folder, self.record | running)

    def measure(self) -> None:
        """Run the probes over the finished store; print the table, draw the pictures."""
        from probe.plots import save_depth_html, save_depth_png
        from probe.report import print_table, progress_bar
        from probe.sweep import sweep
        from store import open_run

        self.writer.finish()
        captured = open_run(self.place)
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
        """Record that the run is complete, write its report and say where everything is."""
        from probe.page import write_report
        from store import open_run

        done = {"status": "complete", "seconds": round(seconds, 1), "proofs": self.proofs}
        write_record(self.folder, self.record | done)
        report, _ = write_report(open_run(self.place), self.folder)
        say = self.console.print
        say(f"\nrun      {self.folder}", soft_wrap=True)
        say(f"picture  {self.folder / 'depth.png'}", soft_wrap=True)
        say(f"page     {self.folder / 'depth.html'}", soft_wrap=True)
        say(f"report   {report}", soft_wrap=True)
        say(f"open     python -m webbrowser -t {report}", soft_wrap=True)
        say(f"more     python -m probe {self.place}", soft_wrap=True)
        say(f"in words python -m train.explain {self.folder}", soft_wrap=True)
        if self.config.store:
            say(f"states   {self.place}", soft_wrap=True)
        else:
            say(f"explore  streamlit run dashboards/app.py -- {self.folder.parent}", soft_wrap=True)
        say(f"took     {seconds:.0f} s")

    def _check_neighbours(self) -> None:
        if (most := max(self.config.ks)) > len(self.data.gallery):
            raise ValueError(
                f"--neighbours {self.config.neighbours}: K={most} is more than the gallery's "
                f"{len(self.data.gallery)} objects"
            )
        for name, objects in (("query", self.data.query), ("gallery", self.data.gallery)):
            if len(objects) < FEWEST:
                raise ValueError(
                    f"the data has {len(objects)} {name} objects; the probes need {FEWEST} or more"
                )

    def _precision(self, card: bool = False) -> str:
        """Mixed precision in accelerate's words; with `card`, on a GPU even if none is here."""
        if self.config.precision != "auto":
            return self.config.precision
        here = torch.cuda.is_available()
        if not here and not card:
            return "no"
        older = here and not bf16_in_hardware()
        return "fp16" if older or self.config.recipe == "release" else "bf16"

    def _training(self) -> Training:
        config = self.config
        schedule = Schedule(
            steps=config.steps,
            warmup=config.warmup_steps,
            start=config.warmup_rate,
            peak=config.learning_rate,
            floor=config.floor_rate,
            decay=config.decay,
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

    def _cache(self, split: str) -> Path:
        return self.folder / "cache" / f"{split}.npy"

    @property
    def _encoded(self) -> dict[str, Objects]:
        """The splits of which the frozen front is run beforehand."""
        captured = {"gallery": self.data.gallery, "query": self.data.query}
        return {"train": self.data.train, **captured} if self.cached else captured

    @cached_property
    def captured(self) -> Tensor:
        """Targets of gallery and query, (samples, queries, width), in the order of the store."""
        return self._seen("target")

    def _seen(self, part: str) -> Tensor:
        return torch.cat([kept(self._cache(name), part) for name in ("gallery", "query")])

    @property
    def place(self) -> str | Path:
        """Where the states go."""
        return self.config.store or self.folder

    @cached_property
    def writer(self) -> RunWriter:
        """Of the store, which the main process makes before the others ask for it."""
        every = self.config.capture_every
        steps = range(every, self.config.steps + 1, every) if every else ()
        plan: dict[str, Any] = {
            "samples": sample_table(self.data),
            "layers": self.layers,
            "variants": VARIANTS,
            "tokens": self.sizes.queries,
            "dim": self.sizes.llm_width,
            "target_dim": self.sizes.qformer_width,
            "points": shown_points(self.data),
            "encoder_dim": 2 * self.sizes.encoder_width,
            "patches": self.sizes.groups,
            "steps": {variant: list(steps) for variant in TRAINED} if steps else None,
            "dtype": self.config.capture_dtype,
            "provenance": {name: self.record[name] for name in ("hashes", "seed")}
            | {"prefix": prefix_text()},
        }
        if self.accelerator.is_main_process:
            return create_run(self.place, **plan, resume=True)
        return resume_run(self.place, process=self.process, **plan)
