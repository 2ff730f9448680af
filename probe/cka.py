"""Centred kernel alignment: do two representations place the same objects alike?

Debiased by default (HSIC1 of Song et al. 2012, JMLR 13; in CKA since Nguyen et al. 2020,
arXiv:2010.15327): the plain estimator of Kornblith et al. 2019 (arXiv:1905.00414) grows with
width over objects, so that noise scores high and layers of two widths cannot be compared.
Sums run over pairs of distinct objects; features are centred and summed in float64.
"""

from typing import NamedTuple

import numpy as np

KERNELS = ("linear", "rbf")


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
        return float(_debiased(*_sums(x, y, kernel)))
    x, y = _features(x, "x"), _features(y, "y")
    if kernel == "linear":
        return float(_norm2(x.T @ y) / np.sqrt(_norm2(x.T @ x) * _norm2(y.T @ y)))
    grams = [gram - gram.mean(axis=0) for gram in (_gram(x, kernel), _gram(y, kernel))]
    gram_x, gram_y = (gram - gram.mean(axis=1, keepdims=True) for gram in grams)
    return float(np.vdot(gram_x, gram_y) / np.sqrt(_norm2(gram_x) * _norm2(gram_y)))


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
        _u_centred(_gram(_features(values, name), kernel)) for values, name in ((x, "x"), (y, "y"))
    )
    if len(gram_x) != len(gram_y):
        raise ValueError(f"x has {len(gram_x)} objects and y {len(gram_y)}")
    scale = np.sqrt(_norm2(gram_x) * _norm2(gram_y))
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
        batch = [_finite(x, "x"), _finite(y, "y")]
        if len(batch[0]) != len(batch[1]):
            raise ValueError(f"x has {len(batch[0])} objects and y {len(batch[1])}")
        if not self._shift:
            self._shift = [features.mean(axis=0) for features in batch]
        dims = [features.shape[1] for features in batch]
        if dims != (first := [len(shift) for shift in self._shift]):
            raise ValueError(f"this batch has dims {dims}, the first had {first}")
        batch = [features - shift for features, shift in zip(batch, self._shift, strict=True)]
        for a, b in ((0, 0), (0, 1), (1, 1)):
            new = _moments(batch[a], batch[b])
            old = self._sums.get((a, b))
            self._sums[a, b] = (
                new if old is None else [o + n for o, n in zip(old, new, strict=True)]
            )
        self.samples += len(batch[0])

    def compute(self) -> float:
        """CKA of all objects so far."""
        if self.samples < 4:
            raise ValueError(f"debiased CKA needs 4 objects, there are {self.samples}")
        sums = [_stream_sums(*self._sums[pair]) for pair in ((0, 1), (0, 0), (1, 1))]
        return float(_debiased(self.samples, *sums))


class _Sums(NamedTuple):
    """Over pairs of distinct objects, K of x and L of y: <K, L>, 1'K1, 1'L1 and 1'KL1."""

    inner: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xy: np.ndarray


def _moments(x: np.ndarray, y: np.ndarray) -> list:
    """What adds up over objects and gives the sums over pairs: arguments of `_stream_sums`."""
    norm_x, norm_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    return [
        x.T @ y,
        x.sum(axis=0),
        y.sum(axis=0),
        norm_x.sum(),
        norm_y.sum(),
        norm_x @ norm_y,
        norm_y @ x,
        norm_x @ y,
    ]


def _stream_sums(m, sum_x, sum_y, norm_x, norm_y, both, x_by_y, y_by_x) -> _Sums:
    return _Sums(
        _norm2(m) - both,
        sum_x @ sum_x - norm_x,
        sum_y @ sum_y - norm_y,
        sum_x @ m @ sum_y - sum_x @ x_by_y - sum_y @ y_by_x + both,
    )


def _hsic1(n: int, sums: _Sums) -> np.ndarray:
    """HSIC1 of Song et al. 2012, equation 5, but for the factor all three share."""
    return sums.inner + sums.x * sums.y / ((n - 1) * (n - 2)) - 2 * sums.xy / (n - 2)


def _debiased(n: int, xy: _Sums, xx: _Sums, yy: _Sums) -> np.ndarray:
    own = [_hsic1(n, sums) for sums in (xx, yy)]
    for name, value, sums in zip("xy", own, (xx, yy), strict=True):
        if (value <= 1e-12 * sums.inner).any():
            raise ValueError(
                f"{name} is constant, or holds its objects equally far apart: CKA is not defined"
            )
    return _hsic1(n, xy) / np.sqrt(own[0] * own[1])


class _Rows(NamedTuple):
    """Kernels K of x and L of y, object by object: row sums of K*L, K and L, then K L1 and L K1."""

    both: np.ndarray
    x: np.ndarray
    y: np.ndarray
    x_y: np.ndarray
    y_x: np.ndarray

    def sums(self) -> _Sums:
        return _Sums(self.both.sum(), self.x.sum(), self.y.sum(), self.x @ self.y)

    def sums_without_each(self) -> _Sums:
        """The same sums with each object left out in turn: (samples,) each."""
        total = self.sums()
        return _Sums(
            total.inner - 2 * self.both,
            total.x - 2 * self.x,
            total.y - 2 * self.y,
            total.xy - self.x * self.y - self.x_y - self.y_x + self.both,
        )


