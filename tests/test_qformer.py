"""The Q-Former against the published numbers, with and without LoRA, and its loading."""

import re
from functools import cache

import pytest
import torch

from tests.golden import assert_close, golden, recipe_normal, recipe_state
from train.models.qformer import POSITION_IDS, QFormer, published_name

SMALL = {
    "hidden_size": 16,
    "layers": 4,
    "heads": 2,
    "intermediate_size": 24,
    "encoder_width": 12,
    "queries": 5,
}


def small_qformer(seed: int = 0, **changes) -> QFormer:
    torch.manual_seed(seed)
    qformer = QFormer(**SMALL | changes).eval()
    for name, parameter in qformer.named_parameters():
        if "lora_B" in name:  # zero at first, and then LoRA does nothing
            torch.nn.init.normal_(parameter)
    return qformer


def published_state(qformer: QFormer) -> dict[str, torch.Tensor]:
    state = {published_name(name): value for name, value in qformer.state_dict().items()}
    return state | {POSITION_IDS: torch.arange(512)[None]}


def states(samples: int = 2, tokens: int = 7) -> torch.Tensor:
    return torch.randn(samples, tokens, 12, generator=torch.Generator().manual_seed(5))


@cache
def recipe(spread: bool) -> dict[str, torch.Tensor]:
    meta, _ = golden("qformer")
    return recipe_state(meta["state_dict"], meta["seed"], spread)


@pytest.mark.parametrize("lora", [False, True], ids=["no_lora", "lora"])
@pytest.mark.parametrize("spread", [False, True], ids=["plain", "spread"])
@torch.no_grad()
def test_qformer_equals_the_published_numbers(spread, lora):
    meta, arrays = golden("qformer")
    variant = f"{'spread_' if spread else ''}{'lora' if lora else 'no_lora'}"
    qformer = QFormer(lora_rank=8 if lora else 0).eval()
    weights = {name: w for name, w in recipe(spread).items() if lora or ".lora_" not in name}
    qformer.load_published(weights)
    shape = meta["inputs"]["input.encoder_hidden_states"]["shape"]
    read = recipe_normal("input.encoder_hidden_states", shape, meta["seed"])
    assert_close(read[:, 0, :4], arrays, meta, "encoder_first4")

    layers = []
    for module in (qformer.bert.layernorm, *qformer.bert.encoder.layer):
        module.register_forward_hook(lambda *args: layers.append(args[2]))
    output, selected = qformer(read), meta["selected_queries"]
    assert_close(output[:, selected], arrays, meta, f"{variant}_selected")
    assert_close(output.norm(dim=-1), arrays, meta, f"{variant}_norms")
    assert_close(layers[1][:, selected], arrays, meta, f"{variant}_layer0_selected")
    norms = torch.stack(layers, dim=1).norm(dim=-1)
    assert_close(norms, arrays, meta, f"{variant}_layer_norms")

    output = qformer.double()(read.double())
    assert_close(output[:, selected], arrays, meta, f"{variant}_selected_f64")


def test_full_size_counts_are_the_published_ones():
    qformer = QFormer()
    sizes = {name: parameter.numel() for name, parameter in qformer.named_parameters()}
    lora = [name for name in sizes if ".lora_" in name]
    assert len(lora) == 2 * 54
    assert sum(sizes[name] for name in lora) == 724_992
    assert sizes["query_tokens"] == 24_576
    base = [name for name in sizes if ".lora_" not in name and name != "query_tokens"]
    assert (len(base), sum(sizes[name] for name in base)) == (254, 105_137_664)
    trained = qformer.lora_and_norm_parameters()
    norms = [name for name in trained if "LayerNorm" in name]
    assert (len(norms), sum(sizes[name] for name in norms)) == (30, 23_040)
    assert set(trained) == {*lora, *norms, "query_tokens"}


def test_every_parameter_can_be_trained_at_first():
    qformer = small_qformer()
    qformer(states()).square().sum().backward()
    still = [name for name, p in qformer.named_parameters() if p.grad is None]
    assert not still


@torch.no_grad()
def test_attention_maps_sum_to_one_and_change_nothing():
    qformer = small_qformer()
    output, maps = qformer(states(3, 9), return_attention=True)
    assert torch.equal(output, qformer(states(3, 9)))
    assert maps.shape == (2, 3, 2, 5, 9)  # layers 0 and 2 of 4 read the states
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, 2, 5))


@torch.no_grad()
def test_attention_maps_are_those_of_the_queries_and_keys():
    qformer = small_qformer(lora_rank=0, layers=1)
    read, layer = states(), qformer.bert.encoder.layer[0]
    cross = layer.crossattention.attention
    asked = []
    cross.query.register_forward_hook(lambda *args: asked.append(args[2]))
    _, maps = qformer(read, return_attention=True)
    query = asked[0].view(2, 5, 2, 8).transpose(1, 2)
    key = cross.key(read).view(2, 7, 2, 8).transpose(1, 2)
    torch.testing.assert_close(maps[0], (query @ key.mT / 8**0.5).softmax(-1))


