"""The capture of a data set: its run folder, its models one after the other, and their states."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from torch import Tensor

from store import open_run
from store.reader import StoreError
from store.writer import RunWriter, create_run, resume_run
from train.attention import read_attention
from train.background import in_background
from train.capture import capture_hidden_states, entering, short_forward, two_or_more
from train.captured import clouds, sample_table, shown_points
from train.checkpoint import read_tensors, sha256
from train.config import CaptureConfig, ModelConfig, Stage2Config, parse_layers
from train.data.load import load_data
from train.data.objects import DataSet
from train.models.llm import set_attention
from train.models.minigpt3d import MiniGPT3D
from train.progress import track
from train.prompts import Batch, bos_id, collate, encode_conversation, prefix
from train.provenance import provenance
from train.record import check_new, check_same, write_record
from train.start import load_start, model_sizes
from train.verify import Proofs, verify_capture

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FREE = ("out", "store", "config", "threads", "data_root")
"""Settings that may differ when a stopped capture goes on: they don't change its numbers."""
QUESTION = "What is this?"
"""Asked before the caption, where the tokens of an answer are captured."""
START = "stage1"
"""Name of the model in the checkpoint, as in the runs of stage 2."""


def capture(config: CaptureConfig) -> None:
    """Prove the capture of each model, then store it, going on where it was stopped."""
    begun = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    state = PartialState(cpu=not torch.cuda.is_available())
    like_stage2 = _like_stage2(config)
    sizes = model_sizes(like_stage2)
    layers = parse_layers(config.layers, sizes.llm_depth)
    check_new(config.folder)
    with state.main_process_first():  # it may have to make the data
        data = load_data(like_stage2)
    begin = load_start(like_stage2, sizes, DTYPES[config.precision])
    set_attention(begin.model.llm, config.attention)
    splits = {"gallery": data.gallery, "query": data.query}
    hashes = begin.hashes | {name: objects.fingerprint() for name, objects in splits.items()}
    for folder in config.trained:
        hashes[folder.name] = sha256(_trained_file(folder))
    record = json.loads(json.dumps(provenance(config, hashes), default=str))
    check_same(config.folder, record, FREE)
    job = Job(config, sizes, layers, data, begin.model.to(state.device), begin.tokenizer, state)
    console = Console(quiet=not state.is_main_process)
    console.print(f"capture {len(layers)} layers of {job.samples} objects: {config.folder}")
    proofs = job.prove()
    if state.is_main_process:
        write_record(config.folder, record | {"status": "running", "proofs": proofs})
    writers = job.open_stores(record, proofs)
    for variant in job.variants:
        with job.model_of(variant):
            job.fill(variant, writers)
    state.wait_for_everyone()
    if state.is_main_process:
        for writer in writers.values():
            writer.finish()
        seconds = round(time.perf_counter() - begun, 1)
        done = {"status": "complete", "seconds": seconds, "proofs": proofs}
        write_record(config.folder, record | done)
        console.print(f"proven    {', '.join(proofs[START])}", soft_wrap=True)
        console.print(f"probe it  python -m probe {config.store or config.folder}", soft_wrap=True)
        console.print(f"took      {seconds:.0f} s")


