"""What a stage-2 run begins with: a checkpoint of ours, or the published files in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from train.beginning import written_by
from train.config import SHIPPED, ModelConfig, Stage2Config, published_sizes, read_sizes

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from train.models.minigpt3d import MiniGPT3D


@dataclass(frozen=True)
class Start:
    """A model before stage 2, on the CPU in eval mode, and the digests of what it was made of."""

    model: MiniGPT3D
    tokenizer: Tokenizer
    hashes: dict[str, str]
    files: tuple[str, ...] = ()
    """What each published file gave, a line each; empty for a checkpoint of ours."""


def starting_folder(config: Stage2Config) -> Path:
    """The folder that was named or, for nano, the checkpoint that ships with the project."""
    if folder := config.weights or config.stage1:
        return folder
    if config.preset == "nano":
        return SHIPPED
    published = " or --weights DIR, the published files" if config.preset == "minigpt3d" else ""
    raise ValueError(
        f"--preset {config.preset} needs --stage1 DIR, a checkpoint of that size written by "
        f"python -m train.stage1{published}; only the nano one ships with the project"
    )


def model_sizes(config: Stage2Config) -> ModelConfig:
    """Sizes of the model, before anything heavy is loaded."""
    if config.weights:
        return published_sizes(config.weights)
    folder = starting_folder(config)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint in {folder} (config.json is missing); give a folder "
            "written by python -m train.stage1"
        )
    return read_sizes(path)


def load_start(config: Stage2Config, sizes: ModelConfig, dtype: torch.dtype) -> Start:
    """Load it; `dtype` is that of the LLM's matrices where it is the published one's size.

    Raises FileNotFoundError for what is missing, ValueError for what does not fit.
    """
    import torch

    from train.checkpoint import load_model, sha256
    from train.published import load_folder

    folder = starting_folder(config)
    if not config.weights:
        if (stage := written_by(folder)) not in ("III", "IV"):
            raise ValueError(
                f"checkpoint {folder} is of stage {stage}, and stage 2 begins with one of stage "
                "III or IV; train the stages between with python -m train.stage1 --from"
            )
        published = config.preset == "minigpt3d"
        model, tokenizer, _ = load_model(folder, dtype if published else torch.float32)
        return Start(model, tokenizer, {"stage1": sha256(folder / "model.safetensors")})
    found = load_folder(folder, sizes, upto=config.start, dtype=dtype, seed=config.seed)
    return Start(found.model, found.tokenizer, found.hashes(), tuple(map(str, found.sources)))
