"""What a run is made of: layer lists, model sizes and the presets that are instances of them."""

from __future__ import annotations

import re
from dataclasses import dataclass


def parse_layers(text: str, depth: int) -> list[int]:
    """Read a list of layers such as `4,8,...,32`, `all`, `0`, `4-8` or a mix of them.

    text  : items separated by commas; `...` continues the step of the two layers before it up to
            the layer after it; `a-b` is every layer from a to b; `all` is 0 to depth.
    depth : number of blocks of the model; layer 0 is what enters block 1.

    Returns the layers in rising order, each once. Raises ValueError that names the depth and the
    bad item.
    """
    layers: list[int] = []
    items = [item.strip() for item in text.split(",")]
    for place, item in enumerate(items):
        if item == "all":
            layers += range(depth + 1)
        elif item in ("...", "…"):
            layers += _progression(text, items, place, layers, depth)
        elif span := re.fullmatch(r"(\d+)-(\d+)", item):
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise _bad_layers(text, item, depth, f"{first} is after {last}")
            layers += range(first, last + 1)
        elif re.fullmatch(r"\d+", item):
            layers.append(int(item))
        else:
            raise _bad_layers(text, item, depth, "it is not a layer, a span, 'all' or '...'")
        if wrong := [layer for layer in layers if layer > depth]:
            raise _bad_layers(text, item, depth, f"there is no layer {wrong[0]}")
    return sorted(set(layers))


def _progression(
    text: str, items: list[str], place: int, before: list[int], depth: int
) -> range:
    """The layers that `...` stands for: from the last one written to the one after the dots."""
    item = items[place]
    if place < 2 or not all(re.fullmatch(r"\d+", each) for each in items[place - 2 : place]):
        raise _bad_layers(text, item, depth, "two layers must stand before it, as in 4,8,...,32")
    if place + 1 >= len(items) or not re.fullmatch(r"\d+", items[place + 1]):
        raise _bad_layers(text, item, depth, "a last layer must stand after it, as in 4,8,...,32")
    step, last = before[-1] - before[-2], int(items[place + 1])
    if step <= 0 or last <= before[-1] or (last - before[-1]) % step:
        raise _bad_layers(text, item, depth, f"steps of {step} from {before[-1]} don't meet {last}")
    if last > depth:
        raise _bad_layers(text, items[place + 1], depth, f"there is no layer {last}")
    return range(before[-1] + step, last, step)


def _bad_layers(text: str, item: str, depth: int, why: str) -> ValueError:
    return ValueError(
        f"layers {text!r}: bad item {item!r}, {why}; this model has layers 0 (what enters block 1) "
        f"to {depth}, written like 4,8,...,{depth} or all"
    )


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
    llm_context: int = 2048
    vocabulary: int = 51200


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
    llm_lora_rank=8,
    llm_lora_alpha=8,
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
    llm_context=1024,
    vocabulary=4096,
)

MODELS = {"nano": NANO, "small": SMALL, "minigpt3d": ModelConfig()}