@dataclass(frozen=True)
class Job:
    """What a capture is made of."""

    config: CaptureConfig
    sizes: ModelConfig
    layers: list[int]
    data: DataSet
    model: MiniGPT3D
    tokenizer: Any
    state: PartialState

    @property
    def variants(self) -> list[str]:
        """Names of the models: that of the checkpoint, and those trained from it."""
        return [START, *(folder.name for folder in self.config.trained)]

    @property
    def samples(self) -> int:
        return len(self.data.gallery) + len(self.data.query)

    @contextmanager
    def model_of(self, variant: str) -> Iterator[MiniGPT3D]:
        """The one model with the weights that stage 2 gave it, and its own again afterwards."""
        own, before = dict(self.model.named_parameters()), {}
        folders = {folder.name: folder for folder in self.config.trained}
        try:
            if variant != START:
                path = _trained_file(folders[variant])
                for name, tensor in read_tensors(path).items():
                    name = name.removeprefix("model.")
                    if name.startswith("alignment_"):
                        continue
                    if name not in own or own[name].shape != tensor.shape:
                        raise ValueError(f"{path}: {name} is not of this checkpoint's model")
                    before[name] = own[name].detach().clone()
                    own[name].data.copy_(tensor)
            yield self.model
        finally:
            for name, tensor in before.items():
                own[name].data.copy_(tensor)

    @torch.no_grad()
    def prove(self) -> dict[str, Proofs]:
        """Verify the capture of each model on the first objects of the set."""
        proofs = {}
        rows = two_or_more(np.arange(self.samples))
        for variant in self.variants:
            with self.model_of(variant) as model:
                target = self._front(rows)["target"]
                batch = self._batch(rows).to(self.state.device)
                embeds, points = model.embed(batch, target), entering(model, target)
                mask = None if self.config.tokens == "point" else batch.attention_mask
                with model.mixed():
                    proofs[variant] = verify_capture(
                        model.llm,
                        embeds,
                        batch.point_mask,
                        self.layers,
                        entering=points,
                        attention_mask=mask,
                        sites=self.config.site_list,
                    )
        return proofs

    def open_stores(
        self, record: dict[str, Any], proofs: dict[str, Proofs]
    ) -> dict[str, RunWriter]:
        """A store for each site: the stream in the run itself, each branch in a run inside it."""
        queries = self.sizes.queries if self.config.pool == "none" else 1
        shown = shown_points(self.data)
        plan: dict[str, Any] = {
            "samples": sample_table(self.data),
            "variants": self.variants,
            "tokens": queries,
            "dim": self.sizes.llm_width,
            "target_dim": self.sizes.qformer_width,
            "patches": self.sizes.groups,
            "dtype": self.config.dtype,
        }
        stores = {}
        for site in self.config.site_list:
            own: dict[str, Any] = {
                "layers": self.layers if site == "resid" else [at for at in self.layers if at],
                "points": shown if site == "resid" else None,
                "provenance": {name: record[name] for name in ("hashes", "seed")}
                | {"site": site, "tokens": self.config.tokens, "pool": self.config.pool},
            }
            place = self._place(site)
            own["provenance"]["proofs"] = _proofs_before(place) or proofs
            if self.state.is_main_process:
                stores[site] = create_run(place, **plan, **own, resume=True)
            self.state.wait_for_everyone()
            if not self.state.is_main_process:
                process = self.state.process_index
                own["provenance"]["proofs"] = _proofs_before(place)
                stores[site] = resume_run(place, process=process, **plan, **own)
        return stores

    @torch.no_grad()
    def fill(self, variant: str, writers: dict[str, RunWriter]) -> None:
        """Append what is missing of one model, chunk by chunk; targets come with the first one."""
        share = self.state.process_index, self.state.num_processes
        pending = {
            (site, name): {rows.start for rows in writer.pending(name, *share)}
            for site, writer in writers.items()
            for name in ("target", "attention", variant)
        }
        starts = sorted(set().union(*pending.values()))
        chunk = writers["resid"].chunk
        total = -(-self.samples // chunk // share[1])

        def write(rows: slice, arrays: dict[str, np.ndarray]) -> None:
            for site, writer in writers.items():
                missing = {
                    name for at, name in pending if rows.start in pending[site, name] if at == site
                }
                if "target" in missing:
                    writer.append_target(rows, arrays["target"])
                if "attention" in missing:
                    writer.append_attention(rows, arrays["weights"], arrays["centres"])
                if variant in missing:
                    writer.append(variant, rows, arrays[site])

        with in_background(write) as put:
            bar = track(starts, f"capture {variant}", total=total, completed=total - len(starts))
            for start in bar:
                rows = slice(start, min(start + chunk, self.samples))
                size = self.config.batch_size or chunk
                parts = [
                    self._states(np.arange(at, min(at + size, rows.stop)))
                    for at in range(start, rows.stop, size)
                ]
                put(rows, {key: _joined([part[key] for part in parts], key) for key in parts[0]})

    def _states(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Everything that is stored of some objects: site -> (layers, samples, tokens, dim), and
        target, weights and centres of the front."""
        found = self._front(rows)
        batch = self._batch(rows).to(self.state.device)
        embeds = self.model.embed(batch, found["target"])
        for site in self.config.site_list:
            layers = self.layers if site == "resid" else [at for at in self.layers if at]
            with self.model.mixed():
                states = self._forward(batch, embeds, layers, site)
            found[site] = torch.stack(list(states.values()))
        if self.config.pool == "mean":
            for name in ("target", "weights"):
                found[name] = found[name].mean(dim=-2, keepdim=True)
        return found

    def _forward(
        self, batch: Batch, embeds: Tensor, layers: list[int], site: str
    ) -> dict[int, Tensor]:
        llm, tokens = self.model.llm, self.config.tokens
        if tokens == "point":
            states = short_forward(llm, embeds, layers, batch.point_mask, site=site)
            pooled = self.config.pool == "mean"
            return {at: s.mean(1, keepdim=True) if pooled else s for at, s in states.items()}
        with capture_hidden_states(llm, layers, site=site) as states:
            llm(inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False)
        counted = batch.labels >= 0 if tokens == "answer" else batch.attention_mask.bool()
        share = (counted / counted.sum(dim=1, keepdim=True))[:, None]  # (samples, 1, tokens)
        return {at: share.to(states[at].dtype) @ states[at] for at in layers}

    def _front(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Clouds through the frozen front: target, and which patches each token reads."""
        shown = clouds(self.data, rows, self.sizes.points).to(self.state.device)
        with read_attention(self.model) as reading:
            target = self.model.encode(shown)
        assert reading.centres is not None
        return {"target": target, "weights": reading.weights(), "centres": reading.centres}

    def _batch(self, rows: np.ndarray) -> Batch:
        """What stands around the point tokens: the prefix, or a whole question and answer."""
        queries, pad = self.sizes.queries, bos_id(self.tokenizer)
        if self.config.tokens == "point":
            return collate([prefix(self.tokenizer, queries)] * len(rows), pad)
        captions = [*self.data.gallery.captions, *self.data.query.captions]
        context = self.sizes.llm_context
        encoded = [
            encode_conversation(
                self.tokenizer, [(QUESTION, captions[row])], points=queries, context=context
            )
            for row in rows
        ]
        return collate(encoded, pad)

    def _place(self, site: str) -> str | Path:
        if self.config.store:
            return self.config.store if site == "resid" else f"{self.config.store}/{site}"
        return self.config.folder if site == "resid" else self.config.folder / site


def _joined(parts: list[Tensor], key: str) -> Tensor:
    """Batches of one chunk: samples come second in what has layers."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, dim=0 if key in ("target", "weights", "centres") else 1)


def _like_stage2(config: CaptureConfig) -> Stage2Config:
    """The settings that say which model and which data, as stage 2 reads them."""
    shared = ("data", "data_root", "seed", "skip_missing")
    counts = ("train_per_class", "gallery_per_class", "query_per_class")
    same = {name: getattr(config, name) for name in (*shared, *counts)}
    if config.weights:
        return replace(Stage2Config(preset="minigpt3d", weights=config.weights), **same)
    return replace(Stage2Config(stage1=config.checkpoint), **same)


def _trained_file(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"--trained {folder}: no model.safetensors in it; give RUN/checkpoints/NAME of a run "
            "of python -m train.stage2"
        )
    return path


def _proofs_before(place: str | Path) -> dict[str, Proofs] | None:
    """Proofs of a store that is gone on with: their figures may differ by rounding."""
    try:
        return open_run(place).attrs["provenance"]["proofs"]
    except (StoreError, KeyError):
        return None