@torch.no_grad()
def test_own_queries_of_each_sample_are_used():
    qformer = small_qformer()
    own = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    together = qformer(states(), own)
    alone = [qformer(states()[[i]], own[[i]]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_eval_turns_lora_dropout_off_and_train_turns_only_that_on():
    qformer = small_qformer(lora_dropout=0.5)
    assert torch.equal(qformer(states()), qformer(states()))
    qformer.train()
    assert not torch.equal(qformer(states()), qformer(states()))
    without = small_qformer(lora_rank=0)
    assert torch.equal(without.train()(states()), without.eval()(states()))


@torch.no_grad()
def test_dropout_that_is_always_on_draws_in_evaluation_too_and_can_be_taken_back():
    qformer = small_qformer(lora_dropout=0.5)
    quiet = qformer(states())
    qformer.drop_always = True
    torch.manual_seed(1)
    drawn = qformer.eval()(states())
    torch.manual_seed(1)
    assert torch.equal(qformer.train()(states()), drawn)
    assert not torch.equal(qformer.eval()(states()), drawn)
    dropping = [name for name, module in qformer.named_modules() if module.training]
    assert dropping and all("lora_dropout" in name for name in dropping)
    qformer.drop_always = False
    assert torch.equal(qformer.eval()(states()), quiet)


def test_states_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 7, 11\): must be \(samples, tokens, 12\)"):
        small_qformer()(states()[..., :11])


@pytest.mark.parametrize("rank", [0, 4])
@torch.no_grad()
def test_published_names_restore_the_model(rank):
    source, target = small_qformer(1, lora_rank=rank), small_qformer(2, lora_rank=rank)
    assert not torch.equal(source(states()), target(states()))
    target.load_published({"model": published_state(source)})
    assert torch.equal(source(states()), target(states()))


@torch.no_grad()
def test_a_file_without_lora_loads_only_when_asked_and_leaves_lora_as_it_is():
    source, target = small_qformer(1, lora_rank=0), QFormer(**SMALL).eval()
    plain = published_state(source)
    with pytest.raises(ValueError) as refused:
        target.load_published(plain)
    lora = [name for name in published_state(target) if ".lora_" in name]
    assert len(lora) == 36 and all(name in str(refused.value) for name in lora)
    target.load_published(plain, expect="base")
    torch.testing.assert_close(target(states()), source(states()))  # new LoRA adds nothing
    with pytest.raises(ValueError, match=rf"1 not known \({re.escape(lora[0])}\)"):
        target.load_published(plain | {lora[0]: torch.ones(8, 16)}, expect="base")
    with pytest.raises(ValueError, match="expect='some' must be 'all', 'base' or 'trained'"):
        target.load_published(plain, expect="some")


def test_a_stage_file_loads_only_when_asked_and_only_whole():
    source, target = small_qformer(1), small_qformer(2)
    stage = {
        published_name(name): source.get_parameter(name).detach()
        for name in source.lora_and_norm_parameters()
    }
    with pytest.raises(ValueError, match=r"missing \(Qformer\.bert\.embeddings\.LayerNorm"):
        target.load_published(stage)
    frozen = target.bert.layernorm.bias.clone()
    target.load_published(stage, expect="trained")
    for name in source.lora_and_norm_parameters():
        assert torch.equal(source.get_parameter(name), target.get_parameter(name))
    assert torch.equal(target.bert.layernorm.bias, frozen)
    del stage["Qformer.bert.encoder.layer.2.crossattention.output.LayerNorm.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(Qformer.*\.2\.crossattention\.output"):
        target.load_published(stage, expect="trained")


def test_strict_loading_names_every_bad_key_and_loads_nothing():
    target = small_qformer()
    state = {name: value + 1 for name, value in published_state(target).items()}
    lost = "Qformer.bert.encoder.layer.1.attention.self.key.lora_A.default.weight"
    shape = "Qformer.bert.encoder.layer.2.crossattention.self.value.weight"
    del state[lost]
    state["ln_vision.weight"] = torch.ones(3)
    state[shape] = torch.ones(16, 13)
    before = target.query_tokens.clone()
    with pytest.raises(ValueError) as refused:
        target.load_published(state)
    for part in (
        f"1 missing ({lost})",
        "1 not known (ln_vision.weight)",
        f"1 of another shape ({shape} (16, 13) instead of (16, 12))",
    ):
        assert part in str(refused.value)
    assert torch.equal(target.query_tokens, before)


def test_lora_factors_do_not_load_into_a_model_without_lora():
    with pytest.raises(ValueError, match=r"not known \(.*lora_A\.default"):
        small_qformer(lora_rank=0).load_published(published_state(small_qformer()))
