"""The shape of a set of states: how many directions it fills. x : (samples, dim) throughout."""

from functools import partial
from typing import NamedTuple

import numpy as np

from probe.halves import in_part, in_turn
from probe.knn import others, unit_rows

TAIL = 0.1  # of the ratios, the largest: they leave the line that the estimate is fitted to
NEAR = 4  # neighbours of the maximum likelihood estimate: see `shape`
LEAST = 20  # distinct objects for an intrinsic dimension
FAR = 8 * NEAR  # of which as many stay where a group is left out
PARTS = (1, 2, 4, 8)  # that objects are thinned out to
FEWEST = 25  # objects of such a part
GROUPS = 16  # of objects, left out in turn: 95 % intervals hold at a fraction of the cost
SHARES = np.array([0.28, 0.33])  # of `halves.in_part`: for two neighbours, and for four
STATISTICS = ("two_nn", "mle_dimension", "effective_rank", "participation_ratio", "anisotropy")


def two_nn(x: np.ndarray) -> float:
    """Intrinsic dimension from the ratio of the second neighbour's distance to the first's.

    Copies of an object have no ratio and are counted once. The largest tenth of the ratios is
    left out of the fit. Facco et al. 2017 (doi:10.1038/s41598-017-11873-y).
    """
    return _two_nn(_gaps(x, 2, "two_nn").gaps)


def mle_dimension(x: np.ndarray, k: int = NEAR) -> float:
    """Intrinsic dimension by maximum likelihood from the k nearest neighbours of each object.

    A second opinion to `two_nn`, on a larger scale (Levina & Bickel 2004). Inverses are averaged
    over the objects, which takes most of the bias of a small k off (MacKay & Ghahramani 2005).
    Few neighbours are near ones, whatever the objects lie on: more vary less, and err more.
    """
    return _mle(_gaps(x, k, "mle_dimension").gaps)


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


def token_diversity(tokens: np.ndarray) -> np.ndarray:
    """Mean 1 - cosine of two tokens of one object, (samples,). tokens : (samples, tokens, dim).

    0 where all tokens of an object point one way, as oversmoothing makes them (Wang et al. 2022,
    arXiv:2203.05962); about 1 where they have nothing in common.
    """
    count = tokens.shape[1]
    if tokens.ndim != 3 or count < 2:
        raise ValueError(f"tokens {tokens.shape}: need (samples, tokens, dim), 2 tokens or more")
    total = unit_rows(np.asarray(tokens, np.float64), "token").sum(axis=1)
    cosine = ((total**2).sum(axis=1) - count) / (count * (count - 1))
    return 1 - cosine


class Shape(NamedTuple):
    """Each of `STATISTICS`, (statistics,), and with groups left out, (statistics, groups).

    An intrinsic dimension of fewer than 40 objects, or of a lattice, is nan. Of it groups are left
    out in part, see `probe.halves`.
    """

    values: np.ndarray
    left_out: np.ndarray


def shape(x: np.ndarray, *, groups: int = GROUPS, seed: int = 0) -> Shape:
    """All statistics of states (samples, dim), for `probe.intervals.group_jackknife`.

    Intervals hold what as many objects give on average, not what very many would: compare models
    on the same objects. Effective rank and participation ratio rise a little with their number.
    Intrinsic dimensions err by themselves where they are high: 600 objects of a round cloud of 3, 8
    and 20 dimensions have 3.0, 7.9 and 16.0 by TwoNN, 3.0, 7.7 and 15.6 by the likelihood.

    Their intervals hold 94 to 96 % wherever the objects lie (tests/test_coverage.py). Those of ten
    neighbours would be two thirds as wide, and hold 91 % of 120 objects on a bent surface or in
    classes of unlike noise, where ten are a good part of all there is.

    groups : how many are left out in turn; 0 for the values alone. Which objects go together
             depends on the seed alone, so that shapes of the same objects are paired. Neighbours
             are looked up once, and crossed out where they are left out.
    """
    x = _finite(x)
    group = np.random.default_rng([seed, 5]).permutation(len(x)) % max(groups, 1)
    x = narrow(x)
    near = _gaps_or_none(x)
    ranks = in_turn(lambda keep: _ranks(x[keep]), group)
    if near is None:
        dimensions = np.full((len(ranks), 2), np.nan)  # a few objects are fewer groups
    else:
        dimensions = in_part(partial(_local, near), group, SHARES)
    found = np.column_stack([dimensions, ranks]).T  # (statistics, 1 + groups)
    return Shape(found[:, 0], found[:, 1:])


def narrow(x: np.ndarray) -> np.ndarray:
    """The same distances and cosines from no more columns than objects."""
    if x.shape[1] <= len(x):
        return x
    first, own = np.unique(x, axis=0, return_index=True, return_inverse=True)[1:]
    return np.asarray(np.linalg.qr(x.T, mode="r")).T[first[own]]  # rounding tells copies apart


class Thinned(NamedTuple):
    """`two_nn` of fewer and fewer objects, each (sizes,).

    objects : of a part, the full number first, and then a half, a quarter and an eighth
    mean, spread : over the parts, its standard deviation; of the whole that is 0
    """

    objects: np.ndarray
    mean: np.ndarray
    spread: np.ndarray


