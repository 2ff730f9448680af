"""What each layer of each model takes each object for: the numbers behind the pages on objects.

`objects` makes one Dataset of every captured object, query and gallery alike, so that a page only
looks things up. A probe with intervals says what holds of them all; this says which ones.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr

from probe import cache
from probe.drift import apply_map, fit_map
from probe.geometry import descriptors
from probe.knn import nearest, unit_rows, vote
from probe.maps import chained
from probe.splits import apart, gallery_query, groups_of, layers_of
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run

SHOWN = 6  # neighbours that are kept by row
BLOCK = 256  # objects whose tokens are in memory at a time
FIT = 4096  # gallery objects that the ridge map is fitted on, at most
Progress = Callable[[int, int, str], None]


def objects(
    run: Run,
    layers: Sequence[int] | None = None,
    models: Sequence[str] | None = None,
    *,
    k: int = 10,
    factors: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Of each object in each layer of each model, (model, layer, sample, ...):

    `position` (axis)   PCA of the mean tokens as unit rows, mean radius 1, each layer turned onto
                        the one before and each model onto the first, so that points don't jump
    `named`             label that the k nearest gallery objects vote for, by cosine
    `support`           share of them that are of the object's own class, higher is better
    `neighbour` (near)  rows of the nearest gallery objects, nearest first
    `token_drift` (token)  1 - cosine to the target through the ridge map of `probe.drift`, lower
                        is closer; of gallery objects it is a little low, they fitted the map
    `drift`             its mean over the tokens

    and of each object `group` (sample), one number for it and its copies and near-copies, and
    `factor` (factor, sample), descriptors of its cloud. An object is no neighbour of its group. A
    model is a variant, or VARIANT@STEP where a
    variant was captured at several steps. Raises ValueError for an unfinished run.
    """
    if not run.complete:
        raise ValueError(f"{run.name} is not completely captured: its objects can't be compared")
    names = list(models or all_models(run))
    depth = layers_of(run, layers)
    table = run.samples()
    samples = table.sizes["sample"]
    gallery, query = gallery_query(table)
    groups = groups_of(run)
    gallery, _ = apart(gallery, query, groups)
    if len(gallery) < 2:
        raise ValueError(f"{run.path} has {len(gallery)} gallery object: neighbours need 2 or more")
    k = min(k, len(gallery) - 1)
    fit = np.sort(np.random.default_rng([seed, 19]).permutation(gallery)[:FIT])
    goal = Tokens(run.target()[:samples])
    tokens = goal.shape[1]
    grid = (len(names), len(depth), samples)
    position = np.empty((*grid, 2))
    named, support = np.empty(grid, np.int64), np.empty(grid, np.float32)
    near, drift = np.empty((*grid, min(SHOWN, k)), np.int32), np.empty((*grid, tokens), np.float32)
    asked = _Asked(goal, table["label"].values, groups, gallery, fit, k, seed)
    folder, known = cache.folder_of(run), cache.digest(*asked)
    for m, name in enumerate(names):
        maps = []
        for at, layer in enumerate(depth):
            if progress:
                progress(m * len(depth) + at, len(names) * len(depth), f"{name}, layer {layer}")
            hidden = Tokens(states(run, name, layer)[:samples])
            with errors_of(f"{name}, layer {layer}", run, hidden):
                key = cache.digest(hidden, known)
                one = cache.kept(folder, "objects", key, partial(_layer, hidden, asked))
            near[m, at], named[m, at], support[m, at] = one["near"], one["named"], one["support"]
            drift[m, at] = one["drift"]
            maps.append(one["position"])
        position[m] = chained(np.stack(maps), position[0, 0] if m else None)
    each = ("model", "layer", "sample")
    results = xr.Dataset(
        {
            "position": ((*each, "axis"), position.astype(np.float32)),
            "named": (each, named),
            "support": (each, support),
            "neighbour": ((*each, "near"), near),
            "token_drift": ((*each, "token"), drift.astype(np.float16)),
            "drift": (each, drift.mean(axis=-1)),
            "group": ("sample", groups),
        },
        {"model": names, "layer": depth, "axis": ["x", "y"]},
        {"k": k, "seed": seed, "run": run.path.name},
    )
    if factors and run.attrs["points"] is not None:
        if progress:
            progress(1, 1, "what there is to see of each cloud")
        results = results.merge(_factors(run))
    return results


class _Asked(NamedTuple):
    """What the objects of every layer are measured with."""

    goal: Tokens
    labels: np.ndarray
    groups: np.ndarray
    gallery: np.ndarray
    fit: np.ndarray
    """Rows that the ridge map is fitted on."""
    k: int
    seed: int


