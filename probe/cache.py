"""Results kept by the hash of what went in: only what changed is computed again."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
import xarray as xr

from probe.tokens import Tokens
from store import Run

MEASURES = (
    *("cells", "cka", "controls", "copies", "dimension", "drift", "geometry", "halves", "hsic"),
    *("hubness", "intervals", "knn", "linear", "maps", "objects", "orders", "outliers", "pairs"),
    *("products", "reconstruction", "similarity", "tokens", "variants"),
)
UNREADABLE = (BadZipFile, EOFError, OSError, RuntimeError, ValueError)
"""What numpy raises for a file that is not there, cut off, or of other bytes."""


def folder_of(run: Run) -> Path | None:
    """Where results of a run are kept: in the run, where it lies on a disk of this machine."""
    return run.path.absolute() / "cache" / "probes" if isinstance(run.path, Path) else None


def kept(
    folder: Path | None, probe: str, key: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Named arrays from `folder`, or from `make()` and then into it; no folder, no keeping.

    The file is named by the probe and by `key`; it is written beside its place first, so that
    what is found there is whole; one that a disk has damaged is made anew. Arrays only: nothing in
    it is executed.
    """
    if folder is None:
        return make()
    path = folder / f"{probe}-{key}.npz"
    with (
        suppress(*UNREADABLE),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as found,
    ):
        return dict(found)
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{uuid4().hex}.npz"  # two layers may hold the same, at the same time
    try:
        np.savez(beside, allow_pickle=False, **arrays)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return arrays


def digest(*parts: Any) -> str:
    """Hash of arrays, Datasets and plain values, and of the code that measures."""
    found = hashlib.sha256(code().encode())
    for part in parts:
        if isinstance(part, xr.Dataset):
            for name, values in part.data_vars.items():
                found.update(str(name).encode())
                _add(found, values.values)
        elif isinstance(part, Tokens):
            found.update(part.digest.encode())
        elif isinstance(part, np.ndarray):
            _add(found, part)
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:32]


@cache
def code() -> str:
    """Hash of the source of all that a cell is made by: a changed measure is a new result."""
    here = Path(__file__).parent
    sources = [(here / f"{name}.py").read_bytes() for name in MEASURES]
    return hashlib.sha256(b"\0".join(sources)).hexdigest()


def _add(found: Any, values: np.ndarray) -> None:
    found.update(f"{values.dtype.str}{values.shape}".encode())
    found.update(np.ascontiguousarray(values).data)
