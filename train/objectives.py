"""What each phase of stage 1 minimises, and the batches only it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from train.batches import Drawn
from train.data.objects import Conversation, Objects
from train.frozen import thinned
from train.models.llm import bare, trainable_norms
from train.models.minigpt3d import MiniGPT3D
from train.models.pointbert import PointBERT
from train.prompts import UNLABELLED, Batch, bos_id, collate, encode_conversation

EMBEDDING = 64


class LanguageObjective(nn.Module):
    """Next token of questions and answers, with words where the cloud will be."""

    def __init__(self, llm: nn.Module):
        super().__init__()
        self.llm = llm

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, a scalar: the mean over the labelled tokens."""
        output = self.llm(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        )
        return {"loss": output.loss}


class LanguageBatches:
    """Conversations about objects of which the LLM is given some words instead of the cloud.

    At the point positions stand tokens of the object's descriptions, drawn at random: so the LLM
    learns to answer from what it reads there, and the bridge has a reader to write for.
    """

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: Tokenizer,
        *,
        queries: int,
        size: int,
        seed: int,
        device: torch.device | str,
    ):
        self.conversations, self.tokenizer = conversations, tokenizer
        self.queries, self.size, self.seed, self.device = queries, size, seed, device
        self.words = described(conversations, tokenizer)

    def __call__(self, index: int) -> Batch:
        rng = np.random.default_rng([self.seed, index])
        encoded = []
        for row in rng.integers(len(self.conversations), size=self.size):
            one = self.conversations[row]
            words = np.concatenate(self.words[one.object])
            told = rng.permutation(np.resize(words, max(len(words), self.queries)))[: self.queries]
            each = encode_conversation(self.tokenizer, one.turns, points=self.queries)
            span = slice(each.point_start, each.point_start + self.queries)
            each.labels[:] = each.input_ids  # questions are language too
            each.labels[span] = [UNLABELLED] * self.queries
            each.input_ids[span] = told.tolist()
            encoded.append(each)
        return collate(encoded, bos_id(self.tokenizer)).to(self.device)


def described(
    conversations: Sequence[Conversation], tokenizer: Tokenizer
) -> dict[int, list[np.ndarray]]:
    """Object -> the tokens of each of its descriptions, brief and detailed."""
    words: dict[int, list[np.ndarray]] = {}
    for each in conversations:
        if each.kind in ("simple_description", "detailed_description"):
            ids = tokenizer.encode(each.turns[0][1]).ids
            words.setdefault(each.object, []).append(np.array(ids))
    return words


class TextTower(nn.Module):
    """A bag of words: the mean embedding of a caption's tokens, projected to unit length."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.words = nn.EmbeddingBag(vocabulary, EMBEDDING, mode="mean")
        self.out = nn.Linear(EMBEDDING, EMBEDDING)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, captions: Sequence[Tensor], seen: Tensor) -> Tensor:
        """Symmetric InfoNCE between captions and what was seen, (samples, EMBEDDING); a scalar."""
        offsets = torch.tensor([0, *[len(each) for each in captions[:-1]]]).cumsum(0)
        bag = self.words(torch.cat(list(captions)), offsets.to(captions[0].device))
        text = F.normalize(self.out(F.gelu(bag)), dim=-1)
        logits = self.scale.exp().clamp(max=100) * F.normalize(seen, dim=-1) @ text.T
        same = torch.arange(len(seen), device=seen.device)
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


@dataclass(frozen=True)
class PatchBatch:
    """Objects cut into patches, each with one of its captions."""

    centres: Tensor
    """(samples, groups, 3)"""
    patches: Tensor
    """(samples, groups, group_size, channels), xyz relative to their centres"""
    captions: list[Tensor]
    """The tokens of each, (tokens,)"""


class PatchBatches:
    """Patches of random objects, turned about the vertical axis and scaled, with a caption each.

    The patches do not depend on the encoder's weights: they are cut once.
    """

    def __init__(
        self,
        encoder: PointBERT,
        objects: Objects,
        tokenizer: Tokenizer,
        *,
        points: int,
        size: int,
        seed: int,
        device: torch.device | str,
    ):
        self.seed, self.size, self.device = seed, size, device
        cut = [encoder.group(cloud.to(device)) for cloud in thinned(objects, points, "cut patches")]
        self.centres = torch.cat([centres for centres, _ in cut])
        self.patches = torch.cat([patches for _, patches in cut])
        self.captions = described(objects.conversations, tokenizer)

    def __call__(self, index: int) -> PatchBatch:
        rng = np.random.default_rng([self.seed, index])
        rows = rng.permutation(len(self.centres))[: self.size]
        turn = torch.tensor(_turns(rng, len(rows)), device=self.device)
        patches = self.patches[rows].clone()
        patches[..., :3] = torch.einsum("sgpi,sij->sgpj", patches[..., :3], turn)
        centres = torch.einsum("sgi,sij->sgj", self.centres[rows], turn)
        drawn = [self.captions[row][rng.integers(len(self.captions[row]))] for row in rows]
        captions = [torch.tensor(ids, device=self.device) for ids in drawn]
        return PatchBatch(centres, patches, captions)


def _turns(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3, 3) float32: up to 20 degrees about z, and a scale of 0.9 to 1.1 for each axis."""
    angle = rng.uniform(-np.pi / 9, np.pi / 9, count)
    turn = np.tile(np.eye(3), (count, 1, 1))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1], turn[:, 1, 0] = np.sin(angle), -np.sin(angle)
    return (turn * rng.uniform(0.9, 1.1, (count, 1, 3))).astype(np.float32)


