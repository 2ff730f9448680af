"""train.capture on other systems: a language model from a folder, and Point-LLM."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from probe.sweep import sweep
from store import open_run
from tests.conftest import TINY
from train.capture_job import capture
from train.checkpoint import load_model, write_tensors
from train.config import CaptureConfig
from train.data.modelnet import modelnet
from train.frozen import kept_rows
from train.hosts import bindllm_files
from train.hosts.bindllm import entering, prompt, prompt_states
from train.models.bindllm import PointLLM, tuned_llm
from train.pointbind import new_model, write_model
from train.prompts import bos_id, encode_ids, prefix

MODELS: dict[str, tuple[Any, Any]] = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=320,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
        ),
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2)),
    "gpt_neox": (
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            vocab_size=320,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
    ),
}


@pytest.fixture(scope="module")
def llms(tmp_path_factory, tiny_tokenizer) -> Path:
    """A folder of each kind of language model, as transformers saves it, with a tokenizer."""
    root = tmp_path_factory.mktemp("llms")
    for name, (model, sizes) in MODELS.items():
        torch.manual_seed(0)
        model(sizes).save_pretrained(root / name)
        tiny_tokenizer.save(str(root / name / "tokenizer.json"))
    return root


def config(out, data, **more):
    common: dict[str, Any] = {
        "data": "modelnet",
        "dtype": "float32",
        "threads": 1,
        "gallery_per_class": 0,
    }
    return CaptureConfig(out=out, data_root=data, **(common | more))


def front(checkpoint, data, rows):
    """Target and projector's output of the gallery's first objects, and the prefix's tokens."""
    model, tokenizer, _ = load_model(checkpoint)
    objects = modelnet(data).gallery
    cloud = torch.from_numpy(objects.points(range(rows))[:, kept_rows(objects, TINY.points)])
    with torch.no_grad():
        target = model.encode(cloud)
        return target, model.projector(target), prefix(tokenizer, TINY.queries)


@pytest.mark.parametrize("name", MODELS)
def test_point_tokens_pass_through_a_language_model_from_a_folder(
    name, llms, tmp_path, tiny_checkpoint, solids_folder
):
    settings = {"checkpoint": tiny_checkpoint, "llm": llms / name}
    capture(config(tmp_path / "run", solids_folder, **settings))
    run = open_run(tmp_path / "run")
    model, sizes = MODELS[name]
    depth, width = sizes.num_hidden_layers, sizes.hidden_size
    assert run.variants == [name] and run.layers == list(range(depth + 1)) and run.complete
    proofs = json.loads((tmp_path / "run/run.json").read_text())["proofs"][name]
    assert len(proofs) >= 15
    target, tokens, before = front(tiny_checkpoint, solids_folder, 3)
    stored = run.hidden(name)
    np.testing.assert_allclose(run.target()[:3], target, atol=1e-6)
    if name == "llama":  # wider: angles and distances are kept, lengths are the LLM's own
        given = torch.from_numpy(stored.sel(layer=0)[:3].values).flatten(0, 1)
        gram, own = given @ given.T, tokens.flatten(0, 1) @ tokens.flatten(0, 1).T
        torch.testing.assert_close(gram / gram.trace(), own / own.trace(), atol=1e-6, rtol=1e-4)
    if name == "gpt2":  # as wide: nothing stands between
        llm = model.from_pretrained(llms / name)
        ids = torch.tensor(before.input_ids)
        embeds = llm.get_input_embeddings()(ids).detach().expand(3, -1, -1).clone()
        embeds[:, before.point_start :] = tokens
        with torch.no_grad():
            theirs = llm(inputs_embeds=embeds, output_hidden_states=True).hidden_states
        for layer in (0, 1):
            expected = theirs[layer][:, before.point_start :].numpy()
            np.testing.assert_allclose(stored.sel(layer=layer)[:3], expected, atol=1e-5)
    assert stored.shape[-1] == width
    if name == "gpt_neox":
        assert set(sweep(run, k=(1,)).layer.values) == set(run.layers)


