"""What can be told from the states, in the sheet: classes by neighbours or linearly, properties."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from probe import cka, hubness, intervals, variants, verdict
from probe.cells import ENCODER, LEVEL, SHUFFLES, TARGET, Cell
from probe.sheet import HIGHER, Sheet

NORMAL = 1.96  # errors on either side of a 95 % interval
FITTED = "says how the read-out was fitted, no score"
BITS = "bits that the class of a gallery object costs, online code"
UNEVEN = "0 = shared out evenly, above it a few are neighbours of many"


def references(cells: dict[Any, Cell], name: str) -> Iterator[tuple[str, str, Cell]]:
    """What the layers are read against: ending of a key, long name, and its cell."""
    yield "target", f"{name} of the target", cells[TARGET]
    if ENCODER in cells:
        yield "encoder", f"{name} of the encoder's output", cells[ENCODER]


def put_knn(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    name, dims = "k-nearest-neighbour accuracy", ("variant", "layer", "k")
    hits = sheet.stacked(cells, "hits")  # (variants, layers, k, queries)
    queries = hits.shape[-1]
    share = intervals.wilson(hits.sum(axis=-1), queries, LEVEL)
    sheet.put_interval("knn", dims, share, name, HIGHER)
    shuffled = np.moveaxis(sheet.stacked(cells, "shuffled"), 2, -1)  # (variants, layers, k, draws)
    sheet.put_control("knn_shuffled", dims, shuffled, f"{name}, labels shuffled", HIGHER)
    for ending, text, cell in references(cells, name):
        share = intervals.wilson(cell["hits"].sum(axis=-1), queries, LEVEL)
        sheet.put_interval(f"knn_{ending}", ("k",), share, text, HIGHER)
    reference = cells[TARGET]["hits"]  # (k, queries)
    by_k = hits.swapaxes(1, 2).astype(np.float64)  # (variants, k, layers, queries)
    gaps = [_layerwise(one, reference[:, None], sheet.seed) for one in by_k]
    where = ("variant", "k", "layer")
    sheet.put_differences("knn_from_target", where, gaps, f"{name} less the target's")
    if sheet.pairs:
        gaps = [_layerwise(by_k[a], by_k[b], sheet.seed) for a, b in sheet.pairs]
        where = ("comparison", "k", "layer")
        sheet.put_differences("knn_difference", where, gaps, f"difference in {name}")
    chance = shuffled.mean(axis=(0, 1, -1))
    target = reference[None, :, None]
    sheet.put_verdict("knn", ("k",), by_k, target, chance, name, against="the target", hits=True)
    text = f"{name} at the largest k, massive tokens left out"
    _put_without(sheet, cells, "knn", reference[-1], chance[-1], text)
    _put_hubness(sheet, cells)
    _put_classes(sheet, sheet.stacked(cells, "named"), table)


def _put_hubness(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    name = "hubness, skewness of how many queries a gallery object is a neighbour of"
    value, out = (sheet.stacked(cells, part) for part in ("hubness", "hubness_left_out"))
    found = intervals.group_jackknife(value, out, LEVEL)
    sheet.put_interval("hubness", ("variant", "layer", "k"), found, name, UNEVEN)
    for ending, text, cell in references(cells, name):
        found = intervals.group_jackknife(cell["hubness"], cell["hubness_left_out"], LEVEL)
        sheet.put_interval(f"hubness_{ending}", ("k",), found, text, UNEVEN)
    sizes = len(sheet.data.query), len(sheet.data.gallery)
    chance = [hubness.by_chance(*sizes, k) for k in sheet.k]
    sheet.put("hubness_random", ("k",), chance, f"{name}, neighbours drawn at random", UNEVEN)
    if sheet.pairs:
        by_k, out = value.swapaxes(1, 2), out.swapaxes(1, 2)  # (variants, k, layers, ...)
        gaps = [
            intervals.group_difference(by_k[a], out[a], by_k[b], out[b], LEVEL)
            for a, b in sheet.pairs
        ]
        where = ("comparison", "k", "layer")
        sheet.put_differences("hubness_difference", where, gaps, f"difference in {name}")


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


def _layerwise(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """Paired differences (k, layer) of hits (k, layer, queries), adjusted over the layers."""
    each = [
        _hit_differences(*pair, seed) for pair in zip(a, np.broadcast_to(b, a.shape), strict=True)
    ]
    return intervals.Difference(*(np.stack(part) for part in zip(*each, strict=True)))


def _hit_differences(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """Paired differences of hits (..., queries): McNemar's p, adjusted over all rows at once, and
    intervals that have a width where no object differs.
    """
    gap = _of_shares(a, b, seed)
    pairs = zip(*(one.reshape(-1, one.shape[-1]) for one in (a, b)), strict=True)
    p = np.reshape([intervals.mcnemar(*pair) for pair in pairs], gap.mean.shape)
    return gap._replace(p=p, p_adjusted=np.maximum(p, gap.p_adjusted))


def _of_shares(a: np.ndarray, b: np.ndarray, seed: int) -> intervals.Difference:
    """The same of means of hits (..., queries), whose p is by sign flips."""
    gap = intervals.paired_difference(a, b, seed=seed)
    gaps = a.astype(np.float64) - b
    middle, error = verdict.hit_error(gaps)
    together = verdict.critical(gaps.reshape(-1, gaps.shape[-1]), LEVEL, seed)
    low, high, below, above = (
        np.clip(middle + width * error, -1, 1) for width in (-NORMAL, NORMAL, -together, together)
    )
    return gap._replace(low=low, high=high, wide_low=below, wide_high=above)


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
    draws = sheet.stacked(cells, "control_accuracies")
    sheet.put_control("linear_shuffled", dims, draws, dealt, HIGHER)
    for key, part, text in (
        ("linear_train", "train_accuracy", f"{name}, on the gallery"),
        ("linear_shuffled_train", "control_train_accuracy", f"{dealt}, on the gallery"),
        ("linear_penalty", "penalty", f"{name}, penalty"),
    ):
        sheet.put(key, dims, sheet.stacked(cells, part), text, FITTED)
    code = "bits of the gallery's labels without the states over those with, online code"
    easier = "higher is easier to read, 1 = nothing to read"
    estimate = np.moveaxis(sheet.stacked(cells, "compression"), -1, 0)
    sheet.put_interval("linear_compression", dims, estimate, code, easier)
    mean, low, high = sheet.stacked(cells, "bits") * estimate[0] / estimate  # the ends swapped
    sheet.put_interval("linear_bits", dims, (mean, high, low), BITS, "lower is easier to read")
    for ending, text, cell in references(cells, code):
        sheet.put_interval(f"linear_compression_{ending}", (), cell["compression"], text, easier)
    for ending, text, cell in references(cells, name):
        sheet.put_interval(f"linear_{ending}", (), cell["accuracy"], text, HIGHER)
    _put_curve(sheet, cells)
    hits = sheet.stacked(cells, "hits").astype(np.float64)  # (variants, layers, queries)
    own = np.broadcast_to(cells[TARGET]["hits"].astype(np.float64), hits.shape[1:])
    gaps = [_hit_differences(one, own, sheet.seed) for one in hits]
    sheet.put_differences("linear_from_target", dims, gaps, f"{name} less the target's")
    if sheet.pairs:
        gaps = [_hit_differences(hits[a], hits[b], sheet.seed) for a, b in sheet.pairs]
        where = ("comparison", "layer")
        sheet.put_differences("linear_difference", where, gaps, f"difference in {name}")
        bits, out = (sheet.stacked(cells, part) for part in ("bits", "bits_left_out"))
        gaps = [
            intervals.group_difference(bits[a], out[a], bits[b], out[b]) for a, b in sheet.pairs
        ]
        text = "difference in bits that the class of a gallery object costs, online code"
        sheet.put_differences("linear_bits_difference", where, gaps, text)
    _put_code_verdict(sheet, cells)
    chance = control.mean()
    sheet.put_verdict("linear", (), hits, own, chance, name, against="the target", hits=True)
    text = f"{name}, massive tokens left out"
    _put_without(sheet, cells, "linear", cells[TARGET]["hits"], chance, text)


def _put_without(
    sheet: Sheet, cells: dict[Any, Cell], key: str, own: np.ndarray, chance: float, name: str
) -> None:
    """A share of right answers of states without massive tokens, judged like that with them.

    own : (queries,) of bool, the target's
    """
    hits = sheet.stacked(cells, "hits_without").astype(np.float64)  # (variants, layers, queries)
    share = intervals.wilson(hits.sum(axis=-1), hits.shape[-1], LEVEL)
    key, dims = f"{key}_without_massive", ("variant", "layer")
    sheet.put_interval(key, dims, share, name, HIGHER)
    if sheet.pairs:
        gaps = [_hit_differences(hits[a], hits[b], sheet.seed) for a, b in sheet.pairs]
        where = ("comparison", "layer")
        sheet.put_differences(f"{key}_difference", where, gaps, f"difference in {name}")
    target = own.astype(np.float64)
    sheet.put_verdict(key, (), hits, target, chance, name, against="the target", hits=True)


def _put_curve(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    """What the read-out scores by how many objects it was fitted on: is it still learning?"""
    sheet.results = sheet.results.assign_coords(fitted=cells[TARGET]["fitted"])
    name = "linear read-out accuracy by the gallery objects fitted on, mean of disjoint parts"
    hits, dims = sheet.stacked(cells, "curve"), ("variant", "layer", "fitted")
    curve = _curve_interval(hits, sheet.stacked(cells, "accuracy"))
    sheet.put_interval("linear_curve", dims, curve, name, HIGHER)
    for ending, text, cell in references(cells, name):
        curve = _curve_interval(cell["curve"], cell["accuracy"])
        sheet.put_interval(f"linear_curve_{ending}", ("fitted",), curve, text, HIGHER)
    text = "linear read-out accuracy by the objects fitted on: standard deviation over the parts"
    why = "of one part from another, 0 of the whole"
    sheet.put("linear_curve_spread", dims, sheet.stacked(cells, "spread"), text, why)
    if hits.shape[2] > 1:
        whole, halves = hits[:, :, -1], hits[:, :, -2]
        gaps = [_of_shares(*pair, sheet.seed) for pair in zip(whole, halves, strict=True)]
        text = "linear read-out accuracy, fitted on all gallery objects less that on half of them"
        sheet.put_differences("linear_gain", ("variant", "layer"), gaps, text)


def _curve_interval(hits: np.ndarray, accuracy: np.ndarray) -> intervals.Interval:
    """Of shares (..., sizes, queries), over (..., sizes); the last is `accuracy`, (..., 3)."""
    mean, (middle, error) = hits.mean(axis=-1), verdict.hit_error(hits)
    low = np.clip(np.minimum(middle - NORMAL * error, mean), 0, 1)
    high = np.clip(np.maximum(middle + NORMAL * error, mean), 0, 1)
    for part, whole in zip((mean, low, high), np.moveaxis(accuracy, -1, 0), strict=True):
        part[..., -1] = whole
    return intervals.Interval(mean, low, high)


def _put_code_verdict(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    own = cka.own_parts(*(sheet.stacked(cells, part) for part in ("bits", "bits_left_out")))
    target = cka.own_parts(*(cells[TARGET][part] for part in ("bits", "bits_left_out")))
    classes = len(np.unique(sheet.data.labels[sheet.data.gallery]))
    chance, against = -np.log2(classes), "the target"
    sheet.put_verdict("linear_bits", (), -own, -target, chance, BITS, against=against)


def put_geometry(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    assert sheet.data.properties is not None
    about = sheet.data.properties
    sheet.results = sheet.results.assign_coords(property=list(map(str, about.data_vars)))
    sheet.results.attrs["constant"] = about.attrs["constant"]
    name, dims = "R^2 of a linear read-out", ("variant", "layer", "property")
    estimate = [sheet.stacked(cells, part) for part in ("mean", "low", "high")]
    sheet.put_interval("geometry", dims, estimate, name, HIGHER)
    without = np.moveaxis(sheet.stacked(cells, "without"), 2, 0)
    text = f"{name}, massive tokens left out"
    sheet.put_interval("geometry_without_massive", dims, without, text, HIGHER)
    shuffled = sheet.stacked(cells, "shuffled")
    sheet.put(
        "geometry_shuffled", dims, shuffled, f"{name}, values shuffled, a control: mean", HIGHER
    )
    for part, text in (("train", "on the gallery"), ("penalty", "penalty")):
        sheet.put(f"geometry_{part}", dims, sheet.stacked(cells, part), f"{name}, {text}", FITTED)
    for ending, text, cell in references(cells, name):
        own = [cell[part] for part in ("mean", "low", "high")]
        sheet.put_interval(f"geometry_{ending}", ("property",), own, text, HIGHER)
    spread = sheet.stacked(cells, "shuffled_spread")
    text = f"{name}, values shuffled, a control: standard deviation over {SHUFFLES} draws"
    sheet.put("geometry_shuffled_spread", dims, spread, text, "of one draw from another")
    # R^2 is 1 - the mean error: the gap in R^2 is that in error, the other way round
    errors = sheet.stacked(cells, "error").swapaxes(1, 2)  # (variants, properties, layers, queries)
    reference = np.broadcast_to(cells[TARGET]["error"][:, None], errors.shape[1:])
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
    rank, text = sheet.stacked(cells, "rank"), "dimensions that whitening keeps"
    direction = "higher fills more directions"
    sheet.put("whitened_rank", ("variant", "layer", "pooling"), rank, text, direction)
    flat = np.moveaxis(hits, 1, -2).astype(np.float64)  # (variants, *ways, layers, queries)
    rows = flat.reshape(len(flat), -1, *flat.shape[-2:])
    shape = flat.shape[1:-1]
    if sheet.pairs:
        # one family: p over all layers and all ways of asking at once
        gaps = [_hit_differences(rows[a], rows[b], sheet.seed) for a, b in sheet.pairs]
        gaps = [intervals.Difference(*(part.reshape(shape) for part in gap)) for gap in gaps]
        where = ("comparison", *ways, "layer")
        sheet.put_differences("knn_ways_difference", where, gaps, f"difference in {name}")
    _put_tokens(sheet, sheet.stacked(cells, "by_token"), flat[:, 0, 0, 0, -1])
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


def _put_tokens(sheet: Sheet, hits: np.ndarray, usual: np.ndarray) -> None:
    """One token alone, and whether it tells more than the mean of all, which may hide it.

    hits : (variants, layers, tokens, queries)    usual : (variants, layers, queries)
    """
    sheet.results = sheet.results.assign_coords(token=np.arange(hits.shape[2]))
    name = "k-nearest-neighbour accuracy of one token alone, at the largest k"
    share = intervals.wilson(hits.sum(axis=-1), hits.shape[-1], LEVEL)
    sheet.put_interval("knn_token", ("variant", "layer", "token"), share, name, HIGHER)
    by_token = hits.swapaxes(1, 2).astype(np.float64)
    pairs = zip(by_token, usual, strict=True)
    gaps = [
        _hit_differences(one, np.broadcast_to(mean, one.shape), sheet.seed) for one, mean in pairs
    ]
    where = ("variant", "token", "layer")
    sheet.put_differences("knn_token_from_mean", where, gaps, f"{name}, less the mean token's")


def _put_protocols(sheet: Sheet, cells: dict[Any, Cell], name: str) -> None:
    dims = ("variant", "layer", "k")
    loo = sheet.stacked(cells, "loo")
    share = intervals.wilson(loo.sum(axis=-1), loo.shape[-1], LEVEL)
    sheet.put_interval(
        "knn_loo", dims, share, f"{name}, each query object against the rest", HIGHER
    )
    by_k = loo.swapaxes(1, 2).astype(np.float64)
    if sheet.pairs:
        gaps = [_layerwise(by_k[a], by_k[b], sheet.seed) for a, b in sheet.pairs]
        where = ("comparison", "k", "layer")
        sheet.put_differences("knn_loo_difference", where, gaps, f"difference in {name}, loo")
    splits = sheet.stacked(cells, "test90_10")
    text = f"{name}, a tenth of the query objects against the rest, split by split"
    sheet.put("knn_test90_10", (*dims, "split"), splits, text, HIGHER)
    right, asked = sheet.stacked(cells, "right"), sheet.stacked(cells, "asked")[:, :, None]
    share = intervals.ratio(right, np.broadcast_to(asked, right.shape), LEVEL)
    text = f"{name}, a tenth of the query objects against the rest, over all splits"
    sheet.put_interval("knn_test90_10", dims, share, text, HIGHER)
