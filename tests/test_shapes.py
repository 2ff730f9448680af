"""The procedural set: same bytes from one seed, sound clouds, words that are true."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from train.data import captions
from train.data.families import FAMILIES, Design
from train.data.families.design import Part
from train.data.families.solids import Mesh, ball, box, rotation, scatter
from train.data.objects import KINDS, Conversation, Objects
from train.data.shapes import POINTS, make_object, sample, shapes

DRAWS = 12


def small(root, **more):
    return shapes(
        root,
        **{"train_per_class": 2, "gallery_per_class": 1, "query_per_class": 1, **more},
        progress=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def designs() -> list[tuple[str, Design]]:
    return [
        (name, family(np.random.default_rng([7, number])))
        for name, family in FAMILIES.items()
        for number in range(DRAWS)
    ]


def splits(data):
    return {"train": data.train, "gallery": data.gallery, "query": data.query}


def test_there_are_many_families_with_their_own_names():
    assert len(FAMILIES) >= 44
    assert all(re.fullmatch("[a-z]+( [a-z]+)?", name) for name in FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_makings_of_one_object_have_the_same_bytes(name):
    (first, record), (second, again) = (make_object(3, "query", name, 5) for _ in range(2))
    assert first.dtype == np.float32 and first.shape == (POINTS, 6)
    assert first.tobytes() == second.tobytes() and record == again


def test_two_makings_of_a_set_agree_and_another_seed_does_not(data, tmp_path):
    again, other = small(tmp_path), small(tmp_path, seed=1, train_per_class=1)
    assert len(list(tmp_path.iterdir())) == 2
    for split, objects in splits(data).items():
        assert objects.fingerprint() == splits(again)[split].fingerprint()
        assert objects.conversations == splits(again)[split].conversations
    assert again.train.points([3]).tobytes() == data.train.points([3]).tobytes()
    assert other.train.points([0]).tobytes() != data.train.points([0]).tobytes()
    assert other.train.fingerprint() != data.train.fingerprint()


def test_several_processes_make_the_same_set_as_one(data, tmp_path):
    spread = small(tmp_path, workers=2)
    assert spread.query.fingerprint() == data.query.fingerprint()
    assert spread.query.points([0]).tobytes() == data.query.points([0]).tobytes()


def test_a_made_set_is_read_again_and_not_made_again(data, tmp_path, monkeypatch):
    first = small(tmp_path)
    monkeypatch.setattr("train.data.shapes._make", lambda *given: pytest.fail("made again"))
    assert small(tmp_path).train.fingerprint() == first.train.fingerprint()


def test_a_making_that_stops_half_way_leaves_no_set(tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("train.data.shapes._write_words", stop)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_split_of_no_objects_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 object a class or more"):
        small(tmp_path, query_per_class=0)


def test_every_family_is_in_every_split_and_no_id_twice(data):
    every = [name for objects in splits(data).values() for name in objects.ids]
    assert len(set(every)) == len(every) == 4 * len(FAMILIES)
    for objects in splits(data).values():
        assert objects.class_names == list(FAMILIES)
        assert set(objects.labels.tolist()) == set(range(len(FAMILIES)))
        assert objects.labels.dtype == np.int64


def test_no_two_objects_have_the_same_cloud(data):
    clouds = [
        hashlib.sha256(cloud.tobytes()).digest()
        for objects in splits(data).values()
        for cloud in objects.points(range(len(objects)))
    ]
    assert len(set(clouds)) == len(clouds)


def test_points_are_centred_with_largest_radius_one_and_coloured(data):
    clouds = data.train.points(range(0, len(data.train), 7))
    assert clouds.dtype == np.float32 and clouds.shape[1:] == (POINTS, 6)
    np.testing.assert_allclose(clouds[..., :3].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(clouds[..., :3], axis=2).max(axis=1), 1, atol=1e-6)
    assert clouds[..., 3:].min() >= 0 and clouds[..., 3:].max() <= 1
    assert (clouds[..., 3:].std(axis=1) > 0).all()


def test_points_are_spread_by_area():
    """A ball of three times the radius has nine times the surface."""
    large, tiny = Part("large", "red", [ball(3)]), Part("tiny", "blue", [ball(1).move(x=10)])
    cloud = sample(Design([large, tiny]), np.random.default_rng(0), 20_000)
    share = (cloud[:, 0] > 5).mean()
    assert share == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 20_000))
    np.testing.assert_allclose(np.linalg.norm(cloud[cloud[:, 0] < 5, :3], axis=1), 3, rtol=0.03)


def test_scattered_points_are_even_inside_a_triangle():
    triangle = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], dtype=float)
    places, chosen = scatter(triangle, 40_000, np.random.default_rng(0))
    assert (chosen == 0).all() and (places[:, :2].sum(axis=1) <= 1).all()
    np.testing.assert_allclose(places.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.005)


def test_parts_have_names_once_and_sound_meshes(designs):
    for name, design in designs:
        names = [part.name for part in design.parts]
        assert len(set(names)) == len(names), name
        for part in design.parts:
            assert part.count >= 1 and part.colour in captions_colours(), name
            for mesh in part.meshes:
                assert np.isfinite(mesh.vertices).all() and mesh.faces.max() < len(mesh.vertices)


def captions_colours():
    from train.data.families import PALETTE

    return PALETTE


def moved(design: Design, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points on the surface, and the same surface under a matrix sampled with another seed."""
    plain = sample(design, np.random.default_rng(0), 4096)[:, :3]
    turned = [
        Part(part.name, part.colour, [Mesh(m.vertices @ matrix.T, m.faces) for m in part.meshes])
        for part in design.parts
    ]
    return plain, sample(Design(turned), np.random.default_rng(1), 4096)[:, :3]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stated_symmetry_holds(name):
    """The moved surface lies as near the surface as a second sample of it does."""
    from scipy.spatial import cKDTree

    for number in range(3):
        design = FAMILIES[name](np.random.default_rng([11, number]))
        if design.symmetry == "none":
            continue
        matrix = {
            "mirror": np.diag([-1.0, 1, 1]),
            "turn": rotation("z", 360 / design.order),
            "round": rotation("z", 37),
        }[design.symmetry]
        plain, other = moved(design, matrix)
        _, again = moved(design, np.eye(3))
        reach = np.quantile(cKDTree(plain).query(again)[0], 0.99)
        off = np.quantile(cKDTree(plain).query(other)[0], 0.99)
        assert off < 1.35 * reach + 0.01, (name, number, design.symmetry, off, reach)


