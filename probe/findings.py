"""A run's results in sentences: what the numbers show; differences within noise are called that."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from probe.findings_more import (
    ALIKE,
    blocks,
    compare_geometry,
    compare_likenesses,
    compare_ways,
    during_training,
    geometry_falls,
    hubness,
    learning,
    likenesses,
    noise,
    of_encoder,
    outliers,
    space,
    ways_apart,
)
from probe.judged import (
    FINE,
    JUDGED,
    MAIN,
    SECOND,
    SIGNIFICANT,
    briefly,
    capitalised,
    decimals,
    judged,
    numbers,
    plural,
    rare,
    tells,
    verdict,
    verdict_cell,
    verdict_name,
    verdict_of_pair,
)

__all__ = ["JUDGED", "MAIN", "SIGNIFICANT", "judged", "verdict_cell", "verdict_name"]
COURSES = {  # measures whose course over depth is told: name, factor, decimals, control
    "knn": ("accuracy (K = {k})", 100, 1, "shuffled labels"),
    "cka": ("CKA to the target", 1, 3, ""),
    "encoder_cka": ("CKA to the encoder's output", 1, 3, ""),
    "drift_centred": ("drift", 1, 3, "unrelated objects"),
    "knn_without_massive": ("accuracy of neighbours, massive tokens left out", 100, 1, ""),
    "cka_without_massive": ("CKA to the target, massive tokens left out", 1, 3, ""),
    "drift_without_massive": ("drift, massive tokens left out", 1, 3, "unrelated objects"),
    "linear_without_massive": ("linear read-out accuracy, massive tokens left out", 100, 1, ""),
    "linear": ("linear read-out accuracy", 100, 1, "shuffled labels"),
    "linear_selectivity": ("linear read-out accuracy less that of shuffled labels", 100, 1, ""),
    "linear_compression": ("class, coded online: times shorter than without states", 1, 2, ""),
    "chamfer": ("Chamfer distance of rebuilt clouds", 1, 4, "tokens of other objects"),
}
FALLS = {"knn": "accuracy", "linear": "linear read-out accuracy"}


def findings(results: xr.Dataset) -> list[str]:
    """What the numbers show, a sentence each: over depth, by alignment, and the controls.

    results : of `probe.sweep.sweep`, or of a probe that is kept beside it
    """
    return over_depth(results) + by_alignment(results) + controls(results)


def over_depth(results: xr.Dataset) -> list[str]:
    """What becomes of each model's point tokens from the first captured layer to the deepest."""
    if "step" in results.dims:
        return [during_training(results.sel(variant=name)) for name in results.variant.values]
    said = []
    for score, about in COURSES.items():
        if f"{score}_mean" in results and tells(results, score):
            said.append(_course(results, score, *about))
        if score in FALLS and f"{score}_from_target" in results:
            said += _first_falls(results, score)
    if "linear_gain" in results:
        said.append(learning(results))
    said += _told(results, verdict, briefly)
    if "geometry_fall_p" in results:
        said.append(geometry_falls(results))
    if present := {key: name for key, name in ALIKE.items() if f"{key}_shuffled" in results}:
        said.append(likenesses(results, present))
    if "effective_rank_mean" in results:
        said.append(space(results))
    if "largest_norm" in results:
        said.append(outliers(results))
    if "cka_layers_mean" in results and results.sizes["layer"] > 1:
        said.append(blocks(results))
    if "knn_token_mean" in results:
        said += ways_apart(results)
    return said


def _told(results: xr.Dataset, sentence: Callable, brief: Callable) -> list[str]:
    """A sentence of each verdict, those of second opinions in one paragraph."""
    places = judged(results)
    said = [sentence(results, *place) for place in places if place[0] not in SECOND]
    second = [brief(results, *place) for place in places if place[0] in SECOND]
    return said + ([" ".join(["Second opinions.", *second])] if second else [])


