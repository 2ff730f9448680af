"""One object through the network: what each layer takes it for, and what its tokens read."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from dashboards import data, objects, show
from probe.objects import painted, rebuilt
from probe.plots_cloud import cloud_figure
from probe.plots_object import neighbours_figure, rebuilt_figure, token_figure

NEIGHBOURS = 6


def main(path: Path) -> None:
    st.title("Object")
    run, table = data.open_run(path), data.samples(path)
    row, model, layer = pick(table, data.models(path), run.layers)
    found = layers_of(path, run.complete)
    with data.reading(path):
        draw(path, table, row, model, layer, found)


def draw(
    path: Path,
    table: pd.DataFrame,
    row: int,
    model: str,
    layer: int,
    found: xr.Dataset | None,
) -> None:
    """All of one object in one layer of one model. found : of `probe.objects`, if it is there"""
    left, right = st.columns([2, 3], gap="medium")
    with right:
        token = None if found is None else tokens(found, row, model, layer)
        if found is not None:
            by_layer(path, found, row, model, layer)
    with left:
        the_object(path, table, row, token)
    st.subheader(f"Nearest gallery objects in layer {layer} of {model}")
    if found is None:
        near = data.neighbours(path, model, layer, row, NEIGHBOURS)
    else:
        rows = found.neighbour.sel(model=model, layer=layer).values[row]
        near = data.near_table(path, row, rows)
    st.text(
        f"{near.right.sum()} of {len(near)} are of its class; by the cosine of mean tokens, "
        "nearest first"
    )
    objects.neighbours(path, near, in_row=NEIGHBOURS)
    if found is None:
        show.csv(near.drop(columns="row"), "neighbours")
    lens(path, table["sample"][row], data.probed(path, model), layer, token)
    reconstruction(path, table, row, data.probed(path, model), layer)


def pick(table: pd.DataFrame, models: list[str], layers: list[int]) -> tuple[int, str, int]:
    """Row of the object, model and layer, from four boxes in one line."""
    boxes = st.columns([3, 4, 2, 2])
    with boxes[0]:
        name = show.choose("class", "Class", list(dict.fromkeys(table.class_name)), keep=True)
    members = table[table.class_name == name]
    split = dict(zip(members["sample"], members.split, strict=True))
    first = next((one for one in split if split[one] == "query"), None)
    with boxes[1]:
        chosen = show.choose(
            "object",
            "Object",
            list(split),
            default=first,
            label=lambda i: f"{i} ({split[i]})",
            keep=True,
        )
    with boxes[2]:
        default = data.main_model(models)
        model = show.choose("variant", "Model", models, default=default, keep=True)
    with boxes[3]:
        layer = show.choose("layer", "Layer", layers, default=layers[-1], keep=True)
    return int(members.index[members["sample"] == chosen][0]), model, layer


def layers_of(path: Path, complete: bool) -> xr.Dataset | None:
    """What is looked up of every object; nothing for a run that is not captured yet."""
    if not complete:
        st.info("This run is not completely captured: neighbours are those captured so far.")
        return None
    make = partial(data.objects, path)
    return show.computing(make, "Looking up every object in every layer of this run")


def tokens(found: xr.Dataset, row: int, model: str, layer: int) -> int:
    """Layer by token; returns the token that is chosen, or the one that has drifted most."""
    st.subheader("How far each token has drifted")
    drift = found.token_drift.sel(model=model).isel(sample=row).astype(np.float32)
    most = int(drift.sel(layer=layer).values.argmax())
    asked = st.query_params.get("token", "")
    token = int(asked) if asked.isdecimal() and int(asked) < drift.sizes["token"] else most
    layers = drift.layer.values.tolist()
    figure = token_figure(drift.values, layers, (layer, token))
    long = drift.rename("drift").to_dataframe()["drift"].reset_index()
    alt = "Drift by layer and token"
    show.draw(figure, long, "tokens", alt=alt, on_select=follow_cell)
    here = float(drift.sel(layer=layer)[token])
    which = "the furthest of this layer" if token == most else f"the furthest here is {most}"
    st.text(f"Framed: layer {layer}, token {token}, drift {here:.4f}; {which}. Click a cell.")
    return token


def follow_cell() -> None:
    """The cell that was clicked goes into the address."""
    if points := show.clicked("tokens"):
        layer, token = map(int, points[0]["customdata"])
        st.query_params["layer"], st.query_params["token"] = str(layer), str(token)


def by_layer(path: Path, found: xr.Dataset, row: int, model: str, layer: int) -> None:
    """The neighbours of all layers at a glance."""
    st.subheader("What each layer takes it for")
    st.text("The classes of its nearest gallery objects. Click a layer to go there.")
    layers = found.layer.values.tolist()
    near = [
        data.near_table(path, row, found.neighbour.sel(model=model, layer=at).values[row])
        for at in layers
    ]
    right = np.stack([one.right.to_numpy() for one in near])
    figure = neighbours_figure([one.class_name.tolist() for one in near], right, layers, layer)
    long = pd.concat([one.assign(layer=at) for one, at in zip(near, layers, strict=True)])
    alt = "Classes of the nearest objects by layer"
    show.draw(figure, long.drop(columns="row"), "neighbours", alt=alt, on_select=follow_layer)


def follow_layer() -> None:
    """The layer that was clicked goes into the address."""
    if points := show.clicked("neighbours"):
        st.query_params["layer"] = str(points[0]["customdata"][0])


def the_object(path: Path, table: pd.DataFrame, row: int, token: int | None) -> None:
    """The cloud, painted by what the token reads where that was captured; class and caption."""
    one = table.iloc[row]
    st.subheader("The object")
    share = None
    read = None if token is None else data.attention(path, row)
    if read is not None and objects.has_clouds(path):
        paint = show.choose("paint", "Colours", ["token", "true"], label=PAINT.get)
        if paint == "token":
            share = painted(data.cloud(path, row), read[1], read[0][token])
            st.text(f"What token {token} reads of the cloud")
    objects.cloud(path, row, share=share, export=True)
    if token is not None and read is None:
        st.text("Which part a token reads is not in this run: it was captured without attention.")
    st.text(f"{one['sample']} ({one['split']})\nclass: {one['class_name']}")
    st.text(one["caption"])


PAINT = {"token": "what the framed token reads", "true": "its own colours"}


def lens(path: Path, sample: str, model: str, layer: int, token: int | None) -> None:
    """The word that each layer would say at this object's tokens."""
    st.subheader("What the tokens say in words")
    results = data.results(path, "lens")
    if results is None:
        said, command = data.explain(path)
        show.missing(f"This run was not read through a lens. {said}", command)
        return
    if sample not in results.object.values or model not in results["variant"].values:
        st.text(f"The lens read {results.sizes['object']} query objects, and not this one.")
        return
    kind = show.choose("lens", "Lens", results["lens"].values.tolist()[::-1], label=str.capitalize)
    words = data.words(results, model, kind, sample, token)
    st.dataframe(words, hide_index=True)
    show.csv(words, "lens")


