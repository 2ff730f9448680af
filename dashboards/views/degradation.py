"""Where in depth is geometry lost, and does alignment keep it?"""

from functools import partial
from pathlib import Path

import plotly.graph_objects as go
import streamlit as st
import xarray as xr

from dashboards import data, show
from probe.figures import ALIKE, DIMENSION, REBUILT, curves, curves_figure
from probe.plots import depth_figure, difference_figure, plot_score_by_layer
from probe.report import findings

MEASURES = {
    "knn": "accuracy of nearest neighbours",
    "cka": "CKA to the target",
    "drift_centred": "drift, what all objects share taken off",
    "drift": "drift",
}
GROUPS = {
    "dimension": ("shape of the space: intrinsic dimension, rank, anisotropy", DIMENSION),
    "alike": ("other likeness to the target", ALIKE),
    "rebuilt": ("clouds rebuilt from the tokens", REBUILT),
}
HINT = "Click a point of a curve to see the objects of that layer, one by one, in the Explorer."


def main(path: Path) -> None:
    st.title("Degradation across depth")
    results = read(path)
    measures = [name for name in MEASURES if f"{name}_mean" in results]
    if not measures:
        raise data.Unreadable("The stored sweep holds no score that this page knows.")
    left, right = st.columns(2)
    with left:
        names = {"all": "all scores"} | {name: MEASURES[name] for name in measures}
        names |= {name: title for name, (title, _) in GROUPS.items()}
        measure = show.choose("measure", "Measure", list(names), label=names.get)
    k = None
    if measure == "knn":
        with right:
            k = show.choose("k", "Neighbours that vote (K)", results.k.values.tolist())
    if measure in GROUPS:
        group(path, results, measure)
    elif measure == "all":
        everything(results, measures)
    else:
        one_measure(results, measure, k)


def read(path: Path) -> xr.Dataset:
    """The stored sweep; the first look at a run computes it, with a bar."""
    make = partial(data.sweep_results, path)
    return show.computing(make, "Computing the scores of this run")


def follow(figure: go.Figure, name: str, results: xr.Dataset) -> None:
    """Where a point of a curve was clicked: on to the objects of its layer and model."""
    for point in show.clicked(name):
        layer = int(point["customdata"][0])
        variant = str(figure.data[point["curve_number"]].name)
        if variant not in results["variant"].values:
            variant = "aligned"  # a point of a difference to the baseline
        show.go_to("explorer", layer=layer, variant=variant)


def say(results: xr.Dataset) -> None:
    st.subheader("What the numbers show")
    for sentence in findings(results):
        st.text(f"• {sentence}")


def everything(results: xr.Dataset, measures: list[str]) -> None:
    """Panels of all scores, what they show in words, and a table a measure."""
    figure = depth_figure(results)
    st.text(figure.layout.title.text)
    figure.update_layout(title=None, margin_t=60)
    alt = "All scores by layer, a line a model with its interval"
    show.plot(figure, "depth", alt=alt, on_select="rerun")
    st.text(HINT)
    follow(figure, "depth", results)
    say(results)
    st.subheader("The numbers")
    for tab, name in zip(st.tabs([MEASURES[name] for name in measures]), measures, strict=True):
        with tab:
            table = data.scores_table(results, name)
            st.dataframe(table, hide_index=True)
            show.csv(table, f"depth-{name}")


def group(path: Path, swept: xr.Dataset, name: str) -> None:
    """Panels of measures that belong together, where they were measured."""
    title, about = GROUPS[name]
    probe = {"dimension": "knn,drift,dimension", "alike": "knn,drift,dimension,similarity"}
    results = data.results(path, "reconstruction") if name == "rebuilt" else swept
    panels = [] if results is None else curves(results, about)
    if results is None or not panels:
        command = data.command(path, probe.get(name, "reconstruction"))
        show.missing("This is not measured for this run yet. This command measures it:", command)
        return
    figure = curves_figure(panels, results)
    show.plot(figure, name, alt=title, on_select="rerun")
    st.text(HINT)
    follow(figure, name, results)
    st.subheader("The numbers")
    tables = data.tables(results[[n for n in results if str(n).startswith(tuple(about))]])
    for tab, (measure, table) in zip(st.tabs(list(tables)), tables.items(), strict=True):
        with tab:
            st.dataframe(table, hide_index=True)
            show.csv(table, f"depth-{measure}")


def one_measure(results: xr.Dataset, measure: str, k: int | None) -> None:
    """One panel at full width, then the paired differences."""
    figure = plot_score_by_layer(results, measure, k).update_layout(height=460)
    table = data.scores_table(results, measure, k)
    name, alt = f"{measure}-by-layer", f"{MEASURES[measure]} by layer"
    show.draw(figure, table, name, alt=alt, on_select="rerun")
    st.text(HINT)
    follow(figure, name, results)
    if f"{measure}_difference" in results:
        st.subheader("Difference from the baseline, paired by object")
        shown = results if k is None else results.sel(k=[k])
        gaps = data.differences_table(shown, measure)
        figure = difference_figure(shown, measure).update_layout(height=420, margin_t=40)
        st.text(figure.layout.yaxis.title.text)  # too long to stand along the axis of a page
        figure.update_yaxes(title="difference   (0 = none)")
        show.draw(figure, gaps, f"{measure}-difference", alt="Difference from the baseline")
    say(results)
    st.subheader("The numbers")
    st.dataframe(table, hide_index=True)
    if f"{measure}_difference" in results:
        st.dataframe(gaps, hide_index=True)


main(st.session_state["opened"])
