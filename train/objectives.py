"""What each phase of stage 1 minimises, and the batches only it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from train.data.objects import Conversation, Objects
from train.frozen import thinned
from train.models.minigpt3d import MiniGPT3D
from train.models.phi import bare, trainable_norms
from train.models.pointbert import PointBERT
from train.prompts import encode_conversation

TEXT_LENGTH = 96
EMBEDDING = 64


class LanguageObjective(nn.Module):
    """Next token of running text."""

    def __init__(self, llm: nn.Module):
        super().__init__()
        self.llm = llm

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        return {"loss": self.llm(input_ids=batch.input_ids, labels=batch.input_ids).loss}


@dataclass(frozen=True)
class TextBatch:
    """(samples, tokens) of running text."""

    input_ids: Tensor


class TextBatches:
    """Random stretches of all conversations, in the prompt's form but without a cloud."""

    def __init__(
        self,
        conversations: Sequence[Conversation],
        tokenizer: Tokenizer,
        *,
        size: int,
        seed: int,
        device: torch.device | str,
    ):
        order = np.random.default_rng(seed).permutation(len(conversations))
        ids: list[int] = []
        for row in order:
            turns = conversations[row].turns
            ids += encode_conversation(tokenizer, turns, points=0).input_ids
        self.ids, self.size, self.seed, self.device = torch.tensor(ids), size, seed, device

    def __call__(self, index: int) -> TextBatch:
        rng = np.random.default_rng([self.seed, index])
        starts = rng.integers(len(self.ids) - TEXT_LENGTH, size=self.size)
        rows = torch.tensor(starts)[:, None] + torch.arange(TEXT_LENGTH)
        return TextBatch(self.ids[rows].to(self.device))


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
    centres: Tensor
    patches: Tensor
    captions: list[Tensor]


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
        self.captions: list[list[Tensor]] = [[] for _ in objects.ids]
        for each in objects.conversations:
            if each.kind in ("simple_description", "detailed_description"):
                ids = tokenizer.encode(each.turns[0][1]).ids
                self.captions[each.object].append(torch.tensor(ids, device=device))

    def __call__(self, index: int) -> PatchBatch:
        rng = np.random.default_rng([self.seed, index])
        rows = rng.permutation(len(self.centres))[: self.size]
        turn = torch.tensor(_turns(rng, len(rows)), device=self.device)
        patches = self.patches[rows].clone()
        patches[..., :3] = torch.einsum("sgpi,sij->sgpj", patches[..., :3], turn)
        centres = torch.einsum("sgi,sij->sgj", self.centres[rows], turn)
        captions = [self.captions[row][rng.integers(len(self.captions[row]))] for row in rows]
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
        tokens = self.encoder.encode(batch.centres, batch.patches)
        seen = torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1)
        return {"loss": self.text(batch.captions, self.out(seen))}


class CaptionObjective(nn.Module):
    """Next token of the answers; with `contrast`, BLIP-2's object-to-text loss beside it."""

    def __init__(self, model: MiniGPT3D, *, contrast: bool = False):
        super().__init__()
        self.model = model
        self.contrast = None
        if contrast:
            width = model.qformer.query_tokens.shape[-1]
            vocabulary = bare(model.llm).config.vocab_size
            self.contrast = nn.Linear(width, EMBEDDING)
            self.text = TextTower(vocabulary)

    def forward(self, batch) -> dict[str, Tensor]:
        """batch : `train.batches.Drawn`, showing encoder tokens (samples, tokens, width)."""
        target = self.model.qformer(self.model.mlp(batch.shown))
        losses = {"ntp_loss": self.model(batch.tokens, target=target).loss}
        if self.contrast is not None:
            tokens = batch.tokens
            answers = [
                ids[labels != -100]
                for ids, labels in zip(tokens.input_ids, tokens.labels, strict=True)
            ]
            losses["contrast"] = self.text(answers, self.contrast(target.mean(dim=1)))
        return {"loss": sum(losses.values()), **losses}


def trained_in(phase: str, model: MiniGPT3D) -> Callable[[str], bool]:
    """Which parameters of a `CaptionObjective` a phase trains, as MiniGPT-3D's stages do."""
    if phase == "bridge":
        front = ("model.mlp.", "model.qformer.", "model.projector.", "contrast.", "text.")
        return lambda name: name.startswith(front) and "lora_" not in name
    if phase == "I-mlp":
        return lambda name: name.startswith("model.mlp.")
    wanted = {f"model.qformer.{name}" for name in model.qformer.lora_and_norm_parameters()}
    wanted |= {f"model.llm.{name}" for name in language_parameters(model.llm)}
    return lambda name: name in wanted or name.startswith(("model.mlp.", "model.projector."))


def language_parameters(llm: nn.Module) -> set[str]:
    """Names of what stages II, III and PointAlign's stage 2 train in the LLM: LoRA and norms."""
    return {name for name, _ in llm.named_parameters() if "lora_" in name} | set(
        trainable_norms(llm)
    )
