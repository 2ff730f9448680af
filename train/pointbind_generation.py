"""How good the decoder's clouds are: how far from the object, and what they are taken for again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe.intervals import Interval, bootstrap, wilson
from probe.reconstruction import JUDGED, judge, unit_clouds
from train.data.objects import DataSet, Objects, normalised
from train.models.clouddecoder import (
    POINTS,
    CloudDecoder,
    draw_clouds,
    fit_decoder,
    pooled,
    with_more,
)
from train.models.pointbind import PointBind
from train.pointbind_report import embed
from train.progress import track
from train.zeroshot import chance_precision, retrieval_precision

AT_ONCE = 32
OBJECTS = 240
"""Query objects that are drawn and judged; all of them are looked among."""
COLUMNS = {
    "chamfer": "Chamfer distance to the object",
    "named": "named as its class, %",
    "own": "object found again, %",
    "precision": "mAP of its class, %",
}


def fit_and_measure(
    model: PointBind,
    objects: Objects,
    data: DataSet,
    vectors: dict[str, Tensor],
    *,
    steps: int,
    seed: int,
) -> tuple[CloudDecoder, list[dict[str, Any]]]:
    """A decoder fitted on the clouds of `objects`, and the rows of `measure_generation`."""
    clouds = objects.points(range(len(objects)))
    if not clouds[..., 3:].any():
        clouds = clouds[..., :3]
    decoder = fit_decoder(embed(model, objects, "embed train"), clouds, steps=steps, seed=seed)
    mean = pooled(clouds, objects.count, seed)
    return decoder, measure_generation(model, decoder, data, vectors, mean, seed)


def measure_generation(
    model: PointBind,
    decoder: CloudDecoder,
    data: DataSet,
    vectors: dict[str, Tensor],
    mean: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each thing that clouds are drawn from, and for each control; query objects only.

    vectors : `query`, `gallery`, `captions`, `words` and perhaps `renderings`, as `measure` of
              train.pointbind_report gives them
    mean    : points of all training clouds alike, (points, channels): the mean shape

    Chamfer distance is in mean radii of the cloud, to points of the object that no control was
    given. Each cloud is then embedded by the encoder again: is the right class's the nearest words,
    is its own object the nearest of all query objects, and how well are those of its class in the
    gallery ranked? Controls: the object itself in as many points (the best to be had), an object of
    the gallery at random, the one nearest to the object's vector, and the mean shape.
    """
    rng = np.random.default_rng([seed, 23])
    rows = np.sort(rng.permutation(len(data.query))[:OBJECTS])
    count, labels = data.query.count, data.query.labels[rows]
    true = data.query.points(rows)
    tested = unit_clouds(true[:, -min(JUDGED, count // 2) :, :3])
    query, gallery = vectors["query"], vectors["gallery"]
    asked = {
        "its cloud": query[rows],
        "its caption": vectors["captions"][rows],
        "its class in 64 prompts": vectors["words"][labels],
    }
    if "renderings" in vectors:
        asked["its renderings"] = vectors["renderings"][rows]
    others = rng.integers(0, len(data.gallery), len(rows))
    nearest = (query[rows] @ gallery.T).argmax(dim=1).numpy()
    kept = min(POINTS, count - tested.shape[1])
    controls = {
        "the object itself": np.stack([with_more(cloud[:kept], count) for cloud in true]),
        "the nearest of the gallery": data.gallery.points(nearest),
        "a random one of the gallery": data.gallery.points(others),
        "the mean shape": np.repeat(normalised(mean, "mean", len(mean))[None], len(rows), axis=0),
    }
    drawn = {f"from {name}": draw_clouds(decoder, each, count) for name, each in asked.items()}
    drawn |= {f"control: {name}": clouds for name, clouds in controls.items()}
    result = []
    for name, clouds in track(drawn.items(), "embed what was drawn", total=len(drawn)):
        again = _embed(model, clouds)
        named = (again @ vectors["words"].T).argmax(dim=1).numpy() == labels
        own = (again @ query.T).argmax(dim=1).numpy() == rows
        ranked = retrieval_precision(again, gallery, labels, data.gallery.labels)
        scores = {
            "chamfer": bootstrap(judge(unit_clouds(clouds[..., :3]), tested).chamfer, seed=seed),
            "named": wilson(int(named.sum()), len(named)),
            "own": wilson(int(own.sum()), len(own)),
            "precision": bootstrap(ranked, seed=seed),
        }
        result.append({"what": name, "objects": len(rows)} | _plain(scores))
    chance = {
        "named": 1 / len(vectors["words"]),
        "own": 1 / len(query),
        "precision": chance_precision(labels, data.gallery.labels),
    }
    return [*result, {"what": "chance", "objects": len(rows)} | chance]


@torch.no_grad()
def _embed(model: PointBind, clouds: np.ndarray) -> Tensor:
    return torch.cat([model(part) for part in torch.from_numpy(clouds).split(AT_ONCE)])


def _plain(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {
        name: {"value": float(each.mean), "low": float(each.low), "high": float(each.high)}
        for name, each in scores.items()
    }


def generation_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table, each number with its 95 % interval."""
    head = f"{rows[0]['objects']} unseen objects, drawn by the decoder and embedded again"
    lines = [head, "", f"| | {' | '.join(COLUMNS.values())} |", "|---" * 5 + "|"]
    for row in rows:
        lines.append(f"| {row['what']} | {' | '.join(_cell(row, key) for key in COLUMNS)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], key: str) -> str:
    if key not in row:
        return ""
    factor, digits = (1, 3) if key == "chamfer" else (100, 1)
    if isinstance(row[key], float):
        return f"{factor * row[key]:.{digits}f}"
    value, low, high = (
        f"{factor * row[key][part]:.{digits}f}" for part in ("value", "low", "high")
    )
    return f"{value} ({low} to {high})"
