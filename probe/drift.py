"""How far point tokens have drifted from the target: 1 - cosine, after a map to its space.

Spaces of two widths have no cosine; a map makes one, and the map is part of the result. The
ridge and Procrustes maps are fitted on gallery objects and scored on query objects, in the same
way for every layer and model. The alignment projector was trained to make this very number
small in the aligned model: no fair comparison, but the training objective seen from outside.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from probe.tokens import Tokens, blocks

FITTED = ("ridge", "procrustes")
MAPS = (*FITTED, "none", "alignment")
STRENGTHS = np.logspace(-6, 2, 17)  # against standardised features, whose mean variance is 1
FOLDS = 5
FIT_TOKENS = 2**16  # enough to fit a few thousand weights a target dim; more only takes time


class Drift(NamedTuple):
    """Drift of each query object (query_samples,), and what unrelated objects would give.

    plain, random               : cosine as it stands, and with another object's target
    centred, centred_random     : after taking off the gallery's mean token at each position,
                                  which all objects share: 0 = none, about 1 = nothing left
    by_token                    : centred, (query_samples, tokens), which `centred` averages, all
                                  but those left out
    pooled, pooled_random       : centred, of the mean token, in which what tells an object's tokens
                                  apart cancels: it may be near where no token of its own is
    """

    plain: np.ndarray
    random: np.ndarray
    centred: np.ndarray
    centred_random: np.ndarray
    by_token: np.ndarray
    pooled: np.ndarray
    pooled_random: np.ndarray


def cosine_drift(
    x: np.ndarray | Tokens,
    target: np.ndarray | Tokens,
    map: str = "ridge",
    *,
    gallery: np.ndarray | None = None,
    query: np.ndarray | None = None,
    projector: Callable | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Distance of each query object's tokens from its target: 1 - cosine, mean over tokens.

    x       : (samples, tokens, dim)      target : (samples, tokens, target_dim); arrays, or
              `probe.tokens.Tokens`, of which no more is read at a time than a block of objects
    map     : "ridge" or "procrustes", fitted on the gallery; "none", for equal dims;
              "alignment", the trained `projector`, a function of x
    gallery : rows or mask of the objects to fit on; the fitted maps need it
    query   : rows or mask of the objects to score; the rest by default

    Returns (query_samples,) in [0, 2], lower is closer: 0 none, 1 a right angle. Read it against
    `drift_parts(...).random`: targets of unlike objects are alike, and so is any map's output.
    """
    parts = drift_parts(
        x, target, map, gallery=gallery, query=query, projector=projector, seed=seed
    )
    return parts.plain


def drift_parts(
    x: np.ndarray | Tokens,
    target: np.ndarray | Tokens,
    map: str = "ridge",
    *,
    gallery: np.ndarray | None = None,
    query: np.ndarray | None = None,
    projector: Callable | None = None,
    seed: int = 0,
    left_out: np.ndarray | None = None,
) -> Drift:
    """`cosine_drift` with its random-pair control and its centred form; same arguments.

    left_out : (samples, tokens) of bool, tokens that nothing is fitted on nor averaged over; an
               object none of whose tokens would be left keeps them all
    """
    x, target = (one if isinstance(one, Tokens) else np.asarray(one) for one in (x, target))
    _check(x, target, map, projector)
    fit, score = _rows(len(x), gallery, query, map)
    keep = _kept(left_out, x.shape[:2])
    fitted = fit_map(x, target, map, rows=fit, seed=seed, keep=keep) if map in FITTED else None

    def mapped(rows: np.ndarray) -> np.ndarray:
        tokens = _read(x, rows, "x").astype(np.float32, copy=False)
        if map == "alignment":
            return _project(projector, tokens)
        return tokens if fitted is None else apply_map(tokens, fitted)

    def goal(rows: np.ndarray) -> np.ndarray:
        return _read(target, rows, "target").astype(np.float32, copy=False)

    # positions differ from one another far more than objects do: that part is not geometry
    base = fit if len(fit) else score
    # nor is a token scored at a position of which no object has one to be centred with
    there = keep & keep[base].any(axis=0)
    keep = np.where(there.any(axis=1, keepdims=True), there, keep)
    mapped_mean = _mean(mapped, base, x.shape, keep)
    target_mean = _mean(goal, base, target.shape, keep)
    if mapped_mean.shape != target_mean.shape:
        raise ValueError(
            f"mapped tokens {mapped_mean.shape} and target {target_mean.shape} differ in shape"
        )
    other = score[_partners(len(score), seed)]
    found = np.empty((4, len(score), x.shape[1]), np.float32)
    pooled = np.empty((2, len(score)))
    for some in blocks(len(score), x.shape):
        here, own, unlike = mapped(score[some]), goal(score[some]), goal(other[some])
        found[0, some] = token_drift(here, own)
        found[1, some] = token_drift(here, unlike)
        centred = here - mapped_mean
        for at, goals in enumerate((own - target_mean, unlike - target_mean)):
            found[2 + at, some] = token_drift(centred, goals)
            each = (_pooled(part, keep[score[some]]) for part in (centred, goals))
            pooled[at, some] = token_drift(*each)[:, 0]
    each = found.mean(axis=2, dtype=np.float64, where=keep[score])
    plain, random, centred, unrelated = each
    return Drift(plain, random, centred, unrelated, found[2], *pooled)


