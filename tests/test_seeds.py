"""Intervals over seeds, held against closed forms and simulation; several runs by the command."""

import json
import shutil

import numpy as np
import pytest
import zarr
from scipy import stats

import store
from probe.__main__ import ProbeConfig, main
from probe.cka import own_parts
from probe.dimension import shape
from probe.findings import controls
from probe.page import write_report
from probe.pairs import alike
from probe.seeds import over_seeds
from probe.seeds_runs import over_runs, recipes
from probe.seeds_scores import EVERY
from probe.seeds_words import findings
from probe.sweep import ALL_PROBES

SAMPLES, TOKENS, LAYERS = 60, 2, [0, 4]
KEPT = {"baseline": 0.4, "aligned": 1.5}
PARTS = ("mean", "low", "high")
OTHER = ("knn_class_low", "geometry_difference_low")
"""Another interval than the sweep's: Wilson's of ten objects, and of errors as they stand."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one recipe, with objects of their own."""
    folder = tmp_path_factory.mktemp("runs")
    return [make(folder / f"seed{seed}", seed) for seed in range(3)]


def make(path, seed, variants=tuple(KEPT), classes=3, finish=True, factors=None, tokens=TOKENS):
    rng = np.random.default_rng(seed)
    label = np.arange(SAMPLES) % classes
    target = 0.3 * rng.normal(size=(SAMPLES, tokens, 6)) + rng.normal(size=(SAMPLES, 1, 6))
    target[:, :, 0] += 3 * label[:, None]
    writer = store.create_run(
        path,
        samples={
            "id": [f"object-{i}" for i in range(SAMPLES)],
            "label": label,
            "class_name": [f"class {i}" for i in label],
            "split": np.where(np.arange(SAMPLES) < 30, "gallery", "query"),
            "caption": ["A shape."] * SAMPLES,
        }
        | (factors or {}),
        layers=LAYERS,
        variants=list(variants),
        tokens=tokens,
        dim=6,
        target_dim=6,
        encoder_dim=6,
    )
    hidden = {
        name: np.stack([3 * target, KEPT[name] * (1 + 0.05 * rng.normal()) * target])
        + rng.normal(size=(2, *target.shape))
        for name in variants
    }
    for start in range(0, SAMPLES, writer.chunk):
        rows = slice(start, min(start + writer.chunk, SAMPLES))
        writer.append_target(rows, target[rows])
        writer.append_encoder(rows, target[rows].mean(axis=1))
        for name in variants:
            writer.append(name, rows, hidden[name][:, rows])
    if finish:
        writer.finish()
    return store.open_run(writer.path)


def test_objects_of_their_own_give_students_t_of_the_seeds():
    values = [np.random.default_rng(seed).normal(seed, 1, size=(2, 50)) for seed in range(4)]
    found = over_seeds(values)
    for row in range(2):
        theirs = stats.ttest_1samp([one[row].mean() for one in values], 0)
        low, high = theirs.confidence_interval(0.95)
        expected = (low, high, theirs.pvalue)
        assert (found.low[row], found.high[row], found.p[row]) == pytest.approx(expected)


def test_shared_objects_that_all_seeds_agree_on_give_the_interval_over_objects():
    one = np.random.default_rng(0).normal(size=400)
    found = over_seeds([one, one, one], shared=True)
    theirs = stats.ttest_1samp(one, 0)
    low, high = theirs.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue))


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("objects, unlike", [(180, 0.01), (600, 0.01), (600, 0.03)])
def test_equal_models_are_not_called_different_because_two_seeds_count_the_same(
    seeds, shared, objects, unlike
):
    rng = np.random.default_rng(0)
    odds = [unlike / 2, 1 - unlike, unlike / 2]
    gaps = [rng.choice([-1.0, 0, 1], (2000, objects), p=odds) for _ in range(seeds)]
    found = over_seeds(gaps, shared=shared, hits=True)
    # 5 of 100 and three errors of 2,000 draws; without `hits` up to 13
    assert (found.p < 0.05).mean() < 0.065 and (found.high > found.low).all()


def test_one_seed_says_nothing_of_others():
    with pytest.raises(ValueError, match="1 run: an interval over seeds needs 2 or more"):
        over_seeds([np.zeros(9)])


