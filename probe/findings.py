"""A sweep in sentences: what the numbers show; differences within noise are called that."""

import numpy as np
import xarray as xr

SIGNIFICANT = 0.05
MAIN = "aligned - baseline"
FINE = 4  # decimals of a difference in CKA or drift, which can be far under .01
JUDGED = {  # measures with a verdict: name, and whether they are shares
    "knn": ("accuracy", True),
    "linear": ("linear read-out accuracy", True),
    "cka": ("CKA to the target", False),
    "drift_centred": ("drift", False),
    "chamfer": ("Chamfer distance of rebuilt clouds", False),
}
AGREE = 0.02  # of accuracy: ways of asking that are closer give the same picture


def findings(results: xr.Dataset) -> list[str]:
    """What the numbers show, a sentence each; differences within noise are called that."""
    sentences = []
    if "knn_mean" in results:
        k = int(results.k.values[-1])
        sentences.append(_first_fall(results, k))
    names = {
        "knn": "accuracy",
        "cka": "CKA to the target",
        "drift_centred": "drift",
        "linear": "linear read-out accuracy",
        "chamfer": "Chamfer distance of rebuilt clouds",
    }
    for score, name in names.items():
        if f"{score}_difference" in results and MAIN in results.comparison.values:
            sentences.append(_compare(results, score, name))
    for score, where in judged(results):
        sentences.append(_verdict(results, score, where))
    if "knn_ways_mean" in results:
        sentences += _compare_ways(results)
    if "largest_norm" in results:
        sentences.append(_outliers(results))
    if "cka_layers_mean" in results:
        sentences.append(_blocks(results))
    if "knn_mean" in results:
        sentences.append(_check_shuffled(results))
    if "geometry_difference" in results and MAIN in results.comparison.values:
        sentences.append(_compare_geometry(results))
    if "linear_mean" in results:
        sentences.append(_check_linear(results))
    if "geometry_mean" in results:
        sentences.append(_check_geometry(results))
    if "noise_floor" in results.attrs:
        sentences.append(_noise(results))
    return sentences


def judged(results: xr.Dataset) -> list[tuple[str, dict[str, int]]]:
    """Measures with a verdict in these results, and where to find it: the largest k."""
    found = []
    for score in JUDGED:
        if f"{score}_fall_mean" in results:
            by_k = "k" in results[f"{score}_margin"].dims
            found.append((score, {"k": int(results.k.values[-1])} if by_k else {}))
    return found


