"""Dimensions of sets whose dimension is known."""

import numpy as np
import pytest

from probe.dimension import anisotropy, effective_rank, participation_ratio, two_nn


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
        (lambda: anisotropy(np.full((5, 3), np.nan)), "holds NaN"),
    ],
)
def test_sets_without_a_dimension_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
