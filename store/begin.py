"""Begin a run with what another one captured already: what two models share is captured once."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from store.reader import open_run
from store.writer import create_run


def begin_like(run: str | Path, out: str | Path, *, without: Collection[str]) -> None:
    """A store in the folder `out` as in `run`, in which these variants are still to be captured.

    It is laid out as that of `run` and not complete; `create_run` with the same plan and `resume`
    goes on with it. Results of probes are not copied. Raises StoreError where there is no store,
    ValueError where `run` is not complete or lacks one of the variants.
    """
    old = open_run(run)
    if not old.complete:
        raise ValueError(f"{old.name} is not complete: only complete runs are copied")
    if absent := [name for name in without if name not in old.variants]:
        raise ValueError(f"{old.name} has no variant {absent[0]!r}: it has {old.variants}")
    attrs, table = old.attrs, old.samples()
    columns = {"sample": "id"}
    writer = create_run(
        out,
        samples={columns.get(str(n), str(n)): table[n].values for n in table.variables},
        layers=old.layers,
        variants=old.variants,
        tokens=attrs["tokens"],
        dim=attrs["dim"],
        target_dim=attrs["target_dim"],
        points=None if attrs["points"] is None else old.points().values,
        patches=attrs.get("patches"),
        steps={name: old.steps(name) for name in old.variants if old.steps(name)} or None,
        dtype=attrs["dtype"],
        provenance=json.loads(json.dumps(attrs["provenance"])),
    )
    for rows in writer.pending("target"):
        writer.append_target(rows, old.target()[rows].values)
    if attrs.get("patches"):
        attention = old.attention()
        for rows in writer.pending("attention"):
            weights, centres = (attention[name][rows].values for name in ("weights", "centres"))
            writer.append_attention(rows, weights, centres)
    for name in old.variants:
        if name in without:
            continue
        states, steps = old.hidden(name), old.steps(name)
        for step in steps or (None,):
            one = states if step is None else states.sel(step=step)
            for rows in writer.pending(name, step=step):
                writer.append(name, rows, one.isel(sample=rows).values, step=step)
    writer.close()
