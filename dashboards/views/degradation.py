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
    say(results)
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
    figure = depth_figure(results)
    st.text(figure.layout.title.text)
    figure.update_layout(title=None, margin_t=50)
    ks = results.k.values.tolist() if "k" in results.sizes else []
    tables = {m: data.scores_table(results, m, ks[-1] if m == "knn" else None) for m in measures}
    show.plot(figure, "depth", alt="All scores by layer, a line a model with its interval")
    for name in measures:
        st.text(MEASURES[name] + (f", K = {ks[-1]}" if name == "knn" else ""))
        st.dataframe(tables[name], hide_index=True)
        show.csv(tables[name], f"depth-{name}")


def one_measure(results: xr.Dataset, measure: str, k: int | None) -> None:
    figure = plot_score_by_layer(results, measure, k).update_layout(height=460)
    table = data.scores_table(results, measure, k)
    show.draw(figure, table, f"{measure}-by-layer", alt=f"{MEASURES[measure]} by layer")
    if f"{measure}_difference" in results:
        st.subheader("Difference from the baseline, paired by object")
        gaps = data.differences_table(results, measure)
        figure = difference_figure(results, measure).update_layout(height=420)
        show.draw(figure, gaps, f"{measure}-difference", alt="Difference from the baseline")
        st.dataframe(gaps, hide_index=True)
    st.subheader("Scores")
    st.dataframe(table, hide_index=True)


main(st.session_state["opened"])
