"""Ratios of the probes to their peers: python -m tests.benchmarks.bench_probe [--rounds 5].

Equal answers first, then times, turn about, median of the rounds. Times are the processor's, so
that others on the machine don't count; one thread unless OMP_NUM_THREADS says otherwise. What is
compared, as a user would do the same job with the peer:

KNN, a layer         what the sweep asks of a layer's states: raw and centred, by cosine and by
                     distance, k = 1 and 10, ten controls of shuffled labels, leaving one out, and
                     50 seeds of test90_10. scikit-learn shares the neighbours over k and controls,
                     is asked once for raw and centred distance, which are one, and is fitted for
                     each split, as its interface has it. 2468 in 9843 x 2560: 5 to 6.9 x in
                     float32 and 8 to 11 x in float64; 600 in 1200 x 256: 3.9 and 4.9 x, where votes
                     and splits cost as much as products
KNN, a protocol      by itself, of 2468 x 2560 and of 600 x 256. 50 seeds of test90_10: 11.7 and
                     5.4 x in float32, 24.5 and 6.8 x in float64, one product for all seeds.
                     Leaving one out: 0.9 to 1.1 x in float32, 1.2 to 2.2 x in float64. Both are
                     half a matrix product, which alone takes half of our time: 2 x is all there is
KNN, one search      one k, one split, by cosine. scikit-learn's brute force is a matrix product,
                     and so is any exact search: 0.8 to 1.9 x by FAISS, 1.4 to 2.9 x by torch,
                     whose product knows this processor; the float64 settles what float32 leaves.
                     Not taken: a bfloat16 product is 2.1 x the float32 one, and a bound on its
                     rounding proves 16 to 256 spare candidates to be enough for every query, but
                     at 80 % of the time it can't make the whole 1.8 x faster
CKA, one pair        debiased, in float32 (ckatorch goes on in float64; pytorch-cka stays in
                     float32, and is given float64 where that is off by more than 0.001: from
                     10,000 objects). Theirs grows with objects^2, ours with objects: at
                     ModelNet40's 12,311 objects x 2560 it is 26 x ckatorch and 16 x pytorch-cka,
                     and all but all of ours is products it can't do without. At 2468 and 1000
                     both are Gram matrices, half of each for ours: 5.1 and 2.4 x, 4.7 and 2.1 x
CKA, layers          the table of 9 layers of 2 models, 2468 x 2560 in float64, ours with bands and
                     theirs without: 2.2 to 3.2 x, and 64 to 86 % of ours is half a Gram matrix a
                     layer: 3.5 x is all there is
CKA, all pairs       values with jackknife bands and permutations of all pairs of layers, against a
                     loop over calls of the packages, a call for each pair (ckatorch) or for all
                     pairs at once (pytorch-cka), each object left out and each order of the
                     objects. In full: 117 and 98 to 128 x. At a run's size, 36 layers of 600 x 256
                     and 1,000 permutations, the calls are counted and timed: 1,900 and 130 x
CKA of a stream      100,000 objects in bounded memory, where two Gram matrices take 160 GB
UMAP                 a layer of 2560 dims: ours is given cosine distances from one product, 2.7 x
"""

import argparse
import importlib.util
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from probe.cka import MinibatchCKA, cka
from probe.controls import shuffled_labels
from probe.knn import knn_predict, vote
from probe.maps import _aligned_umap, faithful
from probe.orders import nearest_by
from probe.pairs import cka_pairs, cka_pairs_null
from probe.products import inner
from probe.variants import knn_protocols

