"""PointBERT: a cloud of coloured points becomes patches, and the patches a sequence of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

ALIASES = ("pc_encoder.", "point_encoder.", "module.point_encoder.")
"""Prefixes under which published files hold this encoder; one file may hold it under several."""

DISTANCES_AT_ONCE = 2**24
"""How many centre-to-point distances are held in memory at a time: 64 MiB in float32."""


def farthest_points(
    xyz: Tensor, count: int, start: int | str = 0, generator: Generator | None = None
) -> Tensor:
    """Indices of `count` points, each the farthest from those already chosen.

    xyz       : (samples, points, 3)
    start     : index of the first point, or `random`: one drawn for each sample.
    generator : where the random start is drawn; PyTorch's global one if not given.

    Returns (samples, count), int64. Of equally far points the one with the lowest index is taken.
    The published encoder always starts at random, so that one object has other features in every
    run; here that is a choice, and 0 the default.
    """
    samples, points, _ = xyz.shape
    if not 1 <= count <= points:
        raise ValueError(f"cannot choose {count} centres from a cloud of {points} points")
    first = _first_points(start, samples, points, generator).to(xyz.device)
    xyz = _at_least_float32(xyz.detach())
    chosen = torch.empty(samples, count, dtype=torch.long, device=xyz.device)
    # On a CPU a cloud and its distances fit a core's cache one sample at a time, which is several
    # times faster than sweeping over the batch; on a GPU fewer and larger steps are faster.
    together = 1 if xyz.device.type == "cpu" else samples
    for at in range(0, samples, together):
        rows = slice(at, at + together)
        _choose_farthest(xyz[rows], first[rows], chosen[rows])
    return chosen


def _first_points(
    start: int | str, samples: int, points: int, generator: Generator | None
) -> Tensor:
    if start == "random":
        device = generator.device if generator is not None else "cpu"
        return torch.randint(points, (samples,), generator=generator, device=device)
    if not isinstance(start, int) or not 0 <= start < points:
        raise ValueError(f"start {start!r} must be 'random' or an index from 0 to {points - 1}")
    return torch.full((samples,), start)


def _choose_farthest(xyz: Tensor, first: Tensor, chosen: Tensor) -> None:
    """Fill `chosen` (samples, count), beginning with `first` (samples,)."""
    axes = xyz.permute(2, 0, 1).contiguous()  # (3, samples, points)
    nearest = torch.full_like(axes[0], torch.inf)  # squared distance to the closest chosen point
    step, latest = torch.empty_like(nearest), first
    distance = torch.empty_like(nearest)
    for place in range(chosen.shape[1]):
        chosen[:, place] = latest
        centre = axes.gather(2, latest.expand(3, -1)[..., None])  # (3, samples, 1)
        torch.sub(axes[0], centre[0], out=distance).mul_(distance)
        for axis in (1, 2):
            torch.sub(axes[axis], centre[axis], out=step)
            distance += step.mul_(step)
        torch.minimum(nearest, distance, out=nearest)
        latest = nearest.argmax(dim=1)


def nearest_points(
    centres: Tensor, xyz: Tensor, k: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Indices of the k points closest to each centre, closest first; a centre may be its own.

    centres : (samples, centres, 3)    xyz : (samples, points, 3)
    dtype   : of the distances; not given, at least float32 whatever the precision of the model.
              float16, in which the published code trained, changes one neighbour in 75.

    Returns (samples, centres, k), int64.
    """
    samples, points, _ = xyz.shape
    if not 1 <= k <= points:
        raise ValueError(f"cannot find {k} neighbours in a cloud of {points} points")
    centres, xyz = _at_least_float32(centres.detach()), _at_least_float32(xyz.detach())
    dtype = dtype or xyz.dtype
    size = xyz.square().sum(-1)[:, None]  # (samples, 1, points)
    axes = xyz.to(dtype).to(xyz.dtype).mT[:, :, None]  # (samples, 3, 1, points)
    neighbours = []
    for some in centres.split(max(1, DISTANCES_AT_ONCE // (samples * points)), dim=1):
        rounded = some.to(dtype).to(some.dtype)
        # Products axis by axis, since a matrix product may be rounded to TF32 or to half precision.
        distance = rounded[..., :1] * axes[:, 0]  # (samples, some, points)
        for axis in (1, 2):
            distance += rounded[..., axis : axis + 1] * axes[:, axis]
        distance = distance.to(dtype)  # here autocast rounds; what is added in place stays so
        distance.mul_(-2).add_(some.square().sum(-1, keepdim=True)).add_(size)
        neighbours.append(distance.topk(k, largest=False).indices)
    return torch.cat(neighbours, dim=1)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def readout(tokens: Tensor) -> Tensor:
    """One vector a cloud: the class token, then the largest value over the patches.

    tokens : (samples, 1 + groups, width). Returns (samples, 2 * width), what the published
    classifier on this encoder reads (Yu et al. 2022, arXiv:2111.14819, and its code).
    """
    return torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1)


class PatchEncoder(nn.Module):
    """Mini-PointNet: what a patch looks like, whatever the order of its points."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, width // 2, 1),
            nn.BatchNorm1d(width // 2),
            nn.ReLU(inplace=True),
            nn.Conv1d(width // 2, width, 1),
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * width, 2 * width, 1),
            nn.BatchNorm1d(2 * width),
            nn.ReLU(inplace=True),
            nn.Conv1d(2 * width, width, 1),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """patches : (samples, groups, group_size, channels). Returns (samples, groups, width)."""
        samples, groups, size, _ = patches.shape
        each = self.first_conv(patches.flatten(0, 1).mT)  # (samples * groups, width, group_size)
        whole = each.amax(dim=2, keepdim=True).expand(-1, -1, size)
        # The patch's own feature comes first, each point's second.
        each = self.second_conv(torch.cat([whole, each], dim=1))
        return each.amax(dim=2).unflatten(0, (samples, groups))


class Attention(nn.Module):
    """Self-attention without biases on queries, keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden : (samples, tokens, width). Returns the same shape."""
        split = self.qkv(hidden).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (samples, heads, tokens, dim)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden : (..., width). Returns the same shape."""
        return self.fc2(F.gelu(self.fc1(hidden)))


class Block(nn.Module):
    """A transformer block that norms before each of its two branches."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden : (samples, tokens, width). Returns the same shape."""
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class PointBERT(nn.Module):
    """The point encoder: farthest-point patches, a mini-PointNet, a transformer.

    The defaults are the published sizes (21,859,200 parameters). Modules are named as in the
    published files. Their stochastic depth is left out: the encoder is frozen wherever it is used.
    """

    def __init__(
        self,
        *,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        groups: int = 512,
        group_size: int = 32,
        patch_width: int = 256,
        channels: int = 6,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split over {heads} heads")
        if patch_width % 2:
            raise ValueError(f"patch width {patch_width} must be even: half of it is a layer")
        if channels < 3:
            raise ValueError(f"{channels} channels cannot hold x, y and z")
        self.groups, self.group_size, self.channels = groups, group_size, channels
        self.start: int | str = 0
        """First centre where a call names none; the published code draws it: `random`."""
        self.neighbour_dtype: torch.dtype | None = None
        """As `dtype` in `nearest_points`; the published code has float16."""
        self.encoder = PatchEncoder(channels, patch_width)
        self.reduce_dim = nn.Linear(patch_width, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_pos = nn.Parameter(torch.randn(1, 1, width))
        # A third of the width inside: 128 of 384 as published, and in proportion at other sizes.
        self.pos_embed = nn.Sequential(
            nn.Linear(3, width // 3), nn.GELU(), nn.Linear(width // 3, width)
        )
        self.blocks = nn.ModuleDict(
            {"blocks": nn.ModuleList(Block(width, heads) for _ in range(depth))}
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, points: Tensor, start: int | str | None = None, generator: Generator | None = None
    ) -> Tensor:
        """Tokens of each cloud: the class token, then one for each patch.

        points           : (samples, points, channels), xyz in the unit sphere, colours in [0, 1]
        start, generator : where the choice of patches begins, as in `farthest_points`; the
                           module's own `start` if not given

        Returns (samples, 1 + groups, width).
        """
        return self.encode(*self.group(points, start, generator))

    def group(
        self, points: Tensor, start: int | str | None = None, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cut each cloud (samples, points, channels) into overlapping patches.

        Returns the centres (samples, groups, 3) and the patches (samples, groups, group_size,
        channels), closest point first. The xyz of a patch are relative to its centre, at their own
        scale; colours stay as they are.
        """
        self._check(points)
        xyz = points[..., :3]
        row = torch.arange(len(points), device=points.device)[:, None]
        start = self.start if start is None else start
        centres = xyz[row, farthest_points(xyz, self.groups, start, generator)]
        near = nearest_points(centres, xyz, self.group_size, self.neighbour_dtype)
        patches = points[row[..., None], near]
        relative = patches[..., :3] - centres[:, :, None]
        return centres, torch.cat([relative, patches[..., 3:]], dim=-1)

    def encode(self, centres: Tensor, patches: Tensor) -> Tensor:
        """Tokens (samples, 1 + groups, width) of what `group` returns."""
        dtype = self.cls_token.dtype
        tokens = self.reduce_dim(self.encoder(patches.to(dtype)))
        position = self.pos_embed(centres.to(dtype))
        samples = len(tokens)
        hidden = torch.cat([self.cls_token.expand(samples, -1, -1), tokens], dim=1)
        position = torch.cat([self.cls_pos.expand(samples, -1, -1), position], dim=1)
        for block in self.blocks["blocks"].children():
            hidden = block(hidden + position)  # before every block, not only before the first
        return self.norm(hidden)

    def _check(self, points: Tensor) -> None:
        if points.ndim != 3 or points.shape[2] != self.channels:
            raise ValueError(
                f"points of shape {tuple(points.shape)}: must be (samples, points, {self.channels})"
            )
        if points.shape[1] < max(self.groups, self.group_size):
            raise ValueError(
                f"clouds of {points.shape[1]} points are too small for {self.groups} groups of "
                f"{self.group_size} points"
            )
        if not (finite := points.isfinite().all(dim=2)).all():
            sample, point = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"{int((~finite).sum())} points hold NaN or infinity, the first is point {point} "
                f"of sample {sample}"
            )

    def load_published(self, state_dict: Mapping[str, object]) -> None:
        """Load the weights of a published encoder, or of a file that holds one.

        state_dict : names as in this module, bare or behind one of `ALIASES`, perhaps inside
                     `base_model` or `state_dict`. Names of other modules must be taken out before.

        A tensor that stands under several prefixes must be the same under each. Raises ValueError
        that names all that is missing, not known, of another shape or contradictory; nothing is
        loaded then.
        """
        self.load_state_dict(self.published_weights(state_dict))

    def published_weights(self, state_dict: Mapping[str, object]) -> dict[str, Tensor]:
        """What `load_published` would load, by the names of this module; raises as it does."""
        for wrapper in ("base_model", "state_dict"):
            if isinstance(inner := state_dict.get(wrapper), Mapping):
                state_dict = inner
        weights: dict[str, Tensor] = {}
        written: dict[str, str] = {}
        prefixes: Counter[str] = Counter()
        for name, value in only_tensors("PointBERT", state_dict).items():
            prefix = next(filter(name.startswith, ALIASES), "")
            bare = name.removeprefix(prefix)
            if bare in weights and not torch.equal(weights[bare].double(), value.double()):
                raise ValueError(f"PointBERT: {written[bare]!r} and {name!r} differ, must be equal")
            weights[bare], written[bare] = value, name
            prefixes[prefix] += 1
        own = self.state_dict()
        # What is missing is named as the file would name it, which may use two prefixes.
        usual = prefixes.most_common(1)[0][0] if prefixes else "point_encoder."
        check_names("PointBERT", own, weights, {name: usual + name for name in own} | written)
        return weights


def only_tensors(model: str, state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """`state_dict`; ValueError that names every value in it that is no tensor."""
    tensors, wrong = {}, []
    for name, value in state_dict.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Tensor):
            wrong.append(f"{name!r} is a {type(name).__name__}, not a name")
        else:
            wrong.append(f"{name!r} is a {type(value).__name__}, not a tensor")
    if wrong:
        raise ValueError(f"{model}: {'; '.join(wrong)}")
    return tensors


def check_names(
    model: str,
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    written: Mapping[str, str] | None = None,
) -> None:
    """Raise one ValueError that names every tensor missing, not known or of another shape.

    wanted, given : tensors by name; only names and shapes are read.
    written       : how the file spells a name, or would if it were there; as it is if not in here.
    """
    only_tensors(model, given)
    spelt = {name: name for name in (*wanted, *given)} | dict(written or {})
    missing = [spelt[name] for name in wanted if name not in given]
    unknown = [spelt[name] for name in given if name not in wanted]
    other = [
        f"{spelt[name]} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    found = {"missing": missing, "not known": unknown, "of another shape": other}
    wrong = [f"{len(names)} {what} ({', '.join(names)})" for what, names in found.items() if names]
    if wrong:
        raise ValueError(f"{model}: the weights do not fit: {'; '.join(wrong)}")
