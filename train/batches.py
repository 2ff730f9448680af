"""Batches that depend on their number alone: conversations of one kind, drawn with replacement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from train.data.objects import Conversation
from train.prompts import UNLABELLED, Batch, bos_id, collate, encode_conversation

MIX = {"detailed_description": 2, "single_round": 3, "multi_round": 3}
"""How often each kind is drawn in MiniGPT-3D's stage III and in PointAlign's stage 2."""
BRIEF = {"simple_description": 1}
MARKS = 40
"""More bytes than the template puts around a question and its answer."""


@dataclass(frozen=True)
class Drawn:
    """What one process sees of a batch: all of it, or every so manieth row.

    A loss that is a mean over labelled tokens, times `share`, has the whole batch's loss as its
    mean over the processes; so has a mean over samples, times `row_share`. One process has 1.0.
    """

    tokens: Batch
    """Padded to the longest conversation of the whole batch."""
    shown: Tensor
    """(samples, ...): points, encoder tokens or targets of each sample's object."""
    objects: Tensor
    """(samples,) row of each sample's object."""
    step: int = 0
    """The optimizer step that this batch is part of, from 0."""
    share: float = 1.0
    """Labelled tokens here over those of the whole batch, times the processes."""
    row_share: float = 1.0
    """Samples here over those of the whole batch, times the processes."""
    longest_prompt: int = 0
    """Tokens before the first answer, bos included, at most, in the whole batch."""

    @property
    def input_ids(self) -> Tensor:
        """(samples, tokens), of which the training loop counts how many there are."""
        return self.tokens.input_ids


class Batches:
    """The batches of a mix of conversations, of which each holds one kind, as published.

    conversations : of the training objects; `object` is a row of `shown`.
    shown         : (objects, ...), what stands for an object: its cached encoder tokens, say. Or a
                    function from rows, (samples,), to (samples, ...), where it is made each time.
    weights       : kind -> how often it is drawn; kinds without conversations are left out.
    size          : conversations of a batch over all processes, of any kind or of each kind.
    template      : of single-turn questions, see `train.prompts.encode_conversation`.
    accumulate    : batches of an optimizer step.
    processes     : how many share each batch. All draw the whole of it, so that the order of the
                    samples does not depend on them; process p keeps rows p, p + processes, ...
    ids           : names of the objects, for the errors.

    Raises ValueError when there is nothing to draw, when a batch has fewer conversations than
    there are processes, and when a conversation is too long for the context.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        shown: Tensor | Callable[[Tensor], Tensor],
        tokenizer: Tokenizer,
        *,
        weights: dict[str, int],
        size: int | Mapping[str, int],
        queries: int,
        context: int,
        seed: int,
        device: torch.device | str = "cpu",
        template: bool = True,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
        ids: Sequence[str] = (),
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
        self.sizes = {kind: size if isinstance(size, int) else size[kind] for kind in self.kinds}
        for kind, count in self.sizes.items():
            if count < processes:
                raise ValueError(
                    f"a batch of {count} {kind} conversations for {processes} processes: raise "
                    f"--batch-size to {processes} or more of each kind, or start fewer processes"
                )
        often = np.array([weights[kind] for kind in self.kinds], float)
        self.often = often / often.sum()
        self.shown = shown if callable(shown) else shown.__getitem__
        self.tokenizer, self.seed, self.device = tokenizer, seed, device
        self.queries, self.template, self.context = queries, template, context
        self.accumulate, self.process, self.processes = accumulate, process, processes
        check_lengths(
            [each for kind in self.kinds for each in self.by_kind[kind]],
            tokenizer,
            queries=queries,
            context=context,
            template=template,
            ids=ids,
        )

    def __call__(self, index: int) -> Drawn:
        """Batch number `index`, the same whenever it is asked for."""
        rng = np.random.default_rng([self.seed, index])
        kind = self.kinds[rng.choice(len(self.kinds), p=self.often)]
        pool = self.by_kind[kind]
        drawn = [pool[row] for row in rng.integers(len(pool), size=self.sizes[kind])]
        encoded = [
            encode_conversation(
                self.tokenizer,
                one.turns,
                points=self.queries,
                template=self.template,
                context=self.context,
            )
            for one in drawn
        ]
        whole = collate(encoded, bos_id(self.tokenizer))
        labelled = whole.labels != UNLABELLED
        own = slice(self.process, None, self.processes)
        objects = torch.tensor([one.object for one in drawn])[own]
        return Drawn(
            whole.rows(own).to(self.device),
            self.shown(objects).to(self.device),
            objects.to(self.device),
            step=index // self.accumulate,
            share=int(labelled[own].sum()) / int(labelled.sum()) * self.processes,
            row_share=len(objects) / len(drawn) * self.processes,
            longest_prompt=int(labelled.int().argmax(dim=1).max()),
        )


def check_lengths(
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    *,
    queries: int,
    context: int,
    template: bool = True,
    ids: Sequence[str] = (),
) -> None:
    """Raise ValueError when a conversation has more tokens than the model reads.

    It says how many do and names the first. A token is a byte or more, so only conversations of
    more bytes than the context has tokens are tokenized.
    """
    too_long = []
    for one in conversations:
        said = sum(len(text.encode()) + MARKS for turn in one.turns for text in turn)
        if queries + said <= context:
            continue
        encoded = encode_conversation(
            tokenizer, one.turns, points=queries, template=template, context=None
        )
        if (tokens := len(encoded.input_ids)) > context:
            name = ids[one.object] if ids else one.object
            too_long.append(f"{name} ({one.kind}, {tokens} tokens)")
    if too_long:
        raise ValueError(
            f"{len(too_long)} of {len(conversations)} conversations have more tokens than the "
            f"{context} that the model reads, of the objects {', '.join(too_long[:3])}"
            f"{', ...' if too_long[3:] else ''}; leave them out, or take a model with a longer "
            "context"
        )