PACKAGES = {"ckatorch": "ckatorch", "pytorch-cka": "cka"}  # and the module it installs
PERMUTATIONS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--only", default="stream,search,layer,protocols,pair,table,pairs,umap")
    settings = parser.parse_args()
    quick, rounds, asked = settings.quick, settings.rounds, settings.only.split(",")
    if "stream" in asked:  # first: it reads the peak of memory
        bench_stream(10_000 if quick else 100_000)
    if "search" in asked:
        for size in [(500, 100, 32)] if quick else [(1200, 600, 256), (9843, 2468, 2560)]:
            for kind in (np.float32, np.float64):
                bench_search(rounds, *size, kind)
    if "layer" in asked:
        for size in [(300, 120, 32)] if quick else [(1200, 600, 256), (9843, 2468, 2560)]:
            for kind in (np.float32, np.float64):
                bench_layer(rounds, *size, kind, splits=50)
    if "protocols" in asked:
        for shape in [(120, 32)] if quick else [(600, 256), (2468, 2560)]:
            for kind in (np.float32, np.float64):
                bench_protocols(rounds, *shape, kind, splits=50)
    if "pair" in asked:
        sizes = [(600, 256), (1000, 2560), (2468, 2560), (12_311, 2560)]
        for samples, dim in [(80, 16)] if quick else sizes:
            bench_pair(rounds, samples, dim)
    if "table" in asked:
        bench_table(1, *((4, 80, 16) if quick else (18, 2468, 2560)))
    if "pairs" in asked:
        small, large = (4, 60, 16, 50), (18, 300, 128, 300)
        bench_pairs_in_full("ckatorch", rounds, *(small if quick else (6, 120, 32, 120)))
        bench_pairs_in_full("pytorch-cka", rounds, *(small if quick else large))
        bench_pairs(rounds, *((4, 80, 16) if quick else (36, 600, 256)))
    if "umap" in asked:
        bench_umap(1, *((100, 64) if quick else (1000, 2560)))


def objects(gallery: int, query: int, dim: int, kind: type = np.float32) -> tuple:
    """Gallery and query of 40 classes, with labels: sizes of ModelNet40's two sets, or of a run."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(40, dim))
    found = []
    for count in (gallery, query):
        labels = rng.integers(0, 40, count)
        found += [(centre[labels] + 3 * rng.normal(size=(count, dim))).astype(kind), labels]
    return tuple(found)


def bench_search(rounds: int, gallery: int, query: int, dim: int, kind: type) -> None:
    far, labels, near, _ = objects(gallery, query, dim, kind)
    model = KNeighborsClassifier(10, metric="cosine", algorithm="brute")

    def theirs() -> np.ndarray:
        return model.fit(far, labels).predict(near)

    for backend in ("faiss-cpu", "torch"):

        def ours(backend: str = backend) -> np.ndarray:
            return knn_predict(far, labels, near, 10, backend=backend)

        assert (ours() == theirs()).mean() > 0.999  # float32 ties
        title = f"KNN, one search, {query} in {gallery} x {dim} {np.dtype(kind).name}, {backend}"
        say(f"{title}, scikit-learn", rounds, ours, theirs)


def neighbours(metric: str, rows: np.ndarray, these: np.ndarray | None, k: int) -> np.ndarray:
    """By scikit-learn: rows nearest to these, or to each row without itself where None."""
    model = NearestNeighbors(n_neighbors=k, metric=metric, algorithm="brute").fit(rows)
    return model.kneighbors(these, return_distance=False)


def loo_of(states: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]) -> np.ndarray:
    """Accuracy (k,) by scikit-learn."""
    alone = neighbours("cosine", states, None, max(ks))
    return np.array([(vote(labels[alone[:, :k]]) == labels).mean() for k in ks])


def tenths_of(
    states: np.ndarray, labels: np.ndarray, ks: tuple[int, ...], splits: int
) -> np.ndarray:
    """Accuracy of test90_10 (k, splits) by scikit-learn."""
    found = np.empty((len(ks), splits))
    for split in range(splits):
        order = np.random.default_rng([0, 11, split]).permutation(len(states))
        out, rest = np.split(order, [int(np.ceil(0.1 * len(states)))])
        near = neighbours("cosine", states[rest], states[out], max(ks))
        for at, k in enumerate(ks):
            found[at, split] = (vote(labels[rest][near[:, :k]]) == labels[out]).mean()
    return found


def bench_protocols(rounds: int, samples: int, dim: int, kind: type, splits: int) -> None:
    """Each protocol by itself, as one who wants no other would ask for it."""
    states, labels = objects(samples, 1, dim, kind)[:2]
    groups, ks = np.arange(samples), (1, 10)

    def product() -> np.ndarray:
        single = states.astype(np.float32)
        return inner(single, single)

    def loo() -> np.ndarray:
        return knn_protocols(states, labels, groups, k=ks, splits=0).loo.mean(axis=1)

    def tenths() -> np.ndarray:
        return knn_protocols(states, labels, groups, k=ks, splits=splits).test90_10

    for name, ours, theirs in (
        ("loo", loo, lambda: loo_of(states, labels, ks)),
        (f"{splits} seeds of test90_10", tenths, lambda: tenths_of(states, labels, ks, splits)),
    ):
        np.testing.assert_allclose(ours(), theirs(), atol=30 / samples)  # float32 ties
        title = f"KNN, {name}, {samples} x {dim} {np.dtype(kind).name}, scikit-learn"
        say(title, rounds, ours, theirs, product=product)


def bench_layer(rounds: int, gallery: int, query: int, dim: int, kind: type, splits: int) -> None:
    far, labels, near, asked = objects(gallery, query, dim, kind)
    groups, ks = np.arange(query), (1, 10)
    dealt = [labels, *shuffled_labels(labels, shuffles=10)]

    def shares(found: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
        return np.array([(vote(one[found[:, :k]]) == asked).mean() for k in ks for one in known])

    def ours() -> np.ndarray:
        first, *ways = nearest_by(far, near, max(ks))
        rest = knn_protocols(near, asked, groups, k=ks, splits=splits)
        found = [shares(first, dealt), *(shares(one, [labels]) for one in ways)]
        return np.concatenate([*found, rest.loo.mean(axis=1), rest.test90_10.ravel()])

    def theirs() -> np.ndarray:
        mean = far.mean(axis=0)
        most = max(ks)
        found = [shares(neighbours("cosine", far, near, most), dealt)]
        about = neighbours("cosine", far - mean, near - mean, most)
        found += [
            shares(one, [labels]) for one in (about, neighbours("euclidean", far, near, most))
        ]
        tenths = tenths_of(near, asked, ks, splits).ravel()
        return np.concatenate([*found, loo_of(near, asked, ks), tenths])

    np.testing.assert_allclose(ours(), theirs(), atol=3 / query)  # float32 ties
    title = f"KNN, a layer, {query} in {gallery} x {dim} {np.dtype(kind).name}, {splits} splits"
    say(f"{title}, scikit-learn", rounds, ours, theirs)


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


class Peer(NamedTuple):
    """CKA of two tensors; and of each of the first list with all later ones of the second."""

    pair: Callable[[torch.Tensor, torch.Tensor], float]
    pairs: Callable[[list, list], np.ndarray]


def peer(name: str) -> Peer | None:
    """The estimators of a package; None without it."""
    if importlib.util.find_spec(PACKAGES[name]) is None:
        print(f"{name} is not installed: no comparison with it")
        return None
    if name == "ckatorch":
        from ckatorch import cka_base

        def pair(x: torch.Tensor, y: torch.Tensor) -> float:
            return float(cka_base(x, y, unbiased=True))

        return Peer(
            pair,
            lambda a, b: np.array([pair(a[i], b[j]) for i, j in zip(*upper(len(a)), strict=True)]),
        )
    from cka import cka_from_features

    return Peer(
        lambda x, y: float(cka_from_features([x], [y])[0, 0]),
        lambda a, b: cka_from_features(a, b).numpy()[upper(len(a))],
    )


def upper(sets: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of two sets, each once."""
    return np.triu_indices(sets, 1)


