"""What runs keep beside their sweeps, put together over seeds: closed forms, and by the command."""

import re
import shutil

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import store
from probe.__main__ import ProbeConfig, main
from probe.causal import INTERVENTIONS, causal
from probe.lens import lens
from probe.seeds_beside import KEPT, over_kept
from probe.seeds_words import findings_beside
from tests.test_seeds import make

LAYERS, OBJECTS = [0, 4, 8], 40
MODELS = ("baseline", "aligned")


def causes(seed, objects=OBJECTS, gap=2.0, name="object", stop=2):
    """The text reads the points up to layer 4; aligned answers `gap` nats better."""
    rng = np.random.default_rng(seed)
    found = {}
    for at, model in enumerate(MODELS):
        change = -2 + rng.normal(size=(len(INTERVENTIONS), len(LAYERS), objects))
        change[:, stop:] = 0
        found[model] = xr.Dataset(
            {
                "log_probability": ("object", -5 + at * gap + rng.normal(size=objects)),
                "change": (("intervention", "layer", "object"), change),
                "knockout": (("window", "object"), rng.normal(-1, 1, size=(2, objects))),
            },
            {
                "intervention": list(INTERVENTIONS),
                "layer": LAYERS,
                "window": ["1–4", "5–8"],
                "window_first": ("window", [1, 5]),
                "window_last": ("window", [4, 8]),
            },
        )
    closed = np.array([1.0, 0.6, 0.1])[:, None] * gap + 0.3 * rng.normal(size=(3, objects))
    moved = {"baseline": ("aligned", closed), "aligned": ("baseline", -closed)}
    ids = [f"{name} {row}" for row in range(objects)]
    return causal(found, moved, objects=ids).assign_attrs(answer="caption", run="run")


def words(seed, advantage=0.5):
    rng = np.random.default_rng(seed)
    shape = (2, len(LAYERS), OBJECTS)
    found = {
        model: {
            "log_probability": rng.normal(-6, 0.5, size=shape),
            "advantage": at * advantage + 0.1 * rng.normal(size=shape),
            "log_rank": rng.uniform(0, 3, size=shape),
            "entropy": rng.uniform(1, 2, size=shape),
            "caption_match": rng.uniform(size=shape[1:]),
            "caption_match_shuffled": np.full(len(LAYERS), 0.1),
            "nearest_caption": np.zeros((*shape[1:], 2), np.int32),
            "word": np.zeros((*shape, 2), np.int32),
            "top_word": np.zeros((2, len(LAYERS), 1), int),
            "top_share": np.ones((2, len(LAYERS), 1)),
            "kl": rng.uniform(0.1, 0.5, size=(*shape[:2], 5)),
            "held_out": np.arange(5),
        }
        for at, model in enumerate(MODELS)
    }
    ids = [f"object {row}" for row in range(OBJECTS)]
    about = {"vocabulary": ["a"], "captions": ["A cup."], "texts": ids}
    return lens(found, layers=LAYERS, objects=ids, **about)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for seed in range(3):
        run = make(folder / f"seed{seed}", seed)
        run.write_probe("causal", causes(seed))
        run.write_probe("lens", words(seed))
    return folder


@pytest.fixture
def runs(made, tmp_path):
    """Three seeds of one recipe, with causes and lenses."""
    folder = shutil.copytree(made, tmp_path / "runs")
    return [store.open_run(path) for path in sorted(folder.iterdir())]


def students_t(found, each, name):
    """Of the runs' means, as objects of their own have it."""
    values = np.stack([one[f"{name}_mean"] for one in each])
    low, high = stats.t.interval(
        0.95, len(values) - 1, values.mean(axis=0), stats.sem(values) + 1e-12
    )
    np.testing.assert_allclose(found[f"{name}_by_run"], values, atol=1e-6)
    np.testing.assert_allclose(found[f"{name}_mean"], values.mean(axis=0), atol=1e-6)
    return np.stack([found[f"{name}_low"], found[f"{name}_high"]]), np.stack([low, high])


