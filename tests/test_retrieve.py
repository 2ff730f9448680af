"""Looking clouds up by text, by cloud and by sums of them."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from tests.test_pointbind import text_folder  # noqa: F401
from train.checkpoint import sha256
from train.data.modelnet import modelnet
from train.models.pointbind import add_embeddings
from train.pointbind import keep_gallery, new_model, write_model
from train.pointbind_report import embed
from train.retrieve import RetrieveConfig, Space, main, nearest, read_gallery
from train.zeroshot import class_features


@pytest.fixture(scope="module")
def bound(tmp_path_factory, solids_folder, text_folder):  # noqa: F811
    """A run with random weights, its gallery, and a cloud of it in a file."""
    folder = tmp_path_factory.mktemp("bound")
    torch.manual_seed(0)
    model = new_model(TINY, 16, 0.0).eval()
    sizes = {"sizes": asdict(TINY), "output": 16, "text_model": str(text_folder)}
    write_model(folder, model, sizes | {"colour": False})
    objects = modelnet(solids_folder).gallery
    keep_gallery(folder, objects, embed(model, objects, "embed"))
    np.save(folder / "cloud.npy", objects.points([7])[0, :, :3] * 3 + 1)
    return folder, objects


def test_a_cloud_of_the_gallery_finds_itself(bound, capsys):
    folder, objects = bound
    picture = folder / "found.png"
    main(RetrieveConfig(run=folder, query=str(folder / "cloud.npy"), top=3, picture=picture))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nearest of 60 to")
    assert lines[1].split()[1:3] == ["1.000", objects.ids[7]]
    assert len(lines) == 5 and picture.stat().st_size > 5000


def test_the_nearest_are_those_of_a_plain_sort():
    vectors = torch.nn.functional.normalize(torch.randn(40, 6), dim=1)
    scores, rows = nearest(vectors.numpy(), vectors[:3], 5)
    plain = vectors[:3] @ vectors.T
    assert rows.tolist() == plain.argsort(dim=1, descending=True)[:, :5].tolist()
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-6)
    assert nearest(vectors.numpy(), vectors[:1], 90)[1].shape == (1, 40)


def test_a_sum_is_looked_up_as_one_vector(bound, capsys):
    folder, _ = bound
    space = Space(folder)
    parts = ["a ball", str(folder / "cloud.npy"), "a plate"]
    gallery = read_gallery(folder / "gallery.npz", space.encoder)
    vector = add_embeddings([space.embed(part) for part in parts])
    wanted = gallery.ids[int((gallery.embeddings @ vector.numpy()).argmax())]
    main(RetrieveConfig(run=folder, query=parts[0], add=tuple(parts[1:]), top=1))
    assert wanted in capsys.readouterr().out


def test_a_cloud_is_named_by_the_nearest_words(bound, capsys):
    folder, _ = bound
    names = ("a", "ball", "large stick")
    query = str(folder / "cloud.npy")
    main(RetrieveConfig(run=folder, query=query, classes=names))
    said = capsys.readouterr().out.splitlines()
    space = Space(folder)
    cosines = class_features(space.frozen.text, names) @ space.embed(query)
    assert said[0] == "cloud.npy, by words alone:"
    assert [line.split("  ")[-1] for line in said[1:]] == [
        names[at] for at in cosines.argsort(descending=True)
    ]
    shares = [float(line.split("%")[0]) for line in said[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares)[::-1]
    with pytest.raises(ValueError, match=r"--classes needs two names or more"):
        main(RetrieveConfig(run=folder, query=query, classes=("ball", "ball")))


def test_what_cannot_be_looked_up_is_refused(bound, tmp_path):
    folder, _ = bound
    config = RetrieveConfig(run=folder, query="a ball")
    with pytest.raises(ValueError, match="an empty query"):
        main(replace(config, query=" "))
    with pytest.raises(ValueError, match="an empty query"):
        main(replace(config, add=("",)))
    with pytest.raises(FileNotFoundError, match=r"no cloud at .*missing.npy"):
        main(replace(config, query=str(tmp_path / "missing.npy")))
    with pytest.raises(ValueError, match=r"sea.wav: this space holds no sounds"):
        main(replace(config, query="sea.wav"))
    (tmp_path / "cloud.obj").write_text("v 0 0 0")
    with pytest.raises(ValueError, match=r"cloud.obj is a file of a kind that is not read: .npy"):
        main(replace(config, query=str(tmp_path / "cloud.obj")))
    np.save(tmp_path / "few.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"clouds of 3 points are too small for 8 groups"):
        main(replace(config, query=str(tmp_path / "few.npy")))
    np.save(tmp_path / "image.npy", np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r"image.npy is no cloud: one array \(points, 3 or 6\)"):
        main(replace(config, query=str(tmp_path / "image.npy")))
    with pytest.raises(FileNotFoundError, match=r"no model in .*config.json is missing"):
        main(replace(config, run=tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no gallery at"):
        main(replace(config, index=tmp_path / "none.npz"))
    with pytest.raises(ValueError, match=r"--top 0"):
        replace(config, top=0)
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"text.npy is no plain array"):
        main(replace(config, query=str(tmp_path / "text.npy")))


def test_a_gallery_of_another_encoder_is_refused(bound, tmp_path):
    folder, _ = bound
    with np.load(folder / "gallery.npz") as stored:
        arrays = dict(stored)
    assert str(arrays["encoder"]) == sha256(folder / "model.safetensors")
    np.savez(tmp_path / "other.npz", **arrays | {"encoder": np.array("0" * 64)})
    with pytest.raises(ValueError, match=r"other.npz was embedded by another encoder"):
        main(RetrieveConfig(run=folder, query="a ball", index=tmp_path / "other.npz"))
    np.savez(tmp_path / "empty.npz", encoder=arrays["encoder"])
    with pytest.raises(ValueError, match=r"empty.npz is no gallery"):
        main(RetrieveConfig(run=folder, query="a ball", index=tmp_path / "empty.npz"))


def test_a_cloud_without_colour_is_refused_where_colour_is_needed(bound, tmp_path):
    folder, _ = bound
    space = Space(folder)
    assert space.cloud(folder / "cloud.npy").shape == (1, 256, 6)
    coloured = np.random.default_rng(0).random((256, 6))
    np.save(tmp_path / "coloured.npy", coloured)
    assert not space.cloud(tmp_path / "coloured.npy")[..., 3:].any()  # it never saw any
    space.sizes = space.sizes | {"colour": True}
    assert space.cloud(tmp_path / "coloured.npy")[0, :, 3:].numpy() == pytest.approx(
        coloured[:, 3:]
    )
    with pytest.raises(ValueError, match=r"cloud.npy has no colour, shape \(256, 3\)"):
        space.embed(str(folder / "cloud.npy"))


def test_weights_of_another_size_are_refused(bound, tmp_path):
    folder, _ = bound
    sizes = json.loads((folder / "config.json").read_text())
    write = tmp_path / "config.json"
    write.write_text(json.dumps(sizes | {"output": 12}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"head.2.weight \(16, 48\) instead of \(12, 48\)"):
        Space(tmp_path)
    write.write_text("{}")
    with pytest.raises(ValueError, match=r"is not of a model that python -m train.pointbind wrote"):
        Space(tmp_path)
