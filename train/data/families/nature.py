"""Plants: tree, pine tree, cactus, mushroom, flower. Toys: snowman, guitar, robot."""

from __future__ import annotations

import numpy as np

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    around,
    ball,
    box,
    cylinder,
    join,
    lathe,
    pair,
    ring,
    rod,
    tube,
)


def tree(rng: np.random.Generator) -> Design:
    leaf = colours(rng, 1, "green", "green", "orange", "yellow", "red", "pink")[0]
    bark = str(rng.choice(["brown", "brown", "grey", "black"]))
    trunk, crowns = rng.uniform(0.7, 1.2), int(rng.integers(1, 7))
    thick, size = rng.uniform(0.08, 0.14), rng.uniform(0.45, 0.6)
    if crowns == 1:
        masses = [
            ball(size * 1.2, size * 1.2, size * rng.uniform(1, 1.5)).move(z=trunk + 0.8 * size)
        ]
    else:
        masses = [ball(size).move(z=trunk + 1.2 * size)]
        for angle in 2 * np.pi * np.arange(crowns - 1) / (crowns - 1) + rng.uniform(0, 6):
            at = 0.55 * np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.8, 1.2)
            masses.append(
                ball(0.75 * size).move(at[0], at[1], trunk + rng.uniform(0.2, 0.7) * size)
            )
    boughs = [rod((0, 0, 0.6 * trunk), mass.vertices.mean(axis=0), 0.045) for mass in masses]
    parts = [
        part("crown" if crowns == 1 else "leaf ball", leaf, masses, adjective="round"),
        part(
            "trunk",
            bark,
            cylinder(thick, trunk + 0.1, 0.7 * thick),
            adjective=size_word(trunk, 0.85, 1.05, ("short", "tall")),
        ),
        part("branch", bark, boughs, adjective="thin"),
    ]
    return Design(parts, "round" if crowns == 1 else "none")


def pine_tree(rng: np.random.Generator) -> Design:
    leaf = colours(rng, 1, "green", "green", "turquoise", "white", "blue")[0]
    tiers, height, width = int(rng.integers(2, 6)), rng.uniform(1.3, 2.0), rng.uniform(0.5, 0.75)
    trunk, cones = rng.uniform(0.25, 0.45), []
    step = height / (tiers + 0.7)
    for tier in range(tiers):
        radius = width * (1 - 0.75 * tier / tiers)
        cones.append(cylinder(radius, 1.7 * step, 0.05 * radius).move(z=trunk + tier * step))
    parts = [
        part(
            "cone", leaf, cones, adjective=size_word(width / height, 0.33, 0.43, ("narrow", "wide"))
        ),
        part("trunk", "brown", cylinder(0.11, trunk + 0.1), adjective="short"),
    ]
    if rng.random() < 0.35:
        tip = trunk + (tiers - 1) * step + 1.7 * step
        parts.append(part("tip ball", "yellow", ball(0.1).move(z=tip), adjective="small"))
    return Design(parts, "round")


def cactus(rng: np.random.Generator) -> Design:
    main, pot = colours(rng, 2, "green", "green", "turquoise", "yellow")
    height, thick, arms = rng.uniform(1.2, 1.8), rng.uniform(0.17, 0.24), int(rng.integers(1, 4))
    steps = np.linspace(0, np.pi / 2, 7)
    dome = [(thick * np.cos(a), height + thick * np.sin(a)) for a in steps]
    branches = []
    for turn, share in zip((0, 180, 90), rng.uniform(0.35, 0.65, 3), strict=True):
        low, up, slim = share * height, rng.uniform(0.3, 0.55), 0.65 * thick
        bend = [
            (0, 0, low),
            (0.3, 0, low),
            (0.42, 0, low + 0.05),
            (0.46, 0, low + 0.16),
            (0.46, 0, low + up),
        ]
        arm = join(tube(bend, slim, sides=12), ball(slim).move(0.46, 0, low + up))
        branches.append(arm.turn("z", turn))
    parts = [
        part(
            "trunk",
            main,
            lathe([(thick, 0), *dome]),
            adjective=size_word(thick / height, 0.12, 0.16, ("slim", "thick")),
        ),
        part("arm", main, branches[:arms], adjective="curved"),
        part("pot", pot, cylinder(0.3, 0.35, 0.42).move(z=-0.3), adjective="round"),
    ]
    return Design(parts, "none")


