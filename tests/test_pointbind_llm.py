"""Point-LLM: its bind network, cache and gated attention against the published numbers."""

import json
import re
import zlib
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig

from tests.golden import golden, golden_json
from tests.golden_pointbind import close, normal, state
from train.capture import capture_hidden_states, short_forward
from train.hosts import bindllm_files
from train.hosts.bindllm import entering, prompt, prompt_states, unembedding
from train.models.bindllm import (
    BindNetwork,
    PointLLM,
    VisualCache,
    finetuned,
    half_split,
    mix,
    pretrained,
    published_llm,
)
from train.models.pointbert import PointBERT
from train.models.pointbind import PointBind

MIXTURES = {
    "point": {"point": 1},
    "point_audio": {"point": 1, "audio": 0.5},
    "image": {"vision": 1},
}


def mixed(meta: dict, name: str) -> torch.Tensor:
    parts = []
    for each in MIXTURES[name]:
        source = meta["embeddings"][each]
        parts.append(source["scale"] * normal(source["name"], source["shape"], meta["seed"]))
    return mix(parts, list(MIXTURES[name].values()))


def cached(meta: dict) -> VisualCache:
    keys = normal(meta["cache"]["name"], meta["cache"]["shape"], meta["seed"]).double()
    return VisualCache(torch.nn.functional.normalize(keys, dim=1).float())


@pytest.mark.parametrize("norm", ["layer", "rms"])
@torch.no_grad()
def test_bind_network_equals_the_published_numbers(norm):
    meta, arrays = golden("pointbind_llm_bridge")
    kind = f"{norm}norm"
    bind = BindNetwork(meta["dim"], norm=norm).eval()
    bind.load_published(state(meta["tensors"][kind], meta["seed"]))
    cache_of = cached(meta)
    for name in MIXTURES:
        plain = mixed(meta, name)
        close(bind(plain), arrays[f"bridge_{kind}_nocache_{name}"], "bridge")
        drawn = cache_of(plain)
        close(bind(drawn), arrays[f"bridge_{kind}_cache_{name}"], "bridge")
        for key, value in {"nocache": plain, "cache": drawn}.items():
            if (stored := f"bridge_{kind}_{key}_{name}_mixed1024") in arrays:
                close(value, arrays[stored], "embedding")
    odd = cache_of(mixed(meta, "point"), k=3, temperature=100, weight=0.8)
    if (stored := f"bridge_{kind}_cache_point_k3_t100_w0.8") in arrays:
        close(bind(odd), arrays[stored], "bridge")


def test_a_bind_network_of_the_other_kind_is_refused():
    layer, rms = BindNetwork(8, 6, "layer"), BindNetwork(8, 6, "rms")
    with pytest.raises(ValueError, match=r"the file's bind network has RMSNorm .* LayerNorm"):
        layer.load_published(rms.state_dict())
    with pytest.raises(ValueError, match=r"has LayerNorm and biases .*, this one RMSNorm"):
        rms.load_published(layer.state_dict())
    with pytest.raises(ValueError, match=r"missing \(image_bind_proj.bias\)"):
        layer.load_published(
            {name: v for name, v in layer.state_dict().items() if name != "image_bind_proj.bias"}
        )


