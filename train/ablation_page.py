"""The tables and the figure of a sweep, each setting beside the published one, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.ablation import BASELINE, DEFAULT, Estimate, estimate
from train.ablation_trends import (
    FRACTION,
    Varied,
    cka,
    published,
    published_gap,
    shown,
    varied,
    words,
)
from train.papers import FIGURE_4, NUMBERS, SOURCE

if TYPE_CHECKING:
    import xarray as xr


def title(name: str) -> str:
    """A setting with the number of its published table."""
    return f"{name} ({NUMBERS[name]})" if name in NUMBERS else name


def table(results: xr.Dataset, one: Varied) -> list[list[str]]:
    """The head and the rows of its table, as text."""
    questions = [str(each) for each in results.question.values]
    head = [one.name, *questions, "less the default", "p", "better : worse", "finds"]
    head += ["less its baseline"]
    layers = [layer for layer in results.layer.values.tolist() if layer]
    head += [*(f"CKA at layer {layer}" for layer in layers), "published"]
    rows = [head]
    for value, row in one.rows.items():
        seeds = int(results.by_seed.sel(setting=row).notnull().any("question").sum())
        few = "" if seeds == results.sizes["seed"] else f" ({seeds} of the seeds)"
        own = [value + few, *(shown(estimate(results, "", row, each)) for each in questions)]
        own += ["default", "", "", ""] if row == DEFAULT else _against_default(results, row)
        own += [shown(estimate(results, "gain_", row, questions[-1]), "+")]
        own += [cka(results, row, layer) for layer in layers]
        rows.append([*own, _paper(results, one, value)])
    return rows


def _against_default(results: xr.Dataset, row: str) -> list[str]:
    here = results.sel(setting=row)
    last = here.isel(question=-1)
    pairs = zip(here.difference_won.values, here.difference_lost.values, strict=True)
    counts = [f"{won:.0f} : {lost:.0f}" for won, lost in pairs if np.isfinite(won)]
    least = 100 * float(last.difference_smallest)
    return [
        shown(estimate(results, "difference_", row, str(last.question.values)), "+"),
        f"{float(last.difference_p_adjusted):.2g}",
        ", ".join(counts),
        f"{least:.1f}",
    ]


def _paper(results: xr.Dataset, one: Varied, value: str) -> str:
    if one.name == FRACTION:
        return ", ".join("?" if it is None else str(it) for it in FIGURE_4.get(value, ()))
    row = published(one.name, value, results.attrs["phi3"])
    if row is None or results.attrs["task"] == "caption":
        return ""
    gap = published_gap(one.name, value, one.default, results.attrs["phi3"])
    mean = f"{np.mean(row):.2f}"
    return f"{mean} ({100 * gap:+.2f})" if gap else mean


def markdown(results: xr.Dataset, picture: str) -> str:
    """All of it as a page; `picture` is the figure's file, beside it."""
    lines = ["# One setting at a time", "", *_about(results), ""]
    if varied(results):
        lines += [f"![Differences from the default]({picture})", ""]
    lines += ["## What becomes of the paper's trends", ""]
    lines += [f"- {one}" for one in words(results)]
    for one in varied(results):
        head, *rows = table(results, one)
        lines += ["", f"## {title(one.name)}", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(cells) for cells in rows]
    return "\n".join([*lines, "", *LEGEND]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def printed(results: xr.Dataset) -> list[Any]:
    """The same for the terminal: rich tables, and lines."""
    from rich.table import Table

    found: list[Any] = []
    for one in varied(results):
        head, *rows = table(results, one)
        found.append(Table(*head, title=title(one.name), title_justify="left"))
        for cells in rows:
            found[-1].add_row(*cells)
    return [*found, *LEGEND, *(f"• {one}" for one in words(results))]


def _about(results: xr.Dataset) -> list[str]:
    objects = ", ".join(f"{count} of {name}" for name, count in results.attrs["objects"].items())
    said = f"{results.sizes['seed']} seeds, each a data set and an order of training of its own; "
    said += f"objects that each model was asked about: {objects}; judge: {results.attrs['judge']}."
    if missing := results.attrs["missing"]:
        said += f" Not finished, the same command goes on with them: {', '.join(missing)}."
    return [f"Written by `{results.attrs['command']}`.", "", said]


LEGEND = (
    "Percent and points with 95 % intervals over objects and seeds; p by Student's t, adjusted "
    "over all settings (Holm). better : worse: answers, over all seeds, that this setting alone "
    "and the default alone has right, question by question. finds: the smallest difference found "
    "four times in five. CKA: of the aligned model's layer with the target, less its baseline's. "
    "The baseline is the row of weight 0.0.",
    "",
    f"Published: {SOURCE}, mean of four accuracies (ModelNet40 and Objaverse, I and C) and its "
    "difference from the default's; by share of the data, caption scores (aligned, baseline). "
    "Data, model size and judge are others than here: only signs and sizes compare.",
)


def draw(results: xr.Dataset, path: Path) -> None:
    """A panel a setting: ours with intervals, and the published differences from the default."""
    from matplotlib.figure import Figure

    if not (made := varied(results)):
        return
    columns = min(3, len(made))
    rows = -(-len(made) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(made) :]:
        axis.set_visible(False)
    for axis, one in zip(axes, made, strict=False):
        _panel(axis, results, one)
    gaps = [axis for axis, one in zip(axes, made, strict=False) if one.name != FRACTION]
    limits = np.array([axis.get_ylim() for axis in gaps] or [(0, 0)])
    for axis in gaps:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max())
    handles: dict[str, Any] = {}
    for axis in axes:
        bars, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, bars, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path)


def _panel(axis, results: xr.Dataset, one: Varied) -> None:
    question = str(results.question.values[-1])
    places = np.arange(len(one.rows))
    if one.name == FRACTION:
        for name, colour, shift in (("aligned", "#009E73", 0.06), (BASELINE, "#D55E00", -0.06)):
            found = [
                estimate(results, "", _baseline(row) if name == BASELINE else row, question)
                for row in one.rows.values()
            ]
            _bars(axis, places + shift, found, colour, name, "D" if name == "aligned" else "o")
        axis.set_ylabel("%")
    else:
        rows = [row for row in one.rows.values() if row != DEFAULT]
        here = [at for at, row in enumerate(one.rows.values()) if row != DEFAULT]
        found = [estimate(results, "difference_", row, question) for row in rows]
        _bars(axis, np.array(here) - 0.08, found, "#0072B2", "here, 95 % interval", "s")
        phi3 = bool(results.attrs["phi3"])
        gaps = [published_gap(one.name, value, one.default, phi3) for value in one.rows]
        known = np.array([np.nan if gap is None else 100 * gap for gap in gaps])
        if results.attrs["task"] == "classify":
            axis.plot(places + 0.08, known, "X", color="#7A7A7A", label="published")
        axis.axhline(0, color="#333333", linewidth=0.8)
        axis.set_ylabel("points above the default")
    axis.set_xticks(places, list(one.rows), fontsize=8)
    axis.set_title(title(one.name), fontsize=10)


def _baseline(row: str) -> str:
    return BASELINE if row == DEFAULT else f"{BASELINE}, {row}"


def _bars(axis, places, found: Sequence[Estimate], colour: str, label: str, mark: str) -> None:
    mean, low, high = (100 * np.array([one[at] for one in found]) for at in range(3))
    bars = [mean - low, high - mean]
    axis.errorbar(places, mean, bars, fmt=mark, color=colour, label=label, capsize=2, markersize=5)
