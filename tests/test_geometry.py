"""Descriptors against closed forms; their read-out against scikit-learn and planted factors."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import special_ortho_group
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.preprocessing import StandardScaler

from probe.geometry import ABOUT, OCTANTS, descriptors, geometry_probe, r2, r2_interval
from probe.linear import PENALTIES, deal_folds


def ball(points=2048, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(points, 3))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def box(sides, points=4096, seed=0):
    rng = np.random.default_rng(seed)
    corners = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
    inside = rng.uniform(-0.5, 0.5, (points - 8, 3))
    return np.concatenate([corners, inside]) * sides + [5, -2, 1]


def needle(points=500):
    return np.linspace(-1, 1, points)[:, None] * [1.0, 2.0, 2.0]


def sheet(points=500):
    return np.random.default_rng(0).uniform(-1, 1, (points, 3)) * [1, 1, 0]


def one(cloud, **options):
    return descriptors(cloud[None], **options).isel(sample=0)


def test_a_box_has_its_extents_volumes_area_and_ratios():
    found = one(box([2.0, 1.0, 4.0]))
    expected = {
        "extent_x": 2,
        "extent_y": 1,
        "extent_z": 4,
        "box_volume": 8,
        "hull_volume": 8,
        "hull_area": 2 * (2 + 8 + 4),
        "height_to_width": 2,
        "depth_to_width": 0.5,
        "middle_to_long": 0.5,
        "short_to_long": 0.25,
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value), name
    lying = one(box([2.0, 1.0, 4.0]), up="y")
    assert float(lying.height_to_width) == 0.25 and float(lying.depth_to_width) == 2


def test_a_sphere_a_line_and_a_sheet_have_their_shape():
    round_, line, flat = one(ball(8192)), one(needle()), one(sheet())
    assert float(round_.sphericity) == pytest.approx(1, abs=0.05)
    assert float(round_.hull_area) == pytest.approx(4 * np.pi, rel=0.01)
    assert float(round_.hull_volume) == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert float(round_.mean_radius) == pytest.approx(1, abs=0.01)
    assert float(line.linearity) == pytest.approx(1)
    for name in ("planarity", "sphericity", "curvature", "hull_volume", "hull_area"):
        assert float(line[name]) == pytest.approx(0, abs=1e-9), name
    assert float(flat.linearity + flat.planarity) == pytest.approx(1)
    assert float(flat.planarity) > 0.8 and float(flat.curvature) < 1e-9
    assert float(flat.hull_area) == pytest.approx(2 * 4, rel=0.05) and flat.hull_volume == 0
    assert float(flat.height_to_width) == 0


def test_a_full_cube_fills_the_grid_and_a_needle_one_row_of_it():
    assert float(one(box([3.0, 3.0, 3.0], points=20_000)).occupancy) == 1
    needle = np.linspace(0, 1, 100)[:, None] * [0, 0, 1.0]
    assert float(one(needle).occupancy) == 8 / 8**3
    whole = one(box([3.0, 2.0, 1.0]))
    eighths = [float(whole[f"occupancy_{octant}"]) for octant in OCTANTS]
    assert np.mean(eighths) == pytest.approx(float(whole.occupancy))
    upper = np.array([[0.0, 0, 0], [1, 1, 1]])[[0] + [1] * 31]  # all but one in the last octant
    lone = one(upper + 1e-9 * np.random.default_rng(0).random(upper.shape))
    assert [float(lone[f"occupancy_{o}"]) for o in OCTANTS] == [1 / 64, *[0] * 6, 1 / 64]


def test_curvature_grows_with_the_bend_of_a_surface():
    rng = np.random.default_rng(0)
    angle, height = rng.uniform(0, 1, (2, 4000))
    bent = []
    for radius in (8.0, 2.0, 0.5):  # one strip, rolled up ever tighter
        at = angle / radius
        bent.append(np.column_stack([radius * np.cos(at), radius * np.sin(at), height]))
    curvature = descriptors(np.stack(bent)).curvature.values
    assert (np.diff(curvature) > 0).all() and curvature[-1] < 1 / 3


def test_a_mirrored_cloud_is_its_own_image_and_a_lopsided_one_is_not():
    rng = np.random.default_rng(0)
    half = rng.uniform(0, 1, (400, 3)) * [0.2, 1, 1]
    whole = np.concatenate([half, half * [-1, 1, 1]]) + np.array([3, 0, 0])
    found = one(whole)
    assert float(found.mirror_left_right) < 1e-12 < 0.02 < float(found.mirror_front_back)
    turned = one(whole[:, [1, 0, 2]])
    assert float(turned.mirror_front_back) < 1e-12
    corner = np.concatenate([whole, whole[:200] + np.array([2, 0, 0])])
    assert float(one(corner).mirror_left_right) > 0.1


def test_mirrors_equal_the_chamfer_distance_both_ways():
    from scipy.spatial.distance import cdist

    cloud = np.random.default_rng(0).gamma(1.0, size=(300, 3))
    cloud -= cloud.mean(axis=0)
    apart = cdist(cloud, cloud * [-1, 1, 1])
    radius = np.linalg.norm(cloud, axis=1).mean()
    expected = (apart.min(axis=0).mean() + apart.min(axis=1).mean()) / 2 / radius
    assert float(one(cloud).mirror_left_right) == pytest.approx(expected)


def test_what_should_not_change_with_pose_size_and_order_does_not():
    cloud = box([2.0, 1.0, 4.0], points=400) * [1, 1, 1]
    turn = special_ortho_group.rvs(3, random_state=0)
    before, after = one(cloud), one(cloud @ turn + 3)
    for name in ("linearity", "planarity", "sphericity", "mean_radius", "hull_volume", "curvature"):
        assert float(after[name]) == pytest.approx(float(before[name])), name
    larger = one(7 * cloud)
    for name, power in (("hull_volume", 3), ("hull_area", 2), ("extent_x", 1), ("occupancy", 0)):
        assert float(larger[name]) == pytest.approx(7**power * float(before[name])), name
    for name in ("mirror_left_right", "height_to_width", "curvature"):
        assert float(larger[name]) == pytest.approx(float(before[name])), name


def test_colour_is_measured_where_there_is_one_and_all_carries_its_unit():
    cloud = np.concatenate([ball(64), np.tile([0.1, 0.5, 0.9], (64, 1))], axis=1)
    found = descriptors(np.stack([cloud] * 3))
    assert [float(found[name][2]) for name in ("red", "green", "blue")] == pytest.approx(
        [0.1, 0.5, 0.9]
    )
    assert list(found) and set(found) == set(ABOUT)
    assert all(found[name].attrs["units"] and found[name].attrs["range"] for name in found)
    assert "red" not in descriptors(cloud[None, :, :3])


def test_blocks_of_a_labelled_array_equal_the_whole_and_keep_its_ids():
    clouds = np.random.default_rng(0).normal(size=(70, 40, 3)).astype(np.float32)
    ids = [f"object-{i}" for i in range(70)]
    array = xr.DataArray(clouds, dims=("sample", "point", "channel"), coords={"sample": ids})
    found = descriptors(array)
    assert list(found.sample.values) == ids
    last = descriptors(clouds[66:])
    for name in found:
        np.testing.assert_array_equal(found[name][66:], last[name])


BAD = np.random.default_rng(0).normal(size=(3, 20, 3))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (BAD[0], r"points \(20, 3\): need \(samples, points, 3 or 6\)"),
        (BAD[..., :2], r"points \(3, 20, 2\): need"),
        (BAD[:, :9], "clouds of 9 points: descriptors need 16"),
        (np.where(np.arange(3)[:, None, None] == 1, np.nan, BAD), "sample 1 has NaN or infinity"),
        (np.where(np.arange(3)[:, None, None] == 2, 0.5, BAD), "sample 2 is a single point"),
    ],
)
def test_clouds_that_measure_nothing_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        descriptors(points)
    with pytest.raises(ValueError, match="up='w': must be one of x, y, z"):
        descriptors(BAD, up="w")


def planted(noise, gallery=200, query=150, dim=20, seed=0):
    """States that hold two factors and not a third, (arguments of `geometry_probe`)."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(gallery + query, 3)) * [1, 100, 5] + [0, 1000, 0]
    unit = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    states = unit[:, :2] @ rng.normal(size=(2, dim)) + noise * rng.normal(size=(len(unit), dim))
    table = xr.Dataset({name: ("sample", factors[:, i]) for i, name in enumerate("abc")})
    first, second = slice(gallery), slice(gallery, None)
    return (
        states[first],
        table.isel(sample=first),
        states[second],
        table.isel(sample=second),
    )


