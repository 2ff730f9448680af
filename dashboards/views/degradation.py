"""Where in depth is geometry lost, and does alignment keep it?"""

from functools import partial
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import streamlit as st
import xarray as xr
from streamlit.delta_generator import DeltaGenerator

from dashboards import data, show
from probe import plots_curves as of
from probe.plots import depth_figure, difference_figure, plot_score_by_layer
from probe.plots_heat import token_drift_figure
from probe.plots_panels import Gap, Panel
from probe.plots_properties import properties_change_figure, properties_figure, property_title
from probe.published_figures import same_objects
from probe.report import MAIN, findings

MEASURES = {
    "knn": "accuracy of nearest neighbours",
    "cka": "CKA to the target",
    "drift_centred": "drift, what all objects share taken off",
    "drift": "drift",
}
GROUPS = {  # title, and the probe that measures it
    "geometry": ("geometry: what of the shape can be read out", "geometry"),
    "rebuilt": ("reconstruction: clouds rebuilt from the tokens", "reconstruction"),
    "dimension": ("shape of the space: intrinsic dimension, rank, anisotropy", "dimension"),
    "linear": ("class, read out linearly, its selectivity and its code", "linear"),
    "alike": ("other likeness to the target", "similarity"),
    "tests": ("neighbours among the test objects alone, as papers ask", "variants"),
}
ABOUT = {"dimension": of.DIMENSION, "alike": of.ALIKE, "linear": of.LINEAR, "rebuilt": of.REBUILT}
READ = {"r2": "R²", "selectivity": "selectivity: R² less that of shuffled values"}
USUAL = ("knn", "drift", "dimension")  # what a sweep holds unless asked for more
HINT = "Click a point of a curve to see the objects of that layer, one by one, in the Explorer."
DOTS = "A dot: aligned and baseline differ, p < 0.05 over all layers and properties at once."
SPLITS = (
    "Left: 95% intervals over objects. Right: the mean of random splits; bars go from the least to "
    "the most of them, for a paper shows one."
)
PUBLISHED = (
    "Stars: PointAlign, Fig. 3, K = 1 and 10, one split of a tenth of ModelNet40's 2,468 test "
    "objects; how tokens were pooled and compared there is not said."
)
NOT_PUBLISHED = (
    "No published figure stands here: PointAlign's Fig. 3 asks about ModelNet40's 2,468 test "
    "objects of 40 classes, and this run asks about {} of {}."
)


def main(path: Path) -> None:
    st.title("Degradation across depth")
    results = read(path)
    measures = [name for name in MEASURES if f"{name}_mean" in results]
    names = {"all": "all scores"} if measures else {}
    names |= {name: MEASURES[name] for name in measures}
    names |= {name: title for name, (title, _) in GROUPS.items()}
    left, right = st.columns(2)
    with left:
        measure = show.choose("measure", "Measure", list(names), label=names.get)
    with data.reading(path):
        if measure == "all":
            everything(path, results, measures)
        elif measure == "geometry" and "geometry_mean" in results:
            geometry(path, results, right)
        elif measure == "tests" and "knn_loo_mean" in results:
            among_tests(path, results, right)
        elif measure in GROUPS:
            group(path, results, measure)
        else:
            one_measure(path, results, measure, right)


def read(path: Path) -> xr.Dataset:
    """The stored sweep; the first look at a run computes it, with a bar."""
    make = partial(data.sweep_results, path)
    return show.computing(make, "Computing the scores of this run")


def choose_k(results: xr.Dataset, place: DeltaGenerator) -> int:
    with place:
        return int(show.choose("k", "Neighbours that vote (K)", results.k.values.tolist()))


def title_of(name: str) -> str:
    return "all properties" if name == "all" else property_title(name)


def follow(figure: go.Figure, name: str, path: Path) -> None:
    """Where a point of a curve was clicked: on to the objects of its layer and model."""
    for point in show.clicked(name):
        layer = int(point["customdata"][0])
        model = str(figure.data[point["curve_number"]].name).partition(" ")[0]
        # of a difference to the baseline that is the first of the two
        show.go_to("explorer", layer=layer, variant=data.main_model(data.models(path), model))


