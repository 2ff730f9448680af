"""A decoder rebuilds what the tokens hold, and no more."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from probe.reconstruction import judge, rebuild, reconstruction, unit_clouds
from tests.test_sweep import write_run


def test_distances_of_clouds_equal_those_of_scipy():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 30, 3)), rng.normal(size=(2, 40, 3))
    gaps = [cdist(a, b) for a, b in zip(ours, theirs, strict=True)]
    expected = [(g.min(axis=1).mean() + g.min(axis=0).mean()) / 2 for g in gaps]
    found = judge(ours, theirs)
    np.testing.assert_allclose(found.chamfer, expected)
    assert judge(ours, ours).chamfer.max() == 0 and judge(ours, ours).f_score.min() == 1
    assert judge(ours, ours + 50).f_score.max() == 0


def test_clouds_are_centred_and_of_one_size():
    points = np.random.default_rng(0).random((3, 20, 3)) * 9 + 4
    found = unit_clouds(points)
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=2).mean(axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="cloud 1 is one point"):
        unit_clouds(np.stack([points[0], np.ones((20, 3))]))


@pytest.fixture(scope="module")
def boxes():
    """Boxes of random proportions, tokens that hold them, and tokens that do not."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.2, 2, size=(160, 3))
    clouds = unit_clouds((rng.random((160, 96, 3)) - 0.5) * sides[:, None])
    told = np.repeat(np.log(sides)[:, None], 4, axis=1) + 0.05 * rng.normal(size=(160, 4, 3))
    return told, clouds


def test_tokens_that_hold_the_shape_rebuild_it_and_others_do_not(boxes):
    told, clouds = boxes
    fit, ask = slice(0, 120), slice(120, None)
    good = rebuild(told[fit], clouds[fit], told[ask], clouds[ask], steps=120)
    noise = np.random.default_rng(1).normal(size=told.shape)
    poor = rebuild(noise[fit], clouds[fit], noise[ask], clouds[ask], steps=120)
    assert good.chamfer.mean() < 0.75 * poor.chamfer.mean()
    assert good.f_score.mean() > poor.f_score.mean()
    again = rebuild(told[fit], clouds[fit], told[ask], clouds[ask], steps=120)
    np.testing.assert_array_equal(good.clouds, again.clouds)


def test_a_run_keeps_distances_controls_and_clouds(tmp_path):
    run = write_run(tmp_path / "run")
    found = reconstruction(run, [0, 12], ["baseline", "aligned"], steps=5)
    run.write_probe("reconstruction", found)
    assert run.probes("reconstruction").equals(found)
    assert found.cloud.dims == ("variant", "layer", "shown", "point", "axis")
    assert found.sizes["shown"] == 6 and found.true_cloud.shape[1] == 32
    for key in ("chamfer", "chamfer_target", "f_score_shuffled"):
        assert (found[f"{key}_low"] <= found[f"{key}_mean"]).all()
    assert {"chamfer_difference_p_adjusted", "chamfer_fall_mean", "f_score_held"} < set(found)
