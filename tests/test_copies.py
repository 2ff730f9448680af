"""Objects that are in a set twice are one object, however their surface was sampled."""

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import cdist

from probe import copies
from probe.splits import apart, one_each

POINTS = 1024
COLOURS = ((0.2, 0.3, 0.9), (0.9, 0.3, 0.2))


def sampled_box(rng, sides, colour, points=POINTS):
    """Points drawn evenly from the surface of a box of unit mean radius or so, (points, 6)."""
    sides = np.asarray(sides)
    areas = np.repeat([sides[1] * sides[2], sides[0] * sides[2], sides[0] * sides[1]], 2)
    face = rng.choice(6, points, p=areas / areas.sum())
    at = rng.random((points, 3)) - 0.5
    at[np.arange(points), face // 2] = face % 2 - 0.5
    return np.column_stack([at * sides, np.broadcast_to(colour, (points, 3))]).astype(np.float32)


@pytest.fixture(scope="module")
def clouds():
    """Twelve boxes of two colours, each unlike the others; then four of them once more."""
    rng = np.random.default_rng(0)
    boxes = [(1, 1 + 0.25 * i, 1.5 - 0.1 * i) for i in range(6)]
    found = [sampled_box(rng, box, colour) for colour in COLOURS for box in boxes]
    found.append(sampled_box(rng, boxes[1], COLOURS[0]))  # 12: sampled anew
    found.append(rng.permutation(found[2]))  # 13: its points in another order
    found.append(found[3] + 0.005 * rng.normal(size=(POINTS, 6)).astype(np.float32))  # 14: jittered
    found.append(found[4].copy())  # 15: byte for byte
    found.append(sampled_box(rng, boxes[1], COLOURS[0]))  # 16: a third sampling
    return xr.DataArray(np.stack(found), dims=("sample", "point", "channel"))


def test_copies_and_near_copies_share_a_group_and_likes_do_not(clouds):
    expected = [*range(12), 1, 2, 3, 4, 1]
    np.testing.assert_array_equal(copies.duplicate_groups(clouds, block=5), expected)
    np.testing.assert_array_equal(copies.equal_groups(clouds), [*range(15), 4, 15])


def test_groups_equal_those_of_all_pairs(clouds):
    groups = copies.duplicate_groups(clouds)
    for a, b in combinations(range(len(clouds)), 2):
        near = copies.near_copies(clouds.values[a], clouds.values[b])
        apart = _chamfer(clouds.values[a], clouds.values[b])
        own = min(_neighbours(clouds.values[a]), _neighbours(clouds.values[b]))
        assert near == (apart <= copies.ALIKE * own)
        assert near == (groups[a] == groups[b]), (a, b)


def _chamfer(a, b):
    """By all pairs of points; of both ways, in position and colour of the nearest in position."""
    far = cdist(a[:, :3], b[:, :3])
    there = np.linalg.norm(a - b[far.argmin(axis=1)], axis=1)[:: -(-POINTS // copies.ASKED)]
    back = np.linalg.norm(b - a[far.argmin(axis=0)], axis=1)[:: -(-POINTS // copies.ASKED)]
    return (there.mean() + back.mean()) / 2


def _neighbours(a):
    far = cdist(a[:, :3], a[:, :3])
    np.fill_diagonal(far, np.inf)
    return np.linalg.norm(a - a[far.argmin(axis=1)], axis=1)[:: -(-POINTS // copies.ASKED)].mean()


def test_groups_are_kept_by_what_the_clouds_hold(clouds, tmp_path, monkeypatch):
    first = copies.duplicate_groups(clouds, folder=tmp_path)
    monkeypatch.setattr(copies, "_near", None)  # would fail if it were asked again
    np.testing.assert_array_equal(copies.duplicate_groups(clouds, folder=tmp_path), first)
    with pytest.raises(TypeError):
        copies.duplicate_groups(clouds[::-1], folder=tmp_path)


def test_groups_that_are_kept_are_not_those_of_the_same_clouds_in_another_order(clouds, tmp_path):
    groups = copies.duplicate_groups(clouds, folder=tmp_path)
    order = np.random.default_rng(1).permutation(len(clouds))
    moved = copies.duplicate_groups(clouds[order], folder=tmp_path)
    alike = groups[order][:, None] == groups[order]
    np.testing.assert_array_equal(moved[:, None] == moved, alike)


def test_clouds_of_few_points_only_equal_their_copies():
    few = xr.DataArray(np.random.default_rng(0).random((6, 32, 6)), dims=("sample", "point", "c"))
    np.testing.assert_array_equal(copies.duplicate_groups(few), range(6))


def test_a_cloud_with_nan_is_named():
    bad = np.random.default_rng(0).random((3, 64, 3))
    bad[1, 5, 0] = np.nan
    with pytest.raises(ValueError, match="cloud of sample 1 holds NaN or infinity"):
        copies.duplicate_groups(xr.DataArray(bad, dims=("sample", "point", "c")))


def test_one_of_each_group_is_asked():
    groups = np.array([0, 1, 0, 2, 1, 3])
    np.testing.assert_array_equal(one_each(np.array([1, 2, 4, 5]), groups), [1, 2, 5])


def test_each_group_is_one_object_of_the_query_where_that_has_one_else_of_the_gallery():
    groups = np.array([0, 1, 0, 2, 1, 3, 3, 2])
    gallery, query = apart(np.array([0, 2, 3, 5, 6]), np.array([1, 4, 7]), groups)
    np.testing.assert_array_equal(gallery, [0, 5])
    np.testing.assert_array_equal(query, [1, 7])
