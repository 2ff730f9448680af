"""What the runs of a sweep answered, as numbers: each setting, its paired differences, their power.

Answers of one model are a mapping from data set to an array (questions, objects), 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from probe.intervals import holm

if TYPE_CHECKING:
    import xarray as xr

DEFAULT, BASELINE = "default", "baseline"
"""Rows: the aligned model with every setting as it is, and its baseline."""
AVERAGE = "average"
"""Column: of the questions about a set, then of the sets, as the papers average."""
POWER = 0.8
Right = Mapping[str, np.ndarray]


class Estimate(NamedTuple):
    """A mean over objects and seeds."""

    mean: float
    low: float
    """Bounds of its 95 % interval."""
    high: float
    p: float
    """Of a mean of zero, two-sided."""
    error: float
    """Its standard error, with these degrees of freedom."""
    freedom: float

    def power(self, true: float, level: float = 0.95) -> float:
        """Chance of an interval that leaves out zero if the true mean were this."""
        from scipy.special import stdtr, stdtrit

        least = stdtrit(self.freedom, (1 + level) / 2)
        shift = abs(true) / self.error
        return float(stdtr(self.freedom, shift - least) + stdtr(self.freedom, -shift - least))

    @property
    def smallest(self) -> float:
        """Smallest true mean that is told from zero four times in five."""
        from scipy.special import stdtrit

        return float(self.error * (stdtrit(self.freedom, 0.975) + stdtrit(self.freedom, POWER)))


def over_seeds(means: ArrayLike, variances: ArrayLike) -> Estimate:
    """Mean over seeds of means over objects.

    means, variances : of each seed; the variance is that of the mean, from its objects alone.

    The seeds count as drawn at random like the objects: Student's t over seeds, of their scatter
    or, where that is less, of what objects alone scatter. Degrees of freedom between those of the
    seeds and of the objects (Satterthwaite 1946) would give shorter intervals that hold too seldom
    with so few seeds. One seed says nothing of others: its interval is over objects.
    """
    from scipy.special import stdtr, stdtrit

    own = np.asarray(means, np.float64)
    seeds = len(own)
    variance, freedom = float(np.mean(np.asarray(variances))), 1e6
    if seeds > 1:
        variance, freedom = max(variance, float(own.var(ddof=1))), float(seeds - 1)
    mean, error = float(own.mean()), float(np.sqrt(variance / seeds))
    half = float(stdtrit(freedom, 0.975)) * error
    p = float(2 * stdtr(freedom, -abs(mean) / error)) if error else 1.0
    return Estimate(mean, mean - half, mean + half, p, error, freedom)


def columns(one: Right, questions: Sequence[str]) -> list[str]:
    """Names of the columns: each question, with its set where there are several; the average."""
    several = len(one) > 1
    names = [f"{data} {each}" if several else each for data in one for each in questions]
    return [*names, AVERAGE] if len(names) > 1 else names


def column_means(one: Right) -> np.ndarray:
    """(columns, 2): the mean of each column and that mean's variance.

    Answers to several questions about an object are averaged before objects are counted.
    """
    found = [_mean(row) for rows in one.values() for row in rows]
    if len(found) > 1:
        sets = np.array([_mean(rows.mean(axis=0)) for rows in one.values()])
        found.append((sets[:, 0].mean(), sets[:, 1].sum() / len(sets) ** 2))
    return np.array(found)


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Where no object differs, with the variance of one that does: none seen is no proof."""
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} objects with a valid verdict are too few to count")
    return float(kept.mean()), float((kept.var(ddof=1) or 1 / len(kept)) / len(kept))


def differences(a: Right, b: Right) -> Right:
    """a - b, object by object. Raises ValueError where they are not of the same objects."""
    if {name: rows.shape for name, rows in a.items()} != {n: rows.shape for n, rows in b.items()}:
        raise ValueError("two runs of a seed were asked about other objects; they don't compare")
    return {name: rows - b[name] for name, rows in a.items()}


