"""Measures against published packages that compute the same, on random arrays.

Debiased and plain CKA: ckatorch, pytorch-cka. Intrinsic dimension and participation ratio:
scikit-dimension. These are skipped where the package is missing; scikit-learn and scipy never are.
scikit-learn's KNN, trustworthiness of maps, mutual neighbours, CCA, PCA and ridge, and scipy's
Procrustes, RSA, Wilson interval and skewness stand in the tests of those modules.
"""

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import entropy

from probe.cka import cka
from probe.dimension import (
    anisotropy,
    effective_rank,
    mle_dimension,
    participation_ratio,
    thinned,
    token_diversity,
    two_nn,
)
from probe.pairs import cka_pairs


def layers(samples=60, dims=(20, 20, 20), kind=np.float64):
    """States of the same objects, each with half of what all share."""
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(samples, 6))
    return [
        (shared @ rng.normal(size=(6, dim)) + 2 * rng.normal(size=(samples, dim)) + 1).astype(kind)
        for dim in dims
    ]


@pytest.mark.parametrize("dims", [(20, 9), (150, 90)])  # from sums over features, and from Grams
@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_is_that_of_ckatorch(dims, unbiased):
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("ckatorch")
    x, y = layers(dims=dims)
    theirs = peer.cka_base(torch.from_numpy(x), torch.from_numpy(y), unbiased=unbiased)
    assert cka(x, y, unbiased=unbiased) == pytest.approx(float(theirs), abs=1e-9)


def test_cka_of_all_pairs_is_that_of_pytorch_cka():
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("cka")
    states = layers()
    tensors = [torch.from_numpy(x) for x in states]
    theirs = peer.cka_from_features(tensors, tensors).numpy()
    np.testing.assert_allclose(cka_pairs(states).mean, theirs, atol=1e-6)  # it adds 1e-6 below
    assert cka(*states[:2]) == pytest.approx(theirs[0, 1], abs=1e-6)


@pytest.fixture(scope="module")
def surface():
    """400 objects of about four dimensions in thirty."""
    rng = np.random.default_rng(5)
    flat = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 30))
    return flat + 0.05 * rng.normal(size=(400, 30))


def test_two_nn_is_that_of_scikit_dimension(surface):
    skdim = pytest.importorskip("skdim")
    theirs = skdim.id.TwoNN(discard_fraction=0.1).fit(surface).dimension_
    assert two_nn(surface) == pytest.approx(theirs, rel=1e-6)


def test_objects_thinned_out_have_the_dimension_that_scikit_dimension_gives_each_part(surface):
    skdim = pytest.importorskip("skdim")
    order = np.random.default_rng([2, 6]).permutation(400)
    parts = [surface[rows] for rows in np.array_split(order, 8)]
    theirs = [skdim.id.TwoNN(discard_fraction=0.1).fit(part).dimension_ for part in parts]
    found = thinned(surface, seed=2)
    assert found.objects[-1] == 50 and found.mean[-1] == pytest.approx(np.mean(theirs), rel=1e-6)
    assert found.spread[-1] == pytest.approx(np.std(theirs), rel=1e-6)


def test_objects_that_all_but_coincide_are_neighbours_of_each_other_and_not_of_themselves(surface):
    x = np.concatenate([surface, surface[:30] + 1e-8])  # too near for the search to tell apart
    gaps = np.sort(cdist(x, x), axis=1)[:, 1:11]
    ratios, empty = np.sort(np.log(gaps[:, 1] / gaps[:, 0])), -np.log(1 - np.arange(430) / 430)
    slope = np.linalg.lstsq(ratios[:387, None], empty[1:388])[0]  # without the largest tenth
    assert two_nn(x) == pytest.approx(slope[0], rel=1e-6)
    likely = 9 * len(x) / np.log(gaps[:, -1:] / gaps).sum()
    assert mle_dimension(x, 10) == pytest.approx(likely, rel=1e-6)


@pytest.mark.parametrize("k", [5, 10])
def test_the_likelihood_dimension_is_that_of_scikit_dimension(surface, k):
    skdim = pytest.importorskip("skdim")
    theirs = skdim.id.MLE().fit(surface, n_neighbors=k, comb="mle").dimension_
    assert mle_dimension(surface, k) == pytest.approx(theirs, rel=1e-6)


def test_the_participation_ratio_is_that_of_scikit_dimension(surface):
    skdim = pytest.importorskip("skdim")
    theirs = skdim.id.lPCA(ver="participation_ratio").fit(surface).dimension_
    assert participation_ratio(surface) == pytest.approx(theirs, rel=1e-9)


def test_the_effective_rank_is_that_of_scipys_entropy(surface):
    sizes = np.linalg.svd(np.cov(surface.T), compute_uv=False) ** 0.5
    assert effective_rank(surface) == pytest.approx(np.exp(entropy(sizes)), rel=1e-9)


def test_cosines_of_objects_and_of_tokens_are_scipys(surface):
    assert anisotropy(surface) == pytest.approx(1 - pdist(surface, "cosine").mean(), abs=1e-12)
    tokens = surface[:40].reshape(5, 8, 30)
    theirs = [pdist(one, "cosine").mean() for one in tokens]
    np.testing.assert_allclose(token_diversity(tokens), theirs, atol=1e-12)
