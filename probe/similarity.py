"""Other ways for two representations to be alike, each blind to something else than CKA.

All take the same objects in the same order, x (samples, x_dim) and y (samples, y_dim).
"""

import numpy as np

from probe.knn import others


def procrustes_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared distance left after the best rotation, of centred features of unit size.

    Returns a value in [0, 2], lower is closer; 0 for a rotated, scaled and shifted copy. Widths
    may differ (Ding et al. 2021, arXiv:2108.01661; there the size is left in).
    """
    x, y = _pair(x, y)
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return float(2 - 2 * np.linalg.svd(x.T @ y, compute_uv=False).sum())


def svcca(x: np.ndarray, y: np.ndarray, variance: float = 0.99) -> float:
    """Mean canonical correlation of the directions that hold `variance` of each.

    Returns a value in [0, 1], higher is more alike. It rises with width over objects, and is 1
    when either has as many directions as there are objects less one: keep objects plentiful. It
    jumps where the number of directions that hold `variance` changes by one.
    Raghu et al. 2017 (arXiv:1706.05806). Raises ValueError for a variance that is not over 0 and at
    most 1.
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance={variance!r}: a share of the variance is over 0 and at most 1")
    return float(canonical_correlations(*principal_bases(x, y, variance)).mean())


def principal_bases(
    x: np.ndarray, y: np.ndarray, variance: float = 0.99
) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal directions that hold `variance` of x, of y, (samples, directions) each."""
    x, y = _pair(x, y)
    return _basis(x, variance), _basis(y, variance)


def canonical_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two orthonormal bases (samples, directions), as many as the smaller has, descending."""
    return np.linalg.svd(one.T @ other, compute_uv=False).clip(0, 1)


def canonical_variates(
    x: np.ndarray, y: np.ndarray, variance: float = 0.99
) -> tuple[np.ndarray, np.ndarray]:
    """What `svcca` correlates, of x and of y, (samples, directions) each: centred, of length 1."""
    bases = principal_bases(x, y, variance)
    left, _, right = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    return bases[0] @ left, bases[1] @ right.T


def mean_correlation(u: np.ndarray, v: np.ndarray) -> float:
    """Of the columns of u with those of v, (samples, columns); 0 for one that does not vary."""
    u, v = u - u.mean(axis=0), v - v.mean(axis=0)
    sizes = np.linalg.norm(u, axis=0) * np.linalg.norm(v, axis=0)
    return float(np.divide((u * v).sum(axis=0), sizes, out=0 * sizes, where=sizes > 1e-12).mean())


def pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Canonical correlations weighted by how much of x each one's direction accounts for.

    Returns a value in [0, 1], higher is more alike; x and y do not trade places. Needs more
    objects than either is wide. Morcos et al. 2018 (arXiv:1806.05759).
    """
    x, y = _pair(x, y)
    if len(x) <= max(x.shape[1], y.shape[1]):
        raise ValueError(
            f"{len(x)} objects for widths {x.shape[1]} and {y.shape[1]}: pwcca needs more objects"
        )
    basis_x, basis_y = _basis(x, 1.0), _basis(y, 1.0)
    left, correlations, _ = np.linalg.svd(basis_x.T @ basis_y, full_matrices=False)
    weights = np.abs((basis_x @ left).T @ x).sum(axis=1)
    return float((weights * correlations.clip(0, 1)).sum() / weights.sum())


def mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10, metric: str = "cosine") -> float:
    """Mean share of the k nearest neighbours of an object that x and y have in common.

    Returns a value in [0, 1], higher is more alike; unrelated objects share k / (samples - 1) of
    them. An object is not its own neighbour. Huh et al. 2024 (arXiv:2405.07987).
    """
    x, y = _finite(x, y)
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(x) - 2:
        raise ValueError(f"k={k!r} must be 1 to {len(x) - 2}, for {len(x)} objects, and whole")
    for name, values in (("x", x), ("y", y)):
        if (values == values[:1]).all():
            raise ValueError(f"{name} is constant: no object is the nearest")
    near_x, near_y = (others(values, k, metric) for values in (x, y))
    shared = (near_x[:, :, None] == near_y[:, None]).any(axis=2)
    return float(shared.mean())


def rsa(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation of the distances of all pairs of objects, 1 - Pearson r each.

    Returns a value in [-1, 1], higher is more alike. Kriegeskorte et al. 2008.
    """
    from scipy.stats import rankdata

    pairs = np.triu_indices(len(x), 1)
    ranks = []
    for name, values in zip("xy", _finite(x, y), strict=True):
        largest = np.abs(values).max(axis=1)
        values = values - values.mean(axis=1, keepdims=True)
        size = np.linalg.norm(values, axis=1)
        if (flat := size <= 1e-12 * largest).any():
            raise ValueError(f"object {int(flat.argmax())} of {name} is constant: it has no r")
        values = values / size[:, None]
        alike = (values @ values.T)[pairs]
        if np.ptp(alike) <= 1e-12:
            raise ValueError(f"all objects of {name} are equally far apart: there is no order")
        ranks.append(rankdata(-alike))
    return float(np.corrcoef(*ranks)[0, 1])


def _basis(values: np.ndarray, variance: float) -> np.ndarray:
    """Orthonormal directions over objects that hold a share of the variance."""
    left, sizes, _ = np.linalg.svd(values, full_matrices=False)
    rank = int((sizes > sizes[0] * max(values.shape) * np.finfo(np.float64).eps).sum())
    held = np.cumsum(sizes**2) / np.sum(sizes**2)
    return left[:, : min(rank, int(np.searchsorted(held, variance - 1e-12)) + 1)]


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 3 or 0 in (*x.shape, *y.shape):
        raise ValueError(f"x {x.shape} and y {y.shape}: need (samples, dim), 3 samples or more")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("x or y holds NaN or infinity")
    return x, y


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both centred, in float64; constant features are refused."""
    x, y = _finite(x, y)
    for name, values in (("x", x), ("y", y)):
        if np.ptp(values, axis=0).max() <= 1e-12 * np.abs(values).max():
            raise ValueError(f"{name} is constant: there is nothing to compare")
    return x - x.mean(axis=0), y - y.mean(axis=0)
