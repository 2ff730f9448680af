"""What a capture is made of: the settings of python -m train.capture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train.sizes import SHIPPED

PER_CLASS = ("train_per_class", "gallery_per_class", "query_per_class")


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
    start: Literal["pointalign-pretrain", "pointalign-finetune", "stage-3", "stage-4"] = (
        "pointalign-pretrain"
    )
    """Which published files of --weights: PointAlign's before its stage 2 or its aligned model, or
    MiniGPT-3D's of stage III or, with its query experts, IV."""
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
    """Every token, or their mean. Answers are of many lengths: the store says how many tokens each
    object has (n_tokens), zeros stand behind them, and probes read their mean."""
    data: Literal["shapes", "modelnet", "objaverse"] = "shapes"
    """Embedded shapes, ModelNet in any of its formats, or Objaverse as PointLLM published it."""
    data_root: Path = Path("data")
    """Folder of the data; `shapes` is made there, once."""
    out: Path | None = None
    """Folder of the run (default runs/capture-DATA-seedSEED)."""
    store: str | None = None
    """Where the states go instead: a folder, or any fsspec URL such as s3://bucket/run."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Of the stored states; bfloat16 is kept exactly, as its bit patterns."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the LLM's matrices while it runs: no is float32."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention of the LLM: torch's fused one, or the plain one."""
    batch_size: int = 0
    """Objects that pass through together; 0 for a whole chunk of the store."""
    draw: int = 0
    """Which points of a cloud the model takes, and from which its patches begin. Any but 0 makes a
    second capture of the same objects: python -m probe RUN --again SECOND tells the noise."""
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
        for name in ("batch_size", "threads", "draw", "seed", *PER_CLASS):
            if (number := getattr(self, name)) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {number}: 0 or more")
        if self.start != "pointalign-pretrain" and not self.weights:
            raise ValueError(f"--start {self.start} goes with --weights, the published files")
        if self.start == "pointalign-finetune" and self.trained:
            raise ValueError(
                f"--start {self.start}: --trained was trained from the model before it"
            )
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
    def asks(self) -> bool:
        """Whether the question is seen by what is captured: it stands behind the point tokens."""
        return self.tokens != "point" or self.host == "bindllm"

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return self.out or Path("runs") / f"capture-{self.data}-seed{self.seed}"
