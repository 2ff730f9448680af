"""Any-to-3D: a vector of the joint space as a cloud, by a decoder small enough to train here.

Point-Bind (section 3.4) hands its vectors to CLIP-Forge's published decoder. That one is not to be
had for this space: its flow takes vectors of 512 numbers from CLIP ViT-B/32, the joint space has
1024, and no flow trained for it was released. So this decoder is fitted on the vectors of the
training clouds alone and is then given those of any modality, as in the paper; like the decoder of
the reconstruction probe it draws all points at once, and starts from points of the training set.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.progress import track

WIDTH = 256
POINTS = 2048
"""Drawn of each cloud; an encoder that reads more is given points between them."""
DRAWN = 384
"""Points of a cloud that one training step looks at; twice as many of the true one."""
NOISE = 0.5
"""Length of the noise beside a unit vector in training: texts stand aside from the clouds."""
BATCH = 32
RATE = 2e-3
COLOUR_WEIGHT = 0.3


class CloudDecoder(nn.Module):
    """Unit vectors (samples, dim) to clouds (samples, points, channels).

    channels : 3, or 6 with colours
    """

    def __init__(self, dim: int, points: int = POINTS, channels: int = 3):
        super().__init__()
        self.shape = (points, channels)
        self.read = nn.Sequential(
            nn.Linear(dim, WIDTH),
            nn.GELU(),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.LayerNorm(WIDTH),
        )
        self.draw = nn.Linear(WIDTH, points * channels)

    def forward(self, vectors: Tensor, rows: Tensor | None = None) -> Tensor:
        """All points of the clouds, or those at `rows`."""
        hidden = self.read(vectors)
        if rows is None:
            return self.draw(hidden).unflatten(1, self.shape)
        weight = self.draw.weight.unflatten(0, self.shape)[rows].flatten(0, 1)
        bias = self.draw.bias.unflatten(0, self.shape)[rows].flatten()
        return F.linear(hidden, weight, bias).unflatten(1, (len(rows), self.shape[1]))


def fit_decoder(vectors: Tensor, clouds: np.ndarray, *, steps: int, seed: int) -> CloudDecoder:
    """A decoder fitted on vectors (samples, dim) of clouds (samples, points, 3 or 6).

    The loss is the Chamfer distance between random points of the drawn and of the true cloud, and
    with colours the difference between those of points that are nearest to each other.
    """
    generator = torch.Generator().manual_seed(seed)
    points, channels = min(POINTS, clouds.shape[1]), clouds.shape[2]
    states = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        decoder = CloudDecoder(vectors.shape[1], points, channels)
    finally:
        torch.set_rng_state(states)
    start = pooled(clouds, points, seed)
    with torch.no_grad():
        decoder.draw.weight.mul_(0.3)
        decoder.draw.bias.copy_(torch.from_numpy(start.reshape(-1)))
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in track(range(steps), "fit decoder", total=steps):
        rows = torch.randperm(len(vectors), generator=generator)[:BATCH]
        drawn = torch.randperm(points, generator=generator)[:DRAWN]
        dots = torch.randperm(clouds.shape[1], generator=generator)[: 2 * DRAWN]
        aside = torch.randn(len(rows), vectors.shape[1], generator=generator)
        beside = F.normalize(vectors[rows] + NOISE * F.normalize(aside, dim=1), dim=1)
        true = torch.from_numpy(clouds[rows.numpy()][:, dots.numpy()].astype(np.float32))
        loss = apart(decoder(beside, drawn), true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean distance to the nearest point, over both directions; colours of such pairs besides.

    ours : (samples, points, 3 or 6)    theirs : the same channels, any number of points
    """
    with torch.no_grad():  # which points are nearest has no gradient
        gaps = torch.cdist(ours[..., :3], theirs[..., :3])
        there, back = gaps.argmin(dim=2), gaps.argmin(dim=1)
    differences = (ours - _at(theirs, there), theirs - _at(ours, back))
    loss = torch.zeros(())
    for each in differences:
        loss = loss + each[..., :3].pow(2).sum(-1).add(1e-8).sqrt().mean() / 2
        if ours.shape[2] > 3:
            loss = loss + COLOUR_WEIGHT * each[..., 3:].abs().mean() / 2
    return loss


def _at(cloud: Tensor, rows: Tensor) -> Tensor:
    return cloud.gather(1, rows[..., None].expand(-1, -1, cloud.shape[2]))


def pooled(clouds: np.ndarray, points: int, seed: int) -> np.ndarray:
    """Points drawn from all clouds alike, (points, channels): the mean shape."""
    rng = np.random.default_rng([seed, 17])
    samples, dots = (rng.integers(0, size, points) for size in clouds.shape[:2])
    return clouds[samples, dots].astype(np.float32)


@torch.no_grad()
def draw_clouds(decoder: CloudDecoder, vectors: Tensor, count: int) -> np.ndarray:
    """Clouds of unit vectors (samples, dim), (samples, count, 6), black where there is no colour.

    As the encoder reads them: about their mean, of largest radius 1; an encoder of more points than
    the decoder draws is given points half-way to a near one besides.
    """
    found = np.zeros((len(vectors), count, 6), np.float32)
    for cloud, vector in zip(found, vectors, strict=True):
        drawn = decoder(vector[None])[0].numpy()
        drawn[:, 3:] = drawn[:, 3:].clip(0, 1)
        drawn = with_more(drawn, count)
        drawn[:, :3] -= drawn[:, :3].mean(axis=0)
        drawn[:, :3] /= np.linalg.norm(drawn[:, :3], axis=1).max()
        cloud[:, : drawn.shape[1]] = drawn
    return found


def with_more(cloud: np.ndarray, count: int) -> np.ndarray:
    """So many points of a cloud (points, channels): the first ones, or more of them.

    The points added stand half-way to the second, third, ... nearest of each in turn, colour alike.
    """
    from scipy.spatial import cKDTree

    rounds = -(-count // len(cloud))
    if rounds <= 1:
        return cloud[:count]
    _, near = cKDTree(cloud[:, :3]).query(cloud[:, :3], k=rounds)
    between = [(cloud + cloud[near[:, place]]) / 2 for place in range(rounds)]  # place 0: itself
    return np.concatenate(between)[:count]
