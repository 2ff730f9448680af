"""The runs of a sweep: which there are, what they share, and how they are trained and asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from store.begin import begin_like
from train.ablation import BASELINE, DEFAULT
from train.cli import read_config
from train.config import STAGE2, TRAINED, Stage2Config, with_recipe
from train.record import read_record, write_record

OF_THE_SWEEP = {"seed", "out", "store", "config", "dry_run"}
"""Settings of stage 2 that a sweep does not vary."""


class Setting(NamedTuple):
    """What is varied and its value; neither for the default."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.name else DEFAULT

    @property
    def words(self) -> list[str]:
        """As flags of stage 2."""
        if not self.name:
            return []
        return [f"--{self.name.replace('_', '-')}", self.value.replace("+", ",")]

    @property
    def of_alignment(self) -> bool:
        """Whether only the aligned model depends on it: the default's baseline is then its own."""
        return self.name.startswith("align_")

    @property
    def baseline(self) -> str:
        """Its baseline's row in the results."""
        return f"{BASELINE}, {self}" if self.name and not self.of_alignment else BASELINE


def settings(over: Sequence[str], base: Stage2Config) -> list[Setting]:
    """The default, then every other value. Raises ValueError for what stage 2 does not have."""
    found = [Setting("", "")]
    known = {field.name for field in fields(Stage2Config)} - OF_THE_SWEEP
    for part in over:
        name, _, values = part.partition("=")
        name = name.strip().replace("-", "_")
        if name not in known or not values:
            raise ValueError(
                f"--over {part!r}: a setting of python -m train.stage2 and its values, such as "
                "align_layer=8,12,16"
            )
        wanted = (Setting(name, value.strip()) for value in values.split(","))
        now = str(getattr(base, name))
        found += [one for one in wanted if one.value.replace("+", ",") != now]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Job:
    """One run of stage 2."""

    setting: Setting
    seed: int
    folder: Path
    words: list[str]
    """Command line of stage 2."""

    @property
    def finished(self) -> bool:
        return read_record(self.folder).get("status") == "complete"

    @property
    def variants(self) -> tuple[str, ...]:
        """Its models that no other run of the sweep has."""
        return ("aligned",) if self.setting.of_alignment else TRAINED


def jobs_of(
    over: Sequence[str], seeds: Sequence[int], out: Path, base: Stage2Config, rest: list[str]
) -> list[Job]:
    """All runs, those of the default first. A wrong flag or value ends the program with code 2."""
    jobs = []
    for setting in settings(over, base):
        for seed in seeds:
            folder = out / f"{setting}-seed{seed}".replace("/", "_")
            words = [*rest, *setting.words, "--seed", str(seed), "--out", str(folder)]
            if read_config(STAGE2, arguments=words, recipe=with_recipe).store:
                raise ValueError("--store is of one run: those of a sweep keep theirs in --out")
            jobs.append(Job(setting, seed, folder, words))
    return jobs


def train_all(jobs: Sequence[Job], asking: Sequence[Sequence[str]], at_once: int) -> None:
    """Run what is not finished: the defaults, then the others, which begin with what is shared.

    asking  : arguments of python -m train.evaluate, without run and variants, for each set of
              objects that a trained model is asked about.
    at_once : processes; of several each has a GPU to itself.
    """
    gpus: Queue[int | None] = Queue()
    for place in range(at_once):
        gpus.put(place if at_once > 1 else None)
    defaults = {job.seed: job for job in jobs if not job.setting.name}

    def train(job: Job) -> None:
        if job.finished:
            return
        if job.setting.name:
            share(defaults[job.seed].folder, job)
        gpu = gpus.get()
        try:
            _train(job, asking, gpu)
        finally:
            gpus.put(gpu)

    for first in (True, False):
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(train, [job for job in jobs if (not job.setting.name) == first]))


def _train(job: Job, asking: Sequence[Sequence[str]], gpu: int | None) -> None:
    log = job.folder.parent / f"{job.folder.name}.log"
    print(f"train {job.folder.name}, see {log}", flush=True)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    about = [str(job.folder), "--variants", ",".join(job.variants)]
    commands = [["train.stage2", *job.words]]
    commands += [["train.evaluate", *about, *words] for words in asking]
    for words in commands:
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, "-m", *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | own,
            )
        if done.returncode:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise ChildProcessError(f"{job.folder.name} failed ({last}); its log is {log}")


def share(default: Path, job: Job) -> None:
    """Begin with the default's frozen front and, where only the alignment differs, its baseline.

    Then also with all that it captured but its aligned model. Whoever reads these looks at their
    keys: what does not fit is computed again.
    """
    if job.folder.exists():
        return
    fresh = job.folder.with_name(f".{job.folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_record(fresh, {})  # marks a run of ours that has not begun
    shutil.copytree(default / "cache", fresh / "cache")
    if job.setting.of_alignment:
        kept = Path("checkpoints") / "baseline"
        shutil.copytree(default / kept, fresh / kept)
        begin_like(default, fresh, without=["aligned"])
        (fresh / "evaluation").mkdir()
        for path in (default / "evaluation").glob("targets-*"):  # of the test sets
            shutil.copy(path, fresh / "evaluation")
    fresh.rename(job.folder)
