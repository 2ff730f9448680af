"""What a run store holds: names, dimensions, version, and the checks before one is made."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np

SCHEMA_VERSION = 3
# 1 had a file for each layer; 2 had two folders for each shard and a second mark for each append,
# which took 1.08 times as long to write. Both are read, and 2 is gone on with as it was begun.
STORE = "activations.zarr"
COLUMNS = ("id", "label", "class_name", "split", "caption")
SPLITS = ("gallery", "query")
DTYPES = ("float16", "bfloat16", "float32")
RESERVED = ("points", "target", "encoder", "probes", "attention")
OWN_TOKENS = "n_tokens"  # column: how many tokens are a sample's own; zeros stand behind them
CHANNELS = ("x", "y", "z", "red", "green", "blue")
CHUNK_BYTES = 4 * 2**20  # one layer of one shard; all layers of it are one file, one append
# Chosen for the two reads that matter, at 32 tokens of 2560 numbers, 9 layers, 256 samples
# (tests/benchmarks/bench_store.py --sweep): times from disk over those of one plain file, to be
# compared with one another only, in a first run / in a second one beside other programs. Files of
# 1, 2, 4, 8, 16 MiB a layer, one layer of all samples: 0.91, 0.74, 0.70, 0.72, 0.91 / 1.07, 1.11,
# 0.89, 0.77, 0.95, which doesn't tell 4 from 8. Chunks of 128, 512, 2048 KiB, one sample at all
# layers: 0.10, 0.14, 0.49 / 0.11, 0.15, 0.68; one layer of all samples: 0.70, 0.73, 0.70 / 0.89,
# 0.67, 0.86, no order. Smaller chunks were not tried.
MOST_SAMPLES = 128  # in a shard; bounds what an interrupted capture has to do again
INNER_BYTES = 128 * 2**10  # an inner chunk, the least that is read: see tests/benchmarks
TEXT = np.dtypes.StringDType()
SEALED = ("complete", "seal", "nonfinite")  # attributes that come later than the plan


class StoreError(ValueError):
    """A store that cannot be read, or is asked for what it does not hold."""


class Clouds(Protocol):
    """(samples, points, 6): an array, or what gives parts of one when it is sliced by samples."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def stored_dtype(dtype: str) -> str:
    """numpy's name of what lies in the file: bfloat16, which numpy lacks, as its bit patterns."""
    return "uint16" if dtype == "bfloat16" else dtype


def chunk_samples(samples: int, tokens: int, dim: int, dtype: str) -> int:
    """Samples in a shard: a power of two, about `CHUNK_BYTES` per layer."""
    fits = CHUNK_BYTES // (tokens * dim * np.dtype(stored_dtype(dtype)).itemsize)
    return _power_of_two(min(fits, MOST_SAMPLES, samples))


def inner_samples(chunk: int, values: int, dtype: str) -> int:
    """Samples in an inner chunk of a shard of `chunk`: a power of two, about `INNER_BYTES`.

    values : numbers of one sample at one layer
    """
    fits = INNER_BYTES // (values * np.dtype(stored_dtype(dtype)).itemsize)
    return _power_of_two(min(fits, chunk))


def _power_of_two(bound: int) -> int:
    return 1 << (max(1, bound).bit_length() - 1)


def digest(values: np.ndarray) -> str:
    """SHA-256 of an array's values and shape; strings by their text, not their width."""
    values = np.asarray(values)
    content = hashlib.sha256(repr(values.shape).encode())
    if values.dtype.kind in "OUT":
        content.update(json.dumps([str(value) for value in values.ravel()]).encode())
    else:
        content.update(values.dtype.str.encode())
        content.update(np.ascontiguousarray(values).data)
    return content.hexdigest()


def cloud_blocks(clouds: Clouds) -> Iterator[tuple[slice, np.ndarray]]:
    """Clouds as float32, some samples at a time: all of a large set would fill the memory.

    Raises ValueError where a value is not finite, as it is where a file of them is lost.
    """
    samples = clouds.shape[0]
    for start in range(0, samples, MOST_SAMPLES):
        rows = slice(start, min(start + MOST_SAMPLES, samples))
        given = np.asarray(clouds[rows])
        if given.dtype.kind not in "iuf":
            raise ValueError(f"points are {given.dtype}: give numbers, xyz and rgb")
        block = np.ascontiguousarray(given, np.float32)
        if not np.isfinite(block).all():
            wrong = start + int(np.argwhere(~np.isfinite(block))[0][0])
            raise ValueError(f"points of sample {wrong}: a coordinate or colour is not finite")
        yield rows, block


def cloud_digest(clouds: Clouds) -> str:
    """`digest` of them as one array."""
    content = hashlib.sha256(repr(tuple(clouds.shape)).encode())
    content.update(np.dtype(np.float32).str.encode())
    for _, block in cloud_blocks(clouds):
        content.update(block.data)
    return content.hexdigest()


