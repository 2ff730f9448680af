"""Centred kernel alignment: do two representations place the same objects alike?

Debiased by default (HSIC1 of Song et al. 2012, JMLR 13; in CKA since Nguyen et al. 2020,
arXiv:2010.15327): the plain estimator of Kornblith et al. 2019 (arXiv:1905.00414) grows with
width over objects, so that noise scores high and layers of two widths cannot be compared.
Sums run over pairs of distinct objects. Features are centred and sums taken in float64; products
are as precise as the features that are given.
"""

from typing import Literal, NamedTuple

import numpy as np

from probe import intervals
from probe.hsic import (
    Rows,
    Sums,
    debiased,
    features,
    finite,
    gram,
    gram_rows,
    gram_sums,
    moments,
    norm2,
    rows_of,
    sums_of,
    u_centred,
)
from probe.intervals import Difference
from probe.products import inner


class CkaInterval(NamedTuple):
    """CKA, bounds of its interval, and its jackknife values, one an object left out."""

    mean: float
    low: float
    high: float
    left_out: np.ndarray


class CkaDifference(NamedTuple):
    """CKA(x1, y) - CKA(x2, y), bounds, two-sided p, and jackknife values."""

    mean: float
    low: float
    high: float
    p: float
    left_out: np.ndarray


def cka(x: np.ndarray, y: np.ndarray, kernel: str = "linear", unbiased: bool = True) -> float:
    """How alike two representations of the same objects are.

    x, y     : (samples, dim), the same objects in the same order; dims may differ
    kernel   : "linear", or "rbf" with the median distance as its width
    unbiased : the debiased estimator; False gives the plain one, to be read against
               `biased_floor`

    Returns a value in [-1, 1], higher is more alike: 1 up to rotation, scale and shift, 0 on
    average for unrelated objects (and so at times below). Raises ValueError for fewer than 4
    objects, values that are not finite, and features that are constant.
    """
    if unbiased:
        return float(debiased(*_sums(x, y, kernel)))
    x, y = features(x, "x"), features(y, "y")
    if kernel == "linear" and not _wide(x, y):
        return float(norm2(x.T @ y) / np.sqrt(norm2(x.T @ x) * norm2(y.T @ y)))
    grams = [one - one.mean(axis=0) for one in (gram(x, kernel), gram(y, kernel))]
    gram_x, gram_y = (one - one.mean(axis=1, keepdims=True) for one in grams)
    return float(np.vdot(gram_x, gram_y) / np.sqrt(norm2(gram_x) * norm2(gram_y)))


def cka_interval(
    x: np.ndarray, y: np.ndarray, kernel: str = "linear", level: float = 0.95
) -> CkaInterval:
    """Debiased CKA with its delete-one-object jackknife interval. x, y : (samples, dim).

    A bootstrap would hold objects twice and is far too narrow here. All leave-one-out values
    come in closed form from row sums, at the price of one CKA.
    """
    value, left_out = _with_left_out(x, y, kernel)
    low, high, _ = _normal(value, left_out, level)
    return CkaInterval(value, low, high, left_out)


def cka_difference(
    x1: np.ndarray, x2: np.ndarray, y: np.ndarray, kernel: str = "linear", level: float = 0.95
) -> CkaDifference:
    """CKA(x1, y) - CKA(x2, y) on the same objects, jackknifed as one statistic.

    Pairing takes out what both share, mostly which objects were drawn; p is two-sided, normal.
    """
    (first, out1), (second, out2) = (_with_left_out(x, y, kernel) for x in (x1, x2))
    return difference_of(first, out1, second, out2, level)


def difference_of(
    first: float, out1: np.ndarray, second: float, out2: np.ndarray, level: float = 0.95
) -> CkaDifference:
    """The difference of two CKAs of the same objects, from what `cka_interval` gave."""
    if out1.shape != out2.shape:
        raise ValueError(f"{len(out1)} and {len(out2)} objects are not paired")
    left_out = out1 - out2
    low, high, p = _normal(first - second, left_out, level)
    return CkaDifference(first - second, low, high, p, left_out)


def over_layers(
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    p: np.ndarray,
    left_out: np.ndarray,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Differences of the same objects, (layers,) each, with p and a band over all layers at once.

    left_out : (layers, samples), whose moving together tells how the layers do
    """
    covariance = jackknife_covariance(left_out)
    error = np.sqrt(np.diag(covariance))
    same = error == 0  # equal models: nothing to test
    size = np.where(same, 1, error)
    correlation = covariance / np.outer(size, size)
    adjusted = intervals.adjust_normal(np.where(same, 0, mean / size), correlation, seed)
    width = np.quantile(intervals.largest_normal(correlation, seed), level) * error
    below, above = np.minimum(low, mean - width), np.maximum(high, mean + width)
    return Difference(mean, low, high, p, np.maximum(p, adjusted), below, above)


def own_parts(value: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Pseudo-values, an object's own part of CKA: their mean and error are the jackknife's.

    value : (...)    left_out : (..., samples), which is also the shape of the result.
    """
    gap = left_out.mean(axis=-1, keepdims=True) - left_out
    return np.asarray(value)[..., None] + gap * (left_out.shape[-1] - 1)


def jackknife_covariance(left_out: np.ndarray) -> np.ndarray:
    """Covariance of statistics from their leave-one-out values, (statistics, samples)."""
    samples = left_out.shape[-1]
    gap = left_out - left_out.mean(axis=-1, keepdims=True)
    return gap @ gap.T * ((samples - 1) / samples)


def biased_floor(samples: int, x_dim: int, y_dim: int) -> float:
    """What the plain (biased) linear CKA gives unrelated white features, in expectation."""
    n = samples - 1
    return float(np.sqrt(x_dim * y_dim / ((n + x_dim) * (n + y_dim))))


def cka_null(
    x: np.ndarray, y: np.ndarray, permutations: int = 200, kernel: str = "linear", seed: int = 0
) -> np.ndarray:
    """Debiased CKA with the objects of y in random order, (permutations,): chance, by gather.

    Centring commutes with the order of objects, so one pair of centred Gram matrices serves all
    permutations. Memory is (samples, samples).
    """
    gram_x, gram_y = (
        u_centred(gram(features(one, name), kernel)) for one, name in ((x, "x"), (y, "y"))
    )
    if len(gram_x) != len(gram_y):
        raise ValueError(f"x has {len(gram_x)} objects and y {len(gram_y)}")
    scale = np.sqrt(norm2(gram_x) * norm2(gram_y))
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(len(gram_x)) for _ in range(permutations))
    return np.array([np.vdot(gram_x, gram_y[np.ix_(o, o)]) / scale for o in orders])


