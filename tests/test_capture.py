"""Hooks against what transformers itself returns."""

from functools import partial

import numpy as np
import pytest
import torch
import zarr
from peft import LoraConfig, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
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

from store.writer import create_run
from train.capture import (
    capture_hidden_states,
    capture_objects,
    short_forward,
    transformer_blocks,
)
from train.checkpoint import load_model
from train.config import SHIPPED
from train.prompts import collate, encode_conversation, prefix
from train.verify import CaptureError

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


@pytest.mark.parametrize("site", ["resid", "attn"])  # a branch is inside of what is recomputed
@pytest.mark.parametrize("detach", [True, False])
def test_what_checkpointing_computes_again_is_not_kept(detach, site):
    torch.manual_seed(0)
    model = MODELS["llama"]().train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    with capture_hidden_states(model, [2, 4], detach=detach, site=site) as states:
        loss = model(inputs_embeds=embeddings().requires_grad_()).logits.sum()
        kept = dict(states)
        loss.backward()
    assert all(states[layer] is kept[layer] for layer in (2, 4))


def test_reentrant_checkpointing_is_refused_where_it_would_hide_the_graph():
    model = MODELS["llama"]().train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    embeds = embeddings().requires_grad_()
    refused = pytest.raises(RuntimeError, match=r"turn it on with \{\"use_reentrant\": False\}")
    with refused, capture_hidden_states(model, [2], detach=False, site="attn"):
        model(inputs_embeds=embeds)


