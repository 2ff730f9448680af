"""The objects of an evaluation, and the models of a run that are asked about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from train.checkpoint import sha256
from train.config import TRAINED
from train.data.objects import DataSet, Objects
from train.finished import began_with, captured_of, load_variant, point_tokens, recorded
from train.frozen import keep_targets, kept_targets
from train.start import model_sizes

if TYPE_CHECKING:
    from train.evaluate import EvaluateConfig

SPLITS = ("train", "gallery", "query")
OBJAVERSE = "PointLLM_brief_description_val_200_GT_Objaverse"
"""How the published code begins the names of its files."""


@dataclass(frozen=True)
class Asked:
    """Objects with what is true of them, and where their point tokens come from."""

    run: Path
    stage1: Path | None
    record: dict[str, Any]
    variants: list[str]
    name: str
    """Of the data: that of the run, modelnet, objaverse (the published 200) or objaverse-query."""
    digest: str
    """Of the objects' source."""
    ids: list[str]
    labels: np.ndarray
    class_names: list[str]
    """All classes; one or none where objects have captions only."""
    captions: list[str]
    targets: Callable[[slice], Tensor]
    """Rows -> Q-Former outputs (objects, queries, width)."""
    whole: bool
    """Whether these are all objects, not a few of them."""

    def stem(self, task: str) -> str:
        """Beginning of a file name, the published one where the set is published."""
        published = {"modelnet": "ModelNet", "objaverse": OBJAVERSE}
        kind = "captioning" if task == "caption" else "classification"
        few = "" if self.whole else f"_{len(self.ids)}objects"
        return f"{published.get(self.name, self.name)}_{kind}{few}"

    def loader(self, variant: str) -> Callable[[], tuple]:
        """Reads model and tokenizer when it is called."""
        return lambda: load_variant(self.run, variant, self.stage1)

    def checkpoint(self, variant: str) -> str:
        """Digest of all weights of a model, from the files as they are now."""
        return weights_of(self.run, self.record, variant)


def weights_of(run: Path, record: dict[str, Any], variant: str) -> str:
    """Digest of all weights of a model of a run, from the files as they are now."""
    began = {n: h for n, h in record["hashes"].items() if n not in SPLITS}
    own = f"untrained {record['seed']}" if variant == "untrained" else ""
    if variant in TRAINED:
        own = sha256(run / "checkpoints" / variant / "model.safetensors")
    about = json.dumps([began, own], sort_keys=True)
    return hashlib.sha256(about.encode()).hexdigest()


def asked_about(config: EvaluateConfig) -> Asked:
    """The objects and models that a config names.

    Raises FileNotFoundError where there is no finished run, ValueError for a model it lacks.
    """
    record = recorded(config.run)
    if record.get("status") != "complete":
        raise ValueError(
            f"{config.run} is not finished; repeat the command that began it: {record['command']}"
        )
    common: dict[str, Any] = {"run": config.run, "stage1": config.stage1, "record": record}
    captured = captured_of(config.run)
    names = [name.strip() for name in config.variants.split(",")]
    common["variants"] = list(captured.variants) if names == ["all"] else names
    if wrong := [name for name in common["variants"] if name not in captured.variants]:
        raise ValueError(
            f"--variants {wrong[0]!r}: {captured.name} has {', '.join(captured.variants)}"
        )
    if config.data == "run":
        return _captured(config, captured, common)
    return _test_set(config, common)


def _captured(config: EvaluateConfig, captured: Any, common: dict[str, Any]) -> Asked:
    table = captured.samples()
    rows = np.flatnonzero(table.split.values == "query")
    chosen = _some(rows, config.limit)
    labels = table.label.values
    class_names = [""] * (int(labels.max()) + 1)
    for label, name in zip(labels, table.class_name.values, strict=True):
        class_names[label] = str(name)
    target = point_tokens(captured)
    return Asked(
        **common,
        name=common["record"]["config"].get("data", "run"),
        digest=common["record"]["hashes"]["query"],
        ids=table.sample.values[chosen].astype(str).tolist(),
        labels=labels[chosen],
        class_names=class_names,
        captions=table.caption.values[chosen].astype(str).tolist(),
        targets=lambda part: torch.from_numpy(target[chosen[part]].values.astype(np.float32)),
        whole=len(chosen) == len(rows),
    )


def _test_set(config: EvaluateConfig, common: dict[str, Any]) -> Asked:
    if config.data == "modelnet":
        from train.data.modelnet import modelnet

        name: str = config.data
        objects = in_file_order(modelnet(config.data_root))
    else:
        from train.data.objaverse import benchmark, objaverse

        published = benchmark(config.data_root)
        name = "objaverse" if published else "objaverse-query"
        objects = published or objaverse(config.data_root).query
    rows = _some(np.arange(len(objects)), config.limit)
    few = objects.take(rows.tolist())
    front = _Front(config, common["record"], few)
    numbered = config.data == "modelnet"
    return Asked(
        **common,
        name=name,
        digest=objects.fingerprint(),
        ids=[str(row) for row in rows] if numbered else few.ids,
        labels=few.labels,
        class_names=few.class_names,
        captions=few.captions,
        targets=front,
        whole=len(few) == len(objects),
    )


@dataclass(frozen=True)
class _Front:
    """Targets of objects that the run did not capture, computed once by the frozen front."""

    config: EvaluateConfig
    record: dict[str, Any]
    objects: Objects

    def __call__(self, part: slice) -> Tensor:
        return self._targets[part]

    @cached_property
    def _targets(self) -> Tensor:
        path = self.config.folder / f"targets-{self.config.data}.npy"
        points = model_sizes(began_with(self.record, self.config.stage1)).points
        model, _ = load_variant(self.config.run, "stage1", self.config.stage1)
        key = json.dumps([self.record["hashes"], self.objects.fingerprint()], sort_keys=True)
        device = next(model.parameters()).device
        keep_targets(path, key, model, self.objects, points, device)
        return kept_targets(path)


def in_file_order(data: DataSet) -> Objects:
    """The official test split, whole and as in its file.

    Where only that file is there, its objects were divided in two; they are put together again.
    """
    query, gallery = data.query, data.gallery
    if query.rows is None:
        return query
    assert gallery.rows is not None
    rows = np.concatenate([gallery.rows, query.rows])
    order = np.argsort(rows)
    ids, captions = gallery.ids + query.ids, gallery.captions + query.captions
    return replace(
        query,
        ids=[ids[at] for at in order],
        labels=np.concatenate([gallery.labels, query.labels])[order],
        captions=[captions[at] for at in order],
        conversations=[],
        factors={},
        rows=rows[order],
    )


def _some(rows: np.ndarray, limit: int) -> np.ndarray:
    """So many, evenly spread, as sets stand in order of their classes; all for 0."""
    if not limit or limit >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, limit).round().astype(int)]
