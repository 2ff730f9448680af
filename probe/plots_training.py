"""The log of a training over its steps; what its layers do meanwhile is in `probe.plots_heat`."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from probe.plots_heat import STEPS, steps_change_figure, steps_figure
from probe.plots_style import INK, colour, shape

__all__ = ["LOGGED", "STEPS", "steps_change_figure", "steps_figure", "training_figure"]

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
