"""A part of a run in a format that other programs read."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from store.reader import Run
from store.schema import OWN_TOKENS, StoreError

TABLE = ("label", "class_name", "split", "caption")


def subset(
    run: Run,
    *,
    variants: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    samples: str = "all",
) -> xr.Dataset:
    """Some states of a run, lazily: a variable a variant, `target`, and the table of samples.

    samples : all, gallery, query, rows as 0-99, or ids with commas between them

    Of an unfinished run these are the finished ones among them. Raises StoreError for what the run
    does not have, or where nothing is left.
    """
    table = run.samples()
    states = {name: run.hidden(name) for name in variants or run.variants}
    target = run.target()
    rows = _rows(run, table, samples)
    rows = rows[rows < min(part.sizes["sample"] for part in (target, *states.values()))]
    if len(rows) == 0:
        raise StoreError(f"{run.name} has none of samples {samples}, so there is nothing to export")
    wanted = list(layers or run.layers)
    if absent := [layer for layer in wanted if layer not in run.layers]:
        raise StoreError(
            f"{run.name} has no layer {absent[0]}: it has {', '.join(map(str, run.layers))}"
        )
    found = {}
    for name, whole in states.items():
        part = whole.isel(sample=rows).sel(layer=wanted)
        if "step" in part.dims:  # each variant has steps of its own
            part = part.rename(step=f"step_{name}")
        found[name] = part.reset_coords(drop=True)
    target = target.isel(sample=rows).reset_coords(drop=True)
    if OWN_TOKENS in table:  # of the target there is the mean alone
        target = target.rename(token="target_token")
    dataset = xr.Dataset({**found, "target": target})
    columns = [name for name in (*TABLE, OWN_TOKENS) if name in table]
    dataset = dataset.assign({name: table[name].isel(sample=rows) for name in columns})
    provenance = json.dumps(run.attrs.get("provenance", {}))
    return dataset.assign_attrs(run=run.path.name, dtype=run.attrs["dtype"], provenance=provenance)


def export(dataset: xr.Dataset, out: Path, kind: str = "auto") -> None:
    """Write a subset to `out`, whole or not at all.

    kind : npz, safetensors, netcdf (.nc, read by every HDF5 program), huggingface (a folder of
           the `datasets` library), or auto, by the ending of `out`

    netCDF has no half precision: float16 becomes float32 there, which holds it exactly. Raises
    FileExistsError where `out` is, ValueError for an unknown ending or a library that is absent,
    OSError where the disk is full.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: name another file")
    ending = {".npz": "npz", ".safetensors": "safetensors", ".nc": "netcdf", ".h5": "netcdf"}
    kind = ending.get(out.suffix, kind) if kind == "auto" else kind
    writers: dict[str, Callable[[xr.Dataset, Path], None]] = {
        "npz": _npz,
        "safetensors": _safetensors,
        "netcdf": _netcdf,
        "huggingface": _huggingface,
    }
    if kind not in writers:
        raise ValueError(
            f"{out}: end it with {', '.join(ending)}, or say --format {', '.join(writers)}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        writers[kind](dataset, partial)
        partial.rename(out)
    except (OSError, ValueError):
        raise
    except Exception as error:  # of a full disk each of the libraries has an error of its own
        raise OSError(f"{out} can't be written: {error.__cause__ or error}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def _rows(run: Run, table: xr.Dataset, samples: str) -> np.ndarray:
    everything = np.arange(table.sizes["sample"])
    if samples == "all":
        return everything
    if samples in ("gallery", "query"):
        return everything[table["split"].values == samples]
    first, dash, last = samples.partition("-")
    if dash and first.isdigit() and last.isdigit():
        if not int(first) <= int(last) < len(everything):
            raise StoreError(f"rows {samples}: {run.name} has rows 0-{len(everything) - 1}")
        return everything[int(first) : int(last) + 1]
    number = {name: row for row, name in enumerate(table["sample"].values)}
    if absent := [name for name in samples.split(",") if name not in number]:
        raise StoreError(f"{run.name} has no sample {absent[0]!r}")
    return np.array([number[name] for name in samples.split(",")])


def _npz(dataset: xr.Dataset, path: Path) -> None:
    arrays = {str(name): dataset[name].values for name in dataset.variables}
    np.savez(path, allow_pickle=False, **arrays, attrs=np.array(json.dumps(dataset.attrs)))


def _safetensors(dataset: xr.Dataset, path: Path) -> None:
    """Numbers as tensors; text and attributes as JSON in the header."""
    from safetensors.numpy import save_file

    arrays = {str(name): dataset[name].values for name in dataset.variables}
    text = {name: a.tolist() for name, a in arrays.items() if a.dtype.kind not in "fiub"}
    dims = {str(name): list(dataset[name].dims) for name in dataset.variables}
    header = {name: json.dumps(values) for name, values in text.items()}
    header |= {"dims": json.dumps(dims), "attrs": json.dumps(dataset.attrs)}
    tensors = {n: np.ascontiguousarray(a) for n, a in arrays.items() if n not in text}
    save_file(tensors, path, header)


def _netcdf(dataset: xr.Dataset, path: Path) -> None:
    wide = dataset.chunk({"sample": 256})
    half = [name for name in wide.variables if wide[name].dtype == np.float16]
    wide = wide.assign({name: wide[name].astype(np.float32) for name in half})
    try:
        with warnings.catch_warnings():
            # zarr names the byte order of its numbers; it is this machine's, as the library wants
            warnings.filterwarnings("ignore", message="endian-ness of dtype")
            wide.drop_encoding().to_netcdf(path, engine="netcdf4")
    except ModuleNotFoundError as error:
        raise ValueError(f"netCDF needs netCDF4: pip install netCDF4 ({error})") from None


def _huggingface(dataset: xr.Dataset, path: Path) -> None:
    """A row a sample; a column a variant, (layers, tokens, dim) nested lists of numbers."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ValueError(
            "a Hugging Face dataset needs the datasets library: pip install datasets"
        ) from None

    columns = [name for name in dataset.variables if "sample" in dataset[name].dims]

    def rows():
        for row in range(dataset.sizes["sample"]):
            one = dataset.isel(sample=row)
            yield {str(name): one[name].values[()] for name in columns}

    # Their own cache knows a run by its path, and would give what another run of that name held.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=path.name) as cache:
        made = datasets.Dataset.from_generator(rows, cache_dir=cache)
        about = dataset.attrs | {"layer": dataset["layer"].values.tolist()}
        made.info.description = json.dumps(about)
        made.save_to_disk(str(path))
