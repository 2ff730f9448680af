"""Intervals and tests, held against closed forms, scipy and simulation."""

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom, binomtest

from probe.intervals import (
    adjust_normal,
    bootstrap,
    group_difference,
    holm,
    mcnemar,
    paired_difference,
    percentile_band,
    ratio,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (430, 528)])
def test_wilson_equals_scipy(hits, n):
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    ours = wilson(hits, n)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((hits / n, theirs.low, theirs.high))


def test_mcnemar_equals_the_binomial_test_of_the_objects_that_differ():
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.6
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    exact = mcnemar(a, b, exact=True)
    assert exact == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    # the mid-p leaves out half of the chance of what was found, at either end
    own = binom.pmf(only_a, only_a + only_b, 0.5)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(exact - own)
    assert mcnemar(a, a) == mcnemar(a, a, exact=True) == 1


def test_a_band_of_percentiles_holds_its_share_of_whole_curves_and_is_moved_by_no_outlier():
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(3), 0.5 * np.eye(3) + 0.5, 4000)
    low, high = percentile_band(draws)
    whole = ((low <= draws) & (draws <= high)).all(axis=1).mean()
    assert 0.95 <= whole < 0.952
    assert (low < np.quantile(draws, 0.025, axis=0)).all()
    wild = draws.copy()
    wild[:3] = 1e9
    assert (percentile_band(wild)[1] < 1.1 * high).all()


def test_mcnemar_of_one_object_that_differs_and_of_as_many_either_way():
    one, none = np.array([True, False, False]), np.zeros(3, bool)
    assert mcnemar(one, none, exact=True) == 1 and mcnemar(one, none) == 0.5
    assert mcnemar(one, one[::-1]) == 1 == mcnemar(one, one[::-1], exact=True)


@pytest.mark.parametrize("objects", [12, 30, 400])
def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says(objects):
    values = np.random.default_rng(0).normal(size=(3, objects))
    theirs = stats.t.interval(0.95, objects - 1, values.mean(axis=1), stats.sem(values, axis=1))
    found, gap = bootstrap(values, seed=1), paired_difference(values, 0 * values, seed=1)
    for low, high in (found[1:], gap[1:3]):
        np.testing.assert_allclose(high - low, theirs[1] - theirs[0], rtol=0.08)
    np.testing.assert_array_equal(found.low, bootstrap(values, seed=1).low)


def test_a_mean_of_few_objects_is_held_and_stays_among_them():
    rng = np.random.default_rng(0)
    found = [bootstrap(rng.normal(size=15), resamples=500, seed=run) for run in range(1000)]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.93 <= held <= 0.97  # three standard errors; plain percentiles hold 0.91
    shares = bootstrap(np.arange(30) < 1)
    assert shares.low == 0 < shares.high < 1


def test_false_alarms_over_layers_are_held_at_the_level():
    rng = np.random.default_rng(0)
    alone, any_layer = 0, 0
    for _ in range(400):
        gaps = rng.normal(size=(8, 60)) + rng.normal(size=60)  # layers of one object move together
        found = paired_difference(gaps, np.zeros_like(gaps), resamples=10, permutations=200)
        alone += found.p[0] < 0.05
        any_layer += (found.p_adjusted < 0.05).any()
        assert (found.p_adjusted >= found.p).all()
    # 400 draws at 5 %: a standard error of 1.1 points
    assert 0.02 <= alone / 400 <= 0.08 and 0.02 <= any_layer / 400 <= 0.08


def test_a_planted_difference_is_found_with_its_size():
    rng = np.random.default_rng(0)
    b = rng.normal(size=(4, 200))
    a = b + np.array([0, 0, 0.5, 1])[:, None] + 0.1 * rng.normal(size=(4, 200))
    found = paired_difference(a, b)
    assert (found.p_adjusted[2:] < 0.001).all() and (found.p_adjusted[:2] > 0.05).all()
    assert ((found.low[2:] < [0.5, 1]) & (found.high[2:] > [0.5, 1])).all()
    wide = paired_difference(a, b, simultaneous=True)
    assert (wide.low < found.low).all() and (wide.high > found.high).all()
    np.testing.assert_array_equal((found.wide_low, found.wide_high), (wide.low, wide.high))


