"""The arrays of a run store, and how an empty one is laid out and its metadata sealed."""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

from store import schema
from store.place import Place
from store.schema import STORE, StoreError
from store.shards import fill

SITES = {
    "resid": "residual stream at {} after each block, 0 = what enters block 1",
    "attn": "what the attention of each block adds to the residual stream at {}",
    "mlp": "what the feed-forward of each block adds to the residual stream at {}",
}
WHERE = {"answer": "the tokens of the answer", "all": "the tokens of the whole conversation"}
COLUMNS = {
    "sample": "id of the object",
    "label": "number of its class",
    "class_name": "name of its class",
    "split": "gallery, where neighbours are looked up, or query, the unseen ones they are of",
    "caption": "what is said of the object",
    "n_tokens": "tokens that are the object's own, zeros stand behind them",
    "layer": "blocks that the states have passed, 0 = what enters block 1",
    "step": "training steps that the model has made",
    "channel": "coordinates, and shares of the colour",
}
DOTS = {"name": "default", "separator": "."}  # a file is c.0.3.0.0, with no folders of its own


@dataclass(frozen=True)
class Part:
    """One array of states: what is in it, and in which files.

    A file, a shard, holds `chunk` samples at every layer (of one step); its inner chunks hold
    `inner` samples at one layer.
    """

    group: str
    array: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunk: int
    inner: int
    meaning: str
    steps: tuple[int, ...] = ()
    version: int = schema.SCHEMA_VERSION

    @property
    def path(self) -> str:
        return f"{self.group}/{self.array}"

    @property
    def samples(self) -> int:
        return self.shape[self.dims.index("sample")]

    @property
    def layers(self) -> int:
        return self.shape[self.dims.index("layer")] if "layer" in self.dims else 1

    @property
    def values(self) -> tuple[int, ...]:
        """Shape of one sample at one layer."""
        return self.shape[self.dims.index("sample") + 1 :]

    @property
    def grid(self) -> tuple[int, int]:
        """Inner chunks in a shard: layers, and stretches of samples."""
        return self.layers, self.chunk // self.inner

    def length(self, samples: int) -> int:
        """Bytes of a shard's file with so many samples in it."""
        chunks = self.layers * -(-samples // self.inner)
        return chunks * (self.chunk_bytes + 4) + 16 * self.grid[0] * self.grid[1] + 4

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk, without its checksum."""
        one = np.dtype(schema.stored_dtype(self.dtype)).itemsize * int(np.prod(self.values))
        return self.inner * one

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape, with other sizes of some dimensions."""
        return tuple(sizes.get(dim, n) for dim, n in zip(self.dims, self.shape, strict=True))

    def shard(self, number: int, step: int | None = None) -> str:
        """Key of the file with samples from `number` x `chunk` on."""
        at = {"sample": number} | ({"step": self.steps.index(step)} if step is not None else {})
        return self._key(self.array, [at.get(dim, 0) for dim in self.dims])

    def mark(self, name: str, number: int | str, step: int | None = None) -> str:
        """Key of what is noted beside a shard: its crc32c, nonfinite, or (schema 2) written."""
        steps = [self.steps.index(step)] if step is not None else []
        at = [0, number, 0] if name == "nonfinite" else [number]
        return self._key(f"{self.array}_{name}" if name == "crc32c" else name, [*steps, *at])

    @property
    def last_mark(self) -> str:
        """The mark that is written last: where it is, the samples of a shard are finished."""
        return "crc32c" if self.version > 2 else "written"

    def _key(self, array: str, at: list[Any]) -> str:
        separator = "." if self.version > 2 else "/"
        return f"{self.group}/{array}/{separator.join(['c', *map(str, at)])}"


def parts(attrs: Mapping[str, Any]) -> dict[str, list[Part]]:
    """The arrays that a capture fills, by group: target, encoder, the variants, attention."""
    samples, tokens, chunk = attrs["samples"], attrs["tokens"], attrs["chunk"]
    aimed_at = attrs.get("target_tokens", tokens)

    def part(group, array, dims, sizes, dtype, meaning, steps=()):
        inner = schema.inner_samples(chunk, int(np.prod(sizes[dims.index("sample") + 1 :])), dtype)
        about = group, array, dims, sizes, dtype, chunk, inner, meaning, tuple(steps)
        return Part(*about, attrs["schema_version"])

    made = attrs.get("provenance") or {}
    about = made.get("target", "output of the frozen Q-Former, which drift is measured from")
    sizes: tuple[int, ...] = (samples, aimed_at, attrs["target_dim"])
    dims: tuple[str, ...] = ("sample", "token", "target_dim")
    found = {"target": [part("target", "tokens", dims, sizes, attrs["dtype"], about)]}
    if width := attrs.get("encoder_dim"):
        about = "what the point encoder makes of each cloud, before the Q-Former reads it"
        dims, sizes = ("sample", "encoder_dim"), (samples, width)
        found["encoder"] = [part("encoder", "pooled", dims, sizes, attrs["dtype"], about)]
    for name in attrs["variants"]:
        about = _meaning(made)
        dims = ("layer", "sample", "token", "dim")
        sizes = (len(attrs["layers"]), samples, tokens, attrs["dim"])
        if steps := attrs.get("steps", {}).get(name, ()):
            dims, sizes = ("step", *dims), (len(steps), *sizes)
        found[name] = [part(name, "hidden", dims, sizes, attrs["dtype"], about, steps)]
    if patches := attrs.get("patches"):
        about = "share of its attention that each token gives to each patch of the cloud"
        dims, sizes = ("sample", "token", "patch"), (samples, aimed_at, patches)
        weights = part("attention", "weights", dims, sizes, "float16", about)
        about = "centres of the patches, in the coordinates of the points"
        dims, sizes = ("sample", "patch", "xyz"), (samples, patches, 3)
        found["attention"] = [weights, part("attention", "centres", dims, sizes, "float32", about)]
    return found


def _meaning(made: Mapping[str, Any]) -> str:
    """What the states are, by what is known of how they were made."""
    where = made.get("captured") or WHERE.get(str(made.get("tokens")), "the point tokens")
    said = SITES.get(str(made.get("site")), SITES["resid"]).format(where)
    return f"{said}; their mean" if made.get("pool") == "mean" else said


def lay_out(
    run: Place, plan: dict[str, Any], table: dict[str, np.ndarray], points: schema.Clouds | None
) -> None:
    """Make an empty store whole and only then give it its name; a failure leaves nothing."""
    if run.local is None:
        with tempfile.TemporaryDirectory() as folder:
            _fill_folder(Path(folder) / STORE, plan, table, points)
            run.child(STORE).adopt(Path(folder) / STORE)
        return
    partial = run.local / f".{STORE}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed right here
    try:
        _fill_folder(partial, plan, table, points)
        run.child(STORE).adopt(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fill_folder(
    folder: Path, plan: dict[str, Any], table: dict[str, np.ndarray], points: schema.Clouds | None
) -> None:
    held: dict[str, Any] = {}  # files to be: zarr takes half the time to fill a dictionary
    root: Any = zarr.create_group(zarr.storage.MemoryStore(held), attributes=plan)
    for name, values in table.items():
        _column(root, "sample" if name == "id" else name, values)
    if points is not None:
        group = root.create_group("points")
        _column(group, "channel", np.array(schema.CHANNELS), "channel")
        group.create_array(
            "points",
            shape=points.shape,
            chunks=(plan["chunk"], *points.shape[1:]),
            dtype="float32",
            fill_value=float("nan"),
            compressors=_packed(1),
            dimension_names=["sample", "point", "channel"],
            chunk_key_encoding=DOTS,
            attributes={"long_name": "coloured cloud of each sample", "units": "1"},
        )
    for name, arrays in parts(plan).items():
        _states(root.create_group(name), plan, arrays)
    root.create_group("probes")
    place = Place(folder)
    for key, content in held.items():
        place.write(key, [content.to_bytes()])
    if points is not None:  # too large to be held; an absent chunk would be a lost one
        kept = {"write_empty_chunks": True}
        clouds: Any = zarr.open_array(folder, path="points/points", mode="r+", config=kept)
        for rows, block in schema.cloud_blocks(points):
            clouds[rows] = block
    seal(place)


def _states(group: Any, plan: Mapping[str, Any], arrays: list[Part]) -> None:
    first = arrays[0]
    steps = ("step",) if first.steps else ()
    counted = (len(first.steps),) if first.steps else ()
    ones = (1,) * len(counted)
    if first.steps:
        _column(group, "step", np.array(first.steps), "step")
    if first.array == "hidden":
        _column(group, "layer", np.array(plan["layers"]), "layer")
        about = {"long_name": "values that are NaN and infinite", "units": "count"}
        shape = (*counted, first.layers, plan["samples"], 2)
        chunks = (*ones, first.layers, first.chunk, 2)
        names = [*steps, "layer", "sample", "kind"]
        _plain(group, "nonfinite", "uint32", shape, chunks, names, about)
    for part in arrays:
        note = {"long_name": part.meaning, "units": "1"}
        if part.dtype == "bfloat16":
            note |= {"dtype": "bfloat16", "comment": "bit patterns; shift left by 16 for float32"}
        unit = {"step": 1, "layer": 1}
        group.create_array(
            part.array,
            shape=part.shape,
            chunks=part.sized(**unit, sample=part.inner),
            shards=part.sized(step=1, sample=part.chunk),
            dtype=schema.stored_dtype(part.dtype),
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=fill(part.dtype),
            dimension_names=part.dims,
            chunk_key_encoding=DOTS,
            attributes=note,
        )
        said = f"crc32c of the checksums in each file of {part.array}, there once it is whole"
        about = {"long_name": said, "units": "1"}
        shape = (*counted, -(-plan["samples"] // part.chunk))
        _plain(group, f"{part.array}_crc32c", "uint32", shape, (*ones, 1), [*steps, "shard"], about)


def _plain(group, name, dtype, shape, chunks, dims, about) -> None:
    """A small array whose chunk files are its bytes and their crc32c."""
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        compressors=[Crc32cCodec()],
        dimension_names=dims,
        chunk_key_encoding=DOTS,
        attributes=about,
    )


def _column(group: Any, name: str, values: np.ndarray, dim: str = "sample") -> None:
    text = values.dtype.kind in "OUT"
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(max(1, len(values)),),
        dtype=str if text else values.dtype,
        fill_value=_nothing(values.dtype),
        compressors=_packed(0),
        dimension_names=[dim],
        config={"write_empty_chunks": True},
        attributes=_about(name, values),
    )
    array[:] = values.astype(object) if text else values


def _about(name: str, values: np.ndarray) -> dict[str, str]:
    said = COLUMNS.get(name, f"{name.removeprefix('factor_')}, a factor of the object's making")
    return {"long_name": said} | ({"units": "1"} if values.dtype.kind in "biuf" else {})


def _nothing(dtype: np.dtype) -> Any:
    """What a lost column reads as elsewhere: no label, layer or factor that there could be."""
    if dtype.kind in "OUT":
        return ""
    return np.iinfo(dtype).min if dtype.kind == "i" else np.nan if dtype.kind == "f" else 0


def _packed(level: int) -> list[Any]:
    """Compressed, with a checksum over every byte of the chunk's file."""
    return [ZstdCodec(level=level), Crc32cCodec()]


def seal(store: Place, **attrs: Any) -> None:
    """Set root attributes and copy all metadata to the root, in one write.

    So stock xarray opens the store in one read. Attribute `seal` is the SHA-256 of everything
    else in the root's zarr.json, and with it of all metadata.
    """
    known: dict[str, Any] = {
        key: Buffer.from_bytes(content) for key, content in sorted(metadata(store).items())
    }
    memory = zarr.storage.MemoryStore(known)
    with warnings.catch_warnings():
        # zarr warns that the v3 specification has yet to name this block; readers may ignore it
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(memory, zarr_format=3)
    root = json.loads(known["zarr.json"].to_bytes())
    root["attributes"] |= attrs
    root["attributes"]["seal"] = seal_of(root)
    store.write("zarr.json", [json.dumps(root, indent=2).encode()])


def seal_of(root: Mapping[str, Any]) -> str:
    """SHA-256 of the root's zarr.json without its seal."""
    attrs = {name: value for name, value in root["attributes"].items() if name != "seal"}
    content = json.dumps({**root, "attributes": attrs}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def root_attrs(store: Place) -> dict[str, Any]:
    """Attributes of the root, not checked. Raises FileNotFoundError, and StoreError for others."""
    try:
        root = json.loads(store.read("zarr.json"))
        if root["node_type"] != "group" or root["zarr_format"] != 3:
            raise ValueError("it describes no group of zarr v3")
        return dict(root["attributes"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{store.path} is damaged: its zarr.json cannot be read") from error


def metadata(store: Place) -> dict[str, bytes]:
    """Every zarr.json by its key: of the root, its groups and arrays, and the results of probes."""
    found: dict[str, bytes] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        inside = f"{folder}/" if folder else ""
        try:
            found[f"{inside}zarr.json"] = store.read(f"{inside}zarr.json")
        except (FileNotFoundError, NotADirectoryError):
            continue
        if _is_group(found[f"{inside}zarr.json"]):  # an array may have very many files
            folders += [f"{inside}{name}" for name in store.names(folder) if name != "zarr.json"]
    return found


def _is_group(content: bytes) -> bool:
    with suppress(ValueError, TypeError, KeyError):
        return json.loads(content)["node_type"] == "group"
    return False
