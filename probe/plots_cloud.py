"""A point cloud on the screen, as it was captured."""

import numpy as np
import plotly.graph_objects as go

GROUND = "#A7ABB0"  # a grey on which white and black points are both seen, in light and dark
NO_COLOUR = "#2F4B6E"  # for clouds that came without colours


def cloud_figure(points: np.ndarray, *, size: float = 2.2) -> go.Figure:
    """The points of one object in their own colours, without axes, all directions to one scale.

    points : (points, 6), x y z and red green blue in 0 to 1, z up; (points, 3) without colours.
    One colour for all points, as loaders fill in where a file has none, is drawn in blue-grey.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] not in (3, 6):
        raise ValueError(f"points have shape {points.shape}, expected (points, 3) or (points, 6)")
    figure = go.Figure(
        go.Scatter3d(
            x=points[:, 0],
            y=points[:, 1],
            z=points[:, 2],
            mode="markers",
            marker={"size": size, "color": _colours(points[:, 3:]), "opacity": 1},
            hoverinfo="skip",
        )
    )
    hidden = {"visible": False, "showspikes": False}
    return figure.update_layout(
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "bgcolor": GROUND,
            "camera": {"eye": {"x": 1.1, "y": 1.1, "z": 0.7}},
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        showlegend=False,
    )


def _colours(rgb: np.ndarray) -> str | list[str]:
    if rgb.size == 0 or (rgb == rgb[0]).all():
        return NO_COLOUR
    levels = (255 * np.clip(rgb, 0, 1)).round().astype(int)
    return [f"rgb({red},{green},{blue})" for red, green, blue in levels.tolist()]
