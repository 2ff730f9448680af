"""A sweep in words: tables for the terminal, and what they do and do not show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import xarray as xr
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

SIGNIFICANT = 0.05
MAIN = "aligned - baseline"
FINE = 4  # decimals of a difference in CKA or drift, which can be far under .01


WIDTH = 120  # columns that no table exceeds


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
    console.print(_footnote(results), highlight=False)
    for sentence in findings(results):
        console.print(f"• {sentence}", highlight=False)


def _show(console: Console, table: Table) -> None:
    """Print a table whole: a narrow terminal may fold its lines, but no number is cut off."""
    if console.width < WIDTH:
        console = Console(file=console.file, width=WIDTH, force_terminal=console.is_terminal)
    console.print(table)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, moved by what is yielded: (steps done, steps in all, what is next)."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("probe")
        yield lambda done, total, what: bar.update(
            task, completed=done, total=total, description=f"probe {what}"
        )


def findings(results: xr.Dataset) -> list[str]:
    """What the numbers show, a sentence each; differences within noise are called that."""
    sentences = []
    if "knn_mean" in results:
        k = int(results.k.values[-1])
        sentences.append(_first_fall(results, k))
    names = {
        "knn": "accuracy",
        "cka": "CKA to the target",
        "drift_centred": "drift",
        "linear": "linear read-out accuracy",
    }
    for score, name in names.items():
        if f"{score}_difference" in results and MAIN in results.comparison.values:
            sentences.append(_compare(results, score, name))
    if "knn_mean" in results:
        sentences.append(_check_shuffled(results))
    if "geometry_difference" in results and MAIN in results.comparison.values:
        sentences.append(_compare_geometry(results))
    if "linear_mean" in results:
        sentences.append(_check_linear(results))
    if "geometry_mean" in results:
        sentences.append(_check_geometry(results))
    return sentences


def first_fall(results: xr.Dataset, variant: str, k: int) -> int | None:
    """First layer whose accuracy is below the target's, p over all layers under 0.05."""
    place = {"variant": variant, "k": k}
    gap = results.knn_from_target.sel(place).values
    p = results.knn_from_target_p_adjusted.sel(place).values
    below = (gap < 0) & (p < SIGNIFICANT)
    return int(results.layer.values[below.argmax()]) if below.any() else None


def _first_fall(results: xr.Dataset, k: int) -> str:
    parts = []
    for variant in results.variant.values.astype(str):
        layer = first_fall(results, variant, k)
        if layer is None:
            parts.append(f"{variant} at no captured layer")
            continue
        place = {"variant": variant, "k": k, "layer": layer}
        mean, low, high = (
            100 * float(results[f"knn_from_target{part}"].sel(place))
            for part in ("", "_low", "_high")
        )
        parts.append(f"{variant} at layer {layer} ({mean:+.1f} [{low:+.1f}, {high:+.1f}] points)")
    target = 100 * float(results.knn_target_mean.sel(k=k))
    return (
        f"Accuracy (K = {k}) is first below the target's {target:.1f} %, beyond noise: "
        f"{'; '.join(parts)}."
    )


def _compare(results: xr.Dataset, score: str, name: str) -> str:
    gap = {
        part: results[f"{score}_difference{part}"].sel(comparison=MAIN)
        for part in ("", "_low", "_high", "_p_adjusted")
    }
    unit, scale, digits = ("points", 100, 1) if score in ("knn", "linear") else ("", 1, FINE)
    if "k" in gap[""].dims:
        gap = {part: values.sel(k=results.k.values[-1]) for part, values in gap.items()}
        name = f"{name} (K = {int(results.k.values[-1])})"
    mean = gap[""].values * scale
    sure = gap["_p_adjusted"].values < SIGNIFICANT
    layers = results.layer.values
    at = int(np.abs(mean).argmax())
    low, high = (float(gap[part].values[at]) * scale for part in ("_low", "_high"))
    largest = (
        f"{mean[at]:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}] {unit}".rstrip()
        + f" at layer {layers[at]}"
    )
    if not sure.any():
        return (
            f"Aligned and baseline do not differ in {name} beyond noise at any layer; the "
            f"largest difference is {largest}."
        )
    verbs = ((sure & (mean > 0), "higher"), (sure & (mean < 0), "lower"))
    said = [
        f"{verb} at layer{_s(where)} {_list(layers[where])}" for where, verb in verbs if where.any()
    ]
    rest = layers[~sure]
    noise = f", within noise at {_list(rest)}" if len(rest) else ""
    return f"Aligned less baseline in {name}: {' and '.join(said)}{noise}; at most {largest}."


def _check_shuffled(results: xr.Dataset) -> str:
    shuffled, chance = 100 * results.knn_shuffled, 100 * results.attrs["chance"]
    return (
        f"Control: with shuffled labels accuracy is {float(shuffled.min()):.1f} to "
        f"{float(shuffled.max()):.1f} % (always naming the commonest class: {chance:.1f} %)."
    )


