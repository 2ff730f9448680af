"""Frozen spaces with more than text: CLIP and SigLIP from a folder, ImageBind from a file."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.test_pointbind import text_folder, tiny_config  # noqa: F401
from train.anchors import FrozenSpace
from train.models.imagebind import ImageBind, Size
from train.models.imagebind_inputs import image_pixels, sound_clips
from train.pointbind import main
from train.pointbind_train import sounds_of
from train.renderings import renderings
from train.retrieve import RetrieveConfig, Space
from train.retrieve import main as retrieve

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 1}
TOWERS = {name: Size(16, 1, 2) for name in ("text", "vision", "audio")}


@pytest.fixture(scope="session", params=["clip", "siglip"])
def two_towers(request, text_folder, tmp_path_factory):  # noqa: F811
    """A CLIP or SigLIP with random weights, as transformers saves it, and its vision size."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    text = SIZES | {"vocab_size": 200, "max_position_embeddings": 20}
    vision = SIZES | {"image_size": 8, "patch_size": 4}
    if request.param == "clip":
        more = {"projection_dim": 12}
        text |= more | {"eos_token_id": 2}
        config = CLIPConfig(text_config=text, vision_config=vision | more, **more)
        CLIPModel(config).save_pretrained(folder)
        crop = {"height": 8, "width": 8}
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": 8}, crop_size=crop, image_mean=MEAN, image_std=STD
        )
    else:
        text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
        size = {"height": 8, "width": 8}
        processor = SiglipImageProcessorPil(size=size, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(text_folder).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_a_picture_goes_through_the_folders_preprocessing_and_tower(two_towers):
    space = FrozenSpace(two_towers)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(3)]  # no resize
    values = torch.from_numpy(np.stack(images)).double() / 255
    values = ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2).float()
    kind = (
        CLIPModel
        if json.loads((two_towers / "config.json").read_text())["model_type"] == "clip"
        else SiglipModel
    )
    model = kind.from_pretrained(two_towers).eval()
    wanted = model.vision_model(pixel_values=values).pooler_output
    if kind is CLIPModel:
        wanted = model.visual_projection(wanted)
    found = space.image(images)
    torch.testing.assert_close(
        found, torch.nn.functional.normalize(wanted, dim=1), rtol=1e-4, atol=1e-5
    )
    assert found.shape[1] == space.image.width == space.text.width
    cloud = rng.standard_normal((100, 3)) * 0.2
    assert space.image(list(renderings(cloud, 3))).shape == (3, space.image.width)


@pytest.mark.parametrize("two_towers", ["clip"], indirect=True)
def test_clouds_are_bound_to_their_renderings_and_found_by_an_image(
    two_towers,
    tiny_config,  # noqa: F811
    tmp_path,
    capsys,
):
    config = replace(tiny_config, text_model=two_towers, views=2, decoder_steps=2)
    main(config)
    report = json.loads((config.folder / "report.json").read_text())
    named = {row["what"] for row in report["rows"]}
    assert {"retrieval mAP, renderings to cloud", "retrieval mAP, cloud to renderings"} <= named
    assert "from its renderings" in {row["what"] for row in report["generation"]}
    Image.fromarray(np.full((30, 20, 3), 200, np.uint8)).save(tmp_path / "grey.png")
    capsys.readouterr()
    query = {"query": str(tmp_path / "grey.png"), "add": ("a ball",), "top": 2}
    retrieve(RetrieveConfig(run=config.folder, **query))
    assert capsys.readouterr().out.startswith("nearest of 18 to grey.png + a ball\n  1  ")
    with pytest.raises(ValueError, match=r"text.png is no image"):
        (tmp_path / "text.png").write_text("no image")
        Space(config.folder).embed(str(tmp_path / "text.png"))
    with pytest.raises(FileNotFoundError, match=r"no image at .*none.png"):
        Space(config.folder).embed(str(tmp_path / "none.png"))


@pytest.mark.parametrize("two_towers", ["clip"], indirect=True)
def test_a_space_of_text_alone_has_no_views(tiny_config, two_towers, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=r"\(bert\) has no image tower: clouds can be bound"):
        main(replace(tiny_config, views=2))
    with pytest.raises(ValueError, match=r"a.wav: this space holds no sounds"):
        FrozenSpace(two_towers).sound(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match=r"none: there is no such folder or file"):
        FrozenSpace(tmp_path / "none")
    (two_towers / "preprocessor_config.json").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        _ = FrozenSpace(two_towers).image
    (tmp_path / "away").rename(two_towers / "preprocessor_config.json")


