"""Files of weights as others publish them: torch pickles, safetensors, folders of shards.

Nothing in these files is ever run: pickles are read as tensors and plain values only, and one that
asks for more is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from train.models.pointbert import only_tensors

WRAPPERS = ("model", "base_model", "state_dict")
"""Keys under which published files keep their tensors, beside optimizer states and settings."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
DAMAGED = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch.load raises over files that are cut short or something else, depending on where."""


def read_weights(path: Path, keep: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth or .bin file, or of a folder of shards, by their names in it.

    keep : which to read, by name; of a folder with an index only the shards that hold one of them.

    The tensors may still lie in the files: copy them before a file is written anew. Raises
    ValueError, one sentence, when a file is cut short, holds something else than tensors, or would
    run code.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(path, keep):
        tensors |= read_file(file, keep)
    return tensors


def weight_files(path: Path, keep: Callable[[str], bool] | None = None) -> list[Path]:
    """The files that `read_weights` opens."""
    if not path.is_dir():
        return [path]
    for index in (path / name for name in INDEXES):
        if index.is_file():
            shards = sorted({shard for name, shard in _weight_map(index) if not keep or keep(name)})
            if absent := [shard for shard in shards if not (path / shard).is_file()]:
                raise FileNotFoundError(f"{path}: no {', '.join(absent)}, which {index.name} names")
            return [path / shard for shard in shards]
    for whole in (path / name for name in WHOLE):
        if whole.is_file():
            return [whole]
    raise FileNotFoundError(f"no weights in {path}: looked for {', '.join((*WHOLE, *INDEXES))}")


def _weight_map(index: Path) -> Iterable[tuple[str, str]]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{index} is not an index of shards; copy it again")
    for name, shard in shards.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{index} is not an index of shards: {name!r} is in {shard!r}, and must be in a "
                "file beside the index; copy it again"
            )
    return shards.items()


def read_file(path: Path, keep: Callable[[str], bool] | None) -> dict[str, Tensor]:
    """As `read_weights`, of one file."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not keep or keep(name)]  # noqa: SIM118
                return {name: file.get_tensor(name) for name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} can't be read as safetensors ({error}); copy it again"
            ) from None
    content = _unpickle(path)
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not tensors by name")
    tensors = only_tensors(str(path), content)
    return {name: value for name, value in tensors.items() if not keep or keep(name)}


def _unpickle(path: Path) -> Any:
    """What torch.save wrote, as far as it can be read without running anything of it."""
    # A plain pickle instead of a zip archive comes from an old torch and can't be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGED as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted or "Unsupported operand" in str(error):
            asked = wanted[1] if wanted else "a newer pickle than torch.save writes"
            raise ValueError(
                f"{path} asks for {asked}, and a file of weights must not run code: it was not "
                "loaded; convert it to .safetensors where you trust it"
            ) from None
        raise ValueError(
            f"{path} can't be read: it is cut short or no file of torch.save; copy it again"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError where the file holds something else."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; copy it again")
    return content
