"""Any-to-3D: what the decoder learns, its distances, and the command that draws a cloud."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from probe.reconstruction import judge, unit_clouds
from tests.conftest import solids
from tests.test_pointbind import text_folder  # noqa: F401
from tests.test_retrieve import bound  # noqa: F401
from train.generate import GenerateConfig, main
from train.models.clouddecoder import apart, draw_clouds, fit_decoder, pooled, with_more
from train.pointbind_files import read_decoder, write_decoder


@pytest.fixture(scope="module")
def fitted():
    """A decoder of three solids that stand at right angles, and what it was fitted on."""
    points, labels = solids(60, 0)
    clouds = unit_clouds(points)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.eye(3, 16)[labels] + 0.02 * torch.randn(60, 16, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return fit_decoder(vectors, clouds, steps=50, seed=1), clouds, vectors


def test_the_decoder_draws_the_solid_of_a_vector_that_it_was_not_fitted_on(fitted):
    decoder, clouds, vectors = fitted
    unseen, labels = solids(30, 1)
    drawn = draw_clouds(decoder, torch.eye(3, 16)[labels], 256)
    assert drawn.shape == (30, 256, 6) and not drawn[..., 3:].any()
    assert np.linalg.norm(drawn[..., :3], axis=2).max(axis=1) == pytest.approx(1)
    near = judge(unit_clouds(drawn[..., :3]), unit_clouds(unseen)).chamfer
    mean = np.repeat(pooled(clouds, 256, 0)[None], 30, axis=0)
    other = np.roll(drawn[..., :3], 1, axis=0)
    for control in (mean, other):
        assert near.mean() < 0.7 * judge(unit_clouds(control), unit_clouds(unseen)).chamfer.mean()
    one, same, other = (fit_decoder(vectors, clouds, steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.draw.weight, same.draw.weight)
    assert not torch.equal(one.draw.weight, other.draw.weight)


def test_the_distance_is_that_of_the_reconstruction_probe():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(1, 40, 3, generator=generator), torch.rand(1, 60, 3)
    wanted = judge(ours.numpy(), theirs.numpy()).chamfer[0]
    assert apart(ours, theirs).item() == pytest.approx(wanted, abs=1e-4)
    coloured = torch.cat([ours, torch.full((1, 40, 3), 0.25)], dim=2)
    black = torch.cat([ours, torch.zeros(1, 40, 3)], dim=2)
    assert apart(coloured, black).item() == pytest.approx(0.3 * 0.25, abs=2e-4)


def test_rows_of_a_drawing_are_the_drawing(fitted):
    decoder, _, vectors = fitted
    rows = torch.tensor([3, 0, 77])
    torch.testing.assert_close(decoder(vectors[:4], rows), decoder(vectors[:4])[:, rows])


def test_more_points_stand_between_near_ones():
    cloud = np.random.default_rng(0).random((50, 6)).astype(np.float32)
    more = with_more(cloud, 180)
    assert more.shape == (180, 6)
    assert np.array_equal(more[:50], cloud)
    middles = (cloud[:, None] + cloud[None]) / 2
    for point in more[50:]:
        assert np.abs(middles - point).max(axis=2).min() < 1e-6
    assert np.array_equal(with_more(cloud, 20), cloud[:20])


def test_the_command_writes_a_cloud_and_its_picture(bound, fitted, tmp_path, capsys):  # noqa: F811
    folder, _ = bound
    config = GenerateConfig(run=folder, query="a ball", out=tmp_path / "ball.npy")
    (folder / "decoder.safetensors").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no decoder in .*--decoder-steps fits one"):
        main(config)
    write_decoder(folder, fitted[0], 256)
    assert read_decoder(folder).shape == (256, 3)
    main(config)
    said = capsys.readouterr().out
    assert said.startswith("drawn from a ball\nembedded again: cosine to the query")
    cloud = np.load(tmp_path / "ball.npy")
    assert cloud.shape == (256, 3) and cloud.dtype == np.float32
    assert (tmp_path / "ball.png").stat().st_size > 3000
    main(replace(config, add=(str(folder / "cloud.npy"),), out=tmp_path / "sum.ply"))
    written = trimesh.load(tmp_path / "sum.ply").vertices
    assert written.shape == (256, 3) and not np.allclose(written, cloud, atol=1e-3)
    with pytest.raises(ValueError, match="an empty query"):
        main(replace(config, query=""))
    with pytest.raises(ValueError, match=r"--out a.obj: must end in .npy or .ply"):
        replace(config, out=Path("a.obj"))
