"""Figures of the report beside the depth figure: verdicts, curves, layers, clouds and maps."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.findings import JUDGED, SIGNIFICANT, judged
from probe.maps import quality
from probe.pixels import canvas, legend, png
from probe.plots_cloud import VIEW
from probe.plots_curves import (
    ALIKE,
    DIMENSION,
    LINEAR,
    REBUILT,
    SEEDS,
    curves,
    curves_figure,
    curves_png,
    gaps,
)
from probe.plots_maps import CLASS_COLOURS, CLASS_SHAPES, REST
from probe.plots_style import INK, LAYER, MARKERS, colour, some
from probe.plots_style import shape as shape_of
from probe.plots_training import STEPS

__all__ = ["ALIKE", "DIMENSION", "LINEAR", "REBUILT", "SEEDS", "cka_png", "clouds_png"]
__all__ += ["confusion_figure", "confusion_png", "curves", "curves_figure", "curves_png", "gaps"]
__all__ += ["maps_figure", "maps_png"]
__all__ += ["steps_png", "verdict_png", "ways_png"]

POOLED = {  # poolings as a reader calls them
    "mean": "mean of the tokens",
    "max": "largest value over the tokens",
    "concatenated": "tokens end to end",
    "vote": "each token votes",
}


def verdict_png(results: xr.Dataset) -> bytes:
    """Depth at which each model falls, with its interval; hollow where no fall is shown."""
    rows = judged(results)
    names = results.variant.values.astype(str)
    deepest = float(results.layer.values[-1])
    figure, axes = canvas(1, 1, 9.5, 0.9 + 0.75 * len(rows))
    axis = axes[0, 0]
    handles: dict[str, Any] = {}
    for at, (score, where) in enumerate(rows):
        for v, name in enumerate(names):
            one = results.sel(where).sel(variant=name)
            y = -at + 0.18 * ((len(names) - 1) / 2 - v)
            mark = _draw_fall(axis, one, score, name, y, deepest)
            handles.setdefault(name, mark)
    labels = [JUDGED[score][0] + (f", K = {where['k']}" if where else "") for score, where in rows]
    axis.set_yticks([-at for at in range(len(rows))], labels, fontsize=11)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_xlim(float(results.layer.values[0]) - 0.5, deepest * 1.14)
    axis.set_xticks(some(results.layer.values))
    axis.set_xlabel(f"{LAYER}; hollow, at the right: no fall is shown", fontsize=11)
    axis.axvline(deepest, color="#BBBBBB", linewidth=1)
    axis.grid(axis="x", color="#E4E4E4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title("Where each measure falls below its reference", fontsize=12, loc="left")
    legend(figure, handles)
    return png(figure)


def _draw_fall(axis: Any, one: xr.Dataset, score: str, name: str, y: float, end: float) -> Any:
    depth, low, high, p = (
        float(one[f"{score}_{part}"]) for part in ("fall_mean", "fall_low", "fall_high", "fall_p")
    )
    style = {"color": colour(name), "marker": MARKERS[shape_of(name)]}
    if p < SIGNIFICANT and np.isfinite(depth):
        top = min(high, end * 1.04)
        axis.plot([low, top], [y, y], color=style["color"], linewidth=1.6)
        return axis.plot(depth, y, markersize=7, linestyle="none", **style)[0]
    axis.plot(end * 1.08, y, markersize=7, markerfacecolor="white", linestyle="none", **style)
    return axis.plot([], [], linestyle="none", **style)[0]


def cka_png(results: xr.Dataset) -> bytes:
    """CKA of every layer with every other, within each model."""
    names = results.variant.values.astype(str)
    figure, axes = canvas(1, len(names), 3.6, 3.5)
    for axis, name in zip(axes[0], names, strict=True):
        pair = results.cka_layers_mean.sel(variant=name, other_variant=name)
        image = axis.imshow(
            pair.values, origin="lower", cmap="viridis", vmin=_floor(results), vmax=1
        )
        layers = results.layer.values
        step = -(-len(layers) // 9)
        ticks = np.arange(0, len(layers), step)
        axis.set_xticks(ticks, layers[ticks])
        axis.set_yticks(ticks, layers[ticks])
        axis.set_title(name, fontsize=11.5, loc="left", color=INK)
        axis.set_xlabel("layer", fontsize=11)
    axes[0, 0].set_ylabel("layer", fontsize=11)
    bar = figure.colorbar(image, ax=list(axes[0]), fraction=0.02)
    bar.set_label("debiased CKA", fontsize=11)
    return png(figure)


def _floor(results: xr.Dataset) -> float:
    own = [
        float(results.cka_layers_mean.sel(variant=name, other_variant=name).min())
        for name in results.variant.values
    ]
    return max(0.0, min(own))


def confusion_png(results: xr.Dataset, variant: str) -> bytes:
    """What classes are taken for, at the first and the deepest layer, at the largest k."""
    figure, axes = canvas(1, 2, 5.0, 4.6)
    names = [str(name) for name in results["class"].values]
    for axis, layer in zip(axes[0], results.layer.values[[0, -1]], strict=True):
        counts = results.knn_confusion.sel(variant=variant, layer=layer)
        share = counts / np.maximum(counts.sum("named"), 1)
        image = axis.imshow(share.values, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"{variant}, layer {layer}", fontsize=11.5, loc="left", color=INK)
        axis.set_xlabel("class that the neighbours name", fontsize=11)
        if len(names) <= 15:
            axis.set_xticks(range(len(names)), [_literal(n) for n in names], rotation=90)
            axis.set_yticks(range(len(names)), [_literal(n) for n in names])
    axes[0, 0].set_ylabel("class", fontsize=11)
    figure.colorbar(image, ax=list(axes[0]), fraction=0.025).set_label("share of the class")
    return png(figure)


def confusion_figure(results: xr.Dataset, variant: str) -> go.Figure:
    """The same, live: the classes' names under the pointer."""
    ends = results.layer.values[[0, -1]]
    titles = [f"{variant}, layer {layer}" for layer in ends]
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.08)
    names = [_literal_html(str(name)) for name in results["class"].values]
    for column, layer in enumerate(ends, 1):
        counts = results.knn_confusion.sel(variant=variant, layer=layer).values
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        figure.add_heatmap(
            z=share,
            x=names,
            y=names,
            colorscale="Blues",
            zmin=0,
            zmax=1,
            showscale=column == 2,
            hovertemplate="%{y} taken for %{x}: %{z:.0%}<extra></extra>",
            row=1,
            col=column,
        )
    shown = len(names) <= 15
    figure.update_xaxes(showticklabels=shown, title="class that the neighbours name")
    figure.update_yaxes(showticklabels=shown, autorange="reversed")
    return figure.update_yaxes(title="class", col=1).update_layout(
        template="plotly_white", height=520, font={"color": INK}, margin={"t": 50, "b": 60}
    )


