"""A finished run of stage 2: its models once more, and questions about the objects it captured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tokenizers import Tokenizer
from torch import Tensor

from probe.lens import Captions, Text
from probe.patching import Asked, states_at
from store.reader import Run, elsewhere, open_run
from train.checkpoint import read_tensors
from train.config import TRAINED, Stage2Config
from train.data.captions import BRIEF_QUESTIONS, CLASS_QUESTIONS, class_answer
from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D, build
from train.prompts import Encoded, bos_id, collate, encode_conversation, encode_ids
from train.start import load_start, model_sizes
from train.variants import UNTRAINED_SEED


@dataclass(frozen=True)
class Described:
    """Some objects of a run, with the question about each and the answer that is scored."""

    ids: list[str]
    targets: Tensor
    """(objects, queries, width), Q-Former outputs as the store holds them."""
    labels: np.ndarray
    """(objects,), rows of `class_names`."""
    class_names: list[str]
    """All classes of the run."""
    captions: list[str]
    question: str
    answers: list[str]


def load_variant(
    folder: Path, variant: str, stage1: Path | None = None
) -> tuple[MiniGPT3D, Tokenizer]:
    """A model of a finished run in eval mode, on the GPU where there is one.

    variant : "stage1", "baseline", "aligned" or "untrained", as in the run's store.
    stage1  : where the weights that it began with are now; by default where they were.

    Raises ValueError when these are no longer the weights that the run began with, and
    FileNotFoundError when a file is missing.
    """
    record = recorded(folder)
    config = began_with(record, stage1)
    sizes = model_sizes(config)
    cuda = torch.cuda.is_available()
    begin = load_start(config, sizes, torch.float16 if cuda and config.weights else torch.float32)
    if other := [n for n, digest in begin.hashes.items() if record["hashes"].get(n) != digest]:
        raise ValueError(
            f"{folder} did not begin with the weights that are found now ({', '.join(other)} "
            "differs); name the folder of the right ones with --stage1"
        )
    model = begin.model
    if variant == "untrained":
        seed = UNTRAINED_SEED + config.seed
        model.llm = build(sizes, seed=seed, branch_scale=sizes.llm_branch_scale).llm
    elif variant in TRAINED:
        own = dict(model.named_parameters())
        trained = read_tensors(folder / "checkpoints" / variant / "model.safetensors")
        with torch.no_grad():
            for name, tensor in trained.items():
                if name.startswith("model."):  # the others are the alignment projector's
                    own[name.removeprefix("model.")].copy_(tensor)
    return model.to("cuda" if cuda else "cpu").eval().requires_grad_(False), begin.tokenizer


def recorded(folder: Path) -> dict[str, Any]:
    """The run's own record; FileNotFoundError where there is none."""
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no run.json: give the folder of a run of python -m train.stage2"
        )
    return json.loads(path.read_text())


def captured_of(folder: Path) -> Run:
    """What a run captured, where its --store put it; StoreError where there is none."""
    return open_run(elsewhere(folder) or folder)


def point_tokens(captured: Run) -> xr.DataArray:
    """The target's tokens (sample, token, dim), which enter the LLM again.

    Raises ValueError for a run that holds means over tokens in their place.
    """
    about = captured.attrs["provenance"]
    if about.get("pool") == "mean" or about.get("tokens", "point") != "point":
        raise ValueError(
            f"{captured.name} holds the mean of the point tokens, and the model reads them one by "
            "one: give a run captured with --tokens point --pool none"
        )
    return captured.target()


def began_with(record: dict[str, Any], stage1: Path | None = None) -> Stage2Config:
    """The part of a run's config that names the model it began with."""
    before = record["config"]
    known = {name: before[name] for name in ("preset", "start", "seed") if before.get(name)}
    folders = {name: Path(before[name]) for name in ("stage1", "weights") if before.get(name)}
    if stage1:
        folders["weights" if "weights" in folders else "stage1"] = stage1
    given: dict[str, Any] = known | folders
    return Stage2Config(**given)


