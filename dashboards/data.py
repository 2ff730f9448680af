"""What the pages read of a run, cached by content; what is missing is computed once and kept."""

import json
import shlex
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

import store
from dashboards.opening import Unreadable, open_run, reading, record
from store.schema import STORE

SWEEP_ATTRS = {"run", "level", "gallery_objects", "query_objects", "classes", "chance"}
Progress = Callable[[int, int, str], None]
_computing = threading.Lock()


def done(path: Path) -> dict[str, int]:
    """Finished samples of the target and of each variant."""
    with reading(path):
        run = open_run(path)
        return {name: run.done(name) for name in ("target", *run.variants)}


def metrics(path: Path) -> pd.DataFrame:
    """The logged steps, (variant, step, ...); a last line that is being written is left out."""
    return _metrics(path, _stamp(path, "metrics.jsonl"))


def samples(path: Path) -> pd.DataFrame:
    """Sample id, label, class name, split and caption, a row a sample."""
    return _samples(path, _stamp(path, STORE))


def cloud(path: Path, row: int) -> np.ndarray:
    """The points of one object, (points, 6)."""
    return _cloud(path, row, _stamp(path, STORE))


def models(path: Path) -> list[str]:
    """The variants, VARIANT@STEP where one was captured at several steps."""
    from probe.objects import all_models

    with reading(path):
        return all_models(open_run(path))


def main_model(models: Sequence[str], wanted: str = "baseline") -> str:
    """The model that a page begins with: the wanted one, at its last step, or the last of all."""
    return next((name for name in models[::-1] if name.partition("@")[0] == wanted), models[-1])


def probed(path: Path, model: str) -> str:
    """What probes call a model: the last step of one captured in training is the variant itself."""
    variant = model.partition("@")[0]
    return variant if model == main_model(models(path), variant) else model


def neighbours(path: Path, variant: str, layer: int, row: int, count: int) -> pd.DataFrame:
    """The gallery objects nearest to one object by the cosine of their mean tokens, in order.

    The object itself does not count. Columns row, sample, class_name, and right: same class.
    """
    from probe.knn import nearest

    table = samples(path)
    pooled = _pooled(path, variant, layer, _stamp(path, STORE))
    if row >= len(pooled):
        raise Unreadable(f"This object is not captured yet for {variant}.")
    split = table.split.to_numpy()[: len(pooled)]
    gallery = np.flatnonzero((split == "gallery") & (np.arange(len(pooled)) != row))
    if not len(gallery):
        raise Unreadable(f"No gallery object is captured yet for {variant}.")
    with reading(path):
        found = nearest(pooled[gallery], pooled[row : row + 1], min(count, len(gallery)))[0]
    return near_table(path, row, gallery[found])


def sweep_results(path: Path, progress: Progress) -> xr.Dataset:
    """The stored sweep of a run; where there is none it is computed and stored.

    One is computed at a time: a second page that asks waits, and then reads.
    """
    _compute_once(path, "sweep", _compute_sweep, progress)
    return _sweep(path, _stamp(path, _kept("sweep")))


def objects(path: Path, progress: Progress) -> xr.Dataset:
    """`probe.objects` of a run, computed and stored where it is missing."""
    _compute_once(path, "objects", _compute_objects, progress)
    return _results(path, "objects", _stamp(path, _kept("objects")))


def umaps(path: Path, progress: Progress) -> xr.Dataset:
    """`probe.maps` of a run, computed and stored where there are none.

    Raises Unreadable for a run with too few objects for a map.
    """
    _compute_once(path, "maps", _compute_maps, progress)
    return _results(path, "maps", _stamp(path, _kept("maps")))


def results(path: Path, name: str) -> xr.Dataset | None:
    """The stored results of a probe, or None where there are none."""
    if not (path / _kept(name)).is_file():
        return None
    return _results(path, name, _stamp(path, _kept(name)))


def layer_table(path: Path, found: xr.Dataset, model: str, layer: int) -> pd.DataFrame:
    """A row an object: who it is, where it lies on the map, and what the layer takes it for."""
    here = found[["position", "named", "support", "drift"]].sel(model=model, layer=layer)
    table = samples(path)
    if "group" in found:  # earlier results lack it
        table = table.assign(group=found.group.values)
    return table.assign(
        x=here.position.values[:, 0],
        y=here.position.values[:, 1],
        right=here.named.values == table.label.to_numpy(),
        support=here.support.values,
        drift=here.drift.values,
        named=class_names(table, here.named.values),
    )


Frame = tuple[tuple[float, float], tuple[float, float]]


