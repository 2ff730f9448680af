"""Interventions against closed forms, identities, and circuits that were planted."""

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from probe.causal import (
    INTERVENTIONS,
    causal,
    donors,
    effects,
    findings,
    mean_states,
    point_states,
    read,
    stopping_layer,
    transplants,
)
from probe.patching import (
    Asked,
    answered,
    find_blocks,
    find_unembedding,
    outputs_of,
    replaced,
    resumed,
    states_at,
    unread,
)
from tests.test_capture import MODELS

POINTS = slice(2, 6)
LABELS = np.repeat([0, 1, 2], 4)
DEPTH = 4
LAYERS = [0, 1, 2, 3, 4]


def llama(layers=DEPTH, heads=2, attention="sdpa", seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def questions(samples=12, seed=1, padded=True):
    """Random prompts with four point tokens and an answer of two or three tokens."""
    draw = torch.Generator().manual_seed(seed)
    tokens = 12
    embeds = torch.randn(samples, tokens, 16, generator=draw)
    embeds[:, [0, 1, *range(6, tokens)]] = embeds[:1, [0, 1, *range(6, tokens)]]  # one question
    mask = torch.zeros(samples, tokens, dtype=torch.bool)
    mask[:, POINTS] = True
    attended = torch.ones(samples, tokens, dtype=torch.long)
    labels = torch.full((samples, tokens), -100)
    labels[:, 8:11] = torch.randint(50, (samples, 3), generator=draw)
    if padded:
        attended[::2, 10:], labels[::2, 10:] = 0, -100
        attended[:, 11:] = 0
    return Asked(embeds, attended, labels, mask)


def deaf_behind(model, block):
    """Cut all later blocks off the points by hand: their attention adds nothing."""
    for later in find_blocks(model)[block:]:
        later.self_attn.o_proj.weight.data.zero_()
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_knock_out_is_the_attention_written_by_hand(attention, padded):
    model, asked = llama(layers=1, heads=1, attention=attention), questions(3, padded=padded)
    seen = {}
    layer = model.model.layers[0].self_attn
    handle = layer.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(kwargs, out=out[0]), with_kwargs=True
    )
    with unread(model, asked.point_mask, [1]):
        answered(model, asked)
    handle.remove()
    hidden = seen["hidden_states"]
    query, key, value = (part(hidden) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    rotary = seen["position_embeddings"]
    query, key = (
        each[:, 0] for each in apply_rotary_pos_emb(query[:, None], key[:, None], *rotary)
    )
    mixed = torch.zeros_like(value)
    for sample in range(3):
        for reader in range(12):
            allowed = [
                read
                for read in range(reader + 1)
                if asked.attention_mask[sample, read]
                and not (asked.point_mask[sample, read] and not asked.point_mask[sample, reader])
            ]
            weights = key[sample, allowed] @ query[sample, reader] / math.sqrt(16)
            mixed[sample, reader] = weights.softmax(0) @ value[sample, allowed]
    real = asked.attention_mask.bool()
    torch.testing.assert_close(seen["out"][real], layer.o_proj(mixed)[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_knocking_out_every_block_is_a_mask_without_the_points(name, attention):
    torch.manual_seed(0)
    model, asked = MODELS[name]().eval(), questions(4)
    model.set_attn_implementation(attention)
    with unread(model, asked.point_mask, range(1, DEPTH + 1)):
        ours = answered(model, asked)
    tokens = asked.point_mask.shape[1]
    allowed = (
        torch.ones(tokens, tokens, dtype=torch.bool).tril() & asked.attention_mask.bool()[:, None]
    )
    allowed &= ~(~asked.point_mask[:, :, None] & asked.point_mask[:, None, :])
    allowed |= torch.eye(tokens, dtype=torch.bool)  # padding may look at itself
    whole = allowed[:, None]
    if attention == "eager":
        whole = torch.zeros(whole.shape).masked_fill(~whole, torch.finfo(torch.float32).min)
    positions = asked.attention_mask.cumsum(1) - 1  # as OPT counts them; the others are given them
    theirs = Asked(asked.embeds, whole, asked.labels, asked.point_mask)
    if name == "opt":
        with pytest.MonkeyPatch.context() as patch:
            forward = model.model.decoder.forward
            patch.setattr(
                model.model.decoder,
                "forward",
                lambda *args, **kwargs: forward(*args, **kwargs | {"position_ids": positions}),
            )
            np.testing.assert_allclose(ours, answered(model, theirs), atol=1e-4)
    else:
        np.testing.assert_allclose(ours, answered(model, theirs), atol=1e-4)
    assert np.abs(ours - answered(model, asked)).min() > 0


def test_own_states_change_nothing_and_states_behind_the_last_block_are_never_read():
    model, asked = llama(), questions()
    score, own = read(model, asked, LAYERS)
    with replaced(model, asked.point_mask, own):
        assert np.array_equal(answered(model, asked), score)
    with replaced(model, asked.point_mask, {DEPTH: torch.zeros_like(own[DEPTH])}):
        assert np.array_equal(answered(model, asked), score)
    with replaced(model, asked.point_mask, {DEPTH - 1: torch.zeros_like(own[DEPTH])}):
        assert np.abs(answered(model, asked) - score).min() > 0


def test_another_objects_tokens_at_a_layer_are_those_at_all_layers_behind_it():
    model, asked = llama(), questions()
    other = asked.with_points(asked.points.roll(1, 0))
    theirs, states = read(model, other, LAYERS)
    for layer in LAYERS:
        with replaced(model, asked.point_mask, {layer: states[layer]}):
            alone = answered(model, asked)
        with replaced(model, asked.point_mask, {each: states[each] for each in LAYERS[layer:]}):
            np.testing.assert_allclose(answered(model, asked), alone, atol=1e-6)
    with replaced(model, asked.point_mask, {0: states[0]}):
        np.testing.assert_allclose(answered(model, asked), theirs, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_pass_resumed_at_a_layer_is_the_whole_pass(name):
    torch.manual_seed(0)
    model, asked = MODELS[name]().eval(), questions()
    with outputs_of(model, LAYERS) as outputs:
        score = answered(model, asked)
    zero = torch.zeros(12, 4, 16)
    for layer in LAYERS:
        with replaced(model, asked.point_mask, {layer: zero}):
            whole = answered(model, asked)
            with resumed(model, layer, outputs):
                assert np.array_equal(answered(model, asked), whole)
    assert np.array_equal(answered(model, asked), score)  # nothing is left behind


@pytest.mark.parametrize("name", MODELS)
def test_norm_and_head_are_found_in_any_architecture(name):
    torch.manual_seed(0)
    model, asked = MODELS[name]().eval(), questions()
    norm, head = find_unembedding(model, asked.embeds[:2])
    everywhere = torch.ones_like(asked.point_mask)
    last = states_at(model, asked, everywhere, [DEPTH])[0].view(12, 12, 16)
    with torch.no_grad():
        logits = model(inputs_embeds=asked.embeds, attention_mask=asked.attention_mask).logits
        torch.testing.assert_close(head(norm(last)), logits, rtol=1e-4, atol=1e-5)


def test_everything_works_under_peft_and_leaves_no_hook_behind():
    bare, asked = llama(), questions()
    score = answered(bare, asked)
    wrapped = get_peft_model(bare, LoraConfig(target_modules=["q_proj"])).eval()
    with pytest.raises(RuntimeError), unread(wrapped, asked.point_mask, [1, 2]):
        raise RuntimeError
    with unread(wrapped, asked.point_mask, [1]):
        assert (answered(wrapped, asked) != score).all()
    np.testing.assert_array_equal(answered(wrapped, asked), score)
    assert len(find_unembedding(wrapped, asked.embeds[:1])[0]) == 1


def as_it_would(model, asked):
    """The same prompts with the answers that the model itself finds likeliest."""
    with torch.no_grad():
        logits = model(inputs_embeds=asked.embeds, attention_mask=asked.attention_mask).logits
    best = logits.argmax(-1).roll(1, 1)
    labels = torch.where(asked.labels == -100, asked.labels, best)
    return Asked(asked.embeds, asked.attention_mask, labels, asked.point_mask)


def planted(stop):
    """Effects in a model whose text reads the points in the first `stop` blocks only."""
    model = deaf_behind(llama(), stop)
    asked = as_it_would(model, questions())
    return effects(model, asked, LABELS, mean_states(model, asked), LAYERS)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_the_layer_where_a_planted_circuit_stops_reading_is_found(stop):
    found = planted(stop)
    change = found.change.values
    assert (change[:, stop:] == 0).all()
    assert (np.abs(change[:, stop - 1]).max(axis=-1) > 0).all()
    assert (found.knockout.values[stop:] == 0).all() and (found.knockout.values[:stop] != 0).any()
    results = causal({"planted": found}, {}, objects=[str(row) for row in range(12)])
    assert (results.stops_high <= stop).all()  # effects that cancel over objects end earlier
    assert results.stops.sel(variant="planted", intervention="unread") == stop
    assert any(f"by layer {stop} " in sentence for sentence in findings(results))


def test_a_null_transplant_changes_exactly_nothing():
    model, asked = llama(), questions(40)
    change = transplants(model, asked, point_states(model, asked, LAYERS))
    assert change.shape == (5, 40) and (change == 0).all()


def test_a_transplant_closes_the_gap_at_the_one_layer_that_differs():
    """The giver is the host with something added to its point tokens behind block 2."""
    host, asked = llama(), questions()
    added = torch.randn(16, generator=torch.Generator().manual_seed(2))
    giver = llama()
    find_blocks(giver)[1].register_forward_hook(
        lambda _, args, hidden: hidden + 2 * added * asked.point_mask[..., None]
    )
    means = mean_states(host, asked)
    found = {
        name: effects(model, asked, LABELS, means, LAYERS)
        for name, model in (("baseline", host), ("aligned", giver))
    }
    moved = {
        "baseline": ("aligned", transplants(host, asked, point_states(giver, asked, LAYERS))),
        "aligned": ("baseline", transplants(giver, asked, point_states(host, asked, LAYERS))),
    }
    results = causal(found, moved, objects=[str(row) for row in range(12)])
    gap = results.transplant_gap.sel(into="baseline").values
    into = results.transplant.sel(into="baseline").values
    assert (into[:2] == 0).all() and (into[4] == 0).all()
    np.testing.assert_allclose(into[2], gap, atol=1e-5)
    np.testing.assert_allclose(results.transplant.sel(into="aligned").values[2], -gap, atol=1e-5)
    assert (results.transplant_wide_low <= results.transplant_low).all()
    assert (results.transplant_wide_high >= results.transplant_high).all()
    share = results.transplant_share_mean.sel(into="baseline")
    if share.notnull().all():
        np.testing.assert_allclose(share[:3], [0, 0, 1], atol=1e-5)


def test_donors_are_other_objects_of_the_class_and_objects_of_another():
    labels = np.repeat(np.arange(5), [2, 3, 4, 2, 6])
    same, other = donors(labels, seed=3)
    assert (labels[same] == labels).all() and (same != np.arange(17)).all()
    assert (labels[other] != labels).all() and (np.sort(same) == np.arange(17)).all()


def test_too_few_of_a_class_and_attention_without_a_mask_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="2 classes of 2 objects or more"):
        donors(np.array([0, 0, 1]))
    model, asked = llama(), questions(2)
    wrong = replaced(model, asked.point_mask, {5: asked.points})
    with (
        pytest.raises(ValueError, match=r"no layer 5: this model has 0 \(embeddings\) to 4"),
        wrong,
    ):
        pass
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="use sdpa or eager"), unread(model, asked.point_mask, [1]):
        pass


def test_logits_that_are_scaled_behind_the_head_are_refused():
    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, **kwargs):
            output = self.inner(**kwargs)
            output.logits = output.logits * 3
            return output

    with pytest.raises(ValueError, match="are not its logits"):
        find_unembedding(Scaled(llama()), questions().embeds[:1])


def test_the_stopping_layer_of_known_curves():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 200))
    layers = np.array([0, 4, 8, 12, 16])
    curve = np.array([-10, -8, -1, -0.2, 0])[:, None]
    found = stopping_layer(curve + 0.1 * noise, layers)
    assert (found.mean, found.low, found.high) == (12, 12, 12)
    assert np.isnan(stopping_layer(noise, layers).mean)
    assert stopping_layer(np.repeat(curve[:1], 5, 0) + 0.1 * noise, layers).mean == np.inf


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crossing", "noise", "most"),
    [(16.1, 0.3, 0.985), (18, 0.3, 1), (22, 0.3, 1), (23.9, 0.3, 0.97), (23.9, 2, 0.97)],
)
def test_the_layer_where_reading_stops_is_covered_whatever_the_effect(crossing, noise, most):
    """An effect that is a twentieth at `crossing`: just behind layer 16, midway, before 24."""
    rng, layers = np.random.default_rng(0), np.arange(0, 33, 4)
    effect = 5 * 0.05 ** (layers / crossing) * (layers < 32)
    truth = layers[np.flatnonzero(effect > 0.05 * 5)[-1] + 1]
    held = []
    for at in range(1000):
        own = rng.gamma(2, 0.5, 120) * (1 + 0.5 * rng.normal(size=(9, 120))) * effect[:, None]
        own[:-1] += noise * rng.normal(size=(8, 120))
        found = stopping_layer(-own, layers, seed=at)
        held.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(held) <= most  # 94 % and more; a standard error of 0.7 points


