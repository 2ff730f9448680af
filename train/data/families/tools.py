"""Tools, standing on the end of their handle: hammer, wrench, screwdriver, axe, saw and others."""

from __future__ import annotations

import numpy as np

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    arc,
    around,
    ball,
    beam,
    box,
    cylinder,
    join,
    lathe,
    pair,
    plate,
    ring,
    rod,
    tube,
)


def hammer(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, head, claw = rng.uniform(1.3, 1.9), rng.uniform(0.55, 0.8), rng.random() < 0.5
    thick = rng.uniform(0.11, 0.16)
    bar = cylinder(thick, head / 2 + 0.1).turn("y", 90).move(-0.1, 0, height)
    face = cylinder(1.3 * thick, 0.14).turn("y", 90).move(head / 2, 0, height)
    parts = [
        part(
            "handle",
            main,
            cylinder(0.07, height, 0.055),
            adjective=size_word(height, 1.45, 1.75, ("short", "long")),
        ),
        part("head", other, join(bar, face), adjective="heavy"),
    ]
    if claw:
        bow = arc(0.5, 95, 150, 8)
        path = np.stack([bow[:, 0], 0 * bow[:, 0] + 0.05, bow[:, 1] - 0.5 + height], 1)
        prong = tube(path, 0.05)
        parts.append(part("claw", other, prong, prong.scale(1, -1, 1), adjective="curved"))
    else:
        wedge = plate([(-head / 2, -0.02), (0, -thick), (0, thick), (-head / 2, 0.02)], 1.6 * thick)
        parts.append(part("wedge", other, wedge.move(z=height), adjective="pointed"))
    return Design(parts, "none")


def wrench(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    length, wide, thick = rng.uniform(1.5, 2.0), rng.uniform(0.2, 0.28), rng.uniform(0.1, 0.16)
    jaw = rng.uniform(0.3, 0.4)
    inner, outer = arc(0.55 * jaw, 130, 410, 18), arc(jaw, 125, 415, 18)
    strips = [
        plate([inner[at], outer[at], outer[at + 1], inner[at + 1]], 1.3 * thick) for at in range(17)
    ]
    top = join(*strips).move(z=length + 0.8 * jaw)
    double = rng.random() < 0.5
    parts = [
        part(
            "handle",
            main,
            box(wide, thick, length),
            adjective=size_word(length, 1.65, 1.85, ("short", "long")),
        ),
        part(
            "jaw",
            other,
            [top, top.scale(1, 1, -1).move(z=length)] if double else [top],
            adjective="open",
        ),
    ]
    if not double:
        hole = lathe([(0.16, 0), (0.3, 0), (0.3, 0.14), (0.16, 0.14), (0.16, 0)])
        parts.append(
            part("ring", other, hole.turn("x", 90).move(y=0.07, z=-0.2), adjective="round")
        )
    return Design(parts)


def screwdriver(rng: np.random.Generator) -> Design:
    main, metal = colours(rng, 2)
    grip, shaft, ribs = rng.uniform(0.6, 0.85), rng.uniform(0.7, 1.3), int(rng.integers(5, 9))
    radius = rng.uniform(0.15, 0.2)
    shares = [(0, 0), (0.8, 0), (1, 0.1), (1, 0.6), (0.7, 0.78), (0.85, 0.95), (0.4, 1), (0, 1)]
    handle = lathe([(radius * r, grip * z) for r, z in shares])
    rib = ball(0.045, 0.045, 0.3 * grip).move(radius, 0, 0.36 * grip)
    end = grip + shaft
    flat = plate(
        [
            (-0.05, end - 0.05),
            (0.05, end - 0.05),
            (0.1, end + 0.1),
            (0.08, end + 0.25),
            (-0.08, end + 0.25),
            (-0.1, end + 0.1),
        ],
        0.04,
    )
    cross = rng.random() < 0.4
    tip = join(flat, flat.turn("z", 90)) if cross else flat
    parts = [
        part("handle", main, handle, adjective="thick"),
        part(
            "shaft",
            metal,
            cylinder(0.05, shaft).move(z=grip),
            adjective=size_word(shaft, 0.9, 1.1, ("short", "long")),
        ),
        part("tip", metal, tip, adjective="crossed" if cross else "flat"),
        part("rib", main, around(rib, ribs, 90)),
    ]
    return Design(parts)


def axe(rng: np.random.Generator) -> Design:
    main, metal = colours(rng, 2)
    height, blade, double = rng.uniform(1.5, 2.1), rng.uniform(0.4, 0.6), rng.random() < 0.4
    edge = arc(0.55, -40, 40, 9) * (0.35, 0.9) + (blade - 0.2, 0)
    head = plate([(0, -0.12), *edge, (0, 0.12)], 0.07).move(0.02, 0, height - 0.25)
    parts = [
        part(
            "handle",
            main,
            cylinder(0.06, height),
            adjective=size_word(height, 1.65, 1.95, ("short", "long")),
        ),
        part("blade", metal, pair(head) if double else [head], adjective="curved"),
        part("collar", metal, box(0.18, 0.15, 0.28).move(z=height - 0.39)),
    ]
    return Design(parts, "mirror" if double else "none")


def saw(rng: np.random.Generator) -> Design:
    main, metal = colours(rng, 2)
    length, high, teeth = rng.uniform(1.5, 2.1), rng.uniform(0.4, 0.55), int(rng.integers(9, 19))
    end = rng.uniform(0.4, 0.7) * high
    blade = plate([(0, 0), (length, 0), (length, end), (0, high)], 0.03)
    wide = length / teeth
    tooth = [
        plate([(at, 0), (at + wide, 0), (at + wide / 2, -0.09)], 0.03)
        for at in np.arange(teeth) * wide
    ]
    loop = np.array([(-0.05, 0.05), (-0.5, -0.05), (-0.6, 0.2), (-0.5, 0.5), (-0.05, 0.5)])
    path = np.stack([loop[:, 0], 0 * loop[:, 0], loop[:, 1] * high / 0.5], 1)
    grip = join(tube(path, 0.08), box(0.12, 0.14, high).move(-0.02))
    parts = [
        part("handle", main, grip, adjective="closed"),
        part("blade", metal, blade, adjective="flat"),
        part("tooth", metal, tooth, adjective="small"),
    ]
    return Design(parts, "none")


def shovel(rng: np.random.Generator) -> Design:
    main, metal = colours(rng, 2)
    shaft, wide, deep = rng.uniform(1.3, 1.9), rng.uniform(0.3, 0.4), rng.uniform(0.55, 0.8)
    pointed = rng.random() < 0.5
    low = [(0, -0.2 * deep), (wide, 0.2 * deep)] if pointed else [(wide, 0)]
    half = [*low, (wide, 0.9 * deep), (0.3 * wide, deep)]
    outline = [(-x, z) for x, z in half[::-1] if x] + half
    blade = plate(outline, 0.04)
    vertices = blade.vertices.copy()
    vertices[:, 1] += 0.9 * vertices[:, 0] ** 2  # hollow, as seen from the front
    top = deep + shaft
    grip = join(
        rod((-0.18, 0, top + 0.22), (0.18, 0, top + 0.22), 0.045),
        *pair(rod((0.02, 0, top - 0.02), (0.16, 0, top + 0.22), 0.035)),
    )
    parts = [
        part(
            "shaft",
            main,
            cylinder(0.05, shaft + 0.1).move(z=deep - 0.1),
            adjective=size_word(shaft, 1.5, 1.7, ("short", "long")),
        ),
        part(
            "blade",
            metal,
            type(blade)(vertices, blade.faces),
            adjective="pointed" if pointed else "square",
        ),
        part("handle", main, grip, adjective="small"),
    ]
    return Design(parts)


def umbrella(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    ribs, radius, rise = int(rng.integers(6, 11)), rng.uniform(0.8, 1.1), rng.uniform(0.35, 0.6)
    pole = rng.uniform(1.2, 1.6)
    angles = np.linspace(0, np.pi / 2, 9)
    dome = lathe([(radius * np.sin(a), pole + rise * np.cos(a) - rise) for a in angles], ribs)
    spokes = [rod((0, 0, pole), (radius, 0, pole - rise), 0.02)]
    hook = arc(0.14, 180, 360, 12)
    grip = tube(np.stack([hook[:, 0] + 0.14, 0 * hook[:, 0], hook[:, 1]], 1), 0.04)
    parts = [
        part(
            "canopy", main, dome, adjective=size_word(rise / radius, 0.42, 0.52, ("flat", "domed"))
        ),
        part("pole", other, cylinder(0.03, pole + 0.12), adjective="thin"),
        part("handle", other, grip, adjective="curved"),
        part("rib", other, around(spokes[0], ribs), adjective="thin"),
    ]
    return Design(parts, "none")


def scissors(rng: np.random.Generator) -> Design:
    main, metal = colours(rng, 2)
    blade, spread, loop = rng.uniform(0.8, 1.2), rng.uniform(8, 22), rng.uniform(0.19, 0.26)
    edge = plate([(-0.08, 0), (0.07, 0), (0.06, 0.5 * blade), (-0.08, blade)], 0.04)
    arm = beam((0, 0, 0.05), (0.04, 0, -0.45), 0.1, 0.05)
    hoop = (
        ring(1, 0.22).scale(loop, 1.3 * loop, 0.05 / 0.22).turn("x", 90).move(0.06, 0, -0.45 - loop)
    )
    parts = [
        part(
            "blade",
            metal,
            [edge.turn("y", -spread), edge.mirror().turn("y", spread)],
            adjective="long" if blade > 1 else "short",
        ),
        part("handle", main, pair(join(arm, hoop).turn("y", -spread)), adjective="round"),
        part("pin", main, cylinder(0.07, 0.14).turn("x", 90).move(y=0.07), adjective="small"),
    ]
    return Design(parts)
