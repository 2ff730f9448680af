"""First paint, and a change of layer, on a large run: python -m tests.benchmarks.bench_dashboard

The run is synthetic: 12,311 objects (ModelNet40), 9 layers, 2 variants, 32 narrow tokens, and what
`python -m probe` would have computed of it, in the right form but at random. Measured with
Streamlit's AppTest in fresh processes, where the clock starts after the imports that a server does
once and processor time stands beside it; and, where there is a browser, from the address to the
map at rest, and from the key to the first frame of the next layer. Where other programs run, the
processor seconds (of server and browser together) are what to go by. Prints one JSON object.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import store
from tests.browser import NoBrowser, chromium, dashboard, map_is_drawn

LAYERS = [0, 4, 8, 12, 16, 20, 24, 28, 32]
VARIANTS = ["baseline", "aligned"]
TOKENS, DIM, CLASSES, POINTS = 32, 16, 40, 256
PAGES = ("degradation", "explorer", "object", "compare", "causes", "training", "provenance")
APP = Path(__file__).parents[2] / "dashboards" / "app.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=12_311)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="600 objects: does it run at all")
    parser.add_argument("--page", help=argparse.SUPPRESS)  # of the processes that this one starts
    parser.add_argument("--runs", type=Path, help="folder with the run of an earlier time")
    settings = parser.parse_args()
    if settings.page:
        print(json.dumps(one_page(settings.runs, settings.page, settings.rounds)))
        return
    count = 600 if settings.quick else settings.objects
    with tempfile.TemporaryDirectory() as folder:
        runs = settings.runs or Path(folder)
        if not (runs / "large").exists():
            write_large(runs / "large", count)
        found = {"objects": count, "layers": len(LAYERS), "variants": len(VARIANTS)}
        found["apptest"] = {page: in_process(runs, page, settings.rounds) for page in PAGES}
        found["browser"] = in_browser(runs, Path(folder), settings.rounds)
    print(json.dumps(found, indent=1))


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


def in_process(runs: Path, page: str, rounds: int) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.bench_dashboard", "--page", page]
    command += ["--runs", str(runs), "--rounds", str(rounds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_page(runs: Path, page: str, rounds: int) -> dict:
    """Seconds to the first paint of a page and, where it has layers, to the next layer."""
    from streamlit.testing.v1 import AppTest

    import dashboards.data
    import dashboards.objectmap
    import dashboards.show  # noqa: F401

    sys.argv = ["app.py", str(runs)]
    app = AppTest.from_file(str(APP), default_timeout=600)
    app.query_params["run"] = "large"
    if page != PAGES[0]:
        app.switch_page(f"views/{page}.py")
    found = {"first_paint": timed(app.run)}
    assert not app.exception and not app.error and app.title[0].value
    if page == "explorer":
        slider = "choice-layer"
        layers = [LAYERS[at % len(LAYERS)] for at in range(rounds)]
        took = [timed(app.select_slider(key=slider).set_value(at).run) for at in layers]
        found["layer"] = {part: statistics.median(t[part] for t in took) for part in took[0]}
    found["memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def timed(act) -> dict[str, float]:
    clock, processor = time.perf_counter(), time.process_time()
    act()
    return {
        "seconds": round(time.perf_counter() - clock, 3),
        "cpu_seconds": round(time.process_time() - processor, 3),
    }


def worked() -> float:
    """Processor seconds so far of the server and of all processes of the browser."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children)


def in_browser(runs: Path, folder: Path, rounds: int) -> dict | str:
    """Medians of seconds, and the frames of a glide; or why there are none."""
    try:
        with dashboard(runs, folder / "log") as address, chromium() as browser:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(300_000)
            page.goto(address)  # the server's first visitor waits for its imports
            page.wait_for_selector(".js-plotly-plot .main-svg")
            paints, layers, frames, work = [], [], [], []
            for _ in range(rounds):
                begun, before = time.perf_counter(), worked()
                page.goto(f"{address}/explorer?run=large&layer=16")
                map_is_drawn(page)
                paints.append(time.perf_counter() - begun)
                first, before = worked() - before, worked()
                wait = "one => one.dataset.glided && JSON.parse(one.dataset.glided)"
                canvas = page.locator(".object-map canvas").element_handle()
                page.get_by_role("slider").first.focus()
                canvas.evaluate("one => delete one.dataset.glided")
                begun = time.perf_counter()
                page.keyboard.press("ArrowRight")
                glide = page.wait_for_function(wait, arg=canvas).json_value()
                layers.append(time.perf_counter() - begun - glide["milliseconds"] / 1000)
                frames.append(1000 * glide["frames"] / glide["milliseconds"])
                work.append((first, worked() - before))
            first, next_layer = np.median(work, axis=0).round(2).tolist()
            return {
                "first_paint_seconds": round(statistics.median(paints), 2),
                "first_paint_cpu_seconds": first,
                "layer_seconds": round(statistics.median(layers), 2),
                "layer_cpu_seconds": next_layer,
                "frames_per_second": round(statistics.median(frames)),
            }
    except NoBrowser as why:
        return str(why)


if __name__ == "__main__":
    main()
