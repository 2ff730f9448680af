"""Several runs under other seeds in the terminal: tables with intervals over seeds, sentences."""

import xarray as xr
from rich.console import Console

from probe.report import _layer_table, _show
from probe.seeds_scores import SCORES, SHARE
from probe.seeds_words import findings, measure_name


def print_seeds(results: xr.Dataset, console: Console | None = None) -> None:
    """A table a score, a row a layer, then what holds over seeds."""
    console = console or Console()
    seeds = results.attrs["seeds"]
    for key, score in SCORES.items():
        if f"{key}_mean" not in results or "property" in score.extra:
            continue
        by_k, share = "k" in score.extra, score.hits and score.inside == SHARE
        name, direction = measure_name(results, key), results[f"{key}_mean"].attrs["direction"]
        one = results.isel(k=-1) if by_k else results
        if one[f"{key}_mean"].isnull().all():  # PWCCA of few objects, hubness of all of them
            continue
        at_k = f", K = {int(one.k)}" if by_k else ""
        title = f"{name}{at_k}{', %' if share else ''}, {direction}; over {seeds} seeds"
        scale, digits = (100, 1) if share else (1, 3)
        _show(console, _layer_table(one, key, title, scale=scale, digits=digits))
    for sentence in findings(results):
        console.print(f"• {sentence}", highlight=False, markup=False)
    console.print("* differs, p < 0.05 by Holm over the layers, paired by run and object.")
