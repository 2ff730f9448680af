"""Sentences about what is asked for beside neighbours, CKA and drift, and about training."""

import numpy as np
import xarray as xr

from probe.judged import (
    FINE,
    MAIN,
    SIGNIFICANT,
    at_layer,
    decimals,
    listed,
    numbers,
    plural,
)
from probe.verdict import SHARE

ALIKE = {  # other likenesses to the target, each blind to something else
    "cka_rbf": "RBF CKA",
    "procrustes": "Procrustes distance",
    "rsa": "RSA",
    "mutual_knn": "share of common neighbours",
    "svcca": "SVCCA",
    "pwcca": "PWCCA",
}
SPACE = {
    "two_nn": ("intrinsic dimension (TwoNN)", 1),
    "effective_rank": ("effective rank", 1),
    "participation_ratio": ("participation ratio", 1),
    "anisotropy": ("anisotropy", 2),
    "token_diversity": ("diversity of an object's tokens", 3),
}
LEFT_OUT = {  # what is told without massive tokens, too: beside what, and in which unit
    "knn": ("knn", "accuracy", 100, 1, " points"),
    "linear": ("linear", "linear read-out", 100, 1, " points"),
    "geometry": ("geometry", "R² of a property", 1, FINE, ""),
    "cka": ("cka", "CKA to the target", 1, FINE, ""),
    "drift": ("drift_centred", "drift", 1, FINE, ""),
    "two_nn": ("two_nn", "intrinsic dimension", 1, 1, ""),
    "procrustes": ("procrustes", "Procrustes distance", 1, FINE, ""),
    "rsa": ("rsa", "RSA", 1, FINE, ""),
}
PARTS = ("mean", "low", "high")
WAYS = ("preparation", "pooling", "metric")
FIRST = 5  # properties that are named
AGREE = 0.02  # of accuracy: ways of asking that are closer give the same picture


def during_training(one: xr.Dataset) -> str:
    """One model captured while it trained: its deepest layer from the first step to the last."""
    one = one.dropna("step", subset=["cka_mean"])
    first, last, layer = one.step.values[0], one.step.values[-1], one.layer.values[-1]
    said = []
    for score, name in (("cka", "CKA to the target"), ("drift_centred", "drift")):
        ends = [
            "{:.3f} [{:.3f}, {:.3f}]".format(
                *(float(one[f"{score}_{p}"].sel(layer=layer, step=at)) for p in PARTS)
            )
            for at in (first, last)
        ]
        said.append(f"{name} from {ends[0]} to {ends[1]}")
    change = one.drift_centred_mean.isel(step=-1) - one.drift_centred_mean.isel(step=0)
    most = int(np.abs(change.values).argmax())
    return (
        f"{one.variant.item()}, from step {first} to {last} at layer {layer}: "
        f"{' and '.join(said)}; drift changes most at layer {one.layer.values[most]} "
        f"({float(change[most]):+.{FINE}f})."
    )


def likenesses(results: xr.Dataset, names: dict[str, str]) -> str:
    """Other likenesses to the target of one model, with what shuffled objects give."""
    name = "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
    first, last = results.layer.values[[0, -1]]
    said = []
    for key, words in names.items():
        one = results.sel(variant=name)
        start, *ends = (
            float(one[f"{key}_{part}"].sel(layer=at))
            for part, at in (("mean", first), *((p, last) for p in PARTS))
        )
        if np.isnan(start):
            said.append(f"{words} not defined, as there are no more objects than dimensions")
            continue
        chance = f", shuffled {round(float(one[f'{key}_shuffled'].sel(layer=last)), 2) + 0.0:.2f}"
        begun = f"{start:.2f} to " if first != last else ""
        said.append("{} {}{:.2f} [{:.2f}, {:.2f}]".format(words, begun, *ends) + chance)
    return f"Other likenesses of {name} to the target, {_from(results)}: {'; '.join(said)}."


def compare_likenesses(results: xr.Dataset, names: dict[str, str]) -> str:
    """At which layers each of them finds aligned closer to the target, or further."""
    pair = results.sel(comparison=MAIN)
    ways: dict[str, list[str]] = {"closer": [], "further": []}
    none = []
    for key, words in names.items():
        if pair[f"{key}_difference"].isnull().all():  # PWCCA of few objects
            continue
        sure = pair[f"{key}_difference_p_adjusted"].values < SIGNIFICANT
        closer = pair[f"{key}_difference"].values * (-1 if key == "procrustes" else 1) > 0
        for where, way in ((sure & closer, "closer"), (sure & ~closer, "further")):
            if where.any():
                layers = numbers(results.layer.values[where])
                ways[way].append(f"{words} (layer{plural(where)} {layers})")
        if not sure.any():
            none.append(words)
    said = [f"{way} by {listed(measures)}" for way, measures in ways.items() if measures]
    if not said:
        return f"By {listed(none)} aligned and baseline are equally close to the target, in noise."
    rest = f"; within noise at every layer by {listed(none)}" if none else ""
    return f"Against the baseline, aligned is {' and '.join(said)} to the target{rest}."


