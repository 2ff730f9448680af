"""CKA held against the defining formula, identities, and recomputation without each object."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ortho_group

from probe import hsic
from probe.cka import (
    MinibatchCKA,
    biased_floor,
    cka,
    cka_difference,
    cka_interval,
    cka_null,
    jackknife_covariance,
)
from probe.products import inner, inner_columns


def pair(samples=40, x_dim=12, y_dim=7, seed=0, shared=1.0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(samples, 5))
    x = shared * common @ rng.normal(size=(5, x_dim)) + rng.normal(size=(samples, x_dim))
    y = shared * common @ rng.normal(size=(5, y_dim)) + rng.normal(size=(samples, y_dim))
    return x, y


def direct(x, y):
    """Song et al. 2012, equation 5, term by term on Gram matrices."""

    def hsic(k, l):  # noqa: E741
        n = len(k)
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
        one = np.ones(n)
        inner = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (inner - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


@pytest.mark.parametrize(("samples", "x_dim", "y_dim"), [(4, 3, 3), (40, 12, 7), (30, 200, 90)])
def test_debiased_cka_equals_the_formula(samples, x_dim, y_dim):
    x, y = pair(samples, x_dim, y_dim)
    assert cka(x, y) == pytest.approx(direct(x, y), abs=1e-12)


@pytest.mark.parametrize(("samples", "x_dim", "y_dim"), [(2100, 60, 40), (300, 900, 700)])
def test_float32_features_give_the_value_to_their_own_precision(samples, x_dim, y_dim):
    given = [(one + 30).astype(np.float32) for one in pair(samples, x_dim, y_dim)]
    wanted = direct(*(one.astype(np.float64) - one.mean(axis=0, dtype=float) for one in given))
    assert cka(*given) == pytest.approx(wanted, abs=1e-6)
    assert cka(*(one.astype(np.float64) for one in given)) == pytest.approx(wanted, abs=1e-12)


def test_products_in_tiles_equal_those_in_float64():
    x, y = (one.astype(np.float32) for one in pair(30, 600, 300))
    for left, right in ((x, x), (x.T, x.T), (x.T, y.T)):  # fewer rows than a tile, and more
        whole = left.astype(float) @ right.T.astype(float)
        columns = left.T
        across = inner_columns(columns, columns if right is left else right.T)
        for found in (inner(left, right), across):
            np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-4)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_cka_does_not_see_rotation_scale_shift_or_order(seed, scale, shift):
    x, y = pair(seed=seed)
    turned = scale * x @ ortho_group.rvs(12, random_state=seed) + shift
    order = np.random.default_rng(seed).permutation(len(x))
    assert cka(turned, x) == pytest.approx(1, abs=1e-9)
    assert cka(turned, y) == pytest.approx(cka(x, y), abs=1e-9)
    assert cka(x[order], y[order]) == pytest.approx(cka(x, y), abs=1e-12)


@given(samples=st.integers(4, 9), seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_cka_stays_in_its_range_for_few_objects(samples, seed):
    assert abs(cka(*pair(samples, 6, 3, seed))) <= 1 + 1e-9


def test_cka_of_independent_noise_is_zero_on_average_and_its_biased_form_is_at_the_floor():
    rng = np.random.default_rng(0)
    draws = [(rng.normal(size=(60, 100)), rng.normal(size=(60, 50))) for _ in range(300)]
    debiased = np.array([cka(x, y) for x, y in draws])
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(300)
    biased = np.mean([cka(x, y, unbiased=False) for x, y in draws[:50]])
    assert biased == pytest.approx(biased_floor(60, 100, 50), abs=0.01)


def test_biased_cka_is_the_normalised_cross_covariance():
    x, y = pair()
    x0, y0 = x - x.mean(0), y - y.mean(0)
    expected = (
        np.linalg.norm(x0.T @ y0) ** 2 / np.linalg.norm(x0.T @ x0) / np.linalg.norm(y0.T @ y0)
    )
    assert cka(x, y, unbiased=False) == pytest.approx(expected, abs=1e-12)
    assert cka(x, y, kernel="rbf", unbiased=False) > cka(x, y, kernel="rbf")


@pytest.mark.parametrize("batches", [[40], [1] * 40, [13, 2, 25]])
def test_the_stream_gives_the_full_value_for_any_batches(batches):
    x, y = pair()
    x += 1e4  # far from the origin: what the shift is for
    stream, start = MinibatchCKA(), 0
    for size in batches:
        stream.update(x[start : start + size], y[start : start + size])
        start += size
    assert stream.compute() == pytest.approx(cka(x, y), abs=1e-9)


@pytest.mark.parametrize("kernel", ["linear"])
def test_the_jackknife_equals_leaving_each_object_out(kernel):
    x, y = pair()
    brute = [cka(np.delete(x, i, 0), np.delete(y, i, 0), kernel) for i in range(len(x))]
    found = cka_interval(x, y, kernel)
    np.testing.assert_allclose(found.left_out, brute, atol=1e-12)
    error = np.sqrt((len(x) - 1) / len(x) * np.sum((brute - np.mean(brute)) ** 2))
    assert found.high - found.mean == pytest.approx(norm.ppf(0.975) * error)
    assert jackknife_covariance(found.left_out[None])[0, 0] == pytest.approx(error**2)


def test_the_jackknife_of_a_kernel_without_features_agrees_with_the_linear_one():
    x, y = (hsic.features(values, "x") for values in pair())
    grams = [values @ values.T for values in (x, y)]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    for ours, theirs in zip(hsic.rows_of(x, y), hsic.gram_rows(*grams), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_jackknife_intervals_cover_the_true_value():
    # y = x + noise of p dims: CKA of the population is tr(C)^2-like, here estimated with n = 20000
    rng = np.random.default_rng(1)

    def draw(n):
        x = rng.normal(size=(n, 10)) * np.linspace(1, 2, 10)
        return x, x + 1.5 * rng.normal(size=(n, 10))

    truth = cka(*draw(20_000))
    covered = [
        low <= truth <= high for _, low, high, _ in (cka_interval(*draw(100)) for _ in range(300))
    ]
    # 300 draws at 95 %: a standard error of 1.3 points; the jackknife itself is a little narrow
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_difference_of_equal_models_is_zero_and_of_unequal_ones_is_found():
    x, y = pair(200)
    same = cka_difference(x, x, y)
    assert same.mean == 0 and same.p == 1
    worse = x + 3 * np.random.default_rng(5).normal(size=x.shape)
    found = cka_difference(x, worse, y)
    assert found.mean == pytest.approx(cka(x, y) - cka(worse, y))
    assert found.low > 0 and found.p < 1e-3


def test_the_null_by_gather_equals_permuting_the_objects():
    x, y = pair()
    null = cka_null(x, y, permutations=20, seed=3)
    rng = np.random.default_rng(3)
    np.testing.assert_allclose(
        null, [cka(x, y[rng.permutation(40)]) for _ in range(20)], atol=1e-12
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 4)), "needs 4 objects, x has 3"),
        (np.ones((10, 4)), "x is constant"),
        (np.full((10, 4), "a"), "x holds <U1: need numbers"),
        (np.full((10, 4), np.nan), "x holds NaN or infinity, first at sample 0"),
        (np.eye(10), "equally far apart"),
        (np.random.default_rng(0).normal(size=(9, 4)), "x has 9 objects and y 10"),
        (np.ones(10), r"x has shape \(10,\)"),
    ],
)
def test_what_has_no_cka_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        cka(x, np.random.default_rng(1).normal(size=(10, 3)))


def test_a_batch_without_objects_is_refused():
    with pytest.raises(ValueError, match="this batch has no objects"):
        MinibatchCKA().update(np.empty((0, 4)), np.empty((0, 3)))
