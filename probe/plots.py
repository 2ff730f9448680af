"""Results in, figures out: plotly for the screen, matplotlib where a file of pixels is wanted."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.report import MAIN, SIGNIFICANT

# Okabe & Ito 2008: told apart by colour-blind readers; a shape each, for print without colour
COLOURS = {
    "stage1": "#0072B2",
    "baseline": "#D55E00",
    "aligned": "#009E73",
    "untrained": "#7A7A7A",
}
SHAPES = {"stage1": "square", "baseline": "circle", "aligned": "diamond", "untrained": "x"}
MARKERS = {"square": "s", "circle": "o", "diamond": "D", "x": "X", "triangle-up": "^"}
MARKERS |= {"star": "*", "hexagon": "h"}
SPARE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
DODGE = 0.07  # of the step between layers, so that error bars stand beside each other
INK = "#333333"
INK_ON_DARK = "#DDDDDD"
ROOM = 0.1  # above and below what a panel shows, as a share of it; a note fits in there
LAYER = "layer (0 = what enters block 1)"
DEPTH = ("knn", "cka", "drift_centred")  # the scores of the depth figure
GAPS = {  # title and axis of their differences
    "knn": ("Difference in accuracy", "points, K = {k}   (above 0: aligned is better)"),
    "cka": ("Difference in CKA", "CKA   (above 0: aligned is closer)"),
    "drift_centred": ("Difference in drift", "1 − cosine   (below 0: aligned is closer)"),
}
MARKED = {  # filled or hollow
    True: f"aligned − baseline, p < {SIGNIFICANT} over all layers at once",
    False: "aligned − baseline, within noise",
}
STEPS = {  # title and colour bar of a score during training
    "cka": ("Same arrangement of objects as the target, during training", "CKA (higher is closer)"),
    "drift": (
        "Drift of the tokens from the target, during training",
        "1 − cosine (lower is closer)",
    ),
    "drift_centred": (
        "Drift from the target (common part off), during training",
        "1 − cosine (lower is closer)",
    ),
}
LOGGED = {  # columns of a training log, with the title and the axis of their panels
    "ntp_loss": ("Next-token loss", "nats a token   (lower is better)"),
    "align_loss": ("Alignment loss", "loss   (lower is closer)"),
    "loss": ("Loss that is minimised", "loss   (lower is better)"),
    "lr": ("Learning rate", "learning rate"),
    "tokens_per_s": ("Speed", "tokens/s   (higher is faster)"),
    "memory_mib": ("Peak memory", "MiB"),
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


class Gap(NamedTuple):
    """Aligned less baseline over the layers, and where that is beyond noise."""

    title: str
    axis: str
    layers: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sure: np.ndarray


def plot_score_by_layer(results: xr.Dataset, score: str, k: int | None = None) -> go.Figure:
    """One score of a sweep over the layers, a line a model with its interval.

    score : "knn", "cka", "drift" or "drift_centred"    k : neighbours, for "knn"
    """
    panel = _panel(results, score, k)
    figure = go.Figure()
    _add_panel(figure, panel)
    figure.update_layout(title=panel.title, template="plotly_white", hovermode="x unified")
    return figure.update_xaxes(title=LAYER, **_ticks(results))


def depth_figure(results: xr.Dataset) -> go.Figure:
    """Accuracy at the largest K, CKA and drift over the layers; below each, what aligned changes.

    The second row is there where the sweep compares aligned with the baseline.
    """
    panels, gaps = _panels(results), _gaps(results)
    rows = 2 if gaps else 1
    figure = make_subplots(
        rows,
        len(panels),
        subplot_titles=[panel.title for panel in panels] + [gap.title for gap in gaps],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
    )
    figure.update_annotations(font_size=12.5)
    named: set[str] = set()
    for column, panel in enumerate(panels, 1):
        _add_panel(figure, panel, named, row=1, col=column)
    for column, gap in enumerate(gaps, 1):
        _add_gap(figure, gap, in_legend=column == 1, row=2, col=column)
    figure.update_xaxes(title=LAYER, title_font_size=12, **_ticks(results))
    return figure.update_yaxes(title_font_size=12).update_layout(
        template="plotly_white",
        title=_headline(results),
        height=350 * rows + 130,
        legend={"orientation": "h", "yref": "container", "y": 0.01, "x": 0.5, "xanchor": "center"},
        font={"size": 13, "color": INK},
        margin={"t": 90, "b": 120},
    )


def difference_figure(results: xr.Dataset, score: str = "knn") -> go.Figure:
    """Each model less the baseline over the layers, paired by object, with intervals."""
    key = f"{score}_difference"
    if key not in results:
        raise ValueError(f"these results compare no models in {score!r}: capture a baseline too")
    gaps = {part: results[f"{key}{part}"] for part in ("", "_low", "_high")}
    figure = go.Figure()
    for pair in results.comparison.values.astype(str):
        for k in gaps[""].k.values if "k" in gaps[""].dims else [None]:
            where = {"comparison": pair} | ({} if k is None else {"k": k})
            mean, low, high = (gaps[part].sel(where).values for part in gaps)
            style = {"color": colour(pair.split(" - ")[0])}
            figure.add_scatter(
                x=results.layer.values,
                y=mean,
                error_y={"array": high - mean, "arrayminus": mean - low},
                name=pair if k is None else f"{pair}, K = {k}",
                line=style | {"dash": "solid" if k in (None, results.k.values[0]) else "dash"},
                marker=style,
            )
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_xaxes(title="layer (0 = what enters block 1)", **_ticks(results))
    return figure.update_layout(template="plotly_white", yaxis_title=gaps[""].attrs["long_name"])


def training_figure(metrics: pd.DataFrame) -> go.Figure:
    """The log of a training over its steps, a panel a quantity, a line a model.

    metrics : columns variant, step and some of `LOGGED`; a quantity that a model does not log
    is missing in its rows.
    """
    panels = [name for name in LOGGED if name in metrics and metrics[name].notna().any()]
    if not panels:
        raise ValueError(f"this log holds none of {', '.join(LOGGED)}: there is nothing to draw")
    columns = min(3, len(panels))
    figure = make_subplots(
        -(-len(panels) // columns),
        columns,
        subplot_titles=[LOGGED[name][0] for name in panels],
        horizontal_spacing=0.09,
        vertical_spacing=0.17,
    )
    named: set[str] = set()
    for at, name in enumerate(panels):
        place = {"row": at // columns + 1, "col": at % columns + 1}
        for variant, rows in metrics.dropna(subset=[name]).groupby("variant", sort=False):
            figure.add_trace(_logged(str(variant), rows, name, str(variant) not in named), **place)
            named.add(str(variant))
        figure.update_xaxes(title="step", rangemode="tozero", matches="x", **place)
        figure.update_yaxes(title=LOGGED[name][1], **place)
    return figure.update_layout(
        template="plotly_white",
        height=290 * (-(-len(panels) // columns)) + 70,
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0},
        margin={"t": 90, "b": 50},
    )


def steps_figure(results: xr.Dataset, score: str = "cka") -> go.Figure:
    """A score of the layers during training: a heat map a model, layers across and steps upwards.

    results : of `probe.steps.steps`    score : "cka", "drift" or "drift_centred"
    """
    if f"{score}_mean" not in results or "step" not in results.dims:
        raise ValueError(f"these results hold no {score!r} by training step")
    names = results.variant.values.astype(str)
    figure = make_subplots(1, len(names), subplot_titles=list(names), shared_yaxes=True)
    title, axis = STEPS[score]
    for column, name in enumerate(names, 1):
        mean, low, high = (
            results[f"{score}_{p}"].sel(variant=name) for p in ("mean", "low", "high")
        )
        figure.add_heatmap(
            x=results.layer.values.astype(str),
            y=results.step.values.astype(str),
            z=mean.values,
            customdata=np.stack([low.values, high.values], axis=-1),
            coloraxis="coloraxis",
            hovertemplate="layer %{x}, step %{y}: %{z:.4f} "
            "[%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra></extra>",
            row=1,
            col=column,
        )
    # text, not numbers: captured layers and steps are equally wide however far apart they are
    figure.update_xaxes(title=LAYER, type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False).update_yaxes(title="training step", col=1)
    scale = {"colorscale": "Viridis", "colorbar": {"title": {"text": axis, "side": "right"}}}
    return figure.update_layout(
        template="plotly_white",
        title=title,
        coloraxis=scale,
        height=230 + 26 * results.sizes["step"],
        font={"size": 13, "color": INK},
        margin={"t": 90, "b": 60},
    )


def _logged(variant: str, rows: pd.DataFrame, name: str, in_legend: bool) -> go.Scatter:
    """One line of the training figure, with marks where they would not run into each other."""
    return go.Scatter(
        x=rows["step"],
        y=rows[name],
        name=variant,
        legendgroup=variant,
        showlegend=in_legend,
        mode="lines+markers" if len(rows) <= 60 else "lines",
        line={"color": colour(variant), "width": 2},
        marker={"symbol": SHAPES.get(variant, "triangle-up"), "size": 7},
        hovertemplate="step %{x}: %{y:.4g}",
    )


def on_dark(figure: go.Figure) -> go.Figure:
    """Make what is drawn in ink light, for a dark page; changes the figure and returns it."""
    for trace in figure.select_traces(selector={"type": "scatter"}):
        if trace.line.color in (INK, "#000000"):
            trace.line.color = INK_ON_DARK
        if trace.marker.color in (INK, "#000000"):
            trace.marker.color = INK_ON_DARK
    figure.for_each_shape(lambda shape: shape.update(line_color=INK_ON_DARK))
    if figure.layout.font.color == INK:
        figure.layout.font.color = INK_ON_DARK
    return figure


def save_depth_html(results: xr.Dataset, path: str | Path) -> Path:
    """The depth figure as one page that needs no network: plotly itself is inside."""
    path = Path(path)
    depth_figure(results).write_html(path, include_plotlyjs=True, full_html=True)
    return path


def save_depth_png(results: xr.Dataset, path: str | Path) -> Path:
    """The depth figure as a PNG, drawn by matplotlib: that needs no browser."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels, gaps = _panels(results), _gaps(results)
    rows, columns = 2 if gaps else 1, len(panels)
    figure = Figure(
        figsize=(max(5.35 * columns, 10), 3.8 * rows + 0.9),
        dpi=160,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw(axis, panel, handles)
    for axis, gap in zip(axes[-1], gaps, strict=False):
        _draw_gap(axis, gap, handles)
    figure.suptitle(_headline(results), fontsize=13 if columns > 1 else 10, color=INK)
    figure.legend(
        *_models_first(handles, results),
        loc="outside lower center",
        ncols=4 if columns < 3 else 5 if len(handles) > 7 else 7,
        frameon=False,
        fontsize=11,
    )
    figure.savefig(path)
    return Path(path)


def colour(variant: str) -> str:
    """The colour of a model, the same in every figure."""
    return COLOURS.get(variant, SPARE_COLOURS[sum(variant.encode()) % len(SPARE_COLOURS)])


def _panels(results: xr.Dataset) -> list[Panel]:
    panels = [_panel(results, score, _largest_k(results)) for score in _scores(results)]
    if not panels:
        raise ValueError("these results hold neither knn nor drift: there is nothing to draw")
    return panels


def _gaps(results: xr.Dataset) -> list[Gap]:
    """Aligned less baseline in what the panels show; none where they are not compared."""
    if MAIN not in results.get("comparison", xr.DataArray([])).values:
        return []
    return [_gap(results.sel(comparison=MAIN), score) for score in _scores(results)]


def _gap(compared: xr.Dataset, score: str) -> Gap:
    k = _largest_k(compared)
    title, axis = GAPS[score]
    parts = [compared[f"{score}_difference{part}"] for part in ("", "_low", "_high", "_p_adjusted")]
    mean, low, high, p = (
        part.sel(k=k).values if "k" in part.dims else part.values for part in parts
    )
    scale = 100 if score == "knn" else 1
    return Gap(
        f"{title}: aligned − baseline",
        axis.format(k=k),
        compared.layer.values,
        scale * mean,
        scale * low,
        scale * high,
        p < SIGNIFICANT,
    )


def _scores(results: xr.Dataset) -> list[str]:
    return [score for score in DEPTH if f"{score}_mean" in results]


def _largest_k(results: xr.Dataset) -> int | None:
    return int(results.k.values.max()) if "k" in results.coords else None


def _panel(results: xr.Dataset, score: str, k: int | None = None) -> Panel:
    if f"{score}_mean" not in results:
        raise ValueError(f"these results hold no {score!r}")
    mean, low, high = (results[f"{score}_{part}"] for part in ("mean", "low", "high"))
    flat = np.ones(results.sizes["layer"])
    if score == "knn":
        k = int(results.k.values[0]) if k is None else k
        mean, low, high = (100 * part.sel(k=k) for part in (mean, low, high))
        shuffled = results.knn_shuffled.sel(k=k).mean("variant").values
        lines = [
            Line("target", flat * 100 * float(results.knn_target_mean.sel(k=k)), "dash"),
            Line("shuffled labels", 100 * shuffled, "dot"),
            Line("chance", flat * 100 * results.attrs["chance"], "solid"),
        ]
        title = f"Like objects near each other: {k} nearest neighbour{'s' if k > 1 else ''}"
        axis = f"accuracy in %, K = {k}   (higher is better)"
        return Panel(title, axis, mean, low, high, lines, percent=True)
    if score == "cka":
        lines = [Line("unrelated objects", flat * 0, "dashdot")]
        title = "Same arrangement of objects as the target"
        return Panel(title, "debiased CKA to target   (higher is closer)", mean, low, high, lines)
    random = results[f"{score}_random"].mean("variant").values
    lines = [Line("unrelated objects", random, "dashdot")]
    title = "Drift of the tokens from the target"
    if score == "drift_centred":
        title = "Drift from the target (common part off)"
    return Panel(title, "1 − cosine, ridge map   (lower is closer)", mean, low, high, lines)


def _span(panel: Panel) -> tuple[float, float]:
    """Ends of the y axis: the models' intervals and the target, and some room."""
    target = [line.values for line in panel.lines if line.name == "target"]
    shown = np.concatenate([panel.low.values.ravel(), panel.high.values.ravel(), *target])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    room = ROOM * (high - low or 1)
    return low - room, high + room


def _inside(panel: Panel) -> list[Line]:
    """The references that cross the panel."""
    low, high = _span(panel)
    return [line for line in panel.lines if ((low <= line.values) & (line.values <= high)).any()]


def _outside(panel: Panel) -> dict[str, str]:
    """What to write of the references that lie beyond the axis, a note an end of it."""
    names = {line.name for line in _inside(panel)}
    notes: dict[str, list[str]] = {"below": [], "above": []}
    for line in panel.lines:
        if line.name not in names:
            side = "below" if line.values.mean() < _span(panel)[0] else "above"
            notes[side].append(f"{line.name} {_values(line, panel.percent)}")
    return {side: f"{', '.join(said)}: {side} the axis" for side, said in notes.items() if said}


def _values(line: Line, percent: bool) -> str:
    """Least to largest value of a reference, in words."""
    ends = (line.values.min(), line.values.max())
    texts = [f"{round(end, 2 - percent) + 0.0:.{2 - percent}f}" for end in ends]
    return "–".join(dict.fromkeys(texts)) + (" %" if percent else "")


def _add_panel(
    figure: go.Figure, panel: Panel, named: set[str] | None = None, **place: int
) -> None:
    """One panel in a plotly figure. named : what its legend has already, and gains here."""
    named = set() if named is None else named
    for trace in _traces(panel):
        trace.showlegend = trace.name not in named
        named.add(trace.name)
        figure.add_trace(trace, **place)
    figure.update_yaxes(title=panel.axis, range=_span(panel), zeroline=False, **place)
    for side, note in _outside(panel).items():
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


def _add_gap(figure: go.Figure, gap: Gap, in_legend: bool, **place: int) -> None:
    edge = {"color": colour("aligned"), "width": 1.6}
    style = {"color": colour("aligned"), "size": 9, "line": edge}
    symbols = [SHAPES["aligned"] + ("" if sure else "-open") for sure in gap.sure]
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
        marker = style | {"symbol": SHAPES["aligned"] + ("" if sure else "-open")}
        figure.add_scatter(x=[None], y=[None], name=name, mode="markers", marker=marker, **place)
    figure.add_hline(y=0, line_color=INK, line_width=1, **place)
    figure.update_yaxes(title=gap.axis, zeroline=False, **place)


def _traces(panel: Panel) -> list[go.Scatter]:
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
                marker={"symbol": SHAPES.get(variant, "triangle-up"), "size": 8},
                error_y={"array": high - mean, "arrayminus": mean - low, "thickness": 1.3},
                customdata=np.stack([layers, low, high], axis=1),
                hovertemplate=f"layer %{{customdata[0]}}: %{{y:.{digits}f}} "
                f"[%{{customdata[1]:.{digits}f}}, %{{customdata[2]:.{digits}f}}]",
            )
        )
    for line in _inside(panel):
        traces.append(
            go.Scatter(
                x=layers,
                y=line.values,
                name=line.name,
                legendgroup=line.name,
                mode="lines",
                line={"color": INK, "width": 1.3, "dash": line.dash},
                hovertemplate=f"%{{y:.{digits}f}}",
            )
        )
    return traces


