"""What a family returns: coloured parts that can be counted, and the symmetry they have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.families.solids import Mesh

PALETTE = {
    "red": (0.80, 0.13, 0.13),
    "blue": (0.15, 0.28, 0.78),
    "green": (0.16, 0.58, 0.22),
    "yellow": (0.93, 0.83, 0.17),
    "orange": (0.95, 0.52, 0.10),
    "purple": (0.50, 0.18, 0.62),
    "white": (0.94, 0.94, 0.92),
    "black": (0.09, 0.09, 0.10),
    "grey": (0.52, 0.53, 0.55),
    "brown": (0.44, 0.26, 0.13),
    "pink": (0.94, 0.56, 0.70),
    "turquoise": (0.20, 0.76, 0.74),
}


@dataclass(frozen=True)
class Part:
    """Like pieces of an object under one name; how many there are is the number of meshes."""

    name: str
    colour: str
    meshes: list[Mesh]
    adjective: str = ""
    """A word about the shape of the pieces, such as "tall"; empty when there is none to say."""

    @property
    def count(self) -> int:
        return len(self.meshes)


@dataclass(frozen=True)
class Design:
    """An object before it is posed: its main part first."""

    parts: list[Part]
    symmetry: str = "mirror"
    """`round` (any turn about the vertical), `turn` (by steps), `mirror` (left-right) or `none`."""
    order: int = 1
    """Steps of a full turn that leave it the same; 1 unless the symmetry is `turn`."""


def part(name: str, colour: str, *meshes: Mesh | list[Mesh], adjective: str = "") -> Part:
    """A part of single meshes and lists of meshes."""
    flat = [each for mesh in meshes for each in (mesh if isinstance(mesh, list) else [mesh])]
    return Part(name, colour, flat, adjective)


def colours(rng: np.random.Generator, count: int, *first: str) -> list[str]:
    """Different colour names; the first is drawn from `first` when it is given."""
    names = [str(name) for name in rng.permutation(list(PALETTE))]
    if first:
        chosen = str(rng.choice(first))
        names = [chosen] + [name for name in names if name != chosen]
    return names[:count]


def size_word(value: float, low: float, high: float, words: tuple[str, str]) -> str:
    """The first word below `low`, the second above `high`, none in between."""
    return words[0] if value < low else words[1] if value > high else ""
