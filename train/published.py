"""Published files to a model: each file of a weights folder holds a part, stacked in their order.

    python -m train.stage2 --preset minigpt3d --weights DIR

Names and shapes are checked before memory is taken for the model. `train.published_files` says what
each file must hold, `train.weight_files` reads them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from train.checkpoint import give_numbers, held_in, sha256
from train.config import ModelConfig
from train.losses import AlignmentProjector
from train.models import phi, qformer
from train.models.experts import MixtureOfQueryExperts
from train.models.llm import read_tokenizer
from train.models.minigpt3d import MiniGPT3D, build
from train.models.pointbert import check_names
from train.prompts import bos_id
from train.published_files import (
    BLIP2,
    CHAINS,
    ENCODER,
    PHI2,
    File,
    find_files,
    is_mlp,
    stage_of,
)
from train.weight_files import read_file, read_json, weight_files

ADDED_NORM = re.compile(r"\.(post|q|k)_layernorm\.weight$")
BESIDE = ("alignment_projector.", "query_expert_dict.", "query_router.")
"""Modules that stand beside the model: PointAlign's projector, and stage IV's query experts."""
PHI_CONFIG = {
    "hidden_size": "llm_width",
    "intermediate_size": "llm_ffn",
    "num_hidden_layers": "llm_depth",
    "num_attention_heads": "llm_heads",
    "vocab_size": "vocabulary",
    "partial_rotary_factor": "llm_rotary",
}
"""Entry of Phi-2's config.json -> ours. Heads and rotary share leave no trace in any shape."""


@dataclass(frozen=True)
class Source:
    """What one file gave to the model; used + copies + dropped is all that it holds."""

    path: Path
    sha256: str
    used: int
    """Tensors taken from it; a later file may have replaced some."""
    copies: int
    """Tensors of the encoder that are the same as in the file before, or twice in this one."""
    replaced: int
    """Tensors of the encoder, among those used, that differ from the file before."""
    dropped: tuple[str, ...]
    """Tensors that no part of the model reads, by name."""

    def __str__(self) -> str:
        text = f"{self.path.name}: {self.used} tensors"
        if self.copies:
            text += f", {self.copies} equal copies"
        if self.replaced:
            text += f", {self.replaced} of the encoder differ from the file before and win"
        if self.dropped:
            modules = Counter(sorted(name.split(".")[0] for name in self.dropped))
            each = ", ".join(f"{module} {count}" for module, count in modules.items())
            text += f", {len(self.dropped)} not read ({each})"
        return f"{text}, sha256 {self.sha256[:12]}"


@dataclass(frozen=True)
class Published:
    """A model made of published files, on the CPU in eval mode, and where each part came from."""

    model: MiniGPT3D
    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    fresh: tuple[str, ...]
    """Published names of what no file holds: norm biases at 0; before stage I, MLP and LoRA too."""
    first_queries: Tensor
    """BLIP-2's `query_tokens` (1, queries, width), from which stage IV begins its experts."""
    experts: MixtureOfQueryExperts | None = None
    """From stage IV, part of the model; its expert 0 is the Q-Former's `query_tokens`."""
    alignment_projector: AlignmentProjector | None = None
    """From PointAlign's stage 2: trained there, for measuring; the model does not need it."""

    def hashes(self) -> dict[str, str]:
        """{folder/file: sha256}, for the record of a run."""
        return {f"{each.path.parent.name}/{each.path.name}": each.sha256 for each in self.sources}


