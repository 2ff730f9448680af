"""One object on a page: its cloud, and those that a layer puts beside it."""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from dashboards import data, show
from probe.plots_cloud import cloud_figure, painted_figure
from store.schema import CHANNELS

A_ROW = 3
SMALL = 1024  # points of a small cloud, at most


def has_clouds(path: Path) -> bool:
    return data.open_run(path).attrs["points"] is not None


def cloud(
    path: Path,
    row: int,
    *,
    height: int = 330,
    share: np.ndarray | None = None,
    export: bool = False,
) -> None:
    """The points in their own colours, or in those of what a token reads."""
    if not has_clouds(path):
        st.info("This run was captured without its clouds: only names are shown.")
        return
    points = data.cloud(path, row)
    figure = cloud_figure(points) if share is None else painted_figure(points, share)
    name = f"cloud-{data.samples(path)['sample'][row]}"
    show.plot(
        figure.update_layout(height=height),
        name,
        alt="The object's points" + (" in their colours" if share is None else ", painted"),
    )
    if export:
        table = pd.DataFrame(points, columns=list(CHANNELS))
        show.csv(table if share is None else table.assign(read=share), name)


def neighbours(path: Path, near: pd.DataFrame, *, in_row: int = A_ROW) -> None:
    """Small clouds in rows, each with its class and whether that is right."""
    drawn = has_clouds(path)
    for start in range(0, len(near), in_row):
        shown = near.iloc[start : start + in_row]
        for column, (at, other) in zip(st.columns(in_row), shown.iterrows(), strict=False):
            with column:
                st.text(f"{'✓ right' if other['right'] else '✗ wrong'}: {other['class_name']}")
                if drawn:
                    points = data.cloud(path, int(other["row"]))
                    points = points[:: -(-len(points) // SMALL)]
                    figure = cloud_figure(points).update_layout(height=120)
                    show.plot(figure, f"neighbour-{at}", alt="A neighbour's points", small=True)
                st.text(other["sample"])