def space(results: xr.Dataset) -> str:
    """What the space of mean tokens is like at both ends of one model."""
    name = "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
    first, last = results.layer.values[[0, -1]]
    said = []
    for key, (words, digits) in SPACE.items():
        if f"{key}_mean" in results:
            one = results.sel(variant=name)
            start = float(one[f"{key}_mean"].sel(layer=first))
            ends = [float(one[f"{key}_{part}"].sel(layer=last)) for part in PARTS]
            if not np.isfinite([start, *ends]).all():  # of few objects, or of a lattice
                said.append(f"{words} not measured")
                continue
            begun = f"{start:.{digits}f} to " if first != last else ""
            form = "{} {}{:.{d}f} [{:.{d}f}, {:.{d}f}]"
            said.append(form.format(words, begun, *ends, d=digits))
    said += _thinned(results.sel(variant=name)) if "two_nn_decimated" in results else []
    return f"Space of {name}, {_from(results)}: {'; '.join(said)}."


def _from(results: xr.Dataset) -> str:
    first, last = results.layer.values[[0, -1]]
    return f"layer {first} to {last}" if first != last else f"layer {last}"


def _thinned(one: xr.Dataset) -> list[str]:
    """TwoNN at the deepest layer as objects are thinned out, and objects that it leaves out."""
    last, said = one.isel(layer=-1), []
    if one.sizes["objects"] > 1 and last.two_nn_decimated.notnull().all():
        whole, *fewer = (
            f"{float(value):.1f} of {int(count)}"
            for value, count in zip(last.two_nn_decimated, one.objects, strict=True)
        )
        said.append(
            f"thinned out at layer {int(last.layer)}, TwoNN {whole} objects, {', '.join(fewer)}"
        )
    if (most := int(one.two_nn_dropped.max())) > 0:
        some = one.two_nn_dropped.values > 0
        said.append(
            f"at layer{plural(some)} {numbers(one.layer.values[some])} TwoNN leaves out up to "
            f"{most} objects at distance 0 from another"
        )
    return said


def learning(results: xr.Dataset) -> str:
    """Whether the linear read-out of one model's deepest layer gained from the last doubling."""
    name = "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
    last = results.sel(variant=name).isel(layer=-1)
    *fewer, whole = (
        f"{100 * float(share):.1f} % ({int(count)})"
        for share, count in zip(last.linear_curve_mean, last.fitted, strict=True)
    )
    gain, low, high = (
        round(100 * float(last[f"linear_gain{part}"]), 1) + 0.0 for part in ("", "_low", "_high")
    )
    p = float(last.linear_gain_p_adjusted)
    told = "it still learns" if p < SIGNIFICANT and gain > 0 else "no gain beyond noise"
    return (
        f"Linear read-out of {name} at layer {int(last.layer)} by how many gallery objects it is "
        f"fitted on: {', '.join(fewer)} and {whole}; the last doubling adds {gain:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]: {told} (tested over all layers at once)."
    )


def ways_apart(results: xr.Dataset) -> list[str]:
    """Whether other ways of asking for neighbours, or one token alone, change the picture."""
    k = int(results.k.values[-1])
    at_k = results.sel(k=k)
    mean = at_k.knn_ways_mean.stack(way=WAYS)
    usual = at_k.knn_ways_mean.sel(preparation="raw", pooling="mean", metric="cosine")
    gap = (mean - usual).mean(("variant", "layer")).to_series()
    best, worst = gap.idxmax(), gap.idxmin()
    rank = results.whitened_rank.sel(pooling="mean")
    said = [
        f"Of {len(gap)} ways to ask for neighbours (K = {k}), {int((gap.abs() < AGREE).sum())} are "
        f"within {100 * AGREE:.0f} points of the usual one on average; the furthest up is "
        f"{', '.join(best)} ({100 * gap[best]:+.1f}), down {', '.join(worst)} "
        f"({100 * gap[worst]:+.1f}). Whitened keeps 99 % of the variance: {_span(rank, 0)} "
        "dimensions of the mean token."
    ]
    if results.knn_token_mean.sizes["token"] > 1:
        said.append(_token_alone(results, k))
    return said


