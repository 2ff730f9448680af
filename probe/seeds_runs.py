"""Several runs of one recipe under other seeds: does what one run shows hold for the next?

Each run is swept by itself; then its measures are put together with those of the others, with
intervals over seeds and objects (`probe.seeds`).
"""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe import sweep
from probe.assemble import assemble
from probe.cells import LEVEL
from probe.noise import Noise, between, with_floor
from probe.seeds_scores import EVERY, Parts, layers_of, parts_of
from probe.seeds_sheet import SeedsSheet
from store import Run

OWN = ("seed", "out", "store", "stage1", "weights", "data_root", "threads")
"""Settings that runs of one recipe may have each for itself: the seed, and where things are."""


class Swept(NamedTuple):
    """One run's sweep, what each object adds to its measures and to the CKA of two layers, its
    class's place, (objects,), and what a second capture has in common with it.
    """

    results: xr.Dataset
    parts: dict[str, Parts]
    pairs: np.ndarray | None
    classes: np.ndarray
    floor: Noise | None


def over_runs(
    runs: Sequence[Run],
    probes: Sequence[str] = sweep.PROBES,
    layers: Sequence[int] | None = None,
    *,
    k: Sequence[int] = (1, 10),
    again: Sequence[Run] | None = None,
    seed: int = 0,
    dask: str | None = None,
    progress: sweep.Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Scores of several runs under other seeds, with 95 % intervals over seeds and objects.

    Of each measure of `probe.seeds_scores`, in the names and dimensions of a sweep, as far as
    their probes are asked for and all runs have what they need: `_mean`, `_low`, `_high`,
    `_by_run` (run, ...), and of the references `_target_*` and `_encoder_*` where a sweep has them;
    `cka_layers_*` of all pairs of layers. What is no mean over objects is told by its jackknife's
    pseudo-values, of single objects (CKA) or of the groups that the sweep leaves out. Paired by run
    and object, against the baseline `*_difference` (comparison, ...) and against the target
    `*_from_target` (variant, ...), each with `_low`, `_high`, `_p`, by Holm over the layers
    `_p_adjusted` (as in a sweep over properties, tokens and ways of asking at once), and by
    Bonferroni the band over all of them `_wide_low`, `_wide_high`. Of the
    verdicts `*_fall_by_run` (run, variant, ...) and `*_shift_by_run` (run, comparison, ...), with
    mean, low and high over seeds where all runs have one, low and high where these are not all the
    same. The attribute `shared` says whether all runs ask about the same objects.

    again : a second capture of each run, for `noise_*` as `probe.noise.noise_floor` has it

    Each run's own sweep is kept in it, and what it kept before of the same settings with it; `tell`
    is called with a sentence for each run of which more is kept, or less than before. Raises
    ValueError for runs that lack a model, a layer or a class of the first, or of which one is not
    completely captured, is given twice or is a copy of another; and for another number of second
    captures, or what `probe.noise.matching` refuses.
    """
    check(runs)
    seconds = [None] * len(runs) if again is None else list(again)
    if len(seconds) != len(runs):
        raise ValueError(f"{len(seconds)} second captures of {len(runs)} runs: name one of each")
    layers = list(runs[0].layers if layers is None else layers)
    variants = list(runs[0].variants)
    for run, second in zip(runs, seconds, strict=True):
        if second is not None:
            sweep.check_second(run, second, probes, layers, variants)
    swept = []
    for run, name, second in zip(runs, names_of(runs), seconds, strict=True):
        there = second is not None
        more, said = sweep.with_kept(run, probes, layers, k=k, seed=seed, again=there)
        if said and tell:
            tell(f"{name}: {said}")
        found = sweep.cells_of(
            run, more, layers, variants, k=k, seed=seed, dask=dask, progress=progress
        )
        swept.append(_swept(run, found, second))
        del found  # of one run at a time
    return _together(runs, swept, variants, seed)


def _together(
    runs: Sequence[Run], swept: list[Swept], variants: list[str], seed: int
) -> xr.Dataset:
    """The Dataset of `over_runs`, of each run's sweep."""
    own, parts, pairs, classes, floors = map(list, zip(*swept, strict=True))
    own, parts, classes = _in_common(own, parts, classes)
    shared = same_objects(runs)
    keys = [key for key in EVERY if all(key in one for one in parts)]
    compared = [one for one in pairs if one is not None]
    compared = compared if len(compared) == len(runs) else []
    asked = [set(one.attrs["probes"]) for one in own]
    dims = dict.fromkeys(dim for key in keys for dim in EVERY[key].extra)
    dims |= dict.fromkeys(("other_variant", "other_layer") if compared else ())
    results = xr.Dataset(
        coords={**_along(own, ["variant", "layer", *dims]), "run": names_of(runs)},
        attrs={
            "level": LEVEL,
            "seed": seed,
            "seeds": len(runs),
            "shared": int(shared),
            "probes": [name for name in sweep.ALL_PROBES if all(name in one for one in asked)],
            "recipes": recipes(runs),
            "query_objects": [one.attrs["query_objects"] for one in own],
        },
    )
    others = [name for name in variants if name != sweep.REFERENCE and sweep.REFERENCE in variants]
    models = [(variants.index(name), variants.index(sweep.REFERENCE)) for name in others]
    if others:
        results = results.assign_coords(comparison=[f"{name} - baseline" for name in others])
    sheet = SeedsSheet(own, models, shared, classes)
    for key in keys:
        sheet.put(key, [one[key] for one in parts])
    if compared:
        sheet.put_layers(compared)
    if known := [one for one in floors if one is not None]:
        sheet.put_noise(known)
        results = results.assign_attrs(noise_floor="; ".join(one.said for one in known))
    return results.assign(sheet.found)


def _swept(run: Run, found: sweep.Found, again: Run | None) -> Swept:
    """Put one run's cells together, keep the result in the run, and what an interval needs."""
    results = assemble(run, *found, sweep.REFERENCE)
    floor = None
    if again is None:
        results = sweep.with_noise(results, run, None, found.data, found.ask)
    else:
        floor = between(run, again, found.variants, found.layers, found.data, found.ask)
        results = with_floor(results, floor)
    run.write_probe("sweep", results)
    labels = found.data.labels
    classes = np.searchsorted(np.unique(labels), labels[found.data.query])
    return Swept(results, parts_of(found), layers_of(found), classes, floor)


def _in_common(
    own: list[xr.Dataset], parts: list[dict[str, Parts]], classes: list[np.ndarray]
) -> tuple[list[xr.Dataset], list[dict[str, Parts]], list[np.ndarray]]:
    """What all runs have: properties that vary in all, and as many sizes of learning curves;
    classes in the order of the first.

    A gallery of some objects more or less has curves of other sizes: the whole, its half and so on
    are put together.
    """
    if all("property" in one.coords for one in own):
        names = [one.property.values.tolist() for one in own]
        every = [name for name in names[0] if all(name in one for one in names)]
        rows = [[one.index(name) for name in every] for one in names]
        own, parts = _chosen(own, parts, "property", rows)
    if all("fitted" in one.coords for one in own):
        sizes = [one.sizes["fitted"] for one in own]
        rows = [list(range(size - min(sizes), size)) for size in sizes]
        own, parts = _chosen(own, parts, "fitted", rows)
    if all("class" in one.coords for one in own):
        names = [one["class"].values.tolist() for one in own]
        places = [np.array([names[0].index(name) for name in one]) for one in names]
        classes = [place[of] for place, of in zip(places, classes, strict=True)]
        own = [one.sel({"class": names[0]}) for one in own]
    return own, parts, classes


def _chosen(
    own: list[xr.Dataset], parts: list[dict[str, Parts]], dim: str, rows: list[list[int]]
) -> tuple[list[xr.Dataset], list[dict[str, Parts]]]:
    """Some places of each run along the first of a measure's own dimensions."""
    mine = [key for key, score in EVERY.items() if score.extra[:1] == (dim,)]
    chosen = []
    for one, some in zip(parts, rows, strict=True):
        cut = {
            key: Parts(
                one[key].models[:, some],
                *(None if part is None else part[some] for part in one[key][1:]),
            )
            for key in mine
            if key in one
        }
        chosen.append(one | cut)
    return [one.isel({dim: some}) for one, some in zip(own, rows, strict=True)], chosen


def _along(own: list[xr.Dataset], dims: Sequence[str]) -> dict[str, Any]:
    """Coordinates of the first run's sweep; learning curves have the mean sizes of all runs."""
    used: dict[str, Any] = {dim: own[0][dim].variable for dim in dims}
    if "fitted" in used:
        sizes = np.mean([one.fitted.values for one in own], axis=0)
        used["fitted"] = ("fitted", sizes.round().astype(int))
    return used


def check(runs: Sequence[Run]) -> None:
    """Raises ValueError, in a sentence, for runs that can't be put together."""
    paths = [str(run.path) for run in runs]
    if len(runs) < 2 or len(set(paths)) < len(paths):
        raise ValueError(f"{', '.join(paths)}: intervals over seeds need 2 or more runs, each once")
    first = runs[0]
    if unfinished := [run for run in runs if not run.complete]:
        raise ValueError(f"{unfinished[0].path} is not completely captured: seeds want whole runs")
    for run in runs[1:]:
        for what in ("variants", "layers"):
            mine, theirs = getattr(first, what), getattr(run, what)
            if absent := [one for one in mine if one not in theirs]:
                raise ValueError(f"{run.path} has no {what[:-1]} {absent[0]}, {first.path} has")
        for what in ("tokens", "target_tokens"):
            mine, theirs = (one.attrs.get(what) for one in (first, run))
            if mine != theirs:
                names = what.replace("_", " ")
                raise ValueError(f"{first.path} has {mine} {names}, {run.path} {theirs}")
        classes = [set(one.samples()["class_name"].values.astype(str)) for one in (first, run)]
        if lost := sorted(classes[0] ^ classes[1]):
            raise ValueError(f"{first.path} and {run.path} have other classes: {lost[0]} is in one")
    for one, other in combinations(runs, 2):
        if all(_same_states(one, other, variant, first.layers[-1]) for variant in first.variants):
            raise ValueError(
                f"{one.path} and {other.path} hold the same states: a copy of a run is no other "
                "seed, name it once"
            )


def recipes(runs: Sequence[Run]) -> str:
    """How runs differ in more than their seed, in words; empty where they don't, or don't say."""
    files = [Path(run.path) / "run.json" for run in runs]
    if not all(file.is_file() for file in files):
        return ""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    first, *rest = (one.get("config", {}) for one in records)
    other = [
        key for key in first if key not in OWN and any(one.get(key) != first[key] for one in rest)
    ]
    seeds = [one.get("seed") for one in (first, *rest)]
    said = []
    if other:
        said.append(f"differ in {', '.join(other)}")
    if len(set(seeds)) < len(seeds):
        said.append(f"have the seeds {', '.join(map(str, seeds))}")
    return f"the runs {' and '.join(said)}: an interval over them is of that" if said else ""


def same_objects(runs: Sequence[Run]) -> bool:
    """Whether all runs ask about the same clouds (where none are kept, targets) in one order."""
    tables = [run.samples() for run in runs]
    for name in ("sample", "split"):
        if any(not np.array_equal(tables[0][name], other[name]) for other in tables[1:]):
            return False
    known = all(run.attrs["points"] is not None for run in runs)
    samples = tables[0].sizes["sample"]
    some = slice(0, samples, max(1, samples // 16))
    mine, *others = ((run.points() if known else run.target())[some].values for run in runs)
    return all(np.array_equal(mine, theirs) for theirs in others)


def _same_states(one: Run, other: Run, variant: str, layer: int) -> bool:
    """Of the first few objects; two trainings end in none alike."""
    mine, theirs = (run.final(variant).sel(layer=layer)[:4].values for run in (one, other))
    return np.array_equal(mine, theirs, equal_nan=True)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Folder names, or whole paths where two are alike."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
