"""Ablations: python -m train.sweep --over align_layer=8,12,16 --over align_weight=0.3 --seeds 0,1,2

Each --over varies one setting of stage 2 and leaves the others as they are (several values at once,
as 12+16+20, are one layer list); all other flags are those of python -m train.stage2. Every run
lies in a folder of its own and an interrupted sweep goes on.
"""

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
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import tyro

from train.cli import fail, read_config, run
from train.config import STAGE2, TRAINED, Stage2Config, with_recipe
from train.papers import ABLATIONS, FIGURE_4, SOURCE
from train.record import read_record, write_record

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

BASE = "default"
WIDTH = 130
QUESTIONS = ("I", "C", "average")
"""The two published questions of classification, and their mean."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train stage 2 with one setting varied at a time, and print the table of accuracies."""

    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of stage 2 and its values, as align_layer=8,12,16; may be given several times."""
    seeds: str = "0"
    """Seeds, as 0,1,2: each is a data set, an order of training and controls of its own."""
    out: Path = Path("runs/sweep")
    """Folder of the runs and of the results."""
    jobs: int = 1
    """Runs at a time; where there are GPUs, each has one to itself."""

    def __post_init__(self):
        if not all(seed.strip().isdigit() for seed in self.seeds.split(",")):
            raise ValueError(f"--seeds {self.seeds!r}: numbers such as 0,1,2")
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: 1 or more")

    @property
    def seed_list(self) -> list[int]:
        """The seeds, each once."""
        return list(dict.fromkeys(int(seed) for seed in self.seeds.split(",")))


class Setting(NamedTuple):
    """One row of the table: what is varied and its value; neither for the default."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.name else BASE

    @property
    def words(self) -> list[str]:
        """As flags of stage 2."""
        if not self.name:
            return []
        return [f"--{self.name.replace('_', '-')}", self.value.replace("+", ",")]


def settings(over: Sequence[str], base: Stage2Config) -> list[Setting]:
    """The default, then every other value. Raises ValueError for what stage 2 does not have."""
    found = [Setting("", "")]
    known = {field.name for field in fields(Stage2Config)} - {"seed", "out", "config", "dry_run"}
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
    """Its command line."""

    def finished(self) -> bool:
        return read_record(self.folder).get("status") == "complete"


def jobs_of(config: SweepConfig, rest: list[str]) -> list[Job]:
    """All runs, those of the default first. A wrong flag or value ends the program with code 2."""
    base = read_config(STAGE2, arguments=rest, recipe=with_recipe)
    jobs = []
    for setting in settings(config.over, base):
        for seed in config.seed_list:
            folder = config.out / f"{setting}-seed{seed}".replace("/", "_")
            own = ["--seed", str(seed), "--out", str(folder)]
            words = [*rest, *setting.words, *own]
            read_config(STAGE2, arguments=words, recipe=with_recipe)
            jobs.append(Job(setting, seed, folder, words))
    return jobs


def train_all(jobs: Sequence[Job], at_once: int) -> None:
    """Run what is not finished: the defaults, then the others, which begin with what is shared."""
    gpus: Queue[int | None] = Queue()
    for place in range(at_once):
        gpus.put(place if at_once > 1 else None)
    defaults = {job.seed: job for job in jobs if not job.setting.name}

    def train(job: Job) -> None:
        if job.finished():
            return
        if job.setting.name:
            _share(defaults[job.seed], job)
        gpu = gpus.get()
        try:
            _train(job, gpu)
        finally:
            gpus.put(gpu)

    for first in (True, False):
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(train, [job for job in jobs if (not job.setting.name) == first]))


def _train(job: Job, gpu: int | None) -> None:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.folder.parent / f"{job.folder.name}.log"
    print(f"train {job.folder.name}, see {log}", flush=True)
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, "-m", "train.stage2", *job.words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | own,
        )
    if done.returncode:
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise ChildProcessError(f"{job.folder.name} failed ({last}); its log is {log}")


