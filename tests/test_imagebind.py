"""ImageBind's towers and what they read, against the published numbers."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from tests.golden import golden, golden_json
from tests.golden_pointbind import close, normal, state
from train.models.imagebind import HUGE, ImageBind, Size
from train.models.imagebind_inputs import clip_tokenizer, image_pixels, sound_clips, text_ids

MODALITIES = ("text", "vision", "audio", "depth", "thermal", "imu")


@cache
def published():
    meta, arrays = golden("pointbind_imagebind_tiny")
    config = meta["config"]
    sizes = {
        name: Size(*(config[f"{name}_{part}"] for part in ("embed_dim", "num_blocks", "num_heads")))
        for name in MODALITIES
    }
    model = ImageBind(sizes).eval()
    weights = {
        name.removeprefix("bind."): value
        for name, value in state(meta["tensors"], meta["seed"]).items()
        if "point" not in name
    }
    kept = {name for name in model.state_dict() if name.endswith(("log_logit_scale", "mask"))}
    weights |= {name: model.state_dict()[name] for name in kept}  # as their constructor makes them
    assert model.load_published(weights) == []
    return meta, arrays, model


def merges() -> Path:
    """CLIP's merges, which stand beside the goldens' data or not at all."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "tokenizers" / "clip"
    path /= "bpe_simple_vocab_16e6.txt.gz"
    if not path.exists():
        pytest.skip(f"no file of CLIP's merges: {path} is absent")
    return path


@pytest.mark.parametrize("modality", MODALITIES)
@torch.no_grad()
def test_embeddings_equal_the_published_numbers(modality):
    meta, arrays, model = published()
    if modality == "text":
        given = torch.from_numpy(arrays["text_ids"]).long()
    else:
        source = meta["inputs"][modality]
        given = normal(source["name"], source["shape"], meta["seed"])
    found = model(modality, given)
    scale = {"text": 1 / 0.07, "audio": 20, "depth": 5, "thermal": 10, "imu": 5}.get(modality, 1)
    close(found / scale, arrays[f"out_{modality}"] / scale, "embedding")


@torch.no_grad()
def test_a_film_is_averaged_over_its_clips():
    meta, arrays, model = published()
    source = meta["video_input"]
    film = normal(source["name"], source["shape"], meta["seed"])
    close(model("vision", film), arrays["out_video"], "embedding")


def test_the_scale_of_a_tower_ends_at_a_hundred():
    model = ImageBind({"text": Size(8, 1, 2)}, output=4).eval()
    after = model.modality_postprocessors["text"]
    vectors = torch.eye(4)
    torch.testing.assert_close(after(vectors).diagonal(), torch.full((4,), 1 / 0.07))
    with torch.no_grad():
        after[1].log_logit_scale.fill_(math.log(5000))
    torch.testing.assert_close(after(vectors).diagonal(), torch.full((4,), 100.0))


def test_names_shapes_and_counts_of_the_huge_model_are_the_published_ones():
    full = golden_json("pointbind_full_state_dicts")
    names = next(value for name, value in full["state_dicts"].items() if name.startswith("bind"))
    wanted = {
        name.removeprefix("bind."): tuple(shape)
        for name, shape in names.items()
        if "point" not in name
    }
    with torch.device("meta"):
        model = ImageBind()
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == wanted
    # The count by tower takes the point head's 525,312 parameters apart.
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == full["counts"]["imagebind_with_point_head"] - 525_312
    assert count == 1_200_781_057


def test_weights_of_another_size_and_strange_names_are_refused():
    small = {"text": Size(8, 1, 2), "audio": Size(8, 1, 2)}
    weights = ImageBind(small, output=4).state_dict()
    only_text = ImageBind({"text": small["text"]}, output=4)
    assert only_text.load_published(weights) == ["audio"]
    with pytest.raises(ValueError, match=r"1 not known \(modality_heads.smell.0.weight\)"):
        only_text.load_published(weights | {"modality_heads.smell.0.weight": torch.zeros(2)})
    for size, said in ((Size(16, 1, 2), "1 of width 16"), (Size(8, 3, 2), "3 of width 8")):
        with pytest.raises(
            ValueError, match=f"text tower .* 1 blocks of width 8 instead of {said}"
        ):
            ImageBind({"text": size}, output=4).load_published(weights)
    with pytest.raises(ValueError, match=r"of another shape .*\(4, 8\) instead of \(5, 8"):
        ImageBind({"text": small["text"]}, output=5).load_published(weights)
    with pytest.raises(ValueError, match="no such modality: smell; there are vision, text"):
        ImageBind({"smell": HUGE["text"]})
    with pytest.raises(ValueError, match="no tower for audio: this ImageBind has text"):
        only_text("audio", torch.zeros(1, 3, 1, 128, 204))
    with pytest.raises(ValueError, match=r"shape \(1, 5\): must be \(texts, 77\)"):
        only_text("text", torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="gives 48 patches, this tower reads 228"):
        model = ImageBind({"audio": small["audio"]}, output=4)
        model("audio", torch.zeros(1, 1, 1, 128, 50))


