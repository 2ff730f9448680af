"""One object through the network: what each layer takes it for, and what its tokens read."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from dashboards import data, objects, show
from probe.objects import painted
from probe.plots_cloud import cloud_figure
from probe.plots_maps import token_figure

NEIGHBOURS = 6


def main(path: Path) -> None:
    st.title("Object")
    run, table = data.open_run(path), data.samples(path)
    row, model, layer = pick(table, data.models(path), run.layers)
    found = layers_of(path, run.complete)
    left, right = st.columns([2, 3], gap="medium")
    with right:
        token = None if found is None else tokens(found, row, model, layer)
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
    show.csv(near.drop(columns="row"), "neighbours")
    words, rebuilt = st.columns(2, gap="medium")
    with words:
        lens(path, table["sample"][row], model, layer, token)
    with rebuilt:
        reconstruction(path, table["sample"][row], model, layer)


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
    show.draw(figure, long, "tokens", alt=alt, on_select=remember)
    here = float(drift.sel(layer=layer)[token])
    which = "the furthest of this layer" if token == most else f"the furthest here is {most}"
    st.text(f"Framed: layer {layer}, token {token}, drift {here:.4f}; {which}. Click a cell.")
    return token


def remember() -> None:
    """The cell that was clicked goes into the address."""
    if points := show.clicked("tokens"):
        layer, token = map(int, points[0]["customdata"])
        st.query_params["layer"], st.query_params["token"] = str(layer), str(token)


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
        command = f"python -m train.explain {data.quoted(path)}"
        show.missing("This run was not read through a lens yet.", command)
        return
    if sample not in results.object.values or model not in results["variant"].values:
        st.text(f"The lens read {results.sizes['object']} query objects, and not this one.")
        return
    kind = show.choose("lens", "Lens", results["lens"].values.tolist()[::-1], label=str.capitalize)
    words = data.words(results, model, kind, sample, token)
    st.dataframe(words, hide_index=True)
    show.csv(words, "lens")


def reconstruction(path: Path, sample: str, model: str, layer: int) -> None:
    """The object as a small decoder rebuilds it from the tokens of this layer."""
    st.subheader("Rebuilt from its tokens")
    results = data.results(path, "reconstruction")
    if results is None:
        command = data.command(path, "reconstruction")
        show.missing("Nothing was rebuilt from this run's tokens yet.", command)
        return
    shown = results.shown.values.tolist()
    here = layer in results.layer.values and model in results["variant"].values
    if sample not in shown or not here:
        ids = set(data.samples(path)["sample"])
        kept = [one for one in shown if one in ids]
        at = ", ".join(map(str, results.layer.values))
        st.text(f"Rebuilt clouds are kept of layers {at} of: {', '.join(kept) or 'none here'}")
        return
    clouds = {
        "original": results.true_cloud,
        f"from layer {layer}": results.cloud.sel(variant=model, layer=layer),
        "from the target": results.target_cloud,
    }
    for column, (name, cloud) in zip(st.columns(3), clouds.items(), strict=True):
        with column:
            st.text(name)
            figure = cloud_figure(cloud.sel(shown=sample).values, size=3)
            figure.update_layout(height=190)
            show.plot(figure, f"rebuilt-{name}", alt=f"The cloud, {name}", small=True)
    error = float(results.chamfer_mean.sel(variant=model, layer=layer))
    st.text(f"Mean Chamfer distance of this layer: {error:.4f} mean radii, lower is closer")


main(st.session_state["opened"])
