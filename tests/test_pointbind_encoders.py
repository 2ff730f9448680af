"""Point-Bind's encoders and their way into the joint space, against the published numbers."""

from functools import cache

import numpy as np
import pytest
import torch

from tests.golden import golden, golden_json
from tests.golden_pointbind import close, normal, state
from train.models.i2pmae import (
    I2PMAE,
    far_apart,
    farthest_points_off_origin,
    nearest_in_order,
)
from train.models.pointbert import PointBERT, farthest_points
from train.models.pointbind import PointBind, cloud_features, split_published


@cache
def published(name: str):
    meta, arrays = golden(f"pointbind_{name}")
    made = {
        "i2pmae": lambda: PointBind(I2PMAE(), 384),
        "pointbert": lambda: PointBind(PointBERT(channels=3), 768),
    }
    model = made[name]().eval()
    assert model.load_published(state(meta["tensors_needed"], meta["seed"])) == {}
    clouds = torch.from_numpy(golden("pointbind_i2pmae")[1]["points"])
    kept: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda _module, _args, out: kept.update({name: out})

    encoder = model.point_encoder
    hooks = [encoder.norm.register_forward_hook(keep("norm_tokens_first8"))]
    if name == "i2pmae":
        parts = encoder.h_encoder
        for level in range(3):
            blocks = parts.encoder_blocks[level]["blocks"]
            for part, module in {
                "token_embed": parts.token_embed[level],
                "pos_embed": parts.encoder_pos_embeds[level],
                "block0": blocks[0],
                "encoder": blocks[-1],
            }.items():
                hooks.append(module.register_forward_hook(keep(f"{part}_level{level}_first8")))
    with torch.no_grad():
        kept["embedding_1024"] = model(clouds)  # the one forward pass that the tests share
    for hook in hooks:
        hook.remove()
    return arrays, model, clouds, kept


def tiny() -> PointBind:
    torch.manual_seed(0)
    encoder = I2PMAE(
        groups=(16, 8, 4),
        group_sizes=(6, 4, 3),
        widths=(12, 24, 36),
        depths=(1, 1, 1),
        radii=(0.3, 0.6, 1.0),
        heads=2,
        patch_width=8,
    )
    return PointBind(encoder, 36, middle=10, output=14).eval()


def test_farthest_points_and_neighbours_are_those_of_the_published_operations():
    _, arrays = golden("pointbind_geometry")
    points, grid = (torch.from_numpy(arrays[name])[None] for name in ("points", "grid"))
    assert np.array_equal(farthest_points_off_origin(points, 90)[0], arrays["fps90_skip"])
    assert np.array_equal(farthest_points(points, 90)[0], arrays["fps90_noskip"])
    assert np.array_equal(farthest_points(points, 90, 5)[0], arrays["fps90_noskip_start5"])
    assert np.array_equal(farthest_points(grid, 9)[0], arrays["grid_fps9_noskip"])
    centres = points[:, arrays["fps90_skip"][:24]]
    assert np.array_equal(nearest_in_order(centres, points, 8)[0], arrays["knn8_idx"])
    assert np.array_equal(nearest_in_order(grid, grid, 5)[0], arrays["grid_knn5_idx"])


def test_points_near_the_origin_are_never_chosen_but_first():
    points = torch.zeros(1, 6, 3)
    points[0, 4:] = torch.tensor([[0.5, 0, 0], [0, 0.9, 0]])
    points[0, 3, 0] = 0.0316  # squared: 9.99e-4
    assert farthest_points_off_origin(points, 3)[0].tolist() == [0, 5, 4]
    assert farthest_points_off_origin(points[:, :4], 3)[0].tolist() == [0, 0, 0]


def test_tokens_see_only_centres_within_the_radius():
    centres = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0], [0.5, 0, 0]]])
    assert (far_apart(centres, 0.25)[0, 0] < 0).int().tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]


def test_sizes_are_the_published_ones():
    counts = golden_json("pointbind_full_state_dicts")["counts"]
    with torch.device("meta"):
        encoders = {"i2pmae": I2PMAE(), "pointbert": PointBERT(channels=3)}
    for name, encoder in encoders.items():
        assert sum(p.numel() for p in encoder.parameters()) == counts[f"{name}_encoder"]


def test_i2pmae_groups_are_the_published_ones():
    arrays, model, points, _ = published("i2pmae")
    below = points
    for level, (centres, near) in enumerate(model.point_encoder.group(points)):
        assert np.array_equal(near, arrays[f"knn_idx_level{level}"]), level
        assert torch.equal(centres, below[:, : centres.shape[1]]) or level == 0
        below = centres
    chosen = farthest_points_off_origin(points, 512)
    assert np.array_equal(chosen, arrays["fps_idx_level0"])