def thinned(x: np.ndarray, *, seed: int = 0) -> Thinned:
    """Whether `two_nn` hangs on the scale: fewer objects lie farther apart. x : (samples, dim).

    Parts are disjoint and drawn at random, of 25 objects or more; one of a lattice or of fewer
    than 20 distinct objects makes its size nan. On a surface that they fill all sizes agree, while
    noise about it is seen between near neighbours alone, so that the dimension falls as they are
    thinned out (Facco et al. 2017; Ansuini et al. 2019, arXiv:1905.12784). Few objects have too
    many dimensions by themselves: simulated, 75 of a circle or a torus 2 to 4 % more, 38 5 to 8 %
    and 25 6 to 12 %. Where even 600 do not fill the space they have fewer: 75 of a round cloud of
    20 dimensions have a tenth less than 600.
    """
    x = narrow(_finite(x))
    order = np.random.default_rng([seed, 6]).permutation(len(x))
    counts = [count for count in PARTS if count == 1 or len(x) // count >= FEWEST]
    each = [
        np.array([_two_nn_or_nan(x[rows]) for rows in np.array_split(order, count)])
        for count in counts
    ]
    return Thinned(
        np.array([len(x) // count for count in counts]),
        np.array([one.mean() for one in each]),
        np.array([one.std() for one in each]),
    )


def _two_nn_or_nan(x: np.ndarray) -> float:
    near = _gaps_or_none(x, 2, LEAST)
    return np.nan if near is None else _two_nn(near.gaps)


def _ranks(x: np.ndarray) -> np.ndarray:
    return np.array([effective_rank(x), participation_ratio(x), anisotropy(x)])


def _local(near: "_Near", keep: np.ndarray, among: np.ndarray) -> np.ndarray:
    gaps = _crossed_out(near, keep, among)
    return np.array([_two_nn(gaps), _mle(gaps)])


class _Near(NamedTuple):
    """Distances of distinct objects to their nearest others, whose rows `found` holds."""

    rows: np.ndarray
    found: np.ndarray
    gaps: np.ndarray


def _gaps(x: np.ndarray, k: int, name: str) -> _Near:
    if not isinstance(k, int | np.integer) or k < 2:
        raise ValueError(f"k={k!r} must be 2 or more, and whole: {name} compares distances")
    x, rows = np.unique(_finite(x), axis=0, return_index=True)
    if len(x) < max(LEAST, k + 1):
        raise ValueError(f"{len(x)} distinct objects: {name} needs {max(LEAST, k + 1)} or more")
    found = others(x, int(k), "l2")
    gaps = np.stack([np.linalg.norm(x[other] - x, axis=1) for other in found.T], axis=1)
    order = gaps.argsort(axis=1, kind="stable")  # near-copies tie in the search
    found, gaps = (np.take_along_axis(part, order, axis=1) for part in (found, gaps))
    return _Near(rows, rows[found], gaps)


def _gaps_or_none(x: np.ndarray, k: int = FAR, least: int = 2 * LEAST) -> _Near | None:
    distinct = len(np.unique(x, axis=0))
    if distinct < least:
        return None
    near = _gaps(x, min(k, distinct - 1), "shape")
    flat = np.log(near.gaps[:, 1] / near.gaps[:, 0]).max() <= 1e-9
    return None if flat else near


def _crossed_out(near: _Near, keep: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Distances of the objects `keep` to their nearest others of those `among`."""
    rows = keep[near.rows]
    gone = ~among[near.found[rows]]
    order = gone.argsort(axis=1, kind="stable")[:, :NEAR]
    return np.take_along_axis(near.gaps[rows], order, axis=1)


def _two_nn(gaps: np.ndarray) -> float:
    ratios = np.sort(np.log(gaps[:, 1] / gaps[:, 0]))
    if ratios[-1] <= 1e-9:
        raise ValueError("all neighbours are equally far, as in a lattice: two_nn has no value")
    kept = int(len(ratios) * (1 - TAIL))
    empty = -np.log(1 - np.arange(1, kept + 1) / len(ratios))
    return float(ratios[:kept] @ empty / (ratios[:kept] @ ratios[:kept]))


def _mle(gaps: np.ndarray) -> float:
    logs = np.log(gaps[:, -1:] / gaps[:, :-1]).sum(axis=1)
    if logs.sum() <= 1e-9:
        raise ValueError("all neighbours are equally far, as in a lattice: there is no dimension")
    return float((gaps.shape[1] - 1) * len(logs) / logs.sum())


def _sizes(x: np.ndarray) -> np.ndarray:
    """Singular values of the centred states."""
    x = _finite(x)
    sizes = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    if sizes[0] <= 1e-12 * np.abs(x).max():
        raise ValueError("x is constant: it fills no direction")
    return sizes


def _finite(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise ValueError(f"x has shape {x.shape}: need (samples, dim), 2 samples or more")
    if not np.isfinite(x).all():
        raise ValueError("x holds NaN or infinity")
    return x
