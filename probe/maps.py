"""Maps of a layer in two dimensions: PCA and UMAP, seeded, and aligned so that no point jumps.

A map is for looking. What it shows of neighbours is said beside it: trustworthiness (are the
neighbours on the map true ones?) and continuity (are true neighbours still near?), and a second
seed shows what is chance. Claims are computed in the original space, by the other probes.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import xarray as xr

from probe import cache
from probe.cka import own_parts
from probe.halves import by_halves
from probe.hsic import finite
from probe.intervals import Interval, group_jackknife
from probe.knn import unit_rows
from probe.splits import groups_of, layers_of, one_each
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run

METHODS = ("pca", "umap")
NEIGHBOURS = 15
MOST = 1000  # objects on a map; more are a blur, and UMAP's time
GROUPS = 16  # of objects, which make the halves that tell the error
FAITHFUL = {
    "trustworthiness": "1 = neighbours are true ones",
    "continuity": "1 = true neighbours stay near",
}
WINDOW = 2  # layers on either side that a layer is tied to


def maps(
    run: Run,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    methods: Sequence[str] = METHODS,
    seeds: int = 1,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """Mean tokens of the query objects on maps of all layers and models.

    seeds : how many maps of each, of seeds that follow one another

    Copies of an object are left out. Returns `position` (method, draw, variant, layer, object,
    axis), scaled so that the objects' mean distance to their centre is 1, with `trustworthiness`
    and `continuity` (method, draw, variant, layer; 1 is perfect, of 15 neighbours by cosine) and
    the `_low` and `_high` ends of their 95 % intervals over objects (see `faithful_interval`),
    `*_of_groups` (..., group), what each of 16 groups of objects adds to them (their mean is the
    value, and their scatter has the interval's error), `jump` (...), the mean distance an object
    moves from the layer before, and `label` and `class_name` (object). Every map is rotated onto
    the one before, and the first of each model onto that of the first model.
    """
    names = list(run.variants if variants is None else variants)
    depth = layers_of(run, layers)
    if wrong := [name for name in methods if name not in METHODS]:
        raise ValueError(f"no map {wrong[0]!r}: there are {', '.join(METHODS)}")
    samples = min(run.done(name) for name in names)
    table = run.samples().isel(sample=slice(samples))
    query = np.flatnonzero(table["split"].values == "query")
    objects = _some(one_each(query, groups_of(run, samples)), seed)
    if len(objects) < (least := 2 * NEIGHBOURS + 2):
        raise ValueError(
            f"{len(objects)} query objects: a map of {NEIGHBOURS} neighbours needs {least}"
        )
    folder = cache.folder_of(run)
    grid = (len(methods), seeds, len(names), len(depth))
    position = np.empty((*grid, len(objects), 2))
    trusted = np.empty((2, 3, *grid))  # mean, low, high
    of_groups = np.empty((2, *grid, GROUPS), np.float32)
    draws = list(np.ndindex(len(methods), seeds))
    for v, name in enumerate(names):
        states = [_mean_tokens(run, name, at, objects) for at in depth]
        for step, (m, d) in enumerate(draws, v * len(draws)):
            if progress:
                progress(step, len(names) * len(draws), f"{methods[m]} of {name}")
            key = cache.digest(methods[m], seed, d, *states)
            draw = partial(_drawn, methods[m], states, seed, seed + d)
            found = cache.kept(folder, "maps", key, draw)
            onto = position[m, 0, 0, 0] if v or d else None
            position[m, d, v] = chained(found["shown"], onto)
            trusted[..., m, d, v, :] = found["trusted"]
            of_groups[:, m, d, v] = found["of_groups"]
    jump = np.full(grid, np.nan)
    jump[..., 1:] = np.linalg.norm(np.diff(position, axis=3), axis=-1).mean(axis=-1)
    dims = ("method", "draw", "variant", "layer")
    return xr.Dataset(
        {
            "position": ((*dims, "object", "axis"), position.astype(np.float32)),
            **{
                name + ending: (dims, three[at], {"direction": direction})
                for (name, direction), three in zip(FAITHFUL.items(), trusted, strict=True)
                for at, ending in enumerate(("", "_low", "_high"))
            },
            **{
                f"{name}_of_groups": (
                    (*dims, "group"),
                    parts,
                    {"long_name": f"{name}, of each group", "direction": direction},
                )
                for (name, direction), parts in zip(FAITHFUL.items(), of_groups, strict=True)
            },
            "jump": (dims, jump, {"long_name": "mean move from the layer before, in mean radii"}),
            "label": ("object", table["label"].values[objects]),
            "class_name": ("object", table["class_name"].values[objects]),
        },
        {
            "method": list(methods),
            "draw": np.arange(seed, seed + seeds),
            "variant": names,
            "layer": depth,
            "object": table["sample"].values[objects],
            "group": np.arange(GROUPS),
            "axis": ["x", "y"],
        },
        {"neighbours": NEIGHBOURS, "seed": seed, "run": run.path.name, "metric": "cosine"},
    )


def _drawn(
    method: str, states: list[np.ndarray], seed: int, drawn_by: int
) -> dict[str, np.ndarray]:
    """`shown` (layers, objects, 2), how far each is `trusted`: (names, bounds, layers), and what
    the objects' groups add to it, `of_groups` (names, layers, groups).
    """
    shown = (_pca if method == "pca" else _aligned_umap)(states, drawn_by)
    angles = [_angles(*each, NEIGHBOURS, seed) for each in zip(states, shown, strict=True)]
    bounds = [_interval(one) for one in angles]
    return {
        "shown": shown,
        "trusted": np.stack([np.stack(one, axis=1) for one in bounds], -1),
        "of_groups": np.stack([_parts(one) for one in angles], axis=1),
    }


def _mean_tokens(run: Run, name: str, layer: int, objects: np.ndarray) -> np.ndarray:
    """(objects, dim), all of them finite."""
    tokens = Tokens(run.final(name).sel(layer=layer))
    with errors_of(f"{name}, layer {layer}", run, tokens):
        return finite(tokens.pooled[objects], "x")


def chained(positions: np.ndarray, onto: np.ndarray | None = None) -> np.ndarray:
    """Maps (layers, objects, 2) centred, of mean radius 1, each turned onto the one before.

    onto : (objects, 2), what the first is turned onto. Turning and mirroring change no distance.
    """
    turned = []
    for one in positions:
        one = one - one.mean(axis=0)
        one = one / np.linalg.norm(one, axis=1).mean()
        if onto is not None:
            left, _, right = np.linalg.svd(one.T @ onto)
            one = one @ left @ right
        turned.append(one)
        onto = one
    return np.stack(turned)


def faithful(states: np.ndarray, shown: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Trustworthiness and continuity of a map. states : (objects, dim), shown : (objects, 2).

    Venna & Kaski 2001; continuity is the trustworthiness of the states as a map of the map. Raises
    ValueError where half of the objects or more are neighbours.
    """
    ranks, one = _lost(_orders(states, shown, k), np.ones(len(states), bool), k)
    trusted, continuous = 1 - ranks * one
    return float(trusted), float(continuous)


def faithful_interval(
    states: np.ndarray,
    shown: np.ndarray,
    k: int = NEIGHBOURS,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`faithful` with its interval over objects, (2,) each.

    Its error is from halves of the objects (`probe.halves`) of the map as it is, with as many
    neighbours fewer as reach as far: other objects, laid out alike. What a map drawn anew would
    change is not in it; a second seed shows that. The ends are those of the arcsine of the root,
    whose error hangs less on the value. Simulated 95 % intervals of 300 objects hold 94.6 to
    96.3 %, and of 120 objects 93.7 to 96.5 %: halves count twice what two objects do together.
    """
    return _interval(_angles(states, shown, k, seed), level)


def quality(one: xr.Dataset) -> str:
    """Trustworthiness and continuity of one map of `maps` in words, with half their intervals."""
    said = []
    for name in FAITHFUL:
        text = f"{float(one[name]):.2f}"
        if f"{name}_high" in one:
            text += f" ± {float(one[name] - one[f'{name}_low']):.2f}"
        said.append(text)
    return " / ".join(said)


def _angles(states: np.ndarray, shown: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Arcsine of the root of `faithful`, then as with each group left out: (1 + groups, 2)."""
    orders = _orders(states, shown, k)

    def angle(keep: np.ndarray) -> np.ndarray:
        ranks, one = _lost(orders, keep, round(k * keep.mean()))
        return np.arcsin(np.sqrt(1 - ranks * one))

    group = np.random.default_rng([seed, 29]).permutation(len(states)) % GROUPS
    return by_halves(angle, group, lambda _, first, second: first - second)


def _interval(angles: np.ndarray, level: float = 0.95) -> Interval:
    """angles : of `_angles`."""
    bounds = np.stack(group_jackknife(angles[0], angles[1:].T, level))
    return Interval(*np.sin(bounds.clip(0, np.pi / 2)) ** 2)


def _parts(angles: np.ndarray) -> np.ndarray:
    """What each group adds to `faithful`, (2, groups): pseudo-values of the angle, whose error its
    slope there takes to the value.
    """
    value, left_out = angles[0][:, None], angles[1:].T
    parts = own_parts(angles[0], left_out)
    return np.sin(value) ** 2 + np.sin(2 * value) * (parts - value)


def _orders(states: np.ndarray, shown: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All objects as each one's neighbours in the states and on the map, itself first."""
    if 2 * k + 1 >= len(states):
        raise ValueError(f"k={k} neighbours of {len(states)} objects: need k under half of them")
    rows = unit_rows(states)  # Euclid's neighbours of these are those by cosine
    far, near = (_squared(part) for part in (rows, np.asarray(shown, np.float64)))
    return far.argsort(axis=1, kind="stable"), near.argsort(axis=1, kind="stable")


def _lost(
    orders: tuple[np.ndarray, np.ndarray], keep: np.ndarray, k: int
) -> tuple[np.ndarray, float]:
    """By how many ranks k neighbours are none, (2,): those on the map, and those of the states;
    and what a rank takes from 1, both among the objects kept.
    """
    number = np.cumsum(keep) - 1
    kept = [number[rows[keep[rows]]].reshape(-1, keep.sum()) for rows in (o[keep] for o in orders)]
    n = len(kept[0])
    ranks = []
    for far, near in (kept, kept[::-1]):
        rank = np.empty((n, n), np.int32)  # 0 is itself
        np.put_along_axis(rank, far, np.arange(n, dtype=np.int32)[None], axis=1)
        ranks.append(np.maximum(np.take_along_axis(rank, near[:, 1 : k + 1], 1) - k, 0).sum())
    return np.array(ranks), 2 / (n * k * (2 * n - 3 * k - 1))


def _squared(rows: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs, and -1 of each to itself."""
    lengths = (rows**2).sum(axis=1)
    found = np.maximum(lengths[:, None] + lengths[None] - 2 * rows @ rows.T, 0)
    np.fill_diagonal(found, -1)
    return found


def _some(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) <= MOST:
        return rows
    return np.sort(np.random.default_rng([seed, 17]).choice(rows, MOST, replace=False))


def _pca(states: list[np.ndarray], seed: int) -> np.ndarray:
    """The two directions of largest variance, of unit rows as the other map sees them."""
    found = []
    for x in states:
        rows = unit_rows(x)
        left, sizes, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        found.append(left[:, :2] * sizes[:2])
    return np.stack(found)


def _aligned_umap(states: list[np.ndarray], seed: int) -> np.ndarray:
    """UMAP of all layers at once, the same object of neighbouring layers tied together.

    It is given the cosine distances, one product a layer: umap-learn would call a function for
    each pair of objects, and hand it the full width.
    """
    settings = {"n_neighbors": NEIGHBOURS, "metric": "precomputed", "random_state": seed}
    rows = [unit_rows(x) for x in states]
    distances = [np.clip(1 - x @ x.T, 0, None) for x in rows]
    for one in distances:
        np.fill_diagonal(one, 0)
    with warnings.catch_warnings():
        # of numba, of tensorflow that is not there, that a seed means one thread, and that
        # distances alone leave no way to place new objects
        warnings.simplefilter("ignore")
        from umap import UMAP, AlignedUMAP

        if len(states) == 1:
            return UMAP(**settings, n_jobs=1).fit_transform(distances[0])[None]
        same = {at: at for at in range(len(states[0]))}
        # its layout is drawn by the seed of transforms, 42 by default, not by `random_state`
        model = AlignedUMAP(**settings, transform_seed=42 + seed, alignment_window_size=WINDOW)
        model.fit(distances, relations=[same] * (len(states) - 1))
    return np.stack(list(model.embeddings_))
