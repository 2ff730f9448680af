"""Answers and verdicts as JSON, in the form of the published evaluators of PointLLM and MiniGPT-3D.

Their scripts read these files and the files of their scripts are read here; what is ours alone
stands under `made_by`, which theirs pass over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from train.judges import Scored, Task, Verdict


@dataclass(frozen=True)
class Answers:
    """What a model said about each object."""

    prompt: str
    ids: list[str]
    said: list[str]
    truth: list[Any]
    """Row of the class (closed set) or reference text, an object each."""
    names: list[str] = field(default_factory=list)
    """Class name of each object, in a closed set."""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[str]:
        """Class name or reference text of each object."""
        return self.names or [str(one) for one in self.truth]


def write_answers(path: Path, answers: Answers) -> None:
    """{"prompt", "results": [{"object_id", "ground_truth", "model_output", "label_name"?}]}."""
    results = [
        {"object_id": _id(one), "ground_truth": true, "model_output": text}
        for one, true, text in zip(answers.ids, answers.truth, answers.said, strict=True)
    ]
    for row, name in zip(results, answers.names, strict=False):
        row["label_name"] = name
    _write(path, {"prompt": answers.prompt, "results": results, "made_by": dict(answers.made_by)})


def read_answers(path: Path) -> Answers:
    """A file of `write_answers` or of the published evaluators.

    Raises ValueError, in a sentence, for a file of another form.
    """
    found = _read(path)
    try:
        rows = found["results"]
        if not rows:
            raise KeyError("any result")
        named = "label_name" in rows[0]
        return Answers(
            prompt=found["prompt"],
            ids=[str(row["object_id"]) for row in rows],
            said=[str(row["model_output"] or "") for row in rows],
            truth=[row["ground_truth"] for row in rows],
            names=[row["label_name"] for row in rows] if named else [],
            made_by=found.get("made_by", {}),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no answers (lacking {error}): wanted prompt and results, each with "
            "object_id, ground_truth and model_output; python -m train.evaluate writes them"
        ) from None


def judged(
    answers: Answers,
    task: Task,
    verdicts: Sequence[Verdict],
    scored: Scored,
    class_names: Sequence[str],
    *,
    template: str = "",
    cost: float = 0.0,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """The judged file of the published evaluators: headline, counts, usage and an entry an object.

    `GPT_cost` and the `gpt_` keys are their names, whoever the judge was.
    """
    invalid, counted = int(scored.invalid.sum()), scored.counted
    share = float(counted.mean()) if len(counted) else 0.0
    found: dict[str, Any] = {"inference_prompt": answers.prompt}
    if task == "caption":
        total = 100 * float(counted.sum())
        found |= {"gpt_prompt": template, "average_score": f"{100 * share:.2f}"}
        found |= {"total_score": f"{total:.2f}"}
    else:
        found |= {"prompt": template, "accuracy": f"{share:.2%}"}
        right = int(counted.sum())
        if task == "closed":
            lucky, valid = int(scored.values[scored.invalid].sum()), len(verdicts) - invalid
            clean = (right - lucky) / valid if valid else 0.0
            found |= {"clean_accuracy": f"{clean:.2%}", "invalid_correct_predictions": lucky}
        found["correct_predictions"] = right
    found |= {
        "total_predictions": len(verdicts),
        "invalid_responses": invalid,
        "prompt_tokens": sum(verdict.prompt_tokens for verdict in verdicts),
        "completion_tokens": sum(verdict.completion_tokens for verdict in verdicts),
        "GPT_cost": cost,
    }
    rows = [
        _entry(answers, at, task, verdict, scored, class_names)
        for at, verdict in enumerate(verdicts)
    ]
    return found | {"results": rows, "made_by": dict(made_by)}


def _entry(
    answers: Answers,
    at: int,
    task: Task,
    verdict: Verdict,
    scored: Scored,
    class_names: Sequence[str],
) -> dict[str, Any]:
    entry = {
        "object_id": _id(answers.ids[at]),
        "ground_truth": answers.truth[at],
        "model_output": answers.said[at],
        "gpt_reason": verdict.reason,
        "prompt_tokens": verdict.prompt_tokens,
        "completion_tokens": verdict.completion_tokens,
    }
    valid = verdict.value is not None
    if task == "closed":
        row = int(verdict.value) if verdict.value is not None else int(scored.guessed[at])
        name = class_names[row] if valid else "INVALID"
        labels = {"ground_truth_label": answers.references[at]}
        return entry | {"gpt_cls_result": row, "gpt_cls_label": name} | labels
    if task == "open":
        said = ("T" if verdict.value else "F") if valid else "INVALID"
        return entry | {"gpt_cls_result": said}
    return entry | {"gpt_score": verdict.value if valid else -1}


def write_judged(path: Path, found: Mapping[str, Any]) -> None:
    """Put a judged file in its place; a reader finds the old one or the new one."""
    _write(path, found)


@dataclass(frozen=True)
class Judged:
    """A judged file, as a number an object."""

    ids: list[str]
    values: np.ndarray
    """(objects,) 0 to 1; nan where the published rules drop an object."""
    invalid: int
    prompt: str
    made_by: Mapping[str, Any]


def read_judged(path: Path) -> Judged:
    """A file of `judged` or of the published evaluators.

    Raises ValueError, in a sentence, for a file of another form.
    """
    found = _read(path)
    try:
        rows = found["results"]
        return Judged(
            ids=[str(row["object_id"]) for row in rows],
            values=np.array([_value(row, found) for row in rows], np.float64),
            invalid=int(found["invalid_responses"]),
            prompt=found["inference_prompt"],
            made_by=found.get("made_by", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no verdicts in the form of the published evaluators (lacking {error}); "
            "judge the answers again with python -m train.evaluate"
        ) from None


def read_metrics(path: Path) -> dict[str, Judged]:
    """Metric -> its value an object, from a file of `caption_metrics.traditional`.

    Raises ValueError, in a sentence, for a file of another form.
    """
    found = _read(path)
    try:
        rows, prompt = found["results"], found["inference_prompt"]
        ids = [str(row["object_id"]) for row in rows]
        return {
            name: Judged(
                ids,
                np.array([row["scores"][name] for row in rows], np.float64) / 100,
                0,
                prompt,
                found.get("made_by", {}),
            )
            for name in found["overall_scores"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} holds no caption metrics (lacking {error}); python -m train.evaluate RUN "
            "--task caption writes them"
        ) from None


def _value(row: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """0 to 1; what is invalid in an open set or a caption counts by the rule of the file."""
    dropped = np.nan if found.get("made_by", {}).get("published_scoring", True) else 0.0
    if "gpt_score" in row:
        return row["gpt_score"] / 100 if row["gpt_score"] >= 0 else dropped
    if isinstance(said := row["gpt_cls_result"], str) and not said.lstrip("-").isdigit():
        return {"T": 1.0, "F": 0.0}.get(said, dropped)
    return float(int(said) == int(row["ground_truth"]))


def _id(name: str) -> int | str:
    """ModelNet's objects are numbers, as published."""
    return int(name) if name.isdigit() and len(name) < 9 else name


def _read(path: Path) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not one object of JSON")
    return found


def _write(path: Path, found: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    fresh.replace(path)
