"""A planted depth of loss is recovered with honest intervals; no loss is no verdict."""

import numpy as np
import pytest

from probe.verdict import (
    crossing,
    detectable,
    equivalence,
    falls,
    hit_error,
    margin_of,
    shift,
)

LAYERS = np.arange(33)
MARGIN = 0.05


def curve(rng, depth, slope=0.02, samples=400, share=0.4, noise=0.25):
    """Scores less their reference, (layers, samples): flat, then falling through -MARGIN at
    `depth`; an object's noise is shared by its layers in part."""
    start = depth - MARGIN / slope
    fallen = -slope * np.maximum(LAYERS - start, 0)
    own = rng.normal(size=(1, samples)) * np.sqrt(share)
    return fallen[:, None] + noise * (
        own + rng.normal(size=(len(LAYERS), samples)) * np.sqrt(1 - share)
    )


def coverage(repeats, resamples, samples=400, groups=None):
    rng = np.random.default_rng(0)
    covered, moved = 0, 0
    for at in range(repeats):
        # the true mean between layers is the straight line that the depth is read from
        gaps = np.stack([curve(rng, 24, samples=samples), curve(rng, 16, samples=samples)])
        if groups:  # as of a statistic with groups of objects left out
            gaps = gaps.reshape(*gaps.shape[:2], -1, groups).mean(axis=2)
        found = falls(gaps, LAYERS, MARGIN, resamples=resamples, seed=at)
        covered += ((found.low <= [24, 16]) & (found.high >= [24, 16])).mean()
        later = shift(found, 0, 1, 32)
        moved += float(later.low) <= 8 <= float(later.high)
    return covered / repeats, moved / repeats


def test_the_crossing_of_a_straight_line_is_where_algebra_puts_it():
    layers = np.array([0, 4, 8])
    assert crossing(np.array([0, -0.1, -0.2]), layers, 0.15) == pytest.approx(6)
    assert crossing(np.array([-0.2, 0, 0]), layers, 0.15) == 0
    assert np.isinf(crossing(np.array([0, -0.1, -0.15]), layers, 0.15))
    # it is the first one that counts
    assert crossing(np.array([0, -0.2, 0.0]), layers, 0.1) == pytest.approx(2)


def test_a_planted_depth_is_bracketed_by_what_holds_and_what_has_fallen():
    kept, lost = (
        curve(np.random.default_rng(seed), depth, samples=2000)
        for seed, depth in ((1, 100), (0, 20))
    )
    gaps = np.stack([lost, kept])
    found = falls(gaps, LAYERS, MARGIN)
    assert found.depth[0] == pytest.approx(20, abs=1.5)
    assert found.low[0] < 20 < found.high[0] and found.p[0] < 0.01
    assert found.held[0] < 20 < found.fallen[0] <= 24
    assert np.isinf(found.depth[1]) and np.isnan(found.fallen[1]) and found.held[1] == 32
    later = shift(found, 1, 0, 32)
    assert later.mean == pytest.approx(12, abs=1) and later.censored == 1


def test_depths_and_shifts_are_covered_as_often_as_promised():
    covered, moved = coverage(150, 400)
    # 95 % of 150: a standard error of 1.8 points
    assert 0.90 <= covered <= 0.99 and 0.90 <= moved <= 0.99


@pytest.mark.slow
def test_depths_and_shifts_are_covered_94_to_96_times_in_a_hundred():
    # with fewer objects the noise of 33 layers makes the shift's interval a point too wide
    covered, moved = coverage(1500, 600, samples=2000)
    assert 0.94 <= covered <= 0.96 and 0.94 <= moved <= 0.96


@pytest.mark.slow
def test_depths_and_shifts_of_sixteen_groups_are_covered_as_often():
    covered, moved = coverage(1500, 600, samples=2000, groups=16)
    assert 0.94 <= covered <= 0.96 and 0.94 <= moved <= 0.96


def false_alarms(repeats, margin, samples=120):
    """Share of runs of 33 layers without a loss in which some layer is said to have fallen."""
    rng = np.random.default_rng(0)
    alarms = 0
    for at in range(repeats):
        gaps = rng.normal(size=(33, samples)) + rng.normal(size=samples) - margin
        alarms += float(falls(gaps, LAYERS, margin, resamples=500, seed=at).p) < 0.05
    return alarms / repeats


def test_no_loss_is_hardly_ever_called_one_over_33_layers():
    rng = np.random.default_rng(1)
    for at in range(60):
        gaps = 0.2 * (rng.normal(size=(33, 120)) + rng.normal(size=120))
        assert np.isnan(falls(gaps, LAYERS, MARGIN, resamples=300, seed=at).fallen)
    # even where every layer is just at the margin, one run in twenty at most is called a loss
    assert false_alarms(200, 0.2) <= 0.09  # 5 %, a standard error of 1.5 points


@pytest.mark.slow
def test_false_verdicts_over_33_layers_stay_at_five_percent():
    assert false_alarms(2000, 0.2, samples=400) <= 0.06  # a standard error of half a point


def test_alike_is_proven_by_narrow_intervals_only():
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(3, 400)) * np.array([0.1, 5, 0.1])[:, None] + [[0], [0], [0.3]]
    p = equivalence(gaps, 0.2)
    assert p[0] < 1e-6 and p[1] > 0.05 and p[2] > 0.99
    assert equivalence(np.zeros((1, 10)), 0.1)[0] == 0


def test_equivalence_is_the_larger_of_two_t_tests():
    from scipy.stats import ttest_1samp

    gaps = np.random.default_rng(3).normal(0.05, 1, size=80)
    expected = max(
        ttest_1samp(gaps, 0.3, alternative="less").pvalue,
        ttest_1samp(gaps, -0.3, alternative="greater").pvalue,
    )
    assert equivalence(gaps, 0.3) == pytest.approx(expected)