def _token_alone(results: xr.Dataset, k: int) -> str:
    """One model's tokens at its deepest layer, and whether any tells more than the mean of all."""
    name = "baseline" if "baseline" in results.variant.values else str(results.variant.values[0])
    one, last = results.sel(variant=name), results.layer.values[-1]
    each = 100 * one.knn_token_mean.sel(layer=last)
    usual = one.knn_ways_mean.sel(preparation="raw", pooling="mean", metric="cosine")
    more = one.knn_token_from_mean.where(one.knn_token_from_mean_p_adjusted < SIGNIFICANT, 0) > 0
    tokens, layers = more.any("layer").values, more.any("token").values
    verb = "tell" if tokens.sum() > 1 else "tells"
    told = (
        f"token{plural(tokens)} {numbers(results.token.values[tokens])} {verb} more than the mean "
        f"of all at layer{plural(layers)} {numbers(results.layer.values[layers])}"
        if tokens.any()
        else "none tells more than the mean of all at any layer, beyond noise"
    )
    return (
        f"One token alone (K = {k}) of {name}: {float(each.min()):.1f} to {float(each.max()):.1f} "
        f"% at layer {last}, the mean of all {100 * float(usual.sel(layer=last, k=k)):.1f}; "
        f"{told}."
    )


def compare_ways(results: xr.Dataset) -> list[str]:
    """Whether other ways of asking for neighbours see another difference between two models."""
    at_k = results.isel(k=-1)
    pair = at_k.sel(comparison=MAIN)
    sure = pair.knn_ways_difference_p_adjusted < SIGNIFICANT
    up = (sure & (pair.knn_ways_difference > 0)).any("layer").stack(way=WAYS)
    down = (sure & (pair.knn_ways_difference < 0)).any("layer").stack(way=WAYS)
    agree = "They agree" if not (up.any() and down.any()) else "They disagree"
    neither = int((~up & ~down).sum())
    splits = at_k.knn_test90_10
    spread = 100 * float(splits.std("split").mean())
    one = splits.sel(variant="aligned") - splits.sel(variant="baseline")
    return [
        f"{agree} on aligned against baseline: {int(up.sum())} find it more accurate at some "
        f"layer, {int(down.sum())} less, {neither} find no difference beyond noise.",
        f"Protocol test90_10: one split differs from another by {spread:.1f} points (standard "
        f"deviation); aligned is ahead in {100 * float((one > 0).mean()):.0f} % of splits and "
        f"layers, behind in {100 * float((one < 0).mean()):.0f} %.",
    ]


def geometry_falls(results: xr.Dataset) -> str:
    """Which properties each model loses, where, and how many it surely keeps; each by itself."""
    first, deepest = (int(layer) for layer in results.layer.values[[0, -1]])
    said = []
    for name in results.variant.values.astype(str):
        one = results.sel(variant=name)
        depth = one.geometry_fall_mean.where(one.geometry_fall_p < SIGNIFICANT)
        lost = depth[np.isfinite(depth)].sortby(depth[np.isfinite(depth)])
        each = [
            f"{at.property.item()} at layer {at_layer(float(at), first, deepest)}"
            for at in lost[:FIRST]
        ]
        more = lost.size - len(each)
        words = listed([*each, f"{more} more"] if more else each) if each else "none"
        kept = int(((one.geometry_held == deepest) & depth.isnull()).sum())
        said.append(f"{name} loses {words}, and surely keeps {kept} to layer {deepest}")
    return (
        f"Verdict on geometry, {results.sizes['property']} properties, each by itself (lost where "
        f"its read-out is {SHARE:.0%} worse than the target's): {'; '.join(said)}."
    )


def compare_geometry(results: xr.Dataset) -> str:
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


def outliers(results: xr.Dataset) -> str:
    """Tokens and a dimension that outweigh the others, and what each of them changes at most."""
    top = 100 * float(results.top_variance.sel(top=1).max())
    said = f"{_massive(results)}; the dimension that varies most holds {top:.0f} % of the variance"
    if "cka_standardised_mean" not in results:
        return f"{said} at most."
    usual = results.get("cka_without_massive_mean", results.cka_mean)
    change = float(abs(results.cka_standardised_mean - usual).max())
    return (
        f"{said} at most; with all dimensions at one spread CKA to the target changes by at most "
        f"{change:.{FINE}f}."
    )


