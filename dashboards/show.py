"""What all pages share: choices that live in the URL, figures that export, text shown as text."""

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from probe.plots import on_dark

Option = str | int
NOT_NEEDED = ["select2d", "lasso2d", "autoScale2d", "tableRotation", "resetCameraLastSave3d"]


def choose(
    name: str,
    title: str,
    options: Sequence[Option],
    *,
    default: Option | None = None,
    label: Callable[[Any], str] = str,
    keep: bool = False,
) -> Any:
    """A select box whose value is the query parameter `name`: the URL decides, also after "back".

    A value in the URL that is no option is said to be unknown and replaced by the default.
    keep : remember the choice on the other pages, whose links carry no parameters.
    """
    by_text = {str(option): option for option in options}
    key = f"choice-{name}"
    asked = st.query_params.get(name)
    # Later in a session only another choice can have made it so: the class, say, of an object.
    first = f"kept-{name}" not in st.session_state
    if first and asked is not None and asked not in by_text:
        st.sidebar.warning("The address names something that is not here:")
        st.sidebar.text(f"{title}: {asked}")
    kept = st.session_state.get(f"kept-{name}") if keep else None
    texts = [text for text in (asked, kept) if text in by_text]
    fallback = options[0] if default is None else default
    st.session_state[key] = by_text[texts[0]] if texts else fallback

    def follow() -> None:
        st.query_params[name] = str(st.session_state[key])

    value = st.selectbox(title, options, format_func=label, key=key, on_change=follow)
    st.query_params[name] = str(value)
    st.session_state[f"kept-{name}"] = str(value)
    return value


def pick_format() -> None:
    """Which file the camera button above each figure saves; plotly has room for one."""
    st.session_state.setdefault("picture", "png")
    st.selectbox("Camera button saves", ["png", "svg"], format_func=str.upper, key="picture")


def draw(figure: go.Figure, table: pd.DataFrame, name: str, *, alt: str) -> None:
    """A figure with its exports: a picture by the camera button, its numbers as CSV."""
    plot(figure, name, alt=alt)
    csv(table, name)


def plot(figure: go.Figure, name: str, *, alt: str, small: bool = False) -> None:
    """A figure alone. `name` names its files and has to be its own on a page.

    small : of the buttons only the camera, and that while the pointer is over the figure.
    """
    plain_text(figure)
    if st.context.theme.type == "dark":
        on_dark(figure)
    picture = {"format": st.session_state.get("picture", "png"), "filename": file_name(name)}
    if picture["format"] == "png":
        picture["scale"] = 2
    config: dict[str, Any] = {"displaylogo": False, "toImageButtonOptions": picture}
    if small:
        config["modeBarButtons"] = [["toImage"]]
    else:
        config |= {"displayModeBar": True, "modeBarButtonsToRemove": NOT_NEEDED}
    st.plotly_chart(figure, config=config, key=f"figure-{name}", alt=alt)


def csv(table: pd.DataFrame, name: str) -> None:
    """A button that saves a table."""
    st.download_button(
        "Data as CSV",
        table.to_csv(index=False).encode(),
        f"{file_name(name)}.csv",
        "text/csv",
        key=f"csv-{name}",
        icon=":material/download:",
        on_click="ignore",
    )


def problem(error: Exception) -> None:
    """An error that is not the program's: what it is, and nothing of the machinery."""
    st.error("This cannot be shown.")
    st.text(str(error))


def plain_text(figure: go.Figure) -> go.Figure:
    """Names and titles as they are: plotly would read markup in them. Changes the figure."""
    for trace in figure.data:
        if trace.name:
            trace.name = html.escape(trace.name, quote=False)
    layout = figure.layout
    titles = [layout.title, *(axis.title for axis in _axes(figure)), *layout.annotations]
    for title in titles:
        if title.text:
            title.text = html.escape(title.text, quote=False)
    return figure


def _axes(figure: go.Figure) -> list[Any]:
    return [*figure.select_xaxes(), *figure.select_yaxes()]


def file_name(name: str) -> str:
    """Letters, digits, - and _ of a name: what every file system takes."""
    return re.sub(r"[^\w-]+", "-", name, flags=re.ASCII).strip("-") or "figure"
