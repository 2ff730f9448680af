"""Pictures of clouds: what hides what, which way is up, and how turns and views belong together."""

import numpy as np
import pytest

from train.renderings import renderings

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def cloud(seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).uniform(-0.5, 0.5, (200, 6))
    points[:, 3:] += 0.5
    return points.astype(np.float32)


def test_what_is_near_hides_what_is_behind_it():
    lift = np.tan(np.radians(20))  # the camera looks down: behind is where it looks
    pair = np.array([[0, 0.5 * lift, 0.5, *RED], [0, -0.5 * lift, -0.5, *BLUE]], np.float32)
    front, _, back, _ = renderings(pair, 4)
    shown = front[(front != 255).any(axis=2)]
    assert len(shown) and (shown[:, 0] > 100).all() and not shown[:, 2].any()
    assert (back[..., 2] > back[..., 0]).any()  # seen from behind, the blue one is nearer


def test_the_axis_that_points_up_stands_on_top():
    tall = np.stack([np.zeros(50), np.linspace(0, 0.9, 50), np.zeros(50)], axis=1)
    for view in renderings(tall, 3):
        assert np.flatnonzero((view != 255).any(axis=(1, 2))).max() < 120
    lying = cloud()
    standing = lying[:, [2, 0, 1, 3, 4, 5]]  # (z, x, y): what was y is now z
    assert np.array_equal(renderings(lying, 2), renderings(standing, 2, up="z"))


def test_a_turned_cloud_shows_its_next_view():
    points = cloud()
    turned = points[:, [2, 1, 0, 3, 4, 5]] * [1, 1, -1, 1, 1, 1]  # a quarter turn about y
    before, after = renderings(points, 4), renderings(turned, 4)
    assert any(np.array_equal(np.roll(before, by, axis=0), after) for by in (1, 3))
    assert not np.array_equal(before, after)


def test_a_cloud_without_colour_is_grey_and_brighter_where_it_is_near():
    points = np.array([[0.5, 0, 0.7], [-0.5, 0, -0.7]], np.float32)
    (view,) = renderings(points, 1)
    assert (view[..., 0] == view[..., 2]).all()
    assert view[:, 112:][view[:, 112:] < 255].min() > view[:, :112].min()
    with pytest.raises(ValueError, match=r"has shape \(5, 4\), not \(points, 3 or 6\)"):
        renderings(np.zeros((5, 4)), 1)
