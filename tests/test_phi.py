"""The modified Phi against the published code's numbers, and what peft and transformers need."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import PhiForCausalLM

from tests.golden import assert_close, golden, golden_json, recipe_normal, recipe_state
from train.config import NANO, ModelConfig
from train.models.phi import (
    PUBLISHED_PREFIX,
    add_lora,
    bare,
    build_phi,
    fuse_split,
    load_published,
    published_names,
    trainable_norms,
)

TINY = replace(
    NANO,
    llm_width=32,
    llm_heads=4,
    llm_ffn=48,
    llm_depth=3,
    vocabulary=64,
    llm_context=64,
    llm_dropout=0.0,
)
GOLDEN_SIZES = replace(
    NANO,
    llm_width=128,
    llm_heads=4,
    llm_ffn=256,
    llm_depth=4,
    llm_rotary=0.4,
    vocabulary=320,
    llm_context=2048,
)


@pytest.fixture
def tiny():
    torch.manual_seed(3)
    return build_phi(TINY).eval()


def tiny_state(llm) -> dict:
    """A whole model under published names, with drawn values."""
    torch.manual_seed(4)
    own = llm.state_dict()
    return {key: torch.randn(own[name].shape) for key, name in published_names(llm).items()}


@pytest.fixture(scope="module")
def golden_phi():
    meta, arrays = golden("phi")
    llm = add_lora(build_phi(GOLDEN_SIZES), 64, 16, 0.05)
    load_published(llm, recipe_state(meta["state_dict"], meta["seed"]))
    return llm.eval(), meta, arrays


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adapters", [True, False])
def test_states_logits_and_loss_are_those_of_the_published_code(golden_phi, attention, adapters):
    llm, meta, arrays = golden_phi
    bare(llm).set_attn_implementation(attention)
    shape = meta["inputs"]["input.inputs_embeds"]["shape"]
    embeds = recipe_normal("input.inputs_embeds", shape, meta["seed"])
    with nullcontext() if adapters else llm.disable_adapter(), torch.no_grad():
        output = llm(
            inputs_embeds=embeds,
            attention_mask=torch.from_numpy(arrays["attention_mask"]),
            labels=torch.from_numpy(arrays["labels"]),
            output_hidden_states=True,
        )
    states = torch.stack(output.hidden_states)
    kind = "" if adapters else "nolora_"
    assert_close(states[:, :, meta["positions"]], arrays, meta, f"{kind}hidden_states")
    assert_close(states.norm(dim=-1), arrays, meta, f"{kind}hidden_norms")
    assert_close(output.logits[:, meta["positions"]], arrays, meta, f"{kind}logits")
    assert_close(output.loss, arrays, meta, f"{kind}loss")


def test_lora_and_norm_weights_are_what_the_published_code_trains(golden_phi):
    llm, meta, _ = golden_phi
    ours = {name: key for key, name in published_names(llm).items()}
    trained = [name for name, _ in llm.named_parameters() if "lora_" in name]
    trained += trainable_norms(llm)
    assert {ours[name] for name in trained} == set(meta["trainable_parameters"])


def test_published_sizes_have_the_published_counts():
    with torch.device("meta"):
        llm = add_lora(build_phi(ModelConfig()), 64, 16, 0.05)
    sizes = {name: parameter.numel() for name, parameter in llm.named_parameters()}
    lora = sum(size for name, size in sizes.items() if "lora_" in name)
    assert sum(sizes.values()) == 2_811_233_280
    assert lora == 31_457_280
    assert lora + sum(sizes[name] for name in trainable_norms(llm)) == 31_628_800


def test_recipe_reproduces_the_reference_tensors():
    for entry in golden_json("recipe_check")["tensors"]:
        if entry["rule"] == "input cloud":
            continue
        seed = golden_json("recipe_check")["seed"]
        (drawn,) = recipe_state([entry], seed).values()
        assert drawn.flatten()[:8].tolist() == entry["first8"], entry["name"]


def test_branch_scale_is_the_first_weight_of_every_attention_norm():
    llm = build_phi(TINY, branch_scale=0.2)
    for block in llm.model.layers:
        assert torch.equal(block.post_layernorm.weight, torch.full((32,), 0.2))


def test_sharding_by_block_finds_the_blocks(tiny):
    for model in (tiny, tiny.model, add_lora(tiny, 4, 8, 0.0)):
        assert set(model._no_split_modules) == {"PhiBlock"}
    assert {type(block).__name__ for block in tiny.model.layers} == {"PhiBlock"}


def test_transformers_init_reaches_the_blocks(tiny):
    block = tiny.model.layers[0]
    assert block.self_attn.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.self_attn.query_key_value.bias.any()
    assert block.post_layernorm.weight.eq(1).all()


def test_fused_split_weights_give_the_logits_of_stock_phi(tiny):
    torch.manual_seed(5)
    stock = PhiForCausalLM(tiny.config).eval()
    for block in stock.model.layers:
        torch.nn.init.normal_(block.self_attn.q_proj.bias)
    load_published(tiny, stock.state_dict(), expect="base")
    for block in tiny.model.layers:
        block.post_layernorm.forward = lambda hidden: hidden  # stock Phi has no such norm
    ids = torch.randint(64, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(tiny(ids).logits, stock(ids).logits, atol=1e-6, rtol=1e-5)


def test_fuse_split_lays_out_q_k_v_head_by_head():
    state = {
        f"a.self_attn.{part}_proj.bias": torch.tensor([first, first + 1, first + 2, first + 3])
        for part, first in (("q", 0), ("k", 10), ("v", 20))
    }
    fused = fuse_split(state, heads=2)["a.self_attn.query_key_value.bias"]
    assert fused.tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]


def test_half_of_a_split_projection_is_an_error():
    with pytest.raises(ValueError, match=r"q_proj\.bias is there without a\.self_attn\.k_proj"):
        fuse_split({"a.self_attn.q_proj.bias": torch.zeros(4)}, heads=2)


def test_published_tensors_come_back_out_of_a_loaded_model(tiny):
    llm = add_lora(tiny, 4, 8, 0.0)
    state = tiny_state(llm)
    load_published(llm, state)
    own = llm.state_dict()
    assert all(torch.equal(own[name], state[key]) for key, name in published_names(llm).items())


def test_loading_names_what_is_missing_unexpected_and_mis_shaped_and_copies_nothing(tiny):
    llm = add_lora(tiny, 4, 8, 0.0)
    before = {name: value.clone() for name, value in llm.state_dict().items()}
    state = tiny_state(llm)
    norm = f"{PUBLISHED_PREFIX}model.final_layernorm.weight"
    head = f"{PUBLISHED_PREFIX}lm_head.bias"
    del state[norm]
    state["stranger"] = torch.zeros(1)
    state[head] = torch.zeros(3)
    with pytest.raises(ValueError, match="do not fit") as error:
        load_published(llm, state)
    for part in (norm, "stranger", head, "(3,)", "(64,)"):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in llm.state_dict().items())


def test_a_stage_file_holds_what_trained_and_each_expectation_says_what_it_lacks(tiny):
    llm = add_lora(tiny, 4, 8, 0.0)
    trained = {name for name, _ in llm.named_parameters() if "lora_" in name}
    trained |= set(trainable_norms(llm))
    names = published_names(llm)
    stage = {key: value for key, value in tiny_state(llm).items() if names[key] in trained}
    load_published(llm, stage, expect="trained")
    with pytest.raises(ValueError, match=r"missing .*embed_tokens"):
        load_published(llm, stage)
    one = next(key for key in stage if ".lora_B." in key)
    without = {key: value for key, value in stage.items() if key != one}
    with pytest.raises(ValueError, match="1 missing"):
        load_published(llm, without, expect="trained")
    load_published(llm, without, expect="present")
    with pytest.raises(ValueError, match="expect='some'"):
        load_published(llm, stage, expect="some")


def test_biases_of_query_and_key_norms_may_be_absent_as_they_are_in_every_file(tiny):
    state = tiny_state(tiny)
    state = {key: value for key, value in state.items() if not key.endswith("q_layernorm.bias")}
    biases = [block.self_attn.q_layernorm.bias for block in tiny.model.layers]
    for bias in biases:
        torch.nn.init.ones_(bias)
    load_published(tiny, {}, expect="present")
    assert all(bias.all() for bias in biases)  # a file without the norms says nothing of them
    load_published(tiny, state)
    assert not any(bias.any() for bias in biases)
    assert tiny.model.layers[0].self_attn.k_layernorm.bias.all()  # that was given


def test_a_bad_split_projection_is_named_as_it_stands_in_the_file(tiny):
    stock = PhiForCausalLM(tiny.config).state_dict()
    query, key = (f"model.layers.1.self_attn.{part}_proj.weight" for part in "qk")
    with pytest.raises(ValueError, match=rf"1 of another shape \({query} \(5, 7\) instead of"):
        load_published(tiny, stock | {query: torch.zeros(5, 7)}, expect="base")
    for lost in (query, key):
        without = {name: value for name, value in stock.items() if name != lost}
        with pytest.raises(ValueError, match=rf"1 missing \({PUBLISHED_PREFIX}{lost}\)"):
            load_published(tiny, without, expect="base")
    with pytest.raises(ValueError, match=r"k_proj\.weight is there without .*q_proj\.weight and"):
        load_published(tiny, {key: stock[key]}, expect="present")


def test_a_value_that_is_no_tensor_is_named(tiny):
    with pytest.raises(ValueError, match=r"'lm_head\.bias' is a list, not a tensor"):
        load_published(tiny, {"lm_head.bias": [1.0]}, expect="present")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_stands_behind_a_row_does_not_change_it(tiny, attention):
    tiny.set_attn_implementation(attention)
    ids = torch.randint(64, (1, 7))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 4])
    with torch.no_grad():
        alone = tiny(ids).logits
        torch.testing.assert_close(tiny(padded, attention_mask=mask).logits[:, :7], alone)


def test_generation_with_a_cache_equals_generation_without(tiny):
    llm = add_lora(tiny, 4, 8, 0.0).eval()
    embeds = llm.get_input_embeddings()(torch.randint(64, (2, 5))).detach() * 40
    given = {
        "inputs_embeds": embeds,
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
    }
    cached, plain = llm.generate(**given), llm.generate(**given, use_cache=False)
    assert cached.shape == (2, 8)
    assert torch.equal(cached, plain)


def test_gradient_checkpointing_gives_the_same_gradients(tiny):
    ids = torch.randint(64, (2, 9))

    def gradients():
        tiny.zero_grad()
        tiny.train()(ids, labels=ids, use_cache=False).loss.backward()
        return [parameter.grad.clone() for parameter in tiny.parameters()]

    plain = gradients()
    # transformers 5.23 renames it and warns of the old name; 5.17 has the old name only.
    enable = getattr(tiny, "activation_checkpointing_enable", None)
    (enable or tiny.gradient_checkpointing_enable)()
    assert tiny.is_gradient_checkpointing
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_runs_with_norms_in_single_precision(tiny):
    tiny.to(torch.bfloat16)
    for name, parameter in tiny.named_parameters():
        if "layernorm" in name:
            parameter.data = parameter.data.float()
    ids = torch.randint(64, (2, 9))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert tiny(ids, labels=ids).loss.isfinite()


def test_lora_saved_by_peft_is_read_back_by_stock_peft(tiny, tmp_path):
    llm = add_lora(tiny, 4, 8, 0.0).eval()
    load_published(llm, tiny_state(llm))
    ids = torch.randint(64, (1, 6))
    with torch.no_grad():
        before = llm(ids).logits
    llm.save_pretrained(tmp_path, save_embedding_layers=False)
    base = llm.unload()
    with torch.no_grad():
        again = PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits
    torch.testing.assert_close(again, before)


def test_a_width_that_heads_do_not_divide_is_an_error():
    with pytest.raises(ValueError, match="llm_width 33 is not a multiple of 4"):
        build_phi(replace(TINY, llm_width=33))
