"""The objects that a run captures, gallery before query: their table, clouds and patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.budget import SHOWN_POINTS
from train.data.objects import DataSet, Objects
from train.frozen import kept_rows

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


@dataclass(frozen=True)
class ShownPoints:
    """(samples, points, 6): some points of each cloud, read from the data set when rows are asked
    for, since those of 660,000 objects fill 32 GB."""

    data: DataSet
    keep: np.ndarray
    """Which points, the same of all clouds."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.data.gallery) + len(self.data.query), len(self.keep), 6

    def __getitem__(self, rows: slice) -> np.ndarray:
        parts = of_splits(self.data, np.arange(self.shape[0])[rows])
        return np.concatenate([objects.points(own)[:, self.keep] for objects, own in parts])


def shown_points(data: DataSet) -> ShownPoints:
    """What is kept of each cloud for looking at."""
    order = np.random.default_rng(0).permutation(data.query.count)
    return ShownPoints(data, np.sort(order[:SHOWN_POINTS]))


def clouds(data: DataSet, rows: np.ndarray, points: int, draw: int = 0) -> Tensor:
    """(rows, points or fewer, 6): clouds of these rising rows, as the model takes them."""
    parts = of_splits(data, rows)
    read = [objects.points(own)[:, kept_rows(objects, points, draw)] for objects, own in parts]
    return torch.from_numpy(np.concatenate(read))


def of_splits(data: DataSet, rows: np.ndarray) -> list[tuple[Objects, np.ndarray]]:
    """Each split that has some of these rising rows of the store, and which rows of its own."""
    inside = rows < len(data.gallery)
    parts = (data.gallery, rows[inside]), (data.query, rows[~inside] - len(data.gallery))
    return [(objects, own) for objects, own in parts if len(own)]