@pytest.mark.parametrize("name", ["i2pmae", "pointbert"])
@torch.no_grad()
def test_embeddings_equal_the_published_numbers(name):
    arrays, model, _, kept = published(name)
    close(kept["embedding_1024"], arrays["embedding_1024"], "embedding")
    torch.testing.assert_close(kept["embedding_1024"].norm(dim=-1), torch.ones(2))
    for part in kept.keys() - {"embedding_1024"}:
        close(kept[part][:, :8], arrays[part], "feature")
    tokens = kept["norm_tokens_first8"]
    feature = cloud_features(lambda _: tokens, torch.zeros(2, 1, 3))
    if name == "i2pmae":
        feature = tokens.mean(dim=1) + tokens.amax(dim=1)
    close(feature, arrays["encoder_feature"], "feature")
    close(feature @ model.pc_projection, arrays["projection_512"], "feature")
    close(model.project(feature), arrays["head_prenorm_1024"], "feature")


def test_pointbert_patches_are_the_published_ones():
    arrays, model, points, _ = published("pointbert")
    centres, patches = model.point_encoder.group(points)
    close(centres, arrays["centers"], "embedding")
    squares = patches.double().square().sum(dim=(2, 3))
    np.testing.assert_allclose(squares, arrays["neighborhood_sq_sum"], rtol=1e-6)


def test_colour_is_not_shown_to_an_encoder_of_positions():
    model, points = tiny(), torch.rand(2, 64, 6)
    torch.testing.assert_close(model(points), model(points[..., :3]))


def test_the_files_of_point_bind_and_of_point_llm_hold_the_same_names():
    names = golden_json("pointbind_full_state_dicts")["state_dicts"]
    empty = torch.zeros(())
    bind = next(value for name, value in names.items() if name.startswith("bind"))
    whole = dict.fromkeys([*names["pointbind_pointbert.pt"], *bind], empty)
    point, towers = split_published(whole)
    later = next(value for name, value in names.items() if name.startswith("imagebind_w3D"))
    other = dict.fromkeys([*later, *(f"{name}" for name in towers)], empty)
    again, same = split_published(other)
    assert again.keys() == point.keys() - {"logit_scale"}
    assert same.keys() == towers.keys()
    with torch.device("meta"):
        own = PointBind(PointBERT(channels=3), 768).state_dict()
    assert len(own) == len(point) - 1  # the scale behind the head is 1 and not kept


def test_loading_names_every_bad_tensor_and_loads_nothing():
    model = tiny()
    whole = {
        name.replace("head.", "bind.modality_head_point."): value + 1
        for name, value in model.state_dict().items()
    }
    before = model.pc_projection.clone()
    with pytest.raises(ValueError, match=r"1 tensors belong neither .*: strange"):
        model.load_published(whole | {"strange": before})
    bad = whole | {"pc_projection": torch.zeros(3, 4)}
    del bad["point_encoder.norm.bias"]
    with pytest.raises(ValueError, match=r"missing \(point_encoder.norm.bias\).*\(3, 4\)"):
        model.load_published(bad)
    assert torch.equal(model.pc_projection, before)
    towers = model.load_published(whole | {"bind.modality_heads.text.proj.0.bias": before})
    assert list(towers) == ["modality_heads.text.proj.0.bias"]
    assert torch.equal(model.pc_projection, before + 1)


def test_the_head_after_recipe_features_equals_the_published_numbers():
    meta, arrays = golden("pointbind_imagebind_tiny")
    weights = {
        name.replace("bind.modality_head_point.", ""): value
        for name, value in state(meta["tensors"], meta["seed"]).items()
        if name.startswith("bind.modality_head_point.")
    }
    model = tiny()
    head = PointBind(model.point_encoder, 36).eval().head
    head.load_state_dict(weights)
    given = normal(meta["point_input"]["name"], meta["point_input"]["shape"], meta["seed"])
    close(head(given), arrays["point_head_prenorm"], "feature")


def test_a_bad_cloud_is_refused_with_its_numbers():
    with pytest.raises(ValueError, match=r"\(2, 64\): must be \(samples, points, 3\)"):
        tiny().point_encoder(torch.rand(2, 64))
    with pytest.raises(ValueError, match=r"16 centres from a cloud of 10 points"):
        tiny()(torch.rand(2, 10, 3))
