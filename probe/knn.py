"""Nearest-neighbour probes: does a layer keep like objects near each other?"""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from probe.products import inner

if TYPE_CHECKING:
    import torch

BACKENDS = ("faiss-gpu", "faiss-cpu", "torch")
METRICS = ("cosine", "l2")
SPARE = 16  # candidates beyond k, for queries whose order float32 leaves open
SAFETY = 4  # times the rounding of a float32 sum; errors measured were 2 (8 dims) to 80 times less
LARGEST = 1e150  # whose square is finite
BLOCK_BYTES = 2**28
READ_BYTES = 2**26  # of rows in float64, read at a time
PAIR_BYTES = 2**22  # of what lies between rows, in float64: few enough to stay in the cache, too
BLOCK = 512  # queries of a product, few enough to stay in the processor's cache


class Rows(Protocol):
    """(samples, dim): an array, or what gives one when sliced or indexed by rows."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def knn_accuracy(
    gallery: np.ndarray,
    query: np.ndarray,
    gallery_labels: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int = 20,
    metric: str = "cosine",
    backend: str = "auto",
) -> float:
    """Share of queries whose label wins the vote of their k nearest gallery samples.

    gallery : (gallery_samples, dim)    gallery_labels : (gallery_samples,), numbers or text
    query   : (query_samples, dim)      query_labels   : (query_samples,)
    k       : neighbours that vote, one vote each; equal votes go to the smaller label

    Returns a share in [0, 1], higher is better. An object in both sets finds itself: split by
    object first (`probe.splits`). Wu et al. 2018 (arXiv:1805.01978, section 3.4) weigh the votes
    by similarity; these are plain.
    """
    hits = knn_hits(
        gallery, query, gallery_labels, query_labels, k=k, metric=metric, backend=backend
    )
    return float(hits.mean())


def knn_hits(
    gallery: np.ndarray,
    query: np.ndarray,
    gallery_labels: np.ndarray,
    query_labels: np.ndarray,
    *,
    k: int = 20,
    metric: str = "cosine",
    backend: str = "auto",
) -> np.ndarray:
    """Which queries `knn_accuracy` counts as right, (query_samples,) of bool: for paired tests."""
    gallery_labels, query_labels = _named(gallery_labels, "gallery"), _named(query_labels, "query")
    if query_labels.shape != (len(query),):
        raise ValueError(f"query labels {query_labels.shape} for {len(query)} queries")
    if (query_labels.dtype.kind == "U") != (gallery_labels.dtype.kind == "U"):
        raise ValueError("gallery labels or query labels are text, the others numbers: no hit")
    predicted = knn_predict(gallery, gallery_labels, query, k, metric=metric, backend=backend)
    return predicted == query_labels


def knn_predict(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query: np.ndarray,
    k: int,
    metric: str = "cosine",
    backend: str = "auto",
) -> np.ndarray:
    """Label that wins the vote of the k nearest gallery samples, for each query.

    gallery : (gallery_samples, dim)    query : (query_samples, dim)
    metric  : "cosine" or "l2"          backend : "faiss-gpu", "faiss-cpu", "torch" or "auto",
    the first of these that is there; all give the same labels, (query_samples,). Raises ValueError
    where no row of the gallery differs from another.
    """
    gallery_labels = _named(gallery_labels, "gallery")
    if gallery_labels.shape != (len(gallery),):
        raise ValueError(f"gallery labels {gallery_labels.shape} for {len(gallery)} samples")
    found = nearest(gallery, query, k, metric=metric, backend=backend)
    check_they_differ(np.asarray(gallery))
    return vote(gallery_labels[found])


def _named(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as an array of numbers or of text."""
    labels = np.asarray(np.asarray(labels).tolist())
    if labels.size and labels.dtype.kind not in "biufU":
        raise ValueError(f"{name} labels are neither all numbers nor all text: need one of the two")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"{name} label {int(np.isnan(labels).argmax())} is NaN: no class")
    return labels


def check_they_differ(gallery: np.ndarray) -> None:
    """ValueError where all rows are alike, and any order of them is by chance."""
    if len(gallery) > 1 and (gallery == gallery[:1]).all():
        raise ValueError("all features are constant over the gallery: no object is the nearest")


def vote(labels: np.ndarray) -> np.ndarray:
    """Most frequent label of each row, the smaller one of equals. labels : (samples, k)."""
    names, codes = np.unique(labels, return_inverse=True)
    cells = codes.reshape(labels.shape) + len(names) * np.arange(len(labels))[:, None]
    counts = np.bincount(cells.ravel(), minlength=len(labels) * len(names))
    return names[counts.reshape(len(labels), len(names)).argmax(axis=1)]


