"""Meshes to build objects from: a few solids, and moves, turns and copies of them.

The vertical axis is z, the front looks along -y, left and right are -x and x.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import trimesh
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Mesh:
    """Triangles: vertices (vertices, 3), faces (faces, 3). Each move returns a new mesh."""

    vertices: np.ndarray
    faces: np.ndarray

    def move(self, x: float = 0, y: float = 0, z: float = 0) -> Mesh:
        return Mesh(self.vertices + np.array((x, y, z)), self.faces)

    def scale(self, x: float, y: float, z: float) -> Mesh:
        return Mesh(self.vertices * (x, y, z), self.faces)

    def turn(self, axis: str, degrees: float) -> Mesh:
        """Turned about the x, y or z axis through the origin, right-handed."""
        return Mesh(self.vertices @ rotation(axis, degrees).T, self.faces)

    def mirror(self) -> Mesh:
        """The left for the right: x becomes -x."""
        return self.scale(-1, 1, 1)


def rotation(axis: str, degrees: float) -> np.ndarray:
    """(3, 3) right-handed rotation about the x, y or z axis."""
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def join(*meshes: Mesh) -> Mesh:
    """One mesh of several, for what counts as one part."""
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


def around(mesh: Mesh, copies: int, start: float = 0) -> list[Mesh]:
    """Copies at equal angles about the vertical axis, the first turned by `start` degrees."""
    return [mesh.turn("z", start + 360 * copy / copies) for copy in range(copies)]


def pair(mesh: Mesh) -> list[Mesh]:
    """A mesh and its mirror image."""
    return [mesh, mesh.mirror()]


def corners(mesh: Mesh, x: float, y: float) -> list[Mesh]:
    """Four copies, at (+-x, +-y), each turned outward by mirroring."""
    right = [mesh.move(x, y), mesh.scale(1, -1, 1).move(x, -y)]
    return right + [each.mirror() for each in right]


@lru_cache
def _unit(kind: str) -> Mesh:
    make = {
        "box": trimesh.creation.box,
        "ball": lambda: trimesh.creation.icosphere(subdivisions=2),
    }
    mesh = make[kind]()
    return Mesh(np.array(mesh.vertices), np.array(mesh.faces))


def box(width: float, depth: float, height: float) -> Mesh:
    """A cuboid that stands on z = 0, centred in x and y."""
    return _unit("box").scale(width, depth, height).move(z=height / 2)


def ball(x: float, y: float | None = None, z: float | None = None) -> Mesh:
    """A sphere or an ellipsoid of these radii about the origin."""
    return _unit("ball").scale(x, x if y is None else y, x if z is None else z)


def lathe(profile: ArrayLike, sides: int = 28) -> Mesh:
    """A profile of (radius, z) points turned about the vertical axis."""
    mesh = trimesh.creation.revolve(np.asarray(profile, dtype=float), sections=sides)
    return Mesh(np.array(mesh.vertices), np.array(mesh.faces))


def cylinder(radius: float, height: float, top: float | None = None, sides: int = 24) -> Mesh:
    """A cylinder, or a cone cut at radius `top`, that stands on z = 0, with both lids."""
    top = radius if top is None else top
    unit = _drum(sides)
    height_of = unit.vertices[:, 2:]
    vertices = unit.vertices * (1, 1, height)
    vertices[:, :2] *= radius + (top - radius) * height_of
    return Mesh(vertices, unit.faces)


@lru_cache
def _drum(sides: int) -> Mesh:
    return lathe([(0, 0), (1, 0), (1, 1), (0, 1)], sides)


def wheel(radius: float, width: float) -> Mesh:
    """A disc whose axle lies along x, about the origin."""
    return cylinder(radius, width).move(z=-width / 2).turn("y", 90)


def ring(radius: float, thickness: float) -> Mesh:
    """A torus that lies in the xy plane about the origin."""
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    return tube(radius * circle, thickness, closed=True)


def rod(start: ArrayLike, end: ArrayLike, radius: float, top: float | None = None) -> Mesh:
    """A straight round bar between two points; `top` is its radius at the end."""
    foot, along = np.array(start, float), np.subtract(end, start)
    length = float(np.linalg.norm(along))
    bar = cylinder(radius, length, top, sides=12)
    return Mesh(bar.vertices @ _frame(along / length) + foot, bar.faces)


def beam(start: ArrayLike, end: ArrayLike, width: float, height: float) -> Mesh:
    """A straight bar of rectangular section between two points; width is horizontal."""
    foot, along = np.array(start, float), np.subtract(end, start)
    length = float(np.linalg.norm(along))
    bar = box(width, height, length)
    return Mesh(bar.vertices @ _frame(along / length) + foot, bar.faces)


def _frame(direction: np.ndarray) -> np.ndarray:
    """(3, 3) rows: across (horizontal where it can be), up, along the direction."""
    helper = np.array([0.0, 0, 1]) if abs(direction[2]) < 0.999 else np.array([0.0, 1, 0])
    across = np.cross(helper, direction)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(direction, across), direction])


def tube(path: ArrayLike, radius: ArrayLike, closed: bool = False, sides: int = 8) -> Mesh:
    """A round bar along a path (steps, 3), of one radius or one a step; ends get no lids."""
    steps = np.asarray(path, dtype=float)
    if closed:
        along = np.roll(steps, -1, axis=0) - np.roll(steps, 1, axis=0)
    else:
        along = np.gradient(steps, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = _frame(along[0])[0]
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)[:, None]
    loops = []
    radii = np.broadcast_to(radius, len(steps))
    for centre, direction, thick in zip(steps, along, radii, strict=True):
        normal = normal - direction * (normal @ direction)  # carried along, so no twist
        normal /= np.sqrt(normal @ normal)
        other = np.array(
            [
                direction[1] * normal[2] - direction[2] * normal[1],
                direction[2] * normal[0] - direction[0] * normal[2],
                direction[0] * normal[1] - direction[1] * normal[0],
            ]
        )
        loops.append(centre + thick * (np.cos(angles) * normal + np.sin(angles) * other))
    return Mesh(np.concatenate(loops), _grid(len(steps), sides, closed))


def _grid(loops: int, sides: int, closed: bool) -> np.ndarray:
    """Triangles between neighbouring loops of `sides` vertices each."""
    loop = np.arange(loops if closed else loops - 1)[:, None]
    side = np.arange(sides)[None]
    here, there = loop * sides, (loop + 1) % loops * sides
    after = (side + 1) % sides
    first = np.stack([here + side, here + after, there + side], axis=-1)
    second = np.stack([here + after, there + after, there + side], axis=-1)
    return np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])


def plate(outline: ArrayLike, depth: float) -> Mesh:
    """An outline of (x, z) points given depth along y, centred there.

    The lids are fans about the mean of the outline, so all of it must be in sight from there.
    """
    edge = np.asarray(outline, dtype=float)
    sides = len(edge)
    flat = np.concatenate([edge, edge.mean(axis=0, keepdims=True)])
    vertices = np.zeros((2 * (sides + 1), 3))
    vertices[:, [0, 2]] = np.concatenate([flat, flat])
    vertices[: sides + 1, 1], vertices[sides + 1 :, 1] = -depth / 2, depth / 2
    here = np.arange(sides)
    after, back = (here + 1) % sides, sides + 1
    lid = np.stack([here, after, np.full(sides, sides)], axis=1)
    wall = np.concatenate(
        [np.stack([here, after, here + back], 1), np.stack([after, after + back, here + back], 1)]
    )
    return Mesh(vertices, np.concatenate([lid, lid + back, wall]))


def arc(radius: float, first: float, last: float, steps: int = 16) -> np.ndarray:
    """(steps, 2) points of a circle about the origin, from one angle in degrees to another."""
    angles = np.radians(np.linspace(first, last, steps))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def scatter(
    triangles: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points drawn evenly over triangles (triangles, 3, 3), and the triangle of each.

    Returns (count, 3) points and (count,) rows of triangles.
    """
    sides = triangles[:, 1:] - triangles[:, :1]  # (triangles, 2, 3)
    total = np.cumsum(np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1))
    chosen = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    weights = rng.random((count, 2, 1))
    over = weights.sum(axis=1)[:, 0] > 1
    weights[over] = 1 - weights[over]  # the other half of the parallelogram, folded back
    return triangles[chosen, 0] + (weights * sides[chosen]).sum(axis=1), chosen
