"""Reading a class out of an answer, and asking a model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from train.asked import Asked, in_file_order
from train.checkpoint import load_model
from train.classify import answers, classify
from train.data.objects import DataSet, Objects
from train.evaluate import EvaluateConfig, evaluate
from train.judges import Verdict, named_class, score
from train.results import Answers, judged, read_judged, write_judged

NAMES = ["tree", "pine tree", "car", "wine_glass", "bus"]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("This is a pine tree.", "pine tree"),
        ("It is a tree beside a car.", "tree"),
        ("A Wine Glass!", "wine_glass"),
        ("two buss", "bus"),
        ("a carpet", None),
        ("", None),
    ],
)
def test_the_first_and_longest_class_name_of_an_answer_counts(answer, name):
    row = named_class(answer, NAMES)
    assert (None if row is None else NAMES[row]) == name


def test_answers_do_not_depend_on_the_batch(tiny_checkpoint, monkeypatch):
    model, tokenizer, _ = load_model(tiny_checkpoint)
    targets = torch.randn(5, TINY.queries, TINY.qformer_width, generator=torch.manual_seed(0))
    together = answers(model, tokenizer, targets, longest=6)
    monkeypatch.setattr("train.classify.AT_ONCE", 2)
    assert answers(model, tokenizer, targets, longest=6) == together


def test_a_model_that_has_learned_nothing_is_counted_wrong(tiny_checkpoint):
    model, tokenizer, _ = load_model(tiny_checkpoint)
    targets = torch.zeros(4, TINY.queries, TINY.qformer_width)
    result = classify(model, tokenizer, targets, np.array([0, 1, 1, 2]), ["zebra", "yak", "gnu"])
    assert (result.correct, result.asked, result.chance) == (0, 4, 0.5)
    assert result.low == 0 and 0 < result.high < 1
    assert "0 of 4" in result.sentence("objects")


# --- python -m train.evaluate -----------------------------------------------------------------


def few(**more) -> Asked:
    """Six objects of three classes with targets for the tiny model."""
    targets = torch.randn(6, TINY.queries, TINY.qformer_width, generator=torch.manual_seed(0))
    settings = {
        "run": Path("run"),
        "stage1": None,
        "record": {"seed": 0, "hashes": {"stage1": "aa", "query": "bb"}},
        "variants": ["stage1"],
        "name": "shapes",
        "digest": "bb",
        "ids": [f"object-{at}" for at in range(6)],
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "class_names": ["ball", "stick", "plate"],
        "captions": ["a ball", "a stick", "a plate"] * 2,
        "targets": lambda part: targets[part],
        "whole": True,
    }
    return Asked(**settings | more)


@pytest.fixture
def asked(monkeypatch, tiny_checkpoint):
    """What the command asks about, and how often it loaded a model."""
    loaded = []

    def load(run, variant, stage1):
        loaded.append(variant)
        return load_model(tiny_checkpoint)[:2]

    def use(about):
        monkeypatch.setattr("train.asked.asked_about", lambda config: about)

    monkeypatch.setattr("train.asked.load_variant", load)
    use(few())
    return SimpleNamespace(loaded=loaded, use=use)


def test_answers_and_verdicts_are_files_of_the_published_form(asked, tmp_path, capsys):
    first, second = evaluate(EvaluateConfig(run=tmp_path))
    assert first.name == "shapes_classification_prompt0_evaluated_exact.json"
    answers = json.loads((first.parent / "shapes_classification_prompt0.json").read_text())
    assert answers["prompt"] == "What is this?"
    row = answers["results"][1]
    assert (row["object_id"], row["ground_truth"], row["label_name"]) == ("object-1", 1, "stick")
    verdicts = json.loads(first.read_text())
    assert {"inference_prompt", "prompt", "accuracy", "clean_accuracy"} <= verdicts.keys()
    assert verdicts["total_predictions"] == 6 and verdicts["accuracy"].endswith("%")
    assert json.loads(second.read_text())["inference_prompt"] == "This is an object of "
    assert "of 6 are right" in capsys.readouterr().out


def test_a_second_call_loads_no_model_and_changes_nothing(asked, tmp_path):
    paths = evaluate(EvaluateConfig(run=tmp_path))
    before = [path.read_bytes() for path in paths]
    assert len(asked.loaded) == 2
    assert [path.read_bytes() for path in evaluate(EvaluateConfig(run=tmp_path))] == before
    assert len(asked.loaded) == 2


def test_another_checkpoint_is_asked_anew(asked, tmp_path):
    evaluate(EvaluateConfig(run=tmp_path, prompt="0"))
    asked.use(few(record={"seed": 0, "hashes": {"stage1": "other", "query": "bb"}}))
    evaluate(EvaluateConfig(run=tmp_path, prompt="0"))
    assert len(asked.loaded) == 2


def test_a_published_file_of_answers_is_judged(tmp_path, capsys):
    rows = [
        {
            "object_id": 0,
            "ground_truth": 0,
            "model_output": "An airplane.",
            "label_name": "airplane",
        },
        {"object_id": 1, "ground_truth": 23, "model_output": "a bed", "label_name": "night stand"},
    ]
    path = tmp_path / "ModelNet_classification_prompt0.json"
    path.write_text(json.dumps({"prompt": "What is this?", "results": rows}))
    (written,) = evaluate(EvaluateConfig(run=path))
    assert "1 of 2 are right: 50.0%" in capsys.readouterr().out
    found = json.loads(written.read_text())
    assert [row["gpt_cls_label"] for row in found["results"]] == ["airplane", "bed"]
    assert found["results"][0]["object_id"] == 0


def test_a_class_list_that_does_not_match_is_said(tmp_path):
    row = {"object_id": 0, "ground_truth": 0, "model_output": "an axe", "label_name": "axe"}
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "What is this?", "results": [row]}))
    with pytest.raises(ValueError, match="class 0, 'axe', is not where ModelNet40 has it"):
        evaluate(EvaluateConfig(run=path))
    for known in (["ball"], ["stick", "axe"]):
        about = {"prompt": "?", "results": [row | {"ground_truth": len(known) - 1}]}
        path.write_text(json.dumps(about | {"made_by": {"class_names": known[::-1]}}))
        with pytest.raises(ValueError, match=f"its list of {len(known)} classes has"):
            evaluate(EvaluateConfig(run=path))


def test_an_answer_that_is_null_is_an_empty_one(tmp_path):
    row = {"object_id": 0, "ground_truth": 7, "model_output": None, "label_name": "car"}
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"prompt": "What is this?", "results": [row]}))
    (written,) = evaluate(EvaluateConfig(run=path))
    found = json.loads(written.read_text())
    assert found["invalid_responses"] == 1 and found["results"][0]["gpt_reason"] == "empty answer"


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"answers": []}',
        '{"prompt": "a", "results": [{}]}',
        '{"prompt": "a", "results": []}',
    ],
)
def test_a_file_of_another_form_is_said_in_a_sentence(tmp_path, text):
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"answers\.json (holds|is no JSON)"):
        evaluate(EvaluateConfig(run=path))


def judged_as(task, published=False):
    """A judged file with a right, a wrong and an invalid verdict, as a `Judged` read again."""
    values = {"closed": (1, 0, None), "open": (1, 0, None), "caption": (80, 20, None)}[task]
    closed = task == "closed"
    given = Answers(
        "What is this?",
        ["a", "b", "c"],
        ["x", "y", ""],
        [1, 1, 0] if closed else ["p", "q", "r"],
        ["stick", "stick", "ball"] if closed else [],
    )
    verdicts = [Verdict(value, "so") for value in values]
    labels = np.array([1, 1, 0])
    scored = score(task, verdicts, given.ids, labels, 3, published=published, seed=3)
    made_by = {"published_scoring": published}
    return scored, judged(
        given, task, verdicts, scored, ["ball", "stick", "plate"], made_by=made_by
    )


@pytest.mark.parametrize("task", ["closed", "open", "caption"])
@pytest.mark.parametrize("published", [False, True])
def test_a_judged_file_reads_as_what_was_scored(task, published, tmp_path):
    scored, found = judged_as(task, published)
    path = tmp_path / "judged.json"
    write_judged(path, found)
    again = read_judged(path)
    assert np.array_equal(again.values, scored.values, equal_nan=True)
    assert again.invalid == found["invalid_responses"] == 1


def test_headlines_follow_the_published_rules_where_these_are_asked_for():
    _, ours = judged_as("open")
    _, theirs = judged_as("open", published=True)
    assert (ours["accuracy"], theirs["accuracy"]) == ("33.33%", "50.00%")
    _, ours = judged_as("caption")
    _, theirs = judged_as("caption", published=True)
    assert (ours["average_score"], theirs["average_score"]) == ("33.33", "50.00")
    _, closed = judged_as("closed")
    assert (closed["accuracy"], closed["clean_accuracy"]) == ("33.33%", "50.00%")


def test_the_halves_of_a_lone_test_file_are_put_in_its_order():
    whole = Objects(
        ids=[str(at) for at in range(7)],
        labels=np.arange(7),
        class_names=list("abcdefg"),
        captions=[f"caption {at}" for at in range(7)],
        conversations=[],
        read=lambda row: np.zeros((4, 3)),
        count=4,
        identity="test",
    )
    gallery, query = whole.take([1, 4, 6]), whole.take([0, 2, 3, 5])
    again = in_file_order(DataSet("modelnet", gallery, gallery, query))
    assert again.ids == whole.ids and again.labels.tolist() == list(range(7))
    assert again.rows.tolist() == list(range(7))
    assert in_file_order(DataSet("modelnet", gallery, gallery, whole)) is whole


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"judge": "gpt"}, "exact, sentences, or http"),
        ({"judge": "http://localhost/v1"}, "--judge-model"),
        ({"limit": -1}, "--limit -1"),
    ],
)
def test_a_wrong_call_is_said_in_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words):
        EvaluateConfig(run=Path("run"), **wrong)
    with pytest.raises(ValueError, match="--prompt 7"):
        _ = EvaluateConfig(run=Path("run"), prompt="7").questions


def test_a_run_that_is_none_or_not_finished_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        evaluate(EvaluateConfig(run=tmp_path))
    (tmp_path / "run.json").write_text('{"status": "running", "command": "python -m train.stage2"}')
    with pytest.raises(ValueError, match="is not finished; repeat"):
        evaluate(EvaluateConfig(run=tmp_path))
