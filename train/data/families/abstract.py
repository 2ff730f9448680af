"""Abstract solids: cube, sphere, cone, torus, cross, spring, star, pyramid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    around,
    ball,
    box,
    corners,
    cylinder,
    lathe,
    plate,
    ring,
    tube,
)


def cube(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    block, kind = box(1, 1, 1), int(rng.integers(3))
    parts = [part("block", main, block, adjective="square")]
    if kind == 0:
        knob = ball(rng.uniform(0.09, 0.17))
        knobs = [*corners(knob, 0.5, 0.5), *[each.move(z=1) for each in corners(knob, 0.5, 0.5)]]
        parts.append(part("corner ball", other, knobs, adjective="round"))
    elif kind == 1:
        wide = rng.uniform(0.15, 0.4)
        band = box(1.03, 1.03, wide).move(z=0.5 - wide / 2)
        word = size_word(wide, 0.22, 0.32, ("narrow", "wide"))
        parts.append(part("band", other, band, adjective=word))
    else:
        size = rng.uniform(0.3, 0.7)
        tile = box(size, 0.06, size).move(y=-0.5, z=0.5 - size / 2)
        word = size_word(size, 0.42, 0.58, ("small", "large"))
        parts.append(part("side tile", other, around(tile, 4), adjective=word))
    return Design(parts, "turn", 4)


def sphere(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    bands = int(rng.integers(1, 4))
    hoops = []
    for height in np.linspace(-0.5, 0.5, bands + 2)[1:-1] * 1.3:
        hoops.append(ring(np.sqrt(1 - height**2), rng.uniform(0.03, 0.06)).move(z=height))
    parts = [
        part("ball", main, ball(1), adjective="smooth"),
        part("ring", other, hoops, adjective="level"),
    ]
    return Design(parts, "round")


def cone(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, radius, bands = rng.uniform(1.1, 2.2), rng.uniform(0.45, 0.75), int(rng.integers(1, 4))
    stripes = []
    for share in (np.arange(bands) + 0.7) / (bands + 0.7):
        low, high = share * 0.9, share * 0.9 + 0.09
        stripe = cylinder(radius * (1 - low) + 0.012, 0.09 * height, radius * (1 - high) + 0.012)
        stripes.append(stripe.move(z=low * height))
    word = size_word(height / radius, 2.3, 3.2, ("wide", "sharp"))
    body = cylinder(radius, height, 0.01, sides=36)
    parts = [part("body", main, body, adjective=word), part("stripe", other, stripes)]
    if rng.random() < 0.5:
        plinth = box(2.4 * radius, 2.4 * radius, 0.08).move(z=-0.08)
        parts.append(part("base", other, plinth, adjective="square"))
        return Design(parts, "turn", 4)
    return Design(parts, "round")


def torus(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    thick, beads = rng.uniform(0.14, 0.36), int(rng.integers(3, 9))
    bead = ring(thick + 0.02, 0.05).turn("x", 90).move(0.8)
    parts = [
        part(
            "ring", main, ring(0.8, thick), adjective=size_word(thick, 0.2, 0.29, ("thin", "thick"))
        ),
        part("band", other, around(bead, beads), adjective="small"),
    ]
    return Design(parts, "turn", beads)


def cross(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    thick, arm = rng.uniform(0.16, 0.3), rng.uniform(0.8, 1.1)
    solid = rng.random() < 0.5
    bars = [box(2 * arm, thick, thick).move(z=-thick / 2), box(thick, thick, 2 * arm).move(z=-arm)]
    if solid:
        bars.append(box(thick, 2 * arm, thick).move(z=-thick / 2))
    tip = box(1.6 * thick, 1.6 * thick, 0.6 * thick)
    ends = [
        tip.turn("y", angle).move(*at)
        for angle, at in (
            (90, (arm, 0, 0)),
            (-90, (-arm, 0, 0)),
            (0, (0, 0, arm)),
            (180, (0, 0, -arm)),
        )
    ]
    if solid:
        ends += [tip.turn("x", 90).move(y=-arm), tip.turn("x", -90).move(y=arm)]
    parts = [
        part("bar", main, bars, adjective=size_word(thick, 0.2, 0.26, ("thin", "thick"))),
        part("end block", other, ends, adjective="square"),
    ]
    return Design(parts, "turn", 4 if solid else 2)


def spring(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    turns, height = int(rng.integers(3, 9)), rng.uniform(1.0, 2.2)
    radius, thick = rng.uniform(0.4, 0.6), rng.uniform(0.04, 0.075)
    angles = np.linspace(0, 2 * np.pi * turns, 16 * turns)
    path = np.stack(
        [radius * np.cos(angles), radius * np.sin(angles), height * angles / angles[-1]], axis=1
    )
    coils = [path[16 * k : 16 * k + 17] for k in range(turns)]
    plate_at = cylinder(radius + 0.1, 0.07)
    parts = [
        part("coil", main, [tube(coil, thick) for coil in coils]),
        part(
            "end plate",
            other,
            plate_at.move(z=-0.12),
            plate_at.move(z=height + 0.05),
            adjective="round",
        ),
    ]
    return Design(parts, "none")


def star(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    tips, inner, depth = int(rng.integers(4, 9)), rng.uniform(0.38, 0.6), rng.uniform(0.2, 0.5)
    angles = np.pi / 2 + np.pi * np.arange(2 * tips) / tips
    radii = np.where(np.arange(2 * tips) % 2, inner, 1)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    arms = []
    for at in range(0, 2 * tips, 2):
        arms.append(plate([(0, 0), points[at - 1], points[at], points[at + 1]], depth))
    disc = cylinder(0.7 * inner, depth + 0.14, sides=24).turn("x", 90).move(y=depth / 2 + 0.07)
    parts = [
        part("point", main, arms, adjective=size_word(inner, 0.44, 0.53, ("sharp", "wide"))),
        part("disc", other, disc, adjective="round"),
    ]
    return Design(parts)


def pyramid(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    steps, wide, height = int(rng.integers(3, 7)), rng.uniform(1.6, 2.2), rng.uniform(0.9, 1.5)
    high = height / steps
    sizes = wide * (1 - 0.85 * np.arange(steps + 1) / steps) / np.sqrt(2)
    layers = []  # each a wall and a tread, so that no points are spent inside
    for level, (size, above) in enumerate(pairwise(sizes)):
        low, tread = high * level, high * (level + 1)
        layers.append(lathe([(size, low), (size, tread), (above, tread)], 4).turn("z", 45))
    top = cylinder(0.12 * wide, 0.3, 0.01, sides=4).turn("z", 45).move(z=height)
    parts = [
        part("step", main, layers, adjective="square"),
        part("tip", other, top, adjective="pointed"),
    ]
    return Design(parts, "turn", 4)
