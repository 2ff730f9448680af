"""Neighbours in several orders at once: cosine, cosine about the gallery's mean, and distance.

All three follow from one product of the centred rows and terms of each row: with c = x - mean,
x'y = c_x'c_y + mean'c_x + mean'c_y + mean'mean, and lengths likewise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from probe.knn import SPARE, Rows, comparable, highest, products, rounding, row_blocks, settled

ORDERS = ("cosine", "centred cosine", "l2")


class Order(NamedTuple):
    """What ranks the gallery for a query: the distance of rows less `shift` times their weights.

    A product p of centred rows of size 1 and less ranks alike: the higher `p * scale + lift *
    slope + level` the nearer, but for gaps below `doubt`, which float32 can't tell from none.
    """

    shift: np.ndarray  # (dim,)
    gallery: np.ndarray  # weights, (gallery_samples,)
    query: np.ndarray  # weights, (query_samples,)
    scale: np.ndarray  # (gallery_samples,)
    lift: np.ndarray  # (query_samples,)
    slope: np.ndarray  # (gallery_samples,)
    level: np.ndarray  # (gallery_samples,)
    doubt: np.ndarray  # (query_samples,)


class Terms(NamedTuple):
    """Of each row x: its length, that of c = x - mean, and c'mean; (samples,) in float64."""

    length: np.ndarray
    own: np.ndarray
    along: np.ndarray


def nearest_by(gallery: Rows, query: Rows, k: int, orders: Sequence[str] = ORDERS) -> np.ndarray:
    """Rows of the k gallery samples nearest to each query, in each order: (orders, queries, k).

    gallery : (gallery_samples, dim)    query : (query_samples, dim)
    orders  : of "cosine"; "centred cosine", less the gallery's mean; and "l2"

    Equal to `probe.knn.nearest` of each, at the price of one: a float32 product by torch, on a GPU
    where there is one (FAISS gives one order a search and has no part in it), and float64 for what
    that leaves open. Equally near samples go in the order of the gallery.
    """
    comparable(gallery, query, k)
    mean = mean_row(gallery)
    far = _terms(gallery, mean)
    near = far if query is gallery else _terms(query, mean)
    unit = 1 / (far.own.max() or 1.0)
    ranks = [_order(name, far, near, mean, unit) for name in orders]
    count = min(k + SPARE, len(gallery))
    scores = np.empty((len(ranks), len(query), count), np.float32)
    rows = np.empty(scores.shape, np.int64)
    held = Centred(gallery, mean, unit)
    asked = held if query is gallery else Centred(query, mean, unit)
    for some, product in products(held, asked):
        for at, one in enumerate(ranks):
            scale, slope, level, lift = (
                product.new_tensor(part)
                for part in (one.scale, one.slope, one.level, one.lift[some])
            )
            ranked = level.addcmul(product, scale).addr_(lift, slope)
            scores[at, some], rows[at, some] = highest(ranked, count)
    each = zip(ranks, scores, rows, strict=True)
    return np.stack([_settled(gallery, query, *one, k) for one in each])


def mean_row(rows: Rows) -> np.ndarray:
    """(dim,) in float64, of rows read a block at a time."""
    return sum(rows[some].sum(axis=0, dtype=np.float64) for some in row_blocks(rows)) / len(rows)


class Centred:
    """(rows less mean) * unit in float32, made when sliced."""

    def __init__(self, rows: Rows, mean: np.ndarray, unit: float):
        self.shape = rows.shape
        self._parts = rows, mean, unit

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, some: slice) -> np.ndarray:
        rows, mean, unit = self._parts
        start, stop, _ = some.indices(len(rows))
        found = np.empty((stop - start, rows.shape[1]), np.float32)
        for block in row_blocks(found):
            found[block] = (rows[start + block.start : start + block.stop] - mean) * unit
        return found


def _terms(rows: Rows, mean: np.ndarray) -> Terms:
    found = Terms(*np.empty((3, len(rows))))
    for some in row_blocks(rows):
        block = rows[some].astype(np.float64)
        found.length[some] = np.linalg.norm(block, axis=1)
        block -= mean
        found.own[some] = np.linalg.norm(block, axis=1)
        found.along[some] = block @ mean
    return found


def _order(name: str, far: Terms, near: Terms, mean: np.ndarray, unit: float) -> Order:
    size, none = far.own * unit, np.zeros(len(far.own))
    shift, lift, slope, level, lost = mean, np.zeros(len(near.own)), none, none, 0.0
    if name == "l2":
        a, b = np.full(len(far.own), unit), np.full(len(near.own), unit)
        scale, level = none + 1, -(size**2) / 2
    elif name == "centred cosine":
        a, b = _inverse(far.own, "gallery"), _inverse(near.own, "query")
        scale = a / unit
    elif name == "cosine":
        a, b = _inverse(far.length, "gallery"), _inverse(near.length, "query")
        shift, scale, lift = np.zeros(len(mean)), a / unit, near.along * unit**2
        slope = scale - scale.mean()
        along = (far.along + mean @ mean) * unit * a  # mean'x / |x|
        level = along - along.mean()
        lost = rounding(len(mean), np.float64) * np.abs(along).max()  # where float64 gives out
        # rows that point nearly alike tie at the size of what still lies between them
        cosine = along / (np.linalg.norm(mean) * unit or 1.0)
        spread = np.sqrt(np.maximum(2 - 2 * cosine, 0).max()) or 1.0
        a, b = a / spread, b / spread
    else:
        raise ValueError(f"order {name!r}: must be one of {', '.join(ORDERS)}")
    largest = near.own * unit * (scale * size).max() + np.abs(lift) * np.abs(slope).max()
    doubt = rounding(len(mean)) * (largest + np.abs(level).max()) + lost
    return Order(shift, a, b, scale, lift, slope, level, doubt)


def _settled(
    gallery: Rows,
    query: Rows,
    order: Order,
    scores: np.ndarray,
    candidates: np.ndarray,
    k: int,
) -> np.ndarray:
    """The k nearest of the candidates, in float64 where their scores are too close to tell."""
    close = -np.diff(scores, axis=1) < order.doubt[:, None]
    found = candidates[:, :k]
    left = np.flatnonzero(close[:, :k].any(axis=1))

    def gap(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
        at = left[asked]
        far = (gallery[rows] - order.shift) * order.gallery[rows, None]
        return far - (query[at] - order.shift) * order.query[at, None]

    if len(left):
        found[left] = settled(gap, candidates[left], close[left], k, gallery.shape)
    return found


def _inverse(lengths: np.ndarray, name: str) -> np.ndarray:
    if not lengths.all():
        raise ValueError(f"{name} sample {int((lengths == 0).argmax())} is zero: it has no cosine")
    return 1 / lengths
