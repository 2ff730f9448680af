"""The report: one page, escaped, whose numbers are the run's; the cache and the noise floor."""

import html
import io
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tyro
import xarray as xr
from rich.console import Console

import probe.__main__ as command
import store
from probe.cells import CELLS
from probe.findings import findings
from probe.judged import MAIN, SECOND, decimals, verdict_cell
from probe.maps import maps
from probe.page import _reproduce, as_html, as_markdown, write_report
from probe.page_text import Section, Table
from probe.page_words import words
from probe.plots import save_depth_png
from probe.reconstruction import reconstruction
from probe.report import print_beside, print_table
from probe.sweep import ALL_PROBES, sweep
from store.layers import parse_layers
from tests.browser import NoBrowser, chromium, listen
from tests.test_sweep import write_run

EVIL = "<script>alert('1')</script> | `x` $y$"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("pages") / "run")


@pytest.fixture(scope="module")
def whole(run):
    """Every probe there is, at two layers, as a report needs them."""
    found = sweep(run, ALL_PROBES, [0, 12], ["baseline", "aligned"], k=(1, 5))
    run.write_probe("sweep", found)
    run.write_probe("reconstruction", reconstruction(run, [0, 12], ["aligned"], steps=3))
    run.write_probe("maps", maps(run, [0, 12], ["aligned"], methods=["pca"]))
    return found


@pytest.fixture(scope="module")
def report(run, whole, tmp_path_factory):
    page, text = write_report(run, tmp_path_factory.mktemp("out") / "r")
    return page.read_text(), text


def test_the_page_opens_without_a_network_and_holds_every_part(report):
    page, text = report
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert 'src="http' not in outside and "<link" not in outside and "Plotly" in page
    found = re.findall(r'<h2 id="([a-z0-9-]+)">([^<]+)</h2>', page)
    titles = {title for _, title in found}
    assert titles >= {"Question", "What was found", "What alignment changes", "Depth", "Controls"}
    assert titles >= {"How it was measured", "Limits", "Provenance", "Commands", "Maps"}
    assert titles >= {"Layer against layer", "Asked in other ways", "The cloud rebuilt"}
    assert titles >= {"Other likenesses", "Geometry that can be read out", "Shape of the space"}
    assert re.findall(r'<a href="#([^"]+)">', page) == [anchor for anchor, _ in found]
    pictures = re.findall(r"\((report/\w+\.png)\)", text.read_text())
    assert len(pictures) >= 10 and "report/geometry.png" in pictures
    for name in pictures:
        assert (text.parent / name).read_bytes()[:4] == b"\x89PNG"


def test_numbers_and_sentences_are_those_of_the_run(report, run, whole):
    page, text = report
    row = whole.sel(variant="baseline", layer=12, k=5)
    three = [100 * float(row[f"knn_{part}"]) for part in ("mean", "low", "high")]
    assert "{:.1f} [{:.1f}, {:.1f}]".format(*three) in page
    for sentence in findings(whole):
        assert html.escape(sentence) in page
    for kind, caption in (("Figure", "figcaption"), ("Table", "caption")):
        numbers = re.findall(rf"<{caption}><b>{kind} (\d+)\.</b>", page)
        assert numbers == [str(at) for at in range(1, len(numbers) + 1)] and len(numbers) > 8
    assert "--probes knn,drift" in page and "--layers 0,12" in page and "--k 1,5" in page
    assert "python -m probe report run" in text.read_text().replace("\\", "")


def test_the_commands_ask_for_what_the_results_were_made_with(run, whole):
    others = {name: run.probes(name) for name in ("maps", "reconstruction")}
    others["maps"].attrs["seed"] = 3
    names = {"run": ["run", "other"], "layer": [12], "k": [5]}
    others["seeds"] = xr.Dataset(coords=names, attrs={"probes": ["knn"], "seed": 4})
    table = _reproduce(run, whole, {}, others).parts[0]
    made = {"sweep": whole, **others}
    for (typed,), results in zip(table.rows[:-1], made.values(), strict=True):
        config = tyro.cli(command.ProbeConfig, args=shlex.split(typed)[3:])
        assert parse_layers(config.layers, 12) == results.layer.values.tolist()
        assert config.seed == results.attrs["seed"]
        assert "k" not in results.coords or config.k == ",".join(map(str, results.k.values))
    assert (config.run, config.more, config.probes) == ("run", ("other",), "knn")
    every = others["maps"].reindex(layer=run.layers)
    whole_depth = _reproduce(run, whole, {}, {"maps": every}).parts[0].rows[1][0]
    assert whole_depth.endswith("--probes maps --seed 3")


