"""Checkpoints: strict, atomic, and without code in them (safetensors and JSON)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.amp import GradScaler

from train.config import ModelConfig, read_sizes
from train.models.llm import bare, read_tokenizer
from train.models.minigpt3d import MiniGPT3D, build
from train.models.pointbert import check_names

FIRST_QUERIES = "first_queries.safetensors"


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it in the place of `folder`, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{folder.name}.{part}") for part in ("new", "old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir()
    try:
        write(fresh)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_model(
    folder: Path,
    model: MiniGPT3D,
    tokenizer: Tokenizer,
    config: ModelConfig,
    card: dict[str, Any],
    *,
    half: bool = True,
    first_queries: Tensor | None = None,
) -> None:
    """Write a whole model: `model.safetensors`, tokenizer, sizes and its card.

    card          : what made it (command, commit, seed, data) and how good it is (metrics).
    half          : in half precision, as what ships; without, each tensor in the precision it has.
    first_queries : `query_tokens` before stage II, from which stage IV begins its experts.
    """
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in own_tensors(model).items()
    }

    def write(fresh: Path) -> None:
        write_tensors(fresh / "model.safetensors", tensors)
        if first_queries is not None:
            write_tensors(fresh / FIRST_QUERIES, {"query_tokens": first_queries.contiguous()})
        tokenizer.save(str(fresh / "tokenizer.json"))
        (fresh / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
        (fresh / "card.json").write_text(json.dumps(card, indent=2) + "\n")

    replace_folder(folder, write)


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32
) -> tuple[MiniGPT3D, Tokenizer, ModelConfig]:
    """Read what `save_model` wrote, in eval mode.

    dtype : of the LLM's own matrices and their biases; norms, LoRA and all before the LLM are
            float32 whatever the file holds.

    Raises FileNotFoundError when a part is missing and ValueError when the tensors are not those
    of the sizes in `config.json`.
    """
    config = sizes_of(folder)
    if missing := [
        name for name in ("model.safetensors", "tokenizer.json") if not (folder / name).is_file()
    ]:
        raise FileNotFoundError(
            f"checkpoint {folder}: no {', '.join(missing)}; give a folder written by "
            "python -m train.stage1"
        )
    # Without numbers: those of 2.8 billion parameters would take minutes and be thrown away.
    with torch.device("meta"):
        model = build(config)
    tensors = read_tensors(folder / "model.safetensors")
    check_names(f"checkpoint {folder} is of another architecture", own_tensors(model), tensors)
    give_numbers(
        model,
        {
            name: tensor.to(held_in(name, dtype)) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        },
    )
    return model.eval(), read_tokenizer(folder / "tokenizer.json"), config


def load_first_queries(folder: Path) -> Tensor | None:
    """`query_tokens` (1, queries, width) before stage II, if the checkpoint still has them."""
    path = folder / FIRST_QUERIES
    return read_tensors(path)["query_tokens"] if path.is_file() else None


def sizes_of(folder: Path) -> ModelConfig:
    """Sizes of the model in a checkpoint folder; nothing else of it is read."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {folder}: no config.json; give a folder written by python -m train.stage1"
        )
    return read_sizes(path)


def own_tensors(model: MiniGPT3D) -> dict[str, Tensor]:
    """State of a model, each tensor once: expert 0 is the Q-Former's `query_tokens`, and the head
    of some LLMs is their embedding."""
    twins = _twins(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in twins}


def _twins(model: MiniGPT3D) -> dict[str, str]:
    """Second name of a tensor -> its first."""
    first: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    return {
        name: first[id(tensor)]
        for name, tensor in named
        if first.setdefault(id(tensor), name) != name
    }


def give_numbers(model: MiniGPT3D, tensors: dict[str, Tensor]) -> None:
    """Make these tensors, all of `own_tensors` by name, those of a model on the meta device."""
    twins = {name: tensors[first] for name, first in _twins(model).items()}
    model.load_state_dict(tensors | twins, assign=True)
    if model.experts is not None:
        model.experts.share_queries(model.qformer.query_tokens)
    bare(model.llm).tie_weights()
    # The rotary table is in no state dict and still without numbers.
    body: Any = bare(model.llm).base_model
    body.rotary_emb = type(body.rotary_emb)(config=body.config)


def held_in(name: str, dtype: torch.dtype) -> torch.dtype:
    """Precision of a tensor: `dtype` for the LLM's own matrices and their biases, else float32."""
    base = name.startswith("llm.") and "lora_" not in name and "norm" not in name
    return dtype if base else torch.float32


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError when the disk won't take it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    try:
        save_file(tensors, fresh, metadata=metadata)
        fresh.replace(path)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise OSError(f"{path} can't be written: {error}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ValueError when it is cut short or not one."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as safetensors ({error}); copy it again") from None


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Load exactly the tensors of `module`; ValueError names each misfit."""
    wanted = module.state_dict()
    check_names(f"checkpoint {source} is of another architecture", wanted, tensors)
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in tensors.items()})


def train_only(module: nn.Module, wanted: Callable[[str], bool]) -> dict[str, int]:
    """Let exactly the parameters whose name passes `wanted` learn; returns their sizes by name."""
    trained = {}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(wanted(name))
        if parameter.requires_grad:
            trained[name] = parameter.numel()
    if not trained:
        raise ValueError(f"{type(module).__name__}: nothing would train")
    return trained


def save_trainer(
    folder: Path, module: nn.Module, optimizer: Any, step: int, scaler: GradScaler | None = None
) -> None:
    """Keep what training needs to go on after `step` steps, whole or not at all.

    scaler : of a training in half precision; its scale and its count of good steps are kept too.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    by_identity = {id(p): name for name, p in trained.items()}
    tensors = {f"model/{name}": trained[name].detach().contiguous() for name in trained}
    tensors |= {f"buffer/{name}": buffer.contiguous() for name, buffer in _running(module).items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{by_identity[id(parameter)]}"] = torch.as_tensor(value).contiguous()
    metadata = {"step": str(step)}
    if scaler:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    write_tensors(folder / "trainer.safetensors", tensors, metadata)


def _running(module: nn.Module) -> dict[str, Tensor]:
    """What training changes without a gradient: the running statistics of batch norms."""
    return {
        f"{name}.{kind}": buffer
        for name, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.training
        for kind, buffer in norm.named_buffers()
    }


def load_trainer(
    folder: Path, module: nn.Module, optimizer: Any, scaler: GradScaler | None = None
) -> int:
    """Put back what `save_trainer` kept; returns the steps done, 0 where there is nothing."""
    path = folder / "trainer.safetensors"
    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = read_tensors(path)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    kept = {key.removeprefix("model/") for key in tensors if key.startswith("model/")}
    if kept != trained.keys():
        raise ValueError(
            f"{path} holds another selection of weights ({len(kept ^ trained.keys())} tensors "
            "differ); choose another --out"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(tensors[f"model/{name}"])
            if f"step/{name}" not in tensors:
                continue  # a scaler has skipped every step so far: AdamW has no state yet
            optimizer.state[parameter] = {
                "step": tensors[f"step/{name}"],  # AdamW counts on the CPU
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
    for key in (key for key in tensors if key.startswith("buffer/")):
        module.get_buffer(key.removeprefix("buffer/")).copy_(tensors[key])
    if scaler and "scaler" in metadata:
        scaler.load_state_dict(json.loads(metadata["scaler"]))
    return int(metadata["step"])
