"""Phi-2 as MiniGPT-3D changes it: fused projection, normed queries and keys, one norm more."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi.modeling_phi import (
    PhiAttention,
    PhiDecoderLayer,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from train.config import ModelConfig
from train.models.pointbert import check_names, only_tensors

PUBLISHED_PREFIX = "llama_model.base_model.model."
LORA_TARGETS = ("query_key_value", "dense")
TRAINED_NORM = re.compile(
    r"(^|\.)(input_layernorm|post_layernorm|q_layernorm|k_layernorm|final_layernorm)\.weight$"
)
SPLIT_PROJECTION = re.compile(r"(.*\.self_attn\.)([qkv])_proj\.(weight|bias)$")
FUSED_PROJECTION = re.compile(r"\.query_key_value\.(weight|bias)$")
# Frozen at zero and so in no published file: Phi-2 has no such norm, a stage saves what it trained.
NEVER_PUBLISHED = re.compile(r"\.self_attn\.[qk]_layernorm\.bias$")
# What a Phi-2 without the changes of this file cannot have.
ADDED = re.compile(r"\.(lora_[AB]\.default|post_layernorm|q_layernorm|k_layernorm)\.")


class RMSNorm(nn.Module):
    """Scale (..., dim) to a root mean square of 1, in float32, then by a learned weight."""

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden : (..., dim). Returns the same shape."""
        # Not nn.RMSNorm: a float32 weight on a half-precision input leaves its fused path.
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class FusedAttention(PhiAttention):
    """Phi attention with one projection, laid out head by head: q0 k0 v0 q1 k1 v1 ..."""

    def __init__(self, config: PhiConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        del self.q_proj, self.k_proj, self.v_proj
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """hidden_states : (samples, tokens, dim); returns the same shape, and weights if eager."""
        samples, tokens, _ = hidden_states.shape
        fused = self.query_key_value(hidden_states)
        fused = fused.view(samples, tokens, -1, 3, self.head_dim)  # heads, then q k v
        query, key, value = fused.transpose(1, 2).unbind(3)  # each (samples, heads, tokens, dim)
        query, key = self.turn(self.q_layernorm(query), self.k_layernorm(key), position_embeddings)
        # Norms held in float32 beside half-precision projections widen what they touch.
        query, key = query.to(value.dtype), key.to(value.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # (samples, tokens, heads, dim)
        return self.dense(mixed.reshape(samples, tokens, -1)), weights

    def turn(self, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]):
        """Rotate the first `rotary_ndims` dimensions of each head, pass the others through."""
        turned = apply_rotary_pos_emb(
            query[..., : self.rotary_ndims], key[..., : self.rotary_ndims], *rotary
        )
        return tuple(
            torch.cat([part, whole[..., self.rotary_ndims :]], dim=-1)
            for part, whole in zip(turned, (query, key), strict=True)
        )


class PhiBlock(PhiDecoderLayer):
    """y = x + RMSNorm(attention(h)) + mlp(h) with h = LayerNorm(x): both branches in parallel."""

    def __init__(self, config: PhiConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.self_attn = FusedAttention(config, layer_idx)
        self.post_layernorm = RMSNorm(config.hidden_size)  # of the attention branch only

    def forward(  # type: ignore[override]  # the rest goes to the attention as it comes
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs
    ) -> Tensor:
        """hidden_states : (samples, tokens, dim), the residual stream; returns the same shape."""
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(normed, attention_mask=attention_mask, **kwargs)
        attended = self.resid_dropout(self.post_layernorm(attended))
        return hidden_states + attended + self.resid_dropout(self.mlp(normed))


class MiniGPTPhi(PhiForCausalLM):
    """transformers' Phi with `PhiBlock`; the rest (cache, generate, checkpointing) is stock."""

    def __init__(self, config: PhiConfig):
        depth = config.num_hidden_layers
        config.num_hidden_layers = 0  # stock blocks would be built only to be thrown away
        super().__init__(config)
        config.num_hidden_layers = depth
        self.loss_type = "ForCausalLM"  # transformers reads it off the class name, which is ours
        self.model.layers = nn.ModuleList(PhiBlock(config, index) for index in range(depth))
        self.post_init()
        # Sharding by block looks for the class by this name, and the stock one is not here.
        self._no_split_modules = self.model._no_split_modules = ["PhiBlock"]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any block recomputes; peft asks by this name, which transformers 5.23 retires."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())


def build_phi(config: ModelConfig, *, branch_scale: float = 1.0) -> MiniGPTPhi:
    """A freshly initialised model of these sizes, without LoRA.

    branch_scale : first value of each attention branch's RMSNorm weight, 1 as published. Trained
                   from scratch, 32 unit-size random branches drown the point tokens: take less.
    """
    if config.llm_width % config.llm_heads:
        raise ValueError(f"llm_width {config.llm_width} is not a multiple of {config.llm_heads}")
    llm = MiniGPTPhi(
        PhiConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.llm_width,
            intermediate_size=config.llm_ffn,
            num_hidden_layers=config.llm_depth,
            num_attention_heads=config.llm_heads,
            max_position_embeddings=config.llm_context,
            resid_pdrop=config.llm_dropout,
            hidden_act=config.llm_activation,
            qk_layernorm=True,
            # Left out, transformers would turn half of each head; Phi-2 turns 0.4 of it.
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": config.llm_rotary,
            },
            # Ids belong to the tokenizer; transformers' defaults (1 and 2) are no special tokens.
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        for block in llm.model.layers:
            block.post_layernorm.weight.fill_(branch_scale)
    return llm


def add_lora(
    llm: PreTrainedModel,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] = LORA_TARGETS,
) -> PeftModel:
    """Freeze `llm` and put stock peft LoRA on the fused projection and `dense` of every block.

    targets : the layers of another architecture that LoRA goes on.
    """
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers for an attribute that was renamed.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is dep", FutureWarning)
        return get_peft_model(llm, lora)


def bare(llm: nn.Module) -> MiniGPTPhi:
    """The model itself, without peft's wrapper where there is one; LoRA stays inside."""
    return cast(MiniGPTPhi, llm.get_base_model() if isinstance(llm, PeftModel) else llm)


def trainable_norms(llm: nn.Module) -> list[str]:
    """Names of the norm weights that train beside LoRA; their biases stay frozen, as published."""
    return [name for name, _ in llm.named_parameters() if TRAINED_NORM.search(name)]


def published_names(llm: nn.Module) -> dict[str, str]:
    """{published key: our key} for every tensor of `llm`, with LoRA or without."""
    names = {}
    for name in llm.state_dict():
        bare = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        names[PUBLISHED_PREFIX + bare] = name
    return names


def load_published(llm: nn.Module, state_dict: Mapping[str, object], *, expect: str = "all"):
    """Copy published tensors into `llm`, each under its published name.

    state_dict : keys with the prefix `llama_model.base_model.model.` or, as in a Phi-2 folder,
                 without; split q_proj, k_proj, v_proj are fused on the way.
    expect     : what must be there: "all" (q/k norm biases excepted, which no file holds), "base"
                 (a Phi-2 without the norms and LoRA added here), "trained" (LoRA and norm weights,
                 what a stage saves) or "present" (nothing).

    A q/k norm whose weight is there without its bias gets a bias of zero. Raises ValueError, before
    anything is copied, that names all keys missing, unexpected or mis-shaped.
    """
    llm.load_state_dict(published_weights(llm, state_dict, expect=expect), strict=False)


def published_weights(
    llm: nn.Module, state_dict: Mapping[str, object], *, expect: str = "all"
) -> dict[str, Tensor]:
    """What `load_published` would copy, by the names of `llm`; raises as it does."""
    names, own = published_names(llm), llm.state_dict()
    written = {_published(key): key for key in only_tensors("LLM", state_dict)}
    given = {key: cast(Tensor, state_dict[spelt]) for key, spelt in written.items()}
    needed = split_shapes({key: own[names[key]] for key in _expected(names, expect)}, given)
    known = split_shapes({key: own[ours] for key, ours in names.items()}, given)
    wanted = {key: value for key, value in known.items() if key in needed or key in given}
    check_names("LLM", wanted, given, written)
    fused = fuse_split(given, bare(llm).config.num_attention_heads)
    weights = {names[key]: value for key, value in fused.items()}
    for name in filter(NEVER_PUBLISHED.search, own):
        if name.replace(".bias", ".weight") in weights and name not in weights:
            weights[name] = torch.zeros_like(own[name])
    return weights


def split_shapes(shapes: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`shapes` with q_proj, k_proj, v_proj for each fused projection, if `given` has such."""
    if not any(SPLIT_PROJECTION.match(name) for name in given):
        return dict(shapes)
    apart: dict[str, Tensor] = {}
    for name, tensor in shapes.items():
        if FUSED_PROJECTION.search(name) and name not in given:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                apart[name.replace("query_key_value", f"{part}_proj")] = rows
        else:
            apart[name] = tensor
    return apart


def fuse_split(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Join q_proj, k_proj and v_proj of each block into the head-interleaved query_key_value."""
    fused: dict[str, Tensor] = {}
    for key, value in state.items():
        split = SPLIT_PROJECTION.match(key)
        if split is None:
            fused[key] = value
            continue
        names = [f"{split[1]}{part}_proj.{split[3]}" for part in "qkv"]
        if absent := [name for name in names if name not in state]:
            raise ValueError(f"LLM: {key} is there without {' and '.join(absent)}")
        if split[2] == "q":
            by_head = [state[name].unflatten(0, (heads, -1)) for name in names]
            joined = torch.stack(by_head, dim=1)  # (heads, 3, head_dim, ...)
            fused[f"{split[1]}query_key_value.{split[3]}"] = joined.flatten(0, 2)
    return fused


def _published(key: str) -> str:
    return key if key.startswith(PUBLISHED_PREFIX) else PUBLISHED_PREFIX + key


def _expected(names: Mapping[str, str], expect: str) -> set[str]:
    if expect == "all":
        return {key for key in names if not NEVER_PUBLISHED.search(key)}
    if expect == "base":
        return {key for key in names if not ADDED.search(key)}
    if expect == "trained":
        return {key for key in names if ".lora_" in key or TRAINED_NORM.search(key)}
    if expect == "present":
        return set()
    raise ValueError(f"expect={expect!r} must be 'all', 'base', 'trained' or 'present'")
