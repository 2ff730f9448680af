"""python -m probe RUN: where in depth is geometry lost, and does alignment keep it?

python -m probe RUN1 RUN2 RUN3, runs of one recipe under other seeds, adds intervals over seeds.
python -m probe report RUN writes the report anew, of what was found so far.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import tyro
from tyro.conf import Positional

from probe.cli import exit_code

# probes with results of their own, beside the sweep
BESIDE = ("alignment", "maps", "objects", "reconstruction", "steps")
WITH_MODEL = ("lens", "causal")  # which train.explain measures, in a process of its own
EVERY = "knn,drift,dimension,linear,geometry,variants,similarity"
LARGE = 1e9  # parameters of a language model that nobody waits for without a GPU


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Probe every captured layer of a run; print a table, keep results, figures and report in it.

    What was measured before is not measured again. What tokens say in words and whether the model
    still reads them takes the model: where the run holds it, python -m train.explain is started.
    """

    run: Positional[str]
    """Run folder, or URL of its states as s3://bucket/run."""
    more: Positional[tuple[str, ...]] = ()
    """Runs of the same recipe under other seeds: intervals then cover seeds as well as objects,
    and are kept in the first run. What all runs keep beside the sweep, as lenses and causes, is put
    together too."""
    layers: str = "all"
    """Captured layers to probe: all, or a list as 0,8,16 or 4,8,...,32."""
    probes: str = EVERY
    """What to measure, a list; the first three are the quick ones. Beside them there are maps,
    reconstruction, steps (CKA and drift during training), alignment (drift through the trained
    projector: circular for the aligned model, undefined for the others), objects (neighbours
    and drift of every object, for the dashboard), and lens and causal, which by default are
    measured once, where the run holds its models. What a sweep of the same layers, k and seed found
    before stays beside what is asked for now."""
    k: str = "1,10"
    """Neighbours that vote, a list."""
    seed: int = 0
    """Seeds resampling, permutations, folds, maps and decoders."""
    again: str | None = None
    """Run folder of a second capture of the same objects, of several runs one of each in their
    order, with commas between: measures the noise floor."""
    dask: str | None = None
    """Address of a dask scheduler, as tcp://host:8786, to spread the layers of the sweep over."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write what the probes of a run found: report.html, report.md and its figures, in the run.

    As python -m probe RUN does; here without measuring, and to any folder.
    """

    run: Positional[str]
    """Run folder or URL, with a sweep in it: python -m probe RUN."""
    out: Path | None = None
    """Folder to write to; the run's own by default. That of a run behind a URL is to be named."""


def main(config: ProbeConfig) -> None:
    from probe.page import write_report
    from probe.splits import layers_of
    from store import open_run
    from store.layers import parse_layers

    if config.seed < 0:
        raise ValueError(f"--seed {config.seed}: must be 0 or more")
    run = open_run(config.run)
    all_layers = config.layers == "all"  # that were captured
    some = None if all_layers else parse_layers(config.layers, run.layers[-1])
    layers = layers_of(run, some)
    asked = _asked(config.probes, run)
    swept = [name for name in asked if name not in (*BESIDE, *WITH_MODEL)]
    if config.again and not swept:
        raise ValueError("--again is of a sweep: --probes names one, as knn or drift, with it")
    if config.more:
        _over_seeds(config, run, asked, layers)
        return
    if swept:
        _sweep(config, run, swept, layers)
    for name in dict.fromkeys(name for name in asked if name in BESIDE):
        _beside(name, run, layers, config.seed)
    failed = _with_a_model(config, run, [name for name in asked if name in WITH_MODEL])
    if isinstance(run.path, Path) and "sweep" in run.probe_names():
        for path in write_report(run):
            print(path)
    if failed:
        sys.exit(failed)


def _with_a_model(config: ProbeConfig, run, asked: list[str]) -> int:
    """Lenses and causes: measured where they are asked for, or by default where they are not there
    and the run holds its models; what is there is told. The exit code of what was asked for.
    """
    from probe import causal, lens

    found = run.probe_names()
    if asked:
        return _explain(config, run, asked)
    if config.probes != EVERY:
        return 0
    for name, said in {"lens": lens.findings, "causal": causal.findings}.items():
        for sentence in said(run.probes(name)) if name in found else ():
            print(f"• {sentence}")
    missing = [name for name in WITH_MODEL if name not in found]
    # runs of one target token are of other hosts, which train.explain does not load
    one_by_one = run.attrs.get("target_tokens", run.attrs["tokens"]) > 1
    if not missing or not one_by_one:
        return 0
    if why := _no_model(run):
        print(f"Without {' and '.join(missing)}: {why}.")
        return 0
    print(f"{' and '.join(missing)}, in some minutes, with the models of the run:")
    if _explain(config, run, missing):
        print(f"Without {' and '.join(missing)}, for the reason above.")
    return 0


