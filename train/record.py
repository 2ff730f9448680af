"""run.json of a run: how it was made, and whether the same command may go on with it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from store.place import Place
from store.schema import STORE

RECORD = "run.json"
FRESH = "run.new"


def check_new(folder: Path) -> None:
    """Raise FileExistsError where a folder holds a finished run, or what is none of ours."""
    if is_new(folder):
        return
    path = folder / RECORD
    if not path.is_file():
        raise FileExistsError(f"{folder} exists and is no run of ours; choose another --out")
    if read_record(folder).get("status") == "complete":
        raise FileExistsError(
            f"{folder} already holds a complete run; see it with python -m probe {folder}, or "
            "choose another --out"
        )


def is_new(folder: Path) -> bool:
    """Whether nothing is in a folder but what a run has, or leaves when it is killed, before it has
    a record: its lock, and a half of the record."""
    return not folder.exists() or all(
        path.name == FRESH or path.suffix == ".lock" for path in folder.iterdir()
    )


def check_elsewhere(folder: Path, store: str | None) -> None:
    """Raise FileExistsError where a new run would put its states into the store of another."""
    if store and not read_record(folder) and Place(store).exists(f"{STORE}/zarr.json"):
        raise FileExistsError(
            f"{store} already holds a run, which was not begun in {folder}; give the --out that it "
            "was begun with, or choose another --store"
        )


def check_same(folder: Path, record: Mapping[str, Any], free: Collection[str]) -> None:
    """Raise ValueError, naming what differs, where a stopped run began with other settings.

    record : with `config` and `hashes`, as `train.provenance` makes it.
    free   : settings that may differ, because they don't change the numbers of a run.
    """
    before = read_record(folder)
    differences = [
        f"{name} was {old.get(name)}, now {new.get(name)}"
        for old, new in ((before.get(part, {}), record[part]) for part in ("config", "hashes"))
        for name in dict.fromkeys([*old, *new])
        if before and name not in free and old.get(name) != new.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds an interrupted run with other settings ({'; '.join(differences)}); "
            "repeat its command, or choose another --out"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """What stands in run.json; empty where there is none."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Put it in the folder, made if needed; a reader finds the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / FRESH
    fresh.write_text(json.dumps(record, indent=2, default=str) + "\n")
    fresh.replace(folder / RECORD)
