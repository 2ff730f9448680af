"""One stage-2 run: its folder, its data and models, and the steps that fill it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from peft import PeftModel
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn

from store.writer import RunWriter, create_run
from train.alignment import Stage2Objective
from train.batches import MIX, Batches, Drawn, check_lengths
from train.budget import LENGTHS, MIB, lengths_of, store_bytes, training_memory
from train.capture import capture_objects
from train.captured import sample_table, shown_points, store_front
from train.checkpoint import read_tensors, train_only, write_tensors
from train.config import TRAINED, VARIANTS, ModelConfig, Stage2Config
from train.data.load import load_data
from train.data.objects import DataSet
from train.frozen import keep_targets, kept_rows, kept_targets
from train.loop import Schedule, Training, fit, trained_tensors
from train.models.llm import add_lora, build_llm, hold_in, read_tokenizer, set_attention
from train.models.minigpt3d import MiniGPT3D, build, set_switches
from train.objectives import language_parameters
from train.prompts import prefix
from train.provenance import provenance
from train.published_files import find_files
from train.record import check_new, check_same, read_record, write_record
from train.start import load_start, starting_folder

UNTRAINED_SEED = 1_000_000
"""Added to the seed for the weights of the untrained LLM, which no training has seen."""
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
        if config.threads:
            torch.set_num_threads(config.threads)
        # Who is not the main process waits for it while it encodes and captures: hours at most.
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=24))
        self.accelerator = Accelerator(
            # Told so, accelerate lets several processes share a machine without a GPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=self._precision(),
            kwargs_handlers=[patience],
        )
        self.console = Console(quiet=not self.accelerator.is_main_process)
        check_new(self.folder)
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
        self._check_lengths(self.tokenizer)
        learning = language_parameters(self.model.llm)
        self.beginning = {
            f"llm.{name}": tensor.detach().clone()
            for name, tensor in self.model.llm.named_parameters()
            if name in learning
        }
        splits = {"train": self.data.train, "gallery": self.data.gallery, "query": self.data.query}
        digests = {name: objects.fingerprint() for name, objects in splits.items()}
        self.record = provenance(self.config, begin.hashes | digests)
        check_same(self.folder, self.record, NOT_PART_OF_A_RUN)

    def describe(self) -> None:
        """Say what the run would do and cost, and change nothing; no weight is read for it."""
        dtype = DTYPES[self._precision()]
        with torch.device("meta"):
            model = build(self.sizes)
            objective = Stage2Objective(model, self.config, self.config.align_weight)
        if self.config.preset == "minigpt3d":
            hold_in(model.llm, dtype)
        set_switches(model, self.config)
        trained = train_only(objective, self._trains(objective))
        objects = len(self.data.gallery) + len(self.data.query)
        parameters = sum(p.numel() for p in objective.parameters())
        count = sum(trained.values())
        half = None if dtype == torch.float32 else dtype
        processes = self.accelerator.num_processes
        memory = training_memory(
            objective, self.config, half=half, lengths=self._lengths(), processes=processes
        )
        size = store_bytes(self.config, self.sizes, len(self.layers), objects, len(VARIANTS))
        say = self.console.print
        say(f"run        {self.folder}")
        say(f"data       {_sizes(self.data)}")
        say(f"weights    {self._weights()}", soft_wrap=True)
        say(f"trains     {count:,} of {parameters:,} parameters, {len(trained)} tensors:")
        for name, (tensors, numbers) in _by_part(trained).items():
            say(f"             {name}: {numbers:,} in {tensors} tensors")
        say("           the baseline the same, without the alignment projector")
        sizes = sorted(set(self.config.batch_sizes.values()))
        batch = " to ".join(str(size) for size in dict.fromkeys((sizes[0], sizes[-1])))
        say(f"steps      {self.config.steps} of {batch} conversations, each model")
        say(f"layers     {', '.join(map(str, self.layers))}; aligned at {self.config.align_layer}")
        say("memory     of training, computed from the shapes:")
        for line in memory.lines():
            say(f"             {line}", soft_wrap=True)
        say(f"store      {size / MIB:,.0f} MiB before compression, {objects} objects")

    def _weights(self) -> str:
        """What the run would begin with, or what of it is not there."""
        if not self.config.weights:
            return str(starting_folder(self.config))
        try:
            return ", ".join(map(str, find_files(self.config.weights, self.config.start).values()))
        except FileNotFoundError as error:
            return f"NOT COMPLETE: {error}"

    def _lengths(self) -> dict[str, tuple[int, int]]:
        """Tokens of the longest conversations, where there is a tokenizer to count them with."""
        folder = starting_folder(self.config)
        path = folder / ("Phi_2/tokenizer.json" if self.config.weights else "tokenizer.json")
        if not path.is_file():
            return LENGTHS
        tokenizer, sizes = read_tokenizer(path), self.sizes
        self._check_lengths(tokenizer)
        said = (each for each in self.data.train.conversations if each.kind in MIX)
        found = lengths_of(said, tokenizer, queries=sizes.queries, context=sizes.llm_context)
        return LENGTHS | found

    def _check_lengths(self, tokenizer: Tokenizer) -> None:
        check_lengths(
            [each for each in self.data.train.conversations if each.kind in MIX],
            tokenizer,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            template=self.config.single_turn_template,
            ids=self.data.train.ids,
        )

    def start(self) -> None:
        """Make the folder, run the frozen front once for each object, lay out the store.

        A failure in here leaves no new folder behind: nothing in it would be worth going on from.
        """
        self.accelerator.wait_for_everyone()  # all have looked at the folder before it changes
        if self.accelerator.is_main_process:
            new = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lay_out()
            except BaseException:
                if new:
                    shutil.rmtree(self.folder, ignore_errors=True)
                raise
        self.accelerator.wait_for_everyone()
        splits = ("train", "gallery", "query") if self.cached else ("gallery", "query")
        self.targets = {name: kept_targets(self._cache(name)) for name in splits}

    @property
    def cached(self) -> bool:
        """Whether training reads targets computed once: not where the front draws at random."""
        return self.config.cache and not self.config.stochastic_front

    def _lay_out(self) -> None:
        write_record(self.folder, self.record | {"status": "running", "proofs": self.proofs})
        self.console.print(f"data: {_sizes(self.data)}; run: {self.folder}")
        self.model.to(self.accelerator.device)
        parts = {"train": self.data.train, "gallery": self.data.gallery, "query": self.data.query}
        switches = (self.config.fps_start, self.config.qformer_dropout)
        key = json.dumps(
            [self.record["hashes"], *switches, self.config.neighbour_precision], sort_keys=True
        )
        for name, objects in parts.items():
            if name != "train" or self.cached:
                keep_targets(
                    self._cache(name),
                    key,
                    self.model,
                    objects,
                    self.sizes.points,
                    self.accelerator.device,
                    self.config.seed,
                )
        writer = self.writer
        for start in range(writer.done("target"), writer.samples, writer.chunk):
            rows = slice(start, min(start + writer.chunk, writer.samples))
            writer.append_target(rows, self.captured[rows].numpy())
        store_front(self.model, self.data, writer, self.sizes.points)

    def train(self, variant: str) -> None:
        """Train one of the two models from the weights of the start; its last state is kept."""
        self._put(self.beginning)
        weight = self.config.align_weight if variant == "aligned" else 0.0
        objective = Stage2Objective(self.model, self.config, weight)
        train_only(objective, self._trains(objective))
        objective.to(self.accelerator.device)
        folder = self.folder / "checkpoints" / variant
        metrics = self.folder / "metrics.jsonl"
        fit(
            variant,
            objective,
            self._batches(),
            self._training(),
            self.accelerator,
            folder,
            metrics,
            watch=lambda step: self._watch(variant, step),
        )
        self._keep(objective, folder)

    def _watch(self, variant: str, step: int) -> None:
        """With --capture-every, capture the model as it is after this step of its training."""
        every = self.config.capture_every
        if every and step % every == 0:
            if self.accelerator.is_main_process:
                self._append_states(self.model, variant, step)
            self.accelerator.wait_for_everyone()

    def _batches(self) -> Callable[[int], Drawn]:
        """The batches of a step, with targets from the cache or computed on the way."""
        config, objects = self.config, self.data.train
        batches = Batches(
            objects.conversations,
            self.targets["train"] if self.cached else self._clouds,
            self.tokenizer,
            weights=MIX,
            size=config.batch_sizes,
            queries=self.sizes.queries,
            context=self.sizes.llm_context,
            seed=config.seed,
            device=self.accelerator.device,
            accumulate=config.accumulate,
            template=config.single_turn_template,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
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
        watched = self.config.capture_every and variant in TRAINED  # captured while it trained
        if self.accelerator.is_main_process and not watched:
            with self._as(variant) as model:
                self._append_states(model.to(self.accelerator.device), variant)
        self.accelerator.wait_for_everyone()

    def _append_states(self, model: MiniGPT3D, variant: str, step: int | None = None) -> None:
        if self.writer.done(variant, step) == self.writer.samples:
            return
        start = prefix(self.tokenizer, self.sizes.queries)
        proofs = capture_objects(
            model.eval(), self.captured, start, self.layers, self.writer, variant, step=step
        )
        if proofs:  # none where a stopped capture had only its last rows to write
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
        """Record that the run is complete, write its report and say where everything is."""
        from probe.page import write_report
        from store import open_run

        done = {"status": "complete", "seconds": round(seconds, 1), "proofs": self.proofs}
        write_record(self.folder, self.record | done)
        report, _ = write_report(open_run(self.folder))
        say = self.console.print
        say(f"\nrun      {self.folder}", soft_wrap=True)
        say(f"picture  {self.folder / 'depth.png'}", soft_wrap=True)
        say(f"page     {self.folder / 'depth.html'}", soft_wrap=True)
        say(f"report   {report}", soft_wrap=True)
        say(f"open     python -m webbrowser -t {report}", soft_wrap=True)
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

    def _precision(self) -> str:
        if self.config.precision != "auto":
            return self.config.precision
        if not torch.cuda.is_available():
            return "no"
        released = self.config.recipe == "release"
        return "fp16" if released or not torch.cuda.is_bf16_supported() else "bf16"

    def _trains(self, objective: Stage2Objective):
        wanted = {f"model.llm.{name}" for name in language_parameters(objective.model.llm)}
        return lambda name: name in wanted or name.startswith("alignment_")

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

    @cached_property
    def captured(self) -> Tensor:
        """Targets of gallery and query, (samples, queries, width), in the order of the store."""
        return torch.cat([kept_targets(self._cache(name)) for name in ("gallery", "query")])

    @cached_property
    def writer(self) -> RunWriter:
        every = self.config.capture_every
        steps = range(every, self.config.steps + 1, every) if every else ()
        return create_run(
            self.folder,
            samples=sample_table(self.data),
            layers=self.layers,
            variants=VARIANTS,
            tokens=self.sizes.queries,
            dim=self.sizes.llm_width,
            target_dim=self.sizes.qformer_width,
            points=shown_points(self.data),
            encoder_dim=2 * self.sizes.encoder_width,
            patches=self.sizes.groups,
            steps={variant: list(steps) for variant in TRAINED} if steps else None,
            dtype=self.config.capture_dtype,
            provenance={name: self.record[name] for name in ("hashes", "seed")},
            resume=True,
        )

    @contextmanager
    def _as(self, variant: str) -> Iterator[MiniGPT3D]:
        """The model that is captured under this name: one model, whose weights change."""
        if variant == "untrained":
            trained, self.model.llm = self.model.llm, self._untrained()
            try:
                yield self.model
            finally:
                self.model.llm = trained
            return
        self._put(self.beginning)
        if variant in TRAINED:
            tensors = read_tensors(self.folder / "checkpoints" / variant / "model.safetensors")
            self._put(
                {
                    name.removeprefix("model."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith("model.")
                }
            )
        yield self.model

    def _untrained(self) -> nn.Module:
        """A language model of the same sizes and precision that has never seen anything."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(UNTRAINED_SEED + self.config.seed)
            fresh = build_llm(self.sizes, branch_scale=self.sizes.llm_branch_scale)
            adapted = add_lora(fresh, self.sizes)
        hold_in(adapted, self.model.held_in())
        set_attention(adapted, self.config.attention)
        return adapted

    def _put(self, tensors: dict[str, Tensor]) -> None:
        """Copy these over the model's own, by name."""
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def _keep(self, objective: Stage2Objective, folder: Path) -> None:
        """Write what was trained, and the adapter in the form that stock peft loads."""
        if not self.accelerator.is_main_process:
            return
        tensors = {name: tensor.cpu() for name, tensor in trained_tensors(objective).items()}
        write_tensors(folder / "model.safetensors", tensors)
        llm = objective.model.llm
        assert isinstance(llm, PeftModel)
        llm.save_pretrained(str(folder / "adapter"))
        path = folder / "adapter" / "adapter_config.json"
        settings = json.loads(path.read_text())
        settings["target_modules"].sort()  # a set in peft: another order in each process
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _sizes(data: DataSet) -> str:
    return (
        f"{data.name}: {len(data.train)} objects to train on, gallery {len(data.gallery)}, "
        f"query {len(data.query)}, {len(data.query.class_names)} classes"
    )


def _by_part(trained: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Kind of weight -> tensors and numbers."""
    kinds: dict[str, tuple[int, int]] = {}
    for name, size in trained.items():
        if name.startswith("alignment_"):
            kind = "alignment projector"
        else:
            kind = "LLM LoRA" if "lora_" in name else "LLM norms"
        tensors, numbers = kinds.get(kind, (0, 0))
        kinds[kind] = (tensors + 1, numbers + size)
    return kinds
