"""Reading for the pages: cached by content, kept inside RUNS_DIR, every failure one sentence."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

import store
from store.schema import STORE

MAKE_A_RUN = "python -m train.stage2 --capture-layers 4,8,...,32"
OPENS = ("complete", "running", "unfinished", "no states")
FAILURES = (KeyError, TypeError, ValueError, RuntimeError, OSError)
"""What reading damaged files raises, in zarr, in its codecs, in json and in xarray."""
SWEEP_ATTRS = {"run", "level", "gallery_objects", "query_objects", "classes", "chance"}
BLOCK = 256  # samples read at a time when all of them are averaged over their tokens
_sweeping = threading.Lock()


class Unreadable(Exception):
    """Something that cannot be shown, in a sentence for the person who looks."""


class NoRuns(Exception):
    """There is no run to open; `command` makes one."""

    def __init__(self, message: str, command: str):
        super().__init__(message)
        self.command = command


class Entry(NamedTuple):
    """A folder under RUNS_DIR and what is to be seen of it."""

    name: str
    state: str
    note: str


def runs_folder(arguments: Sequence[str]) -> Path:
    """RUNS_DIR of the command line, or `runs`. Raises NoRuns where it is no folder."""
    if len(arguments) > 1:
        raise Unreadable("Expected one folder of runs: streamlit run dashboards/app.py -- RUNS_DIR")
    folder = Path(arguments[0] if arguments else "runs")
    if not folder.is_dir():
        raise NoRuns(f"There is no folder {folder}.", _make(folder))
    if (folder / STORE).exists():
        raise Unreadable(f"{folder} is itself a run: give the folder that holds it.")
    return folder.resolve()


def list_runs(folder: Path) -> list[Entry]:
    """Every folder in RUNS_DIR, runs or not, complete ones first. Raises NoRuns for none."""
    with reading(folder):
        children = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    entries = [_entry(folder, name) for name in children]
    if not any(entry.state != "no run" for entry in entries):
        others = f" ({len(entries)} other folders are in it)" if entries else ""
        raise NoRuns(f"There is no run in {folder}{others}.", _make(folder))
    order = {state: at for at, state in enumerate(OPENS)}
    return sorted(entries, key=lambda entry: order.get(entry.state, len(order)))


def run_path(folder: Path, name: str) -> Path:
    """The run of that name. Raises Unreadable for what does not lie in RUNS_DIR itself."""
    path = folder / name
    if path.resolve().parent != folder.resolve() or path.resolve() != folder.resolve() / name:
        raise Unreadable(f"{name} leads out of {folder}, and only runs inside it are opened.")
    for part in (STORE, "run.json", "metrics.jsonl"):
        if not (path / part).resolve().is_relative_to(path.resolve()):
            raise Unreadable(f"{part} of {name} leads out of its run, and is not opened.")
    return path.resolve()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the failures of damaged files into Unreadable."""
    try:
        yield
    except store.StoreError as error:
        raise Unreadable(str(error)) from error
    except FAILURES as error:
        what = str(error) or type(error).__name__
        raise Unreadable(f"{path} cannot be read, it may be damaged: {what}") from error


def open_run(path: Path) -> store.Run:
    """The run in `path`, its plan checked; nothing else is read yet."""
    with reading(path):
        run = store.open_run(path)
        names = [str(name) for name in run.variants]
        if not all(name.replace("_", "").isalnum() for name in names):
            raise ValueError("the name of a variant is none")
        if not names or not run.layers or run.attrs["samples"] < 1:
            raise ValueError("it names no samples, layers or variants")
    return run


def record(path: Path) -> dict[str, Any]:
    """run.json of a run; empty where there is none."""
    file = path / "run.json"
    if not file.is_file():
        return {}
    with reading(file):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no record")
    return found


def done(path: Path) -> dict[str, int]:
    """Finished samples of the target and of each variant."""
    with reading(path):
        run = open_run(path)
        return {name: run.done(name) for name in ("target", *run.variants)}


