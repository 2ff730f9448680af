"""Every probe at every layer of every model of a run, with intervals, controls and differences."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from probe import cache, geometry, splits
from probe.assemble import assemble
from probe.cells import CELLS, ENCODER, TARGET, Cell, Objects, Settings
from probe.tokens import Tokens
from probe.whose import errors_of
from store import Run, StoreError, open_run

PROBES = ("knn", "drift", "dimension")  # unless asked for more
ALL_PROBES = tuple(CELLS)
REFERENCE = "baseline"  # what the other models are compared with
TOLD = ("knn", "linear", "geometry")  # probes of what can be told from states
VOTES = ("knn", "variants")  # probes that ask k neighbours
Progress = Callable[[int, int, str], None]
Place = tuple[str, int]  # variant, layer


def sweep(
    run: Run,
    probes: Sequence[str] = PROBES,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    k: Sequence[int] = (1, 10),
    properties: xr.Dataset | None = None,
    again: Run | None = None,
    seed: int = 0,
    dask: str | None = None,
    keep: bool = True,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Scores over (variant, layer), with 95 % intervals over the query objects.

    probes   : "knn" (accuracy of k neighbours of the mean token), "drift" (debiased CKA of the
               mean tokens with the target's, and 1 - cosine through a ridge map) and "dimension"
               (shape of the mean tokens, and what outweighs it); on request "linear" (accuracy
               of a ridge classifier of the mean token), "geometry" (R^2 of properties in a ridge
               regression on it), "variants" (neighbours asked in 24 other ways, and by other
               protocols) and "similarity" (CKA of all pairs of layers and models; Procrustes,
               RSA, mutual k-NN, SVCCA and PWCCA with the target)
    layers, variants : those of the run by default
    properties : what "geometry" is to read, (sample,) variables by sample id; by default the
               descriptors of the run's clouds, and the factors they were made from where the run
               has such (columns `factor_NAME` of its samples)
    again    : a second capture of the same objects (other points, another augmentation): the
               noise floor is measured between the two
    dask     : address of a dask scheduler that layers are spread over; its workers read the run
               under the same path
    keep     : cells are kept in the run's cache by the hash of what went in, and not made twice
    progress : called with (steps done, steps in all, what is next)

    Accuracies are `knn_mean`, `_low`, `_high` (variant, layer, k), beside `knn_shuffled` (labels
    dealt out anew), `knn_target_*` (k), the attribute `chance` and `hubness_*` (variant, layer, k);
    then `cka_*`, with every dimension at one spread `cka_standardised_*`, `drift_*`,
    `drift_centred_*` and, of the mean token, `drift_pooled_*` (variant, layer), with `*_random` for
    pairs of unrelated objects, and `token_drift_*` (variant, layer, token), the centred one token
    by token. `*_without_massive_*` leaves tokens of a norm far above the others' out. Where the run
    holds the output of its encoder, `knn_encoder_*`, `linear_encoder_*` and `geometry_encoder_*`
    are of it, and `encoder_cka_*` (variant, layer) is the CKA with it, which no model was trained
    toward. Against the run's baseline, paired by object: `*_difference`, `_low`, `_high`, `_p` and,
    over all layers at once, `_p_adjusted` and the band `_wide_low`, `_wide_high` (comparison,
    layer). Each variable names its direction.
    Verdicts (`probe.verdict`), of the target as reference or, for what compares with it, of the
    shallowest layer: `*_fall_mean`, `_low`, `_high`, `_p`, `*_fallen`, `*_held`, `*_margin` by
    variant; `*_shift_*`, `*_alike_p` and `*_detectable` by comparison.
    "linear" adds `linear_*` as for knn, without k, `linear_selectivity_*` (accuracy less that of
    shuffled labels), `linear_train`, `linear_compression` (a minimum description length) and
    `linear_curve_*` (variant, layer, fitted), the accuracy by the gallery objects fitted on, whose
    last doubling adds `linear_gain`;
    "geometry" adds `geometry_*` (variant, layer, property), whose `_p_adjusted` are over all layers
    and properties at once; `probe.assemble` names the rest.
    """
    if again is not None:
        check_second(run, again, probes, layers, variants)
    found = cells_of(
        run,
        probes,
        layers,
        variants,
        k=k,
        properties=properties,
        seed=seed,
        dask=dask,
        keep=keep,
        progress=progress,
    )
    results = assemble(run, *found, REFERENCE)
    return with_noise(results, run, again, found.data, found.ask)