def test_token_ids_are_the_published_ones():
    tokenizer = clip_tokenizer(merges())
    meta, arrays = golden("pointbind_imagebind_tiny")
    assert np.array_equal(text_ids(tokenizer, meta["texts"]), arrays["text_ids"])
    assert np.array_equal(text_ids(tokenizer, [meta["long_text"]])[0], arrays["long_text_ids"])
    assert torch.equal(text_ids(tokenizer, ["a  &amp;\n b"]), text_ids(tokenizer, ["A & B"]))
    with pytest.raises(ValueError, match="an empty text has no embedding"):
        text_ids(tokenizer, ["a chair", " \n"])


def test_merges_of_another_vocabulary_are_refused(tmp_path):
    (tmp_path / "merges.txt").write_text("#version\na b\n")
    with pytest.raises(ValueError, match=r"holds 1 merges, CLIP's vocabulary has 48894"):
        clip_tokenizer(tmp_path / "merges.txt")


def test_an_image_is_cut_in_its_middle(tmp_path):
    pixels = np.zeros((224, 448, 3), np.uint8)
    pixels[:, 112:336] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = image_pixels(tmp_path / "wide.png")
    assert found.shape == (3, 224, 224)
    white = (1 - torch.tensor((0.48145466, 0.4578275, 0.40821073))) / torch.tensor(
        (0.26862954, 0.26130258, 0.27577711)
    )
    torch.testing.assert_close(found, white[:, None, None].expand(3, 224, 224))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="is no image"):
        image_pixels(tmp_path / "text.png")


def test_a_tone_is_loudest_in_its_band(tmp_path):
    seconds = np.arange(5 * 16_000) / 16_000
    wave = (0.5 * np.sin(2 * np.pi * 1000 * seconds) * 32767).astype(np.int16)
    wavfile.write(tmp_path / "tone.wav", 16_000, wave)
    clips = sound_clips(tmp_path / "tone.wav")
    assert clips.shape == (3, 1, 128, 204)

    def mel(hertz: float) -> float:
        return 1127 * math.log(1 + hertz / 700)

    band = round((mel(1000) - mel(20)) / (mel(8000) - mel(20)) * 129 - 1)
    assert clips[:, 0, :, 20:180].argmax(dim=1).sub(band).abs().max() <= 1
    # Two seconds give 198 frames, the rest is the padding of the release.
    torch.testing.assert_close(clips[..., 198:], torch.full((3, 1, 128, 6), 4.268 / 9.138))
    assert (clips[:, 0, :, 197] < 0.4).any()
    wavfile.write(tmp_path / "cd.wav", 44_100, wave)
    with pytest.raises(ValueError, match=r"cd.wav has 44100 samples a second, .* reads 16000"):
        sound_clips(tmp_path / "cd.wav")


def test_a_sound_of_8_bits_is_read_as_loud_as_of_16_and_one_without_sound_is_refused(tmp_path):
    wave = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * 16_000) / 16_000)
    for name, samples in (
        ("16", (32767 * wave).round().astype(np.int16)),
        ("8", (128 + 127 * wave).round().astype(np.uint8)),
        ("none", np.zeros(399, np.int16)),
    ):
        wavfile.write(tmp_path / f"{name}.wav", 16_000, samples)
    fine, coarse = (sound_clips(tmp_path / f"{name}.wav")[..., :198] for name in ("16", "8"))
    assert (fine.amax(dim=2) - coarse.amax(dim=2)).abs().max() < 0.01
    with pytest.raises(ValueError, match=r"none.wav holds 399 samples, one window of it takes 400"):
        sound_clips(tmp_path / "none.wav")
    with pytest.raises(FileNotFoundError, match="no sound at"):
        sound_clips(tmp_path / "nowhere.wav")
