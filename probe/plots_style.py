"""How every figure looks: the colour and shape of a model, ink, and the axis over the layers."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

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
BAND = "thin: 95 % over {} at once"
LAYERS = "all layers"
FAINT = "#8A8A8A"
DODGE = 0.12  # of the step between layers, so that error bars stand beside each other
INK = "#333333"
INK_ON_DARK = "#DDDDDD"
LAYER = "layer (0 = what enters block 1)"
REFERENCES = {"target": ("target", "dash"), "encoder": ("encoder's output", "longdash")}
"""Ending of a key to the name and the line of what the layers are read against."""
BELOW = {"orientation": "h", "yref": "container", "y": 0.01, "x": 0.5, "xanchor": "center"}
"""Where a legend stands: under all panels, in the middle."""


def above(height: int) -> dict[str, Any]:
    """Where the legend of a tall figure stands: under title and buttons, not at its unseen foot."""
    return BELOW | {"y": 1 - 40 / height, "yanchor": "top"}


def colour(variant: str) -> str:
    """The colour of a model, the same in every figure."""
    return COLOURS.get(variant, SPARE_COLOURS[sum(variant.encode()) % len(SPARE_COLOURS)])


def shape(variant: str) -> str:
    """The shape of a model's marks, the same in every figure."""
    return SHAPES.get(variant, "triangle-up")


def add_band(
    figure: go.Figure,
    x: np.ndarray,
    mean: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    in_legend: bool,
    over: str,
    **place: int,
) -> None:
    """Thin bars to the ends of a band over all layers, behind the interval of each that is drawn.

    in_legend : whether this is the first band of the figure    over : what it covers, all layers
    """
    low, high = ends
    bars = {"array": high - mean, "arrayminus": mean - low, "thickness": 0.8}
    style: dict[str, Any] = {"name": BAND.format(over), "legendgroup": BAND, "mode": "markers"}
    style["legendrank"] = 1001  # behind the models
    figure.add_scatter(
        x=x,
        y=mean,
        marker={"size": 1, "color": FAINT},
        error_y=bars | {"color": FAINT, "width": 6},
        showlegend=False,
        hoverinfo="skip",
        **style,
        **place,
    )
    if in_legend:
        marker = {"symbol": "line-ns", "size": 14, "line": {"color": FAINT, "width": 1}}
        figure.add_scatter(x=[None], y=[None], marker=marker, **style, **place)


def on_dark(figure: go.Figure) -> go.Figure:
    """Make what is drawn in ink light, for a dark page; changes the figure and returns it."""
    for trace in figure.select_traces(selector={"type": "scatter"}):
        for part in (trace.line, trace.marker):
            if isinstance(part.color, str) and part.color in (INK, "#000000"):
                part.color = INK_ON_DARK
    for drawn in figure.layout.shapes:
        if drawn.line.color == INK:
            drawn.line.color = INK_ON_DARK
    if figure.layout.font.color == INK:
        figure.layout.font.color = INK_ON_DARK
    return figure


def some(layers: np.ndarray) -> np.ndarray:
    """At most a dozen layers to write under an axis."""
    return layers[:: -(-len(layers) // 12)]


def ticks(results: xr.Dataset) -> dict[str, Any]:
    """Settings of an axis over the layers, for plotly."""
    return {"tickmode": "array", "tickvals": some(results.layer.values)}


def shifts(layers: np.ndarray, curves: int) -> np.ndarray:
    """How far each of some curves stands beside its layers, (curves,), so that bars don't hide."""
    step = np.diff(layers).min() if len(layers) > 1 else 1.0
    return (np.arange(curves) - (curves - 1) / 2) * step * DODGE
