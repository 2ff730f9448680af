"""Each form ModelNet comes in, from tiny files written here; what is broken or unsafe is named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from train.data.modelnet import MODELNET40, modelnet, read_dat

SHARED = Path(__file__).parents[2] / "shared" / "data"
TETRAHEDRON = "4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def clouds(count, points=64, columns=3):
    return np.random.default_rng(count).normal(size=(count, points, columns)).astype(np.float32)


def write_npz(root, train=4, test=4, points=64, **more):
    root.mkdir(exist_ok=True)
    for name, count in (("train", train), ("test", test)):
        extra = {key: value[:count] for key, value in more.items() if name == "test"}
        np.savez(
            root / f"{name}.npz",
            points=clouds(count, points).astype(np.float16),
            labels=np.arange(count, dtype=np.uint8) % 2,
            class_names=np.array(["chair", "night_stand"]),
            ids=np.array([f"{name}_{row}" for row in range(count)]),
            **extra,
        )
    return root


def write_hdf5(root):
    for name, count in (("train0", 3), ("train1", 2), ("test0", 4)):
        with h5py.File(root / f"ply_data_{name}.h5", "w") as stored:
            stored["data"] = clouds(count)
            stored["label"] = np.arange(count, dtype=np.uint8)[:, None] % 3
    (root / "shape_names.txt").write_text("airplane\nbathtub\nnight_stand\n")
    return root


def write_txt(root):
    names = {"train": ["night_stand_0001", "bed_0001", "bed_0002"], "test": ["bed_0003"]}
    (root / "modelnet40_shape_names.txt").write_text("bed\nnight_stand\n")
    for split, ids in names.items():
        (root / f"modelnet40_{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            folder = root / name.rsplit("_", 1)[0]
            folder.mkdir(exist_ok=True)
            np.savetxt(folder / f"{name}.txt", clouds(1, 64, 6)[0], delimiter=",", fmt="%.6f")
    return root


def write_off(root):
    for group in ("bed", "night_stand"):
        for split, count in (("train", 2), ("test", 1)):
            (root / group / split).mkdir(parents=True)
            for row in range(count):
                start = "OFF\n" if row else "OFF"  # the second spelling is a known slip of the set
                (root / group / split / f"{group}_{split}_{row}.off").write_text(
                    start + TETRAHEDRON
                )
    return root


def write_dat(root, splits=("train", "test"), labels=(0, 0, 0, 0, 8, 8)):
    for split in splits:
        pair = [[cloud for cloud in clouds(len(labels), 64, 6)], [np.array([n]) for n in labels]]
        (root / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(pair))
    return root


WRITERS = {
    "npz": (write_npz, 4, 4),
    "hdf5": (write_hdf5, 5, 4),
    "txt": (write_txt, 3, 1),
    "off": (write_off, 4, 2),
    "dat": (write_dat, 6, 6),
}


@pytest.mark.parametrize("form", WRITERS)
def test_each_form_gives_normalised_black_clouds_and_class_words(form, tmp_path):
    write, train, test = WRITERS[form]
    data = modelnet(write(tmp_path), points=48)
    assert (len(data.train), len(data.gallery), len(data.query)) == (train, train, test)
    assert data.gallery.ids == data.train.ids and not set(data.train.ids) & set(data.query.ids)
    points = data.train.points(range(train))
    assert points.shape == (train, 48, 6) and points.dtype == np.float32
    np.testing.assert_allclose(points[..., :3].mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points[..., :3], axis=2).max(axis=1), 1, atol=1e-6)
    assert not points[..., 3:].any()
    for talk in data.query.conversations:
        name = data.query.class_names[data.query.labels[talk.object]]
        assert name in talk.turns[0][1] and "_" not in name
        assert talk.kind in ("simple_description", "single_round")
    assert len(data.query.conversations) == 2 * test


@pytest.mark.parametrize("form", WRITERS)
def test_two_readings_agree_and_another_seed_draws_other_points(form, tmp_path):
    root = WRITERS[form][0](tmp_path)
    first, again, other = (modelnet(root, seed=seed, points=48) for seed in (0, 0, 1))
    assert first.train.points([1]).tobytes() == again.train.points([1]).tobytes()
    assert first.train.points([1]).tobytes() != other.train.points([1]).tobytes()
    assert first.train.fingerprint() == again.train.fingerprint()


@pytest.mark.parametrize("form", [form for form in WRITERS if form != "off"])
def test_a_small_cloud_stays_as_it_is(form, tmp_path):
    data = modelnet(WRITERS[form][0](tmp_path), points=8192)
    assert data.train.points([0, 1]).shape == (2, 64, 6)


def test_meshes_are_sampled_on_their_faces(tmp_path):
    data = modelnet(write_off(tmp_path), points=500)
    raw = data.query.read(0)
    on_face = np.minimum(np.abs(raw).min(axis=1), np.abs(raw.sum(axis=1) - 1))
    assert raw.shape == (500, 3) and on_face.max() < 1e-9


def test_official_names_and_labels_of_the_text_form(tmp_path):
    data = modelnet(write_txt(tmp_path))
    assert data.train.class_names == ["bed", "night stand"]
    assert data.train.ids == ["night_stand_0001", "bed_0001", "bed_0002"]
    assert data.train.labels.tolist() == [1, 0, 0]


def test_a_missing_text_cloud_is_named(tmp_path):
    write_txt(tmp_path)
    (tmp_path / "bed" / "bed_0002.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 train clouds are missing.*bed_0002\.txt"):
        modelnet(tmp_path)


def test_the_class_names_of_a_pickle_are_the_official_forty(tmp_path):
    data = modelnet(write_dat(tmp_path))
    assert data.query.class_names == list(MODELNET40) and len(MODELNET40) == 40
    assert [data.query.class_names[label] for label in data.query.labels[-2:]] == ["chair", "chair"]


def test_a_lone_test_pickle_is_halved_by_class(tmp_path, capsys):
    data = modelnet(write_dat(tmp_path, splits=("test",)))
    assert len(data.gallery) == len(data.query) == 3
    assert np.bincount(data.query.labels)[[0, 8]].tolist() == [2, 1]
    assert not set(data.gallery.ids) & set(data.query.ids)
    assert data.train.ids == data.gallery.ids
    assert modelnet(tmp_path).query.ids == data.query.ids
    assert "3 objects to train on and look up, 3 queries" in capsys.readouterr().out


def test_clouds_of_unequal_size_are_drawn_down_to_the_smallest(tmp_path):
    pair = ([clouds(1, size, 6)[0] for size in (80, 64, 70, 64)], [0, 0, 1, 1])
    (tmp_path / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps(pair))
    data = modelnet(tmp_path)
    assert data.gallery.points([0, 1]).shape == (2, 64, 6)


class Pointer:
    """An array of objects over raw bytes: NumPy itself would follow them as addresses."""

    def __reduce__(self):
        return (np.ndarray, ((1,), np.dtype("O"), b"\1" * 8))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


@pytest.mark.parametrize(
    "thing",
    [
        Pointer(),
        Bomb(),
        [[Bomb()], [0]],
        [[np.array([Bomb()], object)], [np.array([0])]],
        [[eval], [0]],
    ],
)
def test_a_malicious_pickle_is_refused_and_does_not_run(thing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(pickle.dumps(thing))
    with pytest.raises(ValueError, match=r"which (is|are) refused"):
        read_dat(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(protocol, tmp_path):
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    given = clouds(2, 16, 6)
    path.write_bytes(pickle.dumps([list(given), [np.array([3]), np.int64(4)]], protocol))
    read, labels = read_dat(path)
    np.testing.assert_array_equal(np.stack(read), given[..., :3])
    assert labels.tolist() == [3, 4]


def test_the_old_name_of_numpy_inside_a_pickle_is_read(tmp_path):
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    written = pickle.dumps([list(clouds(2, 16, 6)), [np.array([3]), np.array([4])]], 2)
    path.write_bytes(written.replace(b"numpy._core.", b"numpy.core."))
    assert read_dat(path)[1].tolist() == [3, 4]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(3), pickle.dumps([[], []])])
def test_a_broken_pickle_is_named(content, tmp_path):
    path = tmp_path / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fps\.dat"):
        read_dat(path)


def test_colour_and_labels_of_an_npz_are_used(tmp_path):
    rgb = np.full((4, 64, 3), 51, np.uint8)
    texts = np.array(["red chair", "low stand", "old chair", "tall stand"])
    data = modelnet(write_npz(tmp_path, rgb=rgb, texts=texts))
    np.testing.assert_allclose(data.query.points([0])[..., 3:], 0.2)
    assert not data.train.points([0])[..., 3:].any()
    assert data.query.captions[0] == "A chair: red chair."


def test_queries_that_are_also_in_train_are_dropped_and_counted(tmp_path, capsys):
    flags = np.array([False, True, False, True])
    data = modelnet(write_npz(tmp_path, voxels_also_in_train=flags))
    assert data.query.ids == ["test_0", "test_2"]
    assert "2 of 4 test objects are also in train: left out" in capsys.readouterr().out
    whole = np.load(tmp_path / "test.npz")["points"][2].astype(np.float64)
    whole -= whole.mean(axis=0)
    whole /= np.linalg.norm(whole, axis=1).max()
    np.testing.assert_allclose(data.query.points([1])[0, :, :3], whole, atol=1e-6)


def test_of_several_folders_the_largest_modelnet_is_read(tmp_path, capsys):
    write_npz(tmp_path / "modelnet_small")
    write_npz(tmp_path / "modelnet_large", train=6)
    write_npz(tmp_path / "props", train=40)
    (tmp_path / "notes").mkdir()
    data = modelnet(tmp_path)
    assert data.name == "modelnet_large" and len(data.train) == 6
    assert "reading modelnet_large, not modelnet_small, props" in capsys.readouterr().out


def test_one_folder_of_any_name_is_read_but_two_are_not(tmp_path):
    write_npz(tmp_path / "props")
    assert modelnet(tmp_path).name == "props"
    write_npz(tmp_path / "shapes")
    with pytest.raises(ValueError, match=r"holds several sets \(props, shapes\)"):
        modelnet(tmp_path)


def test_an_empty_or_missing_folder_is_named_with_the_forms(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no ModelNet: it should have train\.npz"):
        modelnet(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        modelnet(tmp_path / "gone")


def test_a_nan_cloud_is_named(tmp_path):
    write_npz(tmp_path)
    stored = dict(np.load(tmp_path / "test.npz"))
    stored["points"][1, 5] = np.nan
    np.savez(tmp_path / "test.npz", **stored)
    with pytest.raises(ValueError, match="object test_1: 1 of its 64 points are NaN"):
        modelnet(tmp_path).query.points([0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 1, 0, 9])}, "labels run from 0 to 9, but there are 2 class names"),
        ({"ids": np.array(["a", "a", "b", "c"])}, "1 test ids occur more than once"),
        ({"points": np.zeros((4, 3))}, r"points has shape \(4, 3\)"),
        ({"labels": np.array([0, 1])}, "4 clouds, 4 ids and 2 labels"),
        ({"ids": None}, "has no array 'ids'"),
        ({"ids": np.array([{}], object)}, "is not a plain npz file"),
    ],
)
def test_a_broken_npz_is_named(change, message, tmp_path):
    write_npz(tmp_path)
    stored = {**np.load(tmp_path / "test.npz"), **change}
    np.savez(
        tmp_path / "test.npz", **{key: each for key, each in stored.items() if each is not None}
    )
    with pytest.raises(ValueError, match=message):
        modelnet(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no sets of real shapes at {SHARED}")
def test_the_real_sets_are_read(capsys):
    data = modelnet(SHARED)
    assert data.name == "modelnet10_vox24" and len(data.train.class_names) == 10
    assert (len(data.train), len(data.query)) == (3975, 633 - 55)
    assert data.query.points([0, 1]).shape == (2, 1024, 6)
    partial = modelnet(SHARED / "modelnet40_partial")
    assert (len(partial.train), len(partial.query)) == (264, 61)
    props = modelnet(SHARED / "props_rgb_cc0")
    assert props.train.points([0])[..., 3:].any()
