"""What does one model get right that another doesn't: which objects, classes and layers?"""

from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st

from dashboards import data, opening, show
from probe.contrast import KINDS, confusion_change, contrast
from probe.plots_compare import cka_figure, confusion_figure, contrast_figure

VIEWS = {
    "objects": "objects, by what changes most",
    "classes": "classes, by what they are taken for",
    "layers": "layers, by their CKA",
}
READING = "Looking up every object in every layer of {}"


def main(path: Path) -> None:
    st.title("Compare")
    other = second_run(path)
    models = [data.models(path), data.models(other)]
    boxes = st.columns([2, 2, 3])
    with boxes[0]:
        default = data.main_model(models[0])
        first = show.choose("first", "First model", models[0], default=default)
    with boxes[1]:
        default = data.main_model(models[1], "aligned")
        second = show.choose("second", "Second model", models[1], default=default)
    with boxes[2]:
        view = show.choose("view", "Compare", list(VIEWS), label=VIEWS.get)
    names = (first, second)
    if other != path:
        names = (f"{path.name}: {first}", f"{other.name}: {second}")
    if path == other and first == second:
        st.info("Both are the same model: choose another one for the second.")
    elif view == "layers":
        layers((path, first), (other, second), names)
    else:
        both(view, (path, first), (other, second), names)


def second_run(path: Path) -> Path:
    """The run that the second model is of: this one, or another in the folder."""
    entries = [entry.name for entry in opening.list_runs(path.parent) if entry.state == "complete"]
    if len(entries) < 2 or path.name not in entries:
        return path
    with st.sidebar:
        name = show.choose("with", "Second run of a comparison", entries, default=path.name)
    return opening.run_path(path.parent, name)


def both(
    view: str, first: tuple[Path, str], second: tuple[Path, str], names: tuple[str, str]
) -> None:
    """What depends on a layer: objects, or classes."""
    found = [
        show.computing(partial(data.objects, path), READING.format(path.name))
        for path, _ in (first, second)
    ]
    shared = sorted(set(found[0].layer.values.tolist()) & set(found[1].layer.values.tolist()))
    if not shared:
        st.info("The two runs were captured at different layers: there is none to compare.")
        return
    layer = show.choose("layer", "Layer", shared, default=shared[-1], keep=True, slide=True)
    tables = [
        data.layer_table(path, results, model, layer)
        for (path, model), results in zip((first, second), found, strict=True)
    ]
    table = contrast(*tables)
    if table.empty:
        st.info("The two runs share no query objects: there is nothing to compare.")
        return
    counts = table.kind.value_counts()
    said = {
        "both right": KINDS[0],
        f"only {names[0]}": KINDS[1],
        f"only {names[1]}": KINDS[2],
        "both wrong": KINDS[3],
    }
    st.text(
        f"{len(table)} query objects, layer {layer}, K = {found[0].attrs['k']} neighbours. Right: "
        + "; ".join(f"{name} {counts.get(kind, 0)}" for name, kind in said.items())
    )
    if view == "objects":
        objects(table, names, second[1], layer)
    else:
        classes(table, names, layer)


def objects(table: pd.DataFrame, names: tuple[str, str], model: str, layer: int) -> None:
    """Each query object in both models, the greatest change first."""
    figure = contrast_figure(table, *names)
    alt = "Drift of each object in both models"
    show.plot(figure, "contrast", alt=alt, on_select="rerun")
    st.text("Click a point, or a row of the table, to open the object.")
    for point in show.clicked("contrast"):
        open_object(table.loc[int(point["customdata"][0])], model, layer)
    kinds = dict(zip(KINDS, ("both", f"only {names[0]}", f"only {names[1]}", "none"), strict=True))
    listed = table.assign(right=table.kind.map(kinds))[
        ["sample", "class_name", "right", "named_first", "named_second", "change", "drift_change"]
    ]
    shown = listed.set_axis(
        [
            *("object", "class", "right in", f"{names[0]} says", f"{names[1]} says"),
            *("change of neighbours of its class", "change of drift"),
        ],
        axis=1,
    )
    picked = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"table-contrast-{layer}",
    )
    if rows := picked["selection"]["rows"]:
        open_object(table.iloc[rows[0]], model, layer)
    show.csv(shown, f"compare-objects-{layer}")


def open_object(one: pd.Series, model: str, layer: int) -> None:
    show.go_to(
        "object", **{"class": one.class_name}, object=one["sample"], variant=model, layer=layer
    )


def classes(table: pd.DataFrame, names: tuple[str, str], layer: int) -> None:
    """Which classes are taken for which others more often."""
    changes = confusion_change(table)
    if changes.empty:
        st.info("In this layer both models name the same class for every query object.")
        return
    figure = confusion_figure(changes, *names)
    shown = changes.set_axis(["class", "taken for", *names, "change"], axis=1)
    show.draw(figure, shown, f"confusions-{layer}", alt="Difference of the confusions")
    st.dataframe(shown, hide_index=True)


def layers(first: tuple[Path, str], second: tuple[Path, str], names: tuple[str, str]) -> None:
    """CKA of every layer of one with every layer of the other."""
    values = data.stored_cka(first, second)
    if values is None:
        make = partial(data.cka, first, second)
        values = show.computing(make, "Comparing each layer with each")
    st.text(f"Mean tokens of {values.attrs['objects']} query objects, every layer with every other")
    table = values.rename("cka").to_dataframe().reset_index()
    figure = cka_figure(values, *names)
    show.draw(figure, table[["layer", "other_layer", "cka"]], "cka", alt="CKA layer by layer")


main(st.session_state["opened"])
