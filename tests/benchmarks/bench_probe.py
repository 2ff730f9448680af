"""Ratios of the probes to their peers: python -m tests.benchmarks.bench_probe [--rounds 5].

Equal answers first, then times, turn about, median of the rounds; one thread unless OMP_NUM_THREADS
says otherwise. KNN against scikit-learn's brute force; debiased CKA of 100,000 objects in bounded
memory, where a Gram matrix would take 80 GB; CKA of all pairs of layers, with its jackknife bands
and permutations, against a loop that calls one function for one pair; and CKA against the public
packages ckatorch and pytorch-cka, where they are installed.
"""

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from probe.cka import MinibatchCKA, cka, cka_interval
from probe.knn import knn_predict
from probe.pairs import cka_pairs, cka_pairs_null


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    settings = parser.parse_args()
    bench_stream(10_000 if settings.quick else 100_000)  # first: it reads the peak of memory
    bench_knn(settings.rounds, *((500, 100, 32) if settings.quick else (9843, 2468, 768)))
    bench_pairs(settings.rounds, *((4, 80, 16) if settings.quick else (36, 600, 96)))
    for size in [(4, 80, 16)] if settings.quick else [(2, 2468, 768), (36, 600, 96)]:
        bench_packages(settings.rounds, *size)


def bench_knn(rounds: int, gallery: int, query: int, dim: int) -> None:
    """Sizes of ModelNet40: gallery of its training set, queries of its test set."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, gallery)
    centre = rng.normal(size=(40, dim))
    far = centre[labels] + 3 * rng.normal(size=(gallery, dim))
    near = centre[rng.integers(0, 40, query)] + 3 * rng.normal(size=(query, dim))
    model = KNeighborsClassifier(10, metric="cosine", algorithm="brute")

    def ours() -> np.ndarray:
        return knn_predict(far, labels, near, 10)

    def theirs() -> np.ndarray:
        return model.fit(far, labels).predict(near)

    assert (ours() == theirs()).all()
    say(
        f"KNN, {query} in {gallery} x {dim}, K = 10, scikit-learn brute force", rounds, ours, theirs
    )


def bench_stream(samples: int, dim: int = 256, batch: int = 2000) -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(dim, dim)) / 8
    stream, few = MinibatchCKA(), MinibatchCKA()
    begun, before = time.perf_counter(), peak()
    for at in range(0, samples, batch):
        x = rng.normal(size=(batch, dim))
        y = x @ mix + rng.normal(size=(batch, dim))
        stream.update(x, y)
        if at == 0:
            few.update(x, y)
            assert abs(few.compute() - cka(x, y)) < 1e-9
    value = stream.compute()
    seconds, grown = time.perf_counter() - begun, peak() - before
    gram = 2 * 8 * samples**2 / 2**20
    print(
        f"CKA of {samples} objects x {dim} in a stream: {value:.4f}, {seconds:.1f} s, "
        f"{grown:.0f} MiB more at the peak; two Gram matrices: {gram:.0f} MiB, "
        f"{gram / max(grown, 1):.0f} x"
    )


def bench_pairs(rounds: int, sets: int, samples: int, dim: int, permutations: int = 10) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(samples, dim))
    states = [base + at / 8 * rng.normal(size=(samples, dim)) for at in range(1, sets + 1)]
    couples = [(i, j) for i in range(sets) for j in range(i)]

    def ours() -> np.ndarray:
        return cka_pairs(states).low

    def fast_each() -> np.ndarray:
        return np.array([cka_interval(states[i], states[j]).low for i, j in couples])

    def left_out() -> float:
        """Leave-one-out as a loop over a plain function does it; a few objects of one pair."""
        keep = np.arange(samples)
        return float(sum(plain(states[0][keep != a], states[1][keep != a]) for a in range(10)))

    found = ours()
    np.testing.assert_allclose([found[i, j] for i, j in couples], fast_each(), atol=1e-10)
    np.testing.assert_allclose(plain(states[0], states[1]), cka(states[0], states[1]), atol=1e-10)
    title = f"CKA of {len(couples)} pairs of {sets} layers, {samples} x {dim}, with bands"
    say(f"{title}, our closed form pair by pair", rounds, ours, fast_each)
    # a loop over pairs and objects would take this many times as long as the ten of one pair
    say(
        f"{title}, a loop over pairs and left-out objects (extrapolated)",
        rounds,
        ours,
        left_out,
        len(couples) * samples / 10,
    )

    def shuffled() -> np.ndarray:
        return cka_pairs_null(states, permutations)

    def each() -> float:
        order = rng.permutation(samples)
        return plain(states[0], states[1][order])

    say(
        f"{permutations} permutations of all {sets} x {sets} pairs, a loop (extrapolated)",
        rounds,
        shuffled,
        each,
        permutations * sets**2,
    )


def bench_packages(rounds: int, sets: int, samples: int, dim: int) -> None:
    """Debiased CKA of all pairs of layers in float64; ours has the jackknife bands, theirs none.

    ckatorch takes a pair at a time; pytorch-cka (imported as cka) all pairs, from Gram matrices.
    Of two layers the value of the pair alone is asked for.
    """
    rng = np.random.default_rng(0)
    base = rng.normal(size=(samples, dim))
    states = [base + at / 8 * rng.normal(size=base.shape) for at in range(1, sets + 1)]
    tensors = [torch.from_numpy(x) for x in states]
    first, second = (tensors[:1], tensors[1:]) if sets == 2 else (tensors, tensors)

    def ours() -> np.ndarray:
        if sets == 2:
            return np.array([[cka(states[0], states[1])]])
        return cka_pairs(states).mean

    def of_ckatorch() -> np.ndarray:
        from ckatorch import cka_base

        return np.array([[float(cka_base(x, y, unbiased=True)) for y in second] for x in first])

    def of_pytorch_cka() -> np.ndarray:
        from cka import cka_from_features

        return cka_from_features(first, second).numpy()

    for name, module, theirs in (
        ("ckatorch", "ckatorch", of_ckatorch),
        ("pytorch-cka", "cka", of_pytorch_cka),
    ):
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed: no comparison with it")
            continue
        # pytorch-cka cuts values off at 0, ours and ckatorch's fall on both sides of it by chance
        np.testing.assert_allclose(ours().clip(0), theirs().clip(0), atol=1e-8)
        title = f"CKA of {len(first)} x {len(second)} layers, {samples} x {dim}, {name}"
        say(title, rounds, ours, theirs)


def plain(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA from U-centred Gram matrices, as packages for one pair compute it."""
    n = len(x)
    grams = []
    for values in (x, y):
        gram = values @ values.T
        np.fill_diagonal(gram, 0)
        rows = gram.sum(axis=1, keepdims=True) / (n - 2)
        gram = gram - rows - rows.T + rows.sum() / (n - 1)
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    a, b = grams
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def say(what: str, rounds: int, ours: Callable, theirs: Callable, times: float = 1.0) -> None:
    """Median seconds of both, turn about, and their ratio. times : theirs stands for as many."""
    spent: list[list[float]] = [[], []]
    for _ in range(rounds):
        for at, call in enumerate((ours, theirs)):
            begun = time.perf_counter()
            call()
            spent[at].append(time.perf_counter() - begun)
    mine, other = statistics.median(spent[0]), times * statistics.median(spent[1])
    print(f"{what}: {mine:.3f} s against {other:.3f} s, {other / mine:.1f} x")


def peak() -> float:
    """Largest memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
