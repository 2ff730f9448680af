"""A decoder rebuilds what the tokens hold, and no more."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from probe import tokens
from probe.findings import findings
from probe.page_parts import SCORES, tables
from probe.reconstruction import judge, lessons, rebuild, reconstruction, unit_clouds
from probe.tokens import Tokens
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
    points = np.random.default_rng(0).random((3, 20, 3), np.float32) * 9 + 4
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
    clouds = (rng.random((160, 96, 3)) - 0.5) * sides[:, None] + 3
    told = np.repeat(np.log(sides)[:, None], 4, axis=1) + 0.05 * rng.normal(size=(160, 4, 3))
    return told, clouds


def rebuilt(told, clouds):
    rows = np.arange(160)
    taught = lessons(Tokens(clouds), rows[:120], rows[120:], steps=90)
    return rebuild(Tokens(told), taught, rows[:120], rows[120:])


def test_tokens_that_hold_the_shape_rebuild_it_and_others_do_not(boxes, monkeypatch):
    told, clouds = boxes
    good = rebuilt(told, clouds)
    poor = rebuilt(np.random.default_rng(1).normal(size=told.shape), clouds)
    assert good.chamfer.mean() < 0.75 * poor.chamfer.mean()
    assert good.f_score.mean() > poor.f_score.mean()
    np.testing.assert_array_equal(good.clouds, rebuilt(told, clouds).clouds)
    monkeypatch.setattr(tokens, "HELD_BYTES", 0)
    monkeypatch.setattr(tokens, "BLOCK_BYTES", 2000)  # 41 objects, and 1 cloud
    np.testing.assert_allclose(rebuilt(told, clouds).clouds, good.clouds, atol=1e-4)


def test_a_cloud_without_shape_and_a_token_that_is_no_number_are_named(boxes):
    told, clouds = (part.copy() for part in boxes)
    clouds[130] = 1
    with pytest.raises(ValueError, match="cloud 130 is one point"):
        rebuilt(told, clouds)
    told[125, 1] = np.nan
    with pytest.raises(ValueError, match="query sample 5 has values that are not finite"):
        rebuilt(told, boxes[1])


def test_a_run_keeps_distances_controls_and_clouds(tmp_path):
    run = write_run(tmp_path / "run")
    found = reconstruction(run, [0, 12], ["baseline", "aligned"], steps=5)
    run.write_probe("reconstruction", found)
    assert run.probes("reconstruction").equals(found)
    assert found.cloud.dims == ("variant", "layer", "shown", "point", "axis")
    assert found.sizes["shown"] == 6 and found.true_cloud.shape[1] == 32
    for key in ("chamfer", "chamfer_target", "f_score_shuffled"):
        assert (found[f"{key}_low"] <= found[f"{key}_mean"]).all()
        np.testing.assert_allclose(found[key].mean("object"), found[f"{key}_mean"], rtol=1e-6)
        assert found[key].dtype == "float32" and found[key].attrs["direction"]
    assert found.chamfer.dims == ("variant", "layer", "object")
    query = run.samples()["sample"].values[240:]
    np.testing.assert_array_equal(found.object, query)
    np.testing.assert_allclose(
        found.chamfer_target.sel(object=found.shown.values),
        judge(found.target_cloud.values, found.true_cloud.values).chamfer,
        rtol=1e-5,
    )
    assert {"chamfer_difference_p_adjusted", "chamfer_fall_mean", "f_score_held"} < set(found)
    three = "{:.4f} [{:.4f}, {:.4f}]".format(
        *(float(found[f"chamfer_shuffled_{part}"]) for part in ("mean", "low", "high"))
    )
    assert f"(tokens of other objects: {three[:6]})" in findings(found)[0]
    assert f"; tokens of other objects: {three}" in tables(found, SCORES)[0].title