def _compare_geometry(results: xr.Dataset) -> str:
    """Properties whose read-out alignment changes, over all layers and properties at once."""
    gap = results.geometry_difference.sel(comparison=MAIN)
    sure = results.geometry_difference_p_adjusted.sel(comparison=MAIN) < SIGNIFICANT
    said = []
    for where, verb in ((sure & (gap > 0), "better"), (sure & (gap < 0), "worse")):
        found = [
            f"{name} from {results.layer.values[at.argmax()]}"
            for name in results.property.values
            if (at := where.sel(property=name).values).any()
        ]
        if found:
            said.append(f"{verb} for {len(found)} ({', '.join(found)})")
    if not said:
        return "Aligned and baseline do not differ in any property read out, beyond noise."
    return (
        f"Of {results.sizes['property']} properties, aligned is read out {', '.join(said)}, each "
        "from its first layer that differs."
    )


def _check_linear(results: xr.Dataset) -> str:
    query, gallery = 100 * results.linear_shuffled, 100 * results.linear_shuffled_train
    return (
        f"Control: a linear read-out fitted to shuffled labels names {float(query.min()):.1f} to "
        f"{float(query.max()):.1f} % of the query, {float(gallery.min()):.1f} to "
        f"{float(gallery.max()):.1f} % of the gallery it learnt by heart."
    )


def _check_geometry(results: xr.Dataset) -> str:
    constant = results.attrs["constant"]
    left_out = f" Left out, as they do not vary: {', '.join(constant)}." if constant else ""
    return (
        "Control: with shuffled values R² is at most "
        f"{float(results.geometry_shuffled.max()):.2f}.{left_out}"
    )


def _linear_table(results: xr.Dataset) -> Table:
    target, low, high = (
        100 * float(results[f"linear_target_{part}"]) for part in ("mean", "low", "high")
    )
    title = (
        "Accuracy in % of a linear read-out, higher is better "
        f"(target: {target:.1f} [{low:.1f}, {high:.1f}])"
    )
    return _layer_table(results, "linear", title, scale=100, digits=1)


def _geometry_table(results: xr.Dataset) -> Table:
    """A row a property: the target, then each model at its first and its deepest layer."""
    first, last = results.layer.values[[0, -1]]
    title = (
        f"R² of properties read out linearly, layer {first} → {last}, higher is better; in "
        "brackets the first layer below the target"
    )
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1))
    table.add_column("property", no_wrap=True)
    for column in ("target", *results.variant.values.astype(str)):
        table.add_column(column, justify="right")
    for name in results.property.values.astype(str):
        row = results.sel(property=name)
        cells = [_geometry_cell(row.sel(variant=variant)) for variant in row.variant.values]
        table.add_row(name, _two_digits(float(row.geometry_target_mean)), *cells)
    return table


def _geometry_cell(row: xr.Dataset) -> str:
    mean = row.geometry_mean.values
    p = row.geometry_from_target_p_adjusted.values
    below = (row.geometry_from_target.values < 0) & (p < SIGNIFICANT)
    where = f"[{row.layer.values[below.argmax()]}]" if below.any() else "[–]"
    return f"{_two_digits(mean[0])} → {_two_digits(mean[-1])} {where}"


def _two_digits(value: float) -> str:
    """A number for a table, without the sign of a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _knn_table(results: xr.Dataset, k: int) -> Table:
    target, low, high = (
        100 * float(results[f"knn_target_{part}"].sel(k=k)) for part in ("mean", "low", "high")
    )
    title = (
        f"Accuracy in %, K = {k}, higher is better (target: {target:.1f} [{low:.1f}, {high:.1f}])"
    )
    at_k = results.sel(k=k)
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
    digits = FINE if digits == 3 else digits
    numbers = (_number(value, digits, sign=True) for value in (mean, low, high))
    text = "{} [{}, {}]".format(*numbers)
    return text + (" *" if float(row[f"{key}_p_adjusted"]) < SIGNIFICANT else "  ")


def _number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number for a table, without the zero before the point where it has three or more."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.replace("0.", ".", 1) if digits >= 3 and abs(value) < 1 else text


def _footnote(results: xr.Dataset) -> str:
    about = results.attrs
    copies = about["gallery_copies_dropped"]
    dropped = f"; {copies} gallery copies of query objects left out" if copies else ""
    return (
        f"{about['query_objects']} query objects, {about['gallery_objects']} in the gallery, "
        f"{about['classes']} classes{dropped}. In brackets: {about['level']:.0%} intervals over "
        f"query objects.\n* differs, p < {SIGNIFICANT} over all layers at once, paired by object."
    )


def _list(layers: np.ndarray) -> str:
    return ", ".join(str(layer) for layer in layers)


def _s(where: np.ndarray) -> str:
    return "s" if where.sum() > 1 else ""
