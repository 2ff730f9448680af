"""Pictures of a cloud from several sides, for a frozen image tower: no mesh, no GPU, no seed."""

from __future__ import annotations

import numpy as np

SIDE = 224
VIEWS = 4
LIFT = 20.0
"""Degrees that the camera stands above the ground."""
DOT = 0.02
"""Radius of a point, in the cloud's largest radius."""
DARKEST = 0.35


def renderings(
    points: np.ndarray, views: int = VIEWS, *, up: str = "y", side: int = SIDE
) -> np.ndarray:
    """A cloud from `views` sides, (views, side, side, 3) uint8, on white.

    points : (points, 3) or (points, 6), largest radius 1; rgb from 0 to 1, black if unknown
    up     : axis that points up, "y" or "z"

    The camera goes round that axis in equal steps, looks down by 20 degrees and sees without
    perspective; each point is a disc that hides what is behind it. A point is as bright as it is
    near, grey where the cloud has no colour, as the depth pictures of ULIP and PointCLIP are.
    """
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] not in (3, 6):
        raise ValueError(f"a cloud to draw has shape {points.shape}, not (points, 3 or 6)")
    colour = points[:, 3:]
    if not colour.any():
        colour = np.ones((len(points), 3), np.float32)
    place = points[:, :3] if up == "y" else points[:, [1, 2, 0]]
    turns = (_camera(360 * view / views, LIFT) for view in range(views))
    return np.stack([_picture(place @ turn.T, colour, side) for turn in turns])


def _camera(azimuth: float, lift: float) -> np.ndarray:
    """(3, 3): rows are right, up and toward the viewer."""
    turn, tilt = np.radians([azimuth, lift])
    about_y = np.array(
        [[np.cos(turn), 0, -np.sin(turn)], [0, 1, 0], [np.sin(turn), 0, np.cos(turn)]]
    )
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    return (about_x @ about_y).astype(np.float32)


def _picture(seen: np.ndarray, colour: np.ndarray, side: int) -> np.ndarray:
    """Discs at `seen` (points, 3), drawn from the back to the front; later ones hide earlier."""
    order = seen[:, 2].argsort(kind="stable")
    x, y, near = seen[order].T
    light = DARKEST + (1 - DARKEST) * (near.clip(-1, 1) + 1) / 2
    shade = (255 * 0.9 * colour[order].clip(0, 1) * light[:, None]).round().astype(np.uint8)
    scale = side / 2.2
    column, row = (np.stack([x, -y]) * scale + side / 2).round().astype(int)
    reach = max(1, round(DOT * scale))
    steps = np.arange(-reach, reach + 1)
    across, down = (grid.ravel() for grid in np.meshgrid(steps, steps))
    inside = across**2 + down**2 <= reach**2
    columns = column[:, None] + across[inside]  # (points, pixels of a disc), the back first
    rows = row[:, None] + down[inside]
    there = (columns >= 0) & (columns < side) & (rows >= 0) & (rows < side)
    picture = np.full((side, side, 3), 255, np.uint8)
    which = np.broadcast_to(np.arange(len(seen))[:, None], columns.shape)[there]
    picture[rows[there], columns[there]] = shade[which]
    return picture