def test_a_compiled_model_gives_its_states_before_and_after_it_has_run():
    model = MODELS["llama"]().eval()
    with torch.no_grad(), capture_hidden_states(model, LAYERS) as plain:
        model(inputs_embeds=embeddings())
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        with torch.no_grad(), capture_hidden_states(compiled, LAYERS) as states:
            compiled(inputs_embeds=embeddings())
        assert all(torch.equal(states[layer], plain[layer]) for layer in LAYERS)
        with torch.no_grad():
            compiled(inputs_embeds=embeddings())
    assert torch.equal(short_forward(compiled, embeddings(), [3])[3], plain[3])


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, for the wrappers that want one."""
    store = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_capture_works_on_models_that_train_on_several_devices(one_process, wrapper):
    model = MODELS["llama"]().eval()
    plain = short_forward(model, embeddings(), [1, 3])
    if wrapper == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    else:
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        for block in model.model.layers:
            torch.distributed.fsdp.fully_shard(block, mesh=mesh)
        wrapped = torch.distributed.fsdp.fully_shard(model, mesh=mesh)
    for _ in range(2):  # a pass cut short would leave a sharded model gathered
        short = short_forward(wrapped, embeddings(), [1, 3])
        assert all(torch.equal(short[layer], plain[layer]) for layer in (1, 3))
    with torch.no_grad(), capture_hidden_states(wrapped, [1, 3]) as states:
        wrapped(inputs_embeds=embeddings())
    assert torch.equal(states[3], plain[3])


def lora(model):
    torch.manual_seed(1)
    some = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return get_peft_model(model, some).eval()


def checkpointed(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def compiled(model):
    return torch.compile(model, backend="eager")


def each_block(wrap):
    def wrapped(model):
        blocks = transformer_blocks(model)
        for place, block in enumerate(blocks):
            blocks[place] = wrap(block)
        return model

    return wrapped


def sharded(model):
    for block in transformer_blocks(model):
        torch.distributed.fsdp.fully_shard(block)
    return torch.distributed.fsdp.fully_shard(model)


def sharded_before(model):
    """By FSDP 1, which wraps modules in its own."""
    cpu = torch.device("cpu")
    shard = partial(FullyShardedDataParallel, device_id=cpu, use_orig_params=True)
    return shard(each_block(shard)(model))


parallel = torch.nn.parallel.DistributedDataParallel
WRAPPERS = {
    "peft": [lora],
    "checkpointing": [checkpointed],
    "compile": [compiled],
    "compiled blocks": [each_block(compiled)],
    "checkpointed blocks": [each_block(checkpoint_wrapper)],
    "ddp": [parallel],
    "fsdp": [sharded],
    "peft, ddp": [lora, parallel],
    "peft, checkpointing, ddp": [lora, checkpointed, parallel],
    "ddp, compile": [parallel, compiled],
    "peft, fsdp": [lora, sharded],
    "checkpointing, fsdp": [checkpointed, sharded],
    "fsdp, compile": [sharded, compiled],
    "peft, checkpointing, fsdp, compile": [lora, checkpointed, sharded, compiled],
    "fsdp 1": [sharded_before],
    "peft, fsdp 1": [lora, sharded_before],
    "checkpointing, fsdp 1": [checkpointed, sharded_before],
}


def check_wrapped(name):
    """States, logits and hooks under some wrappers are those of the bare model."""
    torch.manual_seed(0)
    bare, model = (MODELS["llama"]().eval() for _ in range(2))
    model.load_state_dict(bare.state_dict())
    for wrap in WRAPPERS[name]:
        model = wrap(model)
    bare = lora(bare) if lora in WRAPPERS[name] else bare
    embeds = embeddings() * (torch.distributed.get_rank() + 1)  # others in each process
    branch = {"site": "attn", "layers": [1, 4]}

    def seen(model):
        with (
            torch.no_grad(),
            capture_hidden_states(model, LAYERS, slice(2, 6)) as states,
            capture_hidden_states(model, positions=slice(2, 6), **branch) as attended,
        ):
            logits = model(inputs_embeds=embeds).logits
        short = short_forward(model, embeds, [1, 3], slice(2, 6))
        return [logits, *states.values(), *attended.values(), *short.values()]

    expected, hooks = seen(bare), hooks_of(model)
    for _ in range(2):  # a pass cut short would leave a sharded model gathered
        pairs = zip(seen(model), expected, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), name
    model.train()
    with capture_hidden_states(model, [2], detach=False) as states:
        logits = model(inputs_embeds=embeds.clone().requires_grad_()).logits
        (logits.square().mean() + states[2].square().mean()).backward()
    assert any(weight.grad is not None for weight in model.parameters()), name

    def fail(*_):
        raise ZeroDivisionError

    model.eval()
    handle = transformer_blocks(model)[2].register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        short_forward(model, embeds, LAYERS)
    handle.remove()
    assert hooks_of(model) == hooks, name


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def one_of_two(rank, rendezvous):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    torch.distributed.init_device_mesh("cpu", (2,))
    for name in WRAPPERS:
        check_wrapped(name)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_capture_works_under_every_wrapper_in_each_of_two_processes(tmp_path):
    """A wrong one comes out of its process with its name."""
    torch.multiprocessing.spawn(one_of_two, (tmp_path / "rendezvous",), nprocs=2)


def test_the_short_forward_of_our_model_is_the_full_one_bit_for_bit_in_eager_float32():
    model, tokenizer, sizes = load_model(SHIPPED)
    model.llm.get_base_model().set_attn_implementation("eager")
    start = prefix(tokenizer, sizes.queries)
    said = [("What is this?", "A chair with four legs."), ("How many?", "Four.")]
    whole = encode_conversation(tokenizer, said, points=sizes.queries)
    target = torch.randn(3, sizes.queries, sizes.qformer_width)
    long, short = collate([whole] * 3, 0), collate([start] * 3, 0)
    layers = [0, 1, 16, 32]
    with torch.no_grad():
        embeds = model.embed(long, target)
        with capture_hidden_states(model.llm, layers, long.point_mask) as full:
            model.llm(inputs_embeds=embeds, attention_mask=long.attention_mask)
        early = short_forward(model.llm, model.embed(short, target), layers, short.point_mask)
    assert all(torch.equal(early[layer], full[layer]) for layer in layers)


def test_a_branch_that_a_block_does_not_have_is_named():
    model = MODELS["opt"]()
    del transformer_blocks(model)[0].fc2
    capture = capture_hidden_states(model, [1], site="mlp")
    with pytest.raises(ValueError, match="OPTDecoderLayer has no mlp branch"), capture:
        pass


def test_a_branch_has_no_layer_0():
    capture = capture_hidden_states(MODELS["phi"](), [0], site="attn")
    with pytest.raises(ValueError, match=r"no layer \[0\]: this model has 1 to 4"), capture:
        pass


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


@pytest.fixture
def objects(tmp_path, tiny_checkpoint):
    """(model, targets, prefix, writer) of ten objects that are to be captured at layers 0 and 3."""
    model, tokenizer, sizes = load_model(tiny_checkpoint)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(10, sizes.queries, sizes.qformer_width, generator=generator)
    table = {
        name: [f"{name}{row}" for row in range(10)] for name in ("id", "class_name", "caption")
    }
    writer = create_run(
        tmp_path / "run",
        samples=table | {"label": [0] * 10, "split": ["gallery"] * 5 + ["query"] * 5},
        layers=[0, 3],
        variants=["stage1"],
        steps={"stage1": [0, 20]},
        tokens=sizes.queries,
        dim=sizes.llm_width,
        target_dim=sizes.qformer_width,
        dtype="float32",
    )
    return model, targets, prefix(tokenizer, sizes.queries), writer


def test_objects_are_proven_and_stored_at_each_step(objects):
    model, targets, start, writer = objects
    first = capture_objects(model, targets, start, [0, 3], writer, "stage1", step=0)
    assert first["layer 0"] == "the projector's output, bit for bit"
    assert writer.done("stage1", 0) == 10 and writer.done("stage1", 20) == 0
    assert capture_objects(model, targets, start, [0, 3], writer, "stage1", step=0) == {}
    hidden = zarr.open_array(writer.path / "activations.zarr/stage1/hidden", mode="r")
    with torch.no_grad():
        expected = model.projector(targets).numpy()
    np.testing.assert_array_equal(hidden[0, 0], expected)


def test_each_of_two_processes_stores_its_own_objects(objects):
    model, targets, start, writer = objects
    assert writer.chunk == 8
    capture_objects(model, targets, start, [0, 3], writer, "stage1", step=0, share=(1, 2))
    assert list(writer.pending("stage1", step=0)) == [slice(0, 8)]
    capture_objects(model, targets, start, [0, 3], writer, "stage1", step=0, share=(0, 2))
    assert writer.done("stage1", 0) == 10


def test_nothing_is_stored_of_a_capture_that_is_not_proven(objects):
    model, targets, start, writer = objects
    model.llm.train()
    with pytest.raises(CaptureError, match=r"^eval: .* training mode"):
        capture_objects(model, targets, start, [0, 3], writer, "stage1", step=0)
    assert writer.done("stage1", 0) == 0
