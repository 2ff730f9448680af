"""Layer against layer, model against model: how alike is every pair of captured states?

Debiased linear CKA of all pairs is a few matrix products over blocks of objects: with Gram
matrices K_1..K_P, the sums <K_i, K_j>, 1'K_i K_j 1 and all their leave-one-object-out values come
from one batched product each, so that the bands cost no more than the values.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from probe.dimension import GROUPS, narrow
from probe.halves import angular, by_halves, in_part, in_turn, reach
from probe.hsic import Sums, debiased, features, gram, u_centred
from probe.knn import others
from probe.similarity import (
    canonical_correlations,
    canonical_variates,
    mean_correlation,
    principal_bases,
    procrustes_distance,
    pwcca,
    rsa,
    svcca,
)

BLOCK_BYTES = 2**30
PAIRS_AT_ONCE = 2**12
MOST = 3000  # objects that a null is dealt over: their pairs are held, for every set
ALIKE = ("procrustes", "rsa", "mutual_knn", "svcca", "pwcca")
SHARED = 10  # neighbours of mutual_knn
Measure = Callable[[np.ndarray, np.ndarray], float]
SHARE = 0.6  # of `halves.in_part`, for the directions of SVCCA, which two objects turn together
ENOUGH = 4  # objects to a direction, by SVCCA or PWCCA: else a half has hardly more than these


class PairCka(NamedTuple):
    """Debiased CKA of all pairs (sets, sets), bounds, and its jackknife values (samples, ...)."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    left_out: np.ndarray