def test_each_sample_is_drawn_to_its_own_neighbours():
    keys = torch.nn.functional.normalize(torch.randn(50, 8, generator=seeded(0)), dim=1)
    vectors = torch.nn.functional.normalize(torch.randn(4, 8, generator=seeded(1)), dim=1)
    cache_of = VisualCache(keys)
    together = cache_of(vectors)
    alone = torch.cat([cache_of(vector[None]) for vector in vectors])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(cache_of(vectors, weight=0), vectors)
    torch.testing.assert_close(cache_of(vectors, k=1, weight=1), keys[(vectors @ keys.T).argmax(1)])
    with pytest.raises(ValueError, match=r"k=51, weight=0\.5: k must be 1 to 50"):
        cache_of(vectors, k=51)
    with pytest.raises(ValueError, match="vectors of 7 numbers, the cache holds 8"):
        cache_of(vectors[:, :7])
    with pytest.raises(ValueError, match=r"must be \(keys, space\), not empty"):
        VisualCache(keys[:0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def reduced(tuned: bool = True, layers: int | None = None):
    """The golden's model with its tensors; the first phase has neither LoRA nor biases."""
    meta, arrays = golden("pointbind_llm_reduced")
    params = meta["params_json"]
    config = LlamaConfig(
        vocab_size=meta["vocab"],
        hidden_size=params["dim"],
        intermediate_size=meta["ffn_hidden"],
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=meta["max_seq_len"],
        bos_token_id=None,
        eos_token_id=None,
    )
    model = PointLLM(published_llm(config, tuned=tuned), layers=layers).eval()
    weights = state(meta["tensors"], meta["seed"])
    if not tuned:
        kept = set(meta["tensors_pretrain_phase"])
        weights = {name: value for name, value in weights.items() if name in kept}
    if layers:
        weights["prefix_query.weight"] = weights["prefix_query.weight"][:layers]
        weights = {
            name: value
            for name, value in weights.items()
            if not (name.endswith("gate") and int(name.split(".")[2]) < 4 - layers)
        }
    model.load_published(weights)
    return meta, arrays, model


def tokens(meta: dict) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(b"input.tokens") + meta["seed"]))
    found = rng.integers(3, 32000, size=(1, 9))
    found[0, 0] = 1
    return torch.from_numpy(found)


def vector(name: str = "point") -> torch.Tensor:
    return mixed(golden_json("pointbind_llm_bridge"), name)


@torch.no_grad()
def test_states_and_logits_equal_the_published_numbers():
    meta, arrays, model = reduced()
    ids = tokens(meta)
    assert np.array_equal(ids, arrays["tokens"])
    some = torch.from_numpy(arrays["logit_subset_index"]).long()
    close(model.bind(vector()), arrays["visual_query"], "bridge")
    layers = [1, 2, 3, 4]
    with capture_hidden_states(model, layers) as states, model.shown(vector()):
        out = model.llm(input_ids=ids[:, :7], use_cache=True)
        for layer in layers:
            close(states[layer], arrays[f"prefill_hidden_layer{layer - 1}"], "hidden")
        close(out.logits[:, -1, some], arrays["prefill_logits_subset"], "logits")
        whole = out.logits[:, -1].logsumexp(-1)
        close(whole, arrays["prefill_logits_logsumexp"], "logits")
        for at in (7, 8):
            out = model.llm(input_ids=ids[:, at : at + 1], past_key_values=out.past_key_values)
            close(states[4], arrays[f"decode{at}_hidden_layer3"], "hidden")
            close(out.logits[:, -1, some], arrays[f"decode{at}_logits_subset"], "logits")
    plain = model(input_ids=ids[:, :7]).logits[:, -1, some]
    close(plain, arrays["plain_logits_subset"], "logits")


@torch.no_grad()
def test_only_the_last_layers_are_entered_where_asked():
    meta, arrays, model = reduced(layers=2)
    some = torch.from_numpy(arrays["logit_subset_index"]).long()
    out = model(input_ids=tokens(meta)[:, :7], vectors=vector())
    close(out.logits[:, -1, some], arrays["querylayer2_prefill_logits_subset"], "logits")
    assert not model.term(vector(), 2).any() and model.term(vector(), 3).any()


