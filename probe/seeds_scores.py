"""What a sweep's measures are means of, object by object: several runs are put together by it.

What is no mean over objects, as CKA or a dimension, is told by the jackknife's pseudo-values: what
each object, or each group of them, adds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from probe import cka, pairs, sweep
from probe.cells import ENCODER, TARGET, Cell, Objects
from probe.dimension import STATISTICS
from probe.pairs import ALIKE
from probe.sheet_states import LIKENESS_RANGES

Own = Callable[[Cell, Objects], np.ndarray]
ANY, ABOVE, R2 = (-np.inf, np.inf), (0.0, np.inf), (-np.inf, 1.0)
SHARE, SIGNED, COSINE = (0.0, 1.0), (-1.0, 1.0), (0.0, 2.0)
WAYS = ("preparation", "pooling", "metric", "k")


class Score(NamedTuple):
    """Where a measure's cells have what it is a mean of."""

    probe: str
    own: Own
    """What each object adds to the mean, (*extra, objects)."""
    extra: tuple[str, ...] = ()
    inside: tuple[float, float] = ANY
    """What it can be, which its interval does not leave: with two seeds it may be wide."""
    hits: bool = False
    """Whether the mean is a count of objects, of two such the difference, or hardly finer."""


class Parts(NamedTuple):
    """What each object adds. models (variants, *extra, layers, objects), and of the references,
    where a sweep has them: target, encoder (*extra, objects).
    """

    models: np.ndarray
    target: np.ndarray | None
    encoder: np.ndarray | None


def _of(part: str) -> Own:
    return lambda cell, _: cell[part]


def _cka(key: str) -> Own:
    """key : a part (mean, low, high), beside which there is KEY_left_out."""
    return lambda cell, _: cka.own_parts(cell[key][0], cell[f"{key}_left_out"])


def _jackknifed(value: str, left_out: str, at: int | None = None) -> Own:
    """at : place among several statistics of a part."""
    where = ... if at is None else at
    return lambda cell, _: cka.own_parts(cell[value][where], cell[left_out][where])


def _of_class(cell: Cell, data: Objects) -> np.ndarray:
    """Hits of the largest k, (queries,): each is of one class, by which the sheet parts them."""
    return cell["named"] == data.labels[data.query]


def _of_times_asked(cell: Cell, _: Objects) -> np.ndarray:
    """Linearised (Cochran 1977, section 3.12), as an object may be asked about several times."""
    right, asked = cell["right"], cell["asked"]
    share = right.sum(axis=-1, keepdims=True) / asked.sum()
    return share + (right - share * asked) / asked.mean()


def _explained(part: str) -> Own:
    """Linearised R^2 of each property, (properties, queries): a ratio of two means over objects.

    part : squared errors in units of the variance
    """

    def own(cell: Cell, data: Objects) -> np.ndarray:
        assert data.properties is not None
        values = np.stack([one.values[data.query] for one in data.properties.data_vars.values()])
        apart = (values - values.mean(axis=1, keepdims=True)) ** 2
        lost = cell[part].mean(axis=1, keepdims=True)
        return 1 - lost - cell[part] + lost * apart / apart.mean(axis=1, keepdims=True)

    return own


def _above_control(cell: Cell, _: Objects) -> np.ndarray:
    return cell["hits"] - cell["control_hits"]


def _compressed(cell: Cell, _: Objects) -> np.ndarray:
    value = cell["compression"][0]
    return cka.own_parts(value, value * cell["bits"] / cell["bits_left_out"])


def _gained(cell: Cell, _: Objects) -> np.ndarray:
    return cell["curve"][-1] - cell["curve"][-2]


def _above_mean_token(cell: Cell, _: Objects) -> np.ndarray:
    usual = cell["hits"][0, 0, 0, -1]  # as it stands, its mean token, by cosine
    return cell["by_token"].astype(float) - usual


