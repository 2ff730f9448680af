"""The Dataset a sweep grows into: one way to put an interval, a difference or a verdict there."""

from typing import Any

import numpy as np
import xarray as xr

from probe import intervals, verdict
from probe.cells import LEVEL, Cell, Objects, Settings

HIGHER, LOWER = "higher is better", "lower is closer"
BOUNDS = ("low", "high")
DEPTH = "a layer, inf where it is beyond the deepest"


class Sheet:
    """The Dataset that grows, and what all parts of it need.

    Variables wait until the Dataset is looked at, and join it together: one by one, each would be
    merged with all before it, which took most of the time of a sweep whose cells were kept.
    """

    def __init__(
        self, results: xr.Dataset, data: Objects, ask: Settings, models: list[tuple[int, int]]
    ):
        self._results = results
        self._waiting: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {}
        self.data = data
        self.seed = ask.seed
        self.k = list(ask.k)
        self.pairs = models  # places of (a model, the reference) among the variants
        self.variants: list[str] = results["variant"].values.astype(str).tolist()
        self.layers: list[int] = results["layer"].values.tolist()

    @property
    def results(self) -> xr.Dataset:
        if self._waiting:
            self._results, self._waiting = self._results.assign(self._waiting), {}
        return self._results

    @results.setter
    def results(self, results: xr.Dataset) -> None:
        self._results = results

    def stacked(self, cells: dict[Any, Cell], part: str) -> np.ndarray:
        """One part of all cells, (variants, layers, ...)."""
        return np.array([[cells[v, at][part] for at in self.layers] for v in self.variants])

    def put(
        self,
        key: str,
        dims: tuple[str, ...],
        values: Any,
        name: str,
        direction: str,
        **more: str,
    ) -> None:
        """more : attributes besides."""
        attrs = {"long_name": name, "direction": direction} | more
        self._waiting[key] = (dims, np.asarray(values, np.float64), attrs)

    def put_control(self, key: str, dims: tuple[str, ...], draws: Any, name: str, why: str) -> None:
        """What chance gives: mean over draws (*dims, draws), with their standard deviation.

        A draw is no object: the spread says how far one of them is from another, and the mean is
        no estimate of anything about the objects, so it gets no interval over them.
        """
        draws = np.asarray(draws, np.float64)
        about = f"{name}, a control: mean of {draws.shape[-1]} draws"
        self.put(key, dims, draws.mean(axis=-1), about, why)
        about = f"{name}, a control: standard deviation over {draws.shape[-1]} draws"
        self.put(f"{key}_spread", dims, draws.std(axis=-1), about, "of one draw from another")

    def put_interval(
        self, key: str, dims: tuple[str, ...], estimate: Any, name: str, direction: str
    ) -> None:
        for part, values in zip(("mean", "low", "high"), estimate, strict=True):
            bound = "" if part == "mean" else f", {part} end of the {LEVEL:.0%} interval"
            self.put(f"{key}_{part}", dims, values, f"{name}{bound}", direction)

    def put_differences(
        self, key: str, dims: tuple[str, ...], gaps: list[intervals.Difference], name: str
    ) -> None:
        endings = {"": "", "_low": ", low end", "_high": ", high end"}
        tests = {"_p": ", p of this layer alone", "_p_adjusted": ", p over all layers at once"}
        wide = {f"_wide_{end}": f", {end} end of the band over all layers" for end in BOUNDS}
        parts = zip(*gaps, strict=True)
        for (ending, text), values in zip({**endings, **tests, **wide}.items(), parts, strict=True):
            direction = "smaller is stronger evidence" if ending in tests else "0 = no difference"
            self.put(f"{key}{ending}", dims, np.stack(values), f"{name}{text}", direction)

    def put_verdict(
        self,
        key: str,
        extra: tuple[str, ...],
        scores: np.ndarray,
        reference: np.ndarray,
        chance: np.ndarray | float,
        name: str,
        *,
        against: str,
        hits: bool = False,
    ) -> None:
        """Where each model falls, and how far alignment moves that.

        scores    : (variants, *extra, layers, queries), higher is better
        reference : the same, or broadcast to it; chance : (*extra), what it would be lost to
        """
        reference = np.broadcast_to(reference, scores.shape)
        level = reference.mean(axis=-1)[..., 0]  # (variants, *extra)
        margin = verdict.margin_of(level.mean(axis=0), chance)
        gaps = scores - reference
        found = verdict.falls(
            gaps, np.array(self.layers), margin, hits=hits, level=LEVEL, seed=self.seed
        )
        where = ("variant", *extra)
        about = f"layer where {name} falls below {against} by the margin"
        self.put_interval(f"{key}_fall", where, found[:3], about, DEPTH)
        texts = (
            ("fall_p", found.p, "p over all layers that it falls so far", "smaller: surer"),
            ("fallen", found.fallen, f"first captured layer surely fallen, {name}", DEPTH),
            ("held", found.held, f"deepest layer up to which {name} surely holds", DEPTH),
        )
        for ending, values, text, direction in texts:
            self.put(f"{key}_{ending}", where, values, text, direction)
        text = f"margin: {verdict.SHARE:.0%} of the way from {against} to chance, {name}"
        self.put(f"{key}_margin", extra, margin, text, "a stated number", against=against)
        if not self.pairs:
            return
        shifts = [verdict.shift(found, a, b, self.layers[-1], LEVEL) for a, b in self.pairs]
        moved = tuple(np.stack(part) for part in zip(*shifts, strict=True))
        where = ("comparison", *extra)
        text = f"layers by which the fall of {name} comes later"
        self.put_interval(f"{key}_shift", where, moved[:3], text, "above 0: later, better")
        text = f"{text}, share of resamples in which one model never falls"
        self.put(f"{key}_shift_censored", where, moved[3], text, "above 0: at least")
        paired = np.stack([scores[a] - scores[b] for a, b in self.pairs])
        where = (*where, "layer")
        alike = verdict.equivalence(paired, margin[..., None], hits=hits)
        text = f"p that {name} of the two models is further apart than the margin"
        self.put(f"{key}_alike_p", where, alike, text, "smaller: surely alike")
        least = verdict.detectable(paired, hits=hits, level=LEVEL, seed=self.seed)
        text = f"difference in {name} that would be found 4 times in 5"
        self.put(f"{key}_detectable", where, least, text, "smaller: a sharper run")

    def put_verdict_from_first(
        self, key: str, scores: np.ndarray, chance: np.ndarray | float, name: str
    ) -> None:
        """Where each model falls below its own shallowest layer, if there is a deeper one."""
        if len(self.layers) > 1:
            against = f"layer {self.layers[0]}"
            self.put_verdict(key, (), scores, scores[:, :1], chance, name, against=against)
