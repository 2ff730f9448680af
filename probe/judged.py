"""Verdicts in words: where a measure falls, how sure that is, and what alignment does to it."""

from collections.abc import Iterable

import numpy as np
import xarray as xr

SIGNIFICANT = 0.05
MAIN = "aligned - baseline"
FINE = 4  # decimals of a difference in CKA or drift, which can be far under .01
JUDGED = {  # measures with a verdict: name, and whether they are shares
    "knn": ("accuracy", True),
    "linear": ("linear read-out accuracy", True),
    "cka": ("CKA to the target", False),
    "encoder_cka": ("CKA to the encoder's output", False),
    "drift_centred": ("drift", False),
    "knn_without_massive": ("accuracy, massive tokens left out", True),
    "linear_without_massive": ("linear read-out accuracy, massive tokens left out", True),
    "cka_without_massive": ("CKA to the target, massive tokens left out", False),
    "drift_without_massive": ("drift, massive tokens left out", False),
    "chamfer": ("Chamfer distance of rebuilt clouds", False),
    "linear_bits": ("bits that a class costs, coded online", False),
    "drift_procrustes": ("drift through an orthogonal map", False),
    "cka_rbf": ("CKA to the target, RBF kernel", False),
    "procrustes": ("Procrustes distance to the target", False),
    "rsa": ("RSA with the target", False),
    "mutual_knn": ("neighbours in common with the target", True),
    "svcca": ("SVCCA with the target", False),
    "pwcca": ("PWCCA with the target", False),
}
WITHOUT = "_without_massive"
USUAL = {"drift_without_massive": "drift_centred"}
SECOND = tuple(JUDGED)[-8:]  # opinions, told together


def judged(results: xr.Dataset) -> list[tuple[str, dict[str, int]]]:
    """Measures with a verdict in these results, and where to find it: the largest k.

    One that is not defined of so few objects, as PWCCA, has none.
    """
    found = []
    for score in JUDGED:
        undefined = f"{score}_mean" in results and results[f"{score}_mean"].isnull().all()
        if f"{score}_fall_mean" in results and tells(results, score) and not undefined:
            by_k = "k" in results[f"{score}_margin"].dims
            found.append((score, {"k": int(results.k.values[-1])} if by_k else {}))
    return found


def tells(results: xr.Dataset, score: str) -> bool:
    """Whether there is anything to tell: without massive tokens only where there are some."""
    if not score.endswith(WITHOUT):
        return True
    without, with_them = f"{score}_mean", f"{USUAL.get(score, score.removesuffix(WITHOUT))}_mean"
    if without not in results or with_them not in results:
        return False
    usual = results[with_them]
    return bool((results[without] != (usual.isel(k=-1) if "k" in usual.dims else usual)).any())


def own(results: xr.Dataset, score: str) -> xr.Dataset:
    """The variables of one measure: a selection of a whole sweep selects in all its hundreds.

    The layers stay with them: of one model alone a verdict may have none of its own.
    """
    found = results[[name for name in results if str(name).startswith(f"{score}_")]]
    return found.assign_coords(layer=results.layer)


