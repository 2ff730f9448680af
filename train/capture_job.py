"""The capture of a data set: its run folder, its models one after the other, and their states."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from store import open_run
from store.lock import lock
from store.place import Place
from store.reader import StoreError
from store.writer import RunWriter, create_run, resume_run
from train.background import in_background
from train.capture import two_or_more
from train.captured import sample_table, shown_points
from train.config import CaptureConfig
from train.data.load import load_data
from train.data.objects import DataSet
from train.hosts import FROZEN, Host
from train.hosts.minigpt3d import MiniGPTHost, like_stage2
from train.progress import track
from train.provenance import provenance
from train.record import check_new, check_same, write_record
from train.verify import Proofs

FREE = (
    *("out", "store", "config", "threads", "data_root"),
    *("checkpoint", "weights", "trained", "llm", "llm_map"),
)
"""Settings that may differ when a stopped capture goes on: they don't change its numbers, or what
they name is known by its hash."""


def capture(config: CaptureConfig) -> None:
    """Prove the capture of each model, then store it, going on where it was stopped."""
    begun = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    # The others wait while one makes the data, or has more left to capture: hours at most.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=24))
    host = host_of(config)
    check_new(config.folder)
    with held(config.folder, config.store) if state.is_main_process else nullcontext():
        fill(config, host, state, begun)


@contextmanager
def held(folder: Path, store: str | None) -> Iterator[None]:
    """Be the one who writes a run, and its store elsewhere, from before its record is written.

    One that can't be written is told of at once, and a new folder that stays empty is removed.
    """
    new = not folder.exists()
    with ExitStack() as after:
        if new:
            after.callback(_forget_empty, folder)
        for place in [str(folder), store] if store else [str(folder)]:
            after.callback(lock(Place(place), 0).release)
        yield


def _forget_empty(folder: Path) -> None:
    with suppress(OSError):  # something is in it
        folder.rmdir()


def fill(config: CaptureConfig, host: Host, state: PartialState, begun: float) -> None:
    """Read data and model, prove the capture and fill the stores."""
    with state.main_process_first():  # it may have to make the data
        data = load_data(like_stage2(config))
    host.load(data, state.device)
    splits = {"gallery": data.gallery, "query": data.query}
    hashes = host.hashes | {name: objects.fingerprint() for name, objects in splits.items()}
    record = json.loads(json.dumps(provenance(config, hashes), default=str))
    check_same(config.folder, record, FREE if config.asks else (*FREE, "question"))
    job = Job(config, data, host, state)
    console = Console(quiet=not state.is_main_process)
    layers = len(host.sites["resid"].layers)
    console.print(f"capture {layers} layers of {job.samples} objects: {config.folder}")
    for name, said in host.about.items():
        console.print(f"{name:<9} {said}", soft_wrap=True, markup=False)
    proofs = job.prove()
    if state.is_main_process:
        write_record(config.folder, record | {"status": "running", "proofs": proofs})
    with ExitStack() as opened:
        writers = job.open_stores(record, proofs)
        for writer in writers.values():
            opened.callback(writer.close)
        for variant in host.variants:
            with host.model_of(variant):
                for together in alike(writers):
                    job.fill(variant, together)
        state.wait_for_everyone()
        if state.is_main_process:
            for writer in writers.values():
                writer.finish()
    if state.is_main_process:
        seconds = round(time.perf_counter() - begun, 1)
        done = {"status": "complete", "seconds": seconds, "proofs": proofs}
        write_record(config.folder, record | done)
        console.print(f"proven    {', '.join(proofs[host.variants[0]])}", soft_wrap=True)
        for site in host.sites:
            place = job.place(site)
            console.print(f"probe it  python -m probe {place}", soft_wrap=True)
        console.print(f"took      {seconds:.0f} s")


def host_of(config: CaptureConfig) -> Host:
    """The system that is captured, of which only sizes have been read."""
    if config.host == "bindllm":
        from train.hosts.bindllm import BindLLMHost

        return BindLLMHost(config)
    return MiniGPTHost(config)


@dataclass(frozen=True)
class Job:
    """What a capture is made of."""

    config: CaptureConfig
    data: DataSet
    host: Host
    state: PartialState

    @property
    def samples(self) -> int:
        return len(self.data.gallery) + len(self.data.query)

    @torch.no_grad()
    def prove(self) -> dict[str, Proofs]:
        """Verify the capture of each model on the first objects of the set."""
        proofs = {}
        rows = two_or_more(np.arange(self.samples))
        for variant in self.host.variants:
            with self.host.model_of(variant):
                proofs[variant] = self.host.prove(rows)
        return proofs

    def open_stores(
        self, record: dict[str, Any], proofs: dict[str, Proofs]
    ) -> dict[str, RunWriter]:
        """A store for each site: the stream in the run itself, each other in a run inside it."""
        shown, tokens = shown_points(self.data), self.host.own_tokens
        common: dict[str, Any] = {
            "samples": sample_table(self.data) | ({} if tokens is None else {"n_tokens": tokens}),
            "target_tokens": None if tokens is None else 1,
            "variants": self.host.variants,
            "target_dim": self.host.target_dim,
            "dtype": self.config.dtype,
        }
        about = {"tokens": self.config.tokens, "pool": self.config.pool} | self.host.about
        stores = {}
        for name, site in self.host.sites.items():
            own: dict[str, Any] = common | {
                "layers": site.layers,
                "tokens": site.tokens,
                "dim": site.dim,
                "points": shown if name == "resid" else None,
                "encoder_dim": self.host.encoder_dim,
                "patches": self.host.patches,
                "provenance": {part: record[part] for part in ("hashes", "seed")}
                | {"site": name}
                | about,
            }
            place = self.place(name)
            own["provenance"]["proofs"] = _proofs_before(place) or proofs
            if self.state.is_main_process:
                stores[name] = create_run(place, **own, resume=True)
            self.state.wait_for_everyone()
            if not self.state.is_main_process:
                process = self.state.process_index
                own["provenance"]["proofs"] = _proofs_before(place)
                stores[name] = resume_run(place, process=process, **own)
        return stores

    @torch.no_grad()
    def fill(self, variant: str, writers: dict[str, RunWriter]) -> None:
        """Append what is missing of one model, chunk by chunk; targets come with the first one.

        writers : of sites whose stores have chunks of one size
        """
        share = self.state.process_index, self.state.num_processes
        frozen = ["target"]
        frozen += ["encoder"] if self.host.encoder_dim else []
        frozen += ["attention"] if self.host.patches else []
        pending = {
            (site, name): {rows.start for rows in writer.pending(name, *share)}
            for site, writer in writers.items()
            for name in (*frozen, variant)
        }
        starts = sorted(set().union(*pending.values()))
        chunk = next(iter(writers.values())).chunk
        total = -(-self.samples // chunk // share[1])

        def write(rows: slice, arrays: dict[str, Any]) -> None:
            missing = {at for at, begin in pending.items() if rows.start in begin}
            for site, writer in writers.items():
                if (site, "target") in missing:
                    writer.append_target(rows, arrays["target"])
                if (site, "encoder") in missing:
                    writer.append_encoder(rows, arrays["encoder"])
                if (site, "attention") in missing:
                    writer.append_attention(rows, arrays["weights"], arrays["centres"])
            for name in FROZEN:  # given up, as each layer is
                arrays.pop(name, None)
            for site, writer in writers.items():
                if (site, variant) in missing:
                    writer.append(variant, rows, arrays[site])

        held_by_store = max(writer.held for writer in writers.values())
        with in_background(write, chunk, held_by_store) as batches:
            bar = track(starts, f"capture {variant}", total=total, completed=total - len(starts))
            for start in bar:
                rows = slice(start, min(start + chunk, self.samples))
                size = self.config.batch_size or chunk
                parts = [
                    self.host.states(
                        np.arange(at, min(at + size, rows.stop)), list(writers), batches.keep
                    )
                    for at in range(start, rows.stop, size)
                ]
                beside = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                del parts
                batches.put(rows, beside)
                del beside

    def place(self, site: str) -> str | Path:
        """Where the states of a site go."""
        if self.config.store:
            return self.config.store if site == "resid" else f"{self.config.store}/{site}"
        return self.config.folder if site == "resid" else self.config.folder / site


def alike(writers: dict[str, RunWriter]) -> list[dict[str, RunWriter]]:
    """Sites that can be filled together: as many tokens, and chunks of one size."""
    groups: dict[tuple[int, int], dict[str, RunWriter]] = {}
    for site, writer in writers.items():
        groups.setdefault((writer.chunk, writer.attrs["tokens"]), {})[site] = writer
    return list(groups.values())


def _proofs_before(place: str | Path) -> dict[str, Proofs] | None:
    """Proofs of a store that is gone on with: their figures may differ by rounding."""
    try:
        return open_run(place).attrs["provenance"]["proofs"]
    except (StoreError, KeyError):
        return None