def _draw(axis: Any, panel: Panel, handles: dict[str, Any]) -> None:
    """One panel on a matplotlib axis; the first mark of each name goes to the legend."""
    layers = panel.mean.layer.values
    dashes = {"dash": (0, (6, 3)), "dot": (0, (1, 2)), "solid": "-", "dashdot": "-."}
    for line in _inside(panel):
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
            marker=MARKERS[SHAPES.get(variant, "triangle-up")],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.0,
            capsize=2,
        )
        handles.setdefault(variant, mark)
    axis.set_ylim(_span(panel))
    for side, note in _outside(panel).items():
        y, anchor = (0.012, "bottom") if side == "below" else (0.985, "top")
        axis.text(0.015, y, note, va=anchor, transform=axis.transAxes, fontsize=10, color=INK)
    _dress(axis, panel)
    axis.set_xticks(_some(layers))


def _draw_gap(axis: Any, gap: Gap, handles: dict[str, Any]) -> None:
    """Differences on a matplotlib axis; both kinds of mark go to the legend."""
    style = {"color": colour("aligned"), "marker": MARKERS[SHAPES["aligned"]], "linestyle": "none"}
    axis.axhline(0, color=INK, linewidth=1)
    bars = [np.maximum(gap.mean - gap.low, 0), np.maximum(gap.high - gap.mean, 0)]
    axis.errorbar(
        gap.layers, gap.mean, yerr=bars, color=style["color"], linewidth=1.2, capsize=3, zorder=2
    )
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
        handles.setdefault(name, mark)
    _dress(axis, gap)
    axis.set_xticks(_some(gap.layers))


