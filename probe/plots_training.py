"""A training over its steps: its log, and step by step what alignment changes of the layers.

Maps of all steps and layers are in `probe.plots_heat`.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.plots_heat import APART, STEPS, steps_change_figure, steps_figure
from probe.plots_panels import Gap, add_gap, gap_of
from probe.plots_style import INK, LAYER, above, colour, shape, ticks

__all__ = ["LOGGED", "STEPS", "steps_change_figure", "steps_figure", "steps_gaps"]
__all__ += ["steps_gaps_figure", "training_figure"]

SHOWN = 6  # steps that are drawn a panel each

LOGGED = {  # columns of a training log, with the title and the axis of their panels
    "ntp_loss": ("Next-token loss", "nats a token   (lower is better)"),
    "align_loss": ("Alignment loss", "loss   (lower is closer)"),
    "loss": ("Loss that is minimised", "loss   (lower is better)"),
    "lr": ("Learning rate", "learning rate"),
    "tokens_per_s": ("Speed", "tokens/s   (higher is faster)"),
    "memory_mib": ("Peak memory", "MiB   (lower leaves more free)"),
}


def training_figure(metrics: pd.DataFrame) -> go.Figure:
    """The log of a training over its steps, a panel a quantity, a line a model.

    metrics : columns variant, step and some of `LOGGED`; a quantity that a model does not log
    is missing in its rows.
    """
    panels = [name for name in LOGGED if name in metrics and metrics[name].notna().any()]
    if not panels:
        raise ValueError(f"this log holds none of {', '.join(LOGGED)}: there is nothing to draw")
    columns = min(3, len(panels))
    figure = make_subplots(
        -(-len(panels) // columns),
        columns,
        subplot_titles=[LOGGED[name][0] for name in panels],
        horizontal_spacing=0.09,
        vertical_spacing=0.17,
    )
    named: set[str] = set()
    for at, name in enumerate(panels):
        place = {"row": at // columns + 1, "col": at % columns + 1}
        for variant, rows in metrics.dropna(subset=[name]).groupby("variant", sort=False):
            figure.add_trace(_logged(str(variant), rows, name, str(variant) not in named), **place)
            named.add(str(variant))
        figure.update_xaxes(title="training step", rangemode="tozero", matches="x", **place)
        figure.update_yaxes(title=LOGGED[name][1], **place)
    return figure.update_layout(
        template="plotly_white",
        height=290 * (-(-len(panels) // columns)) + 70,
        font={"size": 13, "color": INK},
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0},
        margin={"t": 90, "b": 50},
    )


def steps_gaps(results: xr.Dataset, score: str = "cka") -> list[Gap]:
    """Aligned less the baseline over the layers at each step, with its intervals and its band.

    results, score : as for `probe.plots_heat.steps_change_figure`, but for the dots. Of many steps
    that both models have, six from the first to the last. Empty where the two are not compared.
    """
    key = f"{score}_step_difference"
    if key not in results:
        return []
    names = {str(name): str(name).replace("_step", "") for name in results if key in str(name)}
    both = results[list(names)].rename(names).dropna("step", how="all", subset=[names[key]])
    at = np.unique(np.linspace(0, both.sizes["step"] - 1, SHOWN).round().astype(int))
    found = [
        gap_of(both.sel(step=step), score, f"step {step}", APART[score].replace(" (", "   ("))
        for step in both.step.values[at[at >= 0]]
    ]
    return [gap._replace(over="all layers and steps") for gap in found if gap is not None]


def steps_gaps_figure(gaps: list[Gap], results: xr.Dataset) -> go.Figure:
    """Panels of `steps_gaps`, all to one scale, in rows of two or three."""
    columns = min(2 if len(gaps) == 4 else 3, len(gaps))
    rows = -(-len(gaps) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[gap.title for gap in gaps],
        shared_yaxes="all",
        horizontal_spacing=0.05,
        vertical_spacing=0.3 / rows,
    )
    figure.update_annotations(font_size=13)
    for at, gap in enumerate(gaps):
        add_gap(figure, gap, at == 0, row=at // columns + 1, col=at % columns + 1)
    figure.update_xaxes(title=LAYER, title_font_size=12, **ticks(results))
    axis = gaps[0].axis.replace("   (", "<br>(")
    figure.update_yaxes(title="", showticklabels=True).update_yaxes(title=axis, col=1)
    height = 270 * rows + 110
    return figure.update_yaxes(title_font_size=12).update_layout(
        template="plotly_white",
        height=height,
        legend=above(height),
        font={"size": 13, "color": INK},
        margin={"t": 110, "b": 60},
    )


def _logged(variant: str, rows: pd.DataFrame, name: str, in_legend: bool) -> go.Scatter:
    """One line of the training figure, with marks where they would not run into each other."""
    return go.Scatter(
        x=rows["step"],
        y=rows[name],
        name=variant,
        legendgroup=variant,
        showlegend=in_legend,
        mode="lines+markers" if len(rows) <= 60 else "lines",
        line={"color": colour(variant), "width": 2},
        marker={"symbol": shape(variant), "size": 7},
        hovertemplate="step %{x}: %{y:.4g}",
    )