def ways_png(results: xr.Dataset) -> bytes:
    """Accuracy by layer for each pooling and preparation, aligned and baseline, by cosine.

    A band says how wide the intervals are: curves within it of each other do not differ.
    """
    at_k = results.isel(k=-1).sel(metric="cosine")
    poolings = results.pooling.values.astype(str)
    figure, axes = canvas(1, len(poolings), 4.0, 3.6)
    dashes = {"raw": "-", "centred": "--", "whitened": ":"}
    handles: dict[str, Any] = {}
    layers = results.layer.values
    for axis, pooling in zip(axes[0], poolings, strict=True):
        usual = at_k.sel(pooling=pooling, preparation="raw")
        target = 100 * float(usual.knn_ways_target_mean)
        handles.setdefault("target, raw", axis.axhline(target, color=INK, linewidth=1.1))
        first = usual.isel(variant=0)
        if "baseline" in results.variant.values:
            first = usual.sel(variant="baseline")
        ends = [100 * first[f"knn_ways_{part}"].values for part in ("low", "high")]
        band = axis.fill_between(layers, *ends, color=INK, alpha=0.1, linewidth=0)
        handles.setdefault(f"95 % interval of {first.variant.item()}, raw", band)
        for name in [n for n in ("baseline", "aligned") if n in results.variant.values]:
            for preparation, dash in dashes.items():
                place = {"variant": name, "pooling": pooling, "preparation": preparation}
                y = 100 * at_k.knn_ways_mean.sel(place).values
                (mark,) = axis.plot(layers, y, dash, color=colour(name))
                handles.setdefault(f"{name}, {preparation}", mark)
        axis.set_title(POOLED[pooling], fontsize=11.5, loc="left", color=INK)
        axis.set_xlabel(LAYER, fontsize=11)
        axis.set_xticks(some(layers))
        axis.grid(axis="y", color="#E4E4E4", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    low = min(axis.get_ylim()[0] for axis in axes[0])
    high = max(axis.get_ylim()[1] for axis in axes[0])
    for axis in axes[0]:
        axis.set_ylim(low, high)
    k = int(results.k.values[-1])
    axes[0, 0].set_ylabel(f"accuracy in %, K = {k}\n(higher is better)", fontsize=11)
    legend(figure, handles)
    return png(figure)


def clouds_png(results: xr.Dataset, variant: str, objects: int = 4) -> bytes:
    """A few objects, and what the decoder rebuilt of them from the target and by depth."""
    layers = results.layer.values
    some = layers[np.unique(np.linspace(0, len(layers) - 1, 4).round().astype(int))]
    objects = min(objects, results.sizes["shown"])
    titles = ["object", "from the target", *(f"{variant}, layer {layer}" for layer in some)]
    figure, axes = canvas(objects, len(titles), 2.0, 2.0)
    for row in range(objects):
        rebuilt = results.cloud.sel(variant=variant, layer=some).isel(shown=row).values
        drawn = [results.true_cloud[row].values, results.target_cloud[row].values, *rebuilt]
        reach = 1.15 * np.abs(drawn[0] @ VIEW.T).max()
        for axis, title, cloud in zip(axes[row], titles, drawn, strict=True):
            flat = cloud @ VIEW.T
            axis.scatter(*flat.T, s=5, c=cloud[:, 2], cmap="viridis", linewidths=0)
            axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=10, color=INK)
    return png(figure)


