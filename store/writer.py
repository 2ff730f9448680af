"""Write a run store: made whole or not at all, filled a chunk at a time, resumed where it was."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from store import schema
from store.schema import STORE


def create_run(
    path: str | Path,
    *,
    samples: Mapping[str, Any],
    layers: Sequence[int],
    variants: Sequence[str],
    tokens: int,
    dim: int,
    target_dim: int,
    points: np.ndarray | None = None,
    dtype: str = "float16",
    provenance: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> "RunWriter":
    """Lay out an empty store in the run folder `path` and return its writer.

    samples    : id, label, class_name, split ("gallery" or "query") and caption, each (samples,)
    layers     : layers whose states will come, 0 = what enters block 1; in order
    variants   : models that will be captured, as "stage1", "baseline", "aligned", "untrained"
    tokens, dim, target_dim : point tokens an object, their width, the width of its target
    points     : (samples, points, 6), xyz and rgb, or None
    provenance : what made it (config, seed, hashes), kept as JSON

    The store appears under its name once it is whole; a failure before that leaves nothing.
    With `resume` a store that is there is gone on with, as `resume_run` does. Raises
    FileExistsError where there is one and `resume` is not asked for.
    """
    folder = Path(path)
    table = schema.sample_columns(samples)
    points = None if points is None else np.asarray(points, np.float32)
    plan = schema.plan_attrs(
        table,
        layers=layers,
        variants=variants,
        tokens=tokens,
        dim=dim,
        target_dim=target_dim,
        points=points,
        dtype=dtype,
        provenance=provenance or {},
    )
    if (folder / STORE).exists():
        if not resume:
            raise FileExistsError(f"{folder} already holds a run: resume it or name another folder")
        return _resume(folder, plan)
    _build(folder, plan, table, points)
    return RunWriter(folder)


def resume_run(path: str | Path, **plan: Any) -> "RunWriter":
    """Go on with the store in `path`; takes what `create_run` took.

    Raises ValueError naming what differs, FileNotFoundError where there is no store.
    """
    if not (Path(path) / STORE).exists():
        raise FileNotFoundError(f"{path} holds no {STORE} to resume")
    return create_run(path, **plan, resume=True)


def _resume(folder: Path, plan: dict[str, Any]) -> "RunWriter":
    writer = RunWriter(folder)
    if different := schema.differences(writer.attrs, plan):
        raise ValueError(f"cannot resume {folder}: {'; '.join(different)}")
    for leftover in (folder / STORE).rglob("*.partial"):  # chunks that a kill cut short
        leftover.unlink()
    return writer


def _build(
    folder: Path, plan: dict[str, Any], table: dict[str, np.ndarray], points: np.ndarray | None
) -> None:
    """Make the empty store beside its place and move it there in one rename."""
    partial = folder / f".{STORE}.partial"
    new_folder = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
    try:
        root: Any = zarr.create_group(partial, attributes=plan)
        for name, values in table.items():
            _column(root, "sample" if name == "id" else name, values)
        if points is not None:
            group = root.create_group("points")
            _column(group, "channel", np.array(schema.CHANNELS), "channel")
            _states(group, "points", points.shape, plan["chunk"], "sample point channel", "float32")
            group["points"][:] = points
        count, chunk, tokens = plan["samples"], plan["chunk"], plan["tokens"]
        target_shape = (count, tokens, plan["target_dim"])
        group = root.create_group("target")
        _states(group, "tokens", target_shape, chunk, "sample token target_dim", plan["dtype"])
        _written(group, count, chunk)
        for variant in plan["variants"]:
            group = root.create_group(variant)
            _column(group, "layer", np.array(plan["layers"]), "layer")
            hidden_shape = (len(plan["layers"]), count, tokens, plan["dim"])
            _states(group, "hidden", hidden_shape, chunk, "layer sample token dim", plan["dtype"])
            _written(group, count, chunk)
        root.create_group("probes")
        consolidate(partial)
        partial.rename(folder / STORE)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if new_folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _column(group: Any, name: str, values: np.ndarray, dim: str = "sample") -> None:
    text = values.dtype.kind in "OUT"
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(max(1, len(values)),),
        dtype=str if text else values.dtype,
        dimension_names=[dim],
    )
    array[:] = values.astype(object) if text else values


def _states(
    group: Any, name: str, shape: tuple[int, ...], chunk: int, dims: str, dtype: str
) -> None:
    """An array of states: a chunk is some samples of one layer, with a checksum inside.

    What is not written reads as NaN, so that a lost chunk cannot pass for a state.
    """
    names = dims.split()
    sizes = {"layer": 1, "sample": chunk}
    group.create_array(
        name,
        shape=shape,
        chunks=tuple(sizes.get(dim, size) for dim, size in zip(names, shape, strict=True)),
        dtype=dtype,
        fill_value=float("nan"),
        compressors=[ZstdCodec(level=1, checksum=True)],
        dimension_names=names,
    )


def _written(group: Any, samples: int, chunk: int) -> None:
    """The marks of finished samples, set after their states: what a reader may believe."""
    group.create_array(
        "written", shape=(samples,), chunks=(chunk,), dtype=bool, dimension_names=["sample"]
    )


def consolidate(store: Path) -> None:
    """Copy all metadata to the root, so that stock xarray opens the store in one read."""
    with warnings.catch_warnings():
        # zarr warns that the v3 specification has yet to name this block; readers may ignore it
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(store, zarr_format=3)


class RunWriter:
    """Fills one store. `chunk` samples at a time; what is marked finished stays finished."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._root: Any = zarr.open_group(self.path / STORE, mode="r+", use_consolidated=False)
        self.attrs: dict[str, Any] = dict(self._root.attrs)
        schema.check_version(self.attrs, str(path))
        self.chunk: int = self.attrs["chunk"]
        self.samples: int = self.attrs["samples"]

    def append(self, variant: str, rows: slice, hidden: np.ndarray) -> None:
        """Write the states of some samples. hidden : (layers, samples, tokens, dim).

        `rows` starts at a multiple of `chunk` and ends at one or at the last sample. Raises
        ValueError for states that are not finite in the store's dtype.
        """
        group = self._group(variant)
        self._check_rows(rows)
        hidden = np.asarray(hidden)
        count = rows.stop - rows.start
        plan = self.attrs
        expected = (len(plan["layers"]), count, plan["tokens"], plan["dim"])
        if hidden.shape != expected:
            raise ValueError(
                f"{variant} rows {rows.start}-{rows.stop}: {hidden.shape} states, "
                f"the store takes {expected} (layer, sample, token, dim)"
            )
        for layer, states in zip(plan["layers"], hidden, strict=True):
            self._check_values(states, f"variant {variant}, layer {layer}", rows)
        group["hidden"][:, rows] = hidden.astype(plan["dtype"])
        group["written"][rows] = True

    def append_target(self, rows: slice, tokens: np.ndarray) -> None:
        """Write the targets of some samples. tokens : (samples, tokens, target_dim)."""
        self._check_rows(rows)
        tokens = np.asarray(tokens)
        expected = (rows.stop - rows.start, self.attrs["tokens"], self.attrs["target_dim"])
        if tokens.shape != expected:
            raise ValueError(
                f"target rows {rows.start}-{rows.stop}: {tokens.shape} tokens, "
                f"the store takes {expected} (sample, token, target_dim)"
            )
        self._check_values(tokens, "target", rows)
        group = self._group("target")
        group["tokens"][rows] = tokens.astype(self.attrs["dtype"])
        group["written"][rows] = True

    def done(self, variant: str) -> int:
        """Leading samples of a variant (or of "target") that are finished."""
        return leading(self._group(variant)["written"][:])

    def finish(self) -> None:
        """Declare the store complete. Raises ValueError while a sample is missing."""
        for name in ["target", *self.attrs["variants"]]:
            if (done := self.done(name)) < self.samples:
                raise ValueError(f"{self.path}: {name} has {done} of {self.samples} samples")
        self._root.attrs["complete"] = True
        self.attrs["complete"] = True
        consolidate(self.path / STORE)

    def _group(self, name: str) -> Any:
        if name != "target" and name not in self.attrs["variants"]:
            known = ", ".join(self.attrs["variants"])
            raise ValueError(f"{self.path} has no variant {name!r}: it has {known}")
        return self._root[name]

    def _check_rows(self, rows: slice) -> None:
        start, stop = rows.start, rows.stop
        aligned = start % self.chunk == 0 and (stop % self.chunk == 0 or stop == self.samples)
        if not (0 <= start < stop <= self.samples and aligned and rows.step in (None, 1)):
            raise ValueError(
                f"rows {start}-{stop} do not fit: {self.samples} samples are written "
                f"in chunks of {self.chunk}"
            )

    def _check_values(self, states: np.ndarray, where: str, rows: slice) -> None:
        largest = np.finfo(self.attrs["dtype"]).max
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(states) <= largest)  # NaN compares false: it counts as bad too
        if not bad.any():
            return
        row = int(bad.any(axis=(1, 2)).argmax())
        name = self._root["sample"][rows.start + row]
        value = states[row][bad[row]][0]
        raise ValueError(
            f"{where}, sample {name}: {value} does not fit {self.attrs['dtype']} "
            f"(finite, up to {largest:.6g})"
        )


def leading(written: np.ndarray) -> int:
    """How many samples from the first on are marked finished."""
    return len(written) if written.all() else int(np.argmin(written))
