"""Maps hold still from layer to layer, and say how far they can be trusted."""

import numpy as np
import pytest
from scipy.stats import t
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

import store
from probe.halves import halvings
from probe.knn import unit_rows
from probe.maps import chained, faithful, faithful_interval, maps
from probe.objects import objects
from tests.test_coverage import _models, _parted, _surface
from tests.test_sweep import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("maps") / "run")


def check(found, method):
    assert found.position.dims == ("method", "draw", "variant", "layer", "object", "axis")
    assert found.sizes["object"] == 120 and list(found["class_name"].values[:2]) == [
        "class 0",
        "class 1",
    ]
    size = np.linalg.norm(found.position, axis=-1).mean(axis=-1)
    np.testing.assert_allclose(size, 1, rtol=1e-5)
    one = found.sel({"method": method}).isel(draw=0)
    assert ((one.trustworthiness > 0.4) & (one.trustworthiness <= 1)).all()
    assert np.isnan(one.jump.isel(layer=0)).all()
    kept = float(one.jump.sel(variant="aligned", layer=12))
    assert kept < float(one.jump.sel(variant="baseline", layer=12))  # which lost everything there


def test_pca_of_all_layers_is_kept_and_read_again(run):
    found = maps(run, methods=["pca"])
    check(found, "pca")
    run.write_probe("maps", found)
    assert store.open_run(run.path).probes("maps").equals(found)


@pytest.mark.parametrize("probe, drawn", [(maps, "maps._pca"), (objects, "objects.principal")])
def test_what_is_kept_is_not_drawn_again(tmp_path, monkeypatch, probe, drawn):
    run, some = write_run(tmp_path / "run"), {"methods": ["pca"]} if probe is maps else {}
    first = probe(run, [0, 8], **some)
    monkeypatch.setattr(f"probe.{drawn}", lambda *_: pytest.fail("drawn again"))
    assert probe(run, [0, 8], **some).equals(first)
    with pytest.raises(pytest.fail.Exception, match="drawn again"):
        probe(run, [0, 8], seed=1, **some)


def test_copies_of_an_object_are_one_point(run, monkeypatch):
    groups = np.arange(360)
    groups[350:] = groups[240:250]
    monkeypatch.setattr("probe.maps.groups_of", lambda run, samples: groups)
    found = maps(run, [8], ["aligned"], methods=["pca"])
    np.testing.assert_array_equal(found.object, run.samples()["sample"].values[240:350])


def test_pca_is_that_of_scikit_learn_but_for_a_turn(run):
    found = maps(run, [8], ["aligned"], methods=["pca"]).position.values[0, 0, 0, 0]
    states = run.hidden("aligned").sel(layer=8).values[240:].mean(axis=1, dtype=np.float64)
    rows = states / np.linalg.norm(states, axis=1, keepdims=True)
    theirs = PCA(2, svd_solver="full").fit_transform(rows)
    both = chained(np.stack([found.astype(float), theirs]))
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


def test_a_turned_and_mirrored_map_is_turned_back():
    x = np.random.default_rng(0).normal(size=(50, 2))
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) @ np.diag([1, -1])
    both = chained(np.stack([x, 3 * x @ turn + 7]))
    np.testing.assert_allclose(both[0], both[1], atol=1e-12)


