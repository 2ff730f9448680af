"""Every probe at every layer of every model of a run, with intervals, controls and differences."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from probe import cka, controls, geometry, intervals, knn, splits
from probe.drift import Drift, drift_parts
from probe.linear import LinearProbe, linear_probe
from store import Run

PROBES = ("knn", "drift")  # unless asked for more
ALL_PROBES = (*PROBES, "linear", "geometry")
REFERENCE = "baseline"  # what the other models are compared with
SHUFFLES = 10
LEVEL = 0.95
FITTED = "says how the read-out was fitted, no score"
Progress = Callable[[int, int, str], None]


def sweep(
    run: Run,
    probes: Sequence[str] = PROBES,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    k: Sequence[int] = (1, 10),
    properties: xr.Dataset | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Scores over (variant, layer), with 95 % intervals over the query objects.

    probes   : "knn" (accuracy of k neighbours of the mean token) and "drift" (debiased CKA of
               the mean tokens with the target's, and 1 - cosine through a ridge map); on request
               "linear" (accuracy of a ridge classifier of the mean token) and "geometry" (R^2
               of properties in a ridge regression on it)
    layers, variants : those of the run by default
    properties : what "geometry" is to read, (sample,) variables by sample id; by default the
               descriptors of the run's clouds
    progress : called with (steps done, steps in all, what is next)

    Accuracies are `knn_mean`, `_low`, `_high` (variant, layer, k), beside `knn_shuffled` (labels
    dealt out anew), `knn_target_*` (k) and the attribute `chance`; then `cka_*`, `drift_*` and
    `drift_centred_*` (variant, layer), with `*_random` for pairs of unrelated objects. Against
    the run's baseline, paired by object: `*_difference`, `_low`, `_high`, `_p` and, over all
    layers at once, `_p_adjusted` (comparison, layer). Each variable names its direction.
    "linear" adds `linear_*` as for knn, without k, `linear_selectivity_*` (accuracy less that of
    shuffled labels) and `linear_train`; "geometry" adds `geometry_*` (variant, layer, property),
    whose `_p_adjusted` are over all layers and properties at once.
    """
    variants, layers = _wanted(run, probes, layers, variants)
    data = _read_objects(run, variants)
    if "geometry" in probes:
        if progress:
            progress(0, 1, "descriptors")
        data = data._replace(properties=_properties(run, data, properties))
    if not 1 <= min(k) <= max(k) <= len(data.gallery):
        raise ValueError(f"k={list(k)}: must be 1 to {len(data.gallery)}, the gallery's objects")
    scores = _Scores(len(variants), len(layers), list(k), len(data.query))
    steps = [(v, at) for v in range(len(variants)) for at in range(len(layers))]
    for step, (v, at) in enumerate(steps):
        if progress:
            progress(step, len(steps), f"{variants[v]}, layer {layers[at]}")
        states = run.hidden(variants[v]).sel(layer=layers[at])
        tokens = states[: data.samples].values.astype(np.float32)
        if "knn" in probes:
            scores.add_knn(v, at, data, tokens, seed)
        if "drift" in probes:
            scores.add_drift(v, at, data, tokens, seed)
        if "linear" in probes:
            scores.linear[v, at] = _read_classes(data, tokens, seed)
        if "geometry" in probes:
            scores.geometry[v, at] = _read_properties(data, tokens, seed)
    if progress:
        progress(len(steps), len(steps), "intervals")
    return _assemble(run, probes, scores, data, variants, layers, seed)


class _Objects(NamedTuple):
    """What all layers share: labels, targets, and which rows are asked about."""

    samples: int
    labels: np.ndarray  # (samples,)
    gallery: np.ndarray  # rows
    query: np.ndarray  # rows
    copies: int
    target: np.ndarray  # (samples, tokens, target_dim)
    groups: np.ndarray  # (samples,), one number for copies of an object
    properties: xr.Dataset | None = None  # (sample,) each


