"""One panel: curves of the models over the layers with their bars, and what they are read against.

A panel and the differences below it are drawn the same way by plotly and by matplotlib.
"""

from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from probe.plots_style import (
    BAND,
    FAINT,
    INK,
    LAYER,
    LAYERS,
    MARKERS,
    add_band,
    colour,
    shape,
    shifts,
    some,
)
from probe.published_figures import Published
from probe.report import MAIN, SIGNIFICANT

ROOM = 0.1  # above and below what a panel shows, as a share of it; a note fits in there
MARKED = {  # filled or hollow
    True: f"aligned − baseline, p < {SIGNIFICANT} over {{}} at once",
    False: "aligned − baseline, within noise",
}


class Line(NamedTuple):
    """A reference across a panel: one value for all layers, or one a layer."""

    name: str
    values: np.ndarray
    dash: str


class Panel(NamedTuple):
    """What one panel shows: a score over (variant, layer) and what to read it against."""

    title: str
    axis: str
    mean: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray
    lines: list[Line]
    percent: bool = False
    published: tuple[Published, ...] = ()
    """Figures of a paper, drawn as stars."""
    wide: tuple[xr.DataArray, xr.DataArray] | None = None
    """Ends of the band that covers all layers of a curve at once, where it was measured."""


class Gap(NamedTuple):
    """Aligned less baseline over the layers, and where that is beyond noise."""

    title: str
    axis: str
    layers: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sure: np.ndarray
    wide: tuple[np.ndarray, np.ndarray] | None = None
    """Ends of the band that covers all layers at once; earlier results lack it."""
    over: str = LAYERS
    """What the band and the filled marks hold for at once."""


def gap_of(results: xr.Dataset, key: str, title: str, axis: str, scale: float = 1) -> Gap | None:
    """Aligned less baseline in `key`, over its layers; None where it was not compared.

    results : with `KEY_difference`, `_low`, `_high`, `_p_adjusted` and, for the band over all
    layers at once, `_wide_low` and `_wide_high` over (comparison, layer)
    """
    there = f"{key}_difference" in results and "comparison" in results.dims
    if not there or MAIN not in results.comparison.values:
        return None
    compared = results.sel(comparison=MAIN)
    parts = [compared[f"{key}_difference{end}"] for end in ("", "_low", "_high", "_p_adjusted")]
    mean, low, high, p = (part.values for part in parts)
    layers = compared.layer.values
    wide = None
    if f"{key}_difference_wide_low" in compared:
        ends = (compared[f"{key}_difference_wide_{end}"].values for end in ("low", "high"))
        wide = (scale * next(ends), scale * next(ends))
    low, high = scale * low, scale * high
    return Gap(title, axis, layers, scale * mean, low, high, p < SIGNIFICANT, wide)


def span(panel: Panel) -> tuple[float, float]:
    """Ends of the y axis: the models' intervals, the target, what was published; and some room.

    A measure without intervals has its values alone.
    """
    target = [line.values for line in panel.lines if line.name == "target"]
    target.append(np.array([one.value for one in panel.published]))
    values = (panel.mean, panel.low, panel.high, *(panel.wide or ()))
    shown = np.concatenate([part.values.ravel() for part in values] + target)
    shown = shown[np.isfinite(shown)]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    room = ROOM * (high - low or 1)
    return low - room, high + room


def inside(panel: Panel) -> list[Line]:
    """The references that cross the panel."""
    low, high = span(panel)
    return [line for line in panel.lines if ((low <= line.values) & (line.values <= high)).any()]


def outside(panel: Panel) -> dict[str, str]:
    """What to write of the references that lie beyond the axis, a note an end of it."""
    names = {line.name for line in inside(panel)}
    notes: dict[str, list[str]] = {"below": [], "above": []}
    for line in panel.lines:
        if line.name not in names:
            side = "below" if line.values.mean() < span(panel)[0] else "above"
            notes[side].append(f"{line.name} {_values(line, panel.percent)}")
    return {side: f"{', '.join(said)}: {side} the axis" for side, said in notes.items() if said}


def _values(line: Line, percent: bool) -> str:
    """Least to largest value of a reference, in words."""
    digits = 1 if percent else 2
    ends = [round(float(end), digits) + 0.0 for end in (line.values.min(), line.values.max())]
    texts = [f"{end:.{digits}f}".replace("-", "−") for end in ends]
    return " to ".join(dict.fromkeys(texts)) + (" %" if percent else "")


