"""Several runs under other seeds in words: what holds over seeds and objects."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import xarray as xr

from probe.findings_more import noise
from probe.judged import MAIN, SIGNIFICANT, at_layer, capitalised, decimals, tells
from probe.seeds_beside import KEPT
from probe.seeds_scores import MANY, OTHERWISE, SCORES, SHARE

MANY_OF = {  # what there are many of, and how they compare
    "geometry": ("properties", "read out better", "worse"),
    "geometry_without_massive": (
        "properties without massive tokens",
        "read out better",
        "worse",
    ),
    "knn_class": ("classes", "more often right by its neighbours", "less often"),
    "knn_ways": ("ways of asking for neighbours", "more often right", "less often"),
    "knn_token": ("single tokens", "more often right by its neighbours", "less often"),
    "token_drift": ("single tokens", "farther from the target", "closer"),
    "linear_curve": ("sizes of the gallery", "read out better", "worse"),
}


TITLES = {
    "reconstruction": "The cloud rebuilt",
    "steps": "During training",
    "alignment": "Through the trained projector",
    "maps": "Maps",
    "lens": "In words",
    "causal": "Causes",
}


def findings(results: xr.Dataset) -> list[str]:
    """What holds over seeds, a sentence for each score, the number of seeds first."""
    seeds, objects = results.attrs["seeds"], np.atleast_1d(results.attrs["query_objects"])
    kind = "the same" if results.attrs["shared"] else "others in each"
    few = " With two seeds an interval is up to 6 times wider than with many." if seeds == 2 else ""
    said = [
        f"{seeds} seeds ({', '.join(results.run.values.astype(str))}), of "
        f"{' and '.join(map(str, dict.fromkeys(objects)))} query objects, {kind}: intervals cover "
        f"seeds and objects.{few}"
    ]
    if results.attrs.get("recipes"):
        said.append(f"Not seeds alone: {results.attrs['recipes']}.")
    if "noise_floor" in results.attrs:
        said.append(noise(results))
    if MAIN not in results.get("comparison", []):
        return said
    pair = results.sel(comparison=MAIN)
    for key in SCORES:
        if key in MANY_OF:
            said += _of_many(pair, key)
        elif _there(pair, key):
            said.append(_compared(pair, key))
    said += _otherwise(pair)
    for key in MANY:
        said += _of_many(pair, key)
    return said


def _there(pair: xr.Dataset, key: str) -> bool:
    """Whether a measure is compared, and is defined, and has something of its own to tell."""
    if f"{key}_difference" not in pair or not tells(pair, key):
        return False
    gap = pair[f"{key}_difference"]
    return not bool((gap.isel(k=-1) if "k" in gap.dims else gap).isnull().all())


def _of_many(pair: xr.Dataset, key: str) -> list[str]:
    if key not in MANY_OF or not _there(pair, key):
        return []
    what, more, less = MANY_OF[key]
    number = int(pair[f"{key}_difference"].notnull().any("layer").sum())
    gap, sure = pair[f"{key}_difference"], pair[f"{key}_difference_p_adjusted"] < SIGNIFICANT
    above, below = (int((sure & (sign * gap > 0)).any("layer").sum()) for sign in (1, -1))
    return [
        f"{capitalised(what)} ({number}): aligned is {more} than baseline for {above} and {less} "
        f"for {below}, beyond seeds and objects over all of them at once, at one layer or more."
    ]


def _otherwise(pair: xr.Dataset) -> list[str]:
    """The same asked in other ways, in one sentence: those that differ, and those that do not."""
    found, nowhere = [], []
    for key in OTHERWISE:
        if not _there(pair, key):
            continue
        name, (gap, _, _, p) = _numbers(pair, key)
        if (p < SIGNIFICANT).any():
            sign = "/".join(dict.fromkeys("+" if one > 0 else "-" for one in gap[p < SIGNIFICANT]))
            found.append(f"{name} ({sign}, {_layers(pair, p)})")
        else:
            nowhere.append(name)
    if not found and not nowhere:
        return []
    said = "; ".join(found) or "none"
    rest = f". Nowhere: {'; '.join(nowhere)}" if nowhere else ""
    return [f"Asked otherwise, aligned less baseline beyond seeds and objects: {said}{rest}."]


def measure_name(results: xr.Dataset, key: str) -> str:
    """The long name of a measure."""
    return str(results[f"{key}_by_run"].attrs["long_name"])


def _numbers(pair: xr.Dataset, key: str) -> tuple[str, list[np.ndarray]]:
    """Name, and difference, low, high and adjusted p by layer, of the largest k."""
    name = measure_name(pair, key)
    if "k" in pair[f"{key}_difference"].dims:
        pair = pair.isel(k=-1)
        name = f"{name}, K = {int(pair.k)}"
    endings = ("", "_low", "_high", "_p_adjusted")
    return name, [pair[f"{key}_difference{ending}"].values for ending in endings]


def _layers(pair: xr.Dataset, p: np.ndarray) -> str:
    sure = pair.layer.values[p < SIGNIFICANT]
    return f"layer{'s' * (len(sure) > 1)} {', '.join(map(str, sure))}"


def _compared(pair: xr.Dataset, key: str) -> str:
    name, (gap, low, high, p) = _numbers(pair, key)
    pair = pair.isel(k=-1) if "k" in pair[f"{key}_difference"].dims else pair
    share = SCORES[key].inside == SHARE and SCORES[key].hits
    scale, digits, unit = (100, 1, " points") if share else (1, 4, "")
    at = int(np.nanargmax(np.abs(gap)))
    largest = (
        f"{scale * gap[at]:+.{digits}f} [{scale * low[at]:+.{digits}f}, "
        f"{scale * high[at]:+.{digits}f}]{unit} at layer {int(pair.layer[at])}"
    )
    where = f"at {_layers(pair, p)}" if (p < SIGNIFICANT).any() else "nowhere"
    said = f"Aligned less baseline in {name}: beyond seeds and objects {where}; the largest is "
    return f"{said}{largest}.{_shifted(pair, key)}"


def _shifted(pair: xr.Dataset, key: str) -> str:
    """By how many layers alignment moves the fall, where all runs have one."""
    if f"{key}_shift_mean" not in pair:
        return ""
    mean, *ends = (float(pair[f"{key}_shift_{part}"]) for part in ("mean", "low", "high"))
    if np.isfinite(ends).all():
        return f" Its fall comes {_signed(mean, ends)}."
    if np.isfinite(mean):
        return f" Its fall comes {_all_alike(mean)} in every run: that gives no interval."
    return ""


def _signed(mean: float, ends: Sequence[float]) -> str:
    """Layers later, or earlier where the mean is below 0."""
    digits, sign = decimals((mean, *ends), 1), 1 if mean >= 0 else -1
    low, high = sorted(sign * end for end in ends)
    three = (f"{round(part, digits) + 0.0:.{digits}f}" for part in (sign * mean, low, high))
    return "{} [{}, {}] layers ".format(*three) + ("later" if sign > 0 else "earlier")


def _all_alike(mean: float) -> str:
    if not mean:
        return "at the same layer"
    return f"{abs(mean):.1f} layers {'later' if mean > 0 else 'earlier'}"


def findings_beside(name: str, results: xr.Dataset) -> list[str]:
    """What holds over seeds of what runs keep beside the sweep, see `probe.seeds_beside`."""
    if "why" in results.attrs:
        return [f"{TITLES[name]}: not put together, {results.attrs['why']}."]
    alike = "the same objects" if results.attrs["shared"] else "other objects in each"
    runs = ", ".join(results.run.values.astype(str))
    said = [f"{TITLES[name]}, {results.attrs['seeds']} seeds ({runs}), {alike}."]
    if "comparison" in results.coords and MAIN in results.comparison.values:
        pair = results.sel(comparison=MAIN)
        keys = [key for key in KEPT[name] if f"{key}_difference" in pair]
        said += [_anywhere(pair, key) + _shifted(pair, key) for key in keys]
    if "through_alignment_mean" in results:
        said += _projected(results)
    if "stops_mean" in results:
        said += [_stopped(results.sel(variant=one)) for one in results.variant.values]
    for into in results.into.values if "transplant_share_mean" in results else ():
        said += _closed(results.sel(into=into))
    return said


def _anywhere(pair: xr.Dataset, key: str) -> str:
    """A difference over any dimensions: at how many places it is beyond seeds and objects, and the
    surest of these, or the largest where there is none.
    """
    gap, p = pair[f"{key}_difference"], pair[f"{key}_difference_p_adjusted"]
    name = gap.attrs["long_name"].removeprefix("difference in ").removesuffix(", over seeds")
    if gap.isnull().all():
        return f"{name}: the two models have nothing in common to compare."
    many = int((p < SIGNIFICANT).sum())
    first = np.nanargmin(p.values) if many else np.nanargmax(np.abs(gap.values))
    at = dict(zip(map(str, gap.dims), map(int, np.unravel_index(first, gap.shape)), strict=True))
    three = [float(pair[f"{key}_difference{end}"].isel(at)) for end in ("", "_low", "_high")]
    place = ", ".join(f"{dim} {gap[dim].values[where]}" for dim, where in at.items())
    digits = decimals(three, 4 if max(map(abs, three)) < 1 else 2)
    largest = "{} [{}, {}]".format(*(f"{part:+.{digits}f}" for part in three))
    start = f"Aligned less baseline in {name}: "
    if not place:
        return f"{start}{'' if many else 'not '}beyond seeds and objects, {largest}."
    dims = " and ".join(map(str, gap.dims))
    where = f"{many or 'none'} of {int(gap.notnull().sum())} places ({dims})"
    which = "the surest" if many else "the largest"
    return f"{start}beyond seeds and objects at {where}; {which} is {largest} at {place}."


def _projected(results: xr.Dataset) -> list[str]:
    """How far from the target tokens are where their projector was trained."""
    said = []
    for name, trained in product(results.variant.values, results.trained.values):
        one = results.sel(variant=name, trained=trained).sel(layer=trained, method="nearest")
        three = [float(one[f"through_alignment_{part}"]) for part in ("mean", "low", "high")]
        if np.isfinite(three).all():
            said.append(
                f"{name}, trained behind layer {trained}: at layer {int(one.layer)} its tokens lie "
                "{:.3f} [{:.3f}, {:.3f}] from the target (circular).".format(*three)
            )
    return said


def _stopped(one: xr.Dataset) -> str:
    """By which layer the text stops reading the point tokens."""
    one = one.sel(intervention="unread")
    each = one.stops_by_run.values
    start = f"{one.variant.item()}: the text stops reading the point tokens by layer "
    mean, low, high = (float(one[f"stops_{part}"]) for part in ("mean", "low", "high"))
    if not np.isfinite(each).all():
        never, beyond = int(np.isnan(each).sum()), int(np.isinf(each).sum())
        layers = ", ".join(f"{at:g}" for at in each[np.isfinite(each)])
        said = [f"by layer {layers}"] if layers else []
        said += [f"not up to the deepest in {beyond}"] if beyond else []
        said += [f"it never reads them in {never}"] if never else []
        return (
            f"{one.variant.item()}: when the text stops reading the point tokens, run by run: "
            f"{'; '.join(said)}."
        )
    if np.isnan(low):
        return start + f"{mean:g} in every run: that gives no interval."
    first, deepest = (int(layer) for layer in one.layer.values[[0, -1]])
    words = [at_layer(layer, first, deepest) for layer in (mean, low, high)]
    return start + "{} [{}, {}].".format(*words)


def _closed(one: xr.Dataset) -> list[str]:
    """How much of the gap between two models a transplant closes."""
    into, giver = one.into.item(), one.giver.item()
    gap = "{:+.3g} [{:+.3g}, {:+.3g}]".format(
        *(float(one[f"transplant_gap_{part}"]) for part in ("mean", "low", "high"))
    )
    start = f"{giver} into {into}: {giver} is {gap} nats from {into}"
    share = one.transplant_share_mean
    if share.isnull().all():
        return [f"{start}, within noise in one run or more: there is no gap to close."]
    best = one.isel(layer=int(share.argmax("layer")))
    if float(best.transplant_p_adjusted) >= SIGNIFICANT or float(best.transplant_share_mean) <= 0:
        return [f"{start}; its point tokens close it at no layer, beyond seeds and objects."]
    three = (100 * float(best[f"transplant_share_{part}"]) for part in ("mean", "low", "high"))
    closed = "{:.0f} [{:.0f}, {:.0f}] %".format(*three)
    return [
        f"{start}; its point tokens close {closed} of that at layer {int(best.layer)}, the most of "
        "any layer."
    ]
