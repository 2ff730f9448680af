"""A verdict, not only a curve: at which depth is something lost, and how sure is that?

A measure is lost where its mean has fallen below its reference by a stated margin. The depth of
that crossing is read between the captured layers on a straight line, so it is a number with an
interval; a captured layer is said to have fallen, or to hold, by tests that keep their level over
all layers. Higher is better throughout: hand in minus a distance. Objects are the unit.
"""

from typing import NamedTuple

import numpy as np

from probe.intervals import resampled_means, wider_of_few

SHARE = 0.05  # of the way from the reference to chance: the loss that counts
POWER = 0.8
RESAMPLES = 2000


class Falls(NamedTuple):
    """Where curves fall below their reference by the margin; arrays over the leading axes.

    depth, low, high : layer of the first crossing, inf where there is none
    p         : that the mean is below at some layer, one-sided, over all layers at once
    fallen    : first captured layer that is below, p over all layers under 1 - level; else nan
    held      : deepest captured layer such that it and all before it are not worse by the margin
                (a test a layer in order of depth until the first fails, which keeps the level:
                Maurer et al. 1995); else nan
    resampled : (resamples, ...) depths of the same resamples of the objects for all curves
    """

    depth: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    fallen: np.ndarray
    held: np.ndarray
    resampled: np.ndarray


class Shift(NamedTuple):
    """Layers by which a fall comes later in one model than in another, with its interval.

    A model that never falls counts as falling at the deepest layer; `censored` is the share of
    resamples in which that happened to one of the two: the shift is then "at least".
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censored: np.ndarray


def falls(
    gaps: np.ndarray,
    layers: np.ndarray,
    margin: np.ndarray | float,
    *,
    hits: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Falls:
    """Where means of `gaps` first fall below -margin.

    gaps   : (..., layers, samples), score less its reference, object by object; of what is no mean
             over objects, `probe.cka.own_parts` of each or of groups of them
    layers : (layers,), ascending    margin : (...), above 0; nan gives nan
    hits   : gaps of right and wrong, -1, 0 and 1: what holds is then told by Tango's score, as
             few objects of which none differs prove little

    The interval is the percentile one of the depths of resampled objects. Where the curve stays
    near -margin over many layers it is wide, and its ends are captured layers or inf.
    """
    gaps, layers = np.asarray(gaps, np.float64), np.asarray(layers, np.float64)
    if gaps.ndim < 2 or gaps.shape[-2] != len(layers):
        raise ValueError(f"gaps {gaps.shape} of {len(layers)} layers: need (..., layers, samples)")
    if (np.diff(layers) <= 0).any():
        raise ValueError(f"layers {layers.tolist()} must ascend")
    margin = np.broadcast_to(np.asarray(margin, np.float64), gaps.shape[:-2])
    if (margin <= 0).any():
        raise ValueError("a margin must be above 0: any noise falls below a reference itself")
    mean = gaps.mean(axis=-1)
    means = _as_t(resampled_means(gaps, resamples, seed), mean, gaps.shape[-1], seed)
    depths = crossing(means, layers, margin)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(depths, tails, axis=0, method="inverted_cdf")
    p, held = _tests(gaps, mean, means, margin, 1 - level, hits)
    below, none = p < 1 - level, np.isnan(margin)
    first = np.where(below.any(-1), layers[below.argmax(-1)], np.nan)
    last = np.where(held[..., 0], layers[held.sum(-1) - 1], np.nan)
    parts = (crossing(mean, layers, margin), low, high, p.min(-1), first, last)
    depth, low, high, p, first, last = (np.where(none, np.nan, part) for part in parts)
    return Falls(depth, low, high, p, first, last, depths)


def crossing(means: np.ndarray, layers: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
    """Depth at which curves (..., layers) first reach -margin, on straight lines; inf if never."""
    below = means < -np.asarray(margin)[..., None]
    at = below.argmax(axis=-1)
    before = np.maximum(at - 1, 0)
    end, start = (np.take_along_axis(means, i[..., None], -1)[..., 0] for i in (at, before))
    drop = np.where(at > before, start - end, 1.0)
    share = np.where(at > before, (start + margin) / drop, 0.0)
    depth = layers[before] + share * (layers[at] - layers[before])
    return np.where(below.any(axis=-1), depth, np.inf)


def shift(found: Falls, later: int, earlier: int, deepest: float, level: float = 0.95) -> Shift:
    """How much later curve `later` of the first axis falls than curve `earlier`."""
    pair = found.resampled[:, later], found.resampled[:, earlier]
    never = np.isinf(pair[0]) | np.isinf(pair[1])
    moved = np.minimum(pair[0], deepest) - np.minimum(pair[1], deepest)
    mean = np.minimum(found.depth[later], deepest) - np.minimum(found.depth[earlier], deepest)
    low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = np.minimum(low, mean), np.maximum(high, mean)  # one may be in neither tail's reach
    return Shift(
        *(np.where(np.isnan(mean), np.nan, part) for part in (mean, low, high, never.mean(0)))
    )


def equivalence(gaps: np.ndarray, margin: np.ndarray | float, *, hits: bool = False) -> np.ndarray:
    """p that means of paired gaps (..., samples) lie outside +-margin: small proves them alike.

    Two one-sided t tests (Schuirmann 1987), of gaps of right and wrong (hits) two of Tango's; the
    largest p over layers is that of "alike at all of them" (Berger 1982), without further
    correction.
    """
    from scipy.special import ndtr, stdtr

    gaps = np.asarray(gaps, np.float64)
    if hits:
        least = -np.asarray(margin, np.float64)
        return ndtr(-np.minimum(_above(gaps, least), _above(-gaps, least)))
    mean, error = _mean_and_error(gaps)
    room = np.asarray(margin) - np.abs(mean)  # to the nearer end
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(error > 0, room / error, np.where(room > 0, np.inf, -np.inf))
    return np.where(np.isnan(room), np.nan, stdtr(gaps.shape[-1] - 1, -score))


def detectable(
    gaps: np.ndarray,
    *,
    hits: bool = False,
    level: float = 0.95,
    power: float = POWER,
    seed: int = 0,
) -> np.ndarray:
    """Smallest paired difference that a test over all layers would have found, (..., layers).

    gaps : (..., layers, samples)    hits : gaps of right and wrong, see `hit_error`
    """
    from scipy.special import ndtri

    gaps = np.asarray(gaps, np.float64)
    _, error = hit_error(gaps) if hits else _mean_and_error(gaps)
    wider = wider_of_few(gaps.shape[-1], level)
    return (wider * critical(gaps, level, seed)[..., None] + ndtri(power)) * error


def hit_error(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width over z of the interval of a mean of gaps of right and wrong.

    gaps : (..., samples), -1, 0 and 1, or means of such

    Half an object more is counted either way and two in all, as none that differs is no proof that
    none would (Agresti & Min 2005, doi:10.1002/sim.1781). Where 0.1 to 40 % differ, either way,
    95 % intervals of 100 and 600 objects hold 97 and 96 % on average (exactly; 90 and 94 at worst,
    where few differ and all one way); normal ones without it hold 69 and 90 (10 and 53).
    """
    samples, total = gaps.shape[-1], gaps.sum(axis=-1)
    differ = (gaps**2).sum(axis=-1) + 1
    error = np.sqrt(differ - total**2 / (samples + 2)) / (samples + 2)
    return total / (samples + 2), error


