"""The data set that a stage-2 config names, cut to the asked sizes."""

from __future__ import annotations

from dataclasses import replace

from train.config import Stage2Config
from train.data.objects import DataSet, Objects


def load_data(config: Stage2Config) -> DataSet:
    """Train, gallery and query objects; raises ValueError when a split is empty."""
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

        data = objaverse(config.data_root, seed=config.seed)
    return replace(
        data,
        train=_cut(data.train, config.train_per_class, config.seed),
        gallery=_cut(data.gallery, config.gallery_per_class, config.seed),
        query=_cut(data.query, config.query_per_class, config.seed),
    )


def _cut(objects: Objects, per_class: int, seed: int) -> Objects:
    if not len(objects):
        raise ValueError("a split of the data holds no object")
    return objects.take(per_class=per_class, seed=seed)