def test_objects_of_their_own_give_students_t_of_each_measure(runs):
    for name, keys in {
        "causal": ("log_probability", "change", "knockout", "transplant", "transplant_gap"),
        "lens": ("log_probability", "advantage", "entropy", "kl", "caption_match"),
    }.items():
        found = over_kept(runs, name, shared=False)
        for key in keys:
            ours, exact = students_t(found, [run.probes(name) for run in runs], key)
            above = dict.fromkeys(("entropy", "kl"), (0, np.inf))
            ends = above | {"log_probability": (-np.inf, 0), "caption_match": (0, 1)}
            bounds = ends.get(key, (-np.inf, np.inf))
            np.testing.assert_allclose(ours, exact.clip(*bounds), atol=1e-5, err_msg=key)
    each = np.stack([np.log(run.probes("lens").rank_mean) for run in runs])
    low, high = stats.t.interval(0.95, 2, each.mean(axis=0), stats.sem(each))
    np.testing.assert_allclose(found.rank_low, np.exp(low.clip(0)), rtol=1e-5)
    np.testing.assert_allclose(found.rank_high, np.exp(high), rtol=1e-5)


def test_models_are_compared_by_object_and_a_known_difference_is_found(runs):
    found = over_kept(runs, "causal", shared=False)
    gaps = [
        (one.log_probability.sel(variant="aligned") - one.log_probability.sel(variant="baseline"))
        for one in (run.probes("causal") for run in runs)
    ]
    theirs = stats.ttest_1samp([float(gap.mean()) for gap in gaps], 0)
    assert found.log_probability_difference_p.item() == pytest.approx(theirs.pvalue, abs=1e-6)
    assert found.log_probability_difference_low.item() > 1
    share = found.transplant_share_mean.sel(into="baseline")
    np.testing.assert_allclose(share, [1.0, 0.6, 0.1], atol=0.1)
    truth = xr.DataArray([1.0, 0.6, 0.1], dims="layer")
    assert ((found.transplant_share_low < truth) & (truth < found.transplant_share_high)).all()
    assert (found.stops_mean.sel(intervention="unread") == 8).all()
    said = " ".join(findings_beside("causal", found))
    assert "other objects in each" in said and "by layer 8 in every run: that gives no" in said
    assert re.search(r"aligned into baseline: .* close \d+ \[\d+, \d+\] % of that at layer 0", said)
    said = " ".join(findings_beside("lens", over_kept(runs, "lens", shared=False)))
    assert (
        "advantage of the class word over others, nats: beyond seeds and objects at 6 of 6" in said
    )


def drawn(name, seed):
    """Results of a probe as it keeps them: of the shapes that its measures have."""
    rng = np.random.default_rng([seed, len(name)])
    coords = {
        "variant": ["aligned", "baseline", "stage1"],
        "method": ["pca", "umap"],
        "draw": [0, 1],
        "step": [30, 60],
        "trained": [4, 8],
        "layer": LAYERS,
        "object": [f"object {row}" for row in range(OBJECTS)],
        "group": np.arange(16),
    }
    dims = {
        "maps": ("method", "draw", "variant", "layer", "group"),
        "steps": ("variant", "step", "layer", "object"),
        "alignment": ("variant", "trained", "layer", "object"),
        "reconstruction": ("variant", "layer", "object"),
    }[name]
    found = xr.Dataset(attrs={"seed": 0})
    for key in KEPT[name]:
        own = dims[-1:] if key.endswith(("_target", "_shuffled")) else dims
        each = xr.DataArray(rng.uniform(0.4, 0.6, size=[len(coords[dim]) for dim in own]), dims=own)
        found[f"{key}_of_groups" if name == "maps" else key] = each
        found[f"{key}_low"] = each.mean(dims[-1]) - 0.1
    return found.assign_coords({dim: coords[dim] for dim in dims})


