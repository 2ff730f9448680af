"""What a visitor of the dashboard waits for: python -m tests.benchmarks.bench_dashboard

The run is synthetic: 12,311 objects (ModelNet40), 9 layers, 2 variants, 32 narrow tokens, and what
`python -m probe` would have computed of it, in the right form but at random. The server runs
already and has had one visitor. Measured in Chromium, by the page's own clock:

page        : from the navigation, by a browser that has nothing in its cache, until the title of
              the page is drawn. An app of one title, served and asked the same way in turn, is the
              floor: what Streamlit itself takes.
figure      : until pixels of the page's first figure are drawn. Plotly's script has 4.7 MB, which
              that browser loads and compiles first; the map of the Explorer does without.
again       : the same, by a browser that has been on the page before.
layer       : from the slider's key until the map's pixels change, and until the map is at rest.
fluid       : frames a second of the map while it glides to a layer, and while it is dragged.
memory      : of the server, before the first visitor, after a visit of every page, and after all
              layers of both models.

Where other programs run, wall time says little. Prints one JSON object.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

import store
from tests.browser import NoBrowser, chromium, dashboard

LAYERS = [0, 4, 8, 12, 16, 20, 24, 28, 32]
VARIANTS = ["baseline", "aligned"]
TOKENS, DIM, CLASSES, POINTS = 32, 16, 40, 256
DRAWN = {  # by page (Degradation is at the root): pixels of the map, lines, or a table
    "": ".js-plotly-plot .points path",
    "explorer": ".object-map canvas[data-glided]",
    "object": ".js-plotly-plot .heatmaplayer image",
    "compare": ".js-plotly-plot .lines path",
    "causes": "[data-testid=stAlert]",  # the run has no such results: what to type
    "training": "[data-testid=stAlert]",
    "provenance": "[data-testid=stDataFrame] canvas",
}
CLOCK = """selector => {  // of every new page, before its own scripts run
    const pixels = (canvas) => {
        const small = new OffscreenCanvas(64, 64);
        const pen = small.getContext("2d", {willReadFrequently: true});
        pen.drawImage(canvas, 0, 0, 64, 64);
        return pen.getImageData(0, 0, 64, 64).data;
    };
    const all = { frames: [] };
    window.bench = all;
    addEventListener("keydown", (event) => Object.assign(all, {
        key: event.timeStamp, changed: null, rest: null, frames: [],
        before: pixels(document.querySelector(".object-map canvas")),
    }), true);
    const look = (now) => {
        requestAnimationFrame(look);
        if (!all.title && document.querySelector("h1")) all.title = performance.now();
        const one = document.querySelector(selector);
        if (!all.first && one && (one.tagName !== "CANVAS" || pixels(one).some((part) => part)))
            all.first = performance.now();
        all.frames.push(now);
        if (!all.key || all.rest) return;
        const canvas = document.querySelector(".object-map canvas");
        if (!all.changed && pixels(canvas).some((part, at) => part !== all.before[at]))
            all.changed = performance.now();
        if (all.changed && canvas.dataset.glided) all.rest = performance.now();
    };
    requestAnimationFrame(look);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=12_311)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="600 objects: does it run at all")
    parser.add_argument("--runs", type=Path, help="folder with the run of an earlier time")
    settings = parser.parse_args()
    count = 600 if settings.quick else settings.objects
    with tempfile.TemporaryDirectory() as folder:
        runs = settings.runs or Path(folder) / "runs"
        if not (runs / "large").exists():
            write_large(runs / "large", count)
        try:
            found = measured(runs, Path(folder), settings.rounds)
        except NoBrowser as why:
            parser.exit(1, f"{why}\n")
    about = {"objects": count, "layers": len(LAYERS), "variants": len(VARIANTS)}
    print(json.dumps(about | found, indent=1))


def measured(runs: Path, folder: Path, rounds: int) -> dict[str, Any]:
    empty = folder / "empty.py"
    empty.write_text('import streamlit as st\n\nst.title("Nothing")\n')
    with (
        dashboard(runs, folder / "log") as address,
        dashboard(runs, folder / "empty.log", app=empty) as floor,
        chromium() as browser,
    ):
        server = server_of(address)
        memory = {"before_mib": mib(server)}
        for page in DRAWN:  # the first visitor of a new server waits for its imports
            paints(browser, f"{address}/{page}?run=large", DRAWN[page])
        memory["every_page_mib"] = mib(server)
        took: dict[str, list[Paints]] = {name: [] for name in ("empty app", *DRAWN)}
        for _ in range(rounds):
            took["empty app"].append(paints(browser, floor, "h1"))
            for page, selector in DRAWN.items():
                took[page].append(paints(browser, f"{address}/{page}?run=large", selector))
        layers, gliding, dragging = on_the_map(browser, address)
        memory["every_layer_mib"] = mib(server)
    changed, rest = np.median(layers, axis=0).round().tolist()
    return {
        "first_paint_ms": {
            page or "degradation": {
                part: round(statistics.median(values))
                for part, values in zip(Paints._fields, zip(*visits, strict=True), strict=True)
            }
            for page, visits in took.items()
        },
        "layer_ms": {"pixels change": changed, "at rest": rest, "changes": len(layers)},
        "frames_per_second": {
            "gliding": round(statistics.median(gliding), 1),
            "dragging": round(statistics.median(dragging), 1),
        },
        "server": memory,
    }