class MinibatchCKA:
    """The debiased linear CKA of a stream, exactly, in memory that does not grow with it.

    `update(x, y)` takes the next objects, in batches of any size; `compute()` gives what `cka`
    would for all of them together. (The minibatch estimator of Nguyen et al. only aims at that.)
    The first batch's mean is taken off throughout: the result does not depend on the shift, the
    rounding does.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._shift: list[np.ndarray] = []
        self._sums: dict[tuple[int, int], list[np.ndarray]] = {}

    def update(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add objects. x, y : (samples, dim)."""
        batch = [np.asarray(finite(one, name), np.float64) for one, name in ((x, "x"), (y, "y"))]
        if len(batch[0]) != len(batch[1]):
            raise ValueError(f"x has {len(batch[0])} objects and y {len(batch[1])}")
        if not len(batch[0]):
            raise ValueError("this batch has no objects: leave it out")
        if not self._shift:
            self._shift = [one.mean(axis=0) for one in batch]
        dims = [one.shape[1] for one in batch]
        if dims != (first := [len(shift) for shift in self._shift]):
            raise ValueError(f"this batch has dims {dims}, the first had {first}")
        batch = [one - shift for one, shift in zip(batch, self._shift, strict=True)]
        for a, b in ((0, 0), (0, 1), (1, 1)):
            new = moments(batch[a], batch[b])
            old = self._sums.get((a, b))
            self._sums[a, b] = (
                new if old is None else [o + n for o, n in zip(old, new, strict=True)]
            )
        self.samples += len(batch[0])

    def compute(self) -> float:
        """CKA of all objects so far."""
        if self.samples < 4:
            raise ValueError(f"debiased CKA needs 4 objects, there are {self.samples}")
        sums = [sums_of(*self._sums[pair]) for pair in ((0, 1), (0, 0), (1, 1))]
        return float(debiased(self.samples, *sums))


def _both(
    x: np.ndarray, y: np.ndarray, kind: type = np.float64, order: Literal["C", "F"] = "C"
) -> tuple[np.ndarray, np.ndarray]:
    same = x is y
    x = features(x, "x", kind, order)
    y = x if same else features(y, "y", kind, order)
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} objects and y {len(y)}")
    return x, y


def _wide(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether Gram matrices cost less than products of the features."""
    return len(x) < np.shape(x)[-1] + np.shape(y)[-1]


def _pairs(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[Rows, Rows, Rows]:
    x, y = _both(x, y)
    if kernel == "linear" and not _wide(x, y):
        return rows_of(x, y), rows_of(x, x), rows_of(y, y)
    grams = gram(x, kernel), gram(y, kernel)
    for one in grams:
        np.fill_diagonal(one, 0)
    gram_x, gram_y = grams
    return gram_rows(gram_x, gram_y), gram_rows(gram_x, gram_x), gram_rows(gram_y, gram_y)


def _sums(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[int, Sums, Sums, Sums]:
    """Without the rows, which only the jackknife needs, and as precise as what was given."""
    if kernel != "linear":
        across, own_x, own_y = (rows.sums() for rows in _pairs(x, y, kernel))
        return len(x), across, own_x, own_y
    kind = np.promote_types(np.result_type(np.asarray(x), np.asarray(y)), np.float32).type
    wide = _wide(x, y)
    x, y = _both(x, y, kind, "C" if wide else "F")  # rows are multiplied, or columns
    if wide:
        x, y = inner(x, x), inner(y, y)
        return len(x), gram_sums(x, y), gram_sums(x, x), gram_sums(y, y)
    across, own_x, own_y = (sums_of(*moments(a, b)) for a, b in ((x, y), (x, x), (y, y)))
    return len(x), across, own_x, own_y


def _with_left_out(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[float, np.ndarray]:
    n = len(x)
    if n < 5:
        raise ValueError(f"a jackknife of CKA needs 5 objects, there are {n}")
    pairs = _pairs(x, y, kernel)
    value = debiased(n, *(rows.sums() for rows in pairs))
    return float(value), debiased(n - 1, *(rows.sums_without_each() for rows in pairs))


def _normal(value: float, left_out: np.ndarray, level: float) -> tuple[float, float, float]:
    """Bounds and two-sided p from leave-one-out values."""
    from scipy.special import ndtr, ndtri

    error = float(np.sqrt(jackknife_covariance(left_out[None])[0, 0]))
    half = float(ndtri((1 + level) / 2)) * error
    p = 2 * float(ndtr(-abs(value) / error)) if error > 0 else float(value == 0)
    return value - half, value + half, p
