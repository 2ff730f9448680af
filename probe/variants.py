"""Nearest neighbours asked in other ways: does the answer hang on how one asks?

Preparation, pooling and metric change what a neighbour is; the protocol changes who is looked up
where. The default of the sweep is the raw mean token by cosine, gallery against query.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from probe.knn import nearest, vote
from probe.orders import nearest_by

PREPARATIONS = ("raw", "centred", "whitened")
POOLINGS = ("mean", "max", "concatenated", "vote")
METRICS = ("cosine", "l2")
DEFAULT = {"preparation": "raw", "pooling": "mean", "metric": "cosine"}
HELD = 0.99  # of the gallery's variance, in the directions that are whitened
SPLITS = 20
SPARE = 16  # neighbours beyond twice k, as a tenth of them are asked about themselves
SHARE = 0.1  # of the test objects that are asked about in test90_10


class Variants(NamedTuple):
    """hits (preparation, pooling, metric, k, queries) of bool; rank (pooling,) whitened to."""

    hits: np.ndarray
    rank: np.ndarray


class Protocols(NamedTuple):
    """Accuracies among the query objects alone: loo (k, queries) of bool, test90_10 (k, splits).

    right (k, queries) and asked (queries,) : in how many of the splits of test90_10 an object was
    asked about, and was right.
    """

    loo: np.ndarray
    test90_10: np.ndarray
    right: np.ndarray
    asked: np.ndarray


def knn_variants(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: tuple[int, ...] = (1, 10),
) -> Variants:
    """Which queries each way of asking gets right. gallery, query : (samples, tokens, dim).

    preparation : as it stands; less the gallery's mean; or in the gallery's principal directions
                  that hold 99 % of its variance, each scaled to 1. All of it is fitted on the
                  gallery, after the pooling.
    pooling     : mean or largest value over the tokens; all tokens end to end; or a vote, in
                  which each token brings the k nearest of its own position (whitened as one
                  set). The last two need tokens that mean the same in all objects, as a
                  Q-Former's queries do.
    """
    hits = np.empty((len(PREPARATIONS), len(POOLINGS), len(METRICS), len(k), len(query)), bool)
    rank = np.zeros(len(POOLINGS), int)
    for j, pooling in enumerate(POOLINGS):
        far, near = _pooled(gallery, pooling), _pooled(query, pooling)  # (samples, places, dim)
        cosine, centred, l2 = _by_place(far, near, max(k), ("cosine", "centred cosine", "l2"))
        far, near = _whitened(far, near)
        rank[j] = far.shape[2]
        white, white_l2 = _by_place(far, near, max(k), ("cosine", "l2"))
        # (preparations, metrics): a shift moves no distance, and whitened states are centred
        found = [[cosine, l2], [centred, l2], [white, white_l2]]
        for i, m in np.ndindex(len(PREPARATIONS), len(METRICS)):
            for at, count in enumerate(k):
                labels = gallery_labels[found[i][m][:, :, :count]].reshape(len(query), -1)
                hits[i, j, m, at] = vote(labels) == query_labels
    return Variants(hits, rank)


def knn_protocols(
    states: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    k: tuple[int, ...] = (1, 10),
    splits: int = SPLITS,
    seed: int = 0,
) -> Protocols:
    """Protocols that use the test objects only. states : (samples, dim), of the query objects.

    loo       : every object against all others but its copies (same group)
    test90_10 : a random tenth, rounded up, against the rest, less copies, over many splits;
                one such split is what published accuracies such as 85.43 % = 211 of 247 betray
    """
    rows = np.arange(len(states))
    k = tuple(min(count, len(rows) - 1) for count in k)
    near = _others(states, groups, k)
    loo = [vote(labels[near[:, :count]]) == labels for count in k]
    share = np.empty((len(k), splits))
    right, times = np.zeros((len(k), len(rows)), int), np.zeros(len(rows), int)
    for split in range(splits):
        order = np.random.default_rng([seed, 11, split]).permutation(rows)
        asked = order[: int(np.ceil(SHARE * len(rows)))]
        gone = np.isin(groups, groups[asked])
        found = _remaining(states, near[asked], asked, gone, max(k))
        for at, count in enumerate(k):
            hits = vote(labels[found[:, :count]]) == labels[asked]
            share[at, split] = hits.mean()
            right[at, asked] += hits
        times[asked] += 1
    return Protocols(np.stack(loo), share, right, times)


def ways() -> list[tuple[str, str, str]]:
    """All (preparation, pooling, metric)."""
    return list(product(PREPARATIONS, POOLINGS, METRICS))


def _others(states: np.ndarray, groups: np.ndarray, k: tuple[int, ...]) -> np.ndarray:
    """Nearest objects of another group, nearest first, more of them than any k: (samples, count).

    One list serves every k, leaving one out, and every split: see `_remaining`.
    """
    most = int(np.bincount(np.unique(groups, return_inverse=True)[1]).max())
    if max(k) + most > len(states):
        raise ValueError(f"k={max(k)} of {len(states)} objects with up to {most} copies: too many")
    count = min(2 * max(k) + SPARE, len(states) - most)
    found = nearest_by(states, states, count + most, ("cosine",))[0]
    own = groups[found] == groups[:, None]
    order = own.argsort(axis=1, kind="stable")[:, :count]  # copies last, by id, not by distance
    return np.take_along_axis(found, order, axis=1)


def _remaining(
    states: np.ndarray, near: np.ndarray, asked: np.ndarray, gone: np.ndarray, k: int
) -> np.ndarray:
    """The k nearest objects that are not gone, (asked, k), from lists `near` of all of them.

    gone : (samples,) of bool. A list that too few are left of is made anew from those there are.
    """
    rest = np.flatnonzero(~gone)
    k = min(k, len(rest))
    out = gone[near]
    order = out.argsort(axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(near, order, axis=1)
    short = (~out).sum(axis=1) < k
    if short.any():
        found[short] = rest[nearest(states[rest], states[asked[short]], k)]
    return found


def _by_place(
    gallery: np.ndarray, query: np.ndarray, k: int, orders: tuple[str, ...]
) -> np.ndarray:
    """Nearest rows of the gallery at each place, (orders, queries, places, k)."""
    places = range(gallery.shape[1])
    return np.stack([nearest_by(gallery[:, t], query[:, t], k, orders) for t in places], axis=2)


def _pooled(tokens: np.ndarray, pooling: str) -> np.ndarray:
    """(samples, places, dim): one place, or one a token for the vote."""
    if pooling == "vote":
        return tokens
    if pooling == "concatenated":
        return tokens.reshape(len(tokens), 1, -1)
    pooled = tokens.mean(axis=1, dtype=np.float64) if pooling == "mean" else tokens.max(axis=1)
    return pooled[:, None]


def _whitened(gallery: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = gallery.mean(axis=0, dtype=np.float64)
    gallery, query = gallery - mean, query - mean
    rows = gallery.reshape(-1, gallery.shape[-1])
    if len(rows) < rows.shape[1]:  # directions from the smaller Gram matrix
        values, vectors = np.linalg.eigh(rows @ rows.T)
        values, vectors = values[::-1], rows.T @ vectors[:, ::-1]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), np.finfo(float).tiny)
    else:
        values, vectors = np.linalg.eigh(rows.T @ rows)
        values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values) / values.sum(), HELD - 1e-12)) + 1
    basis = vectors[:, :kept] * np.sqrt(len(rows) / values[:kept])
    return gallery @ basis, query @ basis