def token_drift(mapped: np.ndarray, target: np.ndarray) -> np.ndarray:
    """1 - cosine of tokens in one space, (samples, tokens). Both (samples, tokens, dim)."""
    scale = np.linalg.norm(mapped, axis=-1) * np.linalg.norm(target, axis=-1)
    cosine = np.einsum("std,std->st", mapped, target)
    # a token that is zero points nowhere: as far as one of a random direction
    cosine = np.divide(cosine, scale, out=np.zeros_like(cosine), where=scale > 0)
    return 1 - cosine


class Map(NamedTuple):
    """An affine map of tokens: (x - x_mean) @ weights + y_mean."""

    x_mean: np.ndarray
    weights: np.ndarray
    y_mean: np.ndarray
    strength: float


def apply_map(x: np.ndarray, fitted: Map) -> np.ndarray:
    """Tokens (samples, tokens, dim) in the target's space, float32."""
    bias = fitted.y_mean - fitted.x_mean @ fitted.weights
    return np.asarray(x, np.float32) @ fitted.weights.astype(np.float32) + bias.astype(np.float32)


def fit_map(
    x: np.ndarray | Tokens,
    target: np.ndarray | Tokens,
    map: str = "ridge",
    *,
    rows: np.ndarray | None = None,
    seed: int = 0,
    keep: np.ndarray | None = None,
) -> Map:
    """The map from x (samples, tokens, dim) to target (samples, tokens, target_dim).

    rows : the objects it is fitted on; all by default. Of many objects some tokens, of very many
           some objects are drawn, `FIT_TOKENS` in all.
    keep : (samples, tokens) of bool, tokens that may be among these; all by default

    Ridge standardises x and picks its strength by cross-validation over whole objects.
    Procrustes is the best orthogonal map, semi-orthogonal where dims differ.
    """
    rows = np.arange(len(x)) if rows is None else rows
    if len(rows) < FOLDS:
        raise ValueError(f"a map needs {FOLDS} gallery objects or more, there are {len(rows)}")
    if len(rows) > FIT_TOKENS:
        rows = np.sort(np.random.default_rng([seed, 17]).choice(rows, FIT_TOKENS, replace=False))
    folds = np.random.default_rng(seed).permutation(len(rows)) % FOLDS
    keep = np.ones(x.shape[:2], bool) if keep is None else keep
    near, far, used = _some_tokens(x, target, rows, seed, keep)
    each = [used & (folds == fold)[:, None] for fold in range(FOLDS)]
    moments = [_moments(near[some], far[some]) for some in each]
    total = _added(moments)
    _spread(total)  # no map of any kind where nothing varies
    if map == "procrustes":
        cov, x_mean, y_mean = total.x_y, total.x_mean, total.y_mean
        left, sizes, right = np.linalg.svd(cov, full_matrices=False)
        scale = sizes.sum() / max(np.trace(total.x_x), np.finfo(np.float64).tiny)
        return Map(x_mean, left @ right * scale, y_mean, 0.0)
    errors = sum(
        _validation_errors(_added([m for m in moments if m is not held]), held) for held in moments
    )
    strength = float(STRENGTHS[np.argmin(errors)])
    weights = _ridge(total, np.array([strength]))[0]
    return Map(total.x_mean, weights, total.y_mean, strength)