def coverage(seeds, of_seed, of_object, shared, objects, repeats=10_000):
    """Share of simulated studies whose interval holds the true mean, 0; that call it none by p."""
    rng = np.random.default_rng(0)
    common = of_object * rng.normal(size=(repeats, objects))
    values = []
    for _ in range(seeds):
        own = common if shared else of_object * rng.normal(size=common.shape)
        values.append(own + rng.normal(size=common.shape) + of_seed * rng.normal(size=(repeats, 1)))
    found = over_seeds(values, shared=shared)
    covered = (found.low <= 0) & (found.high >= 0)
    np.testing.assert_array_equal(covered, found.p > 0.05)
    return covered.mean()


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [0.0, 0.2, 2.0])
def test_seeds_with_objects_of_their_own_are_covered_at_the_level(seeds, of_seed):
    assert 0.943 <= coverage(seeds, of_seed, 1.0, False, 80) <= 0.957


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("of_seed", "of_object"),
    [(0.0, 0.0), (0.0, 2.0), (0.1, 1.0), (0.2, 1.0), (0.5, 1.0), (2.0, 1.0)],
)
@pytest.mark.parametrize("objects", [40, 200])
def test_seeds_with_the_same_objects_are_covered_at_the_level(seeds, of_seed, of_object, objects):
    """As are false alarms, as p and the interval agree; 0.2 points are the simulation's error."""
    covered = coverage(seeds, of_seed, of_object, True, objects)
    assert 0.94 <= covered <= 0.962


@pytest.mark.slow
def test_runs_are_put_together_with_their_number_said(runs, capsys):
    first, *rest = runs
    main(ProbeConfig(run=first.path, probes="linear", k="5"))
    main(
        ProbeConfig(run=first.path, more=tuple(run.path for run in rest), probes="knn,drift", k="5")
    )
    assert first.probes("sweep").attrs["probes"] == ["knn", "drift", "linear"]  # it stays
    kept = first.probes("seeds")
    assert "linear_mean" not in kept  # the others were not asked for it
    by_run = kept.knn_by_run.sel(variant="aligned", k=5, layer=4).values
    own = [float(run.probes("sweep").knn_mean.sel(variant="aligned", k=5, layer=4)) for run in runs]
    np.testing.assert_allclose(by_run, own)
    error = np.sqrt((np.var(own, ddof=1) + 1 / (12 * 30**2)) / 3)  # of means of 30 hits
    low, high = stats.t.interval(0.95, 2, np.mean(own), error)
    one = kept.sel(variant="aligned", k=5, layer=4)
    assert (float(one.knn_low), float(one.knn_high)) == pytest.approx((low, min(high, 1)))
    assert kept.knn_low.min() >= 0 and kept.knn_high.max() <= 1 and kept.cka_high.max() <= 1
    for score in ("cka", "encoder_cka", "drift", "drift_centred"):
        np.testing.assert_allclose(
            kept[f"{score}_by_run"].sel(run="seed1"),
            rest[0].probes("sweep")[f"{score}_mean"],
            atol=1e-3,
        )
    assert all(values.attrs["direction"] for values in kept.data_vars.values())
    pair = kept.sel(comparison="aligned - baseline", layer=4)
    assert float(pair.cka_difference_low) > 0 and float(pair.cka_difference_p_adjusted) < 0.05
    assert float(pair.cka_difference_wide_low) < float(pair.cka_difference_low)
    said = capsys.readouterr().out
    assert "3 seeds (seed0, seed1, seed2), of 30 query objects, others in each" in " ".join(
        said.split()
    )
    assert "over 3 seeds" in said and "beyond seeds and objects at layer 4" in said
    page, text = (first.path / name for name in ("report.html", "report.md"))
    assert 'id="over-seeds"' in page.read_text() and "figure-seeds" in page.read_text()
    own = "{:.1f} \\[{:.1f}, {:.1f}\\]".format(*(100 * float(one[f"knn_{p}"]) for p in PARTS))
    section = text.read_text().partition("## Over seeds")[2].partition("## Depth")[0]
    assert "3 seeds (seed0, seed1, seed2)" in section and own in section
    assert "python -m probe seed0 seed1 seed2 --probes knn,drift --k 5" in text.read_text()


