"""Every page of the dashboard on a small run, and on folders that hold something else."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import streamlit as st
import xarray as xr
from streamlit.testing.v1 import AppTest

import store
from dashboards import data, opening, show
from probe import maps
from probe.__main__ import ProbeConfig
from probe.__main__ import main as probe_a_run
from probe.contrast import confusion_change, contrast
from probe.objects import all_models, objects, others, painted
from probe.objects import states as model_states
from probe.plots import (
    INK,
    INK_ON_DARK,
    depth_figure,
    difference_figure,
    on_dark,
    training_figure,
)
from probe.plots_cloud import GROUND, NO_COLOUR, cloud_figure, painted_figure
from probe.plots_compare import confusion_figure, contrast_figure
from probe.plots_curves import LINEAR, curves
from probe.plots_heat import token_drift_figure
from probe.plots_object import token_figure
from probe.reconstruction import reconstruction
from probe.sweep import sweep
from store.schema import STORE

APP = Path(__file__).parents[1] / "dashboards" / "app.py"
PAGES = ("degradation", "explorer", "object", "compare", "causes", "training", "provenance")
SAMPLES, TOKENS, DIM, LAYERS = 40, 2, 6, [0, 4]
VARIANTS = ["baseline", "aligned"]
MARKUP = "<b>cube</b> **bold** <script>alert(1)</script>"


def write_run(path, *, finish=True, patches=None):
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
            "factor_legs": label + 3,
            "factor_symmetry": np.array(["mirror", "turning"])[label],
        },
        layers=LAYERS,
        variants=VARIANTS,
        tokens=TOKENS,
        dim=DIM,
        target_dim=DIM,
        points=rng.random((SAMPLES, 32, 6), np.float32),
        patches=patches,
    )
    target = 3 * label[:, None, None] + rng.normal(size=(SAMPLES, TOKENS, DIM))
    last = SAMPLES if finish else writer.chunk
    for start in range(0, last, writer.chunk):
        rows = slice(start, min(start + writer.chunk, SAMPLES))
        writer.append_target(rows, target[rows])
        if patches:
            weights = rng.dirichlet(np.ones(patches), (rows.stop - rows.start, TOKENS))
            writer.append_attention(rows, weights, rng.random((len(weights), patches, 3)))
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


def drawn(app):
    """What the Explorer's map is given to draw."""
    return json.loads(app.get("bidi_component")[0].proto.json)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_on_a_run(runs, look, page):
    app = look(runs, page)
    assert not app.exception and not app.error and not app.warning
    assert "FutureWarning" not in text(app)
    assert app.title[0].value and app.query_params["run"] in ("small", ["small"])


def test_the_first_look_computes_the_scores_and_keeps_them(tmp_path, look):
    run = store.open_run(write_run(tmp_path / "one"))
    app = look(tmp_path)
    assert not app.exception
    assert run.probes("sweep").k.values.tolist() == [1, 10]  # 900 is more than the gallery has
    assert "shuffled labels" in text(app)
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
    shown = [figure for figure in figures(app) if "scene" in figure["layout"]]
    assert len(shown) == 7 and shown[0]["layout"]["scene"]["aspectmode"] == "manual"
    assert "object-28 (query)" in text(app)  # the first of its class that is asked about
    assert "of 6 are of its class" in text(app)
    assert any(
        title.value == "Nearest gallery objects in layer 4 of aligned" for title in app.subheader
    )
    assert "✓ right: ball" in text(app)
    app.selectbox(key="choice-class").select(MARKUP).run()
    assert "object-29 (query)" in text(app) and not app.warning