def test_a_given_map_is_what_stands_before_the_language_model(
    llms, tmp_path, tiny_checkpoint, solids_folder
):
    weight, bias = torch.randn(48, 32), torch.randn(48)
    write_tensors(tmp_path / "map.safetensors", {"weight": weight, "bias": bias})
    settings = {"checkpoint": tiny_checkpoint, "llm": llms / "llama", "layers": "0"}
    settings |= {"llm_map": tmp_path / "map.safetensors"}
    capture(config(tmp_path / "run", solids_folder, **settings))
    _, tokens, _ = front(tiny_checkpoint, solids_folder, 3)
    stored = open_run(tmp_path / "run").hidden("llama").sel(layer=0)[:3].values
    np.testing.assert_allclose(stored, tokens @ weight.T + bias, atol=1e-4)
    write_tensors(tmp_path / "map.safetensors", {"weight": weight.T.contiguous()})
    with pytest.raises(ValueError, match=r"wanted weight \(48, 32\)"):
        capture(config(tmp_path / "other", solids_folder, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"llm_map": Path("map")}, "--llm-map goes with --llm"),
        ({"llm": Path("a"), "trained": (Path("b"),)}, "belongs to the other LLM"),
        ({"cache": True}, "MiniGPT-3D has no visual cache"),
        ({"host": "bindllm", "llm": Path("a")}, "takes no --llm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CaptureConfig(**settings)


def test_a_folder_without_a_language_model_is_refused(tmp_path, tiny_checkpoint, solids_folder):
    wrong = config(tmp_path / "run", solids_folder, llm=tmp_path, checkpoint=tiny_checkpoint)
    with pytest.raises(FileNotFoundError, match="give a folder with a causal"):
        capture(wrong)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def point_llm(llms, tmp_path_factory) -> Path:
    """A Point-LLM with random weights and open gates, as train.pointllm writes it."""
    folder = tmp_path_factory.mktemp("point_llm")
    bind = folder / "bind"
    bind.mkdir()
    torch.manual_seed(1)
    write_model(bind, new_model(TINY, 12, 0.0), {"sizes": asdict(TINY), "output": 12})
    model = PointLLM(tuned_llm(LlamaForCausalLM.from_pretrained(llms / "llama")), space=12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "gates" in name:
                parameter.normal_(std=0.5)
    (folder / "run").mkdir()
    (folder / "run" / "llm").symlink_to(llms / "llama")
    keys = torch.nn.functional.normalize(torch.randn(20, 12), dim=1)
    bindllm_files.save(folder / "run", model, bind, keys, {"space": 12, "norm": "layer"})
    return folder / "run"


@pytest.mark.parametrize("cache", [False, True])
def test_point_llm_is_captured_at_its_prompt_with_what_enters_it(
    cache, point_llm, tmp_path, solids_folder
):
    settings = {"host": "bindllm", "checkpoint": point_llm, "cache": cache}
    capture(config(tmp_path / "run", solids_folder, **settings))
    run, terms = open_run(tmp_path / "run"), open_run(tmp_path / "run/injected")
    assert run.layers == terms.layers == [1, 2, 3] and run.variants == ["pointllm"]
    loaded = bindllm_files.load(point_llm)
    cloud = torch.from_numpy(modelnet(solids_folder).gallery.points(range(3)))
    with torch.no_grad():
        vectors, shown = bindllm_files.vectors_of(loaded, cloud, cache)
    assert cache != torch.allclose(vectors, shown, atol=1e-3)
    asked = encode_ids(loaded.tokenizer, prompt("What is this?"))
    ids = torch.tensor([bos_id(loaded.tokenizer), *asked])
    states = prompt_states(loaded.model, ids, shown, [1, 2, 3])
    added = entering(loaded.model, shown, [1, 2, 3])
    for layer in run.layers:
        kept = run.hidden("pointllm").sel(layer=layer)[:3]
        np.testing.assert_allclose(kept, states[layer], atol=1e-5)
        kept = terms.hidden("pointllm").sel(layer=layer)[:3, 0]
        np.testing.assert_allclose(kept, added[layer], atol=1e-5)
    target = run.target()[:3].values
    np.testing.assert_allclose(target, vectors[:, None].expand(-1, len(ids), -1), atol=1e-5)
    np.testing.assert_allclose(terms.target()[:3], target[:, :1], atol=1e-6)
    proofs = json.loads((tmp_path / "run/run.json").read_text())["proofs"]["pointllm"]
    assert "the same for every object" in proofs["layer 0"] and "block 1" in proofs["injected"]
    assert set(sweep(run, k=(1,)).layer.values) == {1, 2, 3}


def test_point_llm_has_no_layer_0_and_no_missing_part(point_llm, tmp_path, solids_folder):
    settings = {"host": "bindllm", "checkpoint": point_llm}
    with pytest.raises(ValueError, match="Point-LLM's layers begin at 1"):
        capture(config(tmp_path / "run", solids_folder, layers="0-2", **settings))
    settings["checkpoint"] = tmp_path
    with pytest.raises(FileNotFoundError, match=r"holds neither point_llm.json.* nor Point-LLM's"):
        capture(config(tmp_path / "run", solids_folder, **settings))
