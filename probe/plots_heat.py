"""Heat maps over the layers, one a model: training steps upwards, or tokens."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.plots_style import INK, LAYER
from probe.report import SIGNIFICANT

CLOSE = "1 − cosine (lower is closer)"
STEPS = {  # title and colour bar of a score during training
    "cka": ("Same arrangement of objects as the target, during training", "CKA (higher is closer)"),
    "drift": ("Drift of the tokens from the target, during training", CLOSE),
    "drift_centred": ("Drift from the target (common part off), during training", CLOSE),
}
APART = {  # colour bar of its difference to the baseline
    "cka": "CKA (above 0: closer than the baseline)",
    "drift": "1 − cosine (below 0: closer than the baseline)",
    "drift_centred": "1 − cosine (below 0: closer than the baseline)",
}
SURE = "●"  # stands in a cell whose difference is beyond noise


def steps_figure(results: xr.Dataset, score: str = "cka") -> go.Figure:
    """A score of the layers during training: a heat map a model, layers across and steps upwards.

    results : of `probe.steps.steps`    score : "cka", "drift" or "drift_centred"
    """
    _check(results, f"{score}_mean", score)
    title, bar = STEPS[score]
    figure = _maps(results, score, "step", results.variant.values.astype(str), bar)
    return figure.update_yaxes(title="training step", col=1).update_layout(title=title)


def steps_change_figure(results: xr.Dataset, score: str = "cka") -> go.Figure:
    """What sets each model apart from the baseline at the same step: layers across, steps upwards.

    A dot stands where p < 0.05 over all layers and steps at once. Steps that one of the two was
    not captured at are empty. Under the pointer are the interval of each cell and its part of the
    band over all. results, score : as for `steps_figure`
    """
    _check(results, f"{score}_step_difference", score)
    pairs = results.comparison.values.astype(str)
    figure = make_subplots(1, len(pairs), subplot_titles=[p.replace(" - ", " − ") for p in pairs])
    wide = ("_wide_low", "_wide_high") if f"{score}_step_difference_wide_low" in results else ()
    parts = ("", "_low", "_high", "_p_adjusted", *wide)
    band = ", [%{customdata[3]:+.4f}, %{customdata[4]:+.4f}] over all at once" if wide else ""
    most = float(np.nanmax(np.abs(results[f"{score}_step_difference"]), initial=0)) or 1.0
    for column, pair in enumerate(pairs, 1):
        gap, low, high, p, *ends = (
            results[f"{score}_step_difference{part}"].sel(comparison=pair).values for part in parts
        )
        figure.add_heatmap(
            x=results.layer.values.astype(str),
            y=results.step.values.astype(str),
            z=gap,
            text=np.where(p < SIGNIFICANT, SURE, ""),
            texttemplate="%{text}",
            textfont={"size": 13},  # plotly takes black or white, whichever is seen
            customdata=np.stack([low, high, p, *ends], axis=-1),
            coloraxis="coloraxis",
            hovertemplate="layer %{x}, step %{y}: %{z:+.4f} [%{customdata[0]:+.4f}, "
            f"%{{customdata[1]:+.4f}}]{band}, p = %{{customdata[2]:.3f}}<extra></extra>",
            row=1,
            col=column,
        )
    scale = {"colorscale": "PuOr", "cmin": -most, "cmax": most}
    _finish(figure, max(290, 110 + 40 * results.sizes["step"]), scale, APART[score])
    return figure.update_yaxes(title="training step", col=1)


def token_drift_figure(results: xr.Dataset) -> go.Figure:
    """Mean drift of each point token over the query objects: a heat map a model.

    results : a sweep with "drift". Tokens upwards, layers across; what all objects share is off.
    """
    _check(results, "token_drift_mean", "drift by token")
    figure = _maps(results, "token_drift", "token", results.variant.values.astype(str), CLOSE)
    tokens = results.token.values
    some = tokens[:: -(-len(tokens) // 8)].astype(str)
    figure.update_yaxes(tickmode="array", tickvals=some)
    return figure.update_yaxes(title="point token", col=1).update_layout(height=420)


def _check(results: xr.Dataset, name: str, score: str) -> None:
    if name not in results or not {"step", "token"} & set(results[name].dims):
        raise ValueError(f"these results hold no {score!r} by training step or token")


def _maps(
    results: xr.Dataset, score: str, upwards: str, names: Sequence[str], bar: str
) -> go.Figure:
    """One map a model, all to one scale."""
    figure = make_subplots(1, len(names), subplot_titles=list(names), shared_yaxes=True)
    for column, name in enumerate(names, 1):
        mean, low, high = (
            results[f"{score}_{p}"].sel(variant=name).transpose(upwards, "layer").values
            for p in ("mean", "low", "high")
        )
        figure.add_heatmap(
            x=results.layer.values.astype(str),
            y=results[upwards].values.astype(str),
            z=mean,
            customdata=np.stack([low, high], axis=-1),
            coloraxis="coloraxis",
            hovertemplate=f"layer %{{x}}, {upwards} %{{y}}: %{{z:.4f}} "
            "[%{customdata[0]:.4f}, %{customdata[1]:.4f}]<extra></extra>",
            row=1,
            col=column,
        )
    height = 230 + 26 * results.sizes[upwards]
    return _finish(figure, height, {"colorscale": "Viridis"}, bar)


def _finish(figure: go.Figure, height: int, scale: dict, bar: str) -> go.Figure:
    # text, not numbers: captured layers and steps are equally wide however far apart they are
    figure.update_xaxes(title=LAYER, type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    figure.update_annotations(font_size=13)
    # a low figure has no room for the whole line
    title = {"text": bar.replace(" (", "<br>(", 1), "side": "right"}
    return figure.update_layout(
        template="plotly_white",
        coloraxis=scale | {"colorbar": {"title": title, "thickness": 14}},
        height=height,
        font={"size": 13, "color": INK},
        margin={"t": 90, "b": 60},
    )
