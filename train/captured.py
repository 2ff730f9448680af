"""The objects that a run captures, gallery before query: their table, clouds and patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from store.writer import RunWriter
from train.attention import read_attention
from train.budget import SHOWN_POINTS
from train.data.objects import DataSet
from train.frozen import kept_rows
from train.models.minigpt3d import MiniGPT3D
from train.progress import track

WORDS = ("symmetry",)
"""Factors in words that are geometry; the others are of class, colour and theme."""


def sample_table(data: DataSet) -> dict[str, Any]:
    """Column -> a value for each object, as `store.create_run` takes it.

    Factors that the data set knows of the making of its objects are columns `factor_NAME`: all
    that are numbers, and those of `WORDS`.
    """
    parts, names = (data.gallery, data.query), data.query.class_names
    labels = np.concatenate([objects.labels for objects in parts])
    return {
        "id": [name for objects in parts for name in objects.ids],
        "label": labels,
        "class_name": [names[label] for label in labels],
        "split": ["gallery"] * len(data.gallery) + ["query"] * len(data.query),
        "caption": [caption for objects in parts for caption in objects.captions],
        **{
            f"factor_{name}": np.concatenate([objects.factors[name] for objects in parts])
            for name, values in data.query.factors.items()
            if values.dtype.kind in "iuf" or name in WORDS
        },
    }


def shown_points(data: DataSet) -> np.ndarray:
    """(samples, points, 6): what is kept of each cloud for looking at, the same rows of all."""
    count = data.query.count
    keep = np.sort(np.random.default_rng(0).permutation(count)[:SHOWN_POINTS])
    clouds = [
        objects.points([row])[:, keep]  # one at a time: whole clouds would fill the memory
        for objects in (data.gallery, data.query)
        for row in range(len(objects))
    ]
    return np.concatenate(clouds)


def clouds(data: DataSet, rows: np.ndarray, points: int) -> Tensor:
    """(rows, points or fewer, 6): clouds of these rising rows, as the model takes them."""
    inside = rows < len(data.gallery)
    return torch.from_numpy(
        np.concatenate(
            [
                objects.points(part)[:, kept_rows(objects, points)]
                for objects, part in (
                    (data.gallery, rows[inside]),
                    (data.query, rows[~inside] - len(data.gallery)),
                )
                if len(part)
            ]
        )
    )


@torch.no_grad()
def store_front(model: MiniGPT3D, data: DataSet, writer: RunWriter, points: int) -> None:
    """Append what the encoder makes of the clouds and which patches each query token reads, for
    the objects where it is not there yet."""
    device = next(model.parameters()).device
    pending = list(writer.pending("attention"))
    total = -(-writer.samples // writer.chunk)
    bar = track(pending, "read patches", total=total, completed=total - len(pending))
    for rows in bar:
        with read_attention(model) as reading:
            model.encode(clouds(data, np.arange(rows.start, rows.stop), points).to(device))
        assert reading.centres is not None and reading.encoder is not None
        weights = reading.weights().cpu().numpy()
        writer.append_encoder(rows, reading.encoder.cpu().numpy())  # before, so both are pending
        writer.append_attention(rows, weights, reading.centres.cpu().numpy())