def verdict_name(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    """Name of a measure with the loss that counts and what it is measured from."""
    margin = results[f"{score}_margin"].sel(where)
    size = _amount(float(margin), JUDGED[score][1]) if np.isfinite(margin) else "none at chance"
    return f"{_name(score, where)} ({size}, {margin.attrs['against']})"


def verdict_cell(row: xr.Dataset, score: str, variant: str) -> str:
    """Where one model falls, with its interval, or how far it is shown to hold."""
    one = own(row, score).sel(variant=variant)
    depth, low, high, p, held = (
        float(one[f"{score}_{part}"])
        for part in ("fall_mean", "fall_low", "fall_high", "fall_p", "held")
    )
    deepest = int(row.layer.values[-1])
    if np.isnan(p):
        return "no reference"
    if p < SIGNIFICANT and np.isfinite(depth):
        first = int(row.layer.values[0])
        words = (at_layer(layer, first, deepest) for layer in (depth, low, high))
        return "{} [{}, {}]".format(*words)
    if held == deepest:
        return f"holds to {deepest}"
    return "unsure anywhere" if np.isnan(held) else f"unsure past {held:.0f}"


def at_layer(layer: float, first: int, deepest: int) -> str:
    """A depth in words: before the first captured layer and behind the last nothing is known."""
    if np.isinf(layer):
        return f"beyond {deepest}"
    return f"≤ {first}" if layer <= first > 0 else f"{layer:.1f}"


def verdict(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    """Where the models fall, in a sentence that says what counts as a fall."""
    margin = results[f"{score}_margin"].sel(where)
    if np.isnan(margin):
        return (
            f"No verdict on {_name(score, where)}: {margin.attrs['against']} is itself at chance."
        )
    size = _amount(float(margin), JUDGED[score][1])
    return (
        f"Verdict on {_name(score, where)} (lost where it is {size} worse than "
        f"{margin.attrs['against']}): {_of_models(results, score, where)}."
    )


def briefly(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    """Where the models fall; what counts as a fall stands in the table."""
    return f"{capitalised(_name(score, where))}: {_of_models(results, score, where)}."


def _of_models(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    row = own(results, score).sel(where)
    return "; ".join(f"{models} {words}" for models, words in _grouped(row, score))


def verdict_of_pair(results: xr.Dataset, score: str, where: dict[str, int]) -> str:
    """What alignment does to the fall, and within what the two models are proven alike."""
    pair, share = own(results, score).sel(where).sel(comparison=MAIN), JUDGED[score][1]
    margin = float(pair[f"{score}_margin"])
    least = float(pair[f"{score}_detectable"].values.max())
    power = f"a difference of {_amount(least, share)} would be found 4 times in 5."
    if np.isnan(margin):
        return f"{capitalised(_name(score, where))}: {power}"
    alike = pair[f"{score}_alike_p"].values < SIGNIFICANT
    size = f"± {_amount(margin, share)}"
    if alike.all():
        said = f"aligned and baseline are proven alike within {size} at every layer"
    elif alike.any():
        at = f"layer{plural(alike)} {numbers(results.layer.values[alike])}"
        said = f"aligned and baseline are proven alike within {size} at {at} only"
    else:
        said = f"at no layer are aligned and baseline proven alike within {size}"
    return f"{capitalised(_name(score, where))}: {_moved(pair, score)}{said}; {power}"


def _moved(pair: xr.Dataset, score: str) -> str:
    """By how many layers alignment moves the fall; nothing where neither model falls."""
    mean, low, high, censored = (
        float(pair[f"{score}_shift_{part}"]) for part in ("mean", "low", "high", "censored")
    )
    if not fell(pair, score):
        return ""
    digits = decimals((mean, low, high), 1)
    mean, low, high = (round(part, digits) + 0.0 for part in (mean, low, high))
    verb = "delays" if mean > 0 else "hastens"
    if censored > 1 - float(pair.attrs["level"]):
        if low <= 0 <= high:
            return "how far alignment moves the fall is not known; "
        least = min(abs(low), abs(high))
        return f"alignment {verb} the fall by at least {least:.{digits}f} layers; "
    if low <= 0 <= high:
        numbers = f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        return f"alignment does not surely move the fall ({numbers} layers); "
    low, high = sorted((abs(low), abs(high)))
    numbers = f"{abs(mean):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"alignment {verb} the fall by {numbers} layers; "


def fell(pair: xr.Dataset, score: str) -> bool:
    """Whether a fall of baseline or aligned is shown: else there is none to be moved."""
    p = pair[f"{score}_fall_p"]
    return bool((p[p.variant.isin(MAIN.split(" - "))] < SIGNIFICANT).any())


def _grouped(row: xr.Dataset, score: str) -> list[tuple[str, str]]:
    """Models by what is said of them."""
    said: dict[str, list[str]] = {}
    for variant in row.variant.values.astype(str):
        cell = verdict_cell(row, score, variant)
        words = f"falls at layer {cell}" if cell[0] in "≤0123456789" else cell
        said.setdefault(words, []).append(variant)
    return [(listed(models), _plural(words, models)) for words, models in said.items()]


def _plural(words: str, models: list[str]) -> str:
    words = words.replace("unsure", "is unsure", 1).replace("no reference", "has no reference", 1)
    if len(models) > 1:
        for one, many in (("falls", "fall"), ("holds", "hold"), ("is ", "are "), ("has ", "have ")):
            words = words.replace(one, many, 1)
    return words


def _name(score: str, where: dict[str, int]) -> str:
    return JUDGED[score][0] + (f", K = {where['k']}" if where else "")


def _amount(value: float, share: bool) -> str:
    digits = decimals([value], FINE if value < 0.01 else 3)
    return f"{100 * value:.1f} points" if share else f"{value:.{digits}f}"


def decimals(values: Iterable[float], least: int) -> int:
    """Decimals that show a digit of the largest value, so that what differs is not told as 0.

    Under a billionth it is rounding.
    """
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0)
    return max(least, -int(np.floor(np.log10(largest)))) if largest > 1e-9 else least


def listed(names: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def capitalised(text: str) -> str:
    """With a capital at its beginning, the rest as it stands."""
    return text[:1].upper() + text[1:]


def two_digits(value: float) -> str:
    """A number for a table, without the sign of a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def numbers(layers: np.ndarray) -> str:
    """Layers with commas between."""
    return ", ".join(str(layer) for layer in layers)


def plural(where: np.ndarray) -> str:
    """The s of several layers."""
    return "s" if where.sum() > 1 else ""


def counted(results: xr.Dataset) -> str:
    """How copies and near-copies were counted, to follow the numbers of objects."""
    about = results.attrs
    if "groups" not in about:
        return ""
    left = [
        f"{_copies(about[f'{side}_copies_dropped'])} of the {side} left out"
        for side in ("gallery", "query")
        if about[f"{side}_copies_dropped"]
    ]
    kept = f": {' and '.join(left)}" if left else ""
    return f" (near-copies share a group, {about['groups']} groups in all{kept})"


def rare(results: xr.Dataset) -> str:
    """Which classes have too few objects to be told, and what that does; empty where none."""
    about, said = results.attrs, []
    if not {"knn_mean", "knn_ways_mean", "linear_mean"} & set(results):
        return ""  # no class is told
    if names := list(np.atleast_1d(about.get("absent_classes", []))):
        number = about["queries_of_absent_classes"]
        said.append(f"{_some(names)} not in the gallery, their queries count as wrong ({number})")
    if names := list(np.atleast_1d(about.get("single_classes", []))):
        said.append(
            f"{_some(names)} with one gallery object, which others outvote where K exceeds 2"
        )
    alone = list(np.atleast_1d(about.get("single_query_classes", [])))
    if alone and "knn_loo_mean" in results:
        said.append(
            f"{_some(alone)} with one query object, wrong where queries are asked about each other "
            "(loo, test90_10)"
        )
    return f"Classes of too few objects: {'; '.join(said)}." if said else ""


def _some(names: list[str]) -> str:
    """The first few names, and how many more."""
    more = len(names) - 6
    return listed([*names[:6], f"{more} more"] if more > 0 else names)


def _copies(copies: int) -> str:
    return f"{copies} cop{'y' if copies == 1 else 'ies'}"
