"""Does a store hold what it says? Reads every chunk of it once."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from store.reader import Run, open_run
from store.writer import leading


def verify_run(path: str | Path) -> list[str]:
    """Problems of the run in `path`, a sentence each; none when it is whole.

    Every finished chunk is read, which checks its checksum, and searched for values that are not
    finite, as those of a lost chunk are. An unfinished store is no problem, unless it says that
    it is complete. Raises StoreError where there is no run at all.
    """
    run = open_run(path)
    problems = []
    root: Any = zarr.open_group(run.store, mode="r", use_consolidated=False)
    for name, array in [("target", "tokens"), *((variant, "hidden") for variant in run.variants)]:
        if name not in root:
            problems.append(f"{name} is missing")
            continue
        problems += _check_states(run, root, name, array)
    if run.attrs["points"] is not None:
        problems += _check_points(root)
    return problems


def _check_states(run: Run, root: Any, name: str, array: str) -> list[str]:
    try:
        done = leading(np.asarray(root[f"{name}/written"]))
        states = root[f"{name}/{array}"]
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        return [f"{name} cannot be read: {error}"]
    samples, chunk = run.attrs["samples"], run.attrs["chunk"]
    problems = []
    if run.complete and done < samples:
        problems.append(
            f"{name} has {done} of {samples} samples, yet the store says it is complete"
        )
    layers: list[int | None] = list(run.layers) if array == "hidden" else [None]
    for at, layer in enumerate(layers):
        where = name if layer is None else f"{name}, layer {layer}"
        for start in range(0, done, chunk):
            rows = slice(start, min(start + chunk, done))
            problems += _check_chunk(states, rows if layer is None else (at, rows), where, rows)
    return problems


def _check_points(root: Any) -> list[str]:
    if "points/points" not in root:
        return ["points are missing"]
    points = root["points/points"]
    steps = range(0, points.shape[0], points.chunks[0])
    spans = [slice(start, min(start + points.chunks[0], points.shape[0])) for start in steps]
    return [problem for rows in spans for problem in _check_chunk(points, rows, "points", rows)]


def _check_chunk(array: Any, index: object, where: str, rows: slice) -> list[str]:
    try:
        values = np.asarray(array[index])
    except (ValueError, RuntimeError, OSError) as error:
        return [f"{where}, samples {rows.start}-{rows.stop - 1}: unreadable ({error})"]
    if not np.isfinite(values).all():
        return [f"{where}, samples {rows.start}-{rows.stop - 1}: a chunk is lost"]
    return []
