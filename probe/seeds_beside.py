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
from probe.seeds_scores import ANY, COSINE, SHARE, SIGNED
from probe.seeds_sheet import SeedsSheet, inside, put_depths, put_interval, put_tested
from probe.sweep import REFERENCE
from store import Run

ABOVE, BELOW = (0.0, np.inf), (-np.inf, 0.0)
OBJECTS = ("object", "group")  # what a mean is over: objects, or groups of them
RUN, MODEL = "python -m probe {} --probes {}", "python -m train.explain {} --probes {}"


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
FAMILY = {"steps": 2}  # last dimensions that are tested at once, where it is not one


def kept_by_all(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Probes beside the sweep that all runs keep, and of those that some lack, who and how."""
    every, lacking = [], []
    for name in KEPT:
        without = [run for run in runs if name not in run.probe_names()]
        if not without:
            every.append(name)
        elif len(without) < len(runs):
            lacking.append(f"{name}: not in {without[0].path}: {_command(name, without[0])}")
    return every, lacking


def over_kept(runs: Sequence[Run], name: str, shared: bool) -> xr.Dataset:
    """What `name`, one of `KEPT`, holds in several runs, with intervals over seeds and objects.

    shared : whether all runs ask about the same objects

    Names and dimensions are those of a single run: `_mean`, `_low`, `_high` and `_by_run` (run,
    ...); paired by run and object, against the baseline `*_difference` (comparison, ...) with
    `_low`, `_high`, `_p` and by Holm `_p_adjusted`, which a measure whose 0 is no effect has
    itself, too. Depths (`*_fall`, `*_shift`, `stops`) as in `probe.seeds_runs.over_runs`.
    `rank_*` is a geometric mean over seeds, too, and `kl_*` is over seeds alone: it has no objects.

    Raises ValueError for runs that were not measured alike, or by a version that kept means alone.
    """
    found = [run.probes(name) for run in runs]
    _check(runs, name, found)
    results = xr.Dataset(
        coords={"run": [str(run.path.name) for run in runs]},
        attrs={
            "level": LEVEL,
            "seed": found[0].attrs["seed"],
            "seeds": len(runs),
            "shared": int(shared and _same_ids(found)),
        },
    )
    for key in KEPT[name]:
        if (part := _part(found[0], key)) in found[0]:
            _put(results, name, key, [one[part] for one in found])
    sheet = SeedsSheet(found, [], shared)
    for key in ("chamfer", "f_score"):
        sheet.put_verdict(key)
    results = results.assign(sheet.found)
    if "stops" in found[0]:
        put_depths(results, "stops", [one.stops for one in found], found[0].layer)
    if "transplant" in found[0]:
        _put_share(results, found)
        results = results.assign_coords(giver=found[0].giver)
    if name == "lens":
        _put_lens(results, found)
    return results


def _put(results: xr.Dataset, name: str, key: str, each: list[xr.DataArray]) -> None:
    kept, family = KEPT[name][key], FAMILY.get(name, 1)
    *dims, over = map(str, each[0].dims)
    shared = bool(results.attrs["shared"])
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
        p = holm(found.p) if dims[1:] else found.p
        results[f"{key}_p_adjusted"] = (dims, p, about)
    if "variant" not in dims or REFERENCE not in each[0]["variant"]:
        return
    others = [one for one in each[0]["variant"].values.tolist() if one != REFERENCE]
    if not others:
        return
    results.coords["comparison"] = [f"{one} - {REFERENCE}" for one in others]
    gaps = [
        (one.sel(variant=others).astype(float) - one.sel(variant=REFERENCE)).transpose(*dims, over)
        for one in each
    ]
    gap = inside(over_seeds([one.values for one in gaps], shared=shared), kept.inside, paired=True)
    where = ("comparison", *(dim for dim in dims if dim != "variant"))
    text = f"difference in {kept.name}"
    put_tested(results, f"{key}_difference", where, gap, text, family=family)


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
    put_interval(results, "transplant_share", ("into", "layer"), closed, about)


def _put_lens(results: xr.Dataset, found: list[xr.Dataset]) -> None:
    about = {"long_name": "rank of the class word, a geometric mean", "direction": "1 is on top"}
    for part in ("mean", "low", "high"):
        log = results[f"log_rank_{part}"]
        results[f"rank_{part}"] = (log.dims, np.exp(log.values), about)
    alone = over_seeds([one.kl.values[..., None] for one in found])
    about = {"long_name": "nats from the model's own next token, of each run's texts"}
    about["direction"] = "lower is better"
    put_interval(results, "kl", tuple(map(str, found[0].kl.dims)), inside(alone, ABOVE), about)


def _part(found: xr.Dataset, key: str) -> str:
    """Of a map, groups of objects are what the error comes of."""
    return f"{key}_of_groups" if f"{key}_of_groups" in found else key


def _same_ids(found: list[xr.Dataset]) -> bool:
    return all(
        "object" not in one.coords or np.array_equal(one["object"], found[0]["object"])
        for one in found
    )


def _command(name: str, run: Run) -> str:
    return (MODEL if name in ("lens", "causal") else RUN).format(run.path, name)


def _check(runs: Sequence[Run], name: str, found: list[xr.Dataset]) -> None:
    for run, one in zip(runs, found, strict=True):
        for key in KEPT[name]:
            part = _part(one, key)
            if f"{key}_low" in one and (part not in one or one[part].dims[-1] not in OBJECTS):
                raise ValueError(
                    f"{run.path} keeps {name} without its objects, of an older version: "
                    f"{_command(name, run)} measures it anew"
                )
            if part not in one:
                continue
            for dim in one[part].dims[:-1]:
                if part not in found[0] or not np.array_equal(one[dim], found[0][dim]):
                    raise ValueError(
                        f"{run.path} and {runs[0].path} keep {name} of other values of {dim}: "
                        "measure both alike"
                    )