def steps_png(results: xr.Dataset, score: str) -> bytes:
    """A heat map a model of a score by captured layer and training step: `plots.steps_figure`."""
    names = results.variant.values.astype(str)
    steps, layers = results.step.values, results.layer.values
    figure, axes = canvas(1, len(names), 4.6, 1.6 + 0.25 * len(steps))
    ends = [float(results[f"{score}_mean"].min()), float(results[f"{score}_mean"].max())]
    for axis, name in zip(axes[0], names, strict=True):
        values = results[f"{score}_mean"].sel(variant=name).values
        image = axis.imshow(values, origin="lower", aspect="auto", vmin=ends[0], vmax=ends[1])
        for set_ticks, captured in ((axis.set_xticks, layers), (axis.set_yticks, steps)):
            ticks = np.arange(0, len(captured), -(-len(captured) // 12))
            set_ticks(ticks, captured[ticks])
        axis.set_title(name, fontsize=11.5, loc="left", color=INK)
        axis.set_xlabel(LAYER, fontsize=11)
    axes[0, 0].set_ylabel("training step", fontsize=11)
    figure.colorbar(image, ax=list(axes[0]), fraction=0.03).set_label(STEPS[score][1])
    return png(figure)


def maps_figure(results: xr.Dataset, method: str, draw: int = 0) -> go.Figure:
    """A map a model, with a slider over the layers; under each how far it can be trusted.

    draw : which of the maps of several seeds, from 0
    """
    names = results.variant.values.astype(str)
    layers = results.layer.values
    figure = make_subplots(1, len(names), subplot_titles=list(names), horizontal_spacing=0.02)
    styles = _class_styles(results)
    results = results.isel(
        object=np.isin(results.label.values, list(styles)).argsort(kind="stable")
    )
    shown = results.sel({"method": method}).isel(draw=draw)  # the coloured last: on top
    classes = np.array([_literal_html(str(name)) for name in results.class_name.values])
    rest = (f"{len(np.unique(classes)) - len(styles)} other classes", REST, "circle")
    own = [styles.get(label, rest) for label in results.label.values.tolist()]
    marker = {
        "size": 5,
        "opacity": [0.45 if one is rest else 0.9 for one in own],
        "color": [colour for _, colour, _ in own],
        "symbol": [shape for *_, shape in own],
    }
    reach = 1.05 * float(np.abs(results.position.sel({"method": method})).max())

    def traces(at: int) -> list[go.Scatter]:
        found = []
        for name in names:
            x, y = shown.position.sel(variant=name).isel(layer=at).values.T
            found.append(
                go.Scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    marker=marker,
                    text=classes,
                    hovertemplate="%{text}<extra></extra>",
                    showlegend=False,
                )
            )
        return found

    def words(at: int) -> dict[str, Any]:
        said = {"title": {"text": f"{method.upper()}, layer {layers[at]}", "font": {"size": 13}}}
        for column, name in enumerate(names, 1):
            one = quality(shown.sel(variant=name).isel(layer=at))
            said[f"xaxis{column if column > 1 else ''}"] = {"title": {"text": one}}
        return said

    for column, trace in enumerate(traces(0), 1):
        figure.add_trace(trace, row=1, col=column)
    for name, colour_of, shape in dict.fromkeys([*styles.values(), *own]):  # the legend
        style = {"color": colour_of, "symbol": shape, "size": 8}
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=_literal_html(name), marker=style
        )
    figure.frames = [
        go.Frame(data=traces(at), name=str(layer), layout=words(at))
        for at, layer in enumerate(layers)
    ]
    steps = [
        {
            "label": str(layer),
            "method": "animate",
            "args": [[str(layer)], {"mode": "immediate", "transition": {"duration": 300}}],
        }
        for layer in layers
    ]
    figure.update_xaxes(range=[-reach, reach], showticklabels=False)
    figure.update_yaxes(range=[-reach, reach], showticklabels=False)
    for column in range(len(names)):
        one = f"x{column + 1}" if column else "x"
        figure.update_yaxes(scaleanchor=one, row=1, col=column + 1)
    return figure.update_layout(
        template="plotly_white",
        **words(0),
        height=490,
        legend={"orientation": "h", "y": -0.1, "yanchor": "top", "x": 0},
        sliders=[{"steps": steps, "currentvalue": {"prefix": "layer "}, "pad": {"t": 70}}],
        margin={"t": 80, "b": 20, "l": 20, "r": 20},
        font={"color": INK},
    )


