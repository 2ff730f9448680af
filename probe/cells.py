"""What one layer of one model gives: scores object by object, before any mean or interval.

Each function takes the objects, the tokens of one layer and the settings,
and returns named arrays: these are what is cached, sent between machines and put together.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr

from probe import cka, controls, dimension, geometry, hubness, knn, outliers
from probe.drift import Drift, drift_parts
from probe.linear import linear_probe
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
    if outliers.massive_tokens(tokens.norms).any():
        found = _neighbours(data, _without_massive(tokens), max(ask.k))
        cell["hits_without"] = knn.vote(data.labels[data.gallery][found]) == asked
    return cell


def drift_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """`cka` (mean, low, high), `cka_left_out` (queries,), and the parts of `Drift`, (queries,).

    `cka_standardised` and its `_left_out` the same of dimensions that all have the same spread, and
    `encoder_cka` with the encoder's output, where that is there. Massive tokens are left out of
    the mean in `cka_without` (mean, low, high), and of `centred` in `centred_without` (queries,).
    """
    pooled, target = (x.pooled[data.query] for x in (tokens, data.target))
    alike = without = cka.cka_interval(pooled, target)
    massive = outliers.massive_tokens(tokens.norms)[data.query]
    if massive.any():
        without = cka.cka_interval(_without_massive(tokens)[data.query], target)
    parts = drift_parts(
        tokens, data.target, "ridge", gallery=data.gallery, query=data.query, seed=ask.seed
    )
    one, other = (_standardised(x.pooled, data) for x in (tokens, data.target))
    likeness = {"cka": alike, "cka_standardised": cka.cka_interval(one, other)}
    if data.encoder is not None:
        likeness["encoder_cka"] = cka.cka_interval(pooled, data.encoder[data.query])
    return {
        **{key: np.array([one.mean, one.low, one.high]) for key, one in likeness.items()},
        **{f"{key}_left_out": one.left_out for key, one in likeness.items()},
        "cka_without": np.array([without.mean, without.low, without.high]),
        **{name: part for name, part in zip(Drift._fields, parts, strict=True)},
        "centred_without": outliers.mean_without(parts.by_token[..., None], massive)[:, 0],
    }


def dimension_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """The shape of the query objects' mean tokens, and the tokens and directions that stand out.

    `values` (statistics,), `left_out` (statistics, groups), `diversity` (queries,),
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
    return {
        "values": found.values,
        "left_out": found.left_out,
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
    of its code `bits` a label, `bits_left_out` (groups,) with groups of objects left out, and
    `curve` (mean, low and high; blocks) by the objects that came before, `seen` (blocks,).
    """
    states = tokens.pooled
    found = linear_probe(
        states[data.gallery],
        data.labels[data.gallery],
        states[data.query],
        data.labels[data.query],
        groups=data.groups[data.gallery],
        shuffles=SHUFFLES,
        mdl=True,
        level=LEVEL,
        seed=ask.seed,
    )
    assert found.code is not None
    names = [name for name in found.__dataclass_fields__ if name != "code"]
    parts = {name: np.array(getattr(found, name)) for name in names}
    code = found.code
    compression = np.array([code.compression, code.low, code.high])
    bits = {"bits": code.lengths.mean(), "bits_left_out": code.left_out}
    curve = {"seen": code.seen, "curve": np.array(code.curve)}
    return parts | {"compression": compression} | bits | curve


def geometry_cell(data: Objects, tokens: Tokens, ask: Settings) -> Cell:
    """What `geometry_probe` returns, over properties."""
    assert data.properties is not None
    states = tokens.pooled
    found = geometry.geometry_probe(
        states[data.gallery],
        data.properties.isel(sample=data.gallery),
        states[data.query],
        data.properties.isel(sample=data.query),
        groups=data.groups[data.gallery],
        shuffles=SHUFFLES,
        level=LEVEL,
        seed=ask.seed,
    )
    return {str(name): values.values for name, values in found.data_vars.items()}


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
    """`states`: the query objects' mean tokens; and likeness to the target: see `pairs.alike`,
    `drift_procrustes` (queries,), centred, through an orthogonal map fitted on the gallery;
    `shuffled` (shuffles, likenesses), the same with the target's objects shuffled (SVCCA and PWCCA
    of a few objects are high by chance); `cka_rbf` (mean, low, high), its `_left_out` (queries,)
    and `_shuffled` (shuffles,); `biased` with its `floor`, and `null`, what CKA of shuffled objects
    reaches.
    """
    from probe.pairs import alike

    pooled, target = (x.pooled[data.query] for x in (tokens, data.target))
    found = alike(pooled, target, seed=ask.seed)
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
        "states": pooled,
        "values": found.values,
        "left_out": found.left_out,
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


def _without_massive(tokens: Tokens) -> np.ndarray:
    """The mean token of each object but for its massive ones, (samples, dim)."""
    massive, mean = outliers.massive_tokens(tokens.norms), tokens.pooled.copy()
    few = np.flatnonzero(massive.any(axis=1))
    mean[few] = outliers.mean_without(tokens[few], massive[few])
    return mean


def _neighbours(data: Objects, pooled: np.ndarray, k: int) -> np.ndarray:
    knn.check_they_differ(pooled[data.gallery])
    return knn.nearest(pooled[data.gallery], pooled[data.query], k)
