"""Scores by depth: results in, figures out. Plotly for the screen, matplotlib for files of pixels.

`probe.plots_panels` draws one panel, `probe.plots_curves` panels of what belongs together,
`probe.plots_training` what happens over the steps; their public figures are found here too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.pixels import lay_out
from probe.plots_panels import (
    Gap,
    Line,
    Panel,
    add_gap,
    add_panel,
    draw_gap,
    draw_panel,
    gap_of,
)
from probe.plots_style import (
    COLOURS,
    INK,
    INK_ON_DARK,
    LAYER,
    LAYERS,
    REFERENCES,
    SHAPES,
    above,
    add_band,
    colour,
    on_dark,
    shape,
    shifts,
    ticks,
)
from probe.plots_training import LOGGED, STEPS, steps_figure, training_figure
from probe.report import SIGNIFICANT

__all__ = ["COLOURS", "INK", "INK_ON_DARK", "LAYER", "LOGGED", "SHAPES", "STEPS", "colour"]
__all__ += ["depth_figure", "difference_figure", "on_dark", "plot_score_by_layer"]
__all__ += ["save_depth_html", "save_depth_png", "steps_figure", "training_figure"]

DEPTH = ("knn", "cka", "drift_centred")  # the scores of the depth figure
GAPS = {  # title and axis of their differences
    "knn": ("Difference in accuracy", "points, K = {k}   (above 0: aligned is better)"),
    "cka": ("Difference in CKA", "CKA   (above 0: aligned is closer)"),
    "drift_centred": ("Difference in drift", "1 − cosine   (below 0: aligned is closer)"),
}
APART = {  # axis of a difference to the baseline
    "knn": "points   (above 0: more accurate than the baseline)",
    "cka": "CKA   (above 0: closer than the baseline)",
    "drift": "1 − cosine   (below 0: closer than the baseline)",
    "drift_centred": "1 − cosine   (below 0: closer than the baseline)",
}


def plot_score_by_layer(results: xr.Dataset, score: str, k: int | None = None) -> go.Figure:
    """One score of a sweep over the layers, a line a model with its interval.

    score : "knn", "cka", "drift" or "drift_centred"    k : neighbours, for "knn"
    """
    panel = _panel(results, score, k)
    figure = go.Figure()
    add_panel(figure, panel)
    figure.update_layout(title=panel.title, template="plotly_white", hovermode="x unified")
    return figure.update_xaxes(title=LAYER, **ticks(results))


def depth_figure(results: xr.Dataset) -> go.Figure:
    """Accuracy at the largest K, CKA and drift over the layers; below each, what aligned changes.

    The second row is there where the sweep compares aligned with the baseline.
    """
    panels, gaps = _panels(results), _gaps(results)
    rows = 2 if gaps else 1
    height = 350 * rows + 110
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
        add_panel(figure, panel, named, row=1, col=column)
    for column, gap in enumerate(gaps, 1):
        add_gap(figure, gap, in_legend=column == 1, row=2, col=column)
    figure.update_xaxes(title=LAYER, title_font_size=12, **ticks(results))
    return figure.update_yaxes(title_font_size=12).update_layout(
        template="plotly_white",
        title={"text": _headline(results), "y": 1 - 12 / height, "yanchor": "top"},
        height=height,
        legend=above(height),
        font={"size": 13, "color": INK},
        margin={"t": 130, "b": 60},
    )


def difference_figure(results: xr.Dataset, score: str = "knn") -> go.Figure:
    """Each model less the baseline over the layers, paired by object, with intervals.

    Marks are filled where p < 0.05 over all layers at once, hollow where that is within noise; thin
    bars are the band that covers all layers at once. Earlier results lack it.
    """
    key = f"{score}_difference"
    if key not in results:
        raise ValueError(f"these results compare no models in {score!r}: capture a baseline too")
    scale = 100 if score == "knn" else 1
    gaps = {
        part: scale * results[f"{key}{part}"] if part != "_p_adjusted" else results[f"{key}{part}"]
        for part in ("", "_low", "_high", "_p_adjusted")
    }
    figure = go.Figure()
    by_k = results.k.values.tolist() if "k" in gaps[""].dims else [None]
    curves = [(pair, k) for pair in results.comparison.values.astype(str) for k in by_k]
    layers = results.layer.values
    for (pair, k), shift in zip(curves, shifts(layers, len(curves)), strict=True):
        where = {"comparison": pair} | ({} if k is None else {"k": k})
        mean, low, high, p = (gaps[part].sel(where).values for part in gaps)
        model = pair.split(" - ")[0]
        symbols = [shape(model) + ("" if sure else "-open") for sure in p < SIGNIFICANT]
        if f"{key}_wide_low" in results:
            low_wide, high_wide = (
                scale * results[f"{key}_wide_{end}"].sel(where).values for end in ("low", "high")
            )
            ends, first = (low_wide, high_wide), (pair, k) == curves[0]
            add_band(figure, layers + shift, mean, ends, first, LAYERS)
        dash = "solid" if k == by_k[0] else "dash"
        figure.add_scatter(
            x=layers + shift,
            y=mean,
            error_y={"array": high - mean, "arrayminus": mean - low, "thickness": 1.3},
            name=pair.replace(" - ", " − ") + ("" if k is None else f", K = {k}"),
            mode="lines+markers",
            line={"color": colour(model), "dash": dash, "width": 1.6},
            marker={"color": colour(model), "symbol": symbols, "size": 9},
            customdata=np.stack([layers, low, high], axis=1),
            hovertemplate="layer %{customdata[0]}: %{y:+.4f} "
            "[%{customdata[1]:+.4f}, %{customdata[2]:+.4f}]",
        )
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_xaxes(title=LAYER, **ticks(results))
    axis = APART.get(score, "difference   (0 = none)")
    return figure.update_layout(template="plotly_white", yaxis_title=axis)


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
        draw_panel(axis, panel, handles)
    for axis, gap in zip(axes[-1], gaps, strict=False):
        draw_gap(axis, gap, handles)
    figure.suptitle(_headline(results), fontsize=13 if columns > 1 else 10, color=INK)
    figure.legend(
        *_models_first(handles, results),
        loc="outside lower center",
        ncols=4 if columns < 3 else 5 if len(handles) > 7 else 7,
        frameon=False,
        fontsize=11,
    )
    lay_out(figure)
    figure.savefig(path)
    return Path(path)


def _panels(results: xr.Dataset) -> list[Panel]:
    panels = [_panel(results, score, _largest_k(results)) for score in _scores(results)]
    if not panels:
        raise ValueError("these results hold neither knn nor drift: there is nothing to draw")
    return panels


def _gaps(results: xr.Dataset) -> list[Gap]:
    """Aligned less baseline in what the panels show; none where they are not compared."""
    k = _largest_k(results)
    at_k = results if k is None else results.sel(k=k)
    found = []
    for score in _scores(results):
        title, axis = GAPS[score]
        about = (f"{title}: aligned − baseline", axis.format(k=k), 100 if score == "knn" else 1)
        found.append(gap_of(at_k, score, *about))
    return [gap for gap in found if gap is not None]


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
            *(
                Line(name, flat * 100 * float(results[f"knn_{ending}_mean"].sel(k=k)), dash)
                for ending, (name, dash) in REFERENCES.items()
                if f"knn_{ending}_mean" in results
            ),
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


def _models_first(handles: dict[str, Any], results: xr.Dataset) -> tuple[list[Any], list[str]]:
    models = [name for name in results.variant.values.astype(str) if name in handles]
    names = models + [name for name in handles if name not in models]
    return [handles[name] for name in names], names


def _headline(results: xr.Dataset) -> str:
    about = results.attrs
    return (
        f"{about['run']}: geometry in the point tokens by depth   "
        f"({about['query_objects']} query objects, {about['gallery_objects']} in the gallery, "
        f"{about['classes']} classes; bars: {about['level']:.0%} intervals over objects)"
    )