def _no_model(run) -> str:
    """Why lenses and causes are not measured unless they are asked for; empty where they are."""
    if not isinstance(run.path, Path) or not any(
        (run.path / "checkpoints" / name).is_dir() for name in run.variants
    ):
        return (
            "they take the models, and this run has none in checkpoints/, where python -m "
            "train.stage2 keeps them"
        )
    size = 12 * run.layers[-1] * run.attrs["dim"] ** 2  # of a transformer's blocks
    if size < LARGE:
        return ""
    import torch

    if torch.cuda.is_available():
        return ""
    return (
        f"of {size / 1e9:.1f} billion parameters they take a GPU; without one "
        f"python -m train.explain {run.name} takes hours"
    )


def _explain(config: ProbeConfig, run, names: list[str]) -> int:
    """Start train.explain, which brings the model; its exit code."""
    import subprocess

    layers = [] if config.layers == "all" else ["--layers", config.layers]
    words = [run.name, "--probes", ",".join(names), "--seed", str(config.seed), *layers]
    print(f"python -m train.explain {' '.join(words)}", flush=True)
    try:
        done = subprocess.run([sys.executable, "-m", "train.explain", *words], check=False)
    except KeyboardInterrupt:
        sys.exit(130)  # it has said so itself
    if done.returncode == 2:
        print("its own flags, as --stage1 for weights that have moved: --help of that command")
    return done.returncode if done.returncode >= 0 else 1  # a signal ended it


def _asked(probes: str, run) -> list[str]:
    """The probes of a list; without a list those that the run has something for."""
    from probe.sweep import ALL_PROBES, lacking

    asked = [name.strip() for name in probes.split(",")]
    known = (*ALL_PROBES, *BESIDE, *WITH_MODEL)
    if wrong := [name for name in asked if name not in known]:
        raise ValueError(f"--probes: no probe {wrong[0]!r}: there are {', '.join(known)}")
    without = lacking(run) if probes == EVERY else {}
    for name, why in without.items():
        print(f"without {name}: {why}")
    return [name for name in asked if name not in without]


def _sweep(config: ProbeConfig, run, probes: list[str], layers: list[int]) -> None:
    from probe.plots import save_depth_html, save_depth_png
    from probe.report import print_table, progress_bar
    from probe.sweep import sweep, with_kept
    from store import open_run

    k = numbers(config.k, "--k")
    if config.again and Path(config.again).resolve() == Path(config.run).resolve():
        raise ValueError(f"--again {config.again} is the run itself: it wants a second capture")
    again = open_run(config.again) if config.again else None
    there = again is not None
    probes, said = with_kept(run, probes, layers, k=k, seed=config.seed, again=there)
    if said:
        print(said)
    with progress_bar() as show:
        results = sweep(
            run,
            probes,
            layers,
            k=k,
            again=again,
            seed=config.seed,
            dask=config.dask,
            progress=show,
        )
    try:
        run.write_probe("sweep", results)
    finally:
        print_table(results)  # also where the disk is full, or not to be written to
    if not {"knn_mean", "cka_mean"} & set(results) or not isinstance(run.path, Path):
        return  # the depth figure draws these, into a run on this machine's disk
    for save, name in ((save_depth_png, "depth.png"), (save_depth_html, "depth.html")):
        print(save(results, run.path / name))


