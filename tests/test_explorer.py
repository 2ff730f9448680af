"""What stands beside the Explorer's map, and what its marks mean."""

import json
from base64 import b64decode

import numpy as np
import pandas as pd

from dashboards import objectmap
from dashboards.answers import answers
from probe.plots_maps import CLASS_COLOURS, REST
from tests.test_dashboard import drawn, look, write_run  # noqa: F401  (look is a fixture)
from train.results import Answers, write_answers, write_judged


def write_evaluation(run):
    """What `train.evaluate` leaves: answers, one question judged; and two files it has not made."""
    folder = run / "evaluation"
    asked = {"prompt0": "What is this?", "prompt1": "This is an object of"}
    for name, question in asked.items():
        given = Answers(question, ["object-28", "object-3"], ["A ball.", "Nothing."], ["ball"] * 2)
        write_answers(folder / "baseline" / f"shapes_{name}.json", given)
    rows = [
        {"object_id": "object-28", "model_output": "A ball.", "gpt_cls_result": "T"},
        {"object_id": "object-3", "model_output": "Nothing.", "gpt_cls_result": "F"},
    ]
    judged = {"inference_prompt": asked["prompt0"], "prompt": "Judge this.", "results": rows}
    write_judged(folder / "baseline" / "shapes_prompt0_evaluated.json", judged)
    (folder / "baseline" / "broken.json").write_text("{")
    outside = run.parent.parent / "outside.json"
    outside.write_text(json.dumps({"prompt": "?", "results": rows}))
    (folder / "baseline" / "link.json").symlink_to(outside)


def test_answers_and_verdicts_stand_beside_the_object(tmp_path, look):  # noqa: F811
    run = write_run(tmp_path / "runs" / "one")
    assert answers(run, "object-28").empty
    write_evaluation(run)
    found = answers(run, "object-28")
    assert sorted(found.judged) == ["", "right"] and set(found.answer) == {"A ball."}
    assert set(found.question) == {"What is this?", "This is an object of"}
    app = look(tmp_path / "runs", "explorer", picked="28")
    assert not app.exception
    assert app.dataframe[0].value.answer.tolist() == ["A ball.", "A ball."]


def test_objects_are_coloured_by_what_was_judged_of_the_answers(tmp_path, look):  # noqa: F811
    run = write_run(tmp_path / "runs" / "one")
    app = look(tmp_path / "runs", "explorer")
    assert not [name for name in app.selectbox(key="choice-colour").options if "answer" in name]
    write_evaluation(run)
    app = look(tmp_path / "runs", "explorer", colour="answer: What is this?")
    assert not app.exception and not app.warning
    shown = drawn(app)
    kinds = np.frombuffer(b64decode(shown["colour"]), np.uint8)
    names = [mark["name"] for mark in shown["marks"]]
    assert names == ["not asked", "right", "wrong"] and np.bincount(kinds).tolist() == [38, 1, 1]
    assert [names[kinds[row]] for row in (28, 3)] == ["right", "wrong"]
    app.selectbox(key="choice-variant").select("aligned").run()  # which was not asked
    assert not app.exception and app.selectbox(key="choice-colour").value == "right"


def test_verdicts_are_read_in_the_three_forms_of_the_published_evaluators(tmp_path):
    rows = [
        {"object_id": 1, "model_output": "a", "gpt_score": 70},
        {"object_id": 2, "model_output": "a", "gpt_score": -1},
        {"object_id": 3, "model_output": "a", "gpt_cls_result": "F"},
        {
            "object_id": 4,
            "model_output": "a",
            "ground_truth": 0,
            "ground_truth_label": "ball",
            "gpt_cls_result": 7,
            "gpt_cls_label": "cube",
        },
    ]
    write_judged(
        tmp_path / "evaluation" / "aligned" / "one.json",
        {"inference_prompt": "?", "results": rows},
    )
    said = [answers(tmp_path, str(name)).judged.item() for name in (1, 2, 3, 4)]
    assert said == ["70 of 100", "invalid", "wrong", "wrong: taken for cube"]


def test_marks_of_the_map_are_those_of_the_classes_and_numbers():
    table = pd.DataFrame({"class_name": list("xyzx"), "drift": [0.0, 1.0, np.nan, 0.5]})
    marks, kinds, scale = objectmap._coloured(table, "class_name", "", ["x", "y"])
    assert [mark["colour"] for mark in marks] == [REST, *CLASS_COLOURS[:2]]
    assert kinds.tolist() == [1, 2, 0, 1] and scale is None
    marks, kinds, scale = objectmap._coloured(table, "drift", "drift", [])
    ends = [marks[0]["colour"], marks[-2]["colour"]]
    assert [marks[kind]["colour"] for kind in kinds[:2]] == ends
    assert marks[kinds[2]]["colour"] == REST and scale["high"] == "1"
    packed = np.frombuffer(b64decode(objectmap._packed(table.drift[:2], np.float32)), "<f4")
    assert packed.tolist() == [0, 1]
