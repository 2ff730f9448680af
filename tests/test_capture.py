"""Hooks against what transformers itself returns."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from train.capture import capture_hidden_states, short_forward

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
MODELS = {
    "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL, intermediate_size=32)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=32)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, intermediate_size=32, num_key_value_heads=2)
    ),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, intermediate_size=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64)
    ),
}
LAYERS = [0, 1, 3, 4]


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def embeddings(tokens: int = 9) -> torch.Tensor:
    return torch.randn(3, tokens, 16, generator=torch.Generator().manual_seed(1))


def test_layers_are_those_that_transformers_returns(model):
    with torch.no_grad(), capture_hidden_states(model, LAYERS) as states:
        output = model(inputs_embeds=embeddings(), output_hidden_states=True)
    for layer in (0, 1, 3):  # the last of transformers is behind the final norm
        assert torch.equal(states[layer], output.hidden_states[layer])
    assert states[4].shape == (3, 9, 16)
    assert not torch.equal(states[4], output.hidden_states[4])


def test_the_short_forward_gives_the_states_of_the_full_one(model):
    long = embeddings(12)
    with torch.no_grad(), capture_hidden_states(model, [0, 1, 3], slice(2, 5)) as full:
        model(inputs_embeds=long)
    short = short_forward(model, long[:, :5], [0, 1, 3], slice(2, 5))
    for layer, states in full.items():
        assert torch.allclose(short[layer], states, atol=1e-5)


def test_the_short_forward_runs_no_block_behind_the_deepest(model):
    from train.capture import transformer_blocks

    ran = []
    for place, block in enumerate(transformer_blocks(model), start=1):
        block.register_forward_pre_hook(lambda *_, place=place: ran.append(place))
    short_forward(model, embeddings(), [0, 2])
    assert ran == [1, 2]


def test_capture_works_under_peft_and_leaves_the_logits_as_they_were():
    torch.manual_seed(0)
    bare = MODELS["llama"]().eval()
    wrapped = get_peft_model(bare, LoraConfig(target_modules=["q_proj"])).eval()
    with torch.no_grad():
        before = wrapped(inputs_embeds=embeddings()).logits
        with capture_hidden_states(wrapped, [2]) as states:
            during = wrapped(inputs_embeds=embeddings()).logits
    assert torch.equal(before, during) and states[2].shape == (3, 9, 16)


def test_gradients_reach_the_model_through_states_that_are_not_detached_under_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = MODELS["llama"]().train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        with capture_hidden_states(model, [2], detach=False) as states:
            output = model(inputs_embeds=embeddings())
            loss = states[2].square().sum() + output.logits.square().sum()
        loss.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_mask_picks_each_rows_own_positions():
    model = MODELS["phi"]().eval()
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, start in enumerate((1, 3, 6)):
        mask[row, start : start + 2] = True
    with torch.no_grad(), capture_hidden_states(model, [0], mask) as states:
        model(inputs_embeds=embeddings())
    expected = torch.stack([embeddings()[row, s : s + 2] for row, s in enumerate((1, 3, 6))])
    assert torch.equal(states[0], expected)


def test_what_is_kept_holds_no_more_memory_than_was_asked_for():
    model = MODELS["phi"]().eval()
    with torch.no_grad(), capture_hidden_states(model, [2], slice(0, 2)) as states:
        model(inputs_embeds=embeddings())
    assert states[2].untyped_storage().nbytes() == 3 * 2 * 16 * 4


def test_capture_leaves_no_hook_behind_when_the_forward_fails():
    model = MODELS["phi"]().eval()
    with pytest.raises(RuntimeError), capture_hidden_states(model, LAYERS):
        model(inputs_embeds=torch.zeros(1, 3, 5))
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_a_layer_that_is_not_there_is_named():
    model = MODELS["phi"]()
    said = r"no layer \[40\]: this model has 0 \(embeddings\) to 4"
    with pytest.raises(ValueError, match=said), capture_hidden_states(model, [1, 40]):
        pass


def test_a_mask_of_unequal_rows_is_refused():
    mask = torch.tensor([[True, False], [True, True]])
    capture = capture_hidden_states(MODELS["phi"](), [1], mask)
    with pytest.raises(ValueError, match=r"\[1, 2\]"), capture:
        pass
