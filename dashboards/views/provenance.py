"""Where does this run come from, is it whole, and what makes it again?"""

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import store
from dashboards import data, show
from store.schema import STORE


def main(path: Path) -> None:
    st.title("Provenance")
    record = data.record(path)
    attrs = data.open_run(path).attrs if (path / STORE).exists() else {}
    with data.reading(path):
        draw(path, record, attrs)


def draw(path: Path, record: dict[str, Any], attrs: dict[str, Any]) -> None:
    reproduce(record)
    left, right = st.columns(2, gap="medium")
    with left:
        st.subheader("State")
        pairs(state(path, record, attrs))
        st.subheader("Versions")
        pairs(record.get("versions", {}))
        st.subheader("Hashes")
        pairs(record.get("hashes", {}) | attrs.get("digests", {}))
    with right:
        report(path)
        verify(path)
        st.subheader("Config")
        pairs(record.get("config", {}))


def reproduce(record: dict[str, Any]) -> None:
    st.subheader("The command that makes this run")
    if "command" in record:
        st.code(str(record["command"]), language="bash", wrap_lines=True)
        st.text(
            f"at commit {record.get('commit', 'unknown')} (+ means changed files); "
            "give another --out to keep this run"
        )
    else:
        st.info("Not recorded: this run has no run.json.")


def state(path: Path, record: dict[str, Any], attrs: dict[str, Any]) -> dict[str, Any]:
    found = {name: record[name] for name in ("status", "seed", "seconds") if name in record}
    if not attrs:
        return found | {"states": "none captured"}
    about = ("schema_version", "complete", "samples", "layers", "variants", "tokens", "dtype")
    finished = {f"finished samples, {name}": count for name, count in data.done(path).items()}
    return found | {name: attrs[name] for name in about if name in attrs} | finished


def report(path: Path) -> None:
    """The page of all that was found, made when asked for; nothing is written into the run."""
    st.subheader("Report")
    if data.results(path, "sweep") is None:
        st.info("There is nothing to report yet: the Degradation page computes the scores.")
        return
    if st.button("Make the report", icon=":material/description:", key="report"):
        with st.spinner("Drawing the report …"):
            page = data.report(path)
        name = f"{show.file_name(path.name)}-report.html"
        st.download_button("Save the report", page, name, "text/html", on_click="ignore")
        st.text(f"{len(page) / 1e6:.1f} MB in one file, which opens without a network")


def verify(path: Path) -> None:
    """Reads everything, so only when asked to."""
    st.subheader("Integrity")
    if not (path / STORE).exists():
        st.info("There are no states to check.")
        return
    if st.button("Verify every chunk", icon=":material/verified:", key="verify"):
        with st.spinner("Reading the whole store …"), data.reading(path):
            problems = store.verify_run(path)
        if not problems:
            st.success("Whole: every finished chunk can be read and its checksum is right.")
            return
        st.error(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:")
        for problem in problems:
            st.text(problem)


def pairs(values: dict[str, Any]) -> None:
    """Names and values as a table: a cell shows text as it is."""
    if not values:
        st.text("not recorded")
        return
    table = pd.DataFrame({"name": list(values), "value": [str(v) for v in values.values()]})
    st.dataframe(table, hide_index=True, height="content")


main(st.session_state["opened"])
