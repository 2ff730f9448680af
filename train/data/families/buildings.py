"""Buildings: house, bridge, windmill, lighthouse, temple, castle, church."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    Mesh,
    arc,
    box,
    corners,
    cylinder,
    join,
    lathe,
    pair,
    plate,
    rod,
    tube,
)


def gable(width: float, depth: float, rise: float) -> Mesh:
    """A roof with its ridge along y, standing on z = 0."""
    return plate([(-width / 2, 0), (width / 2, 0), (0, rise)], depth)


def house(rng: np.random.Generator) -> Design:
    main, top, third = colours(rng, 3)
    width, depth, floors = rng.uniform(1.1, 1.6), rng.uniform(0.9, 1.3), int(rng.integers(1, 3))
    height, rise = 0.7 * floors, rng.uniform(0.4, 0.8)
    panes, front = int(rng.integers(1, 3)), -depth / 2
    windows = []
    for floor in range(floors):
        for x in (np.arange(panes) + 1) * width / (2 * panes + 1.2) + 0.02:
            windows += pair(box(0.2, 0.05, 0.28).move(x, front, 0.28 + 0.7 * floor))
    parts = [
        part("wall", main, box(width, depth, height)),
        part(
            "roof",
            top,
            gable(width + 0.2, depth + 0.2, rise).move(z=height),
            adjective=size_word(rise, 0.5, 0.7, ("low", "steep")),
        ),
        part("door", third, box(0.26, 0.06, 0.5).move(0, front)),
        part("window", third, windows, adjective="small"),
    ]
    chimney = rng.random() < 0.6
    if chimney:
        parts.append(
            part("chimney", third, box(0.18, 0.18, rise).move(0.28 * width, 0.1, height + 0.2))
        )
    return Design(parts, "none" if chimney else "mirror")


def bridge(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    length, width, rise = rng.uniform(2.4, 3.2), rng.uniform(0.45, 0.65), rng.uniform(0.5, 0.8)
    deck = part("deck", main, box(length, width, 0.08).move(z=rise), adjective="long")
    if rng.random() < 0.5:
        spans = int(rng.integers(2, 5))
        wide = length / spans
        walls = []
        for at in (np.arange(spans) + 0.5) * wide - length / 2:
            bow = arc(1, 180, 0, 13) * (0.42 * wide, 0.75 * rise)
            for low, high in pairwise(bow):
                strip = [(low[0], low[1]), (high[0], high[1]), (high[0], rise), (low[0], rise)]
                walls.append(plate(strip, width).move(at))
        piers = [
            box(0.17 * wide, width, rise).move(x)
            for x in np.linspace(-length / 2, length / 2, spans + 1)
        ]
        rail = box(length, 0.05, 0.2).move(z=rise + 0.05)
        parts = [
            deck,
            part("arch", main, [join(*walls[12 * at : 12 * at + 12]) for at in range(spans)]),
            part("pier", other, piers),
            part("rail", other, [rail.move(y=y) for y in (-width / 2, width / 2)]),
        ]
        return Design(parts, "turn", 2)
    tall, at = rng.uniform(1.2, 1.6), rng.uniform(0.26, 0.34) * length
    tower = join(
        *[box(0.1, 0.09, tall).move(y=y) for y in (-width / 2, width / 2)],
        box(0.09, width, 0.09).move(z=tall - 0.1),
        box(0.09, width, 0.09).move(z=0.6 * tall + 0.2),
    )
    cables, hangers = [], []
    for y in (-width / 2, width / 2):
        x = np.linspace(-at, at, 17)
        sag = rise + 0.12 + (tall - rise - 0.15) * (x / at) ** 2
        path = np.stack([x, 0 * x + y, sag], 1)
        ends = [(-length / 2, y, rise + 0.05), *path, (length / 2, y, rise + 0.05)]
        cables.append(tube(ends, 0.03))
        hangers += [rod(point, (point[0], y, rise), 0.012) for point in path[2:-2:2]]
    parts = [
        deck,
        part("tower", other, [tower.move(-at), tower.move(at)], adjective="tall"),
        part("cable", other, cables, adjective="curved"),
        part("hanger", other, hangers, adjective="thin"),
    ]
    return Design(parts, "turn", 2)


def windmill(rng: np.random.Generator) -> Design:
    main, top, cloth = colours(rng, 3)
    height, low, blades = rng.uniform(1.4, 1.9), rng.uniform(0.42, 0.55), int(rng.integers(3, 7))
    high, span = 0.6 * low, rng.uniform(0.8, 1.1)
    spoke = join(box(0.05, 0.05, span), box(0.2, 0.02, 0.72 * span).move(0.11, 0, 0.26 * span))
    start = float(rng.uniform(0, 360))
    sails = [
        spoke.turn("y", start + 360 * k / blades).move(y=-high - 0.2, z=height)
        for k in range(blades)
    ]
    sides = int(rng.choice([6, 8, 24]))
    parts = [
        part(
            "tower",
            main,
            cylinder(low, height, high, sides),
            adjective="round" if sides == 24 else "",
        ),
        part("blade", cloth, sails, adjective="long"),
        part("roof", top, cylinder(high + 0.07, 0.4, 0.02).move(z=height), adjective="pointed"),
        part("axle", top, rod((0, -high - 0.25, height), (0, 0, height), 0.06)),
        part("door", cloth, box(0.22, 0.1, 0.4).move(0, -low + 0.05)),
    ]
    return Design(parts, "none")


def lighthouse(rng: np.random.Generator) -> Design:
    main, other, third = colours(rng, 3)
    height, low, bands = rng.uniform(1.6, 2.4), rng.uniform(0.36, 0.48), int(rng.integers(1, 4))
    high = rng.uniform(0.55, 0.7) * low
    rings = []
    for share in (np.arange(bands) + 0.5) / bands:
        size = 0.4 / bands
        radii = [low + (high - low) * each + 0.012 for each in (share - size / 2, share + size / 2)]
        rings.append(
            lathe(
                [(radii[0], height * (share - size / 2)), (radii[1], height * (share + size / 2))]
            )
        )
    parts = [
        part(
            "tower",
            main,
            cylinder(low, height, high),
            adjective=size_word(height, 1.8, 2.15, ("short", "tall")),
        ),
        part("stripe", other, rings, adjective="wide"),
        part(
            "balcony",
            third,
            lathe(
                [
                    (0, 0),
                    (high + 0.14, 0),
                    (high + 0.14, 0.14),
                    (high + 0.1, 0.14),
                    (high + 0.1, 0.05),
                ]
            ).move(z=height),
            adjective="round",
        ),
        part("light room", "yellow", cylinder(0.65 * high, 0.32).move(z=height)),
        part(
            "roof",
            other,
            cylinder(0.85 * high, 0.26, 0.02).move(z=height + 0.32),
            adjective="pointed",
        ),
        part("base", third, cylinder(low + 0.16, 0.12)),
    ]
    return Design(parts, "round")


def temple(rng: np.random.Generator) -> Design:
    main, top = colours(rng, 2)
    columns, height, steps = int(rng.integers(4, 8)), rng.uniform(0.7, 1.1), int(rng.integers(1, 4))
    width, depth = rng.uniform(1.7, 2.2), rng.uniform(1.0, 1.5)
    base = 0.1 * steps
    stairs = [
        box(width + 0.2 * (steps - k), depth + 0.2 * (steps - k), 0.1).move(z=0.1 * k)
        for k in range(steps)
    ]
    radius = rng.uniform(0.06, 0.09)
    post = join(
        cylinder(radius, height, 0.85 * radius, 14),
        box(2.6 * radius, 2.6 * radius, 0.07).move(z=height - 0.07),
    )
    row = np.linspace(-width / 2 + 0.12, width / 2 - 0.12, columns)
    posts = [post.move(x, y, base) for y in (-depth / 2 + 0.12, depth / 2 - 0.12) for x in row]
    parts = [
        part("column", main, posts, adjective="round"),
        part(
            "roof",
            top,
            gable(width + 0.16, depth + 0.16, rng.uniform(0.35, 0.55)).move(z=base + height + 0.12),
        ),
        part("beam", main, box(width, depth, 0.12).move(z=base + height), adjective="flat"),
        part("step", top, stairs, adjective="wide"),
    ]
    return Design(parts, "turn", 2)


def castle(rng: np.random.Generator) -> Design:
    main, top, gate = colours(rng, 3)
    width, wall, tower = rng.uniform(1.5, 2.0), rng.uniform(0.5, 0.75), rng.uniform(0.95, 1.4)
    radius, half, spires = rng.uniform(0.2, 0.28), width / 2, rng.random() < 0.6
    sides = [box(width, 0.12, wall).move(y=half).turn("z", angle) for angle in (0, 90, 180, 270)]
    tooth = box(0.13, 0.13, 0.14)
    places = np.linspace(-half + 0.3, half - 0.3, int(rng.integers(3, 6)))
    teeth = [tooth.move(x, half, wall).turn("z", a) for a in (0, 90, 180, 270) for x in places]
    round_tower = cylinder(radius, tower)
    parts = [
        part("wall", main, sides, adjective=size_word(wall, 0.58, 0.68, ("low", "high"))),
        part("tower", main, corners(round_tower, half, half), adjective="round"),
        part("battlement", main, teeth, adjective="small"),
        part("gate", gate, box(0.42, 0.16, 0.42).move(0, -half)),
    ]
    if spires:
        cap = cylinder(radius + 0.06, rng.uniform(0.4, 0.6), 0.01).move(z=tower)
        parts.insert(2, part("roof", top, corners(cap, half, half), adjective="pointed"))
    if rng.random() < 0.5:
        keep = box(0.5 * width, 0.5 * width, 1.1 * tower)
        parts.append(part("keep", top, keep, adjective="square"))
    return Design(parts)


def church(rng: np.random.Generator) -> Design:
    main, top, third = colours(rng, 3)
    width, length, height = rng.uniform(0.7, 0.95), rng.uniform(1.5, 2.1), rng.uniform(0.7, 0.95)
    tower, spire, thick = rng.uniform(1.3, 1.8), rng.uniform(0.6, 1.1), rng.uniform(0.42, 0.52)
    panes, front = int(rng.integers(2, 5)), -length / 2 - thick / 2
    pane = box(0.05, 0.16, 0.4)
    windows = [pane.move(width / 2, y, 0.2) for y in np.linspace(-0.32, 0.4, panes) * length]
    peak = tower + spire
    cross = join(
        box(0.05, 0.05, 0.36).move(z=peak - 0.03), box(0.22, 0.05, 0.05).move(z=peak + 0.16)
    )
    point = (
        cylinder(0.75 * thick, spire, 0.01, sides=4).turn("z", 45).move(0, front + thick / 2, tower)
    )
    parts = [
        part("hall", main, box(width, length, height), adjective="long"),
        part("tower", main, box(thick, thick, tower).move(0, front + thick / 2), adjective="tall"),
        part("spire", top, point, adjective=size_word(spire, 0.75, 0.95, ("short", "tall"))),
        part("roof", top, gable(width + 0.16, length + 0.1, 0.5).move(z=height), adjective="steep"),
        part("window", third, *[pair(each) for each in windows], adjective="narrow"),
        part("cross", third, cross.move(0, front + thick / 2), adjective="small"),
        part("door", third, box(0.22, 0.06, 0.42).move(0, front)),
    ]
    return Design(parts)
