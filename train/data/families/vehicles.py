"""Vehicles: car, truck, bus, train, airplane, sailboat, bicycle, rocket, helicopter, tank.

All but the rocket head for -y.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    Mesh,
    arc,
    around,
    ball,
    box,
    corners,
    cylinder,
    join,
    lathe,
    pair,
    plate,
    ring,
    rod,
    tube,
    wheel,
)


def side(outline: ArrayLike, width: float) -> Mesh:
    """An outline of (y, z) points, as seen from the side, given width along x."""
    return plate(outline, width).turn("z", 90)


def wing(root: float, tip: float, span: float, sweep: float, thick: float) -> Mesh:
    """A level wing to the right of the origin: chords along y, swept back by `sweep`."""
    outline = [(0, -root / 2), (span, sweep - tip / 2), (span, sweep + tip / 2), (0, root / 2)]
    return plate(outline, thick).turn("x", -90).scale(1, -1, 1)


def car(rng: np.random.Generator) -> Design:
    main, glass, tyre = colours(rng, 3)
    length, width, wheels = rng.uniform(1.9, 2.4), rng.uniform(0.85, 1.0), rng.uniform(0.2, 0.26)
    low, high, roof = 0.16, rng.uniform(0.5, 0.58), rng.uniform(0.34, 0.48)
    front, back = rng.uniform(-0.25, -0.1) * length, rng.uniform(0.25, 0.48) * length
    nose, tail = -length / 2, length / 2
    body = side(
        [(nose, low), (tail, low), (tail, high), (front, high), (nose + 0.1, high - 0.1)], width
    )
    cabin = [(front - 0.25, high), (back, high), (back - 0.15, high + roof), (front, high + roof)]
    top = box(width - 0.08, back - front - 0.1, 0.05).move(y=(back + front - 0.15) / 2)
    lights = box(0.18, 0.06, 0.1).move(width / 2 - 0.15, nose + 0.01, high - 0.22)
    turning = wheel(wheels, 0.16).move(z=wheels)
    parts = [
        part("body", main, body, adjective=size_word(length, 2.05, 2.25, ("short", "long"))),
        part("cabin", glass, side(cabin, width - 0.1)),
        part("roof", main, top.move(z=high + roof)),
        part("wheel", tyre, corners(turning, width / 2, 0.3 * length), adjective="round"),
        part("headlight", "yellow", pair(lights)),
    ]
    return Design(parts)


def truck(rng: np.random.Generator) -> Design:
    main, load, tyre = colours(rng, 3)
    axles, length = int(rng.integers(2, 5)), rng.uniform(1.7, 2.6)
    width, wheels, kind = 0.9, 0.22, str(rng.choice(["box", "tank", "flat"]))
    cab = join(
        side([(-0.7, 0.25), (0, 0.25), (0, 1.25), (-0.5, 1.25), (-0.7, 0.75)], width),
        box(width, 0.3, 0.4).move(y=-0.8, z=0.25),
    )
    middle = 0.1 + length / 2
    if kind == "box":
        cargo = part("container", load, box(width + 0.06, length, 1.15).move(y=middle, z=0.45))
    elif kind == "tank":
        drum = cylinder(0.46, length).move(z=-length / 2).turn("x", 90).move(y=middle, z=0.9)
        cargo = part("tank", load, drum, adjective="round")
    else:
        rails = [box(0.06, length, 0.28).move(x, middle, 0.5) for x in (-0.42, 0.42)]
        ends = [box(0.88, 0.06, 0.28).move(0, y, 0.5) for y in (0.12, 0.08 + length)]
        cargo = part(
            "flat bed", load, join(box(0.9, length, 0.1).move(y=middle, z=0.42), *rails, *ends)
        )
    places = [-0.55, *(length + 0.1 - 0.3 - 0.5 * np.arange(axles - 1))]
    turning = wheel(wheels, 0.18).move(width / 2 - 0.06, 0, wheels)
    parts = [
        part("cab", main, cab),
        cargo,
        part("wheel", tyre, *[pair(turning.move(y=y)) for y in places]),
        part("frame", tyre, box(0.5, length + 0.7, 0.14).move(y=middle - 0.3, z=0.28)),
        part("window", "white", box(0.75, 0.05, 0.34).turn("x", 22).move(y=-0.62, z=0.82)),
    ]
    return Design(parts)


def bus(rng: np.random.Generator) -> Design:
    main, glass, tyre = colours(rng, 3)
    decks, length = int(rng.integers(1, 3)), rng.uniform(2.3, 3.2)
    width, height, panes = 0.85, 0.25 + 0.7 * decks, int(rng.integers(4, 8))
    windows = []
    for deck in range(decks):
        for y in (np.arange(panes) + 0.5) * (length - 0.3) / panes - length / 2 + 0.15:
            pane = box(0.05, 0.7 * (length - 0.3) / panes, 0.33)
            windows += pair(pane.move(width / 2, y, 0.58 + 0.68 * deck))
    fronts = [box(0.7, 0.05, 0.42).move(0, -length / 2, 0.5 + 0.68 * deck) for deck in range(decks)]
    turning = wheel(0.21, 0.16).move(z=0.2)
    parts = [
        part("body", main, box(width, length, height).move(z=0.17), adjective="long"),
        part("window", glass, windows, adjective="square"),
        part("wheel", tyre, corners(turning, width / 2 - 0.04, 0.32 * length)),
        part("front window", glass, fronts, adjective="wide"),
    ]
    return Design(parts)


def train(rng: np.random.Generator) -> Design:
    main, other, dark = colours(rng, 3)
    wagons, drivers = int(rng.integers(1, 4)), int(rng.integers(2, 5))
    boiler, long = rng.uniform(0.26, 0.34), rng.uniform(0.9, 1.2)
    drum = cylinder(boiler, long).turn("x", 90).move(z=0.3 + boiler)
    chimney = cylinder(0.08, 0.36, 0.13).move(y=-long + 0.18, z=0.3 + 1.8 * boiler)
    cab = join(box(0.68, 0.45, 0.8).move(y=0.2, z=0.3), box(0.78, 0.6, 0.07).move(y=0.2, z=1.1))
    turning = wheel(0.17, 0.08)
    places = np.linspace(-long + 0.15, 0.25, drivers + 1)
    cars, at = [], 0.55
    for _ in range(wagons):
        body = join(
            box(0.66, 0.85, 0.55).move(y=at + 0.45, z=0.28),
            box(0.1, 0.12, 0.1).move(y=at - 0.03, z=0.3),
        )
        cars.append(body)
        places = np.append(places, [at + 0.2, at + 0.7])
        at += 0.98
    parts = [
        part("boiler", main, drum, adjective="round"),
        part("wagon", other, cars),
        part("chimney", dark, chimney, adjective=size_word(boiler, 0.28, 0.32, ("tall", "short"))),
        part("cab", main, cab),
        part("wheel", dark, *[pair(turning.move(0.28, y, 0.17)) for y in places]),
    ]
    return Design(parts)


def airplane(rng: np.random.Generator) -> Design:
    main, other, third = colours(rng, 3)
    radius, length = rng.uniform(0.14, 0.2), rng.uniform(2.0, 2.6)
    span, sweep, engines = rng.uniform(0.9, 1.4), rng.uniform(0.05, 0.6), int(rng.integers(0, 3))
    shares = [(0, 0), (0.55, 0.03), (0.9, 0.1), (1, 0.2), (1, 0.65), (0.6, 0.88), (0.15, 1)]
    body = lathe([(r * radius, z * length) for r, z in shares]).turn("x", -90).move(y=-length / 2)
    right = wing(0.5, rng.uniform(0.15, 0.3), span, sweep, 0.05)
    tail = wing(0.28, 0.16, 0.36 * span, 0.16, 0.04).move(y=0.43 * length, z=0.06)
    y = 0.46 * length
    fin = side([(y - 0.2, 0.05), (y + 0.12, 0.05), (y + 0.22, 0.5), (y + 0.05, 0.5)], 0.04)
    parts = [
        part("body", main, body, adjective="long"),
        part(
            "wing",
            other,
            pair(right.move(y=-0.05)),
            adjective="swept" if sweep > 0.3 else "straight",
        ),
        part("tail wing", other, pair(tail), adjective="small"),
        part("tail fin", third, fin),
    ]
    if engines:
        jet = cylinder(0.08, 0.35).turn("x", 90).move(z=-0.1)
        pods = [jet.move(share * span, sweep * share) for share in (0.32, 0.62)[:engines]]
        parts.append(part("engine", third, *[pair(pod) for pod in pods]))
    else:
        blades = plate([(-0.35, -0.04), (0.35, -0.04), (0.35, 0.04), (-0.35, 0.04)], 0.03)
        parts.append(part("propeller", third, blades.move(y=-length / 2 - 0.03)))
    return Design(parts)


def hull(width: float, length: float, depth: float) -> Mesh:
    """The lower half of an ellipsoid with a deck at z = 0, drawn out to a bow at -y."""
    whole = ball(width / 2, length / 2, depth)
    vertices = whole.vertices.copy()
    vertices[:, 2] = np.minimum(vertices[:, 2], 0)
    ahead = np.clip(-vertices[:, 1] / (length / 2), 0, 1)
    vertices[:, 0] *= 1 - 0.35 * ahead**2
    return Mesh(vertices, whole.faces)


def sailboat(rng: np.random.Generator) -> Design:
    main, cloth, wood = colours(rng, 3)
    length, mast = rng.uniform(1.6, 2.2), rng.uniform(1.7, 2.4)
    count, width = int(rng.integers(1, 4)), rng.uniform(0.5, 0.7)
    foot = -0.1 * length
    end = 0.42 * length
    sails = [side([(foot + 0.05, 0.25), (end, 0.25), (foot + 0.05, mast - 0.05)], 0.03)]
    if count > 1:
        sails.append(
            side([(foot - 0.05, 0.2), (-0.47 * length, 0.1), (foot - 0.05, 0.8 * mast)], 0.03)
        )
    if count > 2:
        sails.append(
            side([(foot - 0.2, 0.9 * mast), (-0.7 * length, 0.1), (-0.52 * length, 0.1)], 0.03)
        )
    parts = [
        part(
            "hull",
            main,
            hull(width, length, 0.32),
            adjective=size_word(width / length, 0.29, 0.36, ("narrow", "wide")),
        ),
        part("sail", cloth, sails, adjective="tall" if mast > 2 else ""),
        part("mast", wood, rod((0, foot, -0.05), (0, foot, mast), 0.03), adjective="thin"),
        part("boom", wood, rod((0, foot, 0.2), (0, end + 0.03, 0.2), 0.025)),
    ]
    return Design(parts)


def bicycle(rng: np.random.Generator) -> Design:
    main, tyre, seat = colours(rng, 3)
    radius, base, spokes = rng.uniform(0.36, 0.44), rng.uniform(1.1, 1.3), int(rng.integers(4, 9))
    back, front = np.array([0, base / 2, radius]), np.array([0, -base / 2, radius])
    crank = np.array([0, 0.1, radius - 0.05])
    saddle = np.array([0, 0.25, radius + rng.uniform(0.5, 0.65)])
    head = np.array([0, -base / 2 + 0.16, radius + 0.55])
    lines = [
        (back, crank),
        (back, saddle),
        (crank, saddle),
        (crank, head),
        (saddle, head),
        (front, head),
    ]
    frame = join(*[rod(first, last, 0.03) for first, last in lines])
    hoop = ring(radius, 0.035).turn("y", 90)
    spoke = [
        rod((0, 0, 0), (0, radius * np.sin(a), radius * np.cos(a)), 0.01)
        for a in 2 * np.pi * np.arange(spokes) / spokes
    ]
    turning = join(hoop, *spoke)
    bar = join(
        rod((-0.28, head[1], head[2] + 0.1), (0.28, head[1], head[2] + 0.1), 0.03),
        rod(head, head + np.array((0, 0, 0.1)), 0.03),
        *pair(rod((0.28, head[1], head[2] + 0.1), (0.28, head[1] + 0.18, head[2] + 0.08), 0.03)),
    )
    parts = [
        part("frame", main, frame, adjective="thin"),
        part("wheel", tyre, turning.move(*back), turning.move(*front), adjective="thin"),
        part("saddle", seat, ball(0.09, 0.17, 0.05).move(*saddle)),
        part("handlebar", tyre, bar),
        part(
            "pedal",
            seat,
            pair(box(0.14, 0.16, 0.04).move(0.15, 0.1, radius - 0.07)),
        ),
    ]
    return Design(parts)


def rocket(rng: np.random.Generator) -> Design:
    main, other, third = colours(rng, 3)
    height, radius, fins = rng.uniform(1.4, 2.6), rng.uniform(0.24, 0.36), int(rng.integers(3, 6))
    nose, low = rng.uniform(0.45, 0.8), 0.3
    body = lathe(
        [(0, low), (0.8 * radius, low), (radius, low + 0.3 * height), (radius, low + height)]
    )
    tip = [
        (radius * np.cos(a), low + height + nose * np.sin(a)) for a in np.linspace(0, np.pi / 2, 8)
    ]
    blade = plate(
        [
            (0.6 * radius, 0.35),
            (radius, 0.95),
            (2.1 * radius, 0.3),
            (2.1 * radius, 0),
            (1.6 * radius, 0.15),
        ],
        0.05,
    )
    bell = lathe(
        [(0.35 * radius, low), (0.6 * radius, 0.08), (0.55 * radius, 0.08), (0.3 * radius, low)]
    )
    parts = [
        part("body", main, body, adjective=size_word(height / radius, 5, 8, ("thick", "slim"))),
        part("nose", other, lathe(tip), adjective=size_word(nose, 0.5, 0.65, ("blunt", "pointed"))),
        part("fin", other, around(blade, fins)),
        part("nozzle", third, bell),
    ]
    if rng.random() < 0.6:
        band = cylinder(radius + 0.02, 0.12).move(z=low + 0.7 * height)
        parts.append(part("band", third, band))
    return Design(parts, "turn", fins)


def helicopter(rng: np.random.Generator) -> Design:
    main, other, dark = colours(rng, 3)
    blades, span, tail = int(rng.integers(2, 6)), rng.uniform(1.0, 1.4), rng.uniform(1.0, 1.4)
    cabin = ball(0.36, 0.6, 0.4).move(z=0.6)
    boom = rod((0, 0.3, 0.7), (0, 0.4 + tail, 0.85), 0.13, 0.05)
    blade = box(span, 0.11, 0.03).move(span / 2, 0, 1.2)
    runner = tube([(0.36, -0.62, 0.12), (0.36, -0.5, 0.02), (0.36, 0.1, 0), (0.36, 0.5, 0)], 0.035)
    skid = join(runner, *[rod((0.18, y, 0.3), (0.36, y, 0), 0.03) for y in (-0.25, 0.25)])
    fin = side(
        [(0.3 + tail, 0.8), (0.5 + tail, 0.85), (0.62 + tail, 1.25), (0.48 + tail, 1.25)], 0.05
    )
    small = join(
        *[
            box(0.03, 0.05, 0.3).turn("x", angle).move(0.07, 0.42 + tail, 0.87)
            for angle in (0, 120, 240)
        ]
    )
    parts = [
        part("cabin", main, cabin, adjective="round"),
        part("blade", dark, around(blade, blades, float(rng.uniform(0, 360))), adjective="long"),
        part("tail boom", main, boom, adjective="thin"),
        part("skid", other, pair(skid)),
        part("tail fin", other, fin),
        part("tail rotor", dark, small, adjective="small"),
        part("mast", dark, cylinder(0.05, 0.3).move(z=0.93)),
    ]
    return Design(parts, "none")


def tank(rng: np.random.Generator) -> Design:
    main, other, dark = colours(rng, 3)
    length, gun, wheels = rng.uniform(1.7, 2.2), rng.uniform(0.9, 1.5), int(rng.integers(4, 8))
    half = length / 2
    outline = np.concatenate(
        [
            arc(0.24, 90, 270, 8) + np.array((-half, 0.24)),
            arc(0.24, -90, 90, 8) + np.array((half, 0.24)),
        ]
    )
    track = side(outline, 0.28).move(0.42)
    rolls = [wheel(0.15, 0.06).move(0.58, y, 0.2) for y in np.linspace(-half, half, wheels)]
    hull_ = side(
        [(-half - 0.1, 0.4), (-half + 0.2, 0.62), (half, 0.62), (half, 0.2), (-half, 0.2)], 0.62
    )
    turret = cylinder(0.42, 0.3, 0.32, sides=int(rng.choice([6, 8, 24]))).move(y=0.1, z=0.6)
    barrel = rod((0, -0.2, 0.77), (0, -0.25 - gun, 0.82), 0.055)
    parts = [
        part("hull", main, hull_, adjective="low"),
        part("turret", other, turret),
        part("gun", other, barrel, adjective=size_word(gun, 1.1, 1.3, ("short", "long"))),
        part("track", dark, pair(track), adjective="wide"),
        part("wheel", main, *[pair(each) for each in rolls], adjective="small"),
    ]
    return Design(parts)