def test_each_object_has_all_kinds_of_conversation_and_names_its_class(data):
    for objects in splits(data).values():
        said = {row: [] for row in range(len(objects))}
        for each in objects.conversations:
            said[each.object].append(each)
        for row, talks in said.items():
            name = objects.class_names[objects.labels[row]]
            assert {each.kind for each in talks} == set(KINDS)
            asked = [each.turns for each in talks if each.turns[0][0] == "What is this?"]
            assert any(len(turns) == 1 and name in turns[0][1] for turns in asked)
            for each in talks:
                many = len(each.turns) > 1
                assert many == (each.kind == "multi_round") and len(each.turns) <= 3
                if each.kind != "single_round":
                    assert name in each.turns[0][1].lower()


def test_descriptions_are_short_and_name_the_class_early(data):
    brief, detailed = (
        [talk for talk in data.train.conversations if talk.kind == kind] for kind in KINDS[:2]
    )
    for talk in brief:
        words = talk.turns[0][1].split()
        assert 8 <= len(words) <= 20, talk
        name = data.train.class_names[data.train.labels[talk.object]]
        assert name in " ".join(words[:7]).lower()
        assert talk.turns[0][1] == data.train.captions[talk.object]
    assert max(len(talk.turns[0][1].split()) for talk in detailed) <= 45


def test_the_vocabulary_is_small(data):
    said = " ".join(
        word for talk in data.train.conversations for turn in talk.turns for word in turn
    )
    assert len(set(re.findall("[a-z-]+", said.lower()))) < 600


