"""Answers of a model about many objects, in batches, kept on disk as they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D
from train.progress import track
from train.prompts import ANSWER_END, Encoded, ask_published, bos_id, collate, encode_question

TAIL = 4
"""Last tokens in which the end of an answer is looked for; it is a token or a few."""
Models = Callable[[], "tuple[MiniGPT3D, Tokenizer]"]


@dataclass(frozen=True)
class Decoding:
    """How an answer is asked for, drawn and cleaned."""

    published_prompt: bool
    """The prompt of the published benchmarks, or the one that training shows."""
    longest: int
    """Most new tokens."""
    shortest: int = 0
    beams: int = 1
    temperature: float = 0.0
    """0 takes the likeliest token; above, tokens are drawn."""
    top_p: float = 1.0
    top_k: int = 50
    stop: bool = True
    """Stop at the closing `###`; the published code runs on and cuts it off afterwards."""
    lower: bool = False
    """Answers in lower case, as the published code writes them."""


def decoding(protocol: Literal["ours", "published"], caption: bool) -> Decoding:
    """Ours: greedy, up to `###`. Published: MiniGPT-3D's, which PointAlign's tables use.

    The published code asks transformers 4.36 for 10 tokens at least, of which the first is a bos.
    """
    if protocol == "ours":
        return Decoding(published_prompt=False, longest=150 if caption else 24)
    return Decoding(
        published_prompt=True,
        longest=150 if caption else 100,
        shortest=9,
        beams=2,
        temperature=0.2,
        top_p=0.7,
        stop=False,
        lower=True,
    )


def prompt(tokenizer: Tokenizer, question: str, how: Decoding, points: int) -> Encoded:
    """The question as tokens, the same for every object."""
    encode = ask_published if how.published_prompt else encode_question
    return encode(tokenizer, question, points=points)


@torch.no_grad()
def generate(
    model: MiniGPT3D, tokenizer: Tokenizer, targets: Tensor, asked: Encoded, how: Decoding
) -> list[str]:
    """One answer an object, without what follows the closing `###`.

    targets : Q-Former outputs, (objects, queries, width).

    Drawn tokens come from torch's global generator.
    """
    llm: Any = bare(model.llm)
    device = next(model.parameters()).device
    end, pad = tokenizer.token_to_id(ANSWER_END), bos_id(tokenizer)
    batch = collate([asked] * len(targets), pad).to(device)
    settings: dict[str, Any] = {"do_sample": how.temperature > 0, "num_beams": how.beams}
    if how.temperature > 0:
        settings |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
    if how.shortest:
        settings |= {"min_new_tokens": how.shortest}
    if how.stop:
        settings |= {"stopping_criteria": StoppingCriteriaList([Ended(tokenizer)])}
    with model.mixed():
        ids = llm.generate(
            inputs_embeds=model.embed(batch, targets.to(device)),
            attention_mask=batch.attention_mask,
            max_new_tokens=how.longest,
            eos_token_id=end if how.stop and end is not None else pad,
            pad_token_id=pad,
            **settings,
        )
    said = [_until(row, end) for row in ids.tolist()]
    texts = [text.split(ANSWER_END)[0] for text in tokenizer.decode_batch(said)]
    if how.lower:
        texts = [text.lower().replace("<unk>", "") for text in texts]
    return [text.strip() for text in texts]


class Ended(StoppingCriteria):
    """Says which rows have written `###`, also where it is no token of its own."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, input_ids, scores, **kwargs) -> Tensor:
        tails = input_ids[:, -TAIL:].tolist()
        texts = self.tokenizer.decode_batch(tails, skip_special_tokens=False)
        return torch.tensor([ANSWER_END in text for text in texts], device=input_ids.device)


def _until(ids: list[int], end: int | None) -> list[int]:
    return ids[: ids.index(end)] if end is not None and end in ids else ids


class Kept:
    """Batches of answers in a file of JSON lines, each under the key of all it depends on.

    A line that a killed process left half written is passed over; its batch is asked again.
    """

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self._batches: dict[tuple[str, ...], list[str]] = {}
        for line in path.read_bytes().split(b"\n") if path.is_file() else []:
            try:
                batch = json.loads(line)
                if batch["key"] == key:
                    self._batches[tuple(batch["ids"])] = batch["said"]
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, ids: Sequence[str]) -> list[str] | None:
        """The answers about exactly this batch, if they are there."""
        return self._batches.get(tuple(ids))

    def add(self, ids: Sequence[str], said: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"key": self.key, "ids": list(ids), "said": said})
        with self.path.open("a+b") as file:
            file.seek(0, 2)
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # after a half line
                    line = "\n" + line
            file.write(line.encode() + b"\n")
        self._batches[tuple(ids)] = said


def key_of(checkpoint: str, question: str, how: Decoding, seed: int, data: str) -> str:
    """Digest of all that answers depend on, but the objects, which each batch names.

    checkpoint, data : digests of the weights and of what the objects' targets were made from.
    """
    # What nothing is drawn for doesn't depend on the seed.
    about = [checkpoint, data, question, asdict(how), seed if how.temperature > 0 else 0]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def ask_all(
    models: Models,
    ids: Sequence[str],
    targets: Callable[[slice], Tensor],
    question: str,
    how: Decoding,
    kept: Kept,
    *,
    seed: int,
    batch_size: int,
    label: str,
) -> list[str]:
    """An answer an object, in order; batches that are kept are not asked again.

    models  : gives model and tokenizer, called once and only if some answer is missing.
    targets : rows -> (objects, queries, width).
    seed    : with the place of its batch, seeds what is drawn: an interrupted call goes on with
              the numbers it would have had.
    """
    starts = range(0, len(ids), batch_size)
    parts = [slice(start, min(start + batch_size, len(ids))) for start in starts]
    missing = [part for part in parts if kept.get(ids[part]) is None]
    if missing:
        model, tokenizer = models()
        model.eval()
        shown = track(missing, label, total=len(parts), completed=len(parts) - len(missing))
        for part in shown:
            batch = targets(part)
            asked = prompt(tokenizer, question, how, points=batch.shape[1])
            with torch.random.fork_rng(devices=_devices(model)):
                torch.manual_seed(seed * 1_000_003 + part.start)
                kept.add(ids[part], generate(model, tokenizer, batch, asked, how))
    return [text for part in parts for text in kept.get(ids[part]) or []]


def _devices(model: MiniGPT3D) -> list[int]:
    device = next(model.parameters()).device
    return [device.index or 0] if device.type == "cuda" else []
