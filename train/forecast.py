"""What a stage-2 run would do and cost, said before it starts: --dry-run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer

from train.alignment import Stage2Objective
from train.batches import MIX, check_lengths
from train.budget import LENGTHS, MIB, lengths_of, store_bytes, training_memory
from train.checkpoint import train_only
from train.config import VARIANTS, ModelConfig, Stage2Config
from train.data.objects import DataSet
from train.models.llm import hold_in, read_tokenizer
from train.models.minigpt3d import build, set_switches
from train.objectives import language_parameters
from train.published_files import find_files
from train.start import starting_folder


def describe(
    config: Stage2Config,
    sizes: ModelConfig,
    layers: list[int],
    data: DataSet,
    *,
    dtype: torch.dtype,
    processes: int,
    say: Callable[..., None],
) -> None:
    """Say what the run would do and cost, and change nothing; no weight is read for it.

    dtype : of the LLM's matrices, where it is the published one's size, and of autocast.
    say   : rich's `Console.print`.
    """
    with torch.device("meta"):
        model = build(sizes)
        objective = Stage2Objective(model, config, config.align_weight)
    if config.preset == "minigpt3d":
        hold_in(model.llm, dtype)
    set_switches(model, config)
    trained = train_only(objective, trains(objective))
    memory = training_memory(
        objective,
        config,
        half=None if dtype == torch.float32 else dtype,
        lengths=_lengths(config, sizes, data),
        processes=processes,
    )
    objects = len(data.gallery) + len(data.query)
    store = store_bytes(config, sizes, len(layers), objects, len(VARIANTS))
    parameters = sum(p.numel() for p in objective.parameters())
    say(f"run        {config.folder}")
    say(f"data       {in_words(data)}")
    say(f"weights    {_weights(config)}", soft_wrap=True)
    say(
        f"trains     {sum(trained.values()):,} of {parameters:,} parameters, "
        f"{len(trained)} tensors:"
    )
    for name, (tensors, numbers) in _by_part(trained).items():
        say(f"             {name}: {numbers:,} in {tensors} tensors")
    say("           the baseline the same, without the alignment projector")
    several = sorted(set(config.batch_sizes.values()))
    batch = " to ".join(str(size) for size in dict.fromkeys((several[0], several[-1])))
    say(f"steps      {config.steps} of {batch} conversations, each model")
    say(f"layers     {', '.join(map(str, layers))}; aligned at {config.align_layer}")
    held = str(dtype).removeprefix("torch.")
    say(f"memory     of training in {held}, computed from the shapes:")
    for line in memory.lines():
        say(f"             {line}", soft_wrap=True)
    say(f"store      {store / MIB:,.0f} MiB before compression, {objects} objects")


def trains(objective: Stage2Objective) -> Callable[[str], bool]:
    """Which parameters stage 2 trains, by their name."""
    wanted = {
        f"model.llm.{name}"
        for name in language_parameters(objective.model.llm)
        if objective.config.train_norms or "lora_" in name
    }
    return lambda name: name in wanted or name.startswith("alignment_")


def check_said(
    config: Stage2Config, sizes: ModelConfig, data: DataSet, tokenizer: Tokenizer
) -> None:
    """Raise ValueError where stage 2 would meet a conversation longer than the context."""
    check_lengths(
        [each for each in data.train.conversations if each.kind in MIX],
        tokenizer,
        queries=sizes.queries,
        context=sizes.llm_context,
        template=config.single_turn_template,
        ids=data.train.ids,
    )


def in_words(data: DataSet) -> str:
    """How many objects each split has."""
    return (
        f"{data.name}: {len(data.train)} objects to train on, gallery {len(data.gallery)}, "
        f"query {len(data.query)}, {len(data.query.class_names)} classes"
    )


def _weights(config: Stage2Config) -> str:
    """What the run would begin with, or what of it is not there."""
    if not config.weights:
        return str(starting_folder(config))
    try:
        return ", ".join(map(str, find_files(config.weights, config.start).values()))
    except FileNotFoundError as error:
        return f"NOT COMPLETE: {error}"


def _lengths(config: Stage2Config, sizes: ModelConfig, data: DataSet) -> dict[str, tuple[int, int]]:
    """Tokens of the longest conversations, where there is a tokenizer to count them with."""
    folder = starting_folder(config)
    path = folder / ("Phi_2/tokenizer.json" if config.weights else "tokenizer.json")
    if not path.is_file():
        return LENGTHS
    tokenizer = read_tokenizer(path)
    check_said(config, sizes, data, tokenizer)
    said = (each for each in data.train.conversations if each.kind in MIX)
    found = lengths_of(said, tokenizer, queries=sizes.queries, context=sizes.llm_context)
    return LENGTHS | found


def _by_part(trained: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Kind of weight -> tensors and numbers."""
    kinds: dict[str, tuple[int, int]] = {}
    for name, size in trained.items():
        if name.startswith("alignment_"):
            kind = "alignment projector"
        else:
            kind = "LLM LoRA" if "lora_" in name else "LLM norms"
        tensors, numbers = kinds.get(kind, (0, 0))
        kinds[kind] = (tensors + 1, numbers + size)
    return kinds
