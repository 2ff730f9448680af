"""What a store may ask of its reader: numbers and text, through known codecs, and no links."""

import json
from typing import Any

from store.place import Place
from store.schema import StoreError

CODECS = {"bytes", "crc32c", "zstd", "vlen-utf8", "sharding_indexed", "blosc", "gzip", "transpose"}
TYPES = {"bool", "string", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16))}
TYPES |= {"int32", "int64", "uint32", "uint64", "float16", "float32", "float64"}


def check_group(store: Place, group: str) -> None:
    """Refuse to read a group whose metadata asks for more than numbers and text.

    Raises StoreError for links, for types and codecs that are not on the list (pickled objects
    among them), and for metadata that cannot be read.
    """
    inside = f"{group}/" if group else ""
    if store.local is not None and (store.local / group).is_symlink():
        raise StoreError(f"{store.name}: {group} is a link, it is not followed")
    keys = [f"{inside}{name}" for name in store.names(group)]
    if links := [key for key in keys if store.local and (store.local / key).is_symlink()]:
        raise StoreError(f"{store.name}: {links[0]} is a link, it is not followed")
    metadata = store.read_all(f"{key}/zarr.json" for key in keys if not key.endswith(".json"))
    for name, content in metadata.items():
        key = name.removesuffix("/zarr.json")
        try:
            about = json.loads(content)
            if about["node_type"] == "group":
                continue
            kind, codecs = about["data_type"], _codecs(about["codecs"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{store.name} is damaged: {key}/zarr.json: {error}") from error
        if not isinstance(kind, str) or kind not in TYPES:
            raise StoreError(f"{store.name}: {key} is of type {kind}, which is not read")
        if foreign := codecs - CODECS:
            raise StoreError(
                f"{store.name}: {key} is encoded by {', '.join(sorted(foreign))}, which is not read"
            )


def _codecs(listed: list[Any]) -> set[str]:
    """Names of codecs, those inside of shards too."""
    found = set()
    for codec in listed:
        found.add(str(codec["name"]))
        for nested in ("codecs", "index_codecs"):
            found |= _codecs(codec.get("configuration", {}).get(nested, []))
    return found