def test_a_finding_of_noise_says_so_and_effects_are_the_same_twice():
    asked, model = questions(), llama()
    means = mean_states(model, asked)
    once, twice = (effects(model, asked, LABELS, means, [0, 2, 4], seed=5) for _ in range(2))
    assert once.identical(twice) and list(once.intervention) == list(INTERVENTIONS)
    assert once.window.values.tolist() == ["1–2", "3–4"]
    quiet = once.assign(change=once.change * 0 + np.random.default_rng(0).normal(size=12))
    said = findings(causal({"untrained": quiet}, {}, objects=list("abcdefghijkl")))
    assert "do not depend on the point tokens" in said[0]


def test_one_layer_is_refused_and_layers_that_do_not_reach_the_end_claim_no_stop():
    asked, model = questions(), llama()
    means, names = mean_states(model, asked), list("abcdefghijkl")
    with pytest.raises(ValueError, match="1 layer: where the text stops reading takes 2 or more"):
        causal({"untrained": effects(model, asked, LABELS, means, [0])}, {}, objects=names)
    read_on = effects(model, asked, LABELS, means, [0, 2])
    steady = np.random.default_rng(0).normal(-1, 0.1, size=read_on.change.shape)
    found = causal(
        {"baseline": read_on.assign(change=read_on.change * 0 + steady)}, {}, objects=names
    )
    assert np.isinf(found.stops).all()
    said = findings(found)[0]
    assert "not seen to stop reading the point tokens up to layer 2, the last" in said
    assert "inf" not in said


def test_a_gap_that_is_closed_in_part_is_not_told_as_closed_for_the_most():
    rng = np.random.default_rng(0)
    asked, model = questions(), llama()
    one = effects(model, asked, LABELS, mean_states(model, asked), [0, 2, 4])
    better = one.assign(log_probability=one.log_probability + 1)
    part = np.array([0, 0.12, 0])[:, None] + 0.01 * rng.normal(size=(3, 12)) * [[1], [1], [0]]
    found = causal(
        {"baseline": one, "aligned": better},
        {"baseline": ("aligned", part)},
        objects=[str(row) for row in range(12)],
    )
    share = np.mean(part[1])  # of a gap of 1 nat
    said = findings(found)[-1]
    assert f"its point tokens close {share:.0%} [" in said
    assert "of the gap at layer 2, the most of any layer (p = " in said
