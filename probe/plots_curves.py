"""Measures that belong together as panels over the layers, and below each what aligned changes."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.pixels import canvas, legend, png
from probe.plots_panels import Gap, Line, Panel, add_gap, add_panel, draw_gap, draw_panel, gap_of
from probe.plots_style import INK, LAYER, REFERENCES, above, ticks
from probe.published_figures import beside_knn
from probe.report import MAIN

About = dict[str, tuple[str, str]]  # of measures: title and axis
DIMENSION: About = {  # the shape of the space
    "two_nn": ("Intrinsic dimension, TwoNN", "dimensions   (higher fills more)"),
    "mle_dimension": ("Intrinsic dimension, likelihood", "dimensions   (higher fills more)"),
    "effective_rank": ("Effective rank", "directions   (higher fills more)"),
    "participation_ratio": ("Participation ratio", "directions   (higher fills more)"),
    "anisotropy": ("Anisotropy of the mean tokens", "mean cosine   (0 = no common direction)"),
    "token_diversity": ("Diversity of an object's tokens", "1 − cosine   (0 = all alike)"),
}
REBUILT: About = {
    "chamfer": ("Rebuilt cloud: Chamfer distance", "mean radii   (lower is closer)"),
    "f_score": ("Rebuilt cloud: F-score", "F-score   (higher is better)"),
}
ALIKE: About = {
    "encoder_cka": ("CKA with the encoder's output", "debiased CKA   (higher is closer)"),
    "cka_rbf": ("CKA with the target, RBF kernel", "debiased CKA   (higher is closer)"),
    "procrustes": ("Procrustes distance to the target", "distance   (lower is closer)"),
    "rsa": ("RSA with the target", "rank correlation   (higher is closer)"),
    "mutual_knn": ("Neighbours in common with the target", "share   (higher is closer)"),
    "svcca": ("SVCCA with the target", "mean correlation   (higher is closer)"),
    "pwcca": ("PWCCA with the target", "weighted correlation   (higher is closer)"),
}
LINEAR: About = {
    "linear": ("Class, read out linearly", "accuracy in %   (higher is better)"),
    "linear_selectivity": (
        "Selectivity: less shuffled labels",
        "points of accuracy   (0 = learnt by heart)",
    ),
    "linear_compression": (
        "Class, coded online (MDL)",
        "times shorter than unread   (higher is easier to read)",
    ),
}
GEOMETRY: About = {
    "geometry": ("R² of a linear read-out", "R²   (higher is better, 1 = told exactly)"),
    "selectivity": ("Selectivity: less shuffled values", "R²   (0 = learnt by heart)"),
}
SEEDS: About = {  # what runs under other seeds are put together in
    "knn": ("Accuracy of {k} neighbours", "accuracy in %   (higher is better)"),
    "cka": ("CKA with the target", "debiased CKA   (higher is closer)"),
    "drift_centred": ("Drift from the target", "1 − cosine   (lower is closer)"),
    "linear": LINEAR["linear"],
}
LOO: About = {
    "knn_loo": ("Each test object against the rest, K = {k}", "accuracy in %   (higher is better)")
}
SHARES = ("knn", "linear", "linear_selectivity", "knn_loo")  # in [0, 1], drawn in %
OF_TESTS = "A tenth of the test objects against the rest, K = {k}"


def curves(results: xr.Dataset, about: About) -> list[Panel]:
    """A panel for each measure that is there and has a value, with its target and control."""
    panels = []
    for key, (title, axis) in about.items():
        if f"{key}_mean" not in results or results[f"{key}_mean"].isnull().all():
            continue
        scale = 100 if key in SHARES else 1
        mean, low, high = (scale * results[f"{key}_{part}"] for part in ("mean", "low", "high"))
        lines = []
        for ending, (name, dash) in (REFERENCES | {"shuffled": ("shuffled", "dot")}).items():
            there = [one for one in (f"{key}_{ending}_mean", f"{key}_{ending}") if one in results]
            if there and not results[there[0]].isnull().any():
                control = results[there[0]]
                flat = control.mean([d for d in control.dims if d != "layer"])
                values = np.broadcast_to(scale * flat.values, results.sizes["layer"])
                lines.append(Line(name, values, dash))
        panel = Panel(title, axis, mean, low, high, lines, percent=scale == 100)
        if f"{key}_wide_low" in results:
            ends = (scale * results[f"{key}_wide_{end}"] for end in ("low", "high"))
            panel = panel._replace(wide=(next(ends), next(ends)))
        panels.append(panel)
    return panels


def gaps(results: xr.Dataset, about: About) -> list[Gap | None]:
    """For each panel of `curves`, what aligned changes of it; None where that was not compared."""
    found = []
    for key, (_, axis) in about.items():
        if f"{key}_mean" not in results or results[f"{key}_mean"].isnull().all():
            continue
        scale = 100 if key in SHARES else 1
        unit, _, said = axis.partition("   (")
        unit = "points" if key in SHARES else unit
        better = next((f" is {word}" for word in ("closer", "better") if word in said), "")
        way = "below" if "lower" in said else "above"
        meaning = f"   ({way} 0: aligned{better})" if better else "   (above 0: more in aligned)"
        found.append(gap_of(results, key, "Difference: aligned − baseline", unit + meaning, scale))
    return found


def overview(swept: xr.Dataset, rebuilt: xr.Dataset | None) -> tuple[list[Panel], list[Gap | None]]:
    """What stands beside neighbours, CKA and drift: dimension, reconstruction, and geometry.

    Of geometry it is the property that the target tells best. rebuilt : of `probe.reconstruction`
    """
    first = {"two_nn": DIMENSION["two_nn"]}
    parts = [(swept, first)] + ([] if rebuilt is None else [(rebuilt, REBUILT)])
    if "geometry_mean" in swept:
        best = str(swept.property.values[int(swept.geometry_target_mean.values.argmax())])
        title = f"Property the target tells best: {best.replace('_', ' ')}"
        parts.append((swept.sel(property=best), {"geometry": (title, GEOMETRY["geometry"][1])}))
    panels = [panel for results, about in parts for panel in curves(results, about)]
    return panels, [gap for results, about in parts for gap in gaps(results, about)]


def of_property(results: xr.Dataset, name: str) -> xr.Dataset:
    """The read-out of one property, with its selectivity: R² less that with the values shuffled.

    results : a sweep with "geometry". The interval of the selectivity is that of R², for it covers
    the objects and the control is a mean over many of them.
    """
    one = results.sel(property=name)
    parts = {
        f"selectivity_{part}": one[f"geometry_{part}"] - one.geometry_shuffled
        for part in ("mean", "low", "high")
    }
    return one.assign(parts)


def tenths(results: xr.Dataset, k: int) -> list[Panel]:
    """Accuracy by protocol test90_10, with what was published where the objects are the same.

    A bar goes from the least to the most of the single splits: a paper shows one of them.
    """
    if "knn_test90_10" not in results:
        return []
    splits = 100 * results.knn_test90_10.sel(k=k)
    mean, low, high = splits.mean("split"), splits.min("split"), splits.max("split")
    axis = f"accuracy in %, {splits.sizes['split']} splits   (higher is better)"
    title = OF_TESTS.format(k=k)
    return [Panel(title, axis, mean, low, high, [], True, beside_knn(results, k))]


def as_table(panels: Sequence[Panel], below: Sequence[Gap | None] = ()) -> pd.DataFrame:
    """What is drawn, a row a mark: panel, variant, layer, mean, low, high, and sure of differences.

    sure : whether p < 0.05 over all layers at once
    """
    columns = ["variant", "layer", "mean", "low", "high"]
    parts = []
    for panel in panels:
        shown = {"mean": panel.mean, "low": panel.low, "high": panel.high}
        frame = xr.Dataset(shown).to_dataframe().reset_index()[columns]
        parts.append(frame.assign(panel=panel.title))
    for panel, gap in zip(panels, below, strict=False):
        if gap is not None:
            found = pd.DataFrame({name: getattr(gap, name) for name in (*columns[2:], "sure")})
            title = f"{panel.title}: difference"
            parts.append(found.assign(panel=title, variant=MAIN, layer=gap.layers))
    return pd.concat(parts, ignore_index=True).reindex(columns=["panel", *columns, "sure"])


def curves_figure(
    panels: Sequence[Panel], results: xr.Dataset, below: Sequence[Gap | None] = ()
) -> go.Figure:
    """Panels in rows of two or three, one legend; below each its difference, where there is one."""
    columns = min(2 if len(panels) == 4 else 3, len(panels))
    paired = any(gap is not None for gap in below)
    rows = -(-len(panels) // columns) * (2 if paired else 1)
    places = [
        (at // columns * (2 if paired else 1) + 1, at % columns + 1) for at in range(len(panels))
    ]
    titles = [""] * (rows * columns)
    for (row, column), panel in zip(places, panels, strict=True):
        titles[(row - 1) * columns + column - 1] = panel.title
    for (row, column), gap in zip(places, below if paired else (), strict=False):
        titles[row * columns + column - 1] = gap.title if gap else ""
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=titles,
        horizontal_spacing=0.09,
        vertical_spacing=0.32 / rows,
    )
    figure.update_annotations(font_size=13)
    named: set[str] = set()
    for (row, column), panel in zip(places, panels, strict=True):
        add_panel(figure, panel, named, row=row, col=column)
    in_legend = True
    for (row, column), gap in zip(places, below if paired else (), strict=False):
        if gap is None:
            figure.update_xaxes(visible=False, row=row + 1, col=column)
            figure.update_yaxes(visible=False, row=row + 1, col=column)
            continue
        add_gap(figure, gap, in_legend, row=row + 1, col=column)
        in_legend = False
    figure.update_xaxes(title=LAYER, title_font_size=12, **ticks(results))
    height = 320 * rows + 110
    return figure.update_yaxes(title_font_size=12).update_layout(
        template="plotly_white",
        height=height,
        legend=above(height),
        font={"size": 13, "color": INK},
        margin={"t": 130, "b": 60},
    )


def curves_png(panels: Sequence[Panel | Gap], below: Sequence[Gap | None] = ()) -> bytes:
    """The same, drawn by matplotlib. panels : may also be differences alone, all to one scale."""
    columns = min(2 if len(panels) == 4 else 3, len(panels))
    rows: list[Sequence[Panel | Gap | None]] = []
    for start in range(0, len(panels), columns):
        rows.append(panels[start : start + columns])
        if any(below):
            rows.append(below[start : start + columns])
    figure, axes = canvas(len(rows), columns, 5.2, 3.6)
    handles: dict[str, Any] = {}
    for row, drawn in zip(axes, rows, strict=True):
        for axis, panel in zip_longest(row, drawn):
            if panel is None:
                axis.set_axis_off()
            elif isinstance(panel, Gap):
                draw_gap(axis, panel, handles)
            else:
                draw_panel(axis, panel, handles)
    if isinstance(panels[0], Gap):
        ends = [axis.get_ylim() for axis in axes.flat[: len(panels)]]
        for axis in axes.flat[: len(panels)]:
            axis.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    legend(figure, handles)
    return png(figure)
