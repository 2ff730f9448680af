"""Hubness: are a few gallery objects everybody's neighbours, so that their labels decide votes?

In high dimension some points lie near most others (Radovanovic et al. 2010, JMLR 11). Accuracy of
neighbours is then that of the hubs' labels, and a fall of it may be theirs alone.
"""

from typing import NamedTuple

import numpy as np

from probe.dimension import GROUPS


class Hubness(NamedTuple):
    """Skewness of the k-occurrence, (), and with groups of queries left out, (groups,)."""

    value: np.ndarray
    left_out: np.ndarray


def hubness(found: np.ndarray, gallery: int, *, groups: int = GROUPS, seed: int = 0) -> Hubness:
    """How unevenly neighbours are shared out among the gallery: 0 = evenly, above it the more so.

    found   : (queries, k), rows of each query's k nearest gallery objects, as of `knn.nearest`
    gallery : number of gallery objects
    groups  : of queries, left out in turn for `intervals.group_jackknife`; 0 for the value alone

    The k-occurrence of a gallery object is how many queries have it among their k neighbours; its
    skewness is the third standardised moment over the gallery, undefined (nan) where all occur
    alike. Read it against `by_chance`, not against 0. Simulated 95 % intervals (k = 10) hold 94 to
    96 % where there are hubs (states 20 and 100 wide), 98 to 99 % where there are next to none:
    leaving out counts twice what only pairs of queries make.
    """
    if found.size and not 0 <= found.min() <= found.max() < gallery:
        raise ValueError(f"neighbours {found.min()} to {found.max()} of {gallery} gallery objects")
    group = np.random.default_rng([seed, 5]).permutation(len(found)) % max(groups, 1)
    counts = np.zeros((max(groups, 1), gallery))
    np.add.at(counts, (group[:, None], found), 1)
    total = counts.sum(axis=0)
    return Hubness(skewness(total), skewness(total - counts) if groups else np.empty(0))


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