@pytest.mark.parametrize("name", ["maps", "steps", "alignment", "reconstruction"])
def test_every_difference_is_that_of_the_means_whatever_the_dimensions(runs, name):
    for seed, run in enumerate(runs):
        run.write_probe(name, drawn(name, seed))
    found = over_kept(runs, name, shared=False)
    assert found.comparison.values.tolist() == ["aligned - baseline", "stage1 - baseline"]
    seen = 0
    for key in KEPT[name]:
        if f"{key}_difference" not in found:
            continue
        by_run = found[f"{key}_by_run"]
        for pair in found.comparison.values:
            gap = by_run.sel(variant=pair.split(" - ")[0]) - by_run.sel(variant="baseline")
            ours = found.sel(comparison=pair)
            mean = gap.mean("run").transpose(*ours[f"{key}_difference"].dims)
            np.testing.assert_allclose(ours[f"{key}_difference"], mean, atol=1e-6)
            theirs = stats.ttest_1samp(gap.transpose("run", *mean.dims).values, 0)
            np.testing.assert_allclose(ours[f"{key}_difference_p"], theirs.pvalue, atol=1e-5)
            p = holm_of_all(ours[f"{key}_difference_p"].values)
            np.testing.assert_allclose(ours[f"{key}_difference_p_adjusted"], p, atol=1e-9)
        seen += 1
    assert seen == len([key for key in KEPT[name] if not key.endswith(("_target", "_shuffled"))])
    assert findings_beside(name, found)[0].endswith("(seed0, seed1, seed2), other objects in each.")


def holm_of_all(p):
    """Holm's adjusted p of all of them at once, by its definition."""
    order = np.argsort(p, axis=None)
    ranked = p.ravel()[order] * (p.size - np.arange(p.size))
    adjusted = np.empty(p.size)
    adjusted[order] = np.minimum(np.maximum.accumulate(ranked), 1)
    return adjusted.reshape(p.shape)


def test_seeds_that_agree_have_the_interval_over_the_objects_they_share(runs):
    first = runs[0].probes("causal")
    for at, run in enumerate(runs[1:], 1):
        run.write_probe("causal", first.assign(change=first.change * (1 + 1e-4 * at)))
    found = over_kept(runs, "causal", shared=True)
    assert found.attrs["shared"] == 1
    for name in ("log_probability", "knockout", "transplant", "transplant_gap", "transplant_share"):
        width = found[f"{name}_high"] - found[f"{name}_low"]
        own = first[f"{name}_high"] - first[f"{name}_low"]
        np.testing.assert_allclose(width / own, 1, atol=0.12, err_msg=name)
    others = first.assign_coords(object=[f"other {row}" for row in range(OBJECTS)])
    runs[1].write_probe("causal", others)
    assert over_kept(runs, "causal", shared=True).attrs["shared"] == 0


def test_a_gap_that_one_run_does_not_show_has_no_share_over_seeds(runs):
    runs[2].write_probe("causal", causes(2, gap=0.0))
    found = over_kept(runs, "causal", shared=False)
    assert found.transplant_share_mean.isnull().all()
    assert "there is no gap to close" in " ".join(findings_beside("causal", found))


def test_a_depth_over_seeds_lies_among_the_captured_layers(runs):
    runs[2].write_probe("causal", causes(2, stop=1))
    found = over_kept(runs, "causal", shared=False).sel(intervention="unread")
    np.testing.assert_array_equal(found.stops_by_run.sel(variant="aligned"), [8, 8, 4])
    np.testing.assert_allclose(found.stops_mean, 20 / 3)
    low, high = stats.t.interval(0.95, 2, 20 / 3, stats.sem([8, 8, 4]))
    assert low > 0 and high > 8  # beyond the deepest captured one
    np.testing.assert_allclose(found.stops_low, low)
    assert np.isinf(found.stops_high).all()
    said = " ".join(findings_beside("causal", over_kept(runs, "causal", shared=False)))
    assert f"by layer 6.7 [{low:.1f}, beyond 8]." in said


