"""Ablations: python -m train.sweep --over align_layer=8,12,16 --over align_weight=0.3 --seeds 0,1,2

Each --over varies one setting of stage 2 and leaves the others as they are (several values at once,
as 12+16+20, are one layer list); all other flags are those of python -m train.stage2. Every run
lies in a folder of its own and an interrupted sweep goes on.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from train.ablation import Right, cka_gains, measure
from train.cli import fail, read_config, run
from train.config import STAGE2, Stage2Config, with_recipe
from train.evaluate import EvaluateConfig
from train.sweep_jobs import Job, jobs_of, train_all

if TYPE_CHECKING:
    import xarray as xr

WIDTH = 150
QUESTIONS = {"classify": ("I", "C"), "caption": ("caption",)}
"""What `train.evaluate` asks for each task, as the papers' tables call it."""

JUDGE = "exact words for a closed set of classes, else sentence embeddings"
"""What `train.evaluate` has by default."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train stage 2 with one setting varied at a time, ask every model, print the tables."""

    over: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting of stage 2 and its values, as align_layer=8,12,16; may be given several times."""
    seeds: str = "0"
    """Seeds, as 0,1,2: each is a data set, an order of training and controls of its own."""
    out: Path = Path("runs/sweep")
    """Folder of the runs and of the results."""
    jobs: int = 1
    """Runs at a time; where there are GPUs, each has one to itself."""
    finished: bool = False
    """Train nothing: the tables of the runs that are finished."""
    ask: str = "run"
    """Objects that every model is asked about: the query objects of its run, or whole test sets
    under --data-root, as modelnet,objaverse."""
    task: Literal["classify", "caption"] = "classify"
    """Classes, asked for in two ways, or captions; this and what follows as in train.evaluate."""
    limit: int = 0
    judge: str = ""
    judge_model: str = ""

    def __post_init__(self):
        if not all(seed.strip().isdigit() for seed in self.seeds.split(",")):
            raise ValueError(f"--seeds {self.seeds!r}: numbers such as 0,1,2")
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}: 1 or more")
        if wrong := [one for one in self.sets if one not in ("run", "modelnet", "objaverse")]:
            raise ValueError(f"--ask {wrong[0]!r}: run, or a list of modelnet and objaverse")
        self.asking(Path(), ("aligned",), "run", Path())  # refuses what evaluate refuses

    @property
    def seed_list(self) -> list[int]:
        """The seeds, each once."""
        return list(dict.fromkeys(int(seed) for seed in self.seeds.split(",")))

    @property
    def sets(self) -> list[str]:
        """What is asked about."""
        return [one.strip() for one in self.ask.split(",")]

    def _settings(self, data: str, data_root: Path) -> dict[str, Any]:
        shared = {name: getattr(self, name) for name in ("task", "limit", "judge", "judge_model")}
        return {"data": data, "data_root": data_root, **shared}

    def asking(
        self, folder: Path, variants: Sequence[str], data: str, data_root: Path
    ) -> EvaluateConfig:
        """How models of a run are asked about a set."""
        settings = self._settings(data, data_root)
        return EvaluateConfig(run=folder, variants=",".join(variants), **settings)

    def words(self, data: str, data_root: Path) -> list[str]:
        """The same for any run, as arguments of python -m train.evaluate."""
        given = {name: value for name, value in self._settings(data, data_root).items() if value}
        flags = [[f"--{name.replace('_', '-')}", str(value)] for name, value in given.items()]
        return [word for flag in flags for word in flag]


def ask(config: SweepConfig, job: Job, data_root: Path) -> dict[str, Right]:
    """Model -> set -> (questions, objects), 0 to 1; what was asked before is read from the run."""
    from train.evaluate import evaluate
    from train.results import read_judged

    found: dict[str, dict[str, np.ndarray]] = {variant: {} for variant in job.variants}
    for data in config.sets:
        asked = config.asking(job.folder, job.variants, data, data_root)
        paths = evaluate(asked, say=lambda sentence: None)
        for variant, sets in found.items():
            own = [read_judged(path).values for path in paths if path.parent.name == variant]
            sets[data] = np.array(own)
    return dict(found)


def results_of(config: SweepConfig, jobs: Sequence[Job], base: Stage2Config) -> xr.Dataset:
    """The answers of all finished runs put together, with what a reader of them must know."""
    from train.start import model_sizes

    answers: dict[str, dict[int, Right]] = {}
    folders: dict[str, list[Path]] = {}
    done = [job for job in jobs if job.finished]
    if not any(not job.setting.name for job in done):
        raise ValueError(f"{config.out}: no run of the default is finished")
    for job in done:
        folders.setdefault(str(job.setting), []).append(job.folder)
        for variant, right in ask(config, job, base.data_root).items():
            row = str(job.setting) if variant == "aligned" else job.setting.baseline
            answers.setdefault(row, {})[job.seed] = right
    baselines = {str(job.setting): job.setting.baseline for job in done}
    results = measure(answers, baselines, QUESTIONS[config.task])
    results = results.merge(cka_gains(folders), join="left", combine_attrs="override")
    names = sorted({job.setting.name for job in done} - {""})
    results.attrs["defaults"] = {name: str(getattr(base, name)) for name in names}
    results.attrs["phi3"] = model_sizes(base).llm_type == "phi-3"
    results.attrs["task"] = config.task
    results.attrs["judge"] = config.judge_model or config.judge or JUDGE
    results.attrs["missing"] = [job.folder.name for job in jobs if not job.finished]
    words = [word for word in sys.argv[1:] if word != "--finished"]
    results.attrs["command"] = shlex.join(["python", "-m", "train.sweep", *words])
    return results


def main(arguments: tuple[SweepConfig, list[str]]) -> None:
    """Train, ask, print the tables and keep them with their figure."""
    from rich.console import Console

    from train.ablation_page import draw, markdown, printed

    config, rest = arguments
    base = read_config(STAGE2, arguments=rest, recipe=with_recipe)
    jobs = jobs_of(config.over, config.seed_list, config.out, base, rest)
    print(f"{len(jobs)} runs, {sum(job.finished for job in jobs)} of them finished: {config.out}")
    if not config.finished:
        asking = [config.words(data, base.data_root) for data in config.sets]
        train_all(jobs, asking, config.jobs)
    results = results_of(config, jobs, base)
    stem = "ablations" if config.task == "classify" else f"ablations-{config.task}"
    results.to_zarr(config.out / f"{stem}.zarr", mode="w", consolidated=False)
    draw(results, config.out / f"{stem}.png")
    (config.out / f"{stem}.md").write_text(markdown(results, f"{stem}.png"))
    console = Console()
    if console.width < WIDTH:  # a narrow terminal may fold lines, but no number is cut off
        console = Console(width=WIDTH)
    for one in printed(results):
        console.print(one, highlight=False, soft_wrap=isinstance(one, str))
    print(f"results are in {config.out}: {stem}.md, {stem}.png, {stem}.zarr")


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
