"""Language models of three architectures behind the same point tokens, in any precision."""

import json
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.test_minigpt3d import TINY, TURNS
from tests.test_prompts import BOS, Bytes
from train.capture import capture_hidden_states, short_forward, transformer_blocks
from train.checkpoint import load_model, save_model
from train.classify import answers
from train.config import MODELS, Stage2Config
from train.models import phi
from train.models.llm import (
    BACKBONES,
    bare,
    build_llm,
    checkpoint_blocks,
    hold_in,
    llm_from_folder,
    read_tokenizer,
    set_attention,
    sizes_of,
    trainable_norms,
)
from train.models.minigpt3d import MiniGPT3D, build, set_switches
from train.prompts import Batch, collate, encode_conversation, prefix

TYPES = ["phi-2", "phi-3", "llama"]
LAYERS = [0, 1, 4]


def sizes(kind: str):
    return replace(TINY, llm_type=kind)


def learning(model: MiniGPT3D) -> dict[str, torch.nn.Parameter]:
    """Let LoRA and norms train, with factors that do something, and give them by name."""
    torch.manual_seed(2)
    norms = set(trainable_norms(model.llm))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        own = name.removeprefix("llm.")
        parameter.requires_grad_(name.startswith("llm.") and ("lora_" in own or own in norms))
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: MiniGPT3D, batch: Batch, target: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch, target=target).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return collate([encode_conversation(Bytes(), turns) for turns in TURNS], BOS)


@pytest.fixture(scope="module")
def target() -> torch.Tensor:
    return torch.randn(len(TURNS), 32, TINY.qformer_width, generator=torch.manual_seed(4))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token for each byte, and the one that begins a sequence."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(dict(zip(words, range(256), strict=True)), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


# --- the three architectures ------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_every_backbone_trains_lora_and_norms_on_the_loss_of_stock_transformers(
    kind, batch, target
):
    model = build(sizes(kind), seed=1).eval()
    trained = learning(model)
    ours = model(batch, target=target)
    theirs = model.llm(
        inputs_embeds=model.embed(batch, target),
        attention_mask=batch.attention_mask,
        labels=batch.labels,
    )
    torch.testing.assert_close(ours.loss, theirs.loss)
    full = model(batch, target=target, logits=True)
    torch.testing.assert_close(full.logits, theirs.logits)
    ours.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained.values())
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in trained if ".lora_" in name}
    norms = {name.split(".")[-2] for name in trained if ".lora_" not in name}
    projections, normed = {
        "phi-2": (
            {"query_key_value", "dense"},
            {
                *("input_layernorm", "post_layernorm", "q_layernorm", "k_layernorm"),
                "final_layernorm",
            },
        ),
        "phi-3": ({"qkv_proj", "o_proj"}, {"input_layernorm", "post_attention_layernorm", "norm"}),
        "llama": (
            {"q_proj", "k_proj", "v_proj", "o_proj"},
            {"input_layernorm", "post_attention_layernorm", "norm"},
        ),
    }[kind]
    assert (adapted, norms) == (projections, normed)


def test_norms_that_train_in_phi_are_the_published_ones():
    llm = build(TINY).llm
    assert trainable_norms(llm) == phi.trainable_norms(llm)


def test_backbones_at_published_widths_have_their_own_counts():
    wide = {"llm_width": 3072, "llm_ffn": 8192, "vocabulary": 32064, "llm_context": 4096}
    with torch.device("meta"):
        phi3 = build_llm(replace(MODELS["minigpt3d"], llm_type="phi-3", **wide))
    # Phi-3 mini as its model card has it: 3.8 B, here to the last one.
    assert sum(p.numel() for p in phi3.parameters()) == 3_821_079_552


