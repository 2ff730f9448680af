"""Results in, figures out: plotly for the screen, matplotlib where a file of pixels is wanted."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

# Okabe & Ito 2008: told apart by colour-blind readers; a shape each, for print without colour
COLOURS = {
    "stage1": "#0072B2",
    "baseline": "#D55E00",
    "aligned": "#009E73",
    "untrained": "#7A7A7A",
}
SHAPES = {"stage1": "square", "baseline": "circle", "aligned": "diamond", "untrained": "x"}
MARKERS = {"square": "s", "circle": "o", "diamond": "D", "x": "X", "triangle-up": "^"}
SPARE_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
DODGE = 0.07  # of the step between layers, so that error bars stand beside each other
INK = "#333333"
INK_ON_DARK = "#DDDDDD"
DEPTH = ("cka", "drift_centred")  # of the scores without a K, those of the depth figure
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


def plot_score_by_layer(results: xr.Dataset, score: str, k: int | None = None) -> go.Figure:
    """One score of a sweep over the layers, a line a model with its interval.

    score : "knn", "cka", "drift" or "drift_centred"    k : neighbours, for "knn"
    """
    panel = _panel(results, score, k)
    figure = go.Figure()
    for trace in _traces(panel):
        figure.add_trace(trace)
    figure.update_layout(title=panel.title, template="plotly_white", hovermode="x unified")
    figure.update_xaxes(title="layer (0 = what enters block 1)", **_ticks(results))
    return figure.update_yaxes(title=panel.axis)


def depth_figure(results: xr.Dataset) -> go.Figure:
    """All scores of a sweep over the layers: accuracy for each k, CKA and drift."""
    panels = _panels(results)
    rows = -(-len(panels) // 2)
    titles = [panel.title for panel in panels]
    figure = make_subplots(
        rows,
        min(2, len(panels)),
        subplot_titles=titles,
        horizontal_spacing=0.09,
        vertical_spacing=0.14,
    )
    named: set[str] = set()
    for at, panel in enumerate(panels):
        place = {"row": at // 2 + 1, "col": at % 2 + 1}
        for trace in _traces(panel):
            trace.showlegend = trace.name not in named
            named.add(trace.name)
            figure.add_trace(trace, **place)
        figure.update_yaxes(title=panel.axis, **place)
        figure.update_xaxes(title="layer (0 = what enters block 1)", **_ticks(results), **place)
    return figure.update_layout(
        template="plotly_white",
        title=_headline(results),
        height=430 * rows + 120,
        legend={"orientation": "h", "y": -0.12, "x": 0.5, "xanchor": "center"},
        font={"size": 13, "color": INK},
        margin={"t": 90, "b": 110},
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

    panels = _panels(results)
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(
        figsize=(6.2 * columns, 3.9 * rows + 0.9),
        dpi=160,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, handles)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(_headline(results), fontsize=12.5, color=INK)
    figure.legend(
        *_models_first(handles, results),
        loc="outside lower center",
        ncols=min(8, len(handles)),
        frameon=False,
        fontsize=9.5,
    )
    figure.savefig(path)
    return Path(path)


def colour(variant: str) -> str:
    """The colour of a model, the same in every figure."""
    return COLOURS.get(variant, SPARE_COLOURS[sum(variant.encode()) % len(SPARE_COLOURS)])


def _panels(results: xr.Dataset) -> list[Panel]:
    panels = []
    if "knn_mean" in results:
        panels += [_panel(results, "knn", int(k)) for k in results.k.values]
    panels += [_panel(results, score) for score in DEPTH if f"{score}_mean" in results]
    if not panels:
        raise ValueError("these results hold neither knn nor drift: there is nothing to draw")
    return panels


def _panel(results: xr.Dataset, score: str, k: int | None = None) -> Panel:
    if f"{score}_mean" not in results:
        raise ValueError(f"these results hold no {score!r}")
    mean, low, high = (results[f"{score}_{part}"] for part in ("mean", "low", "high"))
    flat = np.ones(results.sizes["layer"])
    if score == "knn":
        k = int(results.k.values[0]) if k is None else k
        mean, low, high = (part.sel(k=k) for part in (mean, low, high))
        lines = [
            Line("target", flat * float(results.knn_target_mean.sel(k=k)), "dash"),
            Line("shuffled labels", results.knn_shuffled.sel(k=k).mean("variant").values, "dot"),
            Line("chance", flat * results.attrs["chance"], "solid"),
        ]
        title = f"Like objects near each other: {k} nearest neighbour{'s' if k > 1 else ''}"
        return Panel(title, f"accuracy, K = {k}   (higher is better)", mean, low, high, lines)
    if score == "cka":
        lines = [Line("unrelated objects", flat * 0, "dashdot")]
        title = "Same arrangement of objects as the target"
        return Panel(title, "debiased CKA to target   (higher is closer)", mean, low, high, lines)
    random = results[f"{score}_random"].mean("variant").values
    lines = [Line("unrelated objects", random, "dashdot")]
    title = "Drift of the tokens from the target"
    if score == "drift_centred":
        title += " (what all objects share taken off)"
    return Panel(title, "1 − cosine, ridge map   (lower is closer)", mean, low, high, lines)


def _traces(panel: Panel) -> list[go.Scatter]:
    layers = panel.mean.layer.values
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
                hovertemplate="layer %{customdata[0]}: %{y:.3f} "
                "[%{customdata[1]:.3f}, %{customdata[2]:.3f}]",
            )
        )
    for line in panel.lines:
        traces.append(
            go.Scatter(
                x=layers,
                y=line.values,
                name=line.name,
                legendgroup=line.name,
                mode="lines",
                line={"color": INK, "width": 1.3, "dash": line.dash},
                hovertemplate="%{y:.3f}",
            )
        )
    return traces


def _draw(axis: Any, panel: Panel, handles: dict[str, Any]) -> None:
    """One panel on a matplotlib axis; the first mark of each name goes to the legend."""
    layers = panel.mean.layer.values
    dashes = {"dash": (0, (6, 3)), "dot": (0, (1, 2)), "solid": "-", "dashdot": "-."}
    for line in panel.lines:
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
    axis.set_title(panel.title, fontsize=11, loc="left", color=INK)
    axis.set_ylabel(panel.axis, fontsize=10)
    axis.set_xlabel("layer (0 = what enters block 1)", fontsize=10)
    axis.set_xticks(_some(layers))
    if axis.get_ylim()[0] > 0:
        axis.set_ylim(bottom=0)  # so that heights compare
    axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9)


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
