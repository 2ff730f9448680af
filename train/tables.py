"""Tables 1 and 2 of a run beside the published ones: python -m train.tables RUN.

Each cell with its 95 % interval over objects; behind each comparison the paired counts and how
small a difference it could have found. Reads what train.evaluate wrote.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tyro
from tyro.conf import Positional

from probe.intervals import bootstrap, wilson
from train.cli import fail, run
from train.comparisons import POWER, PUBLISHED_GAIN, Graded, Paired, graded, paired
from train.config import TRAINED, VARIANTS
from train.papers import SOURCE, TABLE_1, TABLE_2

if TYPE_CHECKING:
    from rich.table import Table

    from train.results import Judged

CAPTION_GAIN, SBERT_GAIN, SIMCSE_GAIN = (
    round(ours - theirs, 2) / 100
    for ours, theirs in zip(TABLE_2["PointAlign"], TABLE_2["MiniGPT-3D"], strict=True)
)
"""PointAlign's over MiniGPT-3D in Table 2: 4.88, 0.40 and -0.07 points."""
WIDTH = 120
TRADITIONAL = "traditional"
"""End of the name of a file of caption metrics."""
ALIKE = ("protocol", "decoding", "published_scoring")
"""What must not differ between two models that are compared."""
OVERLAP = ("bleu-", "rouge-", "meteor")
BESIDE = ("PointLLM-7B", "MiniGPT-3D", "PointAlign")
"""Published rows that are printed; train.papers has them all."""


class Column(NamedTuple):
    """One question about one set to one judge, and what each model got, by its name; or one metric
    of captions."""

    name: str
    judge: str
    caption: bool
    models: dict[str, Judged]

    @property
    def printed(self) -> bool:
        """Whether it is in the tables: BLEU, ROUGE-L and METEOR, which PointLLM's authors advise
        against, are kept in tables.json alone."""
        return not self.judge.startswith(OVERLAP)

    @property
    def published_gain(self) -> float:
        """What PointAlign gains over MiniGPT-3D by such a judge, as a share."""
        if not self.caption:
            return PUBLISHED_GAIN
        metrics = {"sbert": SBERT_GAIN, "simcse": SIMCSE_GAIN}
        return metrics.get(self.judge.partition("_")[0], CAPTION_GAIN)


def columns(folder: Path) -> list[Column]:
    """All that was judged or measured under the folder of an evaluation, (data, question, judge or
    metric of captions) each.

    Raises FileNotFoundError where nothing was.
    """
    from train.results import read_judged, read_metrics

    found: dict[tuple[str, str], dict[str, Judged]] = defaultdict(dict)
    paths = sorted(folder.glob("*/*_evaluated_*.json"))
    for path in sorted(paths, key=lambda one: one.stem.endswith(TRADITIONAL)):
        stem, _, judge = path.stem.partition("_evaluated_")
        if judge != TRADITIONAL:
            found[stem, judge][path.parent.name] = read_judged(path)
            continue
        for metric, judged in read_metrics(path).items():
            found[stem, metric][path.parent.name] = judged
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no judged answers: run python -m train.evaluate {folder.parent} first"
        )
    order = {name: at for at, name in enumerate(VARIANTS)}
    return [
        Column(
            stem,
            judge,
            "captioning" in stem,
            dict(sorted(m.items(), key=lambda i: order.get(i[0], 9))),
        )
        for (stem, judge), m in found.items()
    ]


def check_weights(run: Path, found: Sequence[Column]) -> None:
    """ValueError for answers of other weights than those that the run holds now."""
    from train.asked import weights_of
    from train.finished import recorded

    if not (run / "run.json").is_file():
        return  # results alone
    record, now = recorded(run), {}
    for column in found:
        for name, judged in column.models.items():
            asked = judged.made_by.get("checkpoint")
            weights = run / "checkpoints" / name / "model.safetensors"
            if asked is None or (name in TRAINED and not weights.is_file()):
                continue
            if name not in now:
                now[name] = weights_of(run, record, name)
            if asked != now[name]:
                raise ValueError(
                    f"{column.name} ({column.judge}): {name} was asked with other weights than "
                    f"{run} holds now; ask it again with python -m train.evaluate, or remove these "
                    "results"
                )


def cell(judged: Judged, caption: bool) -> tuple[float, float, float]:
    """Mean and bounds, as a share; of a caption's score by resampling its objects."""
    values = judged.values[~np.isnan(judged.values)]
    if len(values) < 2:
        raise ValueError(f"{judged.prompt!r}: {len(values)} valid verdicts are too few to count")
    found = bootstrap(values) if caption else wilson(int(values.sum()), len(values))
    return float(found.mean), float(found.low), float(found.high)