def say(results: xr.Dataset) -> None:
    st.subheader("What the numbers show")
    for sentence in findings(results):
        st.text(f"• {sentence}")


def everything(path: Path, results: xr.Dataset, measures: list[str]) -> None:
    """Panels of all scores, what they show in words, and a table a measure."""
    figure = depth_figure(results)
    st.text(figure.layout.title.text)
    figure.update_layout(title=None)
    alt = "All scores by layer, a line a model with its interval"
    tables = {name: data.scores_table(results, name) for name in measures}
    show.draw(figure, data.together(tables), "depth", alt=alt, on_select="rerun")
    st.text(HINT)
    follow(figure, "depth", path)
    rebuilt = data.results(path, "reconstruction")
    panels, below = of.overview(results, rebuilt)
    if panels:
        st.subheader("Dimension, reconstruction and geometry")
        draw(
            path,
            panels,
            below,
            results,
            "overview",
            "Dimension, reconstruction and geometry by layer",
        )
    absent = [name for name in ("geometry", "rebuilt") if not measured(results, rebuilt, name)]
    if absent:
        probes = [GROUPS[name][1] for name in absent]
        what = " and ".join(probes)
        show.missing(f"Not measured for this run: {what}. To add:", command(path, results, probes))
    say(results)
    show.numbers(lambda: {MEASURES[name]: table for name, table in tables.items()}, "depth")


def measured(results: xr.Dataset, rebuilt: xr.Dataset | None, name: str) -> bool:
    return "geometry_mean" in results if name == "geometry" else rebuilt is not None


def draw(
    path: Path,
    panels: list[Panel],
    below: list[Gap | None],
    results: xr.Dataset,
    name: str,
    alt: str,
) -> None:
    """Panels that lead on to the Explorer when they are clicked."""
    figure = of.curves_figure(panels, results, below)
    show.draw(figure, of.as_table(panels, below), name, alt=alt, on_select="rerun")
    st.text(HINT)
    follow(figure, name, path)


def command(path: Path, results: xr.Dataset, probes: list[str]) -> str:
    """What to type to have these probes too: a sweep is stored anew, so it names all of them."""
    there = np.atleast_1d(results.attrs.get("probes", USUAL)).tolist()
    swept = [name for name in probes if name != "reconstruction"]
    beside = [name for name in probes if name == "reconstruction"]
    asked = dict.fromkeys([*there, *swept] if swept else [])
    k = ",".join(map(str, results.k.values)) if swept and "k" in results.coords else ""
    return data.command(path, ",".join([*asked, *beside])) + (f" --k {k}" if k else "")


def group(path: Path, swept: xr.Dataset, name: str) -> None:
    """Panels of measures that belong together, where they were measured."""
    title, probe = GROUPS[name]
    results = data.results(path, "reconstruction") if name == "rebuilt" else swept
    panels = [] if results is None or name not in ABOUT else of.curves(results, ABOUT[name])
    if results is None or not panels:
        what = "This is not measured for this run yet. This command measures it:"
        show.missing(what, command(path, swept, [probe]))
        return
    about = ABOUT[name]
    draw(path, panels, of.gaps(results, about), results, name, title)
    if name == "rebuilt":
        say(results)
    shown = results[[n for n in results if str(n).startswith(tuple(about))]]
    show.numbers(partial(data.tables, shown), name)


