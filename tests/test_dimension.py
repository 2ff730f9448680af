"""Dimensions of sets whose dimension is known."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from probe.dimension import (
    SHARES,
    anisotropy,
    effective_rank,
    mle_dimension,
    participation_ratio,
    shape,
    thinned,
    token_diversity,
    two_nn,
)
from probe.halves import as_left_out, halvings
from probe.intervals import group_jackknife


@pytest.mark.parametrize("dim", [2, 4])
def test_two_nn_finds_the_dimension_of_a_cube_in_many_dims(dim):
    rng = np.random.default_rng(0)
    x = rng.random((2000, dim)) @ np.linalg.qr(rng.normal(size=(30, dim)))[0].T
    # edges of the cube pull the estimate down by a few percent
    assert two_nn(x) == pytest.approx(dim, rel=0.1)
    assert two_nn(np.concatenate([x, x[:500]])) == pytest.approx(two_nn(x))


def test_ranks_of_a_known_spectrum():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 3))
    basis = np.linalg.qr(rows - rows.mean(axis=0))[0]  # orthonormal and centred
    x = basis * np.sqrt([4.0, 1, 1]) + 7
    share = np.array([2, 1, 1]) / 4
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()))  # 2.828
    assert participation_ratio(x) == pytest.approx(36 / 18)


def test_anisotropy_is_the_mean_cosine_of_all_pairs():
    x = np.random.default_rng(0).normal(size=(40, 10)) + 0.5
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(40, 1)]
    assert anisotropy(x) == pytest.approx(cosines.mean())
    assert anisotropy(np.ones((5, 3))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_nn(np.ones((50, 3))), "1 distinct objects"),
        (lambda: two_nn(np.stack(np.mgrid[:8, :8], -1).reshape(-1, 2)), "as in a lattice"),
        (lambda: effective_rank(np.ones((5, 3))), "x is constant"),
        (lambda: effective_rank(np.ones((5, 0))), r"x has shape \(5, 0\)"),
        (lambda: mle_dimension(np.eye(50), k=1), "k=1 must be 2 or more"),
        (lambda: anisotropy(np.full((5, 3), np.nan)), "holds NaN"),
        (lambda: anisotropy(np.full((5, 3), 1e200)), "x sample 0 is too large: the square of its"),
    ],
)
def test_sets_without_a_dimension_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_likelihood_finds_the_dimension_of_a_cube_in_many_dims():
    rng = np.random.default_rng(0)
    flat = rng.random((3000, 3)) @ np.linalg.qr(rng.normal(size=(20, 3)))[0].T
    assert mle_dimension(flat) == pytest.approx(3, rel=0.08)


def test_all_statistics_at_once_equal_each_alone_whole_and_in_part():
    x = np.random.default_rng(0).normal(size=(90, 7)) @ np.diag(np.arange(1, 8))
    found = shape(x, seed=2)
    functions = (two_nn, mle_dimension, effective_rank, participation_ratio, anisotropy)
    np.testing.assert_allclose(found.values, [one(x) for one in functions])
    group = np.random.default_rng([2, 5]).permutation(90) % 16
    ranks = [one(x[group != 3]) for one in functions[2:]]
    np.testing.assert_allclose(found.left_out[2:, 3], ranks)
    # the dimensions in part: of the objects kept with their neighbours among all, and among them
    reach = NearestNeighbors().fit(x).kneighbors(n_neighbors=4)[0]
    for row, one in enumerate((two_nn, mle_dimension)):
        own = _dimensions(reach[group != 3])[row]
        expected = own + SHARES[row] * (one(x[group != 3]) - own)
        assert found.left_out[row, 3] == pytest.approx(expected)
    wide = x @ np.random.default_rng(1).normal(size=(7, 200)) + 1
    np.testing.assert_allclose(shape(wide).values, [one(wide) for one in functions], rtol=1e-6)


def _dimensions(reach):
    """Of distances to four neighbours: the line through the origin, and the likelihood."""
    ratios = np.sort(np.log(reach[:, 1] / reach[:, 0]))
    kept = int(0.9 * len(ratios))
    share = np.arange(1, kept + 1) / len(ratios)
    line = np.linalg.lstsq(ratios[:kept, None], -np.log(1 - share), rcond=None)[0][0]
    return line, 3 / np.log(reach[:, -1:] / reach[:, :-1]).sum(axis=1).mean()


def test_a_mean_of_halves_is_the_mean_with_each_group_left_out():
    values = np.random.default_rng(0).normal(size=64)
    group = np.random.default_rng(1).permutation(64) % 8
    gaps = [values[half].mean() - values[~half].mean() for half in halvings(group)]
    expected = [values[group != one].mean() for one in range(8)]
    np.testing.assert_allclose(as_left_out(values.mean(), np.array(gaps)), expected)
    with pytest.raises(ValueError, match="power of 2"):
        halvings(np.arange(15))


def test_copies_are_one_object_where_there_are_more_dims_than_objects():
    x = np.random.default_rng(0).normal(size=(60, 200))
    copied = np.concatenate([x, x[:10]])
    found = shape(copied, groups=0).values
    np.testing.assert_allclose(found[:2], [two_nn(x), mle_dimension(x)])
    np.testing.assert_allclose(found[2], effective_rank(copied))  # where each has its own weight


def test_thinned_out_a_circle_keeps_its_dimension_and_noise_about_it_loses_it():
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * rng.random(600)
    circle = np.column_stack([np.cos(angle), np.sin(angle), np.zeros((600, 10))])
    found = thinned(circle, seed=1)
    np.testing.assert_array_equal(found.objects, [600, 300, 150, 75])
    # five standard errors of the 600 objects, and the 2 % that 75 have too much
    np.testing.assert_allclose(found.mean, 1, atol=0.25)
    assert found.spread[0] == 0 and (found.spread[1:] > 0).all()
    # neighbours of 600 lie 0.01 apart, in the noise; those of 75 lie 0.08 apart, beyond it
    noisy = thinned(circle + 0.02 * rng.normal(size=circle.shape), seed=1).mean
    assert noisy[0] > 6 and noisy[-1] < 0.6 * noisy[0] and (np.diff(noisy[1:]) < 0).all()


def test_thinned_objects_are_those_of_disjoint_parts_and_too_few_have_no_dimension():
    x = np.random.default_rng(0).normal(size=(110, 150))
    x[7] = x[3]
    found = thinned(x, seed=4)
    np.testing.assert_array_equal(found.objects, [110, 55, 27])
    order = np.random.default_rng([4, 6]).permutation(110)
    for at, count in enumerate((1, 2, 4)):
        each = [two_nn(x[rows]) for rows in np.array_split(order, count)]
        assert found.mean[at] == pytest.approx(np.mean(each))
        assert found.spread[at] == pytest.approx(np.std(each), abs=1e-9)
    few = thinned(x[:30])
    assert few.objects.tolist() == [30] and np.isfinite(few.mean).all()
    assert np.isnan(thinned(x[:12]).mean).all()
    lattice = thinned(np.stack(np.mgrid[:8, :8], -1).reshape(-1, 2).astype(float))
    assert lattice.objects.tolist() == [64, 32] and np.isnan(lattice.mean[0])


def test_a_few_objects_have_a_rank_and_no_intrinsic_dimension():
    for count in (30, 15, 3):  # fewer objects than groups, too
        few = shape(np.random.default_rng(0).normal(size=(count, 5)))
        for each in few:
            assert np.isnan(each[:2]).all() and np.isfinite(each[2:]).all()
        assert few.left_out.shape[1] == min(count, 16)


def test_tokens_that_point_one_way_have_no_diversity():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 8, 50))
    tokens[0] = tokens[0, 0] * rng.random((8, 1))
    found = token_diversity(tokens)
    assert found[0] == pytest.approx(0, abs=1e-12) and found[1] == pytest.approx(1, abs=0.1)
    unit = tokens[2] / np.linalg.norm(tokens[2], axis=1, keepdims=True)
    expected = 1 - (unit @ unit.T)[~np.eye(8, dtype=bool)].mean()
    assert found[2] == pytest.approx(expected)


@pytest.mark.slow
def test_bands_of_the_effective_rank_and_dimension_cover():
    """Groups left out, for the ratio of participation, and in part, for TwoNN.

    Of what this many objects give on average: a ratio of 300 objects is half a standard error
    below that of very many, which models on the same objects share.
    """
    rng = np.random.default_rng(0)
    scale = np.linspace(1, 3, 6)

    def draw(n):
        return rng.normal(size=(n, 6)) * scale

    draws = (draw(300) for _ in range(4000))
    truth = np.mean([(participation_ratio(x), two_nn(x)) for x in draws], axis=0)
    covered = np.zeros(2)
    for at in range(600):
        found = shape(draw(300), seed=at)
        for i, row in enumerate((3, 0)):
            one = group_jackknife(found.values[row], found.left_out[row])
            covered[i] += one.low <= truth[i] <= one.high
    # 0.95 with a standard error of 0.009 over 600 draws
    assert ((covered / 600 > 0.925) & (covered / 600 < 0.975)).all()
