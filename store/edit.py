"""New runs out of old ones: joined, or with less in them. Nothing that is there is changed."""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from store.begin import begin, copy_states, open_complete
from store.layout import seal
from store.lock import lock
from store.place import Place
from store.reader import Run, open_run
from store.schema import STORE, StoreError

SAME: tuple[str, ...] = (
    *("samples", "layers", "tokens", "dim", "target_dim", "encoder_dim", "dtype", "points"),
    *("target_tokens", "patches", "digests"),
)


def merge(runs: Sequence[str | Path], out: str | Path) -> Run:
    """Join complete runs of one data set into a new run `out`, without their probes.

    A variant of one run keeps its name. One of several runs is kept once if they hold the same
    states, else each gets the name of its run as a suffix (aligned_seed0, aligned_seed1).
    Interrupted, the same call goes on. Raises ValueError naming what differs between the runs.
    """
    opened = [open_complete(run) for run in runs]
    if not opened:
        raise ValueError("no runs to merge: name one or more")
    first = opened[0]
    for other in opened[1:]:
        for key in SAME:
            if first.attrs.get(key) != other.attrs.get(key):
                what = _different(first, other, key)
                raise ValueError(f"cannot merge {other.name} with {first.name}: their {what}")
        if not _equal(first.target(), other.target()):
            raise ValueError(f"cannot merge {other.name} with {first.name}: their targets differ")
        if first.attrs.get("encoder_dim") and not _equal(first.encoder(), other.encoder()):
            raise ValueError(f"cannot merge {other.name} with {first.name}: their encoders differ")
    sources = _names(opened)
    about = [{"run": run.path.name, "provenance": run.attrs["provenance"]} for run in opened]
    taken = {name: [run.path.name, variant] for name, (run, variant) in sources.items()}
    made = {"merged": about, "variants": taken} | _alike([one["provenance"] for one in about])
    return _copy(first, sources, out, first.layers, {}, made)


def prune(
    path: str | Path,
    *,
    layers: Sequence[int] = (),
    steps: Sequence[int] = (),
    out: str | Path | None = None,
) -> Run:
    """Drop layers or steps of a complete run: in its place, or as a new run `out`.

    The smaller store is written beside and takes the place of the other once it is whole; the
    results of probes stay. An object store can't rename: there `out` is needed.
    """
    place = Place(path)
    _finish_swap(place)
    run = open_complete(path)
    before = run.attrs["provenance"].get("pruned", {})
    have = {"layers": run.layers, "steps": [s for v in run.variants for s in run.steps(v)]}
    for name, asked in (("layers", layers), ("steps", steps)):
        if absent := [number for number in asked if number not in have[name]]:
            gone = ": it was dropped already" if absent[0] in before.get(name, []) else ""
            raise StoreError(f"{run.name} has no {name[:-1]} {absent[0]}{gone}")
    kept = [layer for layer in run.layers if layer not in layers]
    kept_steps = {v: [s for s in run.steps(v) if s not in steps] for v in run.variants}
    if not kept or any(run.steps(v) and not left for v, left in kept_steps.items()):
        raise ValueError(f"{run.name}: nothing would be left")
    sources = {name: (run, name) for name in run.variants}
    dropped = {
        name: [*before.get(name, []), *map(int, now)]
        for name, now in (("layers", layers), ("steps", steps))
    }
    about = run.attrs["provenance"] | {"pruned": dropped}
    if out is not None:
        return _copy(run, sources, out, kept, kept_steps, about)
    if place.local is None:
        raise ValueError(f"{place.name}: name a new run (--out), nothing can be renamed there")
    held = lock(place, 0)
    try:
        beside = place.local / ".pruned"
        _forget_other(beside, about)
        _copy(run, sources, beside, kept, kept_steps, about)
        shutil.copytree(
            place.local / STORE / "probes", beside / STORE / "probes", dirs_exist_ok=True
        )
        seal(Place(beside / STORE))
        (place.local / STORE).rename(place.local / f".{STORE}.old")
        _finish_swap(place)
    finally:
        held.release()
    return open_run(path)


def _forget_other(beside: Path, about: dict[str, Any]) -> None:
    """Remove what was begun by a prune that dropped something else, and was stopped."""
    with suppress(StoreError):  # nothing is there
        if open_run(beside).attrs["provenance"] != about:
            shutil.rmtree(beside)


def _finish_swap(place: Place) -> None:
    """Give the pruned store its name, also where a kill came between the two renames."""
    if place.local is None:
        return
    old, beside = place.local / f".{STORE}.old", place.local / ".pruned"
    if not (place.local / STORE).exists() and (beside / STORE).exists() and old.exists():
        (beside / STORE).rename(place.local / STORE)
    if (place.local / STORE).exists() and old.exists():
        shutil.rmtree(old)
        shutil.rmtree(beside, ignore_errors=True)


def _alike(made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all runs say alike of their states."""
    first, *others = made
    names = ("site", "tokens", "pool", "captured", "target")
    return {
        name: first[name]
        for name in names
        if name in first and all(other.get(name) == first[name] for other in others)
    }


def _different(first: Run, other: Run, key: str) -> str:
    if key == "digests":
        names = [n for n, value in first.attrs[key].items() if other.attrs[key].get(n) != value]
        return f"{', '.join(names) or 'data'} differ"
    return f"{key} are {first.attrs.get(key)} and {other.attrs.get(key)}"


def _names(runs: Sequence[Run]) -> dict[str, tuple[Run, str]]:
    """Where each variant of the merged run comes from."""
    owners: dict[str, list[Run]] = {}
    for run in runs:
        for variant in run.variants:
            owners.setdefault(variant, []).append(run)
    found: dict[str, tuple[Run, str]] = {}
    for variant, having in owners.items():
        first = having[0].hidden(variant)
        if all(_equal(first, run.hidden(variant)) for run in having[1:]):
            found[variant] = having[0], variant
            continue
        for run in having:
            suffix = re.sub(r"\W", "_", run.path.name)
            if f"{variant}_{suffix}" in found:
                raise ValueError(f"two runs are called {run.path.name}: rename one of the folders")
            found[f"{variant}_{suffix}"] = run, variant
    return found


def _equal(first: Any, second: Any) -> bool:
    """Whether two lazy arrays (.., sample, token, dim) are equal, a block of samples at a time."""
    if first.shape != second.shape:
        return False
    blocks = range(0, first.sizes["sample"], 128)
    spans = [{"sample": slice(start, start + 128)} for start in blocks]
    return all(
        np.array_equal(first.isel(s).values, second.isel(s).values, equal_nan=True) for s in spans
    )


def _copy(
    like: Run,
    sources: Mapping[str, tuple[Run, str]],
    out: str | Path,
    layers: list[int],
    steps: Mapping[str, list[int]],
    provenance: dict[str, Any],
) -> Run:
    """A new run with the samples of `like` and variants from several; goes on where it stopped."""
    own = {name: steps.get(name) or run.steps(variant) for name, (run, variant) in sources.items()}
    writer = begin(like, out, layers=layers, steps=own, provenance=provenance)
    for name, (run, variant) in sources.items():
        copy_states(writer, name, run, variant)
    writer.finish()
    return open_run(out)
