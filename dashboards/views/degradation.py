"""Where in depth is geometry lost, and does alignment keep it?"""

from pathlib import Path

import streamlit as st
import xarray as xr

from dashboards import data, show
from probe.plots import depth_figure, difference_figure, plot_score_by_layer
from probe.report import findings

MEASURES = {
    "knn": "accuracy of nearest neighbours",
    "cka": "CKA to the target",
    "drift_centred": "drift, what all objects share taken off",
    "drift": "drift",
}


def main(path: Path) -> None:
    st.title("Degradation across depth")
    results = read(path)
    measures = [name for name in MEASURES if f"{name}_mean" in results]
    if not measures:
        raise data.Unreadable("The stored sweep holds no score that this page knows.")
    left, right = st.columns(2)
    with left:
        measure = show.choose(
            "measure", "Measure", ["all", *measures], label=lambda m: MEASURES.get(m, "all scores")
        )
    k = None
    if measure == "knn":
        with right:
            k = show.choose("k", "Neighbours that vote (K)", results.k.values.tolist())
    if measure == "all":
        everything(results, measures)
    else:
        one_measure(results, measure, k)


def read(path: Path) -> xr.Dataset:
    """The stored sweep; the first look at a run computes it, with a bar."""
    place = st.empty()

    def progress(step: int, steps: int, what: str) -> None:
        with place.container():
            st.progress(step / steps, "Computing the scores of this run, once:")
            st.text(what)

    results = data.sweep_results(path, progress)
    place.empty()
    return results


def say(results: xr.Dataset) -> None:
    st.subheader("What the numbers show")
    for sentence in findings(results):
        st.text(f"• {sentence}")


def everything(results: xr.Dataset, measures: list[str]) -> None:
    """Panels of all scores, what they show in words, and a table a measure."""
    figure = depth_figure(results)
    st.text(figure.layout.title.text)
    figure.update_layout(title=None, margin_t=60)
    show.plot(figure, "depth", alt="All scores by layer, a line a model with its interval")
    say(results)
    st.subheader("The numbers")
    for tab, name in zip(st.tabs([MEASURES[name] for name in measures]), measures, strict=True):
        with tab:
            table = data.scores_table(results, name)
            st.dataframe(table, hide_index=True)
            show.csv(table, f"depth-{name}")


def one_measure(results: xr.Dataset, measure: str, k: int | None) -> None:
    """One panel at full width, then the paired differences."""
    figure = plot_score_by_layer(results, measure, k).update_layout(height=460)
    table = data.scores_table(results, measure, k)
    show.draw(figure, table, f"{measure}-by-layer", alt=f"{MEASURES[measure]} by layer")
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
