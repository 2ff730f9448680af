"""The families of procedural shapes, by theme; a family draws one object from a generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from train.data.families import (
    abstract,
    buildings,
    furniture,
    nature,
    tools,
    vehicles,
    vessels,
)
from train.data.families.design import PALETTE, Design, Part

Family = Callable[[np.random.Generator], Design]

THEMES: dict[str, list[Family]] = {
    "piece of furniture": [
        furniture.chair,
        furniture.table,
        furniture.stool,
        furniture.bench,
        furniture.bed,
        furniture.sofa,
        furniture.bookshelf,
        furniture.desk,
        furniture.wardrobe,
        furniture.lamp,
        furniture.ladder,
    ],
    "vehicle": [
        vehicles.car,
        vehicles.truck,
        vehicles.bus,
        vehicles.train,
        vehicles.airplane,
        vehicles.sailboat,
        vehicles.bicycle,
        vehicles.rocket,
        vehicles.helicopter,
        vehicles.tank,
    ],
    "container": [
        vessels.cup,
        vessels.bottle,
        vessels.vase,
        vessels.bowl,
        vessels.teapot,
        vessels.bucket,
        vessels.wine_glass,
        vessels.barrel,
    ],
    "tool": [
        tools.hammer,
        tools.wrench,
        tools.screwdriver,
        tools.axe,
        tools.saw,
        tools.shovel,
        tools.umbrella,
        tools.scissors,
    ],
    "building": [
        buildings.house,
        buildings.bridge,
        buildings.windmill,
        buildings.lighthouse,
        buildings.temple,
        buildings.castle,
        buildings.church,
    ],
    "plant": [
        nature.tree,
        nature.pine_tree,
        nature.cactus,
        nature.mushroom,
        nature.flower,
    ],
    "toy": [
        nature.snowman,
        nature.guitar,
        nature.robot,
    ],
    "solid": [
        abstract.cube,
        abstract.sphere,
        abstract.cone,
        abstract.torus,
        abstract.cross,
        abstract.spring,
        abstract.star,
        abstract.pyramid,
    ],
}

FAMILIES: dict[str, Family] = {
    family.__name__.replace("_", " "): family for theme in THEMES.values() for family in theme
}
"""Class name -> family, in the order of the labels."""

THEME_OF: dict[str, str] = {
    family.__name__.replace("_", " "): theme for theme, group in THEMES.items() for family in group
}
"""Class name -> what kind of thing it is."""

__all__ = ["FAMILIES", "PALETTE", "THEMES", "THEME_OF", "Design", "Family", "Part"]