def _massive(results: xr.Dataset) -> str:
    massive = results.massive_tokens
    if float(massive.max()) == 0:
        return (
            "No token has a norm over 10 times its layer's median (largest: "
            f"{float(results.largest_norm.max()):.1f})"
        )
    at = (massive > 0).any(("variant", "token")).values
    there = (massive > 0).any(("variant", "layer")).values
    layers, tokens = results.layer.values[at], results.token.values[there]
    moved = []
    for key, (usual, name, scale, digits, unit) in LEFT_OUT.items():
        if f"{key}_without_massive_mean" in results:
            gap = abs(results[f"{key}_without_massive_mean"] - results[f"{usual}_mean"])
            gap = gap.isel(k=-1) if "k" in gap.dims else gap  # the largest k it is told of
            if gap.isnull().all():  # intrinsic dimension of few objects
                continue
            most = scale * float(gap.max())
            shown = decimals([most], digits)
            moved.append(f"{name} by at most {most:.{shown}f}{unit}{_place(gap) if most else ''}")
    return (
        f"Massive tokens at layer{plural(at)} {numbers(layers)}, position{plural(there)} "
        f"{numbers(tokens)}"
    ) + (f"; leaving them out changes {listed(moved)}" if moved else "")


def _place(gap: xr.DataArray) -> str:
    """Model and layer of the largest value."""
    at = {str(dim): int(index) for dim, index in gap.argmax(...).items()}
    one = gap.isel(at)
    about = f", {one.property.item()}" if "property" in one.coords else ""
    return f" ({one.variant.item()}, layer {one.layer.item()}{about})"


def blocks(results: xr.Dataset) -> str:
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


def of_encoder(results: xr.Dataset) -> str:
    """What is there before the Q-Former: no model was trained toward it, nor reads it directly."""
    k = int(results.k.values[-1])
    measures = {"knn": f"accuracy (K = {k})", "linear": "linear read-out accuracy"}
    said = []
    for key, name in measures.items():
        if f"{key}_encoder_mean" not in results:
            continue
        one = results.sel(k=k) if key == "knn" else results
        four = [100 * float(one[f"{key}_encoder_{part}"]) for part in PARTS]
        four.append(100 * float(one[f"{key}_target_mean"]))
        said.append("{} {:.1f} [{:.1f}, {:.1f}] % (target: {:.1f})".format(name, *four))
    if "encoder_cka_target_mean" in results:
        three = (float(results[f"encoder_cka_target_{part}"]) for part in PARTS)
        said.append("CKA to the target {:.3f} [{:.3f}, {:.3f}]".format(*three))
    return f"The encoder's output, which the Q-Former reads: {'; '.join(said)}."


def hubness(results: xr.Dataset) -> str:
    """Whether a few gallery objects are everybody's neighbours at the deepest layer."""
    one, last = results.isel(k=-1, layer=-1), int(results.layer.values[-1])
    said = []
    for name in one.variant.values.astype(str):
        three = (float(one[f"hubness_{part}"].sel(variant=name)) for part in PARTS)
        said.append("{} {:.2f} [{:.2f}, {:.2f}]".format(name, *three))
    return (
        f"Hubness at layer {last} (skewness of how often a gallery object is one of the "
        f"{int(one.k)} neighbours; {float(one.hubness_random):.2f} at random, "
        f"{float(one.hubness_target_mean):.2f} of the target): {', '.join(said)}."
    )


def noise(results: xr.Dataset) -> str:
    if "noise_cka_mean" not in results:
        return f"Noise floor: {results.attrs['noise_floor']}."
    if results.noise_cka_mean.isnull().all():
        return f"Noise floor ({results.attrs['noise_floor']}): no model has one in every run."
    cka, knn = (
        f"{_span(scale * results[f'{key}_mean'], digits)}{unit} (intervals within "
        f"{scale * float(results[f'{key}_low'].min()):.{digits}f} and "
        f"{scale * float(results[f'{key}_high'].max()):.{digits}f})"
        for key, scale, digits, unit in (("noise_cka", 1, 3, ""), ("noise_agreement", 100, 1, " %"))
    )
    return (
        f"Noise floor ({results.attrs['noise_floor']}): the same objects captured again have a CKA "
        f"of {cka} with themselves, and their neighbours name the same class for {knn}."
    )


def _span(values: xr.DataArray, digits: int) -> str:
    ends = (f"{float(end):.{digits}f}" for end in (values.min(), values.max()))
    return " to ".join(dict.fromkeys(ends))
