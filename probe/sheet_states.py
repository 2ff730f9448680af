"""What the states are like, in the sheet: how close to their references, and of what shape."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from probe import cka, dimension, intervals, outliers, pairs
from probe.cells import LEVEL, TARGET, Cell
from probe.sheet import LOWER, Sheet

CLOSER = "higher is closer"


def put_drift(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    name = "debiased linear CKA with the target"
    _put_cka(sheet, cells, "cka", name)
    _put_cka(sheet, cells, "cka_without_massive", f"{name}, massive tokens left out")
    text = f"{name}, dimensions standardised on the gallery, massive tokens left out"
    _put_cka(sheet, cells, "cka_standardised", text)
    if sheet.data.encoder is not None:
        text = "debiased linear CKA with the encoder's output"
        _put_cka(sheet, cells, "encoder_cka", text)
        own = sheet.data.target.pooled[sheet.data.query]
        alike = cka.cka_interval(own, sheet.data.encoder[sheet.data.query], level=LEVEL)
        sheet.put_interval("encoder_cka_target", (), alike[:3], f"{text}, target", CLOSER)
    plain = "drift from the target, 1 - cosine through a ridge map"
    centred = "drift from the target, less what all objects share, 1 - cosine through a ridge map"
    pooled = f"{centred}, of the mean token"
    without = f"{centred}, massive tokens left out"
    dims = ("variant", "layer")
    for key, name, part, control in (
        ("drift", plain, "plain", "random"),
        ("drift_centred", centred, "centred", "centred_random"),
        ("drift_pooled", pooled, "pooled", "pooled_random"),
        ("drift_without_massive", without, "centred_without", "centred_random_without"),
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
        sheet.put_verdict_from_first(key, -values, -random[:, 0].mean(), name)
    by_token = np.moveaxis(sheet.stacked(cells, "by_token"), -1, 2)  # (..., tokens, queries)
    estimate = intervals.bootstrap(by_token, level=LEVEL, seed=sheet.seed)
    sheet.results = sheet.results.assign_coords(token=np.arange(by_token.shape[2]))
    sheet.put_interval("token_drift", (*dims, "token"), estimate, f"{centred}, by token", LOWER)


def _put_cka(sheet: Sheet, cells: dict[Any, Cell], key: str, name: str) -> None:
    values, left_out = (sheet.stacked(cells, part) for part in (key, f"{key}_left_out"))
    estimate = intervals.Interval(*np.moveaxis(values, -1, 0))
    sheet.put_interval(key, ("variant", "layer"), estimate, name, CLOSER)
    gaps = []
    for a, b in sheet.pairs:
        each = zip(values[a, :, 0], left_out[a], values[b, :, 0], left_out[b], strict=True)
        rows = [cka.difference_of(*one, LEVEL) for one in each]
        mean, low, high, p = np.array([row[:4] for row in rows]).T
        left = np.stack([row.left_out for row in rows])
        gaps.append(cka.over_layers(mean, low, high, p, left, LEVEL, sheet.seed))
    if gaps:
        where = ("comparison", "layer")
        sheet.put_differences(f"{key}_difference", where, gaps, f"difference in {name}")
    own = cka.own_parts(values[..., 0], left_out)
    sheet.put_verdict_from_first(key, own, 0.0, name)


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
MORE |= {key: CLOSER for key in ("rsa", "mutual_knn", "svcca", "pwcca")}
LIKENESS_RANGES = {"procrustes": (0, 2), "rsa": (-1, 1)}
LIKENESS_RANGES |= dict.fromkeys(("mutual_knn", "svcca", "pwcca"), (0, 1))
"""What a likeness can be, which its interval does not leave."""
Scale = Callable[[np.ndarray], np.ndarray]
SCALES: dict[str, tuple[Scale, Scale]] = {
    "procrustes": (np.log, np.exp),
    "rsa": (np.arctanh, np.tanh),
    "svcca": (np.arctanh, np.tanh),
    "pwcca": (np.arctanh, np.tanh),
}
"""There and back. The error hangs less on the value there, so that the truth is as seldom below an
interval as above it: Fisher's z (1915) of a correlation, the logarithm of a squared distance."""
EXACT = 1e-9  # rounding: copies are alike all but for it