def test_a_planted_factor_is_read_out_and_lost_as_noise_is_added():
    means = [geometry_probe(*planted(noise))["mean"].values for noise in (0.01, 1, 4, 100)]
    assert (means[0][:2] > 0.999).all()
    assert (np.diff([mean[:2] for mean in means], axis=0) < 0).all()
    assert np.abs(means[-1]).max() < 0.1 and np.abs([mean[2] for mean in means]).max() < 0.1


@pytest.mark.parametrize("dim", [20, 400])
def test_penalties_and_scores_equal_a_searched_sklearn_ridge_for_each_property(dim):
    gallery, known, query, asked = planted(3, dim=dim)
    found = geometry_probe(gallery, known, query, asked, shuffles=1)
    scaler = StandardScaler().fit(gallery)
    folds = deal_folds(np.arange(200), np.zeros(200), 5, seed=0)
    for name in "ab":
        search = GridSearchCV(
            Ridge(),
            {"alpha": PENALTIES * 200},
            scoring="neg_mean_squared_error",
            cv=PredefinedSplit(folds),
        ).fit(scaler.transform(gallery), known[name])
        here = found.sel(property=name)
        assert float(here.penalty) == pytest.approx(search.best_params_["alpha"] / 200)
        expected = search.predict(scaler.transform(query))
        assert float(here["mean"]) == pytest.approx(r2_score(asked[name], expected))
        trained = r2_score(known[name], search.predict(scaler.transform(gallery)))
        assert float(here.train) == pytest.approx(trained)
        np.testing.assert_allclose(1 - here.error.mean(), here["mean"])


