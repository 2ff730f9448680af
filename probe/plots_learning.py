"""Learning curves of the linear read-out: would more gallery objects read more?"""

from typing import Any

import numpy as np
import xarray as xr

from probe.pixels import canvas, legend, png
from probe.plots_style import INK, MARKERS, REFERENCES, colour, shape

SHOWN = 4  # layers at most
APART = 0.03  # of a doubling, between models that stand side by side


def learning_png(results: xr.Dataset) -> bytes:
    """Accuracy by the gallery objects that are fitted on, a panel a layer, a curve a model."""
    layers = results.layer.values
    some = layers[np.unique(np.linspace(0, len(layers) - 1, SHOWN).round().astype(int))]
    figure, axes = canvas(1, len(some), 3.6, 3.4)
    sizes = results.fitted.values
    handles: dict[str, Any] = {}
    for axis, layer in zip(axes[0], some, strict=True):
        if "linear_curve_target_mean" in results:
            mark = _curve(
                axis, sizes, results, "linear_curve_target", color=INK, fmt="--", zorder=1
            )
            handles.setdefault(REFERENCES["target"][0], mark)
        for at, name in enumerate(results.variant.values.astype(str)):
            beside = sizes * 2 ** (APART * (at + 1 - results.sizes["variant"] / 2))
            one = results.sel(variant=name, layer=layer)
            style = {"color": colour(name), "marker": MARKERS[shape(name)], "markersize": 5}
            handles.setdefault(name, _curve(axis, beside, one, "linear_curve", **style))
        _dress(axis, f"layer {layer}", sizes)
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)
    axes[0, 0].set_ylabel("linear read-out accuracy in %\n(higher is better)", fontsize=11)
    legend(figure, handles)
    return png(figure)


def _curve(axis: Any, x: np.ndarray, results: xr.Dataset, key: str, **style: Any) -> Any:
    """Means in % with their intervals, by the objects that are fitted on."""
    mean, low, high = (100 * results[f"{key}_{part}"].values for part in ("mean", "low", "high"))
    bars = [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]
    return axis.errorbar(x, mean, yerr=bars, linewidth=1.5, elinewidth=1.0, capsize=2, **style)


def _dress(axis: Any, title: str, sizes: np.ndarray) -> None:
    axis.set_title(title, fontsize=11.5, loc="left", color=INK)
    axis.set_xlabel("gallery objects fitted on", fontsize=11)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
