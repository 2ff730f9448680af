"""Which runs a folder holds, and opening one: nothing outside of it, every failure one sentence."""

import atexit
import json
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import store
from store.reader import elsewhere
from store.schema import STORE

MAKE_A_RUN = "python -m train.stage2 --capture-layers 4,8,...,32"
DEMO = Path(__file__).with_name("demo") / "shapes.zip"
OPENS = ("complete", "running", "unfinished", "no states")
FAILURES = (AttributeError, LookupError, TypeError, ValueError, RuntimeError, OSError)
"""What reading damaged files raises, in zarr, in its codecs, in json and in xarray."""


class Unreadable(Exception):
    """Something that cannot be shown, in a sentence for the person who looks."""


class NoRuns(Exception):
    """There is no run to open; `command` makes one. `plainly` names no folder: for a title."""

    plainly = "No run of yours was found: what to do is in here."

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


def demo_folder() -> Path:
    """A folder that holds the run which ships with the project, unpacked for this server."""
    return _unpacked()


def about_demo() -> str:
    """What the demo is cut from."""
    return str(record(demo_folder() / "demo-shapes").get("demo", "what it is was not recorded"))


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
    if not (path / STORE).exists():
        if named := elsewhere(path):
            raise Unreadable(
                f"{path.name} keeps its states in {named}: copy {STORE} from there into its folder "
                "to look at them here."
            )
        running = record(path).get("status") == "running"
        raise Unreadable(
            f"{path.name} {'is still running, and' if running else 'is trained only:'} no states "
            "are captured of it; its Training page shows how far it is."
        )
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


def _make(folder: Path) -> str:
    """The command that puts a first run in a folder."""
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


@cache
def _unpacked() -> Path:
    """Once for a server; removed when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="demo-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(DEMO) as archive:
        archive.extractall(folder)
    return folder
