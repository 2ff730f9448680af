"""Batches: the same for any number of processes, each process with its share, nothing too long."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.conftest import TINY
from train.batches import MIX, Batches, check_lengths
from train.data.objects import Conversation
from train.models.minigpt3d import build
from train.prompts import encode_conversation

OBJECTS = 12
SIZES = {"detailed_description": 6, "single_round": 10, "multi_round": 4}


def letters() -> Tokenizer:
    """Byte-level, without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: row for row, each in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def talk() -> list[Conversation]:
    """Conversations of each kind about each object, of very unequal lengths."""
    said = []
    for row in range(OBJECTS):
        asked, told = "what" + " is" * (row % 5) + "?", "a thing " * (1 + row % 7)
        said += [
            Conversation(row, "detailed_description", ((asked, told * 3),)),
            Conversation(row, "single_round", ((asked, told),)),
            Conversation(row, "multi_round", ((asked, "so"), ("Why?", told), ("Sure?", "yes"))),
            Conversation(row, "simple_description", ((asked, "thing"),)),
        ]
    return said


def batches(shown=None, **more) -> Batches:
    if shown is None:
        numbers = torch.arange(OBJECTS * 4 * TINY.qformer_width).float()
        shown = numbers.sin().reshape(OBJECTS, 4, TINY.qformer_width)
    settings = {"weights": MIX, "size": SIZES, "queries": 4, "context": 256, "seed": 3}
    return Batches(talk(), shown, letters(), **settings | more)


def test_a_batch_depends_on_seed_and_number_alone():
    made, said = batches(size=5), talk()
    for index in (7, 0, 7):
        rng = np.random.default_rng([3, index])
        kind = list(MIX)[rng.choice(3, p=np.array([2, 3, 3]) / 8)]
        pool = [each for each in said if each.kind == kind]
        drawn = [pool[row] for row in rng.integers(len(pool), size=5)]
        batch = made(index)
        assert batch.objects.tolist() == [each.object for each in drawn]
        assert torch.equal(batch.shown, made.shown(batch.objects))
        for row, each in enumerate(drawn):
            ids = encode_conversation(letters(), each.turns, points=4).input_ids
            assert batch.input_ids[row, : len(ids)].tolist() == ids


def test_each_kind_has_its_own_batch_size():
    sizes = {len(batches()(index).input_ids) for index in range(30)}
    assert sizes == set(SIZES.values())


def test_one_process_has_the_whole_batch():
    for index in range(5):
        batch = batches()(index)
        assert (batch.share, batch.row_share) == (1.0, 1.0)


@given(index=st.integers(0, 10_000), processes=st.integers(2, 4))
def test_processes_share_the_batch_of_a_single_one(index, processes):
    whole = batches()(index)
    parts = [batches(process=p, processes=processes)(index) for p in range(processes)]
    for number, part in enumerate(parts):
        own = slice(number, None, processes)
        assert torch.equal(part.input_ids, whole.input_ids[own])  # padded alike, too
        assert torch.equal(part.tokens.labels, whole.tokens.labels[own])
        assert torch.equal(part.shown, whole.shown[own])
        assert torch.equal(part.objects, whole.objects[own])
        assert part.longest_prompt == whole.longest_prompt
        assert part.row_share * len(whole.objects) == pytest.approx(len(part.objects) * processes)
    for name in ("share", "row_share"):
        assert np.mean([getattr(part, name) for part in parts]) == pytest.approx(1)


def test_losses_by_their_share_have_the_loss_of_the_whole_batch_as_their_mean():
    model = build(TINY, seed=1).eval()

    def loss(batch):
        with torch.no_grad():
            return model(batch.tokens, target=batch.shown).loss.item() * batch.share

    for index in range(3):
        parts = [loss(batches(process=p, processes=3)(index)) for p in range(3)]
        assert np.mean(parts) == pytest.approx(loss(batches()(index)), rel=1e-6)


def test_the_longest_prompt_ends_where_the_first_answer_begins():
    for index in range(5):
        batch = batches()(index)
        prompts = [row.ne(-100).nonzero()[0].item() for row in batch.tokens.labels]
        assert batch.longest_prompt == max(prompts)


def test_without_the_template_single_turns_begin_with_the_cloud():
    made = batches(weights={"single_round": 1}, template=False)
    assert made(0).tokens.point_mask.nonzero()[0].tolist() == [0, len("^<PC>")]
    rounds = batches(weights={"multi_round": 1}, template=False)
    assert rounds(0).tokens.point_mask.nonzero()[0].tolist() == [0, len("^[INST] <PC>")]


def test_batches_that_are_summed_up_belong_to_one_step():
    made = batches(accumulate=3)
    assert [made(index).step for index in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_what_is_shown_may_be_made_on_demand():
    cached = batches(process=1, processes=2)
    asked = []

    def show(rows):
        asked.append(rows.tolist())
        return cached.shown(rows)

    batch = batches(show, process=1, processes=2)(5)
    assert torch.equal(batch.shown, cached(5).shown)
    assert asked == [batch.objects.tolist()]  # of its own samples only


def test_a_batch_smaller_than_the_processes_names_the_flag():
    with pytest.raises(ValueError, match=r"4 multi_round .* 5 processes: raise --batch-size to 5"):
        batches(processes=5)


def test_kinds_that_the_data_lacks_are_an_error():
    with pytest.raises(ValueError, match=r"no conversation of the kinds poem: .*single_round"):
        batches(weights={"poem": 1})


def test_conversations_longer_than_the_context_are_named_before_training():
    ids = [f"thing-{row}" for row in range(OBJECTS)]
    sizes = {
        each.object: len(encode_conversation(letters(), each.turns, points=4).input_ids)
        for each in talk()
        if each.kind == "detailed_description"
    }
    longest = max(sizes, key=sizes.get)
    named = rf"1 of {OBJECTS * 3} .* thing-{longest} \(detailed_description, {sizes[longest]} tok"
    limit = sizes[longest] - 1
    with pytest.raises(ValueError, match=named):
        batches(context=limit, ids=ids)
    with pytest.raises(ValueError, match=rf"than the {limit} .* objects {longest} \("):
        batches(context=limit)
    batches(context=limit, weights={"single_round": 1})  # the others are never drawn


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=60)), min_size=1, max_size=3))
def test_the_quick_pass_over_the_lengths_misses_nothing(turns):
    """It skips what has few bytes: no such conversation may have more tokens than allowed."""
    turns = tuple((question.replace("<", ""), answer) for question, answer in turns)
    tokens = len(encode_conversation(letters(), turns, points=4).input_ids)
    said = [Conversation(0, "single_round", turns)]
    check_lengths(said, letters(), queries=4, context=tokens)
    with pytest.raises(ValueError, match=rf"\(single_round, {tokens} tokens\)"):
        check_lengths(said, letters(), queries=4, context=tokens - 1)
