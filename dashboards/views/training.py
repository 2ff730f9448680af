"""How did training go, and how far is it?"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboards import data, show
from probe.plots import training_figure

EVERY = 3  # seconds between two looks at a run in progress
QUIET = 600  # seconds without a line after which a run in progress may have been stopped


def main(path: Path) -> None:
    st.title("Training")
    running = data.record(path).get("status") == "running"
    st.fragment(follow, run_every=EVERY if running else None)(path, running)


def follow(path: Path, running: bool) -> None:
    """What is there by now; asked again every few seconds while the run goes on."""
    try:
        record, metrics = data.record(path), data.metrics(path)
    except data.Unreadable as problem:
        show.problem(problem)
        return
    if running and record.get("status") != "running":
        st.rerun()  # the whole page, so that it stops asking
    progress(path, record, metrics, running)
    if metrics.empty:
        st.info("No step is logged yet.")
        return
    figure = training_figure(metrics)
    show.draw(figure, metrics, "training", alt="Losses, learning rate, speed and memory by step")
    with st.expander("Logged steps"):
        st.dataframe(metrics, hide_index=True)


def progress(path: Path, record: dict[str, Any], metrics: pd.DataFrame, running: bool) -> None:
    """How far each variant is, and how long ago something was last heard."""
    steps = record.get("config", {}).get("steps")
    of = f" of {steps}" if steps else ""
    reached = metrics.groupby("variant", sort=False).step.max().items()
    if said := [f"{variant}: step {last:.0f}{of}" for variant, last in reached]:
        st.text(" · ".join(said))
    if not running:
        st.text(f"status: {record.get('status', 'not recorded')}")
        return
    log = path / "metrics.jsonl"
    heard = log if log.is_file() else path / "run.json"
    quiet = time.time() - heard.stat().st_mtime
    st.text(f"running; last change {quiet:.0f} s ago, looking every {EVERY} s")
    if quiet > QUIET:
        st.warning(
            "Nothing has been logged for over ten minutes. The run may be capturing, or it was "
            "stopped: its own command goes on where it was."
        )


main(st.session_state["opened"])
