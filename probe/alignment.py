"""Drift through the projector that the alignment loss trained: the training objective from outside.

For the aligned model this is no evidence: it is what training made small. For a model trained
without it there is no such number. The fair drift, of `probe.drift`, has a map that is fitted alike
for every layer and model; this one is here to be read beside it.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from probe import intervals
from probe.cells import LEVEL
from probe.drift import drift_parts
from probe.judged import listed
from probe.splits import layers_of
from probe.sweep import read_objects
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run

PARTS = ("mean", "low", "high")
WEIGHT = re.compile(r"alignment_projectors?\.(?:(\d+)\.)?projector\.(\d+)\.(weight|bias)")
SCORES = {
    "through_alignment": "1 - cosine to the target through the trained alignment projector",
    "through_alignment_centred": "the same, less what all objects share",
}


def alignment(
    run: Run,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> xr.Dataset:
    """Drift through each trained projector, at every captured layer of the model it belongs to.

    `through_alignment_*` and `through_alignment_centred_*` (mean, low, high over variant, trained,
    layer), with `*_random` for the targets of other objects; `trained` is the layer behind which
    the projector was trained. 95 % intervals over the query objects; without a suffix, and with the
    dimension `object`, of each of these. Variants are those of the run's models that have a
    projector; the attribute `without` names the others.

    Raises ValueError for a run whose checkpoints hold no projector, or one toward something else
    than the target.
    """
    names = list(variants or run.variants)
    found = {name: known for name in names if (known := projectors(run, name))}
    if not found:
        raise ValueError(
            f"{run.path} has no alignment projector in checkpoints/: it is undefined for a model "
            "that was trained without one; python -m train.stage2 keeps that of `aligned`"
        )
    depth = layers_of(run, layers)
    trained = sorted({layer for known in found.values() for layer in known})
    data = read_objects(run, list(found))
    target, rows = data.target, {"gallery": data.gallery, "query": data.query}
    grid = (len(found), len(trained), len(depth))
    estimates = np.full((len(SCORES), 3, *grid), np.nan)
    each = np.full((len(SCORES), *grid, len(data.query)), np.nan, np.float32)
    random = np.full((len(SCORES), *grid), np.nan)
    places = [(name, at, layer) for name, own in found.items() for at in own for layer in depth]
    for done, (name, at, layer) in enumerate(places):
        if progress:
            progress(done, len(places), f"{name}, layer {layer}")
        states = Tokens(run.final(name).sel(layer=layer)[: data.samples])
        with errors_of(f"{name}, layer {layer}", run, states):
            parts = drift_parts(
                states, target, "alignment", projector=found[name][at], seed=seed, **rows
            )
        where = list(found).index(name), trained.index(at), depth.index(layer)
        scores = np.stack([parts.plain, parts.centred])
        estimate = intervals.bootstrap(scores, level=LEVEL, seed=seed)
        estimates[(slice(None), slice(None), *where)] = np.stack(estimate, axis=1)
        each[(slice(None), *where)] = scores
        random[(slice(None), *where)] = parts.random.mean(), parts.centred_random.mean()
    results = xr.Dataset(
        coords={
            "variant": list(found),
            "trained": trained,
            "layer": depth,
            "object": run.samples()["sample"].values[data.query],
        },
        attrs={
            "run": run.path.name,
            "seed": seed,
            "level": LEVEL,
            "without": [name for name in names if name not in found],
            "query_objects": len(data.query),
            "gallery_objects": len(data.gallery),
        },
    )
    dims = ("variant", "trained", "layer")
    for at, (key, name) in enumerate(SCORES.items()):
        about = {"long_name": name, "direction": "lower is closer, and trained to be low"}
        for part, values in zip(PARTS, estimates[at], strict=True):
            results[f"{key}_{part}"] = (dims, values, about)
        results[f"{key}_random"] = (dims, random[at], about)
        about = about | {"long_name": f"{name}, of each object"}
        results[key] = ((*dims, "object"), each[at], about)
    return results


def projectors(run: Run, variant: str) -> dict[int, Callable[[np.ndarray], np.ndarray]]:
    """The alignment projectors of one model by the layer they were trained behind; {} for none.

    They are read from checkpoints/VARIANT/model.safetensors in the run: linear layers with SiLU
    between (Su et al. 2026, section 3). Nothing of the file is executed.
    """
    folder = Path(run.path)
    file = folder / "checkpoints" / variant / "model.safetensors"
    if not file.is_file():
        return {}
    from safetensors import safe_open

    weights: dict[int | None, dict[int, dict[str, np.ndarray]]] = {}
    with safe_open(file, "numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118, it is no mapping
            if match := WEIGHT.fullmatch(name):
                layer, at, kind = match.groups()
                own = weights.setdefault(int(layer) if layer else None, {})
                own.setdefault(int(at), {})[kind] = tensors.get_tensor(name).astype(np.float32)
    if not weights:
        return {}
    config = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    if config["align_target"] != "qformer":
        raise ValueError(
            f"{run.path} aligned {variant} with {config['align_target']!r}, not with the target: "
            "its projector does not lead to the target's space"
        )
    return {
        int(config["align_layer"]) if layer is None else layer: projector(
            [own[at] for at in sorted(own)]
        )
        for layer, own in weights.items()
    }


def projector(layers: Sequence[dict[str, np.ndarray]]) -> Callable[[np.ndarray], np.ndarray]:
    """Linear layers ("weight" (out, in), "bias" (out,)) with SiLU between, as a function of x."""
    from scipy.special import expit

    def project(x: np.ndarray) -> np.ndarray:
        for at, one in enumerate(layers):
            x = x @ one["weight"].T + one["bias"]
            if at < len(layers) - 1:
                x = x * expit(x)
        return x

    return project


def findings(results: xr.Dataset) -> list[str]:
    """What the projector sees where it was trained, and that this is no evidence."""
    said = []
    for name in results.variant.values.astype(str):
        for trained in results.trained.values.tolist():
            one = results.sel(variant=name, trained=trained)
            layers = results.layer.values
            at = one.sel(layer=layers[np.abs(layers - trained).argmin()])
            if np.isnan(at.through_alignment_mean):
                continue
            three: list[Any] = [float(at[f"through_alignment_{part}"]) for part in PARTS]
            said.append(
                f"Through the projector trained behind layer {trained}, {name}'s tokens of layer "
                "{} lie {:.3f} [{:.3f}, {:.3f}] from the target ".format(int(at.layer), *three)
                + f"(1 - cosine; unrelated objects: {float(at.through_alignment_random):.3f})."
            )
    said.append(
        "This is circular: it is the number that training made small, and shows that it trained, "
        "not that geometry was kept."
    )
    if without := list(np.atleast_1d(results.attrs["without"]).astype(str)):
        have = "has" if len(without) == 1 else "have"
        said.append(f"It is undefined for {listed(without)}, which {have} no projector.")
    return said