def _share(default: Job, job: Job) -> None:
    """Begin with the default's frozen front and, where only the alignment differs, its baseline.

    Stage 2 looks at the keys of both: what does not fit is computed again.
    """
    if job.folder.exists():
        return
    fresh = job.folder.with_name(f".{job.folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    write_record(fresh, {})  # marks a run of ours that has not begun
    shutil.copytree(default.folder / "cache", fresh / "cache")
    if job.setting.name.startswith("align_"):
        kept = Path("checkpoints") / "baseline"
        shutil.copytree(default.folder / kept, fresh / kept)
    fresh.rename(job.folder)


def over_seeds(values: Sequence[np.ndarray], level: float = 0.95) -> tuple[float, float, float]:
    """Mean with its interval, over objects and seeds. values : (objects,) of each seed.

    The mean's variance is that of objects alone or, where seeds scatter more, their own; the
    degrees of freedom of Student's t then fall towards those of the seeds (Satterthwaite 1946).
    One seed says nothing of others: its interval is over objects.
    """
    from scipy.special import stdtrit

    means = np.array([one.mean() for one in values])
    objects = np.mean([one.var(ddof=1) / len(one) for one in values])
    seeds, freedom = len(means), np.inf
    variance = objects
    if seeds > 1:
        variance = max(objects, means.var(ddof=1))
        beyond = variance - objects
        freedom = (seeds - 1) * (variance / beyond) ** 2 if beyond > 0 else np.inf
    half = stdtrit(min(freedom, 1e6), (1 + level) / 2) * np.sqrt(variance / seeds)
    return float(means.mean()), float(means.mean() - half), float(means.mean() + half)


def measure(jobs: Sequence[Job]) -> xr.Dataset:
    """Ask the models of every run the two questions and put the answers together.

    mean, low, high (setting, question) of the aligned model, and of its difference from the
    default's aligned model on the same objects (`difference_`); `by_seed` (setting, question,
    seed). Row "baseline" is the model without alignment of the default.
    """
    import xarray as xr

    hits = {}
    for job in jobs:
        found = ask(job.folder)
        hits[str(job.setting), job.seed] = found["aligned"]
        if not job.setting.name:
            hits["baseline", job.seed] = found["baseline"]
    names = list(dict.fromkeys(["baseline", *(str(job.setting) for job in jobs)]))
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    cells, gaps, by_seed = (np.empty((len(names), len(QUESTIONS), n)) for n in (3, 3, len(seeds)))
    for row, name in enumerate(names):
        for at in range(len(QUESTIONS)):
            own = [hits[name, seed][at] for seed in seeds]
            pairs = [a - hits[BASE, seed][at] for a, seed in zip(own, seeds, strict=True)]
            cells[row, at], gaps[row, at] = over_seeds(own), over_seeds(pairs)
            by_seed[row, at] = [one.mean() for one in own]
    dims = ("setting", "question")
    parts: dict[str, Any] = {
        part: (dims, cells[..., at]) for at, part in enumerate(("mean", "low", "high"))
    }
    parts |= {
        f"difference_{part}": (dims, gaps[..., at])
        for at, part in enumerate(("mean", "low", "high"))
    }
    parts["by_seed"] = ((*dims, "seed"), by_seed)
    # As objects they are stored as text of any length, which zarr's format has a name for.
    words = {"setting": names, "question": list(QUESTIONS)}
    coords = {name: np.array(texts, object) for name, texts in words.items()} | {"seed": seeds}
    objects = len(next(iter(hits.values()))[0])
    return xr.Dataset(parts, coords, attrs={"objects": objects, "long_name": "share right"})


def ask(folder: Path) -> dict[str, np.ndarray]:
    """Of baseline and aligned, right or wrong an object, (questions, objects)."""
    from train.evaluate import EvaluateConfig, evaluate
    from train.results import read_judged

    paths = evaluate(EvaluateConfig(run=folder, variants=",".join(TRAINED), judge="exact"))
    found = {}
    for variant in TRAINED:
        both = [read_judged(path).values for path in paths if path.parent.name == variant]
        found[variant] = np.array([*both, np.mean(both, axis=0)])
    return found


def table(results: xr.Dataset) -> Table:
    """A row a setting: accuracies, difference from the default, and what the paper prints."""
    from rich.table import Table

    seeds, objects = results.sizes["seed"], results.attrs["objects"]
    shown = Table(
        title=f"Aligned model, % right [95 % interval], {seeds} seeds of {objects} objects",
        title_justify="left",
        caption=f"Published: ModelNet40 I, C, Objaverse I, C ({SOURCE}); other data and size.",
    )
    shown.add_column("setting")
    for question in QUESTIONS:
        shown.add_column(question, justify="right")
    shown.add_column("average - default", justify="right")
    shown.add_column("published")
    for name in results.setting.values.astype(str):
        row = results.sel(setting=name)
        cells = [_cell(row.sel(question=question), "", ".1f") for question in QUESTIONS]
        gap = "" if name == BASE else _cell(row.sel(question="average"), "difference_", "+.1f")
        shown.add_row(name, *cells, gap, published(name))
    return shown


def published(setting: str) -> str:
    """The paper's figures for a setting, where it has that row."""
    name, _, value = setting.partition("=")
    if name == "baseline":
        name, value = "align_weight", "0.0"
    if name == "data_fraction":
        found = FIGURE_4.get(value, ())
        return f"caption score, aligned and baseline: {found}" if found else ""
    row = ABLATIONS.get(name, {}).get(value.replace("+", ","), ())
    return ", ".join(map(str, row))


def _cell(row: xr.Dataset, prefix: str, form: str) -> str:
    mean, low, high = (100 * float(row[f"{prefix}{part}"]) for part in ("mean", "low", "high"))
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def figure(results: xr.Dataset):
    """A point a setting with its interval, the average over both questions, as plotly Figure."""
    import plotly.graph_objects as go

    row = results.sel(question="average")
    mean, low, high = (100 * row[part].values for part in ("mean", "low", "high"))
    bars = {"array": high - mean, "arrayminus": mean - low}
    shown = go.Figure()
    shown.add_scatter(x=row.setting.values, y=mean, error_y=bars, mode="markers")
    return shown.update_layout(
        xaxis_title="setting", yaxis_title="% right [95 % interval], higher is better"
    )


def main(arguments: tuple[SweepConfig, list[str]]) -> None:
    """Train, ask, print the table and keep it with its figure."""
    from rich.console import Console

    config, rest = arguments
    jobs = jobs_of(config, rest)
    print(f"{len(jobs)} runs, {sum(job.finished() for job in jobs)} of them finished: {config.out}")
    train_all(jobs, config.jobs)
    results = measure(jobs)
    results.to_zarr(config.out / "sweep.zarr", mode="w", consolidated=False)
    figure(results).write_html(config.out / "sweep.html")
    console = Console()
    if console.width < WIDTH:  # a narrow terminal may fold lines, but no number is cut off
        console = Console(width=WIDTH)
    console.print(table(results))
    print(f"table and figure are in {config.out}: sweep.zarr, sweep.html")


def cli(arguments: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` when None; a wrong call ends it with code 2."""
    try:
        asked = tyro.cli(
            SweepConfig,
            prog="python -m train.sweep",
            description=__doc__,
            args=arguments,
            return_unknown_args=True,
        )
    except ValueError as error:
        fail(str(error), 2)
    run(main, asked)


if __name__ == "__main__":
    cli()
