"""Which objects does a layer keep apart, and which does it mix up?"""

from functools import partial
from pathlib import Path

import pandas as pd
import streamlit as st
import xarray as xr

from dashboards import data, objects, show
from dashboards.answers import answers, verdicts
from dashboards.objectmap import object_map, picked
from probe.plots_maps import MOST_CLASSES

COLOURS = {
    "right": "neighbours right or wrong",
    "class_name": "class",
    "split": "split",
    "support": "share of neighbours of its class",
    "drift": "drift from the target",
}
ANSWER = "answer: "  # before a question, in the address
MOST_KEPT = 200  # selected objects that an address names
HINT = """Click an object, or draw a lasso around several; Shift and click adds one. Near on a map
is not always near in truth. Ctrl and wheel zooms; arrow keys go from object to object, Enter
selects.""".replace("\n", " ")


def main(path: Path) -> None:
    st.title("Explorer")
    found = show.computing(
        partial(data.objects, path), "Looking up every object in every layer of this run"
    )
    maps = data.results(path, "maps")
    model, layer, method, by, split = pick(path, found, maps)
    table = data.layer_table(path, found, model, layer)
    frame, quality, note = data.frame(found.position.sel(model=model)), "", ""
    if method == "umap":
        name = data.probed(path, model)
        try:
            maps = show.computing(partial(data.umaps, path), "Making the UMAPs of this run")
        except data.Unreadable as why:
            note = f"No UMAP: {why}. This is PCA."
        if maps is not None and data.has_map(maps, name, layer):
            table, frame, quality = data.umap_table(table, maps, name, layer)
        elif maps is not None:
            note = f"The stored maps have no UMAP of layer {layer} of {model}: this is PCA."
    factors = data.factors(path, found)
    if by in factors:
        table[by] = factors[by].values[table.index]
    if by.startswith(ANSWER):
        said = verdicts(path, model.partition("@")[0]).get(by.removeprefix(ANSWER), pd.Series())
        table[by] = table["sample"].map(said).fillna("not asked")
    if split != "all":
        table = table[table.split == split]
    left, right = st.columns([3, 2], gap="medium")
    with left:
        if note:
            st.text(note)
        title = factors[by].title if by in factors else COLOURS.get(by, "")
        chosen = the_map(table, found, (by, title), frame, model, layer, quality)
        if note and maps is not None:
            show.missing("This command makes the UMAP of every layer:", data.command(path, "maps"))
    with right:
        beside(path, table, found, model, layer, chosen)


def pick(path: Path, found: xr.Dataset, maps: xr.Dataset | None) -> tuple[str, int, str, str, str]:
    """Model, layer, map, colour and split."""
    boxes = st.columns([2, 2, 3, 2])
    with boxes[0]:
        models = found.model.values.tolist()
        model = show.choose("variant", "Model", models, default=data.main_model(models), keep=True)
    with boxes[1]:
        method = show.choose(
            "map",
            "Map",
            ["pca", "umap"],
            label=str.upper,
            default="pca" if maps is None else "umap",
        )
    with boxes[2]:
        asked = {
            ANSWER + question: question for question in verdicts(path, model.partition("@")[0])
        }
        names = COLOURS | {name: f"answer to “{q}”" for name, q in asked.items()}
        names |= {name: one.title for name, one in data.factors(path, found).items()}
        by = show.choose("colour", "Colour by", list(names), label=names.get)
    with boxes[3]:
        split = show.choose("split", "Objects", ["all", "query", "gallery"])
    layers = found.layer.values.tolist()
    layer = show.choose("layer", "Layer", layers, default=layers[-1], keep=True, slide=True)
    return model, layer, method, by, split


def the_map(
    table: pd.DataFrame,
    found: xr.Dataset,
    colour: tuple[str, str],
    frame: data.Frame,
    model: str,
    layer: int,
    quality: str,
) -> list[int]:
    """The map; returns the rows of the objects that are selected.

    colour : column of `table` that colours it, and its title
    """
    by, title = colour
    classes: list[str] = []
    if by == "class_name":
        names = list(dict.fromkeys(table.class_name))
        default = names[: min(4, MOST_CLASSES)]
        classes = show.choose_some(
            "classes", "Classes in colour", names, default=default, most=MOST_CLASSES
        )
    chosen = kept(table)
    right = int(table[table.split == "query"].right.sum())
    asked = int((table.split == "query").sum())
    said = f"{len(table)} objects in {model}, layer {layer}"
    if asked:
        said += f"; {right} of {asked} query objects right by {found.attrs['k']} neighbours"
    st.text(said)
    object_map(
        table,
        by,
        frame=frame,
        name=show.file_name(f"map-{model}-{layer}"),
        alt=f"Map of {said}",
        on_pick=remember,
        title=title,
        classes=classes,
        chosen=chosen,
    )
    st.text(HINT)
    if quality:
        st.text(f"This map: {quality}")
    columns = ["sample", "class_name", "split", "named", "right", "support", "drift", "x", "y"]
    show.csv(table[[*columns, *({by} - set(columns))]], f"map-{model}-{layer}")
    return chosen


def remember() -> None:
    """What was clicked or drawn around goes into the address."""
    if rows := picked():
        st.query_params["picked"] = ",".join(map(str, rows[:MOST_KEPT]))
    else:
        st.query_params.pop("picked", None)


def kept(table: pd.DataFrame) -> list[int]:
    """Rows that the address names and the map shows."""
    text = st.query_params.get("picked", "")
    rows = [int(part) for part in text.split(",") if part.isdecimal()]
    return [row for row in dict.fromkeys(rows) if row in table.index]


def beside(
    path: Path, table: pd.DataFrame, found: xr.Dataset, model: str, layer: int, chosen: list[int]
) -> None:
    """The selected objects, and one of them as it is."""
    if not chosen:
        st.subheader("No object selected")
        st.text("Its cloud, caption and neighbours will stand here.")
        wrong = table[(table.split == "query") & ~table.right].sort_values("support")
        if len(wrong) and st.button("Select what the neighbours get most wrong"):
            st.query_params["picked"] = ",".join(map(str, wrong.index[:12]))
            st.rerun()
        return
    row = chosen[0]
    if len(chosen) > 1:
        labels = {at: f"{table['sample'][at]}: {table.class_name[at]}" for at in chosen}
        row = show.choose(
            "shown", f"{len(chosen)} objects selected; shown here", chosen, label=labels.get
        )
    one = table.loc[row]
    if st.button(f"Open {one['sample']} layer by layer", type="primary", width="stretch"):
        show.go_to(
            "object", **{"class": one.class_name}, object=one["sample"], variant=model, layer=layer
        )
    said = "right" if one.right else f"wrong, they name {one.named}"
    st.text(
        f"{one['sample']} ({one.split}), class: {one.class_name}\n"
        f"neighbours: {said}; {one.support:.0%} of {found.attrs['k']} are of its class\n"
        f"drift: {one.drift:.4f} (1 − cosine)"
    )
    objects.cloud(path, int(row), height=190)
    st.text(one.caption)
    said_of(path, one["sample"], model)
    st.text(f"Nearest gallery objects in layer {layer}, nearest first")
    rows = found.neighbour.sel(model=model, layer=layer).values[row][:3]
    objects.neighbours(path, data.near_table(path, int(row), rows))


def said_of(path: Path, sample: str, model: str) -> None:
    """What the models answered about the object, where they were asked; this one's first."""
    given = answers(path, sample)
    if given.empty:
        return
    order = (given.model != model.partition("@")[0]).argsort(kind="stable")
    st.dataframe(given.iloc[order], hide_index=True)


main(st.session_state["opened"])
