"""The language model behind the point tokens: MiniGPT-3D's Phi-2, or a stock class."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from train.config import ModelConfig
from train.models import phi
from train.prompts import bos_id
from train.weight_files import read_json

BACKBONES = ("phi", "phi3", "llama", "mistral", "qwen2", "qwen3")
"""Stock architectures that can be trained, by transformers' names: rotary decoders without a step
between their head and the scores."""
NOT_SETTINGS = ("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
NORM_WEIGHT = re.compile(r"(^|[._])(layer)?norm\.weight$")
TOKENIZER = "tokenizer.json"
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def build_llm(config: ModelConfig, *, branch_scale: float = 1.0) -> PreTrainedModel:
    """A freshly initialised language model of these sizes, without LoRA.

    branch_scale : as in `phi.build_phi`. The stock classes have no norm on a branch and begin
                   quiet as they are: it does nothing there, nor does `llm_rotary`, for Phi-3 mini
                   and Llama turn the whole of each head. Llama has no dropout on its branches.
    """
    if config.llm_type == "phi-2":
        return phi.build_phi(config, branch_scale=branch_scale)
    if config.llm_width % config.llm_heads:
        raise ValueError(f"llm_width {config.llm_width} is not a multiple of {config.llm_heads}")
    kind = config.llm_type.replace("-", "")
    if kind not in BACKBONES:
        raise ValueError(f"llm_type {config.llm_type!r}: none of {', '.join(BACKBONES)}")
    if config.llm_settings:
        return _stock(kind, config.llm_settings)
    sizes: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.llm_width,
        "intermediate_size": config.llm_ffn,
        "num_hidden_layers": config.llm_depth,
        "num_attention_heads": config.llm_heads,
        "max_position_embeddings": config.llm_context,
        # Ids belong to the tokenizer; the defaults of transformers are those of another one.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if kind == "phi3":
        sizes |= {
            "resid_pdrop": config.llm_dropout,
            "original_max_position_embeddings": config.llm_context,
        }
    return _stock(kind, sizes)


def _stock(kind: str, given: dict[str, Any]) -> PreTrainedModel:
    """A random model of an architecture, by transformers' name of it."""
    others = {name: value for name, value in given.items() if name != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **others))


def add_lora(llm: PreTrainedModel, config: ModelConfig) -> PeftModel:
    """Freeze `llm` and put stock peft LoRA on the attention projections of every block."""
    attention: nn.Module = cast(Any, llm.base_model).layers[0].self_attn
    return phi.add_lora(
        llm,
        config.llm_lora_rank,
        config.llm_lora_alpha,
        config.llm_lora_dropout,
        [name for name, part in attention.named_children() if isinstance(part, nn.Linear)],
    )


def bare(llm: nn.Module) -> PreTrainedModel:
    """The model itself, without peft's wrapper where there is one; LoRA stays inside.

    `.base_model` is its body, up to the final norm; `.get_input_embeddings()` and
    `.get_output_embeddings()` are its two ends, whatever the architecture calls them.
    """
    return cast(PreTrainedModel, llm.get_base_model() if isinstance(llm, PeftModel) else llm)


def trainable_norms(llm: nn.Module) -> list[str]:
    """Names of the norm weights that train beside LoRA; biases stay frozen, as published."""
    return [name for name, _ in llm.named_parameters() if NORM_WEIGHT.search(name)]


def set_attention(llm: nn.Module, kind: str) -> None:
    """Compute attention by `sdpa`, torch's fused one, or `eager`, the plain one of the release.

    Raises ValueError for a model that has no such attention.
    """
    try:
        bare(llm).set_attn_implementation(kind)
    except ValueError as error:
        name, other = type(bare(llm)).__name__, "eager" if kind == "sdpa" else "sdpa"
        raise ValueError(f"{name} has no {kind} attention: try --attention {other}") from error


def checkpoint_blocks(llm: nn.Module) -> None:
    """Keep only what enters each block and recompute the block in the backward pass.

    Non-reentrant: gradients reach LoRA although nothing that enters the first block has one.
    """
    model: Any = bare(llm)
    # transformers 5.23 renames it and warns of the old name; 5.17 has the old name only.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def hold_in(llm: nn.Module, dtype: torch.dtype) -> None:
    """Hold matrices and their biases in `dtype`; norms and LoRA, which train, in float32."""
    for name, parameter in llm.named_parameters():
        kept = "lora_" in name or "norm" in name
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)