def layers(sets: int, samples: int, dim: int, kind: type = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(samples, dim))
    each = range(1, sets + 1)
    return [(base + at / 8 * rng.normal(size=base.shape)).astype(kind) for at in each]


def bench_pair(rounds: int, samples: int, dim: int) -> None:
    x, y = layers(2, samples, dim, np.float32)
    tensors = torch.from_numpy(x), torch.from_numpy(y)

    def products() -> tuple[np.ndarray, ...]:
        """The fewest that hold an exact CKA; a matrix by itself is half the price."""
        a, b = (x, y) if samples < 2 * dim else (x.T, y.T)
        return (inner(a, a), inner(b, b)) + (() if a is x else (inner(a, b),))

    for name in PACKAGES:
        if (package := peer(name)) is None:
            continue

        near = 1e-6 if name == "ckatorch" else 1e-3
        wanted, given, kind = cka(x, y), tensors, ""
        if abs(package.pair(*given) - wanted) > near:
            given, kind = (given[0].double(), given[1].double()), " in float64"

        def theirs(package: Peer = package, given: tuple = given) -> float:
            return package.pair(*given)

        assert abs(theirs() - wanted) < near
        title = f"CKA, one pair, {samples} x {dim} float32, {name}{kind}"
        say(title, rounds, lambda: cka(x, y), theirs, product=products)


