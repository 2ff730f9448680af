"""Does the model still use its point tokens at a layer, and what do they say there?"""

from pathlib import Path

import streamlit as st
import xarray as xr

from dashboards import data, show
from probe.plots_causal import causal_figure, lens_figure

VIEWS = {
    "causal": "what the answer loses when point tokens are changed",
    "lens": "what point tokens say in words",
}
ABOUT = {
    "causal": "The point tokens of a layer are replaced, hidden from the text, or exchanged for "
    "those of the other model; measured is how much less likely the true answer becomes.",
    "lens": "Point tokens are read as if they stood behind the last block: which word would the "
    "model say?",
}


def main(path: Path) -> None:
    st.title("Causes")
    data.open_run(path)
    view = show.choose("view", "Measured", list(VIEWS), label=VIEWS.get)
    st.text(ABOUT[view])
    results = data.results(path, view)
    if results is None:
        said, command = data.explain(path)
        show.missing(f"This is not measured for this run. {said}", command)
        return
    with data.reading(path):
        draw(path, view, results)


def draw(path: Path, view: str, results: xr.Dataset) -> None:
    """Curves with their intervals, what they show in words, and a table a measure."""
    kind = None
    if view == "lens":
        kind = show.choose(
            "lens", "Lens", results["lens"].values.tolist()[::-1], label=str.capitalize
        )
    figure = causal_figure(results) if kind is None else lens_figure(results, kind)
    if figure.layout.title.text:
        st.text(figure.layout.title.text)
        figure.update_layout(title=None)
    tables = data.tables(results)
    show.draw(figure, data.together(tables), view, alt=VIEWS[view])
    st.subheader("What the numbers show")
    for sentence in data.said(path, view):
        st.text(f"• {sentence}")
    show.numbers(lambda: tables, view)


main(st.session_state["opened"])