@pytest.fixture
def imagebind(tmp_path, monkeypatch):
    """A file as ImageBind publishes it, at toy sizes, its model, a vocabulary and two sounds."""
    monkeypatch.setattr("train.models.imagebind.HUGE", TOWERS)
    torch.manual_seed(0)
    model = ImageBind(TOWERS).eval()
    torch.save(model.state_dict(), tmp_path / "imagebind_huge.pth")
    (tmp_path / "merges.txt").write_text("#version\n" + "a b\n" * 48894)
    for name, rate in (("ball", 16_000), ("stick", 16_000), ("other", 8_000)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        wave = np.random.default_rng(rate).normal(size=rate).astype(np.float32) / 10
        wavfile.write(tmp_path / "sounds" / name / "one.wav", rate, wave)
    return tmp_path, model


@torch.no_grad()
def test_imagebinds_towers_are_its_own(imagebind):
    folder, model = imagebind
    space = FrozenSpace(folder / "imagebind_huge.pth", folder / "merges.txt")
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    heard = folder / "sounds" / "ball" / "one.wav"
    for found, wanted in (
        (space.image([picture])[0], model("vision", image_pixels(folder / "a.png")[None])[0]),
        (space.sound(heard), model("audio", sound_clips(heard)[None])[0]),
    ):
        torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=0))
    assert space.text(["a ball", "a plate"]).shape == (2, 1024)
    with pytest.raises(ValueError, match="8000 samples a second, the audio tower reads 16000"):
        space.sound(folder / "sounds" / "other" / "one.wav")
    with pytest.raises(ValueError, match=r"--merges FILE is needed besides"):
        FrozenSpace(folder / "imagebind_huge.pth")


def test_clouds_are_bound_to_imagebinds_text_images_and_sounds(
    imagebind,
    tiny_config,  # noqa: F811
    capsys,
):
    folder, _ = imagebind
    place = {"text_model": folder / "imagebind_huge.pth", "merges": folder / "merges.txt"}
    config = replace(tiny_config, **place, views=1, sounds=folder / "sounds", decoder_steps=0)
    main(config)
    rows = {
        row["what"]: row for row in json.loads((config.folder / "report.json").read_text())["rows"]
    }
    assert rows["retrieval mAP, sound to cloud"]["objects"] == 2
    capsys.readouterr()
    heard = str(folder / "sounds" / "ball" / "one.wav")
    retrieve(RetrieveConfig(run=config.folder, query=heard, add=("a plate",), top=1))
    assert capsys.readouterr().out.startswith("nearest of 18 to one.wav + a plate")
    with pytest.raises(ValueError, match=r"no CLASS/\*.wav for any class"):
        sounds_of(folder / "none", FrozenSpace(*place.values()), ["ball"])


def test_towers_of_another_size_are_named(imagebind, monkeypatch):
    folder, _ = imagebind
    monkeypatch.setattr("train.models.imagebind.HUGE", TOWERS | {"vision": Size(24, 1, 2)})
    space = FrozenSpace(folder / "imagebind_huge.pth", folder / "merges.txt")
    with pytest.raises(ValueError, match=r"ImageBind: .*vision.* instead of"):
        _ = space.image


def test_a_silent_class_is_left_out_of_the_loss_on_sounds(solids_folder):
    from tests.test_pointbind import small, words_apart
    from train.data.modelnet import modelnet
    from train.models.pointbind import contrastive_loss
    from train.pointbind_train import BindBatches, BindObjective, Sounds

    vectors = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    sounds = Sounds(vectors, np.array([0, 0, 2]))
    kinds = sounds.by_class(3)
    torch.testing.assert_close(
        kinds[0], torch.nn.functional.normalize(vectors[0] + vectors[1], dim=0)
    )
    torch.testing.assert_close(kinds[1:], torch.stack([torch.zeros(16), vectors[2]]))
    objects, model = modelnet(solids_folder).train, small().eval()
    options = {"anchors": "class", "size": 12, "seed": 0}
    batch = BindBatches(model, objects, words_apart(), sounds=sounds, **options)(0)
    told = batch.anchors[1].any(dim=1)
    assert 0 < told.sum() < 12
    with torch.no_grad():
        found = BindObjective(model)(batch)["loss"]
        alone = BindObjective(model)(replace(batch, anchors=batch.anchors[:1]))["loss"]
        tokens = model.point_encoder.encode(batch.centres, batch.patches)
        from train.models.pointbind import joined

        clouds = torch.nn.functional.normalize(model.project(joined(tokens)), dim=1)
        heard = contrastive_loss(clouds[told], batch.anchors[1][told], model.logit_scale.exp())
    assert found.item() == pytest.approx(alone.item() + heard.item(), rel=1e-5)
