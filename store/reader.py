"""Read a run store, lazily, as xarray; write results of probes back into it."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from store import schema
from store.schema import STORE, StoreError
from store.writer import consolidate, leading


class UnfinishedRunWarning(UserWarning):
    """Fewer samples came back than the run is to have."""


def open_run(path: str | Path) -> "Run":
    """Open the run folder `path`. Raises StoreError, in one sentence, where it is none."""
    return Run(path)


class Run:
    """One captured run. Arrays are lazy: nothing is read until values are asked for."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.store = self.path / STORE
        if not self.store.is_dir():
            what = "there is no such folder" if not self.path.is_dir() else f"it holds no {STORE}"
            raise StoreError(f"{path} is no run: {what}")
        try:
            root = zarr.open_group(self.store, mode="r", use_consolidated=False)
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{self.store} is damaged: its zarr.json cannot be read") from error
        self.attrs: dict[str, Any] = dict(root.attrs)
        schema.check_version(self.attrs, str(path))
        self.variants: list[str] = self.attrs["variants"]
        self.layers: list[int] = self.attrs["layers"]
        self.complete: bool = self.attrs["complete"]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return (
            f"<Run {self.path}: {self.attrs['samples']} samples, {len(self.layers)} layers, "
            f"{', '.join(self.variants)}, {state}>"
        )

    def samples(self) -> xr.Dataset:
        """The table of samples: label, class_name, split, caption by sample id."""
        return _plain_text(self._dataset(None).load())

    def hidden(self, variant: str) -> xr.DataArray:
        """States (layer, sample, token, dim) of one model, with label, class_name and split."""
        if variant not in self.variants:
            raise StoreError(
                f"{self.path} has no variant {variant!r}: it has {', '.join(self.variants)}"
            )
        return self._finished(variant, "hidden")

    def target(self) -> xr.DataArray:
        """The frozen Q-Former's tokens (sample, token, target_dim): what drift is measured from."""
        return self._finished("target", "tokens")

    def points(self) -> xr.DataArray:
        """The clouds (sample, point, channel), channels x y z red green blue."""
        if self.attrs["points"] is None:
            raise StoreError(f"{self.path} was captured without its clouds")
        return self._label(self._dataset("points")["points"])

    def done(self, variant: str) -> int:
        """Leading samples of a variant (or of "target") that are finished."""
        return leading(self._dataset(variant)["written"].values)

    def probes(self, name: str) -> xr.Dataset:
        """The stored results of one probe."""
        folder = self.store / "probes"
        if not (folder / name / "zarr.json").is_file():
            known = sorted(child.name for child in folder.iterdir() if child.is_dir())
            raise StoreError(
                f"{self.path} has no results of {name!r}: it has {', '.join(known) or 'none'}"
            )
        return _plain_text(self._dataset(f"probes/{name}").load())

    def write_probe(self, name: str, results: xr.Dataset) -> None:
        """Keep the results of one probe, in place of older ones of that name.

        They are written beside the store first, so that a reader finds either the old or the
        new ones. Dimension `sample` belongs to the captured samples: name subsets otherwise.
        """
        if not name.replace("_", "").isalnum():
            raise ValueError(f"probe {name!r}: letters, digits and _ only")
        if results.sizes.get("sample", self.attrs["samples"]) != self.attrs["samples"]:
            raise ValueError(
                f"results of {name!r} have {results.sizes['sample']} samples, the run has "
                f"{self.attrs['samples']}: name the dimension of a subset otherwise"
            )
        new, old = self.path / f".probe-{name}.new", self.path / f".probe-{name}.old"
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        _stored_text(results).to_zarr(new, mode="w", zarr_format=3, consolidated=False)
        place = self.store / "probes" / name
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        consolidate(self.store)

    def _dataset(self, group: str | None) -> xr.Dataset:
        return xr.open_zarr(self.store, group=group, consolidated=False, chunks=None)

    def _finished(self, group: str, name: str) -> xr.DataArray:
        dataset = self._dataset(group)
        done, samples = leading(dataset["written"].values), self.attrs["samples"]
        if done < samples:
            warnings.warn(
                f"{self.path}: {group} has {done} of {samples} samples; only these are returned",
                UnfinishedRunWarning,
                stacklevel=3,
            )
        return self._label(dataset[name]).isel(sample=slice(done))

    def _label(self, array: xr.DataArray) -> xr.DataArray:
        table = self.samples()
        coords = {name: table[name] for name in ("sample", "label", "class_name", "split")}
        return array.assign_coords(coords)


def _plain_text(results: xr.Dataset) -> xr.Dataset:
    """Text as numpy's own, which every index, comparison and plot takes."""
    text = [name for name in results.variables if results[name].dtype.kind in "OT"]
    plain = {n: (results[n].dims, np.array(results[n].values.tolist(), str)) for n in text}
    return _replaced(results, plain)


def _stored_text(results: xr.Dataset) -> xr.Dataset:
    """Text of any length: zarr v3 has yet to specify numpy's fixed-width text."""
    variable = np.dtypes.StringDType()
    text = [name for name in results.variables if results[name].dtype.kind in "OU"]
    longer = {n: (results[n].dims, results[n].values.astype(variable)) for n in text}
    return _replaced(results, longer)


def _replaced(results: xr.Dataset, values: dict) -> xr.Dataset:
    for name in values:
        values[name] = (*values[name], results[name].attrs)
    coords = {name: value for name, value in values.items() if name in results.coords}
    rest = {name: value for name, value in values.items() if name not in coords}
    return results.assign(rest).assign_coords(coords)
