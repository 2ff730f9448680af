"""How much of the shape itself is left? A small decoder rebuilds each cloud from its point tokens.

The same decoder, the same start, the same steps for every layer and model, fitted on gallery
objects and judged on query objects: what differs between layers is what their tokens tell. It is
no generator worth having; it is a ruler.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe import cache, intervals
from probe.cells import LEVEL, Objects, Settings
from probe.sheet import Sheet
from probe.splits import apart, gallery_query, groups_of, layers_of
from probe.sweep import REFERENCE
from probe.tokens import Tokens, blocks
from probe.whose import errors_of
from store import Run

POINTS = 128  # of a rebuilt cloud, and of the true one that it is fitted to
JUDGED = 512  # points of the true cloud that it is judged by
NEAR = 0.1  # of the mean radius: points closer than this count for the F-score
STEPS = 240
BATCH = 64
WIDTH = 192
RATE = 2e-3
SHOWN = 8
FITTED = (BATCH, WIDTH, RATE, POINTS, JUDGED, NEAR)


class Lessons(NamedTuple):
    """What all decoders are fitted to, and judged by: unit clouds, read once.

    rows   : (steps, batch), of the gallery       clouds : (steps, batch, points, 3)
    start  : (clouds, points, 3) to start from    judged : (queries, points, 3)
    """

    rows: np.ndarray
    clouds: np.ndarray
    start: np.ndarray
    judged: np.ndarray


class Rebuilt(NamedTuple):
    """Of each query object: Chamfer distance (lower is closer), F-score (higher), its cloud."""

    chamfer: np.ndarray
    f_score: np.ndarray
    clouds: np.ndarray


def reconstruction(
    run: Run,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """Chamfer distance and F-score by depth, (variant, layer), with intervals over query objects.

    Clouds are centred and scaled to a mean radius of 1, and distances are in that unit. Beside
    each curve stand `*_target` (the decoder fitted on the target's tokens) and `*_shuffled`
    (fitted with the clouds dealt out among the objects: what the set alone tells); paired
    differences and verdicts are as in a sweep. `chamfer` and `f_score` (variant, layer, object),
    and both with `_target` and `_shuffled` (object), are of each query object, whose mean is
    `*_mean`. `cloud` (variant, layer, shown, point, axis) keeps what was rebuilt of a few of them,
    `target_cloud` what was from their targets and `true_cloud` the objects themselves; `object` and
    `shown` hold ids.
    """
    names = list(run.variants if variants is None else variants)
    depth = layers_of(run, layers)
    samples = min(run.done(name) for name in [*names, "target"])
    table = run.samples().isel(sample=slice(samples))
    gallery, query = gallery_query(table)
    points = Tokens(run.points()[:samples, :, :3])
    groups = groups_of(run, samples)
    gallery, query = apart(gallery, query, groups)
    if len(query) < 2:
        raise ValueError(f"{run.path} has 1 query object: an interval needs 2 or more")
    asked = lessons(points, gallery, query, steps=steps, seed=seed)
    folder = cache.folder_of(run)

    def fitted(tokens: Tokens, taught: Lessons) -> Rebuilt:
        def make() -> dict[str, np.ndarray]:
            return rebuild(tokens, taught, gallery, query, seed=seed)._asdict()

        key = cache.digest(tokens, *taught, gallery, query, FITTED, seed)
        return Rebuilt(**cache.kept(folder, "reconstruction", key, make))

    places = [(name, layer) for name in names for layer in depth]
    cells = {}
    for step, (name, layer) in enumerate(places):
        if progress:
            progress(step, len(places), f"rebuilding from {name}, layer {layer}")
        tokens = Tokens(run.final(name).sel(layer=layer)[:samples])
        with errors_of(f"{name}, layer {layer}", run, tokens):
            cells[name, layer] = fitted(tokens, asked)
    target = Tokens(run.target()[:samples])
    if progress:
        progress(len(places), len(places), "rebuilding from the target, and from nothing")
    dealt = np.random.default_rng([seed, 13]).permutation(gallery)
    best = fitted(target, asked)
    none = fitted(target, lessons(points, gallery, query, told=dealt, steps=steps, seed=seed))
    return _assemble(run, cells, best, none, names, depth, table, query, asked, seed)


def lessons(
    points: Tokens,
    gallery: np.ndarray,
    query: np.ndarray,
    *,
    told: np.ndarray | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> Lessons:
    """Draw all steps, and read the clouds once for all decoders. points : (samples, points, 3).

    gallery, query : rows of these
    told           : rows whose clouds the gallery is fitted to, its own by default
    """
    import torch

    told = gallery if told is None else told
    draw = torch.Generator().manual_seed(seed)
    rows = np.empty((steps, min(BATCH, len(gallery))), np.int64)
    dots = np.empty((steps, min(POINTS, points.shape[1])), np.int64)
    for step in range(steps):
        rows[step] = torch.randperm(len(gallery), generator=draw)[: rows.shape[1]]
        dots[step] = torch.randperm(points.shape[1], generator=draw)[: dots.shape[1]]
    first = told[:: max(1, len(told) // 64)]
    start = np.empty((len(first), points.shape[1], 3), np.float32)
    clouds = np.empty((*rows.shape, dots.shape[1], 3), np.float32)
    judged = np.empty((len(query), min(JUDGED, points.shape[1]), 3), np.float32)
    for some in blocks(len(points), points.shape):
        unit = unit_clouds(points[some], some.start)
        here = lambda rows, some=some: (rows >= some.start) & (rows < some.stop)  # noqa: E731
        at = np.nonzero(here(told[rows]))
        clouds[at] = unit[(told[rows][at] - some.start)[:, None], dots[at[0]]]
        judged[here(query)] = unit[query[here(query)] - some.start, :JUDGED]
        start[here(first)] = unit[first[here(first)] - some.start]
    return Lessons(rows, clouds, start, judged)


def rebuild(
    tokens: Tokens, taught: Lessons, gallery: np.ndarray, query: np.ndarray, *, seed: int = 0
) -> Rebuilt:
    """Fit the decoder on the gallery, rebuild the query. Reads a batch of objects at a time.

    tokens : (samples, tokens, dim)    gallery, query : rows of these, those of `lessons`

    Tokens are standardised by the gallery; each is read by one linear map and its position's
    offset, the sum over tokens by two layers more.
    """
    import torch

    states = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        decoder = _decoder(tokens.shape[2], tokens.shape[1], taught.start)
    finally:
        torch.set_rng_state(states)
    mean, spread = _moments(tokens, gallery, query)
    if not spread.any() or len(gallery) < 2:
        raise ValueError(
            f"all features are constant over the gallery ({len(gallery)} objects): there is "
            "nothing to rebuild from"
        )
    spread = np.where(spread > 0, spread, 1.0)

    def read(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((tokens[rows] - mean) / spread).astype(np.float32))

    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=len(taught.rows))
    for rows, true in zip(taught.rows, taught.clouds, strict=True):
        near, far = _two_ways(decoder(read(gallery[rows])), torch.from_numpy(true))
        loss = near.mean() + far.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    judged = []
    with torch.no_grad():
        for some in blocks(len(query), tokens.shape):
            drawn = decoder(read(query[some])).numpy()
            judged.append(judge(drawn, taught.judged[some]))
    return Rebuilt(*(np.concatenate(part) for part in zip(*judged, strict=True)))


def judge(rebuilt: np.ndarray, true: np.ndarray) -> Rebuilt:
    """Chamfer distance: mean distance to the nearest point, averaged over the two directions.

    rebuilt : (samples, points, 3)    true : (samples, points, 3), the first `JUDGED` count. The
    F-score is the harmonic mean of the shares of points with a neighbour within `NEAR` (Knapitsch
    et al. 2017; Tatarchenko et al. 2019, arXiv:1905.03678).
    """
    from scipy.spatial import cKDTree

    chamfer, score = np.empty(len(rebuilt)), np.empty(len(rebuilt))
    for at, (ours, theirs) in enumerate(zip(rebuilt, true[:, :JUDGED], strict=True)):
        there, back = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
        chamfer[at] = (there.mean() + back.mean()) / 2
        precise, complete = (there < NEAR).mean(), (back < NEAR).mean()
        total = precise + complete
        score[at] = 2 * precise * complete / total if total else 0.0
    return Rebuilt(chamfer, score, rebuilt)


def unit_clouds(points: np.ndarray, first: int = 0) -> np.ndarray:
    """Centred, of mean radius 1. points : (samples, points, 3); first : number of the first."""
    clouds = points - points.mean(axis=1, keepdims=True, dtype=np.float64)
    radius = np.linalg.norm(clouds, axis=2).mean(axis=1)
    if not (radius > 0).all():
        bad = first + int((radius == 0).argmax())
        raise ValueError(f"cloud {bad} is one point: it has no shape")
    return (clouds / radius[:, None, None]).astype(np.float32)


def _moments(
    tokens: Tokens, gallery: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the gallery's tokens, (dim,) each; all must be finite."""
    total = np.zeros(tokens.shape[2])
    for name, rows in (("query", query), ("gallery", gallery)):
        total[:] = 0
        for some in blocks(len(rows), tokens.shape):
            block = tokens[rows[some]]
            if not (finite := np.isfinite(block).all(axis=(1, 2))).all():
                bad = some.start + int(finite.argmin())
                raise ValueError(f"{name} sample {bad} has values that are not finite")
            total += block.sum(axis=(0, 1), dtype=np.float64)
    count = len(gallery) * tokens.shape[1]
    mean, squares = total / count, np.zeros(len(total))
    for some in blocks(len(gallery), tokens.shape):
        squares += ((tokens[gallery[some]] - mean) ** 2).sum(axis=(0, 1))
    return mean, np.sqrt(squares / count)


def _decoder(dim: int, tokens: int, clouds: np.ndarray) -> Any:
    """Tokens to a cloud; its last bias is points of the gallery, so that it starts from a shape."""
    import torch
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(dim, WIDTH)
            self.place = nn.Parameter(torch.zeros(tokens, WIDTH))
            self.think = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH))
            self.draw = nn.Linear(WIDTH, POINTS * 3)

        def forward(self, x: Any) -> Any:
            each = nn.functional.gelu(self.read(x) + self.place)
            return self.draw(self.think(each.mean(dim=1))).view(len(x), POINTS, 3)

    decoder = Decoder()
    nn.init.normal_(decoder.place, std=0.5)
    start = clouds.reshape(-1, 3)
    rows = np.random.default_rng(0).choice(len(start), POINTS, replace=len(start) < POINTS)
    with torch.no_grad():
        decoder.draw.bias.copy_(torch.from_numpy(start[rows].reshape(-1)))
    return decoder