def test_the_map_shows_what_is_selected_and_leads_on(runs, look):
    app = look(runs, "explorer", variant="aligned", layer="4", picked="28,29,999", colour="drift")
    assert not app.exception and not app.warning
    shown = drawn(app)
    assert len(shown["samples"]) == SAMPLES and shown["chosen"] == [28, 29]
    assert MARKUP in shown["names"]  # the canvas draws it as text
    assert len(figures(app)) == 4  # the object and three neighbours
    assert app.selectbox(key="choice-shown").options == ["object-28: ball", f"object-29: {MARKUP}"]
    app.select_slider(key="choice-layer").set_value(0).run()
    assert app.query_params["layer"] in ("0", ["0"]) and "layer 0" in text(app)
    assert drawn(app)["frame"] == shown["frame"] and drawn(app)["position"] != shown["position"]
    button = next(one for one in app.button if one.label.startswith("Open object-28"))
    button.click().run()
    assert app.title[0].value == "Object" and "object-28 (query)" in text(app)
    assert app.selectbox(key="choice-layer").value == 0


def test_every_colour_of_the_map_can_be_drawn(runs, look):
    app = look(runs, "explorer")
    names = app.selectbox(key="choice-colour").options
    assert len(names) > 10
    for name in ("split", "support", "blue", "factor_legs", "factor_symmetry_mirror", "class_name"):
        app.selectbox(key="choice-colour").select(name).run()
        assert not app.exception and len(drawn(app)["samples"]) == SAMPLES
    app.multiselect(key="choice-classes").set_value(["ball"]).run()
    assert app.query_params["classes"] in ("ball", ["ball"])
    assert [mark["name"] for mark in drawn(app)["marks"]] == ["1 other classes", "ball"]


def test_what_is_missing_is_said_with_what_to_type(runs, look):
    said = {
        "causes": ({}, "python -m train.explain"),
        "object": ({}, "--probes reconstruction"),
        "degradation": ({"measure": "rebuilt"}, "--probes reconstruction"),
    }
    for page, (choices, command) in said.items():
        app = look(runs, page, **choices)
        assert not app.exception and not app.error
        assert any(command in code.value for code in app.code), page


def test_a_umap_is_made_when_it_is_asked_for(runs, tmp_path, look, monkeypatch):
    assert "12 query objects: a map of 15 neighbours needs" in text(
        look(runs, "explorer", map="umap")
    )

    def made(run, methods, seed, progress):
        progress(0, 1, "umap of baseline")
        at = np.indices((2, len(LAYERS), 12, 2)).sum(0) % 5
        dims = ("variant", "layer", "object", "axis")
        found = xr.Dataset(
            {"position": (dims, at.astype(np.float32))},
            {
                "variant": VARIANTS,
                "layer": LAYERS,
                "object": [f"object-{i}" for i in range(28, 40)],
            },
        ).assign({n: ((*dims[:2],), np.ones((2, len(LAYERS)))) for n in maps.FAITHFUL})
        return found.expand_dims(method=methods, draw=[seed])

    write_run(tmp_path / "one")
    monkeypatch.setattr(maps, "maps", made)
    app = look(tmp_path, "explorer", map="umap")
    assert not app.exception and "it was made of 12 of 40 objects" in text(app)
    assert len(drawn(app)["samples"]) == 12 and not app.code
    assert store.open_run(tmp_path / "one").probes("maps").method == ["umap"]


def test_a_model_that_was_not_trained_here_is_not_promised_an_explanation(tmp_path, look):
    path = write_run(tmp_path / "captured")
    record = json.loads((path / "run.json").read_text())
    record["command"] = "python -m train.capture --host bindllm --out runs/captured"
    (path / "run.json").write_text(json.dumps(record))
    app = look(tmp_path, "causes")
    assert not app.exception and not app.code
    assert "reads models that python -m train.stage2 trained" in app.info[0].value
    assert not look(tmp_path, "training").code


def test_a_run_that_is_not_captured_yet_is_called_a_run(tmp_path, look):
    (tmp_path / "new").mkdir()
    write_record(tmp_path / "new", status="running")
    assert "new is still running, and no states are captured" in text(look(tmp_path))
    assert "running; last change" in text(look(tmp_path, "training"))
    record = {"status": "complete", "config": {"store": "s3://bucket/run"}}
    (tmp_path / "new" / "run.json").write_text(json.dumps(record))
    assert "new keeps its states in s3://bucket/run: copy" in text(look(tmp_path))