def measure(
    answers: Mapping[str, Mapping[int, Right]],
    baseline_of: Mapping[str, str],
    questions: Sequence[str],
) -> xr.Dataset:
    """Every row of a sweep, with its paired differences.

    answers     : row -> seed -> answers. Rows of a sweep that is not finished may lack seeds.
    baseline_of : row of an aligned model -> row of its baseline.

    Dimensions (setting, question) of `mean`, `low`, `high`; of the difference from the default's
    aligned model (`difference_`) and from the own baseline (`gain_`) also `p`, `p_adjusted` (Holm,
    over all settings), `error`, `freedom`, `smallest` (the least that is found with 80 % power),
    `won` and `lost`: answers that are better, or worse, in this row alone, and `changed`, the share
    of all answers that are either. `by_seed` has
    dimension seed as well.
    """
    import xarray as xr

    names = list(answers)
    seeds = sorted({seed for row in answers.values() for seed in row})
    one = next(iter(answers[DEFAULT].values()))
    labels = columns(one, questions)
    shape, dims = (len(names), len(labels)), ("setting", "question")
    by_seed = np.full((*shape, len(seeds)), np.nan)
    parts: dict[str, np.ndarray] = {}

    def put(prefix: str, row: int, of_seeds: Iterable[Right]) -> None:
        means = np.array([column_means(each) for each in of_seeds])
        for at in range(len(labels)):
            mean = over_seeds(means[:, at, 0], means[:, at, 1])
            for part, value in [*mean._asdict().items(), ("smallest", mean.smallest)]:
                parts.setdefault(f"{prefix}{part}", np.full(shape, np.nan))[row, at] = value

    for row, name in enumerate(names):
        own = answers[name]
        put("", row, own.values())
        for seed, right in own.items():
            by_seed[row, :, seeds.index(seed)] = column_means(right)[:, 0]
        for prefix, other in (("difference_", DEFAULT), ("gain_", baseline_of.get(name, name))):
            both = [seed for seed in own if seed in answers.get(other, {})]
            if other == name or not both:
                continue
            gaps = [differences(own[seed], answers[other][seed]) for seed in both]
            put(prefix, row, gaps)
            counts = np.sum([_won_and_lost(gap) for gap in gaps], axis=0)
            for part, values in zip(("won", "lost"), counts.T, strict=True):
                target = parts.setdefault(f"{prefix}{part}", np.full(shape, np.nan))
                target[row, : len(values)] = values
            changed = parts.setdefault(f"{prefix}changed", np.full(shape, np.nan))
            changed[row] = counts.sum() / sum(rows.size for gap in gaps for rows in gap.values())
    for prefix in ("difference_", "gain_"):
        if f"{prefix}p" in parts:
            parts[f"{prefix}p_adjusted"] = holm(parts[f"{prefix}p"].T).T
    found: dict[str, Any] = {name: (dims, values) for name, values in parts.items()}
    found["by_seed"] = ((*dims, "seed"), by_seed)
    # As objects they are stored as text of any length, which zarr's format has a name for.
    words = {"setting": names, "question": labels}
    coords = {name: np.array(texts, object) for name, texts in words.items()} | {"seed": seeds}
    objects = {data: int(rows.shape[1]) for data, rows in one.items()}
    return xr.Dataset(found, coords, attrs={"objects": objects, "long_name": "share right"})


def cka_gains(folders: Mapping[str, Sequence[Path]]) -> xr.Dataset:
    """How much nearer to the target alignment holds each layer, from the probes of the runs.

    folders : row -> its runs, a seed each.

    `cka_mean`, `cka_low`, `cka_high` (setting, layer): CKA with the target, aligned less baseline.
    """
    import xarray as xr

    from store import open_run

    parts, layers = {}, []
    for row, runs in folders.items():
        probes = [open_run(folder).probes("sweep") for folder in runs]
        gaps = [one.sel(comparison="aligned - baseline") for one in probes]
        layers = gaps[0].layer.values
        means = np.array([gap.cka_difference.values for gap in gaps])
        widths = [gap.cka_difference_high.values - gap.cka_difference_low.values for gap in gaps]
        errors = (np.array(widths) / (2 * 1.96)) ** 2
        parts[row] = [over_seeds(means[:, at], errors[:, at])[:3] for at in range(len(layers))]
    values = np.array(list(parts.values()))
    dims = ("setting", "layer")
    found = {
        f"cka_{part}": (dims, values[..., at]) for at, part in enumerate(("mean", "low", "high"))
    }
    return xr.Dataset(found, {"setting": np.array(list(parts), object), "layer": layers})


def _won_and_lost(gap: Right) -> np.ndarray:
    """(columns, 2), without the average."""
    rows = [row for part in gap.values() for row in part]
    return np.array([[(row > 0).sum(), (row < 0).sum()] for row in rows])


def estimate(results: xr.Dataset, prefix: str, setting: str, question: str = AVERAGE) -> Estimate:
    """One difference of the results, whole again."""
    one = results.sel(setting=setting, question=question)
    return Estimate(*(float(one[f"{prefix}{part}"]) for part in Estimate._fields))
