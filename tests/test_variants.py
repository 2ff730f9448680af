"""Other ways of asking for neighbours, held against scikit-learn; and what stands out."""

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from probe import variants
from probe.cells import CELLS, Objects, Settings
from probe.cka import cka
from probe.knn import knn_hits
from probe.outliers import largest_norm, massive_tokens, mean_without, top_variance
from probe.tokens import Tokens
from probe.variants import (
    METRICS,
    POOLINGS,
    PREPARATIONS,
    knn_protocols,
    knn_variants,
    ways,
)

CLASSES, TOKENS, DIM = 5, 4, 6


def objects(samples, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(samples) % CLASSES
    centre = np.random.default_rng(9).normal(size=(CLASSES, TOKENS, DIM))
    return centre[label] + 1.5 * rng.normal(size=(samples, TOKENS, DIM)) + 3, label


@pytest.fixture(scope="module")
def sets():
    return (*objects(150, 0), *objects(60, 1))


def asked(gallery, known, query, labels, k=(1, 5)):
    tokens, rows = np.concatenate([gallery, query]), np.arange(len(gallery) + len(query))
    every = np.concatenate([known, labels])
    return knn_variants(Tokens(tokens), every, rows[: len(gallery)], rows[len(gallery) :], k=k)


@pytest.fixture(scope="module")
def found(sets):
    return asked(*sets)


def at(found, preparation, pooling, metric):
    return found.hits[
        PREPARATIONS.index(preparation), POOLINGS.index(pooling), METRICS.index(metric), 1
    ]


def test_the_usual_way_is_the_probe_of_the_sweep(sets, found):
    gallery, known, query, labels = sets
    expected = knn_hits(gallery.mean(1), query.mean(1), known, labels, k=5)
    np.testing.assert_array_equal(at(found, "raw", "mean", "cosine"), expected)
    assert found.hits.shape == (3, 4, 2, 2, 60) and len(ways()) == 24


def test_whitening_is_that_of_scikit_learn_fitted_on_the_gallery(sets, found):
    gallery, known, query, labels = sets
    flat, rows = gallery.reshape(150, -1), query.reshape(60, -1)
    pca = PCA(0.99, whiten=True, svd_solver="full").fit(flat)
    model = KNeighborsClassifier(5, metric="euclidean", algorithm="brute")
    named = model.fit(pca.transform(flat), known).predict(pca.transform(rows))
    np.testing.assert_array_equal(at(found, "whitened", "concatenated", "l2"), named == labels)
    assert found.rank[POOLINGS.index("concatenated")] == pca.n_components_


def test_whitening_survives_more_dimensions_than_objects(sets):
    gallery, known, query, labels = sets
    wide = np.random.default_rng(0).normal(size=(DIM, 80))
    few = asked(gallery[:40] @ wide, known[:40], query @ wide, labels, k=(1,))
    flat = (gallery[:40] @ wide).reshape(40, -1)
    assert few.rank[POOLINGS.index("concatenated")] == PCA(0.99).fit(flat).n_components_


def test_directions_fitted_on_every_other_object_are_those_of_all_where_each_is_there_twice(
    sets, monkeypatch
):
    gallery, known, query, labels = sets
    wide = np.random.default_rng(0).normal(size=(DIM, 80))
    twice = np.repeat(gallery[:40] @ wide, 2, axis=0), np.repeat(known[:40], 2), query @ wide
    every = asked(*twice, labels)
    monkeypatch.setattr(variants, "FITTED", 40)
    some = asked(*twice, labels)
    np.testing.assert_array_equal(some.rank, every.rank)
    np.testing.assert_array_equal(some.hits, every.hits)


def test_distances_ignore_a_common_shift_once_centred(sets, found):
    gallery, known, query, labels = sets
    moved = asked(gallery + 100, known, query + 100, labels)
    for preparation in ("centred", "whitened"):
        for pooling in POOLINGS:
            same = at(moved, preparation, pooling, "cosine") == at(
                found, preparation, pooling, "cosine"
            )
            assert same.mean() > 0.98, (preparation, pooling)


def test_information_in_one_token_is_lost_in_the_mean_and_kept_end_to_end():
    rng = np.random.default_rng(0)
    label = np.arange(300) % 2
    tokens = rng.normal(size=(300, 8, 4)) * 0.5
    sign = np.where(label, 1.0, -1.0)
    tokens[:, 0, 0] += 3 * sign
    tokens[:, 1, 0] -= 3 * sign  # cancels in the mean
    found = asked(tokens[:200], label[:200], tokens[200:], label[200:])
    assert at(found, "raw", "mean", "l2").mean() < 0.65
    assert at(found, "raw", "concatenated", "l2").mean() > 0.95


def test_each_token_alone_is_asked_as_scikit_learn_would():
    gallery, known = objects(150, 0)
    query, labels = objects(60, 1)
    gallery[:, 1:], query[:, 1:] = (  # the class is in the first token alone
        np.random.default_rng(seed).normal(size=x[:, 1:].shape)
        for seed, x in enumerate((gallery, query))
    )
    found = asked(gallery, known, query, labels)
    for token, hits in enumerate(found.by_token):
        model = KNeighborsClassifier(5, metric="cosine", algorithm="brute")
        named = model.fit(gallery[:, token], known).predict(query[:, token])
        np.testing.assert_array_equal(hits, named == labels)
    alone, pooled = found.by_token.mean(axis=1), at(found, "raw", "mean", "cosine").mean()
    assert alone[0] > pooled + 0.15 and (alone[1:] < pooled).all()


def test_leaving_one_out_drops_copies_by_group_and_not_by_distance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    x[1] = x[0]
    groups = np.arange(40)
    groups[1] = 0
    labels = np.arange(40)  # every object its own class: right only if it finds itself
    labels[1] = 0
    found = knn_protocols(x, labels, groups, k=(1,), splits=3)
    assert not found.loo.any()
    assert knn_protocols(x, labels, np.arange(40), k=(1,), splits=3).loo[0, :2].all()


@pytest.mark.parametrize("spare", [variants.SPARE, -5])  # lists that last, and lists of k alone
def test_protocols_from_one_list_are_those_that_scikit_learn_fits_anew(spare, monkeypatch):
    monkeypatch.setattr(variants, "SPARE", spare)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    x = rng.normal(size=(4, 6))[labels] + rng.normal(size=(120, 6))
    groups = np.arange(120) // 2 * 2  # every other object goes with the one before it
    found = knn_protocols(x, labels, groups, k=(1, 5), splits=6, seed=3)

    def theirs(rest, asked, k):
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute")
        return model.fit(x[rest], labels[rest]).predict(x[asked]) == labels[asked]

    for at, k in enumerate((1, 5)):
        alone = [theirs(groups != groups[one], [one], k)[0] for one in range(120)]
        np.testing.assert_array_equal(found.loo[at], alone)
        for split in range(6):
            asked = np.random.default_rng([3, 11, split]).permutation(120)[:12]
            rest = ~np.isin(groups, groups[asked])
            assert found.test90_10[at, split] == theirs(rest, asked, k).mean()
    assert found.asked.sum() == 6 * 12 and found.asked.max() > 1
    shares = found.right.sum(axis=1) / found.asked.sum()
    np.testing.assert_allclose(shares, found.test90_10.mean(axis=1))


def test_a_tenth_is_rounded_up_as_the_published_fractions_need():
    x = np.random.default_rng(0).normal(size=(2468, 2))
    labels = (x[:, 0] > 0).astype(int)
    share = knn_protocols(x, labels, np.arange(2468), k=(1,), splits=4).test90_10
    np.testing.assert_allclose(share * 247, (share * 247).round(), atol=1e-9)
    assert (share > 0.9).all() and len(set(share[0])) > 1


def cell_of(tokens, target, labels, probe="drift"):
    rows = np.arange(len(tokens))
    half = len(rows) // 2
    known = xr.Dataset({"side": ("sample", target.mean(axis=(1, 2)))}, attrs={"constant": []})
    data = Objects(len(rows), labels, rows[:half], rows[half:], (0, 0), Tokens(target), rows)
    return CELLS[probe](data._replace(properties=known), Tokens(tokens), Settings((1,), 0))


def test_cka_and_drift_are_told_without_massive_tokens_too():
    tokens, labels = objects(120, 0)
    target = tokens @ np.random.default_rng(1).normal(size=(DIM, DIM))
    usual, changed = tokens.copy(), tokens.copy()
    changed[110, 2] *= 100
    found, before = (cell_of(x, target, labels) for x in (changed, usual))
    np.testing.assert_array_equal(before["cka_without_massive"], before["cka"])
    assert found["cka"][0] < before["cka"][0] / 2
    usual[110] = np.delete(usual[110], 2, axis=0).mean(axis=0)
    expected = cka(usual[60:].mean(axis=1), target[60:].mean(axis=1))
    assert found["cka_without_massive"][0] == pytest.approx(expected, abs=1e-6)
    drift, without = found["centred"], found["centred_without"]
    np.testing.assert_allclose(before["centred_without"], before["centred"], atol=1e-12)
    np.testing.assert_allclose(np.delete(without, 50), np.delete(drift, 50), atol=1e-12)
    assert without[50] == pytest.approx(np.delete(found["by_token"][50], 2).mean())


@pytest.mark.parametrize(
    ("probe", "part", "without"),
    [
        ("linear", "hits", "hits_without"),
        ("geometry", ("mean", "low", "high"), "without"),
        ("dimension", "values", "values_without"),
        ("similarity", "values", "values_without"),
    ],
)
def test_what_massive_tokens_change_is_told_by_every_probe(probe, part, without):
    """One token in 480 scaled up: without it, what states have that never held it."""
    tokens, labels = objects(120, 0)
    target = tokens @ np.random.default_rng(1).normal(size=(DIM, DIM))

    def usual(cell):
        found = [cell[one] for one in part] if isinstance(part, tuple) else cell[part]
        return np.array(found, np.float64)

    before = cell_of(tokens, target, labels, probe)
    np.testing.assert_array_equal(before[without], usual(before))
    tokens[30:90:10, 2] *= 300
    found = cell_of(tokens, target, labels, probe)
    tokens[30:90:10, 2] = np.delete(tokens, 2, axis=1)[30:90:10].mean(axis=1)  # moves no mean
    never = cell_of(tokens, target, labels, probe)
    np.testing.assert_allclose(found[without], usual(never), rtol=1e-6)
    assert np.abs(usual(found) - found[without]).max() > 0.02


def test_a_dimension_that_decides_cka_does_not_where_all_are_standardised():
    rng = np.random.default_rng(0)
    tokens, target = rng.normal(size=(2, 400, 1, 30))
    tokens[..., 3] = target[..., 5] = 50 * rng.normal(size=(400, 1))
    tokens[..., 7] = 0.1  # a dimension that does not vary says nothing, and is not divided by 0
    found = cell_of(tokens, target, np.arange(400) % 2)
    assert found["cka"][0] > 0.99 and found["cka_standardised"][0] < 0.1
    one, other = (x[200:, 0] / x[:200, 0].std(axis=0) for x in (tokens, target))
    one[:, 7] = 0
    assert found["cka_standardised"][0] == pytest.approx(cka(one, other), abs=1e-6)


def test_massive_tokens_are_found_at_their_place_and_left_out_of_the_mean():
    tokens = np.random.default_rng(0).normal(size=(20, 6, 16))
    tokens[3, 2] *= 100
    norms = np.linalg.norm(tokens, axis=-1)
    massive = massive_tokens(norms)
    assert massive[3, 2] and massive.sum() == 1 and largest_norm(norms) > 50
    mean = mean_without(tokens, massive)
    np.testing.assert_allclose(mean[3], np.delete(tokens[3], 2, axis=0).mean(axis=0))
    np.testing.assert_allclose(mean[4], tokens[4].mean(axis=0))
    every = mean_without(tokens, np.ones((20, 6), bool))
    np.testing.assert_allclose(every, tokens.mean(axis=1))


def test_one_rogue_dimension_holds_the_variance():
    x = np.random.default_rng(0).normal(size=(500, 12))
    x[:, 7] *= 50
    one, three, ten = top_variance(x)
    assert one > 0.99 and one < three < ten < 1
    with pytest.raises(ValueError, match="constant"):
        top_variance(np.ones((5, 3)))
