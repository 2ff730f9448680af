"""What differs between two models, object by object, class by class and layer by layer."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from probe.cka import cka
from probe.objects import mean_tokens, states
from probe.splits import gallery_query, groups_of, one_each
from store import Run

MOST = 1000  # query objects that a table of CKA is computed from
KINDS = ("both right", "only the first", "only the second", "both wrong")


def contrast(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Query objects that both models have, the greatest change first.

    first, second : a row an object: sample, class_name, split, right, support, drift, named, and in
                    first group, where it is known: of copies and near-copies the first one counts

    Columns kind (one of `KINDS`), and of both models, with suffix _first and _second: right,
    named, support (share of the neighbours of its own class), drift; `change` is support of the
    second less that of the first, `drift_change` likewise. The index is that of `first`.
    """
    columns = ["sample", "right", "named", "support", "drift"]
    asked = first[first.split == "query"]
    if "group" in asked:
        asked = asked.drop_duplicates("group")
    table = asked[["class_name", *columns]].reset_index(names="row")
    table = table.merge(second[columns], on="sample", suffixes=("_first", "_second"))
    table["change"] = table.support_second - table.support_first
    table["drift_change"] = table.drift_second - table.drift_first
    both = list(zip(table.right_first, table.right_second, strict=True))
    said = dict(
        zip([(True, True), (True, False), (False, True), (False, False)], KINDS, strict=True)
    )
    table["kind"] = [said[bool(a), bool(b)] for a, b in both]
    by_size = table.assign(size=table.change.abs(), flip=table.right_first != table.right_second)
    order = by_size.sort_values(["flip", "size", "sample"], ascending=[False, False, True]).index
    return table.loc[order].set_index("row")


def confusion_change(table: pd.DataFrame) -> pd.DataFrame:
    """Which classes are taken for which others more often by the second model than by the first.

    table : of `contrast`. Columns class_name, named, first, second (objects), change, the greatest
    change first; pairs that both models get alike are left out.
    """
    sides = [
        table.groupby(["class_name", f"named_{side}"]).size().rename_axis(["class_name", "named"])
        for side in ("first", "second")
    ]
    counts = pd.concat(sides, axis=1, keys=["first", "second"]).fillna(0).astype(int)
    counts["change"] = counts["second"] - counts["first"]
    found = counts[counts.change != 0].reset_index()
    order = found.change.abs().sort_values(ascending=False, kind="stable").index
    return found.loc[order].reset_index(drop=True)


def cka_of_layers(
    first: tuple[Run, str],
    second: tuple[Run, str],
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.DataArray:
    """Debiased linear CKA of mean tokens, (layer, other_layer), over shared query objects.

    first, second : a run and a model of it. Copies and near-copies count once, and of a model whose
    capture was stopped, the objects it has. Of more than `MOST` query objects so many are drawn
    with the seed. Raises ValueError where fewer than four are
    shared.
    """
    tables = [run.samples() for run, _ in (first, second)]
    queries = []
    for (run, model), table in zip((first, second), tables, strict=True):
        rows = one_each(gallery_query(table)[1], groups_of(run))
        queries.append(table["sample"].values[rows[rows < run.done(model)]])
    shared = np.intersect1d(*queries)
    if len(shared) < 4:
        raise ValueError(f"the two share {len(shared)} query objects: CKA needs 4 or more")
    if len(shared) > MOST:
        shared = np.random.default_rng([seed, 23]).choice(shared, MOST, replace=False)
    sides: list[dict[int, np.ndarray]] = []
    steps = len(first[0].layers) + len(second[0].layers)
    for (run, model), table in zip((first, second), tables, strict=True):
        order = pd.Index(table["sample"].values).get_indexer(np.sort(shared))
        pooled: dict[int, np.ndarray] = {}
        for layer in run.layers:
            if progress:
                done = len(pooled) + sum(len(side) for side in sides)
                progress(done, steps, f"{model}, layer {layer}")
            pooled[layer] = mean_tokens(states(run, model, layer).isel(sample=order))
        sides.append(pooled)
    values = [[cka(x, y) for y in sides[1].values()] for x in sides[0].values()]
    return xr.DataArray(
        values,
        {"layer": list(sides[0]), "other_layer": list(sides[1])},
        ("layer", "other_layer"),
        attrs={"objects": len(shared)},
    )
