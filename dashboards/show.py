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
    label: Callable[[Any], Any] = str,
    keep: bool = False,
    slide: bool = False,
) -> Any:
    """A select box whose value is the query parameter `name`: the URL decides, also after "back".

    A value in the URL that is no option is said to be unknown and replaced by the default.
    keep  : remember the choice on the other pages, whose links carry no parameters.
    slide : a slider instead of a box.
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

    if slide and len(options) > 1:
        value = st.select_slider(title, options, format_func=label, key=key, on_change=follow)
    else:
        value = st.selectbox(title, options, format_func=label, key=key, on_change=follow)
    st.query_params[name] = str(value)
    st.session_state[f"kept-{name}"] = str(value)
    return value


def choose_some(
    name: str, title: str, options: Sequence[str], *, default: Sequence[str], most: int
) -> list[str]:
    """Several options; the query parameter `name` holds them with | between."""
    key, asked = f"choice-{name}", st.query_params.get(name)
    listed = default if asked is None else [one for one in asked.split("|") if one in options]
    st.session_state[key] = list(listed)[:most]

    def follow() -> None:
        st.query_params[name] = "|".join(st.session_state[key])

    return st.multiselect(title, options, key=key, on_change=follow, max_selections=most)


def go_to(page: str, **choices: Option) -> None:
    """Open another page with these choices in its address; the run goes along."""
    parameters = {"run": st.query_params["run"]} | {n: str(v) for n, v in choices.items()}
    st.switch_page(f"views/{page}.py", query_params=parameters)


def clicked(name: str) -> list[dict[str, Any]]:
    """The points that are selected in the figure `name` and stand for something, in order."""
    state = st.session_state.get(f"figure-{name}") or {}
    points = state.get("selection", {}).get("points", [])
    there = [point for point in points if point.get("customdata") is not None]
    return [point | {"customdata": _row(point["customdata"])} for point in there]


def _row(data: Any) -> list[Any]:
    """customdata as a list: plotly gives a value, a list, or a dict by position of typed arrays."""
    if isinstance(data, dict):
        return [data[key] for key in sorted(data, key=int)]
    return list(data) if isinstance(data, list | tuple) else [data]


def computing(make: Callable[[Callable[[int, int, str], None]], Any], what: str) -> Any:
    """What `make(progress)` returns; a bar stands in the page while it is being made."""
    place = st.empty()

    def progress(step: int, steps: int, doing: str) -> None:
        with place.container():
            st.progress(min(step / steps, 1.0), f"{what}, once:")
            st.text(doing)

    made = make(progress)
    place.empty()
    return made


def missing(what: str, command: str) -> None:
    """An empty state: what is not there, and what to type to make it, if anything does."""
    st.info(what, icon=":material/info:")
    if command:
        st.code(command, language="bash", wrap_lines=True)


def pick_format() -> None:
    """Which file the camera button above each figure saves; plotly has room for one."""
    st.session_state.setdefault("picture", "png")
    st.selectbox("Camera button saves", ["png", "svg"], format_func=str.upper, key="picture")


def draw(
    figure: go.Figure,
    table: pd.DataFrame,
    name: str,
    *,
    alt: str,
    on_select: Any = "ignore",
) -> None:
    """A figure with its exports: a picture by the camera button, its numbers as CSV."""
    plot(figure, name, alt=alt, on_select=on_select)
    csv(table, name)


def plot(
    figure: go.Figure,
    name: str,
    *,
    alt: str,
    small: bool = False,
    on_select: Any = "ignore",
) -> None:
    """A figure alone. `name` names its files and has to be its own on a page.

    small     : of the buttons only the camera, and that while the pointer is over the figure.
    on_select : "rerun", or what is called before the page runs again, when a point is clicked;
                `clicked(name)` then holds the points.
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
    st.plotly_chart(
        figure,
        config=config,
        key=f"figure-{name}",
        alt=alt,
        on_select=on_select,
        selection_mode="points",
    )


def csv(table: pd.DataFrame, name: str) -> None:
    """A button that saves a table."""
    st.download_button(
        "Data as CSV",
        lambda: table.to_csv(index=False).encode(),  # when it is asked for: large ones take time
        f"{file_name(name)}.csv",
        "text/csv",
        key=f"csv-{name}",
        icon=":material/download:",
        on_click="ignore",
    )


def numbers(make: Callable[[], dict[str, pd.DataFrame]], name: str) -> None:
    """Tables behind the figures of a page, a tab and a CSV each.

    They are made and sent once they are opened: the browser would load what draws tables, a large
    script, before it draws the figure.
    """
    place = st.expander("The numbers", key=f"numbers-{name}", on_change="rerun")
    if not place.open:
        return
    tables = make()
    with place:
        for tab, (title, table) in zip(st.tabs(list(tables)), tables.items(), strict=True):
            with tab:
                st.dataframe(table, hide_index=True)
                csv(table, f"{name}-{title}")


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
            # a line break is all the markup that our own titles hold
            title.text = html.escape(title.text, quote=False).replace("&lt;br&gt;", "<br>")
    return figure


def _axes(figure: go.Figure) -> list[Any]:
    return [*figure.select_xaxes(), *figure.select_yaxes()]


def file_name(name: str) -> str:
    """Letters, digits, - and _ of a name: what every file system takes."""
    return re.sub(r"[^\w-]+", "-", name, flags=re.ASCII).strip("-") or "figure"
