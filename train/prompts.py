"""The one prompt template, token by token, and where its point tokens are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

BEGINNINGS = ("<|endoftext|>", "<|begin_of_text|>", "<bos>", "<s>")
"""With what a sequence begins, the first that a tokenizer has. Phi-2's only special token comes
first, which in the published code also pads; Phi-3, Llama and Gemma have another."""
PLACEHOLDER = "<PointCloudHere>"
POINTS_HERE = f"<PC>{PLACEHOLDER}</PC>"
TEMPLATE = "[INST] {} [/INST]"
ANSWER_END = "###"
"""Ends every answer; there is no end-of-sequence token."""
UNLABELLED = -100
"""What a cross entropy of torch and transformers passes over."""
SHORT_QUESTION = 50
"""Words that a single question keeps."""
MAX_ANSWER = 1024
"""Tokens that are kept of what follows a first prompt: all answers and the questions between."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as tokens; the three lists are equally long."""

    input_ids: list[int]
    """The ids at the point tokens are fillers: embeddings take their place."""
    labels: list[int]
    """`input_ids` where an answer is to be learned, -100 elsewhere."""
    attended: list[int]
    """1, or 0 where nothing may look."""
    point_start: int
    """Index of the first point token; 0 is the bos of the sequence."""
    points: int
    """How many point tokens there are."""


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right to the longest, each (samples, tokens)."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    point_mask: Tensor
    """True at the point tokens, equally many in each row."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def rows(self, rows: slice) -> Batch:
        """Some of the conversations, padded as they are."""
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))


def encode_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of `text` without any special token added.

    tokenizer : a `tokenizers.Tokenizer` or a tokenizer of transformers.
    """
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return list(getattr(encoded, "ids", encoded))


def bos_id(tokenizer: Any) -> int:
    """Id of the token that begins a sequence; ValueError when the tokenizer has none."""
    look_up = getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids
    for token in BEGINNINGS:
        if (found := look_up(token)) is not None:
            return found
    raise ValueError(
        f"the tokenizer has none of {', '.join(BEGINNINGS)}, with which a sequence begins"
    )


def clean_question(text: str) -> str:
    """A human turn as written in PointLLM's annotations, without its `<point>` and line breaks."""
    return text.replace("<point>", "").replace("\n", "").strip()


def simple_question(text: str) -> str:
    """What training makes of a conversation's only question: BLIP's processing of captions.

    Lower case, no punctuation but question mark and comma, single spaces, at most 50 words.
    """
    words = re.sub(r'[.!"()*#:;~]', " ", text.lower()).split()
    return " ".join(words[:SHORT_QUESTION])


def first_prompt(question: str) -> str:
    """The first question with the cloud before it; ends in a space, as published."""
    return f"{POINTS_HERE} {question} "


def encode_conversation(
    tokenizer: Any,
    turns: Sequence[tuple[str, str]],
    *,
    points: int = 32,
    template: bool = True,
    context: int | None = 2048,
    max_answer: int = MAX_ANSWER,
) -> Encoded:
    """A conversation for training, in the published form.

    turns      : (question, answer) pairs; an only question goes through `simple_question`, the
                 questions of several rounds stay as they are.
    points     : point tokens of an object.
    template   : put an only question between [INST] and [/INST]; several rounds always are.
                 PointAlign's released stage 2 does not, MiniGPT-3D does.
    context    : the most tokens that the model reads; None to leave that to the caller.
    max_answer : the most tokens after the first prompt; the rest is cut off, as published, and
                 the last answer then lacks its end.

    Raises ValueError when there is no turn or the conversation doesn't fit the context.
    """
    if not turns:
        raise ValueError("a conversation of 0 turns: it needs 1 or more")
    questions = [clean_question(question) for question, _ in turns]
    if len(turns) == 1:
        first = first_prompt(simple_question(questions[0]))
        prompts = [TEMPLATE.format(first) if template else first]
    else:
        later = [f"{question} " for question in questions[1:]]
        prompts = [TEMPLATE.format(text) for text in (first_prompt(questions[0]), *later)]
    answers = [answer for _, answer in turns]
    encoded = encode_prompts(tokenizer, prompts, answers, points=points)
    encoded = _cut(encoded, max_answer)
    if context is not None and len(encoded.input_ids) > context:
        raise ValueError(
            f"a conversation of {len(turns)} turns has {len(encoded.input_ids)} tokens, the model "
            f"reads {context}; shorten it or take a model with a longer context"
        )
    return encoded


