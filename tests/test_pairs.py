"""All pairs of layers at once equal each pair alone."""

import numpy as np
import pytest
from scipy import stats
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

import store
from probe.cka import cka, cka_interval, cka_null
from probe.contrast import cka_of_layers
from probe.halves import as_left_out, halvings
from probe.intervals import group_jackknife
from probe.pairs import ALIKE, SHARE, alike, cka_pairs, cka_pairs_null
from probe.sheet_states import likeness_interval
from probe.similarity import mutual_knn, procrustes_distance, pwcca, rsa, svcca


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(90, 12))
    mixed = [base @ rng.normal(size=(12, dim)) for dim in (12, 7, 200)]
    return [one + rng.normal(size=one.shape) + 5 for one in (*mixed, rng.normal(size=(90, 9)))]


def test_every_pair_equals_the_cka_of_the_two_alone(states, monkeypatch):
    monkeypatch.setattr("probe.pairs.BLOCK_BYTES", 20_000)  # several blocks
    found = cka_pairs(states)
    for i in range(4):
        for j in range(4):
            alone = cka_interval(states[i], states[j])
            assert found.mean[i, j] == pytest.approx(cka(states[i], states[j]), abs=1e-12)
            assert found.low[i, j] == pytest.approx(alone.low, abs=1e-12)
            assert found.high[i, j] == pytest.approx(alone.high, abs=1e-12)
            np.testing.assert_allclose(found.left_out[:, i, j], alone.left_out, atol=1e-12)


def test_the_null_is_the_largest_of_all_pairs_in_each_order_and_its_reverse(states, monkeypatch):
    monkeypatch.setattr("probe.pairs.PAIRS_AT_ONCE", 1000)  # several blocks
    ours, rng, theirs = cka_pairs_null(states, 5, seed=1), np.random.default_rng(1), []
    for _ in range(3):
        order = rng.permutation(90)
        for dealt in (order, np.argsort(order)):
            pairs = [(i, j) for j in range(4) for i in range(j)]
            theirs.append(max(cka(states[i], states[j][dealt]) for i, j in pairs))
    np.testing.assert_allclose(ours, theirs[:5], atol=1e-6)  # sums in float32


def test_the_null_of_one_pair_is_that_of_plain_permutations():
    rng = np.random.default_rng(1)
    noise = [rng.normal(size=(90, 6)) for _ in range(2)]
    ours = cka_pairs_null(noise, 400, seed=1)
    theirs = cka_null(*noise, permutations=400, seed=2)
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01


