"""What a run is made of: the settings of the recipes with their presets.

The sizes of the models are in `train.sizes`, the settings of a capture in `train.capture_config`;
all have their names here too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from store.layers import parse_layers
from train.capture_config import CaptureConfig
from train.sizes import (
    MODELS,
    NANO,
    SHIPPED,
    SMALL,
    ModelConfig,
    published_sizes,
    read_sizes,
)

__all__ = [
    "MODELS",
    "NANO",
    "RECIPES",
    "SHIPPED",
    "SMALL",
    "STAGE1",
    "STAGE2",
    "TRAINED",
    "VARIANTS",
    "CaptureConfig",
    "ModelConfig",
    "Stage1Config",
    "Stage2Config",
    "parse_layers",
    "published_sizes",
    "read_sizes",
    "with_recipe",
]


@dataclass(frozen=True, kw_only=True)
class Stage1Config:
    """Train MiniGPT-3D: its priors, where there are none to load, then its stages in their order.

    One call trains one or more stages and writes one checkpoint; the next one goes on with --from.
    """

    preset: Literal["nano", "small", "minigpt3d"] = "nano"
    """Sizes of the model and of its training; every other flag wins over it."""
    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    stages: str = "priors,I,II,III"
    """What to train, in this order: priors, I, II, III, IV, or a part such as IV (see
    train/stages.py). The priors stand for the published weights that MiniGPT-3D begins with."""
    start: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Checkpoint that the stage before these wrote."""
    weights: Path | None = None
    """Folder of published weights to begin with instead, for --preset minigpt3d: TinyGPT-V's
    before stage I, MiniGPT-3D's of stage III before stage IV."""
    llm: Path | None = None
    """Folder of a Phi, Phi-3, Llama, Mistral or Qwen model as transformers writes it, in the place
    of the LLM of --weights or of --from, of which the front is then used, and from stage I on."""
    llm_type: Literal["phi-2", "phi-3", "llama"] = "phi-2"
    """Architecture of the LLM where it begins with random weights."""
    out: Path | None = None
    """Folder of the checkpoint (default runs/stage1, with preset and stages where they are not the
    default); an interrupted training there goes on."""
    data: Literal["shapes", "objaverse"] = "shapes"
    """Embedded shapes, or Objaverse as PointLLM published it."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    skip_missing: bool = False
    """Leave out conversations whose cloud is missing, instead of stopping."""
    seed: int = 0
    train_per_class: int = 120
    """Training objects of each family of the shapes."""
    query_per_class: int = 12
    """Unseen objects of each family, on which the result is measured."""
    batch_size: int = 24
    """Conversations of a batch; 0 for the published 9, and 6, 10 and 4 by kind."""
    language_steps: int = 600
    """Prior: the LLM alone, answering from words where the cloud will be (as Phi-2 can)."""
    encoder_steps: int = 800
    """Prior: PointBERT against the captions, contrastively (as ULIP-2's)."""
    bridge_steps: int = 900
    """Prior: MLP, whole Q-Former, projector and LLM (as BLIP-2's and TinyGPT-V's)."""
    mlp_steps: int = 60
    """Stage I: the MLP."""
    brief_steps: int = 250
    """Stage II: MLP, Q-Former LoRA and norms, queries, projector, LLM LoRA and norms; captions."""
    mixed_steps: int = 500
    """Stage III: the same on detailed, single-round and multi-round conversations 2:3:3."""
    expert_steps: int = 200
    """Stage IV: query experts and their router, on the same."""
    speed: float = 1.0
    """Factor on every number of steps."""
    router: Literal["sparse", "soft", "constant"] = "sparse"
    """Stage IV: weigh the two likeliest experts, all by their probabilities, or all alike."""
    qformer_dropout: Literal["off", "training", "always"] = "off"
    """LoRA dropout of the Q-Former: where its LoRA trains (stages II and III), or in stage IV too,
    where it is frozen, as the release leaves it on by accident."""
    fps_start: Literal["first", "random"] = "first"
    """First centre of farthest-point sampling; at random, as the release draws it at every step:
    clouds are then encoded at every step too."""
    neighbour_precision: Literal["float32", "float16"] = "float32"
    """Distances by which patches find their points; the release has half precision."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping, as published."""
    cache: bool = True
    """Encode every cloud once and keep its tokens in memory; without, at every step."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision: auto is bf16 on a GPU, fp16 on one without it, none on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: a third more time, far less memory."""
    save_every: int = 100
    """Steps between two checkpoints to resume from."""
    threads: int = 0
    """CPU threads; 0 lets torch choose."""
    dry_run: bool = False
    """Say what each stage would train, on what and how fast, and stop."""

    def __post_init__(self):
        if self.speed <= 0:
            raise ValueError(f"--speed {self.speed}: must be above 0")
        if self.batch_size < 0 or self.clip < 0:
            raise ValueError(
                f"--batch-size {self.batch_size}, --clip {self.clip}: neither can be below 0"
            )

    @property
    def folder(self) -> Path:
        """Where the checkpoint is written."""
        name = "stage1" if self.preset == "nano" else f"stage1-{self.preset}"
        if self.stages != STAGE1[self.preset].stages:
            name += "-" + self.stages.replace(" ", "").replace(",", "-")
        return self.out or Path("runs") / name


TRAINED = ("baseline", "aligned")
"""The two models that stage 2 trains."""
VARIANTS = ("stage1", *TRAINED, "untrained")
"""The models that a stage-2 run captures, in this order."""


AT_LEAST = {
    1: ("steps", "accumulate", "align_projector_layers", "save_every", "log_every"),
    0: (
        *("seed", "threads", "clip", "capture_every", "warmup_steps", "warmup_rate", "floor_rate"),
        *("weight_decay", "train_per_class", "gallery_per_class", "query_per_class"),
    ),
}
"""The least that these settings of stage 2 may be."""


@dataclass(frozen=True, kw_only=True)
class Stage2Config:
    """Train the baseline and the aligned model, capture their layers, see where geometry goes."""

    preset: Literal["nano", "small", "minigpt3d"] = "nano"
    """Settings of the training, and the sizes of the model where nothing is loaded that has its
    own; every other flag wins over it."""
    recipe: Literal["ours", "release", "paper"] = "ours"
    """Whose numerics: ours, PointAlign's released code, or the text of its paper (see RECIPES)."""
    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    out: Path | None = None
    """Folder of the run (default runs/PRESET-DATA-seedSEED); an interrupted run there goes on."""
    store: str | None = None
    """Where the states go instead: a folder, or any fsspec URL such as s3://bucket/run."""
    stage1: Path | None = None
    """Checkpoint to start from (default: the nano one that ships with the project)."""
    weights: Path | None = None
    """Folder of the published weights to start from instead, for --preset minigpt3d."""
    start: Literal["pointalign-pretrain", "stage-3", "stage-4"] = "pointalign-pretrain"
    """Which published files of --weights to begin with: PointAlign's, or MiniGPT-3D's of stage III
    or, with its query experts, IV."""
    data: Literal["shapes", "modelnet", "objaverse"] = "shapes"
    """Embedded shapes, ModelNet in any of its formats, or Objaverse as PointLLM published it."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    data_fraction: float = 1.0
    """Share of the training objects used; a smaller share is part of every larger one."""
    skip_missing: bool = False
    """Leave out conversations whose cloud is missing, instead of stopping with their ids."""
    capture_layers: str = "4,8,...,32"
    """Layers to capture besides 0: 4,8,...,32 or all or 1-8,16."""
    align_layer: int | str = 16
    """Output of this block is aligned; several (8,16) or a band (12-20) get a projector each."""
    align_weight: float = 0.1
    """Weight of the alignment loss in the aligned model; 0 would train the baseline again."""
    align_schedule: Literal["constant", "rise", "fall"] = "constant"
    """The weight over training: as it is, rising to it from 0, or falling from it to 0."""
    align_loss: Literal["cosine", "l1", "l2", "learned", "contrastive"] = "cosine"
    """Cosine distance, absolute or squared error; a cosine with learned weights of the target's
    dimensions; or InfoNCE, token j of an object against token j of the others in the batch."""
    align_projector_layers: int = 3
    """Linear layers of the alignment projector, 1 to 4 in the paper."""
    align_target: Literal["qformer", "projector-mid", "projector"] = "qformer"
    """What the point tokens are pulled to: Q-Former output, or inside or after the projector."""
    align_positions: Literal["points", "release"] = "points"
    """The point tokens; or the last 32 positions of the longest prompt, as the release reads."""
    fps_start: Literal["first", "random"] = "first"
    """First centre of farthest-point sampling; at random, as the release draws it each time."""
    qformer_dropout: bool = False
    """Leave LoRA dropout on in the frozen Q-Former, as the release does by accident."""
    neighbour_precision: Literal["float32", "float16"] = "float32"
    """Distances by which patches find their points; the release has half precision."""
    single_turn_template: bool = True
    """Wrap single-turn questions in [INST] .. [/INST]; the release's stage 2 does not."""
    train_norms: bool = True
    """Train the weights of the LLM's norms beside LoRA, as the release does; the paper names LoRA
    and the alignment projector alone."""
    seed: int = 0
    """Seeds the data, the order of training, the dropouts, the controls and the intervals."""
    steps: int = 240
    batch_size: str = "16"
    """Conversations of a batch over all processes; or three numbers, for detailed, single-round
    and multi-round ones (published: 6,10,4)."""
    accumulate: int = 1
    """Batches summed up before a step."""
    learning_rate: float = 2e-3
    """Peak, reached after the warm-up."""
    warmup_rate: float = 1e-4
    floor_rate: float = 1e-4
    warmup_steps: int = 24
    decay: Literal["cosine", "linear"] = "cosine"
    """How the rate falls from its peak to the floor."""
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping, as published."""
    train_per_class: int = 32
    """Training objects of each class; 0 for all."""
    gallery_per_class: int = 20
    """Objects of each class among which neighbours are looked up."""
    query_per_class: int = 10
    """Unseen objects of each class that are looked up."""
    neighbours: str = "1,10"
    """K of the nearest-neighbour probe."""
    capture_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    capture_every: int = 0
    """Steps between two captures of a model in training; 0 captures it at the end only."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision: auto is bf16 on a GPU that has it and none on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: a third more time, far less memory."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention of the LLM: torch's fused one, or the plain one the published code runs."""
    cache: bool = True
    """Compute the frozen front once for each object; without, at every step."""
    save_every: int = 40
    """Steps between two checkpoints to resume from."""
    log_every: int = 10
    threads: int = 0
    """CPU threads; 0 lets torch choose."""
    dry_run: bool = False
    """Say what would train, the layers, the memory and the size of the store, and stop; nothing is
    made but the embedded data set, where it is not there."""

    def __post_init__(self):
        for least, names in AT_LEAST.items():
            for name in names:
                if not getattr(self, name) >= least:  # nor is NaN
                    value = getattr(self, name)
                    raise ValueError(f"--{name.replace('_', '-')} {value}: at least {least}")
        if not self.learning_rate > 0 or self.floor_rate > self.learning_rate:
            raise ValueError(
                f"--learning-rate {self.learning_rate:g}: must be above 0 and not below "
                f"--floor-rate {self.floor_rate:g}, to which it falls; give both"
            )
        if not self.align_weight > 0:
            raise ValueError(
                f"--align-weight {self.align_weight}: must be above 0; the baseline (weight 0) is "
                "trained beside it anyway"
            )
        if self.capture_every and self.steps % self.capture_every:
            raise ValueError(
                f"--capture-every {self.capture_every}: must divide --steps {self.steps}, so that "
                "the finished model is captured too"
            )
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"--data-fraction {self.data_fraction}: above 0, at most 1")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.neighbours):
            raise ValueError(f"--neighbours {self.neighbours!r}: numbers such as 1,10")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*,[1-9]\d*)?", self.batch_size):
            raise ValueError(f"--batch-size {self.batch_size!r}: one number, or three as 6,10,4")
        if self.align_loss == "contrastive" and min(self.batch_sizes.values()) < 2:
            raise ValueError(
                "--align-loss contrastive needs --batch-size 2 or more: a token is told from those "
                "of the other objects in its batch"
            )
        if self.weights and (self.stage1 or self.preset != "minigpt3d"):
            raise ValueError(
                "--weights goes with --preset minigpt3d, and not with --stage1: the run begins "
                "with the published files or with a checkpoint of ours"
            )

    @property
    def ks(self) -> list[int]:
        """K of the nearest-neighbour probe, as numbers."""
        return [int(k) for k in self.neighbours.split(",")]

    def aligned_layers(self, depth: int) -> list[int]:
        """The layers that are aligned in an LLM of so many blocks; ValueError for one it lacks."""
        try:
            layers = parse_layers(str(self.align_layer), depth)
        except ValueError as error:
            raise ValueError(f"--align-layer must be 1 to {depth}: {error}") from None
        if layers[0] == 0:
            raise ValueError(
                f"--align-layer {self.align_layer}: must be 1 to {depth}; nothing before layer 0 "
                "(what enters block 1) trains"
            )
        return layers

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Conversations of a batch, by their kind."""
        sizes = [int(size) for size in self.batch_size.split(",")]
        kinds = ("detailed_description", "single_round", "multi_round")
        return dict(zip(kinds, sizes * 3 if len(sizes) == 1 else sizes, strict=True))

    @property
    def stochastic_front(self) -> bool:
        """Whether the frozen front gives other targets each time, so that it can't be cached."""
        return self.fps_start == "random" or self.qformer_dropout

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"{self.preset}-{self.data}-seed{self.seed}"