def test_in_print_every_live_figure_is_its_picture(report):
    page, text = report
    live = re.findall(r'<div id="figure-(\w+)"', page)
    still = re.findall(r'<div class="still"><img alt="[^"]*" src="data:image/png;base64,', page)
    assert live and len(still) == len(live)
    assert {f"report/{name}.png" for name in live} <= set(
        re.findall(r"\((report/\w+\.png)\)", text.read_text())
    )


def test_on_a_phone_a_figure_keeps_its_size_and_is_moved_sideways(report, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(report[0])
    try:
        with chromium() as browser:
            tab = browser.new_page(viewport={"width": 390, "height": 844})
            said = listen(tab)
            asked: list[str] = []
            tab.on("request", lambda one: asked.append(one.url))
            tab.goto(page.as_uri())
            wide = tab.evaluate("document.documentElement.scrollWidth")
            drawn = tab.eval_on_selector_all(
                ".live .main-svg, .seen > img", "all => all.map(e => e.clientWidth)"
            )
    except NoBrowser as why:
        pytest.skip(str(why))
    assert min(drawn) > 800 and wide <= 390
    assert said == [] and not [url for url in asked if url[:5] not in ("file:", "data:")]


def test_a_cell_of_two_lines_is_two_on_the_page_and_one_in_markdown():
    table = Table("A table", ["property", "a", "b"], [["extent", "0.9 <;\nholds", "0.8"]])
    section = Section("Section", [], [table])
    assert "<td>0.9 &lt;;<br>holds</td>" in as_html("run", [section])
    assert "| extent | 0.9 &lt;; holds | 0.8 |" in as_markdown("run", [section])


def test_where_two_models_are_alike_at_one_layer_it_is_one_layer(whole):
    alike = whole.knn_alike_p.copy(deep=True)
    alike.loc[{"comparison": MAIN}] = [0.01, 0.9]
    said = " ".join(findings(whole.assign(knn_alike_p=alike)))
    assert "proven alike within ± " in said and "points at layer 0 only" in said


def test_one_token_tells_more_and_two_tell_more(whole):
    name = "knn_token_from_mean"
    for tokens, said in (([0], "token 0 tells more than"), ([0, 2], "tokens 0, 2 tell more than")):
        here = whole.token.isin(tokens) & (whole.layer == 12)
        gap, p = (whole[key] for key in (name, f"{name}_p_adjusted"))
        sure = (0 * p + 1).where(~here, 0.01)
        planted = {name: gap.where(~here, 0.1), f"{name}_p_adjusted": sure}
        told = " ".join(findings(whole.assign(planted)))
        assert f"{said} the mean of all at layer 12." in told


def test_other_likenesses_are_told_with_their_values_and_by_which_aligned_is_closer(whole):
    said = next(one for one in findings(whole) if one.startswith("Other likenesses of baseline"))
    for key, name in (("cka_rbf", "RBF CKA"), ("svcca", "SVCCA"), ("pwcca", "PWCCA")):
        least = -1 if key == "cka_rbf" else 0  # debiased: below 0 as often as above, by chance
        assert least <= whole[f"{key}_low"].min() <= whole[f"{key}_high"].max() <= 1
        one = whole.sel(variant="baseline")
        at = [float(one[f"{key}_mean"].sel(layer=layer)) for layer in (0, 12)]
        assert "{} {:.2f} to {:.2f} [".format(name, *at) in said
        chance = round(float(one[f"{key}_shuffled"].sel(layer=12)), 2) + 0.0
        assert f"shuffled {chance:.2f}" in said
    compared = next(one for one in findings(whole) if one.startswith("Against the baseline"))
    pair = whole.sel(comparison="aligned - baseline", layer=12)
    assert float(pair.svcca_difference) > 0 and float(pair.svcca_difference_p_adjusted) < 0.05
    assert "SVCCA (layer 12)" in compared.partition("further")[0]
    assert "Procrustes distance (layer 12)" in compared.partition("further")[0]  # less is closer
    assert float(pair.procrustes_difference) < 0


def test_a_model_captured_while_it_trained_is_told_from_its_first_step_to_its_last():
    names, every, layers = ["baseline", "aligned"], [0, 60, 120], [0, 8]
    cka, drift = np.full((2, 3, 2), 0.9), np.zeros((2, 3, 2))
    cka[0, :, 1], drift[0, :, 1] = (0.5, 0.625, 0.75), (0.25, 0.5, 0.125)
    cka[1, 2], drift[1, 2] = np.nan, np.nan  # aligned was captured twice only
    results = xr.Dataset(coords={"variant": names, "step": every, "layer": layers})
    for score, values in (("cka", cka), ("drift_centred", drift)):
        for part, aside in (("mean", 0), ("low", -0.0625), ("high", 0.0625)):
            results[f"{score}_{part}"] = (("variant", "step", "layer"), values + aside)
    baseline, aligned = findings(results)
    assert baseline == (
        "baseline, from step 0 to 120 at layer 8: CKA to the target from 0.500 [0.438, 0.562] to "
        "0.750 [0.688, 0.812] and drift from 0.250 [0.188, 0.312] to 0.125 [0.062, 0.188]; drift "
        "changes most at layer 8 (-0.1250)."
    )
    assert aligned.startswith("aligned, from step 0 to 60 at layer 8")


def test_every_way_of_asking_and_every_pair_is_in_the_dataset(whole, run):
    assert set(whole.attrs["probes"]) == set(CELLS)
    usual = whole.knn_ways_mean.sel(preparation="raw", pooling="mean", metric="cosine")
    np.testing.assert_allclose(usual.transpose(*whole.knn_mean.dims), whole.knn_mean)
    np.testing.assert_allclose(whole.knn_confusion.sum("named").sel(variant="aligned", layer=0), 20)
    right = sum(
        float(whole.knn_confusion.sel({"variant": "aligned", "layer": 0, "class": c, "named": c}))
        for c in whole["class"].values
    )
    assert right / 120 == pytest.approx(float(whole.knn_mean.sel(variant="aligned", layer=0, k=5)))
    for score in ("rsa", "svcca", "pwcca"):  # kept at layer 0, lost like shuffled objects at 12
        first, last = (whole[f"{score}_mean"].sel(variant="baseline", layer=at) for at in (0, 12))
        chance = whole[f"{score}_shuffled"].sel(variant="baseline", layer=12)
        assert float(first) > float(chance) + 0.3 > float(last), score
    same = whole.cka_layers_mean.sel(variant="baseline", other_variant="baseline")
    np.testing.assert_allclose(np.diag(same.sel(layer=[0, 12], other_layer=[0, 12])), 1)
    assert float(whole.massive_tokens.max()) == 0
    assert (whole.knn_without_massive_mean == whole.knn_mean.sel(k=5)).all()
    assert (whole.cka_without_massive_mean == whole.cka_mean).all()
    np.testing.assert_allclose(whole.drift_without_massive_mean, whole.drift_centred_mean)
    assert whole.knn_token_mean.dims == ("variant", "layer", "token")
    gap = whole.knn_token_mean - whole.knn_mean.sel(k=5)
    np.testing.assert_allclose(
        gap.transpose(*whole.knn_token_from_mean.dims), whole.knn_token_from_mean
    )
    run.write_probe("sweep", whole)
    assert run.probes("sweep").equals(whole)
    said = " ".join(findings(whole))
    assert "Of 24 ways to ask" in said and "Protocol test90_10" in said
    assert "One token alone" in said
    assert "Noise floor: not measured" in said


def test_the_dimension_of_fewer_objects_is_told_and_what_was_kept_without_it_is_read(whole):
    np.testing.assert_array_equal(whole.objects, [120, 60, 30])
    np.testing.assert_allclose(whole.two_nn_decimated.sel(objects=120), whole.two_nn_mean)
    one = whole.sel(variant="baseline", layer=12).two_nn_decimated
    each = ", ".join(
        f"{value:.1f} of {at}" for value, at in zip(one.values[1:], (60, 30), strict=True)
    )
    told = f"; thinned out at layer 12, TwoNN {float(one[0]):.1f} of 120 objects, {each}."
    assert told in " ".join(findings(whole)) and not whole.two_nn_dropped.any()
    copied = whole.copy(deep=True)
    copied.two_nn_dropped.loc[{"layer": 12, "variant": "baseline"}] = 4
    said = " ".join(findings(copied))
    assert "; at layer 12 TwoNN leaves out up to 4 objects at distance 0 from another." in said
    before = whole.drop_dims("objects").drop_vars("two_nn_dropped")
    assert "thinned out" not in " ".join(findings(before))


def test_every_number_says_what_it_is_and_which_direction_is_good(whole):
    for name, values in whole.data_vars.items():
        assert values.attrs["long_name"] and values.attrs["direction"], name


def test_the_planted_loss_is_a_verdict(run):
    found = sweep(run, ["knn", "drift"], k=(10,))
    place = {"variant": "baseline", "k": 10}
    # with 120 objects layer 0 may pass for fallen, so the interval reaches down to it
    assert float(found.knn_fall_low.sel(place)) <= 8 and found.knn_fall_high.sel(place) <= 8
    cka = found.sel(variant="baseline")
    assert 4 <= float(cka.cka_fall_low) <= float(cka.cka_fall_high) <= 9
    assert float(found.knn_fallen.sel(place)) in (8, 12)
    assert float(found.knn_fall_p.sel(place)) < 0.01
    assert not float(found.knn_fall_p.sel(variant="aligned", k=10)) < 0.05
    pair = found.sel(comparison="aligned - baseline")
    assert float(pair.cka_shift_low) > 0
    assert float(pair.cka_alike_p.sel(layer=12)) > 0.95
    assert (pair.knn_detectable > 0).all()
    said = " ".join(findings(found))
    assert re.search(r"Verdict on accuracy, K = 10.*baseline .*falls? at layer [0-8]\.\d", said)


def test_before_the_first_captured_layer_a_depth_is_not_known(run):
    found = sweep(run, ["knn"], [8, 12], ["baseline", "aligned"], k=(5,))
    row = found.sel(k=5)
    low, depth = (
        float(row[f"knn_fall_{part}"].sel(variant="baseline")) for part in ("low", "mean")
    )
    assert low == depth == 8  # it was lost before
    assert verdict_cell(row, "knn", "baseline").startswith("≤ 8 [≤ 8, ")
    assert "baseline falls at layer ≤ 8 [≤ 8, " in " ".join(findings(found))


def test_what_falls_is_told_of_every_k_and_of_the_linear_read_out_and_by_property(run):
    found = sweep(run, ["knn", "linear", "geometry"], [0, 8, 12], ["baseline", "aligned"], k=(1, 5))
    said = findings(found)
    for name, score, place in (
        ("Accuracy (K = 1)", "knn", {"k": 1}),
        ("Accuracy (K = 5)", "knn", {"k": 5}),
        ("Linear read-out accuracy", "linear", {}),
    ):
        one = next(each for each in said if each.startswith(f"{name} is first below"))
        at = {**place, "variant": "baseline"}
        below = found[f"{score}_from_target_p_adjusted"].sel(at).values < 0.05
        assert f"baseline at layer {found.layer.values[below.argmax()]} (" in one and below[-1]
    one = next(each for each in said if each.startswith("Verdict on geometry"))
    depth = found.geometry_fall_mean.where(found.geometry_fall_p < 0.05, np.inf)
    own = depth.sel(variant="baseline").to_series()
    named = one.split("baseline loses ")[1].split(" more")[0].replace(" and ", ", ").split(", ")
    assert int(named[-1]) == np.isfinite(own).sum() - 5 > 0 and own["extent_z"] < 12
    for text in named[:-1]:
        name, at = text.split(" at layer ")
        assert own[name] <= own.sort_values().iloc[4] and at == f"{own[name]:.1f}"
    kept = found.geometry_held.sel(variant="aligned") == 12
    holds = int((kept & np.isinf(depth.sel(variant="aligned"))).sum())
    assert one.endswith(f"surely keeps {holds} to layer 12.")


def test_models_that_are_not_compared_are_said_not_to_be(run):
    said = "No two models are compared: that wants one called baseline."
    assert said in findings(sweep(run, ["knn"], [8], ["aligned", "untrained"], k=(5,)))
    assert said not in findings(sweep(run, ["knn"], [8], ["aligned"], k=(5,)))
    assert said not in findings(sweep(run, ["knn"], [8], ["baseline", "untrained"], k=(5,)))


def test_where_no_fall_is_shown_none_is_moved(run):
    found = sweep(run, ["drift"], variants=["baseline", "aligned"])
    moved = "CKA to the target: alignment delays the fall by "
    assert moved in " ".join(findings(found))
    unsure = found.assign(cka_fall_p=found.cka_fall_p * 0 + 0.2)
    assert moved not in (said := " ".join(findings(unsure)))
    assert "CKA to the target: aligned and baseline are proven alike" in said or (
        "CKA to the target: at no layer" in said
    )


def test_second_opinions_have_a_verdict_on_the_planted_loss_too(run):
    found = sweep(run, ["linear", "similarity"], variants=["baseline", "aligned"])
    pair = found.sel(comparison="aligned - baseline")
    for score in SECOND:
        own, kept = (found[f"{score}_fall_p"].sel(variant=v) for v in ("baseline", "aligned"))
        assert own < 0.05 and not kept < 0.05, score
        if score != "linear_bits":  # which 240 gallery objects tell only roughly
            low, high = (float(found[f"{score}_fall_{end}"][0]) for end in ("low", "high"))
            assert 4 <= low < high <= 9 and float(pair[f"{score}_shift_low"]) > 0, score
        assert (pair[f"{score}_detectable"] > 0).all()
    [depth, alignment] = (each for each in findings(found) if each.startswith("Second opinions"))
    assert "RSA with the target: baseline falls at layer" in depth
    least = float(pair.rsa_shift_low)  # aligned never falls: at least so far
    assert f"RSA with the target: alignment delays the fall by at least {least:.1f} la" in alignment
    cells = Console(width=400, record=True, file=io.StringIO())
    print_table(found, cells)
    assert f"≥ {least:+.1f}" in cells.export_text()


def test_a_likeness_that_is_not_defined_is_no_result(run):
    found = sweep(run, ["similarity"], [0, 12], ["baseline", "aligned"])
    missing = [name for name in found if str(name).startswith("pwcca")]
    undefined = found.assign({name: np.nan * found[name] for name in missing})
    said = " ".join(findings(undefined))
    assert "PWCCA not defined, as there are no more objects than dimensions" in said
    assert said.count("PWCCA") == 1 and "nan" not in said


def test_what_the_mean_token_massive_ones_and_one_dimension_change_is_told(whole):
    said = findings(whole)
    drift = next(one for one in said if one.startswith("Drift from layer 0 to 12"))
    row = whole.sel(variant="aligned")
    ends = [float(row.drift_pooled_mean.sel(layer=layer)) for layer in (0, 12)]
    assert "; of the mean token: baseline " in drift
    assert "aligned {:.3f} to {:.3f} [".format(*ends) in drift.split("of the mean token")[1]
    change = float(abs(whole.cka_standardised_mean - whole.cka_mean).max())
    one = f"at one spread CKA to the target changes by at most {change:.4f}."
    assert any(one in each for each in said)
    moved = whole.drift_centred_mean + 0.03
    massive = whole.assign(
        massive_tokens=whole.massive_tokens + 1, drift_without_massive_mean=moved
    )
    assert "leaving them out changes accuracy by at most 0.0 points, " in (
        told := " ".join(findings(massive))
    )
    assert ", drift by at most 0.0300 (baseline, layer " in told
    assert ", intrinsic dimension by at most 0.0, " in told
    dimensions = ("two_nn_mean", "two_nn_without_massive_mean")  # of few objects there is none
    few = massive.assign({name: np.nan * massive[name] for name in dimensions})
    assert "intrinsic dimension by" not in " ".join(findings(few))
    assert "Drift, massive tokens left out from layer 0 to 12" in told
    assert "massive tokens left out" not in " ".join(said)
    names = ("drift_pooled", "drift_without_massive", "cka_standardised")
    before = whole.drop_vars([name for name in whole if str(name).startswith(names)])
    assert "mean token:" not in (kept := " ".join(findings(before))) and "one spread" not in kept


def test_text_of_the_data_is_escaped(run, whole):
    named = whole.copy()
    named.attrs["run"] = EVIL
    named = named.assign_coords({"class": [EVIL, *whole["class"].values[1:]]})

    class Fake:
        path, variants, layers = run.path, [*run.variants[:-1], EVIL], run.layers
        attrs = run.attrs | {"provenance": {"captured": EVIL}}

        def probes(self, name):
            return named if name == "sweep" else run.probes(name)

    from probe.page import _sections

    sections = _sections(Fake(), named, {})
    page, text = as_html(EVIL, sections), as_markdown(EVIL, sections)
    # inside a figure's data plotly writes \u003c for the bracket
    assert EVIL not in page and "<script>alert" not in page and "<script>alert" not in text
    assert html.escape(EVIL) in page


def test_a_host_says_in_its_own_words_what_was_captured_and_what_the_target_is():
    own = {"captured": "8 positions of the prompt", "target": "the joint embedding", "seed": 0}
    plain, said = (dict(words(["aligned"], one)) for one in ({}, own))
    assert "Q-Former" in plain["target"] and list(said) == list(plain)
    assert said["target"] == "the joint embedding" and "Q-Former" not in str(said)
    assert said["point tokens"] == "8 positions of the prompt"


def test_a_run_that_was_not_probed_says_so(tmp_path):
    bare = write_run(tmp_path / "bare")
    with pytest.raises(ValueError, match="has no sweep to report: python -m probe"):
        write_report(bare)


@pytest.mark.slow
def test_a_sweep_that_lacks_variables_is_one_sentence(run, whole, tmp_path, monkeypatch, capsys):
    shutil.copytree(run.path, tmp_path / "run")
    older = store.open_run(tmp_path / "run")
    older.write_probe("sweep", whole.drop_vars([n for n in whole if "_fall_" in str(n)]))
    monkeypatch.setattr("sys.argv", ["probe", "report", str(older.path)])
    assert command.cli() == 2
    said = capsys.readouterr().err.strip()
    assert re.search(r"another version kept it \(No variable named '\w+_fall_\w+'\): ", said)
    assert "\n" not in said
    assert f"python -m probe {older.path} makes the sweep anew" in said
    older.write_probe("sweep", whole.drop_vars("knn_from_target_p_adjusted"))
    with pytest.raises(ValueError, match="knn_from_target_p_adjusted"):
        write_report(older)
    assert not (tmp_path / "run" / "report.html").exists()


def test_the_first_word_report_writes_the_report(run, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["probe", "report", str(run.path), "--out", str(tmp_path)])
    assert command.cli() == 0
    assert (tmp_path / "report.html").exists() and "report.md" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["probe", "report", str(tmp_path)])
    assert command.cli() == 2 and "is no run" in capsys.readouterr().err