@pytest.mark.slow
def test_the_command_puts_together_what_all_runs_keep_and_names_the_rest(runs, capsys):
    first, second, third = runs
    names = (second.path, third.path)
    main(ProbeConfig(run=first.path, more=names, probes="knn", k="5"))
    assert "In words, 3 seeds (seed0, seed1, seed2), other" in capsys.readouterr().out
    third.write_probe("maps", drawn("maps", 0))
    old = words(1).drop_vars(["log_probability"])
    second.write_probe("lens", old)
    main(ProbeConfig(run=first.path, more=names, probes="knn", k="5"))
    said = " ".join(capsys.readouterr().out.split())
    assert "Causes, 3 seeds (seed0, seed1, seed2), other objects in each." in said
    assert f"without maps: not in {first.path}: python -m probe {first.path} --probes maps" in said
    older = f"{second.path} keeps lens without its objects or texts, of an older version"
    assert f"without lens: {older}" in said
    text = (first.path / "report.md").read_text()
    section = text.partition("## Over seeds")[2].partition("## Depth")[0]
    assert "Causes, 3 seeds" in section and "nats from baseline; its point tokens close" in section
    assert "In words: not put together" in section and "In words, 3 seeds" not in section


def test_runs_that_were_measured_otherwise_are_named(runs):
    first, second = (str(run.path) for run in runs[:2])
    for wrong, message in (
        (causes(1).isel(layer=[0, 2]), f"{second} keeps causal without layer 4: measure all alike"),
        (causes(1).sel(variant=["baseline"]), f"{second} keeps causal without variant aligned"),
        (
            causes(1).assign_attrs(answer="class"),
            f"{first} keeps causal of answer caption, {second} of class",
        ),
        (causes(1).assign_attrs(seed=3), f"{first} keeps causal of seed 0, {second} of 3"),
        (
            causes(1).drop_vars([n for n in causes(1) if str(n).startswith("transplant")]),
            f"{first} keeps causal with transplant, {second} without: measure both alike",
        ),
    ):
        runs[1].write_probe("causal", wrong)
        for order in (runs, [runs[0], runs[2], runs[1]]):
            with pytest.raises(ValueError, match=re.escape(message)):
                over_kept(order, "causal", shared=False)
    turned = causes(1).isel(variant=[1, 0])
    runs[1].write_probe("causal", turned)
    found = over_kept(runs, "causal", shared=False)
    ours = found.change_by_run.sel(run="seed1", variant="aligned")
    np.testing.assert_allclose(ours, turned.change_mean.sel(variant="aligned"))


def test_texts_of_their_own_are_not_held_for_shared(runs):
    each = [run.probes("lens") for run in runs]
    shared = over_kept(runs, "lens", shared=True)
    runs[1].write_probe("lens", each[1].assign_coords(text=[f"other {row}" for row in range(5)]))
    own = over_kept(runs, "lens", shared=True)
    assert own.attrs["shared"] and not own.kl_high.equals(shared.kl_high)
    ours, exact = students_t(own, each, "kl")
    np.testing.assert_allclose(ours, exact.clip(0), atol=1e-5)
    assert own.entropy_high.equals(shared.entropy_high)
    older = each[1].assign(kl=each[1].kl_mean).drop_vars(["kl_mean", "kl_low", "kl_high"])
    runs[1].write_probe("lens", older)
    with pytest.raises(
        ValueError, match=f"{runs[1].path} keeps lens without its objects or texts, of an"
    ):
        over_kept(runs, "lens", shared=False)


def test_a_transplant_that_widens_the_gap_closes_nothing(runs):
    for seed, run in enumerate(runs):
        found = causes(seed)
        flipped = {n: -found[n] for n in found if "transplant" in str(n) and "gap" not in str(n)}
        run.write_probe("causal", found.assign(flipped))
    said = " ".join(findings_beside("causal", over_kept(runs, "causal", shared=False)))
    assert "close it at no layer, beyond seeds and objects" in said and "%" not in said