def lacking(run: Run) -> dict[str, str]:
    """Probes of a sweep that a run has nothing for, and why."""
    samples = run.samples()
    lacks = {}
    if len(np.unique(samples.label)) < 2:
        lacks["linear"] = "all objects are of one class"
    if run.attrs["points"] is None and not geometry.factors(samples).data_vars:
        lacks["geometry"] = "the run was captured without its clouds, and has no factors"
    return lacks


def with_kept(
    run: Run,
    probes: Sequence[str],
    layers: Sequence[int],
    *,
    k: Sequence[int],
    seed: int,
    again: bool = False,
) -> tuple[list[str], str]:
    """Probes to sweep so that the run keeps what it has of others, and a sentence on these.

    Those of a kept sweep of the same settings are assembled anew with the ones that are asked for,
    of cells that the cache has where what went in is the same. Other settings replace it.

    again : whether the noise floor is measured now, else a kept one goes, which the sentence says
    """
    try:
        kept = run.probes("sweep")
    except StoreError:  # there is none, or it is damaged
        return list(probes), ""
    there = np.atleast_1d(kept.attrs.get("probes", [])).tolist()
    lost = "noise_cka_mean" in kept and not again
    floor = "the noise floor that was kept is left out: --again RUN measures it" if lost else ""
    if not (more := [name for name in there if name not in probes]):
        return list(probes), floor
    if why := _not_of(kept, run, layers, k, seed):
        said = f"the kept sweep is replaced, without {', '.join(more)}: {why}"
        return list(probes), "; ".join(filter(None, (said, floor)))
    said = f"with {', '.join(more)}, of the sweep that was kept"
    every = [name for name in ALL_PROBES if name in (*probes, *more)]
    return every, "; ".join(filter(None, (said, floor)))


def _not_of(kept: xr.Dataset, run: Run, layers: Sequence[int], k: Sequence[int], seed: int) -> str:
    """Why a kept sweep can't be assembled from the cache by these settings; empty where it can."""
    if kept.attrs.get("code") != cache.code():
        return "another version measured it"
    if cache.folder_of(run) is None:
        return "behind a URL there is no cache to assemble them from"
    then = [kept[dim].values.tolist() for dim in ("variant", "layer", "k")]
    now = [run.variants, sorted(set(layers)), sorted(set(k))]
    each = zip(
        ("models", "layers", "k", "seed"), [*then, kept.attrs["seed"]], [*now, seed], strict=True
    )
    other = [what for what, old, new in each if old != new]
    return f"it is of other {' and '.join(other)}" if other else ""


class Found(NamedTuple):
    """Cells by probe, then place, and what they were measured with."""

    cells: dict[str, dict[Place, Cell]]
    data: Objects
    variants: list[str]
    layers: list[int]
    ask: Settings


def cells_of(
    run: Run,
    probes: Sequence[str] = PROBES,
    layers: Sequence[int] | None = None,
    variants: Sequence[str] | None = None,
    *,
    k: Sequence[int] = (1, 10),
    properties: xr.Dataset | None = None,
    seed: int = 0,
    dask: str | None = None,
    keep: bool = True,
    progress: Progress | None = None,
) -> Found:
    """What `sweep` is assembled from: scores object by object. Arguments as there."""
    variants, layers = _wanted(run, probes, layers, variants)
    data = read_objects(run, variants)
    if len(data.query) < 2:
        raise ValueError(f"{run.path} has 1 query object: an interval needs 2 or more")
    if "geometry" in probes:
        if progress:
            progress(0, 1, "descriptors")
        data = data._replace(properties=_properties(run, data, properties))
    if not k:
        raise ValueError("no k: name one or more")
    if not 1 <= min(k) <= max(k) <= len(data.gallery):
        raise ValueError(f"k={list(k)}: must be 1 to {len(data.gallery)}, the gallery's objects")
    ask = Settings(tuple(sorted(set(k))), seed)
    places = [(variant, layer) for variant in variants for layer in layers]
    rest = {
        "probes": tuple(probes),
        "ask": ask,
        "folder": cache.folder_of(run) if keep else None,
        "known": cache.digest(*data[:-1]),
    }
    cells: dict[str, dict[Place, Cell]] = {probe: {} for probe in probes}
    against = [TARGET] if data.encoder is None else [TARGET, ENCODER]
    for step, (place, found) in enumerate(_spread(run, [*places, *against], data, rest, dask)):
        if progress:
            progress(min(step, len(places)), len(places), "{}, layer {}".format(*place))
        for probe, cell in found.items():
            cells[probe][place] = cell
    if progress:
        progress(len(places), len(places), "intervals")
    return Found(cells, data, variants, layers, ask)