def reconstruction(path: Path, table: pd.DataFrame, row: int, model: str, layer: int) -> None:
    """The object as a small decoder rebuilds it from the tokens of each layer."""
    st.subheader("Rebuilt from its tokens")
    sample, results = table["sample"][row], data.results(path, "reconstruction")
    if results is None:
        command = data.command(path, "reconstruction")
        show.missing("Nothing was rebuilt from this run's tokens yet.", command)
        return
    if model not in results["variant"].values:
        names = ", ".join(map(str, results["variant"].values))
        st.text(f"Clouds were rebuilt from the tokens of {names}.")
        return
    if sample not in results.shown.values:
        elsewhere(table, results.shown.values.tolist())
        return
    with data.reading(path):
        found, true = rebuilt(results, model, sample), results.true_cloud.sel(shown=sample).values
    layers = [one.layer for one in found if one.layer is not None]
    near = min(layers, key=lambda at: abs(at - layer))
    sources = {None: "from the target", near: f"from layer {near}"}
    clouds = {"original": true}
    clouds |= {sources[one.layer]: one.cloud for one in found if one.layer in sources}
    for column, (name, cloud) in zip(st.columns(3), clouds.items(), strict=True):
        with column:
            st.text(name)
            figure = cloud_figure(cloud, size=3).update_layout(height=220)
            show.plot(figure, f"rebuilt-{name}", alt=f"The cloud, {name}", small=True)
    st.text(
        "By layer, with the Chamfer distance to the original in mean radii (0 = the same); the "
        "decoder is fitted anew for each layer."
    )
    titles = ["original"]
    for one in found:
        titles.append(
            f"{'target' if one.layer is None else f'layer {one.layer}'}: {one.chamfer:.3f}"
        )
    figure = rebuilt_figure([true, *(one.cloud for one in found)], titles)
    show.plot(figure, "rebuilt", alt="The object rebuilt from each layer", small=True)
    show.csv(points_of([true, *(one.cloud for one in found)], titles), "rebuilt")


def points_of(clouds: list[np.ndarray], names: list[str]) -> pd.DataFrame:
    """Rows of cloud, x, y and z."""
    parts = [
        pd.DataFrame(cloud, columns=["x", "y", "z"]).assign(cloud=name)
        for cloud, name in zip(clouds, names, strict=True)
    ]
    return pd.concat(parts)[["cloud", "x", "y", "z"]]


def elsewhere(table: pd.DataFrame, shown: list[str]) -> None:
    """A way to the objects whose rebuilt clouds were kept."""
    there = table[table["sample"].isin(shown)]
    st.text("Rebuilt clouds are kept of a few query objects, and not of this one.")
    classes = dict(zip(there["sample"], there.class_name, strict=True))

    def follow() -> None:
        if chosen := st.session_state["rebuilt-object"]:
            st.query_params["class"], st.query_params["object"] = classes[chosen], chosen

    st.selectbox(
        "Go to one of them",
        list(classes),
        index=None,
        format_func=lambda one: f"{one}: {classes[one]}",
        key="rebuilt-object",
        on_change=follow,
    )


main(st.session_state["opened"])
