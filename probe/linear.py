"""Linear read-out: which class can a linear map of a layer still name, and how cheaply?

The read-out is a ridge classifier: one column a class, 1 for its objects and 0 for the others,
and the largest column wins. Labels enter its closed form on the right-hand side only, so that one
decomposition of a layer serves every penalty, every fold and every control task, exactly; a
logistic one would be fitted anew for each. What a probe reads is there to be read; that the model
reads it is another question (Belinkov 2022, arXiv:2102.12452).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from probe import intervals
from probe.controls import shuffled_labels
from probe.intervals import Interval

PENALTIES = np.logspace(-6, 3, 10)  # an object, against features whose mean variance is 1
FOLDS = 5
PARTS = 8  # disjoint ones that the gallery is cut into for a learning curve
FEWEST = 25  # objects of a part that a read-out is fitted on
SHARPNESS = np.append(0, np.logspace(-1, 2, 13))  # of the softmax that makes scores a code
GROUPS = 10  # of the coded objects, left out in turn: each costs a tenth of a read-out
FITTED = 0.4  # of the variance that comes of what is fitted: the rest is in that of what is coded
UNSEEN = 3  # objects more that the states do not help with: of few, there may be none


class OnlineCode(NamedTuple):
    """Length of a code for the gallery's labels, given its states.

    bits        : prequential length, lower is easier to read
    uniform     : bits without the states, all classes alike
    compression : uniform / bits, higher is easier to read; 1 where the states do not help
    low, high   : its 95 % interval over data sets of as many objects: other objects to code, to fit
                  on, and in another order
    lengths     : (samples,) bits of each object's label, in the order of the samples
    left_out    : (groups,) bits a label with one group of objects left out at a time
    """

    bits: float
    uniform: float
    compression: float
    low: float
    high: float
    lengths: np.ndarray
    left_out: np.ndarray


class LearningCurve(NamedTuple):
    """What a read-out scores by the number of gallery objects that it was fitted on.

    fitted : (sizes,) objects, the fewest first, all of them last
    hits   : (sizes, query_samples) share of the read-outs of that size that name the object right
    spread : (sizes,) standard deviation of their accuracies, 0 where there is one
    """

    fitted: np.ndarray
    hits: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class LinearProbe:
    """What a linear read-out scores on the query objects, beside what it scores on nothing."""

    accuracy: Interval
    """Share of query objects named right, with its Wilson interval; higher is better."""
    hits: np.ndarray
    """(query_samples,) of bool, for paired tests."""
    selectivity: Interval
    """Accuracy less that of the control tasks, with a bootstrap interval over query objects."""
    control_hits: np.ndarray
    """(query_samples,) share of the control tasks that name the object right."""
    control_accuracies: np.ndarray
    """(shuffles,) accuracy of each control task: a control, read by their mean and spread."""
    train_accuracy: float
    """The same share on the gallery that was fitted: no evidence on its own."""
    control_train_accuracy: float
    """And for the control tasks: how much the read-out can learn by heart."""
    penalty: float
    """Chosen from the grid; at an end of it, a wider grid may score higher."""
    code: OnlineCode | None
    """With `mdl` only."""


def linear_probe(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    shuffles: int = 10,
    folds: int = FOLDS,
    penalties: np.ndarray = PENALTIES,
    mdl: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> LinearProbe:
    """Accuracy of a ridge classifier fitted on the gallery, over the query objects.

    gallery   : (gallery_samples, dim)     gallery_labels : (gallery_samples,)
    query     : (query_samples, dim)       query_labels   : (query_samples,), one row an object
    groups    : (gallery_samples,), rows of one group (copies of an object) share a fold
    penalties : the grid, the same for all layers; cross-validation over whole groups of the
                gallery picks one by accuracy, of equals the one with the least squared error
    shuffles  : control tasks, in which each gallery object has the label of another drawn at
                random (Hewitt & Liang 2019, arXiv:1909.03368); each picks its own penalty
    mdl       : also code the gallery's labels online, see `online_code`

    Query objects are new to the probe, so a control task's accuracy is at chance, whatever it
    learnt by heart (`control_train_accuracy`). Features are standardised by the gallery; those
    constant over it get no weight. A class with one gallery object cannot be validated but is
    fitted; a query object of a class that the gallery lacks counts as wrong.
    """
    gallery, query = checked_states(gallery, query)
    names, codes, wanted = _classes(gallery, gallery_labels, query, query_labels)
    groups = checked_groups(groups, len(gallery), folds)
    penalties = checked_penalties(penalties)
    tasks = np.concatenate([codes[None], _control_tasks(codes, groups, shuffles, seed)])
    fold = deal_folds(groups, codes, folds, seed)
    named = _fit(decompose(gallery, query), tasks, len(names), fold, penalties)
    hits, train = named.query == wanted, (named.gallery == tasks).mean(axis=1)
    control = hits[1:].mean(axis=0)
    code = None
    if mdl:
        code = online_code(
            gallery,
            codes,
            groups=groups,
            folds=folds,
            penalties=penalties,
            level=level,
            seed=seed,
        )
    return LinearProbe(
        accuracy=intervals.wilson(hits[0].sum(), len(query), level),
        hits=hits[0],
        selectivity=intervals.bootstrap(hits[0] - control, level=level, seed=seed),
        control_hits=control,
        control_accuracies=hits[1:].mean(axis=1),
        train_accuracy=float(train[0]),
        control_train_accuracy=float(train[1:].mean()),
        penalty=float(named.penalties[0]),
        code=code,
    )


def learning_curve(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = FOLDS,
    penalties: np.ndarray = PENALTIES,
    seed: int = 0,
) -> LearningCurve:
    """Would more gallery objects read more? `linear_probe` fitted on parts of the gallery.

    Arguments are as there. Each eighth, quarter and half of the gallery fits a read-out of its
    own, with a penalty of its own, and the whole of it one: all are asked about all query objects.
    Parts of one size have no object in common; copies of an object stay together and classes are
    spread evenly. Sizes of which a part has fewer than 25 objects, fewer groups than folds or a
    single class are left out. The gain of the last doubling, hits[-1] - hits[-2], is paired by
    query object, for this gallery.
    """
    gallery, query = checked_states(gallery, query)
    names, codes, wanted = _classes(gallery, gallery_labels, query, query_labels)
    groups = checked_groups(groups, len(gallery), folds)
    penalties = checked_penalties(penalties)
    eighth = deal_folds(groups, codes, PARTS, seed)

    def hits(rows: np.ndarray) -> np.ndarray:
        fold = deal_folds(groups[rows], codes[rows], folds, seed)
        basis = decompose(gallery[rows], query)
        return _fit(basis, codes[None, rows], len(names), fold, penalties).query[0] == wanted

    def enough(rows: np.ndarray) -> bool:
        several = len(np.unique(codes[rows])) > 1 and len(np.unique(groups[rows])) >= folds
        return several and len(rows) >= FEWEST

    found = []
    for parts in (PARTS, PARTS // 2, PARTS // 4, 1):
        each = [np.flatnonzero(eighth % parts == part) for part in range(parts)]
        if parts == 1 or all(enough(rows) for rows in each):
            right = np.array([hits(rows) for rows in each])
            found.append((len(gallery) // parts, right.mean(axis=0), right.mean(axis=1).std()))
    return LearningCurve(*(np.array(part) for part in zip(*found, strict=True)))


def online_code(
    states: np.ndarray,
    labels: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    folds: int = FOLDS,
    penalties: np.ndarray = PENALTIES,
    level: float = 0.95,
    seed: int = 0,
) -> OnlineCode:
    """Minimum description length of labels given states, by online coding.

    states : (samples, dim)    labels : (samples,)    groups : (samples,), copies go together

    Objects come in a random order and in blocks, each as long as all before it. The first is
    coded with all classes alike, each later one with the probabilities of a probe of what came
    before: ridge scores through a softmax, whose penalty and sharpness are those that would have
    coded held-out folds of the past best, averaged with all classes alike, which count as one
    object more: else a few well separated objects make it too sure. A sender and a receiver could
    do the same, so that the length pays for the probe as well as for its errors, and no probe size
    has to be justified. It depends on the order somewhat: compare layers under one seed.
    Voita & Titov 2020 (arXiv:2003.12298, section 2.2), who use neural probes and tenfold finer
    first blocks.

    The interval is a delete-a-group jackknife of the logarithm: a group is left out of what is
    fitted as well as of what is coded, each block keeping its place, penalty and sharpness: chosen
    anew, these jump along their grids, which made it half as wide again. What those fitted and
    those coded do together would be counted as often as there are of either (Efron & Stein 1981,
    doi:10.1214/aos/1176345462), so that two fifths of the variance that fitting makes are taken,
    a share found by simulation. Where hardly an object errs, the objects do not say how others
    would: three more that cost as much as with all classes alike are in the error, as of none seen
    among n up to 3 / n may be (Hanley & Lippman-Hand 1983). Simulated 95 % intervals of 80 to 400
    objects in 3 to 8 classes hold 94.5 to 96 % (77 to 94 % of clear classes without the three); but
    97 to 99.7 % where a few orders cost far more than the others, of 2 to 4 very clear classes. Of
    pairs of equal models 2 to 6 in 100 are called different, and 0 to 2 where classes are clear:
    what two probes of few objects err alike counts for too much there.
    """
    states, _ = checked_states(states, states)
    names, codes, _ = _classes(states, labels, states, labels)
    groups = checked_groups(groups, len(states), folds)
    rng = np.random.default_rng([seed, 4])
    rank = rng.permutation(groups.max() + 1)
    order = np.argsort(rank[groups], kind="stable")
    states, codes, groups = states[order], codes[order], groups[order]
    parts = min(GROUPS, groups.max() + 1)
    turns = rng.permuted(np.tile(np.arange(parts), (-(-len(rank) // parts), 1)), axis=1)
    part = turns.ravel()[rank[groups]]  # each as often as the others in every stretch of the order
    ends = [len(codes)]
    while ends[0] >= 4 * folds:
        ends.insert(0, ends[0] // 2)
    lengths = np.full(len(codes), np.log2(len(names)))
    without = np.tile(lengths, (parts, 1))
    for past, end in pairwise(ends):
        now = slice(past, end)
        block = _Block(states[:end], codes[:end], past, len(names), groups[:past], folds)
        lengths[now], chosen = block.bits(np.ones(past, bool), penalties)
        for one in range(parts):
            changed, _ = block.bits(part[:past] != one, penalties, chosen)
            without[one, now] = lengths[now] + (changed - lengths[now]) * np.sqrt(FITTED)
    left_out = np.array([without[one, part != one].mean() for one in range(parts)])
    bits, uniform = lengths.sum(), len(codes) * np.log2(len(names))
    bounds = intervals.group_jackknife(
        np.log(uniform / bits),
        np.log(np.log2(len(names)) / left_out),
        level,
        besides=np.sqrt(UNSEEN) * np.log2(len(names)) / bits,
    )
    placed = np.empty_like(lengths)
    placed[order] = lengths
    return OnlineCode(
        bits=float(bits),
        uniform=float(uniform),
        compression=float(uniform / bits),
        low=float(np.exp(bounds.low)),
        high=float(np.exp(bounds.high)),
        lengths=placed,
        left_out=left_out,
    )


class Basis(NamedTuple):
    """A layer in coordinates where every ridge fit on its gallery is one product.

    With weights shrink * (gallery.T @ y), gallery @ weights are the fitted values and
    query @ weights the predictions. The first column is the intercept, never shrunk.
    """

    gallery: np.ndarray  # (gallery_samples, rank + 1), orthonormal columns
    query: np.ndarray  # (query_samples, rank + 1)
    variance: np.ndarray  # (rank + 1,) of the gallery along each column; infinite for the first

    def shrink(self, penalty: np.ndarray | float) -> np.ndarray:
        """Share of each coordinate that a penalty leaves, (rank + 1, ...)."""
        variance = self.variance.reshape(-1, *[1] * np.ndim(penalty))
        return 1 / (1 + penalty / variance)


def decompose(gallery: np.ndarray, query: np.ndarray) -> Basis:
    """The standardised gallery's principal axes. gallery, query : (samples, dim), float64."""
    samples = len(gallery)
    spread = gallery.std(axis=0)
    used = spread > 1e-10 * np.abs(gallery).max(axis=0)
    if not used.any():
        raise ValueError("all features are constant over the gallery: there is nothing to read")
    mean, spread = gallery[:, used].mean(axis=0), spread[used]
    x, other = (gallery[:, used] - mean) / spread, (query[:, used] - mean) / spread
    if wide := x.shape[1] > samples:  # the smaller of two matrices with the same eigenvalues
        values, vectors = np.linalg.eigh(x @ x.T)
    else:
        values, vectors = np.linalg.eigh(x.T @ x)
    kept = values > 1e-12 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    if wide:
        own, asked = vectors, other @ (x.T @ vectors) / values
    else:
        own, asked = x @ vectors / np.sqrt(values), other @ vectors / np.sqrt(values)
    level = 1 / np.sqrt(samples)
    return Basis(
        np.column_stack([np.full(samples, level), own]),
        np.column_stack([np.full(len(query), level), asked]),
        np.append(np.inf, values / samples),
    )