class _Scores:
    """Per-object scores, from which every mean, interval and test is taken."""

    def __init__(self, variants: int, layers: int, k: list[int], queries: int):
        self.k = k
        self.hits = np.zeros((variants, layers, len(k), queries), bool)
        self.shuffled = np.zeros((variants, layers, len(k)))
        self.cka = np.zeros((variants, layers, 3))
        self.cka_left_out = np.zeros((variants, layers, queries))
        self.drift = np.zeros((len(Drift._fields), variants, layers, queries))
        self.linear: dict[tuple[int, int], LinearProbe] = {}
        self.geometry: dict[tuple[int, int], xr.Dataset] = {}

    def add_knn(self, v: int, at: int, data: _Objects, tokens: np.ndarray, seed: int) -> None:
        found = _neighbours(data, tokens, max(self.k))
        dealt = controls.shuffled_labels(data.labels[data.gallery], shuffles=SHUFFLES, seed=seed)
        for i, k in enumerate(self.k):
            self.hits[v, at, i] = _hits(data, found[:, :k])
            predicted = [knn.vote(labels[found[:, :k]]) for labels in dealt]
            self.shuffled[v, at, i] = np.mean(np.stack(predicted) == data.labels[data.query])

    def add_drift(self, v: int, at: int, data: _Objects, tokens: np.ndarray, seed: int) -> None:
        pooled = tokens[data.query].mean(axis=1, dtype=np.float64)
        alike = cka.cka_interval(pooled, data.target[data.query].mean(axis=1, dtype=np.float64))
        self.cka[v, at] = alike.mean, alike.low, alike.high
        self.cka_left_out[v, at] = alike.left_out
        parts = drift_parts(
            tokens, data.target, "ridge", gallery=data.gallery, query=data.query, seed=seed
        )
        self.drift[:, v, at] = parts