def measure(
    run: Run,
    place: Place,
    data: Objects,
    *,
    probes: Sequence[str],
    ask: Settings,
    folder: Path | None,
    known: str,
) -> dict[str, Cell]:
    """All cells of one layer of one model, from the cache where they are there. Reads it once.

    known : hash of the objects, part of what a cell in `folder` is named by
    """
    variant, layer = place
    if place == TARGET:
        # CKA and drift of the target from itself say nothing
        probes, tokens = [name for name in probes if name != "drift"], data.target
    elif place == ENCODER:
        assert data.encoder is not None
        probes, tokens = [name for name in probes if name in TOLD], Tokens(data.encoder[:, None])
    else:
        tokens = Tokens(run.final(variant).sel(layer=layer)[: data.samples])
    key = cache.digest(tokens, known, ask.seed) if folder else ""
    own = {**dict.fromkeys(VOTES, ask.k), "geometry": data.properties}  # what no other hangs on
    keys = {probe: cache.digest(key, own[probe]) if probe in own else key for probe in probes}
    where = variant if place in (TARGET, ENCODER) else f"{variant}, layer {layer}"
    with errors_of(where, run, tokens):
        return {
            probe: cache.kept(folder, probe, keys[probe], partial(CELLS[probe], data, tokens, ask))
            for probe in probes
        }


def _spread(
    run: Run, places: Sequence[Place], data: Objects, rest: dict[str, Any], dask: str | None
) -> Iterator[tuple[Place, dict[str, Cell]]]:
    """Cells of all places: one after the other here, or as the workers of a cluster have them."""
    if dask is None:
        yield from ((place, measure(run, place, data, **rest)) for place in places)
        return
    try:
        from dask.distributed import CancelledError, Client, KilledWorker, as_completed
    except ImportError:
        raise ValueError("--dask needs dask.distributed: pip install distributed") from None
    try:
        reached = Client(dask)
    except (OSError, ValueError) as error:
        raise ValueError(f"--dask {dask}: no scheduler answers there ({error})") from None
    small = {k: v for k, v in data._asdict().items() if k not in ("target", "encoder")}
    if isinstance(run.path, Path):
        run = open_run(run.path.absolute())  # a worker may have been started in another folder
    try:
        with reached as client:
            shared = client.submit(_whole, run, small, pure=False)
            waiting = {
                client.submit(_measure_there, run, place, shared, **rest, pure=False): place
                for place in places
            }
            for future in as_completed(waiting):
                yield waiting[future], future.result()
    except (CancelledError, KilledWorker):
        raise ConnectionError(
            f"--dask {dask}: the cluster is gone, or its workers died of a layer (each thread "
            "needs the memory of one); what was measured is kept, the same command goes on"
        ) from None


def _whole(run: Run, small: dict[str, Any]) -> Objects:
    """The objects with what is large, read by a worker: it is read again where that one dies."""
    target = Tokens(run.target()[: small["samples"]])
    encoder = _encoder(run, small["samples"]) if run.attrs.get("encoder_dim") else None
    return Objects(target=target, encoder=encoder, **small)