@torch.no_grad()
def test_generation_gives_the_published_tokens():
    meta, arrays, model = reduced()
    with model.shown(vector()):
        ids = tokens(meta)[:, :7]
        out = model.llm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
    assert out[0, 7:].tolist() == arrays["generate_greedy12"].tolist()


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_losses_and_gradients_equal_the_published_numbers(phase):
    meta, arrays, model = reduced(tuned=phase == "finetune")
    labels = torch.from_numpy(arrays["labels"]).long()
    labels[labels == 0] = -100
    model.requires_grad_(True).zero_grad()
    out = model(input_ids=tokens(meta), labels=labels, vectors=vector("image"))
    close(out.loss, arrays[f"loss_{phase}"], "loss")
    out.loss.backward()
    places = model._published_names()
    bind = dict(model.bind.named_parameters())
    heads = model.config.num_attention_heads
    for key in [name for name in arrays if name.startswith(f"grad_{phase}:")]:
        name = key.partition(":")[2]
        ours = bind[name] if name in bind else places[name].tensor
        wanted = torch.from_numpy(arrays[key])
        if ".wq." in name:
            wanted = half_split(wanted, heads)
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, wanted.view(ours.shape), rtol=1e-3, atol=2e-5)


def test_what_trains_in_each_phase_is_what_the_release_trains():
    meta, _, model = reduced()
    own = {id(place.tensor): name for name, place in model._published_names().items()}
    own |= {id(value): name for name, value in model.bind.named_parameters()}
    for phase, wanted in (("pretrain", pretrained), ("finetune", finetuned)):
        chosen = {own[id(p)] for name, p in model.named_parameters() if wanted(name)}
        assert chosen == set(meta[f"trainable_{phase}"])


@torch.no_grad()
def test_a_short_forward_and_a_batch_give_the_states_of_the_whole_one():
    meta, _, model = reduced()
    ids = tokens(meta).repeat(2, 1)
    vectors = torch.cat([vector(), vector("image")])
    with model.shown(vectors):
        embeds = model.body.get_input_embeddings()(ids)
        short = short_forward(model, embeds, [0, 2])
        with capture_hidden_states(model, [0, 2, 4]) as states:
            model.llm(input_ids=ids)
    for layer in (0, 2):
        torch.testing.assert_close(short[layer], states[layer])
    with capture_hidden_states(model, [4]) as alone:
        model(input_ids=ids[:1], vectors=vectors[1:])
    torch.testing.assert_close(alone[4], states[4][1:], rtol=0, atol=5e-5)
    with pytest.raises(ValueError, match="3 vectors shown for 2 samples"):
        model(input_ids=ids, vectors=vectors[[0, 1, 1]])


@torch.no_grad()
def test_the_host_captures_the_prompt_and_what_enters_it():
    meta, arrays, model = reduced()
    ids = tokens(meta)[0, :7]
    vectors = torch.cat([vector(), vector("image")])
    states = prompt_states(model, ids, vectors, [0, 2, 4], slice(3, 7))
    close(states[2][:1], arrays["prefill_hidden_layer1"][:, 3:], "hidden")
    close(states[4][:1], arrays["prefill_hidden_layer3"][:, 3:], "hidden")
    assert torch.equal(states[0][0], states[0][1])
    some = torch.from_numpy(arrays["logit_subset_index"]).long()
    read = unembedding(model)(states[4][:1, -1])
    close(read[:, some], arrays["prefill_logits_subset"], "logits")
    # In block 1 the two samples differ by what enters, and by nothing else before its MLP.
    enters = entering(model, vectors, [1])[1]
    with capture_hidden_states(model, [1], site="attn") as added, model.shown(vectors):
        model.llm(input_ids=ids.expand(2, -1))
    gap = added[1][0] - added[1][1]
    torch.testing.assert_close(gap, (enters[0] - enters[1]).expand(7, -1), rtol=0, atol=1e-5)
    assert prompt().endswith("Describe the 3D object in detail.\n\n### Response:")
    with pytest.raises(ValueError, match=r"nothing enters at \[0\]"):
        entering(model, vectors, [0, 1])
    with pytest.raises(ValueError, match="an empty instruction"):
        prompt(" ")


@torch.no_grad()
def test_closed_gates_leave_the_llm_as_it_was():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = PointLLM(published_llm(config), space=6).eval()
    ids, shown = torch.arange(5)[None], torch.randn(1, 6)
    torch.testing.assert_close(
        model(input_ids=ids, vectors=shown).logits, model(input_ids=ids).logits, rtol=0, atol=0
    )
    model.gates[1][0] = 1.0
    assert not torch.equal(model(input_ids=ids, vectors=shown).logits, model(input_ids=ids).logits)
    added = model.term(shown, 2)[0].view(4, 6)
    assert added[0].any() and not added[1:].any()


