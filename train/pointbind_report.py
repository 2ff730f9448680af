"""What a bound encoder can do with words: zero-shot, retrieval, and a linear probe beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probe.intervals import Interval, bootstrap, wilson
from probe.linear import linear_probe
from train.anchors import TextAnchor
from train.data.objects import DataSet, Objects
from train.models.pointbind import PointBind
from train.pointbind_train import Sounds
from train.progress import track
from train.zeroshot import chance_precision, class_features, retrieval_precision, top_hits

AT_ONCE = 32


@torch.no_grad()
def embed(model: PointBind, objects: Objects, label: str) -> Tensor:
    """Unit vectors of all objects, (objects, output)."""
    parts = []
    starts = range(0, len(objects), AT_ONCE)
    for start in track(starts, label, total=len(starts)):
        rows = range(start, min(start + AT_ONCE, len(objects)))
        parts.append(model(torch.from_numpy(objects.points(rows))))
    return torch.cat(parts)


def measure(
    model: PointBind,
    anchor: TextAnchor,
    data: DataSet,
    unseen: list[int],
    seed: int,
    shown: Tensor | None = None,
    sounds: Sounds | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Rows of the report, and the vectors they are of: `query`, `gallery`, `captions`, `words`.

    unseen : labels of classes without a training object; zero-shot among them is among words that
             no cloud was ever bound to
    shown  : vectors of the query objects' renderings, (objects, views, dim)
    """
    query = embed(model, data.query, "embed query")
    gallery = embed(model, data.gallery, "embed gallery")
    words = class_features(anchor, data.query.class_names)
    captions = anchor(data.query.captions)
    every = list(range(len(data.query.class_names)))
    seen = [label for label in every if label not in unseen]
    rows = []
    for name, among in (("trained classes", seen), ("classes never trained on", unseen)):
        if among:
            at, labels = chosen(data.query.labels, among)
            scores = query[at] @ words[among].T
            for k in (1, 5):
                if k < len(among):
                    hits = top_hits(scores, torch.from_numpy(labels), k)
                    found = wilson(int(hits.sum()), len(hits))
                    rows.append(row(f"zero-shot top-{k}, {name}", found, k / len(among), len(hits)))
            gallery_at, gallery_labels = chosen(data.gallery.labels, among)
            probe = linear_probe(
                gallery[gallery_at].numpy(),
                gallery_labels,
                query[at].numpy(),
                labels,
                seed=seed,
            )
            name = f"linear probe on the same vectors, {name}"
            rows.append(row(name, probe.accuracy, 1 / len(among), len(at)))
    labels, known = data.query.labels, data.gallery.labels
    ways = [
        ("caption to cloud", captions, query, labels, labels),
        ("cloud to caption", query, captions, labels, labels),
        ("cloud to cloud of the gallery", query, gallery, labels, known),
    ]
    vectors = {"query": query, "gallery": gallery, "captions": captions, "words": words}
    if shown is not None:
        vectors["renderings"] = seen_from = F.normalize(shown.mean(dim=1), dim=1)
        ways.append(("renderings to cloud", seen_from, query, labels, labels))
        ways.append(("cloud to renderings", query, seen_from, labels, labels))
    if sounds is not None:
        at = np.flatnonzero(np.isin(sounds.labels, labels))
        if len(at):
            heard = sounds.labels[at]
            ways.append(("sound to cloud", sounds.vectors[at], query, heard, labels))
    for name, asked, items, asked_labels, item_labels in ways:
        precision = retrieval_precision(asked, items, asked_labels, item_labels)
        found = bootstrap(precision, seed=seed)
        chance = chance_precision(asked_labels, item_labels)
        rows.append(row(f"retrieval mAP, {name}", found, chance, len(precision)))
    return rows, vectors


def chosen(labels: np.ndarray, among: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose label is among these, and its place among them."""
    at = np.flatnonzero(np.isin(labels, among))
    return at, np.searchsorted(among, labels[at])


def row(name: str, found: Interval, chance: float, objects: int) -> dict[str, Any]:
    """One line: what, how much with its 95 % interval, and what guessing gives."""
    values = {"value": float(found.mean), "low": float(found.low), "high": float(found.high)}
    return {"what": name, **values, "chance": float(chance), "objects": objects}


def table(rows: list[dict[str, Any]], note: str) -> str:
    """The rows as a Markdown table, in percent."""
    lines = [note, "", "| | % | 95 % interval | chance | objects |", "|---|---|---|---|---|"]
    for each in rows:
        value, low, high, chance = (
            f"{100 * each[key]:.1f}" for key in ("value", "low", "high", "chance")
        )
        lines.append(
            f"| {each['what']} | {value} | {low} to {high} | {chance} | {each['objects']} |"
        )
    return "\n".join(lines)