def sample_columns(samples: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The table of samples as arrays (samples,): `COLUMNS`, then whatever else is given."""
    if not isinstance(samples, Mapping):
        raise ValueError(f"samples are {type(samples).__name__}: give a column for each name")
    if missing := [name for name in COLUMNS if name not in samples]:
        raise ValueError(f"samples lack {', '.join(missing)}: they need {', '.join(COLUMNS)}")
    if wrong := [name for name in samples if not plain_name(name) or name in (*RESERVED, "sample")]:
        raise ValueError(f"samples column {wrong[0]!r}: letters, digits and _, and none of ours")
    table = {name: _column(name, values) for name, values in samples.items()}
    table["id"] = table["id"].astype(TEXT)
    if table["label"].dtype.kind not in "biu":
        raise ValueError(f"samples column label is {table['label'].dtype}: give whole numbers")
    table["label"] = table["label"].astype(np.int64)
    count = table["id"].size
    for name, values in table.items():
        if values.shape != (count,):
            raise ValueError(f"samples column {name} has shape {values.shape}, expected ({count},)")
    if count == 0:
        raise ValueError("samples are empty: a run needs at least one")
    if len(np.unique(table["id"])) < count:
        names, counts = np.unique(table["id"], return_counts=True)
        raise ValueError(f"sample id {names[counts.argmax()]} occurs {counts.max()} times")
    if wrong := sorted(set(map(str, table["split"])) - set(SPLITS)):
        raise ValueError(f"split {wrong[0]!r}: samples are in {' or '.join(SPLITS)}")
    return table


def _column(name: str, values: Any) -> np.ndarray:
    """Text of any length: of a fixed one, the longest caption would set the memory of all."""
    if not isinstance(values, np.ndarray):
        text = isinstance(values, Sequence) and any(isinstance(value, str) for value in values)
        values = np.array(values, TEXT if text else None)
    if values.dtype.kind == "O" and not all(isinstance(value, str) for value in values.flat):
        raise ValueError(f"samples column {name} holds objects: give numbers or text")
    if values.dtype.kind not in "biufOUT":
        raise ValueError(f"samples column {name} is {values.dtype}: give numbers or text")
    return values.astype(TEXT) if values.dtype.kind in "OU" else values


def plan_attrs(
    table: Mapping[str, np.ndarray],
    *,
    layers: Sequence[int],
    variants: Sequence[str],
    tokens: int,
    dim: int,
    target_dim: int,
    target_tokens: int | None,
    points: Clouds | None,
    encoder_dim: int | None,
    patches: int | None,
    steps: Sequence[int] | Mapping[str, Sequence[int]] | None,
    dtype: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The root attributes of a store: all that has to agree before a capture may go on."""
    layers, variants = _numbers("layers", layers), [*_listed("variants", variants)]
    if not layers or layers != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"layers {layers}: need distinct layers from 0 up, in order")
    if not variants or len(set(variants)) < len(variants):
        raise ValueError(f"variants {variants}: need distinct names")
    taken = (*RESERVED, "sample", *table)
    if wrong := [n for n in variants if not plain_name(n) or n in taken]:
        raise ValueError(f"variant {wrong[0]!r}: letters, digits and _, and none of {taken}")
    sizes = {"tokens": tokens, "dim": dim, "target_dim": target_dim}
    sizes |= {} if target_tokens is None else {"target_tokens": target_tokens}
    if not all(_counts(size) for size in sizes.values()):
        given = ", ".join(f"{name}={size!r}" for name, size in sizes.items())
        raise ValueError(f"{given}: must be whole numbers, 1 or more")
    own = table.get(OWN_TOKENS)
    if own is not None and (own.dtype.kind not in "iu" or own.min() < 1 or own.max() > tokens):
        raise ValueError(f"samples column {OWN_TOKENS}: whole numbers from 1 to {tokens}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: must be {', '.join(DTYPES)}")
    if patches is not None and not _counts(patches):
        raise ValueError(f"patches={patches!r}: must be 1 or more, or None for no attention")
    if encoder_dim is not None and not _counts(encoder_dim):
        raise ValueError(f"encoder_dim={encoder_dim!r}: must be 1 or more, or None for no encoder")
    if not isinstance(provenance, Mapping):
        raise ValueError(f"provenance is {type(provenance).__name__}: give a value for each name")
    samples = len(table["id"])
    digests = {f"samples.{name}": digest(values) for name, values in table.items()}
    if points is not None:
        shape = tuple(getattr(points, "shape", ()))
        if len(shape) != 3 or shape[0] != samples or shape[1] < 1 or shape[2] != len(CHANNELS):
            raise ValueError(f"points have shape {shape}, expected ({samples}, n, 6)")
        digests["points"] = cloud_digest(points)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "title": "hidden states of point tokens, by variant, layer, sample, token and dimension",
        "complete": False,
        "samples": samples,
        "layers": layers,
        "variants": variants,
        "tokens": int(tokens),
        "dim": int(dim),
        "target_dim": int(target_dim),
        "encoder_dim": None if encoder_dim is None else int(encoder_dim),
        "points": None if points is None else list(points.shape[1:]),
        "patches": None if patches is None else int(patches),
        "steps": plan_steps(steps, variants),
        "dtype": dtype,
        "chunk": chunk_samples(samples, tokens, max(dim, target_dim), dtype),
        "digests": digests,
        "provenance": dict(provenance),
    }
    if target_tokens not in (None, tokens):
        plan["target_tokens"] = int(target_tokens)
    return json.loads(json.dumps(plan, default=str))  # as it will read back from the disk