def bench_table(rounds: int, sets: int, samples: int, dim: int) -> None:
    """Layer by layer: ours has the bands of all pairs as well, the package has none."""
    if (package := peer("pytorch-cka")) is None:
        return
    states = layers(sets, samples, dim)
    tensors = [torch.from_numpy(x) for x in states]

    def ours() -> np.ndarray:
        return cka_pairs(states).mean[upper(sets)]

    def theirs() -> np.ndarray:
        return package.pairs(tensors, tensors)

    np.testing.assert_allclose(ours(), theirs(), atol=1e-6)
    title = f"CKA, {sets} layers with one another, {samples} x {dim} float64, pytorch-cka"
    say(title, rounds, ours, theirs, product=lambda: [x @ x.T for x in states])


def bench_pairs_in_full(
    name: str, rounds: int, sets: int, samples: int, dim: int, permutations: int
) -> None:
    """Everything is run on both sides, nothing counted up: bands and the permutation null."""
    if (package := peer(name)) is None:
        return
    states, (first, second) = layers(sets, samples, dim), upper(sets)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        left_out = cka_pairs(states).left_out[:, first, second]
        return left_out, cka_pairs_null(states, permutations)

    def theirs() -> tuple[np.ndarray, np.ndarray]:
        tensors = [torch.from_numpy(x) for x in states]
        keep = [np.arange(samples) != one for one in range(samples)]
        out = [package.pairs(one, one) for one in ([x[rows] for x in tensors] for rows in keep)]
        rng = np.random.default_rng(0)
        orders = [rng.permutation(samples) for _ in range(permutations // 2)]
        both = [one for order in orders for one in (order, np.argsort(order))]
        null = [package.pairs(tensors, [x[order] for x in tensors]).max() for order in both]
        return np.array(out), np.array(null)

    for mine, other in zip(ours(), theirs(), strict=True):
        np.testing.assert_allclose(mine.clip(0), other.clip(0), atol=1e-6)
    title = f"CKA, all pairs of {sets} layers, {samples} x {dim}, {samples} left out, "
    say(f"{title}{permutations} permutations, {name}, in full", rounds, ours, theirs)


def bench_pairs(rounds: int, sets: int, samples: int, dim: int) -> None:
    states = layers(sets, samples, dim)
    tensors = [torch.from_numpy(x) for x in states]
    np.testing.assert_allclose(cka_pairs(states).mean[0, 1], cka(states[0], states[1]), atol=1e-10)

    def ours() -> None:
        cka_pairs(states)
        cka_pairs_null(states, PERMUTATIONS)

    for name in PACKAGES:
        if (package := peer(name)) is None:
            continue
        some = tensors[:2] if name == "ckatorch" else tensors
        couples = len(upper(sets)[0]) if name == "ckatorch" else 1
        calls = couples * (samples + PERMUTATIONS)
        title = f"CKA, all pairs of {sets} layers, {samples} x {dim}, bands and {PERMUTATIONS} "
        say(
            f"{title}permutations, {calls} calls of {name}",
            rounds,
            ours,
            lambda call=package.pairs, some=some: call(some, some),
            calls,
        )


def bench_umap(rounds: int, samples: int, dim: int) -> None:
    """Both place the same objects from the same distances: they are equally faithful."""
    states = objects(samples, 1, dim)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        def ours() -> np.ndarray:
            return _aligned_umap([states], 0)[0]

        def theirs() -> np.ndarray:
            model = UMAP(n_neighbors=15, metric="cosine", random_state=0, n_jobs=1)
            return model.fit_transform(states)

        mine, other = (faithful(states, shown) for shown in (ours(), theirs()))
        np.testing.assert_allclose(mine, other, atol=0.05)
        say(f"UMAP of {samples} x {dim}, umap-learn", rounds, ours, theirs)


def say(
    what: str,
    rounds: int,
    ours: Callable,
    theirs: Callable,
    times: float = 1.0,
    product: Callable | None = None,
) -> None:
    """Median seconds of both, turn about, and their ratio. times : theirs stands for as many.

    product : the matrix products that ours can't do without, whose share of it is said.
    """
    calls = [ours, theirs] + ([product] if product else [])
    spent: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for at, call in enumerate(calls):
            begun = time.process_time()
            call()
            spent[at].append(time.process_time() - begun)
    mine, other, *least = (statistics.median(each) for each in spent)
    other *= times
    share = f"; {least[0] / mine:.0%} of ours is the matrix product" if least else ""
    print(f"{what}: {mine:.3f} s against {other:.3f} s, {other / mine:.1f} x{share}", flush=True)


def peak() -> float:
    """Largest memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
