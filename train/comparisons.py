"""Two models on the same objects: who is right where, how small a difference would be found."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from probe.intervals import mcnemar, paired_difference
from train.ablation import Estimate

POWER = 0.8
PUBLISHED_GAIN = 0.0208
"""PointAlign's mean gain over MiniGPT-3D in Table 1, all four accuracies."""


class Paired(NamedTuple):
    """Two models on the same objects, right (or as a share right) or wrong."""

    objects: int
    both: int
    only_a: int
    only_b: int
    neither: int
    mean: float
    """Difference of the shares, a - b, with its 95 % interval: Wald's after half an object is added
    to each of the four counts, as none that differ are no proof that none would (Agresti & Min
    2005)."""
    low: float
    high: float
    p: float
    """McNemar's, exact."""
    smallest: float
    """Smallest difference that this comparison finds with 80 % power."""
    power: float
    """With which it finds the published mean gain, 2.08 points."""


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Discordance of two models. a, b : (objects,) of 0 and 1, in one order.

    Raises ValueError where they are not of the same objects, or of fewer than two.
    """
    hits_a, hits_b = np.asarray(a) > 0.5, np.asarray(b) > 0.5
    p = mcnemar(hits_a, hits_b, exact=True)
    only_a, only_b = int((hits_a & ~hits_b).sum()), int((hits_b & ~hits_a).sum())
    n, both = len(hits_a), int((hits_a & hits_b).sum())
    gap, share = (only_a - only_b) / (n + 2), (only_a + only_b + 1) / (n + 2)
    half = 1.96 * np.sqrt((share - gap**2) / (n + 2))
    return Paired(
        n,
        both,
        only_a,
        only_b,
        n - both - only_a - only_b,
        (only_a - only_b) / n,
        float(gap - half),
        float(gap + half),
        p,
        smallest_gain(share, n),
        mcnemar_power(PUBLISHED_GAIN, share, n),
    )


class Graded(NamedTuple):
    """Two models whose answers about the same objects have a score each."""

    objects: int
    higher_a: int
    higher_b: int
    equal: int
    mean: float
    """Difference of the mean scores, a - b, with its 95 % interval over resampled objects."""
    low: float
    high: float
    p: float
    """Of sign flips."""
    smallest: float
    """Smallest difference that this comparison finds with 80 % power, by Student's t."""
    power: float
    """With which it finds the published gain."""


def graded(a: np.ndarray, b: np.ndarray, gain: float) -> Graded:
    """The same for scores. a, b : (objects,) from 0 to 1; gain : the published one.

    Raises ValueError where they are not of the same objects, or of fewer than two.
    """
    found, gaps = paired_difference(a, b), np.asarray(a) - np.asarray(b)
    n = len(gaps)
    error = np.sqrt((gaps.var(ddof=1) or 1 / n) / n)  # none that differ are no proof
    mean, low, high, p = (float(part) for part in found[:4])
    known = Estimate(mean, low, high, p, float(error), n - 1)
    counts = (int((gaps > 0).sum()), int((gaps < 0).sum()), int((gaps == 0).sum()))
    return Graded(n, *counts, mean, low, high, p, known.smallest, known.power(gain))


def mcnemar_power(gain: float, discordant: float, objects: int, level: float = 0.95) -> float:
    """Chance that exact McNemar finds a true difference of shares.

    gain       : share of objects by which one model is better, 0 to `discordant`.
    discordant : share of objects that one gets right and the other wrong.

    Exact: over the binomial number of discordant objects, and who wins them. A gain beyond
    `discordant`, which can't be, is taken with as many discordant objects as it needs.
    """
    from scipy.stats import binom

    discordant = max(discordant, abs(gain))
    if discordant == 0:
        return 0.0
    m = np.arange(objects + 1)
    wins = (1 + abs(gain) / discordant) / 2
    most = binom.ppf((1 - level) / 2, m, 0.5)  # of losses, for which p is still too large
    most -= binom.cdf(most, m, 0.5) > (1 - level) / 2
    found = np.where(most >= 0, binom.cdf(most, m, wins) + binom.sf(m - most - 1, m, wins), 0.0)
    return float((binom.pmf(m, objects, discordant) * found).sum())


def smallest_gain(discordant: float, objects: int, power: float = POWER) -> float:
    """Smallest true difference that exact McNemar finds with this power; nan where none."""
    low, high = 0.0, 1.0
    if mcnemar_power(high, discordant, objects) < power:
        return float("nan")
    while high - low > 1e-4:
        middle = (low + high) / 2
        enough = mcnemar_power(middle, discordant, objects) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high
