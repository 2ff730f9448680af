"""Neighbours and their vote, held against scikit-learn."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from probe import knn
from probe.controls import chance_level, shuffled_labels
from probe.knn import knn_accuracy, knn_hits, knn_predict, nearest, vote
from probe.orders import nearest_by

BACKENDS = ["faiss-cpu", "torch"]


@pytest.fixture(scope="module")
def digits():
    images, digit = load_digits(return_X_y=True)
    return images[:1200], images[1200:], digit[:1200], digit[1200:]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("metric", "name"), [("cosine", "cosine"), ("l2", "euclidean")])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_accuracy_on_digits_equals_the_sklearn_vote(digits, k, metric, name, backend):
    gallery, query, old, new = digits
    ours = knn_accuracy(gallery, query, old, new, k=k, metric=metric, backend=backend)
    theirs = KNeighborsClassifier(k, metric=name, algorithm="brute").fit(gallery, old)
    assert ours == pytest.approx(theirs.score(query, new), abs=1e-12)


def test_backends_agree_on_duplicates_and_on_far_offsets():
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.normal(size=(20, 8)), 30, axis=0)  # 30 copies of each: ties at any k
    query = gallery[::30] + 1e-3 * rng.normal(size=(20, 8))
    expected = np.arange(20)[:, None] * 30 + np.arange(7)  # the first copies, in their order
    for backend in BACKENDS:
        np.testing.assert_array_equal(nearest(gallery, query, 7, "l2", backend), expected)
        far = nearest(gallery + 1000, query + 1000, 7, "l2", backend)
        np.testing.assert_array_equal(far, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_float32_cannot_tell_is_ordered_in_float64(backend):
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(300, 16))
    steps = 1e-8 * rng.permutation(100)[:, None]
    gallery[:100] = gallery[0] + steps * rng.normal(size=16)  # a row of points, 1e-8 apart
    query = np.concatenate([gallery[:5] + 0.3, rng.normal(size=(20, 16))])
    gap = ((query[:, None] - gallery) ** 2).sum(axis=2)
    expected = gap.argsort(axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(nearest(gallery, query, 8, "l2", backend), expected)


def test_only_queries_in_doubt_are_ordered_again(monkeypatch):
    rng = np.random.default_rng(0)
    gallery, query = rng.normal(size=(500, 32)), rng.normal(size=(100, 32))
    query[:3] = 0  # as near to one of a pair of points as to the other
    gallery[1] = -gallery[0]
    gallery[:2] /= 10
    again = []
    settle = knn.settled

    def watched(gap, candidates, *rest):
        again.append(len(candidates))
        return settle(gap, candidates, *rest)

    monkeypatch.setattr(knn, "settled", watched)
    found = nearest(gallery, query, 5, "l2")
    assert 3 <= sum(again) <= 20 and (found[:3, :2] == [0, 1]).all()


def one_by_one(gallery, query, k):
    """A search for each order of `nearest_by`."""
    mean = gallery.mean(axis=0, dtype=np.float64)
    about = gallery - mean, query - mean
    asked = ((gallery, query, "cosine"), (*about, "cosine"), (gallery, query, "l2"))
    return np.stack([nearest(far, near, k, metric) for far, near, metric in asked])


def sets_of_states():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(260, 24))
    yield "wide", x
    yield "float32 with an offset", (x + 100).astype(np.float32)
    yield "float16", x.astype(np.float16)
    yield "directions that float64 hardly tells apart", x + 1e6
    yield "a rogue dimension", x * np.where(np.arange(24) == 3, 1000, 1)
    yield "many sizes", x * np.exp(2 * rng.normal(size=(260, 1))) + 3
    yield "copies", np.repeat(x[:13], 20, axis=0)[rng.permutation(260)] + 5
    yield "whole numbers, with ties", rng.integers(1, 4, size=(260, 24))
    yield "too large to square in float32", x * 1e30
    yield "one direction", x[:, :1] + 9


@pytest.mark.parametrize("states", [pytest.param(x, id=name) for name, x in sets_of_states()])
def test_one_product_gives_the_neighbours_of_a_search_for_each_order(states, monkeypatch):
    gallery, query = states[:200], states[200:]
    for k in (1, 12, 40):
        found = nearest_by(gallery, query, k)
        np.testing.assert_array_equal(found, one_by_one(gallery, query, k))
    np.testing.assert_array_equal(nearest_by(gallery, query, 40, ["l2"])[0], found[2])
    monkeypatch.setattr(knn, "BLOCK_BYTES", 2**12)  # a gallery too large to hold
    monkeypatch.setattr(knn, "READ_BYTES", 2**12)
    np.testing.assert_array_equal(nearest_by(gallery, query, 40), found)


def test_an_order_that_is_not_there_and_rows_without_one_are_refused():
    gallery = np.array([[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]])
    with pytest.raises(ValueError, match="order 'dot': must be one of cosine, centred cosine, l2"):
        nearest_by(gallery, gallery, 1, ["dot"])
    with pytest.raises(ValueError, match="gallery sample 2 is zero: it has no cosine"):
        nearest_by(gallery, gallery, 1, ["centred cosine"])  # the last is the mean


def test_equal_votes_go_to_the_smaller_label():
    np.testing.assert_array_equal(vote(np.array([[3, 1, 3, 1], [5, 5, 2, 0]])), [1, 5])


def test_hits_are_the_objects_that_accuracy_counts(digits):
    gallery, query, old, new = digits
    hits = knn_hits(gallery, query, old, new, k=3)
    np.testing.assert_array_equal(hits, knn_predict(gallery, old, query, 3) == new)
    assert knn_accuracy(gallery, query, old, new, k=3) == hits.mean()


def test_shuffled_labels_score_at_chance(digits):
    gallery, query, old, new = digits
    rates = [knn_accuracy(gallery, query, s, new, k=10) for s in shuffled_labels(old, shuffles=5)]
    # 5 draws of 597 queries with 10 classes: a standard error of 0.006 or so, and labels correlate
    assert np.mean(rates) == pytest.approx(chance_level(old, new), abs=0.04)
    assert (np.sort(shuffled_labels(old, shuffles=2)) == np.sort(old)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 11}, "k=11 must be 1 to 10"),
        ({"k": 2.5}, "k=2.5 must be 1 to 10, the number of gallery samples, and whole"),
        ({"k": "2"}, "k='2' must be 1 to 10"),
        ({"metric": "dot"}, "metric 'dot'"),
        ({"backend": "annoy"}, "backend 'annoy'"),
        ({"gallery": np.full((10, 4), np.nan)}, "gallery sample 0 has values that are not finite"),
        ({"gallery": np.full((10, 4), 1e200)}, r"sample 0 has .*, or beyond 1e\+150"),
        ({"gallery": np.zeros((10, 4))}, "gallery sample 0 is zero: it has no cosine"),
        ({"gallery": np.ones((10, 4))}, "all features are constant over the gallery: no object"),
        ({"gallery": np.ones((10, 0)), "query": np.ones((3, 0))}, r"need \(samples, dim\)"),
        ({"query": np.ones((3, 5))}, r"gallery \(10, 4\) and query \(3, 5\)"),
        ({"gallery_labels": np.arange(9)}, r"gallery labels \(9,\) for 10 samples"),
        ({"gallery_labels": np.append(np.arange(9), np.nan)}, "gallery label 9 is NaN"),
        ({"query": np.ones((0, 4))}, "0 query samples"),
        ({"gallery_labels": np.array([None, 1] * 5)}, "gallery labels are neither all numbers nor"),
        ({"gallery": np.full((10, 4), "a")}, "gallery holds <U1: need numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message):
    good = {
        "gallery": np.random.default_rng(0).normal(size=(10, 4)),
        "gallery_labels": np.arange(10),
        "query": np.ones((3, 4)),
        "k": 2,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**(good | change))


def test_labels_in_a_column_are_refused_and_k_may_be_an_integer_of_numpys(digits):
    gallery, query, old, new = digits
    with pytest.raises(ValueError, match=r"query labels \(597, 1\) for 597 queries"):
        knn_accuracy(gallery, query, old, new[:, None])
    few = knn_accuracy(gallery, query, old, new, k=5)
    assert knn_accuracy(gallery, query, old, new, k=np.int32(5)) == few


def test_text_is_as_good_a_label_as_a_number_but_not_beside_numbers(digits):
    gallery, query, old, new = digits
    words = np.array([f"digit {at}" for at in range(10)])
    text = words[old].astype(object), words[new]
    assert knn_accuracy(gallery, query, *text) == knn_accuracy(gallery, query, old, new)
    with pytest.raises(ValueError, match="labels are text, the others numbers"):
        knn_accuracy(gallery, query, words[old], new)
