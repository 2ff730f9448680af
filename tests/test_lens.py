"""Lenses against the model's own logits, scipy and scikit-learn, and words that were planted."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, rel_entr
from scipy.stats import rankdata
from sklearn.neighbors import NearestNeighbors
from torch import nn

from probe.lens import (
    Captions,
    Text,
    Translator,
    findings,
    first_tokens,
    held_out,
    lens,
    logit_lens,
    nearest_captions,
    read_model,
    tuned_lens,
)
from probe.patching import answered, find_unembedding, states_at
from probe.plots_causal import lens_figure
from tests.test_causal import DEPTH, llama, questions

WORDS = np.array([3, 11, 20, 31])
DIM, VOCABULARY = 24, 40


def unembedding(seed=0):
    torch.manual_seed(seed)
    return nn.LayerNorm(DIM), nn.Linear(DIM, VOCABULARY, bias=False)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_lens_on_the_last_state_gives_the_models_own_distribution():
    model, asked = llama(), questions()
    everywhere = torch.ones_like(asked.point_mask)
    last = states_at(model, asked, everywhere, [DEPTH])[0].view(12, 12, 16)
    reading = logit_lens(last, *find_unembedding(model, asked.embeds), WORDS, top=3)
    with torch.no_grad():
        logits = model(inputs_embeds=asked.embeds, attention_mask=asked.attention_mask).logits
    expected = log_softmax(logits.double().numpy(), axis=-1)
    np.testing.assert_allclose(reading.log_probability, expected[..., WORDS], atol=1e-4)
    np.testing.assert_allclose(reading.entropy, -(np.exp(expected) * expected).sum(-1), atol=1e-4)
    np.testing.assert_array_equal(reading.rank, rankdata(-expected, axis=-1)[..., WORDS])
    np.testing.assert_array_equal(reading.top, np.argsort(-expected, axis=-1)[..., :3])
    said = asked.labels[0, 8]
    before = logit_lens(last[:1, 7:8], *find_unembedding(model, asked.embeds), [int(said)])
    assert before.log_probability[0, 0, 0] > answered(model, asked)[0]  # the first of its tokens


def test_batches_do_not_change_a_reading(monkeypatch):
    norm, head = unembedding()
    whole = logit_lens(drawn(9, 5, DIM), norm, head, WORDS)
    monkeypatch.setattr("probe.lens.NUMBERS_AT_ONCE", 1)
    for ours, theirs in zip(logit_lens(drawn(9, 5, DIM), norm, head, WORDS), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def planted_text(layers=2):
    """Text whose states are those behind the last block, turned and moved by a known map."""
    final = drawn(600, DIM, seed=1)
    turn = torch.linalg.qr(drawn(DIM, DIM, seed=2)).Q
    moved = 0.5 * final + 0.5 * final @ turn + drawn(DIM, seed=3)
    states = torch.stack([moved, final][:layers])
    return Text(states, final, np.repeat(np.arange(60), 10))


def test_a_tuned_lens_undoes_a_known_map_and_leaves_norm_and_head_alone():
    norm, head = unembedding()
    before = [parameter.clone() for parameter in (*norm.parameters(), *head.parameters())]
    text = planted_text()
    (translator, kl), (_, same) = tuned_lens(text, norm, head, steps=600)
    assert (kl[1] < kl[0] / 3).all()
    np.testing.assert_allclose(same[0], 0, atol=1e-6)
    assert (same[1] < 1e-3).all()
    held = translator(text.states[0])
    closer = (held - held.mean(0)).flatten() @ (text.final - text.final.mean(0)).flatten()
    assert closer > 0
    for old, new in zip(before, (*norm.parameters(), *head.parameters()), strict=True):
        assert torch.equal(old, new) and new.grad is None


def test_a_translator_begins_as_the_identity_and_is_the_same_for_the_same_seed():
    assert torch.equal(Translator(DIM)(drawn(7, DIM)), drawn(7, DIM))
    norm, head = unembedding()
    once, twice = (list(tuned_lens(planted_text(), norm, head, steps=5, seed=3)) for _ in range(2))
    assert torch.equal(once[0][0].weight, twice[0][0].weight)
    with pytest.raises(ValueError, match="4 conversations: a tuned lens needs 5 or more"):
        next(tuned_lens(Text(drawn(1, 8, DIM), drawn(8, DIM), np.arange(8) // 2), norm, head))


def test_held_out_tokens_are_read_few_at_a_time_and_give_the_same_divergence(monkeypatch):
    norm, head = unembedding()
    whole = [kl for _, kl in tuned_lens(planted_text(), norm, head, steps=3)]
    seen = []
    head.register_forward_hook(
        lambda _, args, out: None if out.requires_grad else seen.append(len(out))
    )
    monkeypatch.setattr("probe.lens.NUMBERS_AT_ONCE", 7 * VOCABULARY)
    text = planted_text()
    wide = Text(text.states.double(), text.final, text.of)  # made float32 layer by layer
    pieces = [kl for _, kl in tuned_lens(wide, norm, head, steps=3)]
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-7)
    assert set(seen) == {1, 7, 120 % 7, 128}  # 128 are the model's own, of a batch of the fit


def test_nearest_captions_are_the_neighbours_of_sklearn_in_centred_states():
    hidden, bank = drawn(6, 3, DIM) + 5, drawn(50, DIM, seed=1) - 3
    centred = (hidden - hidden.mean(dim=(0, 1))).reshape(18, DIM)
    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(bank - bank.mean(0))
    expected = search.kneighbors(centred, return_distance=False)[:, 0]
    np.testing.assert_array_equal(nearest_captions(hidden, bank).ravel(), expected)


def read_planted(strength, layers=2, text=None):
    """Point tokens that hold their class's word, and captions whose tokens hold it as well."""
    norm, head = unembedding()
    labels = np.repeat(np.arange(4), 8)
    direction = torch.nn.functional.normalize(head.weight.detach()[WORDS], dim=-1)
    points = drawn(layers, 32, 5, DIM) + strength * direction[labels][None, :, None]
    captions = np.repeat(np.arange(4), 3)
    bank = drawn(layers, 12 * 6, DIM, seed=5) + strength * direction[np.repeat(captions, 6)]
    found = read_model(
        points,
        labels,
        WORDS,
        text or planted_text(layers),
        Captions(bank, np.repeat(np.arange(12), 6), captions),
        norm,
        head,
    )
    return lens(
        {"planted": found},
        layers=[0, 2],
        objects=[f"object {row}" for row in range(32)],
        vocabulary=[f"word {row}" for row in range(VOCABULARY)],
        captions=[f"caption {row}" for row in range(12)],
        texts=[f"text {row}" for row in range(60)],
    )


