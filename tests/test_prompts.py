"""The prompt template: which tokens, where the cloud stands, what is learned."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.golden import golden
from train.prompts import (
    TEMPLATE,
    ask_published,
    bos_id,
    clean_question,
    collate,
    encode_conversation,
    encode_ids,
    encode_prompts,
    encode_question,
    prefix,
    simple_question,
)

BOS = 256


class Bytes:
    """The goldens' tokenizer: UTF-8 bytes, and one id for <|endoftext|>."""

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        assert "<|endoftext|>" not in text
        return list(text.encode())

    def convert_tokens_to_ids(self, token):
        return {"<|endoftext|>": BOS}[token]


def phi2_like() -> Tokenizer:
    """Byte-level, with the whitespace tokens that Phi-2 adds and that joined pieces would miss."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    return tokenizer


def text(encoded, ids=None) -> str:
    """What a row of bytes says: the cloud as ‹n›, bos as ^."""
    ids = encoded.input_ids if ids is None else ids
    start, end = encoded.point_start, encoded.point_start + encoded.points

    def say(part):
        return "".join("^" if each == BOS else chr(each) for each in part)

    return f"{say(ids[:start])}‹{end - start}›{say(ids[end:])}"


def learned(encoded) -> str:
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    assert all(label in (-100, each) for each, label in pairs)
    return "".join(chr(label) for label in encoded.labels if label != -100)


@pytest.mark.parametrize("name", ["pointalign_step", "pointalign_step_spread"])
def test_single_and_multi_round_tokens_are_those_of_the_published_code(name):
    meta, arrays = golden(name)
    inputs, spans = meta["inputs"], meta["positions"]
    single = [([one["prompt"]], [one["answer"]]) for one in inputs["samples"]]
    rounds = [
        ([TEMPLATE.format(question) for question in one["questions"]], one["answers"])
        for one in inputs["multi_round_samples"]
    ]
    for kind, rows, prefixed in (("single", single, ""), ("multi_round", rounds, "multi_")):
        encoded = [encode_prompts(Bytes(), *row, points=32) for row in rows]
        batch = collate(encoded, BOS)
        width = batch.input_ids.shape[1]
        mask, targets = (arrays[f"{prefixed}{part}"] for part in ("attention_mask", "targets"))
        assert batch.attention_mask.tolist() == mask[:, :width].tolist()
        assert batch.labels.tolist() == targets[:, :width].tolist()
        assert not mask[:, width:].any() and (targets[:, width:] == -100).all()
        points = [row.nonzero().flatten().tolist() for row in batch.point_mask]
        assert points == spans[kind]["point_tokens_per_row"]


def test_multi_round_golden_questions_come_out_of_encode_conversation():
    meta, _ = golden("pointalign_step")
    for one in meta["inputs"]["multi_round_samples"]:
        questions = [
            text.removeprefix("<PC><PointCloudHere></PC>").strip() for text in one["questions"]
        ]
        turns = list(zip(questions, one["answers"], strict=True))
        prompts = [TEMPLATE.format(text) for text in one["questions"]]
        direct = encode_prompts(Bytes(), prompts, one["answers"], points=32)
        assert encode_conversation(Bytes(), turns) == direct
        assert direct.input_ids[1 : direct.point_start] == one["ids_before_points"]
        after = one["ids_after_points"] + [
            each for part in one["after_prompt"] for each in part["ids"]
        ]
        assert direct.input_ids[direct.point_start + 32 :] == after


def test_a_single_round_as_minigpt3d_trains_it():
    encoded = encode_conversation(Bytes(), [("<point>\nWhat is this?", "A Chair.")])
    assert text(encoded) == "^[INST] <PC>‹32›</PC> what is this?  [/INST]A Chair.###"
    assert learned(encoded) == "A Chair.###"
    assert set(encoded.attended) == {1}


def test_a_single_round_as_pointalign_trains_it_has_no_template():
    encoded = encode_conversation(Bytes(), [("What is this?", "A chair.")], template=False)
    assert text(encoded) == "^<PC>‹32›</PC> what is this? A chair.###"


def test_several_rounds_keep_their_case_and_hide_the_inner_bos():
    turns = [("What, Is: it?\n<point>", "A Car."), ("Its COLOR.", "Red"), ("Sure?", "Yes")]
    encoded = encode_conversation(Bytes(), turns, template=False)  # does not concern rounds
    assert text(encoded) == (
        "^[INST] <PC>‹32›</PC> What, Is: it?  [/INST]A Car.###"
        "^[INST] Its COLOR.  [/INST]Red###^[INST] Sure?  [/INST]Yes###"
    )
    assert learned(encoded) == "A Car.###Red###Yes###"
    hidden = [place for place, seen in enumerate(encoded.attended) if not seen]
    cloud = set(range(encoded.point_start, encoded.point_start + 32))
    inner = [
        place
        for place, each in enumerate(encoded.input_ids)
        if each == BOS and place and place not in cloud
    ]
    assert hidden == inner and len(inner) == 2


def test_two_spaces_before_the_end_of_the_template_are_one_token():
    tokenizer = phi2_like()
    two = tokenizer.token_to_id("  ")
    encoded = encode_conversation(tokenizer, [("what is this?", "a chair")])
    assert encoded.input_ids.count(two) == 1
    assert encoded.input_ids[0] == bos_id(tokenizer)


def test_either_kind_of_tokenizer_gives_the_same_row():
    plain = phi2_like()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=phi2_like(), bos_token="<|endoftext|>")
    turns = [("What is it?", "A lamp."), ("Its color?", "Green.")]
    assert encode_conversation(plain, turns) == encode_conversation(wrapped, turns)
    assert encode_ids(plain, "a  b") == encode_ids(wrapped, "a  b")


def test_a_tokenizer_without_bos_is_an_error():
    tokenizer = Tokenizer(models.BPE({"a": 0}, merges=[]))
    with pytest.raises(ValueError, match=r"has none of <\|endoftext\|>"):
        encode_question(tokenizer, "a")


def test_questions_are_processed_as_blip_processes_captions():
    assert simple_question('Is "IT", (really):  a #1 *chair*?') == "is it , really a 1 chair ?"
    assert simple_question("What's the color; of this?") == "what's the color of this?"
    assert len(simple_question("word " * 70).split()) == 50
    assert clean_question("<point>\nWhat is\nthis? ") == "What isthis?"


def test_a_question_is_the_beginning_of_its_conversation():
    question = encode_question(Bytes(), "What is this?")
    whole = encode_conversation(Bytes(), [("What is this?", "A chair.")])
    assert whole.input_ids[: len(question.input_ids)] == question.input_ids
    assert question.point_start == whole.point_start
    assert learned(question) == ""


def test_the_short_prefix_begins_every_templated_prompt():
    short = prefix(Bytes(), 32)
    assert text(short) == "^[INST] <PC>‹32›"
    single = encode_conversation(Bytes(), [("What?", "That.")])
    rounds = encode_conversation(Bytes(), [("What?", "That."), ("Where?", "There.")])
    for whole in (single, rounds):
        assert whole.input_ids[: len(short.input_ids)] == short.input_ids
        assert whole.point_start == short.point_start
    assert text(prefix(Bytes(), 4, template=False)) == "^<PC>‹4›"


def test_the_benchmark_form_doubles_its_tags_and_has_no_bos():
    asked = ask_published(Bytes(), "What is THIS?")
    assert text(asked) == "<s>[INST] <PC>‹32›</PC> <s>[INST] What is THIS? [/INST]"


def test_no_point_tokens_leave_only_text():
    encoded = encode_conversation(Bytes(), [("What?", "That.")], points=0)
    assert text(encoded) == "^[INST] <PC>‹0›</PC> what?  [/INST]That.###"


def test_a_conversation_longer_than_the_context_names_both_numbers():
    fits = encode_conversation(Bytes(), [("What?", "That.")])
    size = len(fits.input_ids)
    encode_conversation(Bytes(), [("What?", "That.")], context=size)
    with pytest.raises(ValueError, match=rf"{size} tokens, the model reads {size - 1}"):
        encode_conversation(Bytes(), [("What?", "That.")], context=size - 1)


def test_answers_are_cut_as_the_published_code_cuts_them():
    """It keeps 1024 tokens of all that follows the first prompt; the prompts are never cut."""
    single = encode_conversation(Bytes(), [("What?", "a" * 2000)])
    assert learned(single) == "a" * 1024
    rounds = encode_conversation(Bytes(), [("What?", "b" * 1010), ("Why so?", "c")])
    assert text(rounds).endswith("b###^[INST] Why")
    assert learned(rounds) == "b" * 1010 + "###"
    fits = encode_conversation(Bytes(), [("What?", "d" * 1021)])
    assert learned(fits) == "d" * 1021 + "###"


def test_no_turns_and_no_placeholder_are_errors():
    with pytest.raises(ValueError, match="0 turns"):
        encode_conversation(Bytes(), [])
    with pytest.raises(ValueError, match="0 placeholders"):
        encode_prompts(Bytes(), ["What?"], [], points=32)
    with pytest.raises(ValueError, match="2 placeholders"):
        encode_conversation(Bytes(), [("<PointCloudHere>?", "That."), ("Why?", "So.")])


def test_rows_of_unequal_prompts_keep_their_own_span_and_padding():
    rows = [
        encode_prompts(Bytes(), ["Look: <PointCloudHere> what?"], ["A"], points=3),
        encode_prompts(Bytes(), ["<PointCloudHere>?"], ["A long answer"], points=3),
    ]
    batch = collate(rows, pad_id=BOS)
    assert batch.point_mask.nonzero().tolist() == [[0, 7], [0, 8], [0, 9], [1, 1], [1, 2], [1, 3]]
    for row, encoded in enumerate(rows):
        size = len(encoded.input_ids)
        assert batch.input_ids[row, :size].tolist() == encoded.input_ids
        assert batch.attention_mask[row].sum() == size
        assert batch.labels[row, size:].eq(-100).all()
        assert batch.input_ids[row, size:].eq(BOS).all()


def test_rows_with_unequal_point_counts_do_not_make_a_batch():
    rows = [encode_question(Bytes(), "What?", points=points) for points in (3, 4)]
    with pytest.raises(ValueError, match=r"equally many point tokens, got \[3, 4\]"):
        collate(rows, BOS)


def test_a_batch_moves_whole():
    batch = collate([encode_question(Bytes(), "What?")], BOS).to("meta")
    assert batch.input_ids.device == batch.point_mask.device == torch.device("meta")


@given(
    st.lists(st.tuples(st.text(st.characters(codec="utf-8")), st.text()), min_size=1, max_size=4)
)
def test_labels_are_the_answers_and_nothing_else_whatever_is_said(turns):
    turns = [(question.replace("<", ""), answer.replace("<", "")) for question, answer in turns]
    encoded = encode_conversation(Bytes(), turns, context=10**6)
    said = bytes(label for label in encoded.labels if label != -100)
    assert said == b"".join(f"{answer}###".encode() for _, answer in turns)
    assert encoded.point_start == len("^[INST] <PC>")