def _two_ways(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Distance of each point to the nearest of the other cloud, both ways: (samples, points)."""
    import torch

    with torch.no_grad():  # which points are nearest has no gradient
        gaps = torch.cdist(ours, theirs)
        there, back = gaps.argmin(dim=2), gaps.argmin(dim=1)
    pick = lambda cloud, rows: cloud.gather(1, rows[..., None].expand(-1, -1, 3))  # noqa: E731
    first = (ours - pick(theirs, there)).pow(2).sum(-1).add(1e-8).sqrt()
    second = (theirs - pick(ours, back)).pow(2).sum(-1).add(1e-8).sqrt()
    return first, second


def _assemble(
    run: Run,
    cells: dict[tuple[str, int], Rebuilt],
    best: Rebuilt,
    none: Rebuilt,
    names: list[str],
    depth: list[int],
    table: xr.Dataset,
    query: np.ndarray,
    asked: Lessons,
    seed: int,
) -> xr.Dataset:
    others = [name for name in names if name != REFERENCE and REFERENCE in names]
    models = [(names.index(name), names.index(REFERENCE)) for name in others]
    ids = table["sample"].values[query]
    shown = _spread_out(table["label"].values[query])
    results = xr.Dataset(
        coords={
            "variant": names,
            "layer": depth,
            "object": ids,
            "shown": ids[shown],
            "axis": ["x", "y", "z"],
        },
        attrs={
            "run": run.path.name,
            "seed": seed,
            "level": LEVEL,
            "query_objects": len(query),
            "unit": "mean radius of the cloud",
            "steps": len(asked.rows),
            "points": POINTS,
            "near": NEAR,
        },
    )
    if others:
        results = results.assign_coords(comparison=[f"{name} - {REFERENCE}" for name in others])
    empty = np.empty(0)
    data = Objects(len(table["sample"]), empty, empty, query, (0, 0), Tokens(empty), empty)
    sheet = Sheet(results, data, Settings((), seed), models)
    for key, name, direction, sign in (
        ("chamfer", "Chamfer distance of the rebuilt cloud", "lower is closer", -1),
        ("f_score", f"F-score of the rebuilt cloud within {NEAR:g}", "higher is better", 1),
    ):
        values = np.array([[getattr(cells[v, at], key) for at in depth] for v in names])
        own, chance = getattr(best, key), getattr(none, key)
        for ending, dims, numbers, text in (
            ("", ("variant", "layer"), values, name),
            ("_target", (), own, f"{name}, from the target"),
            ("_shuffled", (), chance, f"{name}, fitted on tokens of other objects"),
        ):
            estimate = intervals.bootstrap(numbers, level=LEVEL, seed=seed)
            sheet.put_interval(f"{key}{ending}", dims, estimate, text, direction)
            about = {"long_name": f"{text}, of each object", "direction": direction}
            each = numbers.astype(np.float32)
            sheet.results[f"{key}{ending}"] = ((*dims, "object"), each, about)
        gaps = [intervals.paired_difference(values[a], values[b], seed=seed) for a, b in models]
        if gaps:
            where = ("comparison", "layer")
            sheet.put_differences(f"{key}_difference", where, gaps, f"difference in {name}")
        against = "the target"
        sheet.put_verdict(
            key, (), sign * values, sign * own, sign * chance.mean(), name, against=against
        )
    kept = np.array([[cells[v, at].clouds[shown] for at in depth] for v in names], np.float32)
    results = sheet.results
    results["cloud"] = (("variant", "layer", "shown", "point", "axis"), kept)
    results["target_cloud"] = (("shown", "point", "axis"), best.clouds[shown])
    true = asked.judged[shown]
    results["true_cloud"] = (("shown", "true_point", "axis"), true)
    return results


def _spread_out(labels: np.ndarray) -> np.ndarray:
    """Rows of a few objects, of as many classes as there are."""
    _, first = np.unique(labels, return_index=True)
    rows = np.sort(first)
    return rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int)]