@torch.no_grad()
def test_a_folder_of_published_files_is_read_without_running_anything(tmp_path, monkeypatch):
    meta, arrays = golden("pointbind_llm_reduced")
    weights = state(meta["tensors"], meta["seed"])
    adapter = re.compile(r"image_bind_|prefix_query|llama\..*(bias|gate|lora|norm)")
    base = {n.removeprefix("llama."): v for n, v in weights.items() if n.startswith("llama.")}
    kept = {n: v for n, v in base.items() if not re.search("bias|gate|lora", n)}
    (tmp_path / "7B").mkdir()
    torch.save(kept, tmp_path / "7B/consolidated.00.pth")
    (tmp_path / "7B/params.json").write_text(json.dumps(meta["params_json"]))
    tuned = {name: value for name, value in weights.items() if adapter.match(name)}
    torch.save({"model": tuned}, tmp_path / "7B-beta.pth")
    encoder = PointBind(
        PointBERT(width=24, depth=1, heads=2, channels=3, groups=8, group_size=8), 48
    )
    monkeypatch.setattr("train.pointbind.published_model", lambda kind: deepcopy(encoder))
    names = {n.replace("head.", "bind.modality_head_point."): n for n in encoder.state_dict()}
    point = {name: encoder.state_dict()[own] + 1 for name, own in names.items()}
    torch.save(point, tmp_path / "pointbind_pointbert.pt")
    with pytest.raises(FileNotFoundError, match=r"published 7B/tokenizer\.json or"):
        bindllm_files.load(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = bindllm_files.load(tmp_path)
    some = torch.from_numpy(arrays["logit_subset_index"]).long()
    out = loaded.model(input_ids=tokens(meta)[:, :7], vectors=vector())
    close(out.logits[:, -1, some], arrays["prefill_logits_subset"], "logits")
    assert torch.equal(loaded.encoder.head[0].bias, encoder.head[0].bias + 1)
    assert bindllm_files.depth(tmp_path) == 4 and loaded.cache is None
    with pytest.raises(ValueError, match=r"there is no knn\.index among the files"):
        bindllm_files.vectors_of(loaded, torch.rand(1, 64, 3), cache=True)


def test_a_wrong_adapter_is_named():
    meta, _, model = reduced()
    weights = state(meta["tensors"], meta["seed"])
    del weights["llama.layers.1.attention.gate"]
    weights["llama.layers.9.attention.gate"] = torch.zeros(1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"missing \(llama.layers.1.attention.gate\).*layers.9"):
        model.load_published(weights)
    with pytest.raises(ValueError, match="5 layers to enter: this model has 4"):
        PointLLM(model.llm, layers=5)


def test_full_size_names_are_the_published_ones():
    full = golden_json("pointbind_full_state_dicts")
    key = next(name for name in full["state_dicts"] if name.startswith("7B-beta"))
    with torch.device("meta"):
        model = PointLLM(published_llm(LlamaConfig(num_hidden_layers=2, rms_norm_eps=1e-6)))
    own = {name: list(place.shape) for name, place in model._published_names().items()}
    own |= {name: list(value.shape) for name, value in model.bind.state_dict().items()}
    adapter = {
        name: shape
        for name, shape in full["state_dicts"][key].items()
        if ".layers.31." not in name and name != "prefix_query.weight"
    }
    assert all(own[name] == shape for name, shape in adapter.items())
    tuned = sum(p.numel() for n, p in model.named_parameters() if finetuned(n))
    counts = full["counts"]
    assert (tuned - 4096) * 16 + 4096 == counts["llm7b_trainable_finetune"]
    first = sum(p.numel() for n, p in model.named_parameters() if pretrained(n))
    assert first + 30 * (32 + 4096) == counts["llm7b_trainable_pretrain"]