def geometry(path: Path, results: xr.Dataset, place: DeltaGenerator) -> None:
    """All properties as heat maps, or the curves of one."""
    with place:
        names = ["all", *results.property.values.astype(str).tolist()]
        name = show.choose("property", "Property", names, label=title_of)
    parts = ["mean", "low", "high", "shuffled"]
    table = results[[f"geometry_{part}" for part in parts]].to_dataframe().reset_index()
    gaps = data.differences_table(results, "geometry") if "geometry_difference" in results else None
    if name == "all":
        read_as = show.choose("read", "Shown", list(READ), label=READ.get)
        figure = properties_figure(results, selective=read_as == "selectivity")
        show.draw(figure, table, "properties", alt="R² by property, layer and model")
        if gaps is not None and MAIN in results.comparison.values:
            st.subheader("What alignment changes")
            st.text(DOTS)
            figure = properties_change_figure(results)
            show.draw(figure, gaps, "properties-change", alt="R², aligned less baseline")
        if flat := np.atleast_1d(results.attrs.get("constant", [])).tolist():
            st.text(f"The same for all objects, and so not read out: {', '.join(flat)}.")
        return
    one = of.of_property(results, name)
    draw(
        path,
        of.curves(one, of.GEOMETRY),
        of.gaps(one, of.GEOMETRY),
        results,
        "property",
        f"R² of {property_title(name)} by layer",
    )
    tables = {"R²": table[table.property == name]}
    if gaps is not None:
        tables["difference from the baseline"] = gaps[gaps.property == name]
    show.numbers(lambda: tables, f"geometry-{name}")


def among_tests(path: Path, results: xr.Dataset, place: DeltaGenerator) -> None:
    """The protocols that ask about test objects among test objects, with published figures."""
    k = choose_k(results, place)
    at_k = results.sel(k=k)
    about = {key: (title.format(k=k), axis) for key, (title, axis) in of.LOO.items()}
    panels = [*of.curves(at_k, about), *of.tenths(results, k)]
    below = [*of.gaps(at_k, about), None][: len(panels)]
    draw(path, panels, below, results, "tests", "Accuracy among the test objects by layer")
    st.text(SPLITS)
    asked = results.attrs["query_objects"], results.attrs["classes"]
    st.text(PUBLISHED if same_objects(results) else NOT_PUBLISHED.format(*asked))
    tables = data.tables(at_k[[name for name in at_k if str(name).startswith("knn_loo")]])
    if "knn_test90_10" in at_k:
        tables["split by split"] = at_k[["knn_test90_10"]].to_dataframe().reset_index()
    show.numbers(lambda: tables, f"tests-{k}")


def one_measure(path: Path, results: xr.Dataset, measure: str, place: DeltaGenerator) -> None:
    """One panel at full width, then the paired differences."""
    k = choose_k(results, place) if measure == "knn" else None
    figure = plot_score_by_layer(results, measure, k).update_layout(height=460)
    table = data.scores_table(results, measure, k)
    name, alt = f"{measure}-by-layer", f"{MEASURES[measure]} by layer"
    show.draw(figure, table, name, alt=alt, on_select="rerun")
    st.text(HINT)
    follow(figure, name, path)
    if f"{measure}_difference" in results:
        st.subheader("Difference from the baseline, paired by object")
        st.text("Filled: p < 0.05 over all layers at once. Hollow: within noise.")
        shown = results if k is None else results.sel(k=[k])
        gaps = data.differences_table(shown, measure)
        figure = difference_figure(shown, measure).update_layout(height=420, margin_t=40)
        show.draw(figure, gaps, f"{measure}-difference", alt="Difference from the baseline")
    if measure == "drift_centred" and "token_drift_mean" in results:
        by_token(results)
    tables = {MEASURES[measure]: table}
    if f"{measure}_difference" in results:
        tables["difference from the baseline"] = gaps
    show.numbers(lambda: tables, measure)


def by_token(results: xr.Dataset) -> None:
    """Which tokens drift, and from which layer on."""
    st.subheader("Token by token")
    st.text("Mean over the query objects; the Object page shows the tokens of a single object.")
    table = results[[f"token_drift_{part}" for part in ("mean", "low", "high")]]
    figure = token_drift_figure(results).update_layout(margin_t=40)
    alt = "Drift by token and layer, a map a model"
    show.draw(figure, table.to_dataframe().reset_index(), "token-drift", alt=alt)


main(st.session_state["opened"])
