"""Verdicts on a file of answers: scored, written beside it, and said in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probe.intervals import bootstrap, wilson
from train.judges import Judge, Scored, Task, score
from train.results import Answers, judged, write_judged

if TYPE_CHECKING:
    from train.evaluate import EvaluateConfig


def judge_answers(
    config: EvaluateConfig,
    judge: Judge,
    task: Task,
    given: Answers,
    class_names: Sequence[str],
    path: Path,
) -> tuple[str, Path]:
    """Write verdicts beside the answers; a sentence on them, and where they are."""
    verdicts = judge(task, given.said, given.references, class_names)
    labels = np.array(given.truth) if task == "closed" else np.zeros(len(given.ids), int)
    scored = score(
        task,
        verdicts,
        given.ids,
        labels,
        len(class_names),
        published=config.published_scoring,
        seed=config.seed,
    )
    tokens = [sum(v.prompt_tokens for v in verdicts), sum(v.completion_tokens for v in verdicts)]
    cost = float(np.dot(tokens, config.judge_price)) / 1e6
    made_by = dict(given.made_by) | {"judge": judge.name}
    made_by |= {"published_scoring": config.published_scoring, "task": task}
    template = getattr(judge, "template", lambda task, names: "")(task, class_names)
    found = judged(
        given, task, verdicts, scored, class_names, template=template, cost=cost, made_by=made_by
    )
    plain = judge.name.replace("/", "-")
    written = path.with_name(f"{path.stem}_evaluated_{plain}.json")
    write_judged(written, found)
    said = _sentence(given, task, scored, judge.name, config.seed)
    if any(tokens):
        said += f", {tokens[0]:,} tokens in and {tokens[1]:,} out"
        said += f", cost {cost:.4g}" if cost else ""
    if task == "caption":
        said += _caption_metrics(config, given, path)
    return said, written


def _sentence(given: Answers, task: Task, scored: Scored, judge: str, seed: int) -> str:
    values, asked = scored.counted, f"asked {given.prompt!r}"
    if not len(values):
        return f"{asked}: judge {judge} gave no valid verdict on {len(given.ids)} answers"
    if task == "caption":
        found = bootstrap(values, seed=seed) if len(values) > 1 else None
        band = f" [95 % interval {100 * found.low:.1f}, {100 * found.high:.1f}]" if found else ""
        what = f"captions of {len(values)} objects score {100 * values.mean():.1f} of 100{band}"
    else:
        hits = int(values.sum())
        found = wilson(hits, len(values))
        what = f"{hits} of {len(values)} are right: {float(found.mean):.1%} [95 % interval "
        what += f"{float(found.low):.1%}, {float(found.high):.1%}]"
    if task == "closed":
        what += f", always the commonest class {_commonest(given.truth):.1%}"
    invalid = int(scored.invalid.sum())
    return f"{asked}, {what}; judge {judge}, {invalid} invalid"


def _commonest(truth: Sequence[int]) -> float:
    return float(np.bincount(np.array(truth)).max() / len(truth))


def _caption_metrics(config: EvaluateConfig, given: Answers, path: Path) -> str:
    """Write the traditional metrics beside the answers; the end of a sentence on them."""
    from train.caption_metrics import caption_scores, traditional

    scores = caption_scores(given.said, given.references, config.sentences, config.simcse)
    write_judged(
        path.with_name(f"{path.stem}_evaluated_traditional.json"), traditional(given, scores)
    )
    listed = ", ".join(f"{name} {100 * values.mean():.1f}" for name, values in scores.items())
    return f"; {listed}"