class ContrastiveObjective(nn.Module):
    """An object next to its caption, as in ULIP (Xue et al. 2023), whose encoders PointLLM took."""

    def __init__(self, encoder: PointBERT, width: int, vocabulary: int):
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(2 * width, EMBEDDING)
        self.text = TextTower(vocabulary)

    def forward(self, batch: PatchBatch) -> dict[str, Tensor]:
        """`loss`, a scalar: symmetric InfoNCE within the batch."""
        tokens = self.encoder.encode(batch.centres, batch.patches)
        seen = torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1)
        return {"loss": self.text(batch.captions, self.out(seen))}


class CaptionObjective(nn.Module):
    """Next token of the answers; with `contrast`, BLIP-2's object-to-text loss beside it.

    encoded : batches show encoder tokens (samples, tokens, width); without, clouds (samples,
              points, 6), which the frozen encoder reads at every step.
    """

    def __init__(self, model: MiniGPT3D, *, contrast: bool = False, encoded: bool = True):
        super().__init__()
        self.model, self.encoded = model, encoded
        self.contrast = None
        if contrast:
            width = model.qformer.query_tokens.shape[-1]
            vocabulary = bare(model.llm).config.vocab_size
            self.contrast = nn.Linear(width, EMBEDDING)
            self.text = TextTower(vocabulary)

    def forward(self, batch: Drawn) -> dict[str, Tensor]:
        """Losses of a batch, each times this process's share of the whole batch."""
        shown = batch.shown if self.encoded else self._encode(batch.shown)
        target = self.model.read(shown)
        losses = {"ntp_loss": self.model(batch.tokens, target=target).loss * batch.share}
        if self.contrast is not None:
            tokens = batch.tokens
            answers = [
                ids[labels != UNLABELLED]
                for ids, labels in zip(tokens.input_ids, tokens.labels, strict=True)
            ]
            contrast = self.text(answers, self.contrast(target.mean(dim=1)))
            losses["contrast"] = contrast * batch.row_share
        return {"loss": sum(losses.values()), **losses}

    @torch.no_grad()
    def _encode(self, clouds: Tensor) -> Tensor:
        with torch.autocast(clouds.device.type, enabled=False):  # as what is encoded once
            return self.model.point_encoder(clouds)


def language_parameters(llm: nn.Module) -> set[str]:
    """Names of what stages II, III and PointAlign's stage 2 train in the LLM: LoRA and norms."""
    return {name for name, _ in llm.named_parameters() if "lora_" in name} | set(
        trainable_norms(llm)
    )
