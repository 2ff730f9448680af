"""Tables of a run: paired counts, power, and the papers' figures."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from train.comparisons import graded, mcnemar_power, paired, smallest_gain
from train.papers import ABLATIONS, FIGURE_4, TABLE_1, TABLE_2
from train.tables import TablesConfig, columns, main


def test_published_accuracies_are_shares_of_2468_and_200_objects():
    cells = [*TABLE_1.values(), *(row for table in ABLATIONS.values() for row in table.values())]
    for modelnet_i, modelnet_c, *objaverse in cells:
        for value in (modelnet_i, modelnet_c):
            assert abs(round(value / 100 * 2468) / 2468 * 100 - value) <= 0.0051
        for value in objaverse:
            assert value * 2 == round(value * 2) or value == 7.58  # 15 of 198, as printed


def test_the_published_gains_follow_from_the_rows():
    gain = np.mean(TABLE_1["PointAlign"]) - np.mean(TABLE_1["MiniGPT-3D"])
    assert gain == pytest.approx(2.08, abs=0.01)  # of rounded means
    assert TABLE_2["PointAlign"][0] - TABLE_2["MiniGPT-3D"][0] == pytest.approx(4.88)
    assert FIGURE_4["1.0"] == (53.05, 48.17)
    assert ABLATIONS["align_layer"]["16"] == TABLE_1["PointAlign"]


def test_paired_counts_add_up_and_p_is_the_exact_binomial():
    a = np.array([1] * 50 + [1] * 9 + [0] * 2 + [0] * 39)
    b = np.array([1] * 50 + [0] * 9 + [1] * 2 + [0] * 39)
    found = paired(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == (50, 9, 2, 39)
    assert found.p == pytest.approx(binomtest(9, 11, 0.5).pvalue)
    assert found.mean == pytest.approx(0.07)
    assert found.low < 0.07 < found.high


def test_no_object_that_differs_does_not_prove_models_equal():
    found = paired(np.ones(60), np.ones(60))
    # Agresti and Min 2005: 0.5 + 0.5 of 62 objects differ
    assert (found.low, found.high) == pytest.approx((-1.96 / 62, 1.96 / 62))
    assert found.p == 1 and found.power < 0.05


@pytest.mark.parametrize(("gain", "discordant", "objects"), [(0.1, 0.2, 120), (0.0, 0.3, 200)])
def test_power_is_that_of_simulated_pairs(gain, discordant, objects):
    rng = np.random.default_rng(0)
    wins, losses = (discordant + gain) / 2, (discordant - gain) / 2
    drawn = rng.multinomial(objects, [wins, losses, 1 - discordant], size=3000)
    pairs, counts = np.unique(drawn[:, :2], axis=0, return_counts=True)
    found = [binomtest(a, a + b, 0.5).pvalue <= 0.05 if a + b else False for a, b in pairs.tolist()]
    share = counts[found].sum() / 3000
    assert mcnemar_power(gain, discordant, objects) == pytest.approx(share, abs=0.03)  # 3 sd


def test_the_smallest_gain_has_the_power_and_more_objects_find_less():
    few, many = smallest_gain(0.2, 200), smallest_gain(0.2, 2468)
    assert mcnemar_power(few, 0.2, 200) == pytest.approx(0.8, abs=0.01)
    assert 0 < many < few / 3
    assert np.isnan(smallest_gain(0.2, 4))  # 4 of 4 is p 0.125


def test_scores_find_what_a_t_test_of_their_differences_finds():
    from scipy.stats import nct, t

    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    found = graded(a, b, gain=0.1)
    error, least = np.std(a - b, ddof=1) / np.sqrt(50), t.ppf(0.975, 49)
    true = nct.sf(least, 49, 0.1 / error) + nct.cdf(-least, 49, 0.1 / error)
    assert found.power == pytest.approx(true, abs=0.01)
    assert nct.sf(least, 49, found.smallest / error) == pytest.approx(0.8, abs=0.01)
    assert found.higher_a == (a > b).sum() and found.higher_a + found.higher_b == 50
    same = graded(np.ones(50), np.ones(50), gain=0.1)
    assert same.equal == 50 and same.p == 1 and same.smallest > 0.05


def judged(folder, variant, right, judge="exact", **made_by):
    rows = [
        {"object_id": f"o{at}", "ground_truth": 1, "gpt_cls_result": 1 if hit else 0}
        for at, hit in enumerate(right)
    ]
    path = folder / "evaluation" / variant / f"shapes_classification_prompt0_evaluated_{judge}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"inference_prompt": "What is this?", "invalid_responses": 0, "results": rows}
    path.write_text(json.dumps(found | {"made_by": made_by}))
    return path


def test_the_tables_hold_each_model_and_the_comparison(tmp_path, capsys):
    judged(tmp_path, "baseline", [1] * 30 + [0] * 30)
    judged(tmp_path, "aligned", [1] * 36 + [0] * 24)
    main(TablesConfig(run=tmp_path))
    shown = capsys.readouterr().out
    assert "60.0 [47.4, 71.4]" in shown and "PointAlign" in shown  # Wilson's, 36 of 60
    assert "aligned alone 6, baseline alone 0" in shown
    kept = json.loads((tmp_path / "evaluation/tables.json").read_text())
    assert kept["columns"][0]["aligned against baseline"]["p"] == pytest.approx(2 / 2**6)


def test_table_2_has_the_embeddings_and_keeps_the_other_metrics(tmp_path, capsys):
    name = "sbert_similarity (all-MiniLM-L6-v2)"
    for variant, shift in (("baseline", 0), ("aligned", 10)):
        rows = [
            {"object_id": f"o{at}", "scores": {name: 40.0 + at + shift, "bleu-1": 5.0}}
            for at in range(20)
        ]
        path = tmp_path / f"evaluation/{variant}/shapes_captioning_prompt2_evaluated_traditional"
        path.parent.mkdir(parents=True)
        overall = {name: "49.5000", "bleu-1": "5.0000"}
        found = {"inference_prompt": "Caption", "overall_scores": overall, "results": rows}
        path.with_suffix(".json").write_text(json.dumps(found))
    main(TablesConfig(run=tmp_path))
    shown = capsys.readouterr().out
    assert "(all-MiniLM-L6-v2)" in shown and "49.5 [" in shown and "bleu" not in shown
    assert "aligned - baseline +10.0 points" in shown
    assert "of 20 objects aligned scores higher on 20, baseline on 0, both the same on 0" in shown
    assert "the published gain of 0.40 with" in shown
    kept = json.loads((tmp_path / "evaluation/tables.json").read_text())["columns"]
    assert [one["judge"] for one in kept] == [name, "bleu-1"]
    path.with_suffix(".json").write_text('{"results": [{"object_id": 1}], "overall_scores": {}}')
    with pytest.raises(ValueError, match="holds no caption metrics"):
        columns(tmp_path / "evaluation")


def test_models_asked_about_other_objects_are_not_compared(tmp_path):
    judged(tmp_path, "baseline", [1, 0, 1])
    judged(tmp_path, "aligned", [1, 0])
    with pytest.raises(ValueError, match="other objects"):
        main(TablesConfig(run=tmp_path))


def test_what_is_missing_or_of_an_older_form_is_said_in_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run python -m train\.evaluate"):
        columns(tmp_path / "evaluation")
    path = judged(tmp_path, "aligned", [1, 0])
    path.write_text(json.dumps({"accuracy": 0.5, "answers": []}))
    with pytest.raises(ValueError, match="judge the answers again"):
        columns(tmp_path / "evaluation")


def test_models_asked_or_judged_in_two_ways_are_not_compared(tmp_path):
    judged(tmp_path, "baseline", [1, 0, 1], protocol="ours")
    judged(tmp_path, "aligned", [1, 0, 1], protocol="published")
    with pytest.raises(ValueError, match=r"alike \(protocol is ours and published\)"):
        main(TablesConfig(run=tmp_path))


def test_answers_of_other_weights_than_the_run_holds_are_not_shown(tmp_path):
    from train.asked import weights_of

    weights = tmp_path / "checkpoints/aligned/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"first")
    record = {"seed": 0, "hashes": {"stage1": "a", "query": "b"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    judged(tmp_path, "aligned", [1, 0], checkpoint=weights_of(tmp_path, record, "aligned"))
    main(TablesConfig(run=tmp_path))
    weights.write_bytes(b"second")
    with pytest.raises(ValueError, match="aligned was asked with other weights than"):
        main(TablesConfig(run=tmp_path))
