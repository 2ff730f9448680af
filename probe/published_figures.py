"""Published figures that a curve of ours may stand beside: facts with their source, nothing more.

PointAlign (arXiv 2603.00412) draws nearest-neighbour accuracy by layer on ModelNet40 in Fig. 3 and
writes four of the numbers in its text. They are multiples of 1/247 and not of 1/2468, so they come
of a tenth of the 2,468 test objects looked up in the rest: what `probe.variants` calls test90_10.
Not said are the pooling, the metric, and whether layers are counted as here. With 247 objects one
such accuracy has a standard error of 2.3 points.
"""

from typing import NamedTuple

import xarray as xr

POINTALIGN = "PointAlign Fig. 3 (Phi-2)"
OBJECTS, CLASSES = 2468, 40  # of ModelNet40's test split


class Published(NamedTuple):
    """One number of a paper, under the name that its model has here."""

    variant: str
    layer: int
    k: int
    value: float
    """Accuracy in %, higher is better."""
    source: str


KNN = (
    Published("aligned", 20, 1, 85.43, POINTALIGN),
    Published("baseline", 20, 1, 83.40, POINTALIGN),
    Published("aligned", 12, 10, 84.62, POINTALIGN),
    Published("baseline", 12, 10, 83.81, POINTALIGN),
)


def same_objects(results: xr.Dataset) -> bool:
    """Whether a sweep asked about as many objects, of as many classes, as Fig. 3 did."""
    asked = (results.attrs.get("query_objects"), results.attrs.get("classes"))
    return asked == (OBJECTS, CLASSES)


def beside_knn(results: xr.Dataset, k: int) -> tuple[Published, ...]:
    """What was published of the protocol test90_10 at this k; nothing where the objects differ."""
    return tuple(one for one in KNN if one.k == k) if same_objects(results) else ()
