"""Similarities held against scipy, scikit-learn and identities."""

import numpy as np
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.neighbors import NearestNeighbors

from probe.similarity import mutual_knn, procrustes_distance, pwcca, rsa, svcca


def pair(samples=200, x_dim=6, y_dim=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, x_dim)) * np.linspace(1, 3, x_dim)
    return x, x @ rng.normal(size=(x_dim, y_dim)) + 2 * rng.normal(size=(samples, y_dim))


def test_procrustes_equals_scipy():
    x, y = pair()
    _, _, residual = procrustes(x, y)  # 1 - s^2, where ours is 2 - 2 s
    assert procrustes_distance(x, y) == pytest.approx(2 - 2 * np.sqrt(1 - residual))


@pytest.mark.parametrize("measure", [procrustes_distance, svcca, pwcca, rsa, mutual_knn])
def test_a_rotated_copy_is_the_same(measure):
    x, _ = pair()
    x = x - x.mean(axis=0)
    same = 0 if measure is procrustes_distance else 1
    assert measure(x, 3 * x) == pytest.approx(same, abs=1e-9)
    if measure is not rsa:  # which correlates over dims, and so knows the axes
        turned = 3 * x @ ortho_group.rvs(6, random_state=0)
        assert measure(x, turned) == pytest.approx(same, abs=1e-9)


def test_canonical_correlations_equal_those_of_sklearn():
    x, y = pair(y_dim=4)
    a, b = CCA(4, max_iter=2000, tol=1e-10).fit_transform(x, y)
    theirs = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)]
    assert svcca(x, y, variance=1.0) == pytest.approx(np.mean(theirs), abs=1e-5)
    assert min(theirs) <= pwcca(x, y) <= max(theirs)


def test_rsa_equals_scipy():
    x, y = pair(60, 8, 5)
    theirs = spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic
    assert rsa(x, y) == pytest.approx(theirs, abs=1e-9)


def test_mutual_knn_equals_sklearn_and_is_at_its_floor_for_noise():
    x, y = pair()
    near = [NearestNeighbors(n_neighbors=5, metric="cosine").fit(v).kneighbors() for v in (x, y)]
    shared = [len(set(a) & set(b)) / 5 for a, b in zip(near[0][1], near[1][1], strict=True)]
    assert mutual_knn(x, y, k=5) == pytest.approx(np.mean(shared))
    noise = np.random.default_rng(1).normal(size=(2, 800, 20))
    assert mutual_knn(*noise, k=10) == pytest.approx(10 / 799, abs=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: svcca(np.ones((9, 3)), pair(9)[1]), "x is constant"),
        (lambda: rsa(np.eye(4), np.eye(5)), r"x \(4, 4\) and y \(5, 5\)"),
        (lambda: mutual_knn(*pair(10), k=9), "k=9 must be 1 to 8, for 10 objects"),
        (lambda: mutual_knn(*pair(10), k=2.5), "k=2.5 must be 1 to 8, for 10 objects, and whole"),
        (lambda: rsa(np.tile(pair(9)[0][:1], (9, 1)), pair(9)[1]), "x are equally far apart"),
        (lambda: rsa(pair(9)[0], np.full((9, 3), 0.1)), "object 0 of y is constant"),
        (lambda: svcca(np.ones((9, 0)), pair(9)[1]), r"x \(9, 0\)"),
        (lambda: mutual_knn(np.ones((9, 3)), pair(9)[1], k=2), "x is constant"),
        *((lambda v=v: svcca(*pair(9), variance=v), "variance=") for v in (0, 2, np.nan)),
        (lambda: pwcca(*pair(6)), "pwcca needs more objects"),
        (lambda: procrustes_distance(np.full((9, 3), np.nan), pair(9)[1]), "holds NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
