"""What a run is made of: layer lists, model sizes and the presets that are instances of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


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
    llm_activation: Literal["gelu_pytorch_tanh", "gelu_new"] = "gelu_pytorch_tanh"
    """Phi-2's gelu in one kernel, which keeps far less for the backward pass; or step by step."""
    llm_context: int = 2048
    vocabulary: int = 51200
    llm_type: Literal["phi-2", "phi-3", "llama"] = "phi-2"
    """Phi-2 as MiniGPT-3D changes it, or the stock class of transformers for Phi-3 or Llama."""
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
        sizes = replace(ModelConfig(), **json.loads(path.read_text()))
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
    """Folder of a Phi-3 or Llama model as transformers writes it, in the place of Phi-2: with
    --weights, of which the encoder and the Q-Former are then used, and from stage I on."""
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
    "paper": {"decay": "linear", "warmup_steps": 0, "clip": 0.0},
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


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """Capture the layers of a model for the objects of a data set: a run to probe and to look at.

    Objects, model and layers make a run; a stopped one goes on with the same command.
    """

    config: Path | None = None
    """YAML file of these settings; flags on the command line win over it."""
    checkpoint: Path = SHIPPED
    """Folder of a checkpoint of ours (default: the nano one that ships with the project)."""
    weights: Path | None = None
    """Folder of the published weights instead."""
    host: Literal["minigpt3d", "bindllm"] = "minigpt3d"
    """MiniGPT-3D, or Point-LLM: --checkpoint is then a folder of python -m train.pointllm, and
    --weights one of its published files."""
    llm: Path | None = None
    """Folder of any causal language model of transformers (config.json, safetensors,
    tokenizer.json) to put in the place of the checkpoint's: its point tokens enter there."""
    llm_map: Path | None = None
    """With --llm: safetensors file of the linear map from our projector's width to the LLM's;
    default: none where they are equal, else one drawn with the seed that keeps angles."""
    trained: tuple[Path, ...] = ()
    """Folders of what stage 2 trained from it (RUN/checkpoints/aligned), to capture as well."""
    question: str = "What is this?"
    """Asked before the caption, where the tokens of an answer are captured; of Point-LLM always."""
    cache: bool = False
    """Point-LLM: draw the cloud's vector to its neighbours by the visual cache."""
    layers: str = "all"
    """Layers to capture: all, 4,8,...,32 or 0-8,16; 0 is what enters block 1."""
    sites: str = "resid"
    """Where: a list of resid (the stream), attn and mlp (what a block's branches add to it, each
    in a run of its own, OUT/attn and OUT/mlp)."""
    tokens: Literal["point", "answer", "all"] = "point"
    """The point tokens; or those of the caption as an answer, or of the whole conversation."""
    pool: Literal["none", "mean"] = "none"
    """Every token, or their mean; answers are of many lengths and need the mean."""
    data: Literal["shapes", "modelnet", "objaverse"] = "shapes"
    """Embedded shapes, ModelNet in any of its formats, or Objaverse as PointLLM published it."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    out: Path | None = None
    """Folder of the run (default runs/capture-DATA-seedSEED)."""
    store: str | None = None
    """Where the states go instead: a folder, or any fsspec URL such as s3://bucket/run."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of the stored states."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the LLM's matrices while it runs: no is float32."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention of the LLM: torch's fused one, or the plain one."""
    batch_size: int = 0
    """Objects that pass through together; 0 for a whole chunk of the store."""
    seed: int = 0
    """Of the data."""
    train_per_class: int = 32
    """Training objects of the shapes, which are not captured but part of the set's making."""
    gallery_per_class: int = 20
    """Objects of each class among which neighbours are looked up; 0 for all there are."""
    query_per_class: int = 10
    """Unseen objects of each class that are looked up; 0 for all there are."""
    skip_missing: bool = False
    """Leave out conversations whose cloud is missing, instead of stopping with their ids."""
    threads: int = 0
    """CPU threads; 0 lets torch choose."""

    def __post_init__(self):
        known = ("resid", "attn", "mlp")
        if wrong := [site for site in self.site_list if site not in known]:
            raise ValueError(f"--sites {self.sites!r}: {wrong[0]!r} is none of {', '.join(known)}")
        if "resid" not in self.site_list:
            raise ValueError(f"--sites {self.sites!r}: resid is always among them")
        if self.tokens != "point" and self.pool == "none":
            raise ValueError(f"--tokens {self.tokens} are of many lengths: add --pool mean")
        if self.batch_size < 0:
            raise ValueError(f"--batch-size {self.batch_size}: 0 or more")
        if self.llm_map and not self.llm:
            raise ValueError("--llm-map goes with --llm, the model that it leads to")
        if self.llm and self.trained:
            raise ValueError("--llm and --trained: what stage 2 trained belongs to the other LLM")
        if self.cache and self.host != "bindllm":
            raise ValueError("--cache goes with --host bindllm: MiniGPT-3D has no visual cache")
        if self.host == "bindllm" and (self.llm or self.trained or self.tokens != "point"):
            raise ValueError("--host bindllm takes no --llm, --trained or --tokens: see its help")

    @property
    def site_list(self) -> list[str]:
        """The sites, each once."""
        return list(dict.fromkeys(site.strip() for site in self.sites.split(",")))

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"capture-{self.data}-seed{self.seed}"
