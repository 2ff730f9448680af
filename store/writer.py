"""Write a run store: made whole or not at all, filled a shard at a time, resumed where it was."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from numbers import Integral
from pathlib import PurePath
from typing import Any

import numpy as np
import zarr

from store import schema
from store.layout import Part, lay_out, parts, root_attrs, seal
from store.lock import lock
from store.place import AT_A_TIME, MAKING, PARTIAL, Place
from store.schema import STORE
from store.shards import AHEAD, ENCODERS, Encoder, Overflow, checksum, decode


class NonFiniteWarning(UserWarning):
    """Captured states hold NaN or infinity."""


def create_run(
    path: str | PurePath,
    *,
    samples: Mapping[str, Any],
    layers: Sequence[int],
    variants: Sequence[str],
    tokens: int,
    dim: int,
    target_dim: int,
    target_tokens: int | None = None,
    points: schema.Clouds | None = None,
    encoder_dim: int | None = None,
    patches: int | None = None,
    steps: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    dtype: str = "float16",
    provenance: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> "RunWriter":
    """Lay out an empty store in the run folder `path` and return its writer.

    path       : a folder, or any fsspec URL as s3://bucket/run
    samples    : id, label, class_name, split ("gallery" or "query") and caption, each (samples,);
                 n_tokens where samples have different numbers of tokens: each has its own first,
                 behind them come zeros
    layers     : layers whose states will come, 0 = what enters block 1; in order
    variants   : models that will be captured, as "stage1", "baseline", "aligned", "untrained"
    tokens, dim, target_dim : tokens an object (at most), their width, the width of its target
    target_tokens : tokens of the target, where it has not as many
    points     : (samples, points, 6), xyz and rgb, or None; an array or whatever gives parts of one
                 when it is sliced by samples, twice (a memory map, a lazy array): memory stays flat
    encoder_dim : width of what the point encoder makes of a cloud, when that is captured
    patches    : patches of a cloud, when it is captured which of them each token reads
    steps      : training steps captured of every variant, or {variant: steps} for some of them;
                 a variant without any is captured once
    dtype      : of the states: float16, float32, or bfloat16, whose bit patterns are kept (numpy
                 has no such dtype) and which is read as float32, which holds it exactly
    provenance : what made it (config, seed, hashes), kept as JSON

    The store appears under its name once it is whole; a failure before that leaves nothing.
    With `resume` a store that is there is gone on with, as `resume_run` does. Raises
    FileExistsError where there is one and `resume` is not asked for, and Locked where another
    process is writing it.
    """
    run = Place(path)
    table = schema.sample_columns(samples)
    plan = schema.plan_attrs(
        table,
        layers=layers,
        variants=variants,
        tokens=tokens,
        dim=dim,
        target_dim=target_dim,
        target_tokens=target_tokens,
        points=points,
        encoder_dim=encoder_dim,
        patches=patches,
        steps=steps,
        dtype=dtype,
        provenance=provenance or {},
    )
    if run.exists(f"{STORE}/zarr.json" if run.local is None else STORE):
        if not resume:
            raise FileExistsError(
                f"{run.name} already holds a run: resume it or name another folder"
            )
        return _resume(run, plan)
    new_folder = run.local is not None and not run.local.exists()
    held = lock(run, 0)
    try:
        lay_out(run, plan, table, points)
        return RunWriter(path)
    except BaseException:
        if new_folder:
            run.clear()
        raise
    finally:
        held.release()


def resume_run(path: str | PurePath, *, process: int = 0, **plan: Any) -> "RunWriter":
    """Go on with the store in `path`; takes what `create_run` took.

    process : number of this process, where several fill one store together: process 0 creates
              it, the others then resume it, each with its own number

    Raises ValueError naming what differs, FileNotFoundError where there is no store.
    """
    run = Place(path)
    if not run.exists(f"{STORE}/zarr.json"):
        raise FileNotFoundError(f"{run.name} holds no {STORE} to resume")
    if process == 0:
        return create_run(path, **plan, resume=True)
    table = schema.sample_columns(plan.pop("samples"))
    points = plan.pop("points", None)
    defaults: dict[str, Any] = {"encoder_dim": None, "patches": None, "target_tokens": None}
    defaults |= {"steps": None, "dtype": "float16"}
    given = defaults | plan | {"provenance": plan.get("provenance") or {}}
    return _resume(run, schema.plan_attrs(table, points=points, **given), process)


def _resume(run: Place, plan: dict[str, Any], process: int = 0) -> "RunWriter":
    writer = RunWriter(run.name, process=process)
    if writer.attrs["schema_version"] > 1:  # it is gone on with as it was begun
        plan["schema_version"] = writer.attrs["schema_version"]
    if different := schema.differences(writer.attrs, plan):
        writer.close()
        raise ValueError(f"cannot resume {run.name}: {'; '.join(different)}")
    if process == 0:
        writer.forget_torn()
        run.child(STORE).remove(MAKING)  # killed right after the store was laid out
    return writer


class RunWriter:
    """Fills one store, `chunk` samples at a time; what is marked finished stays finished.

    Several processes may fill one store together: each opens it with its own number `process`,
    and appends the rows that `pending(name, process, processes)` gives it. Every append writes
    files of its own, so the result has the same bytes in whatever order and by whomever it is
    written. It is whole in every layer or absent: all layers of its samples are one file.

    The writer holds a lock on the run until it is closed, finished, or its process ends; use it as
    `with contextlib.closing(writer)` where it may be left half way.
    """

    def __init__(self, path: str | PurePath, *, process: int = 0):
        self._run = Place(path)
        self.path = self._run.path
        self._store = self._run.child(STORE)
        self._lock: Any = lock(self._run, process)
        self._owner = f".{process}"
        self.attrs: dict[str, Any] = root_attrs(self._store)
        schema.check_attrs(self.attrs, self._run.name)
        self._parts = parts(self.attrs)
        self.chunk: int = self.attrs["chunk"]
        self.samples: int = self.attrs["samples"]

    @property
    def held(self) -> int:
        """Bytes of an append that it holds at most, beside the states that it is given."""
        chunk = max(part.chunk_bytes for group in self._parts.values() for part in group)
        return (AHEAD + ENCODERS) * chunk + self._store.held

    def append(
        self,
        variant: str,
        rows: slice,
        hidden: np.ndarray | Iterator[np.ndarray],
        *,
        step: int | None = None,
    ) -> None:
        """Write the states of some samples. hidden : (layers, samples, tokens, dim).

        `rows` starts at a multiple of `chunk` and ends at one or at the last sample; `step` is
        for a variant that has steps. States are floats, or bit patterns (uint16) of bfloat16.
        An iterator gives the layers one by one, (samples, tokens, dim) each: it is asked for the
        next once what it gave may be freed or written over.
        NaN and infinity are stored and counted; a finite value that the store's dtype has no
        room for is refused: raises ValueError, naming layer and sample.
        """
        self._variant(variant)
        (part,) = group = self._group(variant, step)
        self._check_rows(rows)
        number = rows.start // self.chunk
        states: Iterable[np.ndarray]
        if isinstance(hidden, Iterator):
            states = self._layers(rows, hidden, part)
        else:
            states = self._fitting(rows, hidden, part, ("step",))
        encoder = self._write_shard(part, rows, states, step)
        nonfinite = np.stack(encoder.nonfinite)
        if nonfinite.any():
            counts = np.zeros((part.layers, self.chunk, 2), "<u4")
            counts[:, : rows.stop - rows.start] = nonfinite
            self._note(part, "nonfinite", number, counts, step)
        self._done(group, [encoder.crc], rows, step)

    def append_target(self, rows: slice, tokens: np.ndarray) -> None:
        """Write the targets of some samples. tokens : (samples, tokens, target_dim), finite."""
        self._append_frozen("target", rows, [tokens])

    def append_encoder(self, rows: slice, pooled: np.ndarray) -> None:
        """Write what the encoder makes of some clouds. pooled : (samples, encoder_dim), finite."""
        self._append_frozen("encoder", rows, [pooled])

    def append_attention(self, rows: slice, weights: np.ndarray, centres: np.ndarray) -> None:
        """Write which 3D patches each query token reads.

        weights : (samples, tokens, patches), kept in float16
        centres : (samples, patches, 3), xyz of the patches, kept in float32
        """
        self._append_frozen("attention", rows, [weights, centres])

    def pending(
        self,
        name: str,
        process: int = 0,
        processes: int = 1,
        *,
        step: int | None = None,
    ) -> Iterator[slice]:
        """Rows of a variant ("target", "encoder", "attention") still missing, an append each.

        Of several processes each gets every `processes`-th append, finished ones counted, so
        that theirs never overlap.
        """
        if not (isinstance(process, int) and isinstance(processes, int)) or not (
            0 <= process < processes
        ):
            raise ValueError(f"process {process} of {processes}: they are numbered from 0")
        self._group(name, step)
        have = finished(self._store, self._parts[name][0], (step,))[step]
        for number in range(process, -(-self.samples // self.chunk), processes):
            if number not in have:
                start = number * self.chunk
                yield slice(start, min(start + self.chunk, self.samples))

    def done(self, variant: str, step: int | None = None) -> int:
        """Leading samples of a variant (or of "target") that are finished, at all steps or one."""
        self._group(variant, step, all_steps=True)
        return done(self._store, self._parts[variant][0], step)

    def finish(self) -> None:
        """Declare the store complete. Raises ValueError while a sample is missing.

        Warns, once, of states that are not finite. Where several processes write, one of them
        calls this after all are through.
        """
        for name in self._parts:
            if (have := self.done(name)) < self.samples:
                raise ValueError(f"{self._run.name}: {name} has {have} of {self.samples} samples")
        for key in list(self._store.keys()):
            if key.endswith(PARTIAL):  # what a kill cut short
                self._store.remove(key)
        self._store.sync()
        counts = {name: self._nonfinite(name) for name in self.attrs["variants"]}
        found = {name: layers for name, layers in counts.items() if layers}
        seal(self._store, complete=True, nonfinite=found)
        self.attrs |= {"complete": True, "nonfinite": found}
        self.close()
        if found:
            warnings.warn(f"{self._run.name}: {say(found)}", NonFiniteWarning, stacklevel=2)

    def forget_torn(self) -> None:
        """Take back the marks of shards that a loss of power left too short, or lost."""
        for group in self._parts.values():
            first = group[0]
            for step, numbers in finished(self._store, first, first.steps or (None,)).items():
                for number in numbers:
                    count = min(self.chunk, self.samples - number * self.chunk)
                    lengths = {part.shard(number, step): part.length(count) for part in group}
                    mark = first.mark(first.last_mark, number, step)
                    lengths[mark] = 4 + (self.chunk if first.last_mark == "written" else 4)
                    if any(self._store.length(key) != n for key, n in lengths.items()):
                        self._store.remove(mark)

    def close(self) -> None:
        """Let others write. What is appended stays; a closed writer appends no more."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __del__(self):
        # Behind a URL the lock's file stays until the process ends: a finalizer may run in the
        # thread that would have to ask the network.
        if getattr(self, "_lock", None) is not None and self._run.local is not None:
            self.close()

    def _append_frozen(self, name: str, rows: slice, arrays: Sequence[np.ndarray]) -> None:
        """What comes from frozen parts: not finite there is a mistake, not a finding."""
        group = self._group(name, None)
        given = [self._given(rows, some, part) for part, some in zip(group, arrays, strict=True)]
        for part, values in zip(group, given, strict=True):
            numbers = decode(values, "bfloat16") if values.dtype == np.uint16 else values
            if not np.isfinite(numbers).all():
                row = int(np.argwhere(~np.isfinite(numbers))[0][0])
                raise ValueError(
                    f"{part.path}, sample {self._sample(rows.start + row)}: a value is not finite"
                )
        crcs = [
            self._write_shard(part, rows, values[None], None).crc
            for part, values in zip(group, given, strict=True)
        ]
        self._done(group, crcs, rows, None)

    def _write_shard(
        self, part: Part, rows: slice, states: Iterable[np.ndarray], step: int | None
    ) -> Encoder:
        if self._lock is None:
            raise ValueError(f"{self._run.name}: its writer is closed")
        self._lock.check()
        number = rows.start // self.chunk
        encoder = Encoder(states, part.dtype, part.inner, self.chunk)
        try:
            with closing(encoder.pieces()) as pieces:
                self._store.write(part.shard(number, step), pieces, self._owner)
        except Overflow as error:
            layer = f", layer {self.attrs['layers'][error.at[0]]}" if part.array == "hidden" else ""
            kind = "variant " if part.array == "hidden" else ""
            raise ValueError(
                f"{kind}{part.group}{layer}, sample {self._sample(rows.start + error.at[1])}: "
                f"{error.value} does not fit {part.dtype}; capture in bfloat16 or float32"
            ) from None
        return encoder

    def _done(self, group: list[Part], crcs: list[int], rows: slice, step: int | None) -> None:
        """Note what was written, when all of it is; the first part's mark says so, and is last."""
        number, first = rows.start // self.chunk, group[0]
        for part, crc in reversed([*zip(group, crcs, strict=True)]):
            self._note(part, "crc32c", number, np.array([crc], "<u4"), step)
        if first.last_mark == "written":
            written = np.arange(self.chunk) < rows.stop - rows.start
            self._note(first, "written", number, written, step)

    def _note(
        self, part: Part, name: str, number: int, values: np.ndarray, step: int | None
    ) -> None:
        data = values.reshape(-1).view(np.uint8)
        self._store.write(part.mark(name, number, step), [data, checksum(data)], self._owner)

    def _nonfinite(self, name: str) -> dict[str, dict[str, int]]:
        """Counts of a variant by layer, layers without any left out."""
        if self._store.names(f"{name}/nonfinite") == ["zarr.json"]:
            return {}  # a shard without any has no file of them
        counts = self._array(f"{name}/nonfinite")
        total = np.zeros((len(self.attrs["layers"]), 2), np.int64)
        at_once = AT_A_TIME * self.chunk
        for start in range(0, self.samples, at_once):
            part = counts[..., start : start + at_once, :]
            total += part.sum(axis=(*range(part.ndim - 3), part.ndim - 2), dtype=np.int64)
        layers = zip(self.attrs["layers"], total.tolist(), strict=True)
        return {str(layer): {"nan": n, "inf": i} for layer, (n, i) in layers if n or i}

    def _group(self, name: str, step: int | None, *, all_steps: bool = False) -> list[Part]:
        if not isinstance(name, str) or name not in self._parts:
            self._variant(name)
        group = self._parts[name]
        steps = group[0].steps
        if (step is None and steps and not all_steps) or (step is not None and step not in steps):
            has = f"has steps {', '.join(map(str, steps))}" if steps else "has no steps"
            raise ValueError(f"{self._run.name}: {name} {has}, and step={step} was given")
        return group

    def _variant(self, name: str) -> None:
        if name not in self.attrs["variants"]:
            known = ", ".join(self.attrs["variants"])
            raise ValueError(f"{self._run.name} has no variant {name!r}: it has {known}")

    def _layers(
        self, rows: slice, layers: Iterator[np.ndarray], part: Part
    ) -> Iterator[np.ndarray]:
        """Layers as they come, none of which is held on to.

        Raises ValueError where one doesn't fit, or there are more or fewer than the store takes.
        """
        count = 0
        for states in layers:
            count += 1
            yield self._fitting(rows, states, part, ("step", "layer"))
            del states
        if count != part.layers:
            raise ValueError(
                f"{part.group} rows {rows.start}-{rows.stop}: {count} layers, the store takes "
                f"{part.layers}"
            )

    def _given(self, rows: slice, values: Any, part: Part) -> np.ndarray:
        """Values for some rows as an array. Raises ValueError where either doesn't fit."""
        self._check_rows(rows)
        return self._fitting(rows, values, part, ("step",))

    def _check_rows(self, rows: slice) -> None:
        if not isinstance(rows, slice) or not all(
            isinstance(end, Integral) for end in (rows.start, rows.stop)
        ):
            raise ValueError(f"rows {rows!r}: give a slice of two numbers, as slice(0, 128)")
        start, stop = rows.start, rows.stop
        aligned = start % self.chunk == 0 and (stop % self.chunk == 0 or stop == self.samples)
        if not (0 <= start < stop <= self.samples and aligned and rows.step in (None, 1)):
            raise ValueError(
                f"rows {start}-{stop} do not fit: {self.samples} samples are written "
                f"in chunks of {self.chunk}"
            )

    def _fitting(
        self, rows: slice, values: Any, part: Part, without: tuple[str, ...]
    ) -> np.ndarray:
        """Values of the dimensions that are left `without` some."""
        dims = [dim for dim in part.dims if dim not in without]
        sizes = part.sized(sample=rows.stop - rows.start)[-len(dims) :]
        where = f"{part.group} rows {rows.start}-{rows.stop}"
        try:
            array = np.asarray(values)
        except ValueError as error:  # lists of unequal lengths
            raise ValueError(f"{where}: {part.array} is no array: {error}") from None
        if array.shape != sizes:
            raise ValueError(
                f"{where}: {array.shape} {part.array}, the store takes {sizes} ({', '.join(dims)})"
            )
        if array.dtype.kind != "f" and array.dtype != np.uint16:
            raise ValueError(
                f"{where}: {part.array} of {array.dtype}, the store takes floats, or bit patterns "
                "(uint16) of bfloat16"
            )
        return array

    def _sample(self, row: int) -> str:
        return str(self._array("sample")[row])

    def _array(self, path: str) -> Any:
        return zarr.open_array(self._store.zarr(), path=path, mode="r", zarr_format=3)


