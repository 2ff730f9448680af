"""New runs that begin with what others captured already."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from store.reader import Run, open_run
from store.writer import RunWriter, create_run


def begin_like(path: str | Path, out: str | Path, *, without: Collection[str]) -> None:
    """A store in the folder `out` as in the run at `path`, with these variants still to capture.

    It is laid out as that of the run and not complete; `create_run` with the same plan and
    `resume` goes on with it. Results of probes are not copied. Interrupted, the same call goes on.
    Raises StoreError where there is no store, ValueError where the run is not complete or lacks
    one of the variants.
    """
    run = open_complete(path)
    if absent := [name for name in without if name not in run.variants]:
        raise ValueError(f"{run.name} has no variant {absent[0]!r}: it has {run.variants}")
    steps = {name: run.steps(name) for name in run.variants}
    writer = begin(run, out, layers=run.layers, steps=steps, provenance=run.attrs["provenance"])
    for name in run.variants:
        if name not in without:
            copy_states(writer, name, run, name)
    writer.close()


def open_complete(path: str | Path) -> Run:
    """Open a run that is whole. Raises ValueError where it is not complete."""
    run = open_run(path)
    if not run.complete:
        raise ValueError(f"{run.name} is not complete: only complete runs are copied")
    return run


def begin(
    like: Run,
    out: str | Path,
    *,
    layers: list[int],
    steps: Mapping[str, list[int]],
    provenance: dict[str, Any],
) -> RunWriter:
    """A run with all that `like` holds of its objects, whose states are still to come.

    `steps` names the variants, each with its steps or an empty list.
    """
    attrs, table = like.attrs, like.samples()
    columns = {"sample": "id"}
    writer = create_run(
        out,
        samples={columns.get(str(n), str(n)): table[n].values for n in table.variables},
        layers=layers,
        variants=list(steps),
        tokens=attrs["tokens"],
        dim=attrs["dim"],
        target_dim=attrs["target_dim"],
        target_tokens=attrs.get("target_tokens"),
        points=None if attrs["points"] is None else like.points(),
        encoder_dim=attrs.get("encoder_dim"),
        patches=attrs.get("patches"),
        steps={name: own for name, own in steps.items() if own},
        dtype=attrs["dtype"],
        provenance=json.loads(json.dumps(provenance)),
        resume=True,
    )
    for rows in writer.pending("target"):
        writer.append_target(rows, like.target()[rows].values)
    if attrs.get("encoder_dim"):
        for rows in writer.pending("encoder"):
            writer.append_encoder(rows, like.encoder()[rows].values)
    if attrs.get("patches"):
        attention = like.attention()
        for rows in writer.pending("attention"):
            weights, centres = (attention[name][rows].values for name in ("weights", "centres"))
            writer.append_attention(rows, weights, centres)
    return writer


def copy_states(writer: RunWriter, name: str, run: Run, variant: str) -> None:
    """Write to `name` what `run` holds of `variant`, in the layers and steps of the writer."""
    states = run.hidden(variant).sel(layer=writer.attrs["layers"])
    for step in writer.attrs.get("steps", {}).get(name) or (None,):
        one = states if step is None else states.sel(step=step)
        for rows in writer.pending(name, step=step):
            writer.append(name, rows, one.isel(sample=rows).values, step=step)
