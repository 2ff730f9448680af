"""Lenses and causes as plotly figures: what point tokens say, and whether they are still read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from probe.plots_style import BAND, INK, LAYER, LAYERS, above, add_band, colour, shape, shifts, some
from probe.report import SIGNIFICANT

TITLES = {
    "unread": "Text can't read the points behind layer L",
    "zero": "Points are zeros from layer L on",
    "mean": "Points are the mean object's from layer L on",
    "shuffle": "Points change places from layer L on",
    "same_class": "Points of another object of its class",
    "other_class": "Points of an object of another class",
}
CHANGE = "change in nats<br>(below 0: answer less likely)"


class Curves(NamedTuple):
    """What one panel shows: curves over x, a colour each, with their intervals.

    mean, low, high : (curves, x); filled : bool (curves, x), or None for all
    """

    title: str
    axis: str
    names: list[str]
    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    filled: np.ndarray | None = None
    wide: tuple[np.ndarray, np.ndarray] | None = None
    """Ends of the band that covers all x of a curve at once, (curves, x) each."""
    reference: Mapping[str, np.ndarray] = {}
    """Dotted lines by the name of their curve."""
    zero: str = ""
    """What the line at 0 stands for; none where empty."""


def lens_figure(results: xr.Dataset, lens: str = "tuned") -> go.Figure:
    """What the point tokens say in words, by layer. results : of `probe.lens.lens`."""
    if lens not in results.lens.values:
        raise ValueError(f"lens {lens!r}: these results have {', '.join(results.lens.values)}")
    one = results.sel(lens=lens)
    vocabulary = results.sizes["vocabulary"]
    panels = [
        _curves(one, "advantage", "Word of its own class less those of others",
                "nats   (higher is better)", zero="chance"),
        _curves(one, "rank", f"Rank of the class word among {vocabulary:,}",
                "rank, log scale   (1 is best)"),
        _curves(one, "caption_match", "Nearest caption is of its class (dotted: captions shuffled)",
                "% of point tokens   (higher is better)", scale=100)._replace(
            reference=_by_name(one, 100 * one.caption_match_shuffled)),
        _kl(results),
    ]  # fmt: skip
    figure = _figure(panels, columns=2, height=360)
    ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    figure.update_yaxes(type="log", autorange="reversed", tickvals=ticks, row=1, col=2)
    return figure.update_layout(title_text=_title(results, f"point tokens in words ({lens} lens)"))


def causal_figure(results: xr.Dataset) -> go.Figure:
    """What becomes of the answer where point tokens are changed, by layer.

    results : of `probe.causal.causal`. Marks are filled where p < 0.05 over all layers at once;
    thin bars are the band that covers all layers at once. Earlier results lack it.
    """
    panels = [
        _curves(results.sel(intervention=name), "change", title, CHANGE, zero="no effect")
        for name, title in TITLES.items()
    ]
    windows = _curves(
        results, "knockout", "Text can't read the points in these blocks", CHANGE, zero="no effect"
    )
    panels.append(windows._replace(x=results.window.values.astype(str)))
    if "transplant_share_mean" in results:
        panels.append(_transplant(results))
    figure = _figure(panels, columns=2, height=290)
    hidden = {"text": "blocks in which they are hidden", "font": {"size": 12}}
    figure.update_xaxes(title=hidden, row=4, col=1)
    for name, symbol in (
        (f"p < {SIGNIFICANT} over all layers", "circle"),
        ("noise", "circle-open"),
    ):
        marker = {"symbol": symbol, "color": INK, "size": 8}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)
    what = f"what a {results.attrs['answer']} answer owes to the point tokens"
    return figure.update_layout(title_text=_title(results, what))


def _curves(
    results: xr.Dataset, score: str, title: str, axis: str, *, scale: float = 1, zero: str = ""
) -> Curves:
    mean, low, high = (
        scale * results[f"{score}_{part}"].values for part in ("mean", "low", "high")
    )
    p = results.get(f"{score}_p_adjusted")
    filled = None if p is None else p.values < SIGNIFICANT
    names = results.variant.values.astype(str).tolist()
    wide = _wide(results, score, scale)
    return Curves(
        title, axis, names, results.layer.values, mean, low, high, filled, wide, zero=zero
    )


def _wide(results: xr.Dataset, score: str, scale: float) -> tuple[np.ndarray, np.ndarray] | None:
    if f"{score}_wide_low" not in results:
        return None
    low, high = (scale * results[f"{score}_wide_{end}"].values for end in ("low", "high"))
    return low, high


def _kl(results: xr.Dataset) -> Curves:
    """Held-out KL of the tuned lens, and dotted that of the logit lens; earlier results have it
    without an interval.
    """
    mean, low, high = (
        results.get(f"kl_{part}", results.kl).sel(lens="tuned").values
        for part in ("mean", "low", "high")
    )
    return Curves(
        "Lens against the model's next token, over texts (dotted: logit)",
        "KL in nats on text   (lower is better)",
        results.variant.values.astype(str).tolist(),
        results.layer.values,
        mean=mean,
        low=low,
        high=high,
        reference=_by_name(results, results.get("kl_mean", results.kl).sel(lens="logit")),
    )


def _transplant(results: xr.Dataset) -> Curves:
    mean, low, high = (
        100 * results[f"transplant_share_{part}"].values for part in ("mean", "low", "high")
    )
    return Curves(
        "Receives the other model's points at layer L",
        "% of the gap to it<br>(100: answers as it does)",
        results.into.values.astype(str).tolist(),
        results.layer.values,
        mean=mean,
        low=low,
        high=high,
        filled=results.transplant_p_adjusted.values < SIGNIFICANT,
        wide=_wide(results, "transplant_share", 100),
        zero="as itself",
    )


def _by_name(results: xr.Dataset, values: xr.DataArray) -> dict[str, np.ndarray]:
    return dict(zip(results.variant.values.astype(str), values.values, strict=True))


def _figure(panels: list[Curves], *, columns: int, height: int) -> go.Figure:
    rows = -(-len(panels) // columns)
    figure = make_subplots(
        rows,
        columns,
        subplot_titles=[panel.title for panel in panels],
        horizontal_spacing=0.14,
        vertical_spacing=0.3 / rows,
    )
    figure.update_annotations(font_size=12.5)
    named: set[str] = set()
    for at, panel in enumerate(panels):
        _add(figure, panel, named, row=at // columns + 1, col=at % columns + 1)
    return figure.update_layout(
        template="plotly_white",
        height=height * rows + 140,
        legend=above(height * rows + 140),
        title={"y": 1 - 12 / (height * rows + 140), "yanchor": "top"},
        font={"size": 13, "color": INK},
        margin={"t": 130, "b": 60},
    )


def _add(figure: go.Figure, panel: Curves, named: set[str], **place: int) -> None:
    """Draw a panel; named : curves that the legend has already, and gains here."""
    numbers = panel.x.dtype.kind in "if"
    aside = shifts(panel.x, len(panel.names)) if numbers else None
    for row, name in enumerate(panel.names):
        mean, low, high = panel.mean[row], panel.low[row], panel.high[row]
        filled = np.ones(len(mean), bool) if panel.filled is None else panel.filled[row]
        symbols = [shape(name) + ("" if one else "-open") for one in filled]
        x = panel.x if aside is None else panel.x + aside[row]
        if panel.wide is not None:
            ends = panel.wide[0][row], panel.wide[1][row]
            add_band(figure, x, mean, ends, BAND not in named, LAYERS, **place)
            named.add(BAND)
        figure.add_scatter(
            x=x,
            y=mean,
            name=name,
            legendgroup=name,
            showlegend=name not in named,
            mode="lines+markers",
            line={"color": colour(name), "width": 2},
            marker={"symbol": symbols, "size": 8, "color": colour(name)},
            error_y={"array": high - mean, "arrayminus": mean - low, "thickness": 1.3},
            customdata=np.stack([panel.x.astype(str), low, high], axis=1).tolist(),
            hovertemplate="%{customdata[0]}: %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]",
            **place,
        )
        named.add(name)
    for name, values in panel.reference.items():
        line = {"color": colour(name), "width": 1.3, "dash": "dot"}
        figure.add_scatter(x=panel.x, y=values, name=name, legendgroup=name, showlegend=False,
                           mode="lines", line=line, **place)  # fmt: skip
    if panel.zero:
        figure.add_hline(y=0, line_color=INK, line_width=1, **place)
    ticks: dict[str, Any] = {"tickmode": "array", "tickvals": some(panel.x)} if numbers else {}
    figure.update_xaxes(title=LAYER, title_font_size=12, **ticks, **place)
    figure.update_yaxes(title=panel.axis, title_font_size=12, zeroline=False, **place)


def _title(results: xr.Dataset, what: str) -> str:
    about = results.attrs
    return (
        f"{about['run']}: {what}   ({results.sizes['object']} query objects; bars: "
        f"{about['level']:.0%} intervals over objects)"
    )
