"""Point-Bind: a cloud as one unit vector in a frozen joint space (Guo et al. 2023, section 3).

A 3D encoder, two linear maps with a LayerNorm between them, and a contrastive loss against what
the frozen towers of the space say about the same object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.pointbert import check_names

FIRST_SCALE = math.log(1 / 0.07)
LARGEST_SCALE = math.log(100)
OWN = ("point_encoder.", "pc_projection", "logit_scale")
HEAD, AFTER_HEAD = "bind.modality_head_point.", "bind.modality_postprocessor_point."
POINT_LLM_NAMES = {
    "point_trunk.": "",
    "modality_heads.point.": HEAD,
    "modality_postprocessors.point.": AFTER_HEAD,
    "modality_": "bind.modality_",
}
"""How `imagebind_w3D.pth` of Point-LLM spells what the files of Point-Bind hold; first match."""


class PointBind(nn.Module):
    """A 3D encoder and its way into the joint space.

    point_encoder : `I2PMAE()` or `PointBERT(channels=3)` as published, or one of another size
    width         : of the encoder's feature, see `cloud_features`
    middle, output : sizes of the two maps; 512 and 1024 as published
    dropout       : between them while training
    """

    def __init__(
        self,
        point_encoder: nn.Module,
        width: int,
        *,
        middle: int = 512,
        output: int = 1024,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.point_encoder = point_encoder
        self.pc_projection = nn.Parameter(torch.randn(width, middle) * middle**-0.5)
        self.head = nn.Sequential(
            nn.LayerNorm(middle, eps=1e-6), nn.Dropout(dropout), nn.Linear(middle, output, False)
        )
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    def forward(self, points: Tensor) -> Tensor:
        """points : (samples, points, channels). Returns unit vectors (samples, output)."""
        return F.normalize(self.project(cloud_features(self.point_encoder, points)), dim=-1)

    def project(self, features: Tensor) -> Tensor:
        """Features (samples, width) in the joint space, before the unit sphere."""
        return self.head(features @ self.pc_projection)

    def load_published(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Load the 3D half of a published file; returns the rest, the towers of ImageBind.

        state_dict : of `pointbind_i2pmae.pt` or `pointbind_pointbert.pt`, or `imagebind_w3D.pth`
                     of Point-LLM, with or without the towers.

        The towers are named as `ImageBind.load_published` takes them. Raises ValueError that names
        what is missing, not known or of another shape; nothing is loaded then.
        """
        point, towers = split_published(state_dict)
        after = point.pop(f"{AFTER_HEAD}1.log_logit_scale", torch.tensor(0.0))
        point.setdefault("logit_scale", self.logit_scale.detach())  # Point-LLM's file has none
        if after != 0:
            raise ValueError(f"Point-Bind: {AFTER_HEAD}1.log_logit_scale is {after}, must be 0")
        wanted = {name.replace("head.", HEAD): value for name, value in self.state_dict().items()}
        check_names("Point-Bind", wanted, point)
        self.load_state_dict({name.replace(HEAD, "head."): value for name, value in point.items()})
        return towers


def cloud_features(encoder: nn.Module, points: Tensor) -> Tensor:
    """One feature a cloud, (samples, width); of PointBERT's tokens, (samples, 2 * its width).

    points : (samples, points, channels or more); an encoder of xyz alone is not shown the colour.

    Point-Bind joins PointBERT's class token and the maximum over its patches; I2P-MAE gives one
    feature by itself.
    """
    return joined(encoder(points[..., : getattr(encoder, "channels", 3)]))


def joined(found: Tensor) -> Tensor:
    """Tokens (samples, 1 + patches, width) as one feature a cloud; a feature stays as it is."""
    if found.ndim == 2:
        return found
    return torch.cat([found[:, 0], found[:, 1:].amax(dim=1)], dim=-1)


def split_published(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The 3D half of a file, and the towers of ImageBind without their prefix `bind.`.

    Raises ValueError that names the tensors that belong to neither.
    """
    point, towers, strange = {}, {}, []
    for name, value in state_dict.items():
        for theirs, ours in POINT_LLM_NAMES.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        if name.startswith((*OWN, HEAD, AFTER_HEAD)):
            point[name] = value
        elif name.startswith("bind."):
            towers[name.removeprefix("bind.")] = value
        else:
            strange.append(name)
    if strange:
        raise ValueError(
            f"Point-Bind: {len(strange)} tensors belong neither to the 3D encoder nor to "
            f"ImageBind: {', '.join(strange[:8])}"
        )
    return point, towers


def contrastive_loss(points: Tensor, anchors: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE of pairs of unit vectors, (samples, dim) each; row i belongs to row i.

    scale : the factor on cosines, exp(`logit_scale`)

    Mean of both directions, as ConVIRT (Zhang et al. 2020) and ULIP write it. Objects with the very
    same anchor are no false negatives of each other: with equal anchors this loss equals the one
    whose targets are spread evenly over them, up to a constant.
    """
    logits = scale * points @ anchors.T
    right = torch.arange(len(points), device=points.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def add_embeddings(embeddings: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Embedding arithmetic: unit vectors, weighed, added and made unit again. (..., dim) each.

    Towers scale what they return (ImageBind's audio by 20, its text by about 100), so each is
    brought to unit length first; added as they come, the longest would win. Raises ValueError for
    a vector or a sum without a direction.
    """
    weights = [1.0] * len(embeddings) if weights is None else list(weights)
    if not embeddings or len(weights) != len(embeddings):
        raise ValueError(f"{len(weights)} weights for {len(embeddings)} embeddings")
    if len({each.shape[-1] for each in embeddings}) > 1:
        sizes = ", ".join(str(each.shape[-1]) for each in embeddings)
        raise ValueError(f"embeddings of {sizes} numbers lie in different spaces")
    total = torch.stack(
        [weight * unit(each) for each, weight in zip(embeddings, weights, strict=True)]
    ).sum(dim=0)
    return unit(total)


def unit(vectors: Tensor) -> Tensor:
    """Rows at length 1. Raises ValueError where a row is zero or not finite."""
    length = vectors.norm(dim=-1, keepdim=True)
    if not (length.isfinite() & (length > 1e-6)).all():
        raise ValueError("an embedding is zero or not finite: it has no direction")
    return vectors / length