def add_panel(figure: go.Figure, panel: Panel, named: set[str] | None = None, **place: int) -> None:
    """One panel in a plotly figure. named : what its legend has already, and gains here."""
    named = set() if named is None else named
    for x, mean, ends in _bands(panel):
        add_band(figure, x, mean, ends, BAND not in named, LAYERS, **place)
        named.add(BAND)
    for trace in [*_curves(panel), *_references(panel), *_published(panel)]:
        trace.showlegend = trace.name not in named
        named.add(trace.name)
        figure.add_trace(trace, **place)
    figure.update_yaxes(title=panel.axis, range=span(panel), zeroline=False, **place)
    for side, note in outside(panel).items():
        figure.add_annotation(
            text=note,
            font_size=11,
            x=0.015,
            xref="x domain",
            xanchor="left",
            y=0 if side == "below" else 1,
            yref="y domain",
            yanchor="bottom" if side == "below" else "top",
            showarrow=False,
            **place,
        )


def add_gap(figure: go.Figure, gap: Gap, in_legend: bool, **place: int) -> None:
    """Differences in a plotly figure, filled marks where they are beyond noise."""
    edge = {"color": colour("aligned"), "width": 1.6}
    style = {"color": colour("aligned"), "size": 9, "line": edge}
    symbols = [shape("aligned") + ("" if sure else "-open") for sure in gap.sure]
    if gap.wide is not None:
        add_band(figure, gap.layers, gap.mean, gap.wide, in_legend, gap.over, **place)
    figure.add_scatter(
        x=gap.layers,
        y=gap.mean,
        name=MAIN,
        mode="lines+markers",
        showlegend=False,
        line={"color": colour("aligned"), "width": 1.3},
        marker=style | {"symbol": symbols},
        error_y={"array": gap.high - gap.mean, "arrayminus": gap.mean - gap.low, "thickness": 1.3},
        customdata=np.stack([gap.layers, gap.low, gap.high], axis=1),
        hovertemplate="layer %{customdata[0]}: %{y:+.4f} "
        "[%{customdata[1]:+.4f}, %{customdata[2]:+.4f}]",
        **place,
    )
    for sure, name in MARKED.items() if in_legend else ():
        marker = style | {"symbol": shape("aligned") + ("" if sure else "-open")}
        name = name.format(gap.over)
        figure.add_scatter(x=[None], y=[None], name=name, mode="markers", marker=marker, **place)
    figure.add_hline(y=0, line_color=INK, line_width=1, **place)
    figure.update_yaxes(title=gap.axis, zeroline=False, **place)


def _curves(panel: Panel) -> list[go.Scatter]:
    layers = panel.mean.layer.values
    digits = 1 if panel.percent else 4
    traces = []
    for variant, offset in _dodged(panel.mean):
        mean, low, high = (
            part.sel(variant=variant).values for part in (panel.mean, panel.low, panel.high)
        )
        traces.append(
            go.Scatter(
                x=layers + offset,
                y=mean,
                name=variant,
                legendgroup=variant,
                mode="lines+markers",
                line={"color": colour(variant), "width": 2},
                marker={"symbol": shape(variant), "size": 8},
                error_y={"array": high - mean, "arrayminus": mean - low, "thickness": 1.3},
                customdata=np.stack([layers, low, high], axis=1),
                hovertemplate=f"layer %{{customdata[0]}}: %{{y:.{digits}f}} "
                f"[%{{customdata[1]:.{digits}f}}, %{{customdata[2]:.{digits}f}}]",
            )
        )
    return traces


def _bands(panel: Panel) -> list[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Where each model's band stands, its middle and its ends: (layers,) each."""
    if panel.wide is None:
        return []
    found = []
    for variant, offset in _dodged(panel.mean):
        mean, low, high = (part.sel(variant=variant).values for part in (panel.mean, *panel.wide))
        found.append((panel.mean.layer.values + offset, mean, (low, high)))
    return found


def _references(panel: Panel) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=panel.mean.layer.values,
            y=line.values,
            name=line.name,
            legendgroup=line.name,
            mode="lines",
            line={"color": INK, "width": 1.3, "dash": line.dash},
            hovertemplate=f"%{{y:.{1 if panel.percent else 4}f}}",
        )
        for line in inside(panel)
    ]


