"""streamlit run dashboards/app.py [-- RUNS_DIR]: look at the runs of a folder in the browser."""

import sys
import warnings
from pathlib import Path

import streamlit as st

# Streamlit puts this file's folder on the path; in a plain checkout the packages lie beside it.
if (root := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(root)

from dashboards import data, show
from store import UnfinishedRunWarning

# One file each in views/: a folder named pages would start Streamlit's older mode, in which the
# first visitor of a new server gets a page without this file around it.
PAGES = {  # without icons: Streamlit would fetch them from another server for the tab
    "degradation": "Degradation across depth",
    "object": "Object",
    "training": "Training",
    "provenance": "Provenance",
}


def main() -> None:
    st.set_page_config("Geometry by depth", layout="wide")
    # Every page says by itself how much of a run is there.
    warnings.filterwarnings("ignore", category=UnfinishedRunWarning)
    page = st.navigation(
        [
            st.Page(f"views/{name}.py", title=title, url_path=name, default=not at)
            for at, (name, title) in enumerate(PAGES.items())
        ]
    )
    try:
        folder = data.runs_folder(sys.argv[1:])
        choose_run(folder)
        page.run()
    except data.NoRuns as nothing:
        st.title("No runs yet")
        st.text(str(nothing))
        st.text("This command makes one, in some minutes on two cores:")
        st.code(nothing.command, language="bash", wrap_lines=True)
    except data.Unreadable as problem:
        show.problem(problem)


def choose_run(folder: Path) -> None:
    """The run picked in the sidebar, for all pages; its state stands beneath."""
    entries = {entry.name: entry for entry in data.list_runs(folder)}

    def label(name: str) -> str:
        state = entries[name].state
        return name if state == "complete" else f"{name} ({state})"

    with st.sidebar:
        name = show.choose("run", "Run", list(entries), label=label, keep=True)
        st.text(entries[name].note)
        show.pick_format()
    st.session_state["opened"] = data.run_path(folder, name)


main()
