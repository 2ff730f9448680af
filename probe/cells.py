"""What one layer of one model gives: scores object by object, before any mean or interval.

Each function takes the objects, the tokens of one layer and the settings,
and returns named arrays: these are what is cached, sent between machines and put together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe import cka, controls, dimension, geometry, hubness, knn, outliers
from probe.drift import Drift, drift_parts
from probe.linear import LinearProbe, learning_curve, linear_probe
from probe.tokens import Tokens, blocks
from probe.variants import knn_protocols, knn_variants

SHUFFLES = 10
FEW = 3  # shuffles of what hardly differs between them
LEVEL = 0.95
TARGET, ENCODER = ("target", 0), ("encoder", 0)  # places of what the layers are read against
Cell = dict[str, np.ndarray]


class Objects(NamedTuple):
    """What all layers share: labels, targets, and which rows are asked about."""

    samples: int
    labels: np.ndarray  # (samples,)
    gallery: np.ndarray  # rows
    query: np.ndarray  # rows
    copies: tuple[int, int]  # left out of the gallery, and of the query
    target: Tokens  # (samples, tokens, target_dim)
    groups: np.ndarray  # (samples,), one number for copies and near-copies of an object
    encoder: np.ndarray | None = None  # (samples, encoder_dim), where it was captured
    properties: xr.Dataset | None = None  # (sample,) each


class Settings(NamedTuple):
    """What a probe may be asked for."""

    k: tuple[int, ...]
    seed: int


def knn_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """`hits` (k, queries), `shuffled` (shuffles, k), and `named` (queries,) by the largest k.

    `hits_without` leaves massive tokens out of the mean. `hubness` (k,) of the gallery objects
    found, and `hubness_left_out` (k, groups).
    """
    asked = data.labels[data.query]
    found = _neighbours(data, tokens.pooled, max(ask.k))
    near = data.labels[data.gallery][found]
    dealt = controls.shuffled_labels(data.labels[data.gallery], shuffles=SHUFFLES, seed=ask.seed)
    shuffled = [[np.mean(knn.vote(one[found[:, :k]]) == asked) for k in ask.k] for one in dealt]
    named = [knn.vote(near[:, :k]) for k in ask.k]
    hubs = [hubness.hubness(found[:, :k], len(data.gallery), seed=ask.seed) for k in ask.k]
    cell = {
        "hubness": np.stack([one.value for one in hubs]),
        "hubness_left_out": np.stack([one.left_out for one in hubs]),
        "hits": np.stack(named) == asked,
        "shuffled": np.array(shuffled),
        "named": named[-1],
        "hits_without": (np.stack(named) == asked)[-1],
    }
    if (without := _without_massive(tokens)) is not None:
        found = _neighbours(data, without, max(ask.k))
        cell["hits_without"] = knn.vote(data.labels[data.gallery][found]) == asked
    return cell


def drift_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """`cka` (mean, low, high), `cka_left_out` (queries,), and the parts of `Drift`, (queries,).

    `cka_standardised` and its `_left_out` the same of dimensions that all have the same spread,
    which massive tokens have no part in, and
    `encoder_cka` with the encoder's output, where that is there; and `cka_without_massive` with
    massive tokens left out of the mean. Nothing of `centred_without` and its control
    `centred_random_without` (queries,) is fitted on them nor averaged over them.
    """
    pooled, target = (x.pooled[data.query] for x in (tokens, data.target))
    alike = cka.cka_interval(pooled, target)
    rest, without = _without_massive(tokens), alike
    asked: dict[str, Any] = {"gallery": data.gallery, "query": data.query, "seed": ask.seed}
    parts = left = drift_parts(tokens, data.target, "ridge", **asked)
    if rest is not None:
        without = cka.cka_interval(rest[data.query], target)
        massive = outliers.massive_tokens(tokens.norms)
        left = drift_parts(tokens, data.target, "ridge", left_out=massive, **asked)
    one = _standardised(tokens.pooled if rest is None else rest, data)
    other = _standardised(data.target.pooled, data)
    likeness = {"cka": alike, "cka_standardised": cka.cka_interval(one, other)}
    likeness["cka_without_massive"] = without
    if data.encoder is not None:
        likeness["encoder_cka"] = cka.cka_interval(pooled, data.encoder[data.query])
    return {
        **{key: np.array([one.mean, one.low, one.high]) for key, one in likeness.items()},
        **{f"{key}_left_out": one.left_out for key, one in likeness.items()},
        **{name: part for name, part in zip(Drift._fields, parts, strict=True)},
        "centred_without": left.centred,
        "centred_random_without": left.centred_random,
    }


def dimension_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """The shape of the query objects' mean tokens, and the tokens and directions that stand out.

    `values` (statistics,), `left_out` (statistics, groups), and both `_without` massive tokens;
    `diversity` (queries,),
    `thinned` (objects, mean and spread; sizes), `dropped` () objects that are copies of another,
    `massive` (tokens,) share of the objects in which this token is massive, `largest_norm` (),
    `top_variance` (1, 3 and 10 dimensions), and `shuffled` (shuffles, statistics): each
    dimension dealt out among the objects on its own, which leaves no direction but the axes.
    """
    pooled = tokens.pooled[data.query]
    found = dimension.shape(pooled, seed=ask.seed)
    rng = np.random.default_rng([ask.seed, 7])
    dealt = [
        dimension.shape(rng.permuted(pooled, axis=0), groups=0, seed=ask.seed).values
        for _ in range(FEW)
    ]
    several = tokens.shape[1] > 1  # one token has no other to be unlike
    rest = _without_massive(tokens)
    other = found if rest is None else dimension.shape(rest[data.query], seed=ask.seed)
    return {
        "values": found.values,
        "left_out": found.left_out,
        "values_without": other.values,
        "left_out_without": other.left_out,
        "thinned": np.array(dimension.thinned(pooled, seed=ask.seed)),
        "dropped": np.array(len(pooled) - len(np.unique(pooled, axis=0))),
        "shuffled": np.array(dealt),
        **({"diversity": _diversity(tokens, data.query)} if several else {}),
        "massive": outliers.massive_tokens(tokens.norms).mean(axis=0),
        "largest_norm": np.array(outliers.largest_norm(tokens.norms)),
        "top_variance": outliers.top_variance(pooled),
    }


def linear_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """The fields of `LinearProbe`, intervals as (mean, low, high); `compression` likewise, and
    of its code `bits` a label and `bits_left_out` (groups,) with groups of objects left out; those
    of `LearningCurve`; and `hits_without` massive tokens.
    """
    known, wanted = data.labels[data.gallery], data.labels[data.query]
    alike: dict[str, Any] = {"groups": data.groups[data.gallery], "seed": ask.seed}

    def read(states: np.ndarray, **more: Any) -> LinearProbe:
        return linear_probe(
            states[data.gallery], known, states[data.query], wanted, level=LEVEL, **alike, **more
        )

    states = tokens.pooled
    found = read(states, shuffles=SHUFFLES, mdl=True)
    code = found.code
    assert code is not None
    names = [name for name in found.__dataclass_fields__ if name != "code"]
    curve = learning_curve(states[data.gallery], known, states[data.query], wanted, **alike)
    without = _without_massive(tokens)
    other = found if without is None else read(without, shuffles=1)
    return {
        **{name: np.array(getattr(found, name)) for name in names},
        "compression": np.array([code.compression, code.low, code.high]),
        "bits": code.lengths.mean(),
        "bits_left_out": code.left_out,
        "fitted": curve.fitted,
        "curve": curve.hits,
        "spread": curve.spread,
        "hits_without": other.hits,
    }


def geometry_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """What `geometry_probe` returns, over properties; and without massive tokens `without` (mean,
    low and high; properties) and `error_without` (properties, queries).
    """
    assert data.properties is not None
    known, wanted = (data.properties.isel(sample=rows) for rows in (data.gallery, data.query))

    def read(states: np.ndarray, shuffles: int) -> xr.Dataset:
        return geometry.geometry_probe(
            states[data.gallery],
            known,
            states[data.query],
            wanted,
            groups=data.groups[data.gallery],
            shuffles=shuffles,
            level=LEVEL,
            seed=ask.seed,
        )

    found = read(tokens.pooled, SHUFFLES)
    without = _without_massive(tokens)
    other = found if without is None else read(without, 1)
    parts = {str(name): values.values for name, values in found.data_vars.items()}
    three = np.array([other[part].values for part in ("mean", "low", "high")])
    return parts | {"without": three, "error_without": other["error"].values}


def variants_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """Neighbours asked otherwise: see `probe.variants`."""
    knn.check_they_differ(tokens.pooled[data.gallery])
    found = knn_variants(tokens, data.labels, data.gallery, data.query, k=ask.k)
    protocols = knn_protocols(
        tokens.pooled[data.query],
        data.labels[data.query],
        data.groups[data.query],
        k=ask.k,
        seed=ask.seed,
    )
    return found._asdict() | protocols._asdict()


def similarity_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """`states`: the query objects' mean tokens; and likeness to the target: see `pairs.alike`, of
    which `values` and `left_out` are given `_without` massive tokens, too;
    `drift_procrustes` (queries,), centred, through an orthogonal map fitted on the gallery;
    `shuffled` (shuffles, likenesses), the same with the target's objects shuffled (SVCCA and PWCCA
    of a few objects are high by chance); `cka_rbf` (mean, low, high), its `_left_out` (queries,)
    and `_shuffled` (shuffles,); `biased` with its `floor`, and `null`, what CKA of shuffled objects
    reaches.
    """
    from probe.pairs import alike

    pooled, target = (x.pooled[data.query] for x in (tokens, data.target))
    found, rest = alike(pooled, target, seed=ask.seed), _without_massive(tokens)
    other = found if rest is None else alike(rest[data.query], target, seed=ask.seed)
    rng = np.random.default_rng([ask.seed, 13])
    orders = [rng.permutation(len(target)) for _ in range(FEW)]
    dealt = [alike(pooled, target[order], groups=0).values for order in orders]
    rbf = cka.cka_interval(pooled, target, "rbf")
    null = cka.cka_null(pooled, target, seed=ask.seed)
    turned = drift_parts(
        tokens, data.target, "procrustes", gallery=data.gallery, query=data.query, seed=ask.seed
    )
    return {
        "drift_procrustes": turned.centred,
        "states": pooled.astype(np.float32),
        "values": found.values,
        "left_out": found.left_out,
        "values_without": other.values,
        "left_out_without": other.left_out,
        "shuffled": np.array(dealt),
        "cka_rbf": np.array([rbf.mean, rbf.low, rbf.high]),
        "cka_rbf_left_out": rbf.left_out,
        "cka_rbf_shuffled": np.array([cka.cka(pooled, target[one], "rbf") for one in orders]),
        "biased": np.array(cka.cka(pooled, target, unbiased=False)),
        "floor": np.array(cka.biased_floor(len(pooled), pooled.shape[1], target.shape[1])),
        "null": np.array(np.quantile(null, LEVEL)),
    }


CELLS: dict[str, Callable[[Objects, Tokens, Settings], Cell]] = {
    "knn": knn_cell,
    "drift": drift_cell,
    "dimension": dimension_cell,
    "linear": linear_cell,
    "geometry": geometry_cell,
    "variants": variants_cell,
    "similarity": similarity_cell,
}


def _diversity(tokens: Tokens, rows: np.ndarray) -> np.ndarray:
    parts = [
        dimension.token_diversity(tokens[rows[some]]) for some in blocks(len(rows), tokens.shape)
    ]
    return np.concatenate(parts)


def _standardised(states: np.ndarray, data: Objects) -> np.ndarray:
    """The query rows of (samples, dim), by the gallery's mean and spread in each dimension.

    A dimension that does not vary in the gallery is 0.
    """
    gallery = states[data.gallery]
    mean = gallery.mean(axis=0)
    gallery -= mean  # in place: of many objects it is large
    spread = np.sqrt(np.einsum("sd,sd->d", gallery, gallery) / len(gallery))
    varies = spread > 1e-12 * np.abs(mean)  # above the rounding of a constant
    return (states[data.query] - mean) / np.where(varies, spread, np.inf)


def _without_massive(tokens: Tokens) -> np.ndarray | None:
    """The mean token of each object but for its massive ones, (samples, dim); None without any."""
    massive = outliers.massive_tokens(tokens.norms)
    if not massive.any():
        return None
    mean = tokens.pooled.copy()
    few = np.flatnonzero(massive.any(axis=1))
    mean[few] = outliers.mean_without(tokens[few], massive[few])
    return mean


def _neighbours(data: Objects, pooled: np.ndarray, k: int) -> np.ndarray:
    knn.check_they_differ(pooled[data.gallery])
    return knn.nearest(pooled[data.gallery], pooled[data.query], k)
