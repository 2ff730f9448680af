"""Point-LLM on disk: the folder that python -m train.pointllm writes, and the published files.

Ours holds `llm/` (a stock Llama with its tokenizer), `point_bind/` (the encoder of the joint space,
as python -m train.pointbind writes it), `point_llm.safetensors` (bind network, queries, gates,
LoRA, norms and biases) with `point_llm.json`, and `keys.safetensors` for the visual cache.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from train.checkpoint import read_tensors, sha256, write_tensors
from train.models.bindllm import (
    PointLLM,
    VisualCache,
    finetuned,
    mix,
    pretrained,
    published_llm,
    tuned_llm,
)
from train.models.llm import TOKENIZER, llm_from_folder, read_tokenizer
from train.models.pointbert import check_names
from train.models.pointbind import PointBind, split_published

ADAPTER, SIZES, KEYS = "point_llm.safetensors", "point_llm.json", "keys.safetensors"
LLAMA, ENCODER = "llm", "point_bind"
PUBLISHED = {
    "base": ("7B/consolidated.00.pth", "consolidated.00.pth"),
    "params": ("7B/params.json", "params.json"),
    "adapter": ("7B-beta.pth", "7B.pth"),
    "encoder": ("imagebind_w3D.pth", "pointbind_pointbert.pt", "pointbind_i2pmae.pt"),
    "tokenizer": (f"7B/{TOKENIZER}", TOKENIZER),
}
"""Part -> names its file may have in a folder of published weights, first found."""
INDEX = "knn.index"
NEIGHBOURS = 10
"""That the visual cache mixes in, as published; all keys where there are fewer."""


@dataclass(frozen=True)
class Loaded:
    """A Point-LLM and the encoder it is fed by, on the CPU in eval mode."""

    model: PointLLM
    tokenizer: Tokenizer
    encoder: PointBind
    cache: VisualCache | None
    """Where there are keys to look in."""
    hashes: dict[str, str]
    """Digest of each file that was read."""
    colour: bool = False
    """Whether the encoder was trained on coloured clouds."""


def save(folder: Path, model: PointLLM, encoder: Path, keys: Tensor, sizes: dict[str, Any]) -> None:
    """Write what `load` reads, beside `llm/`, which is there.

    encoder : folder of the Point-Bind that the model is fed by; it is copied
    keys    : (keys, space), for the visual cache
    sizes   : `space` and `norm` of the model
    """
    own = {name: p.detach().contiguous() for name, p in model.named_parameters() if _own(name)}
    write_tensors(folder / ADAPTER, own)
    write_tensors(folder / KEYS, {"keys": keys.contiguous()})
    (folder / ENCODER).mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(encoder / name, folder / ENCODER / name)
    (folder / SIZES).write_text(json.dumps(sizes, indent=2) + "\n")


def load(folder: Path) -> Loaded:
    """Read a folder of ours or of published files.

    Raises FileNotFoundError for a part that is not there, ValueError for one that does not fit.
    """
    depth(folder)  # says what is not there
    return _ours(folder) if (folder / SIZES).is_file() else _published(folder)


def depth(folder: Path) -> int:
    """Blocks of the Llama in a folder, before anything heavy is read."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    if (folder / SIZES).is_file():
        return json.loads((folder / LLAMA / "config.json").read_text())["num_hidden_layers"]
    return json.loads(_published_files(folder)["params"].read_text())["n_layers"]