def test_other_likenesses_equal_their_own_functions_whole_and_in_part(states):
    x, y = states[:2]
    found = alike(x, y, k=5, seed=3)
    expected = [procrustes_distance(x, y), rsa(x, y), mutual_knn(x, y, 5), svcca(x, y), pwcca(x, y)]
    np.testing.assert_allclose(found.values, expected)
    group = np.random.default_rng([3, 5]).permutation(90) % 16
    keep = group != 4
    for name, part in (("procrustes", procrustes_distance), ("rsa", rsa)):
        assert found.left_out[ALIKE.index(name), 4] == pytest.approx(part(x[keep], y[keep]))
    for name, part in (("svcca", _svcca_in_part(x, y, keep)), ("pwcca", pwcca(x[keep], y[keep]))):
        expected = (part + _halved({"svcca": svcca, "pwcca": pwcca}[name], x, y, group)[4]) / 2
        assert found.left_out[ALIKE.index(name), 4] == pytest.approx(expected, abs=1e-6), name
    halves = [
        [mutual_knn(x[side], y[side], 4) for side in (half, ~half)] for half in halvings(group)
    ]
    first, second = np.arcsin(np.sqrt(halves)).T
    share = found.values[2]
    error = np.sqrt(share * (1 - share) * ((first - second) ** 2).mean())
    one = group_jackknife(share, found.left_out[2])
    assert (one.high - one.low) / 2 == pytest.approx(error * stats.t.ppf(0.975, 15))
    flat = np.random.default_rng(8).normal(size=(90, 4)) @ np.diag([1, 2, 1, 2])
    steady = alike(flat, flat + 0.5 * y[:, :4], k=5, seed=3)  # as many directions in every half
    expected = _svcca_in_part(flat, flat + 0.5 * y[:, :4], keep)
    assert steady.left_out[ALIKE.index("svcca"), 4] == pytest.approx(expected, abs=1e-6)
    few = alike(x[:45], y[:45], k=5, seed=3)  # 3.75 objects to a dimension: no halves of PWCCA
    keep = np.random.default_rng([3, 5]).permutation(45) % 16 != 4
    assert few.left_out[4, 4] == pytest.approx(pwcca(x[:45][keep], y[:45][keep]))
    fewer = alike(x[:24], y[:24], k=5, seed=3)  # 3 objects to a direction: no halves of SVCCA
    keep = np.random.default_rng([3, 5]).permutation(24) % 16 != 4
    expected = _svcca_in_part(x[:24], y[:24], keep)
    assert fewer.left_out[ALIKE.index("svcca"), 4] == pytest.approx(expected, abs=1e-6)
    wide = alike(x, states[2], k=5)  # 200 dims of 90 objects: no canonical correlations to weigh
    for name, part in (("procrustes", procrustes_distance), ("rsa", rsa), ("svcca", svcca)):
        assert wide.values[ALIKE.index(name)] == pytest.approx(part(x, states[2]))
    assert np.isnan(wide.values[-1]) and np.isfinite(wide.values[:-1]).all()


def _halved(measure, x, y, group):
    """Of a share, as left out by its halves."""
    halves = [[measure(x[side], y[side]) for side in (half, ~half)] for half in halvings(group)]
    first, second = np.arcsin(np.sqrt(halves)).T
    share = measure(x, y)
    return as_left_out(share, 2 * np.sqrt(share * (1 - share)) * (first - second))


def test_intervals_of_likenesses_are_even_on_the_scale_of_each():
    left_out = 0.8 + 0.05 * np.random.default_rng(2).normal(size=16)
    half = stats.t.ppf(0.975, 15) * np.sqrt(15)
    for key, there in (("rsa", np.arctanh), ("svcca", np.arctanh), ("procrustes", np.log)):
        found = likeness_interval(key, np.array(0.8), left_out)
        away = half * np.std(there(left_out))
        ends = [there(0.8) - away, there(0.8) + away]
        np.testing.assert_allclose([there(found.low), there(found.high)], ends)
    share = likeness_interval("mutual_knn", np.array(0.8), left_out)
    assert share == group_jackknife(np.array(0.8), left_out)
    copy = likeness_interval("pwcca", np.array(1.0), np.full(16, 1.0))
    turned = likeness_interval("procrustes", np.array(0.0), np.zeros(16))
    np.testing.assert_allclose(copy, 1, atol=1e-9)
    np.testing.assert_allclose(turned, 0, atol=1e-9)
    assert copy.low <= copy.mean <= copy.high and turned.low <= turned.mean <= turned.high
    for key in ("procrustes", "pwcca"):
        assert np.isnan(likeness_interval(key, np.array(np.nan), np.full(16, np.nan))).all()
        lost = likeness_interval(key, np.array(0.8), np.append(left_out[1:], np.nan))
        assert lost.mean == 0.8 and np.isnan(lost[1:]).all()
    for key, end in (("procrustes", 0.0), ("rsa", 1.0)):  # all but one object are copies
        one = np.append(left_out[1:], end)
        assert likeness_interval(key, np.array(0.8), one) == group_jackknife(np.array(0.8), one)
    both = likeness_interval("rsa", np.array([0.8, 1.0]), np.stack([left_out, np.ones(16)]))
    alone = likeness_interval("rsa", np.array(0.8), left_out)
    np.testing.assert_allclose(np.stack(both)[:, 0], alone)


