"""Talk to Point-LLM about a cloud: python -m train.talk RUN --cloud FILE.npy --question "..."."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from train.cli import read_config, run

if TYPE_CHECKING:  # a call for --help doesn't wait for torch
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TalkConfig:
    """Ask Point-LLM about one cloud."""

    run: Positional[Path] = Path("runs/pointllm-shapes-seed0")
    """Folder that python -m train.pointllm wrote, or one of the published files."""
    cloud: Path
    """.npy file of (points, 3) or, with rgb from 0 to 1, (points, 6)."""
    question: tuple[str, ...] = ("What is this?",)
    """One or several; each is asked by itself, as in training."""
    cache: bool = False
    """Draw the cloud's vector to its neighbours by the visual cache, as published: 10 of them,
    temperature 20, half their direction."""
    longest: int = 64
    """Tokens of an answer, at most."""


def main(config: TalkConfig) -> None:
    """Print each question and its answer."""
    from train.hosts import bindllm_files
    from train.pointllm_train import answers

    loaded = bindllm_files.load(config.run)
    cloud = read_cloud(config.cloud, colour=loaded.colour)
    _, shown = bindllm_files.vectors_of(loaded, cloud, config.cache)
    for question in config.question:
        (said,) = answers(loaded.model, loaded.tokenizer, shown, question, config.longest)
        print(f"{question}\n  {said}")


def read_cloud(path: Path, *, colour: bool) -> Tensor:
    """A cloud as the encoder reads it, (1, points, 6): centred, its largest radius 1.

    Raises ValueError for what is no cloud, and for one without colour where the encoder was trained
    on coloured clouds.
    """
    import numpy as np
    import torch

    from train.data.objects import normalised

    if not path.is_file():
        raise FileNotFoundError(f"--cloud {path}: there is no such file")
    try:
        cloud = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"--cloud {path} is no plain array: {error}") from None
    if colour and cloud.ndim == 2 and cloud.shape[1] == 3:
        raise ValueError(
            f"--cloud {path} has no colour, shape {cloud.shape}: this encoder was trained on "
            "coloured clouds, (points, 6) with rgb from 0 to 1"
        )
    return torch.from_numpy(normalised(cloud, path.stem, len(cloud)))[None]


if __name__ == "__main__":
    run(main, read_config({"nano": TalkConfig(cloud=Path("cloud.npy"))}))