def _published(panel: Panel) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=[one.layer],
            y=[one.value],
            name=f"{one.variant}, {one.source}",
            mode="markers",
            marker={
                "symbol": "star",
                "size": 14,
                "color": colour(one.variant),
                "line": {"color": INK, "width": 1},
            },
            hovertemplate=f"layer {one.layer}, published: %{{y:.2f}}",
        )
        for one in panel.published
    ]


def draw_panel(axis: Any, panel: Panel, handles: dict[str, Any]) -> None:
    """One panel on a matplotlib axis; the first mark of each name goes to the legend."""
    layers = panel.mean.layer.values
    dashes = {"dash": (0, (6, 3)), "dot": (0, (1, 2)), "solid": "-", "dashdot": "-."}
    dashes |= {"longdash": (0, (12, 3))}
    for line in inside(panel):
        style = {"color": INK, "linewidth": 1.1, "linestyle": dashes[line.dash]}
        (mark,) = axis.plot(layers, line.values, zorder=1, **style)
        handles.setdefault(line.name, mark)
    for variant, offset in _dodged(panel.mean):
        mean, low, high = (
            part.sel(variant=variant).values for part in (panel.mean, panel.low, panel.high)
        )
        mark = axis.errorbar(
            layers + offset,
            mean,
            yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
            color=colour(variant),
            marker=MARKERS[shape(variant)],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2,
        )
        handles.setdefault(variant, mark)
    for x, mean, ends in _bands(panel):
        handles.setdefault(BAND.format(LAYERS), _draw_band(axis, x, mean, *ends))
    for one in panel.published:
        star = axis.scatter(
            one.layer, one.value, s=90, marker="*", color=colour(one.variant), edgecolors=INK
        )
        handles.setdefault(f"{one.variant}, {one.source}", star)
    axis.set_ylim(span(panel))
    for side, note in outside(panel).items():
        y, anchor = (0.012, "bottom") if side == "below" else (0.985, "top")
        axis.text(0.015, y, note, va=anchor, transform=axis.transAxes, fontsize=10, color=INK)
    _dress(axis, panel)
    axis.set_xticks(some(layers))


def draw_gap(axis: Any, gap: Gap, handles: dict[str, Any]) -> None:
    """Differences on a matplotlib axis; both kinds of mark go to the legend."""
    style = {"color": colour("aligned"), "marker": MARKERS[shape("aligned")], "linestyle": "none"}
    axis.axhline(0, color=INK, linewidth=1)
    bars = [np.maximum(gap.mean - gap.low, 0), np.maximum(gap.high - gap.mean, 0)]
    axis.errorbar(
        gap.layers, gap.mean, yerr=bars, color=style["color"], linewidth=1.2, capsize=3, zorder=2
    )
    if gap.wide is not None:
        handles.setdefault(BAND.format(gap.over), _draw_band(axis, gap.layers, gap.mean, *gap.wide))
    for sure, name in MARKED.items():
        there = gap.sure == sure
        fill = style["color"] if sure else "white"
        (mark,) = axis.plot(
            gap.layers[there],
            gap.mean[there],
            markerfacecolor=fill,
            markersize=7,
            markeredgewidth=1.4,
            zorder=3,
            **style,
        )
        handles.setdefault(name.format(gap.over), mark)
    _dress(axis, gap)
    axis.set_xticks(some(gap.layers))


def _draw_band(
    axis: Any, x: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Any:
    """`plots_style.add_band` on a matplotlib axis."""
    bars = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
    style = {"fmt": "none", "ecolor": FAINT, "elinewidth": 0.7, "capsize": 5, "zorder": 1}
    return axis.errorbar(x, mean, yerr=bars, **style)


def _dress(axis: Any, shown: Panel | Gap) -> None:
    """Title, names of the axes and grid of a matplotlib panel."""
    axis.set_title(shown.title, fontsize=11.5, loc="left", color=INK)
    axis.set_ylabel(shown.axis.replace("   (", "\n("), fontsize=11)
    axis.set_xlabel(LAYER, fontsize=11)
    axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10.5)


def _dodged(mean: xr.DataArray) -> list[tuple[str, float]]:
    """Each model with its small shift along the layers."""
    names = mean.variant.values.astype(str).tolist()
    return list(zip(names, shifts(mean.layer.values, len(names)).tolist(), strict=True))
