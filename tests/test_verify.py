"""A capture is proven before it is stored: sound models pass, planted faults are found by name."""

from contextlib import contextmanager, suppress

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
)

from tests.conftest import TINY
from train.capture import capture_hidden_states, short_forward, transformer_blocks
from train.models.llm import hold_in
from train.models.phi import add_lora, build_phi
from train.verify import CaptureError, verify_capture

ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2},
    **ENDS,
}
GROUPED = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 1}
ARCHITECTURES = {
    "llama": LlamaConfig(**GROUPED),
    "phi": PhiConfig(**SMALL, intermediate_size=32),
    "phi3": Phi3Config(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "mistral": MistralConfig(**GROUPED),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2, **ENDS),  # adds positions
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=32),
    "opt": OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64),
    "opt, norm behind": OPTConfig(  # no final norm, and a projection on either side of the blocks
        **SMALL,
        ffn_dim=32,
        word_embed_proj_dim=8,
        max_position_embeddings=64,
        do_layer_norm_before=False,
    ),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),  # scales its embeddings
    "gemma2": Gemma2Config(**GROUPED, head_dim=8),  # norms its branches, caps its logits
    "falcon": FalconConfig(**SMALL),  # adds in place
}
BRANCHED = {
    "bloom": BloomConfig(vocab_size=50, hidden_size=16, n_layer=4, n_head=2, **ENDS),
    "mpt": MptConfig(vocab_size=50, d_model=16, n_layers=4, n_heads=2, max_seq_len=16, **ENDS),
    "glm4": Glm4Config(**GROUPED, head_dim=8),
    "biogpt": BioGptConfig(**SMALL, intermediate_size=32),
    "granite": GraniteConfig(**GROUPED, residual_multiplier=0.2),
}
"""Each has its branches in another place, or scales them."""
LAYERS = [1, 3]
POINTS = slice(3, 7)


