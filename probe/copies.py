"""Copies and near-copies: objects that differ no more than two samplings of one surface do.

An object that is in a set twice is one object: it must not answer for itself from the gallery, nor
count twice. Equal clouds are found by hash, near ones by their Chamfer distance, in the cloud's own
unit: how far apart neighbouring points lie.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.spatial import cKDTree

from probe import cache
from probe.knn import nearest

ALIKE = 1.1  # spacings; independent samplings of one surface lie 1.00 apart, give or take 0.03
COARSE = 0.1  # of the mean radius: points further apart than this cannot tell two surfaces apart
POINTS = 2048  # of each cloud that are compared, evenly from all of it
ASKED = 512  # of these, whose nearest points are looked up
GRID = 6  # anchors along each side of the cube around all clouds
CANDIDATES = 32  # clouds with the most alike distances to the anchors, for each cloud
BLOCK = 256  # clouds read at a time


def duplicate_groups(
    clouds: xr.DataArray, *, folder: Path | None = None, block: int = BLOCK
) -> np.ndarray:
    """Group of each object, (samples,): copies and near-copies share one.

    clouds : (samples, points, 3 or 6), xyz and then rgb in [0, 1]; read a block at a time
    folder : where the groups are kept by the hashes of the clouds in their order; by default they
             are not

    Two clouds are near-copies where the mean distance from points of one to the nearest points of
    the other, both ways, is at most 1.1 times the mean distance between neighbours within either:
    as two samplings of one coloured surface are, and a jitter below the spacing. A distance is of
    the position and colour of a point and of the one nearest in position. Near-copies of
    near-copies share their group. Clouds whose points lie further apart than a tenth of their mean
    radius are too coarse for that: they only share a group with their equals.

    Compared are the 32 clouds most like each in their distances to 216 anchors, so that the cost
    grows with the number of objects and not with that of pairs; a copy further down that list can
    be missed. Groups are numbered by first appearance. Raises ValueError for NaN and infinity.
    """
    marks = _hashes(clouds, block)
    equal = _numbered(marks)
    if clouds.ndim != 3 or clouds.shape[2] not in (3, 6) or clouds.shape[1] < 2:
        return equal
    kept = np.unique(equal, return_index=True)[1]
    key = cache.digest(list(dict.fromkeys(marks)))  # in order, which `kept` and the groups go by
    found = cache.kept(folder, "groups", key, lambda: {"root": _near(clouds, kept, block)})
    return _numbered(found["root"][equal].tolist())


def equal_groups(objects: xr.DataArray, block: int = BLOCK) -> np.ndarray:
    """Group of each object, (samples,): only objects equal byte for byte share one."""
    return _numbered(_hashes(objects, block))


def _hashes(objects: xr.DataArray, block: int) -> list[bytes]:
    return [
        hashlib.sha256(np.ascontiguousarray(one).data).digest()
        for start in range(0, len(objects), block)
        for one in objects[start : start + block].values
    ]


def _numbered(names: list) -> np.ndarray:
    """Numbers by first appearance, from 0."""
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _near(clouds: xr.DataArray, kept: np.ndarray, block: int) -> np.ndarray:
    """Of each kept cloud the first of its near-copies, (kept,). kept : rows, ascending."""
    reach = max(float(np.abs(some).max()) for _, some in _thinned(clouds, kept, block, xyz=True))
    side = np.linspace(-reach, reach, GRID)
    anchors = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    seen = np.empty((len(kept), len(anchors)), np.float32)
    spacing = np.empty(len(kept))
    for at, some in _thinned(clouds, kept, block):
        for i, cloud in enumerate(some):
            tree = cKDTree(cloud[:, :3])
            seen[at + i] = tree.query(anchors)[0]
            spacing[at + i] = _spacing(cloud, tree)
    pairs = _candidates(seen, spacing)
    held: dict[int, np.ndarray] = {}
    wanted = kept[np.unique(pairs)]
    for at, some in _thinned(clouds, wanted, block):
        held.update(zip(np.unique(pairs)[at : at + len(some)].tolist(), some, strict=True))
    root = np.arange(len(kept))
    for a, b in pairs:
        first, other = sorted((root[a], root[b]))
        if first != other and near_copies(held[a], held[b]):
            root[root == other] = first
    return root


def near_copies(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two clouds are near-copies, see `duplicate_groups`. Each (points, 3 or 6)."""
    trees = cKDTree(a[:, :3]), cKDTree(b[:, :3])
    apart = (_distance(a, b, trees[1]) + _distance(b, a, trees[0])) / 2
    return bool(apart <= ALIKE * min(_spacing(a, trees[0]), _spacing(b, trees[1])))


def _candidates(seen: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Pairs worth comparing, (pairs, 2): alike in their distances to the anchors, (clouds, ...).

    A nearest point that moves by the spacing moves such a distance by no more.
    """
    fine = np.flatnonzero(spacing > 0)
    if len(fine) < 2:
        return np.empty((0, 2), int)
    found = fine[nearest(seen[fine], seen[fine], min(CANDIDATES + 1, len(fine)), "l2")]
    pairs = np.stack([np.repeat(fine, found.shape[1]), found.ravel()], axis=1)
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    gap = np.sqrt(((seen[pairs[:, 0]] - seen[pairs[:, 1]]) ** 2).mean(axis=1))
    return pairs[gap <= ALIKE * spacing[pairs].min(axis=1)]


def _spacing(cloud: np.ndarray, tree: cKDTree) -> float:
    """Mean distance between neighbouring points; 0 for a cloud too coarse to compare."""
    some = _asked(cloud)
    near = tree.query(some[:, :3], k=2)[1][:, 1]
    found = np.linalg.norm(cloud[near] - some, axis=1).mean()
    xyz = cloud[:, :3]
    radius = np.linalg.norm(xyz - xyz.mean(axis=0), axis=1).mean()
    return float(found) if found <= COARSE * radius else 0.0


def _distance(a: np.ndarray, b: np.ndarray, tree: cKDTree) -> float:
    """Mean distance from points of a to the nearest in position of b, whose tree it is."""
    some = _asked(a)
    return float(np.linalg.norm(b[tree.query(some[:, :3])[1]] - some, axis=1).mean())


def _asked(cloud: np.ndarray) -> np.ndarray:
    return cloud[:: -(-len(cloud) // ASKED)]


def _thinned(
    clouds: xr.DataArray, rows: np.ndarray, block: int, *, xyz: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """Place among `rows` and clouds, a block at a time: (block, points, channels)."""
    step = -(-clouds.shape[1] // POINTS)
    for at in range(0, len(rows), block):
        own = rows[at : at + block]
        some = clouds[own].values[:, ::step, : 3 if xyz else None]
        if not np.isfinite(some).all():
            bad = own[int((~np.isfinite(some)).any(axis=(1, 2)).argmax())]
            raise ValueError(f"the cloud of sample {bad} holds NaN or infinity")
        yield at, some