def mushroom(rng: np.random.Generator) -> Design:
    main, stem, dot = colours(rng, 3)
    tall, cap, rise = rng.uniform(0.6, 1.1), rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.6)
    thick, spots = rng.uniform(0.14, 0.22), int(rng.integers(5, 12))
    angles = np.linspace(0, np.pi / 2, 10)
    dome = [(cap * np.cos(a), tall + rise * np.sin(a)) for a in angles]
    dots = []
    for turn, up in zip(rng.permutation(spots), rng.uniform(0.3, 1.2, spots), strict=True):
        place = (cap * np.cos(up), 0, tall + rise * np.sin(up))
        dots.append(ball(0.085, 0.085, 0.05).move(*place).turn("z", 360 * turn / spots))
    parts = [
        part(
            "cap",
            main,
            lathe([(thick, tall), *dome]),
            adjective=size_word(rise / cap, 0.6, 0.8, ("flat", "domed")),
        ),
        part(
            "stem",
            stem,
            lathe([(0, 0), (1.4 * thick, 0), (thick, 0.3 * tall), (thick, tall)]),
            adjective=size_word(tall, 0.75, 0.95, ("short", "tall")),
        ),
        part("spot", dot, dots, adjective="round"),
    ]
    return Design(parts, "none")


def flower(rng: np.random.Generator) -> Design:
    main, heart = colours(rng, 2)
    petals, height, size = int(rng.integers(5, 11)), rng.uniform(1.1, 1.7), rng.uniform(0.3, 0.45)
    narrow = min(0.19, 2.2 * size / petals)
    petal = ball(size / 2, narrow, 0.04).turn("y", -25).move(0.12 + size / 2, 0, 0.1)
    tip = rng.uniform(20, 70)
    bloom = [each.turn("x", tip).move(z=height) for each in around(petal, petals)]
    leaves = int(rng.integers(1, 4))
    blade = ball(0.26, 0.1, 0.025).turn("y", -35).move(0.24, 0, 0.12)
    parts = [
        part("petal", main, bloom, adjective="round"),
        part(
            "heart",
            heart,
            ball(0.15, 0.15, 0.09).move(z=0.05).turn("x", tip).move(z=height),
            adjective="round",
        ),
        part(
            "stem",
            "green",
            cylinder(0.035, height),
            adjective=size_word(height, 1.25, 1.5, ("short", "long")),
        ),
        part(
            "leaf",
            "green",
            [blade.turn("z", 180 * k + 20).move(z=0.2 + 0.2 * k) for k in range(leaves)],
        ),
    ]
    return Design(parts, "none")


def snowman(rng: np.random.Generator) -> Design:
    main = colours(rng, 1, "white", "white", "white", "turquoise", "pink")[0]
    hat, scarf = [name for name in colours(rng, 4) if name not in (main, "orange")][:2]
    balls, shrink = int(rng.integers(2, 4)), rng.uniform(0.68, 0.8)
    radius, z, spheres = 0.5, 0.0, []
    for _ in range(balls):
        spheres.append(ball(radius).move(z=z + radius))
        z, radius = z + 1.72 * radius, radius * shrink
    head = radius / shrink
    middle = z - 0.86 * 2 * head + head
    brim = z + 0.12 * head
    top = rng.uniform(0.28, 0.5)
    twig = rod((0.3, 0, 0.62 * z), (0.85, -0.1, 0.62 * z + 0.2), 0.03)
    buttons = [ball(0.045).move(0, -0.5, 0.5 + 0.16 * k) for k in range(int(rng.integers(2, 5)))]
    eye = ball(0.05).move(0.35 * head, -0.85 * head, middle + 0.3 * head)
    parts = [
        part("ball", main, spheres, adjective="round"),
        part(
            "hat",
            hat,
            join(
                cylinder(1.05 * head, 0.05).move(z=brim - 0.05),
                cylinder(0.65 * head, top).move(z=brim),
            ),
            adjective=size_word(top, 0.35, 0.42, ("low", "tall")),
        ),
        part(
            "nose",
            "orange",
            rod((0, -0.8 * head, middle), (0, -head - 0.35, middle), 0.08, 0.01),
            adjective="pointed",
        ),
        part("arm", "brown", pair(twig), adjective="thin"),
        part("eye", "black", pair(eye), adjective="small"),
        part("button", "black", buttons, adjective="small"),
        part("scarf", scarf, ring(0.75 * head, 0.08).move(z=middle - 0.75 * head)),
    ]
    return Design(parts)


