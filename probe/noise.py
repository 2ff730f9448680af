"""The noise floor: how much two captures of the same objects differ, which is no loss.

A second capture reads other points of the same shapes, or the same ones moved or turned. No
measure can be asked to agree with the target better than a capture agrees with its repetition.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from probe import cka, intervals, knn
from probe.cells import LEVEL, Objects, Settings
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run

ABOUT = {
    "noise_cka": "debiased CKA of two captures of the same objects",
    "noise_agreement": "share of objects of one class in two captures",
}


class Noise(NamedTuple):
    """What two captures of a run's models have in common; nan of a model that has but one.

    likeness : (3, variants, layers), debiased CKA with its interval
    own      : (variants, layers, objects), what each query object adds to it
    agreeing : (variants, layers, objects), whether both captures name the same class, as 1 or 0
    said     : what was captured again, in words
    """

    likeness: np.ndarray
    own: np.ndarray
    agreeing: np.ndarray
    said: str


def noise_floor(
    results: xr.Dataset, run: Run, again: Run, data: Objects, ask: Settings
) -> xr.Dataset:
    """Adds `noise_cka_*` and `noise_agreement_*` (variant, layer) to the results of a sweep.

    noise_cka : debiased CKA of the query objects' mean tokens in both captures, 1 = no noise
    noise_agreement : share of them whose k nearest neighbours, looked up in the gallery of the
    first capture, name the same class in both; k the largest of the sweep

    Models that were not captured again have nan. Raises ValueError as `between` does.
    """
    variants, layers = results["variant"].values.astype(str).tolist(), results["layer"].values
    return with_floor(results, between(run, again, variants, layers, data, ask))


def with_floor(results: xr.Dataset, noise: Noise) -> xr.Dataset:
    """Results of a sweep with its noise floor, see `noise_floor`."""
    same, dims = noise.agreeing.sum(axis=-1), ("variant", "layer")
    agreement = intervals.wilson(same, noise.agreeing.shape[-1], LEVEL)
    floors = {"noise_cka": intervals.Interval(*noise.likeness), "noise_agreement": agreement}
    for key, values in floors.items():
        for part, numbers in zip(("mean", "low", "high"), values, strict=True):
            attrs = {"long_name": ABOUT[key], "direction": "1 = no noise"}
            results[f"{key}_{part}"] = (dims, np.asarray(numbers), attrs)
    return results.assign_attrs(noise_floor=noise.said)


def between(
    run: Run,
    again: Run,
    variants: Sequence[str],
    layers: Sequence[int] | np.ndarray,
    data: Objects,
    ask: Settings,
) -> Noise:
    """What both captures have in common of the query objects.

    Raises ValueError as `matching` does.
    """
    rows = matching(run, again, variants, layers, data)
    likeness = np.full((3, len(variants), len(layers)), np.nan)
    own, agreeing = np.full((2, *likeness.shape[1:], len(rows)), np.nan)
    for v, at in np.ndindex(likeness.shape[1:]):
        if variants[v] not in again.variants:
            continue
        tokens = [Tokens(one.final(variants[v]).sel(layer=layers[at])) for one in (run, again)]
        here, there = (one.pooled for one in tokens)
        once, twice = here[data.query], there[rows]
        with errors_of(f"{again.path.name}: {variants[v]}, layer {layers[at]}", again, tokens[1]):
            alike = cka.cka_interval(once, twice, level=LEVEL)
        likeness[:, v, at] = alike[:3]
        own[v, at] = cka.own_parts(np.array(alike.mean), alike.left_out)
        named = [
            knn.knn_predict(here[data.gallery], data.labels[data.gallery], states, max(ask.k))
            for states in (once, twice)
        ]
        agreeing[v, at] = named[0] == named[1]
    both = ", ".join(name for name in variants if name in again.variants)
    said = f"second capture {again.path.name}, of {both}"
    return Noise(likeness, own, agreeing, said)


def matching(
    run: Run,
    again: Run,
    variants: Sequence[str],
    layers: Sequence[int] | np.ndarray,
    data: Objects,
) -> np.ndarray:
    """Where the second capture has each of the query objects, (queries,).

    Raises ValueError where no model was captured again, or the second run has other objects, by id
    or by what is known of them, lacks a layer or is not yet captured as far as the query objects.
    """
    if not (both := [name for name in variants if name in again.variants]):
        raise ValueError(
            f"{again.path} has none of the models of {run.path}: {', '.join(again.variants)} "
            f"instead of {', '.join(variants)}"
        )
    if missing := [int(layer) for layer in layers if layer not in again.layers]:
        raise ValueError(f"{again.path} has no layer {missing[0]}, {run.path} has")
    ids = run.samples()["sample"].values[: data.samples]
    theirs = again.samples()["sample"].values
    place = {name: at for at, name in enumerate(theirs)}
    if lacking := [name for name in ids if name not in place]:
        raise ValueError(f"{again.path} lacks {len(lacking)} objects of {run.path}: {lacking[0]}")
    every = np.array([place[name] for name in ids])
    _check_same(run, again, every)
    rows = every[data.query]
    for name in both:
        if (done := again.done(name)) <= rows.max():
            raise ValueError(
                f"{again.path} is not completely captured: {name} has {done} of {len(theirs)} "
                f"objects, not all the query objects of {run.path}"
            )
    return rows


def _check_same(run: Run, again: Run, rows: np.ndarray) -> None:
    """ValueError where ids name other objects there, as those of a run of another seed do."""
    mine, theirs = run.samples().isel(sample=slice(len(rows))), again.samples().isel(sample=rows)
    for name in mine.data_vars:
        if name == "split" or name not in theirs:
            continue
        a, b = mine[name].values, theirs[name].values
        other = (a != b) & ~((a != a) & (b != b))  # both unknown, nan, are the same
        if other.any():
            first = mine["sample"].values[other.argmax()]
            raise ValueError(
                f"{again.path} is no second capture of {run.path}: {first} has another {name} in "
                "it; one is of the same data and --seed"
            )
