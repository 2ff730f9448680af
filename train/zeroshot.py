"""Classes named by words alone: prompt templates, a feature a class, and who is named right."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ARTICLES = ("a", "the")


def _templates() -> list[str]:
    looks = ("nice", "cool", "weird", "small", "large", "clean", "dirty")
    flaws = ("low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated")
    found = ["a point cloud model of {}."]
    found += [f"There is {article} {{}} in the scene." for article in ARTICLES]
    found += [f"a photo of {article} {{}} in the scene." for article in (*ARTICLES, "one")]
    found += [f"itap of {article} {{}}." for article in ("a", "my", "the")]
    found += [f"a photo of {article} {{}}." for article in ("a", "my", "the", "one", "many")]
    for kind in ("good", "bad"):
        found += [f"a {kind} photo of {article} {{}}." for article in ARTICLES]
    for look in looks:
        found += [f"a photo of {article} {look} {{}}." for article in ARTICLES]
    for light in ("bright", "dark"):
        found += [f"a {light} photo of {article} {{}}." for article in ARTICLES]
    found += [f"a photo of {article} hard to see {{}}." for article in ARTICLES]
    for flaw in flaws:
        found += [f"a {flaw} photo of {article} {{}}." for article in ARTICLES]
    found += ["a black and white photo of the {}.", "a black and white photo of a {}"]
    for stuff in ("plastic", "toy", "plushie", "cartoon"):
        found += [f"{article} {stuff} {{}}." for article in ARTICLES]
    found += ["an embroidered {}.", "the embroidered {}."]
    return [*found, "a painting of the {}.", "a painting of a {}."]


TEMPLATES = _templates()
"""The 64 prompts of ULIP that Point-Bind classifies ModelNet40 with, in their order; one of them
has no full stop."""


def class_features(
    encode: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> Tensor:
    """One unit vector a class, (classes, dim): the mean over its prompts.

    encode : texts -> (texts, dim), of one length, whatever it is
    """
    return torch.stack(
        [F.normalize(encode(prompts(name, templates)).mean(dim=0), dim=0) for name in names]
    )


def prompts(name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """What is said of a class; an underscore in its name is read as a space."""
    return [template.format(name.replace("_", " ")) for template in templates]


def top_hits(logits: Tensor, labels: Tensor, k: int) -> np.ndarray:
    """Whether the right class is among the k best ones, (samples,) of bool.

    logits : (samples, classes)    labels : (samples,)
    """
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).numpy()


def average_precision(relevant: np.ndarray) -> np.ndarray:
    """Average precision of each ranking. relevant : (queries, gallery) of bool, best first.

    The mean, over the relevant items, of the share of relevant ones up to there; over the whole
    ranking, as MVTN computes it (Hamdi et al. 2021), whose code gave Point-Bind's table. Raises
    ValueError where a query has nothing to find.
    """
    relevant = np.atleast_2d(np.asarray(relevant, bool))
    wanted = relevant.sum(axis=1)
    if not wanted.all():
        raise ValueError(f"query {int(wanted.argmin())} has no relevant item in the gallery")
    found = relevant.cumsum(axis=1) / np.arange(1, relevant.shape[1] + 1)
    return (found * relevant).sum(axis=1) / wanted


def retrieval_precision(
    query: Tensor, gallery: Tensor, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> np.ndarray:
    """Average precision of each query, ranked by cosine: (queries,).

    query : (queries, dim)    gallery : (items, dim); an item of the query's class is relevant.

    Ties go by the gallery's order, so that two modalities with the same numbers rank the same.
    """
    scores = F.normalize(query.double(), dim=1) @ F.normalize(gallery.double(), dim=1).T
    order = scores.argsort(dim=1, descending=True, stable=True).numpy()
    return average_precision(gallery_labels[order] == query_labels[:, None])


def chance_precision(query_labels: np.ndarray, gallery_labels: np.ndarray) -> float:
    """Expected mean average precision of a random ranking of the gallery.

    With R of N items relevant it is (1/N) (H_N (N - R) / (N - 1) + N (R - 1) / (N - 1)), H_N the
    N-th harmonic number: the expectation of average precision over all orders (Bestgen 2015).
    """
    items = len(gallery_labels)
    harmonic = math.fsum(1 / place for place in range(1, items + 1))
    counts = np.array([(gallery_labels == label).sum() for label in query_labels])
    if items == 1:
        return float(counts.mean())
    spread = harmonic * (items - counts) + items * (counts - 1)
    return float((spread / (items * (items - 1))).mean())