def _svcca_in_part(x, y, keep):
    """Of the objects kept, in the directions of all objects and, in part, in their own."""
    held = [PCA(0.99, svd_solver="full").fit_transform(states) for states in (x, y)]
    both = CCA(min(len(part.T) for part in held), max_iter=5000, tol=1e-10)
    pairs = zip(*(part[keep].T for part in both.fit_transform(*held)), strict=True)
    own = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
    return own + SHARE * (svcca(x[keep], y[keep]) - own)


@pytest.mark.parametrize("count", [6, 14])
def test_fewer_objects_than_groups_are_left_out_one_by_one(states, count):
    x, y = (one[:count, :2] for one in states[:2])
    found = alike(x, y)
    assert found.left_out.shape == (len(ALIKE), count) and np.isfinite(found.left_out).all()
    assert np.isnan(alike(*(one[:count] for one in states[1:3])).left_out[-1]).all()


def test_sets_of_different_objects_are_refused(states):
    with pytest.raises(ValueError, match="need the same 5 or more"):
        cka_pairs([states[0], states[1][:-1]])


@pytest.mark.slow
def test_jackknife_bands_of_cka_and_rsa_cover_the_value_of_many_objects():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 8))

    def draw(n):
        x = rng.normal(size=(n, 6))
        return x, x @ mix + 1.5 * rng.normal(size=(n, 8))

    truth = cka(*draw(20_000)), rsa(*draw(3000))
    covered = np.zeros(2)
    for _ in range(1000):
        x, y = draw(120)
        one = cka_interval(x, y)
        found = alike(x, y, k=5)
        rank = group_jackknife(found.values[1], found.left_out[1])
        for at, (low, high) in enumerate(((one.low, one.high), (rank.low, rank.high))):
            covered[at] += low <= truth[at] <= high
    # 95 %, a standard error of 0.7 points
    assert (covered / 1000 > 0.925).all() and (covered / 1000 < 0.975).all()


def test_of_many_objects_the_null_is_of_some_and_reaches_higher(states, monkeypatch):
    whole = cka_pairs_null(states, 400)
    monkeypatch.setattr("probe.pairs.MOST", 45)
    some = np.sort(np.random.default_rng(3).permutation(90)[:45])
    part = cka_pairs_null(states, 400, seed=3)
    alone = cka_pairs_null([x[some] for x in states], 400, seed=4)
    assert part.mean() == pytest.approx(alone.mean(), rel=0.15)
    assert np.quantile(part, 0.95) > 1.4 * np.quantile(whole, 0.95)


def test_a_model_whose_capture_was_stopped_is_compared_in_the_objects_it_has(tmp_path):
    rng, count = np.random.default_rng(0), 64
    states = rng.normal(size=(1, count, 2, 5)).astype(np.float32)
    writer = store.create_run(
        tmp_path / "run",
        samples={
            "id": [str(row) for row in range(count)],
            "label": np.arange(count) % 2,
            "class_name": ["cup", "chair"] * (count // 2),
            "split": ["gallery", "query"] * (count // 2),
            "caption": ["A shape."] * count,
        },
        layers=[0],
        variants=["whole", "stopped"],
        tokens=2,
        dim=5,
        target_dim=5,
    )
    for start in range(0, count, writer.chunk):
        rows = slice(start, min(start + writer.chunk, count))
        writer.append_target(rows, states[0, rows])
        writer.append("whole", rows, states[:, rows])
        if start == 0:
            writer.append("stopped", rows, 2 * states[:, rows])
            had = rows.stop
    run = store.open_run(tmp_path / "run")
    found = cka_of_layers((run, "whole"), (run, "stopped"))
    assert found.item() == pytest.approx(1) and found.attrs["objects"] == had // 2
