"""Hubness against scipy, against chance in closed form, and where one object is everybody's."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from probe.hubness import by_chance, hubness, skewness
from probe.intervals import group_jackknife
from probe.knn import nearest


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_skewness_is_scipys_and_of_the_counts_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    gallery, query = rng.normal(size=(40, 5)), rng.normal(size=(30, 5))
    found = nearest(gallery, query, 4)
    counts = np.array([sum(row in ones for ones in found.tolist()) for row in range(40)])
    value, left_out = hubness(found, 40, groups=5, seed=seed)
    assert value == pytest.approx(stats.skew(counts), rel=1e-12)
    group = np.random.default_rng([seed, 5]).permutation(30) % 5

    def without(*gone):
        return stats.skew(np.bincount(found[~np.isin(group, gone)].ravel(), minlength=40))

    one = np.array([without(at) for at in range(5)])
    pairs = [
        5 * value - 4 * (one[a] + one[b]) + 3 * without(a, b) for a, b in combinations(range(5), 2)
    ]
    share = np.square(pairs).sum() / 25 / (4 * one.var())
    expected = one.mean() + np.sqrt(max(1 - share / 4, 0.5)) * (one - one.mean())
    assert left_out == pytest.approx(expected, rel=1e-9)


def test_neighbours_drawn_at_random_have_the_skewness_of_the_binomial():
    for queries, gallery, k in ((500, 400, 1), (300, 400, 10), (50, 400, 300)):
        closed = float(stats.binom(queries, k / gallery).stats("s"))
        assert by_chance(queries, gallery, k) == pytest.approx(closed, rel=1e-9)
        rng = np.random.default_rng(0)
        scores = rng.random((20, queries, gallery)).argpartition(k - 1, axis=2)[..., :k]
        drawn = [hubness(found, gallery, groups=0).value for found in scores]
        assert np.mean(drawn) == pytest.approx(closed, abs=0.1)


def test_one_hub_is_as_skew_as_can_be_and_equal_shares_have_no_skewness():
    gallery = 50
    found = np.zeros((80, 1), int)  # all have the first object as their neighbour
    share = 1 / gallery  # counts are 80 times a Bernoulli of this share
    assert hubness(found, gallery).value == pytest.approx(
        (1 - 2 * share) / np.sqrt(share * (1 - share))
    )
    assert np.isnan(hubness(np.arange(gallery)[:, None], gallery, groups=0).value)
    assert np.isnan(by_chance(5, 3, 3))
    with pytest.raises(ValueError, match="neighbours 0 to 7 of 7 gallery objects"):
        hubness(np.array([[0], [7]]), 7)


def test_wide_states_have_hubs_and_narrow_ones_few():
    """Radovanovic et al. 2010, Figure 1: the skewness grows with the dimension."""
    rng = np.random.default_rng(0)
    found = []
    for dim in (3, 20, 100):
        gallery, query = rng.normal(size=(2, 1000, dim))
        found.append(float(hubness(nearest(gallery, query, 10, metric="l2"), 1000).value))
    assert found[0] < 0.7 < found[1] < found[2]
    assert found[2] > 2.5


@pytest.mark.slow
@pytest.mark.parametrize("dim", [3, 20])
def test_intervals_hold_the_mean_over_queries(dim):
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(300, dim))
    values = []
    for seed in range(600):
        found = nearest(gallery, rng.normal(size=(300, dim)), 10, metric="l2")
        values.append(group_jackknife(*hubness(found, 300, seed=seed)))
    truth = np.mean([one.mean for one in values])
    covered = np.mean([one.low <= truth <= one.high for one in values])
    assert 0.932 <= covered <= 0.968  # two standard errors of 0.9 points


def test_rows_are_told_apart():
    assert skewness(np.array([[0, 0, 3], [1, 1, 4]])) == pytest.approx([stats.skew([0, 0, 3])] * 2)
