"""I2P-MAE: a cloud becomes 512 tokens, those become 256, and those 64 (Zhang et al. 2023).

The hierarchical encoder of Point-Bind, as its release fine-tunes it (arXiv 2309.00615, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.pointbert import Attention, Block, check_names

NEAR_ORIGIN = 1e-3
"""Squared radius within which the published sampling never takes a point, the first one apart."""
HIDDEN = -100_000.0
"""Added to the attention score of two centres that are too far apart; finite, as published."""


def farthest_points_off_origin(xyz: Tensor, count: int) -> Tensor:
    """Indices of `count` points, each the farthest from those chosen, from the first point on.

    xyz : (samples, points, 3). Returns (samples, count), int64.

    As the CUDA operation of the release: points within `NEAR_ORIGIN` of the origin are passed
    over, and where none is left the answer is point 0. Of equally far points the one with the
    lowest index is taken (the operation's own order of such ties depends on its threads).
    """
    samples, points, _ = xyz.shape
    if not 1 <= count <= points:
        raise ValueError(f"cannot choose {count} centres from a cloud of {points} points")
    xyz = xyz.detach().float()
    eligible = _squares(xyz) > NEAR_ORIGIN
    nearest = torch.where(eligible, torch.inf, -1.0)  # -1: never the farthest
    chosen = torch.zeros(samples, count, dtype=torch.long, device=xyz.device)
    row = torch.arange(samples, device=xyz.device)
    for place in range(1, count):
        centre = xyz[row, chosen[:, place - 1]]
        nearest = torch.minimum(nearest, _squares(xyz - centre[:, None]))
        chosen[:, place] = nearest.argmax(dim=1)
    return chosen


def nearest_in_order(centres: Tensor, xyz: Tensor, k: int) -> Tensor:
    """Indices (samples, centres, k) of the k nearest points, nearest first, then lowest index.

    centres : (samples, centres, 3)    xyz : (samples, points, 3)

    Distances are exact squared differences in float32, as in the CUDA operation of the release.
    """
    if not 1 <= k <= xyz.shape[1]:
        raise ValueError(f"cannot find {k} neighbours in a cloud of {xyz.shape[1]} points")
    index = torch.arange(xyz.shape[1], device=xyz.device)
    found = []
    for some, cloud in zip(centres.detach().float(), xyz.detach().float(), strict=True):
        distance = _squares(some[:, None] - cloud)
        # The bits of a float of 0 or more sort as it does; the index behind them settles ties.
        key = (distance.view(torch.int32).long() << 32) | index
        found.append(key.topk(k, largest=False).values & 0xFFFFFFFF)
    return torch.stack(found)


def _squares(values: Tensor) -> Tensor:
    """x² + y² + z² of (..., 3), added in this order."""
    x, y, z = values.unbind(-1)
    return (x * x + y * y) + z * z


class TokenEmbed(nn.Module):
    """Mini-PointNet: one token for what a patch of points, or of tokens, looks like."""

    def __init__(self, channels: int, first: int, middle: int, output: int):
        super().__init__()
        self.first_conv = _convolutions(channels, first, middle)
        self.second_conv = _convolutions(2 * middle, 2 * middle, output)

    def forward(self, patches: Tensor) -> Tensor:
        """patches : (samples, groups, group_size, channels). Returns (samples, groups, output)."""
        samples, groups, size, _ = patches.shape
        each = self.first_conv(patches.flatten(0, 1).mT)
        whole = each.amax(dim=2, keepdim=True).expand(-1, -1, size)
        each = self.second_conv(torch.cat([whole, each], dim=1))  # the patch first, then the point
        return each.amax(dim=2).unflatten(0, (samples, groups))


def _convolutions(channels: int, inner: int, output: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(channels, inner, 1),
        nn.BatchNorm1d(inner),
        nn.ReLU(inplace=True),
        nn.Conv1d(inner, output, 1),
    )


class LocalAttention(Attention):
    """Self-attention among centres that are near each other."""

    def forward(self, hidden: Tensor, far: Tensor | None = None) -> Tensor:
        """hidden : (samples, tokens, width)    far : (samples, 1, tokens, tokens), added."""
        split = self.qkv(hidden).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=far)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class LocalBlock(Block):
    """PointBERT's block with local attention."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.attn = LocalAttention(width, heads)

    def forward(self, hidden: Tensor, far: Tensor | None = None) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), far)
        return hidden + self.mlp(self.norm2(hidden))


