"""A point cloud on the screen, as it was captured."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

GROUND = "#A7ABB0"  # a grey on which white and black points are both seen, in light and dark
DIAGONAL = 1.35  # of the box around a cloud, in plotly's units: all of it is in view
VIEW = np.array([[0.87, -0.5, 0.0], [0.25, 0.43, 0.87]])  # flat: from the front, above, aside
NO_COLOUR = "#2F4B6E"  # for clouds that came without colours


def cloud_figure(points: np.ndarray, *, size: float = 2.2) -> go.Figure:
    """The points of one object in their own colours, without axes, all directions to one scale.

    points : (points, 6), x y z and red green blue in 0 to 1, z up; (points, 3) without colours.
    One colour for all points, as loaders fill in where a file has none, is drawn in blue-grey.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] not in (3, 6):
        raise ValueError(f"points have shape {points.shape}, expected (points, 3) or (points, 6)")
    figure = go.Figure().add_scatter3d(
        x=points[:, 0],
        y=points[:, 1],
        z=points[:, 2],
        mode="markers",
        marker={"size": size, "color": _colours(points[:, 3:]), "opacity": 1},
        hoverinfo="skip",
    )
    return figure.update_layout(
        scene=_frame(points[:, :3])
        | {"bgcolor": GROUND, "camera": {"eye": {"x": 1.2, "y": 1.2, "z": 0.7}}},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
    )


def painted_figure(points: np.ndarray, share: np.ndarray, *, size: float = 2.6) -> go.Figure:
    """The cloud in the colours of what a token reads of it, from little (dark) to most (light).

    points : (points, 3 or more)    share : (points,), 0 to 1, of `probe.objects.painted`
    """
    figure = cloud_figure(np.asarray(points)[:, :3], size=size)
    bar = {"title": {"text": "read by the token", "side": "right"}, "thickness": 10, "len": 0.8}
    bar |= {"tickvals": [0, 1], "ticktext": ["least", "most"]}
    marker = {"color": share, "colorscale": "Plasma", "cmin": 0, "cmax": 1, "colorbar": bar}
    return figure.update_traces(marker=marker | {"showscale": True})


def _frame(xyz: np.ndarray) -> dict[str, Any]:
    """Axes of one scale, unseen, and a box whose diagonal is always as long: long things fit too.

    Plotly's own aspectmode "data" keeps the volume instead, and cuts off what is long.
    """
    if not len(xyz):
        return {}
    low, high = xyz.min(axis=0).astype(float), xyz.max(axis=0).astype(float)
    middle, extent = (low + high) / 2, high - low
    extent = np.maximum(extent, 0.01 * extent.max() or 1.0)  # a sheet has a side of no length
    ratio = DIAGONAL * extent / np.linalg.norm(extent)
    axes: dict[str, Any] = {
        f"{name}axis": {"visible": False, "showspikes": False, "range": [at - side, at + side]}
        for name, at, side in zip("xyz", middle.tolist(), (extent / 2).tolist(), strict=True)
    }
    box = dict(zip("xyz", ratio.tolist(), strict=True))
    return axes | {"aspectmode": "manual", "aspectratio": box}


def _colours(rgb: np.ndarray) -> str | list[str]:
    if rgb.size == 0 or (rgb == rgb[0]).all():
        return NO_COLOUR
    levels = (255 * np.clip(rgb, 0, 1)).round().astype(int)
    return [f"rgb({red},{green},{blue})" for red, green, blue in levels.tolist()]
