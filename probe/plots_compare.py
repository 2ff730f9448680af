"""Two models side by side: objects, classes and layers, as plotly figures."""

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from probe.contrast import KINDS
from probe.plots import INK, colour

SHOWN = 24  # classes on a side of the figure of confusions
QUIET = "#9A9A9A"


def contrast_figure(table: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Drift of each query object in both models; a click gives its row as customdata.

    table : of `probe.contrast.contrast`. Coloured by which model gets it right.
    """
    figure = go.Figure()
    ends = [table[["drift_first", "drift_second"]].min().min()]
    ends.append(table[["drift_first", "drift_second"]].max().max())
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        name="the same",
        line={"color": INK, "dash": "dot", "width": 1},
    )
    styles = {
        KINDS[0]: ("both right", QUIET, "circle", 6),
        KINDS[3]: ("both wrong", QUIET, "x-thin-open", 7),
        KINDS[1]: (f"only {first} right", _colour(first, second)[0], "circle", 10),
        KINDS[2]: (f"only {second} right", _colour(first, second)[1], "diamond", 10),
    }
    for kind, (name, ink, shape, size) in styles.items():
        rows = table[table.kind == kind]
        text = [
            html.escape(f"{a}: {b} → {c}, {d}")
            for a, b, c, d in zip(
                rows["sample"], rows.class_name, rows.named_first, rows.named_second, strict=True
            )
        ]
        figure.add_scattergl(
            x=rows.drift_first,
            y=rows.drift_second,
            name=f"{name} ({len(rows)})",
            mode="markers",
            marker={"color": ink, "symbol": shape, "size": size, "opacity": 0.85},
            customdata=rows.index.to_numpy(np.int32),
            text=text,
            hovertemplate="%{text}<br>drift %{x:.4f}, %{y:.4f}<extra></extra>",
        )
    return figure.update_layout(
        template="plotly_white",
        xaxis_title=f"drift in {first}   (1 − cosine, lower is closer)",
        yaxis_title=f"drift in {second}   (lower is closer)",
        height=430,
        clickmode="event+select",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 10, "t": 60, "b": 50},
    )


def cka_figure(values: xr.DataArray, first: str, second: str) -> go.Figure:
    """Debiased CKA, layer by layer. values : (layer, other_layer)."""
    figure = go.Figure()
    figure.add_heatmap(
        x=values.other_layer.values.astype(str),
        y=values.layer.values.astype(str),
        z=values.values,
        colorscale="Viridis",
        zmax=1,
        colorbar={"title": {"text": "debiased CKA (higher is more alike)", "side": "right"}},
        texttemplate="%{z:.2f}" if values.size <= 150 else None,
        hovertemplate="layer %{y} and layer %{x}: %{z:.4f}<extra></extra>",
    )
    figure.update_xaxes(title=f"layer of {second}", type="category", constrain="domain")
    figure.update_yaxes(title=f"layer of {first}", type="category", scaleanchor="x")
    return figure.update_layout(
        template="plotly_white", height=470, margin={"l": 60, "r": 10, "t": 20, "b": 50}
    )


def confusion_figure(changes: pd.DataFrame, first: str, second: str) -> go.Figure:
    """Objects that the second model takes for another class, more (or less) than the first.

    changes : of `probe.contrast.confusion_change`; the classes that change most are shown.
    """
    if changes.empty:
        raise ValueError("both models name the same classes: there is nothing to draw")
    moved = changes.assign(size=changes.change.abs())
    asked, named = (
        moved.groupby(name)["size"].sum().sort_values(ascending=False).index[:SHOWN].sort_values()
        for name in ("class_name", "named")
    )
    grid = moved.pivot(index="class_name", columns="named", values="change")
    grid = grid.reindex(index=asked, columns=named)
    most = max(1, int(moved["size"].max()))
    figure = go.Figure()
    figure.add_heatmap(
        x=[html.escape(name) for name in named],
        y=[html.escape(name) for name in asked],
        z=grid.values,
        zmin=-most,
        zmax=most,
        colorscale="PuOr",
        xgap=1,
        ygap=1,
        texttemplate="%{z:+d}",
        colorbar={"title": {"text": f"objects, {second} − {first}", "side": "right"}},
        hovertemplate="%{y} taken for %{x}: %{z:+d}<extra></extra>",
    )
    figure.update_xaxes(
        title="class that the neighbours name", type="category", tickangle=-45, showgrid=False
    )
    figure.update_yaxes(title="true class", type="category", autorange="reversed", showgrid=False)
    return figure.update_layout(
        template="plotly_white",
        height=max(320, 190 + 22 * len(asked)),
        margin={"l": 90, "r": 10, "t": 20, "b": 90},
    )


def _colour(first: str, second: str) -> tuple[str, str]:
    """A colour a variant; two of one variant (runs, steps) are told apart by their shapes."""
    return colour(variant_of(first)), colour(variant_of(second))


def variant_of(model: str) -> str:
    """The variant in "run: variant@step"."""
    return model.rpartition(": ")[2].partition("@")[0]