STAGE1 = {
    "nano": Stage1Config(),
    "small": Stage1Config(preset="small", train_per_class=400, batch_size=64, speed=4),
    "minigpt3d": Stage1Config(
        preset="minigpt3d",
        stages="I,II,III,IV",
        data="objaverse",
        batch_size=0,
        mlp_steps=70_000,
        brief_steps=70_000,
        mixed_steps=30_000,
        expert_steps=10_000,
        qformer_dropout="training",
        clip=0.0,
        cache=False,
        save_every=1000,
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
        batch_size="6,10,4",
        learning_rate=3e-6,
        warmup_rate=1e-7,
        floor_rate=1e-7,
        warmup_steps=1000,
        train_per_class=0,
        gallery_per_class=1000,
        query_per_class=500,
        save_every=500,
    ),
}

RECIPES: dict[str, dict[str, Any]] = {
    "ours": {},
    "release": {
        "align_layer": 15,
        "align_positions": "release",
        "fps_start": "random",
        "qformer_dropout": True,
        "neighbour_precision": "float16",
        "single_turn_template": False,
        "attention": "eager",
        "clip": 0.0,
    },
    "paper": {"train_norms": False, "decay": "linear", "warmup_steps": 0, "clip": 0.0},
}
"""What `--recipe` sets on top of a preset: what the released code of PointAlign does and we would
not, or what the text of its paper says. Single flags win over it."""


def with_recipe(preset: Stage2Config, recipe: str) -> Stage2Config:
    """A preset with the settings of a recipe; one of an unknown name is left as it is.

    The paper's rate falls to a third of its peak, from 3e-6 to 1e-6: so does that of any preset.
    """
    settings: dict[str, Any] = dict(RECIPES.get(recipe, {}))
    if recipe == "paper":
        settings["floor_rate"] = preset.learning_rate / 3
    return replace(preset, **settings, recipe=recipe) if settings else preset  # type: ignore[arg-type]
