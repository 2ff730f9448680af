"""Geometry read-out: which properties of a cloud can a linear map of a layer still tell?

`descriptors` measures clouds, `factors` is what a data set knows of their making; `geometry_probe`
reads these, or any other numbers, out of states, and `geometry_by_layer` does so for a whole run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe.intervals import BLOCK, Interval, wider_of_few
from probe.linear import (
    FOLDS,
    PENALTIES,
    checked_groups,
    checked_penalties,
    checked_states,
    deal_folds,
    decompose,
    held_out,
)

NEIGHBOURS = 16  # of a point, itself among them: its patch of surface
PROBED = 512  # points whose patch and mirror image are measured, evenly from the whole cloud
CELLS = 8  # along each side of the occupancy grid
FLAT = 1e-6  # of the longest principal axis: thinner has no volume
READ = 64  # objects read at a time
AXES = ("x", "y", "z")
OCTANTS = [f"{z}{y}{x}" for z in "01" for y in "01" for x in "01"]
"""Of the occupancy grid: 1 for the upper half along z, y and x."""
FACTOR = "factor_"  # how columns of factors begin in a run's table of samples

UNIT, SHARE = "as the coordinates", "share"
ABOUT: dict[str, tuple[str, str, str, str]] = {  # long name, unit, range, source
    "extent_x": ("extent along x", UNIT, "0 or more", ""),
    "extent_y": ("extent along y", UNIT, "0 or more", ""),
    "extent_z": ("extent along z", UNIT, "0 or more", ""),
    "box_volume": ("volume of the upright bounding box", f"{UNIT}, cubed", "0 or more", ""),
    "height_to_width": ("extent along the vertical, over the larger level one", "1", "0 up", ""),
    "depth_to_width": ("extent front to back over left to right", "1", "0 up", ""),
    "middle_to_long": ("middle over longest extent", "1", "0 to 1", ""),
    "short_to_long": ("shortest over longest extent", "1", "0 to 1", ""),
    "linearity": ("linearity, (l1 - l2) / l1", "1", "0 to 1", "Weinmann et al. 2015"),
    "planarity": ("planarity, (l2 - l3) / l1", "1", "0 to 1", "Weinmann et al. 2015"),
    "sphericity": ("sphericity, l3 / l1", "1", "0 to 1", "Weinmann et al. 2015"),
    "mean_radius": ("mean distance to the centroid", UNIT, "0 or more", ""),
    "curvature": ("mean surface variation, l3 / sum", "1", "0 to 1/3", "Pauly et al. 2002"),
    "curvature_spread": (
        "standard deviation of the surface variation",
        "1",
        "0 to 1/6",
        "Pauly et al. 2002",
    ),
    "mirror_left_right": ("distance to the image, left for right", "mean radii", "0 = same", ""),
    "mirror_front_back": ("distance to the image, front for back", "mean radii", "0 = same", ""),
    "hull_volume": ("volume of the convex hull", f"{UNIT}, cubed", "0 or more", ""),
    "hull_area": ("area of the convex hull", f"{UNIT}, squared", "0 or more", ""),
    "occupancy": ("filled cells of the cube around the cloud", SHARE, "0 to 1", ""),
    **{
        f"occupancy_{octant}": (f"filled cells of octant {octant} of it", SHARE, "0 to 1", "")
        for octant in OCTANTS
    },
    "red": ("mean red", SHARE, "0 to 1", ""),
    "green": ("mean green", SHARE, "0 to 1", ""),
    "blue": ("mean blue", SHARE, "0 to 1", ""),
}


def descriptors(points: Any, *, up: str = "z") -> xr.Dataset:
    """What clouds measure: one variable a property, (sample,), with unit and range in `attrs`.

    points : (samples, points, 3 or 6), xyz and then rgb in [0, 1]; an array, or a DataArray,
             which is read a block at a time and whose sample ids are kept
    up     : the vertical axis; of the others the first runs from left to right, the second from
             front to back, and the two mirrors stand across them, through the centroid

    Extents, box and mirrors follow the axes and so turn with the object; l1 >= l2 >= l3, the
    eigenvalues of the covariance (Weinmann et al. 2015, doi:10.1016/j.isprsjprs.2015.01.016, of
    whole clouds here), the hull and the curvature do not. Curvature is the surface variation of
    the 16 nearest points (Pauly et al. 2002, doi:10.1109/VISUAL.2002.1183771). The distance to
    the mirror image is one way of the Chamfer distance, which equals the other; like curvature
    it is taken at 512 points against all. Sampling alone leaves a symmetric surface about half
    the spacing of its points. Occupancy is of a grid of 8 x 8 x 8 cells in a cube around the box,
    whole and by octant, named by its halves along z, y and x, 1 the upper. Mirrors, occupancy and
    curvature depend on the number of points: compare clouds of one size.
    """
    if up not in AXES:
        raise ValueError(f"up={up!r}: must be one of {', '.join(AXES)}")
    if getattr(points, "ndim", 0) != 3 or points.shape[2] not in (3, 6):
        raise ValueError(
            f"points {getattr(points, 'shape', '')}: need (samples, points, 3 or 6), xyz and rgb"
        )
    if points.shape[1] < NEIGHBOURS:
        raise ValueError(f"clouds of {points.shape[1]} points: descriptors need {NEIGHBOURS}")
    blocks = [
        _measure(np.asarray(points[start : start + READ], np.float64), start, AXES.index(up))
        for start in range(0, len(points), READ)
    ]
    results = xr.Dataset(attrs={"points": points.shape[1], "up": up, "cells": CELLS})
    for name in blocks[0] if blocks else ():
        long_name, unit, span, source = ABOUT[name]
        attrs = {"long_name": long_name, "units": unit, "range": span, "source": source}
        results[name] = ("sample", np.concatenate([block[name] for block in blocks]), attrs)
    if isinstance(points, xr.DataArray) and points.dims[0] in points.coords:
        results = results.assign_coords(sample=points[points.dims[0]].values)
    return results


def factors(samples: xr.Dataset) -> xr.Dataset:
    """What is known of how each object was made: one variable a factor, (sample,), in float64.

    samples : table of a run; its columns `factor_NAME` are factors, as part counts, proportions or
              an angle. One in words, as a kind of symmetry, becomes a variable a word, 1 where it
              holds and 0 elsewhere.
    """
    found = xr.Dataset(coords={"sample": samples["sample"].values})
    for name, values in samples.data_vars.items():
        if not str(name).startswith(FACTOR):
            continue
        words = np.unique(values.values) if values.dtype.kind in "OUT" else [None]
        for word in words:
            numbers = values.values if word is None else values.values == word
            key = str(name) if word is None else f"{name}_{word}"
            said = key.removeprefix(FACTOR).replace("_", " ")
            attrs = {"long_name": f"{said}, known from its making", "units": "1", "source": ""}
            found[key] = ("sample", numbers.astype(np.float64), attrs)
    return found


def geometry_probe(
    gallery: np.ndarray,
    gallery_values: Any,
    query: np.ndarray,
    query_values: Any,
    *,
    groups: np.ndarray | None = None,
    shuffles: int = 10,
    folds: int = FOLDS,
    penalties: np.ndarray = PENALTIES,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """R^2 of a ridge regression fitted on the gallery, over the query objects, by property.

    gallery, query : (samples, dim), one row an object
    *_values  : (samples, properties), or a Dataset with a variable (sample,) for each property
    groups    : (gallery_samples,), rows of one group (copies of an object) share a fold
    penalties : the grid, the same for all layers; each property picks its own by squared error
                in cross-validation over whole groups of the gallery
    shuffles  : controls, in which each gallery object has the values of another

    Returns, over `property`: `mean`, `low`, `high` (R^2, 1 perfect, 0 no better than the mean of
    the query, below 0 worse; higher is better), `shuffled` (mean R^2 of the controls) and
    `shuffled_spread` (their standard deviation), `train`
    (R^2 of the gallery, no evidence on its own), `penalty`, and `error` (property, query): squared
    errors over the variance of the query, 1 - R^2 on average, for paired tests. The interval is a
    bootstrap over query objects with the fit held fixed: it covers which objects were asked
    about, not which the read-out was fitted on.
    """
    gallery, query = checked_states(gallery, query)
    names, known = _table(gallery_values, "gallery", len(gallery))
    asked_names, asked = _table(query_values, "query", len(query))
    if list(names) != list(asked_names):
        raise ValueError(
            f"gallery_values hold {', '.join(names)}, query_values {', '.join(asked_names)}"
        )
    groups = checked_groups(groups, len(gallery), folds)
    if shuffles < 1:
        raise ValueError(f"shuffles={shuffles}: a probe without a control is no evidence")
    dealt = _dealt(known, groups, shuffles, seed)
    fold = deal_folds(groups, np.zeros(len(gallery)), folds, seed)
    fit = _fit(gallery, query, dealt, fold, checked_penalties(penalties))
    predicted = fit.query.reshape(len(query), shuffles + 1, -1)
    own = predicted[:, 0]
    mean, low, high = r2_interval(asked, own, level=level, resamples=resamples, seed=seed)
    control = [r2(asked, predicted[:, task]) for task in range(1, shuffles + 1)]
    error = (asked - own) ** 2 / asked.var(axis=0)
    return xr.Dataset(
        {
            "mean": ("property", mean),
            "low": ("property", low),
            "high": ("property", high),
            "shuffled": ("property", np.mean(control, axis=0)),
            "shuffled_spread": ("property", np.std(control, axis=0)),
            "train": ("property", r2(known, fit.gallery[:, : len(names)])),
            "penalty": ("property", fit.penalties[: len(names)]),
            "error": (("property", "query"), error.T),
        },
        {"property": names},
        {"long_name": "R^2 of a linear read-out", "direction": "higher is better", "level": level},
    )


def geometry_by_layer(
    run: Any,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    values: xr.Dataset | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Which property is lost where: R^2 over (variant, layer, property) of an open run.

    values : properties of the run's samples, by sample id; by default the `descriptors` of its
             clouds and the `factors` of its table. Those constant over the gallery or the query
             are left out and named in the attribute `constant`.

    Returns `geometry_mean`, `_low`, `_high` and `geometry_shuffled` (variant, layer, property),
    the same of the target as `geometry_target_*` (property), which is what a layer could at best
    be expected to hold, and the paired `geometry_difference*` (comparison, property, layer). The
    read-out sees the mean of an object's tokens. It is `probe.sweep.sweep` with this probe alone.
    """
    from probe.sweep import sweep  # which imports this module

    return sweep(run, ("geometry",), layers, variants, properties=values, seed=seed)


