"""Batches that depend on their number alone: conversations of one kind, drawn with replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from train.data.objects import Conversation
from train.prompts import Batch, bos_id, collate, encode_conversation

MIX = {"detailed_description": 2, "single_round": 3, "multi_round": 3}
"""How often each kind is drawn in MiniGPT-3D's stage III and in PointAlign's stage 2."""
BRIEF = {"simple_description": 1}


@dataclass(frozen=True)
class Drawn:
    """Tokens of a batch and what the model is shown with them."""

    tokens: Batch
    shown: Tensor
    """(samples, ...): points, encoder tokens or targets of each sample's object."""

    @property
    def input_ids(self) -> Tensor:
        return self.tokens.input_ids


class Batches:
    """The batches of a mix of conversations, of which each holds one kind, as published.

    conversations : of the training objects; `object` is a row of `shown`.
    shown         : (objects, ...), what stands for an object: its cached encoder tokens, say.
    weights       : kind -> how often it is drawn; kinds without conversations are left out.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        shown: Tensor,
        tokenizer: Tokenizer,
        *,
        weights: dict[str, int],
        size: int,
        queries: int,
        context: int,
        seed: int,
        device: torch.device | str = "cpu",
    ):
        self.by_kind: dict[str, list[Conversation]] = {}
        for conversation in conversations:
            self.by_kind.setdefault(conversation.kind, []).append(conversation)
        self.kinds = [kind for kind in weights if kind in self.by_kind]
        if not self.kinds:
            raise ValueError(
                f"no conversation of the kinds {', '.join(weights)}: the data set has "
                f"{', '.join(sorted(self.by_kind)) or 'none at all'}"
            )
        share = np.array([weights[kind] for kind in self.kinds], float)
        self.share = share / share.sum()
        self.shown, self.tokenizer, self.size, self.seed = shown, tokenizer, size, seed
        self.queries, self.context, self.device = queries, context, device

    def __call__(self, index: int) -> Drawn:
        """Batch number `index`, the same whenever it is asked for."""
        rng = np.random.default_rng([self.seed, index])
        kind = self.kinds[rng.choice(len(self.kinds), p=self.share)]
        pool = self.by_kind[kind]
        drawn = [pool[row] for row in rng.integers(len(pool), size=self.size)]
        encoded = [
            encode_conversation(
                self.tokenizer, one.turns, points=self.queries, context=self.context
            )
            for one in drawn
        ]
        rows = torch.tensor([one.object for one in drawn])
        tokens = collate(encoded, bos_id(self.tokenizer))
        return Drawn(tokens.to(self.device), self.shown[rows].to(self.device))