def _measure_there(*args: Any, **rest: Any) -> dict[str, Cell]:
    """`measure` in a thread of a worker, where another thread may have half of dask.array: scipy
    looks at it once it begins to load."""
    import dask.array  # noqa: F401  waits for the other

    return measure(*args, **rest)


def check_second(
    run: Run,
    again: Run,
    probes: Sequence[str],
    layers: Sequence[int] | None,
    variants: Sequence[str] | None,
) -> None:
    """Raises ValueError for what is no second capture of a run, before that is measured."""
    from probe.noise import matching

    names, depths = _wanted(run, probes, layers, variants)
    matching(run, again, names, depths, read_objects(run, names))


def with_noise(
    results: xr.Dataset, run: Run, again: Run | None, data: Objects, ask: Settings
) -> xr.Dataset:
    """The results with their noise floor, or with the word that there is none."""
    if again is None:
        said = "not measured: there is no second capture of these objects (--again RUN)"
        return results.assign_attrs(noise_floor=said)
    from probe.noise import noise_floor

    return noise_floor(results, run, again, data, ask)


def _wanted(
    run: Run, probes: Sequence[str], layers: Sequence[int] | None, variants: Sequence[str] | None
) -> tuple[list[str], list[int]]:
    for name, asked in (("probes", probes), ("layers", layers), ("variants", variants)):
        if asked is not None and not len(asked):
            raise ValueError(f"no {name}: name one or more")
    if wrong := [name for name in probes if name not in ALL_PROBES]:
        raise ValueError(f"no probe {wrong[0]!r}: there are {', '.join(ALL_PROBES)}")
    names = list(run.variants if variants is None else variants)
    if unknown := [name for name in names if name not in run.variants]:
        raise ValueError(
            f"{run.path} has no variant {unknown[0]!r}: it has {', '.join(run.variants)}"
        )
    return names, splits.layers_of(run, layers)


def read_objects(run: Run, variants: Sequence[str]) -> Objects:
    """The objects all models have: one of each group, in the query where that holds one.

    Groups are of copies and near-copies, `probe.copies`: each then counts as the one object it is,
    in every mean, interval, permutation and split.
    """
    front = ["target", "encoder"] if run.attrs.get("encoder_dim") else ["target"]
    samples = min(run.done(name) for name in [*variants, *front])
    if samples == 0:
        raise ValueError(f"{run.path} has no sample that all of {', '.join(variants)} have")
    table = run.samples().isel(sample=slice(samples))
    gallery, query = splits.gallery_query(table)
    groups = splits.groups_of(run, samples)
    kept, asked = splits.apart(gallery, query, groups)
    if not len(kept):
        what = "target" if run.attrs["points"] is None else "cloud"
        raise ValueError(
            f"{run.path}: all {len(gallery)} gallery objects are copies of queries, by their {what}"
        )
    target = Tokens(run.target()[:samples])
    copies = len(gallery) - len(kept), len(query) - len(asked)
    encoder = _encoder(run, samples) if len(front) > 1 else None
    return Objects(samples, table.label.values, kept, asked, copies, target, groups, encoder)


def _encoder(run: Run, samples: int) -> np.ndarray:
    return run.encoder()[:samples].values.astype(np.float32)


def _properties(run: Run, data: Objects, given: xr.Dataset | None) -> xr.Dataset:
    """What there is to read of each object; properties that do not vary are only named."""
    samples = run.samples().isel(sample=slice(data.samples))
    if given is None:
        table = geometry.factors(samples)
        if run.attrs["points"] is not None or not table.data_vars:
            table = geometry.descriptors(run.points()[: data.samples]).merge(table)
    else:
        ids = samples["sample"].values
        if len(absent := np.setdiff1d(ids, given["sample"].values)):
            raise ValueError(f"properties lack {len(absent)} of the run's samples, as {absent[0]}")
        table = given.sel(sample=ids)
    flat = [
        str(name)
        for name, values in table.data_vars.items()
        if any(geometry.constant(values.values[rows]) for rows in (data.gallery, data.query))
    ]
    if len(flat) == len(table.data_vars):
        raise ValueError(f"no property varies over the gallery and over the query: {flat}")
    return table.drop_vars(flat).assign_attrs(constant=flat)