def frame(positions: xr.DataArray) -> Frame:
    """Ends of both axes that hold the map of every layer. positions : (layer, ..., axis)."""
    low = positions.min(["layer", positions.dims[-2]]).values
    high = positions.max(["layer", positions.dims[-2]]).values
    room = 0.04 * (high - low)
    x, y = zip((low - room).tolist(), (high + room).tolist(), strict=True)
    return x, y


def has_map(maps: xr.Dataset, model: str, layer: int) -> bool:
    """Whether the stored maps hold a UMAP of this layer."""
    axes = (("method", "umap"), ("variant", model), ("layer", layer))
    return all(value in maps[name].values for name, value in axes)


def umap_table(
    table: pd.DataFrame, maps: xr.Dataset, model: str, layer: int
) -> tuple[pd.DataFrame, Frame, str]:
    """The objects that are on the stored UMAP, at their places there; its frame and its quality."""
    drawn = maps.sel({"method": "umap", "variant": model}).isel(draw=0)
    rows = pd.Index(table["sample"]).get_indexer(maps.object.values)
    one = drawn.sel(layer=layer)
    here = one.position.values[rows >= 0]
    shown = table.iloc[rows[rows >= 0]].assign(x=here[:, 0], y=here[:, 1])
    said = (
        f"trustworthiness {float(one.trustworthiness):.2f}, continuity "
        f"{float(one.continuity):.2f} (1 = its neighbours are the true ones); it was made of "
        f"{len(shown)} of {len(table)} objects"
    )
    return shown, frame(drawn.position), said


class Factor(NamedTuple):
    """A number that each object has, whatever the models make of it."""

    title: str
    values: np.ndarray


def factors(path: Path, found: xr.Dataset) -> dict[str, Factor]:
    """By name, descriptors of the clouds and what is known of how the objects were made."""
    shown = {}
    if "factor" in found.coords:
        names, titles = found.factor.values.tolist(), found.factor_title.values.tolist()
        shown = dict(zip(names, map(Factor, titles, found.factor_value.values), strict=True))
    return shown | _known(path, _stamp(path, STORE))


def near_table(path: Path, row: int, rows: np.ndarray) -> pd.DataFrame:
    """Columns row, sample, class_name and right (same class) of the neighbours `rows`."""
    table = samples(path)
    near = table.iloc[rows][["sample", "class_name"]]
    right = near.class_name == table.class_name[row]
    return near.assign(right=right).rename_axis("row").reset_index()


def command(path: Path, probes: str) -> str:
    """What to type to have these probes of a run."""
    return f"python -m probe {quoted(path)} --probes {probes}"


def from_stage2(path: Path) -> bool:
    """Whether `train.stage2` made this run: it trains the models that it captures."""
    return "train.stage2" in str(record(path).get("command"))


def explain(path: Path) -> tuple[str, str]:
    """What to say of a run without lenses and causes, and to type; "" where no command has them."""
    if from_stage2(path):
        return "This command measures it:", f"python -m train.explain {quoted(path)}"
    return (
        "python -m train.explain reads models that python -m train.stage2 trained, and those of "
        "this run are not. probe.lens and probe.causal take any model as an argument.",
        "",
    )


def quoted(path: Path) -> str:
    """A path as one writes it in a shell."""
    return shlex.quote(str(path))


def words(
    results: xr.Dataset, variant: str, kind: str, sample: str, token: int | None
) -> pd.DataFrame:
    """What a lens reads of one object, a row a layer: its framed token, and the commonest word."""
    rows = results.word.sel(variant=variant, lens=kind, object=sample)
    said = results.vocabulary.values[rows.values]  # (layers, tokens)
    common = [pd.Series(line).value_counts(sort=True) for line in said]
    table = pd.DataFrame({"layer": results.layer.values})
    if token is not None and token < said.shape[1]:
        table[f"token {token}"] = [repr(str(word)) for word in said[:, token]]
    table["most often"] = [repr(str(counts.index[0])) for counts in common]
    table["share of its tokens"] = [f"{counts.iloc[0] / said.shape[1]:.0%}" for counts in common]
    advantage = results.advantage.sel(variant=variant, lens=kind, object=sample).values
    table["class word (nats)"] = [f"{value:+.2f}" for value in advantage]
    return table


def class_names(table: pd.DataFrame, labels: np.ndarray) -> np.ndarray:
    """Names of labels."""
    names = dict(zip(table.label, table.class_name, strict=True))
    return np.array([names[label] for label in labels.tolist()])


