"""One object: what it looks like, and what a layer takes it to be like."""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import data, show
from probe.plots_cloud import cloud_figure
from store.schema import CHANNELS

NEIGHBOURS = 6


def main(path: Path) -> None:
    st.title("Object")
    run, table = data.open_run(path), data.samples(path)
    if run.attrs["points"] is None:
        st.info("This run was captured without its clouds: only names are shown.")
    row, variant, layer = pick(table, run.variants, run.layers)
    one = table.iloc[row]
    left, right = st.columns([2, 3], gap="medium")
    with left:
        st.subheader("The object")
        if run.attrs["points"] is not None:
            points = data.cloud(path, row)
            figure = cloud_figure(points).update_layout(height=330)
            name = f"cloud-{one['sample']}"
            show.draw(figure, cloud_table(points), name, alt="The object's points in their colours")
        st.text(f"{one['sample']} ({one['split']})\nclass: {one['class_name']}")
        st.text(one["caption"])
    with right:
        st.subheader("Nearest gallery objects in this layer")
        near = data.neighbours(path, variant, layer, row, NEIGHBOURS)
        st.text(
            f"{near.right.sum()} of {len(near)} are of its class; {variant}, layer {layer}, "
            "by the cosine of mean tokens, nearest first"
        )
        clouds(path, near, run.attrs["points"] is not None)
        show.csv(near.drop(columns="row"), "neighbours")


def pick(table: pd.DataFrame, variants: list[str], layers: list[int]) -> tuple[int, str, int]:
    """Row of the object, variant and layer, from four boxes in one line."""
    boxes = st.columns([3, 4, 2, 2])
    with boxes[0]:
        name = show.choose("class", "Class", list(dict.fromkeys(table.class_name)))
    members = table[table.class_name == name]
    split = dict(zip(members["sample"], members.split, strict=True))
    first = next((one for one in split if split[one] == "query"), None)
    with boxes[1]:
        chosen = show.choose(
            "object", "Object", list(split), default=first, label=lambda i: f"{i} ({split[i]})"
        )
    with boxes[2]:
        variant = show.choose("variant", "Variant", variants)
    with boxes[3]:
        layer = show.choose("layer", "Layer", layers, default=layers[-1])
    return int(members.index[members["sample"] == chosen][0]), variant, layer


def clouds(path: Path, near: pd.DataFrame, drawn: bool) -> None:
    """Three in a row, each with its class and whether that is right."""
    for start in range(0, len(near), 3):
        for column, (at, other) in zip(
            st.columns(3), near.iloc[start : start + 3].iterrows(), strict=False
        ):
            with column:
                st.text(f"{'✓ right' if other['right'] else '✗ wrong'}: {other['class_name']}")
                if drawn:
                    points = data.cloud(path, int(other["row"]))
                    figure = cloud_figure(points).update_layout(height=160)
                    show.plot(figure, f"neighbour-{at}", alt="A neighbour's points", small=True)
                st.text(other["sample"])


def cloud_table(points: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(points, columns=list(CHANNELS))


main(st.session_state["opened"])
