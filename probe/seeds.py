"""Several runs of one recipe under other seeds: does what one run shows hold for the next?

An interval over objects says what more objects would change, not what another training would. Here
a seed is drawn first and its objects second, so that both are covered: Student's t of the runs'
means, which scatter by their objects as well as by their training. Where all runs ask about the
same objects, what these have in common is added, as no seed averages it away.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe import cka, sweep
from probe.assemble import assemble
from probe.cells import LEVEL, Cell
from probe.dimension import STATISTICS
from probe.intervals import holm
from probe.pairs import ALIKE
from probe.sheet import HIGHER, LOWER
from probe.sheet_readouts import UNEVEN
from probe.sheet_states import CLOSER, LIKENESS_RANGES, MORE, NAMES
from store import Run

SHARES = ("knn", "linear")  # of right and wrong
FILLS = "higher fills more directions"


class Score(NamedTuple):
    """A measure with intervals over seeds: where its cells have it object by object."""

    probe: str
    part: str
    """Of a cell: (*extra, objects), or what is left of it without each object or group of them."""
    name: str
    direction: str
    extra: tuple[str, ...] = ()
    at: int | None = None
    """Place among several statistics of a part."""


SCORES = {
    "knn": Score("knn", "hits", "k-nearest-neighbour accuracy", HIGHER, ("k",)),
    "cka": Score("drift", "cka_left_out", "debiased linear CKA with the target", CLOSER),
    "encoder_cka": Score(
        "drift",
        "encoder_cka_left_out",
        "debiased linear CKA with the encoder's output",
        CLOSER,
    ),
    "drift": Score(
        "drift", "plain", "drift from the target, 1 - cosine through a ridge map", LOWER
    ),
    "drift_centred": Score(
        "drift",
        "centred",
        "drift from the target, less what all objects share, 1 - cosine through a ridge map",
        LOWER,
    ),
    "linear": Score("linear", "hits", "linear read-out accuracy", HIGHER),
    "linear_bits": Score(
        "linear",
        "bits_left_out",
        "bits that the class of a gallery object costs, online code",
        "lower is easier to read",
    ),
    "geometry": Score("geometry", "error", "R^2 of a linear read-out", HIGHER, ("property",)),
    "hubness": Score("knn", "hubness_left_out", "hubness, skewness", UNEVEN, ("k",)),
    **{
        key: Score("dimension", "left_out", NAMES[key], MORE.get(key, FILLS), at=at)
        for at, key in enumerate(STATISTICS)
    },
    "token_diversity": Score(
        "dimension",
        "diversity",
        "token diversity, mean 1 - cosine in an object",
        "0 = oversmoothed",
    ),
    "cka_rbf": Score("similarity", "cka_rbf_left_out", "debiased CKA with the target, RBF", CLOSER),
    "drift_procrustes": Score(
        "similarity", "drift_procrustes", "drift from the target through an orthogonal map", LOWER
    ),
    **{
        key: Score("similarity", "left_out", NAMES[key], MORE[key], at=at)
        for at, key in enumerate(ALIKE)
    },
}
RANGES = {
    **LIKENESS_RANGES,
    **dict.fromkeys(("cka", "encoder_cka", "cka_rbf"), (-1, 1)),
    **dict.fromkeys(SHARES, (0, 1)),
    "geometry": (-np.inf, 1),
    **dict.fromkeys(("drift", "drift_centred", "drift_procrustes", "token_diversity"), (0, 2)),
}
"""What a score can be, which its interval does not leave: with two seeds it may be wide."""
ANY = (-np.inf, np.inf)


class OverSeeds(NamedTuple):
    """Mean over seeds, its bounds, and two-sided p that it is 0."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def over_seeds(
    values: Sequence[np.ndarray],
    *,
    shared: bool = False,
    hits: bool = False,
    level: float = LEVEL,
) -> OverSeeds:
    """Mean with an interval over seeds and objects. values : (..., objects) of each seed.

    shared : all seeds have the same objects in the same order. Their scatter over seeds then lacks
             what objects share between seeds, which the mean covariance of two seeds over objects
             adds to it.
    hits   : values of right and wrong, whose means are counts: two seeds often have the very same,
             and no scatter at all, by chance. What rounding to whole objects takes off the scatter
             is added (Sheppard 1898). Without it 5 to 13 of 100 pairs of equal models of which 1 in
             100 objects or fewer tells them apart are called different over two seeds; with it 0
             to 4, over three 0 to 5.

    No exact interval of such a sum is known. Half of its width here is its error times z, as if
    many seeds told it, and more the larger the part is that few tell, up to Student's t: by a curve
    fitted to hold the level whatever varies how much (a critical value that hangs on the estimated
    variances: Welch 1947, doi:10.1093/biomet/34.1-2.28). Simulated 95 % intervals of 2 to 8 seeds
    hold 94.5 to 96 %. With two seeds only a leap does: where their means differ by 0.7 or less of
    the error over objects, the interval is that over objects, and three times as wide where by
    0.85.

    Raises ValueError for fewer than two seeds: one says nothing of others.
    """
    seeds = len(values)
    if seeds < 2:
        raise ValueError(f"{seeds} run: an interval over seeds needs 2 or more")
    means = np.stack([np.mean(one, axis=-1, dtype=np.float64) for one in values])
    mean = means.mean(axis=0)
    rounding = hits / (12 * np.shape(values[0])[-1] ** 2)
    scatter = means.var(axis=0, ddof=1) + rounding
    parts = [(scatter / seeds, seeds - 1)]  # variance, degrees of freedom
    if shared:
        both = np.stack(values).astype(np.float64)
        gaps = both - both.mean(axis=-1, keepdims=True)
        objects = gaps.shape[-1]
        total = (gaps.sum(axis=0) ** 2).sum(axis=-1) - (gaps**2).sum(axis=(0, -1))
        common = total / (seeds * (seeds - 1) * (objects - 1)) / objects
        parts.append((np.maximum(common, 0), objects - 1))
    half = _half(parts, level)
    return OverSeeds(mean, mean - half, mean + half, _p(np.abs(mean), parts))