def by_alignment(results: xr.Dataset) -> list[str]:
    """How the aligned model differs from the baseline; of several without a baseline, that."""
    if MAIN not in results.get("comparison", xr.DataArray([])).values:
        alone = "k" in results.coords and "comparison" not in results.coords
        several = alone and results.sizes["variant"] > 1
        return ["No two models are compared: that wants one called baseline."] * several
    said = [
        _compare(results, score, name.replace(" (K = {k})", ""))
        for score, (name, *_) in COURSES.items()
        if f"{score}_difference" in results and tells(results, score)
    ]
    said += _told(results, verdict_of_pair, verdict_of_pair)
    if present := {key: name for key, name in ALIKE.items() if f"{key}_difference" in results}:
        said.append(compare_likenesses(results, present))
    if "knn_ways_difference" in results:
        said += compare_ways(results)
    if "geometry_difference" in results:
        said.append(compare_geometry(results))
    return said


def controls(results: xr.Dataset) -> list[str]:
    """What the same measures give where there is nothing to find, and how exact they are."""
    said = []
    if few := rare(results):
        said.append(few)
    if "knn_encoder_mean" in results:
        said.append(of_encoder(results))
    if "hubness_mean" in results and results.hubness_random.notnull()[-1]:
        said.append(hubness(results))
    if "knn_shuffled" in results:
        said.append(_check_shuffled(results))
    if "linear_shuffled" in results:
        said.append(_check_linear(results))
    if "geometry_shuffled" in results:
        said.append(_check_geometry(results))
    if "noise_floor" in results.attrs:
        said.append(noise(results))
    return said


def _course(
    results: xr.Dataset, score: str, name: str, scale: int, digits: int, control: str
) -> str:
    """Value at the first layer and at the deepest, with its interval, model by model."""
    if "k" in results[f"{score}_mean"].dims:
        results, name = results.isel(k=-1), name.format(k=int(results.k.values[-1]))
    first, last = results.layer.values[[0, -1]]
    unit = " in %" if scale == 100 else ""
    against = ""
    for ending in ("shuffled", "shuffled_mean", "random"):
        if control and f"{score}_{ending}" in results:
            value = scale * float(results[f"{score}_{ending}"].mean())
            against = f" ({control}: {value:.{digits}f})"
    said = _ends(results, score, scale, digits)
    if score == "drift_centred" and "drift_pooled_mean" in results and results.sizes["token"] > 1:
        said += f"; of the mean token: {_ends(results, 'drift_pooled', scale, digits)}"
    where = f"from layer {first} to {last}" if first != last else f"at layer {last}"
    return f"{capitalised(name)}{unit} {where}{against}: {said}."


def _ends(results: xr.Dataset, score: str, scale: int, digits: int) -> str:
    first, last = results.layer.values[[0, -1]]
    said = []
    for variant in results.variant.values.astype(str):
        at = results.sel(variant=variant, layer=last)
        start = scale * float(results[f"{score}_mean"].sel(variant=variant, layer=first))
        ends = [scale * float(at[f"{score}_{part}"]) for part in ("mean", "low", "high")]
        begun = f"{start:.{digits}f} to " if first != last else ""
        form = "{} {}{:.{d}f} [{:.{d}f}, {:.{d}f}]"
        said.append(form.format(variant, begun, *ends, d=digits))
    return ", ".join(said)


def first_fall(results: xr.Dataset, variant: str, k: int) -> int | None:
    """First layer whose accuracy is below the target's, p over all layers under 0.05."""
    return _first_below(results.sel(k=k), "knn", variant)


def _first_below(results: xr.Dataset, score: str, variant: str) -> int | None:
    gap, p = (
        results[f"{score}_from_target{part}"].sel(variant=variant).values
        for part in ("", "_p_adjusted")
    )
    below = (gap < 0) & (p < SIGNIFICANT)
    return int(results.layer.values[below.argmax()]) if below.any() else None


