"""Who says whether an answer is right: words, sentence embeddings, or a language model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

Task = Literal["closed", "open", "caption"]
"""Which of the listed classes is named; is it the same kind of object as the reference; how much
of the reference caption is right."""
ALIKE = 0.5
"""Cosine of two sentences from which the embedded judge calls them one kind of object."""
EMPTY = "empty answer"


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one answer."""

    value: float | None
    """Row of the class, 1 or 0 for the same or another kind, 0 to 100 for a caption; None where
    there is no valid verdict."""
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Judge(Protocol):
    """Anything that has a name and gives a verdict on each answer, in order.

    said       : answers of the model    references : the true class or caption of each
    class_names : all classes, for the closed task

    Raises ValueError for a task that it can't judge.
    """

    name: str

    def __call__(
        self, task: Task, said: Sequence[str], references: Sequence[str], class_names: Sequence[str]
    ) -> list[Verdict]: ...


def named_class(answer: str, class_names: Sequence[str]) -> int | None:
    """Row of the class whose name stands in the answer: the first, of those the longest name."""
    found = []
    for row, name in enumerate(class_names):
        pattern = rf"\b{re.escape(name.replace('_', ' ').lower())}s?\b"
        if match := re.search(pattern, answer.lower()):
            found.append((match.start(), -len(name), row))
    return min(found)[2] if found else None


class Exact:
    """The class whose name stands in the answer; an answer that names none is wrong."""

    name = "exact"

    def __call__(self, task, said, references, class_names) -> list[Verdict]:
        if task != "closed":
            raise ValueError(
                f"--judge exact looks for class names and can't judge the {task} task; use "
                "--judge sentences or the address of a language model"
            )
        rows = [named_class(answer, class_names) for answer in said]
        return [
            Verdict(row, "" if row is not None else "it names no class")
            if answer.strip()
            else Verdict(None, EMPTY)
            for answer, row in zip(said, rows, strict=True)
        ]


class SentenceJudge:
    """Cosine of sentence embeddings: the nearest class, one kind above 0.5, or a score.

    folder : of a sentence-transformers model; by default the one that a package carries.

    Cheap and the same everywhere, but no judge of language: its figures don't compare with those
    of a language model.
    """

    def __init__(self, folder: Path | None = None):
        from train.sentences import Sentences

        self.model = Sentences(folder)
        self.name = f"sentences-{self.model.name}"

    def __call__(self, task, said, references, class_names) -> list[Verdict]:
        answers = self.model.embed(said)
        if task == "closed":
            names = [name.replace("_", " ") for name in class_names]
            near = answers @ self.model.embed(names).T
            values, cosines = near.argmax(axis=1).astype(float), near.max(axis=1)
        else:
            cosines = (answers * self.model.embed(references)).sum(axis=1)
            values = 100 * cosines.clip(0, 1) if task == "caption" else 1.0 * (cosines >= ALIKE)
        return [
            Verdict(float(value), f"cosine {cosine:.3f}") if text.strip() else Verdict(None, EMPTY)
            for text, value, cosine in zip(said, values, cosines, strict=True)
        ]


@dataclass(frozen=True)
class Scored:
    """Verdicts as numbers an object."""

    values: np.ndarray
    """(objects,) share that is right, 0 to 1; nan for an object that does not count."""
    invalid: np.ndarray
    """(objects,) True where there was no valid verdict."""
    guessed: np.ndarray
    """(objects,) the class drawn in the place of an invalid verdict, -1 where none was."""

    @property
    def counted(self) -> np.ndarray:
        """Values of the objects that count."""
        return self.values[~np.isnan(self.values)]


def score(
    task: Task,
    verdicts: Sequence[Verdict],
    ids: Sequence[str],
    labels: np.ndarray,
    classes: int,
    *,
    published: bool = False,
    seed: int = 0,
) -> Scored:
    """An invalid verdict is wrong. With `published`, as in the released evaluators instead: a
    class drawn at random in its place, and no place at all in the two other tasks.

    labels : (objects,) rows of the classes, used in the closed task.

    The draw depends on the seed and the object alone, not on who was judged before.
    """
    invalid = np.array([verdict.value is None for verdict in verdicts])
    values = np.array([0.0 if v.value is None else v.value for v in verdicts], np.float64)
    guessed = np.full(len(verdicts), -1)
    if task == "closed":
        if published:
            guessed[invalid] = [
                _draw(seed, ids[at], classes) for at in np.flatnonzero(invalid).tolist()
            ]
        rows = np.where(invalid, guessed, values)
        return Scored((rows == np.asarray(labels)).astype(np.float64), invalid, guessed)
    values = values / 100 if task == "caption" else values
    dropped = np.nan if published else 0.0
    return Scored(np.where(invalid, dropped, values), invalid, guessed)


def _draw(seed: int, name: str, classes: int) -> int:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % classes