def _over_seeds(config: ProbeConfig, run, probes: list[str], layers: list[int]) -> None:
    from probe.page import write_report
    from probe.seeds_runs import check
    from store import open_run

    if "objects" in probes:
        raise ValueError("--probes objects is of one run: ask for it run by run")
    runs = [run, *(open_run(path) for path in config.more)]
    check(runs)
    again = [path.strip() for path in config.again.split(",")] if config.again else []
    if again and len(again) != len(runs):
        raise ValueError(
            f"--again {config.again}: {len(runs)} runs want a second capture each, with commas "
            f"between, this names {len(again)}"
        )
    places = [Path(path).resolve() for path in (config.run, *config.more, *again)]
    if again and len(set(places)) < len(places):
        raise ValueError(
            f"--again {config.again}: a second capture of each run, each once, and none of the runs"
        )
    if swept := [name for name in probes if name not in (*BESIDE, *WITH_MODEL)]:
        seconds = [open_run(path) for path in again] if again else None
        _sweeps_over_seeds(config, runs, swept, layers, seconds)
    beside = list(dict.fromkeys(name for name in probes if name not in swept))
    failed = 0
    for name, one in product([name for name in beside if name in BESIDE], runs):
        print(f"{one.name}:")
        _beside(name, one, layers, config.seed)
    for one in runs:  # what is there is put together: each takes minutes
        there = one.probe_names()
        if missing := [name for name in beside if name in WITH_MODEL and name not in there]:
            failed = _explain(config, one, missing) or failed
    _kept_over_seeds(runs, beside)
    if isinstance(run.path, Path) and "sweep" in run.probe_names():
        for path in write_report(run):
            print(path)
    if failed:
        sys.exit(failed)


def _kept_over_seeds(runs, asked: list[str]) -> None:
    """Put together what all runs keep beside their sweeps, and say what some lack."""
    import xarray as xr

    from probe.seeds_beside import kept_by_all, over_kept
    from probe.seeds_runs import same_objects
    from probe.seeds_words import findings_beside

    first, (every, lacking), shared = runs[0], kept_by_all(runs), same_objects(runs)
    for name in every:
        try:
            results = over_kept(runs, name, shared)
        except ValueError as error:
            if name in asked:
                raise
            lacking[name] = str(error)
            continue
        first.write_probe(f"seeds_{name}", results)
        for sentence in findings_beside(name, results):
            print(f"• {sentence}")
    for name, why in lacking.items():
        print(f"without {name}: {why}")
        if f"seeds_{name}" in first.probe_names():  # of what is there no longer
            first.write_probe(f"seeds_{name}", xr.Dataset(attrs={"why": why}))


def _sweeps_over_seeds(
    config: ProbeConfig, runs, probes: list[str], layers: list[int], again: list | None
) -> None:
    from probe.report import progress_bar
    from probe.seeds_runs import over_runs
    from probe.seeds_table import print_seeds

    k, said = numbers(config.k, "--k"), list[str]()
    with progress_bar() as show:
        results = over_runs(
            runs,
            probes,
            layers,
            k=k,
            again=again,
            seed=config.seed,
            dask=config.dask,
            progress=show,
            tell=said.append,
        )
    for sentence in said:
        print(sentence)
    try:
        runs[0].write_probe("seeds", results)
    finally:
        print_seeds(results)  # also where the disk is full, or not to be written to


def _beside(name: str, run, layers: list[int], seed: int) -> None:
    from probe import alignment as through
    from probe import steps as training
    from probe.maps import maps
    from probe.objects import objects
    from probe.reconstruction import reconstruction
    from probe.report import print_beside, progress_bar

    make: dict[str, Callable] = {"maps": partial(maps, seeds=2), "objects": objects}
    make |= {"reconstruction": reconstruction, "steps": training.steps}
    make |= {"alignment": through.alignment}
    said = {"steps": training.findings, "alignment": through.findings}
    if name == "objects":
        layers = run.layers  # a page asks for any of them
    with progress_bar() as show:
        results = make[name](run, layers, seed=seed, progress=show)
    run.write_probe(name, results)
    print_beside(name, results)
    for sentence in said[name](results) if name in said else ():
        print(f"• {sentence}")


def report(config: ReportConfig) -> None:
    from probe.page import write_report
    from store import open_run

    for path in write_report(open_run(config.run), config.out):
        print(path)


def numbers(text: str, flag: str) -> list[int]:
    """The whole numbers of a comma list, in order, each once."""
    try:
        return sorted({int(item) for item in text.split(",")})
    except ValueError:
        raise ValueError(f"{flag} {text!r}: expected whole numbers with commas between") from None


def cli() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["report"]:
        name = "python -m probe report"
        return exit_code(lambda: report(tyro.cli(ReportConfig, prog=name, args=arguments[1:])))
    return exit_code(lambda: main(tyro.cli(ProbeConfig, prog="python -m probe", args=arguments)))


if __name__ == "__main__":
    sys.exit(cli())