def put_dimension(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    dims = ("variant", "layer")
    _put_jackknifed(sheet, cells, dimension.STATISTICS)
    shuffled = sheet.stacked(cells, "shuffled")
    for at, key in enumerate(dimension.STATISTICS):
        text = f"{NAMES[key]}, each dimension dealt out on its own"
        why = "no direction but the axes"
        sheet.put_control(f"{key}_shuffled", dims, shuffled[..., at], text, why)
    _put_thinned(sheet, cells)
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


def _put_thinned(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    """Intrinsic dimension of fewer objects, and how many of them it does not count."""
    dims = ("variant", "layer")
    objects, mean, spread = np.moveaxis(sheet.stacked(cells, "thinned"), 2, 0)
    sheet.results = sheet.results.assign_coords(objects=objects[0, 0].astype(np.int64))
    name = f"{NAMES['two_nn']}, of fewer objects: mean of disjoint parts"
    direction = "the same of few as of all: it does not hang on the scale"
    sheet.put("two_nn_decimated", (*dims, "objects"), mean, name, direction)
    own = cells[TARGET]["thinned"][1]
    sheet.put("two_nn_decimated_target", ("objects",), own, f"{name}, target", direction)
    text = f"{NAMES['two_nn']}, of fewer objects: standard deviation over the parts"
    why = "of one part from another, 0 of the whole"
    sheet.put("two_nn_decimated_spread", (*dims, "objects"), spread, text, why)
    text = f"{NAMES['two_nn']}: objects left out, at distance 0 from another"
    sheet.put("two_nn_dropped", dims, sheet.stacked(cells, "dropped"), text, "0 = all differ")


def _put_diversity(sheet: Sheet, cells: dict[Any, Cell]) -> None:
    dims = ("variant", "layer")
    name, values = (
        "token diversity, mean 1 - cosine in an object",
        sheet.stacked(cells, "diversity"),
    )
    estimate = intervals.bootstrap(values, level=LEVEL, seed=sheet.seed)
    direction = "0 = oversmoothed"
    sheet.put_interval("token_diversity", dims, estimate, name, direction)
    target = intervals.bootstrap(cells[TARGET]["diversity"], level=LEVEL, seed=sheet.seed)
    sheet.put_interval("token_diversity_target", (), target, f"{name}, target", direction)
    gaps = [
        intervals.paired_difference(values[a], values[b], seed=sheet.seed) for a, b in sheet.pairs
    ]
    if gaps:
        where = ("comparison", "layer")
        sheet.put_differences("token_diversity_difference", where, gaps, f"difference in {name}")


def likeness_interval(
    key: str, value: np.ndarray, left_out: np.ndarray, level: float = LEVEL
) -> intervals.Interval:
    """Interval of one of `pairs.ALIKE` from its values with groups left out.

    value : (...)    left_out : (..., groups), see `intervals.group_jackknife`

    On the scale of its own (`SCALES`), but plainly where all but a group or two are copies: that
    scale has no end there, and one group would lie beyond all measure.
    """
    plain = intervals.group_jackknife(value, left_out, level)
    if key not in SCALES:
        return plain
    there, back = SCALES[key]
    every = np.concatenate([np.expand_dims(value, -1), left_out], axis=-1)
    far = (np.abs(every) if key == "procrustes" else 1 - np.abs(every)).min(axis=-1) > EXACT
    inner = np.where(far[..., None], every, 0.5)
    found = intervals.group_jackknife(there(inner[..., 0]), there(inner[..., 1:]), level)
    low, high = (
        np.where(far, back(ours), theirs) for ours, theirs in zip(found[1:], plain[1:], strict=True)
    )
    return intervals.Interval(value, low, high)


def _put_jackknifed(sheet: Sheet, cells: dict[Any, Cell], names: tuple[str, ...]) -> None:
    """Statistics of all query objects at once, with intervals from groups of them left out."""
    values, left_out = (sheet.stacked(cells, part) for part in ("values", "left_out"))
    without = [sheet.stacked(cells, f"{part}_without") for part in ("values", "left_out")]
    dims = ("variant", "layer")
    for at, key in enumerate(names):
        name, direction = NAMES[key], MORE.get(key, "higher fills more directions")
        one, out = values[..., at], left_out[..., at, :]
        text = f"{name}, massive tokens left out"
        rest = without[0][..., at], without[1][..., at, :]
        for ending, words, parts in (("", name, (one, out)), ("_without_massive", text, rest)):
            if key in pairs.ALIKE:
                estimate = likeness_interval(key, *parts, LEVEL)
            else:
                estimate = intervals.group_jackknife(*parts, LEVEL)
            inside = [
                np.clip(part, *LIKENESS_RANGES.get(key, (-np.inf, np.inf))) for part in estimate
            ]
            sheet.put_interval(f"{key}{ending}", dims, inside, words, direction)
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


def put_similarity(sheet: Sheet, cells: dict[Any, Cell], table: xr.Dataset) -> None:
    _put_jackknifed(sheet, cells, pairs.ALIKE)
    shuffled = sheet.stacked(cells, "shuffled")
    for at, key in enumerate(pairs.ALIKE):
        text, direction = f"{NAMES[key]}, its objects shuffled", MORE[key]
        where = ("variant", "layer")
        sheet.put_control(f"{key}_shuffled", where, shuffled[..., at], text, direction)
        own = cka.own_parts(
            *(sheet.stacked(cells, part)[:, :, at] for part in ("values", "left_out"))
        )
        sign = -1 if direction == LOWER else 1
        chance = sign * shuffled[:, 0, ..., at].mean()
        sheet.put_verdict_from_first(key, sign * own, chance, NAMES[key])
    queries = len(sheet.data.query)
    floor = max(1, min(pairs.SHARED, queries // 3)) / (queries - 1)
    text = f"{NAMES['mutual_knn']}, unrelated objects"
    sheet.put("mutual_knn_floor", (), floor, text, CLOSER)
    dims: tuple[str, ...] = ("variant", "layer")
    text = "debiased CKA with the target, RBF"
    _put_cka(sheet, cells, "cka_rbf", text)
    dealt = sheet.stacked(cells, "cka_rbf_shuffled")
    sheet.put_control("cka_rbf_shuffled", dims, dealt, f"{text}, its objects shuffled", CLOSER)
    turned = sheet.stacked(cells, "drift_procrustes")  # (variants, layers, queries)
    estimate = intervals.bootstrap(turned, level=LEVEL, seed=sheet.seed)
    text = "drift from the target, less what all objects share, through an orthogonal map"
    sheet.put_interval("drift_procrustes", dims, estimate, text, LOWER)
    # centred states of unrelated objects have a cosine of 0 on average
    sheet.put_verdict_from_first("drift_procrustes", -turned, -1.0, text)
    for key, part, text in (
        ("cka_biased", "biased", "biased CKA with the target, to be read against its floor"),
        ("cka_biased_floor", "floor", "biased CKA of unrelated states of these sizes"),
        ("cka_null", "null", "debiased CKA with the target, 95th percentile of shuffled objects"),
    ):
        sheet.put(key, dims, sheet.stacked(cells, part), text, CLOSER)
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
