"""Every page of the dashboard on a small run, and on folders that hold something else."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import store
from dashboards import data, show
from probe.plots import (
    INK,
    INK_ON_DARK,
    depth_figure,
    difference_figure,
    on_dark,
    training_figure,
)
from probe.plots_cloud import GROUND, NO_COLOUR, cloud_figure
from store.schema import STORE

APP = Path(__file__).parents[1] / "dashboards" / "app.py"
PAGES = ("degradation", "object", "training", "provenance")
SAMPLES, TOKENS, DIM, LAYERS = 40, 2, 6, [0, 4]
VARIANTS = ["baseline", "aligned"]
MARKUP = "<b>cube</b> **bold** <script>alert(1)</script>"


def write_run(path, *, finish=True, newer=False):
    """Two classes that the aligned model keeps apart; one class name and caption hold markup."""
    rng = np.random.default_rng(0)
    label = np.arange(SAMPLES) % 2
    writer = store.create_run(
        path,
        samples={
            "id": [f"object-{i}" for i in range(SAMPLES)],
            "label": label,
            "class_name": np.array(["ball", MARKUP])[label],
            "split": np.where(np.arange(SAMPLES) < 28, "gallery", "query"),
            "caption": [f"A shape. {MARKUP}"] * SAMPLES,
        },
        layers=LAYERS,
        variants=VARIANTS,
        tokens=TOKENS,
        dim=DIM,
        target_dim=DIM,
        points=rng.random((SAMPLES, 16, 6), np.float32),
    )
    target = 3 * label[:, None, None] + rng.normal(size=(SAMPLES, TOKENS, DIM))
    last = SAMPLES if finish else writer.chunk
    for start in range(0, last, writer.chunk):
        rows = slice(start, min(start + writer.chunk, SAMPLES))
        writer.append_target(rows, target[rows])
        for variant in VARIANTS:
            noise = rng.normal(size=(len(LAYERS), *target[rows].shape))
            writer.append(variant, rows, target[rows] * (variant == "aligned") + noise)
    if finish:
        writer.finish()
    write_record(path, status="complete" if finish else "running")
    lines = [
        {"variant": v, "step": s, "loss": 1 / s, "ntp_loss": 1 / s, "lr": 1e-3, "tokens_per_s": 9.0}
        for v in VARIANTS
        for s in (1, 2)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"variant": "ali')
    return path


def write_record(path, status):
    about = {
        "command": "python -m train.stage2 --seed 0",
        "commit": "abc",
        "config": {"neighbours": "1,10,900", "steps": 2, "seed": 0},
        "versions": {"numpy": "2"},
        "hashes": {"train": "d1"},
        "status": status,
    }
    (path / "run.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "small")
    return folder


@pytest.fixture
def look(monkeypatch):
    """Open the app on a folder, with query parameters, at a page."""

    def open_app(folder, page="degradation", **parameters):
        monkeypatch.setattr(sys, "argv", ["app.py", str(folder)])
        app = AppTest.from_file(str(APP), default_timeout=60)
        for name, value in parameters.items():
            app.query_params[name] = value
        app.run()
        return app if page == PAGES[0] else app.switch_page(f"views/{page}.py").run()

    return open_app


def text(app):
    return "\n".join(element.value for element in app.text)


def figures(app):
    return [json.loads(element.proto.spec) for element in app.get("plotly_chart")]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_on_a_run(runs, look, page):
    app = look(runs, page)
    assert not app.exception and not app.error and not app.warning
    assert app.title[0].value and app.query_params["run"] in ("small", ["small"])


def test_the_first_look_computes_the_scores_and_keeps_them(tmp_path, look):
    run = store.open_run(write_run(tmp_path / "one"))
    app = look(tmp_path)
    assert not app.exception
    assert run.probes("sweep").k.values.tolist() == [1, 10]  # 900 is more than the gallery has
    assert "Control: with shuffled labels" in text(app)
    before = (run.store / "probes" / "sweep" / "zarr.json").stat().st_mtime_ns
    look(tmp_path)
    assert (run.store / "probes" / "sweep" / "zarr.json").stat().st_mtime_ns == before


def test_choices_come_from_the_address_and_go_back_into_it(runs, look):
    app = look(runs, measure="knn", k="10")
    assert app.selectbox(key="choice-k").value == 10
    assert "K = 10" in figures(app)[0]["layout"]["yaxis"]["title"]["text"]
    app.selectbox(key="choice-measure").select("cka").run()
    assert "cka" in app.query_params["measure"] and not app.exception
    assert "CKA" in figures(app)[0]["layout"]["yaxis"]["title"]["text"]
    assert len(figures(app)) == 2  # the scores, and the differences


def test_an_address_that_names_nothing_is_said_to(runs, look):
    app = look(runs, measure="umap")
    assert "not here" in app.warning[0].value and "Measure: umap" in text(app)
    assert not app.exception and figures(app)


def test_the_object_page_shows_the_cloud_and_its_neighbours(runs, look):
    app = look(runs, "object")
    app.selectbox(key="choice-variant").select("aligned").run()
    shown = figures(app)
    assert len(shown) == 7 and shown[0]["layout"]["scene"]["aspectmode"] == "manual"
    assert "object-28 (query)" in text(app)  # the first of its class that is asked about
    assert "of 6 are of its class; aligned, layer 4" in text(app)
    assert "✓ right: ball" in text(app)
    app.selectbox(key="choice-class").select(MARKUP).run()
    assert "object-29 (query)" in text(app) and not app.warning


def test_neighbours_equal_the_plain_cosine_order(runs):
    run = store.open_run(runs / "small")
    pooled = run.hidden("aligned").sel(layer=4).values.astype(np.float64).mean(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    near = data.neighbours(runs / "small", "aligned", 4, 3, 5)
    order = [row for row in np.argsort(-pooled @ pooled[3], kind="stable") if row < 28 and row != 3]
    assert near.row.tolist() == order[:5]
    assert near.right.tolist() == [row % 2 == 1 for row in order[:5]]


def test_text_of_the_data_is_shown_as_text(runs, look):
    app = look(runs, "object")
    app.selectbox(key="choice-class").select(MARKUP).run()
    assert f"class: {MARKUP}" in text(app)
    rendered = [*app.markdown, *app.caption, *app.error, *app.warning, *app.info, *app.subheader]
    assert not any("cube" in element.value for element in rendered)
    figure = cloud_figure(np.zeros((2, 6))).update_layout(title=MARKUP)
    assert "<" not in show.plain_text(figure).layout.title.text


def test_training_shows_every_logged_quantity_in_the_colour_of_its_variant(runs, look):
    app = look(runs, "training")
    (figure,) = figures(app)
    assert [title["text"] for title in figure["layout"]["annotations"]] == [
        "Next-token loss",
        "Loss that is minimised",
        "Learning rate",
        "Speed",
    ]
    assert {trace["name"] for trace in figure["data"]} == set(VARIANTS)
    assert "aligned: step 2 of 2" in text(app)
    metrics = data.metrics(runs / "small")
    assert len(metrics) == 4  # the line that was cut short is left out
    with pytest.raises(ValueError, match="nothing to draw"):
        training_figure(metrics[["variant", "step"]])


def test_provenance_gives_the_command_and_finds_a_lost_chunk(tmp_path, look):
    path = write_run(tmp_path / "one")
    app = look(tmp_path, "provenance")
    assert app.code[0].value == "python -m train.stage2 --seed 0"
    app.button[0].click().run()
    assert "Whole" in app.success[0].value
    (path / STORE / "aligned/hidden/c/0/0/0/0").unlink()
    app.button[0].click().run()
    assert "a chunk is lost" in text(app) and not app.exception


def test_no_run_is_said_with_the_command_that_makes_one(tmp_path, look):
    for folder in (tmp_path, tmp_path / "nowhere"):
        app = look(folder)
        assert not app.exception and app.title[0].value == "No runs yet"
        assert app.code[0].value.startswith("python -m train.stage2 ")
    (tmp_path / "photos").mkdir()
    assert "1 other folders" in text(look(tmp_path))


def test_what_is_no_whole_run_is_shown_as_what_it_is(tmp_path, look):
    for name in ("bad", "later", "odd"):
        write_run(tmp_path / name)
    (tmp_path / "bad" / STORE / "zarr.json").write_text("{")
    change_attrs(tmp_path / "later", schema_version=99)
    change_attrs(tmp_path / "odd", variants=["../../x"])
    (tmp_path / "photos").mkdir()
    states = {entry.name: entry.state for entry in data.list_runs(tmp_path)}
    assert states["photos"] == "no run"
    assert {states[name] for name in ("bad", "later", "odd")} == {"cannot be opened"}
    said = {
        "bad": "damaged",
        "later": "update the program",
        "odd": "variant",
        "photos": "is no run",
    }
    for name, expected in said.items():
        for page in PAGES:
            app = look(tmp_path, page, run=name)
            assert not app.exception, (name, page)
            if page in ("degradation", "object"):
                assert app.error and expected in text(app), (name, page)


def change_attrs(path, **changes):
    file = path / STORE / "zarr.json"
    meta = json.loads(file.read_text())
    meta["attributes"] |= changes
    file.write_text(json.dumps(meta))


def test_an_unfinished_run_shows_what_is_there(tmp_path, look):
    write_run(tmp_path / "half", finish=False)
    assert "not completely captured" in text(look(tmp_path))
    app = look(tmp_path, "object", object="object-0")
    assert not app.exception and len(figures(app)) == 7
    assert "running; last change" in text(look(tmp_path, "training"))
    write_record(write_run(tmp_path / "late"), status="running")
    assert "still running" in text(look(tmp_path, run="late"))
    assert not look(tmp_path, "provenance").exception


def test_a_damaged_chunk_is_named_and_no_traceback(tmp_path, look):
    path = write_run(tmp_path / "one")
    chunk = path / STORE / "points/points/c/0/0/0"
    chunk.write_bytes(b"none of ours" + chunk.read_bytes()[12:])
    app = look(tmp_path, "object")
    assert not app.exception and "may be damaged" in text(app)


@pytest.mark.parametrize("name", ["../outside", "..", ".", "link", "/etc", "small/../../outside"])
def test_nothing_outside_the_folder_of_runs_is_opened(tmp_path, name):
    write_run(tmp_path / "outside")
    folder = tmp_path / "runs"
    write_run(folder / "small")
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(data.Unreadable, match="only runs inside"):
        data.run_path(folder, name)


def test_a_store_that_is_a_link_out_of_its_run_is_refused(tmp_path, look):
    write_run(tmp_path / "outside")
    folder = tmp_path / "runs"
    (folder / "trick").mkdir(parents=True)
    (folder / "trick" / STORE).symlink_to(tmp_path / "outside" / STORE)
    app = look(folder, run="trick")
    assert not app.exception and "leads out of its run" in text(app)
    app = look(folder, run="../outside")
    assert "not here" in app.warning[0].value and not figures(app)


def test_a_cloud_keeps_its_colours_and_one_without_is_told_from_it():
    points = np.array([[0, 0, 0, 1, 0, 0], [1, 2, 3, 0, 0.5, 1]], np.float32)
    figure = cloud_figure(points)
    assert figure.data[0].marker.color == ("rgb(255,0,0)", "rgb(0,128,255)")
    assert figure.layout.scene.bgcolor == GROUND
    scene = figure.layout.scene
    spans = [axis.range[1] - axis.range[0] for axis in (scene.xaxis, scene.yaxis, scene.zaxis)]
    sides = [scene.aspectratio[name] for name in "xyz"]
    np.testing.assert_allclose(np.divide(sides, spans), sides[0] / spans[0])  # one scale
    flat = cloud_figure(np.zeros((5, 3)))
    assert flat.data[0].marker.color == NO_COLOUR and min(flat.layout.scene.xaxis.range) < 0
    assert cloud_figure(points[:, :3]).data[0].marker.color == NO_COLOUR
    with pytest.raises(ValueError, match=r"\(2, 5\), expected"):
        cloud_figure(points[:, :5])


def test_on_a_dark_page_ink_is_light_and_models_keep_their_colours(runs):
    results = data.sweep_results(runs / "small", lambda *_: None)
    for draw in (depth_figure, difference_figure):
        light, dark = draw(results), on_dark(draw(results))
        assert INK not in str(dark) and INK in str(light)
        for old, new in zip(light.data, dark.data, strict=True):
            assert new.line.color == (INK_ON_DARK if old.line.color == INK else old.line.color)


def test_file_names_hold_nothing_of_a_path():
    assert show.file_name("../a b/<c>.png") == "a-b-c-png"
    assert show.file_name("…") == "figure"


@pytest.fixture(autouse=True)
def fresh_caches():
    st.cache_data.clear()
