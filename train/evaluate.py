"""Ask the model what it sees, and count how often the answer names the right class."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from probe.intervals import wilson
from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D
from train.progress import track
from train.prompts import ANSWER_END, bos_id, collate, encode_question

AT_ONCE = 64


@dataclass(frozen=True)
class Classification:
    """Generative classification of unseen objects."""

    question: str
    correct: int
    asked: int
    low: float
    high: float
    chance: float

    def sentence(self, what: str) -> str:
        share = self.correct / self.asked
        return (
            f"asked {self.question!r}, the model names the right class of {self.correct} of "
            f"{self.asked} {what}: {share:.1%} [95 % interval {self.low:.1%}, {self.high:.1%}], "
            f"chance {self.chance:.1%}"
        )

    def card(self) -> dict:
        return asdict(self) | {"accuracy": self.correct / self.asked}


@torch.no_grad()
def answers(
    model: MiniGPT3D,
    tokenizer: Tokenizer,
    targets: Tensor,
    question: str = "What is this?",
    longest: int = 24,
) -> list[str]:
    """Greedy answers about each object, up to the closing `###`.

    targets : Q-Former outputs, (objects, queries, width).
    """
    model.eval()
    llm: Any = bare(model.llm)
    device = next(model.parameters()).device
    end, pad = tokenizer.token_to_id(ANSWER_END), bos_id(tokenizer)
    prompt = encode_question(tokenizer, question, points=targets.shape[1])
    said = []
    starts = range(0, len(targets), AT_ONCE)
    for start in track(starts, "ask", total=len(starts)):
        shown = targets[start : start + AT_ONCE].to(device)
        batch = collate([prompt] * len(shown), pad).to(device)
        with model.mixed():
            ids = llm.generate(
                inputs_embeds=model.embed(batch, shown),
                attention_mask=batch.attention_mask,
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=end if end is not None else pad,
                pad_token_id=pad,
            )
        said += [text.split(ANSWER_END)[0].strip() for text in tokenizer.decode_batch(ids.tolist())]
    return said


def named_class(answer: str, class_names: list[str]) -> int | None:
    """Row of the class whose name stands in the answer: the first, of those the longest name."""
    found = []
    for row, name in enumerate(class_names):
        pattern = rf"\b{re.escape(name.replace('_', ' ').lower())}s?\b"
        if match := re.search(pattern, answer.lower()):
            found.append((match.start(), -len(name), row))
    return min(found)[2] if found else None


def classify(
    model: MiniGPT3D,
    tokenizer: Tokenizer,
    targets: Tensor,
    labels: np.ndarray,
    class_names: list[str],
    question: str = "What is this?",
) -> Classification:
    """Share of objects whose class the answer names; an answer that names none is wrong.

    targets : (objects, queries, width)    labels : (objects,), rows of class_names
    """
    said = answers(model, tokenizer, targets, question)
    named = [named_class(answer, class_names) for answer in said]
    correct = int(sum(one == label for one, label in zip(named, labels, strict=True)))
    interval = wilson(correct, len(labels))
    chance = float(np.bincount(labels).max() / len(labels))
    low, high = float(interval.low), float(interval.high)
    return Classification(question, correct, len(labels), low, high, chance)
