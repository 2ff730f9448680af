"""The data set that a stage-2 config names, cut to the asked sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from train.config import Stage2Config
from train.data.objects import KINDS, DataSet, Objects

BRIEF = KINDS[0]


def load_data(config: Stage2Config) -> DataSet:
    """Train, gallery and query objects; raises ValueError when a split is empty."""
    data = _whole(config)
    train = share(told(data.train), config.data_fraction, config.seed)
    return replace(data, train=train)


def told(objects: Objects) -> Objects:
    """Without the objects of which stage 2 is told nothing: PointLLM's brief file has 660,000."""
    told = {each.object for each in objects.conversations if each.kind != BRIEF}
    if len(told) == len(objects) or not told:
        return objects
    return objects.take(sorted(told))


def _whole(config: Stage2Config) -> DataSet:
    if config.data == "shapes":
        from train.data.shapes import shapes

        return shapes(
            config.data_root,
            seed=config.seed,
            train_per_class=config.train_per_class,
            gallery_per_class=config.gallery_per_class,
            query_per_class=config.query_per_class,
        )
    if config.data == "modelnet":
        from train.data.modelnet import modelnet

        data = modelnet(config.data_root, seed=config.seed)
    else:
        from train.data.objaverse import objaverse

        data = objaverse(config.data_root, seed=config.seed, partial=config.skip_missing)
    return replace(
        data,
        train=_cut(data.train, config.train_per_class, config.seed),
        gallery=_cut(data.gallery, config.gallery_per_class, config.seed),
        query=_cut(data.query, config.query_per_class, config.seed),
    )


def share(objects: Objects, fraction: float, seed: int) -> Objects:
    """A share of the objects, drawn without regard to class, with all that is said about them.

    The objects of a smaller share are part of every larger one of the same seed; one is always
    left. Their order stays.
    """
    if fraction == 1:
        return objects
    drawn = np.random.default_rng([seed, len(objects)]).permutation(len(objects))
    return objects.take(sorted(drawn[: max(1, round(fraction * len(objects)))].tolist()))


def _cut(objects: Objects, per_class: int, seed: int) -> Objects:
    """So many objects of each class; 0 for all."""
    if not len(objects):
        raise ValueError("a split of the data holds no object")
    return objects.take(per_class=per_class, seed=seed) if per_class else objects