def _dress(axis: Any, shown: Panel | Gap) -> None:
    """Title, names of the axes and grid of a matplotlib panel."""
    axis.set_title(shown.title, fontsize=11.5, loc="left", color=INK)
    axis.set_ylabel(shown.axis.replace("   (", "\n("), fontsize=11)
    axis.set_xlabel(LAYER, fontsize=11)
    axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10.5)


def _models_first(handles: dict[str, Any], results: xr.Dataset) -> tuple[list[Any], list[str]]:
    models = [name for name in results.variant.values.astype(str) if name in handles]
    names = models + [name for name in handles if name not in models]
    return [handles[name] for name in names], names


def _dodged(mean: xr.DataArray) -> list[tuple[str, float]]:
    """Each model with its small shift along the layers."""
    layers = mean.layer.values
    step = np.diff(layers).min() if len(layers) > 1 else 1.0
    names = mean.variant.values.astype(str)
    shifts = (np.arange(len(names)) - (len(names) - 1) / 2) * step * DODGE
    return list(zip(names.tolist(), shifts.tolist(), strict=True))


def _some(layers: np.ndarray) -> np.ndarray:
    """At most a dozen layers to write under an axis."""
    return layers[:: -(-len(layers) // 12)]


def _ticks(results: xr.Dataset) -> dict[str, Any]:
    return {"tickmode": "array", "tickvals": _some(results.layer.values)}


def _headline(results: xr.Dataset) -> str:
    about = results.attrs
    return (
        f"{about['run']}: geometry in the point tokens by depth   "
        f"({about['query_objects']} query objects, {about['gallery_objects']} in the gallery, "
        f"{about['classes']} classes; bars: {about['level']:.0%} intervals over objects)"
    )