def verdict_name(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    """Name of a measure with the loss that counts and what it is measured from."""
    name, share = JUDGED[score]
    margin = results[f"{score}_margin"].sel(where)
    by_k = f", K = {where['k']}" if where else ""
    return f"{name}{by_k} ({_amount(float(margin), share)}, {margin.attrs['against']})"


def verdict_cell(row: xr.Dataset, score: str, variant: str) -> str:
    """Where one model falls, with its interval, or how far it is shown to hold."""
    one = row.sel(variant=variant)
    depth, low, high, p, held = (
        float(one[f"{score}_{part}"])
        for part in ("fall_mean", "fall_low", "fall_high", "fall_p", "held")
    )
    deepest = int(row.layer.values[-1])
    if np.isnan(p):
        return "no reference"
    if p < SIGNIFICANT and np.isfinite(depth):
        end = f"{high:.1f}" if np.isfinite(high) else f"beyond {deepest}"
        return f"{depth:.1f} [{low:.1f}, {end}]"
    if held == deepest:
        return f"holds to {deepest}"
    return "unsure anywhere" if np.isnan(held) else f"unsure past {held:.0f}"


def _verdict(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    row, share = results.sel(where), JUDGED[score][1]
    margin = float(row[f"{score}_margin"])
    said = f"Verdict on {verdict_name(results, score, where)}: "
    for models, words in _grouped(row, score):
        said += f"{models} {words}; "
    said = said.rstrip("; ") + "."
    if MAIN not in results.get("comparison", xr.DataArray([])).values or np.isnan(margin):
        return said
    pair = row.sel(comparison=MAIN)
    said += _moved(pair, score)
    alike = pair[f"{score}_alike_p"].values < SIGNIFICANT
    size = f"± {_amount(margin, share)}"
    if alike.all():
        said += f" Aligned and baseline are proven alike within {size} at every layer"
    elif alike.any():
        said += f" They are proven alike within {size} at layer{_s(alike)} "
        said += _list(results.layer.values[alike])
    else:
        said += f" At no layer are they proven alike within {size}"
    least = pair[f"{score}_detectable"].values
    return (
        f"{said}; a difference of {_amount(float(least.max()), share)} would be found 4 times in 5."
    )


def _grouped(row: xr.Dataset, score: str) -> list[tuple[str, str]]:
    """Models by what is said of them."""
    said: dict[str, list[str]] = {}
    for variant in row.variant.values.astype(str):
        cell = verdict_cell(row, score, variant)
        words = f"falls at layer {cell}" if cell[0].isdigit() else cell
        said.setdefault(words, []).append(variant)
    return [(_and(models), _plural(words, models)) for words, models in said.items()]


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _plural(words: str, models: list[str]) -> str:
    words = words.replace("unsure", "is unsure", 1)
    if len(models) > 1:
        for one, many in (("falls", "fall"), ("holds", "hold"), ("is ", "are ")):
            words = words.replace(one, many, 1)
    return words


def _moved(pair: xr.Dataset, score: str) -> str:
    mean, low, high, censored = (
        float(pair[f"{score}_shift_{part}"]) for part in ("mean", "low", "high", "censored")
    )
    if censored > 0.05:
        fell = pair[f"{score}_fall_p"].values < SIGNIFICANT
        return " How far alignment moves that is not known." if fell.any() else ""
    sure = low > 0 or high < 0
    verb = (
        f"{'delays' if mean > 0 else 'hastens'} that by" if sure else "does not surely move that:"
    )
    mean, low, high = (mean, low, high) if not sure or mean > 0 else (-mean, -high, -low)
    return f" Alignment {verb} {mean:.1f} [{low:.1f}, {high:.1f}] layers."


def _amount(value: float, share: bool) -> str:
    return f"{100 * value:.1f} points" if share else f"{value:.{FINE if value < 0.01 else 3}f}"


def _compare_ways(results: xr.Dataset) -> list[str]:
    """Whether other ways of asking for neighbours change the picture."""
    k = int(results.k.values[-1])
    ways = ("preparation", "pooling", "metric")
    at_k = results.sel(k=k)
    mean = at_k.knn_ways_mean.stack(way=ways)
    usual = at_k.knn_ways_mean.sel(preparation="raw", pooling="mean", metric="cosine")
    gap = (mean - usual).mean(("variant", "layer")).to_series()
    best, worst = gap.idxmax(), gap.idxmin()
    said = [
        f"Of {len(gap)} ways to ask for neighbours (K = {k}), {int((gap.abs() < AGREE).sum())} are "
        f"within {100 * AGREE:.0f} points of the usual one on average; the furthest up is "
        f"{', '.join(best)} ({100 * gap[best]:+.1f}), down {', '.join(worst)} "
        f"({100 * gap[worst]:+.1f})."
    ]
    if "knn_ways_difference" in results and MAIN in results.comparison.values:
        pair = at_k.sel(comparison=MAIN)
        sure = pair.knn_ways_difference_p_adjusted < SIGNIFICANT
        up = (sure & (pair.knn_ways_difference > 0)).any("layer").stack(way=ways)
        down = (sure & (pair.knn_ways_difference < 0)).any("layer").stack(way=ways)
        agree = "They agree" if not (up.any() and down.any()) else "They disagree"
        neither = int((~up & ~down).sum())
        said.append(
            f"{agree} on aligned against baseline: {int(up.sum())} find it more accurate at some "
            f"layer, {int(down.sum())} less, {neither} find no difference beyond noise."
        )
        splits = at_k.knn_test90_10
        spread = 100 * float(splits.std("split").mean())
        one = splits.sel(variant="aligned") - splits.sel(variant="baseline")
        said.append(
            f"Protocol test90_10: one split differs from another by {spread:.1f} points (standard "
            f"deviation); aligned is ahead in {100 * float((one > 0).mean()):.0f} % of splits and "
            f"layers, behind in {100 * float((one < 0).mean()):.0f} %."
        )
    return said


def _outliers(results: xr.Dataset) -> str:
    massive = results.massive_tokens
    top = float(results.top_variance.sel(top=1).max())
    if float(massive.max()) == 0:
        said = (
            "No token has a norm over 10 times its layer's median (largest: "
            f"{float(results.largest_norm.max()):.1f})"
        )
    else:
        layers = results.layer.values[(massive > 0).any(("variant", "token")).values]
        tokens = results.token.values[(massive > 0).any(("variant", "layer")).values]
        gap = results.knn_without_massive_mean - results.knn_mean.isel(k=-1)
        said = (
            f"Massive tokens at layers {_list(layers)}, positions {_list(tokens)}; without them "
            f"accuracy changes by at most {100 * float(abs(gap).max()):.1f} points"
        )
    return (
        f"{said}; the dimension that varies most holds {100 * top:.0f} % of the variance at most."
    )


def _blocks(results: xr.Dataset) -> str:
    first, last = int(results.layer.values[0]), int(results.layer.values[-1])
    said = []
    for variant in results.variant.values.astype(str):
        ends = {"variant": variant, "other_variant": variant, "layer": first, "other_layer": last}
        low, high = (float(results[f"cka_layers_{part}"].sel(ends)) for part in ("low", "high"))
        mean = float(results.cka_layers_mean.sel(ends))
        said.append(f"{variant} {mean:.3f} [{low:.3f}, {high:.3f}]")
    return (
        f"CKA of layer {first} with layer {last} of the same model: {', '.join(said)} (largest of "
        f"all pairs by chance: {float(results.cka_layers_random):.3f})."
    )


def _noise(results: xr.Dataset) -> str:
    if "noise_cka_mean" not in results:
        return f"Noise floor: {results.attrs['noise_floor']}."
    cka, knn = results.noise_cka_mean, 100 * results.noise_agreement_mean
    return (
        f"Noise floor ({results.attrs['noise_floor']}): the same objects captured again have a CKA "
        f"of {float(cka.min()):.3f} to {float(cka.max()):.3f} with themselves, and their "
        f"neighbours name the same class for {float(knn.min()):.1f} to {float(knn.max()):.1f} %."
    )


def first_fall(results: xr.Dataset, variant: str, k: int) -> int | None:
    """First layer whose accuracy is below the target's, p over all layers under 0.05."""
    place = {"variant": variant, "k": k}
    gap = results.knn_from_target.sel(place).values
    p = results.knn_from_target_p_adjusted.sel(place).values
    below = (gap < 0) & (p < SIGNIFICANT)
    return int(results.layer.values[below.argmax()]) if below.any() else None


def _first_fall(results: xr.Dataset, k: int) -> str:
    parts = []
    for variant in results.variant.values.astype(str):
        layer = first_fall(results, variant, k)
        if layer is None:
            parts.append(f"{variant} at no captured layer")
            continue
        place = {"variant": variant, "k": k, "layer": layer}
        mean, low, high = (
            100 * float(results[f"knn_from_target{part}"].sel(place))
            for part in ("", "_low", "_high")
        )
        parts.append(f"{variant} at layer {layer} ({mean:+.1f} [{low:+.1f}, {high:+.1f}] points)")
    target = 100 * float(results.knn_target_mean.sel(k=k))
    return (
        f"Accuracy (K = {k}) is first below the target's {target:.1f} %, beyond noise: "
        f"{'; '.join(parts)}."
    )


def _compare(results: xr.Dataset, score: str, name: str) -> str:
    gap = {
        part: results[f"{score}_difference{part}"].sel(comparison=MAIN)
        for part in ("", "_low", "_high", "_p_adjusted")
    }
    unit, scale, digits = ("points", 100, 1) if score in ("knn", "linear") else ("", 1, FINE)
    if "k" in gap[""].dims:
        gap = {part: values.sel(k=results.k.values[-1]) for part, values in gap.items()}
        name = f"{name} (K = {int(results.k.values[-1])})"
    mean = gap[""].values * scale
    sure = gap["_p_adjusted"].values < SIGNIFICANT
    layers = results.layer.values
    at = int(np.abs(mean).argmax())
    low, high = (float(gap[part].values[at]) * scale for part in ("_low", "_high"))
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
        f"{verb} at layer{_s(where)} {_list(layers[where])}" for where, verb in verbs if where.any()
    ]
    rest = layers[~sure]
    noise = f", within noise at {_list(rest)}" if len(rest) else ""
    return f"Aligned less baseline in {name}: {' and '.join(said)}{noise}; at most {largest}."


def _check_shuffled(results: xr.Dataset) -> str:
    shuffled, chance = 100 * results.knn_shuffled, 100 * results.attrs["chance"]
    return (
        f"Control: with shuffled labels accuracy is {float(shuffled.min()):.1f} to "
        f"{float(shuffled.max()):.1f} % (always naming the commonest class: {chance:.1f} %)."
    )


def _compare_geometry(results: xr.Dataset) -> str:
    """Properties whose read-out alignment changes, over all layers and properties at once."""
    gap = results.geometry_difference.sel(comparison=MAIN)
    sure = results.geometry_difference_p_adjusted.sel(comparison=MAIN) < SIGNIFICANT
    said = []
    for where, verb in ((sure & (gap > 0), "better"), (sure & (gap < 0), "worse")):
        found = [
            f"{name} from {results.layer.values[at.argmax()]}"
            for name in results.property.values
            if (at := where.sel(property=name).values).any()
        ]
        if found:
            said.append(f"{verb} for {len(found)} ({', '.join(found)})")
    if not said:
        return "Aligned and baseline do not differ in any property read out, beyond noise."
    return (
        f"Of {results.sizes['property']} properties, aligned is read out {', '.join(said)}, each "
        "from its first layer that differs."
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


def _list(layers: np.ndarray) -> str:
    return ", ".join(str(layer) for layer in layers)


def _s(where: np.ndarray) -> str:
    return "s" if where.sum() > 1 else ""
