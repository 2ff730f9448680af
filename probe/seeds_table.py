"""Several runs under other seeds in the terminal: tables with intervals over seeds, sentences."""

import xarray as xr
from rich.console import Console

from probe.report import _layer_table, _show
from probe.seeds import SCORES, SHARES, findings


def print_seeds(results: xr.Dataset, console: Console | None = None) -> None:
    """A table a score, a row a layer, then what holds over seeds."""
    console = console or Console()
    seeds = results.attrs["seeds"]
    for key, (_, _, name, direction) in SCORES.items():
        if f"{key}_mean" not in results:
            continue
        one = results.isel(k=-1) if key == "knn" else results
        at_k = f", K = {int(one.k)}" if key == "knn" else ""
        share = key in SHARES
        title = f"{name}{at_k}{', %' if share else ''}, {direction}; over {seeds} seeds"
        scale, digits = (100, 1) if share else (1, 3)
        _show(console, _layer_table(one, key, title, scale=scale, digits=digits))
    for sentence in findings(results):
        console.print(f"• {sentence}", highlight=False, markup=False)
    console.print("* differs, p < 0.05 by Holm over the layers, paired by run and object.")
