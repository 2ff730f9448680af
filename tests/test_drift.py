"""Drift through maps, held against scikit-learn and planted rotations."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probe import drift
from probe.drift import STRENGTHS, apply_map, cosine_drift, drift_parts, fit_map


def objects(samples=60, tokens=4, dim=10, target_dim=6, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, tokens, dim)) * np.logspace(-1, 1, dim) + 3
    clean = x @ rng.normal(size=(dim, target_dim)) + 5
    return x, clean + noise * rng.normal(size=clean.shape) * clean.std()


GALLERY = np.arange(40)


def test_the_ridge_map_and_its_strength_equal_those_of_sklearn():
    x, target = objects(dim=30, noise=3)
    ours = fit_map(x[GALLERY], target[GALLERY], "ridge", seed=0)
    folds = np.random.default_rng(0).permutation(40) % 5
    rows, wanted = x[GALLERY].reshape(160, 30), target[GALLERY].reshape(160, 6)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), Ridge()),
        # the penalty of sklearn is on the sum over the 128 tokens that a fold leaves to train on
        {"ridge__alpha": STRENGTHS * 128},
        cv=PredefinedSplit(np.repeat(folds, 4)),
        scoring="neg_mean_squared_error",
    ).fit(rows, wanted)
    assert ours.strength == pytest.approx(search.best_params_["ridge__alpha"] / 128)
    model = make_pipeline(StandardScaler(), Ridge(alpha=ours.strength * 160)).fit(rows, wanted)
    expected = model.predict(x.reshape(-1, 30)).reshape(60, 4, 6)
    np.testing.assert_allclose(apply_map(x, ours), expected, atol=1e-3)
    theirs = paired_cosine_distances(expected.reshape(-1, 6), target.reshape(-1, 6))
    found = cosine_drift(x, target, "ridge", gallery=GALLERY)
    np.testing.assert_allclose(found, theirs.reshape(60, 4)[40:].mean(1), atol=1e-5)


@pytest.mark.parametrize("map", ["ridge", "procrustes"])
def test_a_turned_and_shifted_copy_has_not_drifted(map):
    x = np.random.default_rng(0).normal(size=(60, 4, 8)) + 2
    target = 3 * x @ ortho_group.rvs(8, random_state=0) + 1
    assert cosine_drift(x, target, map, gallery=GALLERY).max() < 1e-5


def test_unrelated_objects_drift_all_the_way_and_a_map_cannot_learn_otherwise():
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(400, 4, 50)), rng.normal(size=(400, 4, 20))
    parts = drift_parts(x, target, "ridge", gallery=np.arange(200))
    assert parts.centred.mean() == pytest.approx(1, abs=0.05)
    assert parts.centred_random.mean() == pytest.approx(1, abs=0.05)


def test_what_all_objects_share_shows_in_the_control_and_not_in_the_centred_form():
    x, target = objects(200, noise=2)
    target = target + 100 * np.random.default_rng(1).normal(size=6)
    parts = drift_parts(x, target, "ridge", gallery=np.arange(100))
    assert parts.random.mean() < 0.3 and parts.centred_random.mean() == pytest.approx(1, abs=0.1)
    assert parts.centred.mean() < 0.8 * parts.centred_random.mean()


def test_drift_of_the_mean_token_is_that_of_the_mapped_mean_less_the_gallerys():
    x, target = objects()
    mapped = apply_map(x, fit_map(x[GALLERY], target[GALLERY]))
    ours, theirs = (one.mean(axis=1) - one[:40].mean(axis=(0, 1)) for one in (mapped, target))
    parts = drift_parts(x, target, gallery=GALLERY)
    expected = paired_cosine_distances(ours[40:], theirs[40:])
    np.testing.assert_allclose(parts.pooled, expected, atol=1e-5)


def test_an_object_whose_tokens_are_noise_may_have_kept_its_mean_token():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(400, 1, 20)), rng.normal(size=(400, 30, 20))
    x = shared + 2 * rng.normal(size=(400, 30, 20))
    parts = drift_parts(x, shared + own, gallery=np.arange(200))
    assert parts.centred.mean() > 0.6 > 0.2 > parts.pooled.mean()
    assert parts.pooled_random.mean() == pytest.approx(1, abs=0.1)


def test_queries_never_reach_the_map():
    x, target = objects()
    before = cosine_drift(x, target, gallery=GALLERY, query=np.arange(40, 50))
    x[50:], target[50:] = 1e3, -1e3
    np.testing.assert_array_equal(
        cosine_drift(x, target, gallery=GALLERY, query=np.arange(40, 50)), before
    )


def test_no_map_is_the_cosine_itself_and_a_projector_may_be_a_torch_module():
    x, _ = objects()
    assert cosine_drift(x, 2 * x, "none").max() < 1e-6
    np.testing.assert_allclose(cosine_drift(x, -x, "none"), 2, atol=1e-6)
    np.testing.assert_allclose(cosine_drift(torch.from_numpy(x), -x, "none"), 2, atol=1e-6)
    layer = torch.nn.Linear(10, 6)
    target = layer(torch.from_numpy(x).float()).detach().numpy()
    assert cosine_drift(x, target, "alignment", projector=layer).max() < 1e-6
    assert cosine_drift(x, target, "alignment", projector=lambda _: target).max() < 1e-6


def test_fitting_on_some_tokens_takes_as_many_of_each_object(monkeypatch):
    monkeypatch.setattr(drift, "FIT_TOKENS", 80)
    x, target = objects()
    every = np.ones(x.shape[:2], bool)
    few_x, few_y, _ = drift._some_tokens(x, target, np.arange(40), 0, every)
    assert few_x.shape == (40, 2, 10) and few_y.shape == (40, 2, 6)
    where = (x[:40, None] == few_x[:, :, None]).all(-1).argmax(-1)  # which token each one was
    np.testing.assert_array_equal(np.take_along_axis(target[:40], where[..., None], 1), few_y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery": None}, "map 'ridge' is fitted: name the gallery"),
        ({"map": "none"}, "needs equal dims, not 10 and 6"),
        ({"map": "affine"}, "map 'affine'"),
        ({"map": "alignment"}, "takes a projector"),
        ({"query": np.arange(39, 60)}, "1 objects are in the gallery and in the query"),
        ({"query": np.arange(55, 61)}, "names rows beyond the 60 objects"),
        ({"gallery": np.arange(3)}, "needs 5 gallery objects or more, there are 3"),
        ({"x": np.zeros((60, 4, 10))}, "all features are constant"),
        ({"x": np.full((60, 4, 10), 0.1)}, "all features are constant"),
        ({"x": np.full((60, 4, 10), 0.1), "map": "procrustes"}, "all features are constant"),
        ({"x": np.full((60, 4, 10), np.inf)}, "x sample 0 has values that are not finite"),
        ({"x": np.zeros((60, 5, 10))}, "samples and tokens the same"),
    ],
)
def test_what_has_no_drift_is_refused(change, message):
    x, target = objects()
    good = {"x": x, "target": target, "map": "ridge", "gallery": GALLERY}
    with pytest.raises(ValueError, match=message):
        cosine_drift(**(good | change))


@pytest.mark.parametrize("map", ["ridge", "procrustes"])
def test_tokens_left_out_are_as_if_they_had_never_been(map):
    x, target = objects()
    sink = x.copy()
    sink[:, 2] *= 300  # in every object, of the gallery as well
    gallery, query = np.arange(40), np.arange(40, len(x))
    massive = np.zeros(x.shape[:2], bool)
    massive[:, 2] = True
    found = drift_parts(sink, target, map, gallery=gallery, query=query, left_out=massive)
    rest, goals = (np.delete(one, 2, axis=1) for one in (x, target))
    never = drift_parts(rest, goals, map, gallery=gallery, query=query)
    for part in ("plain", "random", "centred", "centred_random", "pooled", "pooled_random"):
        np.testing.assert_allclose(getattr(found, part), getattr(never, part), atol=1e-5)
    assert drift_parts(sink, target, map, gallery=gallery, query=query).plain.mean() > (
        never.plain.mean() + 0.02
    )


def test_an_object_that_would_lose_all_tokens_keeps_them_and_masks_must_fit():
    x, target = objects()
    gallery = np.arange(40)
    usual = drift_parts(x, target, gallery=gallery)
    every = np.ones(x.shape[:2], bool)
    found = drift_parts(x, target, gallery=gallery, left_out=every)
    np.testing.assert_allclose(found.plain, usual.plain)
    with pytest.raises(ValueError, match=r"left_out \(3, 3\) of tokens"):
        drift_parts(x, target, gallery=gallery, left_out=every[:3, :3])


def test_a_position_that_no_gallery_object_keeps_is_not_scored():
    x, target = objects()
    gallery = np.arange(40)
    first = np.zeros(x.shape[:2], bool)
    first[:40, 0] = True  # as a first token that is massive all but everywhere
    found = drift_parts(x, target, gallery=gallery, left_out=first)
    first[:, 0] = True
    never = drift_parts(x, target, gallery=gallery, left_out=first)
    for part in ("plain", "centred", "centred_random", "pooled"):
        np.testing.assert_allclose(getattr(found, part), getattr(never, part))
