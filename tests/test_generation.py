"""Generating answers: batches, what is drawn, and going on after a kill."""

import json

import pytest
import torch

from tests.conftest import TINY
from train.checkpoint import load_model
from train.generation import Decoding, Kept, ask_all, decoding, generate, key_of, prompt

OURS = decoding("ours", caption=False)
PUBLISHED = decoding("published", caption=False)
IDS = [f"object-{at}" for at in range(5)]
TARGETS = torch.randn(5, TINY.queries, TINY.qformer_width, generator=torch.manual_seed(0))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint):
    model, tokenizer, _ = load_model(tiny_checkpoint)
    return model.eval(), tokenizer


def short(how: Decoding) -> Decoding:
    from dataclasses import replace

    return replace(how, longest=6, shortest=min(how.shortest, 3))


def ask(models, path, how=PUBLISHED, seed=0, ids=IDS, checkpoint="weights"):
    kept = Kept(path, key_of(checkpoint, "What is this?", how, seed, "data"))
    return ask_all(
        models,
        ids,
        lambda part: TARGETS[part],
        "What is this?",
        short(how),
        kept,
        seed=seed,
        batch_size=2,
        label="ask",
    )


def test_the_cache_gives_what_whole_passes_give(tiny):
    """Greedy decoding with the key-value cache against the likeliest token of a pass each."""
    from train.models.llm import bare
    from train.prompts import bos_id, collate

    model, tokenizer = tiny
    how = Decoding(published_prompt=False, longest=5)
    asked = prompt(tokenizer, "What is this?", how, points=TINY.queries)
    said = generate(model, tokenizer, TARGETS[:2], asked, how)
    batch = collate([asked] * 2, bos_id(tokenizer))
    llm = bare(model.llm)
    embeds, ids = model.embed(batch, TARGETS[:2]), []
    with torch.no_grad():
        for _ in range(5):
            ids.append(llm(inputs_embeds=embeds, use_cache=False).logits[:, -1].argmax(-1))
            new = llm.get_input_embeddings()(ids[-1])[:, None]
            embeds = torch.cat([embeds, new.float()], dim=1)
    rows = torch.stack(ids, dim=1).tolist()
    assert said == [text.split("###")[0].strip() for text in tokenizer.decode_batch(rows)]


def test_an_interrupted_job_goes_on_with_the_numbers_it_would_have_had(tiny, tmp_path):
    whole = ask(lambda: tiny, tmp_path / "whole.jsonl")

    class Killed(BaseException):
        pass

    calls = []

    def until_killed(part):
        calls.append(part)
        if len(calls) > 1:
            raise Killed
        return TARGETS[part]

    path = tmp_path / "cut.jsonl"
    kept = Kept(path, key_of("weights", "What is this?", PUBLISHED, 0, "data"))
    with pytest.raises(Killed):
        ask_all(
            lambda: tiny,
            IDS,
            until_killed,
            "What is this?",
            short(PUBLISHED),
            kept,
            seed=0,
            batch_size=2,
            label="ask",
        )
    path.write_bytes(path.read_bytes() + b'{"key": "half a li')
    assert ask(lambda: tiny, path) == whole
    assert ask(lambda: pytest.fail("all is there"), path) == whole


def test_answers_of_another_checkpoint_seed_or_protocol_are_never_taken(tiny, tmp_path):
    path = tmp_path / "answers.jsonl"
    ask(lambda: tiny, path)
    for other in ({"checkpoint": "others"}, {"seed": 1}, {"how": OURS}, {"ids": IDS[::-1]}):
        asked = []
        ask(lambda asked=asked: asked.append(1) or tiny, path, **other)
        assert asked, other
    greedy = [key_of("weights", "q", OURS, seed, "data") for seed in (0, 1)]
    assert greedy[0] == greedy[1]  # nothing is drawn


def test_what_is_drawn_leaves_the_global_generator_alone(tiny, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ask(lambda: tiny, tmp_path / "answers.jsonl")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_published_settings():
    assert (PUBLISHED.beams, PUBLISHED.temperature, PUBLISHED.top_p) == (2, 0.2, 0.7)
    assert (PUBLISHED.longest, decoding("published", caption=True).longest) == (100, 150)
    assert PUBLISHED.shortest == 9  # beside the bos that transformers 4.36 counts


def test_an_answer_ends_at_its_end_also_where_that_is_no_token(tiny, monkeypatch):
    """A tokenizer that writes `###` as three tokens; the model says it after one more."""
    from train.generation import Ended

    class Bytes:
        def decode_batch(self, rows, skip_special_tokens=True):
            return ["".join(map(chr, row)) for row in rows]

    rows = torch.tensor([[ord(c) for c in text] for text in ("abc###", "abcde#")])
    assert Ended(Bytes())(rows, None).tolist() == [True, False]


def test_lines_on_disk_are_plain_json(tiny, tmp_path):
    path = tmp_path / "answers.jsonl"
    said = ask(lambda: tiny, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one for row in rows for one in row["said"]] == said
    assert [row["ids"] for row in rows] == [IDS[:2], IDS[2:4], IDS[4:]]
