"""Cells of all layers and models put together: means, intervals, controls, tests and verdicts.

Names in the Dataset: `KEY_mean`, `_low`, `_high`; `KEY_target*`, `KEY_encoder*`, `KEY_shuffled`,
`KEY_random` to read them against; `KEY_from_target*` and `KEY_difference*` for paired gaps. Every
variable says in its attributes what it is and which direction is good.
"""

from typing import Any

import numpy as np
import xarray as xr

from probe import cache, controls
from probe.cells import LEVEL, Cell, Objects, Settings
from probe.sheet import Sheet
from probe.sheet_readouts import put_geometry, put_knn, put_linear, put_variants
from probe.sheet_states import put_dimension, put_drift, put_similarity
from store import Run


def assemble(
    run: Run,
    cells: dict[str, dict[Any, Cell]],
    data: Objects,
    variants: list[str],
    layers: list[int],
    ask: Settings,
    reference: str,
) -> xr.Dataset:
    """The results of a sweep, see `probe.sweep.sweep`. cells : by probe, then (variant, layer)."""
    names = np.unique(data.labels)
    table = run.samples()
    results = xr.Dataset(
        coords={"variant": variants, "layer": layers, "k": list(ask.k)},
        attrs={
            "run": str(run.path.name),
            "seed": ask.seed,
            "level": LEVEL,
            "gallery_objects": len(data.gallery),
            "query_objects": len(data.query),
            "groups": len(np.unique(data.groups)),
            "gallery_copies_dropped": data.copies[0],
            "query_copies_dropped": data.copies[1],
            "chance": controls.chance_level(data.labels[data.gallery], data.labels[data.query]),
            "classes": len(names),
            **_rare(data, table),
            "probes": list(cells),
            "code": cache.code(),
        },
    )
    results.layer.attrs["long_name"] = "layer (0 = what enters block 1)"
    others = [name for name in variants if name != reference and reference in variants]
    if others:
        results = results.assign_coords(comparison=[f"{name} - {reference}" for name in others])
    models = [(variants.index(name), variants.index(reference)) for name in others]
    sheet = Sheet(results, data, ask, models)
    for probe, put in PUT.items():
        if probe in cells:
            put(sheet, cells[probe], table)
    return sheet.results


def _rare(data: Objects, table: xr.Dataset) -> dict[str, Any]:
    """Classes that cannot be told, or hardly: of no or one gallery object, or of one query."""
    names = table["class_name"].values
    there, counts = np.unique(data.labels[data.gallery], return_counts=True)
    absent = data.query[~np.isin(data.labels[data.query], there)]
    single = data.gallery[np.isin(data.labels[data.gallery], there[counts == 1])]
    asked, each = np.unique(data.labels[data.query], return_counts=True)
    alone = data.query[np.isin(data.labels[data.query], asked[each == 1])]
    return {
        "queries_of_absent_classes": len(absent),
        "absent_classes": sorted({str(names[row]) for row in absent}),
        "single_classes": sorted({str(names[row]) for row in single}),
        "single_query_classes": sorted({str(names[row]) for row in alone}),
    }


PUT = {
    "knn": put_knn,
    "drift": put_drift,
    "dimension": put_dimension,
    "linear": put_linear,
    "geometry": put_geometry,
    "variants": put_variants,
    "similarity": put_similarity,
}