class Paints(NamedTuple):
    """Milliseconds from the navigation."""

    page: float
    figure: float
    again: float


@contextmanager
def visitor(browser: Any, selector: str) -> Iterator[Any]:
    """A page of a browser with nothing in its cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.add_init_script(f"({CLOCK})({json.dumps(selector)})")
    yield page
    context.close()


def visit(page: Any, address: str) -> None:
    """Go there and wait until what is waited for is drawn, and the page is whole."""
    page.goto(address)
    page.wait_for_function("() => window.bench.first")
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')


def paints(browser: Any, address: str, selector: str) -> Paints:
    with visitor(browser, selector) as page:
        visit(page, address)
        title, figure = page.evaluate("() => [window.bench.title, window.bench.first]")
        page.wait_for_timeout(500)
        visit(page, address)
        return Paints(title, figure, page.evaluate("() => window.bench.first"))


def on_the_map(
    browser: Any, address: str
) -> tuple[list[tuple[float, float]], list[float], list[float]]:
    """Milliseconds of each change of layer in both models, and frames a second."""
    layers, gliding, dragging = [], [], []
    for variant in VARIANTS:
        where = f"{address}/explorer?run=large&layer=0&variant={variant}"
        with visitor(browser, DRAWN["explorer"]) as page:
            visit(page, where)
            canvas = page.locator(".object-map canvas")
            for _ in LAYERS[1:]:
                page.wait_for_timeout(400)  # a person looks at what is there
                page.get_by_role("slider").first.focus()
                canvas.evaluate("one => delete one.dataset.glided")
                page.keyboard.press("ArrowRight")
                page.wait_for_function("() => window.bench.rest")
                seen = page.evaluate("() => ({...window.bench, before: null})")
                layers.append((seen["changed"] - seen["key"], seen["rest"] - seen["key"]))
                shown = [at for at in seen["frames"] if seen["changed"] <= at <= seen["rest"]]
                gliding.append(rate(shown))
            dragging.append(rate(drag(page, canvas)))
    return layers, gliding, dragging


def drag(page: Any, canvas: Any) -> list[float]:
    """Times of the frames while the map is dragged for about two seconds."""
    page.get_by_role("button", name="Lasso").click()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 200)
    page.mouse.down()
    begun = page.evaluate("() => performance.now()")
    for at in range(120):
        page.mouse.move(box["x"] + 200 + at, box["y"] + 200 + at / 2)
        page.wait_for_timeout(16)
    frames = page.evaluate("() => window.bench.frames")
    page.mouse.up()
    return [at for at in frames if at >= begun]


def rate(frames: list[float]) -> float:
    return 1000 * (len(frames) - 1) / (frames[-1] - frames[0])


def server_of(address: str) -> psutil.Process:
    """The process that this one started and that listens there."""
    port = address.rpartition(":")[2]
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if port in child.cmdline())


def mib(process: psutil.Process) -> int:
    return round(process.memory_info().rss / 2**20)


def write_large(path: Path, count: int) -> None:
    """The run, and the results of probes in the form that they have for a small one of its kind."""
    from probe.objects import objects
    from probe.sweep import sweep

    write_states(path.with_name("small"), 240)
    small = store.open_run(path.with_name("small"))
    swept, looked_up = sweep(small, k=[1, 10]), objects(small)
    write_states(path, count)
    rng = np.random.default_rng(1)
    many = looked_up.isel(sample=rng.integers(0, 240, count))
    shaken = rng.normal(0, 0.05, many.position.shape).astype(np.float32)
    near = rng.integers(0, count * 4 // 5, many.neighbour.shape, np.int32)
    many = many.assign(position=many.position + shaken, neighbour=(many.neighbour.dims, near))
    run = store.open_run(path)
    run.write_probe("sweep", swept)
    run.write_probe("objects", many)


def write_states(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(count) % CLASSES
    centre = rng.normal(size=(CLASSES, 1, DIM)).astype(np.float32)
    writer = store.create_run(
        path,
        samples={
            "id": [f"object-{at:05d}" for at in range(count)],
            "label": label,
            "class_name": [f"class {at}" for at in label],
            "split": np.where(np.arange(count) < count * 4 // 5, "gallery", "query"),
            "caption": [f"Object {at}." for at in range(count)],
        },
        layers=LAYERS,
        variants=VARIANTS,
        tokens=TOKENS,
        dim=DIM,
        target_dim=DIM,
        points=rng.random((count, POINTS, 6), np.float32),
    )
    for rows in writer.pending("target"):
        noise = rng.normal(size=(rows.stop - rows.start, TOKENS, DIM)).astype(np.float32)
        writer.append_target(rows, centre[label[rows]] + noise)
    for variant in VARIANTS:
        for rows in writer.pending(variant):
            shape = (len(LAYERS), rows.stop - rows.start, TOKENS, DIM)
            writer.append(variant, rows, centre[label[rows]] + rng.normal(size=shape))
    writer.finish()
    (path / "run.json").write_text(json.dumps({"status": "complete", "config": {"seed": 0}}))


if __name__ == "__main__":
    main()