def test_two_models_are_compared_object_by_object(runs, look):
    app = look(runs, "compare", layer="4")
    assert not app.exception and "12 query objects, layer 4" in text(app)
    assert app.selectbox(key="choice-first").value == "baseline"
    assert app.dataframe[0].value.shape == (12, 7)
    app.selectbox(key="choice-view").select("classes").run()
    assert not app.exception and app.dataframe[0].value["change"].sum() == 0
    app.selectbox(key="choice-view").select("layers").run()
    assert not app.exception and len(figures(app)) == 1
    app.selectbox(key="choice-second").select("baseline").run()
    assert "the same model" in app.info[0].value


def test_a_token_is_painted_where_attention_was_captured(tmp_path, look):
    write_run(tmp_path / "one", patches=5)
    app = look(tmp_path, "object", token="1")
    assert not app.exception and "What token 1 reads of the cloud" in text(app)
    cloud = next(figure for figure in figures(app) if "scene" in figure["layout"])
    assert "colorscale" in cloud["data"][0]["marker"]
    app.selectbox(key="choice-paint").select("true").run()
    assert "What token 1 reads" not in text(app)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with everything that pages show of it, as `python -m probe` leaves it."""
    path = write_run(tmp_path_factory.mktemp("all") / "one", patches=5)
    run = store.open_run(path)
    run.write_probe("sweep", sweep(run, ["knn", "drift", "geometry", "variants"], k=(1, 10)))
    run.write_probe("reconstruction", reconstruction(run, steps=2))
    scores = {
        f"cka_{part}": (("variant", "step", "layer"), np.full((2, 2, 2), value))
        for part, value in (("mean", 0.5), ("low", 0.4), ("high", 0.6))
    }
    apart = {
        f"cka_step_difference{part}": (("comparison", "step", "layer"), [[[0, 0.1], value]])
        for part, value in (("", [0, 0.2]), ("_low", [0, 0]), ("_high", [0, 1]))
    }
    apart["cka_step_difference_p_adjusted"] = apart["cka_step_difference"][0], [[[1, 1], [1, 0.01]]]
    at = {"variant": VARIANTS, "step": [1, 2], "layer": LAYERS}
    at["comparison"] = ["aligned - baseline"]
    run.write_probe("steps", xr.Dataset(scores | apart, at))
    return path.parent


def test_a_model_can_be_looked_up_at_every_step_it_was_captured_at(tmp_path, look):
    rng = np.random.default_rng(0)
    label = np.arange(20) % 2
    writer = store.create_run(
        tmp_path / "one",
        samples={
            "id": [f"object-{i}" for i in range(20)],
            "label": label,
            "class_name": label.astype(str),
            "split": ["gallery"] * 14 + ["query"] * 6,
            "caption": [""] * 20,
        },
        layers=LAYERS,
        variants=["aligned"],
        tokens=TOKENS,
        dim=DIM,
        target_dim=DIM,
        steps=[5, 10],
        dtype="float32",
    )
    for rows in writer.pending("target"):
        writer.append_target(rows, rng.normal(size=(rows.stop - rows.start, TOKENS, DIM)))
    states = rng.normal(size=(2, len(LAYERS), 20, TOKENS, DIM)).astype(np.float32)
    for at, step in enumerate((5, 10)):
        for rows in writer.pending("aligned", step=step):
            writer.append("aligned", rows, states[at][:, rows], step=step)
    writer.finish()
    run = store.open_run(tmp_path / "one")
    assert all_models(run) == ["aligned@5", "aligned@10"]
    np.testing.assert_array_equal(model_states(run, "aligned@5", 4), states[0, 1])
    np.testing.assert_array_equal(model_states(run, "aligned", 4), states[1, 1])
    app = look(tmp_path, "explorer", variant="aligned@5")
    assert not app.exception and not app.error and "20 objects in aligned@5" in text(app)


def test_the_command_keeps_what_pages_look_up_of_objects(measured, capsys, monkeypatch):
    # the steps that are drawn here were made up and lack what a report says of real ones
    monkeypatch.setattr("probe.page.write_report", lambda run: [])
    probe_a_run(ProbeConfig(run=measured / "one", probes="objects", layers="4"))
    assert "40 objects looked up in 2 layers of 2 models" in capsys.readouterr().out
    kept = store.open_run(measured / "one").probes("objects")
    assert kept.layer.values.tolist() == LAYERS  # all: a page asks for any of them


def test_geometry_is_shown_whole_and_property_by_property(measured, look):
    app = look(measured, measure="geometry")
    assert not app.exception and not app.error
    assert [len(one["data"]) for one in figures(app)] == [3, 1]  # both models and the target
    app.selectbox(key="choice-read").select("selectivity").run()
    assert len(figures(app)[0]["data"]) == 2 and "selectivity" in app.query_params["read"]
    app.selectbox(key="choice-property").select("curvature").run()
    (figure,) = figures(app)
    said = [note["text"] for note in figure["layout"]["annotations"]]
    assert said[:2] == ["R² of a linear read-out", "Selectivity: less shuffled values"]
    assert not app.dataframe  # it is sent when it is opened
    app.session_state["numbers-geometry-curvature"] = True
    app.run()
    assert set(app.dataframe[0].value.property) == {"curvature"}


def test_drift_is_shown_token_by_token_and_the_code_of_a_class_by_layer(measured, look):
    app = look(measured, measure="drift_centred")
    assert not app.exception
    maps = figures(app)[-1]["data"]
    assert [trace["type"] for trace in maps] == ["heatmap"] * len(VARIANTS)
    run = store.open_run(measured / "one")
    found = run.probes("sweep").token_drift_mean
    shown = token_drift_figure(run.probes("sweep")).data
    for trace, variant in zip(shown, VARIANTS, strict=True):
        one = found.sel(variant=variant).transpose("token", "layer")
        np.testing.assert_array_equal(trace.z, one.values)
        np.testing.assert_array_equal(trace.x, [str(layer) for layer in LAYERS])


def test_the_code_of_a_class_is_drawn_beside_what_is_read_out():
    values = xr.DataArray([[1.5, 3.0]], {"variant": ["aligned"], "layer": LAYERS})
    parts = {"mean": values, "low": values - 0.1, "high": values + 0.1, "target_mean": 4.0}
    swept = xr.Dataset({f"linear_compression_{part}": one for part, one in parts.items()})
    (code,) = curves(swept, LINEAR)
    assert code.title == "Class, coded online (MDL)"
    np.testing.assert_array_equal(code.mean, values)
    assert code.lines[0].name == "target" and set(code.lines[0].values) == {4.0}


def test_the_last_step_of_a_model_is_what_probes_call_the_model(monkeypatch):
    monkeypatch.setattr(data, "models", lambda path: ["stage1", "aligned@1", "aligned@2"])
    names = ("stage1", "aligned@1", "aligned@2")
    assert [data.probed(Path(), name) for name in names] == ["stage1", "aligned@1", "aligned"]
    assert data.main_model(data.models(None), "aligned") == "aligned@2"


def test_all_scores_stand_on_one_page_and_published_ones_only_where_they_fit(measured, look):
    app = look(measured)
    more = figures(app)[1]
    titles = [note["text"] for note in more["layout"]["annotations"]]
    assert "Rebuilt cloud: Chamfer distance" in titles
    assert any(title.startswith("Property the target tells best") for title in titles)
    app = look(measured, measure="tests", k="10")
    assert not app.exception and len(figures(app)) == 1
    assert "No published figure stands here" in text(app) and "12 of 2" in text(app)
    app = look(measured, measure="linear")
    asked = "--probes knn,drift,geometry,variants,linear --k 1,10"  # what is there is kept
    assert app.code[0].value.endswith(asked)


def test_an_object_is_followed_through_all_layers(measured, look):
    app = look(measured, "object", object="object-28", variant="aligned", layer="4")
    assert not app.exception and not app.error
    flat = [one for one in figures(app) if "scene" not in one["layout"]]
    _, near, clouds = flat
    assert len(near["data"][1]["customdata"]) == 2 * 6  # layers and neighbours
    assert [note["text"][:8] for note in clouds["layout"]["annotations"]] == [
        "original",
        "target: ",
        "layer 0:",
        "layer 4:",
    ]
    solid = [one for one in figures(app) if "scene" in one["layout"]]
    assert len(solid) == 1 + 6 + 3  # a browser draws 16 such at most
    app = look(measured, "object", object="object-30")
    assert "not of this one" in text(app)
    app.selectbox(key="rebuilt-object").select("object-29").run()
    assert "object-29 (query)" in text(app)
    assert app.query_params["object"] in ("object-29", ["object-29"])


def test_training_shows_steps_by_depth_or_what_to_type(measured, runs, look):
    app = look(measured, "training")
    assert not app.exception and figures(app)[1]["data"][0]["type"] == "heatmap"
    (change,) = figures(app)[2]["data"]
    assert change["text"] == [["", ""], ["", "●"]]  # beyond noise at the last step and layer
    assert "p < 0.05 over all layers and steps" in text(app)
    app = look(runs, "training")
    assert any("--capture-every" in code.value for code in app.code)


def test_the_report_is_made_without_writing_into_the_run(runs, look):
    look(runs)
    before = sorted(path for path in (runs / "small").rglob("*"))
    app = look(runs, "provenance")
    app.button(key="report").click().run()
    assert not app.exception and not app.error and "MB in one file" in text(app)
    assert sorted(path for path in (runs / "small").rglob("*")) == before


def test_the_votes_of_objects_are_those_of_the_sweep(runs):
    run = store.open_run(runs / "small")
    found, swept = objects(run, k=10), sweep(run, ["knn"], k=[10])
    query = run.samples()["split"].values == "query"
    right = (found.named.values == run.samples()["label"].values)[..., query].mean(axis=-1)
    np.testing.assert_allclose(right, swept.knn_mean.sel(k=10).values)
    assert (found.neighbour != np.arange(SAMPLES)[:, None]).all()  # nobody is its own neighbour
    drift = sweep(run, ["drift"], k=[1]).drift_mean.values
    mine = found.drift.values[..., query].mean(axis=-1)
    np.testing.assert_allclose(mine, drift, atol=2e-6)
    radius = np.linalg.norm(found.position.values, axis=-1).mean(axis=-1)
    np.testing.assert_allclose(radius, 1, rtol=1e-5)


def test_copies_of_an_object_are_no_neighbours_of_it():
    pooled = np.array([[1.0, 0], [1, 0], [1, 0.1], [0, 1], [1, 0.2]])
    found = others(pooled, np.array([0, 1, 2, 3]), np.array([0, 0, 1, 2, 3]), 2)
    assert found.tolist() == [[2, 3], [2, 3], [0, 1], [2, 0], [2, 0]]


def test_a_point_is_painted_by_the_patches_around_it():
    cloud = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0]])
    share = painted(cloud, cloud, np.array([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(share, [0, 1 / 3, 1], atol=1e-4)
    figure = painted_figure(cloud, share)
    assert list(figure.data[0].marker.color) == share.tolist()


def changed():
    """Three objects of two classes; the second model loses one and gains one."""
    table = pd.DataFrame(
        {
            "sample": list("abcd"),
            "class_name": ["x", "x", "y", "y"],
            "split": ["query"] * 3 + ["gallery"],
            "right": [True, True, False, True],
            "named": ["x", "x", "x", "y"],
            "support": [1.0, 0.6, 0.4, 1.0],
            "drift": [0.1, 0.2, 0.3, 0.4],
        }
    )
    later = table.assign(
        right=[True, False, True, True], named=["x", "y", "y", "y"], support=[0.9, 0.4, 0.9, 1.0]
    )
    return table, later.iloc[::-1]  # in another order: it goes by the sample's id


def test_contrast_sorts_by_what_changes_and_counts_it_by_class():
    first, second = changed()
    copied = contrast(first.assign(group=[0, 1, 1, 0]), second)  # c is a copy of b
    assert copied["sample"].tolist() == ["b", "a"]
    table = contrast(first, second)
    assert table["sample"].tolist() == ["c", "b", "a"]
    assert table.kind.tolist() == ["only the second", "only the first", "both right"]
    np.testing.assert_allclose(table.change, [0.5, -0.2, -0.1])
    assert table.index.tolist() == [2, 1, 0]
    changes = confusion_change(table)
    pairs = {(a, b): n for a, b, n in changes[["class_name", "named", "change"]].values.tolist()}
    assert pairs == {("x", "x"): -1, ("x", "y"): 1, ("y", "x"): -1, ("y", "y"): 1}
    figure = contrast_figure(table, "baseline", "aligned")
    assert sum(len(trace.x) for trace in figure.data[1:]) == 3
    assert confusion_figure(changes, "baseline", "aligned").data[0].zmax == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        confusion_figure(changes[:0], "baseline", "aligned")


def test_cells_of_tokens_say_what_they_are():
    cells = token_figure(np.arange(6.0).reshape(2, 3), [4, 8], (8, 1)).data[1]
    assert [tuple(cell) for cell in cells.customdata][3] == (8, 0) and cells.text[3] == "3.0000"


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
    app.button(key="verify").click().run()
    assert "Whole" in app.success[0].value
    (path / STORE / "aligned/hidden/c.0.0.0.0").unlink()
    app.button(key="verify").click().run()
    assert "a chunk is lost" in text(app) and not app.exception


def test_where_no_run_is_the_demo_opens_and_says_so(tmp_path, look):
    (tmp_path / "photos").mkdir()
    for folder, said in ((tmp_path, "1 other folders"), (tmp_path / "nowhere", "no folder")):
        app = look(folder)
        assert not app.exception and not app.error and app.title[0].value.startswith("Degradation")
        assert app.expander[0].label.startswith("This is the demo")
        assert app.code[0].value.startswith("python -m train.stage2 ")
        assert said in text(app) and "of 1800 objects" in text(app)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("page", PAGES)
def test_the_demo_has_what_every_page_shows(tmp_path, look, page):
    app = look(tmp_path, page)
    assert not app.exception and not app.error and not app.warning
    assert app.get("plotly_chart") or page in ("explorer", "provenance")
    assert page != "explorer" or drawn(app)["samples"]


def test_the_demo_is_small_whole_and_names_no_machine(tmp_path):
    assert opening.DEMO.stat().st_size < 8_000_000
    path = opening.demo_folder() / "demo-shapes"
    assert store.verify_run(path) == []
    assert store.open_run(path).encoder().notnull().all()
    assert "/tmp" not in (path / "run.json").read_text()


def test_what_is_no_whole_run_is_shown_as_what_it_is(tmp_path, look):
    for name in ("bad", "later", "odd"):
        write_run(tmp_path / name)
    (tmp_path / "bad" / STORE / "zarr.json").write_text("{")
    change_attrs(tmp_path / "later", schema_version=99)
    change_attrs(tmp_path / "odd", variants=["../../x"])
    (tmp_path / "photos").mkdir()
    states = {entry.name: entry.state for entry in opening.list_runs(tmp_path)}
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
            if name == "photos" or page not in ("training", "provenance"):
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
    assert "not completely captured" in app.info[0].value
    for page in ("explorer", "compare"):
        assert "not completely captured" in text(look(tmp_path, page))
    assert "running; last change" in text(look(tmp_path, "training"))
    write_record(write_run(tmp_path / "late"), status="running")
    assert "still running" in text(look(tmp_path, run="late"))
    assert not look(tmp_path, "provenance").exception


def test_a_damaged_chunk_is_named_and_no_traceback(tmp_path, look):
    path = write_run(tmp_path / "one")
    chunk = path / STORE / "points/points/c.0.0.0"
    chunk.write_bytes(b"none of ours" + chunk.read_bytes()[12:])
    app = look(tmp_path, "object")
    assert not app.exception and "is damaged: points/points cannot" in text(app)


@pytest.mark.parametrize("name", ["../outside", "..", ".", "link", "/etc", "small/../../outside"])
def test_nothing_outside_the_folder_of_runs_is_opened(tmp_path, name):
    write_run(tmp_path / "outside")
    folder = tmp_path / "runs"
    write_run(folder / "small")
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(data.Unreadable, match="only runs inside"):
        opening.run_path(folder, name)


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
    st.cache_resource.clear()