def _cut(encoded: Encoded, most: int) -> Encoded:
    """Without what comes more than `most` tokens after the beginning of the first answer."""
    answer = next(place for place, label in enumerate(encoded.labels) if label != UNLABELLED)
    end = answer + most
    return replace(
        encoded,
        input_ids=encoded.input_ids[:end],
        labels=encoded.labels[:end],
        attended=encoded.attended[:end],
    )


def encode_question(
    tokenizer: Any, question: str, *, points: int = 32, template: bool = True
) -> Encoded:
    """A single question to be answered, in the form it has in training, bos included.

    The published benchmarks ask in another form, which training never shows; see `ask_published`.
    """
    first = first_prompt(simple_question(clean_question(question)))
    prompt = TEMPLATE.format(first) if template else first
    return encode_prompts(tokenizer, [prompt], [], points=points)


def ask_published(tokenizer: Any, question: str, *, points: int = 32) -> Encoded:
    """A single question as the published benchmarks ask it: doubled tags, case kept, no bos."""
    prompt = f"<s>[INST] {POINTS_HERE} <s>[INST] {clean_question(question)} [/INST]"
    return encode_prompts(tokenizer, [prompt], [], points=points, bos=False)


def prefix(tokenizer: Any, points: int = 32, *, template: bool = True) -> Encoded:
    """The beginning that all training prompts share: up to and including the point tokens.

    Nothing that follows can change a causal model's states here, so a capture needs no question.
    """
    return encode_prompts(tokenizer, [prefix_text(template)], [], points=points)


def prefix_text(template: bool = True) -> str:
    """The same as it is written, the placeholder last."""
    return (TEMPLATE.partition("{}")[0] if template else "") + POINTS_HERE.removesuffix("</PC>")


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    points: int,
    bos: bool = True,
) -> Encoded:
    """Put finished prompts and their answers in a row: prompt, answer, bos, prompt, answer, ...

    prompts : the first holds the placeholder, once. The text on either side of it is tokenized as
              a whole: pieces joined later would be other tokens (two spaces are a single one).
    answers : as many as prompts, or one fewer when the last is still to come.
    bos     : begin the sequence with one.
    """
    if prompts[0].count(PLACEHOLDER) != 1:
        raise ValueError(
            f"a first prompt with {prompts[0].count(PLACEHOLDER)} placeholders {PLACEHOLDER}, "
            f"wanted 1: {prompts[0]!r}"
        )
    start = bos_id(tokenizer)
    before, after = (encode_ids(tokenizer, side) for side in prompts[0].split(PLACEHOLDER))
    row = _Row()
    if bos:
        row.add([start])
    row.add(before)
    point_start = len(row.input_ids)
    row.add([start] * points)
    row.add(after)
    for turn, prompt in enumerate(prompts):
        if turn:
            # Padding is bos in the published code, and its mask is `id != pad`: no later token
            # sees the bos of a later question.
            row.add([start], attended=0)
            row.add(encode_ids(tokenizer, prompt))
        if turn < len(answers):
            row.add(encode_ids(tokenizer, answers[turn] + ANSWER_END), labelled=True)
    return Encoded(row.input_ids, row.labels, row.attended, point_start, points)


class _Row:
    """Three lists that grow together."""

    def __init__(self):
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.attended: list[int] = []

    def add(self, ids: list[int], *, labelled: bool = False, attended: int = 1):
        self.input_ids += ids
        self.labels += ids if labelled else [UNLABELLED] * len(ids)
        self.attended += [attended] * len(ids)


def collate(encoded: Sequence[Encoded], pad_id: int) -> Batch:
    """Pad conversations on the right to the longest of them.

    Raises ValueError when they do not have equally many point tokens.
    """
    if len(counts := {each.points for each in encoded}) != 1:
        raise ValueError(f"a batch needs rows with equally many point tokens, got {sorted(counts)}")
    longest = max(len(each.input_ids) for each in encoded)
    shape = (len(encoded), longest)
    input_ids, labels = torch.full(shape, pad_id), torch.full(shape, UNLABELLED)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    point_mask = torch.zeros(shape, dtype=torch.bool)
    for row, each in enumerate(encoded):
        tokens = len(each.input_ids)
        input_ids[row, :tokens] = torch.tensor(each.input_ids)
        labels[row, :tokens] = torch.tensor(each.labels)
        attention_mask[row, :tokens] = torch.tensor(each.attended)
        point_mask[row, each.point_start : each.point_start + each.points] = True
    return Batch(input_ids, labels, attention_mask, point_mask)
