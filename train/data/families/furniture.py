"""Furniture: chair, table, stool, bench, bed, sofa, bookshelf, desk, wardrobe, lamp, ladder."""

from __future__ import annotations

import numpy as np

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    Mesh,
    around,
    ball,
    beam,
    box,
    corners,
    cylinder,
    join,
    lathe,
    pair,
    rod,
)


def leg(rng: np.random.Generator, height: float) -> Mesh:
    """A leg under the origin, square, round or tapered, standing on z = 0."""
    thick, kind = rng.uniform(0.04, 0.07), rng.integers(3)
    if kind == 0:
        return box(1.8 * thick, 1.8 * thick, height)
    return cylinder(thick, height) if kind == 1 else cylinder(0.6 * thick, height, 1.3 * thick)


def chair(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    width, depth = rng.uniform(0.85, 1.15, 2)
    seat, back, slats = rng.uniform(0.7, 1.05), rng.uniform(0.65, 1.35), int(rng.integers(0, 5))
    behind = depth / 2 - 0.05
    word = size_word(back, 0.85, 1.1, ("low", "tall"))
    parts = [
        part("seat", main, box(width, depth, 0.1).move(z=seat)),
        part("leg", other, corners(leg(rng, seat), width / 2 - 0.08, depth / 2 - 0.08)),
    ]
    if slats < 2:
        panel = box(width, 0.09, back).move(y=behind, z=seat)
        parts.append(part("back", main, panel, adjective=word))
    else:
        posts = pair(box(0.09, 0.09, back).move(width / 2 - 0.05, behind, seat))
        high = 0.5 * back / slats
        bars = [
            box(width, 0.06, high).move(y=behind, z=seat + back * share - high)
            for share in np.linspace(0.4, 1, slats)
        ]
        parts += [part("slat", main, bars), part("post", other, posts, adjective=word)]
    if rng.random() < 0.35:
        rest = box(0.09, depth - 0.1, 0.08).move(width / 2, 0, seat + 0.38)
        support = box(0.07, 0.07, 0.3).move(width / 2, -depth / 2 + 0.12, seat + 0.09)
        parts.append(part("arm", other, pair(join(rest, support))))
    return Design(parts)


def table(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height = rng.uniform(0.6, 1.1)
    kind = rng.choice(["square", "long", "round", "pedestal"])
    if kind in ("round", "pedestal"):
        radius = rng.uniform(0.65, 1.05)
        top = part("top", main, cylinder(radius, 0.09, sides=36).move(z=height), adjective="round")
        if kind == "round":
            count = int(rng.integers(3, 7))
            legs = around(leg(rng, height).move(0.72 * radius), count)
            return Design([top, part("leg", other, legs)], "turn", count)
        foot = part("foot", other, cylinder(0.5 * radius, 0.08, 0.4 * radius), adjective="round")
        post = part("post", other, cylinder(0.09, height), adjective="central")
        return Design([top, post, foot], "round")
    width = rng.uniform(0.9, 1.2) if kind == "square" else rng.uniform(1.5, 2.3)
    depth = width if kind == "square" else rng.uniform(0.8, 1.0)
    top = part("top", main, box(width, depth, 0.09).move(z=height), adjective=str(kind))
    four = part("leg", other, corners(leg(rng, height), width / 2 - 0.09, depth / 2 - 0.09))
    return Design([top, four], "turn", 4 if kind == "square" else 2)


def stool(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, radius = rng.uniform(0.8, 1.7), rng.uniform(0.38, 0.5)
    count, spread = int(rng.integers(3, 6)), rng.uniform(1.0, 1.35)
    base = (spread * radius, 0, 0)
    legs = around(rod(base, (0.65 * radius, 0, height), 0.05), count)
    parts = [
        part("seat", main, cylinder(radius, 0.12).move(z=height), adjective="round"),
        part("leg", other, legs, adjective=size_word(height, 1.0, 1.4, ("short", "long"))),
    ]
    if rng.random() < 0.5:
        at = 0.4 * spread * radius + 0.6 * 0.65 * radius
        hoop = lathe([(at, 0), (at + 0.05, 0), (at + 0.05, 0.05), (at, 0.05), (at, 0)])
        parts.append(part("ring", other, hoop.move(z=0.55 * height)))
    return Design(parts, "turn", count)


def bench(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    length, depth, seat = rng.uniform(1.9, 2.8), rng.uniform(0.5, 0.7), rng.uniform(0.45, 0.6)
    boards, back = int(rng.integers(2, 5)), rng.random() < 0.75
    wide = depth / boards
    places = (np.arange(boards) + 0.5) * wide - depth / 2
    planks = [box(length, 0.8 * wide, 0.06).move(y=y, z=seat) for y in places]
    supports = int(rng.integers(2, 4))
    frame = join(
        box(0.09, 0.09, seat).move(y=-depth / 2 + 0.06),
        box(0.09, 0.09, seat + 0.75 * back).move(y=depth / 2),
        box(0.09, depth, 0.08).move(z=seat - 0.08),
    )
    at = np.linspace(-0.42, 0.42, supports) * length
    parts = [part("board", main, planks), part("support", other, [frame.move(x) for x in at])]
    if back:
        bars = [
            box(length, 0.05, 0.17).move(y=depth / 2 - 0.07, z=seat + z)
            for z in np.linspace(0.22, 0.58, int(rng.integers(2, 4)))
        ]
        parts.append(part("back bar", main, bars, adjective="long"))
    return Design(parts)


def bed(rng: np.random.Generator) -> Design:
    main, frame, soft = colours(rng, 3)
    double = rng.random() < 0.5
    width, length = rng.uniform(1.4, 1.8) if double else rng.uniform(0.85, 1.0), 2.1
    low, head = rng.uniform(0.2, 0.4), rng.uniform(0.7, 1.3)
    board = box(width, 0.09, head).move(y=length / 2)
    parts = [
        part("mattress", main, box(width, length, 0.25).move(z=low + 0.1)),
        part("frame", frame, box(width + 0.08, length + 0.08, 0.12).move(z=low)),
        part("headboard", frame, board, adjective=size_word(head, 0.85, 1.1, ("low", "tall"))),
        part("leg", frame, corners(leg(rng, low), width / 2 - 0.05, length / 2 - 0.05)),
    ]
    pillow = ball(0.32, 0.19, 0.1).move(y=length / 2 - 0.3, z=low + 0.42)
    pillows = pair(pillow.move(0.25 * width)) if double else [pillow]
    parts.append(part("pillow", soft, pillows))
    if rng.random() < 0.5:
        end = box(width, 0.09, 0.6 * head).move(y=-length / 2)
        parts.append(part("footboard", frame, end, adjective="low"))
    return Design(parts)


def sofa(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    seats = int(rng.integers(1, 4))
    width, depth, back = 0.62 * seats + 0.1, rng.uniform(0.75, 0.95), rng.uniform(0.75, 1.05)
    places = (np.arange(seats) - (seats - 1) / 2) * 0.62
    cushions = [box(0.58, depth - 0.2, 0.17).move(x, -0.08, 0.4) for x in places]
    arm = join(
        box(0.22, depth, 0.5).move(z=0.12),
        cylinder(0.13, depth).move(z=-depth / 2).turn("x", 90).move(z=0.64),
    )
    parts = [
        part("base", main, box(width, depth, 0.28).move(z=0.12)),
        part("back", main, box(width, 0.22, back - 0.12).move(y=depth / 2 - 0.1, z=0.12)),
        part("arm", main, pair(arm.move(width / 2 + 0.1)), adjective="thick"),
        part("cushion", other, cushions),
        part("foot", other, corners(cylinder(0.05, 0.12), width / 2, depth / 2 - 0.1)),
    ]
    return Design(parts)


def bookshelf(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    width, depth, height = rng.uniform(0.8, 1.3), rng.uniform(0.3, 0.4), rng.uniform(1.4, 2.2)
    levels = int(rng.integers(3, 7))
    heights = np.linspace(0.05, height - 0.05, levels)
    boards = [box(width, depth, 0.05).move(z=z) for z in heights]
    parts = [
        part("shelf", main, boards),
        part("side", main, pair(box(0.06, depth, height).move(width / 2)), adjective="tall"),
        part("back", main, box(width, 0.03, height).move(y=depth / 2)),
    ]
    gap, books = 0.8 * (heights[1] - heights[0] - 0.05), []
    for z in heights[:-1]:
        start = rng.uniform(-width / 2 + 0.1, width / 2 - 0.5)
        for place in range(int(rng.integers(0, 5))):
            book = box(0.085, 0.75 * depth, gap * rng.uniform(0.75, 1))
            books.append(book.move(start + 0.1 * place, -0.03, z + 0.05))
    if books:
        parts.append(part("book", other, books))
    return Design(parts, "none" if books else "mirror")


def desk(rng: np.random.Generator) -> Design:
    main, other, knob = colours(rng, 3)
    width, depth, height = rng.uniform(1.5, 2.1), rng.uniform(0.7, 0.9), rng.uniform(0.7, 0.85)
    drawers, both = int(rng.integers(2, 5)), rng.random() < 0.35
    chest = box(0.45, depth - 0.1, height - 0.08).move(-width / 2 + 0.27, 0, 0.08)
    sides = [chest, chest.mirror()] if both else [chest]
    high = (height - 0.16) / drawers
    fronts, knobs = [], []
    for side in (1, -1) if both else (1,):
        for level in range(drawers):
            at = (-side * (width / 2 - 0.27), -depth / 2 + 0.04, 0.12 + level * high)
            fronts.append(box(0.38, 0.04, 0.82 * high).move(*at))
            knobs.append(ball(0.04).move(at[0], at[1] - 0.05, at[2] + 0.41 * high))
    parts = [
        part("top", main, box(width, depth, 0.08).move(z=height), adjective="long"),
        part("cabinet", main, sides),
        part("drawer", other, fronts),
        part("knob", knob, knobs, adjective="small"),
    ]
    if not both:
        stand = leg(rng, height)
        ends = [stand.move(width / 2 - 0.09, y) for y in (0.09 - depth / 2, depth / 2 - 0.09)]
        parts.append(part("leg", main, ends))
    return Design(parts, "mirror" if both else "none")


def wardrobe(rng: np.random.Generator) -> Design:
    main, front, metal = colours(rng, 3)
    doors, height, depth = int(rng.integers(2, 5)), rng.uniform(1.8, 2.2), rng.uniform(0.5, 0.65)
    width = 0.5 * doors
    places = (np.arange(doors) - (doors - 1) / 2) * 0.5
    panels = [box(0.44, 0.06, height - 0.3).move(x, -depth / 2 - 0.02, 0.2) for x in places]
    sides = np.where(np.arange(doors) % 2 == 0, 0.16, -0.16)
    handles = [
        rod((x, -depth / 2 - 0.1, 1.0), (x, -depth / 2 - 0.1, 1.35), 0.03) for x in places + sides
    ]
    parts = [
        part("body", main, box(width, depth, height).move(z=0.1)),
        part("door", front, panels, adjective="tall"),
        part("handle", metal, handles),
        part("foot", metal, corners(box(0.1, 0.1, 0.1), width / 2 - 0.07, depth / 2 - 0.07)),
    ]
    if rng.random() < 0.5:
        crown = box(width + 0.16, depth + 0.16, 0.1).move(z=height + 0.1)
        parts.append(part("crown", main, crown, adjective="wide"))
    return Design(parts, "none" if doors % 2 else "mirror")


def lamp(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, low, high = rng.uniform(0.8, 1.9), rng.uniform(0.38, 0.6), rng.uniform(0.15, 0.32)
    tall, base = rng.uniform(0.4, 0.6), rng.uniform(0.25, 0.4)
    shade = lathe([(low, 0), (high, tall), (high - 0.02, tall), (low - 0.02, 0), (low, 0)], 32)
    word = size_word(high / low, 0.4, 0.65, ("pointed", "wide"))
    parts = [
        part("shade", main, shade.move(z=height), adjective=word),
        part("pole", other, cylinder(0.04, height + 0.2), adjective="thin"),
        part("base", other, cylinder(base, 0.08, 0.8 * base), adjective="round"),
        part("bulb", "yellow", ball(0.11).move(z=height + 0.2), adjective="small"),
    ]
    return Design(parts, "round")


def ladder(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, width, rungs = rng.uniform(1.8, 2.8), rng.uniform(0.5, 0.7), int(rng.integers(4, 10))
    narrow, lean = rng.uniform(0.6, 1), rng.uniform(0, 0.5)
    foot, head = np.array([width / 2, 0, 0]), np.array([narrow * width / 2, lean, height])
    steps = []
    for share in (np.arange(rungs) + 0.5) / rungs:
        end = foot + share * (head - foot)
        steps.append(rod(end * (-1, 1, 1), end, 0.035))
    rail = beam(foot, head, 0.07, 0.1)
    parts = [
        part("rail", main, pair(rail), adjective="long"),
        part("rung", other, steps),
    ]
    return Design(parts)