def test_a_planted_word_is_found_and_nothing_where_nothing_is():
    there, absent = read_planted(12.0), read_planted(0.0)
    plain = there.sel(variant="planted", lens="logit")
    assert (plain.rank_mean < 1.5).all() and (plain.advantage_low > 1).all()
    assert set(np.unique(plain.word)) <= set(WORDS)
    assert set(plain.top_word.values[0, :4]) == {f"word {row}" for row in WORDS}
    np.testing.assert_allclose(plain.top_share[:, :4].sum("place"), 1)
    assert (there.caption_match_low > 0.9).all()
    np.testing.assert_allclose(there.caption_match_shuffled, 0.25, atol=0.1)
    quiet = absent.sel(lens="logit")
    assert ((quiet.advantage_low < 0) & (quiet.advantage_high > 0)).all()
    assert ((absent.caption_match_low < 0.25) & (absent.caption_match_high > 0.25)).all()
    assert "'word" in findings(there)[0] and "layers" in findings(there)[0]
    assert "the caption nearest to a token is of its class for" in findings(there)[0]


def test_the_means_are_those_of_what_is_kept_of_each_object():
    found = read_planted(2.0)
    found["log_rank_mean"] = np.log(found.rank_mean)
    for name in ("log_probability", "advantage", "log_rank", "entropy", "caption_match"):
        each, mean = found[name], found[f"{name}_mean"]
        assert each.dims == (*mean.dims, "object") and each.dtype == "float32"
        assert "0 is the most probable" in each.attrs["units"] or name != "log_rank"
        np.testing.assert_allclose(each.mean("object"), mean, rtol=1e-5, atol=1e-6)