def llama(seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(ARCHITECTURES["llama"]).eval()


def embeddings(dim=16, seed=1):
    return torch.randn(3, 9, dim, generator=torch.Generator().manual_seed(seed))


def verify(model, embeds=None, positions=POINTS, **more):
    embeds = embeddings() if embeds is None else embeds
    more.setdefault("entering", embeddings(embeds.shape[-1])[:, POINTS].to(embeds.dtype))
    return verify_capture(model, embeds, positions, LAYERS, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_false_alarm_on_models_of_transformers(name, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval().to(dtype)
    embeds = embeddings(model.get_input_embeddings().weight.shape[1]).to(dtype)
    proofs = verify(model, embeds)
    assert proofs["indices"] == "layers below 4 are those of transformers, bit for bit"
    assert ("bit for bit" in proofs["layer 0"]) == (name not in ("gpt2", "opt", "opt, norm behind"))
    assert ("scales them" in proofs["last"]) == (name == "gemma2")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_false_alarm_on_our_own_model_with_lora(attention):
    torch.manual_seed(0)
    model = add_lora(build_phi(TINY), 2, 2, 0.1).eval()
    model.get_base_model().set_attn_implementation(attention)
    proofs = verify(model, embeddings(32), sites=("resid", "attn", "mlp"))
    assert "add up" in proofs["branches"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_false_alarm_on_half_precision_matrices_between_float32_norms(attention):
    torch.manual_seed(0)
    model = add_lora(build_phi(TINY), 2, 2, 0.1).eval()
    hold_in(model, torch.bfloat16)
    model.get_base_model().set_attn_implementation(attention)
    with torch.autocast("cpu", torch.bfloat16):
        assert verify(model, embeddings(32))["dtype"] == "float32"


def test_no_false_alarm_on_padded_rows_with_their_mask():
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 7:] = 0
    assert verify(llama(), attention_mask=mask)["short"] == "not asked: there is padding"


def test_no_false_alarm_under_peft_and_compile():
    wrapped = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).eval()
    verify(wrapped)
    verify(torch.compile(llama(), backend="eager"))


@pytest.mark.parametrize(
    "name", ["llama", "phi", "neox", "gpt2", "gemma2", "falcon", "opt", *BRANCHED]
)
def test_branches_add_up_to_what_a_block_adds(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config((ARCHITECTURES | BRANCHED)[name]).eval()
    assert "add up" in verify(model, sites=("resid", "attn"))["branches"]


# Planted faults. Each takes a sound model and gives what `verify` is called with; beside it stands
# the proof that must find it.
FAULTS = {}


def fault(proof):
    def keep(plant):
        FAULTS[plant.__name__] = plant, proof
        return plant

    return keep


def spoilt(change):
    """A capture whose states are changed on the way out."""

    def capture(*arguments, **options):
        states = short_forward(*arguments, **options)
        return {layer: change(layer, state) for layer, state in states.items()}

    return {"capture": capture}


@fault("layer 0")
def shifted_span(model):
    return {"positions": slice(POINTS.start + 1, POINTS.stop + 1)}


@fault("layer 0")
def span_from_the_end_of_the_prompt(model):
    return {"positions": slice(-4, None)}


@fault("layer 0")
def positions_off_for_one_row(model):
    positions = torch.zeros(3, 9, dtype=torch.bool)
    positions[:, POINTS] = True
    positions[1] = positions[1].roll(1)
    return {"positions": positions}


@fault("layer 0")
def objects_in_another_order(model):
    return {"entering": embeddings()[:, POINTS].roll(1, 0)}


@fault("layer 0")
def positions_shifted_inside(model):
    def capture(model, embeds, layers, positions, **options):
        return short_forward(model, embeds, layers, positions.roll(1, 1), **options)

    return {"capture": capture}


@fault("indices")
def off_by_one_layer(model):
    def capture(model, embeds, layers, positions, **options):
        behind = [min(layer + 1, 4) if layer else 0 for layer in layers]
        states = short_forward(model, embeds, behind, positions, **options)
        return {layer: states[at] for layer, at in zip(layers, behind, strict=True)}

    return {"capture": capture}


@fault("indices")
def two_layers_swapped(model):
    def capture(*arguments, **options):
        states = short_forward(*arguments, **options)
        return states | {1: states[3], 3: states[1]}

    return {"capture": capture}


@fault("indices")
def batch_rows_permuted(model):
    return spoilt(lambda layer, state: state.roll(1, 0) if layer else state)


@fault("indices")
def one_sample_for_all(model):
    return spoilt(lambda layer, state: state[:1].repeat(3, 1, 1) if layer else state)


@fault("indices")
def tokens_reversed(model):
    return spoilt(lambda layer, state: state.flip(1) if layer else state)


@fault("indices")
def states_of_another_variant(model):
    other = llama(seed=5)

    def capture(_model, *arguments, **options):
        return short_forward(other, *arguments, **options)

    return {"capture": capture}


@fault("indices")
def missing_prefix(model):
    def capture(model, embeds, layers, positions, **options):
        start = int(positions[0].int().argmax())
        return short_forward(model, embeds[:, start:], layers, positions[:, start:])

    return {"capture": capture}


@fault("indices")
def rounded_to_half_precision(model):
    return spoilt(lambda layer, state: state.half().float() if layer else state)


@fault("indices")
def wrong_position_ids(model):
    def capture(model, embeds, layers, positions, **options):
        ids = torch.tensor([[0, 0, 1, 2, 2, 3, 5, 7, 8]])
        with torch.no_grad(), capture_hidden_states(model, layers, positions) as states:
            model(inputs_embeds=embeds, position_ids=ids)
        return states

    return {"capture": capture}


@fault("indices")
def no_causal_mask(model):
    def capture(model, embeds, layers, positions, **options):
        everything = torch.zeros(1, 1, 9, 9)
        with torch.no_grad(), capture_hidden_states(model, layers, positions) as states:
            model(inputs_embeds=embeds, attention_mask=everything)
        return states

    return {"capture": capture}


@fault("last")
def last_state_behind_the_final_norm(model):
    @contextmanager
    def hooks(model, layers, positions=None, **options):
        with capture_hidden_states(model, layers, positions, **options) as states:
            read = lambda _module, _args, output: states.update({4: picked(output, positions)})  # noqa: E731
            handle = model.model.norm.register_forward_hook(read)
            try:
                yield states
            finally:
                handle.remove()

    def capture(model, embeds, layers, positions, **options):
        with torch.no_grad(), hooks(model, layers, positions) as states:
            model(inputs_embeds=embeds)
        return states

    return {"capture": capture, "hooks": hooks}


def picked(hidden, positions):
    kept = hidden if positions is None else hidden[positions].view(len(hidden), -1, 16)
    return kept.detach().clone()


@fault("last")
def double_norm(model):
    return spoilt(lambda layer, state: model.model.norm(state) if layer == 4 else state)


@fault("batch")
def left_padding_without_a_mask(model):
    def capture(model, embeds, layers, positions, attention_mask=None, **options):
        return short_forward(model, embeds, layers, positions)

    embeds, mask = embeddings(), torch.ones(3, 9, dtype=torch.long)
    mask[1, :2] = 0
    # What the model itself is given has no mask either: only a sample alone tells.
    model.forward = without_mask(model.forward)
    return {"embeds": embeds, "attention_mask": mask, "capture": capture}


def without_mask(forward):
    return lambda *arguments, attention_mask=None, **options: forward(*arguments, **options)


@fault("batch")
def batch_statistics_in_the_model(model):
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: plain(hidden - hidden.mean(dim=0, keepdim=True))
    return {}


@fault("eval")
def training_mode(model):
    model.train()
    return {}


@fault("eval")
def one_dropout_left_on(model):
    model.model.layers[2].self_attn.train()
    return {}


@fault("eval")
def a_capture_that_turns_training_on(model):
    def capture(model, *arguments, **options):
        states = short_forward(model, *arguments, **options)
        model.train()
        return states

    return {"capture": capture}


@fault("repeat")
def dropout_that_ignores_eval(model):
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: F.dropout(plain(hidden), 0.1, training=True)
    return {}


@fault("shape")
def dims_cut_off(model):
    return spoilt(lambda layer, state: state[..., :-1].clone())


@fault("shape")
def mean_over_tokens(model):
    return spoilt(lambda layer, state: state.mean(dim=1, keepdim=True))


@fault("shape")
def a_layer_left_out(model):
    def capture(*arguments, **options):
        states = short_forward(*arguments, **options)
        return {layer: state for layer, state in states.items() if layer != 3}

    return {"capture": capture}


@fault("dtype")
def wrong_dtype(model):
    return spoilt(lambda layer, state: state.double())


@fault("finite")
def overflow_in_a_layer(model):
    return spoilt(lambda layer, state: state / 0 if layer == 3 else state)


@fault("fresh")
def states_of_the_batch_before(model):
    first = {}

    def capture(model, embeds, layers, positions, **options):
        states = short_forward(model, embeds, layers, positions, **options)
        return first.setdefault((len(embeds), tuple(layers)), states)

    return {"capture": capture}


@fault("fresh")
def one_buffer_for_every_batch(model):
    buffers = {}

    def capture(model, embeds, layers, positions, **options):
        states = short_forward(model, embeds, layers, positions, **options)
        for layer, state in states.items():
            buffers.setdefault((layer, state.shape), torch.empty_like(state)).copy_(state)
        return {layer: buffers[layer, state.shape] for layer, state in states.items()}

    return {"capture": capture}


@fault("copies")
def a_view_instead_of_a_copy(model):
    def capture(model, embeds, layers, positions, **options):
        states = short_forward(model, embeds, layers, None, **options)
        return {layer: state[:, POINTS] for layer, state in states.items()}

    return {"capture": capture}


@fault("copies")
def a_graph_that_is_kept(model):
    def capture(model, embeds, layers, positions, **options):
        keep = capture_hidden_states(model, layers, positions, detach=False)
        with torch.enable_grad(), keep as states:
            model(inputs_embeds=embeds)
        return dict(states)

    return {"capture": capture}


@fault("copies")
def overwritten_in_place_later(model):
    @contextmanager
    def hooks(model, layers, positions=None, **options):
        with capture_hidden_states(model, layers, positions, **options) as states:
            if positions is None:
                yield states
                return
            kept = lambda _block, _args, output: late.update({4: output})  # noqa: E731
            late = {}
            handle = transformer_blocks(model)[3].register_forward_hook(kept)
            try:
                yield Late(states, late, positions)
            finally:
                handle.remove()

    return {"hooks": hooks}


class Late(dict):
    """States whose last layer is only copied when it is asked for."""

    def __init__(self, states, late, positions):
        self.states, self.late, self.positions = states, late, positions

    def __getitem__(self, layer):
        return picked(self.late[4], self.positions) if layer == 4 else self.states[layer]


@fault("short")
def a_model_that_looks_ahead(model):
    for block in model.model.layers:
        plain = block.forward
        block.forward = lambda hidden, plain=plain, **more: plain(
            hidden, **(more | {"attention_mask": torch.zeros(1, 1, *[hidden.shape[1]] * 2)})
        )
    return {}


@fault("short")
def a_pass_that_ends_too_early(model):
    def capture(model, embeds, layers, positions, **options):
        reached = [layer for layer in layers if layer < max(layers) or layer == 4]
        states = short_forward(model, embeds, reached, positions, **options)
        return {layer: states.get(layer, torch.zeros_like(states[reached[0]])) for layer in layers}

    return {"capture": capture}


@fault("logits")
def a_hook_that_returns_a_tensor(model):
    @contextmanager
    def hooks(model, layers, positions=None, **options):
        with capture_hidden_states(model, layers, positions, **options) as states:
            if positions is None:
                yield states
                return
            double = lambda _block, _args, output: output * 1.001  # noqa: E731
            handle = transformer_blocks(model)[3].register_forward_hook(double, prepend=False)
            try:
                yield states
            finally:
                handle.remove()

    return {"hooks": hooks}


@fault("hooks")
def a_hook_registered_twice(model):
    @contextmanager
    def hooks(*arguments, **options):
        once = capture_hidden_states(*arguments, **options)
        with once as states, capture_hidden_states(*arguments, **options):
            yield states

    return {"hooks": hooks}


@fault("hooks")
def a_hook_left_behind(model):
    def capture(model, *arguments, **options):
        transformer_blocks(model)[0].register_forward_hook(lambda *_: None)
        return short_forward(model, *arguments, **options)

    return {"capture": capture}


@fault("errors")
def a_swallowed_exception(model):
    last = {}

    def capture(*arguments, **options):
        with suppress(Exception):
            last.update(short_forward(*arguments, **options))
        return dict(last)

    return {"capture": capture}


@fault("errors")
def a_hook_that_stays_after_an_error(model):
    def capture(model, *arguments, **options):
        handle = transformer_blocks(model)[1].register_forward_hook(lambda *_: None)
        states = short_forward(model, *arguments, **options)
        handle.remove()
        return states

    return {"capture": capture}


@fault("branches")
def a_branch_before_it_is_scaled(model):
    @contextmanager
    def hooks(*arguments, site="resid", **options):
        with capture_hidden_states(*arguments, site=site, **options) as states:
            yield Half(states) if site == "attn" else states

    return {"sites": ("resid", "attn"), "hooks": hooks}


class Half(dict):
    def __init__(self, states):
        self.states = states

    def __getitem__(self, layer):
        return self.states[layer] / 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_by_name(name):
    plant, proof = FAULTS[name]
    model = llama()
    planted = plant(model)
    with pytest.raises(CaptureError, match=f"^{proof}: "):
        verify(model, **planted)


def test_there_are_at_least_20_planted_faults():
    assert len(FAULTS) >= 20


def test_one_sample_is_too_few_to_verify_on():
    with pytest.raises(ValueError, match="1 sample to verify a capture on, it takes 2 or more"):
        verify_capture(llama(), embeddings()[:1], POINTS, LAYERS)


def test_a_proven_capture_leaves_the_model_as_it_was():
    model = llama()
    model(inputs_embeds=embeddings(), output_hidden_states=True)  # transformers' own hooks stay
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
