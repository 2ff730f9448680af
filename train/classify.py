"""Generative classification in a few lines: ask a model, read the class out of its answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from probe.intervals import wilson
from train.judges import named_class

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from train.models.minigpt3d import MiniGPT3D

AT_ONCE = 64
"""Objects asked about together."""


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
    from train.generation import Decoding, generate, prompt
    from train.progress import track

    model.eval()
    how = Decoding(published_prompt=False, longest=longest)
    asked = prompt(tokenizer, question, how, points=targets.shape[1])
    starts = range(0, len(targets), AT_ONCE)
    said = []
    for start in track(starts, "ask", total=len(starts)):
        said += generate(model, tokenizer, targets[start : start + AT_ONCE], asked, how)
    return said


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