def test_what_the_lens_misses_of_the_next_token_has_an_interval_over_texts():
    norm, head = unembedding()
    text, found = planted_text(), read_planted(0.0)
    with torch.no_grad():
        own, seen = (head(norm(part)).softmax(-1) for part in (text.final, text.states[0]))
    each = rel_entr(own.numpy(), seen.numpy()).sum(axis=-1).reshape(60, 10).mean(axis=1)
    mine = [int(name.removeprefix("text ")) for name in found.text.values]
    assert mine == sorted(held_out(text)) and len(mine) == 12
    plain = found.isel(variant=0).sel(lens="logit").isel(layer=0)
    np.testing.assert_allclose(plain.kl, each[mine], rtol=1e-4)
    exact = stats.t.interval(0.95, 11, plain.kl.mean(), stats.sem(plain.kl))
    np.testing.assert_allclose([plain.kl_low, plain.kl_high], exact, rtol=0.05)
    assert float(plain.kl_mean) == pytest.approx(each[mine].mean(), rel=1e-4)


def test_a_text_counts_as_one_however_long_and_few_have_no_interval():
    norm, head = unembedding()
    text = planted_text()
    of = np.random.default_rng(4).permutation(np.repeat(np.arange(12), np.arange(12) * 9 + 1))[:600]
    uneven = Text(text.states, text.final, of)
    with torch.no_grad():
        own, seen = (head(norm(part)).softmax(-1) for part in (text.final, text.states[0]))
    each = rel_entr(own.numpy(), seen.numpy()).sum(axis=-1)
    _, kl = next(tuned_lens(uneven, norm, head, steps=1))
    means = [each[of == one].mean() for one in held_out(uneven)]
    np.testing.assert_allclose(kl[0], means, rtol=1e-4)
    few = read_planted(0.0, text=Text(text.states, text.final, np.repeat(np.arange(6), 100)))
    assert few.sizes["text"] == 2 and np.isfinite(few.kl_mean).all()
    assert few.kl_low.isnull().all() and few.kl_high.isnull().all()


def test_earlier_results_without_an_interval_of_the_lens_are_drawn():
    found = read_planted(2.0).assign_attrs(run="run")
    older = found.assign(kl=found.kl_mean).drop_vars(["kl_mean", "kl_low", "kl_high"])
    drawn, again = (lens_figure(one).to_dict()["data"] for one in (found, older))
    lines = [[trace["y"] for trace in one if trace["xaxis"] == "x4"] for one in (drawn, again)]
    assert len(lines[1]) and any(np.array_equal(lines[1][0], each) for each in lines[0])


def test_classes_of_one_first_token_are_no_control_of_each_other():
    norm, head = unembedding()
    words = np.array([3, 3, 20])
    labels = np.repeat([0, 1, 2], 4)
    bank = Captions(drawn(1, 12, DIM), np.arange(12), labels)
    hidden = drawn(1, 12, 2, DIM)
    found = read_model(hidden, labels, words, planted_text(1), bank, norm, head)
    reading = logit_lens(hidden[0], norm, head, words).log_probability.mean(axis=1)
    np.testing.assert_allclose(found["advantage"][0, 0, :8], (reading[:, 0] - reading[:, 2])[:8])


def test_the_first_token_of_a_name_is_that_of_a_word_within_a_sentence():
    assert first_tokens(lambda text: [len(text), 0], ["bed", "wine_glass"]).tolist() == [4, 11]
    with pytest.raises(ValueError, match="class 'bed' has no token"):
        first_tokens(lambda text: [], ["bed"])
