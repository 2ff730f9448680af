"""The recipe that binds clouds to text: anchors, batches, what is learnt, and its bad inputs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from tests.conftest import TINY
from train.anchors import PACKAGE, TextAnchor, imagebind_text, packaged_folder, text_anchor
from train.data.modelnet import modelnet
from train.models.pointbert import PointBERT
from train.models.pointbind import PointBind
from train.pointbind import PointBindConfig, main, unseen_classes
from train.pointbind_report import measure, table
from train.pointbind_train import BindBatches, BindObjective, augmented, settle_norms
from train.zeroshot import TEMPLATES

WORDS = sorted({word for text in TEMPLATES for word in text.lower().replace(".", " .").split()})


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    """A sentence model with random weights, as transformers saves it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("text")
    words = ["[PAD]", "[UNK]", "ball", "stick", "plate", "this", "is", *WORDS]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocabulary), num_hidden_layers=1, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


def words_apart(width: int = 16) -> TextAnchor:
    """A space where a text stands where the class named in it stands."""
    places = torch.nn.functional.normalize(
        torch.randn(3, width, generator=torch.Generator().manual_seed(0)), dim=1
    )

    def encode(texts: list[str]) -> torch.Tensor:
        kinds = [next((k for k, n in enumerate(NAMES) if n in text), 0) for text in texts]
        return places[kinds]

    return TextAnchor("words", width, encode)


NAMES = ("ball", "stick", "plate")


def small(output: int = 16) -> PointBind:
    torch.manual_seed(0)
    encoder = PointBERT(width=24, depth=1, heads=2, groups=16, group_size=8, patch_width=16)
    return PointBind(encoder, 48, middle=24, output=output, dropout=0.0)


def test_a_sentence_is_the_mean_of_its_tokens_whatever_stands_beside_it(text_folder):
    anchor = text_anchor(text_folder)
    texts = ["a ball", "a photo of the large stick .", "plate"]
    together = anchor(texts)
    torch.testing.assert_close(together, torch.cat([anchor([text]) for text in texts]))
    assert together.shape == (3, anchor.width) == (3, 16)
    model = BertModel.from_pretrained(text_folder)
    ids = torch.tensor([PreTrainedTokenizerFast.from_pretrained(text_folder)("a ball").input_ids])
    mean = model.eval()(input_ids=ids).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(together[:1], torch.nn.functional.normalize(mean, dim=1))


def test_the_text_tower_of_a_clip_folder_is_read(text_folder, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "projection_dim": 12}
    text = sizes | {"vocab_size": 200, "max_position_embeddings": 20, "eos_token_id": 2}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast.from_pretrained(text_folder).save_pretrained(tmp_path)
    anchor = text_anchor(tmp_path)
    found = anchor(["a ball"])
    ids = PreTrainedTokenizerFast.from_pretrained(tmp_path)("a ball", return_tensors="pt")
    pooled = model.text_model(input_ids=ids.input_ids).pooler_output
    wanted = torch.nn.functional.normalize(model.text_projection(pooled), dim=1)
    torch.testing.assert_close(found, wanted)
    assert anchor.width == 12


def test_the_packaged_sentence_model_gives_its_published_similarities():
    try:
        packaged_folder()
    except FileNotFoundError:
        pytest.skip(f"the package {PACKAGE} is not installed")
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = text_anchor()(texts)
    # From the documentation of sentence-transformers.
    wanted = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, wanted, rtol=0, atol=2e-4)