def test_bands_hold_all_layers_at_once_and_end_where_the_adjusted_p_does():
    rng = np.random.default_rng(0)
    held = {"means": 0, "groups": 0}
    group = np.arange(90) % 15
    for _ in range(300):
        a = rng.normal(size=(6, 90)) + rng.normal(size=90)
        b = np.zeros_like(a)
        means = paired_difference(a, b, resamples=600, permutations=2)
        out = np.stack([a[:, group != g].mean(axis=1) for g in range(15)], axis=1)
        groups = group_difference(a.mean(axis=1), out, b.mean(axis=1), 0 * out)
        for name, one in (("means", means), ("groups", groups)):
            held[name] += bool(((one.wide_low <= 0) & (one.wide_high >= 0)).all())
    assert 0.91 < held["means"] / 300 < 0.98 and held["groups"] / 300 > 0.93
    shifted = rng.normal(0.3, 1, size=(6, 90))
    found = paired_difference(shifted, np.zeros((6, 90)), resamples=4000)
    outside = (found.wide_low > 0) | (found.wide_high < 0)
    clear = np.abs(found.p_adjusted - 0.05) > 0.02
    np.testing.assert_array_equal(outside[clear], (found.p_adjusted < 0.05)[clear])


def test_equal_scores_give_no_difference():
    scores = np.random.default_rng(0).random((2, 50))
    found = paired_difference(scores, scores)
    assert (found.mean == 0).all() and (found.p == 1).all() and (found.p_adjusted == 1).all()


def test_the_normal_adjustment_is_none_for_one_test_and_near_bonferroni_for_independent_ones():
    assert adjust_normal(np.array([1.96]), np.eye(1))[0] == pytest.approx(0.05, abs=0.006)
    adjusted = adjust_normal(np.full(10, 2.8), np.eye(10))
    np.testing.assert_allclose(adjusted, 1 - (1 - 0.00511) ** 10, atol=0.006)
    alike = adjust_normal(np.full(10, 1.96), np.ones((10, 10)))
    np.testing.assert_allclose(alike, 0.05, atol=0.006)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap(np.zeros(1)), "needs 2 objects"),
        (lambda: bootstrap(np.array([1, np.nan])), "hold NaN"),
        (lambda: paired_difference(np.zeros(3), np.zeros(4)), "are not paired"),
        (lambda: wilson(5, 4), "hits=5 of n=4"),
        (lambda: wilson(0, 0), "hits=0 of n=0"),
        (lambda: mcnemar(np.zeros(3), np.zeros(4)), "are not paired"),
        (lambda: mcnemar(np.zeros(0), np.zeros(0)), "hits of 0 objects"),
    ],
)
def test_what_has_no_interval_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_share_of_repeated_questions_is_as_sure_as_its_objects():
    rng = np.random.default_rng(0)
    easy = rng.random((2000, 150)) < 0.7  # an object is right whenever it is asked, or never
    asked = rng.binomial(20, 0.1, size=easy.shape)
    found = ratio(easy * asked, asked)
    np.testing.assert_allclose(found.mean, (easy * asked).sum(1) / asked.sum(1))
    assert 0.935 < ((found.low <= 0.7) & (found.high >= 0.7)).mean() < 0.965
    once = ratio(easy[:3].astype(int), np.ones((3, 150), int))
    plain = wilson(easy[:3].sum(axis=1), 150)
    np.testing.assert_allclose(once, plain, atol=2e-3)
    assert ratio(np.ones(30), np.ones(30)).low == wilson(30, 30).low


def test_what_is_not_defined_is_no_test_and_makes_no_other_stricter():
    rng = np.random.default_rng(0)
    values, out = rng.normal(size=4) + 3, rng.normal(size=(4, 16)) / 16 + 3
    whole = group_difference(values, out, 0 * values, 0 * out)
    values[1] = out[1] = np.nan
    found = group_difference(values, out, 0 * values, 0 * out)
    assert np.isnan([found.p[1], found.p_adjusted[1]]).all()
    np.testing.assert_array_equal(np.delete(found.p, 1), np.delete(whole.p, 1))
    assert found.p_adjusted.tolist()[0] == holm(np.delete(whole.p, 1))[0]
