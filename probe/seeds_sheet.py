"""The Dataset of several runs: one way to put a measure, a reference or a difference into it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from probe.cells import LEVEL
from probe.intervals import holm
from probe.noise import Noise
from probe.seeds import OverSeeds, over_seeds
from probe.seeds_scores import EVERY, SHARE, SIGNED, Parts

REFERENCES = ("target", "encoder")
Results = xr.Dataset | dict[str, Any]
ROWS = 2**22  # numbers of all objects put together at a time


class SeedsSheet:
    """The variables that are `found`, for one Dataset, and what all measures need.

    own    : the sweep of each run, whose names and directions the measures keep
    models : places of (a model, the reference) among the variants
    shared : whether all runs ask about the same objects
    classes : of each run (objects,), the place of each query object's class
    """

    def __init__(
        self,
        own: list[xr.Dataset],
        models: list[tuple[int, int]],
        shared: bool,
        classes: list[np.ndarray],
    ):
        self.found: dict[str, Any] = {}  # a Dataset merges each with all before it
        self.own = own
        self.models = models
        self.shared = shared
        self.classes = classes

    def put(self, key: str, parts: list[Parts]) -> None:
        """One measure: each run's mean, that over seeds, its references and its differences."""
        score, single = EVERY[key], f"{key}_mean" in self.own[0]
        dims, about = (*score.extra, "layer"), self._about(f"{key}_mean" if single else key)
        name = about["long_name"]
        models = [one.models for one in parts]
        if "class" in dims:
            each = zip(models, self.classes, strict=True)
            by_run = np.stack([_means_by_class(*one, self.own[0].sizes["class"]) for one in each])
        else:
            by_run = np.stack([one.mean(axis=-1, dtype=np.float64) for one in models])
        self.found[f"{key}_by_run"] = (("run", "variant", *dims), by_run, about)
        found = inside(self._over(key, models), score.inside)
        if not single:  # a difference already, with a test of its own
            put_tested(self.found, key, ("variant", *dims), found, name, family=_family(dims))
            return
        put_interval(self.found, key, ("variant", *dims), found, about)
        for ending in REFERENCES:
            self._put_reference(key, ending, [getattr(one, ending) for one in parts])
        if f"{key}_from_target" in self.own[0]:
            targets = [one.target for one in parts if one.target is not None]
            gaps = [_less(a, b[..., None, :]) for a, b in zip(models, targets, strict=True)]
            text = f"{name}, less the target's"
            self._put_difference(key, "from_target", ("variant", *dims), gaps, text)
        if self.models:
            a, b = (list(side) for side in zip(*self.models, strict=True))
            gaps = [_less(one[a], one[b]) for one in models]
            text = f"difference in {name}"
            self._put_difference(key, "difference", ("comparison", *dims), gaps, text)
        put_verdict(self.found, key, self.own)

    def put_layers(self, parts: list[np.ndarray]) -> None:
        """CKA of all pairs of layers and models. parts : (pairs, objects), rows of the triangle."""
        step = max(1, ROWS // parts[0].shape[-1])
        blocks = [
            over_seeds([one[start : start + step] for one in parts], shared=self.shared)
            for start in range(0, len(parts[0]), step)
        ]
        sizes = [self.own[0].sizes[dim] for dim in ("variant", "layer")] * 2
        above = np.triu_indices(sizes[0] * sizes[1], 1)
        dims = ("variant", "layer", "other_variant", "other_layer")
        for part in ("mean", "low", "high"):
            grid = np.eye(sizes[0] * sizes[1])
            values = np.concatenate([getattr(block, part) for block in blocks])
            grid[above] = grid.T[above] = values.clip(-1, 1)
            about = {"long_name": "debiased linear CKA of two layers, over seeds"}
            about |= {"direction": self._about("cka_layers_mean")["direction"]}
            self.found[f"cka_layers_{part}"] = (dims, grid.reshape(sizes), about)

    def put_noise(self, floors: list[Noise]) -> None:
        """How much of a run its second capture has, where each run has one."""
        for key, part, bounds in (
            ("noise_cka", "own", SIGNED),
            ("noise_agreement", "agreeing", SHARE),
        ):
            each, about = [getattr(one, part) for one in floors], self._about(f"{key}_mean")
            by_run = np.stack([one.mean(axis=-1) for one in each])
            self.found[f"{key}_by_run"] = (("run", "variant", "layer"), by_run, about)
            found = over_seeds(each, shared=self.shared, hits=part == "agreeing")
            put_interval(self.found, key, ("variant", "layer"), inside(found, bounds), about)

    def _about(self, name: str) -> dict[str, Any]:
        return dict(self.own[0][name].attrs)

    def _over(self, key: str, values: list[np.ndarray], level: float = LEVEL) -> OverSeeds:
        """A model at a time: as floats, all of them would take many times their memory."""
        hits, dims = EVERY[key].hits, EVERY[key].extra
        how: dict[str, Any] = {"shared": self.shared, "hits": hits, "level": level}
        over: Callable[..., OverSeeds] = over_seeds
        if "class" in dims:
            over = partial(_over_each_class, self.classes, self.own[0].sizes["class"])
        each = [over([one[at] for one in values], **how) for at in range(len(values[0]))]
        return OverSeeds(*(np.stack(part) for part in zip(*each, strict=True)))

    def _put_reference(self, key: str, ending: str, values: list[np.ndarray | None]) -> None:
        name = f"{key}_{ending}"
        if f"{name}_mean" not in self.own[0] or any(one is None for one in values):
            return
        found = self._over(key, [one[None] for one in values if one is not None])
        found = inside(OverSeeds(*(part[0] for part in found)), EVERY[key].inside)
        put_interval(self.found, name, EVERY[key].extra, found, self._about(f"{name}_mean"))

    def _put_difference(
        self, key: str, ending: str, dims: tuple[str, ...], gaps: list[np.ndarray], text: str
    ) -> None:
        name, bounds, family = f"{key}_{ending}", EVERY[key].inside, _family(dims[1:])
        found = inside(self._over(key, gaps), bounds, paired=True)
        put_tested(self.found, name, dims, found, text, family=family)
        tests = np.prod(found.mean.shape[-family:])
        band = inside(self._over(key, gaps, 1 - (1 - LEVEL) / tests), bounds, paired=True)
        for end, bound in zip(("low", "high"), (band.low, band.high), strict=True):
            about = f"{text}, {end} end of the band over all at once, over seeds"
            attrs = {"long_name": about, "direction": "0 = no difference"}
            self.found[f"{name}_wide_{end}"] = (dims, bound, attrs)


def _family(dims: tuple[str, ...]) -> int:
    """How many of the last dimensions are tested at once, as in a sweep: each k by itself."""
    return 1 if dims[0] == "k" else len(dims)


def put_verdict(results: Results, key: str, own: list[xr.Dataset]) -> None:
    """The layer of each run's fall, and by how much alignment shifts it. own : one of each run."""
    for what in ("fall", "shift"):
        name = f"{key}_{what}"
        if f"{name}_mean" not in own[0]:
            continue
        each = [one[f"{name}_mean"] for one in own]
        if what == "shift":  # one that a model without a fall bounds from below is no number
            sure = [one[f"{name}_censored"] <= 1 - LEVEL for one in own]
            each = [one.where(known) for one, known in zip(each, sure, strict=True)]
        put_depths(results, name, each, own[0].layer, by=what == "shift")


def put_interval(
    results: Results, key: str, dims: tuple[str, ...], found: OverSeeds, about: dict[str, Any]
) -> None:
    """Mean and ends; about : attributes that a single run's has."""
    about = about | {"long_name": f"{about['long_name']}, over seeds"}
    for part, values in zip(("mean", "low", "high"), found[:3], strict=True):
        results[f"{key}_{part}"] = (dims, values, about)


def put_tested(
    results: Results,
    key: str,
    dims: tuple[str, ...],
    found: OverSeeds,
    text: str,
    *,
    family: int = 1,
) -> None:
    """A difference with its test, adjusted over the last dimensions, as many as make a family, if
    any."""
    about = {"long_name": f"{text}, over seeds", "direction": "0 = no difference"}
    for ending, values in zip(("", "_low", "_high"), found[:3], strict=True):
        results[f"{key}{ending}"] = (dims, values, about)
    about = {"long_name": f"{text}, p over seeds", "direction": "smaller is stronger evidence"}
    results[f"{key}_p"] = (dims, found.p, about)
    shape = found.p.shape
    together = found.p.reshape(*shape[: len(shape) - family], -1)
    results[f"{key}_p_adjusted"] = (dims, holm(together).reshape(shape), about)


def put_depths(
    results: Results, name: str, each: list[xr.DataArray], layers: xr.DataArray, *, by: bool = False
) -> None:
    """The layer that each run has something at, and over seeds where all runs have one.

    layers : those captured. Depths are among them: runs that agree do not say how others scatter,
             and have no interval; an end behind the deepest is inf, as it is of one run.
    by     : a number of layers instead, up or down
    """
    first, deepest = layers.values[[0, -1]]
    values = np.stack([one.values for one in each])
    dims, about = tuple(map(str, each[0].dims)), dict(each[0].attrs)
    results[f"{name}_by_run"] = (("run", *dims), values, about)
    whole = np.isfinite(values).all(axis=0)
    depth = np.where(whole, values, 0)[..., None]
    found = over_seeds(list(depth))
    apart = whole & (np.ptp(depth, axis=0)[..., 0] > 0)
    if by:
        found = inside(found, (first - deepest, deepest - first))
    else:
        low, high = np.maximum(found.low, first), found.high
        found = found._replace(low=low, high=np.where(high > deepest, np.inf, high))
    for part, numbers in zip(("mean", "low", "high"), found[:3], strict=True):
        kept = np.where(whole if part == "mean" else apart, numbers, np.nan)
        results[f"{name}_{part}"] = (dims, kept, about)


def inside(found: OverSeeds, bounds: tuple[float, float], *, paired: bool = False) -> OverSeeds:
    """Mean and ends within the bounds of a measure; of a difference, within their distance."""
    least, most = bounds
    ends = (least - most, most - least) if paired else bounds
    mean, low, high = (np.clip(part, *ends) for part in found[:3])
    return OverSeeds(mean, low, high, found.p)


def _less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b, of right and wrong too."""
    return np.subtract(a, b, dtype=np.int8 if a.dtype == bool else None)


def _means_by_class(values: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """values (variants, layers, objects) to (variants, count, layers); nan of no object."""
    means = np.full((len(values), count, values.shape[1]), np.nan)
    for at in np.unique(classes):
        means[:, at] = values[..., classes == at].mean(axis=-1)
    return means


def _over_each_class(
    classes: list[np.ndarray], count: int, values: list[np.ndarray], **how: Any
) -> OverSeeds:
    """values (layers, objects) of each seed, over (count, layers)."""
    each = []
    for at in range(count):
        own = [one[:, of == at] for one, of in zip(values, classes, strict=True)]
        enough = min(one.shape[-1] for one in own) > 1  # else there is no scatter of objects
        nothing = OverSeeds(*np.full((4, values[0].shape[0]), np.nan))
        each.append(over_seeds(own, **how) if enough else nothing)
    return OverSeeds(*(np.stack(part) for part in zip(*each, strict=True)))
