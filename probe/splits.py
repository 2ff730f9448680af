"""Which objects are looked up, which are asked about: by object, with copies kept apart."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from probe import cache
from probe.copies import duplicate_groups, equal_groups
from store import Run


def layers_of(run: Run, layers: Sequence[int] | None) -> list[int]:
    """These layers in order, or all captured ones. Raises ValueError for one that is not there."""
    depth = run.layers if layers is None else layers
    if absent := [layer for layer in depth if layer not in run.layers]:
        raise ValueError(
            f"{run.path} has no layer {absent[0]}: it has {', '.join(map(str, run.layers))}"
        )
    return sorted(set(depth))


def gallery_query(samples: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the gallery and of the query, from the `split` of each sample."""
    split = samples["split"].values.astype(str)
    gallery, query = np.flatnonzero(split == "gallery"), np.flatnonzero(split == "query")
    if not len(gallery) or not len(query):
        raise ValueError(f"{len(gallery)} gallery and {len(query)} query samples: need both")
    return gallery, query


def without_copies(gallery: np.ndarray, query: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Gallery rows but for copies of query objects, which would answer for them."""
    return gallery[~np.isin(groups[gallery], groups[query])]


def one_each(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The first row of each group: a copy is no second object, and no second piece of evidence."""
    return rows[np.sort(np.unique(groups[rows], return_index=True)[1])]


def apart(
    gallery: np.ndarray, query: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both: one object of each group, in the query where that has one of it."""
    return one_each(without_copies(gallery, query, groups), groups), one_each(query, groups)


def groups_of(run: Run, samples: int | None = None) -> np.ndarray:
    """Groups of a run's objects, (samples,): by their clouds, or by targets where it has none."""
    if run.attrs["points"] is None:
        return equal_groups(run.target()[:samples])
    return duplicate_groups(run.points()[:samples], folder=cache.folder_of(run))
