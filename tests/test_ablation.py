"""What a sweep found: intervals over seeds and objects, paired differences, power, words."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from train.ablation import (
    Estimate,
    cka_gains,
    column_means,
    columns,
    differences,
    estimate,
    measure,
    over_seeds,
)
from train.ablation_trends import published, published_error, published_gap, varied, words

QUESTIONS = ("I", "C")


def means_of(hits):
    return [one.mean() for one in hits], [one.var(ddof=1) / len(one) for one in hits]


def test_one_seed_has_the_interval_of_its_objects_and_scatter_of_seeds_widens_it():
    rng = np.random.default_rng(0)
    hits = [(rng.random(600) < 0.6).astype(float) for _ in range(3)]
    found = over_seeds(*means_of(hits[:1]))
    error = hits[0].std(ddof=1) / np.sqrt(600)
    assert found[:3] == pytest.approx(
        (found.mean, found.mean - 1.96 * error, found.mean + 1.96 * error), abs=1e-5
    )
    apart = [hits[0], hits[1] * 0, hits[2] * 0 + 1]
    means, variances = means_of(apart)
    found = over_seeds(means, variances)
    half = 4.303 * np.std(means, ddof=1) / np.sqrt(3)  # Student's t with 2 degrees of freedom
    assert found.high - found.low == pytest.approx(2 * half, rel=0.01)


def test_where_seeds_alone_scatter_p_is_that_of_students_t():
    means = [0.02, 0.05, 0.03, 0.08]
    assert over_seeds(means, [0.0] * 4).p == pytest.approx(ttest_1samp(means, 0).pvalue)


@pytest.mark.parametrize(("seeds", "scatter"), [(1, 0.0), (2, 0.0), (3, 0.01), (5, 0.03)])
def test_the_interval_over_seeds_holds_its_level(seeds, scatter):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        shares = 0.6 + scatter * rng.standard_normal(seeds)
        found = over_seeds(*means_of([(rng.random(600) < share) * 1.0 for share in shares]))
        held += found.low <= 0.6 <= found.high
    assert held / 400 > 0.93  # 95 % or more; 400 draws scatter by 1.1 %


def test_power_is_the_share_of_draws_whose_interval_leaves_out_zero():
    drawn = 0.02 + 0.01 * np.random.default_rng(0).standard_normal(20_000)
    one = Estimate(0, 0, 0, 1, error=0.01, freedom=1e6)
    assert one.power(0.02) == pytest.approx((abs(drawn) > 1.96 * 0.01).mean(), abs=0.01)
    assert one.power(one.smallest) == pytest.approx(0.8, abs=0.001)
    assert one.power(0) == pytest.approx(0.05)


def test_the_average_counts_objects_once_and_sets_alike():
    rng = np.random.default_rng(0)
    one = {"modelnet": rng.random((2, 300)), "objaverse": rng.random((2, 50))}
    names = ["modelnet I", "modelnet C", "objaverse I", "objaverse C", "average"]
    assert columns(one, QUESTIONS) == names
    found = column_means(one)
    assert found[4, 0] == pytest.approx(found[:4, 0].mean())  # as the papers average
    parts = [rows.mean(axis=0) for rows in one.values()]
    error = sum(each.var(ddof=1) / len(each) for each in parts) / 4
    assert found[4, 1] == pytest.approx(error)
    same = {"run": np.tile((rng.random(100) < 0.5) * 1.0, (2, 1))}
    assert column_means(same)[2, 1] == pytest.approx(column_means(same)[0, 1])


def test_no_object_that_differs_is_no_proof_of_none():
    same = {"run": np.ones((1, 100))}
    ((mean, variance),) = column_means(differences(same, same))
    assert mean == 0 and variance == pytest.approx(1 / 100**2)


def test_other_objects_are_not_compared():
    with pytest.raises(ValueError, match="other objects"):
        differences({"run": np.ones((2, 5))}, {"run": np.ones((2, 6))})


@pytest.fixture(scope="module")
def swept():
    """The default, a setting that is 15 points worse, one that differs by chance, the baseline."""
    rng = np.random.default_rng(0)
    answers: dict = {name: {} for name in ("baseline", "default", "align_layer=8", "align_loss=l1")}
    for seed in range(3):
        right = (rng.random((2, 600)) < 0.7).astype(float)
        lost = right * (rng.random((2, 600)) > 0.2)
        other = np.where(rng.random((2, 600)) < 0.005, 1 - right, right)
        rows = {"default": right, "baseline": lost, "align_layer=8": lost, "align_loss=l1": other}
        for name, values in rows.items():
            answers[name][seed] = {"run": values}
    del answers["align_loss=l1"][2]
    own = {name: "baseline" for name in answers if name != "baseline"}
    results = measure(answers, own, QUESTIONS)
    gains = (("setting", "layer"), np.ones((4, 1)))
    results = results.assign(cka_mean=gains, cka_low=gains, cka_high=gains)
    results = results.assign_coords(layer=[16])
    results.attrs |= {"defaults": {"align_layer": "16", "align_loss": "cosine"}, "phi3": False}
    results.attrs["task"] = "classify"
    return answers, results


def test_differences_are_paired_within_a_seed(swept):
    answers, found = swept
    gap = estimate(found, "difference_", "align_layer=8")
    pairs = [answers["align_layer=8"][s]["run"] - answers["default"][s]["run"] for s in range(3)]
    assert gap.mean == pytest.approx(np.mean(pairs))
    assert gap.high < -0.1 and gap.p < 0.01
    one = found.sel(setting="align_layer=8", question="C")
    assert one.difference_lost == sum((pair[1] < 0).sum() for pair in pairs)
    assert one.difference_won == 0
    assert one.difference_changed == pytest.approx(np.mean(np.array(pairs) != 0))
    assert estimate(found, "gain_", "default").mean == pytest.approx(-gap.mean)
    assert np.isnan(found.difference_mean.sel(setting="default")).all()


def test_a_row_that_lacks_a_seed_is_compared_on_those_it_has(swept):
    answers, found = swept
    pairs = [answers["align_loss=l1"][s]["run"] - answers["default"][s]["run"] for s in range(2)]
    gap = estimate(found, "difference_", "align_loss=l1")
    assert gap.mean == pytest.approx(np.mean(pairs))
    assert np.isnan(found.by_seed.sel(setting="align_loss=l1", seed=2)).all()


def test_the_words_tell_what_holds_from_noise(swept):
    _, found = swept
    text = " ".join(words(found))
    assert "1 hold here beyond noise (align_layer=8)" in text  # 69.5 is below 72.5 in the paper
    assert "1 are within noise" in text and "The paper prints +1.36" in text
    of_captions = " ".join(words(found.assign_attrs(task="caption")))
    assert (
        "The paper prints +4.88" in of_captions
        and "differences from the default" not in of_captions
    )
    assert [one.name for one in varied(found)] == ["align_layer", "align_loss"]
    assert list(varied(found)[0].rows) == ["8", "16"]


def test_published_rows_and_how_far_they_are_from_noise():
    assert published("align_layer", "12,16,20") == (61.63, 60.21, 69.0, 66.5)
    assert published("align_layer", "20", phi3=True) == (58.51, 49.27, 66.0, 56.0)
    assert published("steps", "100") is None
    assert published_gap("align_weight", "0.0", "0.1") == pytest.approx(-0.0136, abs=1e-4)
    rng = np.random.default_rng(0)
    shares, objects = (0.6155, 0.6078, 0.725, 0.695), (2468, 2468, 200, 200)
    drawn = rng.binomial(objects, shares, size=(20_000, 2, 4)) / objects
    gaps = drawn.mean(axis=2)[:, 0] - drawn.mean(axis=2)[:, 1]
    assert published_error() == pytest.approx(gaps.std(), rel=0.03)


def test_gains_in_cka_are_those_of_the_runs(monkeypatch):
    import xarray as xr

    class Probed:
        def probes(self, name):
            dims = ("comparison", "layer")
            parts = {
                "cka_difference": 0.02,
                "cka_difference_low": 0.01,
                "cka_difference_high": 0.03,
            }
            coords = {"comparison": ["aligned - baseline"], "layer": [0, 16]}
            return xr.Dataset({n: (dims, np.full((1, 2), v)) for n, v in parts.items()}, coords)

    monkeypatch.setattr("store.open_run", lambda folder: Probed())
    found = cka_gains({"default": [Path("a")], "align_layer=8": [Path("b"), Path("c")]})
    one = found.sel(setting="default", layer=16)
    assert (one.cka_mean, one.cka_low, one.cka_high) == pytest.approx((0.02, 0.01, 0.03), abs=1e-5)
    two = found.sel(setting="align_layer=8", layer=16)
    wider = t.ppf(0.975, 1) / 1.96  # two seeds leave one degree of freedom
    assert two.cka_high - two.cka_mean == pytest.approx(wider * 0.01 / np.sqrt(2), abs=1e-4)