class Hierarchy(nn.Module):
    """The three levels, named as in the published files."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], heads: int, patch: int):
        super().__init__()
        embeds = [TokenEmbed(3, patch, 2 * patch, widths[0])]
        embeds += [TokenEmbed(a, a, a, b) for a, b in pairwise(widths)]
        self.token_embed = nn.ModuleList(embeds)
        self.encoder_pos_embeds = nn.ModuleList(
            nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
            for width in widths
        )
        self.encoder_blocks = nn.ModuleList(
            nn.ModuleDict({"blocks": nn.ModuleList(LocalBlock(width, heads) for _ in range(depth))})
            for width, depth in zip(widths, depths, strict=True)
        )


class I2PMAE(nn.Module):
    """The encoder; its defaults are Point-Bind's (12,654,400 parameters).

    They are the fine-tuning sizes: those of I2P-MAE's pre-training have smaller groups and no
    radius. Stochastic depth, 0 to 0.1 over the 15 blocks in the published training, is left out.
    """

    def __init__(
        self,
        *,
        groups: tuple[int, ...] = (512, 256, 64),
        group_sizes: tuple[int, ...] = (48, 24, 24),
        widths: tuple[int, ...] = (96, 192, 384),
        depths: tuple[int, ...] = (5, 5, 5),
        radii: tuple[float, ...] = (0.24, 0.48, 0.96),
        heads: int = 6,
        patch_width: int = 128,
    ):
        super().__init__()
        if len({len(each) for each in (groups, group_sizes, widths, depths, radii)}) != 1:
            raise ValueError("groups, group_sizes, widths, depths and radii need a value a level")
        self.groups, self.group_sizes, self.radii = groups, group_sizes, radii
        self.h_encoder = Hierarchy(widths, depths, heads, patch_width)
        self.norm = nn.LayerNorm(widths[-1])
        self.width = widths[-1]
        """Of the feature of a cloud."""

    def forward(self, points: Tensor) -> Tensor:
        """One feature a cloud: mean plus maximum over the tokens of the last level.

        points : (samples, points, 3), centred, largest radius 1. Returns (samples, width).
        """
        tokens = self.tokens(points)
        return tokens.mean(dim=1) + tokens.amax(dim=1)

    def tokens(self, points: Tensor) -> Tensor:
        """Tokens of the last level, normed: (samples, groups, width)."""
        if points.ndim != 3 or points.shape[2] != 3:
            raise ValueError(f"points of shape {tuple(points.shape)}: must be (samples, points, 3)")
        hidden = None
        for level, (centres, near) in enumerate(self.group(points)):
            row = torch.arange(len(points), device=points.device)[:, None, None]
            if level == 0:
                patches = points[row, near] - centres[:, :, None]
            else:  # the tokens of the level before, without where they lie
                assert hidden is not None
                patches = hidden[row, near]
            hidden = self.h_encoder.token_embed[level](patches)
            position = self.h_encoder.encoder_pos_embeds[level](centres)
            far = far_apart(centres, self.radii[level])
            for block in self.h_encoder.encoder_blocks[level]["blocks"]:  # type: ignore[index]
                hidden = block(hidden + position, far)  # before every block
        return self.norm(hidden)

    def group(self, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each level its centres (samples, groups, 3) and the neighbours of each.

        Neighbours (samples, groups, group_size) are rows of the cloud at level 0, of the centres
        of the level before at the others.
        """
        levels, below = [], points
        row = torch.arange(len(points), device=points.device)[:, None]
        for count, size in zip(self.groups, self.group_sizes, strict=True):
            centres = below[row, farthest_points_off_origin(below, count)]
            levels.append((centres, nearest_in_order(centres, below, size)))
            below = centres
        return levels

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the tensors of `point_encoder.`, named without it; ValueError names all others."""
        check_names("I2P-MAE", self.state_dict(), state_dict)
        self.load_state_dict(dict(state_dict))


def far_apart(centres: Tensor, radius: float) -> Tensor:
    """(samples, 1, groups, groups): `HIDDEN` where two centres are `radius` or more apart."""
    distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance >= radius)[:, None].to(centres.dtype) * HIDDEN