def metrics(path: Path) -> pd.DataFrame:
    """The logged steps, (variant, step, ...); a last line that is being written is left out."""
    return _metrics(path, _stamp(path, "metrics.jsonl"))


def samples(path: Path) -> pd.DataFrame:
    """Sample id, label, class name, split and caption, a row a sample."""
    return _samples(path, _stamp(path, STORE))


def cloud(path: Path, row: int) -> np.ndarray:
    """The points of one object, (points, 6)."""
    return _cloud(path, row, _stamp(path, STORE))


def neighbours(path: Path, variant: str, layer: int, row: int, count: int) -> pd.DataFrame:
    """The gallery objects nearest to one object by the cosine of their mean tokens, in order.

    The object itself does not count. Columns row, sample, class_name, and right: same class.
    """
    from probe.knn import nearest

    table = samples(path)
    pooled = _pooled(path, variant, layer, _stamp(path, STORE))
    if row >= len(pooled):
        raise Unreadable(f"This object is not captured yet for {variant}.")
    split = table.split.to_numpy()[: len(pooled)]
    gallery = np.flatnonzero((split == "gallery") & (np.arange(len(pooled)) != row))
    if not len(gallery):
        raise Unreadable(f"No gallery object is captured yet for {variant}.")
    with reading(path):
        found = nearest(pooled[gallery], pooled[row : row + 1], min(count, len(gallery)))[0]
    near = table.iloc[gallery[found]][["sample", "class_name"]]
    right = near.class_name == table.class_name[row]
    return near.assign(right=right).rename_axis("row").reset_index()


def sweep_results(path: Path, progress: Callable[[int, int, str], None]) -> xr.Dataset:
    """The stored sweep of a run; where there is none it is computed and stored.

    One is computed at a time: a second page that asks waits, and then reads.
    """
    kept = path / STORE / "probes" / "sweep" / "zarr.json"
    if not kept.is_file():
        with _sweeping:
            if not kept.is_file():
                _compute_sweep(path, progress)
    return _sweep(path, _stamp(path, str(kept.relative_to(path))))


def scores_table(results: xr.Dataset, score: str, k: int | None = None) -> pd.DataFrame:
    """One score of a sweep, a row a variant, layer (and K); with what it is read against."""
    controls = {"knn": ["knn_shuffled"], "cka": []}.get(score, [f"{score}_random"])
    names = [*(f"{score}_{part}" for part in ("mean", "low", "high")), *controls]
    picked = results[names] if k is None else results[names].sel(k=[k])
    return picked.to_dataframe().reset_index()


def differences_table(results: xr.Dataset, score: str) -> pd.DataFrame:
    """Each model less the baseline, a row a comparison, layer and K, with interval and p."""
    parts = ("", "_low", "_high", "_p", "_p_adjusted")
    picked = results[[f"{score}_difference{part}" for part in parts]]
    return picked.to_dataframe().reset_index()


def _make(folder: Path) -> str:
    """The command that puts a first run in a folder."""
    import shlex

    here = folder.resolve() == Path("runs").resolve()
    return MAKE_A_RUN if here else f"{MAKE_A_RUN} --out {shlex.quote(str(folder / 'first'))}"


def _entry(folder: Path, name: str) -> Entry:
    try:
        path = run_path(folder, name)
        has_store = (path / STORE).exists()
        if not has_store and not (path / "run.json").exists():
            if (path / "metrics.jsonl").exists():
                return Entry(name, "no states", "Training only: it holds no captured states.")
            return Entry(name, "no run", f"This folder holds no {STORE}.")
        running = record(path).get("status") == "running"
        if not has_store:
            state = "running" if running else "no states"
            return Entry(name, state, "No states are captured yet.")
        run = open_run(path)
    except Unreadable:
        return Entry(name, "cannot be opened", "See the page for what is wrong.")
    size = f"{run.attrs['samples']} objects, {len(run.layers)} layers, {', '.join(run.variants)}"
    if running:
        return Entry(name, "running", f"Still running. {size}")
    return Entry(name, "complete" if run.complete else "unfinished", size)


