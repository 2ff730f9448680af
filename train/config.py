"""What a run is made of: layer lists, model sizes and the presets that are instances of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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


def _progression(text: str, items: list[str], place: int, before: list[int], depth: int) -> range:
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
    llm_branch_scale: float = 1.0
    """First value of the norm on each attention output; below 1, random blocks stay quiet."""
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

MODELS = {"nano": NANO, "small": SMALL, "minigpt3d": ModelConfig()}


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """Train MiniGPT-3D as far as PointAlign takes it up: priors, then the recipes I, II, III."""

    preset: Literal["nano", "small"] = "nano"
    """Sizes of the model and of its training."""
    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    out: Path = Path("runs/stage1")
    """Folder of the checkpoint; an interrupted training there goes on."""
    data_root: Path = Path("data")
    """Where the embedded data set is made, once."""
    seed: int = 0
    train_per_class: int = 120
    """Training objects of each family."""
    query_per_class: int = 12
    """Unseen objects of each family, on which the result is measured."""
    batch_size: int = 24
    language_steps: int = 600
    """The LLM alone, answering from words where the cloud will be (Phi-2 comes with this)."""
    encoder_steps: int = 800
    """PointBERT against the captions, contrastively (ULIP-2 comes with this)."""
    bridge_steps: int = 900
    """MLP, whole Q-Former, projector and LLM (BLIP-2 and TinyGPT-V come with this)."""
    mlp_steps: int = 60
    """Recipe I: the MLP."""
    brief_steps: int = 250
    """Recipe II: MLP, Q-Former LoRA and norms, queries, projector, LLM LoRA and norms; captions."""
    mixed_steps: int = 500
    """Recipe III: the same on detailed, single-round and multi-round conversations 2:3:3."""
    speed: float = 1.0
    """Factor on every number of steps."""
    threads: int = 0
    """CPU threads; 0 lets torch choose."""


TRAINED = ("baseline", "aligned")
"""The two models that stage 2 trains."""
VARIANTS = ("stage1", *TRAINED, "untrained")
"""The models that a stage-2 run captures, in this order."""


@dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """Train the baseline and the aligned model, capture their layers, see where geometry goes."""

    preset: Literal["nano", "small", "minigpt3d"] = "nano"
    """Sizes of the model and of its training; every other flag wins over it."""
    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    out: Path | None = None
    """Folder of the run (default runs/PRESET-DATA-seedSEED); an interrupted run there goes on."""
    stage1: Path | None = None
    """Checkpoint to start from (default: the nano one that ships with the project)."""
    data: Literal["shapes", "modelnet", "objaverse"] = "shapes"
    """Embedded shapes, ModelNet in any of its formats, or Objaverse as PointLLM published it."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    capture_layers: str = "4,8,...,32"
    """Layers to capture besides 0: 4,8,...,32 or all or 1-8,16."""
    align_layer: int = 16
    """Output of this block is aligned; the released code of PointAlign reads 15."""
    align_weight: float = 0.1
    """Weight of the alignment loss in the aligned model; 0 would train the baseline again."""
    align_loss: Literal["cosine", "l1", "l2"] = "cosine"
    align_projector_layers: int = 3
    seed: int = 0
    """Seeds the data, the order of training, the dropouts, the controls and the intervals."""
    steps: int = 240
    batch_size: int = 16
    accumulate: int = 1
    """Batches summed up before a step."""
    learning_rate: float = 2e-3
    """Peak, reached after the warm-up."""
    warmup_rate: float = 1e-4
    floor_rate: float = 1e-4
    warmup_steps: int = 24
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient."""
    train_per_class: int = 32
    gallery_per_class: int = 20
    """Objects of each class among which neighbours are looked up."""
    query_per_class: int = 10
    """Unseen objects of each class that are looked up."""
    neighbours: str = "1,10"
    """K of the nearest-neighbour probe."""
    capture_dtype: Literal["float16", "float32"] = "float16"
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision: auto is bf16 on a GPU that has it and none on a CPU."""
    save_every: int = 40
    """Steps between two checkpoints to resume from."""
    log_every: int = 10
    threads: int = 0
    """CPU threads; 0 lets torch choose."""
    dry_run: bool = False
    """Say what would train, the layers, the memory and the size of the store, and stop."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "align_projector_layers", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        if self.align_weight <= 0:
            raise ValueError(
                f"--align-weight {self.align_weight}: must be above 0; the baseline (weight 0) is "
                "trained beside it anyway"
            )
        if not re.fullmatch(r"\d+(,\d+)*", self.neighbours):
            raise ValueError(f"--neighbours {self.neighbours!r}: numbers such as 1,10")

    @property
    def ks(self) -> list[int]:
        """K of the nearest-neighbour probe, as numbers."""
        return [int(k) for k in self.neighbours.split(",")]

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"{self.preset}-{self.data}-seed{self.seed}"


STAGE1 = {
    "nano": Stage1Config(),
    "small": Stage1Config(
        preset="small", out=Path("runs/stage1-small"), train_per_class=400, batch_size=64, speed=4
    ),
}

STAGE2 = {
    "nano": Stage2Config(),
    "small": Stage2Config(
        preset="small",
        steps=2000,
        warmup_steps=200,
        learning_rate=1e-4,
        warmup_rate=1e-5,
        floor_rate=1e-5,
    ),
    "minigpt3d": Stage2Config(
        preset="minigpt3d",
        data="objaverse",
        steps=10_000,
        batch_size=10,
        learning_rate=3e-6,
        warmup_rate=1e-7,
        floor_rate=1e-7,
        warmup_steps=1000,
        save_every=500,
    ),
}