def _class_styles(results: xr.Dataset) -> dict[int, tuple[str, str, str]]:
    """Name, colour and shape of a few classes by label: more colours could not be told apart."""
    labels, rows = np.unique(results.label.values, return_index=True)
    some = np.unique(np.linspace(0, len(labels) - 1, len(CLASS_COLOURS)).round().astype(int))
    names = results.class_name.values.astype(str)
    chosen = zip(some, CLASS_COLOURS, CLASS_SHAPES, strict=False)
    return {int(labels[at]): (str(names[rows[at]]), ink, shape) for at, ink, shape in chosen}


def maps_png(results: xr.Dataset, method: str, draw: int = 0) -> bytes:
    """Maps of some layers, a row a model, with trustworthiness and continuity under each."""
    layers = results.layer.values
    some = np.unique(np.linspace(0, len(layers) - 1, 5).round().astype(int))
    names = results.variant.values.astype(str)
    figure, axes = canvas(len(names), len(some), 2.3, 2.45)
    shown = results.sel({"method": method}).isel(draw=draw)
    reach = 1.05 * float(np.abs(shown.position).max())
    styles, labels = _class_styles(results), results.label.values
    rest = ~np.isin(labels, list(styles))
    handles: dict[str, Any] = {}
    for (v, column), axis in np.ndenumerate(axes):
        one = shown.sel(variant=names[v]).isel(layer=some[column])
        x, y = one.position.values.T
        grey = axis.scatter(x[rest], y[rest], s=4, color=REST, alpha=0.45, linewidths=0)
        for label, (name, colour_of, shape) in styles.items():
            own = labels == label
            style = {"color": colour_of, "marker": MARKERS[shape], "s": 13, "linewidths": 0}
            handles.setdefault(_literal(name), axis.scatter(x[own], y[own], **style))
        if rest.any():
            handles.setdefault(f"{len(np.unique(labels[rest]))} other classes", grey)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axis.set_xlabel(quality(one), fontsize=9)
        if v == 0:
            axis.set_title(f"layer {layers[some[column]]}", fontsize=10.5, color=INK)
        if column == 0:
            axis.set_ylabel(names[v], fontsize=10.5)
    under = "under each map: trustworthiness / continuity, 1 is perfect; ± half the 95 % interval"
    legend(figure, handles, title=under, markerscale=1.8)
    return png(figure)


def _literal(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _literal_html(text: str) -> str:
    """Text that plotly does not read as markup."""
    import html

    return html.escape(text)