def cka_pairs(states: list[np.ndarray], level: float = 0.95) -> PairCka:
    """Debiased linear CKA of every pair of representations of the same objects.

    states : arrays (samples, dim), dims may differ; the same objects in the same order. Equals
    `probe.cka.cka_interval` of each pair. Memory beside the states is one of them in float64, one
    block of Gram rows, a gigabyte at most, and the (samples, sets, sets) leave-one-out values.
    """
    from scipy.special import ndtri

    samples = {len(x) for x in states}
    if len(samples) != 1 or (n := samples.pop()) < 5:
        raise ValueError(f"sets of {[len(x) for x in states]} objects: need the same 5 or more")
    rows = np.empty((len(states), n))
    for at, x in enumerate(states):
        x = features(x, f"set {at}")
        rows[at] = x @ x.sum(axis=0) - np.einsum("sd,sd->s", x, x)
    both, crossed = np.empty((2, n, len(states), len(states)))
    step = min(n, max(1, BLOCK_BYTES // (8 * len(states) * n)))
    held = np.empty((step, len(states), n))
    for start in range(0, n, step):
        block = slice(start, min(start + step, n))
        grams = held[: block.stop - start]  # (block, sets, samples)
        for at, x in enumerate(states):
            x = features(x, f"set {at}")  # anew: those of all sets would take as much as the states
            np.matmul(x[block], x.T, out=grams[:, at])  # half the work where the block is all
        grams[np.arange(len(grams)), :, np.arange(n)[block]] = 0
        both[block] = grams @ grams.transpose(0, 2, 1)
        crossed[block] = grams @ rows.T
    first, second = _outer(rows.sum(axis=1))
    total = Sums(both.sum(axis=0), first, second, rows @ rows.T)
    mean = _from_sums(n, total)
    own, others = _outer(rows.T)
    without = Sums(
        total.inner - 2 * both,
        total.x - 2 * own,
        total.y - 2 * others,
        total.xy
        - rows.T[:, :, None] * rows.T[:, None]
        - crossed
        - crossed.transpose(0, 2, 1)
        + both,
    )
    left_out = _from_sums(n - 1, without)
    gap = left_out - left_out.mean(axis=0)
    half = ndtri((1 + level) / 2) * np.sqrt((gap**2).sum(axis=0) * (n - 1) / n)
    return PairCka(mean, mean - half, mean + half, left_out)


def cka_pairs_null(
    states: list[np.ndarray], permutations: int = 200, *, seed: int = 0
) -> np.ndarray:
    """Largest debiased CKA of all pairs of two sets, the objects of one in random order.

    states : two or more, as for `cka_pairs`. The maximum over a table of layers is above 0 by
    chance alone; this says by how much, (permutations,). Each order is dealt once, and gathered
    from the pairs of objects of all centred Gram matrices, which lie side by side in memory. With
    i before j, set j in that order beside set i is one draw; set i in it beside set j is the next:
    that is set j in the order turned back.

    Of more than 3,000 objects so many are drawn, whose null reaches higher: memory stays bounded,
    and what is above it is above that of all.
    """
    rng = np.random.default_rng(seed)
    if len(states[0]) > MOST:
        some = np.sort(rng.permutation(len(states[0]))[:MOST])
        states = [x[some] for x in states]
    n = len(states[0])
    first, second = np.triu_indices(n, 1)
    place = np.zeros((n, n), np.int32)
    place[first, second] = place[second, first] = np.arange(len(first))
    values = np.empty((len(first), len(states)), np.float32)
    for at, x in enumerate(states):
        centred = u_centred(gram(features(x, f"set {at}")))
        values[:, at] = centred[first, second] * (np.sqrt(2) / np.linalg.norm(centred))
    starts = range(0, len(first), PAIRS_AT_ONCE)
    still = [np.ascontiguousarray(values[start : start + PAIRS_AT_ONCE].T) for start in starts]
    above = np.triu_indices(len(states), 1)
    largest = []
    for _ in range(-(-permutations // 2)):
        order = rng.permutation(n)
        dealt = place.take(order, 0).take(order, 1)[first, second]
        found = np.zeros((len(states), len(states)))
        for start, block in zip(starts, still, strict=True):
            found += block @ values.take(dealt[start : start + PAIRS_AT_ONCE], 0)
        largest += [found[above].max(), found.T[above].max()]
    return np.array(largest[:permutations])


class Alike(NamedTuple):
    """Each of `ALIKE`, (measures,), and with groups of objects left out, (measures, groups)."""

    values: np.ndarray
    left_out: np.ndarray


def alike(
    x: np.ndarray, y: np.ndarray, *, k: int = SHARED, groups: int = GROUPS, seed: int = 0
) -> Alike:
    """Likenesses of two sets, in the order of `ALIKE`: see `probe.similarity`.

    x, y : (samples, dim). k is at most a third of the objects. Groups are those of
    `probe.dimension.shape`, so that models compare in pairs; 0 for the values alone. PWCCA is nan
    where there are no more objects than x or y is wide.

    What is left out of mutual_knn is reckoned from halves (`probe.halves`). PWCCA, whose error is
    up to a third too large by leaving out and up to a sixth too small by halves, is the mean of
    both where there are 4 objects to a dimension or more; with fewer its interval is too wide.
    Of SVCCA objects are left out in part: of its correlations in the directions of all objects, and
    of these. Where variance falls off slowly the number of directions changes with the objects, and
    SVCCA jumps: leaving out in part has two to three times the variance then, halves three quarters
    of it. It is the mean of both where halves have another number of directions than the whole, and
    4 objects to a direction or more.
    """
    k = max(1, min(k, len(x) // 3))
    group = np.random.default_rng([seed, 5]).permutation(len(x)) % max(groups, 1)
    near = [others(values, min(6 * k, len(x) - 2), "cosine") for values in (x, y)]

    narrow_x, narrow_y = narrow(x), narrow(y)

    def turned(measure: Measure, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return in_turn(lambda keep: measure(x[keep], y[keep]), group)

    enough = len(x) >= groups  # else each is a group, of which there may be no halves
    if enough:
        common = by_halves(lambda keep: _in_common(near, keep, reach(keep, k)), group, angular)
    else:
        common = in_turn(lambda keep: _in_common(near, keep, k), group)
    wide = max(x.shape[1], y.shape[1])
    if len(x) - np.bincount(group).max() * bool(groups) <= wide:
        weighted = np.full(len(common), np.nan)
    elif enough and len(x) >= ENOUGH * wide:
        halves = by_halves(lambda keep: pwcca(x[keep], y[keep]), group, angular)
        weighted = (turned(pwcca, x, y) + halves) / 2
    else:
        weighted = turned(pwcca, x, y)
    rotated = turned(procrustes_distance, narrow_x, narrow_y)
    straight = _straight(narrow_x, narrow_y, group, enough)
    values = np.stack([rotated, turned(rsa, x, y), common, straight, weighted])
    return Alike(values[:, 0], values[:, 1:])


def _straight(x: np.ndarray, y: np.ndarray, group: np.ndarray, enough: bool) -> np.ndarray:
    """SVCCA, whole and with each group left out, (1 + groups,). enough : for halves, of groups."""
    variates = canonical_variates(x, y)

    def correlated(keep: np.ndarray, among: np.ndarray) -> float:
        if not among.all():
            return svcca(x[keep], y[keep])
        return mean_correlation(*(part[keep] for part in variates))

    parts = in_part(correlated, group, SHARE)
    if not enough or len(x) < ENOUGH * variates[0].shape[1]:
        return parts
    numbers = set()  # of directions, in the whole and in its halves

    def of_half(keep: np.ndarray) -> float:
        one, other = principal_bases(x[keep], y[keep])
        numbers.add((one.shape[1], other.shape[1]))
        return canonical_correlations(one, other).mean()

    halves = by_halves(of_half, group, angular)
    return (parts + halves) / 2 if len(numbers) > 1 else parts


def _in_common(near: list[np.ndarray], keep: np.ndarray, k: int) -> float:
    """Mutual k-NN of the kept objects, from lists that are longer than k."""
    found = []
    for rows in near:
        gone = ~keep[rows[keep]]
        order = gone.argsort(axis=1, kind="stable")[:, :k]
        found.append(np.take_along_axis(rows[keep], order, axis=1))
    return float((found[0][:, :, None] == found[1][:, None]).any(axis=2).mean())


def _outer(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values (..., sets) of the first and of the second of each pair, (..., sets, sets)."""
    shape = (*values.shape, values.shape[-1])
    return np.broadcast_to(values[..., :, None], shape), np.broadcast_to(
        values[..., None, :], shape
    )


def _from_sums(n: int, sums: Sums) -> np.ndarray:
    own = Sums(*(np.diagonal(part, axis1=-2, axis2=-1) for part in sums))
    first, second = (Sums(*parts) for parts in zip(*(_outer(part) for part in own), strict=True))
    return debiased(n, sums, first, second)
