"""Drift over training steps, on a run whose states come to hold the target, or lose it."""

import numpy as np
import pytest
from scipy.stats import norm

import store
from probe.__main__ import ProbeConfig, main
from probe.page import write_report
from probe.plots import steps_figure
from probe.plots_training import steps_gaps, steps_gaps_figure
from probe.steps import findings, steps
from probe.sweep import sweep

SAMPLES, TOKENS, LAYERS = 90, 2, [0, 4]
KEPT = {"aligned": {10: 0.2, 20: 1.0, 40: 3.0}, "baseline": {20: 1.0, 40: 0.0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Layer 4 holds as much of the target as `KEPT` says; layer 0 all of it at every step."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(SAMPLES, 1, 6)) + 0.2 * rng.normal(size=(SAMPLES, TOKENS, 6))
    label = np.arange(SAMPLES) % 3
    writer = store.create_run(
        tmp_path_factory.mktemp("runs") / "trained",
        samples={
            "id": [f"object-{i}" for i in range(SAMPLES)],
            "label": label,
            "class_name": [f"class {i}" for i in label],
            "split": np.where(np.arange(SAMPLES) < 50, "gallery", "query"),
            "caption": ["A shape."] * SAMPLES,
        },
        layers=LAYERS,
        variants=[*KEPT, "stage1"],
        tokens=TOKENS,
        dim=6,
        target_dim=6,
        steps={name: list(shares) for name, shares in KEPT.items()},
    )
    spans = [slice(a, min(a + writer.chunk, SAMPLES)) for a in range(0, SAMPLES, writer.chunk)]
    for rows in spans:
        writer.append_target(rows, target[rows])

    def states(share):
        noise = rng.normal(size=(2, *target.shape))
        return np.stack([3 * target + noise[0], share * target + noise[1]])

    captures = [(name, step, share) for name in KEPT for step, share in KEPT[name].items()]
    for name, step, share in [*captures, ("stage1", None, 1.0)]:
        hidden = states(share)
        for rows in spans:
            writer.append(name, rows, hidden[:, rows], step=step)
    writer.finish()
    return store.open_run(writer.path)


@pytest.fixture(scope="module")
def results(run):
    return steps(run)


def test_what_training_gains_and_loses_is_seen_step_by_step(results):
    assert results.variant.values.tolist() == ["aligned", "baseline"]
    assert results.step.values.tolist() == [10, 20, 40]
    gains = results.sel(variant="aligned", layer=4)
    assert (np.diff(gains.cka_mean) > 0.1).all() and (
        np.diff(gains.drift_centred_mean) < -0.1
    ).all()
    lost = results.sel(variant="baseline", layer=4)
    assert np.isnan(lost.cka_mean.sel(step=10))
    assert float(lost.cka_low.sel(step=20)) > 0.2 > float(lost.cka_low.sel(step=40))
    assert float(lost.cka_low.sel(step=40)) < 0 < float(lost.cka_high.sel(step=40))
    for score in ("cka", "drift", "drift_centred"):
        mean, low, high = (results[f"{score}_{p}"].sel(step=40) for p in ("mean", "low", "high"))
        assert ((low <= mean) & (mean <= high)).all() and mean.attrs["direction"]


def test_what_each_object_adds_has_the_mean_and_error_of_the_score(run, results):
    np.testing.assert_array_equal(results.object, run.samples()["sample"].values[50:])
    for score in ("cka", "drift", "drift_centred"):
        each, mean = results[score], results[f"{score}_mean"]
        assert each.dims == (*mean.dims, "object") and each.dtype == "float32"
        np.testing.assert_allclose(each.mean("object", skipna=False), mean, atol=1e-6)
        assert (each.isnull() == mean.isnull()).all() and mean.isnull().any()
    error = results.cka.std("object", ddof=1, skipna=False) / np.sqrt(40)
    half = (results.cka_high - results.cka_low) / 2 / norm.ppf(0.975)
    np.testing.assert_allclose(error, half, rtol=1e-4)


def test_the_difference_at_each_step_is_that_of_the_sweep_and_nan_where_one_model_is_missing(
    run, results
):
    pair = results.sel(comparison="aligned - baseline")
    assert np.isnan(pair.cka_step_difference.sel(step=10)).all()
    swept = sweep(run, ["drift"], variants=["aligned", "baseline"], keep=False)
    last = swept.sel(comparison="aligned - baseline")
    for score in ("cka", "drift", "drift_centred"):
        for part in ("", "_low", "_high", "_p"):
            here = pair[f"{score}_step_difference{part}"].sel(step=40)
            np.testing.assert_allclose(here, last[f"{score}_difference{part}"], atol=0.01)
        alone, adjusted = (pair[f"{score}_step_difference_{p}"][1:] for p in ("p", "p_adjusted"))
        assert (adjusted >= alone - 1e-12).all()
        low, below = (pair[f"{score}_step_difference{end}"][1:] for end in ("_low", "_wide_low"))
        assert (below <= low + 1e-12).all() and (below < low).any()
    # at step 20 the two were made alike, at step 40 the baseline has lost the target
    alike, apart = (pair.sel(step=step, layer=4) for step in (20, 40))
    p_alike, p_apart = (float(one.cka_step_difference_p_adjusted) for one in (alike, apart))
    assert p_alike > 0.05 > p_apart
    assert float(apart.cka_step_difference_low) > 0.5 > float(alike.cka_step_difference_high)
    assert "aligned - baseline, debiased linear CKA" in findings(results)[0]
    assert "first at step 40" in findings(results)[0]


def test_the_last_step_is_what_the_sweep_says_of_the_finished_model(run, results):
    swept = sweep(run, ["drift"], variants=["aligned", "baseline"], keep=False)
    for name in ("cka_mean", "cka_low", "drift_mean", "drift_high", "drift_centred_low"):
        np.testing.assert_array_equal(results[name].sel(step=40), swept[name])


def test_the_command_keeps_prints_and_draws_them(run, results, capsys):
    main(ProbeConfig(run=run.path, probes="drift,steps"))
    said = capsys.readouterr().out
    assert "aligned: debiased CKA to the target during training" in said
    table = said.split("aligned: debiased")[1].split("baseline: debiased")[0]
    starred = [line.count(" *") for line in table.splitlines() if line.startswith("│")]
    p = results.cka_step_difference_p_adjusted.sel(comparison="aligned - baseline")
    assert sum(starred) == int((p < 0.05).sum()) > 0
    assert "* differs from the baseline at the same step, p < 0.05 over all layers" in said
    assert "• aligned - baseline, debiased linear CKA with the target: beyond noise" in said
    kept = run.probes("steps")
    assert kept.equals(results)
    for score in ("cka", "drift_centred"):
        figure = steps_figure(kept, score)
        assert [trace.z.shape for trace in figure.data] == [(3, 2), (3, 2)]
        np.testing.assert_array_equal(
            figure.data[1].z, kept[f"{score}_mean"].sel(variant="baseline")
        )
    gaps = steps_gaps(kept, "cka")
    assert [gap.title for gap in gaps] == ["step 20", "step 40"]  # both models have these
    last = kept.sel(step=40, comparison="aligned - baseline")
    for end, wide in zip(("low", "high"), gaps[1].wide, strict=True):
        np.testing.assert_array_equal(wide, last[f"cka_step_difference_wide_{end}"])
    names = {trace.name for trace in steps_gaps_figure(gaps, kept).data}
    assert "thin: 95 % over all layers and steps at once" in names
    page, _ = write_report(run)
    assert "During training" in page.read_text(encoding="utf-8")
    for name in ("steps_cka", "steps_difference"):
        assert (page.parent / "report" / f"{name}.png").stat().st_size > 5000


def test_a_run_without_steps_is_refused_in_one_sentence(run):
    with pytest.raises(ValueError, match=r"no model captured during training: .*--capture-every"):
        steps(run, variants=["stage1"])
    with pytest.raises(ValueError, match="no 'knn' by training step"):
        steps_figure(sweep(run, ["drift"], keep=False), "knn")
