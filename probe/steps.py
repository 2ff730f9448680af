"""Drift over training: how a layer's tokens leave the target, or come back, step by step."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from probe import intervals
from probe.cells import LEVEL, Objects, Settings, drift_cell
from probe.sweep import read_objects
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
    measured as in `probe.sweep.sweep`, with 95 % intervals over the query objects; nan at steps
    that a model was not captured at. Raises ValueError where no model has steps.
    """
    names = [name for name in (variants or run.variants) if run.steps(name)]
    if not names:
        raise ValueError(
            f"{run.name} holds no model captured during training: "
            "python -m train.stage2 --capture-every STEPS makes such a run"
        )
    depth = sorted(run.layers if layers is None else layers)
    data = read_objects(run, names)
    every = sorted({step for name in names for step in run.steps(name)})
    found = np.full((len(SCORES), 3, len(names), len(every), len(depth)), np.nan)
    places = [(name, step, layer) for name in names for step in run.steps(name) for layer in depth]
    for at, (name, step, layer) in enumerate(places):
        if progress:
            progress(at, len(places), f"{name}, step {step}, layer {layer}")
        states = run.hidden(name).sel(step=step, layer=layer)[: data.samples].values
        place = names.index(name), every.index(step), depth.index(layer)
        found[(slice(None), slice(None), *place)] = _scores(data, states, seed)
    results = xr.Dataset(
        coords={"variant": names, "step": every, "layer": depth},
        attrs={
            "run": run.path.name,
            "seed": seed,
            "level": LEVEL,
            "query_objects": len(data.query),
            "gallery_objects": len(data.gallery),
        },
    )
    for (key, (name, direction)), three in zip(SCORES.items(), found, strict=True):
        for part, values in zip(("mean", "low", "high"), three, strict=True):
            bound = "" if part == "mean" else f", {part} end of the {LEVEL:.0%} interval"
            about = {"long_name": f"{name}{bound}", "direction": direction}
            results[f"{key}_{part}"] = (DIMS, values, about)
    return results


def _scores(data: Objects, states: np.ndarray, seed: int) -> np.ndarray:
    """Mean, low and high of each of `SCORES`, (scores, 3). states : (samples, tokens, dim)."""
    cell = drift_cell(data, states.astype(np.float32, copy=False), Settings((1,), seed))
    means = [intervals.bootstrap(cell[part], level=LEVEL, seed=seed) for part in PARTS]
    return np.array([cell["cka"], *means])
