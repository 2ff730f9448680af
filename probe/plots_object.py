"""One object over the layers: its tokens, its neighbours and what is rebuilt of it."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.plots_cloud import VIEW
from probe.plots_maps import SCALE, TWO
from probe.plots_style import INK, LAYER

LONGEST = 14  # letters of a class name in a cell
IN_ROW = 6  # rebuilt clouds


def token_figure(drift: np.ndarray, layers: Sequence[int], chosen: tuple[int, int]) -> go.Figure:
    """Drift of one object's tokens, a cell a layer and token; a click gives (layer, token).

    drift : (layers, tokens), 1 - cosine, lower is closer    chosen : (layer, token) to frame
    """
    layers, tokens = list(layers), drift.shape[1]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(tokens)),
        y=list(map(str, layers)),
        z=drift,
        colorscale=SCALE,
        hoverinfo="skip",
        colorbar={
            "title": {"text": "1 − cosine (lower is closer)", "side": "right", "font_size": 12},
            "thickness": 14,
        },
    )
    said = [f"{value:.4f}" for value in drift.ravel()]
    _clickable(figure, layers, tokens, said, "layer %{customdata[0]}, token %{customdata[1]}")
    at, token = layers.index(chosen[0]), chosen[1]
    _frame(figure, (token - 0.5, token + 0.5), at)
    figure.update_xaxes(title="point token", showgrid=False, range=[-0.5, tokens - 0.5])
    return _finish(figure, max(300, 120 + 30 * len(layers)))  # the scale's title needs the room


def neighbours_figure(
    names: Sequence[Sequence[str]], right: np.ndarray, layers: Sequence[int], chosen: int
) -> go.Figure:
    """Classes of an object's nearest gallery objects, a row a layer; a click gives (layer, rank).

    names : (layers, near)    right : bool (layers, near), of its own class    chosen : layer
    """
    layers, near = list(layers), right.shape[1]
    words = [
        [f"{'✓' if ok else '✗'} {_short(name)}" for name, ok in zip(row, oks, strict=True)]
        for row, oks in zip(names, right, strict=True)
    ]
    figure = go.Figure()
    figure.add_heatmap(
        x=list(range(near)),
        y=list(map(str, layers)),
        z=right.astype(int),
        zmin=0,
        zmax=1,
        colorscale=[[0, TWO["wrong"][0]], [1, TWO["right"][0]]],
        showscale=False,
        text=words,
        texttemplate="%{text}",
        textfont={"color": "#FFFFFF", "size": 13},
        hoverinfo="skip",
        xgap=2,
        ygap=2,
    )
    said = [html.escape(name) for row in names for name in row]
    _clickable(figure, layers, near, said, "layer %{customdata[0]}")
    _frame(figure, (-0.5, near - 0.5), layers.index(chosen))
    ranks = ["nearest", *(f"{at}." for at in range(2, near + 1))]
    figure.update_xaxes(showgrid=False, tickvals=list(range(near)), ticktext=ranks, side="top")
    return _finish(figure, 70 + 30 * len(layers)).update_layout(margin={"t": 56, "b": 10})


def rebuilt_figure(clouds: Sequence[np.ndarray], titles: Sequence[str]) -> go.Figure:
    """Clouds of one object side by side, all seen from one place and to one scale.

    clouds : (points, 3) each, the first is the original; colour is height
    """
    columns = min(IN_ROW, len(clouds))
    rows = -(-len(clouds) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[html.escape(title) for title in titles],
        horizontal_spacing=0.01,
        vertical_spacing=0.12,
    )
    figure.update_annotations(font_size=13)
    reach = 1.15 * float(np.abs(clouds[0] @ VIEW.T).max())
    low, high = clouds[0][:, 2].min(), clouds[0][:, 2].max()
    for at, cloud in enumerate(clouds):
        x, y = (cloud @ VIEW.T).T
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            marker={
                "size": 4,
                "color": cloud[:, 2],
                "colorscale": SCALE,
                "cmin": low,
                "cmax": high,
            },
            hoverinfo="skip",
            showlegend=False,
            row=at // columns + 1,
            col=at % columns + 1,
        )
    figure.update_xaxes(range=[-reach, reach], visible=False)
    figure.update_yaxes(range=[-reach, reach], visible=False)
    for at in range(len(clouds)):
        one = f"x{at + 1}" if at else "x"
        place = {"row": at // columns + 1, "col": at % columns + 1}
        figure.update_yaxes(scaleanchor=one, **place)
    return figure.update_layout(
        template="plotly_white",
        height=190 * rows + 30,
        dragmode=False,
        font={"size": 13, "color": INK},
        margin={"l": 5, "r": 5, "t": 40, "b": 5},
    )


def _clickable(
    figure: go.Figure, layers: list[int], columns: int, said: list[str], where: str
) -> None:
    """A heat map can't be selected from: marks that are not seen take the click."""
    grid = [(layer, column) for layer in layers for column in range(columns)]
    figure.add_scatter(
        x=[column for _, column in grid],
        y=[str(layer) for layer, _ in grid],
        mode="markers",
        marker={"size": 16, "symbol": "square", "color": "rgba(0,0,0,0)"},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=grid,
        text=said,
        hovertemplate=f"{where}: %{{text}}<extra></extra>",
        showlegend=False,
    )


def _frame(figure: go.Figure, across: tuple[float, float], row: int) -> None:
    """A frame that is seen on dark and on light cells."""
    for width, ink in ((4, "#000000"), (2, "#FFFFFF")):
        place = {"x0": across[0], "x1": across[1], "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", **place, line={"color": ink, "width": width})


def _finish(figure: go.Figure, height: int) -> go.Figure:
    figure.update_yaxes(title=LAYER, type="category", showgrid=False)
    return figure.update_layout(
        template="plotly_white",
        height=height,
        clickmode="event+select",
        dragmode=False,
        font={"size": 13, "color": INK},
        margin={"l": 60, "r": 10, "t": 20, "b": 50},
    )


def _short(name: str) -> str:
    return html.escape(name if len(name) <= LONGEST else name[: LONGEST - 1] + "…")