def _ours(folder: Path) -> Loaded:
    from train.retrieve import read_model, read_sizes

    sizes = json.loads((folder / SIZES).read_text())
    base, tokenizer = llm_from_folder(folder / LLAMA)
    assert isinstance(base, LlamaForCausalLM)
    model = PointLLM(tuned_llm(base), space=sizes["space"], norm=sizes["norm"])
    wanted = {name: p for name, p in model.named_parameters() if _own(name)}
    tensors = read_tensors(folder / ADAPTER)
    check_names(f"{folder / ADAPTER}", wanted, tensors)
    model.load_state_dict(tensors, strict=False)
    about = read_sizes(folder / ENCODER)
    encoder = read_model(folder / ENCODER, about)
    files = [folder / ADAPTER, folder / ENCODER / "model.safetensors"]
    files += sorted((folder / LLAMA).glob("*.safetensors"))
    cache = VisualCache(read_tensors(folder / KEYS)["keys"])
    found = _hashes(folder, files)
    return Loaded(model.eval(), tokenizer, encoder, cache, found, bool(about.get("colour")))


def _published(folder: Path) -> Loaded:
    """The release's files, Llama in Meta's format; nothing in them is run."""
    from train.pointbind import published_model
    from train.weight_files import read_weights

    paths = _published_files(folder)
    base = {f"llama.{name}": value for name, value in read_weights(paths["base"]).items()}
    base = {name: value for name, value in base.items() if "rope.freqs" not in name}
    adapter = read_weights(paths["adapter"])
    config = meta_config(json.loads(paths["params"].read_text()), base)
    norm: Any = "layer" if "image_bind_norm_1.bias" in adapter else "rms"
    space = adapter["image_bind_proj.weight"].shape[1]
    model = PointLLM(published_llm(config), space=space, norm=norm)
    model.load_published(base | adapter)
    weights = read_weights(paths["encoder"])
    point, _ = split_published(weights)
    hierarchical = any(".h_encoder." in name for name in point)
    encoder = published_model("i2pmae" if hierarchical else "pointbert")
    encoder.load_published(point)
    index = folder / INDEX
    cache = VisualCache.read(index) if index.is_file() else None
    tokenizer = read_tokenizer(paths["tokenizer"])
    files = [path for part, path in paths.items() if part not in ("params", "tokenizer")]
    return Loaded(model.eval(), tokenizer, encoder.eval(), cache, _hashes(folder, files))


def _published_files(folder: Path) -> dict[str, Path]:
    paths = {}
    for part, names in PUBLISHED.items():
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"{folder} holds neither {SIZES}, which python -m train.pointllm writes, nor "
                f"Point-LLM's published {' or '.join(names)}"
            )
        paths[part] = found[0]
    return paths


def meta_config(params: dict[str, Any], base: dict[str, Tensor]) -> LlamaConfig:
    """Settings of transformers for a Llama in Meta's files.

    params : its params.json    base : its tensors, which tell vocabulary and feed-forward width
    """
    heads = params["n_heads"]
    return LlamaConfig(
        vocab_size=len(base["llama.tok_embeddings.weight"]),
        hidden_size=params["dim"],
        intermediate_size=len(base["llama.layers.0.feed_forward.w1.weight"]),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        rms_norm_eps=params["norm_eps"],
        max_position_embeddings=1024,  # the release's rotary table
        bos_token_id=None,
        eos_token_id=None,
    )


def _own(name: str) -> bool:
    return pretrained(name) or finetuned(name)


def _hashes(folder: Path, files: list[Path]) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in files}


@torch.no_grad()
def vectors_of(loaded: Loaded, clouds: Tensor, cache: bool) -> tuple[Tensor, Tensor]:
    """Joint embeddings of clouds (samples, points, 6), and what the LLM is shown: (samples, space).

    cache : draw them towards their neighbours among the keys; ValueError where there are none
    """
    vectors = loaded.encoder(clouds)
    shown = mix([vectors])
    return vectors, drawn(loaded, shown) if cache else shown


def drawn(loaded: Loaded, shown: Tensor) -> Tensor:
    """Vectors (samples, space) through the visual cache; ValueError where there are no keys."""
    if loaded.cache is None:
        raise ValueError(f"the visual cache needs keys: there is no {INDEX} among the files")
    return loaded.cache(shown, k=min(NEIGHBOURS, len(loaded.cache)))
