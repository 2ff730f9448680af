"""What `python -m train.pointbind` leaves in its folder, written and read.

config.json says what the model is made of and which frozen space it is bound to, model.safetensors
holds its weights, gallery.npz what can be found, decoder.safetensors what turns vectors to clouds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    import numpy as np
    from torch import Tensor

    from train.config import ModelConfig
    from train.data.objects import Objects
    from train.models.clouddecoder import CloudDecoder
    from train.models.pointbind import PointBind

MODEL, SIZES, GALLERY, REPORT = "model.safetensors", "config.json", "gallery.npz", "report.json"
DECODER = "decoder.safetensors"
SHOWN_POINTS = 1024
"""Points of a cloud kept beside its embedding, for pictures of what was found."""


class Gallery(NamedTuple):
    """What can be found."""

    embeddings: np.ndarray
    """(objects, dim) float32, unit vectors"""
    ids: list[str]
    captions: list[str]
    points: np.ndarray
    """(objects, points, 6), thinned, for pictures"""


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


def read_gallery(path: Path, encoder: str) -> Gallery:
    """The gallery in a file. Raises ValueError where it was embedded by another encoder.

    encoder : digest of the weights of the encoder that embeds the queries
    """
    import numpy as np

    if not path.is_file():
        raise FileNotFoundError(f"no gallery at {path}: python -m train.pointbind writes it")
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["encoder"]) != encoder:
                raise ValueError(
                    f"{path} was embedded by another encoder: its vectors can't be compared with "
                    "those of this run; run python -m train.pointbind again"
                )
            points = stored["points"].astype(np.float32)
            words = (stored["ids"].tolist(), stored["captions"].tolist())
            return Gallery(stored["embeddings"], *words, points)
    except KeyError as error:
        raise ValueError(f"{path} is no gallery: {error.args[0]}") from None


def read_sizes(folder: Path) -> dict[str, Any]:
    """What a run's model is made of."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model in {folder} (config.json is missing): give --run a folder that "
            "python -m train.pointbind wrote"
        )
    sizes = json.loads(path.read_text())
    if not {"published", "sizes"} & sizes.keys():
        raise ValueError(f"{path} is not of a model that python -m train.pointbind wrote")
    return sizes


def read_model(folder: Path, sizes: dict[str, Any]) -> PointBind:
    """The model of a run, in eval mode."""
    from train.checkpoint import read_tensors
    from train.config import ModelConfig
    from train.models.pointbert import check_names

    if "published" in sizes:
        model = published_model(sizes["published"])
    else:
        model = new_model(ModelConfig(**sizes["sizes"]), sizes["output"], 0.0)
    tensors = read_tensors(folder / "model.safetensors")
    check_names(f"{folder}", model.state_dict(), tensors)
    model.load_state_dict(tensors)
    return model.eval()


def write_decoder(folder: Path, decoder: CloudDecoder, count: int) -> None:
    """Weights of a decoder; its sizes go to config.json, with the points that the encoder read."""
    from train.checkpoint import write_tensors

    tensors = {name: value.contiguous() for name, value in decoder.state_dict().items()}
    write_tensors(folder / DECODER, tensors)
    points, channels = decoder.shape
    sizes = read_sizes(folder) | {"decoder": {"points": points, "channels": channels}}
    sizes["points"] = count
    (folder / SIZES).write_text(json.dumps(sizes, indent=2) + "\n")


def read_decoder(folder: Path) -> CloudDecoder:
    """The decoder of a run, in eval mode."""
    from train.checkpoint import load_strictly, read_tensors
    from train.models.clouddecoder import CloudDecoder

    sizes = read_sizes(folder)
    if "decoder" not in sizes or not (folder / DECODER).is_file():
        raise FileNotFoundError(
            f"no decoder in {folder}: python -m train.pointbind with --decoder-steps fits one; the "
            "command that made the run, with it added, trains nothing else again"
        )
    tensors = read_tensors(folder / DECODER)
    decoder = CloudDecoder(tensors["read.0.weight"].shape[1], **sizes["decoder"])
    load_strictly(decoder, tensors, str(folder / DECODER))
    return decoder.eval()
