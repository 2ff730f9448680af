"""Reference numbers produced by the published code, and the recipe of the weights behind them.

No trained weights are involved: every tensor is drawn from its name and a seed. A golden is a json
(sizes, names, tolerances) beside an npz (arrays). Where the folder is absent the test is skipped.
"""

import json
import math
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

DEFAULT_DIR = Path(__file__).resolve().parents[2] / "shared" / "golden"


def golden_dir() -> Path:
    """Folder of the goldens: $GOLDEN_DIR, or ../shared/golden beside the repository."""
    return Path(os.environ.get("GOLDEN_DIR", DEFAULT_DIR))


def golden_json(name: str) -> dict:
    """The json of a golden; skips the test when it is not there."""
    path = golden_dir() / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no golden {name!r}: {path} is absent; set GOLDEN_DIR to its folder")
    return json.loads(path.read_text())


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """The json and the arrays of a golden; skips the test when they are not there."""
    meta = golden_json(name)
    with np.load(golden_dir() / f"{name}.npz", allow_pickle=False) as arrays:
        return meta, {key: arrays[key] for key in arrays.files}


def recipe_rng(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8")) + seed))


def recipe_tensor(name: str, shape: list[int], seed: int, gain: float = 1.0) -> np.ndarray:
    """The float32 tensor that belongs to a published state_dict key."""
    last = name.split(".")[-1]
    drawn = recipe_rng(name, seed).standard_normal(shape)
    if last == "running_var":
        drawn = 1.0 + 0.1 * np.abs(drawn)
    elif last == "running_mean":
        drawn = 0.05 * drawn
    elif last.endswith("bias"):
        drawn = 0.02 * drawn
    elif len(shape) == 1 and last.endswith("weight"):
        drawn = 1.0 + 0.05 * drawn
    elif last == "weight":
        drawn = gain * (drawn / math.sqrt(math.prod(shape[1:])))
    else:
        drawn = 0.02 * drawn
    return drawn.astype(np.float32)


def recipe_state(entries: list[dict], seed: int, spread: bool = False) -> dict[str, torch.Tensor]:
    """{published key: tensor} for the `state_dict` list of a golden's json.

    spread : use `gain_in_spread` where an entry has one (the golden that holds both recipes);
             an entry's own `gain` always counts.
    Integer buffers are as the reference builds them; an alias gets the tensor of its first name.
    """
    state: dict[str, torch.Tensor] = {}
    for entry in entries:
        name, shape = entry["name"], entry["shape"]
        last = name.split(".")[-1]
        if "alias_of" in entry and entry["alias_of"] in state:
            state[name] = state[entry["alias_of"]]
        elif last == "num_batches_tracked":
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif last == "position_ids":
            state[name] = torch.arange(math.prod(shape)).reshape(shape)
        else:
            source = entry.get("alias_of", name)
            gain = entry.get("gain", 1.0)
            if spread:
                gain = entry.get("gain_in_spread", gain)
            state[name] = torch.from_numpy(np.array(recipe_tensor(source, shape, seed, gain)))
    return state


def recipe_normal(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """A standard normal float32 input, as `input.inputs_embeds`."""
    return torch.from_numpy(recipe_rng(name, seed).standard_normal(shape).astype(np.float32))


def golden_cloud(
    name: str,
    seed: int,
    *,
    axes: list[float] = (1.0, 1.0, 1.0),
    rgb_scale: float = 1.0,
    rgb_offset: float = 0.0,
    points: int = 8192,
) -> torch.Tensor:
    """One cloud (points, 6): a filled ellipsoid with half axes `axes` and random colours."""
    draw = recipe_rng(name, seed)
    direction = draw.standard_normal((points, 3))
    direction /= np.sqrt((direction * direction).sum(-1, keepdims=True))
    radius = np.cbrt(draw.random((points, 1)))
    rgb = draw.random((points, 3))
    xyz = direction * radius * np.array(axes)
    cloud = np.concatenate([xyz, rgb_offset + rgb_scale * rgb], -1).astype(np.float32)
    return torch.from_numpy(cloud)


def golden_clouds(meta: dict) -> torch.Tensor:
    """The clouds of a golden, (samples, points, 6), from the first input that lists them."""
    inputs = next(value for value in meta["inputs"].values() if "clouds" in value)
    names, clouds = inputs["NAMES"], inputs["clouds"]
    return torch.stack(
        [
            golden_cloud(name, meta["seed"], **cloud, points=inputs["shape"][-2])
            for name, cloud in zip(names, clouds, strict=True)
        ]
    )


def assert_close(ours, arrays: dict, meta: dict, name: str) -> float:
    """Hold `ours` against array `name` within its own tolerance; returns the deviation.

    The measure is max|ours - golden| / max|golden|; tolerance 0 means equal.
    """
    theirs = arrays[name]
    if isinstance(ours, torch.Tensor):
        ours = ours.detach().cpu().numpy()
    ours = np.asarray(ours)
    assert ours.size == theirs.size, f"{name}: {ours.shape} against {theirs.shape}"
    ours = ours.reshape(theirs.shape).astype(np.float64)
    scale = max(float(np.abs(theirs.astype(np.float64)).max()), np.finfo(np.float64).tiny)
    deviation = float(np.abs(ours - theirs.astype(np.float64)).max()) / scale
    tolerance = meta["arrays"][name]["tolerance"]
    assert deviation <= tolerance, f"{name}: deviation {deviation:.2e}, tolerance {tolerance:.0e}"
    return deviation
