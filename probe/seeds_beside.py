"""Several runs under other seeds: what each keeps beside its sweep, put together.

Each of these Datasets holds what every object adds to a mean, NAME (..., object), beside NAME_mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from probe.cells import LEVEL
from probe.intervals import holm
from probe.seeds import over_seeds
from probe.seeds_runs import names_of
from probe.seeds_scores import ABOVE, ANY, COSINE, SHARE, SIGNED
from probe.seeds_sheet import inside, put_depths, put_interval, put_tested, put_verdict
from probe.sweep import REFERENCE
from store import Run

BELOW = (-np.inf, 0.0)
OBJECTS = ("object", "group", "text")  # what a mean is over: objects, groups or texts of them


class Kept(NamedTuple):
    """A measure that is kept beside the sweep."""

    name: str
    inside: tuple[float, float] = ANY
    tested: bool = False
    """Whether 0 is no effect."""


def _with_references(key: str, name: str, bounds: tuple[float, float]) -> dict[str, Kept]:
    return {
        key: Kept(name, bounds),
        f"{key}_target": Kept(f"{name}, from the target", bounds),
        f"{key}_shuffled": Kept(f"{name}, fitted on tokens of other objects", bounds),
    }


KEPT = {
    "reconstruction": _with_references("chamfer", "Chamfer distance of the rebuilt cloud", ABOVE)
    | _with_references("f_score", "F-score of the rebuilt cloud", SHARE),
    "steps": {
        "cka": Kept("CKA with the target during training", SIGNED),
        "drift": Kept("drift during training", COSINE),
        "drift_centred": Kept("drift during training, less what all objects share", COSINE),
    },
    "alignment": {
        "through_alignment": Kept("1 - cosine through the trained projector", COSINE),
        "through_alignment_centred": Kept(
            "1 - cosine through the trained projector, less what all objects share", COSINE
        ),
    },
    "maps": {
        "trustworthiness": Kept("trustworthiness of the map", SHARE),
        "continuity": Kept("continuity of the map", SHARE),
    },
    "lens": {
        "log_probability": Kept("log-probability of the class word, nats", BELOW),
        "advantage": Kept("advantage of the class word over others, nats", tested=True),
        "log_rank": Kept("log of the rank of the class word", ABOVE),
        "entropy": Kept("entropy of the lens, nats", ABOVE),
        "kl": Kept("KL of the lens from the model's own next token, nats", ABOVE),
        "caption_match": Kept("share of point tokens next to a caption of their class", SHARE),
    },
    "causal": {
        "log_probability": Kept("log-probability of the answer, nats", BELOW),
        "change": Kept("change in the answer by an intervention, nats", tested=True),
        "knockout": Kept("change in the answer by a knock-out, nats", tested=True),
        "transplant": Kept("change in the answer by a transplant, nats", tested=True),
        "transplant_gap": Kept("gap between the answers of two models, nats", tested=True),
    },
}
SETTINGS = ("answer", "seed")  # attributes that runs must have alike


def kept_by_all(runs: Sequence[Run]) -> tuple[list[str], dict[str, str]]:
    """Probes beside the sweep that all runs keep; and by probe which run lacks it, and what helps,
    where some have it.
    """
    every, lacking = [], {}
    for name in KEPT:
        without = [run for run in runs if name not in run.probe_names()]
        if not without:
            every.append(name)
        elif len(without) < len(runs):
            lacking[name] = f"not in {without[0].name}: {_command(name, without[0])}"
    return every, lacking


def over_kept(runs: Sequence[Run], name: str, shared: bool) -> xr.Dataset:
    """What `name`, one of `KEPT`, holds in several runs, with intervals over seeds and objects.

    shared : whether all runs ask about the same objects

    Names and dimensions are those of a single run: `_mean`, `_low`, `_high` and `_by_run` (run,
    ...); paired by run and object, against the baseline `*_difference` (comparison, ...) with
    `_low`, `_high`, `_p` and by Holm `_p_adjusted`, which a measure whose 0 is no effect has
    itself, too. Depths (`*_fall`, `*_shift`, `stops`) as in `probe.seeds_runs.over_runs`.
    `rank_*` is a geometric mean over seeds, too.

    Raises ValueError for runs that were not measured alike, or by a version that kept means alone.
    """
    found = [run.probes(name) for run in runs]
    _check(runs, name, found)
    found = [_in_order(run, name, one, found[0]) for run, one in zip(runs, found, strict=True)]
    alike = {what: found[0].attrs[what] for what in SETTINGS if what in found[0].attrs}
    shared = shared and all(_ids(one) == _ids(found[0]) for one in found)
    about = {"level": LEVEL, "seeds": len(runs), "shared": int(shared), **alike}
    results = xr.Dataset(coords={"run": names_of(runs)}, attrs=about)
    for key, kept in KEPT[name].items():
        if (part := _part(found[0], key)) in found[0]:
            _put(results, key, kept, [one[part] for one in found])
    for key in ("chamfer", "f_score"):
        put_verdict(results, key, found)
    if "stops" in found[0]:
        about = {"long_name": "layer by which the text stops reading the point tokens"}
        stops = [one.stops.assign_attrs(about, direction="a layer") for one in found]
        put_depths(results, "stops", stops, found[0].layer)
    if "transplant" in found[0]:
        _put_share(results, found)
        results = results.assign_coords(giver=found[0].giver)
    if name == "lens":
        _put_rank(results)
    return results


def _put(results: xr.Dataset, key: str, kept: Kept, each: list[xr.DataArray]) -> None:
    """One measure: its mean over seeds, and every model's difference from the baseline.

    Texts may be others where objects are shared: each run draws those that are held out.
    """
    *dims, over = map(str, each[0].dims)
    shared = bool(results.attrs["shared"]) and all(one[over].equals(each[0][over]) for one in each)
    for dim in dims:
        if dim not in results.coords:
            results.coords[dim] = each[0][dim].variable
    values = [one.values for one in each]
    found = inside(over_seeds(values, shared=shared), kept.inside)
    direction = each[0].attrs.get("direction", each[0].attrs.get("units", ""))
    about = {"long_name": kept.name, "direction": direction}
    by_run = np.stack([one.mean(axis=-1, dtype=np.float64) for one in values])
    results[f"{key}_by_run"] = (("run", *dims), by_run, about)
    put_interval(results, key, tuple(dims), found, about)
    if kept.tested:
        about = {"long_name": f"{kept.name}, p over seeds, of no effect"}
        about["direction"] = "smaller is stronger evidence"
        p = holm(found.p) if dims[1:] else found.p
        results[f"{key}_p_adjusted"] = (dims, p, about)
    names = each[0]["variant"].values.tolist() if "variant" in dims else []
    if REFERENCE not in names or not (others := [one for one in names if one != REFERENCE]):
        return
    results.coords["comparison"] = [f"{one} - {REFERENCE}" for one in others]
    rest = [dim for dim in dims if dim != "variant"]
    gaps = [
        (one.sel(variant=others).astype(float) - one.sel(variant=REFERENCE))
        .transpose("variant", *rest, over)
        .values
        for one in each
    ]
    gap = inside(over_seeds(gaps, shared=shared), kept.inside, paired=True)
    where, text = ("comparison", *rest), f"difference in {kept.name}"
    put_tested(results, f"{key}_difference", where, gap, text, family=len(rest))


def _put_share(results: xr.Dataset, found: list[xr.Dataset]) -> None:
    """Share of the gap that a transplant closes, linearised (Cochran 1977, section 3.12); nan where
    one run's gap may be 0.
    """
    parts = []
    for one in found:
        gap = one.transplant_gap.expand_dims(layer=one.layer).transpose(*one.transplant.dims)
        size = gap.mean("object").where(one.transplant_share_mean.notnull())
        share = one.transplant.mean("object") / size
        parts.append((share + (one.transplant - share * gap) / size).transpose(..., "object"))
    closed = over_seeds([one.values for one in parts], shared=bool(results.attrs["shared"]))
    about = {"long_name": "share of the gap that a transplant closes"}
    about["direction"] = "0 as itself, 1 as the other"
    by_run = np.stack([one.mean("object", skipna=False) for one in parts])
    results["transplant_share_by_run"] = (("run", "into", "layer"), by_run, about)
    put_interval(results, "transplant_share", ("into", "layer"), closed, about)


def _put_rank(results: xr.Dataset) -> None:
    about = {"long_name": "rank of the class word, a geometric mean", "direction": "1 is on top"}
    for part in ("mean", "low", "high"):
        log = results[f"log_rank_{part}"]
        results[f"rank_{part}"] = (log.dims, np.exp(log.values), about)


def _part(found: xr.Dataset, key: str) -> str:
    """What a measure is a mean of: of a map, groups of objects are what the error comes of."""
    return f"{key}_of_groups" if f"{key}_of_groups" in found else key


def _ids(found: xr.Dataset) -> list[str]:
    return found["object"].values.tolist() if "object" in found.coords else []


def _command(name: str, run: Run) -> str:
    """What measures it in one run."""
    return f"python -m probe {run.name} --probes {name}"


def _in_order(run: Run, name: str, one: xr.Dataset, first: xr.Dataset) -> xr.Dataset:
    """A run's results in the models, layers and so on of the first run's, or who lacks which."""
    used = {dim for key in KEPT[name] if (part := _part(one, key)) in one for dim in one[part].dims}
    for dim in used.difference(OBJECTS):
        mine, theirs = (each[dim].values.tolist() for each in (first, one))
        if lost := [str(value) for value in mine if value not in theirs]:
            raise ValueError(f"{run.name} keeps {name} without {dim} {lost[0]}: measure all alike")
        one = one.sel({dim: mine})
    return one


def _check(runs: Sequence[Run], name: str, found: list[xr.Dataset]) -> None:
    for run, one in zip(runs, found, strict=True):
        for what in SETTINGS:
            mine, theirs = (each.attrs.get(what) for each in (found[0], one))
            if mine != theirs:
                raise ValueError(
                    f"{runs[0].name} keeps {name} of {what} {mine}, {run.name} of {theirs}: "
                    "measure both alike"
                )
        for key in KEPT[name]:
            part = _part(one, key)
            there = part in one or f"{key}_low" in one
            if there and (part not in one or one[part].dims[-1] not in OBJECTS):
                raise ValueError(
                    f"{run.name} keeps {name} without its objects or texts, of an older version: "
                    f"{_command(name, run)} measures it anew"
                )
            if (part in one) != (_part(found[0], key) in found[0]):
                pair = (run, runs[0]) if part in one else (runs[0], run)
                raise ValueError(
                    f"{pair[0].name} keeps {name} with {key}, {pair[1].name} without: measure both "
                    "alike"
                )
