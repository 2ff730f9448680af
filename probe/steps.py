"""Drift over training: how a layer's tokens leave the target, or come back, step by step."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xarray as xr

from probe import cache, cka, intervals
from probe.cells import LEVEL, Cell, Settings, drift_cell
from probe.splits import layers_of
from probe.sweep import REFERENCE, read_objects
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run

DIMS = ("variant", "step", "layer")
SCORES = {  # name and direction
    "cka": ("debiased linear CKA with the target", "higher is closer"),
    "drift": ("drift from the target, 1 - cosine through a ridge map", "lower is closer"),
    "drift_centred": (
        "drift from the target, less what all objects share, 1 - cosine through a ridge map",
        "lower is closer",
    ),
}
ENDINGS = ("", "_low", "_high", "_p", "_p_adjusted", "_wide_low", "_wide_high")
PARTS = ("plain", "centred")  # of `probe.drift.Drift`: what "drift" and "drift_centred" average


def steps(
    run: Run,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """CKA and drift of the models that were captured during training, at each of their steps.

    layers, variants : those of the run by default; models captured once are left out
    progress         : called with (places done, places in all, what is next)

    Returns `cka_*`, `drift_*` and `drift_centred_*` (mean, low, high over variant, step, layer),
    measured as in `probe.sweep.sweep`, with 95 % intervals over the query objects, and what each
    object adds as `cka`, `drift` and `drift_centred` (variant, step, layer, object), of CKA the
    jackknife's pseudo-values, whose mean is the CKA; nan at steps that a model was not captured at.
    Paired by object against the baseline at the same step:
    `*_step_difference`, `_low`, `_high`, `_p` and, over all layers and steps at once, `_p_adjusted`
    and the band `_wide_low`, `_wide_high` (comparison, step, layer), nan at steps that one of the
    two lacks. Raises ValueError where no model has steps.
    """
    names = [name for name in (variants or run.variants) if run.steps(name)]
    if not names:
        raise ValueError(
            f"{run.name} holds no model captured during training: "
            "python -m train.stage2 --capture-every STEPS makes such a run"
        )
    depth = layers_of(run, layers)
    data = read_objects(run, names)
    every = sorted({step for name in names for step in run.steps(name)})
    grid = (len(names), len(every), len(depth))
    found = np.full((len(SCORES), 3, *grid), np.nan)
    each = np.full((len(SCORES), *grid, len(data.query)), np.nan, np.float32)
    places = [(name, step, layer) for name in names for step in run.steps(name) for layer in depth]
    ask = Settings((1,), seed)
    folder, known = cache.folder_of(run), cache.digest(*data[:-1])
    cells: dict[tuple[str, int, int], Cell] = {}
    for at, (name, step, layer) in enumerate(places):
        if progress:
            progress(at, len(places), f"{name}, step {step}, layer {layer}")
        tokens = Tokens(run.hidden(name).sel(step=step, layer=layer)[: data.samples])
        key = cache.digest(tokens, known, seed)
        with errors_of(f"{name}, step {step}, layer {layer}", run, tokens):
            cell = cache.kept(folder, "drift", key, partial(drift_cell, data, tokens, ask))
        place = names.index(name), every.index(step), depth.index(layer)
        found[(slice(None), slice(None), *place)] = _scores(cell, seed)
        each[(slice(None), *place)] = _of_each(cell)
        cells[name, step, layer] = cell
    results = xr.Dataset(
        coords={
            "variant": names,
            "step": every,
            "layer": depth,
            "object": run.samples()["sample"].values[data.query],
        },
        attrs={
            "run": run.path.name,
            "seed": seed,
            "level": LEVEL,
            "query_objects": len(data.query),
            "gallery_objects": len(data.gallery),
        },
    )
    for (key, (name, direction)), three, own in zip(SCORES.items(), found, each, strict=True):
        for part, values in zip(("mean", "low", "high"), three, strict=True):
            bound = "" if part == "mean" else f", {part} end of the {LEVEL:.0%} interval"
            about = {"long_name": f"{name}{bound}", "direction": direction}
            results[f"{key}_{part}"] = (DIMS, values, about)
        about = {"long_name": f"{name}, of each object", "direction": direction}
        results[key] = ((*DIMS, "object"), own, about)
    for name in names:
        if name != REFERENCE and REFERENCE in names:
            gaps = _differences(cells, name, every, depth, seed)
            results = results.merge(gaps.expand_dims(comparison=[f"{name} - {REFERENCE}"]))
    return results


def findings(results: xr.Dataset) -> list[str]:
    """Where training sets the models apart, a sentence for each comparison and score."""
    said = []
    for pair in results.comparison.values.astype(str) if "comparison" in results.coords else ():
        for key, (name, _) in SCORES.items():
            one = results.sel(comparison=pair)
            gap, p = (
                one[f"{key}_step_difference{ending}"].stack(place=("step", "layer")).dropna("place")
                for ending in ("", "_p_adjusted")
            )
            if not gap.size:
                said.append(f"{pair}: the two were captured at no step in common.")
                break
            best = gap.isel(place=int(np.abs(gap.values).argmax()))
            step, layer = best.place.item()
            bounds = one.sel(step=step, layer=layer)
            low, high = (float(bounds[f"{key}_step_difference_{end}"]) for end in ("low", "high"))
            sure = gap.step.values[p.values < 1 - LEVEL]
            first = f"first at step {sure.min()}" if len(sure) else "at no step"
            said.append(
                f"{pair}, {name}: beyond noise {first}; furthest apart {float(best):+.4f} "
                f"[{low:+.4f}, {high:+.4f}], at step {step}, layer {layer}."
            )
    return said


def _differences(
    cells: dict[tuple[str, int, int], Cell],
    name: str,
    every: list[int],
    depth: list[int],
    seed: int,
) -> xr.Dataset:
    """One model less the baseline at the steps both have, paired by object: (step, layer)."""
    places = [
        (i, j)
        for i, j in np.ndindex(len(every), len(depth))
        if {(name, every[i], depth[j]), (REFERENCE, every[i], depth[j])} <= set(cells)
    ]
    results = xr.Dataset(coords={"step": every, "layer": depth})
    for key, (text, _) in SCORES.items():
        grid = np.full((len(ENDINGS), len(every), len(depth)), np.nan)
        if places:
            pairs = [
                tuple(cells[model, every[i], depth[j]] for model in (name, REFERENCE))
                for i, j in places
            ]
            i, j = np.array(places).T
            grid[:, i, j] = _paired(key, pairs, seed)
        for at, ending in enumerate(ENDINGS):
            test = ending.startswith("_p")
            direction = "smaller is stronger evidence" if test else "0 = no difference"
            about = {"long_name": f"difference in {text}", "direction": direction}
            results[f"{key}_step_difference{ending}"] = (("step", "layer"), grid[at], about)
    return results


def _paired(key: str, pairs: list[tuple[Cell, ...]], seed: int) -> np.ndarray:
    """Each of `ENDINGS` of a difference, (endings, pairs)."""
    if key != "cka":
        part = PARTS[key == "drift_centred"]
        a, b = (np.stack([pair[side][part] for pair in pairs]) for side in (0, 1))
        return np.stack(intervals.paired_difference(a, b, seed=seed))
    rows = [
        cka.difference_of(a["cka"][0], a["cka_left_out"], b["cka"][0], b["cka_left_out"], LEVEL)
        for a, b in pairs
    ]
    mean, low, high, p = np.array([row[:4] for row in rows]).T
    left_out = np.array([row.left_out for row in rows])
    return np.stack(cka.over_layers(mean, low, high, p, left_out, LEVEL, seed))


def _scores(cell: Cell, seed: int) -> np.ndarray:
    """Mean, low and high of each of `SCORES`, (scores, 3)."""
    means = [intervals.bootstrap(cell[part], level=LEVEL, seed=seed) for part in PARTS]
    return np.array([cell["cka"], *means])


def _of_each(cell: Cell) -> np.ndarray:
    """What each object adds to each of `SCORES`, whose mean is the score: (scores, objects)."""
    return np.stack(
        [cka.own_parts(cell["cka"][0], cell["cka_left_out"]), *(cell[part] for part in PARTS)]
    )
