"""Nearest neighbours asked in other ways: does the answer hang on how one asks?

Preparation, pooling and metric change what a neighbour is; the protocol changes who is looked up
where. The default of the sweep is the raw mean token by cosine, gallery against query.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from probe.knn import Rows, nearest, vote
from probe.orders import mean_row, nearest_by
from probe.tokens import Tokens, blocks

PREPARATIONS = ("raw", "centred", "whitened")
POOLINGS = ("mean", "max", "concatenated", "vote")
METRICS = ("cosine", "l2")
DEFAULT = {"preparation": "raw", "pooling": "mean", "metric": "cosine"}
HELD = 0.99  # of the gallery's variance, in the directions that are whitened
FITTED = 2048  # gallery objects at most that directions are fitted on, where there are more
SPLITS = 20
SPARE = 16  # neighbours beyond twice k, as a tenth of them are asked about themselves
SHARE = 0.1  # of the test objects that are asked about in test90_10


class Variants(NamedTuple):
    """hits (preparation, pooling, metric, k, queries) of bool; rank (pooling,) whitened to.

    by_token (tokens, queries) : the largest k, of one token alone, as it stands and by cosine
    """

    hits: np.ndarray
    rank: np.ndarray
    by_token: np.ndarray


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
    tokens: Tokens,
    labels: np.ndarray,
    gallery: np.ndarray,
    query: np.ndarray,
    *,
    k: tuple[int, ...] = (1, 10),
) -> Variants:
    """Which queries each way of asking gets right. Reads a block of objects or a token at a time.

    tokens  : (samples, tokens, dim)    labels : (samples,)
    gallery, query : rows of these

    preparation : as it stands; less the gallery's mean; or in the gallery's principal directions
                  that hold 99 % of its variance, each scaled to 1. All of it is fitted on the
                  gallery, after the pooling; the directions of more dimensions than objects on
                  2,048 of them, evenly from all of it, where there are more.
    pooling     : mean or largest value over the tokens; all tokens end to end; or a vote, in
                  which each token brings the k nearest of its own position (whitened as one
                  set). The last two need tokens that mean the same in all objects, as a
                  Q-Former's queries do.
    """
    hits = np.empty((len(PREPARATIONS), len(POOLINGS), len(METRICS), len(k), len(query)), bool)
    rank = np.zeros(len(POOLINGS), int)
    for j, pooling in enumerate(POOLINGS):
        if pooling == "vote":
            found, rank[j] = _by_place(tokens, gallery, query, max(k))
        else:
            far, near = (_pooled(tokens, rows, pooling) for rows in (gallery, query))
            found, rank[j] = _by_object(far, near, max(k))
        near_labels = labels[gallery][found]  # (preparations, metrics, queries, places, k)
        for i, m in np.ndindex(len(PREPARATIONS), len(METRICS)):
            for at, count in enumerate(k):
                named = vote(near_labels[i, m, ..., :count].reshape(len(query), -1))
                hits[i, j, m, at] = named == labels[query]
        if pooling == "vote":
            alone = near_labels[0, 0].swapaxes(0, 1)  # (places, queries, k)
            by_token = np.stack([vote(one) == labels[query] for one in alone])
    return Variants(hits, rank, by_token)


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


class EndToEnd:
    """All tokens of some objects, one after the other: (samples, tokens * dim), read by rows."""

    def __init__(self, tokens: Tokens, rows: np.ndarray):
        self.shape = (len(rows), tokens.shape[1] * tokens.shape[2])
        self._tokens, self._rows = tokens, rows

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice | np.ndarray) -> np.ndarray:
        rows = self._rows[some]
        return self._tokens[rows].reshape(len(rows), -1)


def _pooled(tokens: Tokens, rows: np.ndarray, pooling: str) -> Rows:
    """(rows, dim)."""
    if pooling == "mean":
        return tokens.pooled[rows]
    if pooling == "concatenated":
        return EndToEnd(tokens, rows)
    parts = blocks(len(rows), tokens.shape)
    return np.concatenate([tokens[rows[some]].max(axis=1) for some in parts])


def _by_object(gallery: Rows, query: Rows, k: int) -> tuple[np.ndarray, int]:
    """Nearest rows of the gallery, (preparations, metrics, queries, 1, k), and rank whitened to."""
    found = nearest_by(gallery, query, k)
    white = _whitened(gallery, query)
    return _ways(found, white, k)[..., None, :], white[0].shape[1]


def _by_place(
    tokens: Tokens, gallery: np.ndarray, query: np.ndarray, k: int
) -> tuple[np.ndarray, int]:
    """The same of each token by its place, (preparations, metrics, queries, places, k)."""
    places = range(tokens.shape[1])
    mean = mean_row(EndToEnd(tokens, gallery)).reshape(tokens.shape[1:])
    scatter = np.zeros((tokens.shape[2], tokens.shape[2]))
    for some in blocks(len(gallery), tokens.shape):
        centred = (tokens[gallery[some]] - mean).reshape(-1, tokens.shape[2])
        scatter += centred.T @ centred
    values, vectors = _leading(scatter)
    basis = vectors * np.sqrt(len(gallery) * len(places) / values)
    found = []
    for at in places:
        own = tokens.place(at)
        white = (own - mean[at]) @ basis
        near = nearest_by(own[gallery], own[query], k)
        found.append(_ways(near, (white[gallery], white[query]), k))
    return np.stack(found, axis=3), len(values)


def _ways(found: np.ndarray, white: tuple[np.ndarray, np.ndarray], k: int) -> np.ndarray:
    """(preparations, metrics, queries, k): a shift moves no distance, whitened states are centred.

    found : by cosine, centred cosine and distance, (3, queries, k)
    """
    cosine, centred, l2 = found
    return np.array([[cosine, l2], [centred, l2], nearest_by(*white, k, ("cosine", "l2"))])


def _whitened(gallery: Rows, query: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Both less the gallery's mean in its leading directions, (samples, rank), variance 1."""
    mean = mean_row(gallery)
    samples, dim = gallery.shape
    fitted = np.linspace(0, samples - 1, min(samples, FITTED)).round().astype(int)
    if len(fitted) < dim:  # directions from the smaller Gram matrix
        far, near = (_products(rows, gallery, fitted, mean) for rows in (gallery, query))
        values, vectors = _leading(far[fitted])
        basis = vectors * (np.sqrt(len(fitted)) / values)
    else:
        far, near = gallery[:] - mean, query[:] - mean
        values, vectors = _leading(far.T @ far)
        basis = vectors * np.sqrt(samples / values)
    return far @ basis, near @ basis


def _products(rows: Rows, gallery: Rows, fitted: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of rows with some of the gallery, both less the mean: (rows, fitted)."""
    found = np.empty((len(rows), len(fitted)))
    for some in blocks(len(fitted), gallery.shape):
        far = (gallery[fitted[some]] - mean).T
        for part in blocks(len(rows), rows.shape):
            found[part, some] = (rows[part] - mean) @ far
    return found


def _leading(scatter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, the largest first, that make up 99 % of all, and their vectors (dim, rank)."""
    values, vectors = np.linalg.eigh(scatter)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values) / values.sum(), HELD - 1e-12)) + 1
    return values[:kept], vectors[:, :kept]
