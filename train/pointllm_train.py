"""What Point-LLM is trained on: a vector of the joint space, a question and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig

from train.data.objects import Objects
from train.hosts.bindllm import PROMPT, prompt
from train.models.bindllm import PointLLM, mix
from train.prompts import UNLABELLED, Batch, Encoded, bos_id, collate, encode_ids

BEGIN, END = "<s>", "</s>"
CAPTION = "Generate caption of this image"
"""The one instruction of the first phase, as published."""
VOCABULARY, CONTEXT = 1024, 512
NANO_LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=6,
    max_position_embeddings=CONTEXT,
    rms_norm_eps=1e-6,
    bos_token_id=0,
    eos_token_id=1,
)
KINDS = {
    "language": ("simple_description", "single_round"),
    "pretrain": ("simple_description",),
    "finetune": ("simple_description", "single_round", "multi_round"),
}
"""Phase -> kinds of conversation; detailed descriptions, which are long, are left out."""


@dataclass(frozen=True)
class Talk:
    """A batch: what is said, and the vector it is said about."""

    tokens: Batch
    vectors: Tensor
    """(samples, space)"""

    @property
    def input_ids(self) -> Tensor:
        return self.tokens.input_ids


class TalkBatches:
    """Random conversations of a phase, each with one of the vectors that stand for its object.

    anchors : (ways, objects, space), unit vectors of the frozen space's other modality: what an
              image's embedding is in the published training. No cloud is among them.

    Raises ValueError when a conversation has more tokens than the LLM reads.
    """

    def __init__(
        self,
        phase: str,
        objects: Objects,
        anchors: Tensor,
        tokenizer: Tokenizer,
        *,
        size: int,
        seed: int,
        context: int = CONTEXT,
    ):
        self.anchors, self.size, self.seed = anchors, size, seed
        self.pad = bos_id(tokenizer)
        self.objects, self.encoded = [], []
        for one in objects.conversations:
            if one.kind not in KINDS[phase]:
                continue
            question, answer = one.turns[0]  # of several rounds the first, as published
            asked = CAPTION if phase == "pretrain" else question
            self.objects.append(one.object)
            self.encoded.append(encode(tokenizer, asked, answer, whole=phase == "language"))
        longest = max((len(each.input_ids) for each in self.encoded), default=0)
        if not longest or longest > context:
            raise ValueError(
                f"{phase}: {len(self.encoded)} conversations of up to {longest} tokens; it takes "
                f"some, of at most {context}"
            )

    def __call__(self, index: int) -> Talk:
        rng = np.random.default_rng([self.seed, index])
        rows = rng.integers(len(self.encoded), size=self.size)
        ways = rng.integers(len(self.anchors), size=self.size)
        objects = [self.objects[row] for row in rows]
        tokens = collate([self.encoded[row] for row in rows], self.pad)
        return Talk(tokens, mix([self.anchors[ways, objects]]))


def encode(
    tokenizer: Tokenizer, question: str, answer: str | None, *, whole: bool = False
) -> Encoded:
    """A question in Point-LLM's prompt and its answer up to the end of the text.

    answer : None where it is to come
    whole  : learn the question too, as a language model of its own does
    """
    ids = [bos_id(tokenizer), *encode_ids(tokenizer, prompt(question))]
    said: list[int] = []
    if answer is not None:
        end = tokenizer.token_to_id(END)
        said = encode_ids(tokenizer, f" {answer}") + ([end] if end is not None else [])
    labels = (ids if whole else [UNLABELLED] * len(ids)) + said
    return Encoded(ids + said, labels, [1] * len(labels), point_start=0, points=0)


class TalkObjective(nn.Module):
    """Next token of the answers; of a bare Llama, of everything that is said."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Talk) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        tokens = batch.tokens.to(device)
        shown = {"vectors": batch.vectors.to(device)} if isinstance(self.model, PointLLM) else {}
        found = self.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            labels=tokens.labels,
            use_cache=False,
            **shown,
        )
        return {"loss": found.loss}


def train_tokenizer(data: Objects, path: Path) -> Tokenizer:
    """A byte-level BPE on the conversations, with Llama's two marks as tokens 0 and 1.

    What stands before and behind each question is one token each, so that nano sequences are short.
    """
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, *PROMPT.split("{}")],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    turns = [f" {turn}" for each in data.conversations for pair in each.turns for turn in pair]
    tokenizer.train_from_iterator(turns, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


@torch.no_grad()
def answers(
    model: PointLLM, tokenizer: Tokenizer, vectors: Tensor, question: str, longest: int = 24
) -> list[str]:
    """What the model says of each vector (samples, space): the likeliest tokens, up to the end."""
    asked = torch.tensor([encode(tokenizer, question, None).input_ids])
    asked = asked.expand(len(vectors), -1).to(vectors.device)
    end = tokenizer.token_to_id(END)
    llm: Any = model.body
    with model.shown(vectors):
        ids = llm.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=longest,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end if end is not None else bos_id(tokenizer),
        )
    new = ids[:, asked.shape[1] :].tolist()
    said = [row[: row.index(end)] if end in row else row for row in new]
    return [text.strip() for text in tokenizer.decode_batch(said)]