def test_counts_colours_and_proportions_in_answers_are_the_factors(designs):
    for name, design in designs[::5]:
        extents = np.array([1.0, 1.0, 2.0])
        answers = dict(captions.part_questions(name, design, extents, np.random.default_rng(0)))
        for part in design.parts:
            many = part.count > 1
            word = captions.plural(part.name) if many else part.name
            assert part.colour in answers[f"What colour {'are' if many else 'is'} the {word}?"]
            if many:
                count = captions.number(part.count)
                assert answers[f"How many {word} does it have?"] == f"It has {count} {word}."
        assert answers["Is it taller than it is wide?"].startswith("Yes")


def test_factors_are_one_value_an_object(data):
    factors = data.train.factors
    assert {"class", "colour", "pieces", "height_to_width", "symmetry", "yaw"} <= set(factors)
    assert all(values.shape == (len(data.train),) for values in factors.values())
    names = [data.train.class_names[label] for label in data.train.labels]
    assert factors["class"].tolist() == names
    assert np.abs(factors["yaw"]).max() <= 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("axe", "an axe"),
        ("bed", "a bed"),
        ("umbrella", "an umbrella"),
        ("wine glass", "a wine glass"),
    ],
)
def test_the_class_answer_has_the_right_article(name, said):
    assert captions.class_answer(name) == f"This is {said}."


def test_numbers_and_plurals_are_words():
    assert [captions.number(count) for count in (1, 12, 20, 26)] == [
        "one",
        "twelve",
        "twenty",
        "twenty-six",
    ]
    assert [captions.plural(name) for name in ("leg", "foot", "end box", "arch")] == [
        "legs",
        "feet",
        "end boxes",
        "arches",
    ]


def objects_of(cloud: np.ndarray, count: int | None = None) -> Objects:
    talk = Conversation(0, "single_round", (("What is this?", "This is a box."),))
    return Objects(
        ["box-1"],
        np.zeros(1, np.int64),
        ["box"],
        ["a box"],
        [talk],
        read=lambda row: cloud,
        count=count or len(cloud),
        identity="test",
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cloud: cloud * np.nan, "object box-1: 32 of its 32 points are NaN or infinite"),
        (lambda cloud: cloud[:20], "object box-1: its cloud has 20 points, the set has 32"),
        (lambda cloud: cloud[:, :2], r"object box-1: its cloud has shape \(32, 2\)"),
        (lambda cloud: cloud * 0, "object box-1: its 32 points are all the same point"),
        (lambda cloud: np.hstack([cloud, 200 + cloud]), r"object box-1: its colours must be in"),
    ],
)
def test_a_broken_cloud_is_named(spoil, message):
    cloud = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        objects_of(spoil(cloud), 32).points([0])


def test_a_cloud_without_colour_is_black_and_float16_is_read():
    cloud = box(1, 2, 3).vertices.astype(np.float16)
    points = objects_of(cloud).points(0)
    assert points.shape == (1, 8, 6) and not points[..., 3:].any()


def test_a_subset_keeps_its_words_factors_and_clouds(data):
    rows = [9, 2, 30]
    part = data.train.take(rows)
    assert part.ids == [data.train.ids[row] for row in rows]
    assert part.points([1, 2]).tobytes() == data.train.points([2, 30]).tobytes()
    assert part.factors["yaw"].tolist() == data.train.factors["yaw"][rows].tolist()
    for talk in part.conversations:
        whole = [
            each.turns for each in data.train.conversations if each.object == rows[talk.object]
        ]
        assert talk.turns in whole
    again = part.take([2])
    assert again.points([0]).tobytes() == data.train.points([30]).tobytes()
    assert part.fingerprint() != data.train.fingerprint()


def test_a_subset_by_class_is_seeded_even_and_nested(data):
    one, same = (data.train.take(per_class=1, seed=4) for _ in range(2))
    assert one.ids == same.ids and len(one) == len(FAMILIES)
    assert np.bincount(one.labels).tolist() == [1] * len(FAMILIES)
    assert set(one.ids) <= set(data.train.take(per_class=2, seed=4).ids)
    assert data.train.take(per_class=1, seed=5).ids != one.ids
    with pytest.raises(ValueError, match="either rows or per_class"):
        data.train.take()
    with pytest.raises(ValueError, match="rows to take must differ"):
        data.train.take([1, 1])