def _rows(x: np.ndarray, y: np.ndarray) -> _Rows:
    """From features, without a Gram matrix: cost samples * x_dim * y_dim."""
    norm_x, norm_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    row_x, row_y = x @ x.sum(axis=0) - norm_x, y @ y.sum(axis=0) - norm_y
    return _Rows(
        ((x @ (x.T @ y)) * y).sum(axis=1) - norm_x * norm_y,
        row_x,
        row_y,
        x @ (row_y @ x) - norm_x * row_y,
        y @ (row_x @ y) - norm_y * row_x,
    )


def _gram_rows(x: np.ndarray, y: np.ndarray) -> _Rows:
    """From zero-diagonal Gram matrices, for kernels that have no features."""
    row_x, row_y = x.sum(axis=1), y.sum(axis=1)
    return _Rows((x * y).sum(axis=1), row_x, row_y, x @ row_y, y @ row_x)


def _both(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _features(x, "x"), _features(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} objects and y {len(y)}")
    return x, y


def _pairs(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[_Rows, _Rows, _Rows]:
    x, y = _both(x, y)
    if kernel == "linear":
        return _rows(x, y), _rows(x, x), _rows(y, y)
    gram_x, gram_y = _gram(x, kernel), _gram(y, kernel)
    np.fill_diagonal(gram_x, 0)
    np.fill_diagonal(gram_y, 0)
    return _gram_rows(gram_x, gram_y), _gram_rows(gram_x, gram_x), _gram_rows(gram_y, gram_y)


def _sums(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[int, _Sums, _Sums, _Sums]:
    if kernel == "linear":  # without the rows, which only the jackknife needs
        x, y = _both(x, y)
        xy, xx, yy = (_stream_sums(*_moments(a, b)) for a, b in ((x, y), (x, x), (y, y)))
    else:
        xy, xx, yy = (rows.sums() for rows in _pairs(x, y, kernel))
    return len(x), xy, xx, yy


def _with_left_out(x: np.ndarray, y: np.ndarray, kernel: str) -> tuple[float, np.ndarray]:
    n = len(x)
    if n < 5:
        raise ValueError(f"a jackknife of CKA needs 5 objects, there are {n}")
    pairs = _pairs(x, y, kernel)
    value = _debiased(n, *(rows.sums() for rows in pairs))
    return float(value), _debiased(n - 1, *(rows.sums_without_each() for rows in pairs))


def _normal(value: float, left_out: np.ndarray, level: float) -> tuple[float, float, float]:
    """Bounds and two-sided p from leave-one-out values."""
    from scipy.special import ndtr, ndtri

    error = float(np.sqrt(jackknife_covariance(left_out[None])[0, 0]))
    half = float(ndtri((1 + level) / 2)) * error
    p = 2 * float(ndtr(-abs(value) / error)) if error > 0 else float(value == 0)
    return value - half, value + half, p


def _finite(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {x.shape}, expected (samples, dim)")
    if not np.isfinite(x).all():
        raise ValueError(
            f"{name} holds NaN or infinity, first at sample "
            f"{int((~np.isfinite(x)).any(axis=1).argmax())}"
        )
    return x


def _features(x: np.ndarray, name: str) -> np.ndarray:
    """Centred, in float64, at most as wide as there are objects, of a size near 1."""
    x = _finite(x, name)
    if len(x) < 4:
        raise ValueError(f"debiased CKA needs 4 objects, {name} has {len(x)}")
    largest = np.abs(x).max()
    x = x - x.mean(axis=0)
    spread = np.abs(x).max()
    if spread <= 1e-12 * largest:
        raise ValueError(f"{name} is constant: CKA is not defined")
    x = x / spread
    if x.shape[1] > len(x):  # the same Gram matrix from fewer features
        x = np.asarray(np.linalg.qr(x.T, mode="r")).T
    return x


def _gram(x: np.ndarray, kernel: str) -> np.ndarray:
    """Kernel matrix (samples, samples)."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r}: must be one of {', '.join(KERNELS)}")
    products = x @ x.T
    if kernel == "linear":
        return products
    norms = np.diag(products)
    squared = np.maximum(norms[:, None] + norms[None] - 2 * products, 0)
    median = np.median(squared[np.triu_indices(len(x), 1)])
    if median == 0:
        raise ValueError("over half of all pairs of objects coincide: the rbf kernel has no width")
    return np.exp(-squared / (2 * median))


def _u_centred(gram: np.ndarray) -> np.ndarray:
    """Szekely & Rizzo 2014: its inner products, over n(n-3), are HSIC1."""
    n = len(gram)
    gram = gram.copy()
    np.fill_diagonal(gram, 0)
    rows = gram.sum(axis=1) / (n - 2)
    gram += rows.sum() / (n - 1) - rows[:, None] - rows[None]
    np.fill_diagonal(gram, 0)
    return gram


def _norm2(matrix: np.ndarray) -> np.ndarray:
    return np.vdot(matrix, matrix)