def _wanted(
    run: Run, probes: Sequence[str], layers: Sequence[int] | None, variants: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    if wrong := [name for name in probes if name not in ALL_PROBES]:
        raise ValueError(f"no probe {wrong[0]!r}: there are {', '.join(ALL_PROBES)}")
    names = list(run.variants if variants is None else variants)
    if unknown := [name for name in names if name not in run.variants]:
        raise ValueError(
            f"{run.path} has no variant {unknown[0]!r}: it has {', '.join(run.variants)}"
        )
    depth = list(run.layers if layers is None else layers)
    if absent := [layer for layer in depth if layer not in run.layers]:
        raise ValueError(
            f"{run.path} has no layer {absent[0]}: it has {', '.join(map(str, run.layers))}"
        )
    return names, depth


def _read_objects(run: Run, variants: Sequence[str]) -> _Objects:
    """The objects all models have, the gallery without copies of query objects."""
    samples = min(run.done(name) for name in [*variants, "target"])
    if samples == 0:
        raise ValueError(f"{run.path} has no sample that all of {', '.join(variants)} have")
    table = run.samples().isel(sample=slice(samples))
    gallery, query = splits.gallery_query(table)
    objects = run.target() if run.attrs["points"] is None else run.points()
    groups = splits.duplicate_groups(objects[:samples])
    kept = splits.without_copies(gallery, query, groups)
    target = run.target()[:samples].values.astype(np.float32)
    copies = len(gallery) - len(kept)
    return _Objects(samples, table.label.values, kept, query, copies, target, groups)


def _properties(run: Run, data: _Objects, given: xr.Dataset | None) -> xr.Dataset:
    """What there is to read of each object; properties that do not vary are only named."""
    if given is None:
        table = geometry.descriptors(run.points()[: data.samples])
    else:
        ids = run.samples()["sample"].values[: data.samples]
        if len(absent := np.setdiff1d(ids, given["sample"].values)):
            raise ValueError(f"properties lack {len(absent)} of the run's samples, as {absent[0]}")
        table = given.sel(sample=ids)
    flat = [
        str(name)
        for name, values in table.data_vars.items()
        if any(geometry.constant(values.values[rows]) for rows in (data.gallery, data.query))
    ]
    if len(flat) == len(table.data_vars):
        raise ValueError(f"no property varies over the gallery and over the query: {flat}")
    return table.drop_vars(flat).assign_attrs(constant=flat)


def _read_classes(data: _Objects, tokens: np.ndarray, seed: int) -> LinearProbe:
    states = tokens.mean(axis=1, dtype=np.float64)
    return linear_probe(
        states[data.gallery],
        data.labels[data.gallery],
        states[data.query],
        data.labels[data.query],
        groups=data.groups[data.gallery],
        shuffles=SHUFFLES,
        level=LEVEL,
        seed=seed,
    )


def _read_properties(data: _Objects, tokens: np.ndarray, seed: int) -> xr.Dataset:
    assert data.properties is not None
    states = tokens.mean(axis=1, dtype=np.float64)
    return geometry.geometry_probe(
        states[data.gallery],
        data.properties.isel(sample=data.gallery),
        states[data.query],
        data.properties.isel(sample=data.query),
        groups=data.groups[data.gallery],
        shuffles=SHUFFLES,
        level=LEVEL,
        seed=seed,
    )


def _neighbours(data: _Objects, tokens: np.ndarray, k: int) -> np.ndarray:
    pooled = tokens.mean(axis=1, dtype=np.float64)
    return knn.nearest(pooled[data.gallery], pooled[data.query], k)


def _hits(data: _Objects, found: np.ndarray) -> np.ndarray:
    return knn.vote(data.labels[data.gallery][found]) == data.labels[data.query]


def _assemble(
    run: Run,
    probes: Sequence[str],
    scores: _Scores,
    data: _Objects,
    variants: list[str],
    layers: list[int],
    seed: int,
) -> xr.Dataset:
    results = xr.Dataset(
        coords={"variant": variants, "layer": layers, "k": scores.k},
        attrs={
            "run": str(run.path.name),
            "seed": seed,
            "level": LEVEL,
            "gallery_objects": len(data.gallery),
            "query_objects": len(data.query),
            "gallery_copies_dropped": data.copies,
            "chance": controls.chance_level(data.labels[data.gallery], data.labels[data.query]),
            "classes": len(np.unique(data.labels)),
        },
    )
    results.layer.attrs["long_name"] = "layer (0 = what enters block 1)"
    others = [name for name in variants if name != REFERENCE and REFERENCE in variants]
    if others:
        results = results.assign_coords(comparison=[f"{name} - {REFERENCE}" for name in others])
    pairs = [(variants.index(name), variants.index(REFERENCE)) for name in others]
    if "knn" in probes:
        _put_knn(results, scores, data, pairs, seed)
    if "drift" in probes:
        _put_cka(results, scores, pairs, seed)
        _put_drift(results, scores, pairs, seed)
    if "linear" in probes:
        _put_linear(results, scores, data, pairs, seed)
    if "geometry" in probes:
        results = _put_geometry(results, scores, data, pairs, seed)
    return results


def _put_knn(
    results: xr.Dataset, scores: _Scores, data: _Objects, pairs: list[tuple[int, int]], seed: int
) -> None:
    name, direction = "k-nearest-neighbour accuracy", "higher is better"
    dims = ("variant", "layer", "k")
    queries = len(data.query)
    share = intervals.wilson(scores.hits.sum(axis=-1), queries, LEVEL)
    _put(results, "knn", dims, share, name, direction)
    _put_one(results, "knn_shuffled", dims, scores.shuffled, f"{name}, labels shuffled", direction)
    found = _neighbours(data, data.target, max(scores.k))
    reference = np.stack([_hits(data, found[:, :k]) for k in scores.k])  # (k, queries)
    share = intervals.wilson(reference.sum(axis=-1), queries, LEVEL)
    _put(results, "knn_target", ("k",), share, f"{name} of the target", direction)
    hits = scores.hits.astype(np.float64)
    gaps = [
        _layerwise(hits[v].transpose(1, 0, 2), reference[:, None], seed) for v in range(len(hits))
    ]
    _put_differences(
        results, "knn_from_target", ("variant", "k", "layer"), gaps, f"{name} less the target's"
    )
    if pairs:
        by_k = hits.transpose(0, 2, 1, 3)  # (variants, k, layers, queries)
        gaps = [_layerwise(by_k[a], by_k[b], seed) for a, b in pairs]
        for (a, b), gap in zip(pairs, gaps, strict=True):
            for i, at in np.ndindex(gap.p.shape):
                gap.p[i, at] = intervals.mcnemar(scores.hits[a, at, i], scores.hits[b, at, i])
            np.maximum(gap.p, gap.p_adjusted, out=gap.p_adjusted)
        _put_differences(
            results, "knn_difference", ("comparison", "k", "layer"), gaps, f"difference in {name}"
        )


def _layerwise(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """Paired differences (k, layer) of hits (k, layer, queries), adjusted over the layers."""
    b = np.broadcast_to(b, a.shape)
    each = [intervals.paired_difference(*pair, seed=seed) for pair in zip(a, b, strict=True)]
    return intervals.Difference(*(np.stack(part) for part in zip(*each, strict=True)))


def _put_cka(results: xr.Dataset, scores: _Scores, pairs: list[tuple[int, int]], seed: int) -> None:
    name = "debiased linear CKA with the target"
    estimate = intervals.Interval(*np.moveaxis(scores.cka, -1, 0))
    _put(results, "cka", ("variant", "layer"), estimate, name, "higher is closer")
    gaps = []
    for a, b in pairs:
        rows = [
            cka.difference_of(*one, LEVEL)
            for one in zip(
                scores.cka[a, :, 0],
                scores.cka_left_out[a],
                scores.cka[b, :, 0],
                scores.cka_left_out[b],
                strict=True,
            )
        ]
        mean, low, high, p = np.array([row[:4] for row in rows]).T
        adjusted = _adjust(mean, np.stack([row.left_out for row in rows]), seed)
        gaps.append(intervals.Difference(mean, low, high, p, np.maximum(p, adjusted)))
    if gaps:
        _put_differences(
            results, "cka_difference", ("comparison", "layer"), gaps, f"difference in {name}"
        )


def _adjust(mean: np.ndarray, left_out: np.ndarray, seed: int) -> np.ndarray:
    """p over all layers at once, from how the layers' jackknife values move together."""
    covariance = cka.jackknife_covariance(left_out)
    error = np.sqrt(np.diag(covariance))
    same = error == 0  # equal models: nothing to test
    error[same] = 1
    correlation = covariance / np.outer(error, error)
    return intervals.adjust_normal(np.where(same, 0, mean / error), correlation, seed)


def _put_drift(
    results: xr.Dataset, scores: _Scores, pairs: list[tuple[int, int]], seed: int
) -> None:
    drift = Drift(*scores.drift)
    forms = (
        (
            "drift",
            "drift from the target, 1 - cosine through a ridge map",
            drift.plain,
            drift.random,
        ),
        (
            "drift_centred",
            "drift from the target, less what all objects share, 1 - cosine through a ridge map",
            drift.centred,
            drift.centred_random,
        ),
    )
    for key, name, values, random in forms:
        estimate = intervals.bootstrap(values, level=LEVEL, seed=seed)
        _put(results, key, ("variant", "layer"), estimate, name, "lower is closer")
        label = f"{name}, pairs of unrelated objects"
        _put_one(
            results,
            f"{key}_random",
            ("variant", "layer"),
            random.mean(-1),
            label,
            "lower is closer",
        )
        gaps = [intervals.paired_difference(values[a], values[b], seed=seed) for a, b in pairs]
        if gaps:
            _put_differences(
                results, f"{key}_difference", ("comparison", "layer"), gaps, f"difference in {name}"
            )


def _put_linear(
    results: xr.Dataset, scores: _Scores, data: _Objects, pairs: list[tuple[int, int]], seed: int
) -> None:
    name, direction = "linear read-out accuracy", "higher is better"
    dims, shape = ("variant", "layer"), scores.hits.shape[:2]
    grid = [[scores.linear[v, at] for at in range(shape[1])] for v in range(shape[0])]

    def stacked(part: str) -> np.ndarray:
        return np.array([[getattr(one, part) for one in row] for row in grid])

    for key, part, text in (
        ("linear", "accuracy", name),
        ("linear_selectivity", "selectivity", f"{name} less that with labels shuffled"),
    ):
        estimate = intervals.Interval(*np.moveaxis(stacked(part), -1, 0))
        _put(results, key, dims, estimate, text, direction)
    control, dealt = stacked("control_hits").mean(axis=-1), f"{name}, labels shuffled"
    _put_one(results, "linear_shuffled", dims, control, dealt, direction)
    for key, part, text in (
        ("linear_train", "train_accuracy", f"{name}, on the gallery"),
        ("linear_shuffled_train", "control_train_accuracy", f"{dealt}, on the gallery"),
        ("linear_penalty", "penalty", f"{name}, penalty"),
    ):
        _put_one(results, key, dims, stacked(part), text, FITTED)
    reference = _read_classes(data, data.target, seed)
    _put(results, "linear_target", (), reference.accuracy, f"{name} of the target", direction)
    hits = stacked("hits")  # (variants, layers, queries)
    gaps = [_hit_differences(one, np.broadcast_to(reference.hits, one.shape), seed) for one in hits]
    _put_differences(results, "linear_from_target", dims, gaps, f"{name} less the target's")
    if pairs:
        gaps = [_hit_differences(hits[a], hits[b], seed) for a, b in pairs]
        _put_differences(
            results, "linear_difference", ("comparison", "layer"), gaps, f"difference in {name}"
        )


def _hit_differences(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """Paired differences of hits (layers, queries): McNemar's p, adjusted over the layers."""
    gap = intervals.paired_difference(a, b, seed=seed)
    p = np.array([intervals.mcnemar(*pair) for pair in zip(a, b, strict=True)])
    return gap._replace(p=p, p_adjusted=np.maximum(p, gap.p_adjusted))


def _put_geometry(
    results: xr.Dataset, scores: _Scores, data: _Objects, pairs: list[tuple[int, int]], seed: int
) -> xr.Dataset:
    assert data.properties is not None
    results = results.assign_coords(property=list(map(str, data.properties.data_vars)))
    results.attrs["constant"] = data.properties.attrs["constant"]
    name, direction = "R^2 of a linear read-out", "higher is better"
    dims, shape = ("variant", "layer", "property"), scores.hits.shape[:2]
    grid = [[scores.geometry[v, at] for at in range(shape[1])] for v in range(shape[0])]

    def stacked(part: str) -> np.ndarray:
        return np.array([[one[part].values for one in row] for row in grid])

    estimate = intervals.Interval(*(stacked(part) for part in ("mean", "low", "high")))
    _put(results, "geometry", dims, estimate, name, direction)
    shuffled = stacked("shuffled")
    _put_one(results, "geometry_shuffled", dims, shuffled, f"{name}, values shuffled", direction)
    for part, text in (("train", "on the gallery"), ("penalty", "penalty")):
        _put_one(results, f"geometry_{part}", dims, stacked(part), f"{name}, {text}", FITTED)
    target = _read_properties(data, data.target, seed)
    estimate = intervals.Interval(*(target[part].values for part in ("mean", "low", "high")))
    _put(results, "geometry_target", ("property",), estimate, f"{name} of the target", direction)
    # R^2 is 1 - the mean error: the gap in R^2 is that in error, the other way round
    errors = stacked("error").swapaxes(1, 2)  # (variants, properties, layers, queries)
    reference = np.broadcast_to(target["error"].values[:, None], errors.shape[1:])
    gaps = [intervals.paired_difference(reference, own, seed=seed) for own in errors]
    where = ("variant", "property", "layer")
    _put_differences(results, "geometry_from_target", where, gaps, f"{name} less the target's")
    if pairs:
        gaps = [intervals.paired_difference(errors[b], errors[a], seed=seed) for a, b in pairs]
        where = ("comparison", "property", "layer")
        _put_differences(results, "geometry_difference", where, gaps, f"difference in {name}")
    return results


def _put(
    results: xr.Dataset,
    key: str,
    dims: tuple[str, ...],
    estimate: intervals.Interval,
    name: str,
    direction: str,
) -> None:
    for part, values in zip(("mean", "low", "high"), estimate, strict=True):
        bound = "" if part == "mean" else f", {part} end of the {LEVEL:.0%} interval"
        _put_one(results, f"{key}_{part}", dims, values, f"{name}{bound}", direction)


def _put_one(
    results: xr.Dataset,
    key: str,
    dims: tuple[str, ...],
    values: np.ndarray,
    name: str,
    direction: str,
) -> None:
    results[key] = (
        dims,
        np.asarray(values, np.float64),
        {"long_name": name, "direction": direction},
    )


def _put_differences(
    results: xr.Dataset,
    key: str,
    dims: tuple[str, ...],
    gaps: list[intervals.Difference],
    name: str,
) -> None:
    endings = {"": "", "_low": ", low end", "_high": ", high end"}
    tests = {"_p": ", p of this layer alone", "_p_adjusted": ", p over all layers at once"}
    parts = zip(*gaps, strict=True)
    for (ending, text), values in zip({**endings, **tests}.items(), parts, strict=True):
        direction = "0 = no difference" if ending in endings else "smaller is stronger evidence"
        _put_one(results, f"{key}{ending}", dims, np.stack(values), f"{name}{text}", direction)