def hits_of(more, fewer, samples):
    return np.repeat([1, -1, 0], [more, fewer, samples - more - fewer])


@pytest.mark.parametrize(("more", "fewer"), [(0, 0), (3, 7), (0, 9)])
def test_hits_are_alike_by_the_score_at_the_likeliest_shares_that_differ_by_the_margin(more, fewer):
    from scipy.optimize import minimize_scalar
    from scipy.special import xlogy
    from scipy.stats import norm

    samples, margin = 60, 0.1

    def score(more, fewer):
        def unlikely(lost):
            same = samples - more - fewer
            shares = (more, lost - margin), (fewer, lost), (same, 1 - 2 * lost + margin)
            return -sum(xlogy(count, share) for count, share in shares)

        ends = margin + 1e-12, (1 + margin) / 2 - 1e-12
        lost = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        error = np.sqrt((2 * lost - margin - margin**2) / samples)
        return ((more - fewer) / samples + margin) / error

    p = equivalence(hits_of(more, fewer, samples), margin, hits=True)
    expected = norm.sf(min(score(more, fewer), score(fewer, more)))
    assert p == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("samples", [10, 30, 80])
@pytest.mark.parametrize("differ", [0, 0.1])
def test_hits_just_at_the_margin_are_hardly_ever_called_alike_or_held(samples, differ):
    from scipy.stats import multinomial

    counts = [(a, b) for a in range(samples + 1) for b in range(samples + 1 - a)]
    shares = differ / 2, differ / 2 + 0.05, 1 - differ - 0.05
    chance = multinomial.pmf([(a, b, samples - a - b) for a, b in counts], samples, shares)
    gaps = np.array([hits_of(a, b, samples) for a, b in counts])
    alike = equivalence(gaps, 0.05, hits=True) < 0.05
    assert chance @ alike <= 0.06  # exactly; discreteness makes it 0 to 0.059
    likely = chance > 1e-4
    found = falls(gaps[likely][:, None], np.array([0]), 0.05, hits=True, resamples=2)
    assert chance[likely] @ (found.held == 0) <= 0.06


@pytest.mark.parametrize("samples", [40, 100, 600])
@pytest.mark.parametrize("shares", [(0.002, 0.0), (0.005, 0.001), (0.02, 0.02), (0.15, 0.05)])
def test_intervals_of_differences_of_hits_hold_them_however_few_objects_differ(samples, shares):
    from scipy.stats import multinomial

    most = int(samples * sum(shares) + 8 * np.sqrt(samples * sum(shares)) + 8)
    counts = [(a, b) for a in range(most + 1) for b in range(min(most, samples - a) + 1)]
    counts = [(a, b) for a, b in counts if a + b <= samples]
    more, fewer = shares
    chance = multinomial.pmf(
        [(a, b, samples - a - b) for a, b in counts], samples, (more, fewer, 1 - more - fewer)
    )
    likely = chance > 1e-7
    gaps = np.array(
        [hits_of(*each, samples) for each, kept in zip(counts, likely, strict=True) if kept]
    )
    middle, error = hit_error(gaps)
    holds = np.abs(middle - (more - fewer)) <= 1.96 * error
    assert chance[likely] @ holds >= 0.93  # exactly; a bootstrap holds 37 % where few differ


def test_the_error_of_means_of_hits_is_that_of_their_mean():
    """As where the read-outs of two halves are asked about each object: gaps of a half."""
    gaps = np.random.default_rng(0).choice([-1, -0.5, 0, 0.5, 1], 4000, p=[0.1, 0.2, 0.3, 0.2, 0.2])
    _, error = hit_error(gaps)
    assert error == pytest.approx(gaps.std() / np.sqrt(4000), rel=0.01)


def test_a_few_objects_that_all_agree_prove_nothing_and_many_do():
    assert equivalence(np.zeros((1, 6)), 0.03, hits=True)[0] > 0.3
    assert np.isnan(falls(np.zeros((1, 6)), np.array([0]), 0.03, hits=True).held)
    assert equivalence(np.zeros((1, 600)), 0.03, hits=True)[0] < 1e-4
    assert falls(np.zeros((1, 600)), np.array([0]), 0.03, hits=True).held == 0


def test_the_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(0)
    smallest = detectable(rng.normal(size=(1, 10_000)))[0] * 10  # of 100 objects
    assert smallest == pytest.approx((1.96 + 0.8416) / 10, rel=0.04)
    found = [
        abs(gaps.mean()) / (gaps.std(ddof=1) / 10) > 1.96
        for gaps in rng.normal(smallest, 1, size=(2000, 100))
    ]
    assert 0.76 < np.mean(found) < 0.84


def test_models_that_never_differ_are_not_thought_infinitely_sharp():
    assert detectable(np.zeros((2, 600)), hits=True) == pytest.approx(2.8 / 602, rel=0.01)
    assert (detectable(np.zeros((2, 600))) == 0).all()


def test_the_margin_is_a_share_of_what_there_is_to_lose():
    np.testing.assert_allclose(margin_of(np.array([0.85, 0.02]), 0.05), [0.04, np.nan])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: falls(np.zeros((3, 9)), np.arange(4), 0.1), "of 4 layers"),
        (lambda: falls(np.zeros((2, 9)), np.array([4, 0]), 0.1), "must ascend"),
        (lambda: falls(np.zeros((2, 9)), np.array([0, 4]), 0.0), "above 0"),
    ],
)
def test_what_has_no_depth_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