def nearest(
    gallery: np.ndarray, query: np.ndarray, k: int, metric: str = "cosine", backend: str = "auto"
) -> np.ndarray:
    """Rows of the k gallery samples nearest to each query, nearest first: (query_samples, k).

    The backend searches in float32. Queries with two of the first k + 1 too close for float32 to
    tell are ordered again in float64, equally near samples in the order of the gallery: so no
    backend, thread count or duplicate object changes the answer.
    """
    gallery, query = _checked(gallery, query, k, metric)
    k, backend = int(k), _pick(backend)  # faiss takes no integer of numpy's
    distances, candidates = _search(gallery, query, min(k + SPARE, len(gallery)), backend)
    close = np.diff(distances, axis=1) < _doubt(gallery, query)[:, None]
    rows = candidates[:, :k].astype(np.int64)
    open_ones = np.flatnonzero(close[:, :k].any(axis=1))
    if len(open_ones):

        def gap(rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
            return gallery[rows] - query[open_ones[asked]]

        rows[open_ones] = settled(gap, candidates[open_ones], close[open_ones], k, gallery.shape)
    return rows


def others(values: np.ndarray, k: int, metric: str) -> np.ndarray:
    """The k nearest other objects of each: itself is dropped by row, copies of it are not."""
    found = nearest(values, values, k + 1, metric)
    rows = np.arange(len(values))[:, None]
    own = found == rows
    own[~own.any(axis=1), -1] = True  # more copies than neighbours: drop the last one instead
    return found[~own].reshape(len(values), k)


def _checked(
    gallery: np.ndarray, query: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 rows whose squared distances rank them; ValueError for what has none."""
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: must be one of {', '.join(METRICS)}")
    gallery, query = np.asarray(gallery), np.asarray(query)
    comparable(gallery, query, k)
    gallery, query = gallery.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        gallery /= _lengths(gallery, "gallery")
        query /= _lengths(query, "query")
    # a common shift and scale change no order, and bring float32 to its best
    centre = gallery.mean(axis=0)
    gallery -= centre
    scale = 1 / (np.sqrt(_squared(gallery).max()) or 1.0)
    gallery *= scale
    query -= centre
    query *= scale
    return gallery, query


def comparable(gallery: Rows, query: Rows, k: int) -> None:
    """ValueError where they can't be compared."""
    shapes = gallery.shape, query.shape
    if not all(len(shape) == 2 and shape[1] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"gallery {gallery.shape} and query {query.shape}: need (samples, dim)")
    if not len(query):
        raise ValueError("0 query samples: there is nothing to look up")
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(gallery):
        raise ValueError(
            f"k={k!r} must be 1 to {len(gallery)}, the number of gallery samples, and whole"
        )
    for name, rows in (("gallery", gallery), ("query", query)):
        if (kind := np.asarray(rows[:1]).dtype).kind not in "biuf":
            raise ValueError(f"{name} holds {kind}: need numbers")
        above = LARGEST if kind.itemsize > 4 else np.inf
        for some in row_blocks(rows):
            if not (finite := (np.abs(rows[some]) < above).all(axis=1)).all():
                bad = some.start + int(finite.argmin())
                raise ValueError(
                    f"{name} sample {bad} has values that are not finite, or beyond {LARGEST:g}"
                )


def row_blocks(rows: Rows) -> Iterator[slice]:
    """Slices of rows (samples, dim), fewer where they are wide."""
    step = max(1, min(BLOCK, READ_BYTES // (8 * rows.shape[1])))
    return (slice(at, min(at + step, len(rows))) for at in range(0, len(rows), step))


def unit_rows(rows: np.ndarray, name: str = "rows") -> np.ndarray:
    """Rows scaled to length 1; a row of zeros has no direction and is refused."""
    return rows / _lengths(rows, name)


def _lengths(rows: np.ndarray, name: str) -> np.ndarray:
    """(..., 1), none of them 0."""
    length = np.sqrt(_squared(rows))[..., None]
    if not length.all():
        raise ValueError(f"{name} sample {int((length == 0).argmax())} is zero: it has no cosine")
    if not np.isfinite(length).all():
        bad = int((~np.isfinite(length)).argmax())
        raise ValueError(f"{name} sample {bad} is too large: the square of its length overflows")
    return length


def _pick(backend: str) -> str:
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r}: must be auto, {', '.join(BACKENDS)}")
        return backend
    if importlib.util.find_spec("faiss") is None:
        return "torch"
    return "faiss-gpu" if getattr(_faiss(), "get_num_gpus", int)() else "faiss-cpu"


def _faiss() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the generated bindings
        import faiss
    return faiss


def _search(
    gallery: np.ndarray, query: np.ndarray, count: int, backend: str
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances in float32, up to a term a query, and rows: (query_samples, count) each.

    Nearest first.
    """
    near, far = np.ascontiguousarray(query, np.float32), np.ascontiguousarray(gallery, np.float32)
    if backend == "torch":
        return _search_torch(far, near, count)
    faiss = _faiss()
    index = faiss.IndexFlatL2(far.shape[1])
    if backend == "faiss-gpu":
        if not getattr(faiss, "get_num_gpus", int)():
            raise ValueError("backend faiss-gpu: this faiss finds no GPU; use faiss-cpu or torch")
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(far)
    return index.search(near, count)


def _search_torch(
    gallery: np.ndarray, query: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    half_norm = _squared(gallery) / 2
    distances, rows = [], []
    for _, product in products(gallery, query):
        scores, found = highest(product - product.new_tensor(half_norm), count)
        distances.append(-2 * scores)
        rows.append(found)
    return np.concatenate(distances), np.concatenate(rows)


def products(gallery: Rows, query: Rows) -> Iterator[tuple[slice, "torch.Tensor"]]:
    """Inner products of some queries with the whole gallery, (queries, gallery_samples) a time.

    Both in float32; a gallery too large to hold is sliced anew for each block of queries, one that
    asks about itself is multiplied at half the price. On a GPU where there is one; elsewhere by
    oneDNN, which is as precise as the product of numpy or torch, and faster where those don't know
    the processor.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = device == "cpu" and torch.backends.mkldnn.is_available()

    def ready(rows: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(rows).to(device)
        return found.to_mkldnn() if packed else found

    def times(near: torch.Tensor, far: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(near, far).to_dense() if packed else near @ far.T

    samples, dim = gallery.shape
    step = max(1, min(BLOCK, BLOCK_BYTES // (4 * max(samples, dim))))
    if query is gallery and packed and 4 * samples * max(samples, dim) <= BLOCK_BYTES:
        rows = gallery[:]
        whole = torch.from_numpy(inner(rows, rows))  # half the work
        for start in range(0, samples, step):
            some = slice(start, min(start + step, samples))
            yield some, whole[some]
        return
    held = ready(gallery[:]) if 4 * samples * dim <= BLOCK_BYTES else None
    for start in range(0, len(query), step):
        some = slice(start, min(start + step, len(query)))
        near = ready(query[some])
        if held is not None:
            yield some, times(near, held)
        else:
            parts = [times(near, ready(gallery[rows])) for rows in row_blocks(gallery)]
            yield some, torch.cat(parts, dim=1)


def highest(scores: "torch.Tensor", count: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest scores of each row, in order, and their columns: (rows, count) each.

    On a processor, where that is not a few of many, by numpy in a third of torch's time.
    """
    if scores.is_cuda or 64 * count <= scores.shape[1]:
        found = scores.topk(count, dim=1)
        return found.values.cpu().numpy(), found.indices.cpu().numpy()
    host = scores.numpy()
    columns = host.argpartition(host.shape[1] - count, axis=1)[:, -count:]
    values = np.take_along_axis(host, columns, axis=1)
    order = np.argsort(-values, axis=1)
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(columns, order, axis=1)


def _doubt(gallery: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Gap between two squared distances that float32 may get wrong, (query_samples,).

    Errors of a sum of n terms grow with sqrt(n) (Higham & Mary 2019, SIAM J. Sci. Comput. 41).
    """
    return rounding(query.shape[1]) * (_squared(query) + _squared(gallery).max())


def rounding(dim: int, kind: type = np.float32) -> float:
    """What a product of rows of `dim` may be off by, of the product of their lengths."""
    return float(SAFETY * np.finfo(kind).eps * np.sqrt(dim))


def settled(
    gap: Callable[[np.ndarray, np.ndarray], np.ndarray],
    candidates: np.ndarray,
    close: np.ndarray,
    k: int,
    shape: tuple[int, ...],
) -> np.ndarray:
    """The k nearest of the candidates; those that float32 can't tell apart by float64 distance,
    then by row.

    gap        : from rows of the gallery and as many queries to what lies between each two,
                 (pairs, dim) in float64
    candidates : (query_samples, count), nearest first
    close      : (query_samples, count - 1), whether one and the next are too close to tell
    shape      : (gallery_samples, dim)
    """
    samples, dim = shape
    ends = np.zeros((len(candidates), 1), bool)
    run = np.cumsum(np.hstack([ends, ~close]), axis=1)  # number of the run each is part of
    wanted = run <= run[:, k - 1 : k]
    several = np.hstack([ends, close]) | np.hstack([close, ends])
    asked, place = np.nonzero(several & wanted)
    exact = np.zeros(candidates.shape)
    exact[asked, place] = _distances(gap, candidates[asked, place], asked, dim)
    order = np.lexsort((candidates, exact, run))
    rows = np.take_along_axis(candidates, order, axis=1)[:, :k]
    if candidates.shape[1] < samples:
        # more samples as near as the k-th than were proposed: only all of them can tell
        for one in np.flatnonzero(wanted[:, -1]):
            far = _distances(gap, np.arange(samples), np.full(samples, one), dim)
            rows[one] = far.argsort(kind="stable")[:k]
    return rows


def _distances(gap: Callable, rows: np.ndarray, asked: np.ndarray, dim: int) -> np.ndarray:
    """Squared distances, rounded so that equal rows tie however they were summed."""
    found = np.empty(len(rows))
    step = max(1, PAIR_BYTES // (8 * dim))
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        found[some] = _squared(gap(rows[some], asked[some]))
    return found.round(12)


def _squared(rows: np.ndarray) -> np.ndarray:
    """Squared lengths, (...)."""
    return np.einsum("...d,...d->...", rows, rows)