def r2(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 - squared error over squared deviation from the mean, by column: (properties,)."""
    rest = ((values - predicted) ** 2).sum(axis=0)
    return 1 - rest / ((values - values.mean(axis=0)) ** 2).sum(axis=0)


def r2_interval(
    values: np.ndarray,
    predicted: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """R^2 by column with its percentile interval, as wide as t. Both (samples, properties).

    Error and deviation come from the same resample of the objects: R^2 is a ratio, and objects
    that are far from the mean weigh in both. Resamples that draw a single value are left out.
    """
    rng = np.random.default_rng(seed)
    samples = len(values)
    centred = values - values.mean(axis=0)
    parts = np.concatenate([(values - predicted) ** 2, centred**2, centred], axis=1)
    found = []
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        counts = rng.multinomial(samples, np.full(samples, 1 / samples), size=size)
        error, square, mean = np.split(counts @ parts / samples, 3, axis=1)
        varied = square - mean**2
        some = varied > 1e-12 * square
        found.append(1 - np.divide(error, varied, out=np.full_like(error, np.nan), where=some))
    bounds = np.nanquantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2], axis=0)
    share = r2(values, predicted)
    low, high = share + wider_of_few(samples, level) * (bounds - share)
    return Interval(share, low, np.minimum(high, 1))


class _Fit(NamedTuple):
    """Predictions for the rows of the gallery and the query, and each column's penalty."""

    gallery: np.ndarray
    query: np.ndarray
    penalties: np.ndarray


def _fit(
    gallery: np.ndarray, query: np.ndarray, y: np.ndarray, fold: np.ndarray, penalties: np.ndarray
) -> _Fit:
    """Ridge regressions of all columns of y (gallery_samples, columns) at once."""
    basis = decompose(gallery, query)
    projected = basis.gallery.T @ y
    errors = [
        ((held_out(basis, y, projected, fold, penalty) - y) ** 2).sum(axis=0)
        for penalty in penalties
    ]  # (penalties, columns)
    chosen = penalties[np.argmin(errors, axis=0)]
    weights = basis.shrink(chosen) * projected
    return _Fit(basis.gallery @ weights, basis.query @ weights, chosen)


def _dealt(values: np.ndarray, groups: np.ndarray, shuffles: int, seed: int) -> np.ndarray:
    """The values, then the same dealt out anew among the groups: (samples, (1 + shuffles) *
    properties). All properties of an object move together."""
    rng = np.random.default_rng([seed, 6])
    _, first = np.unique(groups, return_index=True)
    moved = [values[first[rng.permutation(len(first))][groups]] for _ in range(shuffles)]
    return np.concatenate([values, *moved], axis=1)


def _table(values: Any, name: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Names and float64 values (samples, properties), finite and none of them constant."""
    if isinstance(values, xr.Dataset):
        names = np.array(list(values.data_vars), str)
        table = np.column_stack([np.asarray(values[key].values, np.float64) for key in names])
    else:
        table = np.asarray(values, np.float64)
        table = table[:, None] if table.ndim == 1 else table
        names = np.arange(table.shape[-1]).astype(str)
    if table.ndim != 2 or len(table) != samples:
        raise ValueError(f"{name}_values {table.shape} for {samples} {name} samples")
    if not (finite := np.isfinite(table).all(axis=0)).all():
        raise ValueError(f"{name}_values of {str(names[~finite][0])!r} hold NaN or infinity")
    if (flat := constant(table)).any():
        raise ValueError(
            f"{name}_values of {str(names[flat][0])!r} are constant: nothing varies to explain"
        )
    return names, table


def constant(table: np.ndarray) -> np.ndarray:
    """Which columns do not vary, (properties,) of bool. table : (samples, properties)."""
    return table.std(axis=0) <= 1e-10 * np.abs(table).max(axis=0)


def _measure(clouds: np.ndarray, first: int, up: int) -> dict[str, np.ndarray]:
    """Descriptors of some clouds (samples, points, 3 or 6); `first` numbers them in errors."""
    places = clouds[..., :3]
    across = np.ascontiguousarray(places.swapaxes(1, 2))  # (samples, 3, points), quick to reduce
    low, high = across.min(axis=2), across.max(axis=2)
    for wrong, what in (
        (~np.isfinite(clouds).all(axis=(1, 2)), "has NaN or infinity"),
        ((low == high).all(axis=1), "is a single point"),
    ):
        if wrong.any():
            raise ValueError(f"the cloud of sample {first + int(wrong.argmax())} {what}")
    centred = places - across.mean(axis=2)[:, None]
    radius = np.linalg.norm(centred, axis=2).mean(axis=1)
    found = _box(places, low, high - low, up) | _shape(centred) | {"mean_radius": radius}
    level = [axis for axis in range(3) if axis != up]
    each = [_surface(cloud, size, level) for cloud, size in zip(centred, radius, strict=True)]
    found |= {key: np.array([one[key] for one in each]) for key in each[0]}
    if clouds.shape[2] == 6:
        found |= dict(zip(("red", "green", "blue"), clouds[..., 3:].mean(axis=1).T, strict=True))
    return found


def _box(
    places: np.ndarray, low: np.ndarray, extents: np.ndarray, up: int
) -> dict[str, np.ndarray]:
    """What the upright bounding box, its corner and extents (samples, 3), tells of the clouds."""
    short, middle, long = np.sort(extents, axis=1).T
    wide, deep = np.delete(extents, up, axis=1).T
    tiny = 1e-9 * long  # a sheet or a needle has a large ratio, not an infinite one
    corner = low - (long[:, None] - extents) / 2  # of a cube around the box
    cells = (places - corner[:, None]) / long[:, None, None]
    cells = np.minimum((cells * CELLS).astype(np.int64), CELLS - 1) @ [1, CELLS, CELLS**2]
    filled = np.zeros((len(places), CELLS**3), bool)
    filled[np.arange(len(places))[:, None], cells] = True
    return {
        **{f"extent_{axis}": extents[:, at] for at, axis in enumerate(AXES)},
        "box_volume": extents.prod(axis=1),
        "height_to_width": extents[:, up] / np.maximum(np.maximum(wide, deep), tiny),
        "depth_to_width": deep / np.maximum(wide, tiny),
        "middle_to_long": middle / long,
        "short_to_long": short / long,
        "occupancy": filled.mean(axis=1),
        **{f"occupancy_{name}": one for name, one in zip(OCTANTS, _octants(filled), strict=True)},
    }


def _octants(filled: np.ndarray) -> np.ndarray:
    """Share of filled cells in each octant of the grids (samples, cells), (octants, samples)."""
    half = CELLS // 2
    grids = filled.reshape(-1, 2, half, 2, half, 2, half)  # z, y, x
    return grids.mean(axis=(2, 4, 6)).reshape(len(filled), 8).T


def _shape(centred: np.ndarray) -> dict[str, np.ndarray]:
    """Eigenvalue features of whole clouds (samples, points, 3), centred."""
    least, middle, most = np.linalg.eigvalsh(centred.swapaxes(1, 2) @ centred).clip(min=0).T
    return {
        "linearity": (most - middle) / most,
        "planarity": (middle - least) / most,
        "sphericity": least / most,
    }


def _surface(cloud: np.ndarray, radius: float, level: list[int]) -> dict[str, float]:
    """What needs a cloud's neighbours or its hull. cloud : (points, 3), centred."""
    from scipy.spatial import KDTree

    tree = KDTree(cloud, balanced_tree=False, compact_nodes=False)  # same answers, sooner
    some = cloud[np.linspace(0, len(cloud) - 1, min(PROBED, len(cloud))).round().astype(np.int64)]
    _, near = tree.query(some, NEIGHBOURS)
    variation = _variation(cloud[near])
    found = {"curvature": variation.mean(), "curvature_spread": variation.std()}
    for name, axis in zip(("mirror_left_right", "mirror_front_back"), level, strict=True):
        image = some.copy()
        image[:, axis] *= -1
        found[name] = tree.query(image)[0].mean() / radius
    found["hull_volume"], found["hull_area"] = _hull(cloud)
    return found


def _variation(patches: np.ndarray) -> np.ndarray:
    """Smallest share of the variance of each patch, (patches,). patches : (patches, points, 3)."""
    patches = patches - patches.mean(axis=1, keepdims=True)
    values = np.linalg.eigvalsh(patches.swapaxes(1, 2) @ patches).clip(min=0)
    total = values.sum(axis=1)
    return np.divide(values[:, 0], total, out=np.zeros_like(total), where=total > 0)


def _hull(cloud: np.ndarray) -> tuple[float, float]:
    """Volume and area of the convex hull of a centred cloud; a flat one has two faces."""
    from scipy.spatial import ConvexHull

    _, axes = np.linalg.eigh(cloud.T @ cloud)
    turned = cloud @ axes[:, ::-1]
    size = np.ptp(turned, axis=0)
    thick = size > FLAT * size[0]
    if thick.all():
        hull = ConvexHull(turned)
        return hull.volume, hull.area
    return 0.0, 2 * ConvexHull(turned[:, :2]).volume if thick[1] else 0.0
