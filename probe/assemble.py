"""Cells of all layers and models put together: means, intervals, controls, tests and verdicts.

Names in the Dataset: `KEY_mean`, `_low`, `_high`; `KEY_target*`, `KEY_shuffled`, `KEY_random` to
read them against; `KEY_from_target*` and `KEY_difference*` for paired gaps. Every variable says in
its attributes what it is and which direction is good.
"""

from typing import Any

import numpy as np
import xarray as xr

from probe import cka, controls, dimension, intervals, outliers, pairs, variants
from probe.cells import LEVEL, Cell, Objects, Settings
from probe.sheet import Sheet
from store import Run

FITTED = "says how the read-out was fitted, no score"
HIGHER, LOWER = "higher is better", "lower is closer"
TARGET = ("target", 0)


def assemble(
    run: Run,
    cells: dict[str, dict[Any, Cell]],
    data: Objects,
    variants: list[str],
    layers: list[int],
    ask: Settings,
    reference: str,
) -> xr.Dataset:
    """The results of a sweep, see `probe.sweep.sweep`. cells : by probe, then (variant, layer)."""
    names = np.unique(data.labels)
    table = run.samples()
    results = xr.Dataset(
        coords={"variant": variants, "layer": layers, "k": list(ask.k)},
        attrs={
            "run": str(run.path.name),
            "seed": ask.seed,
            "level": LEVEL,
            "gallery_objects": len(data.gallery),
            "query_objects": len(data.query),
            "gallery_copies_dropped": data.copies,
            "chance": controls.chance_level(data.labels[data.gallery], data.labels[data.query]),
            "classes": len(names),
            "probes": list(cells),
        },
    )
    results.layer.attrs["long_name"] = "layer (0 = what enters block 1)"
    others = [name for name in variants if name != reference and reference in variants]
    if others:
        results = results.assign_coords(comparison=[f"{name} - {reference}" for name in others])
    models = [(variants.index(name), variants.index(reference)) for name in others]
    sheet = Sheet(results, data, ask, models)
    for probe, put in PUT.items():
        if probe in cells:
            put(sheet, cells[probe], table)
    return sheet.results