def margin_of(reference: np.ndarray | float, chance: np.ndarray | float) -> np.ndarray:
    """5 % of the way from the reference down to chance; nan where the reference is at chance."""
    room = np.asarray(reference, np.float64) - chance
    return np.where(room > 0, SHARE * room, np.nan)


def _above(gaps: np.ndarray, least: np.ndarray) -> np.ndarray:
    """z of the means of gaps of hits (..., samples) being above `least` (...), itself below 0.

    Its variance is that of the likeliest shares whose difference is `least`, which is none of 0
    where no object differs (Tango 1998, Statistics in Medicine 17, 891). At the margin itself 6
    in 100 are called alike at most; by t of hits it was up to 12 with 200 objects, 60 with 10.
    """
    samples = gaps.shape[-1]
    more, fewer = (gaps > 0).sum(axis=-1), (gaps < 0).sum(axis=-1)
    slope = (2 * samples - more + fewer) * least - more - fewer
    level = -fewer * least * (1 - least)
    lost = (np.sqrt(slope**2 - 8 * samples * level) - slope) / (4 * samples)
    variance = samples * (2 * lost + least * (1 - least))
    return (more - fewer - samples * least) / np.sqrt(variance)


def _tests(
    gaps: np.ndarray,
    mean: np.ndarray,
    means: np.ndarray,
    margin: np.ndarray,
    alpha: float,
    hits: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """p (..., layers) of being below, over all layers; and whether each layer so far holds."""
    from scipy.special import ndtri, stdtrit

    _, error = _mean_and_error(gaps)
    flat = error == 0
    size = np.where(flat, 1, error)
    samples = gaps.shape[-1]
    room = mean + margin[..., None]
    score = np.where(flat, np.where(room < 0, -np.inf, np.inf), room / size)
    lowest = ((means - mean) / size).min(axis=-1)  # (resamples, ...)
    p = (1 + (lowest[..., None] <= score).sum(axis=0)) / (1 + len(means))
    if hits:
        holds = _above(gaps, -margin[..., None]) > ndtri(1 - alpha)
    else:
        holds = score > stdtrit(samples - 1, 1 - alpha)
    return p, np.logical_and.accumulate(holds, axis=-1)


def _as_t(means: np.ndarray, mean: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Resampled means (resamples, ...) as far from the mean as Student's t has it.

    Their variance is too small by one sample of all, and few samples, as groups of objects are,
    tell it badly.
    """
    freedom = samples - 1
    drawn = np.random.default_rng([seed, 15]).chisquare(freedom, len(means)) / freedom
    wider = np.sqrt(samples / freedom / drawn).reshape(-1, *(1,) * mean.ndim)
    return mean + wider * (means - mean)


def critical(gaps: np.ndarray, level: float, seed: int) -> np.ndarray:
    """Two-sided critical value of the largest |t| over the layers."""
    mean, error = _mean_and_error(gaps)
    spread = np.where(error > 0, error, np.inf)
    scores = np.abs(resampled_means(gaps, RESAMPLES, seed) - mean) / spread
    return np.maximum(np.quantile(scores.max(axis=-1), level, axis=0), 1.96)


def _mean_and_error(gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples = gaps.shape[-1]
    return gaps.mean(axis=-1), gaps.std(axis=-1, ddof=1) / np.sqrt(samples)
