"""Sizes of a MiniGPT-3D: the published ones, two smaller sets, and those of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a MiniGPT-3D; the defaults are the published ones (Tang et al. 2024)."""

    points: int = 8192
    """Points of a cloud, each xyz and rgb."""
    encoder_width: int = 384
    encoder_depth: int = 12
    encoder_heads: int = 6
    groups: int = 512
    """Patches of the cloud, found by farthest-point sampling."""
    group_size: int = 32
    """Points of a patch."""
    patch_width: int = 256
    """Width of a patch's embedding inside the mini-PointNet."""
    mlp_width: int = 768
    """Hidden width between the encoder and the Q-Former."""
    qformer_input: int = 1408
    qformer_width: int = 768
    qformer_depth: int = 12
    qformer_heads: int = 12
    qformer_ffn: int = 3072
    qformer_lora_rank: int = 8
    """Its alpha is twice the rank, as published."""
    qformer_lora_dropout: float = 0.1
    queries: int = 32
    """Point tokens of an object."""
    projector_width: int = 4096
    llm_width: int = 2560
    llm_depth: int = 32
    llm_heads: int = 32
    llm_ffn: int = 10240
    llm_rotary: float = 0.4
    """Share of each head's dimensions that rotary embedding turns."""
    llm_lora_rank: int = 64
    llm_lora_alpha: int = 16
    llm_lora_dropout: float = 0.05
    llm_dropout: float = 0.1
    llm_branch_scale: float = 1.0
    """First value of the norm on each attention output; below 1, random blocks stay quiet."""
    llm_activation: Literal["gelu_pytorch_tanh", "gelu_new"] = "gelu_pytorch_tanh"
    """Phi-2's gelu in one kernel, which keeps far less for the backward pass; or step by step."""
    llm_context: int = 2048
    vocabulary: int = 51200
    llm_type: str = "phi-2"
    """Phi-2 as MiniGPT-3D changes it; or a stock class of transformers: phi-3, or llama, mistral,
    phi and others by transformers' own name."""
    llm_settings: dict[str, Any] = field(default_factory=dict)
    """A stock LLM's own config.json, where it was read from a folder; wins over the sizes here."""
    experts: int = 0
    """Query experts, 8 in the published stage IV; 0 for a model without them."""
    router: Literal["sparse", "soft", "constant"] = "sparse"
    """How the experts are weighed: the two likeliest, all by probability, or all alike."""
    router_width: int = 256


NANO = ModelConfig(
    encoder_width=96,
    encoder_depth=4,
    encoder_heads=4,
    groups=64,
    patch_width=64,
    mlp_width=192,
    qformer_input=128,
    qformer_width=96,
    qformer_depth=4,
    qformer_heads=4,
    qformer_ffn=192,
    queries=32,
    projector_width=192,
    llm_width=96,
    llm_heads=6,
    llm_ffn=192,
    llm_rotary=0.5,
    llm_activation="gelu_new",  # the shipped checkpoint was trained with its rounding
    llm_lora_rank=8,
    llm_lora_alpha=8,
    # No dropout: on a CPU drawing it is a fifth of a step, and the small model does not overfit.
    llm_lora_dropout=0.0,
    llm_dropout=0.0,
    llm_branch_scale=0.2,
    llm_context=512,
    vocabulary=1024,
)

SMALL = ModelConfig(
    encoder_width=384,
    encoder_depth=6,
    groups=256,
    mlp_width=512,
    qformer_input=512,
    qformer_width=512,
    qformer_depth=6,
    qformer_heads=8,
    qformer_ffn=1536,
    projector_width=1024,
    llm_width=448,
    llm_heads=8,
    llm_ffn=1344,
    llm_rotary=0.5,
    llm_lora_rank=32,
    llm_branch_scale=0.2,
    llm_context=1024,
    vocabulary=4096,
)


def read_sizes(path: Path) -> ModelConfig:
    """The sizes in the config.json of a checkpoint; ValueError where it holds something else."""
    try:
        given = json.loads(path.read_text())
        if "architectures" in given:
            raise ValueError(
                "it is of a language model of transformers, which python -m train.stage1 --llm "
                "takes behind the encoder of --from or --weights"
            )
        sizes = replace(ModelConfig(), **given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold a model's sizes: {error}") from None
    for each in fields(ModelConfig):
        value, usual = getattr(sizes, each.name), getattr(ModelConfig(), each.name)
        if not isinstance(value, int | float if isinstance(usual, float) else type(usual)):
            raise ValueError(f"{path} does not hold a model's sizes: {each.name} is {value!r}")
    return sizes


SHIPPED = Path(__file__).parent / "checkpoints" / "nano-stage1"
"""The checkpoint that comes with the project."""
MODELS = {"nano": NANO, "small": SMALL, "minigpt3d": ModelConfig()}


def published_sizes(folder: Path) -> ModelConfig:
    """Sizes of the model in a folder of published weights, for every command that takes one.

    They are the published ones, unless a config.json in the folder, as in a checkpoint of ours,
    says otherwise. Raises FileNotFoundError where there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--weights {folder}: there is no such folder")
    path = folder / "config.json"
    return read_sizes(path) if path.is_file() else MODELS["minigpt3d"]
