"""A sweep in the terminal: tables, the verdicts, and what they do and do not show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import xarray as xr
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from probe.findings import (
    FINE,
    MAIN,
    SIGNIFICANT,
    decimals,
    findings,
    first_fall,
    judged,
    verdict_cell,
    verdict_name,
)
from probe.judged import counted, fell, own, two_digits
from probe.maps import quality

__all__ = ["MAIN", "SIGNIFICANT", "findings", "first_fall", "print_table", "progress_bar"]
WIDTH = 120  # columns that no table exceeds
PARTS = ("mean", "low", "high")
REFERENCES = {"target": "target", "encoder": "encoder's output"}  # read out as the layers are


def print_table(results: xr.Dataset, console: Console | None = None) -> None:
    """Accuracies, then closeness to the target, a row a layer; then what they show."""
    console = console or Console()
    if "knn_mean" in results:
        for k in results.k.values:
            _show(console, _knn_table(results, int(k)))
    if "drift_mean" in results:
        _show(console, _score_table(results, "cka", "Debiased CKA to the target, higher is closer"))
        title = "Drift, 1 − cosine through a ridge map, what all objects share taken off"
        _show(console, _score_table(results, "drift_centred", f"{title}, lower is closer"))
    if "linear_mean" in results:
        _show(console, _linear_table(results))
    if "geometry_mean" in results:
        _show(console, _geometry_table(results))
    if judged(results):
        _show(console, _verdict_table(results))
    console.print(_footnote(results), highlight=False, markup=False)
    for sentence in findings(results):
        console.print(f"• {sentence}", highlight=False, markup=False)


def _show(console: Console, table: Table) -> None:
    """Print a table whole: a narrow terminal may fold its lines, but no number is cut off, and a
    name in brackets is no markup."""
    if console.width < WIDTH:
        console = Console(file=console.file, width=WIDTH, force_terminal=console.is_terminal)
    console.print(table, markup=False)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, moved by what is yielded: (steps done, steps in all, what is next)."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("probe")
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=f"probe {escape(what)}"
        )


def _verdict_table(results: xr.Dataset) -> Table:
    """A row a measure: the depth at which each model falls, and how much later aligned does."""
    table = Table(
        title="Verdict: layer where a measure falls below its reference by the margin, or up to "
        "which it surely holds",
        title_justify="left",
        title_style="bold",
        caption="unsure: neither a fall nor that it holds is shown",
        caption_justify="left",
        padding=(0, 1),
    )
    table.add_column("measure (margin, reference)")
    for variant in results.variant.values.astype(str):
        table.add_column(variant, justify="right")
    compared = MAIN in results.get("comparison", xr.DataArray([])).values
    if compared:
        table.add_column("aligned later by", justify="right", no_wrap=True)
    for score, where in judged(results):
        row = results.sel(where)
        cells = [verdict_cell(row, score, v) for v in results.variant.values.astype(str)]
        if compared:
            cells.append(_shift_cell(row.sel(comparison=MAIN), score))
        table.add_row(verdict_name(results, score, where), *cells)
    return table


def _shift_cell(row: xr.Dataset, score: str) -> str:
    censored = float(row[f"{score}_shift_censored"])
    numbers = [float(row[f"{score}_shift_{part}"]) for part in ("mean", "low", "high")]
    if not fell(row, score):
        return "–"
    if censored > 1 - float(row.attrs["level"]):
        _, low, high = (round(part, 1) for part in numbers)
        return f"≥ {low:+.1f}" if low > 0 else f"≤ {high:+.1f}" if high < 0 else "–"
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*numbers)


def _linear_table(results: xr.Dataset) -> Table:
    title = f"Accuracy in % of a linear read-out, higher is better ({_against(results, 'linear')})"
    return _layer_table(results, "linear", title, scale=100, digits=1)


def _against(results: xr.Dataset, key: str) -> str:
    """In %, with its interval, what a read-out of the target and of the encoder's output gives."""
    said = []
    for ending, name in REFERENCES.items():
        if f"{key}_{ending}_mean" in results:
            three = [100 * float(results[f"{key}_{ending}_{part}"]) for part in PARTS]
            said.append("{} {:.1f} [{:.1f}, {:.1f}]".format(name, *three))
    return ", ".join(said)


def _geometry_table(results: xr.Dataset) -> Table:
    """A row a property: the target, then each model at its first and its deepest layer."""
    first, last = results.layer.values[[0, -1]]
    title = (
        f"R² of properties read out linearly, layer {first} → {last}, higher is better; in "
        "brackets the first layer below the target beyond noise, by however little"
    )
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1))
    table.add_column("property", no_wrap=True)
    known = [ending for ending in REFERENCES if f"geometry_{ending}_mean" in results]
    for column in (*known, *results.variant.values.astype(str)):
        table.add_column(column, justify="right")
    for name in results.property.values.astype(str):
        row = results.sel(property=name)
        cells = [two_digits(float(row[f"geometry_{ending}_mean"])) for ending in known]
        cells += [_geometry_cell(row.sel(variant=variant)) for variant in row.variant.values]
        table.add_row(name, *cells)
    return table


