"""streamlit run dashboards/app.py [-- RUNS_DIR]: look at the runs of a folder in the browser."""

import sys
import warnings
from pathlib import Path

import streamlit as st

# Streamlit puts this file's folder on the path; in a plain checkout the packages lie beside it.
if (root := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(root)

from dashboards import opening, show
from store import UnfinishedRunWarning

# A page is read at 1280 x 800 too: less empty room around it than Streamlit leaves.
TIGHTER = "<style>[data-testid=stMainBlockContainer] {padding: 4.2rem 2.2rem 3rem}</style>"

# One file each in views/: a folder named pages would start Streamlit's older mode, in which the
# first visitor of a new server gets a page without this file around it.
PAGES = {  # without icons: Streamlit would fetch them from another server for the tab
    "degradation": "Degradation across depth",
    "explorer": "Explorer",
    "object": "Object",
    "compare": "Compare",
    "causes": "Causes",
    "training": "Training",
    "provenance": "Provenance",
}


def main() -> None:
    st.set_page_config("Geometry by depth", layout="wide")
    st.html(TIGHTER)
    # Every page says by itself how much of a run is there.
    warnings.filterwarnings("ignore", category=UnfinishedRunWarning)
    page = st.navigation(
        [
            st.Page(f"views/{name}.py", title=title, url_path=name, default=not at)
            for at, (name, title) in enumerate(PAGES.items())
        ]
    )
    try:
        try:
            folder = opening.runs_folder(sys.argv[1:])
            entries = opening.list_runs(folder)
        except opening.NoRuns as nothing:
            folder = opening.demo_folder()
            entries = opening.list_runs(folder)
            show_demo(nothing)
        choose_run(folder, {entry.name: entry for entry in entries})
        page.run()
    except opening.Unreadable as problem:
        show.problem(problem)


def show_demo(nothing: opening.NoRuns) -> None:
    """Say that this is not a run of theirs, and what makes one."""
    with st.expander(f"This is the demo. {nothing.plainly}"):
        st.text(str(nothing))
        st.text(opening.about_demo())
        st.text("This command makes a run, in some minutes on two cores:")
        st.code(nothing.command, language="bash", wrap_lines=True)


def choose_run(folder: Path, entries: dict[str, opening.Entry]) -> None:
    """The run picked in the sidebar, for all pages; its state stands beneath."""

    def label(name: str) -> str:
        state = entries[name].state
        return name if state == "complete" else f"{name} ({state})"

    with st.sidebar:
        name = show.choose("run", "Run", list(entries), label=label, keep=True)
        st.text(entries[name].note)
        show.pick_format()
    st.session_state["opened"] = opening.run_path(folder, name)
    if entries[name].state == "no run":
        raise opening.Unreadable(f"{name} is no run: it holds no {opening.STORE}.")


main()
