"""Maps of a layer, and one object's tokens over the layers, as plotly figures that are clicked."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probe.plots import LAYER

# Tol 2021, "bright": told apart by colour-blind readers, on light and on dark; shapes for print
CLASS_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
CLASS_SHAPES = ("circle", "square", "diamond", "triangle-up", "star", "hexagon")
REST = "#9A9A9A"
RING = "#E66100"  # seen on light and on dark
TWO = {  # colour and shape of the two sides of a question
    "right": ("#4477AA", "circle"),
    "wrong": ("#EE6677", "x"),
    "query": ("#AA3377", "circle"),
    "gallery": ("#9A9A9A", "circle"),
}
SCALE = "Viridis"  # read alike by all eyes, and in grey
MOST_CLASSES = len(CLASS_COLOURS)


def map_figure(
    table: pd.DataFrame,
    by: str,
    *,
    title: str = "",
    classes: Sequence[str] = (),
    chosen: Sequence[int] = (),
    frame: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> go.Figure:
    """Objects on a map; a click or a lasso gives the index of `table` as customdata.

    table  : a row an object: x, y, sample, class_name, split, right, and the column `by`
    by     : class_name, split, right, or a column of numbers
    title  : of the colour bar, for numbers
    classes : those in colour, `MOST_CLASSES` at most; all others are grey
    chosen : index of objects to ring
    frame  : ends of x and of y that are shown, so that maps of several layers compare
    """
    figure = go.Figure()
    if by == "class_name":
        shown = list(classes)[:MOST_CLASSES]
        rest = table[~table.class_name.isin(shown)]
        _dots(figure, rest, f"{rest.class_name.nunique()} other classes", REST, "circle", 0.45)
        for name, colour, shape in zip(shown, CLASS_COLOURS, CLASS_SHAPES, strict=False):
            _dots(figure, table[table.class_name == name], name, colour, shape)
    elif by in ("right", "split"):
        said = table[by].map({True: "right", False: "wrong"}) if by == "right" else table[by]
        for name in ("gallery", "query", "right", "wrong"):
            if (said == name).any():
                _dots(figure, table[said == name], name, *TWO[name])
    else:
        _dots(figure, table, title or by, table[by], "circle")
        bar = {"title": {"text": title, "side": "right"}, "thickness": 12}
        figure.update_traces(marker={"colorscale": SCALE, "showscale": True, "colorbar": bar})
        figure.update_traces(showlegend=False)
    ringed = table.loc[[at for at in chosen if at in table.index]]
    figure.add_scattergl(
        x=ringed.x,
        y=ringed.y,
        name="selected",
        mode="markers",
        marker={"size": 13, "color": "rgba(0,0,0,0)", "line": {"color": RING, "width": 2.5}},
        hoverinfo="skip",
        showlegend=False,
    )
    plain: dict[str, Any] = {"showticklabels": False, "showgrid": False, "zeroline": False}
    figure.update_xaxes(**plain, range=frame and frame[0])
    figure.update_yaxes(**plain, range=frame and frame[1], scaleanchor="x")
    return figure.update_layout(
        template="plotly_white",
        height=480,
        dragmode="lasso",
        clickmode="event+select",
        uirevision="map",
        legend={
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "itemsizing": "constant",
        },
        margin={"l": 10, "r": 10, "t": 46, "b": 10},
    )


def token_figure(drift: np.ndarray, layers: Sequence[int], chosen: tuple[int, int]) -> go.Figure:
    """Drift of one object's tokens, a cell a layer and token; a click gives (layer, token).

    drift : (layers, tokens), 1 - cosine, lower is closer    chosen : (layer, token) to frame
    """
    layers, tokens = list(layers), drift.shape[1]
    names = list(map(str, layers))
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(tokens)),
        y=names,
        z=drift,
        colorscale=SCALE,
        hoverinfo="skip",
        colorbar={"title": {"text": "1 − cosine (lower is closer)", "side": "right"}},
    )
    # a heat map can't be selected from: marks that are not seen take the click
    grid = [(layer, token) for layer in layers for token in range(tokens)]
    figure.add_scatter(
        x=[token for _, token in grid],
        y=[str(layer) for layer, _ in grid],
        mode="markers",
        marker={"size": 16, "symbol": "square", "color": "rgba(0,0,0,0)"},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=grid,
        text=[f"{value:.4f}" for value in drift.ravel()],
        hovertemplate="layer %{customdata[0]}, token %{customdata[1]}: %{text}<extra></extra>",
        showlegend=False,
    )
    at, token = names.index(str(chosen[0])), chosen[1]
    for width, ink in ((4, "#000000"), (2, "#FFFFFF")):
        figure.add_shape(
            type="rect",
            x0=token - 0.5,
            x1=token + 0.5,
            y0=at - 0.5,
            y1=at + 0.5,
            line={"color": ink, "width": width},
        )
    figure.update_xaxes(title="point token", showgrid=False, range=[-0.5, tokens - 0.5])
    figure.update_yaxes(title=LAYER, type="category", showgrid=False)
    return figure.update_layout(
        template="plotly_white",
        height=120 + 30 * len(layers),
        clickmode="event+select",
        dragmode=False,
        margin={"l": 60, "r": 10, "t": 20, "b": 50},
    )


def _dots(
    figure: go.Figure,
    rows: pd.DataFrame,
    name: str,
    colour: Any,
    shape: str,
    opacity: float = 0.85,
) -> None:
    size = 7 if len(rows) < 3000 else 4
    figure.add_scattergl(
        x=rows.x.to_numpy(np.float32),
        y=rows.y.to_numpy(np.float32),
        name=name,
        mode="markers",
        marker={"color": colour, "symbol": shape, "size": size, "opacity": opacity},
        customdata=rows.index.to_numpy(np.int32),
        text=[
            html.escape(f"{a}: {b}") for a, b in zip(rows["sample"], rows.class_name, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )
