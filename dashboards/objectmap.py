"""The Explorer's map: a canvas in the page (objectmap.js) that glides from layer to layer."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from plotly.colors import sample_colorscale

from probe.plots_maps import CLASS_COLOURS, CLASS_SHAPES, REST, RING, SCALE, TWO

KEY = "object-map"
STEPS = 64  # colours of a scale
HTML = """<div class="object-map">
<canvas tabindex="0" role="application"></canvas>
<div class="tools" role="toolbar" aria-label="Map">
<button class="lasso" aria-pressed="true" title="On: dragging draws a lasso. Off: it moves the map"
>Lasso</button>
<button class="in" title="Zoom in" aria-label="Zoom in">+</button>
<button class="out" title="Zoom out" aria-label="Zoom out">−</button>
<button class="home" title="Show all (double click)">All</button>
<button class="png" title="Save as PNG">PNG</button>
<button class="svg" title="Save as SVG">SVG</button>
</div>
<div class="tip" aria-live="polite" hidden></div>
</div>"""
CSS = """
.object-map {position: relative; color: var(--st-text-color);
  background: var(--st-background-color); font-family: var(--st-font)}
.object-map canvas {width: 100%; height: 440px; display: block; cursor: crosshair;
  touch-action: none; border-radius: 6px;
  border: 1px solid color-mix(in srgb, var(--st-text-color) 18%, transparent)}
.object-map canvas:focus-visible, .object-map button:focus-visible {
  outline: 2px solid var(--st-primary-color); outline-offset: 1px}
.object-map .tools {position: absolute; right: 8px; bottom: 8px; display: flex; gap: 4px}
.object-map button {font: inherit; font-size: 13px; color: inherit;
  background: var(--st-background-color); padding: 1px 9px; border-radius: 5px; cursor: pointer;
  border: 1px solid color-mix(in srgb, var(--st-text-color) 30%, transparent)}
.object-map button[aria-pressed=true] {border-color: var(--st-primary-color);
  background: color-mix(in srgb, var(--st-primary-color) 16%, var(--st-background-color))}
.object-map .tip {position: absolute; pointer-events: none; font-size: 13px; padding: 2px 8px;
  border-radius: 4px; color: var(--st-background-color);
  background: var(--st-text-color); max-width: 60%; overflow-wrap: anywhere}
"""


def object_map(
    table: pd.DataFrame,
    by: str,
    *,
    frame: tuple[tuple[float, float], tuple[float, float]],
    name: str,
    alt: str,
    on_pick: Callable[[], None],
    title: str = "",
    classes: Sequence[str] = (),
    chosen: Sequence[int] = (),
) -> None:
    """Objects on a map; `picked()` has the index of `table` of those clicked or drawn around.

    table   : a row an object: x, y, sample, class_name, split, right, and the column `by`
    by      : class_name, right, a column of sides of `TWO`, or one of numbers; `title` is that of
              its scale
    frame   : ends of x and of y that are shown, the same in all layers of a map
    name    : of the files that PNG and SVG are saved to    alt : what is to be seen
    on_pick : called before the page runs again
    classes : those in colour, all others are grey    chosen : index of objects to ring
    """
    marks, colour, scale = _coloured(table, by, title, classes)
    names, name_of = np.unique(table.class_name.to_numpy(str), return_inverse=True)
    shown = {
        "rows": _packed(table.index, np.int32),
        "position": _packed(table[["x", "y"]], np.float32),
        "colour": _packed(colour, np.uint8),
        "marks": marks,
        "scale": scale,
        "samples": table["sample"].astype(str).tolist(),
        "names": names.tolist(),
        "name_of": name_of.tolist(),
        "chosen": list(chosen),
        "ring": RING,
        "frame": frame,
        "name": name,
        "alt": alt,
    }
    _component()(key=KEY, data=shown, on_picked_change=on_pick)


def picked() -> list[int]:
    """What was clicked or drawn around just now, while `on_pick` runs."""
    return [int(row) for row in st.session_state[KEY].get("picked") or []]


@cache
def _component() -> Any:
    script = Path(__file__).with_name("objectmap.js").read_text(encoding="utf-8")
    return st.components.v2.component(
        "object_map", html=HTML, css=CSS, js=script, isolate_styles=False
    )


def _packed(values: Any, kind: type) -> str:
    """Numbers as the page reads them: little-endian bytes, in base64."""
    numbers = np.asarray(values, np.dtype(kind).newbyteorder("<"))
    return b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def _coloured(
    table: pd.DataFrame, by: str, title: str, classes: Sequence[str]
) -> tuple[list[dict[str, Any]], np.ndarray, dict[str, str] | None]:
    """Marks, which of them each object has, and the scale where they stand for numbers."""
    if by == "class_name":
        shown = list(classes)[: len(CLASS_COLOURS)]
        others = table.class_name[~table.class_name.isin(shown)].nunique()
        kinds = [(f"{others} other classes", REST, "circle", 0.45)]
        kinds += [
            (name, colour, shape, 0.85)
            for name, colour, shape in zip(shown, CLASS_COLOURS, CLASS_SHAPES, strict=False)
        ]
        at = pd.Index(shown).get_indexer(table.class_name) + 1
    elif not pd.api.types.is_numeric_dtype(table[by]) or by == "right":
        values = table[by].map({True: "right", False: "wrong"}) if by == "right" else table[by]
        names = [name for name in TWO if (values == name).any()]
        kinds = [(name, *TWO[name], 0.45 if name == "not asked" else 0.85) for name in names]
        at = pd.Index(names).get_indexer(values)
    else:
        return _scaled(table[by].to_numpy(float), title or by)
    parts = ("name", "colour", "shape", "opacity")
    return [dict(zip(parts, kind, strict=True)) for kind in kinds], at, None


def _scaled(
    values: np.ndarray, title: str
) -> tuple[list[dict[str, Any]], np.ndarray, dict[str, str]]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    share = (values - low) / (high - low) if high > low else np.zeros(len(values))
    colours = sample_colorscale(SCALE, np.linspace(0, 1, STEPS).tolist())
    marks = [{"name": "", "colour": c, "shape": "circle", "opacity": 0.85} for c in colours]
    marks.append({"name": "", "colour": REST, "shape": "circle", "opacity": 0.45})  # no number
    at = np.where(np.isfinite(share), np.rint(np.nan_to_num(share) * (STEPS - 1)), STEPS)
    return marks, at.astype(int), {"low": f"{low:.3g}", "high": f"{high:.3g}", "title": title}
