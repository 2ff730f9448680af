"""Maps of a layer in two dimensions: PCA and UMAP, seeded, and aligned so that no point jumps.

A map is for looking. What it shows of neighbours is said beside it: trustworthiness (are the
neighbours on the map true ones?) and continuity (are true neighbours still near?), and a second
seed shows what is chance. Claims are computed in the original space, by the other probes.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from probe.knn import unit_rows
from store import Run

METHODS = ("pca", "umap")
NEIGHBOURS = 15
MOST = 1000  # objects on a map; more are a blur, and UMAP's time
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

    Returns `position` (method, draw, variant, layer, object, axis), scaled so that the objects'
    mean distance to their centre is 1, with `trustworthiness` and `continuity` (method, draw,
    variant, layer; 1 is perfect, of 15 neighbours by cosine), `jump` (...), the mean distance
    an object moves from the layer before, and `label` and `class_name` (object). Every map is
    rotated onto the one before, and the first of each model onto that of the first model.
    """
    names = list(run.variants if variants is None else variants)
    depth = sorted(run.layers if layers is None else layers)
    if wrong := [name for name in methods if name not in METHODS]:
        raise ValueError(f"no map {wrong[0]!r}: there are {', '.join(METHODS)}")
    samples = min(run.done(name) for name in names)
    table = run.samples().isel(sample=slice(samples))
    objects = _objects(table["split"].values, seed)
    if len(objects) < 2 * NEIGHBOURS + 2:
        raise ValueError(
            f"{len(objects)} query objects: a map of {NEIGHBOURS} neighbours needs "
            f"{2 * NEIGHBOURS + 2}"
        )
    states = {
        name: [
            run.final(name).sel(layer=at).values[objects].mean(axis=1, dtype=np.float64)
            for at in depth
        ]
        for name in names
    }
    grid = (len(methods), seeds, len(names), len(depth))
    position = np.empty((*grid, len(objects), 2))
    steps = [
        (m, d, v) for m in range(len(methods)) for d in range(seeds) for v in range(len(names))
    ]
    for step, (m, d, v) in enumerate(steps):
        if progress:
            progress(step, len(steps), f"{methods[m]} of {names[v]}")
        draw = _pca if methods[m] == "pca" else _aligned_umap
        onto = position[m, 0, 0, 0] if v or d else None
        position[m, d, v] = chained(draw(states[names[v]], seed + d), onto)
    quality = np.empty((2, *grid))
    for m, d, v, at in np.ndindex(*grid):
        shown = position[m, d, v, at]
        quality[:, m, d, v, at] = faithful(states[names[v]][at], shown)
    jump = np.full(grid, np.nan)
    jump[..., 1:] = np.linalg.norm(np.diff(position, axis=3), axis=-1).mean(axis=-1)
    dims = ("method", "draw", "variant", "layer")
    return xr.Dataset(
        {
            "position": ((*dims, "object", "axis"), position.astype(np.float32)),
            "trustworthiness": (dims, quality[0], {"direction": "1 = neighbours are true ones"}),
            "continuity": (dims, quality[1], {"direction": "1 = true neighbours stay near"}),
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
            "axis": ["x", "y"],
        },
        {"neighbours": NEIGHBOURS, "seed": seed, "run": run.path.name, "metric": "cosine"},
    )


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

    Venna & Kaski 2001; continuity is the trustworthiness of the states as a map of the map.
    """
    from sklearn.manifold import trustworthiness

    rows = unit_rows(states)  # Euclid's neighbours of these are those by cosine
    return (
        float(trustworthiness(rows, shown, n_neighbors=k)),
        float(trustworthiness(shown, rows, n_neighbors=k)),
    )


def _objects(split: np.ndarray, seed: int) -> np.ndarray:
    rows = np.flatnonzero(split == "query")
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
        model = AlignedUMAP(**settings, alignment_window_size=WINDOW)
        model.fit(distances, relations=[same] * (len(states) - 1))
    return np.stack(list(model.embeddings_))