def load_folder(
    folder: Path,
    config: ModelConfig | None = None,
    *,
    upto: str = "pointalign-pretrain",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Published:
    """Stack the published files of a folder into one model, tokenizer included.

    config : sizes; the published ones if not given.
    upto   : how far the model has come, one of `CHAINS`; other files are not opened.
    dtype  : of the LLM's own matrices and their biases; norms, LoRA and all before the LLM are
             float32 whatever the files hold.
    seed   : draws what training begins with before stage I: the MLP and the Q-Former's LoRA.

    Raises FileNotFoundError that lists every absent file and where it was looked for, ValueError
    when a file is damaged, unsafe, of another stage or of other sizes.
    """
    config = config or ModelConfig()
    if upto not in CHAINS or upto == "front":
        raise ValueError(f"upto={upto!r} must be one of {', '.join(list(CHAINS)[1:])}")
    paths = find_files(Path(folder), upto)
    tokenizer = _read_language(paths[PHI2], config)
    # Without numbers: 2.8 billion random ones would take minutes and be thrown away.
    with torch.device("meta"):
        model = build(replace(config, experts=0))
    own = model.state_dict()
    shapes = {name: own[ours] for name, ours in published_names(model).items()}
    state: dict[str, Tensor] = {}
    sources: list[Source] = []
    for file in CHAINS[upto]:
        sources += _stack(file, paths[file], shapes, config.llm_heads, state)
        if file is BLIP2:
            first_queries = state["query_tokens"].float().clone()
    beside = {name: state.pop(name) for name in list(state) if name.startswith(BESIDE)}
    experts = alignment = None
    if upto == "stage-4":
        experts = _experts(beside | {"query_tokens": state["query_tokens"]}, config)
    elif upto == "pointalign-finetune":
        alignment = _alignment(beside, config)
    fresh = _fill(model, state, dtype, seed)
    if experts is not None:
        model.experts = experts
        experts.share_queries(model.qformer.query_tokens)
    return Published(
        model.eval(), tokenizer, tuple(sources), fresh, first_queries, experts, alignment
    )


def load_front(folder: Path, model: MiniGPT3D) -> tuple[Source, ...]:
    """Put the published encoder and BLIP-2's Q-Former into a model with an LLM of any kind.

    What stage I and II train, MLP, LoRA and projector, stays as it is. Raises as `load_folder`.
    """
    paths = find_files(Path(folder), "front")
    own, names = model.state_dict(), published_names(model)
    shapes = {name: own[ours] for name, ours in names.items() if not ours.startswith("llm.")}
    state: dict[str, Tensor] = {}
    sources: list[Source] = []
    for file in CHAINS["front"]:
        sources += _stack(file, paths[file], shapes, 1, state)
    with torch.no_grad():
        for name, value in state.items():
            own[names[name]].copy_(value)
    return tuple(sources)


def published_names(model: MiniGPT3D) -> dict[str, str]:
    """{published name: our name} for every tensor of a model."""
    names = {ENCODER + name: f"point_encoder.{name}" for name in model.point_encoder.state_dict()}
    for ours, theirs in (
        ("mlp.first", "point_2_Qformer_proj.0"),
        ("mlp.second", "point_2_Qformer_proj.2"),
        ("projector.first", "llama_proj"),
        ("projector.second", "llama_proj2"),
    ):
        names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
    names |= {qformer.published_name(n): f"qformer.{n}" for n in model.qformer.state_dict()}
    return names | {key: f"llm.{name}" for key, name in phi.published_names(model.llm).items()}


def _read_language(folder: Path, config: ModelConfig) -> Tokenizer:
    """Hold Phi-2's config.json against the sizes; returns the tokenizer."""
    path, given = folder / "config.json", read_json(folder / "config.json")
    rope = given.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{path}: rope_parameters is a {type(rope).__name__}; copy it again")
    given = rope | given
    wrong = [
        f"{theirs} {given[theirs]} instead of {getattr(config, ours)}"
        for theirs, ours in PHI_CONFIG.items()
        if theirs in given and given[theirs] != getattr(config, ours)
    ]
    if wrong:
        raise ValueError(f"{path} is of another model: {', '.join(wrong)}")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > config.vocabulary:
        raise ValueError(
            f"{folder / 'tokenizer.json'} has {tokenizer.get_vocab_size()} tokens, the model "
            f"embeds {config.vocabulary}"
        )
    bos_id(tokenizer)
    return tokenizer


def _stack(
    file: File, path: Path, shapes: Mapping[str, Tensor], heads: int, state: dict[str, Tensor]
) -> list[Source]:
    """Put the tensors of one published file, or of its shards, over those in `state`."""
    given: dict[str, Tensor] = {}
    sources = []
    for shard in weight_files(path, lambda name: file.rename(name) is not None):
        tensors, twins, dropped = _renamed(file, shard)
        # A stage saves the frozen encoder once more, rounded to half precision.
        again = [name for name in tensors if name.startswith(ENCODER) and name in state]
        equal = {name for name in again if _same(state[name], tensors[name])}
        sources.append(
            Source(
                path=shard,
                sha256=sha256(shard),
                used=len(tensors) - len(equal),
                copies=twins + len(equal),
                replaced=len(again) - len(equal),
                dropped=dropped,
            )
        )
        given |= {name: state[name] if name in equal else tensors[name] for name in tensors}
    _check(file, path, given, shapes, state)
    state |= phi.fuse_split(given, heads)
    return sources


def _renamed(file: File, shard: Path) -> tuple[dict[str, Tensor], int, tuple[str, ...]]:
    """Tensors by published name, how many stood there under two, and the names of the unread."""
    dropped: list[str] = []

    def keep(name: str) -> bool:
        if file.rename(name) is None:
            dropped.append(name)
            return False
        return True

    read = read_file(shard, keep)
    tensors: dict[str, Tensor] = {}
    for name, value in read.items():
        ours = str(file.rename(name))
        if ours in tensors and not _same(tensors[ours], value):
            raise ValueError(f"{shard} holds {ours} under two names, and the two differ")
        tensors[ours] = value
    return tensors, len(read) - len(tensors), tuple(dropped)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in the lesser precision of both."""
    dtype = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(dtype), other.to(dtype))


def _check(
    file: File,
    path: Path,
    given: Mapping[str, Tensor],
    shapes: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> None:
    """ValueError unless the file holds what it must, and nothing else than the model's tensors."""
    wanted = phi.split_shapes(shapes, given)
    needed = {name for name in wanted if file.needs(name)}
    if file.stage:
        lacking = sorted(needed - given.keys())
        if (found := stage_of(given)) != file.stage:
            but = f"; it lacks {len(lacking)} tensors, such as {lacking[0]}" if lacking else ""
            raise ValueError(f"{path} is of {found}, and must be of {file.stage}{but}")
        if absent := [each for each in file.beside if not any(n.startswith(each) for n in given)]:
            raise ValueError(f"{path} is not whole: it holds no {' and no '.join(absent)}*")
        if norms := [n for n in lacking if ADDED_NORM.search(n) and n not in state]:
            raise ValueError(
                f"{len(norms)} norms that MiniGPT-3D adds to Phi-2 are neither in {path} nor in a "
                f"file before it: {', '.join(norms)}"
            )
        needed -= {name for name in lacking if ADDED_NORM.search(name)}
    own = {name: value for name, value in given.items() if not name.startswith(file.beside)}
    check_names(
        str(path), {n: tensor for n, tensor in wanted.items() if n in needed or n in given}, own
    )


def _fill(
    model: MiniGPT3D, state: dict[str, Tensor], dtype: torch.dtype, seed: int
) -> tuple[str, ...]:
    """Give a model on the meta device its numbers, and empty `state`; returns what was not in it.

    One tensor after the other is copied out of its file, so that no second model is in memory.
    """
    fresh, tensors = [], {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, ours in published_names(model).items():
            if name in state:
                value = state.pop(name)
                kind = held_in(ours, dtype) if value.is_floating_point() else value.dtype
                tensors[ours] = value.to(kind, copy=True).contiguous()
            elif phi.NEVER_PUBLISHED.search(name):
                fresh.append(name)
                tensors[ours] = torch.zeros(model.get_parameter(ours).shape)
            elif is_mlp(name) or (name.startswith("Qformer.") and ".lora_" in name):
                fresh.append(name)
                tensors[ours] = _first_value(model, ours)
    give_numbers(model, tensors)
    return tuple(fresh)


def _first_value(model: nn.Module, ours: str) -> Tensor:
    """What torch gives a linear layer, which is what peft gives LoRA's A; its B begins at 0."""
    module, _, kind = ours.rpartition(".")
    linear = model.get_submodule(module)
    assert isinstance(linear, nn.Linear)
    if ".lora_B." in ours:
        return torch.zeros(linear.weight.shape)
    return getattr(nn.Linear(linear.in_features, linear.out_features), kind).detach()


def _experts(beside: Mapping[str, Tensor], config: ModelConfig) -> MixtureOfQueryExperts:
    router = beside.get("query_router.0.weight")
    experts = MixtureOfQueryExperts(
        feature_width=config.encoder_width,
        hidden_size=config.qformer_width,
        queries=config.queries,
        experts=sum(name.startswith("query_expert_dict.") for name in beside),
        router_width=256 if router is None else len(router),
    )
    experts.load_published(beside)
    return experts.eval()


def _alignment(beside: Mapping[str, Tensor], config: ModelConfig) -> AlignmentProjector:
    layers = sum(name.endswith(".weight") for name in beside)
    projector = AlignmentProjector(config.llm_width, config.qformer_width, layers)
    projector.load_published(beside)
    return projector.eval()
