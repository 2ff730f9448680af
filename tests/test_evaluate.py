"""Reading a class out of an answer, and asking a model."""

import numpy as np
import pytest
import torch

from tests.conftest import TINY
from train.checkpoint import load_model
from train.evaluate import answers, classify, named_class

NAMES = ["tree", "pine tree", "car", "wine_glass", "bus"]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ("This is a pine tree.", "pine tree"),
        ("It is a tree beside a car.", "tree"),
        ("A Wine Glass!", "wine_glass"),
        ("two buss", "bus"),
        ("a carpet", None),
        ("", None),
    ],
)
def test_the_first_and_longest_class_name_of_an_answer_counts(answer, name):
    row = named_class(answer, NAMES)
    assert (None if row is None else NAMES[row]) == name


def test_answers_do_not_depend_on_the_batch(tiny_checkpoint, monkeypatch):
    model, tokenizer, _ = load_model(tiny_checkpoint)
    targets = torch.randn(5, TINY.queries, TINY.qformer_width, generator=torch.manual_seed(0))
    together = answers(model, tokenizer, targets, longest=6)
    monkeypatch.setattr("train.evaluate.AT_ONCE", 2)
    assert answers(model, tokenizer, targets, longest=6) == together


def test_a_model_that_has_learned_nothing_is_counted_wrong(tiny_checkpoint):
    model, tokenizer, _ = load_model(tiny_checkpoint)
    targets = torch.zeros(4, TINY.queries, TINY.qformer_width)
    result = classify(model, tokenizer, targets, np.array([0, 1, 1, 2]), ["zebra", "yak", "gnu"])
    assert (result.correct, result.asked, result.chance) == (0, 4, 0.5)
    assert result.low == 0 and 0 < result.high < 1
    assert "0 of 4" in result.sentence("objects")
