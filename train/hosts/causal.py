"""Any causal language model of transformers, from a folder, in the place of a checkpoint's LLM.

The point tokens reach it through our projector. Where that has the LLM's width, its output enters
as it is. Where it has another, a linear map stands between: a given one, or one drawn with the seed
that keeps angles and distances (as far as a smaller width has room for them), scaled so that point
tokens are as long as the LLM's own embeddings. Such a map has been trained for nothing: in a wider
LLM layer 0 holds the projector's geometry exactly, and the curve from there on is the LLM's doing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from train.checkpoint import read_tensors, sha256
from train.models.llm import TOKENIZER, bare, llm_from_folder
from train.models.llm import settings as llm_settings
from train.models.minigpt3d import MiniGPT3D

MEASURED = 32
"""Objects whose tokens' length is measured for the scale."""


def settings(folder: Path) -> Any:
    """Its config.json, of the text part where there are several. Nothing of the folder runs."""
    return llm_settings(folder, None).get_text_config()


def sizes(folder: Path) -> dict[str, Any]:
    """Those of our settings that say how large the LLM is."""
    found = settings(folder)
    context = getattr(found, "max_position_embeddings", None) or 2**20  # none: relative positions
    return {
        "llm_width": found.hidden_size,
        "llm_depth": found.num_hidden_layers,
        "llm_context": context,
    }


def variant(folder: Path) -> str:
    """Its name in a store: that of its architecture, in letters, digits and _."""
    return re.sub(r"\W", "_", settings(folder).model_type)


def load(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Tokenizer]:
    """The model in eval mode, with its tokenizer."""
    llm, tokenizer = llm_from_folder(folder, dtype, kinds=None)
    return llm.eval(), tokenizer


def hashes(folder: Path, given: Path | None) -> dict[str, str]:
    """Digests of its settings, tokenizer and weights, and of the map before it."""
    files = [folder / "config.json", folder / TOKENIZER, *sorted(folder.glob("*.safetensors"))]
    return {f"llm/{path.name}": sha256(path) for path in files} | (
        {"llm map": sha256(given)} if given else {}
    )


def fitted(
    model: MiniGPT3D, targets: Tensor, given: Path | None, seed: int
) -> tuple[nn.Module, str]:
    """The projector with what stands between it and the LLM, and that in words.

    targets : of some objects, (objects, queries, width), on which the scale is measured
    given   : safetensors file of `weight` (LLM width, projector width) and, if it has one, `bias`

    Raises ValueError for a map of other widths.
    """
    own: Any = bare(model.llm).get_input_embeddings().weight
    with torch.no_grad():
        tokens = model.projector(targets)
    width, wanted = tokens.shape[-1], own.shape[-1]
    if given:
        return nn.Sequential(model.projector, _given(given, width, wanted)), f"map {given.name}"
    if width == wanted:
        return model.projector, "our projector's output enters as it is"
    linear = nn.Linear(width, wanted, bias=False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        nn.init.orthogonal_(linear.weight)
        mapped = linear(tokens).norm(dim=-1).mean()
        scale = float(own.float().norm(dim=-1).mean() / mapped)
        linear.weight.mul_(scale)
    said = (
        f"an orthogonal map {width} -> {wanted} of seed {seed}, trained for nothing, times "
        f"{scale:.4g}"
    )
    return nn.Sequential(model.projector, linear.requires_grad_(False)), said


def _given(path: Path, width: int, wanted: int) -> nn.Linear:
    if not path.is_file():
        raise FileNotFoundError(f"--llm-map {path}: there is no such file")
    tensors = read_tensors(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes.get("weight") != (wanted, width) or shapes.get("bias", (wanted,)) != (wanted,):
        raise ValueError(
            f"--llm-map {path} holds {shapes}; wanted weight ({wanted}, {width}), from our "
            f"projector's {width} to the LLM's {wanted}, and bias ({wanted},) or none"
        )
    linear = nn.Linear(width, wanted, bias="bias" in tensors)
    linear.load_state_dict(tensors)
    return linear.requires_grad_(False)
