"""HSIC1 of Song et al. 2012 (JMLR 13): the sums over pairs of distinct objects it is made of.

For kernels K of x and L of y, diagonals left out, it needs <K, L>, 1'K1, 1'L1 and 1'KL1. These come
from sums over objects where features are narrow (`moments`), from Gram matrices where they are
wide, and object by object (`Rows`), which gives every leave-one-out value at once.
"""

from typing import Literal, NamedTuple

import numpy as np

from probe.products import inner_columns

KERNELS = ("linear", "rbf")
BLOCK = 512  # rows centred at a time


class Sums(NamedTuple):
    """Over pairs of distinct objects, K of x and L of y: <K, L>, 1'K1, 1'L1 and 1'KL1."""

    inner: np.ndarray
    x: np.ndarray
    y: np.ndarray
    xy: np.ndarray


class Rows(NamedTuple):
    """Kernels K of x and L of y, object by object: row sums of K*L, K and L, then K L1 and L K1."""

    both: np.ndarray
    x: np.ndarray
    y: np.ndarray
    x_y: np.ndarray
    y_x: np.ndarray

    def sums(self) -> Sums:
        return Sums(self.both.sum(), self.x.sum(), self.y.sum(), self.x @ self.y)

    def sums_without_each(self) -> Sums:
        """The same sums with each object left out in turn: (samples,) each."""
        total = self.sums()
        return Sums(
            total.inner - 2 * self.both,
            total.x - 2 * self.x,
            total.y - 2 * self.y,
            total.xy - self.x * self.y - self.x_y - self.y_x + self.both,
        )


def debiased(n: int, xy: Sums, xx: Sums, yy: Sums) -> np.ndarray:
    """CKA of n objects from HSIC1; ValueError where a set has no spread to compare."""
    own = [hsic1(n, sums) for sums in (xx, yy)]
    for name, value, sums in zip("xy", own, (xx, yy), strict=True):
        if (value <= 1e-12 * sums.inner).any():
            raise ValueError(
                f"{name} is constant, or holds its objects equally far apart: CKA is not defined"
            )
    return hsic1(n, xy) / np.sqrt(own[0] * own[1])


def hsic1(n: int, sums: Sums) -> np.ndarray:
    """Equation 5 of Song et al. 2012, but for the factor 1 / (n (n - 3)) that all share."""
    return sums.inner + sums.x * sums.y / ((n - 1) * (n - 2)) - 2 * sums.xy / (n - 2)


def moments(x: np.ndarray, y: np.ndarray) -> list:
    """What adds up over objects (samples, dim) and gives the sums: arguments of `sums_of`."""
    sum_x, norm_x = _own_moments(x)
    sum_y, norm_y = (sum_x, norm_x) if y is x else _own_moments(y)
    return [
        inner_columns(x, y),
        sum_x,
        sum_y,
        norm_x.sum(),
        norm_y.sum(),
        norm_x @ norm_y,
        norm_y.astype(x.dtype) @ x,
        norm_x.astype(y.dtype) @ y,
    ]


def _own_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum over objects, (dim,), and each object's squared length, (samples,), in float64."""
    return x.sum(axis=0, dtype=np.float64), np.einsum("sd,sd->s", x, x, dtype=np.float64)


def sums_of(m, sum_x, sum_y, norm_x, norm_y, both, x_by_y, y_by_x) -> Sums:
    """From `moments`."""
    return Sums(
        norm2(m) - both,
        sum_x @ sum_x - norm_x,
        sum_y @ sum_y - norm_y,
        sum_x @ m @ sum_y - sum_x @ x_by_y - sum_y @ y_by_x + both,
    )


def rows_of(x: np.ndarray, y: np.ndarray) -> Rows:
    """From features, without a Gram matrix: cost samples * x_dim * y_dim."""
    norm_x, norm_y = (x**2).sum(axis=1), (y**2).sum(axis=1)
    row_x, row_y = x @ x.sum(axis=0) - norm_x, y @ y.sum(axis=0) - norm_y
    return Rows(
        np.einsum("sd,sd->s", x @ (x.T @ y), y) - norm_x * norm_y,
        row_x,
        row_y,
        x @ (row_y @ x) - norm_x * row_y,
        y @ (row_x @ y) - norm_y * row_x,
    )


def gram_rows(x: np.ndarray, y: np.ndarray) -> Rows:
    """From zero-diagonal Gram matrices."""
    row_x, row_y = x.sum(axis=1), y.sum(axis=1)
    return Rows(np.einsum("st,st->s", x, y), row_x, row_y, x @ row_y, y @ row_x)


def gram_sums(x: np.ndarray, y: np.ndarray) -> Sums:
    """From Gram matrices, in float64 whatever they hold."""
    own = [np.einsum("ss->s", one).astype(np.float64) for one in (x, y)]
    rows = [one.sum(axis=1, dtype=np.float64) - d for one, d in zip((x, y), own, strict=True)]
    inner = np.einsum("st,st->s", x, y, dtype=np.float64).sum() - own[0] @ own[1]
    return Sums(inner, rows[0].sum(), rows[1].sum(), rows[0] @ rows[1])


def gram(x: np.ndarray, kernel: str = "linear") -> np.ndarray:
    """Kernel matrix (samples, samples) of features; rbf with their median distance as width."""
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


def u_centred(gram: np.ndarray) -> np.ndarray:
    """Szekely & Rizzo 2014: its inner products, over n(n-3), are HSIC1."""
    n = len(gram)
    gram = gram.copy()
    np.fill_diagonal(gram, 0)
    rows = gram.sum(axis=1) / (n - 2)
    gram += rows.sum() / (n - 1) - rows[:, None] - rows[None]
    np.fill_diagonal(gram, 0)
    return gram


def features(
    x: np.ndarray, name: str, kind: type = np.float64, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Centred and of a size near 1, in float64 before they are of `kind`. x : (samples, dim)."""
    x = np.asarray(x)
    x = finite(x.astype(np.float32) if x.dtype == np.float16 else x, name)  # nine times as fast
    if len(x) < 4:
        raise ValueError(f"debiased CKA needs 4 objects, {name} has {len(x)}")
    mean = x.mean(axis=0, dtype=np.float64)
    low, high = (edge(axis=0).astype(np.float64) for edge in (x.min, x.max))
    spread = max((high - mean).max(), (mean - low).max())
    if spread <= 1e-12 * max(np.abs(low).max(), np.abs(high).max()):
        raise ValueError(f"{name} is constant: CKA is not defined")
    centred: np.ndarray = np.empty(x.shape, kind, order)
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        centred[block] = (x[block] - mean) / spread
    return centred


def finite(x: np.ndarray, name: str) -> np.ndarray:
    """x as it is, (samples, dim) of numbers."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(f"{name} has shape {x.shape}, expected (samples, dim)")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {x.dtype}: need numbers")
    if x.size and not np.isfinite([x.min(), x.max()]).all():  # both are nan where one value is
        raise ValueError(
            f"{name} holds NaN or infinity, first at sample "
            f"{int((~np.isfinite(x)).any(axis=1).argmax())}"
        )
    return x


def norm2(matrix: np.ndarray) -> np.ndarray:
    """Squared length of all entries."""
    return np.vdot(matrix, matrix)
