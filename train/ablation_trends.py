"""Which of the paper's differences a sweep sees, and which are within noise, here and there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from train.ablation import BASELINE, DEFAULT, Estimate, estimate
from train.papers import ABLATIONS, FIGURE_4, OBJECTS, TABLE_10, Cells

if TYPE_CHECKING:
    import xarray as xr

SIGNIFICANT = 0.05
FRACTION = "data_fraction"
VERDICTS = ("hold here beyond noise", "are reversed beyond noise", "are within noise")


class Varied(NamedTuple):
    """One setting that was varied."""

    name: str
    rows: dict[str, str]
    """Value -> row of the results, the default's among them, in order of value."""
    default: str


def varied(results: xr.Dataset) -> list[Varied]:
    """The settings of a sweep, in the order of its rows."""
    found: dict[str, dict[str, str]] = {}
    for row in map(str, results.setting.values):
        name, _, value = row.partition("=")
        if value and not name.startswith(BASELINE):
            found.setdefault(name, {})[value.replace("+", ",")] = row
    made = []
    for name, rows in found.items():
        default = str(results.attrs["defaults"][name])
        rows[default] = DEFAULT
        if name == "align_weight" and BASELINE in results.setting.values:
            rows["0.0"] = BASELINE
        ordered = dict(sorted(rows.items(), key=lambda pair: _place(name, pair[0])))
        made.append(Varied(name, ordered, default))
    return made


def _place(name: str, value: str) -> tuple:
    """Numbers in their order, then words as published."""
    words = list(ABLATIONS.get(name, ()))
    number = float(value) if value.replace(".", "", 1).isdigit() else np.inf
    return number, words.index(value) if value in words else len(words), value


def published(name: str, value: str, phi3: bool = False) -> Cells | None:
    """The paper's four accuracies of a setting; those of Table 10 where the LLM is Phi-3."""
    if phi3:
        return TABLE_10.get(value) if name == "align_layer" else None
    return ABLATIONS.get(name, {}).get(value)


def published_gap(name: str, value: str, default: str, phi3: bool = False) -> float | None:
    """The paper's mean of four accuracies less that of its default, as a share."""
    own, other = published(name, value, phi3), published(name, default, phi3)
    return (float(np.mean(own)) - float(np.mean(other))) / 100 if own and other else None


def published_gain(caption: bool = False, phi3: bool = False) -> float:
    """What alignment at layer 16 adds, as a share: to the caption score of all the training data,
    or to the mean of four accuracies."""
    if caption:
        aligned, baseline = FIGURE_4["1.0"]
        assert aligned and baseline
        return (aligned - baseline) / 100
    weights = ABLATIONS["align_weight"]
    own = TABLE_10["16"] if phi3 else weights["0.1"]
    other = TABLE_10["baseline"] if phi3 else weights["0.0"]
    return (float(np.mean(own)) - float(np.mean(other))) / 100


def published_error() -> float:
    """Standard error of a published difference of means, as a share: of its objects alone.

    Two models of the default's accuracies, all answers taken as independent. The paper trains each
    model once and asks two questions about one object, so the true one is above that, unless the
    models share their mistakes.
    """
    cells = np.array(ABLATIONS["align_loss"]["cosine"]) / 100
    return float(np.sqrt(2 * (cells * (1 - cells) / np.array(OBJECTS)).sum()) / len(cells))


def shown(found: Estimate, sign: str = "") -> str:
    """In percent with its interval; `sign` "+" for a difference. Empty where there is none."""
    if np.isnan(found.mean):
        return ""
    mean, low, high = (f"{100 * one:{sign}.1f}" for one in found[:3])
    return f"{mean} [{low}, {high}]"


