"""Which objects are looked up, which are asked about: by object, with copies kept apart."""

import hashlib

import numpy as np
import xarray as xr


def gallery_query(samples: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the gallery and of the query, from the `split` of each sample."""
    split = samples["split"].values.astype(str)
    gallery, query = np.flatnonzero(split == "gallery"), np.flatnonzero(split == "query")
    if not len(gallery) or not len(query):
        raise ValueError(f"{len(gallery)} gallery and {len(query)} query samples: need both")
    return gallery, query


def duplicate_groups(objects: xr.DataArray, block: int = 256) -> np.ndarray:
    """Group of each object, (samples,): objects that are equal byte for byte share one.

    objects : (samples, ...), read a block at a time. Groups are numbered by first appearance.
    """
    groups: dict[bytes, int] = {}
    found = []
    for start in range(0, len(objects), block):
        for one in np.ascontiguousarray(objects[start : start + block].values):
            found.append(groups.setdefault(hashlib.sha256(one.data).digest(), len(groups)))
    return np.array(found)


def without_copies(gallery: np.ndarray, query: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Gallery rows but for copies of query objects, which would answer for them."""
    return gallery[~np.isin(groups[gallery], groups[query])]
