"""Vessels: cup, bottle, vase, bowl, teapot, bucket, wine glass, barrel; mostly turned profiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from train.data.families.design import Design, colours, part, size_word
from train.data.families.solids import (
    Mesh,
    arc,
    ball,
    cylinder,
    lathe,
    pair,
    ring,
    tube,
)

WALL = 0.03


def open_vessel(profile: ArrayLike) -> Mesh:
    """A wall that follows (radius, z) points from the foot to the rim, with a floor."""
    wall = np.asarray(profile, dtype=float)
    inner = np.maximum(wall - (WALL, 0), 0.01)[::-1]
    inner[-1, 1] += WALL
    under, floor = [(0, wall[0, 1])], [(0, wall[0, 1] + WALL)]
    return lathe(np.concatenate([under, wall, inner, floor]), 32)


def side_handle(at: float, low: float, high: float, reach: float, thick: float) -> Mesh:
    """A bow to the right between two heights, from radius `at` outward by `reach`."""
    bow = arc(1, -90, 90, 14)
    path = np.zeros((14, 3))
    path[:, 0] = at - 0.02 + reach * bow[:, 0]
    path[:, 2] = (low + high) / 2 + (high - low) / 2 * bow[:, 1]
    return tube(path, thick)


def cup(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, top = rng.uniform(0.7, 1.25), rng.uniform(0.38, 0.52)
    foot = top * rng.uniform(0.6, 1.0)
    steps = np.linspace(0, 1, 8)
    bulge = rng.uniform(-0.03, 0.1)
    wall = [(foot + (top - foot) * s + bulge * np.sin(np.pi * s), height * s) for s in steps]
    grip = side_handle(0.5 * (foot + top), 0.22 * height, 0.82 * height, 0.28, 0.05)
    parts = [
        part(
            "body",
            main,
            open_vessel(wall),
            adjective=size_word(height / top, 1.8, 2.5, ("low", "tall")),
        ),
        part("handle", other, grip, adjective="curved"),
    ]
    if rng.random() < 0.35:
        saucer = lathe(
            [(0, -0.08), (0.5, -0.08), (0.85, 0.03), (0.85, 0.06), (0.5, -0.04), (0, -0.04)]
        )
        parts.append(part("saucer", other, saucer, adjective="round"))
    return Design(parts, "none")


def bottle(rng: np.random.Generator) -> Design:
    main, other, third = colours(rng, 3)
    radius, body = rng.uniform(0.26, 0.4), rng.uniform(0.8, 1.4)
    neck, narrow, slope = rng.uniform(0.3, 0.65), rng.uniform(0.09, 0.14), rng.uniform(0.15, 0.4)
    ease = [
        (radius + (narrow - radius) * (1 - np.cos(np.pi * s)) / 2, body + slope * s)
        for s in np.linspace(0, 1, 8)
    ]
    top = body + slope + neck
    wall = [(0, 0), (radius, 0), *ease, (narrow, top), (0, top)]
    parts = [
        part("body", main, lathe(wall), adjective=size_word(radius, 0.3, 0.36, ("slim", "wide"))),
        part("cap", other, cylinder(narrow + 0.03, 0.13).move(z=top - 0.05)),
    ]
    if rng.random() < 0.6:
        label = cylinder(radius + 0.012, 0.4 * body).move(z=0.3 * body)
        parts.append(part("label", third, label, adjective="wide"))
    word = size_word(neck, 0.4, 0.52, ("short", "long"))
    collar = ring(narrow + 0.01, 0.03).move(z=body + slope + 0.3 * neck)
    parts.append(part("neck", main, cylinder(narrow, neck).move(z=body + slope), adjective=word))
    parts.append(part("neck ring", other, collar, adjective="thin"))
    return Design(parts, "round")


def vase(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, belly = rng.uniform(1.1, 1.8), rng.uniform(0.36, 0.6)
    neck, lip, foot = rng.uniform(0.12, 0.22), rng.uniform(0.24, 0.4), rng.uniform(0.18, 0.3)
    at = rng.uniform(0.3, 0.45)
    knots = np.array([0, at, 0.78, 1.0])
    steps = np.linspace(0, 1, 20)
    radii = np.interp(steps, knots, [foot, belly, neck, lip])
    smooth = np.convolve(np.pad(radii, 2, mode="edge"), np.full(5, 0.2), "valid")
    handles = rng.random() < 0.4
    parts = [
        part(
            "body",
            main,
            open_vessel(np.stack([smooth, height * steps], axis=1)),
            adjective=size_word(belly / height, 0.3, 0.38, ("slim", "wide")),
        ),
        part("foot", other, cylinder(foot + 0.06, 0.07), adjective="round"),
        part("rim", other, ring(lip, 0.04).move(z=height), adjective="round"),
    ]
    if handles:
        grip = side_handle(neck, 0.62 * height, 0.92 * height, 0.3, 0.04)
        parts.append(part("handle", other, pair(grip), adjective="curved"))
    return Design(parts, "turn" if handles else "round", 2 if handles else 1)


def bowl(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    radius, depth = rng.uniform(0.8, 1.0), rng.uniform(0.35, 0.75)
    power = rng.uniform(0.4, 0.8)
    wall = [(radius * (0.25 + 0.75 * s**power), 0.1 + depth * s) for s in np.linspace(0, 1, 14)]
    parts = [
        part(
            "body",
            main,
            open_vessel(wall),
            adjective=size_word(depth, 0.48, 0.62, ("shallow", "deep")),
        ),
        part("foot", other, cylinder(0.36 * radius, 0.12, 0.3 * radius), adjective="round"),
    ]
    if rng.random() < 0.6:
        parts.append(
            part("rim", other, ring(radius - 0.01, 0.035).move(z=0.1 + depth), adjective="round")
        )
    return Design(parts, "round")


def teapot(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    radius, tall = rng.uniform(0.5, 0.62), rng.uniform(0.38, 0.55)
    top = 2 * tall
    body = ball(radius, radius, tall).move(z=tall)
    reach = rng.uniform(0.35, 0.5)
    path = [
        (-0.8 * radius, 0, 0.7 * tall),
        (-radius - 0.25 * reach, 0, 0.85 * tall),
        (-radius - 0.6 * reach, 0, 1.35 * tall),
        (-radius - reach, 0, 1.8 * tall),
    ]
    spout = tube(path, (0.16, 0.12, 0.085, 0.06))
    grip = side_handle(0.85 * radius, 0.5 * tall, 1.6 * tall, 0.42, 0.06)
    lid = lathe([(0.36 * radius, top - 0.06), (0.3 * radius, top), (0, top + 0.05)])
    parts = [
        part("body", main, body, adjective=size_word(tall / radius, 0.75, 0.9, ("flat", "round"))),
        part("spout", main, spout, adjective="curved"),
        part("handle", other, grip, adjective="curved"),
        part("lid", other, lid, adjective="round"),
        part("knob", other, ball(0.08).move(z=top + 0.1), adjective="small"),
        part("foot", other, cylinder(0.5 * radius, 0.08)),
    ]
    return Design(parts, "none")


def bucket(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, top = rng.uniform(0.8, 1.1), rng.uniform(0.48, 0.6)
    foot, lift = top * rng.uniform(0.6, 0.8), rng.uniform(0.35, 0.6)
    bow = arc(1, 0, 180, 20)
    path = np.stack(
        [(top + 0.03) * bow[:, 0], 0 * bow[:, 0], height - 0.06 + (lift + 0.06) * bow[:, 1]], 1
    )
    parts = [
        part(
            "body",
            main,
            open_vessel([(foot, 0), (top, height)]),
            adjective=size_word(height / top, 1.7, 2.0, ("wide", "tall")),
        ),
        part("handle", other, tube(path, 0.03), adjective="thin"),
        part("rim", other, ring(top, 0.04).move(z=height), adjective="round"),
    ]
    bands = int(rng.integers(0, 3))
    if bands:
        hoops = [
            ring(foot + (top - foot) * share, 0.03).move(z=height * share)
            for share in (0.25, 0.6)[:bands]
        ]
        parts.append(part("band", other, hoops))
    return Design(parts, "turn", 2)


def wine_glass(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    stem, radius, deep = rng.uniform(0.55, 1.0), rng.uniform(0.34, 0.48), rng.uniform(0.55, 0.85)
    close = rng.uniform(5, 45)
    angles = np.radians(np.linspace(-84, close, 14))
    wall = np.stack([radius * np.cos(angles), stem + deep * (np.sin(angles) + 1) / 1.8], axis=1)
    parts = [
        part(
            "bowl",
            main,
            open_vessel(wall),
            adjective=size_word(deep / radius, 1.5, 2.0, ("wide", "deep")),
        ),
        part(
            "stem",
            other,
            cylinder(0.035, stem + 0.05),
            adjective=size_word(stem, 0.7, 0.85, ("short", "long")),
        ),
        part(
            "foot",
            other,
            lathe([(0, 0), (0.36, 0), (0.36, 0.02), (0.05, 0.07), (0, 0.07)]),
            adjective="round",
        ),
    ]
    return Design(parts, "round")


def barrel(rng: np.random.Generator) -> Design:
    main, other = colours(rng, 2)
    height, end, hoops = rng.uniform(1.0, 1.5), rng.uniform(0.36, 0.46), int(rng.integers(2, 6))
    bulge, staves = rng.uniform(0.08, 0.18), int(rng.integers(10, 17))
    shares = np.linspace(0, 1, 12)
    wall = [(end + bulge * np.sin(np.pi * s), height * s) for s in shares]
    body = lathe(
        [
            (0, 0.05),
            (end - 0.03, 0.05),
            (end - 0.03, 0),
            *wall,
            (end - 0.03, height),
            (end - 0.03, height - 0.05),
            (0, height - 0.05),
        ],
        staves,
    )
    bands = []
    for share in np.linspace(0.1, 0.9, hoops):
        radius, z = end + bulge * np.sin(np.pi * share) + 0.02, height * share
        bands.append(lathe([(radius, z - 0.055), (radius, z + 0.055)]))
    parts = [
        part("body", main, body, adjective=size_word(bulge, 0.11, 0.15, ("straight", "bulging"))),
        part("hoop", other, bands, adjective="round"),
    ]
    return Design(parts, "round")
