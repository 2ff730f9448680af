"""What of a shape can be read out of each layer: properties by layer, as heat maps."""

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.geometry import ABOUT
from probe.pixels import canvas, png
from probe.plots_style import INK, LAYER, REFERENCES
from probe.report import MAIN, SIGNIFICANT

ROW = 21  # pixels of a property
SURE = "●"  # stands in a cell whose difference is beyond noise


def property_title(name: str) -> str:
    """A property in words; those of other sources than the clouds keep their names."""
    return ABOUT[name][0] if name in ABOUT else name.replace("_", " ")


def properties_figure(results: xr.Dataset, *, selective: bool = False) -> go.Figure:
    """R² of every property by layer: a heat map a model; beside them the target and the encoder.

    results : a sweep with "geometry". The property that the target tells best stands on top.
    selective : less the R² of values that were shuffled before the fit, instead of plain R²
    """
    shown = results.sortby("geometry_target_mean")
    variants = results.variant.values.astype(str).tolist()
    wide = results.sizes["layer"]
    known = [ending for ending in REFERENCES if f"geometry_{ending}_mean" in results]
    narrow = max(1.0, wide / 5) * len(known)
    figure = make_subplots(
        1,
        len(variants) + 1,
        subplot_titles=[*variants, ""],
        column_widths=[*[wide] * len(variants), narrow],
        horizontal_spacing=0.015,
        shared_yaxes=True,
    )
    figure.update_annotations(font_size=13)
    names = shown.property.values.astype(str)
    for column, variant in enumerate(variants, 1):
        one = shown.sel(variant=variant).transpose("property", "layer", ...)
        mean, control = one.geometry_mean.values, one.geometry_shuffled.values
        bounds = [one.geometry_low.values, one.geometry_high.values, control]
        _add(
            figure, names, one.layer.values.astype(str), mean - control * selective, bounds, column
        )
    if not selective:
        best, *ends = (
            np.stack([shown[f"geometry_{ending}_{part}"].values for ending in known], axis=1)
            for part in ("mean", "low", "high")
        )
        bounds = [*ends, np.full_like(best, np.nan)]
        _add(figure, names, known, best, bounds, len(variants) + 1)
    what = "R² less that of shuffled values" if selective else "R² (1 = told exactly)"
    bar = {"title": {"text": what, "side": "right"}, "thickness": 14}
    figure.update_xaxes(type="category", showgrid=False, tickangle=0, title_font_size=12)
    figure.update_xaxes(tickangle=-90, col=len(variants) + 1)  # narrow: names, not numbers
    figure.update_xaxes(title=LAYER, col=1).update_yaxes(type="category", showgrid=False)
    return figure.update_layout(
        template="plotly_white",
        height=ROW * len(names) + 150,
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": bar},
        font={"size": 13, "color": INK},
        margin={"t": 60, "b": 60},
    )


def properties_png(results: xr.Dataset) -> bytes:
    """`properties_figure`, drawn by matplotlib."""
    shown = results.sortby("geometry_target_mean")
    variants, layers = results.variant.values.astype(str), results.layer.values
    known = [ending for ending in REFERENCES if f"geometry_{ending}_mean" in results]
    tables = {name: shown.geometry_mean.sel(variant=name) for name in variants}
    maps = {name: table.transpose("property", "layer").values for name, table in tables.items()}
    maps[""] = np.stack([shown[f"geometry_{ending}_mean"].values for ending in known], axis=1)
    figure, axes = canvas(1, len(maps), 3.1, 0.9 + 0.2 * shown.sizes["property"])
    for axis, (title, values) in zip(axes[0], maps.items(), strict=True):
        image = axis.imshow(values, origin="lower", aspect="auto", vmin=0, vmax=1)
        axis.set_title(title, fontsize=11.5, loc="left", color=INK)
        axis.set_yticks([])
        if title:
            ticks = np.arange(0, len(layers), -(-len(layers) // 9))
            axis.set_xticks(ticks, layers[ticks])
            axis.set_xlabel("layer", fontsize=11)
        else:
            axis.set_xticks(range(len(known)), [REFERENCES[ending][0] for ending in known])
    names = [name.replace("_", " ") for name in shown.property.values.astype(str)]
    axes[0, 0].set_yticks(range(len(names)), names)
    bar = figure.colorbar(image, ax=list(axes[0]), fraction=0.02)
    bar.set_label("R² (1 = told exactly)", fontsize=11)
    return png(figure)


def _add(
    figure: go.Figure, names: np.ndarray, x: Any, z: np.ndarray, more: list[np.ndarray], column: int
) -> None:
    figure.add_heatmap(
        x=x,
        y=[html.escape(name.replace("_", " ")) for name in names],
        z=z,
        customdata=np.stack(more, axis=-1),
        coloraxis="coloraxis",
        hovertemplate="%{y}, %{x}: %{z:.3f}<br>R² [%{customdata[0]:.3f}, %{customdata[1]:.3f}], "
        "values shuffled %{customdata[2]:.3f}<extra></extra>",
        row=1,
        col=column,
    )


def properties_change_figure(results: xr.Dataset) -> go.Figure:
    """R² of aligned less baseline by property and layer, paired by object.

    A dot stands where p < 0.05 over all layers and properties at once.
    """
    if MAIN not in results.get("comparison", xr.DataArray([])).values:
        raise ValueError("these results do not compare aligned with a baseline")
    shown = results.sortby("geometry_target_mean").sel(comparison=MAIN)
    shown = shown.transpose("property", "layer", ...)
    gap, p = shown.geometry_difference.values, shown.geometry_difference_p_adjusted.values
    most = float(np.nanmax(np.abs(gap))) or 1.0
    bounds = [shown[f"geometry_difference_{part}"].values for part in ("low", "high")]
    change = "R², aligned − baseline<br>(above 0: aligned is better)"
    figure = go.Figure()
    figure.add_heatmap(
        x=shown.layer.values.astype(str),
        y=[html.escape(name.replace("_", " ")) for name in shown.property.values.astype(str)],
        z=gap,
        text=np.where(p < SIGNIFICANT, SURE, ""),
        texttemplate="%{text}",
        textfont={"size": 15},  # plotly takes black or white, whichever is seen
        customdata=np.stack([*bounds, p], axis=-1),
        colorscale="PuOr",
        zmin=-most,
        zmax=most,
        xgap=1,
        ygap=1,
        colorbar={"title": {"text": change, "side": "right"}, "thickness": 14},
        hovertemplate="%{y}, layer %{x}: %{z:+.4f} [%{customdata[0]:+.4f}, "
        "%{customdata[1]:+.4f}], p = %{customdata[2]:.3f}<extra></extra>",
    )
    figure.update_xaxes(type="category", showgrid=False, title=LAYER)
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_layout(
        template="plotly_white",
        height=ROW * shown.sizes["property"] + 120,
        font={"size": 13, "color": INK},
        margin={"t": 40, "b": 60},
    )
