"""The recipe of Point-LLM: what it is shown, what it goes on from, and what it reports."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import CLASSES, TINY
from train import anchors, pointllm_train
from train.anchors import TextAnchor
from train.config import Stage2Config
from train.data.load import load_data
from train.data.objects import Objects
from train.hosts import bindllm_files
from train.hosts.bindllm import prompt
from train.models.bindllm import PointLLM, VisualCache, tuned_llm
from train.pointbind import new_model, write_model
from train.pointllm import PointLLMConfig, Recipe, anchor_vectors, load, main, partners, scored
from train.pointllm_train import (
    CAPTION,
    TalkBatches,
    TalkObjective,
    encode,
    train_tokenizer,
)
from train.prompts import UNLABELLED
from train.talk import TalkConfig, read_cloud
from train.talk import main as talk
from train.zeroshot import class_features

SPACE = 12


def words(texts: list[str]) -> torch.Tensor:
    """A space where a text stands near the class named in it."""
    drawn = torch.randn(4, SPACE, generator=torch.Generator().manual_seed(0))
    kinds = [next((at for at, name in enumerate(CLASSES) if name in text), 3) for text in texts]
    own = torch.tensor([len(text) % 7 for text in texts])[:, None] * drawn[3] / 20
    return drawn[kinds] + own


@pytest.fixture
def space(monkeypatch):
    anchor = TextAnchor("words", SPACE, words)
    monkeypatch.setattr(anchors, "text_anchor", lambda folder=None: anchor)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
    tiny = LlamaConfig(
        vocab_size=1024, num_hidden_layers=2, bos_token_id=0, eos_token_id=1, **sizes
    )
    monkeypatch.setattr(pointllm_train, "NANO_LLAMA", tiny)
    return anchor


@pytest.fixture(scope="module")
def bound(tmp_path_factory, solids_folder) -> Path:
    """A Point-Bind with random weights and its report, as train.pointbind leaves them."""
    folder = tmp_path_factory.mktemp("bound")
    torch.manual_seed(0)
    sizes = {"sizes": asdict(TINY), "output": SPACE, "text_model": None}
    write_model(folder, new_model(TINY, SPACE, 0.0), sizes)
    data = solid_data(solids_folder)
    settings = {"data": "modelnet", "seed": 0}
    settings |= {f"{split}_per_class": 0 for split in ("train", "gallery", "query")}
    report = {"config": settings, "unseen_classes": ["plate"]}
    report["hashes"] = {"data": data.query.fingerprint()}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def solid_data(root):
    counts = {f"{split}_per_class": 0 for split in ("train", "gallery", "query")}
    return load_data(Stage2Config(data="modelnet", data_root=root, **counts))


def config(bound, data, out, **more):
    steps = {"language_steps": 2, "pretrain_steps": 3, "finetune_steps": 2, "batch_size": 4}
    return PointLLMConfig(
        pointbind=bound, data_root=data, out=out, **(steps | {"save_every": 1} | more)
    )


def test_the_recipe_trains_writes_and_measures(space, bound, solids_folder, tmp_path, capsys):
    main(config(bound, solids_folder, tmp_path / "run"))
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "complete" and record["anchor"] == "words"
    rows = {(row["what"], row["classes"]): row for row in record["rows"]}
    assert len(rows) == 10 and all(
        0 <= row["low"] <= row["value"] <= row["high"] <= 1 for row in rows.values()
    )
    assert rows["clouds", "seen as clouds"]["objects"] == 20
    assert rows["clouds", "never seen as clouds"]["chance"] == 1  # one class only
    assert "| clouds | never seen as clouds |" in capsys.readouterr().out
    loaded = bindllm_files.load(tmp_path / "run")
    assert loaded.cache is not None and len(loaded.cache) == 2 * 60
    assert not loaded.colour
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).standard_normal((200, 3)))
    asked = ("What is this?", "What colour is it?")
    how = TalkConfig(run=tmp_path / "run", cloud=tmp_path / "cloud.npy", question=asked, cache=True)
    talk(how)
    assert [line for line in capsys.readouterr().out.splitlines() if line in asked] == [*asked]
    with pytest.raises(FileExistsError, match="complete run"):
        main(config(bound, solids_folder, tmp_path / "run"))


def test_an_interrupted_training_ends_with_the_same_weights_and_saw_no_cloud(
    space, bound, solids_folder, tmp_path, monkeypatch
):
    def never(*_):
        raise AssertionError("a cloud was read")

    monkeypatch.setattr("train.pointllm.measure", lambda *_: [])
    whole, fit = config(bound, solids_folder, tmp_path / "whole"), Recipe._fit
    main(whole)

    def stop(self, phase, *rest):
        if phase == "finetune":
            raise KeyboardInterrupt
        fit(self, phase, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Objects, "points", never)
        patch.setattr(Recipe, "_fit", stop)
        with pytest.raises(KeyboardInterrupt):
            main(replace(whole, out=tmp_path / "cut"))
    with pytest.raises(ValueError, match="finetune_steps was 2, now 9"):
        main(replace(whole, out=tmp_path / "cut", finetune_steps=9))
    main(replace(whole, out=tmp_path / "cut"))
    for name in ("point_llm.safetensors", "llm/model.safetensors", "keys.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_given_llama_takes_the_place_of_the_small_one(
    space, bound, solids_folder, tmp_path, tiny_tokenizer, monkeypatch
):
    monkeypatch.setattr("train.pointllm.measure", lambda *_: [])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=320, num_hidden_layers=3, **sizes))
    llm.save_pretrained(tmp_path / "llm")
    tiny_tokenizer.save(str(tmp_path / "llm/tokenizer.json"))
    main(config(bound, solids_folder, tmp_path / "run", llm=tmp_path / "llm"))
    loaded = bindllm_files.load(tmp_path / "run")
    kept, own = loaded.model.body.state_dict(), llm.state_dict()
    weight = "model.layers.1.mlp.up_proj"
    assert torch.equal(kept[f"{weight}.base_layer.weight"], own[f"{weight}.weight"])
    assert not (tmp_path / "run/training/language").exists()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, solids_folder) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return train_tokenizer(solid_data(solids_folder).train, path)


def test_answers_are_learnt_and_prompts_are_not(tokenizer):
    each = encode(tokenizer, "What is this?", "This is a ball.")
    learnt = [at for at, label in enumerate(each.labels) if label != UNLABELLED]
    assert learnt == list(range(learnt[0], len(each.labels)))
    said = [each.input_ids[at] for at in learnt]
    assert tokenizer.decode(said[:-1]) == " This is a ball." and said[-1] == 1
    asked = tokenizer.decode(each.input_ids[1 : learnt[0]], skip_special_tokens=False)
    assert asked == prompt("What is this?") and learnt[0] < 9  # two tokens around the question
    whole = encode(tokenizer, CAPTION, "A ball.", whole=True)
    assert whole.labels == whole.input_ids


def test_a_batch_depends_on_its_number_and_shows_each_object_its_own_vector(
    tokenizer, solids_folder, space
):
    data = solid_data(solids_folder).train
    vectors = anchor_vectors(space, class_features(space, data.class_names), data)
    assert vectors.shape == (2, len(data), SPACE)
    batches = TalkBatches("pretrain", data, vectors, tokenizer, size=5, seed=3)
    one, again, other = batches(1), batches(1), batches(2)
    assert torch.equal(one.input_ids, again.input_ids) and torch.equal(one.vectors, again.vectors)
    assert not torch.equal(one.vectors, other.vectors)
    for ids, vector in zip(one.input_ids, one.vectors, strict=True):
        said = tokenizer.decode(ids.tolist())
        name = next(at for at, name in enumerate(CLASSES) if name in said)
        same = torch.from_numpy(data.labels) == name
        near = (vectors[:, same] - vector / vector.norm()).norm(dim=-1)
        assert near.min() < 1e-3 and (vectors[:, ~same] - vector).norm(dim=-1).min() > 1e-3
    with pytest.raises(ValueError, match="of at most 8"):
        TalkBatches("finetune", data, vectors, tokenizer, size=5, seed=3, context=8)


def test_a_llama_says_the_same_with_the_room_for_its_tuning():
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=2, **sizes)).eval()
    model, ids = PointLLM(tuned_llm(base), space=SPACE).eval(), torch.arange(9)[None]
    with torch.no_grad():
        wanted = base(input_ids=ids).logits
        shown = model(input_ids=ids, vectors=torch.randn(1, SPACE)).logits
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-6)  # gates are closed
    assert isinstance(TalkObjective(base).model, LlamaForCausalLM)


def test_the_cache_is_its_closed_form_and_reads_an_index_of_faiss(tmp_path):
    import faiss

    rng = np.random.default_rng(0)
    keys = rng.standard_normal((40, SPACE)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    asked = rng.standard_normal((3, SPACE)).astype(np.float32)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    expected = []
    for vector in asked.astype(np.float64):
        cosine = keys @ vector
        near = np.argsort(-cosine)[:10]
        share = np.exp(20 * cosine[near])
        mean = (share / share.sum()) @ keys[near]
        drawn = 0.5 * vector + 0.5 * mean / np.linalg.norm(mean)
        expected.append(drawn / np.linalg.norm(drawn))
    found = VisualCache(torch.from_numpy(keys))(torch.from_numpy(asked))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    index = faiss.IndexFlatIP(SPACE)
    index.add(keys)
    faiss.write_index(index, str(tmp_path / "knn.index"))
    np.testing.assert_allclose(
        VisualCache.read(tmp_path / "knn.index")(torch.from_numpy(asked)), expected, atol=1e-6
    )
    faiss.write_index(faiss.IndexFlatL2(SPACE), str(tmp_path / "far.index"))
    with pytest.raises(ValueError, match="searches by distance"):
        VisualCache.read(tmp_path / "far.index")
    (tmp_path / "text.index").write_text("no index")
    with pytest.raises(ValueError, match="is no index of FAISS"):
        VisualCache.read(tmp_path / "text.index")


def test_a_cloud_that_the_encoder_cannot_read_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_cloud(tmp_path / "cloud.npy", colour=False)
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).standard_normal((50, 3)))
    assert read_cloud(tmp_path / "cloud.npy", colour=False).shape == (1, 50, 6)
    with pytest.raises(ValueError, match=r"has no colour, shape \(50, 3\)"):
        read_cloud(tmp_path / "cloud.npy", colour=True)
    (tmp_path / "text.npy").write_text("points")
    with pytest.raises(ValueError, match="is no plain array"):
        read_cloud(tmp_path / "text.npy", colour=False)


def test_every_object_has_another_partner_and_a_row_its_interval():
    other = partners(7, 0)
    assert sorted(other) == list(range(7)) and (other != np.arange(7)).all()
    row = scored("clouds", "all", np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0]))
    assert row["value"] == 0.5 and row["chance"] == 0.5 and row["unnamed"] == 0.25


def test_words_come_from_the_space_that_the_clouds_were_bound_to(
    bound, solids_folder, tmp_path, monkeypatch
):
    class Reached(Exception):
        pass

    def reached(place, merges):
        raise Reached(place, merges)

    about = json.loads((bound / "config.json").read_text())
    about |= {"text_model": "imagebind_huge.pth", "merges": "merges.gz"}
    monkeypatch.setattr("train.retrieve.read_sizes", lambda folder: about)
    monkeypatch.setattr(anchors, "FrozenSpace", reached)
    with pytest.raises(Reached) as found:
        main(PointLLMConfig(pointbind=bound, data_root=solids_folder, out=tmp_path / "out"))
    assert found.value.args == (Path("imagebind_huge.pth"), Path("merges.gz"))


def test_a_folder_of_another_kind_and_other_data_are_refused(bound, solids_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"report\.json: python -m train.pointbind writes"):
        load(config(tmp_path, solids_folder, None))
    other = tmp_path / "bound"
    other.mkdir()
    report = json.loads((bound / "report.json").read_text()) | {"hashes": {"data": "0"}}
    (other / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="are not those that"):
        load(config(other, solids_folder, None))
    with pytest.raises(ValueError, match="--finetune-steps 0: must be 1 or more"):
        PointLLMConfig(finetune_steps=0)
