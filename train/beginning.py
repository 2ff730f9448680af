"""What stage 1 begins with: nothing, the checkpoint of the stage before, or published files."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.config import MODELS, ModelConfig, Stage1Config, published_sizes

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import Tensor

    from train.data.objects import Objects
    from train.models.minigpt3d import MiniGPT3D

PUBLISHED_STARTS = {"I": "tinygpt-v", "IV": "stage-3"}
"""Stage -> how far the files of --weights take a model that it can begin with."""


def check_start(config: Stage1Config, first: str) -> None:
    """Raise ValueError unless the first stage has what it begins with, of the right kind."""
    from train.checkpoint import sizes_of
    from train.stages import PRIORS, stage_before

    if first == PRIORS:
        if config.start or config.weights:
            raise ValueError("the priors begin with nothing: leave out --from and --weights")
        if not config.batch_size:
            raise ValueError("--batch-size 0 stands for the published sizes; the priors have none")
        return
    if config.start and config.weights:
        raise ValueError("--from and --weights: the stages have one start, give one of the two")
    if config.weights and config.preset != "minigpt3d":
        raise ValueError(f"--weights goes with --preset minigpt3d, not with {config.preset}")
    if config.llm and (not (config.weights or config.start) or first != "I"):
        raise ValueError(
            "--llm goes with --weights or --from, whose encoder and Q-Former it takes, and begins "
            "with stage I: its projector and LoRA are new"
        )
    if config.llm_type != "phi-2" and (config.weights or config.start):
        raise ValueError(
            f"--llm-type {config.llm_type} is of an LLM with random weights; the one of --weights "
            "or --from has a type of its own: leave it out"
        )
    before = stage_before(first)
    if config.weights and first not in PUBLISHED_STARTS:
        raise ValueError(
            f"stage {first} begins with a checkpoint of stage {before}, which was not published: "
            "give --from DIR instead of --weights, or begin with stage I"
        )
    begin_sizes(config)  # the folders are there
    if config.weights:
        return
    if not config.start:
        published = config.preset == "minigpt3d" and first in PUBLISHED_STARTS
        raise ValueError(
            f"stage {first} begins with a checkpoint of {_stage(before)}: give --from DIR, a "
            "folder that python -m train.stage1 wrote"
            + (", or --weights DIR, the published files" if published else "")
        )
    if config.start.resolve() == (config.folder / "checkpoint").resolve():
        raise ValueError(f"--out {config.folder} holds the checkpoint of --from; choose another")
    sizes, wanted = sizes_of(config.start), MODELS[config.preset]
    # What began with a folder has the sizes that it had there, under the preset it was trained by.
    same = config.preset == _card(config.start).get("config", {}).get("preset")
    if wrong := not same and [
        f"{field.name} {getattr(sizes, field.name)} instead of {getattr(wanted, field.name)}"
        for field in fields(ModelConfig)
        if field.name not in ("experts", "router", "router_width")
        and getattr(sizes, field.name) != getattr(wanted, field.name)
    ]:
        raise ValueError(
            f"checkpoint {config.start} is of another size than --preset {config.preset}: "
            f"{', '.join(wrong[:3])}"
        )
    if not config.llm and (stage := written_by(config.start)) != before:
        raise ValueError(
            f"checkpoint {config.start} is of {_stage(stage)}, and stage {first} begins with one "
            f"of {_stage(before)}"
        )


def begins_with(config: Stage1Config, first: str) -> str:
    """What the first stage begins with, or what of it is not there."""
    from train.published_files import find_files

    said = str(config.start or "random weights")
    if config.weights:
        try:
            upto = "front" if config.llm else PUBLISHED_STARTS[first]
            said = ", ".join(map(str, find_files(config.weights, upto).values()))
        except FileNotFoundError as error:
            said = f"NOT COMPLETE: {error}"
    return f"{said}; the LLM of {config.llm}" if config.llm else said


def written_by(folder: Path) -> str:
    """The last stage of a checkpoint; III where its card does not say."""
    return _card(folder).get("stage", "III")


def _card(folder: Path) -> dict[str, Any]:
    """What made a checkpoint; empty where it does not say."""
    try:
        card = json.loads((folder / "card.json").read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def _stage(name: str) -> str:
    return "the priors" if name == "priors" else f"stage {name}"


@dataclass(frozen=True)
class Begin:
    """A model before the first of the stages."""

    model: MiniGPT3D
    tokenizer: Tokenizer
    sizes: ModelConfig
    hashes: dict[str, str]
    """Of the files it was made of."""
    first_queries: Tensor | None = None
    """`query_tokens` as they were before stage II, where they are known."""


def load_start(config: Stage1Config, first: str, data: Objects, mixed: str) -> Begin:
    """A new model, the checkpoint of the stage before, or the published files stacked for it."""
    import torch

    from train.checkpoint import load_first_queries, load_model, sha256
    from train.models.minigpt3d import build
    from train.published import load_folder

    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = half.get(mixed, torch.float32) if config.preset == "minigpt3d" else torch.float32
    sizes = begin_sizes(config)
    if config.llm:
        return _with_llm(config, sizes, dtype)
    if config.start:
        model, tokenizer, _ = load_model(config.start, dtype)
        hashes = {"start": sha256(config.start / "model.safetensors")}
        return Begin(model, tokenizer, sizes, hashes, load_first_queries(config.start))
    if config.weights:
        upto = PUBLISHED_STARTS[first]
        found = load_folder(config.weights, sizes, upto=upto, dtype=dtype, seed=config.seed)
        for source in found.sources:
            print(f"weights: {source}")
        return Begin(found.model, found.tokenizer, sizes, found.hashes(), found.first_queries)
    tokenizer = train_tokenizer(data, sizes.vocabulary, config.folder / "tokenizer.json")
    return Begin(build(sizes, config.seed, sizes.llm_branch_scale), tokenizer, sizes, {})


def begin_sizes(config: Stage1Config) -> ModelConfig:
    """Sizes of the model before the first stage; nothing of it but config.json is read."""
    from train.checkpoint import sizes_of
    from train.models.llm import sizes_of as llm_sizes

    if config.start:
        sizes = sizes_of(config.start)
    elif config.weights:
        sizes = published_sizes(config.weights)
    else:
        sizes = replace(MODELS[config.preset], llm_type=config.llm_type)
    return llm_sizes(config.llm, replace(sizes, experts=0)) if config.llm else sizes


def _with_llm(config: Stage1Config, sizes: ModelConfig, dtype: torch.dtype) -> Begin:
    """A language model of another kind behind the published encoder and Q-Former, or ours."""
    from train.checkpoint import load_first_queries, load_model, sha256
    from train.models.llm import llm_from_folder
    from train.models.minigpt3d import build
    from train.published import load_front

    assert config.llm
    language, tokenizer = llm_from_folder(config.llm, dtype)
    model = build(sizes, seed=config.seed, language=language)
    queries = None
    if config.start:
        front, _, _ = load_model(config.start)
        for part in ("point_encoder", "mlp", "qformer"):
            model.get_submodule(part).load_state_dict(front.get_submodule(part).state_dict())
        files, queries = [config.start / "model.safetensors"], load_first_queries(config.start)
    else:
        assert config.weights
        sources = load_front(config.weights, model)
        for source in sources:
            print(f"weights: {source}")
        files = [each.path for each in sources]
    files += sorted(config.llm.glob("*.safetensors"))
    hashes = {f"{path.parent.name}/{path.name}": sha256(path) for path in files}
    if queries is None:
        queries = model.qformer.query_tokens.detach().clone()
    return Begin(model.eval(), tokenizer, sizes, hashes, queries)


def train_tokenizer(data: Objects, vocabulary: int, path: Path) -> Tokenizer:
    """A byte-level BPE on the captions and conversations; the end of a text is token 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from train.models.llm import read_tokenizer

    if path.is_file():
        return read_tokenizer(path)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "###"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [turn for each in data.conversations for pair in each.turns for turn in pair]
    template = ["[INST] <PC>", "</PC>", "  [/INST]"] * 100
    tokenizer.train_from_iterator(turns + template, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer
