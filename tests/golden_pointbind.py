"""The goldens of Point-Bind and Point-LLM: their recipe of weights, and absolute tolerances."""

import math

import numpy as np
import torch

from tests.golden import recipe_normal, recipe_rng, recipe_tensor

TOLERANCE = {
    "embedding": 1e-6,
    "feature": 2e-5,
    "bridge": 2e-5,
    "hidden": 5e-5,
    "logits": 2e-5,
    "loss": 1e-5,
}


def tensor(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """A weight by its name; gates and attention inputs are larger than the general recipe's."""
    last = name.split(".")[-1]
    drawn = recipe_rng(name, seed).standard_normal(shape)
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if last == "gate":
        return torch.from_numpy((0.5 * drawn).astype(np.float32))
    if last == "in_proj_weight":
        return torch.from_numpy((drawn / math.sqrt(math.prod(shape[1:]))).astype(np.float32))
    return torch.from_numpy(np.array(recipe_tensor(name, shape, seed)))


def state(entries: list, seed: int) -> dict[str, torch.Tensor]:
    """{published key: tensor} of [name, shape, dtype] rows."""
    return {name: tensor(name, shape, seed) for name, shape, _ in entries}


def normal(name: str, shape: list[int], seed: int) -> torch.Tensor:
    return recipe_normal(name, shape, seed)


def close(ours, theirs: np.ndarray, tolerance: str) -> None:
    """Hold `ours` against a golden array, in absolute terms."""
    ours = ours.detach().cpu().double().numpy() if isinstance(ours, torch.Tensor) else ours
    assert ours.size == theirs.size, f"{ours.shape} against {theirs.shape}"
    gap = np.abs(ours.reshape(theirs.shape) - theirs.astype(np.float64)).max()
    assert gap <= TOLERANCE[tolerance], f"off by {gap:.1e}, {TOLERANCE[tolerance]:.0e} allowed"