def describe(captured: Run, split: str, objects: int, answer: str, seed: int) -> Described:
    """Objects of a split, equally many of each class and two at least, as the store holds them.

    answer : "class", which answers what this is, or "caption". Fewer than two of each class leave
             out classes, drawn with the seed. Raises ValueError when no two classes have two each.
    """
    table = captured.samples()
    names = table.class_name.values.astype(str)
    _, first, labels = np.unique(table.label.values, return_index=True, return_inverse=True)
    inside = table.split.values == split
    rng = np.random.default_rng([seed, 11])
    counts = {label: (labels[inside] == label).sum() for label in np.unique(labels[inside])}
    classes = np.array([label for label, count in counts.items() if count >= 2])
    if len(classes) < 2:
        raise ValueError(
            f"{captured.path}: its {split} has {len(classes)} classes of two objects or more; "
            "taking tokens from another object needs two such classes"
        )
    if len(classes) > objects // 2:
        classes = np.sort(rng.permutation(classes)[: objects // 2])
    each = max(2, objects // len(classes))
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(inside & (labels == one)))[:each] for one in classes]
    )
    rows.sort()
    captions = table.caption.values[rows].astype(str).tolist()
    of_class = answer == "class"
    return Described(
        ids=table.sample.values[rows].astype(str).tolist(),
        targets=torch.from_numpy(point_tokens(captured)[rows].values.astype(np.float32)),
        labels=labels[rows],
        class_names=names[first].tolist(),
        captions=captions,
        question=CLASS_QUESTIONS[0] if of_class else BRIEF_QUESTIONS[0],
        answers=[class_answer(name) for name in names[rows]] if of_class else captions,
    )


def ask(model: MiniGPT3D, tokenizer: Tokenizer, about: Described) -> Asked:
    """The question about each object with its answer, as in training, ready for the LLM."""
    context = bare(model.llm).config.max_position_embeddings
    encoded = [
        encode_conversation(
            tokenizer,
            [(about.question, answer)],
            points=about.targets.shape[1],
            context=context,
        )
        for answer in about.answers
    ]
    device = next(model.parameters()).device
    batch = collate(encoded, bos_id(tokenizer)).to(device)
    with torch.no_grad():
        embeds = model.embed(batch, about.targets.to(device))
    return Asked(embeds, batch.attention_mask, batch.labels, batch.point_mask)


def text_states(model: MiniGPT3D, asked: Asked, layers: Sequence[int]) -> Text:
    """States of the text behind the point tokens, question and answer."""
    points = asked.point_mask
    behind = points.cumsum(1) == points.sum(1, keepdim=True)
    mask = behind & ~points & (asked.attention_mask > 0)
    depth = bare(model.llm).config.num_hidden_layers
    states = states_at(model.llm, asked, mask, [*layers, depth])
    return Text(states[:-1], states[-1], torch.nonzero(mask)[:, 0].cpu().numpy())


def caption_states(
    model: MiniGPT3D, tokenizer: Tokenizer, about: Described, layers: Sequence[int]
) -> Captions:
    """States of the tokens of captions, each caption alone behind the token that begins a text."""
    rows = []
    for caption in about.captions:
        ids = [bos_id(tokenizer), *encode_ids(tokenizer, caption)]
        rows.append(Encoded(ids, ids, [1] * len(ids), point_start=0, points=0))
    device = next(model.parameters()).device
    batch = collate(rows, bos_id(tokenizer)).to(device)
    with torch.no_grad():
        embeds = bare(model.llm).get_input_embeddings()(batch.input_ids).float()
    asked = Asked(embeds, batch.attention_mask, batch.labels, batch.point_mask)
    mask = batch.attention_mask > 0
    mask[:, 0] = False
    states = states_at(model.llm, asked, mask, layers)
    return Captions(states, torch.nonzero(mask)[:, 0].cpu().numpy(), about.labels)


def vocabulary(model: MiniGPT3D, tokenizer: Tokenizer) -> list[str]:
    """Text of every token that the model has a logit for; it may have more than the tokenizer."""
    known = tokenizer.get_vocab_size()
    logits = bare(model.llm).config.vocab_size
    return [
        tokenizer.decode([token], skip_special_tokens=False) if token < known else f"<{token}>"
        for token in range(logits)
    ]