def _geometry_cell(row: xr.Dataset) -> str:
    mean = row.geometry_mean.values
    p = row.geometry_from_target_p_adjusted.values
    below = (row.geometry_from_target.values < 0) & (p < SIGNIFICANT)
    where = f"[{row.layer.values[below.argmax()]}]" if below.any() else "[–]"
    return f"{two_digits(mean[0])} → {two_digits(mean[-1])} {where}"


def _knn_table(results: xr.Dataset, k: int) -> Table:
    at_k = results.sel(k=k)
    title = f"Accuracy in %, K = {k}, higher is better ({_against(at_k, 'knn')})"
    return _layer_table(at_k, "knn", title, scale=100, digits=1)


def _score_table(results: xr.Dataset, score: str, title: str) -> Table:
    if f"{score}_random" in results:
        random = results[f"{score}_random"]
        title += f" (unrelated: {float(random.mean()):.2f})"
    return _layer_table(results, score, title, scale=1, digits=3)


def _layer_table(
    results: xr.Dataset, score: str, title: str, *, scale: float, digits: int
) -> Table:
    """A row a layer: each model with its interval, then aligned less baseline."""
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1))
    table.add_column("layer", justify="right")
    results = own(results, score)
    for variant in results.variant.values.astype(str):
        table.add_column(variant, justify="right", no_wrap=True)
    compared = f"{score}_difference" in results and MAIN in results.comparison.values
    if compared:
        table.add_column("aligned − baseline", justify="right", no_wrap=True)
    for layer in results.layer.values:
        row = results.sel(layer=layer)
        cells = []
        for variant in results.variant.values:
            mean, low, high = (
                scale * float(row[f"{score}_{part}"].sel(variant=variant))
                for part in ("mean", "low", "high")
            )
            cells.append(
                f"{_number(mean, digits)} [{_number(low, digits)}, {_number(high, digits)}]"
            )
        if compared:
            cells.append(_difference_cell(row.sel(comparison=MAIN), score, scale, digits))
        table.add_row(str(layer), *cells)
    return table


def _difference_cell(row: xr.Dataset, score: str, scale: float, digits: int) -> str:
    key = f"{score}_difference"
    mean, low, high = (scale * float(row[f"{key}{part}"]) for part in ("", "_low", "_high"))
    digits = decimals((mean, low, high), FINE) if digits == 3 else digits
    numbers = (_number(value, digits, sign=True) for value in (mean, low, high))
    text = "{} [{}, {}]".format(*numbers)
    return text + (" *" if float(row[f"{key}_p_adjusted"]) < SIGNIFICANT else "  ")


def _number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number for a table, without the zero before the point where it has three or more."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if digits >= 3 and abs(value) < 1 else text


def _footnote(results: xr.Dataset) -> str:
    about = results.attrs
    return (
        f"{about['query_objects']} query objects, {about['gallery_objects']} in the gallery, "
        f"{about['classes']} classes{counted(results)}. In brackets: "
        f"{about['level']:.0%} intervals over query objects, layer by layer.\n"
        f"* differs, p < {SIGNIFICANT} over all layers at once, paired by object."
    )


def print_beside(name: str, results: xr.Dataset, console: Console | None = None) -> None:
    """The results of a probe beside the sweep, by its name."""
    console = console or Console()
    if name == "objects":
        count = {dim: results.sizes[dim] for dim in ("sample", "layer", "model")}
        said = "{sample} objects looked up in {layer} layers of {model} models, for the dashboard"
        console.print(said.format(**count), highlight=False)
        return
    if name == "maps":
        for method in results.method.values.astype(str):
            _show(console, _maps_table(results, method))
        return
    if name == "alignment":
        for trained in results.trained.values.tolist():
            title = f"1 − cosine to the target through the projector trained behind layer {trained}"
            one = results.sel(trained=trained)
            _show(console, _score_table(one, "through_alignment", f"{title}, circular"))
        return
    if name == "steps":
        from probe.other_tables import print_steps

        print_steps(results, console)
        return
    for score, title in (
        ("chamfer", "Chamfer distance of the rebuilt cloud, in mean radii, lower is closer"),
        ("f_score", f"F-score within {results.attrs['near']:g}, higher is better"),
    ):
        ends = [float(results[f"{score}_{end}_mean"]) for end in ("target", "shuffled")]
        title += " (target: {:.3f}, tokens of other objects: {:.3f})".format(*ends)
        _show(console, _layer_table(results, score, title, scale=1, digits=3))
    _show(console, _verdict_table(results))
    for sentence in findings(results):
        console.print(f"• {sentence}", highlight=False, markup=False)


def _maps_table(results: xr.Dataset, method: str) -> Table:
    title = f"{method.upper()} of {results.sizes['object']} query objects: trustworthiness (are "
    title += "neighbours on the map true ones?) / continuity (are true neighbours near?)"
    table = Table(
        title=f"{title}; of {results.attrs['neighbours']} neighbours, 1 is perfect",
        title_justify="left",
        title_style="bold",
        padding=(0, 1),
        pad_edge=False,  # four models fit
        min_width=len(title) // 2 + 20,
    )
    table.add_column("layer", justify="right")
    for variant in results.variant.values.astype(str):
        table.add_column(variant, justify="right")
    first = results.sel({"method": method}).isel(draw=0)  # `method` is also a word of sel
    for layer in results.layer.values:
        row = [first.sel(variant=variant, layer=layer) for variant in results.variant.values]
        table.add_row(str(layer), *map(quality, row))
    return table
