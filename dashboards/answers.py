"""What models said of an object when `train.evaluate` asked them, from the files that it wrote."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

FOLDER = "evaluation"
COLUMNS = ["model", "question", "answer", "judged"]


def answers(path: Path, sample: str) -> pd.DataFrame:
    """Columns model, question, answer and judged, a row an answer about this object.

    Empty where a run was not asked. A file that cannot be read is left out, as is one that
    leads out of the run.
    """
    table = _answers(path, _stamp(path))
    return table[table["sample"] == sample][COLUMNS]


def verdicts(path: Path, model: str) -> dict[str, pd.Series]:
    """By question, what was judged of a model's answers: "right" or "wrong", by sample id."""
    table = _answers(path, _stamp(path))
    said = table.judged.str.split(":").str[0]
    table = table.assign(said=said)[said.isin(["right", "wrong"]) & (table.model == model)]
    return {
        str(question): rows.set_index("sample").said
        for question, rows in table.groupby("question", sort=False)
    }


def _files(path: Path) -> list[Path]:
    found = sorted((path / FOLDER).glob("*/*.json"))
    return [file for file in found if file.resolve().is_relative_to(path.resolve())]


def _stamp(path: Path) -> tuple[tuple[str, int], ...]:
    return tuple((str(file), file.stat().st_mtime_ns) for file in _files(path))


@st.cache_data(max_entries=8, show_spinner=False)
def _answers(path: Path, stamp: tuple[tuple[str, int], ...]) -> pd.DataFrame:
    rows = {}  # of a question that was judged there are two files; the one with verdicts stays
    for file in _files(path):
        for row in _read(file):
            key = (row["sample"], row["model"], row["question"])
            if row["judged"] or key not in rows:
                rows[key] = row
    return pd.DataFrame(list(rows.values()), columns=["sample", *COLUMNS])


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        # in a judged file "prompt" is what the judge was told
        question = str(found.get("inference_prompt", found.get("prompt", "")))
        return [
            {
                "sample": str(row["object_id"]),
                "model": file.parent.name,
                "question": question,
                "answer": str(row["model_output"]),
                "judged": _verdict(row),
            }
            for row in found["results"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _verdict(row: dict[str, Any]) -> str:
    """In the form of the published evaluators: a score, T or F, or the row of a class."""
    if "gpt_score" in row:
        return f"{row['gpt_score']} of 100" if row["gpt_score"] >= 0 else "invalid"
    if "gpt_cls_result" not in row:
        return ""
    said = str(row["gpt_cls_result"])
    if "ground_truth_label" in row:
        right = said == str(row["ground_truth"])
        return "right" if right else f"wrong: taken for {row.get('gpt_cls_label', said)}"
    return {"T": "right", "F": "wrong"}.get(said, "invalid")