@pytest.mark.slow
def test_each_run_says_what_is_kept_beside_and_that_its_noise_floor_is_left_out(tmp_path, capsys):
    first, other = (make(tmp_path / f"seed{seed}", seed) for seed in range(2))
    second = shutil.copytree(first.path, tmp_path / "second")
    main(ProbeConfig(run=first.path, probes="knn", k="5", again=str(second)))
    main(ProbeConfig(run=other.path, probes="linear", k="5"))
    capsys.readouterr()
    main(ProbeConfig(run=first.path, more=(other.path,), probes="knn", k="5"))
    said = capsys.readouterr().out.splitlines()[:2]
    lost = "the noise floor that was kept is left out: --again RUN measures it"
    assert said == [f"seed0: {lost}", "seed1: with linear, of the sweep that was kept"]
    page = " ".join(controls(first.probes("sweep")))
    assert "Noise floor: not measured" in page and "noise_cka_mean" not in first.probes("sweep")
    main(ProbeConfig(run=first.path, probes="knn", k="5"))
    alone = first.probes("sweep")
    over_runs([first, other], ("knn",), k=(5,))
    assert first.probes("sweep").identical(alone)


@pytest.mark.slow
def test_noise_floors_of_several_runs_have_an_interval_over_seeds(tmp_path, capsys):
    runs = [make(tmp_path / f"seed{seed}", seed) for seed in range(3)]
    rng, seconds = np.random.default_rng(3), []
    for run in runs:
        seconds.append(shutil.copytree(run.path, tmp_path / f"again {run.path.name}"))
        group = zarr.open_group(seconds[-1] / "activations.zarr", mode="r+")
        states = group["aligned/hidden"][:]
        moved = states + 0.3 * rng.normal(size=states.shape) * states.std()
        group["aligned/hidden"][:] = moved.astype(states.dtype)
    first, more = runs[0].path, tuple(run.path for run in runs[1:])
    again = ",".join(map(str, seconds))
    main(ProbeConfig(run=first, more=more, probes="knn", k="5", again=again))
    found, said = store.open_run(first).probes("seeds"), capsys.readouterr().out
    assert "Noise floor (second capture again seed0, of baseline, aligned" in " ".join(said.split())
    own = [store.open_run(run.path).probes("sweep") for run in runs]
    shared = found.attrs["shared"]
    for key in ("noise_cka", "noise_agreement"):
        each = np.stack([one[f"{key}_mean"] for one in own])
        np.testing.assert_allclose(found[f"{key}_by_run"], each)
        np.testing.assert_allclose(found[f"{key}_mean"], each.mean(axis=0))
        np.testing.assert_allclose(found[f"{key}_mean"].sel(variant="baseline"), 1)
    cka = found.sel(variant="aligned")
    exact = stats.t.interval(0.95, 2, cka.noise_cka_mean, stats.sem(cka.noise_cka_by_run))
    ours = np.stack([cka.noise_cka_low, cka.noise_cka_high])
    assert not shared and (cka.noise_cka_mean < 1).all()
    np.testing.assert_allclose(ours, np.clip(exact, -1, 1), atol=1e-6)
    for wrong, message in (
        (str(seconds[0]), "3 runs want a second capture each, with commas between, this names 1"),
        (f"{seconds[0]},{seconds[1]},{more[1]}", "each once, and none of the runs"),
        (f"{seconds[0]},{seconds[1]}, {seconds[0]}", "each once, and none of the runs"),
    ):
        with pytest.raises(ValueError, match=message):
            main(ProbeConfig(run=first, more=more, probes="knn", k="5", again=wrong))
    with pytest.raises(ValueError, match="--again is of a sweep"):
        main(ProbeConfig(run=first, probes="maps", again=str(seconds[0])))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two seeds of which every probe has something, and what is found over them."""
    folder = tmp_path_factory.mktemp("whole")
    side = np.random.default_rng(9).normal(size=SAMPLES)
    pair = [make(folder / f"seed{seed}", seed, factors={"factor_side": side}) for seed in range(2)]
    found = over_runs(pair, ALL_PROBES, k=(5,))
    return [run.probes("sweep") for run in pair], found, pair[0]


@pytest.mark.slow
def test_seeds_that_agree_have_the_intervals_over_the_objects_they_share(whole, tmp_path):
    first = whole[2]
    again = store.open_run(shutil.copytree(first.path, tmp_path / "again"))
    group = zarr.open_group(again.path / "activations.zarr", mode="r+")
    for name in KEPT:
        group[f"{name}/hidden"][:] = group[f"{name}/hidden"][:] * np.float16(1.001)
    found = over_runs([first, again], ALL_PROBES, [4], k=(5,))
    own, seen = first.probes("sweep"), 0
    for name in (str(name) for name in found if str(name).endswith("_low")):
        if name not in own or any(part in name for part in ("_fall_", "_shift_", "_wide_")):
            continue
        ours, theirs = (one[name.replace("_low", "_high")] - one[name] for one in (found, own))
        ratio = (ours / theirs.where(theirs > 0)).values
        ratio = ratio[np.isfinite(ratio)]
        if ratio.size and name not in OTHER:
            assert 0.75 <= np.median(ratio) <= 1.35, name
            seen += 1
    assert seen > 80


def test_every_interval_of_a_sweep_has_one_over_seeds(whole):
    sweeps, found, _ = whole
    lows = {str(name) for name in sweeps[0] if str(name).endswith("_low")}
    lows = {name for name in lows if not name.endswith("wide_low")}
    assert len(lows) > 90 and lows <= set(found)
    bare = {"linear_gain", "knn_token_from_mean"}  # differences already, which have no `_mean`
    for name in sorted(lows):
        own = name.removesuffix("_low")
        key = own if own in bare else f"{own}_mean"
        if own.endswith(("_fall", "_shift", "_difference", "_from_target")):
            continue
        values = np.stack([one[key].transpose(*found[name].dims) for one in sweeps])
        mean = found[own if own in bare else f"{own}_mean"]
        np.testing.assert_allclose(mean, values.mean(axis=0), atol=2e-6, err_msg=name)
        measure = EVERY.get(own.removesuffix("_target").removesuffix("_encoder"))
        if measure and measure.hits:
            continue  # where two seeds count the same, what rounding takes off is added
        low, high = stats.t.interval(0.95, 1, values.mean(axis=0), stats.sem(values) + 1e-9)
        bounds = measure.inside if measure else (-1, 1)  # of layer and layer
        for end, exact in (("low", low), ("high", high)):
            ours = found[f"{own}_{end}"]
            np.testing.assert_allclose(ours, np.clip(exact, *bounds), atol=2e-5, err_msg=name)


def test_every_difference_is_that_of_the_means(whole):
    found, seen = whole[1], 0
    for name in (str(name) for name in found if str(name).endswith("_difference")):
        by_model = found[f"{name.removesuffix('_difference')}_by_run"].mean("run")
        gap = by_model.sel(variant="aligned") - by_model.sel(variant="baseline")
        ours = found[name].sel(comparison="aligned - baseline")
        np.testing.assert_allclose(ours, gap.transpose(*ours.dims), atol=1e-6, err_msg=name)
        p, adjusted = (found[f"{name}_{end}"].values for end in ("p", "p_adjusted"))
        tests = np.isfinite(p).sum() if found[name].dims[1] != "k" else p.shape[-1]
        if np.isfinite(p).any():  # Holm: the least is as often as there are tests at once
            least = np.nanmin(p)
            assert np.nanmin(adjusted) == pytest.approx(min(1, tests * least), abs=1e-9), name
        seen += 1
    assert seen > 40


def test_what_holds_over_seeds_is_said_of_every_measure(whole):
    found = whole[1]
    said = " ".join(findings(found))
    for name in ("effective rank", "RSA", "hubness", "bits that the class"):
        assert f"Aligned less baseline in {name}" in said, name
    for name in ("a tenth of the query objects", "less that with labels shuffled", "standardised"):
        assert name in said.partition("Asked otherwise")[2], name
    many = ("Properties (1)", "Classes (3)", "Ways of asking for neighbours (24)")
    for what in (*many, "Single tokens (2)"):
        assert f"{what}: aligned is" in said, what
    assert "massive tokens left out" not in said.replace("gallery, massive", "")  # there are none
    undefined = found.copy(deep=True)  # at one layer: told of the others
    undefined["two_nn_difference"][:, 0] = np.nan
    assert "nan" not in " ".join(findings(undefined))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_what_is_no_mean_over_objects_is_covered_over_seeds_too(shared):
    """By what groups of objects add: 300 runs of three seeds hold 92 to 98 % of objects that they
    share, 94 to 97 % of objects of their own.
    """
    rng = np.random.default_rng(3 + 10 * shared)
    found = []
    for _ in range(150):
        x, seeds = None, []
        for _ in range(3):
            if x is None or not shared:
                x = rng.normal(size=(120, 10)) * np.linspace(2, 0.5, 10)
            y = x @ (np.eye(10) + 0.15 * rng.normal(size=(10, 10)))
            y = y + 0.3 * rng.normal(size=x.shape)
            each = shape(y), alike(y, x)
            seeds.append(np.concatenate([own_parts(one.values, one.left_out) for one in each]))
        found.append(over_seeds(seeds, shared=shared)[:3])
    mean, low, high = np.array(found).swapaxes(0, 1)
    truth = mean.mean(axis=0)  # of as many objects
    held = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert held.min() > 0.88 and 0.93 < held.mean() < 0.97, held


def test_runs_may_differ_in_objects_classes_order_and_properties_alone(tmp_path):
    """A class without query objects is no warning; a report of properties has no curves."""
    side = np.random.default_rng(9).normal(size=SAMPLES)
    pair = [
        make(tmp_path / f"seed{seed}", seed, factors={"factor_side": side}) for seed in range(2)
    ]
    tables = [run.samples() for run in pair]
    split = np.where((tables[1].label == 0) | (np.arange(SAMPLES) < 20), "gallery", "query")
    pair[1].samples = lambda: tables[1].assign(split=("sample", split))
    found = over_runs(pair, ("knn",), k=(5,))
    gone = found.knn_class_mean.sel({"class": "class 0"})
    assert gone.isnull().all() and found.knn_class_mean.sel({"class": "class 1"}).notnull().all()
    counts = [one.knn_by_run for one in (found, over_runs(pair[::-1], ("knn",), k=(5,)))]
    np.testing.assert_allclose(counts[0], counts[1][::-1])
    alone = over_runs(pair, ("geometry",))
    pair[0].write_probe("seeds", alone)
    assert "Properties (1)" in write_report(pair[0])[1].read_text()


def test_runs_that_differ_in_more_than_their_seed_are_told(tmp_path):
    pair = [make(tmp_path / f"seed{seed}", seed) for seed in range(2)]
    for seed, run in enumerate(pair):
        config = {"seed": seed, "steps": 60, "out": str(run.path), "warmup": 6}
        (run.path / "run.json").write_text(json.dumps({"config": config}))
    assert recipes(pair) == ""
    config |= {"steps": 4, "seed": 0}
    (pair[1].path / "run.json").write_text(json.dumps({"config": config}))
    found = over_runs(pair, ("knn",), k=(5,))
    told = "the runs differ in steps and have the seeds 0, 0: an interval over them is of that"
    assert f"Not seeds alone: {told}." in findings(found)


def test_the_number_of_objects_counts_alike_in_any_order():
    rng = np.random.default_rng(0)
    few, many = rng.integers(0, 2, (3, 30)), rng.integers(0, 2, (3, 60))
    one, other = (over_seeds(pair, hits=True) for pair in ([few, many], [many, few]))
    np.testing.assert_allclose(one, other)
    means = np.array([few.mean(axis=-1), many.mean(axis=-1)])
    rounding = (1 / 30**2 + 1 / 60**2) / 24
    error = np.sqrt((means.var(axis=0, ddof=1) + rounding) / 2)
    np.testing.assert_allclose(one.high - one.mean, stats.t.ppf(0.975, 1) * error)


def test_properties_are_put_together_as_far_as_all_runs_have_them(tmp_path):
    side = np.random.default_rng(9).normal(size=SAMPLES)
    pair = [
        make(tmp_path / f"seed{seed}", seed, factors={"factor_side": side, "factor_flat": flat})
        for seed, flat in enumerate((side**2, 0 * side))
    ]
    found = over_runs(pair, ["geometry"])
    assert found.property.values.tolist() == ["factor_side"]  # the other varies in one of them
    own = np.stack([run.probes("sweep").geometry_mean[..., 0] for run in pair])
    np.testing.assert_allclose(found.geometry_by_run.isel(property=0), own, atol=1e-9)
    assert "Properties (1): aligned is read out better" in " ".join(findings(found))


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    """Two seeds of which no model keeps anything, so that all fall at layer 0."""
    folder = tmp_path_factory.mktemp("lost")
    runs = [make(folder / f"seed{seed}", seed) for seed in range(2)]
    for seed, run in enumerate(runs):
        group = zarr.open_group(run.path / "activations.zarr", mode="r+")
        for variant, name in enumerate(KEPT):
            states = group[f"{name}/hidden"]
            states[:] = np.random.default_rng([seed, variant]).normal(size=states.shape)
    return over_runs(runs, ("drift", "knn"), k=(5,))


def test_runs_that_fall_at_the_same_layer_have_no_interval_over_seeds(lost):
    np.testing.assert_array_equal(lost.knn_shift_by_run, 0)
    assert lost.knn_shift_mean.item() == 0 and (lost.knn_fall_mean == 0).all()
    for end in ("shift_low", "shift_high", "fall_low", "fall_high"):
        assert lost[f"knn_{end}"].isnull().all()
    said = next(one for one in findings(lost) if "neighbour" in one)
    assert "Its fall comes at the same layer in every run: that gives no interval." in said


def test_a_difference_over_two_seeds_is_no_larger_than_it_can_be(lost):
    gap = lost.knn_by_run.sel(variant="aligned") - lost.knn_by_run.sel(variant="baseline")
    mean, error = gap.mean("run"), np.sqrt((gap.var("run", ddof=1) + 1 / (12 * 30**2)) / 2)
    for ends, level in (("_", 0.95), ("_wide_", 0.975)):  # over both layers
        low, high = stats.t.interval(level, 1, mean, error)
        for end, exact in (("low", low), ("high", high)):
            ours = lost[f"knn_difference{ends}{end}"].isel(comparison=0)
            np.testing.assert_allclose(ours, np.clip(exact, -1, 1), atol=1e-6)
    assert (high > 1).any() and (low < -1).any()  # what was cut off


def test_the_same_objects_in_another_split_are_not_shared(tmp_path):
    first = make(tmp_path / "first", 0)
    second = store.open_run(shutil.copytree(first.path, tmp_path / "second"))
    group = zarr.open_group(second.path / "activations.zarr", mode="r+")
    for name in KEPT:
        group[f"{name}/hidden"][:] = group[f"{name}/hidden"][:] + np.float16(0.5)
    alike = over_runs([first, second], ("knn",), k=(5,))
    table = first.samples()
    second.samples = lambda: table.assign(split=("sample", table.split.values[::-1]))
    swapped = over_runs([first, second], ("knn",), k=(5,))
    assert (alike.attrs["shared"], swapped.attrs["shared"]) == (1, 0)
    assert "30 query objects, others in each" in findings(swapped)[0]


def test_runs_that_cannot_be_put_together_are_refused(runs, tmp_path):
    other = make(tmp_path / "other", 4, variants=("baseline",))
    fewer = make(tmp_path / "fewer", 4, classes=2)
    shutil.copytree(runs[1].path, tmp_path / "copy")
    copy = store.open_run(tmp_path / "copy")
    half = make(tmp_path / "half", 4, finish=False)
    tokens = make(tmp_path / "tokens", 4, tokens=3)
    for wrong, message in (
        ([runs[0]], "need 2 or more runs, each once"),
        ([runs[0], runs[0]], "each once"),
        ([*runs, copy], r"seed1 and \S*copy hold the same states: a copy of a run is no other"),
        ([runs[0], other], "has no variant aligned"),
        ([runs[0], half], r"\S*half is not completely captured: seeds want whole runs"),
        ([runs[0], fewer], "other classes: class 2 is in one"),
        ([runs[0], tokens], r"seed0 has 2 tokens, \S*tokens 3"),
    ):
        with pytest.raises(ValueError, match=message):
            over_runs(wrong)
    with pytest.raises(ValueError, match="--probes objects is of one run"):
        main(ProbeConfig(run=runs[0].path, more=(runs[1].path,), probes="objects"))