@pytest.mark.parametrize("kind", TYPES)
def test_point_tokens_of_the_short_prefix_are_those_of_the_conversation(kind, batch, target):
    model = build(sizes(kind), seed=1).eval()
    short = collate([prefix(Bytes(), 32)] * len(target), BOS)
    with torch.no_grad():
        early = short_forward(model.llm, model.embed(short, target), LAYERS, short.point_mask)
        with capture_hidden_states(model.llm, LAYERS, batch.point_mask) as full:
            model(batch, target=target)
    for layer in LAYERS:
        torch.testing.assert_close(early[layer], full[layer], atol=1e-5, rtol=1e-5)


def test_an_attention_that_a_model_does_not_have_is_named():
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Gemma2Config(**sizes, **heads))
    with pytest.raises(ValueError, match="no sdpa attention: try --attention eager"):
        set_attention(model, "sdpa")


@pytest.mark.parametrize("kind", TYPES)
def test_fused_attention_equals_the_plain_one(kind, batch, target):
    model = build(sizes(kind), seed=1).eval()
    learning(model)
    fused = gradients(model, batch, target)
    with torch.no_grad():
        logits = model(batch, target=target, logits=True).logits
    set_attention(model.llm, "eager")
    assert bare(model.llm).config._attn_implementation == "eager"
    with torch.no_grad():
        plain = model(batch, target=target, logits=True).logits
    seen = batch.attention_mask.bool()  # what nothing may look at has no meaning
    torch.testing.assert_close(logits[seen], plain[seen], atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(model, batch, target).items():
        torch.testing.assert_close(gradient, fused[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_recomputed_blocks_give_the_same_gradients(kind, batch, target):
    model = build(replace(sizes(kind), llm_lora_dropout=0.1), seed=1).train()
    learning(model)
    torch.manual_seed(0)
    plain = gradients(model, batch, target)
    checkpoint_blocks(model.llm)
    blocks = transformer_blocks(model.llm)
    assert all(block.gradient_checkpointing for block in blocks)
    calls = []
    handle = blocks[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    again = gradients(model, batch, target)
    handle.remove()
    assert len(calls) == 2  # once forward, once on the way back
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name])


@pytest.mark.parametrize("kind", TYPES)
def test_a_loss_on_captured_states_has_the_same_gradients_under_recomputation(kind, batch, target):
    model = build(sizes(kind), seed=1).train()
    learning(model)

    def aligned():
        model.zero_grad()
        with capture_hidden_states(model.llm, [2], batch.point_mask, detach=False) as states:
            loss = model(batch, target=target).loss
        (loss + states[2].square().mean()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = aligned()
    checkpoint_blocks(model.llm)
    for name, gradient in aligned().items():
        torch.testing.assert_close(gradient, plain[name])


# --- half precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single(kind, dtype, batch, target):
    model = build(sizes(kind), seed=1).eval()
    trained = learning(model)
    with torch.no_grad():
        single = model(batch, target=target, logits=True)
    hold_in(model.llm, dtype)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert bare(model.llm).get_output_embeddings().weight.dtype == dtype
    with capture_hidden_states(model.llm, LAYERS) as states:
        half = model(batch, target=target, logits=True)
    assert {state.dtype for state in states.values()} == {torch.float32}
    seen = batch.attention_mask.bool()
    error = (half.logits[seen].float() - single.logits[seen]).norm() / single.logits[seen].norm()
    # 8 and 11 significant bits; measured 0.005 to 0.008 and 0.0007 to 0.0010.
    assert error < (0.02 if dtype == torch.bfloat16 else 0.003)
    assert half.loss.item() == pytest.approx(single.loss.item(), rel=0.01)
    half.loss.backward()
    for name, parameter in trained.items():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", TYPES)
def test_half_precision_is_captured_and_answers(kind, target, tokenizer):
    model = build(sizes(kind), seed=1).eval()
    hold_in(model.llm, torch.bfloat16)
    short = collate([prefix(Bytes(), 32)] * len(target), BOS)
    with torch.no_grad(), model.mixed():
        states = short_forward(model.llm, model.embed(short, target), LAYERS, short.point_mask)
    assert all(state.isfinite().all() for state in states.values())
    assert len(answers(model, tokenizer, target, longest=3)) == len(target)


def test_the_front_stays_in_single_precision_whatever_surrounds_it():
    model = build(TINY, seed=1)
    clouds = torch.rand(2, 256, 6, generator=torch.manual_seed(5))
    with torch.no_grad():
        alone = model.encode(clouds)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode(clouds), alone)


# --- the released front -----------------------------------------------------------------------


def test_switches_of_a_config_reach_the_front_and_can_be_taken_back():
    model = build(TINY, seed=1).eval()
    for name, parameter in model.qformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    clouds = torch.rand(2, 256, 6, generator=torch.manual_seed(5))

    @torch.no_grad()
    def target(seed=0, **changes):
        set_switches(model, Stage2Config(**changes))
        torch.manual_seed(seed)
        return model.eval().encode(clouds)

    ours = target()
    assert torch.equal(target(seed=1), ours)
    for drawn in ({"fps_start": "random"}, {"qformer_dropout": True}):
        assert torch.equal(target(0, **drawn), target(0, **drawn))
        assert not torch.equal(target(0, **drawn), target(1, **drawn))
    assert torch.equal(target(), ours)
    set_switches(model, Stage2Config(gradient_checkpointing=True, attention="eager"))
    assert bare(model.llm).is_gradient_checkpointing
    assert bare(model.llm).config._attn_implementation == "eager"


# --- from a folder ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, tokenizer):
    def write(kind: str):
        torch.manual_seed(6)
        llm = build_llm(replace(sizes(kind), vocabulary=300))
        llm.save_pretrained(tmp_path)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path, llm

    return write


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_language_model_from_a_folder_takes_the_place_of_ours(
    kind, tmp_path, tokenizer, batch, target
):
    """Read, trained, written and read again, it gives the logits of the stock class."""
    torch.manual_seed(6)
    settings = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None}
    written = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, vocab_size=300, **settings, **heads)
    ).eval()
    written.save_pretrained(tmp_path / "llm")
    tokenizer.save(str(tmp_path / "llm" / "tokenizer.json"))
    llm, read = llm_from_folder(tmp_path / "llm")
    assert read.token_to_id("<|endoftext|>") == 256
    for ours, theirs in zip(llm.parameters(), written.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    found = sizes_of(tmp_path / "llm", TINY)
    assert (found.llm_type.replace("-", ""), found.llm_depth, found.vocabulary) == (kind, 4, 300)
    model = build(found, language=llm)
    assert type(build(found).llm.get_base_model()) is type(written)
    save_model(tmp_path / "whole", model, tokenizer, found, {}, half=False)
    again, _, _ = load_model(tmp_path / "whole")
    embeds = again.embed(batch, target)
    with torch.no_grad():  # LoRA's B is zero
        ours = again(batch, target=target, logits=True).logits
        theirs = written(inputs_embeds=embeds, attention_mask=batch.attention_mask).logits
    kept = batch.attention_mask.bool()
    torch.testing.assert_close(ours[kept], theirs[kept])
    learning(again.train())
    assert all(gradient.isfinite().all() for gradient in gradients(again, batch, target).values())


def test_grouped_heads_and_tied_embeddings_of_small_llamas_are_read_and_adapted(
    folder, batch, target
):
    path, _ = folder("llama")
    grouped = LlamaConfig.from_pretrained(path)
    grouped.num_key_value_heads, grouped.tie_word_embeddings = 2, True
    LlamaForCausalLM(grouped).save_pretrained(path)
    llm, _ = llm_from_folder(path, torch.bfloat16)
    assert llm.lm_head.weight is llm.model.embed_tokens.weight
    model = build(replace(TINY, vocabulary=300), language=llm)
    learning(model)
    assert all(gradient.isfinite().all() for gradient in gradients(model, batch, target).values())


def test_a_folder_in_half_precision_keeps_norms_in_single(folder):
    llm, _ = llm_from_folder(folder("llama")[0], torch.bfloat16)
    norms = set(trainable_norms(llm))
    for name, parameter in llm.named_parameters():
        assert parameter.dtype == (torch.float32 if name in norms else torch.bfloat16), name


def test_pickled_weights_are_refused(folder):
    path, llm = folder("llama")
    (path / "model.safetensors").unlink()
    torch.save(llm.state_dict(), path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no weights as safetensors, only pytorch_model\.bin"):
        llm_from_folder(path)


def test_a_folder_that_lacks_something_is_named(folder, tmp_path):
    path, _ = folder("llama")
    (path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in .*give a folder"):
        llm_from_folder(path)
    with pytest.raises(FileNotFoundError, match=r"no config\.json and no tokenizer\.json"):
        llm_from_folder(path / "gone")


def test_a_tokenizer_that_cannot_begin_a_prompt_is_refused(folder):
    path, _ = folder("llama")
    Tokenizer(models.BPE({"a": 0}, [])).save(str(path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizer has none of"):
        llm_from_folder(path)


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(folder):
    path, _ = folder("llama")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_tokens([f"word{number}" for number in range(100)])
    tokenizer.save(str(path / "tokenizer.json"))
    with pytest.raises(ValueError, match="357 tokens, but embeddings of only 300"):
        llm_from_folder(path)


def test_another_architecture_and_missing_tensors_are_refused(folder):
    path, _ = folder("llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    with pytest.raises(ValueError, match="9 tensors are missing or unknown"):
        llm_from_folder(path)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="of type 'gpt2', wanted one of phi, phi3, llama, mistral"):
        llm_from_folder(path)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("t5", "of type 't5', which is no causal language model"),
        ("bart", "of type 'bart', which is no causal language model"),
        ("mine", "of type 'mine', which would need code of its own: only classes of transf"),
    ],
)
def test_a_folder_of_no_causal_model_is_refused_where_every_causal_one_is_taken(
    kind, sentence, folder, capfd
):
    path, _ = folder("llama")
    remote = {"model_type": kind, "auto_map": {"AutoConfig": "run.Config"}}
    (path / "config.json").write_text(json.dumps(remote))
    (path / "run.py").write_text(f"open({str(path / 'ran')!r}, 'w')")
    capfd.readouterr()
    with pytest.raises(ValueError, match=sentence):
        llm_from_folder(path, kinds=None)
    assert not "".join(capfd.readouterr()) and not (path / "ran").exists()


def test_a_tokenizer_file_that_is_none_is_one_sentence(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FileNotFoundError, match=r"no tokenizer .*tokenizer\.json"):
        read_tokenizer(path)
    for content in (b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe\x00", b'{"model": {"type": "BPE"}}'):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"tokenizer\.json is not a tokenizer \(.*copy it again"
        ):
            read_tokenizer(path)


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("config.json", lambda old: b"{", r"config\.json is not a JSON object; copy it again"),
        (
            "config.json",
            lambda old: old.replace(b'"model_type": "llama"', b'"model_type": "mine"'),
            "of type 'mine', wanted one of phi, phi3, llama",
        ),
        (
            "config.json",
            lambda old: old.replace(b'"num_attention_heads": 4', b'"num_attention_heads": 5'),
            r"can't be read \(.*multiple of the number of attention heads \(5\)",
        ),
        (
            "config.json",
            lambda old: old.replace(b'"intermediate_size": 64', b'"intermediate_size": 40'),
            r"12 tensors are of another shape .*down_proj\.weight \(48, 64\) instead of \(48, 40\)",
        ),
        ("model.safetensors", lambda old: old[:900], r"the model can't be read \(.*header"),
    ],
    ids=["no JSON", "unknown", "heads", "shapes", "cut"],
)
def test_a_damaged_folder_is_one_sentence_and_nothing_else(file, damage, sentence, folder, capfd):
    path, _ = folder("llama")
    whole = (path / file).read_bytes()
    (path / file).write_bytes(damage(whole))
    assert (path / file).read_bytes() != whole
    capfd.readouterr()
    with pytest.raises(ValueError, match=sentence) as error:
        llm_from_folder(path)
    assert "\n" not in str(error.value)
    assert not "".join(capfd.readouterr())
