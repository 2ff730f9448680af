"""The published layout: what is written is read back, what is broken is named."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from train.config import Stage2Config
from train.data.load import load_data, share
from train.data.objaverse import CORRUPT, benchmark, objaverse, read_annotations
from train.data.objects import KINDS
from train.data.shapes import shapes

BRIEF, COMPLEX = (
    "PointLLM_brief_description_660K_filtered.json",
    "PointLLM_complex_instruction_70K.json",
)
QUERY = "PointLLM_brief_description_val_200_GT.json"


def row(name, *turns, kind=None):
    entries = []
    for place, (question, answer) in enumerate(turns):
        mark = "" if place else "<point>\n"
        entries += [
            {"from": "human", "value": mark + question},
            {"from": "gpt", "value": answer},
        ]
    found = {"object_id": name, "conversations": entries}
    return found | ({"conversation_type": kind} if kind else {})


def write_set(root, train=("a1", "b2"), query=("c3",), clouds=None):
    """A folder as it is published: brief and complex training files, one validation file."""
    (root / "8192_npy").mkdir()
    rng = np.random.default_rng(0)
    for name in clouds if clouds is not None else (*train, *query):
        np.save(root / "8192_npy" / f"{name}_8192.npy", rng.random((8192, 6), np.float32))
    brief = [row(name, ("Say what it is.", f"A thing named {name}.")) for name in train]
    talk = row(train[0], ("What is it?", "A thing."), ("Its colour?", "Red."), kind="multi_round")
    (root / BRIEF).write_text(json.dumps(brief))
    (root / COMPLEX).write_text(json.dumps([talk]))
    (root / QUERY).write_text(json.dumps([row(name, ("What?", "A thing.")) for name in query]))
    return root


def test_the_benchmark_is_its_200_references_and_needs_no_training_files(tmp_path):
    root = write_set(tmp_path, train=("a1",), query=("b1", "b2"))
    rows = (root / QUERY).read_text()
    (root / QUERY.replace("_200_", "_3000_")).write_text(rows.replace("b1", "a2"))
    for path in root.glob("*660K*"):
        path.unlink()
    (root / "8192_npy" / "a1_8192.npy").unlink()
    found = benchmark(root)
    assert found.ids == ["b1", "b2"] and found.class_names == ["object"]
    assert found.points([0]).shape == (1, 8192, 6)
    (root / "8192_npy" / "b2_8192.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 benchmark objects, .* have no cloud .*: b2"):
        benchmark(root)
    (root / QUERY).unlink()
    assert benchmark(root) is None


def test_shapes_read_as_objaverse_are_the_same_objects(tmp_path):
    made = shapes(
        tmp_path, train_per_class=1, gallery_per_class=1, query_per_class=1, progress=False
    )
    (folder,) = tmp_path.iterdir()
    read = objaverse(folder)
    for split in ("train", "gallery", "query"):
        ours, theirs = getattr(made, split), getattr(read, split)
        assert ours.ids == theirs.ids and ours.captions == theirs.captions
        assert ours.conversations == theirs.conversations
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.points([5]).tobytes() == theirs.points([5]).tobytes()
    stored = np.load(folder / "8192_npy" / f"{made.train.ids[0]}_8192.npy", allow_pickle=False)
    assert stored.shape == (8192, 6) and stored.dtype == np.float32
    first = json.loads((folder / "train.json").read_text())[0]
    assert set(first) == {"object_id", "conversation_type", "conversations"}
    assert first["conversations"][0]["value"].startswith("<point>\n")


def test_the_published_files_give_train_and_query(tmp_path):
    data = objaverse(write_set(tmp_path))
    assert data.train.ids == data.gallery.ids == ["a1", "b2"] and data.query.ids == ["c3"]
    assert data.train.captions == ["A thing named a1.", "A thing named b2."]
    assert [each.kind for each in data.train.conversations] == [KINDS[0], KINDS[0], "multi_round"]
    assert data.train.conversations[2].turns == (
        ("What is it?", "A thing."),
        ("Its colour?", "Red."),
    )
    assert data.train.class_names == ["object"] and data.train.labels.tolist() == [0, 0]
    points = data.query.points([0])
    assert points.shape == (1, 8192, 6)
    assert np.linalg.norm(points[..., :3], axis=2).max() == pytest.approx(1, abs=1e-6)


def test_labels_can_be_given(tmp_path):
    write_set(tmp_path)
    (tmp_path / "lvis.json").write_text(json.dumps({"a1": "mug", "b2": "chair", "c3": "mug"}))
    data = objaverse(tmp_path, labels=tmp_path / "lvis.json")
    assert data.train.class_names == ["chair", "mug"] and data.train.labels.tolist() == [1, 0]
    (tmp_path / "lvis.json").write_text(json.dumps({"a1": "mug"}))
    with pytest.raises(ValueError, match="1 objects have no class, the first is b2"):
        objaverse(tmp_path, labels=tmp_path / "lvis.json")


def test_objects_with_corrupt_colours_are_left_out(tmp_path):
    data = objaverse(write_set(tmp_path, train=("a1", CORRUPT[0])))
    assert data.train.ids == ["a1"]


def test_an_object_in_train_and_query_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 objects are both trained on and queried, a1"):
        objaverse(write_set(tmp_path, query=("a1",)))


def test_without_a_validation_file_a_seeded_tenth_is_kept_out(tmp_path, capsys):
    write_set(tmp_path, train=[f"o{number}" for number in range(20)])
    (tmp_path / QUERY).unlink()
    data, again, other = (objaverse(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert len(data.train) == 18 and len(data.query) == 2
    assert not set(data.train.ids) & set(data.query.ids)
    assert data.query.ids == again.query.ids != other.query.ids
    assert "a tenth of the objects is kept out" in capsys.readouterr().out


def test_missing_clouds_stop_the_reading_unless_they_are_to_be_skipped(tmp_path, capsys):
    write_set(tmp_path, train=("b2", "a1", "d4"), clouds=("a1", "c3"))
    # b2 also has a conversation of several rounds
    found = "2 train objects, of 3 conversations, have no cloud in 8192_npy: b2, d4; "
    with pytest.raises(FileNotFoundError, match=found + "unpack .* --skip-missing"):
        objaverse(tmp_path)
    data = objaverse(tmp_path, partial=True)
    assert data.train.ids == ["a1"] and data.query.ids == ["c3"]
    assert [each.object for each in data.train.conversations] == [0]
    assert found + "they are left out" in capsys.readouterr().out


def test_of_very_many_missing_clouds_some_are_named_and_all_counted(tmp_path):
    write_set(tmp_path, train=[f"o{number:02}" for number in range(30)], clouds=("o07", "c3"))
    with pytest.raises(FileNotFoundError, match=r"29 train objects.*: o00, .*, o20 and 9 more;"):
        objaverse(tmp_path)


def test_a_set_without_any_cloud_is_an_error_even_when_skipping(tmp_path):
    write_set(tmp_path, clouds=("c3",))
    with pytest.raises(FileNotFoundError, match="none of the train objects"):
        objaverse(tmp_path, partial=True)


def test_the_config_says_whether_missing_clouds_are_skipped(tmp_path):
    write_set(tmp_path, clouds=("a1", "c3"))
    config = Stage2Config(data="objaverse", data_root=tmp_path)
    with pytest.raises(FileNotFoundError, match="--skip-missing"):
        load_data(config)
    assert load_data(replace(config, skip_missing=True)).train.ids == ["a1"]


def test_smaller_shares_of_the_training_objects_are_part_of_larger_ones(tmp_path):
    names = [f"o{number:02}" for number in range(20)]
    config = Stage2Config(
        data="objaverse", data_root=write_set(tmp_path, train=names), train_per_class=20
    )
    whole = objaverse(config.data_root).train
    assert whole.ids == names
    shares = [share(whole, part / 20, 0) for part in range(1, 21)]
    assert [len(each) for each in shares] == list(range(1, 21))
    for small, large in pairwise(shares):
        assert set(small.ids) < set(large.ids)
    half = shares[9]
    about = {half.ids[each.object] for each in half.conversations}
    assert about == set(half.ids) and half.ids == sorted(half.ids)
    assert half.captions == [f"A thing named {name}." for name in half.ids]
    assert share(whole, 0.5, 0).ids == half.ids != share(whole, 0.5, 1).ids
    all_of_it, few = load_data(config), load_data(replace(config, data_fraction=0.01))
    assert len(few.train) == 1
    assert few.gallery.ids == all_of_it.gallery.ids and few.query.ids == all_of_it.query.ids


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no Objaverse folder: put 8192_npy"):
        objaverse(tmp_path)


def test_a_cloud_that_is_a_pickle_is_refused(tmp_path):
    write_set(tmp_path)
    np.save(tmp_path / "8192_npy" / "c3_8192.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"c3_8192\.npy is not a plain array file"):
        objaverse(tmp_path).query.points([0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not valid JSON"),
        ("{}", "must hold a list of conversations, not a dict"),
        ('[{"object_id": "a"}]', "row 0 lacks object_id or conversations"),
        ("[3]", "row 0 lacks object_id or conversations"),
        (json.dumps([row("a", ("q", "a"), kind="poem")]), "row 0 is of kind 'poem', not one of"),
        (
            json.dumps([{"object_id": "a", "conversations": []}]),
            "row 0 must alternate human and gpt",
        ),
    ],
)
def test_a_broken_annotation_file_is_named(tmp_path, text, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_annotations(path)


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotation file at .*gone\.json"):
        read_annotations(tmp_path / "gone.json")
