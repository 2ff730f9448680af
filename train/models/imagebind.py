"""ImageBind: six frozen towers that put text, images, sound and more in one space of 1024 numbers.

Girdhar et al. 2023 (arXiv 2305.05665), with the names of the published `imagebind_huge.pth`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.pointbert import FeedForward, check_names


class Size(NamedTuple):
    """Width, blocks and heads of a tower."""

    width: int
    blocks: int
    heads: int


HUGE = {
    "vision": Size(1280, 32, 16),
    "text": Size(1024, 24, 16),
    "audio": Size(768, 12, 12),
    "depth": Size(384, 12, 8),
    "thermal": Size(768, 12, 12),
    "imu": Size(512, 6, 8),
}
"""The published towers: 1,200,781,057 parameters."""
SCALES = {"text": 1 / 0.07, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
"""What a tower multiplies its unit vectors by at first; the text tower learns its own."""
LARGEST_SCALE = 100.0
STEMS: dict[str, tuple[str, int, Any, Any, int]] = {
    "vision": ("rgbt_stem", 3, (2, 14, 14), (2, 14, 14), 256),
    "audio": ("rgbt_stem", 1, (16, 16), (10, 10), 228),
    "depth": ("depth_stem", 1, (16, 16), (16, 16), 196),
    "thermal": ("rgbt_stem", 1, (16, 16), (16, 16), 196),
}
"""Name, channels, kernel, stride and patches of the pictures that a tower reads."""
VOCABULARY, CONTEXT = 49408, 77
IMU_STEP = 8


class ImageBind(nn.Module):
    """The towers asked for, all of ImageBind-Huge by default.

    sizes  : modality -> `Size`; a modality that is left out has no tower.
    output : size of the joint space
    """

    def __init__(self, sizes: Mapping[str, Size] | None = None, output: int = 1024):
        super().__init__()
        sizes = HUGE if sizes is None else sizes
        if unknown := sorted(sizes.keys() - HUGE.keys()):
            raise ValueError(f"no such modality: {', '.join(unknown)}; there are {', '.join(HUGE)}")
        inputs: dict[str, Any] = {"text": TextInput, "imu": ImuInput}
        self.modality_preprocessors = nn.ModuleDict(
            {
                name: inputs[name](size.width) if name in inputs else PictureInput(name, size.width)
                for name, size in sizes.items()
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {name: Trunk(name, size) for name, size in sizes.items()}
        )
        self.modality_heads = nn.ModuleDict(
            {name: _head(name, size.width, output) for name, size in sizes.items()}
        )
        # Vision's has no scale, and nothing in the file.
        self.modality_postprocessors = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Identity(), Scale(SCALES[name], learned=name == "text"))
                for name in sizes
                if name in SCALES
            }
        )

    def forward(self, modality: str, inputs: Tensor) -> Tensor:
        """Embeddings (samples, output), as long as the published ones: not of length 1.

        inputs : text (samples, 77) of token ids; vision (samples, 3, 224, 224); audio
                 (samples, clips, 1, 128, 204); depth, thermal (samples, 1, 224, 224); imu
                 (samples, 6, 2000). With five axes or more the second one counts clips, over which
                 the scaled embeddings are averaged.
        """
        if modality not in self.modality_trunks:
            raise ValueError(
                f"no tower for {modality}: this ImageBind has {', '.join(self.modality_trunks)}"
            )
        clips = inputs.shape[1] if inputs.ndim >= 5 else 0
        if clips:
            inputs = inputs.flatten(0, 1)
        tokens = self.modality_preprocessors[modality](inputs)
        hidden = self.modality_trunks[modality](tokens)
        at = inputs.argmax(dim=-1) if modality == "text" else 0  # the end of text, or the class
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), at]
        vectors = F.normalize(self.modality_heads[modality](hidden), dim=-1)
        if modality in SCALES:
            vectors = self.modality_postprocessors[modality](vectors)
        return vectors.unflatten(0, (-1, clips)).mean(dim=1) if clips else vectors

    def load_published(self, state_dict: Mapping[str, Tensor]) -> list[str]:
        """Load a published file; returns the modalities in it that this model has no tower for.

        Raises ValueError that names a tower of another size, or what is missing, not known or of
        another shape; nothing is loaded then.
        """
        absent = HUGE.keys() - self.modality_trunks.keys()
        passed: set[str] = set()
        weights = {}
        for name, value in state_dict.items():
            modality = name.split(".")[1] if name.startswith("modality_") else ""
            if modality in absent:
                passed.add(modality)
            else:
                weights[name] = value
        for modality in self.modality_trunks:
            theirs, ours = (_size(one, modality) for one in (weights, self.state_dict()))
            if theirs[0] and theirs != ours:
                raise ValueError(
                    f"ImageBind: the {modality} tower of these weights has {theirs[0]} blocks of "
                    f"width {theirs[1]} instead of {ours[0]} of width {ours[1]}: they are those of "
                    "a model of another size"
                )
        check_names("ImageBind", self.state_dict(), weights)
        self.load_state_dict(weights)
        return sorted(passed)


def _size(weights: Mapping[str, Tensor], modality: str) -> tuple[int, int]:
    """Blocks and width of a tower by its tensors, zeros where there are none."""
    start = f"modality_trunks.{modality}.blocks."
    norms = [
        value
        for name, value in weights.items()
        if name.startswith(start) and name.endswith(".norm_1.weight")
    ]
    return len(norms), len(norms[0]) if norms else 0


class Scale(nn.Module):
    """Multiplies by a factor of at most 100, learned or not."""

    log_logit_scale: Tensor

    def __init__(self, first: float, learned: bool):
        super().__init__()
        value = torch.tensor(first).log()
        if learned:
            self.log_logit_scale = nn.Parameter(value)
        else:
            self.register_buffer("log_logit_scale", value)

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors * self.log_logit_scale.exp().clamp(max=LARGEST_SCALE)


def _head(name: str, width: int, output: int) -> nn.Module:
    norm, linear = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, output, bias=False)
    if name == "text":
        return nn.Sequential(OrderedDict(proj=nn.Sequential(norm, linear)))
    between: list[nn.Module] = [nn.Identity()]  # where the release picks the class token
    if name == "imu":
        between.append(nn.Dropout(0.5))
    return nn.Sequential(norm, *between, linear)


class Positions(nn.Module):
    """Learned positions of the patches, the class token first."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))