def _layer(hidden: Tokens, asked: _Asked) -> dict[str, np.ndarray]:
    """The parts of `objects` of one layer, its positions not yet turned."""
    labels, pooled = asked.labels, hidden.pooled
    found = others(pooled, asked.gallery, asked.groups, asked.k)
    fitted = fit_map(hidden, asked.goal, rows=asked.fit, seed=asked.seed)
    blocks = _blocks(len(labels))
    drift = [1 - _cosine(apply_map(hidden[at], fitted), asked.goal[at]) for at in blocks]
    return {
        "near": found[:, :SHOWN].astype(np.int32),
        "named": vote(labels[found]),
        "support": (labels[found] == labels[:, None]).mean(axis=1),
        "position": principal(pooled),
        "drift": np.concatenate(drift).astype(np.float32),
    }


def all_models(run: Run) -> list[str]:
    """Every variant, or VARIANT@STEP for each step that one was captured at."""
    found = []
    for name in run.variants:
        found += [f"{name}@{step}" for step in run.steps(name)] or [name]
    return found


def states(run: Run, model: str, layer: int) -> xr.DataArray:
    """Lazy tokens (sample, token, dim) of a model of `all_models`."""
    name, _, step = model.partition("@")
    found = run.hidden(name).sel(step=int(step)) if step else run.final(name)
    return found.sel(layer=layer)


def mean_tokens(stored: xr.DataArray) -> np.ndarray:
    """Mean over the tokens, (samples, dim), read in blocks so that memory is bounded."""
    return Tokens(stored).pooled


def others(pooled: np.ndarray, gallery: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k gallery objects nearest to each that are no copies of it, (samples, k).

    pooled : (samples, dim)    gallery : rows    groups : (samples,), one number for copies
    """
    copies = int(np.bincount(np.unique(groups[gallery], return_inverse=True)[1]).max())
    count = min(k + copies, len(gallery))
    found = gallery[nearest(pooled[gallery], pooled, count)]
    own = groups[found] == groups[:, None]
    order = own.argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1)


def principal(pooled: np.ndarray) -> np.ndarray:
    """The two directions of largest variance of unit rows, (samples, 2)."""
    rows = unit_rows(pooled)
    rows = rows - rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return rows @ vectors[:, ::-1][:, :2]


def painted(cloud: np.ndarray, centres: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How much a token reads of each point, (points,): 1 is the most, by the nearest patches.

    cloud : (points, 3 or more)    centres : (patches, 3)    weights : (patches,), its attention

    A point takes the mean of its three nearest patches, the nearer the more.
    """
    from scipy.spatial import cKDTree

    count = min(3, len(centres))
    gap, at = cKDTree(centres).query(cloud[:, :3], k=count)
    gap, at = gap.reshape(len(cloud), -1), at.reshape(len(cloud), -1)
    pull = 1 / (gap + 1e-6)
    read = (weights[at] * pull).sum(axis=1) / pull.sum(axis=1)
    low, high = read.min(), read.max()
    return (read - low) / (high - low) if high > low else np.zeros(len(read))


class Rebuilt(NamedTuple):
    """One object as it is rebuilt: its cloud (points, 3), and how far that is from the original."""

    layer: int | None
    """None is the target."""
    cloud: np.ndarray
    chamfer: float
    """Chamfer distance in mean radii, lower is closer."""


def rebuilt(results: xr.Dataset, variant: str, sample: str) -> list[Rebuilt]:
    """What a decoder makes of one object from the target's tokens, then from each layer's.

    results : of `probe.reconstruction.reconstruction`    sample : one of `results.shown`
    """
    from probe.reconstruction import judge

    one = results.sel(shown=sample)
    layers: list[int] = results.layer.values.tolist()
    clouds = [one.target_cloud.values, *one.cloud.sel(variant=variant).values]
    true = np.broadcast_to(one.true_cloud.values, (len(clouds), *one.true_cloud.shape))
    far = judge(np.stack(clouds), true).chamfer.tolist()
    return [Rebuilt(*each) for each in zip([None, *layers], clouds, far, strict=True)]


def _factors(run: Run) -> xr.Dataset:
    found = descriptors(run.points())
    names = list(map(str, found.data_vars))
    values = np.stack([found[name].values for name in names]).astype(np.float32)
    titles = [str(found[name].attrs["long_name"]) for name in names]
    return xr.Dataset(
        {"factor_value": (("factor", "sample"), values)},
        {"factor": names, "factor_title": ("factor", titles)},
    )


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of tokens (samples, tokens, dim), (samples, tokens); 0 where one has no direction."""
    scale = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    product = np.einsum("std,std->st", x, y)
    return np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)


def _blocks(samples: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, samples, BLOCK))