def attention(path: Path, row: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What each token of an object reads, (tokens, patches), and where, (patches, 3)."""
    with reading(path):
        run = open_run(path)
        if not run.attrs.get("patches"):
            return None
        found = run.attention()
        if row >= found.sizes["sample"]:
            return None
        return found.weights[row].values.astype(np.float64), found.centres[row].values


def stored_cka(first: tuple[Path, str], second: tuple[Path, str]) -> xr.DataArray | None:
    """CKA (layer, other_layer) of two models of one run, where its sweep holds it."""
    swept = results(first[0], "sweep")
    if first[0] != second[0] or swept is None or "cka_layers_mean" not in swept:
        return None
    names = [probed(path, model) for path, model in (first, second)]
    if not set(names) <= set(swept["variant"].values.tolist()):
        return None
    values = swept.cka_layers_mean.sel(variant=names[0], other_variant=names[1])
    return values.assign_attrs(objects=swept.attrs["query_objects"])


def cka(first: tuple[Path, str], second: tuple[Path, str], progress: Progress) -> xr.DataArray:
    """The same, computed."""
    return _cka(first, second, _stamp(first[0], STORE), _stamp(second[0], STORE), progress)


def tables(results: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Every measure that has an interval as a table: its dimensions, mean, low, high, p."""
    found = {}
    for name in [str(n).removesuffix("_mean") for n in results if str(n).endswith("_mean")]:
        parts = [f"{name}{end}" for end in ("_mean", "_low", "_high", "_p_adjusted")]
        shown = results[[part for part in parts if part in results]]
        if shown.sizes:
            title = name.replace("_", " ")
            found[title] = shown.to_dataframe().reset_index()
    return found


def together(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of measures one below the other, for a file: the first column says which it is of."""
    parts = []
    for measure, table in tables.items():
        start = f"{measure.replace(' ', '_')}_"
        part = table.rename(columns=lambda name, start=start: name.removeprefix(start))
        part.insert(0, "measure", measure)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def said(path: Path, name: str) -> list[str]:
    """What results of "causal" or "lens" show, in sentences."""
    return _said(path, name, _stamp(path, _kept(name)))


def report(path: Path) -> bytes:
    """The report of a run as one HTML page. Writes nothing into the run."""
    from probe.page import write_report

    with tempfile.TemporaryDirectory() as folder, reading(path):
        pages = write_report(open_run(path), Path(folder))
        return next(page for page in pages if page.suffix == ".html").read_bytes()


def scores_table(results: xr.Dataset, score: str, k: int | None = None) -> pd.DataFrame:
    """One score of a sweep, a row a variant, layer (and K); with what it is read against."""
    controls = {"knn": ["knn_shuffled"], "cka": []}.get(score, [f"{score}_random"])
    names = [*(f"{score}_{part}" for part in ("mean", "low", "high")), *controls]
    picked = results[names] if k is None else results[names].sel(k=[k])
    return picked.to_dataframe().reset_index()


def differences_table(results: xr.Dataset, score: str) -> pd.DataFrame:
    """Each model less the baseline, a row a comparison, layer and K, with interval and p."""
    parts = ("", "_low", "_high", "_p", "_p_adjusted")
    picked = results[[f"{score}_difference{part}" for part in parts]]
    return picked.to_dataframe().reset_index()


def _kept(name: str) -> str:
    """Where in a run the results of a probe lie."""
    return f"{STORE}/probes/{name}/zarr.json"


def _compute_once(
    path: Path, name: str, compute: Callable[[store.Run, Progress], xr.Dataset], progress: Progress
) -> None:
    """Make results that are not there yet, and keep them in the run."""
    if (path / _kept(name)).is_file():
        return
    with _computing:
        if (path / _kept(name)).is_file():
            return
        run = open_run(path)
        if not run.complete:
            raise Unreadable(
                f"{path.name} is not completely captured yet, so there are no scores; "
                "the training page shows how far it is."
            )
        if record(path).get("status") == "running":  # its own job may be writing the very same
            raise Unreadable(
                f"{path.name} is still running, and its scores come last; if it was stopped, "
                f"python -m probe {path.name} computes them."
            )
        with reading(path):
            run.write_probe(name, compute(run, progress))


def _compute_sweep(run: store.Run, progress: Progress) -> xr.Dataset:
    from probe.sweep import sweep

    settings = record(Path(run.path)).get("config", {})
    wanted = [int(k) for k in str(settings.get("neighbours", "1,10")).split(",")]
    gallery = int((samples(Path(run.path)).split == "gallery").sum())
    fitting = [k for k in wanted if k <= gallery] or [1]
    return sweep(run, k=fitting, seed=int(settings.get("seed", 0)), progress=progress)


def _compute_objects(run: store.Run, progress: Progress) -> xr.Dataset:
    from probe.objects import objects

    seed = int(record(Path(run.path)).get("config", {}).get("seed", 0))
    return objects(run, seed=seed, progress=progress)


def _compute_maps(run: store.Run, progress: Progress) -> xr.Dataset:
    from probe.maps import maps

    seed = int(record(Path(run.path)).get("config", {}).get("seed", 0))
    try:
        return maps(run, methods=("umap",), seed=seed, progress=progress)
    except ValueError as few:
        raise Unreadable(str(few)) from few


def _stamp(path: Path, *names: str) -> tuple[int, ...]:
    """When these files, and the store's own marks, were last written: the key of every cache."""
    marks = [path / name for name in names]
    if STORE in names:
        marks += [path / STORE / "zarr.json", *sorted((path / STORE).glob("*/*_crc32c/c*"))]
    return tuple(mark.stat().st_mtime_ns for mark in marks if mark.exists())


@st.cache_data(max_entries=8, show_spinner=False)
def _metrics(path: Path, stamp: tuple[int, ...]) -> pd.DataFrame:
    file = path / "metrics.jsonl"
    if not file.is_file():
        return pd.DataFrame({"variant": [], "step": []})
    with reading(file):
        lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and {"variant", "step"} <= entry.keys():
            rows.append(entry)
    table = pd.DataFrame(rows, columns=None if rows else ["variant", "step"])
    numbers = [name for name in table.columns if name != "variant"]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    return table.astype({"variant": str})


@st.cache_data(max_entries=8, show_spinner=False)
def _samples(path: Path, stamp: tuple[int, ...]) -> pd.DataFrame:
    with reading(path):
        found = open_run(path).samples()
        table = pd.DataFrame({name: found[name].values for name in found.variables})
        return table[["sample", "label", "class_name", "split", "caption"]]


@st.cache_resource(max_entries=8, show_spinner=False)
def _known(path: Path, stamp: tuple[int, ...]) -> dict[str, Factor]:
    """The columns of factors that the table of samples has."""
    from probe.geometry import factors

    with reading(path):
        known = factors(open_run(path).samples())
        return {
            str(name): Factor(str(one.attrs["long_name"]), one.values)
            for name, one in known.data_vars.items()
        }


@st.cache_data(max_entries=128, show_spinner=False)
def _cloud(path: Path, row: int, stamp: tuple[int, ...]) -> np.ndarray:
    with reading(path):
        points = open_run(path).points()[row].values
        if not np.isfinite(points).all():
            raise ValueError("the points of this object are lost")
        return points


@st.cache_data(max_entries=12, show_spinner="Reading the states of this layer …")
def _pooled(path: Path, model: str, layer: int, stamp: tuple[int, ...]) -> np.ndarray:
    """Mean tokens of all captured samples, (samples, dim)."""
    from probe.objects import mean_tokens, states

    with reading(path):
        return mean_tokens(states(open_run(path), model, layer))


@st.cache_data(max_entries=8, show_spinner="Putting it in words …")
def _said(path: Path, name: str, stamp: tuple[int, ...]) -> list[str]:
    from probe import causal, lens

    with reading(path):
        findings = causal.findings if name == "causal" else lens.findings
        return findings(open_run(path).probes(name))


@st.cache_resource(max_entries=4, show_spinner=False)
def _cka(
    first: tuple[Path, str],
    second: tuple[Path, str],
    stamp: tuple[int, ...],
    other_stamp: tuple[int, ...],
    _progress: Progress,
) -> xr.DataArray:
    from probe.contrast import cka_of_layers

    with reading(first[0]):
        sides = [(open_run(path), model) for path, model in (first, second)]
        return cka_of_layers(*sides, progress=_progress)


@st.cache_resource(max_entries=12, show_spinner=False)  # shared: nobody changes a Dataset
def _results(path: Path, name: str, stamp: tuple[int, ...]) -> xr.Dataset:
    with reading(path):
        return open_run(path).probes(name)


@st.cache_data(max_entries=8, show_spinner=False)
def _sweep(path: Path, stamp: tuple[int, ...]) -> xr.Dataset:
    with reading(path):
        results = open_run(path).probes("sweep")
        absent = SWEEP_ATTRS - results.attrs.keys() | {"variant", "layer"} - results.sizes.keys()
        if absent:
            raise ValueError(
                f"its sweep lacks {', '.join(sorted(map(str, absent)))}; "
                f"python -m probe {path.name} makes it anew"
            )
        return results