def _first_falls(results: xr.Dataset, score: str) -> list[str]:
    """Of the largest k, and of smaller ones where there is a fall."""
    if score != "knn":
        return [_first_fall(results, score, FALLS[score])[0]]
    each = [
        _first_fall(results.sel(k=k), score, f"{FALLS[score]} (K = {k})") for k in results.k.values
    ]
    return [said for said, fell in each[:-1] if fell] + [each[-1][0]]


def _first_fall(results: xr.Dataset, score: str, name: str) -> tuple[str, bool]:
    """Where a share first falls below the target's, and whether it does in any model."""
    target = f"the target's {100 * float(results[f'{score}_target_mean']):.1f} %"
    parts, fell = [], False
    for variant in results.variant.values.astype(str):
        layer = _first_below(results, score, variant)
        if layer is None:
            parts.append(f"{variant} at no captured layer")
            continue
        fell, place = True, {"variant": variant, "layer": layer}
        mean, low, high = (
            100 * float(results[f"{score}_from_target{part}"].sel(place))
            for part in ("", "_low", "_high")
        )
        parts.append(f"{variant} at layer {layer} ({mean:+.1f} [{low:+.1f}, {high:+.1f}] points)")
    if not fell:
        words = f"At no captured layer is any model's {name} below {target}, beyond noise."
    else:
        words = f"{capitalised(name)} is first below {target}, beyond noise: {'; '.join(parts)}."
    return words, fell


def _compare(results: xr.Dataset, score: str, name: str) -> str:
    gap = {
        part: results[f"{score}_difference{part}"].sel(comparison=MAIN)
        for part in ("", "_low", "_high", "_p_adjusted")
    }
    unit, scale, digits = ("points", 100, 1) if COURSES[score][1] == 100 else ("", 1, FINE)
    if "k" in gap[""].dims:
        gap = {part: values.sel(k=results.k.values[-1]) for part, values in gap.items()}
        name = f"{name} (K = {int(results.k.values[-1])})"
    mean = gap[""].values * scale
    sure = gap["_p_adjusted"].values < SIGNIFICANT
    layers = results.layer.values
    at = int(np.abs(mean).argmax())
    low, high = (float(gap[part].values[at]) * scale for part in ("_low", "_high"))
    digits = digits if unit else decimals((mean[at], low, high), digits)
    largest = (
        f"{mean[at]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {unit}".rstrip()
        + f" at layer {layers[at]}"
    )
    if not sure.any():
        return (
            f"Aligned and baseline do not differ in {name} beyond noise at any layer; the "
            f"largest difference is {largest}."
        )
    verbs = ((sure & (mean > 0), "higher"), (sure & (mean < 0), "lower"))
    said = [
        f"{verb} at layer{plural(where)} {numbers(layers[where])}"
        for where, verb in verbs
        if where.any()
    ]
    rest = layers[~sure]
    within = f", within noise at {numbers(rest)}" if len(rest) else ""
    return f"Aligned less baseline in {name}: {' and '.join(said)}{within}; at most {largest}."


def _check_shuffled(results: xr.Dataset) -> str:
    shuffled, chance = 100 * results.knn_shuffled, 100 * results.attrs["chance"]
    return (
        f"Control: with shuffled labels accuracy is {float(shuffled.min()):.1f} to "
        f"{float(shuffled.max()):.1f} % (always naming the commonest class: {chance:.1f} %)."
    )


def _check_linear(results: xr.Dataset) -> str:
    query, gallery = 100 * results.linear_shuffled, 100 * results.linear_shuffled_train
    return (
        f"Control: a linear read-out fitted to shuffled labels names {float(query.min()):.1f} to "
        f"{float(query.max()):.1f} % of the query, {float(gallery.min()):.1f} to "
        f"{float(gallery.max()):.1f} % of the gallery it learnt by heart."
    )


def _check_geometry(results: xr.Dataset) -> str:
    constant = results.attrs["constant"]
    left_out = f" Left out, as they do not vary: {', '.join(constant)}." if constant else ""
    return (
        "Control: with shuffled values R² is at most "
        f"{float(results.geometry_shuffled.max()):.2f}.{left_out}"
    )