def _half(parts: list[tuple[np.ndarray, int]], level: np.ndarray | float) -> np.ndarray:
    """Half the width for a variance or the sum of two, each with its degrees of freedom, the first
    ones few.
    """
    from scipy.special import expit, stdtrit

    t, *rest = (stdtrit(freedom, (1 + level) / 2) for _, freedom in parts)
    few = parts[0][0]
    if not rest:
        return t * np.sqrt(few)
    many, z = parts[1][0], rest[0]
    wider = (t / z) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        share = expit((1 + wider) / 2 * np.log((5 + wider) / 7 * few / many))
    return z * np.sqrt(few + many + (wider - 1) * np.where(few > 0, share, 0) * few)


def _p(size: np.ndarray, parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """1 - the level at which half the width is `size`, by halving."""
    low, high = np.zeros(size.shape), np.ones(size.shape)
    for _ in range(50):
        middle = (low + high) / 2
        wide = _half(parts, middle) > size
        low, high = np.where(wide, low, middle), np.where(wide, middle, high)
    return np.where(np.isnan(size), np.nan, np.where(size > 0, 1 - low, 1.0))


def over_runs(
    runs: Sequence[Run],
    probes: Sequence[str] = sweep.PROBES,
    layers: Sequence[int] | None = None,
    *,
    k: Sequence[int] = (1, 10),
    seed: int = 0,
    dask: str | None = None,
    progress: sweep.Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Scores of several runs under other seeds, with 95 % intervals over seeds and objects.

    Of each of `SCORES`, (variant, layer), of neighbours by k and of geometry by property, as far as
    their probes are asked for and all runs have what they need: `_mean`, `_low`, `_high`, and
    `_by_run` (run, ...). What is no mean over objects is told by its jackknife's pseudo-values, of
    single objects (CKA) or of the groups that the sweep leaves out. Paired by run and object
    against the baseline: `*_difference`, `_low`, `_high`, `_p`, by Holm over the layers
    `_p_adjusted`, and by Bonferroni the band over all of them `_wide_low`, `_wide_high`
    (comparison, ...). Of the verdicts
    `*_fall_by_run` (run, variant, ...) and `*_shift_by_run` (run, comparison, ...), with mean, low
    and high over seeds where all runs have one, low and high where these are not all the same. The
    attribute `shared` says whether all runs ask about the same objects.

    Each run's own sweep is kept in it, and what it kept before of the same settings with it; `tell`
    is called with a sentence for each run of which more is kept, or less than before. Raises
    ValueError for runs that lack a model, a layer or a class of the first, or of which one is not
    completely captured, is given twice or is a copy of another.
    """
    _check(runs)
    layers = list(runs[0].layers if layers is None else layers)
    variants = list(runs[0].variants)
    own, scores = [], []
    for run, name in zip(runs, _names(runs), strict=True):
        more, said = sweep.with_kept(run, probes, layers, k=k, seed=seed)
        if said and tell:
            tell(f"{name}: {said}")
        found = sweep.cells_of(
            run, more, layers, variants, k=k, seed=seed, dask=dask, progress=progress
        )
        results = assemble(run, *found, sweep.REFERENCE)
        own.append(sweep.with_noise(results, run, None, found.data, found.ask))
        run.write_probe("sweep", own[-1])
        asked = {name: found.cells[name] for name in probes}
        scores.append(_scores(found._replace(cells=asked)))
    shared, own = _same_objects(runs), _in_common(own, scores)
    along = [name for name in ("variant", "layer", "k", "property") if name in own[0].coords]
    results = xr.Dataset(
        coords={**own[0][along].coords, "run": _names(runs)},
        attrs={
            "level": LEVEL,
            "seed": seed,
            "seeds": len(runs),
            "shared": int(shared),
            "probes": list(probes),
            "query_objects": [one.attrs["query_objects"] for one in own],
        },
    )
    others = [name for name in variants if name != sweep.REFERENCE and sweep.REFERENCE in variants]
    models = [(variants.index(name), variants.index(sweep.REFERENCE)) for name in others]
    if others:
        results = results.assign_coords(comparison=[f"{name} - baseline" for name in others])
    for key in [key for key in scores[0] if all(key in one for one in scores)]:
        _put(results, key, [one[key] for one in scores], models, shared)
        _put_verdict(results, key, own)
    return results


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
    said[0] += " What is not named here has them over objects alone, in the sweep of each run."
    if "aligned - baseline" not in results.get("comparison", []):
        return said
    pair = results.sel(comparison="aligned - baseline")
    for key, score in SCORES.items():
        if f"{key}_difference" not in pair:
            continue
        gap = pair[f"{key}_difference"]
        if (gap.isel(k=-1) if "k" in gap.dims else gap).isnull().all():
            continue
        many = score.extra == ("property",)
        said.append(_of_properties(pair) if many else _compared(pair, key, score.name))
    return said


def _of_properties(pair: xr.Dataset) -> str:
    sure = pair.geometry_difference_p_adjusted < 1 - LEVEL
    better, worse = (
        int((sure & (sign * pair.geometry_difference > 0)).any("layer").sum()) for sign in (1, -1)
    )
    return (
        f"Of {pair.sizes['property']} properties, each by itself, aligned is read out better than "
        f"baseline for {better} and worse for {worse}, beyond seeds and objects, at one layer or "
        "more."
    )


def _compared(pair: xr.Dataset, key: str, name: str) -> str:
    if "k" in pair[f"{key}_difference"].dims:
        pair = pair.isel(k=-1)
        name = f"{name}, K = {int(pair.k)}"
    gap, low, high, p = (
        pair[f"{key}_difference{part}"].values for part in ("", "_low", "_high", "_p_adjusted")
    )
    scale, digits, unit = (100, 1, " points") if key in SHARES else (1, 4, "")
    at = int(np.nanargmax(np.abs(gap)))
    largest = (
        f"{scale * gap[at]:+.{digits}f} [{scale * low[at]:+.{digits}f}, "
        f"{scale * high[at]:+.{digits}f}]{unit} at layer {int(pair.layer[at])}"
    )
    sure = pair.layer.values[p < 1 - LEVEL]
    where = f"at layer{'s' * (len(sure) > 1)} {', '.join(map(str, sure))}"
    where = where if len(sure) else "nowhere"
    said = f"Aligned less baseline in {name}: beyond seeds and objects {where}; at most {largest}."
    if f"{key}_shift_mean" in pair:
        mean, *ends = (float(pair[f"{key}_shift_{part}"]) for part in ("mean", "low", "high"))
        if np.isfinite(ends).all():
            said += " Its fall comes {:.1f} [{:.1f}, {:.1f}] layers {}.".format(
                *_signed(mean, ends)
            )
        elif np.isfinite(mean):
            said += f" Its fall comes {_all_alike(mean)} in every run: that gives no interval."
    return said


def _signed(mean: float, ends: Sequence[float]) -> tuple[float, float, float, str]:
    """Layers later, or earlier where the mean is below 0."""
    low, high = ends
    return (mean, low, high, "later") if mean >= 0 else (-mean, -high, -low, "earlier")


def _all_alike(mean: float) -> str:
    if not mean:
        return "at the same layer"
    return f"{abs(mean):.1f} layers {'later' if mean > 0 else 'earlier'}"


def _scores(found: sweep.Found) -> dict[str, np.ndarray]:
    """Scores object by object, or group by group, (variants, *extra, layers, objects)."""
    scores = {}
    for key, score in SCORES.items():
        cells = found.cells.get(score.probe, {})
        if not cells or score.part not in cells[found.variants[0], found.layers[0]]:
            continue
        values = np.array(
            [[_own(cells[v, at], score) for at in found.layers] for v in found.variants]
        )
        scores[key] = np.moveaxis(values, 1, -2)
    return scores


def _own(cell: Cell, score: Score) -> np.ndarray:
    """Of one cell, (*extra, objects): what is no mean over them, by what each adds (jackknife)."""
    part = cell[score.part]
    if score.part == "error":
        return 1 - part
    if not score.part.endswith("left_out"):
        return part
    value = cell[score.part.removesuffix("left_out").removesuffix("_") or "values"]
    if score.part.startswith(("cka", "encoder")):
        value = value[0]  # of mean, low and high
    return cka.own_parts(value, part)[... if score.at is None else score.at]


def _in_common(own: list[xr.Dataset], scores: list[dict[str, np.ndarray]]) -> list[xr.Dataset]:
    """Properties that vary in all runs; others are left out of the runs' scores, too."""
    if "geometry" not in scores[0]:
        return own
    names = [set(one.property.values.tolist()) for one in own]
    every = [name for name in own[0].property.values.tolist() if name in set.intersection(*names)]
    for one, found in zip(own, scores, strict=True):
        found["geometry"] = found["geometry"][:, np.isin(one.property.values, every)]
    return [one.sel(property=every) for one in own]


def _put(
    results: xr.Dataset,
    key: str,
    values: list[np.ndarray],
    models: list[tuple[int, int]],
    shared: bool,
) -> None:
    score = SCORES[key]
    name, direction, dims = score.name, score.direction, (*score.extra, "layer")
    hits = key in SHARES
    found = over_seeds(values, shared=shared, hits=hits)
    least, most = RANGES.get(key, ANY)
    mean, low, high = (np.clip(part, least, most) for part in found[:3])
    inside = OverSeeds(mean, low, high, found.p)
    _add(results, key, ("variant", *dims), inside, name, direction)
    by_run = np.stack([one.mean(axis=-1, dtype=np.float64) for one in values])
    attrs = {"long_name": name, "direction": direction}
    results[f"{key}_by_run"] = (("run", "variant", *dims), by_run, attrs)
    if not models:
        return
    a, b = (list(side) for side in zip(*models, strict=True))
    gaps = [one[a].astype(float) - one[b] for one in values]
    gap = over_seeds(gaps, shared=shared, hits=hits)
    furthest = least - most, most - least
    low, high = np.clip(gap.low, *furthest), np.clip(gap.high, *furthest)
    gap = gap._replace(low=low, high=high)
    where, text, none = ("comparison", *dims), f"difference in {name}", "0 = no difference"
    _add(results, f"{key}_difference", where, gap, text, none)
    together = 1 - (1 - LEVEL) / gap.mean.shape[-1]
    band = over_seeds(gaps, shared=shared, hits=hits, level=together)
    for end, bound in (("low", band.low), ("high", band.high)):
        name = f"{text}, {end} end of the band over all layers, over seeds"
        about = {"long_name": name, "direction": none}
        results[f"{key}_difference_wide_{end}"] = (where, np.clip(bound, *furthest), about)


def _add(
    results: xr.Dataset,
    key: str,
    dims: tuple[str, ...],
    found: OverSeeds,
    name: str,
    direction: str,
) -> None:
    paired = key.endswith("_difference")
    for part, values in zip(("mean", "low", "high"), found[:3], strict=True):
        ending = "" if paired and part == "mean" else f"_{part}"
        attrs = {"long_name": f"{name}, over seeds", "direction": direction}
        results[f"{key}{ending}"] = (dims, values, attrs)
    if paired:
        attrs = {"long_name": f"{name}, p over seeds", "direction": "smaller is stronger evidence"}
        results[f"{key}_p"] = (dims, found.p, attrs)
        results[f"{key}_p_adjusted"] = (dims, holm(found.p), attrs)


def _put_verdict(results: xr.Dataset, key: str, own: list[xr.Dataset]) -> None:
    """The layer of each run's fall and shift, and over seeds where every run has one."""
    for what in ("fall", "shift"):
        name = f"{key}_{what}"
        if f"{name}_mean" not in own[0]:
            continue
        each = [one[f"{name}_mean"] for one in own]
        values = np.stack([one.values for one in each])
        if what == "shift":  # one that a model without a fall bounds from below is no number
            sure = np.stack([one[f"{name}_censored"].values for one in own]) <= 1 - LEVEL
            values = np.where(sure, values, np.nan)
        attrs: dict[str, Any] = each[0].attrs
        results[f"{name}_by_run"] = (("run", *map(str, each[0].dims)), values, attrs)
        whole = np.isfinite(values).all(axis=0)
        depth = np.where(whole, values, 0)[..., None]
        found = over_seeds(list(depth))
        # Depths end at captured layers: runs that agree there do not say how far others scatter.
        apart = whole & (np.ptp(depth, axis=0)[..., 0] > 0)
        for part, numbers in zip(("mean", "low", "high"), found[:3], strict=True):
            kept = np.where(whole if part == "mean" else apart, numbers, np.nan)
            results[f"{name}_{part}"] = (each[0].dims, kept, attrs)


def _check(runs: Sequence[Run]) -> None:
    paths = [str(run.path) for run in runs]
    if len(runs) < 2 or len(set(paths)) < len(paths):
        raise ValueError(f"{', '.join(paths)}: intervals over seeds need 2 or more runs, each once")
    first = runs[0]
    if unfinished := [run for run in runs if not run.complete]:
        raise ValueError(f"{unfinished[0].path} is not completely captured: seeds want whole runs")
    for run in runs[1:]:
        for what in ("variants", "layers"):
            mine, theirs = getattr(first, what), getattr(run, what)
            if absent := [one for one in mine if one not in theirs]:
                raise ValueError(f"{run.path} has no {what[:-1]} {absent[0]}, {first.path} has")
        classes = [set(one.samples()["class_name"].values.astype(str)) for one in (first, run)]
        if lost := sorted(classes[0] ^ classes[1]):
            raise ValueError(f"{first.path} and {run.path} have other classes: {lost[0]} is in one")
    for one, other in combinations(runs, 2):
        if all(_same_states(one, other, variant, first.layers[-1]) for variant in first.variants):
            raise ValueError(
                f"{one.path} and {other.path} hold the same states: a copy of a run is no other "
                "seed, name it once"
            )


def _same_objects(runs: Sequence[Run]) -> bool:
    """Whether all runs ask about the same clouds (where none are kept, targets) in one order."""
    tables = [run.samples() for run in runs]
    for name in ("sample", "split"):
        if any(not np.array_equal(tables[0][name], other[name]) for other in tables[1:]):
            return False
    known = all(run.attrs["points"] is not None for run in runs)
    samples = tables[0].sizes["sample"]
    some = slice(0, samples, max(1, samples // 16))
    mine, *others = ((run.points() if known else run.target())[some].values for run in runs)
    return all(np.array_equal(mine, theirs) for theirs in others)


def _same_states(one: Run, other: Run, variant: str, layer: int) -> bool:
    """Of the first few objects; two trainings end in none alike."""
    mine, theirs = (run.final(variant).sel(layer=layer)[:4].values for run in (one, other))
    return np.array_equal(mine, theirs, equal_nan=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Folder names, or whole paths where two are alike."""
    names = [run.path.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