SCORES = {
    "knn": Score("knn", _of("hits"), ("k",), SHARE, hits=True),
    "cka": Score("drift", _cka("cka"), (), SIGNED),
    "encoder_cka": Score("drift", _cka("encoder_cka"), (), SIGNED),
    "drift": Score("drift", _of("plain"), (), COSINE),
    "drift_centred": Score("drift", _of("centred"), (), COSINE),
    "linear": Score("linear", _of("hits"), (), SHARE, hits=True),
    "linear_bits": Score("linear", _jackknifed("bits", "bits_left_out"), (), ABOVE),
    "geometry": Score("geometry", _explained("error"), ("property",), R2),
    "hubness": Score("knn", _jackknifed("hubness", "hubness_left_out"), ("k",)),
    **{
        key: Score(
            "dimension",
            _jackknifed("values", "left_out", at),
            (),
            SIGNED if key == "anisotropy" else ABOVE,
        )
        for at, key in enumerate(STATISTICS)
    },
    "token_diversity": Score("dimension", _of("diversity"), (), COSINE),
    "cka_rbf": Score("similarity", _cka("cka_rbf"), (), SIGNED),
    "drift_procrustes": Score("similarity", _of("drift_procrustes"), (), COSINE),
    **{
        key: Score(
            "similarity", _jackknifed("values", "left_out", at), (), LIKENESS_RANGES.get(key, ABOVE)
        )
        for at, key in enumerate(ALIKE)
    },
}
"""Measures by their name in a sweep, each told by itself."""
OTHERWISE = {
    "knn_loo": Score("variants", _of("loo"), ("k",), SHARE, hits=True),
    "knn_test90_10": Score("variants", _of_times_asked, ("k",), SHARE),
    "linear_selectivity": Score("linear", _above_control, (), SIGNED),
    "linear_compression": Score("linear", _compressed, (), ABOVE),
    "linear_gain": Score("linear", _gained, (), SIGNED),
    "drift_pooled": Score("drift", _of("pooled"), (), COSINE),
    "cka_standardised": Score("drift", _cka("cka_standardised"), (), SIGNED),
    "knn_without_massive": Score("knn", _of("hits_without"), (), SHARE, hits=True),
    "linear_without_massive": Score("linear", _of("hits_without"), (), SHARE, hits=True),
    "cka_without_massive": Score("drift", _cka("cka_without_massive"), (), SIGNED),
    "drift_without_massive": Score("drift", _of("centred_without"), (), COSINE),
    **{
        f"{key}_without_massive": SCORES[key]._replace(
            own=_jackknifed("values_without", "left_out_without", at)
        )
        for kind in (STATISTICS, ALIKE)
        for at, key in enumerate(kind)
    },
}
"""The same asked in another way: told together."""
MANY = {
    "knn_ways": Score("variants", _of("hits"), WAYS, SHARE, hits=True),
    "knn_token": Score("variants", _of("by_token"), ("token",), SHARE, hits=True),
    "knn_token_from_mean": Score("variants", _above_mean_token, ("token",), SIGNED, hits=True),
    "token_drift": Score("drift", lambda cell, _: cell["by_token"].T, ("token",), COSINE),
    "knn_class": Score("knn", _of_class, ("class",), SHARE, hits=True),
    "linear_curve": Score("linear", _of("curve"), ("fitted",), SHARE, hits=True),
    "geometry_without_massive": Score("geometry", _explained("error_without"), ("property",), R2),
}
"""Of which a layer has many: classes, tokens, ways of asking."""
EVERY = SCORES | OTHERWISE | MANY


def parts_of(found: sweep.Found) -> dict[str, Parts]:
    """By measure, what each object adds, of all that the cells of one run hold."""
    parts: dict[str, Parts] = {}
    for key, score in EVERY.items():
        cells = found.cells.get(score.probe)
        if not cells or _absent(key, cells[found.variants[0], found.layers[0]]):
            continue
        rows = [
            [score.own(cells[v, at], found.data) for at in found.layers] for v in found.variants
        ]
        models: np.ndarray = np.moveaxis(np.array(rows), 1, -2)
        target, encoder = (
            score.own(cells[place], found.data) if place in cells else None
            for place in (TARGET, ENCODER)
        )
        parts[key] = Parts(models, target, encoder)
    if "encoder_cka" in parts:  # the target has no cell of how like the target it is
        parts["encoder_cka"] = parts["encoder_cka"]._replace(target=_target_of_encoder(found.data))
    return parts


def _absent(key: str, cell: Cell) -> bool:
    """Of objects of one token, of a run without the encoder's output, of few gallery objects."""
    return (
        (key == "token_diversity" and "diversity" not in cell)
        or (key == "encoder_cka" and "encoder_cka" not in cell)
        or (key == "linear_gain" and len(cell["curve"]) < 2)
    )


def _target_of_encoder(data: Objects) -> np.ndarray:
    assert data.encoder is not None
    alike = cka.cka_interval(data.target.pooled[data.query], data.encoder[data.query])
    return cka.own_parts(np.array(alike.mean), alike.left_out)


def _beside(
    score: Score, cells: dict[tuple[str, int], Cell], place: tuple[str, int], found: sweep.Found
) -> np.ndarray | None:
    try:
        return score.own(cells[place], found.data)
    except KeyError:
        return None


def layers_of(found: sweep.Found) -> np.ndarray | None:
    """What each object adds to the CKA of two layers, (pairs, objects), of i before j by rows.

    The layers of all models, one model after the other; None where they were not compared.
    """
    if "similarity" not in found.cells:
        return None
    cells = found.cells["similarity"]
    states = [cells[v, at]["states"] for v in found.variants for at in found.layers]
    alike = pairs.cka_pairs(states)
    above = np.triu_indices(len(states), 1)
    left_out = alike.left_out.transpose(1, 2, 0)[above]
    return cka.own_parts(alike.mean[above], left_out).astype(np.float32)