def test_shuffled_values_explain_nothing_though_wide_states_fit_them():
    found = geometry_probe(*planted(1, dim=600), penalties=[1e-6])
    assert (found.train > 0.99).all() and (found.shuffled < 0.02).all()
    assert float(geometry_probe(*planted(1))["shuffled"].max()) < 0.02


def test_the_interval_holds_r2_as_often_as_it_says():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100_000, 2))
    predicted = values * [0.7, 0.2] + rng.normal(size=values.shape) * [0.3, 0.5]
    truth, covered = r2(values, predicted), []
    for start in range(0, 60_000, 200):
        rows = slice(start, start + 200)
        _, low, high = r2_interval(values[rows], predicted[rows], resamples=400, seed=start)
        covered.append((low <= truth) & (truth <= high))
    # 300 draws at 0.95: standard error 0.013
    np.testing.assert_allclose(np.mean(covered, axis=0), 0.95, atol=0.035)


def test_one_seed_gives_one_answer_and_columns_do_not_touch_each_other():
    gallery, known, query, asked = planted(2)
    found = geometry_probe(gallery, known, query, asked, seed=3)
    assert found.equals(geometry_probe(gallery, known, query, asked, seed=3))
    alone = geometry_probe(gallery, known[["b"]], query, asked[["b"]], seed=3)
    xr.testing.assert_allclose(alone, found.sel(property=["b"]))
    plain = geometry_probe(gallery, known["b"].values, query, asked["b"].values, seed=3)
    np.testing.assert_allclose(plain["low"], alone["low"])
    assert ((found.low <= found["mean"]) & (found["mean"] <= found.high)).all()


G, K, Q, A = planted(1, gallery=30, query=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": np.where(G > 2, np.nan, G)}, "gallery holds NaN or infinity"),
        ({"query": Q[:, :3]}, r"gallery \(30, 20\) and query \(20, 3\).*dims the same"),
        ({"gallery": np.ones((30, 20))}, "all features are constant"),
        ({"gallery_values": K * 0 + 2}, "gallery_values of 'a' are constant"),
        ({"query_values": A * np.nan}, "query_values of 'a' hold NaN or infinity"),
        ({"query_values": A[["a", "b"]]}, "gallery_values hold a, b, c, query_values a, b"),
        ({"query_values": A.isel(sample=slice(5))}, r"query_values \(5, 3\) for 20 query samples"),
        ({"folds": 31}, "folds=31 must be 2 to 30, the number of objects"),
        ({"shuffles": 0}, "shuffles=0: a probe without a control"),
    ],
)
def test_what_cannot_be_read_out_is_refused(change, message):
    good = {"gallery": G, "gallery_values": K, "query": Q, "query_values": A}
    with pytest.raises(ValueError, match=message):
        geometry_probe(**(good | change))