def guitar(rng: np.random.Generator) -> Design:
    main, neck, third = colours(rng, 3)
    low, high, thick = rng.uniform(0.42, 0.52), rng.uniform(0.3, 0.38), rng.uniform(0.14, 0.24)
    long = rng.uniform(0.9, 1.2)
    lower = cylinder(low, thick, sides=32).turn("x", 90).move(y=thick / 2, z=low)
    at = low + 0.85 * (low + high)
    upper = cylinder(high, thick, sides=32).turn("x", 90).move(y=thick / 2, z=at)
    waist = box(1.45 * high, thick, 0.5 * (low + high)).move(z=low + 0.1)
    top, front = at + long, -thick / 2
    strings = int(rng.choice([4, 6]))
    wires = [
        rod((x, front - 0.05, 0.6 * low), (x, front - 0.05, top), 0.008)
        for x in np.linspace(-0.05, 0.05, strings)
    ]
    pegs = [
        ball(0.045).move(side * 0.16, 0, z)
        for z in top + 0.06 + 0.1 * np.arange(strings // 2)
        for side in (-1, 1)
    ]
    pegs = [peg.move(y=front) for peg in pegs]
    parts = [
        part(
            "body",
            main,
            join(lower, upper, waist),
            adjective=size_word(thick, 0.17, 0.21, ("thin", "deep")),
        ),
        part("neck", neck, box(0.15, 0.08, long + 0.3).move(y=front, z=at - 0.3), adjective="long"),
        part("head", neck, box(0.24, 0.07, 0.34).move(y=front, z=top)),
        part(
            "sound hole",
            third,
            cylinder(0.15, 0.02).turn("x", 90).move(y=front - 0.01, z=at - 0.45),
            adjective="round",
        ),
        part("peg", third, pegs, adjective="small"),
        part("string", third, wires, adjective="thin"),
        part("saddle", neck, box(0.36, 0.05, 0.07).move(y=front, z=0.6 * low)),
    ]
    return Design(parts)


def robot(rng: np.random.Generator) -> Design:
    main, other, light = colours(rng, 3)
    width, height, head = rng.uniform(0.6, 0.85), rng.uniform(0.7, 1.0), rng.uniform(0.38, 0.55)
    leg, arms = rng.uniform(0.35, 0.65), rng.uniform(0.6, 0.9)
    eyes, square = int(rng.integers(1, 4)), rng.random() < 0.6
    neck = leg + height
    skull = box(head * 1.2, head, head) if square else ball(0.62 * head).move(z=0.5 * head)
    swing = rng.uniform(5, 60)
    limb = join(box(0.14, 0.16, arms).move(z=-arms), ball(0.13).move(z=-arms)).turn("y", -swing)
    foot = join(box(0.18, 0.2, leg), box(0.24, 0.4, 0.12).move(y=-0.08))
    spots = (np.arange(eyes) - (eyes - 1) / 2) * 0.32 * head
    face = -0.5 * head if square else -0.58 * head
    parts = [
        part("body", main, box(width, 0.45, height).move(z=leg), adjective="square"),
        part("head", other, skull.move(z=neck + 0.1), adjective="square" if square else "round"),
        part(
            "arm",
            other,
            pair(limb.move(width / 2 + 0.1, 0, neck - 0.1)),
            adjective="long" if arms > 0.75 else "",
        ),
        part(
            "leg",
            other,
            pair(foot.move(0.26 * width)),
            adjective=size_word(leg, 0.45, 0.55, ("short", "long")),
        ),
        part("eye", light, [ball(0.065).move(x, face, neck + 0.1 + 0.58 * head) for x in spots]),
        part("neck", light, cylinder(0.1, 0.14).move(z=neck)),
    ]
    if rng.random() < 0.7:
        tip = join(
            rod((0, 0, neck + head), (0, 0, neck + head + 0.4), 0.025),
            ball(0.06).move(z=neck + head + 0.4),
        )
        parts.append(part("antenna", light, tip, adjective="thin"))
    return Design(parts)