def test_only_what_changed_is_computed_again(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    calls = []

    def counted(name):
        plain = CELLS[name]
        return lambda data, tokens, ask: calls.append(name) or plain(data, tokens, ask)

    for name in ("knn", "drift"):
        monkeypatch.setitem(CELLS, name, counted(name))
    once = sweep(run, ["knn"], [0, 4], ["baseline", "aligned"])
    assert len(calls) == 5  # four cells and the target
    again = sweep(run, ["knn", "drift"], [0, 4], ["baseline", "aligned"])
    assert calls.count("knn") == 5 and calls.count("drift") == 4
    assert again.knn_mean.equals(once.knn_mean)
    sweep(run, ["knn"], [0, 4], ["baseline", "aligned"], seed=1)
    assert calls.count("knn") == 10
    fresh = sweep(run, ["knn"], [0, 4], ["baseline", "aligned"], keep=False)
    assert fresh.equals(once) and calls.count("knn") == 15


def test_two_captures_of_the_same_objects_give_the_noise_floor(run, tmp_path):
    itself = sweep(run, ["knn"], [0, 12], ["aligned"], again=run)
    np.testing.assert_allclose(itself.noise_cka_mean, 1)
    np.testing.assert_allclose(itself.noise_agreement_mean, 1)
    said = " ".join(findings(itself))
    assert (
        "CKA of 1.000 (intervals within 1.000 and 1.000) with themselves, and their neighbours "
        "name the same class for 100.0 % (intervals within 9" in said
    )
    both = ["baseline", "aligned"]
    found = sweep(run, ["knn"], [0], both, again=_Again(run, ["aligned"], [0]))
    np.testing.assert_allclose(found.noise_cka_mean.values.ravel(), [np.nan, 1])
    assert "of aligned): the same objects" in " ".join(findings(found))
    for variants, layers, said in (
        (both, [4], "has no layer 0"),
        (["x"], [0], "none of the models"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep(run, ["knn"], [0], both, again=_Again(run, variants, layers))


def test_one_model_alone_has_its_table_and_its_verdicts(run):
    found = sweep(run, ["linear", "similarity"], [0, 12], ["aligned"])
    assert "linear_bits_fall_mean" in found and "comparison" not in found.coords
    said = io.StringIO()
    print_table(found, Console(file=said, width=200))
    assert "bits that a class costs, coded online" in said.getvalue()


class _Again:
    """A second capture that is the first one, of some models and layers."""

    def __init__(self, run, variants, layers):
        self.path, self.variants, self.layers = Path("other"), variants, layers
        self.final, self.samples, self.done = run.final, run.samples, run.done


def test_maps_and_rebuilt_clouds_are_tabled(run, whole):
    text = io.StringIO()
    for name in ("maps", "reconstruction"):
        print_beside(name, run.probes(name), Console(file=text, width=120))
    shown = text.getvalue()
    assert all(
        word in shown for word in ("PCA of 120 query objects", "aligned", "Chamfer distance")
    )
    assert "…" not in shown
    quality = float(run.probes("maps").continuity.isel(draw=0, layer=0, variant=0)[0])
    assert f"/ {quality:.2f}" in shown


def test_a_class_name_with_a_dollar_is_drawn(whole, tmp_path):
    from probe.figures import confusion_png

    named = whole.assign_coords({"class": [EVIL, *whole["class"].values[1:]]})
    assert confusion_png(named, "aligned")[:4] == b"\x89PNG"
    assert save_depth_png(whole, tmp_path / "d.png").exists()


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_numbers(run):
    distributed = pytest.importorskip("distributed")
    here = sweep(run, ["knn", "drift"], [0, 4], keep=False)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as one:
        there = sweep(run, ["knn", "drift"], [0, 4], keep=False, dask=one.scheduler_address)
    assert there.equals(here)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_a_cluster_that_is_gone_is_named(
    run, tmp_path, monkeypatch
):
    """Workers of two threads, started in another folder than the command."""
    distributed = pytest.importorskip("distributed")
    here = sweep(run, ["knn", "linear"], [0, 4], keep=False)
    shutil.copytree(run.path, tmp_path / "run")
    sizes = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.LocalCluster(**sizes) as one:
        monkeypatch.chdir(tmp_path)

        def ask(at=None):
            def kill(done, *_):
                if done == at:
                    os.kill(one.workers[0].pid, signal.SIGKILL)

            found = store.open_run("run")
            where = one.scheduler_address
            return sweep(found, ["knn", "linear"], [0, 4], dask=where, progress=kill)

        assert ask(at=2).equals(here.assign_attrs(run="run"))
        assert list((tmp_path / "run" / "cache" / "probes").glob("linear-*.npz"))
        shutil.rmtree(tmp_path / "run" / "cache")
        monkeypatch.setattr("distributed.Future.result", _lost)
        with pytest.raises(ConnectionError, match="the cluster is gone, or its workers died"):
            ask()


def _lost(_):
    from distributed import CancelledError

    raise CancelledError


def test_without_dask_distributed_the_flag_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dask.distributed", None)
    with pytest.raises(ValueError, match="pip install distributed"):
        sweep(run, ["knn"], [0], ["aligned"], dask="tcp://127.0.0.1:1")


@pytest.mark.parametrize(
    "values, digits", [([0.12, -0.3], 4), ([0.0004], 4), ([3e-5, -6e-6], 5), ([0, 4e-17], 4)]
)
def test_as_many_decimals_as_show_a_digit_of_the_largest(values, digits):
    assert decimals(values, 4) == digits


def test_a_small_difference_is_not_told_as_none(whole):
    parts = [f"cka_difference{part}" for part in ("", "_low", "_high")]
    said = findings(whole.assign({part: whole[part] * 1e-4 for part in parts}))
    [one] = (each for each in said if "baseline in CKA" in each)
    assert re.search(r"at most [+-]0\.0000[1-9]", one) and "0.0000 " not in one