def put_knn(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    name, dims = "k-nearest-neighbour accuracy", ("variant", "layer", "k")
    hits = sheet.stacked(cells, "hits")  # (variants, layers, k, queries)
    queries = hits.shape[-1]
    share = intervals.wilson(hits.sum(axis=-1), queries, LEVEL)
    sheet.put_interval("knn", dims, share, name, HIGHER)
    shuffled = sheet.stacked(cells, "shuffled")
    sheet.put("knn_shuffled", dims, shuffled, f"{name}, labels shuffled", HIGHER)
    reference = cells[TARGET]["hits"]  # (k, queries)
    share = intervals.wilson(reference.sum(axis=-1), queries, LEVEL)
    sheet.put_interval("knn_target", ("k",), share, f"{name} of the target", HIGHER)
    by_k = hits.swapaxes(1, 2).astype(np.float64)  # (variants, k, layers, queries)
    gaps = [_layerwise(one, reference[:, None], sheet.seed) for one in by_k]
    where = ("variant", "k", "layer")
    sheet.put_differences("knn_from_target", where, gaps, f"{name} less the target's")
    if sheet.pairs:
        gaps = [_layerwise(by_k[a], by_k[b], sheet.seed, exact=True) for a, b in sheet.pairs]
        where = ("comparison", "k", "layer")
        sheet.put_differences("knn_difference", where, gaps, f"difference in {name}")
    chance = shuffled.mean(axis=(0, 1))
    target = reference[None, :, None]
    sheet.put_verdict("knn", ("k",), by_k, target, chance, name, against="the target", hits=True)
    share = intervals.wilson(sheet.stacked(cells, "hits_without").sum(axis=-1), queries, LEVEL)
    text = f"{name} at the largest k, massive tokens left out"
    sheet.put_interval("knn_without_massive", ("variant", "layer"), share, text, HIGHER)
    _put_classes(sheet, sheet.stacked(cells, "named"), table)


def _put_classes(sheet: Sheet, named: np.ndarray, table: xr.Dataset) -> None:
    """Accuracy of each class and what it is taken for, at the largest k."""
    labels = np.unique(sheet.data.labels)
    asked = sheet.data.labels[sheet.data.query]
    found = table["class_name"].values[: sheet.data.samples]
    classes = [str(found[(sheet.data.labels == label).argmax()]) for label in labels]
    counts = np.zeros((*named.shape[:2], len(labels), len(labels)), np.int64)
    codes, true = np.searchsorted(labels, named), np.searchsorted(labels, asked)
    for place in np.ndindex(*named.shape[:2]):
        np.add.at(counts[place], (true, codes[place]), 1)
    each = counts.sum(axis=-1)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    sheet.results = sheet.results.assign_coords({"class": classes, "named": classes})
    asked_of = each > 0
    share = intervals.wilson_each(right, np.where(asked_of, each, 1), LEVEL)
    share = intervals.Interval(*(np.where(asked_of, part, np.nan) for part in share))
    dims, name = ("variant", "layer", "class"), "k-nearest-neighbour accuracy of a class"
    sheet.put_interval("knn_class", dims, share, f"{name} at the largest k", HIGHER)
    text = "query objects of a class by the class that their neighbours name, at the largest k"
    sheet.put("knn_confusion", (*dims, "named"), counts, text, "on the diagonal: right")
    sheet.results["knn_confusion"] = sheet.results["knn_confusion"].astype(np.int32)


def _layerwise(
    a: np.ndarray, b: np.ndarray, seed: int, *, exact: bool = False
) -> intervals.Difference:
    """Paired differences (k, layer) of hits (k, layer, queries), adjusted over the layers.

    exact : with McNemar's p.
    """
    b = np.broadcast_to(b, a.shape)
    if exact:
        each = [_hit_differences(*pair, seed) for pair in zip(a, b, strict=True)]
    else:
        each = [intervals.paired_difference(*pair, seed=seed) for pair in zip(a, b, strict=True)]
    return intervals.Difference(*(np.stack(part) for part in zip(*each, strict=True)))


def _hit_differences(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """Paired differences of hits (layers, queries): McNemar's p, adjusted over the layers."""
    gap = intervals.paired_difference(a, b, seed=seed)
    p = np.array([intervals.mcnemar(*pair) for pair in zip(a, b, strict=True)])
    return gap._replace(p=p, p_adjusted=np.maximum(p, gap.p_adjusted))


def put_drift(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    _put_cka(sheet, sheet.stacked(cells, "cka"), sheet.stacked(cells, "cka_left_out"))
    plain = "drift from the target, 1 - cosine through a ridge map"
    centred = "drift from the target, less what all objects share, 1 - cosine through a ridge map"
    dims = ("variant", "layer")
    for key, name, part, control in (
        ("drift", plain, "plain", "random"),
        ("drift_centred", centred, "centred", "centred_random"),
    ):
        values = sheet.stacked(cells, part)
        random = sheet.stacked(cells, control).mean(axis=-1)
        estimate = intervals.bootstrap(values, level=LEVEL, seed=sheet.seed)
        sheet.put_interval(key, dims, estimate, name, LOWER)
        text = f"{name}, pairs of unrelated objects"
        sheet.put(f"{key}_random", dims, random, text, LOWER)
        gaps = [
            intervals.paired_difference(values[a], values[b], seed=sheet.seed)
            for a, b in sheet.pairs
        ]
        if gaps:
            where, text = ("comparison", "layer"), f"difference in {name}"
            sheet.put_differences(f"{key}_difference", where, gaps, text)
        against = f"layer {sheet.layers[0]}"
        chance = -random[:, 0].mean()
        sheet.put_verdict(key, (), -values, -values[:, :1], chance, name, against=against)
    by_token = np.moveaxis(sheet.stacked(cells, "by_token"), -1, 2)  # (..., tokens, queries)
    estimate = intervals.bootstrap(by_token, level=LEVEL, seed=sheet.seed)
    sheet.results = sheet.results.assign_coords(token=np.arange(by_token.shape[2]))
    sheet.put_interval("token_drift", (*dims, "token"), estimate, f"{centred}, by token", LOWER)


def _put_cka(sheet: Sheet, values: np.ndarray, left_out: np.ndarray) -> None:
    name, dims = "debiased linear CKA with the target", ("variant", "layer")
    estimate = intervals.Interval(*np.moveaxis(values, -1, 0))
    sheet.put_interval("cka", dims, estimate, name, "higher is closer")
    gaps = []
    for a, b in sheet.pairs:
        each = zip(values[a, :, 0], left_out[a], values[b, :, 0], left_out[b], strict=True)
        rows = [cka.difference_of(*one, LEVEL) for one in each]
        mean, low, high, p = np.array([row[:4] for row in rows]).T
        adjusted = _adjust(mean, np.stack([row.left_out for row in rows]), sheet.seed)
        gaps.append(intervals.Difference(mean, low, high, p, np.maximum(p, adjusted)))
    if gaps:
        where = ("comparison", "layer")
        sheet.put_differences("cka_difference", where, gaps, f"difference in {name}")
    own = cka.own_parts(values[..., 0], left_out)
    against = f"layer {sheet.layers[0]}"
    sheet.put_verdict("cka", (), own, own[:, :1], 0.0, name, against=against)


def _adjust(mean: np.ndarray, left_out: np.ndarray, seed: int) -> np.ndarray:
    """p over all layers at once, from how the layers' jackknife values move together."""
    covariance = cka.jackknife_covariance(left_out)
    error = np.sqrt(np.diag(covariance))
    same = error == 0  # equal models: nothing to test
    error[same] = 1
    correlation = covariance / np.outer(error, error)
    return intervals.adjust_normal(np.where(same, 0, mean / error), correlation, seed)


NAMES = {
    "two_nn": "intrinsic dimension, TwoNN",
    "mle_dimension": f"intrinsic dimension, maximum likelihood of {dimension.NEAR} neighbours",
    "effective_rank": "effective rank, exp of the entropy of the singular values",
    "participation_ratio": "participation ratio of the covariance's eigenvalues",
    "anisotropy": "anisotropy, mean cosine of two objects' mean tokens",
    "procrustes": "Procrustes distance to the target",
    "rsa": "RSA, rank correlation of distances with the target's",
    "mutual_knn": "share of neighbours in common with the target",
    "svcca": "SVCCA with the target, mean canonical correlation of 99 % of the variance",
    "pwcca": "PWCCA with the target, canonical correlations weighted by the layer's variance",
}
MORE = {"anisotropy": "lower spreads the directions", "procrustes": LOWER}
MORE |= {key: "higher is closer" for key in ("rsa", "mutual_knn", "svcca", "pwcca")}


def put_dimension(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    dims = ("variant", "layer")
    _put_jackknifed(sheet, cells, dimension.STATISTICS)
    shuffled = sheet.stacked(cells, "shuffled")
    for at, key in enumerate(dimension.STATISTICS):
        text = f"{NAMES[key]}, each dimension dealt out on its own"
        sheet.put(f"{key}_shuffled", dims, shuffled[..., at], text, "no direction but the axes")
    if "diversity" in cells[TARGET]:
        _put_diversity(sheet, cells)
    tokens = sheet.stacked(cells, "massive")
    sheet.results = sheet.results.assign_coords(
        token=np.arange(tokens.shape[-1]), top=list(outliers.TOPS)
    )
    over = f"norm over {outliers.FACTOR:g} times the median"
    text = f"share of the objects in which the token is massive, {over}"
    sheet.put("massive_tokens", (*dims, "token"), tokens, text, "0 = none stands out")
    text = "largest norm of a token, in medians"
    sheet.put("largest_norm", dims, sheet.stacked(cells, "largest_norm"), text, "1 = all alike")
    text = "share of the variance in the dimensions that vary most"
    values = sheet.stacked(cells, "top_variance")
    sheet.put("top_variance", (*dims, "top"), values, text, "near 1: a few dimensions decide")


def _put_diversity(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    dims = ("variant", "layer")
    name, values = (
        "token diversity, mean 1 - cosine in an object",
        sheet.stacked(cells, "diversity"),
    )
    estimate = intervals.bootstrap(values, level=LEVEL, seed=sheet.seed)
    sheet.put_interval("token_diversity", dims, estimate, name, "0 = oversmoothed")
    target = intervals.bootstrap(cells[TARGET]["diversity"], level=LEVEL, seed=sheet.seed)
    sheet.put_interval("token_diversity_target", (), target, f"{name}, target", "")
    gaps = [
        intervals.paired_difference(values[a], values[b], seed=sheet.seed) for a, b in sheet.pairs
    ]
    if gaps:
        where = ("comparison", "layer")
        sheet.put_differences("token_diversity_difference", where, gaps, f"difference in {name}")


def _put_jackknifed(sheet: Sheet, cells: dict[Any, Cell], names: tuple[str, ...]) -> None:
    """Statistics of all query objects at once, with intervals from groups of them left out."""
    values, left_out = (sheet.stacked(cells, part) for part in ("values", "left_out"))
    for at, key in enumerate(names):
        name, direction = NAMES[key], MORE.get(key, "higher fills more directions")
        one, out = values[..., at], left_out[..., at, :]
        estimate = intervals.group_jackknife(one, out, LEVEL)
        sheet.put_interval(key, ("variant", "layer"), estimate, name, direction)
        own = cells[TARGET]["values"][at], cells[TARGET]["left_out"][at]
        if key in dimension.STATISTICS:
            estimate = intervals.group_jackknife(*own, LEVEL)
            sheet.put_interval(f"{key}_target", (), estimate, f"{name}, target", direction)
        gaps = [
            intervals.group_difference(one[a], out[a], one[b], out[b], LEVEL)
            for a, b in sheet.pairs
        ]
        if gaps:
            where = ("comparison", "layer")
            sheet.put_differences(f"{key}_difference", where, gaps, f"difference in {name}")


def put_linear(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    name, dims = "linear read-out accuracy", ("variant", "layer")
    for key, part, text in (
        ("linear", "accuracy", name),
        ("linear_selectivity", "selectivity", f"{name} less that with labels shuffled"),
    ):
        estimate = np.moveaxis(sheet.stacked(cells, part), -1, 0)
        sheet.put_interval(key, dims, estimate, text, HIGHER)
    control = sheet.stacked(cells, "control_hits").mean(axis=-1)
    dealt = f"{name}, labels shuffled"
    sheet.put("linear_shuffled", dims, control, dealt, HIGHER)
    for key, part, text in (
        ("linear_train", "train_accuracy", f"{name}, on the gallery"),
        ("linear_shuffled_train", "control_train_accuracy", f"{dealt}, on the gallery"),
        ("linear_penalty", "penalty", f"{name}, penalty"),
    ):
        sheet.put(key, dims, sheet.stacked(cells, part), text, FITTED)
    reference = cells[TARGET]
    code = "bits of the gallery's labels without the states over those with, online code"
    for key, where, values in (
        ("linear_compression", dims, sheet.stacked(cells, "compression")),
        ("linear_target_compression", (), reference["compression"]),
    ):
        sheet.put(key, where, values, code, "higher is easier to read, 1 = nothing to read")
    target = f"{name} of the target"
    sheet.put_interval("linear_target", (), reference["accuracy"], target, HIGHER)
    hits = sheet.stacked(cells, "hits").astype(np.float64)  # (variants, layers, queries)
    own = np.broadcast_to(reference["hits"].astype(np.float64), hits.shape[1:])
    gaps = [_hit_differences(one, own, sheet.seed) for one in hits]
    sheet.put_differences("linear_from_target", dims, gaps, f"{name} less the target's")
    if sheet.pairs:
        gaps = [_hit_differences(hits[a], hits[b], sheet.seed) for a, b in sheet.pairs]
        where = ("comparison", "layer")
        sheet.put_differences("linear_difference", where, gaps, f"difference in {name}")
    chance = control.mean()
    sheet.put_verdict("linear", (), hits, own, chance, name, against="the target", hits=True)


def put_geometry(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    assert sheet.data.properties is not None
    about = sheet.data.properties
    sheet.results = sheet.results.assign_coords(property=list(map(str, about.data_vars)))
    sheet.results.attrs["constant"] = about.attrs["constant"]
    name, dims = "R^2 of a linear read-out", ("variant", "layer", "property")
    estimate = [sheet.stacked(cells, part) for part in ("mean", "low", "high")]
    sheet.put_interval("geometry", dims, estimate, name, HIGHER)
    shuffled = sheet.stacked(cells, "shuffled")
    sheet.put("geometry_shuffled", dims, shuffled, f"{name}, values shuffled", HIGHER)
    for part, text in (("train", "on the gallery"), ("penalty", "penalty")):
        sheet.put(f"geometry_{part}", dims, sheet.stacked(cells, part), f"{name}, {text}", FITTED)
    target = cells[TARGET]
    own = [target[part] for part in ("mean", "low", "high")]
    sheet.put_interval("geometry_target", ("property",), own, f"{name} of the target", HIGHER)
    # R^2 is 1 - the mean error: the gap in R^2 is that in error, the other way round
    errors = sheet.stacked(cells, "error").swapaxes(1, 2)  # (variants, properties, layers, queries)
    reference = np.broadcast_to(target["error"][:, None], errors.shape[1:])
    gaps = [intervals.paired_difference(reference, one, seed=sheet.seed) for one in errors]
    where = ("variant", "property", "layer")
    sheet.put_differences("geometry_from_target", where, gaps, f"{name} less the target's")
    if sheet.pairs:
        gaps = [
            intervals.paired_difference(errors[b], errors[a], seed=sheet.seed)
            for a, b in sheet.pairs
        ]
        where = ("comparison", "property", "layer")
        sheet.put_differences("geometry_difference", where, gaps, f"difference in {name}")
    sheet.put_verdict(
        "geometry", ("property",), 1 - errors, 1 - reference, 0.0, name, against="the target"
    )


def put_variants(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    sheet.results = sheet.results.assign_coords(
        preparation=list(variants.PREPARATIONS),
        pooling=list(variants.POOLINGS),
        metric=list(variants.METRICS),
        split=np.arange(variants.SPLITS),
    )
    name, ways = "k-nearest-neighbour accuracy", ("preparation", "pooling", "metric", "k")
    hits = sheet.stacked(cells, "hits")  # (variants, layers, *ways, queries)
    queries = hits.shape[-1]
    share = intervals.wilson(hits.sum(axis=-1), queries, LEVEL)
    sheet.put_interval("knn_ways", ("variant", "layer", *ways), share, name, HIGHER)
    target = cells[TARGET]["hits"]
    share = intervals.wilson(target.sum(axis=-1), queries, LEVEL)
    sheet.put_interval("knn_ways_target", ways, share, f"{name} of the target", HIGHER)
    text = "dimensions that whitening keeps"
    sheet.put(
        "whitened_rank", ("variant", "layer", "pooling"), sheet.stacked(cells, "rank"), text, ""
    )
    flat = np.moveaxis(hits, 1, -2).astype(np.float64)  # (variants, *ways, layers, queries)
    rows = flat.reshape(len(flat), -1, *flat.shape[-2:])
    shape = flat.shape[1:-1]
    if sheet.pairs:
        # one family: p over all layers and all ways of asking at once
        gaps = [
            intervals.paired_difference(rows[a], rows[b], seed=sheet.seed) for a, b in sheet.pairs
        ]
        gaps = [intervals.Difference(*(part.reshape(shape) for part in gap)) for gap in gaps]
        where = ("comparison", *ways, "layer")
        sheet.put_differences("knn_ways_difference", where, gaps, f"difference in {name}")
    chance = 1 / len(np.unique(sheet.data.labels))
    sheet.put_verdict(
        "knn_ways",
        ways,
        flat,
        target[None, ..., None, :],
        chance,
        name,
        against="the target",
        hits=True,
    )
    _put_protocols(sheet, cells, name)


def _put_protocols(sheet: Sheet, cells: dict[Any, Cell], name: str) -> None:
    dims = ("variant", "layer", "k")
    loo = sheet.stacked(cells, "loo")
    share = intervals.wilson(loo.sum(axis=-1), loo.shape[-1], LEVEL)
    sheet.put_interval(
        "knn_loo", dims, share, f"{name}, each query object against the rest", HIGHER
    )
    by_k = loo.swapaxes(1, 2).astype(np.float64)
    if sheet.pairs:
        gaps = [_layerwise(by_k[a], by_k[b], sheet.seed, exact=True) for a, b in sheet.pairs]
        where = ("comparison", "k", "layer")
        sheet.put_differences("knn_loo_difference", where, gaps, f"difference in {name}, loo")
    splits = sheet.stacked(cells, "test90_10")
    text = f"{name}, a tenth of the query objects against the rest, split by split"
    sheet.put("knn_test90_10", (*dims, "split"), splits, text, HIGHER)


def put_similarity(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    _put_jackknifed(sheet, cells, pairs.ALIKE)
    shuffled = sheet.stacked(cells, "shuffled")
    for at, key in enumerate(pairs.ALIKE):
        text, direction = f"{NAMES[key]}, its objects shuffled", MORE[key]
        sheet.put(f"{key}_shuffled", ("variant", "layer"), shuffled[..., at], text, direction)
    queries = len(sheet.data.query)
    floor = max(1, min(pairs.SHARED, queries // 3)) / (queries - 1)
    sheet.put("mutual_knn_floor", (), floor, f"{NAMES['mutual_knn']}, unrelated objects", "")
    dims: tuple[str, ...] = ("variant", "layer")
    rbf = np.moveaxis(sheet.stacked(cells, "rbf"), -1, 0)
    sheet.put_interval(
        "cka_rbf", dims, rbf, "debiased CKA with the target, RBF", "higher is closer"
    )
    turned = intervals.bootstrap(
        sheet.stacked(cells, "drift_procrustes"), level=LEVEL, seed=sheet.seed
    )
    text = "drift from the target, less what all objects share, through an orthogonal map"
    sheet.put_interval("drift_procrustes", dims, turned, text, LOWER)
    for key, part, text in (
        ("cka_biased", "biased", "biased CKA with the target, to be read against its floor"),
        ("cka_biased_floor", "floor", "biased CKA of unrelated states of these sizes"),
        ("cka_null", "null", "debiased CKA with the target, 95th percentile of shuffled objects"),
    ):
        sheet.put(key, dims, sheet.stacked(cells, part), text, "higher is closer")
    places = [(v, at) for v in sheet.variants for at in sheet.layers]
    states = [cells[place]["states"] for place in [*places, TARGET]]
    found = pairs.cka_pairs(states, LEVEL)
    sheet.results = sheet.results.assign_coords(
        other_variant=sheet.variants, other_layer=sheet.layers
    )
    grid = (len(sheet.variants), len(sheet.layers))
    dims = ("variant", "layer", "other_variant", "other_layer")
    parts = [part[:-1, :-1].reshape(*grid, *grid) for part in found[:3]]
    name = "debiased linear CKA of two layers"
    sheet.put_interval("cka_layers", dims, parts, name, "higher is more alike")
    null = pairs.cka_pairs_null(states, 100, seed=sheet.seed)
    text = f"{name}, 95th percentile of the largest of all pairs with objects shuffled"
    sheet.put("cka_layers_random", (), np.quantile(null, LEVEL), text, "chance")


PUT = {
    "knn": put_knn,
    "drift": put_drift,
    "dimension": put_dimension,
    "linear": put_linear,
    "geometry": put_geometry,
    "variants": put_variants,
    "similarity": put_similarity,
}