def test_bad_text_models_are_named(text_folder, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"text model .*: no config.json, tokenizer.json"):
        text_anchor(tmp_path)
    with pytest.raises(ValueError, match="an empty text has no embedding"):
        text_anchor(text_folder)(["a ball", " "])
    (text_folder / "1_Pooling").mkdir()
    (text_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(ValueError, match="pools otherwise than by the mean"):
        text_anchor(text_folder)
    (text_folder / "1_Pooling" / "config.json").unlink()
    (text_folder / "1_Pooling").rmdir()
    monkeypatch.setattr("train.anchors.PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="no text model: pip install"):
        text_anchor()


def test_turned_patches_are_the_patches_of_the_turned_cloud():
    encoder = small().point_encoder
    points = torch.rand(3, 200, 6, generator=torch.Generator().manual_seed(1)) - 0.5
    singles = torch.cat([torch.zeros(3, 200, 1, 3), points[:, :, None, 3:]], dim=-1)
    moved, _ = augmented(points[..., :3], singles, np.random.default_rng(5))
    centres, patches = augmented(*encoder.group(points), np.random.default_rng(5))
    theirs = encoder.group(torch.cat([moved, points[..., 3:]], dim=-1))
    torch.testing.assert_close(centres, theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(patches, theirs[1], rtol=0, atol=1e-6)
    size = (moved - moved.mean(1, keepdim=True)).norm(dim=-1)
    before = (points[..., :3] - points[..., :3].mean(1, keepdim=True)).norm(dim=-1)
    ratio = size / before
    assert ((ratio > 0.79) & (ratio < 1.26)).all()
    assert ratio.std(dim=1).max() < 1e-4  # one scale a cloud


def test_bound_clouds_are_named_by_words(solids_folder):
    data, anchor, model = modelnet(solids_folder), words_apart(), small()
    batches = BindBatches(model, data.train, anchor, anchors="both", size=30, seed=0)
    assert [len(vectors) for vectors in batches(0).anchors] == [30, 30]
    objective = BindObjective(model).train()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(25):
        optimizer.zero_grad()
        loss = objective(batches(step))["loss"]
        loss.backward()
        optimizer.step()
    settle_norms(model, batches, 4)
    rows, vectors = measure(model, anchor, data, [], seed=0)
    found = {each["what"]: each for each in rows}
    named = found["zero-shot top-1, trained classes"]
    assert named["value"] > 0.9 and named["low"] > named["chance"] == pytest.approx(1 / 3)
    assert found["linear probe on the same vectors, trained classes"]["value"] > 0.9
    for way in ("caption to cloud", "cloud to caption", "cloud to cloud of the gallery"):
        each = found[f"retrieval mAP, {way}"]
        assert each["value"] > 0.9 > 0.5 > each["chance"] > 0.3
    torch.testing.assert_close(vectors["gallery"].norm(dim=1), torch.ones(60))
    lines = table(rows, "note").splitlines()
    assert lines[0] == "note" and len(lines) == 4 + len(rows)


def test_the_scale_stays_between_one_and_a_hundred(solids_folder):
    model = small()
    batches = BindBatches(
        model, modelnet(solids_folder).train, words_apart(), anchors="class", size=4, seed=0
    )
    for wild, kept in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            model.logit_scale.fill_(wild)
        assert BindObjective(model)(batches(0))["scale"].item() == pytest.approx(kept)


def test_unseen_classes_are_drawn_and_some_are_left():
    assert unseen_classes(10, 0, 0) == []
    assert len(unseen_classes(60, 0.2, 0)) == 12
    assert len(unseen_classes(10, 0.01, 0)) == 2
    assert unseen_classes(60, 0.2, 0) == unseen_classes(60, 0.2, 0) != unseen_classes(60, 0.2, 1)
    with pytest.raises(ValueError, match="leaves fewer than 2 of 3 classes"):
        unseen_classes(3, 0.5, 0)


@pytest.fixture
def tiny_config(solids_folder, text_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("train.config.NANO", TINY)
    sizes = {"steps": 4, "batch_size": 6, "save_every": 2, "unseen": 0.0, "dropout": 0.1}
    sizes["decoder_steps"] = 3
    counts = {"train_per_class": 0, "gallery_per_class": 6, "query_per_class": 4}
    return PointBindConfig(
        data="modelnet",
        data_root=solids_folder,
        text_model=text_folder,
        out=tmp_path / "bound",
        **sizes,
        **counts,
    )


def test_the_same_command_gives_the_same_numbers_and_goes_on(tiny_config, tmp_path, monkeypatch):
    main(tiny_config)
    folder = tiny_config.folder
    first = (folder / "model.safetensors").read_bytes()
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"][0]["objects"] == 12
    first_decoder = (folder / "decoder.safetensors").read_bytes()
    assert (folder / "report.md").read_text().count("\n") == 4 + len(report["rows"]) + 5 + len(
        report["generation"]
    )
    drawn = {row["what"]: row for row in report["generation"]}
    gaps = {name: row["chamfer"]["value"] for name, row in drawn.items() if name != "chance"}
    assert min(gaps, key=gaps.get) == "control: the object itself"
    assert all(
        row[key]["low"] - 1e-9 <= row[key]["value"] <= row[key]["high"] + 1e-9
        for name, row in drawn.items()
        for key in ("chamfer", "named", "own", "precision")
        if name != "chance"
    )
    assert drawn["chance"]["named"] == pytest.approx(1 / 3)
    assert drawn["chance"]["own"] == pytest.approx(1 / 12)
    main(replace(tiny_config, out=tmp_path / "again"))
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
    assert (tmp_path / "again" / "decoder.safetensors").read_bytes() == first_decoder
    with pytest.raises(ValueError, match=r"other settings \(learning_rate was 0.001, now 0.1\)"):
        main(replace(tiny_config, learning_rate=0.1))
    plain = BindBatches.__call__

    def stopped(batches, index):
        if index == 3:
            raise KeyboardInterrupt
        return plain(batches, index)

    later = replace(tiny_config, out=tmp_path / "later")
    monkeypatch.setattr(BindBatches, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(later)
    monkeypatch.setattr(BindBatches, "__call__", plain)
    main(later)  # from step 2, where it was last kept
    assert (later.folder / "model.safetensors").read_bytes() == first


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--weights needs --merges"):
        PointBindConfig(weights=tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"--unseen 1, --dropout 0.1: both must be 0 to below 1"):
        PointBindConfig(unseen=1)
    with pytest.raises(ValueError, match=r"--steps 0, --batch-size 64"):
        PointBindConfig(steps=0)
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"--weights .*a.pt: there is no such file"):
        main(PointBindConfig(weights=tmp_path / "a.pt", merges=tmp_path / "m.txt"))
    (tmp_path / "a.pt").write_text("not a file of tensors")
    with pytest.raises(ValueError, match=r"--text-model out"):
        PointBindConfig(weights=tmp_path, merges=tmp_path, text_model=tmp_path)
    with pytest.raises(ValueError, match=r"--views -1, --decoder-steps 300: must be 0 or more"):
        PointBindConfig(views=-1)
    with pytest.raises(ValueError, match=r"a.pt"):
        main(PointBindConfig(weights=tmp_path / "a.pt", merges=tmp_path / "m.txt"))
    torch.save({"modality_trunks.text.blocks.0": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"--weights .*a.pt holds no point encoder"):
        main(PointBindConfig(weights=tmp_path / "a.pt", merges=tmp_path / "m.txt"))


def test_a_file_without_a_text_tower_cannot_name_classes(tmp_path):
    merges = tmp_path / "merges.txt"
    merges.write_text("#version\n" + "a b\n" * 48894)
    with pytest.raises(ValueError, match="the file holds no text tower of ImageBind"):
        imagebind_text({}, merges)