def test_a_perfect_map_is_fully_trusted_and_a_shuffled_one_is_not():
    angle = np.random.default_rng(0).uniform(0, 6, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert faithful(circle, 5 * circle) == pytest.approx((1, 1))
    assert max(faithful(circle, circle[np.random.default_rng(1).permutation(100)])) < 0.7


def test_an_unknown_map_is_refused(run):
    with pytest.raises(ValueError, match="no map 'tsne': there are pca, umap"):
        maps(run, methods=["tsne"])


@pytest.mark.slow
def test_umap_is_seeded_and_its_points_do_not_jump(run):
    once = maps(run, variants=["baseline", "aligned"], methods=["umap"])
    check(once, "umap")
    again = maps(run, variants=["baseline", "aligned"], methods=["umap"])
    np.testing.assert_array_equal(once.position, again.position)
    assert float(once.jump.sel(variant="aligned", layer=[4, 8]).max()) < 0.3
    two = maps(run, variants=["baseline"], methods=["umap"], seeds=2)
    np.testing.assert_array_equal(two.position[:, :1], once.position.sel(variant=["baseline"]))
    assert float(abs(two.position.diff("draw")).mean()) > 0.01  # another seed is another map


def test_trust_is_that_of_scikit_learn_and_its_error_that_of_halves():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(96, 6))
    rows = states / np.linalg.norm(states, axis=1, keepdims=True)
    shown = rows[:, :2] + 0.1 * rng.normal(size=(96, 2))

    def theirs(kept, k):
        pairs = (rows[kept], shown[kept]), (shown[kept], rows[kept])
        return np.array([trustworthiness(*pair, n_neighbors=k) for pair in pairs])

    found = faithful_interval(states, shown, 8, seed=3)
    np.testing.assert_allclose(found.mean, theirs(np.arange(96), 8), atol=1e-12)
    assert faithful(states, shown, 8) == pytest.approx(found.mean)
    group = np.random.default_rng([3, 29]).permutation(96) % 16
    angle = np.arcsin(
        np.sqrt([[theirs(side, 4) for side in (half, ~half)] for half in halvings(group)])
    )
    error = np.sqrt(((angle[:, 0] - angle[:, 1]) ** 2).mean(axis=0)) / 2
    ends = np.arcsin(np.sqrt([found.high, found.low]))
    np.testing.assert_allclose((ends[0] - ends[1]) / 2 / t.ppf(0.975, 15), error)


def test_groups_of_objects_have_the_value_as_mean_and_halves_of_them_its_error(run):
    found = maps(run, [8], ["aligned"], methods=["pca"]).isel({"method": 0}).squeeze()
    states = run.hidden("aligned").sel(layer=8).values[240:].mean(axis=1, dtype=np.float64)
    rows, shown = unit_rows(states), found.position.values.astype(float)
    half = halvings(np.arange(16))
    group = np.random.default_rng([0, 29]).permutation(120) % 16
    for name, pair in (("trustworthiness", (rows, shown)), ("continuity", (shown, rows))):
        parts, value = found[f"{name}_of_groups"].values.astype(float), float(found[name])
        assert parts.mean() == pytest.approx(value)
        sides = [at for one in halvings(group) for at in (one, ~one)]  # of 56 to 64 objects
        near = [round(15 * at.sum() / 120) for at in sides]
        trust = [
            trustworthiness(pair[0][at], pair[1][at], n_neighbors=k)
            for at, k in zip(sides, near, strict=True)
        ]
        angle = np.arcsin(np.sqrt(trust)).reshape(15, 2)
        slope = 2 * np.sqrt(value * (1 - value))
        apart = [parts[one].mean() - parts[~one].mean() for one in half]
        np.testing.assert_allclose(apart, slope * (angle[:, 0] - angle[:, 1]), atol=1e-5)
        ends = np.arcsin(np.sqrt([found[f"{name}_high"], found[f"{name}_low"]]))
        error = (ends[0] - ends[1]) / 2 / t.ppf(0.975, 15)
        assert parts.std(ddof=1) / 4 == pytest.approx(slope * error, rel=1e-5)


def test_a_perfect_map_is_perfect_in_any_half():
    angle = np.random.default_rng(0).uniform(0, 6, 96)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(faithful_interval(circle, circle), 1, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("objects", [120, 300])
@pytest.mark.parametrize("draw", [_models, _surface, _parted])
def test_intervals_of_trust_are_covered_at_the_level(draw, objects):
    """New objects each time, laid out by the principal axes of many others."""
    many = unit_rows(draw(np.random.default_rng(1), 4000)[0])
    axes = np.linalg.svd(many - many.mean(axis=0), full_matrices=False)[2][:2].T
    rng, found = np.random.default_rng(0), []
    for at in range(600):
        states = draw(rng, objects)[0]
        found.append(faithful_interval(states, unit_rows(states) @ axes, seed=at))
    mean, low, high = np.moveaxis(np.array(found), 1, 0)
    covered = ((low <= mean.mean(axis=0)) & (mean.mean(axis=0) <= high)).mean(axis=0)
    # 94 to 97 %, and two standard errors of 0.9 points
    assert ((covered >= 0.925) & (covered <= 0.985)).all()
