"""Hubness: are a few gallery objects everybody's neighbours, so that their labels decide votes?

In high dimension some points lie near most others (Radovanovic et al. 2010, JMLR 11). Accuracy of
neighbours is then that of the hubs' labels, and a fall of it may be theirs alone.
"""

from typing import NamedTuple

import numpy as np

from probe.dimension import GROUPS

TOGETHER = 0.25  # of what pairs of groups make, counted once too often: found by simulation


class Hubness(NamedTuple):
    """Skewness of the k-occurrence, (), and values (groups,) for `intervals.group_jackknife`."""

    value: np.ndarray
    left_out: np.ndarray


def hubness(found: np.ndarray, gallery: int, *, groups: int = GROUPS, seed: int = 0) -> Hubness:
    """How unevenly neighbours are shared out among the gallery: 0 = evenly, above it the more so.

    found   : (queries, k), rows of each query's k nearest gallery objects, as of `knn.nearest`
    gallery : number of gallery objects
    groups  : of queries, left out in turn; 0 for the value alone

    The k-occurrence of a gallery object is how many queries have it among their k neighbours; its
    skewness is the third standardised moment over the gallery, undefined (nan) where all occur
    alike. Read it against `by_chance`, not against 0. Simulated 95 % intervals hold 94 to 96 %, of
    80 to 500 queries and states 2 to 100 wide, and 98 % where counts are as skewed as by chance; of
    two models that are equal, 1 to 5 in 100 are called different.
    """
    if found.size and not 0 <= found.min() <= found.max() < gallery:
        raise ValueError(f"neighbours {found.min()} to {found.max()} of {gallery} gallery objects")
    group = np.random.default_rng([seed, 5]).permutation(len(found)) % max(groups, 1)
    counts = np.zeros((max(groups, 1), gallery))
    np.add.at(counts, (group[:, None], found), 1)
    total = counts.sum(axis=0)
    value = skewness(total)
    return Hubness(value, _left_out(value, total, counts) if groups else np.empty(0))


def _left_out(value: np.ndarray, total: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The skewness with each group left out, (groups,), drawn together by what pairs make.

    counts : (groups, gallery), and their total. What two groups make only together is counted
    twice where one is left out at a time; leaving out two at once tells how much it is (Efron &
    Stein 1981, doi:10.1214/aos/1176345462). A quarter of that is taken off, and no more than half
    of the variance, which is what a statistic of nothing but pairs has too much.
    """
    groups = len(counts)
    one = skewness(total - counts)
    first, second = np.triu_indices(groups, 1)
    two = skewness(total - counts[first] - counts[second])
    pairs = groups * value - (groups - 1) * (one[first] + one[second]) + (groups - 2) * two
    every, shared = (groups - 1) * one.var(), (pairs**2).sum() / groups**2
    kept = max(1 - TOGETHER * shared / every, 0.5) if every > 0 else 1.0
    return one.mean() + np.sqrt(kept) * (one - one.mean())


def skewness(counts: np.ndarray) -> np.ndarray:
    """Third central moment over the cubed standard deviation, along the last axis."""
    gaps = counts - counts.mean(axis=-1, keepdims=True)
    spread = np.sqrt((gaps**2).mean(axis=-1))
    out = np.full(spread.shape, np.nan)
    return np.divide((gaps**3).mean(axis=-1), spread**3, out=out, where=spread > 0)


def by_chance(queries: int, gallery: int, k: int) -> float:
    """Skewness of the k-occurrence where every query draws its k neighbours at random.

    That of the binomial of `queries` draws with probability k / gallery each; nan if k = gallery.
    """
    share = k / gallery
    if share == 1:
        return float("nan")
    return float((1 - 2 * share) / np.sqrt(queries * share * (1 - share)))