def plan_steps(
    steps: Sequence[int] | Mapping[str, Sequence[int]] | None, variants: Sequence[str]
) -> dict[str, list[int]]:
    """Training steps that are captured, of the variants that have any."""
    if steps is None:
        return {}
    if not isinstance(steps, Mapping):
        steps = dict.fromkeys(variants, steps)
    if unknown := [name for name in steps if name not in variants]:
        raise ValueError(f"steps of {unknown[0]!r}: the variants are {', '.join(variants)}")
    planned = {n: _numbers(f"steps of {n}", steps[n]) for n in variants if n in steps}
    for name, own in planned.items():
        if not own or own != sorted(set(own)) or own[0] < 0:
            raise ValueError(f"steps {own} of {name}: need distinct steps from 0 up, in order")
    return planned


def _listed(name: str, values: Any) -> list[Any]:
    """The things in a list. Raises ValueError for what is none, a lone text too."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} {values!r}: need a list of them")
    return list(values)


def _numbers(name: str, values: Any) -> list[int]:
    found = _listed(name, values)
    if not all(isinstance(value, Integral) and int(value) < 2**31 for value in found):
        raise ValueError(f"{name} {found}: need whole numbers")
    return [int(value) for value in found]


def _counts(value: Any) -> bool:
    """Whether it is a number of things: whole, and 1 or more."""
    return isinstance(value, Integral) and int(value) >= 1


def plain_name(name: object) -> bool:
    """Whether a name is letters, digits and _ only, so that it can't lead out of a store."""
    return isinstance(name, str) and name.replace("_", "").isalnum()


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two plans, one clause each, nested keys written with dots."""
    found = []
    for key in dict.fromkeys([*stored, *asked]):
        if not prefix and key in SEALED:
            continue
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            name = f"{prefix}{key}"
            changed = name.startswith("digests.")
            found.append(
                f"{name.removeprefix('digests.')} have changed"
                if changed
                else f"{name} is {old!r} in the store and {new!r} now"
            )
    return found


def check_attrs(attrs: Mapping[str, Any], name: str) -> None:
    """Refuse what is no run store, and one written by a later program. Raises StoreError."""
    version = attrs.get("schema_version")
    if not isinstance(version, int):
        raise StoreError(f"{name} is no run store: it does not say its schema version")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{name} has schema version {version}, and this program reads up to {SCHEMA_VERSION}: "
            "update the program"
        )
    needed = ("variants", "layers", "samples", "chunk", "tokens", "dim", "target_dim", "dtype")
    if missing := [k for k in (*needed, "complete", "points", "digests") if k not in attrs]:
        raise StoreError(f"{name} is damaged: its attributes lack {', '.join(missing)}")
    lists = isinstance(attrs["variants"], list) and isinstance(attrs["layers"], list)
    numbers = all(isinstance(attrs[key], int) and attrs[key] > 0 for key in needed[2:7])
    if not (lists and numbers and _whole_numbers(attrs["layers"]) and _plausible(attrs)):
        raise StoreError(f"{name} is damaged: its attributes do not describe a run")
    if wrong := [variant for variant in attrs["variants"] if not plain_name(variant)]:
        raise StoreError(f"{name} is damaged: {wrong[0]!r} is no name of a variant")


def _plausible(attrs: Mapping[str, Any]) -> bool:
    """Whether the attributes that not every run has are of the kind that they are written as."""
    tables = [attrs.get(name, {}) for name in ("steps", "digests", "provenance", "nonfinite")]
    if attrs["dtype"] not in DTYPES or not all(isinstance(table, dict) for table in tables):
        return False
    steps, digests, *_ = tables
    optional = "encoder_dim", "patches", "target_tokens"
    widths = [attrs[name] for name in optional if attrs.get(name) is not None]
    points = attrs["points"]
    return (
        _whole_numbers(widths, least=1)
        and (points is None or (_whole_numbers(points, least=1) and len(points) == 2))
        and all(own and _whole_numbers(own) for own in steps.values())
        and all("/" not in name and isinstance(value, str) for name, value in digests.items())
    )


def _whole_numbers(values: Any, least: int = 0) -> bool:
    return isinstance(values, list) and all(isinstance(n, int) and n >= least for n in values)
