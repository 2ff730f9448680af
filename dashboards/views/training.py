"""How did training go, and how far is it?"""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
import xarray as xr

from dashboards import data, opening, show
from probe.plots_heat import STEPS, steps_change_figure, steps_figure
from probe.plots_training import steps_gaps, steps_gaps_figure, training_figure
from probe.steps import ENDINGS, findings
from store.schema import STORE

EVERY = 3  # seconds between two looks at a run in progress
DOTS = "A dot: the two differ, paired by object, p < 0.05 over all layers and steps at once."
QUIET = 600  # seconds without a line after which a run in progress may have been stopped


def main(path: Path) -> None:
    st.title("Training")
    running = data.record(path).get("status") == "running"
    st.fragment(follow, run_every=EVERY if running else None)(path, running)
    st.subheader("How the layers change during training")
    during(path)


def follow(path: Path, running: bool) -> None:
    """What is there by now; asked again every few seconds while the run goes on."""
    try:
        with data.reading(path):
            show_log(path, running)
    except data.Unreadable as problem:
        show.problem(problem)


def show_log(path: Path, running: bool) -> None:
    record, metrics = data.record(path), data.metrics(path)
    if running and record.get("status") != "running":
        st.rerun()  # the whole page, so that it stops asking
    progress(path, record, metrics, running)
    if metrics.empty:
        st.info("No step is logged yet." if running else "This run has logged no training.")
        return
    figure = training_figure(metrics)
    show.draw(figure, metrics, "training", alt="Losses, learning rate, speed and memory by step")
    show.numbers(lambda: {"logged steps": metrics}, "steps")


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


def during(path: Path) -> None:
    """Drift over steps and depth, where the models were captured while they trained."""
    results = data.results(path, "steps")
    if results is None:
        captured = (path / STORE).exists() and any("@" in name for name in data.models(path))
        if captured:
            show.missing("Not measured yet. This command does:", data.command(path, "steps"))
        elif data.from_stage2(path):
            more = f"{opening.MAKE_A_RUN} --capture-every 60"
            show.missing("No model of this run was captured while it trained. To have that:", more)
        else:
            st.text("No model of this run was captured while it trained.")
        return
    with data.reading(path):
        scores = [name for name in STEPS if f"{name}_mean" in results]
        score = show.choose("score", "Score", scores[::-1], label=lambda name: STEPS[name][0])
        figure = steps_figure(results, score).update_layout(title=None, margin_t=40)
        parts = [f"{score}_{part}" for part in ("mean", "low", "high")]
        table = results[parts].to_dataframe().dropna().reset_index()
        show.draw(figure, table, f"steps-{score}", alt="A score by training step and layer")
        if f"{score}_step_difference" in results:
            apart(results, score)


def apart(results: xr.Dataset, score: str) -> None:
    """From which step on, and where in depth, training sets the models apart."""
    st.subheader("From when on the models differ")
    st.text(DOTS)
    figure = steps_change_figure(results, score).update_layout(margin_t=40)
    parts = [f"{score}_step_difference{part}" for part in ENDINGS]
    there = [part for part in parts if part in results]
    table = results[there].to_dataframe().dropna().reset_index()
    alt = "Difference to the baseline by training step and layer"
    show.draw(figure, table, f"steps-{score}-difference", alt=alt)
    if gaps := steps_gaps(results, score):
        figure, alt = steps_gaps_figure(gaps, results), "The same over the layers, a panel a step"
        show.draw(figure, table, f"steps-{score}-gaps", alt=alt)
    for sentence in findings(results):
        st.text(f"• {sentence}")


main(st.session_state["opened"])
