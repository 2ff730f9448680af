"""Point-LLM: a Llama that reads one vector of the joint space through gates in its attention.

Guo et al. 2023 (arXiv 2309.00615, section 4), which is ImageBind-LLM (Han et al. 2023) with
Point-Bind's vector in the place of the image's. No token of the sequence stands for the cloud: in
every layer the same projected vector is added to what attention returns, at all positions alike,
behind a gate that begins at zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from train.models.pointbert import check_names

BRANCHES = 3
EPSILON = 1e-6
LINEARS = {
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
"""The matrices of a block: their names in Meta's files, and in transformers."""
BIASED = ("wq", "wo", "w1", "w2", "w3")
LORA_RANK = 16


class BindNetwork(nn.Module):
    """One vector of the joint space as one vector of the LLM, through three gated branches.

    norm : `layer` with biases in the branches, as in `7B-beta.pth`; `rms` without any, as in
           `7B.pth`. A file of the one kind must not be loaded into the other.
    """

    def __init__(
        self, width: int, space: int = 1024, norm: Literal["layer", "rms"] = "layer", ratio: int = 4
    ):
        super().__init__()
        biases = norm == "layer"
        self.image_bind_proj = nn.Linear(space, width)
        for branch in range(1, BRANCHES + 1):
            normed = nn.LayerNorm(width) if biases else nn.RMSNorm(width, eps=1e-6)
            self.add_module(f"image_bind_norm_{branch}", normed)
            self.add_module(f"image_bind_f1_{branch}", nn.Linear(width, ratio * width, biases))
            self.add_module(f"image_bind_f2_{branch}", nn.Linear(ratio * width, width, biases))
            self.add_module(f"image_bind_f3_{branch}", nn.Linear(width, ratio * width, biases))

    def forward(self, vectors: Tensor) -> Tensor:
        """vectors : (samples, space), from `mix` or `VisualCache`. Returns (samples, width)."""
        hidden = self.image_bind_proj(vectors)
        for branch in range(1, BRANCHES + 1):
            normed = self._part("norm", branch)(hidden)
            gated = F.silu(self._part("f1", branch)(normed)) * self._part("f3", branch)(normed)
            hidden = hidden + self._part("f2", branch)(gated)
        return hidden

    def _part(self, kind: str, branch: int) -> nn.Module:
        return self.get_submodule(f"image_bind_{kind}_{branch}")

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the tensors `image_bind_*`; ValueError names every other one, and the wrong kind."""
        ours = isinstance(self._part("norm", 1), nn.LayerNorm)
        theirs = "image_bind_norm_1.bias" in state_dict
        if ours != theirs:
            kinds = {True: "LayerNorm and biases (norm='layer')", False: "RMSNorm (norm='rms')"}
            raise ValueError(f"the file's bind network has {kinds[theirs]}, this one {kinds[ours]}")
        check_names("bind network", self.state_dict(), state_dict)
        self.load_state_dict(dict(state_dict))


def mix(embeddings: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """One vector for one or several modalities of a sample, (samples, space).

    embeddings : (samples, space) each, as the towers give them: of any length

    Unit vectors, weighed by their share. As published: a share is of the sum and 1e-6 more, and
    the mixture is not brought to unit length again.
    """
    weights = [1.0] * len(embeddings) if weights is None else list(weights)
    if not embeddings or len(weights) != len(embeddings):
        raise ValueError(f"{len(weights)} weights for {len(embeddings)} embeddings")
    total = sum(weights) + EPSILON
    parts = [
        weight / total * F.normalize(each, dim=-1)
        for each, weight in zip(embeddings, weights, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


class VisualCache:
    """Draws a vector towards its neighbours among known ones; no training (section 4.3).

    keys : (keys, space), embeddings of the other modality; searched by inner product (FAISS)
    """

    def __init__(self, keys: Tensor):
        import faiss

        if keys.ndim != 2 or not len(keys):
            raise ValueError(f"keys of shape {tuple(keys.shape)}: must be (keys, space), not empty")
        self.index: Any = faiss.IndexFlatIP(keys.shape[1])
        self.index.add(keys.detach().cpu().float().numpy())

    @classmethod
    def read(cls, path: Path) -> VisualCache:
        """The cache of an index that FAISS wrote, such as the published `knn.index`.

        Raises ValueError for a file that is none, or whose search returns distances: what is
        nearest must have the largest value.
        """
        import faiss

        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is no index of FAISS: {str(error).splitlines()[0]}") from None
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path} searches by distance, the cache needs the inner product")
        cache = cls.__new__(cls)
        cache.index = index
        return cache

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def space(self) -> int:
        """Dimensions of a key."""
        return self.index.d

    def __call__(
        self, vectors: Tensor, *, k: int = 10, temperature: float = 20.0, weight: float = 0.5
    ) -> Tensor:
        """(samples, space), unit vectors: each mixed with its k nearest keys.

        temperature : factor on the similarities before their softmax
        weight      : share of the neighbours; 0 leaves the direction as it is

        Each sample is mixed with its own neighbours. The release multiplies across the batch, so
        that it is right for one sample alone.
        """
        if not 1 <= k <= len(self) or not 0 <= weight <= 1:
            raise ValueError(f"k={k}, weight={weight}: k must be 1 to {len(self)}, weight 0 to 1")
        if vectors.shape[-1] != self.space:
            raise ValueError(
                f"vectors of {vectors.shape[-1]} numbers, the cache holds {self.space}"
            )
        asked = vectors.detach().cpu().float().numpy()
        found, _, keys = self.index.search_and_reconstruct(asked, k)
        shares = torch.from_numpy(found).mul(temperature).softmax(dim=1)
        near = (shares[..., None] * torch.from_numpy(keys)).sum(dim=1).to(vectors)
        return F.normalize((1 - weight) * vectors + weight * F.normalize(near, dim=-1), dim=-1)


class PointLLM(nn.Module):
    """A Llama, bare or with peft's LoRA, and the way of a joint-space vector into its layers.

    llm    : `LlamaForCausalLM`, or a `PeftModel` of one
    layers : how many of the last layers the vector enters; all as published
    """

    def __init__(
        self,
        llm: nn.Module,
        *,
        space: int = 1024,
        norm: Literal["layer", "rms"] = "layer",
        layers: int | None = None,
    ):
        super().__init__()
        self.llm = llm
        config = self.config
        depth = config.num_hidden_layers
        self.layers = depth if layers is None else layers
        if not 1 <= self.layers <= depth:
            raise ValueError(f"{self.layers} layers to enter: this model has {depth}")
        self.bind = BindNetwork(config.hidden_size, space, norm)
        self.prefix_query = nn.Embedding(self.layers, config.hidden_size)
        self.gates = nn.ParameterList(
            torch.zeros(config.num_attention_heads) for _ in range(self.layers)
        )
        self._shown: Tensor | None = None
        for place, block in enumerate(self._blocks()[depth - self.layers :]):
            block.self_attn.o_proj.register_forward_pre_hook(self._inject(place, block.self_attn))

    @property
    def config(self) -> LlamaConfig:
        """Of the LLM; it is also by this that `train.capture` knows a language model."""
        return cast(LlamaConfig, self.body.config)

    @property
    def body(self) -> LlamaForCausalLM:
        """The LLM without peft's wrapper."""
        llm = self.llm.get_base_model() if isinstance(self.llm, PeftModel) else self.llm
        return cast(LlamaForCausalLM, llm)

    def _blocks(self) -> Any:
        return self.body.model.layers

    def forward(self, *args: Any, vectors: Tensor | None = None, **kwargs: Any) -> Any:
        """The LLM's forward pass, for samples that are shown `vectors` (samples, space).

        Without vectors, those of `shown` if it is open, else the plain LLM.
        """
        if vectors is None:
            return self.llm(*args, **kwargs)
        with self.shown(vectors):
            return self.llm(*args, **kwargs)

    @contextmanager
    def shown(self, vectors: Tensor) -> Iterator[None]:
        """Every pass inside the `with`, each step of `llm.generate` too, is shown `vectors`."""
        before = self._shown
        self._shown = self.bind(vectors)
        try:
            yield
        finally:
            self._shown = before

    def term(self, vectors: Tensor, layer: int) -> Tensor:
        """What enters the output projection of attention in layer `layer`, counted from 1.

        vectors : (samples, space). Returns (samples, heads * head size), the same at every
        position; zeros where the layer is not entered.
        """
        place = layer - 1 - (self.config.num_hidden_layers - self.layers)
        attention = self._blocks()[layer - 1].self_attn
        hidden = self.bind(vectors)
        if place < 0:
            return hidden.new_zeros(len(hidden), attention.o_proj.in_features)
        return self._term(place, attention, hidden)

    def _term(self, place: int, attention: Any, hidden: Tensor) -> Tensor:
        """tanh(gate) * V(vector + the layer's own), by the value matrix without LoRA or norm."""
        value = getattr(attention.v_proj, "base_layer", attention.v_proj)
        entering = hidden + self.prefix_query.weight[place]
        heads = F.linear(entering, value.weight).unflatten(-1, (-1, attention.head_dim))
        groups = len(self.gates[place]) // heads.shape[1]
        heads = heads.repeat_interleave(groups, dim=1)  # several queries may share a value
        return (self.gates[place].tanh()[:, None] * heads).flatten(1)

    def _inject(self, place: int, attention: Any):
        def hook(_module, args):
            if self._shown is None:
                return None
            added = self._term(place, attention, self._shown)
            if len(added) not in (1, len(args[0])):
                raise ValueError(f"{len(added)} vectors shown for {len(args[0])} samples")
            return (args[0] + added[:, None].to(args[0].dtype), *args[1:])

        return hook

    def load_published(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load an adapter of Point-LLM with the Llama it was made on, in Meta's names.

        state_dict : `image_bind_*`, `prefix_query.weight` and `llama.*`; the adapter's own norms
                     win, so give it as `base | adapter`. This model must have been built by
                     `published_llm`, with LoRA where the file has it.

        Raises ValueError that names what is missing, not known or of another shape.
        """
        bind = {name: value for name, value in state_dict.items() if name.startswith("image_bind_")}
        wanted = self._published_names()
        given = {name: value for name, value in state_dict.items() if name not in bind}
        shapes = {name: torch.empty(place.shape, device="meta") for name, place in wanted.items()}
        check_names("Point-LLM", shapes, given)
        self.bind.load_published(bind)
        turned = {"wq": self.config.num_attention_heads, "wk": self.config.num_key_value_heads}
        with torch.no_grad():
            for name, place in wanted.items():
                value = given[name]
                for matrix, heads in turned.items():
                    if _of(name, matrix):
                        value = half_split(value, heads or self.config.num_attention_heads)
                place.tensor.copy_(value.reshape(place.tensor.shape))

    def _published_names(self) -> dict[str, Place]:
        """Published name -> the tensor of ours it belongs in, and the shape it has there."""
        body = self.body
        heads = self.config.num_attention_heads
        names = {
            "prefix_query.weight": Place(self.prefix_query.weight),
            "llama.tok_embeddings.weight": Place(body.model.embed_tokens.weight),
            "llama.norm.weight": Place(body.model.norm.weight),
            "llama.output.weight": Place(body.lm_head.weight),
        }
        first = len(self._blocks()) - self.layers
        for layer, block in enumerate(self._blocks()):
            prefix = f"llama.layers.{layer}"
            names[f"{prefix}.attention_norm.weight"] = Place(block.input_layernorm.weight)
            names[f"{prefix}.ffn_norm.weight"] = Place(block.post_attention_layernorm.weight)
            if layer >= first:
                gate = self.gates[layer - first]
                names[f"{prefix}.attention.gate"] = Place(gate, (1, heads, 1, 1))
            for meta, path in LINEARS.items():
                linear = block.get_submodule(path)
                part = f"{prefix}.{'attention' if path.startswith('self') else 'feed_forward'}"
                base = getattr(linear, "base_layer", linear)
                names[f"{part}.{meta}.weight"] = Place(base.weight)
                if base is linear:
                    continue
                if meta in BIASED:
                    names[f"{part}.{meta}.bias"] = Place(base.bias)
                for place, end in (("lora_A", "l1"), ("lora_B", "l2")):
                    lora = getattr(linear, place)["default"].weight
                    names[f"{part}.lora_{meta}_{end}.weight"] = Place(lora)
        return names


class Place(NamedTuple):
    """A tensor of ours, and its shape in a published file where that is another."""

    tensor: Tensor
    published: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.published or tuple(self.tensor.shape)


def _of(name: str, matrix: str) -> bool:
    """Whether the rows of a published tensor are those of this matrix, head by head."""
    return f".{matrix}." in name or f".lora_{matrix}_l2." in name


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key matrix from Meta's order of rotary pairs to that of transformers.

    Meta turns neighbouring pairs of a head's numbers, transformers the head's two halves.
    """
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def published_llm(config: LlamaConfig, *, tuned: bool = True) -> LlamaForCausalLM | PeftModel:
    """A Llama with the room that Point-LLM's tuning needs: biases, and peft's LoRA of scale 1.

    tuned : False for the first phase of the training, which has neither

    Biases begin at zero. Keys and values have none in a published file: theirs stay zero.
    """
    config = LlamaConfig(**config.to_dict() | {"attention_bias": tuned, "mlp_bias": tuned})
    llm = LlamaForCausalLM(config)
    if not tuned:
        return llm
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    lora = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_RANK,
        lora_dropout=0.0,
        target_modules=[path.split(".")[1] for path in LINEARS.values()],
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks by a name that transformers 5.23 retires
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
        return cast(PeftModel, get_peft_model(llm, lora))


def tuned_llm(base: LlamaForCausalLM) -> PeftModel:
    """A stock Llama with the room for the tuning, as `published_llm` makes it; it still says what
    it said before, for the biases and LoRA's second matrices are zero."""
    tuned = cast(PeftModel, published_llm(base.config))
    own = tuned.get_base_model().state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in base.state_dict().items():
            # peft keeps the matrix that it stands beside under another name
            place = own.get(name)
            if place is None:
                place = own[f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"]
            place.copy_(value)
    return tuned


def pretrained(name: str) -> bool:
    """Whether a parameter trains in phase 1: the bind network, the layers' queries, the gates."""
    return name.startswith(("bind.", "prefix_query.", "gates."))


def finetuned(name: str) -> bool:
    """Whether it trains in phase 2: norms, LoRA, and the biases that the release has.

    Gates and bind network are frozen here in the published code, though its paper says that they
    are what is tuned.
    """
    if not name.startswith("llm."):
        return False
    biased = any(f".{LINEARS[each]}." in name for each in BIASED)
    return "lora_" in name or "norm" in name or (name.endswith(".bias") and biased)
