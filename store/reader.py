"""Read a run store, lazily, as xarray; write results of probes back into it."""

import json
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock
from zarr.codecs import Crc32cCodec, ZstdCodec

from store import schema
from store.guard import check_group
from store.layout import Part, parts, root_attrs, seal
from store.lazy import Checked, lazy_states
from store.place import PARTIAL, Place
from store.schema import STORE, StoreError
from store.writer import done

LABELS = ("label", "class_name", "split")


class UnfinishedRunWarning(UserWarning):
    """Fewer samples came back than the run is to have."""


def open_run(path: str | PurePath) -> "Run":
    """Open the run folder `path`, or any fsspec URL as s3://bucket/run.

    Raises StoreError, in one sentence, where it is none. Nothing in a store is ever executed:
    only arrays of numbers and text are read, through a fixed list of codecs, and no link that
    leads out of the store is followed.
    """
    return Run(path)


class Run:
    """One captured run. Arrays are lazy: nothing is read until values are asked for.

    Each chunk of states is held against its checksum the first time it is read, and again only
    where its file has been written since; `store.verify_run` reads all of them every time.
    """

    def __init__(self, path: str | PurePath):
        run = Place(path)
        self._store = run.child(STORE)
        self.path, self.store = run.path, self._store.path
        self.name = run.name
        if run.local is not None and not (run.local / STORE).is_dir():
            what = f"it holds no {STORE}" if run.local.is_dir() else "there is no such folder"
            if named := elsewhere(run.local):
                what += f", its states are in {named}"
            raise StoreError(f"{path} is no run: {what}")
        try:
            self.attrs: dict[str, Any] = root_attrs(self._store)
        except FileNotFoundError as error:
            if run.local is None:
                raise StoreError(f"{path} is no run: it holds no {STORE}") from error
            raise StoreError(f"{self.store} is damaged: its zarr.json is lost") from error
        schema.check_attrs(self.attrs, str(path))
        self._parts = parts(self.attrs)
        self._checked = Checked()
        self.variants: list[str] = self.attrs["variants"]
        self.layers: list[int] = self.attrs["layers"]
        self.complete: bool = self.attrs["complete"]

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return (
            f"<Run {self.name}: {self.attrs['samples']} samples, {len(self.layers)} layers, "
            f"{', '.join(self.variants)}, {state}>"
        )

    def samples(self) -> xr.Dataset:
        """The table of samples: label, class_name, split, caption by sample id."""
        return self._table()

    def hidden(self, variant: str) -> xr.DataArray:
        """States (layer, sample, token, dim) of one model, with label, class_name and split.

        Where samples have different numbers of tokens, coordinate `n_tokens` (sample,) says how
        many of the first ones are a sample's own; behind them are zeros.
        A variant captured during training has a leading dimension `step`. bfloat16 comes as
        float32, which holds it exactly.
        """
        if variant not in self.variants:
            raise StoreError(
                f"{self.name} has no variant {variant!r}: it has {', '.join(self.variants)}"
            )
        return self._finished(self._parts[variant][0])

    def final(self, variant: str) -> xr.DataArray:
        """`hidden` of the finished model: the last step of one that was captured in training."""
        hidden = self.hidden(variant)
        return hidden.isel(step=-1, drop=True) if "step" in hidden.dims else hidden

    def steps(self, variant: str) -> list[int]:
        """Training steps a variant was captured at; none where it was captured once."""
        return list(self.attrs.get("steps", {}).get(variant, []))

    def target(self) -> xr.DataArray:
        """The frozen Q-Former's tokens (sample, token, target_dim): what drift is measured from."""
        return self._finished(self._parts["target"][0])

    def encoder(self) -> xr.DataArray:
        """What the point encoder makes of each cloud (sample, encoder_dim): the Q-Former's input.

        Raises StoreError for a run without it, whose attribute `encoder_dim` is None or absent.
        """
        if "encoder" not in self._parts:
            raise StoreError(f"{self.name} was captured without the output of its encoder")
        return self._finished(self._parts["encoder"][0])

    def attention(self) -> xr.Dataset:
        """Which 3D patches each query token reads.

        weights : (sample, token, patch), the share of its attention
        centres : (sample, patch, xyz), in the coordinates of the points
        """
        if "attention" not in self._parts:
            raise StoreError(f"{self.name} was captured without attention")
        return xr.Dataset({part.array: self._finished(part) for part in self._parts["attention"]})

    def points(self) -> xr.DataArray:
        """The clouds (sample, point, channel), channels x y z red green blue."""
        if self.attrs["points"] is None:
            raise StoreError(f"{self.name} was captured without its clouds")
        shape = (self.attrs["samples"], *self.attrs["points"])
        dims = ("sample", "point", "channel")
        size = self.attrs["chunk"]
        part = Part("points", "points", dims, shape, "float32", size, size, "the clouds")
        return self._label(self._lazy(part).assign_coords(channel=list(schema.CHANNELS)))

    def nonfinite(self) -> dict[str, dict[str, dict[str, int]]]:
        """Counts of NaN and infinity by variant and layer, {} where every state is finite."""
        return self.attrs.get("nonfinite", {})

    def done(self, variant: str) -> int:
        """Leading samples of a variant (or of "target") that are finished, at every step."""
        if not isinstance(variant, str) or variant not in self._parts:
            raise StoreError(f"{self.name} has no variant {variant!r}")
        return done(self._store, self._parts[variant][0])

    def probe_names(self) -> list[str]:
        """Probes whose results are stored."""
        return sorted(name for name in self._store.names("probes") if name != "zarr.json")

    def probes(self, name: str) -> xr.Dataset:
        """The stored results of one probe."""
        if not schema.plain_name(name) or not self._store.exists(f"probes/{name}/zarr.json"):
            known = ", ".join(self.probe_names()) or "none"
            raise StoreError(f"{self.name} has no results of {name!r}: it has {known}")
        group = f"probes/{name}"
        found = self._loaded(group)
        keys = (key.removeprefix(f"{group}/").split("/") for key in self._store.keys(group))
        files = Counter(array for array, *rest in keys if rest[:1] == ["c"])
        for array in found.variables:
            if files[str(array)] < self._array(f"{group}/{array}").nchunks:
                raise StoreError(f"{self.name} is damaged: a file of {group}/{array} is lost")
        return found

    def write_probe(self, name: str, results: xr.Dataset) -> None:
        """Keep the results of one probe, in place of older ones of that name.

        They are written beside the store first, so that a reader finds either the old or the
        new ones; on an object store, which has no renaming, it may find none for a moment.
        Dimension `sample` belongs to the captured samples: name subsets otherwise.
        """
        if not schema.plain_name(name):
            raise ValueError(f"probe {name!r}: letters, digits and _ only")
        if not isinstance(results, xr.Dataset):
            raise ValueError(f"results of {name!r} are {type(results).__name__}, not a Dataset")
        if results.sizes.get("sample", self.attrs["samples"]) != self.attrs["samples"]:
            raise ValueError(
                f"results of {name!r} have {results.sizes['sample']} samples, the run has "
                f"{self.attrs['samples']}: name the dimension of a subset otherwise"
            )
        place = self._store.child("probes").child(name)
        if place.local is None:
            with tempfile.TemporaryDirectory() as folder:
                _write_results(Path(folder) / "new", results)
                place.remove("zarr.json")
                place.clear()
                place.adopt(Path(folder) / "new")
        else:
            self._replace(place.local, results)
            return
        seal(self._store)

    def _replace(self, place: Path, results: xr.Dataset) -> None:
        """Put results where `place` is, on a disk; of two commands that end at once, one waits."""
        run = Path(self.path)
        new, old = (run / f".probe-{place.name}.{end}" for end in ("new", "old"))
        turn = run / ".probes.lock"
        with FileLock(turn):
            try:
                for leftover in (new, old):
                    shutil.rmtree(leftover, ignore_errors=True)
                _write_results(new, results)
                if place.exists():
                    place.rename(old)
                new.rename(place)
                shutil.rmtree(old, ignore_errors=True)
                seal(self._store)
            finally:  # also where the disk is full
                shutil.rmtree(new, ignore_errors=True)
                with suppress(PermissionError):  # as in `store.lock`
                    turn.unlink(missing_ok=True)

    def _loaded(self, group: str, names: Sequence[str] = ()) -> xr.Dataset:
        """Variables of a group, all or some, in memory."""
        check_group(self._store, group)
        try:
            with warnings.catch_warnings():
                # a kill may leave a file half written beside its name, which zarr would speak of
                warnings.filterwarnings("ignore", message=rf"Object at .*{PARTIAL}")
                dataset = xr.open_zarr(
                    self._store.zarr(), group=group, consolidated=False, chunks=None, zarr_format=3
                )
            return _plain_text((dataset[list(names)] if names else dataset).load())
        except (ValueError, RuntimeError) as error:
            where = group or "its table of samples"
            raise StoreError(f"{self.name} is damaged: {where} cannot be read: {error}") from error

    def _table(self, names: Sequence[str] = ()) -> xr.Dataset:
        """The table of samples, all columns or some. A column that is lost reads as no value."""
        columns = [name.partition(".")[2] for name in self.attrs["digests"] if "." in name]
        table = self._loaded("", names or [name for name in columns if name != "id"])
        for name, variable in table.variables.items():
            values = variable.values
            alike = ((values == values[0]) | (values != values)).all()  # or each is NaN
            if alike and not self._store.exists(f"{name}/c/0") and self.attrs["schema_version"] > 1:
                raise StoreError(f"{self.name} is damaged: {name} of the samples is lost")
        return table

    def _array(self, path: str) -> Any:
        return zarr.open_array(self._store.zarr(), path=path, mode="r", zarr_format=3)

    def _lazy(self, part: Part) -> xr.DataArray:
        """A part as it is planned, whether its samples are there or not."""
        check_group(self._store, part.group)
        array = self._array(part.path)
        if array.shape != part.shape:
            raise StoreError(
                f"{self.name} is damaged: {part.path} is {array.shape}, its plan says {part.shape}"
            )
        planned = {"step": part.steps, "layer": self.layers}
        coords = {dim: list(planned[dim]) for dim in part.dims if dim in planned}
        return xr.DataArray(
            lazy_states(self._store, part, array, self._checked), coords, name=part.array
        )

    def _finished(self, part: Part) -> xr.DataArray:
        states = self._lazy(part)
        have, samples = self.done(part.group), self.attrs["samples"]
        if have < samples:
            warnings.warn(
                f"{self.name}: {part.group} has {have} of {samples} samples; "
                "only these are returned",
                UnfinishedRunWarning,
                stacklevel=3,
            )
        return self._label(states).isel(sample=slice(have))

    def _label(self, array: xr.DataArray) -> xr.DataArray:
        own = [schema.OWN_TOKENS] if schema.OWN_TOKENS in self._labels else []
        names = ("sample", *LABELS, *(own if array.name == "hidden" else []))
        return array.assign_coords({name: self._labels[name] for name in names})

    @cached_property
    def _labels(self) -> xr.Dataset:
        """The table without its captions, which may be long and are rarely asked for."""
        own = f"samples.{schema.OWN_TOKENS}" in self.attrs["digests"]
        return self._table([*LABELS, schema.OWN_TOKENS] if own else LABELS)


def elsewhere(folder: Path) -> str | None:
    """Where the states of a run were put, by its record; None where they are in its folder."""
    if (folder / STORE).exists():
        return None
    try:
        return json.loads((folder / "run.json").read_text())["config"]["store"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_results(folder: Path, results: xr.Dataset) -> None:
    results = _stored_text(results)
    checked = {"compressors": [ZstdCodec(level=0), Crc32cCodec()]}
    encoding = {name: checked for name in results.variables}
    results.drop_encoding().to_zarr(
        folder,
        mode="w",
        zarr_format=3,
        consolidated=False,
        encoding=encoding,
        write_empty_chunks=True,
    )


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