def sizes_of(path: Path, config: ModelConfig) -> ModelConfig:
    """`config` with the sizes of the language model in a folder, as `llm_from_folder` takes it.

    Nothing but its config.json is read. Raises as `llm_from_folder` does.
    """
    found = settings(Path(path), BACKBONES)
    return replace(
        config,
        llm_type="phi-3" if found.model_type == "phi3" else found.model_type,
        llm_width=found.hidden_size,
        llm_depth=found.num_hidden_layers,
        llm_heads=found.num_attention_heads,
        llm_ffn=found.intermediate_size,
        llm_context=found.max_position_embeddings,
        vocabulary=found.vocab_size,
        llm_settings={
            name: value for name, value in found.to_diff_dict().items() if name not in NOT_SETTINGS
        },
    )


def llm_from_folder(
    path: Path,
    dtype: torch.dtype = torch.float32,
    kinds: tuple[str, ...] | None = BACKBONES,
) -> tuple[PreTrainedModel, Tokenizer]:
    """A pretrained causal language model with its tokenizer, from a folder.

    path  : as save_pretrained writes it: config.json, safetensors, tokenizer.json.
    dtype : of all but the norms, which are float32: they train.
    kinds : architectures that are taken, by transformers' names; None for every causal one.

    Nothing is fetched and no code of the folder runs. Raises FileNotFoundError when a part is not
    there, ValueError for weights in any form but safetensors, for another architecture, for a file
    that is damaged, for tensors missing, unknown or of another shape and for a tokenizer that
    doesn't fit the model or can't begin a prompt.
    """
    path = Path(path)
    config = settings(path, kinds)
    tokenizer = read_tokenizer(path / TOKENIZER)
    try:
        bos_id(tokenizer)
    except ValueError as error:
        raise ValueError(f"{path / TOKENIZER}: {error}") from None
    if (tokens := tokenizer.get_vocab_size()) > config.vocab_size:
        raise ValueError(f"{path}: {tokens} tokens, but embeddings of only {config.vocab_size}")
    logging.disable_progress_bar()  # ours is the one that tells the time left
    llm, report = _by_transformers(
        AutoModelForCausalLM.from_pretrained,
        path,
        "the model",
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        **LOCAL,
    )
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ValueError(
            f"{path}: {len(wrong)} tensors are missing or unknown, {min(wrong)} among them; "
            "the folder is not whole or of another model"
        )
    if other := sorted(report["mismatched_keys"]):
        name, given, wanted = other[0]
        raise ValueError(
            f"{path}: {len(other)} tensors are of another shape than config.json says, {name} "
            f"{tuple(given)} instead of {tuple(wanted)} among them; the folder is of two models"
        )
    hold_in(llm, dtype)
    return llm, tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, by the tokenizers library.

    Raises FileNotFoundError when the file is not there, ValueError when it holds no tokenizer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer {path}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{path} is not a tokenizer ({error}); copy it again") from None


def settings(path: Path, kinds: tuple[str, ...] | None) -> PreTrainedConfig:
    """What config.json says of the model in a folder; raises as `llm_from_folder`."""
    _check_files(path)
    kind = read_json(path / "config.json").get("model_type")
    what = f"{path} holds a model of type {kind!r}"
    if kinds is not None and kind not in kinds:
        raise ValueError(f"{what}, wanted one of {', '.join(kinds)}")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ValueError(
            f"{what}, which would need code of its own: only classes of transformers are run"
        )
    config = _by_transformers(AutoConfig.from_pretrained, path, "config.json", **LOCAL)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ValueError(f"{what}, which is no causal language model")
    return config


def _by_transformers(read: Callable[..., Any], path: Path, what: str, **options: Any) -> Any:
    """What transformers reads in a folder; what it can't, as one sentence instead of a report."""
    told = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return read(path, **options)
    except MemoryError:
        raise
    except Exception as error:  # of the library's own kinds, of safetensors' and of torch's
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: {what} can't be read ({reason}); copy the folder again"
        ) from None
    finally:
        logging.set_verbosity(told)


def _check_files(path: Path) -> None:
    if missing := [name for name in ("config.json", TOKENIZER) if not (path / name).is_file()]:
        raise FileNotFoundError(
            f"no {' and no '.join(missing)} in {path}: give a folder with a causal language model "
            "as save_pretrained of transformers writes it, and its tokenizer"
        )
    if not any(path.glob("*.safetensors")):
        other = sorted(each.name for each in path.iterdir() if each.suffix in (".bin", ".pth"))
        raise ValueError(
            f"{path} holds no weights as safetensors"
            + (f", only {', '.join(other)}, which could run code when read" if other else "")
            + "; save the model again as safetensors"
        )
