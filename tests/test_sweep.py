"""A sweep of a run with a planted loss finds it, says so, and draws it."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tyro
import xarray
import zarr
from rich.console import Console

import store
from probe.__main__ import EVERY, ProbeConfig, main
from probe.cache import folder_of
from probe.cli import exit_code
from probe.geometry import descriptors, geometry_by_layer
from probe.judged import counted
from probe.page_parts import SCORES, tables
from probe.plots import (
    depth_figure,
    difference_figure,
    plot_score_by_layer,
    save_depth_html,
    save_depth_png,
)
from probe.report import findings, first_fall, print_table
from probe.splits import duplicate_groups, gallery_query, without_copies
from probe.sweep import ALL_PROBES, lacking, sweep, with_kept

ROOT = Path(__file__).parents[1]
SAMPLES, CLASSES, TOKENS, DIM, TARGET_DIM = 360, 6, 4, 16, 12
LAYERS = [0, 4, 8, 12]
KEPT = {  # share of the target in the states: the baseline loses it from layer 8 on
    "baseline": [1, 1, 0.25, 0.0],
    "aligned": [1, 1, 1.0, 1.0],
    "untrained": [1, 1, 0.25, 0.0],
}


def write_run(path, copies=0):
    rng = np.random.default_rng(0)
    label = np.arange(SAMPLES) % CLASSES
    about = 1.5 * rng.normal(size=(CLASSES, TARGET_DIM))[label] + rng.normal(
        size=(SAMPLES, TARGET_DIM)
    )
    target = about[:, None] + 0.5 * rng.normal(size=(SAMPLES, TOKENS, TARGET_DIM))
    points = rng.random((SAMPLES, 8, 6), np.float32)
    more = np.random.default_rng(1).random((SAMPLES, 24, 6), np.float32)
    points = np.concatenate([points, more], axis=1)
    points[..., 2] *= np.exp(target[:, 0, 0] / 4)[:, None]  # a height for the states to hold
    points[..., 5] = 0.5
    points[:copies] = points[SAMPLES - copies :]
    samples = {
        "id": [f"object-{i}" for i in range(SAMPLES)],
        "label": label,
        "class_name": [f"class {i}" for i in label],
        "split": np.where(np.arange(SAMPLES) < 240, "gallery", "query"),
        "caption": ["A shape."] * SAMPLES,
    }
    writer = store.create_run(
        path,
        samples=samples,
        layers=LAYERS,
        variants=list(KEPT),
        tokens=TOKENS,
        dim=DIM,
        target_dim=TARGET_DIM,
        points=points,
    )
    maps = rng.normal(size=(len(LAYERS), TARGET_DIM, DIM)) / 4
    spans = [slice(a, min(a + writer.chunk, SAMPLES)) for a in range(0, SAMPLES, writer.chunk)]
    for rows in spans:
        writer.append_target(rows, target[rows])
    for variant, kept in KEPT.items():
        clean = np.stack([share * target @ m for share, m in zip(kept, maps, strict=True)])
        hidden = clean + 0.3 * rng.normal(size=clean.shape)
        for rows in spans:
            writer.append(variant, rows, hidden[:, rows])
    writer.finish()
    return store.open_run(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "planted")


@pytest.fixture(scope="module")
def results(run):
    return sweep(run, k=(1, 10))


def test_the_planted_loss_is_found_at_its_layer(results):
    assert first_fall(results, "baseline", 10) == 8
    assert first_fall(results, "aligned", 10) is None
    gap = results.sel(comparison="aligned - baseline")
    for score in ("knn", "cka", "cka_standardised", "drift", "drift_centred", "drift_pooled"):
        p = gap[f"{score}_difference_p_adjusted"]
        p = p.sel(k=10) if "k" in p.dims else p
        np.testing.assert_array_equal(p.values < 0.05, [False, False, True, True], err_msg=score)
    assert (gap.knn_difference.sel(layer=[8, 12]) > 0).all()
    assert (gap.drift_difference.sel(layer=[8, 12]) < 0).all()
    same = results.sel(comparison="untrained - baseline", layer=12)
    assert float(same.cka_difference_p_adjusted) > 0.05


def test_estimates_lie_in_their_intervals_and_controls_at_chance(results):
    for score in ("knn", "cka", "cka_standardised", "drift", "drift_centred", "drift_pooled"):
        mean, low, high = (results[f"{score}_{part}"] for part in ("mean", "low", "high"))
        assert ((low <= mean) & (mean <= high)).all()
        assert results[f"{score}_mean"].attrs["direction"]
    assert float(results.knn_shuffled.mean()) == pytest.approx(1 / CLASSES, abs=0.04)
    lost = results.sel(variant="baseline", layer=12)
    assert float(lost.cka_low) < 0 < float(lost.cka_high)
    for score in ("drift_centred", "drift_pooled"):
        assert float(lost[f"{score}_mean"]) == pytest.approx(1, abs=0.05)
        np.testing.assert_allclose(results[f"{score}_random"], 1, atol=0.2)


def test_a_sweep_repeats_itself_and_a_part_equals_the_whole(run, results):
    part = sweep(run, layers=[8], variants=["aligned"], k=(1, 10))
    where = {"layer": [8], "variant": ["aligned"]}
    assert "knn_difference" not in part
    for name in ("knn_mean", "cka_low", "drift_high", "knn_shuffled"):
        np.testing.assert_array_equal(part[name], results[name].sel(where))


def test_results_return_from_the_run_as_they_went_in(run, results):
    run.write_probe("sweep", results)
    back = run.probes("sweep")
    assert back.equals(results) and back.attrs["query_objects"] == 120
    assert back.knn_mean.attrs == results.knn_mean.attrs


def test_copies_of_query_objects_are_left_out_of_the_gallery(tmp_path):
    found = sweep(write_run(tmp_path / "run", copies=5), probes=["knn"], layers=[4])
    assert found.attrs["gallery_copies_dropped"] == 5 and found.attrs["gallery_objects"] == 235
    assert found.attrs["groups"] == SAMPLES - 5 and found.attrs["query_copies_dropped"] == 0
    assert "355 groups in all: 5 copies of the gallery left out" in counted(found)


def test_copies_share_a_group(run):
    points = run.points()[:6].copy(deep=True).load()
    points[4] = points[1].values
    groups = duplicate_groups(points, block=2)
    np.testing.assert_array_equal(groups, [0, 1, 2, 3, 1, 4])
    np.testing.assert_array_equal(
        without_copies(np.array([0, 1, 2]), np.array([3, 4]), groups), [0, 2]
    )
    gallery, query = gallery_query(run.samples())
    assert len(gallery) == 240 and query[0] == 240


@pytest.fixture(scope="module")
def read_out(run):
    return sweep(run, ["linear", "geometry"])


def test_linear_and_geometry_read_outs_find_the_planted_loss(read_out):
    gap = read_out.sel(comparison="aligned - baseline")
    p = gap.geometry_difference_p_adjusted.sel(property="extent_z")
    np.testing.assert_array_equal(p < 0.05, [False, False, True, True])
    # a quarter of the target is too little for neighbours, and enough for a linear map
    np.testing.assert_array_equal(gap.linear_difference_p_adjusted < 0.05, [False] * 3 + [True])
    heights = read_out.geometry_mean.sel(property="extent_z")
    assert (heights.sel(variant="aligned") > 0.5).all() and heights.sel(layer=0).min() > 0.5
    assert float(heights.sel(variant="baseline", layer=12)) == pytest.approx(0, abs=0.05)
    flat = read_out.geometry_mean.sel(property="extent_x")
    np.testing.assert_allclose(flat, 0, atol=0.1)
    below = read_out.geometry_from_target_p_adjusted.sel(property="extent_z", variant="baseline")
    assert (below.values < 0.05)[-1] and "knn_mean" not in read_out
    for score in ("linear", "linear_selectivity", "geometry", "geometry_target"):
        mean, low, high = (read_out[f"{score}_{part}"] for part in ("mean", "low", "high"))
        assert ((low <= mean) & (mean <= high)).all()


def test_the_read_out_says_whether_it_still_learns(read_out):
    np.testing.assert_array_equal(read_out.fitted, [30, 60, 120, 240])
    for part in ("mean", "low", "high"):
        whole = read_out[f"linear_curve_{part}"].sel(fitted=240, drop=True)
        xarray.testing.assert_allclose(whole, read_out[f"linear_{part}"])
        target = float(read_out[f"linear_curve_target_{part}"][-1])
        assert target == pytest.approx(float(read_out[f"linear_target_{part}"]))
    assert (read_out.linear_curve_spread.sel(fitted=240) == 0).all()
    gained = read_out.linear_curve_mean.isel(fitted=-1) - read_out.linear_curve_mean.isel(fitted=-2)
    np.testing.assert_allclose(gained, read_out.linear_gain)
    lost = "no gain beyond noise (tested over all layers at once)."
    said = " ".join(findings(read_out))  # of the baseline, whose last layer holds nothing
    assert " % (120) and " in said and f"]: {lost}" in said
    planted = read_out.copy(deep=True)
    last = {"variant": "baseline", "layer": 12}
    planted["linear_curve_mean"].loc[last] = [0.3, 0.4, 0.5, 0.625]
    for part, value in (("", 0.125), ("_low", 0.05), ("_high", 0.2), ("_p_adjusted", 0.004)):
        planted[f"linear_gain{part}"].loc[last] = value
    assert (
        "Linear read-out of baseline at layer 12 by how many gallery objects it is fitted on: "
        "30.0 % (30), 40.0 % (60), 50.0 % (120) and 62.5 % (240); the last doubling adds "
        "+12.5 points [+5.0, +20.0]: it still learns (tested over all layers at once)."
    ) in findings(planted)
    few = " ".join(findings(read_out.drop_vars([f"linear_gain{end}" for end in ("", "_p")])))
    assert "Linear read-out accuracy" in few and "last doubling" not in few


def test_controls_of_the_read_outs_are_at_chance(read_out):
    assert float(read_out.linear_shuffled.mean()) == pytest.approx(1 / CLASSES, abs=0.04)
    lost = read_out.sel(variant="untrained", layer=12)
    assert float(lost.linear_selectivity_low) < 0 < float(lost.linear_selectivity_high)
    assert float(read_out.geometry_shuffled.mean()) < 0 and read_out.geometry_shuffled.max() < 0.05
    assert read_out.attrs["constant"] == ["blue"]


def test_geometry_by_layer_is_the_sweep_of_geometry_alone(run, read_out):
    found = geometry_by_layer(run, [8], ["aligned"])
    where = {"layer": [8], "variant": ["aligned"]}
    np.testing.assert_array_equal(found.geometry_low, read_out.geometry_low.sel(where))
    heights = descriptors(run.points())[["extent_z"]].isel(sample=slice(None, None, -1))
    one = geometry_by_layer(run, [8], ["aligned"], values=heights)
    expected = read_out.geometry_mean.sel(where).sel(property=["extent_z"])
    np.testing.assert_allclose(one.geometry_mean, expected)
    with pytest.raises(ValueError, match="lack 359 of the run's samples"):
        geometry_by_layer(run, values=heights.isel(sample=[-1]))
    with pytest.raises(ValueError, match="no property varies"):
        geometry_by_layer(run, values=heights * 0)


def test_the_read_outs_are_kept_tabled_and_put_in_words(run, read_out):
    run.write_probe("readout", read_out)
    assert run.probes("readout").equals(read_out)
    text = io.StringIO()
    print_table(read_out, Console(file=text, width=120))
    shown = text.getvalue()
    assert max(map(len, shown.splitlines())) <= 120 and "…" not in shown and "-0.00" not in shown
    said = " ".join(findings(read_out))
    assert "linear read-out accuracy: higher at layer 12" in said
    assert "extent_z from 8" in said and "Left out, as they do not vary: blue" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "no layers: name one or more"),
        ({"layers": [5]}, "has no layer 5: it has 0, 4, 8, 12"),
        ({"variants": ["stage9"]}, "has no variant 'stage9'"),
        ({"probes": ["cca"]}, "no probe 'cca'"),
        ({"k": (1, 500)}, r"k=\[1, 500\]: must be 1 to 240"),
    ],
)
def test_a_sweep_of_what_is_not_there_is_refused(run, change, message):
    with pytest.raises(ValueError, match=message):
        sweep(run, **change)


def test_the_table_fits_and_the_findings_say_where(results):
    text = io.StringIO()
    print_table(results, Console(file=text, width=120))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 120 and "…" not in text.getvalue()
    said = " ".join(findings(results))
    assert "baseline at layer 8" in said and "aligned at no captured layer" in said
    assert "within noise at 0, 4" in said


def test_models_that_do_not_differ_are_said_not_to(run):
    found = sweep(run, layers=[0, 4], variants=["baseline", "aligned"])
    assert "do not differ in accuracy (K = 10) beyond noise at any layer" in " ".join(
        findings(found)
    )


def test_figures_hold_every_model_with_its_own_colour_everywhere(results):
    figure = depth_figure(results)
    assert len({t.line.color for t in figure.data if t.name == "aligned"}) == 1
    assert {t.name for t in figure.data} >= {*KEPT, "target", "chance", "shuffled labels"}
    accuracy = next(t for t in figure.data if t.name == "aligned")
    expected = 100 * results.knn_mean.sel(variant="aligned", k=10)
    np.testing.assert_allclose(accuracy.y, expected)
    one = plot_score_by_layer(results, "cka")
    np.testing.assert_array_equal(one.data[0].y, results.cka_mean.sel(variant="baseline"))
    assert "higher is closer" in one.layout.yaxis.title.text
    pairs = [t for t in difference_figure(results).data if " − " in t.name]
    assert len(pairs) == 4
    with pytest.raises(ValueError, match="hold no 'umap'"):
        plot_score_by_layer(results, "umap")


def test_a_tiny_difference_is_seen_in_the_figure_and_in_the_table(results, tmp_path):
    tiny = results.copy(deep=True)
    for score, shift in (("cka", 0.0012), ("drift_centred", -0.0012)):
        for part, aside in (("mean", 0), ("low", -0.01), ("high", 0.01)):
            values = tiny[f"{score}_{part}"]
            values[:] = (0.9 if score == "cka" else 0.05) + aside
            values.loc[{"variant": "aligned"}] += shift
        pair = {"comparison": "aligned - baseline"}
        for part, aside in (("", 0), ("_low", -0.0004), ("_high", 0.0004)):
            tiny[f"{score}_difference{part}"].loc[pair] = shift + aside
        tiny[f"{score}_difference_p_adjusted"].loc[pair] = [1, 0.04, 0.01, 0.01]
    figure = depth_figure(tiny)
    _, cka, drift = (t for t in figure.data if t.name == "aligned - baseline")
    np.testing.assert_allclose(cka.y, 0.0012)
    np.testing.assert_allclose(drift.y, -0.0012)
    assert cka.marker.symbol == ("diamond-open", "diamond", "diamond", "diamond")
    low, high = figure.layout.yaxis2.range  # of CKA: not down to unrelated objects, at 0
    assert 0.88 < low < 0.89 and 0.911 < high < 0.92
    notes = {note.text for note in figure.layout.annotations}
    assert "unrelated objects 0.00: below the axis" in notes
    assert any(note.endswith("above the axis") for note in notes)
    assert save_depth_png(tiny, tmp_path / "depth.png").exists()
    text = io.StringIO()
    print_table(tiny, Console(file=text, width=120))
    assert "+.0012 [+.0008, +.0016] *" in text.getvalue()
    assert "-.0012 [-.0016, -.0008] *" in text.getvalue() and "…" not in text.getvalue()
    assert "+0.0012 [+0.0008, +0.0016]" in " ".join(findings(tiny))


def test_without_a_comparison_there_is_no_row_of_differences(run, tmp_path):
    alone = sweep(run, layers=[4, 8], variants=["aligned"], k=(10,))
    figure = depth_figure(alone)
    assert "aligned - baseline" not in {t.name for t in figure.data}
    assert len(list(figure.select_yaxes())) == 3
    assert save_depth_png(alone, tmp_path / "alone.png").exists()


def test_pictures_open_without_a_network(results, tmp_path):
    page = save_depth_html(results, tmp_path / "depth.html").read_text()
    assert '<script src="http' not in page and "Plotly.newPlot" in page
    assert save_depth_png(results, tmp_path / "depth.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_line_leaves_results_and_pictures_in_the_run(run, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "probe", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    done = call(run.path, "--layers", "4,8", "--k", "3")
    assert done.returncode == 0, done.stderr
    assert all((run.path / name).exists() for name in ("depth.png", "depth.html", "report.html"))
    found = run.probes("sweep")
    assert list(found.layer.values) == [4, 8] and tuple(found.attrs["probes"]) == ALL_PROBES
    assert "Without lens and causal: they take the models" in done.stdout
    assert "without linear" not in done.stdout
    wrong = call(tmp_path)
    assert wrong.returncode == 2 and "is no run" in wrong.stderr and "Traceback" not in wrong.stderr
    assert "has no layer 5" in call(run.path, "--layers", "5").stderr


def test_the_command_takes_the_probes_it_is_asked_for(run, capsys):
    main(ProbeConfig(run=run.path, layers="0,4,...,8", probes="linear, geometry"))
    assert list(run.probes("sweep").layer) == [0, 4, 8]
    assert "extent_z" in capsys.readouterr().out
    assert {"linear_mean", "geometry_mean"} < set(run.probes("sweep"))


def test_no_number_of_the_table_is_cut_off_in_a_narrow_terminal(results):
    narrow, wide = io.StringIO(), io.StringIO()
    print_table(results, Console(file=narrow, width=60))
    print_table(results, Console(file=wide, width=120))
    assert "…" not in narrow.getvalue()
    rows = [line for line in wide.getvalue().splitlines() if line.startswith("│")]
    assert rows and all(row in narrow.getvalue() for row in rows)


ONE_ZERO = np.arange(2 * 48 * 3 * 8.0).reshape(2, 48, 3, 8) * (np.arange(48) > 0)[:, None, None]


@pytest.mark.parametrize(
    ("change", "command", "said"),
    [
        ({}, ["--k", "1,1000"], "must be 1 to 32, the gallery's objects"),
        ({}, ["--layers", "0,99"], "no layer 99; there are layers 0"),
        ({"split": ["gallery"] * 47 + ["query"]}, [], "1 query object: an interval needs 2"),
        ({"split": ["gallery"] * 48}, [], "48 gallery and 0 query samples: need both"),
        ({"hidden": np.ones((2, 48, 3, 8))}, ["--probes", "drift"], "layer 0: x is constant"),
        ({"hidden": np.ones((2, 48, 3, 8))}, [], "layer 0: all features are constant over the"),
        ({}, ["--layers", "0,99", "--probes", "objects"], "no layer 99; there are layers 0"),
        ({"hidden": ONE_ZERO}, [], "gallery sample 0 is zero: it has no cosine"),
        ({"infinite": (1, 5)}, [], "layer 4: object-5 has values that are not finite (1 of 48"),
        ({"infinite": (1, 5)}, ["--probes", "objects"], "baseline, layer 4: object-5 has values"),
        (
            {"infinite": (1, 40), "split": ["gallery"] * 16 + ["query"] * 32},
            ["--probes", "maps"],
            "baseline, layer 4: object-40 has values",
        ),
        ({"label": np.zeros(48, int)}, ["--probes", "linear"], "all gallery labels are 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::store.writer.NonFiniteWarning")
def test_a_flawed_run_is_one_sentence_and_code_2(change, command, said, tmp_path, capsys):
    path = flawed_run(tmp_path / "run", **change)
    assert exit_code(lambda: main(tyro.cli(ProbeConfig, args=[str(path), *command]))) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--probes", "knn,umap"], "no probe 'umap': there are knn, drift, dimension, linear, geo"),
        (["--probes", "map"], "similarity, alignment, maps, objects, reconstruction, steps"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--again", "RUN"], "is the run itself: it wants a second capture"),
        (["--again", "RUN/../planted/"], "is the run itself: it wants a second capture"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_sentence_before_anything_runs(
    command, said, run, capsys
):
    words = [word.replace("RUN", str(run.path)) for word in ["RUN", *command]]
    assert exit_code(lambda: main(tyro.cli(ProbeConfig, args=words))) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error


def test_a_run_of_another_seed_is_no_second_capture_though_its_objects_have_the_same_ids(run):
    other = SimpleNamespace(path=Path("other"), variants=run.variants, layers=run.layers)
    known = run.samples()
    said = known.caption.values.astype(object)
    said[0] = "Another shape."
    other.samples = lambda: known.assign(caption=("sample", said))
    with pytest.raises(ValueError, match=r"no second capture of .*: \S+ has another caption in it"):
        sweep(run, ["knn"], [0], ["aligned"], again=other)


def test_an_unfinished_second_capture_is_one_sentence(tmp_path):
    path, second = (flawed_run(tmp_path / name) for name in ("run", "second"))
    short = store.open_run(second)
    short.done = lambda name: 40
    with pytest.raises(ValueError, match="second is not completely captured: baseline has 40 of"):
        sweep(store.open_run(path), ["knn"], k=[1], again=short)
    assert not folder_of(store.open_run(path)).exists()  # nothing was measured before it
    with pytest.raises(ValueError, match="no variants: name one or more"):
        sweep(store.open_run(path), ["knn"], variants=[], again=store.open_run(second))


def test_a_disk_that_takes_nothing_is_one_sentence_and_the_table_is_shown(
    tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(28, "No space left on device", "sweep")

    path = flawed_run(tmp_path / "run")
    monkeypatch.setattr(store.reader.Run, "write_probe", full)
    config = ProbeConfig(run=path, probes="knn", k="1")
    assert exit_code(lambda: main(config)) == 1
    said = capsys.readouterr()
    assert said.err.strip().endswith("No space left on device (sweep)")
    assert "Accuracy in %, K = 1" in said.out


def test_a_probe_that_is_added_leaves_the_others_and_other_settings_replace_them(tmp_path, capsys):
    path = flawed_run(tmp_path / "run")
    main(ProbeConfig(run=path, probes="drift,dimension", k="1,5"))
    states = zarr.open_group(path / "activations.zarr", mode="r+")["baseline/hidden"]
    states[1, 40:] = states[1, 40:] + np.float16(1)  # what was found of these is not found again
    capsys.readouterr()
    main(ProbeConfig(run=path, probes="knn", k="1,5"))
    assert "with drift, dimension, of the sweep that was kept" in capsys.readouterr().out
    run = store.open_run(path)
    whole = sweep(run, ["knn", "drift", "dimension"], k=(1, 5), keep=False)
    assert run.probes("sweep").equals(whole) and run.probes("sweep").attrs == whole.attrs
    alone = "the kept sweep is replaced, without dimension: "
    for layers, why in (([0, 4], "seed"), ([4], "layers and seed")):
        names, said = with_kept(run, ["knn", "drift"], layers, k=[1, 5], seed=1)
        assert names == ["knn", "drift"] and said == f"{alone}it is of other {why}"
    run.write_probe("sweep", run.probes("sweep").assign_attrs(code="of a version before"))
    main(ProbeConfig(run=path, probes="knn,drift", k="1,5"))
    assert f"{alone}another version measured it" in capsys.readouterr().out
    assert run.probes("sweep").attrs["probes"] == ["knn", "drift"]


def test_a_noise_floor_that_a_sweep_without_a_second_capture_leaves_out_is_named(tmp_path):
    run, second = (store.open_run(flawed_run(tmp_path / name)) for name in ("run", "second"))
    states = zarr.open_group(second.path / "activations.zarr", mode="r+")["baseline/hidden"]
    states[1, 0] = states[1, 0] + np.float16(0.1)
    run.write_probe("sweep", sweep(run, ["knn", "drift"], k=(1,), again=second))
    lost = "the noise floor that was kept is left out: --again RUN measures it"
    assert with_kept(run, ["knn", "drift"], run.layers, k=[1], seed=0) == (["knn", "drift"], lost)
    _, said = with_kept(run, ["knn"], run.layers, k=[1], seed=0)
    assert said == f"with drift, of the sweep that was kept; {lost}"
    _, said = with_kept(run, ["knn"], run.layers, k=[1], seed=0, again=True)
    assert said == "with drift, of the sweep that was kept"


def test_neighbours_that_are_the_whole_gallery_have_no_hubs_to_tell_of(tmp_path):
    found = sweep(store.open_run(flawed_run(tmp_path / "run")), ["knn"], k=[1, 32])
    assert found.hubness_mean.sel(k=32).isnull().all() and found.hubness_random.sel(k=1) > 0
    assert "nan" not in " ".join(findings(found))
    assert not [table for table in tables(found, SCORES) if "Hubness" in table.title]


def test_a_command_that_is_stopped_says_how_to_go_on(capsys):
    def stopped():
        raise KeyboardInterrupt

    assert exit_code(stopped) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on with what is left\n"


def test_probes_that_a_run_has_nothing_for_are_named_and_left_out(tmp_path, capsys):
    path = flawed_run(tmp_path / "run", label=np.zeros(48, int))
    main(ProbeConfig(run=path, layers="4", k="1"))
    said = capsys.readouterr().out
    assert "without linear: all objects are of one class" in said and "without geometry" in said
    kept = set(store.open_run(path).probes("sweep").attrs["probes"])
    assert (
        kept
        == set(ALL_PROBES) - {"linear", "geometry"}
        == set(EVERY.split(",")) - set(lacking(store.open_run(path)))
    )


def test_a_class_that_cannot_be_told_is_counted_and_named(tmp_path):
    label = np.arange(48) % 4
    label[-1], label[0] = 4, 5  # one query object of its own class, and one gallery object
    found = sweep(store.open_run(flawed_run(tmp_path / "run", label=label)), ["knn"], k=[1])
    assert found.attrs["queries_of_absent_classes"] == 1
    text = io.StringIO()
    print_table(found, Console(file=text, width=400))
    said = (
        "• Classes of too few objects: class 4 not in the gallery, their queries count as wrong "
        "(1); class 5 with one gallery object, which others outvote where K exceeds 2."
    )
    assert text.getvalue().count(said) == text.getvalue().count("too few") == 1
    odd = found.assign_coords(variant=["[/own]"])  # what rich would take for markup
    odd = odd.assign_attrs(absent_classes=["[/desk]"], single_classes=["[bold]"])
    print_table(odd, Console(file=text, width=400))
    said = said.replace("class 4", "[/desk]").replace("class 5", "[bold]")
    assert said in text.getvalue() and "┃ [/own]" in " ".join(text.getvalue().split())


def flawed_run(path, *, label=None, split=None, hidden=None, infinite=None):
    rng = np.random.default_rng(0)
    label = np.arange(48) % 4 if label is None else label
    target = rng.normal(size=(48, 3, 6)) + label[:, None, None]
    states = rng.normal(size=(2, 48, 3, 8)) if hidden is None else hidden
    if infinite:
        states[infinite][:, 0] = np.inf, -np.inf, 1  # whose mean is no number
    samples = {
        "id": [f"object-{i}" for i in range(48)],
        "label": label,
        "class_name": [f"class {i}" for i in label],
        "split": ["gallery"] * 32 + ["query"] * 16 if split is None else split,
        "caption": ["A shape."] * 48,
    }
    sizes = {"layers": [0, 4], "variants": ["baseline"], "tokens": 3, "dim": 8, "target_dim": 6}
    writer = store.create_run(path, samples=samples, **sizes)
    for start in range(0, 48, writer.chunk):
        rows = slice(start, min(start + writer.chunk, 48))
        writer.append_target(rows, target[rows])
        writer.append("baseline", rows, states[:, rows])
    writer.finish()
    return path


def test_of_one_layer_no_fall_is_told_that_would_be_measured_from_itself(run):
    asked = ["knn", "drift", "dimension", "similarity"]
    one = sweep(run, asked, [8], ["baseline"], k=(1,))
    assert "knn_fall_mean" in one and "cka_fall_mean" not in one and "drift_fall_mean" not in one
    said = findings(one)
    assert any(each.startswith("Accuracy (K = 1) in % at layer 8") for each in said)
    assert "layer 8 to 8" not in " ".join(said)


def test_the_order_that_ks_are_named_in_changes_nothing(run):
    found, other = (sweep(run, ["knn"], [8], ["baseline"], k=k) for k in ((1, 10), (10, 1, 10)))
    assert found.equals(other)