def held_out(
    basis: Basis, y: np.ndarray, projected: np.ndarray, fold: np.ndarray, penalty: float
) -> np.ndarray:
    """Prediction of each gallery row by the ridge fit that leaves out its fold, exactly.

    y : (gallery_samples, columns)    projected : basis.gallery.T @ y    fold : (gallery_samples,)

    The penalty stays the same in total, as in scikit-learn, and so does the standardisation.
    """
    shrink = basis.shrink(penalty)
    weights = shrink[:, None] * projected
    predicted = np.empty_like(y)
    for held in np.unique(fold):
        rows = fold == held
        own = basis.gallery[rows]
        if len(own) < len(shrink):  # the smaller of two systems with the same solution
            residual = y[rows] - own @ weights
            influence = (own * shrink) @ own.T
            predicted[rows] = y[rows] - np.linalg.solve(np.eye(len(own)) - influence, residual)
        else:
            rest = np.diag(1 / shrink) - own.T @ own
            predicted[rows] = own @ np.linalg.solve(rest, projected - own.T @ y[rows])
    return predicted


def deal_folds(groups: np.ndarray, labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each row, (samples,): groups stay whole, classes are spread evenly."""
    _, first, row_group = np.unique(groups, return_index=True, return_inverse=True)
    lots = np.random.default_rng([seed, 5]).random(len(first))
    fold = np.empty(len(first), np.int64)
    fold[np.lexsort((lots, labels[first]))] = np.arange(len(first)) % folds
    return fold[row_group]


class _Named(NamedTuple):
    """Classes that the fits of several tasks name, and the penalty each of them chose."""

    gallery: np.ndarray  # (tasks, gallery_samples)
    query: np.ndarray  # (tasks, query_samples)
    penalties: np.ndarray  # (tasks,)


def _fit(
    basis: Basis, tasks: np.ndarray, classes: int, fold: np.ndarray, penalties: np.ndarray
) -> _Named:
    """Ridge classifiers of several labellings at once. tasks : (tasks, gallery_samples)."""
    y = np.concatenate([_one_hot(task, classes) for task in tasks], axis=1)
    projected = basis.gallery.T @ y
    right, error = np.empty((2, len(penalties), len(tasks)))
    for at, penalty in enumerate(penalties):
        scores = held_out(basis, y, projected, fold, penalty)
        right[at] = (_largest(scores, classes) == tasks).sum(axis=1)
        error[at] = ((scores - y) ** 2).sum(axis=0).reshape(-1, classes).sum(axis=1)
    chosen = penalties[(right - 0.5 * error / error.max(axis=0)).argmax(axis=0)]
    weights = basis.shrink(np.repeat(chosen, classes)) * projected
    train, asked = (_largest(rows @ weights, classes) for rows in (basis.gallery, basis.query))
    return _Named(train, asked, chosen)


def _one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[codes]


def _largest(scores: np.ndarray, classes: int) -> np.ndarray:
    """Class of each task and row, (tasks, samples), from scores (samples, tasks * classes)."""
    return scores.reshape(len(scores), -1, classes).argmax(axis=2).T


def _control_tasks(codes: np.ndarray, groups: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """Labels dealt out anew among the groups, (shuffles, gallery_samples)."""
    if shuffles < 1:
        raise ValueError(f"shuffles={shuffles}: a probe without a control task is no evidence")
    _, first, row_group = np.unique(groups, return_index=True, return_inverse=True)
    return shuffled_labels(codes[first], shuffles=shuffles, seed=seed)[:, row_group]


class _Block:
    """Objects from row `past` on, coded by a probe of the rows before it."""

    def __init__(
        self,
        states: np.ndarray,
        codes: np.ndarray,
        past: int,
        classes: int,
        groups: np.ndarray,
        folds: int,
    ) -> None:
        self.past, self.new = np.split(states, [past])
        self.known, self.wanted = np.split(codes, [past])
        self.classes = classes
        self.enough = len(np.unique(groups)) >= folds
        self.fold = deal_folds(groups, self.known, folds, seed=0)

    def bits(
        self, keep: np.ndarray, penalties: np.ndarray, chosen: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, tuple[int, int] | None]:
        """Bits of each new label, and the places of penalty and sharpness in their grids.

        keep : (past,), what the probe is fitted on    chosen : the places, where they are known
        """
        known = self.known[keep]
        if len(np.unique(known)) < 2 or not self.enough:
            return np.full(len(self.wanted), np.log2(self.classes)), None
        basis = decompose(self.past[keep], self.new)
        y = _one_hot(known, self.classes)
        projected = basis.gallery.T @ y
        if chosen is None:
            chosen = self._choose(basis, y, projected, known, penalties)
        i, j = chosen
        scores = basis.query @ (basis.shrink(penalties[i])[:, None] * projected)
        return _bits(SHARPNESS[j] * scores, self.wanted, len(known)), chosen

    def _choose(
        self,
        basis: Basis,
        y: np.ndarray,
        projected: np.ndarray,
        known: np.ndarray,
        penalties: np.ndarray,
    ) -> tuple[int, int]:
        """Places of the penalty and the sharpness that would have coded held-out folds best."""
        best = (np.inf, -1, -1)
        for i in range(len(penalties))[::-1]:
            scores = held_out(basis, y, projected, self.fold, penalties[i])
            for j in range(len(SHARPNESS)):
                best = min(best, (_bits(SHARPNESS[j] * scores, known, len(known)).sum(), i, j))
        return best[1:]


def _bits(logits: np.ndarray, codes: np.ndarray, seen: int) -> np.ndarray:
    """Code length of each class, (samples,), under a softmax that counts as `seen` objects, with
    one more of all classes alike. logits : (samples, classes).
    """
    from scipy.special import log_softmax

    right = np.exp(log_softmax(logits, axis=1)[np.arange(len(codes)), codes])
    return -np.log2((seen * right + 1 / logits.shape[1]) / (seen + 1))


def checked_states(gallery: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (samples, dim), finite and of one dim."""
    gallery, query = np.asarray(gallery, np.float64), np.asarray(query, np.float64)
    if gallery.ndim != 2 or query.ndim != 2 or gallery.shape[1] != query.shape[1]:
        raise ValueError(
            f"gallery {gallery.shape} and query {query.shape}: need (samples, dim), dims the same"
        )
    if len(gallery) < 2 or len(query) < 2:
        raise ValueError(
            f"{len(gallery)} gallery and {len(query)} query objects: a probe needs 2 or more to be "
            "fitted on, and an interval 2 or more"
        )
    for name, states in (("gallery", gallery), ("query", query)):
        if not np.isfinite(states).all():
            bad = int((~np.isfinite(states)).any(axis=1).argmax())
            raise ValueError(f"{name} holds NaN or infinity, first at sample {bad}")
    return gallery, query


def checked_groups(groups: np.ndarray | None, samples: int, folds: int) -> np.ndarray:
    """Groups numbered from 0, (samples,), enough of them for the folds."""
    groups = np.arange(samples) if groups is None else np.asarray(groups)
    if groups.shape != (samples,):
        raise ValueError(f"groups {groups.shape} for {samples} gallery samples")
    objects, numbered = np.unique(groups, return_inverse=True)
    if not 2 <= folds <= len(objects):
        raise ValueError(
            f"folds={folds} must be 2 to {len(objects)}, the number of objects in the gallery"
        )
    return numbered


def checked_penalties(penalties: np.ndarray) -> np.ndarray:
    """The grid as (penalties,), ascending."""
    penalties = np.sort(np.atleast_1d(np.asarray(penalties, np.float64)))
    if not len(penalties) or not np.isfinite(penalties).all() or penalties[0] <= 0:
        raise ValueError(f"penalties {penalties}: must be positive and finite, one or more")
    return penalties


def _classes(
    gallery: np.ndarray, gallery_labels: np.ndarray, query: np.ndarray, query_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names of the gallery's classes; each row's class by number, -1 where there is none."""
    gallery_labels, query_labels = np.asarray(gallery_labels), np.asarray(query_labels)
    for name, labels, states in (
        ("gallery", gallery_labels, gallery),
        ("query", query_labels, query),
    ):
        if labels.shape != (len(states),):
            raise ValueError(f"{name}_labels {labels.shape} for {len(states)} {name} samples")
    names, codes = np.unique(gallery_labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"all gallery labels are {names[0]}: a probe needs 2 classes or more")
    place = np.searchsorted(names, query_labels).clip(max=len(names) - 1)
    return names, codes, np.where(names[place] == query_labels, place, -1)