def _compute_sweep(path: Path, progress: Callable[[int, int, str], None]) -> None:
    from probe.sweep import sweep

    run, about = open_run(path), record(path)
    if not run.complete:
        raise Unreadable(
            f"{path.name} is not completely captured yet, so there are no scores; "
            "the training page shows how far it is."
        )
    if about.get("status") == "running":  # its own job may be writing the very same scores
        raise Unreadable(
            f"{path.name} is still running, and its scores come last; if it was stopped, "
            f"python -m probe {path.name} computes them."
        )
    with reading(path):
        settings = about.get("config", {})
        wanted = [int(k) for k in str(settings.get("neighbours", "1,10")).split(",")]
        gallery = int((samples(path).split == "gallery").sum())
        fitting = [k for k in wanted if k <= gallery] or [1]
        seed = int(settings.get("seed", 0))
        run.write_probe("sweep", sweep(run, k=fitting, seed=seed, progress=progress))


def _stamp(path: Path, *names: str) -> tuple[int, ...]:
    """When these files, and the store's own marks, were last written: the key of every cache."""
    marks = [path / name for name in names]
    if STORE in names:
        marks += [path / STORE / "zarr.json", *sorted((path / STORE).glob("*/written/c/*"))]
    return tuple(mark.stat().st_mtime_ns for mark in marks if mark.exists())


@st.cache_data(max_entries=8, show_spinner=False)
def _metrics(path: Path, stamp: tuple[int, ...]) -> pd.DataFrame:
    file = path / "metrics.jsonl"
    if not file.is_file():
        return pd.DataFrame({"variant": [], "step": []})
    with reading(file):
        lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and {"variant", "step"} <= entry.keys():
            rows.append(entry)
    table = pd.DataFrame(rows, columns=None if rows else ["variant", "step"])
    numbers = [name for name in table.columns if name != "variant"]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    return table.astype({"variant": str})


@st.cache_data(max_entries=8, show_spinner=False)
def _samples(path: Path, stamp: tuple[int, ...]) -> pd.DataFrame:
    with reading(path):
        found = open_run(path).samples()
        table = pd.DataFrame({name: found[name].values for name in found.variables})
        return table[["sample", "label", "class_name", "split", "caption"]]


@st.cache_data(max_entries=128, show_spinner=False)
def _cloud(path: Path, row: int, stamp: tuple[int, ...]) -> np.ndarray:
    with reading(path):
        points = open_run(path).points()[row].values
        if not np.isfinite(points).all():
            raise ValueError("the points of this object are lost")
        return points


@st.cache_data(max_entries=12, show_spinner="Reading the states of this layer …")
def _pooled(path: Path, variant: str, layer: int, stamp: tuple[int, ...]) -> np.ndarray:
    """Mean tokens of all captured samples, (samples, dim), read in blocks to bound memory."""
    with reading(path):
        states = open_run(path).hidden(variant).sel(layer=layer)
        starts = range(0, states.sizes["sample"], BLOCK)
        blocks = [states[at : at + BLOCK].values.mean(axis=1, dtype=np.float64) for at in starts]
        return np.concatenate(blocks) if blocks else np.empty((0, states.sizes["dim"]))


@st.cache_data(max_entries=8, show_spinner=False)
def _sweep(path: Path, stamp: tuple[int, ...]) -> xr.Dataset:
    with reading(path):
        results = open_run(path).probes("sweep")
        absent = SWEEP_ATTRS - results.attrs.keys() | {"variant", "layer"} - results.sizes.keys()
        if absent:
            raise ValueError(
                f"its sweep lacks {', '.join(sorted(map(str, absent)))}; "
                f"python -m probe {path.name} makes it anew"
            )
        return results