class Stem(nn.Module):
    """Patches of a picture, or steps of a signal, as tokens."""

    def __init__(self, proj: nn.Module, width: int, norm: bool):
        super().__init__()
        self.proj = proj
        if norm:
            self.norm_layer = nn.LayerNorm(width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(samples, channels, ...) -> (samples, patches, width)."""
        found = self.proj(inputs)
        tokens = found.flatten(2).mT if found.ndim > 3 else found
        return self.norm_layer(tokens) if hasattr(self, "norm_layer") else tokens


class PictureInput(nn.Module):
    """Images, and what is laid out like one: mel spectrograms, depth and heat maps."""

    def __init__(self, name: str, width: int):
        super().__init__()
        self.stem_name, channels, kernel, stride, self.patches = STEMS[name]
        proj: nn.Module
        if name == "vision":  # the same image twice is a film of two frames
            proj = nn.Sequential(Twice(), nn.Conv3d(channels, width, kernel, stride, bias=False))
        else:
            proj = nn.Conv2d(channels, width, kernel, stride, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.add_module(self.stem_name, Stem(proj, width, norm=name != "vision"))
        self.pos_embedding_helper = Positions(1 + self.patches, width)

    def forward(self, inputs: Tensor) -> Tensor:
        patches = self.get_submodule(self.stem_name)(inputs)
        if patches.shape[1] != self.patches:
            raise ValueError(
                f"an input of {tuple(inputs.shape)} gives {patches.shape[1]} patches, "
                f"this tower reads {self.patches}"
            )
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        return tokens + self.pos_embedding_helper.pos_embed


class Twice(nn.Module):
    """An image (samples, 3, rows, columns) as two equal frames; a film stays as it is."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, :, None].expand(-1, -1, 2, -1, -1) if inputs.ndim == 4 else inputs


class TextInput(nn.Module):
    """Token ids of CLIP's vocabulary."""

    mask: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, CONTEXT, width))
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.register_buffer("mask", torch.full((CONTEXT, CONTEXT), -torch.inf).triu(1))

    def forward(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != CONTEXT:
            raise ValueError(f"token ids of shape {tuple(ids.shape)}: must be (texts, {CONTEXT})")
        return self.token_embedding(ids) + self.pos_embed


class ImuInput(nn.Module):
    """Accelerometer and gyroscope, (samples, 6, 2000), in steps of 8."""

    def __init__(self, width: int):
        super().__init__()
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 251, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.imu_stem = Stem(nn.Linear(6 * IMU_STEP, width, bias=False), width, norm=True)

    def forward(self, inputs: Tensor) -> Tensor:
        steps = inputs.unfold(-1, IMU_STEP, IMU_STEP).transpose(1, 2).flatten(2)
        steps = self.imu_stem(steps)
        return torch.cat([self.cls_token.expand(len(steps), -1, -1), steps], dim=1) + self.pos_embed


class Trunk(nn.Module):
    """The blocks of a tower; text sees only what stands before."""

    def __init__(self, name: str, size: Size):
        super().__init__()
        self.causal = name == "text"
        if name == "vision":
            self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(size.width, eps=1e-6))
        extra = name not in ("vision", "text")
        self.blocks = nn.ModuleList(
            TowerBlock(size.width, size.heads, extra) for _ in range(size.blocks)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens : (samples, tokens, width). Returns the same shape."""
        mask = None
        if self.causal:
            mask = tokens.new_full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        if hasattr(self, "pre_transformer_layer"):
            tokens = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens


class TowerBlock(nn.Module):
    """A transformer block that norms before each branch.

    extra : one more learned key and value, which every token can attend to
    """

    def __init__(self, width: int, heads: int, extra: bool):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=extra, batch_first=True)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.norm_1(tokens)
        tokens = tokens + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return tokens + self.mlp(self.norm_2(tokens))
