"""The shape of a set of states: how many directions it fills. x : (samples, dim) throughout."""

import numpy as np

from probe.knn import nearest, unit_rows

TAIL = 0.1  # of the ratios, the largest: they leave the line that the estimate is fitted to


def two_nn(x: np.ndarray) -> float:
    """Intrinsic dimension from the ratio of the second neighbour's distance to the first's.

    Copies of an object have no ratio and are counted once. The largest tenth of the ratios is
    left out of the fit. Facco et al. 2017 (doi:10.1038/s41598-017-11873-y).
    """
    x = np.unique(_finite(x), axis=0)
    if len(x) < 20:
        raise ValueError(f"{len(x)} distinct objects: two_nn needs 20 or more")
    found = nearest(x, x, 3, metric="l2")[:, 1:]  # the first is the object itself
    gaps = np.linalg.norm(x[found] - x[:, None], axis=2)
    ratios = np.sort(np.log(gaps[:, 1] / gaps[:, 0]))
    if ratios[-1] <= 1e-9:
        raise ValueError("all neighbours are equally far, as in a lattice: two_nn has no value")
    kept = int(len(ratios) * (1 - TAIL))
    empty = -np.log(1 - np.arange(1, kept + 1) / len(ratios))
    return float(ratios[:kept] @ empty / (ratios[:kept] @ ratios[:kept]))


def effective_rank(x: np.ndarray) -> float:
    """Exponential of the entropy of the singular values of the centred states.

    From 1 to dim, higher fills more directions. Roy & Vetterli 2007; others take eigenvalues of
    the covariance instead, which gives a smaller number.
    """
    share = _sizes(x)
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(x: np.ndarray) -> float:
    """Square of the sum of the covariance's eigenvalues over the sum of their squares.

    From 1 to dim, higher spreads the variance over more directions.
    """
    variance = _sizes(x) ** 2
    return float(variance.sum() ** 2 / (variance**2).sum())


def anisotropy(x: np.ndarray) -> float:
    """Mean cosine of two different objects' states, as they stand, not centred.

    About 0 where directions are evenly used, 1 where all point one way. Ethayarajh 2019
    (arXiv:1909.00512).
    """
    rows = unit_rows(_finite(x), "x")
    total = rows.sum(axis=0)
    return float((total @ total - len(rows)) / (len(rows) * (len(rows) - 1)))


def _sizes(x: np.ndarray) -> np.ndarray:
    """Singular values of the centred states."""
    x = _finite(x)
    sizes = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    if sizes[0] <= 1e-12 * np.abs(x).max():
        raise ValueError("x is constant: it fills no direction")
    return sizes


def _finite(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x has shape {x.shape}: need (samples, dim), 2 samples or more")
    if not np.isfinite(x).all():
        raise ValueError("x holds NaN or infinity")
    return x