class _Moments(NamedTuple):
    """Means and central second moments of tokens: enough to fit and to score a linear map."""

    tokens: int
    x_mean: np.ndarray
    y_mean: np.ndarray
    x_x: np.ndarray
    x_y: np.ndarray
    y_y: float


def _moments(x: np.ndarray, y: np.ndarray) -> _Moments:
    x = x.reshape(-1, x.shape[-1]).astype(np.float64)
    y = y.reshape(-1, y.shape[-1]).astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x -= x_mean
    y -= y_mean
    return _Moments(len(x), x_mean, y_mean, x.T @ x, x.T @ y, float(np.vdot(y, y)))


def _added(parts: list[_Moments]) -> _Moments:
    """Moments of all tokens of several sets (Chan et al. 1979), stable far from the origin."""
    count = sum(part.tokens for part in parts)
    x_mean = np.sum([part.tokens * part.x_mean for part in parts], axis=0) / count
    y_mean = np.sum([part.tokens * part.y_mean for part in parts], axis=0) / count
    return _Moments(count, x_mean, y_mean, *_about(parts, x_mean, y_mean))


def _about(
    parts: list[_Moments], x_mean: np.ndarray, y_mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Second moments of several sets about given means."""
    x_x, x_y, y_y = 0.0, 0.0, 0.0
    for part in parts:
        dx, dy = part.x_mean - x_mean, part.y_mean - y_mean
        x_x = x_x + part.x_x + part.tokens * np.outer(dx, dx)
        x_y = x_y + part.x_y + part.tokens * np.outer(dx, dy)
        y_y = y_y + part.y_y + part.tokens * float(dy @ dy)
    return x_x, x_y, y_y  # type: ignore[return-value]


def _ridge(train: _Moments, strengths: np.ndarray) -> np.ndarray:
    """Ridge weights (strengths, dim, target_dim), one decomposition for all strengths."""
    spread, values, vectors, projected = _decomposed(train)
    shrunk = projected / (values[:, None] + strengths[:, None, None])
    return (vectors @ shrunk) / spread[:, None]


def _decomposed(train: _Moments) -> tuple[np.ndarray, ...]:
    """Spread of x, eigenvalues and vectors of its correlation, and x'y in that basis."""
    spread = _spread(train)
    correlation = train.x_x / np.outer(spread, spread) / train.tokens
    values, vectors = np.linalg.eigh(correlation)
    projected = vectors.T @ (train.x_y / spread[:, None]) / train.tokens
    return spread, np.maximum(values, 0), vectors, projected


def _spread(train: _Moments) -> np.ndarray:
    """Standard deviation of x, (dim,); infinite where it is constant, which gives it no weight."""
    spread = np.sqrt(np.diag(train.x_x) / train.tokens)
    varies = spread > 1e-12 * np.maximum(spread.max(initial=0), np.abs(train.x_mean))
    if not varies.any():
        raise ValueError("all features are constant over the gallery: no map can be fitted")
    return np.where(varies, spread, np.inf)


def _validation_errors(train: _Moments, held: _Moments) -> np.ndarray:
    """Squared error on the held-out objects, (strengths,), from moments alone."""
    spread, values, vectors, projected = _decomposed(train)
    x_x, x_y, y_y = _about([held], train.x_mean, train.y_mean)
    basis = vectors / spread[:, None]
    own, cross = basis.T @ x_x @ basis, basis.T @ x_y
    errors = np.empty(len(STRENGTHS))
    for at, strength in enumerate(STRENGTHS):
        weights = projected / (values[:, None] + strength)
        errors[at] = np.vdot(weights, own @ weights) - 2 * np.vdot(weights, cross) + y_y
    return errors


def _some_tokens(
    x: np.ndarray | Tokens, y: np.ndarray | Tokens, rows: np.ndarray, seed: int, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same number of tokens of each object, `FIT_TOKENS` at most, drawn with the seed; and
    which of them are kept, (rows, tokens).
    """
    samples, tokens = len(rows), x.shape[1]
    count = min(tokens, FIT_TOKENS // samples)
    draw = np.random.default_rng([seed, 2]).random((samples, tokens))
    chosen = np.sort(draw.argsort(axis=1)[:, :count], axis=1)[:, :, None]

    def drawn(values: np.ndarray | Tokens, name: str) -> np.ndarray:
        found = np.empty((samples, count, values.shape[2]), values[:0].dtype)
        for some in blocks(samples, values.shape):
            every = _read(values, rows[some], name)
            found[some] = np.take_along_axis(every, chosen[some], axis=1)
        return found

    used = np.take_along_axis(keep[rows], chosen[..., 0], axis=1)
    return drawn(x, "x"), drawn(y, "target"), used


def _kept(left_out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Which tokens count, (samples, tokens): all of an object of which none would be left."""
    if left_out is None:
        return np.ones(shape, bool)
    if left_out.shape != shape:
        raise ValueError(f"left_out {left_out.shape} of tokens {shape}: need one for each token")
    return ~left_out | left_out.all(axis=1, keepdims=True)


def _read(tokens: np.ndarray | Tokens, rows: np.ndarray, name: str) -> np.ndarray:
    """Tokens of some objects, all of them finite."""
    found = tokens[rows]
    if not np.isfinite(found).all():
        bad = int(rows[(~np.isfinite(found)).any(axis=(1, 2)).argmax()])
        raise ValueError(f"{name} sample {bad} has values that are not finite")
    return found


def _mean(read: Callable, rows: np.ndarray, shape: tuple[int, ...], keep: np.ndarray) -> np.ndarray:
    """Mean of the tokens kept of some objects at each position, (tokens, dim) in float32."""
    parts = [rows[some] for some in blocks(len(rows), shape)]
    sums = (np.einsum("std,st->td", read(part), keep[part], dtype=np.float64) for part in parts)
    counts = np.maximum(keep[rows].sum(axis=0), 1)[:, None]
    return (sum(sums) / counts).astype(np.float32)


def _pooled(tokens: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Mean of the tokens kept of each object as its only one, (samples, 1, dim)."""
    sums = np.einsum("std,st->sd", tokens, keep, dtype=np.float64)[:, None]
    return sums / keep.sum(axis=1)[:, None, None]


def _check(
    x: np.ndarray | Tokens, target: np.ndarray | Tokens, map: str, projector: Callable | None
) -> None:
    if map not in MAPS:
        raise ValueError(f"map {map!r}: must be one of {', '.join(MAPS)}")
    if x.ndim != 3 or target.ndim != 3 or x.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"x {x.shape} and target {target.shape}: need (samples, tokens, dim), samples and "
            "tokens the same"
        )
    if map == "none" and x.shape != target.shape:
        raise ValueError(f"map 'none' needs equal dims, not {x.shape[2]} and {target.shape[2]}")
    if (map == "alignment") != (projector is not None):
        raise ValueError("map 'alignment' takes a projector, the others take none")


def _rows(
    samples: int, gallery: np.ndarray | None, query: np.ndarray | None, map: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to score, which share none."""
    every = np.arange(samples)
    if gallery is None and map in FITTED:
        raise ValueError(f"map {map!r} is fitted: name the gallery objects to fit it on")
    try:
        fit = every[:0] if gallery is None else every[gallery]
        score = np.setdiff1d(every, fit) if query is None else every[query]
    except IndexError:
        raise ValueError(f"gallery or query names rows beyond the {samples} objects") from None
    if shared := len(np.intersect1d(fit, score)):
        raise ValueError(f"{shared} objects are in the gallery and in the query")
    if len(score) < 2:
        raise ValueError(f"{len(score)} query objects: drift needs 2 or more")
    return fit, score


def _partners(samples: int, seed: int) -> np.ndarray:
    """Another object for each: one random cycle, so that none is paired with itself."""
    order = np.random.default_rng([seed, 3]).permutation(samples)
    partner = np.empty(samples, np.int64)
    partner[order] = np.roll(order, 1)
    return partner


def _project(projector: Any, x: np.ndarray) -> np.ndarray:
    """The trained projector's output, float32; a torch module is run without gradients."""
    if not hasattr(projector, "parameters"):
        return np.asarray(projector(x), np.float32)
    import torch

    like = next(projector.parameters())
    with torch.no_grad():
        tokens = torch.from_numpy(np.asarray(x, np.float32)).to(like.device, like.dtype)
        return projector(tokens).float().cpu().numpy()