def finished(store: Place, part: Part, steps: Sequence[int | None]) -> dict[int | None, set[int]]:
    """Numbers of the shards that are marked finished, at each of some steps (None: it has none).

    A mark is written after its shard and only ever says yes, so that its name is enough.
    """
    found: dict[int | None, set[int]] = {}
    names: dict[str, list[str]] = {}
    for step in steps:
        folder, _, start = part.mark(part.last_mark, "", step).rpartition("/")
        if folder not in names:  # of schema 3 it is the same for all steps
            names[folder] = store.names(folder)
        ends = [name[len(start) :] for name in names[folder] if name.startswith(start)]
        found[step] = {int(end) for end in ends if end.isdigit()}
    return found


def done(store: Place, part: Part, step: int | None = None) -> int:
    """Leading samples that are finished, at one step or at every step."""
    steps = (step,) if step is not None or not part.steps else part.steps
    have = set.intersection(*finished(store, part, steps).values())
    first = next(number for number in range(len(have) + 1) if number not in have)
    return min(first * part.chunk, part.samples)


def say(nonfinite: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """The counts of NaN and infinity as a clause for each variant and layer."""
    return "; ".join(
        f"{name}, layer {layer}: {counts['nan']} NaN and {counts['inf']} infinite values"
        for name, layers in nonfinite.items()
        for layer, counts in layers.items()
    )