def cka(results: xr.Dataset, row: str, layer: int) -> str:
    """Gain in CKA with the target, with its interval; empty for a baseline, which has none."""
    one = results.sel(setting=row, layer=layer)
    if np.isnan(one.cka_mean):
        return ""
    mean, low, high = (f"{float(one[f'cka_{part}']):+.4f}" for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


class Trend(NamedTuple):
    """A difference from the default that the paper prints, and ours."""

    setting: str
    published: float
    ours: Estimate
    p_adjusted: float
    changed: float
    """Share of the answers that are right with the one and wrong with the other."""

    @property
    def verdict(self) -> str:
        holds, reversed_, noise = VERDICTS
        if self.p_adjusted >= SIGNIFICANT:
            return noise
        return holds if self.ours.mean * self.published > 0 else reversed_


def trends(results: xr.Dataset) -> list[Trend]:
    """Every difference that the paper prints and the sweep has; it prints none of captions."""
    if results.attrs["task"] == "caption":
        return []
    question, phi3 = str(results.question.values[-1]), bool(results.attrs["phi3"])
    found = []
    for table in varied(results):
        for value, row in table.rows.items():
            gap = published_gap(table.name, value, table.default, phi3)
            if row == DEFAULT or gap is None:
                continue
            p = results.difference_p_adjusted.sel(setting=row, question=question)
            ours = estimate(results, "difference_", row, question)
            changed = results.difference_changed.sel(setting=row, question=question)
            found.append(Trend(row, gap, ours, float(p), float(changed)))
    return found


def words(results: xr.Dataset) -> list[str]:
    """What the sweep says of the paper's trends, a sentence or two each."""
    question = str(results.question.values[-1])
    said = []
    if BASELINE in results.setting.values:
        said.append(_of_alignment(results, question))
    found = trends(results)
    if found:
        said += _of_trends(found)
    said.append(_of_closeness(results))
    for table in varied(results):
        if table.name == FRACTION:
            said.append(_of_fractions(results, table, question))
    return said


def _of_alignment(results: xr.Dataset, question: str) -> str:
    gain = estimate(results, "gain_", DEFAULT, question)
    p = float(results.gain_p_adjusted.sel(setting=DEFAULT, question=question))
    seen = "within noise" if p >= SIGNIFICANT else "beyond noise"
    paper = published_gain(results.attrs["task"] == "caption", bool(results.attrs["phi3"]))
    return (
        f"Alignment as the default has it, less the baseline: {shown(gain, '+')} points ({seen}, p "
        f"{p:.2g} over all settings; {100 * gain.smallest:.1f} would be found four times in five). "
        f"The paper prints {100 * paper:+.2f}, which this sweep finds with a power of "
        f"{gain.power(paper):.0%}."
    )


def _of_trends(found: Sequence[Trend]) -> list[str]:
    sizes = [100 * abs(one.published) for one in found]
    least = [100 * one.ours.smallest for one in found]
    powers = [one.ours.power(one.published) for one in found]
    counts = []
    for name in VERDICTS:
        some = [one.setting for one in found if one.verdict == name]
        listed = f" ({', '.join(some)})" if some and name != VERDICTS[-1] else ""
        counts.append(f"{len(some)} {name}{listed}")
    other = sum(not one.ours.low <= one.published <= one.ours.high for one in found)
    changed = [one.changed for one in found]
    error = 100 * published_error()
    return [
        f"Of the {len(found)} differences from the default that the paper prints, "
        f"{', '.join(counts)}. The interval found here leaves out the published size of {other}.",
        f"The published ones are {min(sizes):.2f} to {max(sizes):.2f} points; the sweep finds "
        f"{min(least):.1f} to {max(least):.1f} points four times in five, and the published ones "
        f"with a power of {min(powers):.0%} to {max(powers):.0%}.",
        f"At this scale a setting changes {min(changed):.1%} to {max(changed):.1%} of the answers "
        "from right to wrong or back: what is said here is said of this scale alone.",
        f"The paper trains each model once: its objects alone give such a difference a standard "
        f"error of {error:.1f} points, so that {sum(size < 1.96 * error for size in sizes)} of the "
        f"{len(sizes)} are within its own noise, if the models' mistakes are independent.",
    ]


def _of_closeness(results: xr.Dataset) -> str:
    layer = int(results.layer[-1])
    gains = results.cka_mean.sel(layer=layer)
    above = results.setting.values[(results.cka_low.sel(layer=layer) > 0).values]
    ends = np.nanargmax(gains.values), np.nanargmin(gains.values)
    most, least = (str(gains.setting.values[at]) for at in ends)
    counted = int(gains.notnull().sum())
    return (
        f"Alignment holds layer {layer} nearer to the target than the baseline does in "
        f"{len(above)} of {counted} settings, each by its own interval (CKA): by "
        f"{cka(results, DEFAULT, layer)} as the default has it, most by "
        f"{cka(results, most, layer)} with {most}, least by {cka(results, least, layer)} with "
        f"{least}."
    )


def _of_fractions(results: xr.Dataset, table: Varied, question: str) -> str:
    gains = []
    for value, row in table.rows.items():
        p = float(results.gain_p_adjusted.sel(setting=row, question=question))
        seen = "within noise" if p >= SIGNIFICANT else f"p {p:.2g}"
        gains.append(f"{value}: {shown(estimate(results, 'gain_', row, question), '+')} ({seen})")
    return f"Gain of alignment by share of the training data, {'; '.join(gains)}."