def compare(column: Column) -> Paired | Graded | None:
    """Aligned against baseline on the objects that count for both, if both were asked."""
    if not set(TRAINED) <= set(column.models):
        return None
    baseline, aligned = (column.models[name] for name in TRAINED)
    if baseline.ids != aligned.ids:
        raise ValueError(f"{column.name}: baseline and aligned were asked about other objects")
    for part in ALIKE:
        own, other = (one.made_by.get(part) for one in (baseline, aligned))
        if own != other:
            raise ValueError(
                f"{column.name} ({column.judge}): baseline and aligned were not asked and judged "
                f"alike ({part} is {own} and {other}); repeat python -m train.evaluate for both"
            )
    counted = ~np.isnan(baseline.values + aligned.values)
    pair = aligned.values[counted], baseline.values[counted]
    return graded(*pair, column.published_gain) if column.caption else paired(*pair)


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Print the tables of a run, and keep them as tables.json beside the verdicts."""

    run: Positional[Path]
    """Folder of a run that train.evaluate has asked."""
    out: Path | None = None
    """Folder of its results (default RUN/evaluation)."""


def main(config: TablesConfig) -> None:
    """Print Table 1 and 2, then what each comparison rests on."""
    from rich.console import Console

    folder = config.out or config.run / "evaluation"
    found = columns(folder)
    check_weights(config.run, found)
    console = Console()
    if console.width < WIDTH:  # a narrow terminal may fold lines, but no number is cut off
        console = Console(width=WIDTH)
    kept = []
    for number, caption in ((1, False), (2, True)):
        if some := [one for one in found if one.printed and one.caption == caption]:
            console.print(_table(number, some))
    for column in found:
        result = compare(column)
        cells = {name: cell(judged, column.caption) for name, judged in column.models.items()}
        kept.append({"column": column.name, "judge": column.judge, "cells": cells})
        if result is not None:
            if column.printed:
                console.print(f"• {_sentence(column, result)}", highlight=False, soft_wrap=True)
            kept[-1]["aligned against baseline"] = result._asdict()
    path = folder / "tables.json"
    path.write_text(json.dumps({"published": SOURCE, "columns": kept}, indent=1) + "\n")
    print(f"tables are in {path}")


def _table(number: int, some: list[Column]) -> Table:
    from rich.table import Table

    what = "Generative classification, % right" if number == 1 else "Captions, score of 100"
    table = Table(
        title=f"Table {number}. {what} [95 % interval over objects]", title_justify="left"
    )
    table.add_column("model")
    for column in some:
        data, _, question = column.name.rpartition("_")
        judge = column.judge.replace("_similarity (", "\n(")
        table.add_column(f"{data.replace('_', ' ')}\n{question}\n{judge}", justify="right")
    heads = "ModelNet40 I, C,\nObjaverse I, C" if number == 1 else "judge, SBERT, SimCSE"
    table.add_column(f"published\n{heads}", justify="right")
    for name in dict.fromkeys(name for column in some for name in column.models):
        row = [column.models.get(name) for column in some]
        table.add_row(name, *(_shown(cell(one, number == 2)) if one else "" for one in row))
    table.add_section()
    published = TABLE_1 if number == 1 else TABLE_2
    for name in BESIDE:
        table.add_row(name, *("" for _ in some), ", ".join(map(str, published[name])))
    table.caption = f"Published: {SOURCE}, judge Qwen2-72B-Instruct, other judges don't compare."
    return table


def _shown(found: tuple[float, float, float]) -> str:
    mean, low, high = (100 * part for part in found)
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _sentence(column: Column, result: Paired | Graded) -> str:
    mean, low, high = (100 * part for part in (result.mean, result.low, result.high))
    said = f"{column.name} ({column.judge}): aligned - baseline {mean:+.1f} points "
    said += f"[{low:+.1f}, {high:+.1f}]; of {result.objects} objects "
    if isinstance(result, Paired):
        said += f"both name {result.both}, aligned alone {result.only_a}, baseline alone "
        said += f"{result.only_b}, neither {result.neither}; McNemar p {result.p:.2g}. "
    else:
        said += f"aligned scores higher on {result.higher_a}, baseline on {result.higher_b}, both "
        said += f"the same on {result.equal}; p {result.p:.2g} (sign flips). "
    return (
        f"{said}Differences from {100 * result.smallest:.1f} points on are found with {POWER:.0%} "
        f"power, the published {'' if column.caption else 'mean '}gain of "
        f"{100 * column.published_gain:.2f} with {result.power:.0%}"
    )


def cli(arguments: list[str] | None = None) -> None:
    """Run the command line, `sys.argv` when None; a wrong call ends it with code 2."""
    try:
        config = tyro.cli(
            TablesConfig, prog="python -m train.tables", description=__doc__, args=arguments
        )
    except ValueError as error:
        fail(str(error), 2)
    run(main, config)


if __name__ == "__main__":
    cli()
