"""MiniGPT-3D: a point cloud becomes 32 tokens of a small language model that talks about it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from train.config import ModelConfig, Stage2Config
from train.models import phi
from train.models.experts import MixtureOfQueryExperts
from train.models.llm import add_lora, bare, build_llm, checkpoint_blocks, set_attention
from train.models.pointbert import PointBERT
from train.models.projector import ModalityProjector, PointMLP
from train.models.qformer import QFormer
from train.prompts import UNLABELLED, Batch

OWNERS = {
    "point_encoder": ("pc_encoder.", "point_encoder."),
    "mlp": ("point_2_Qformer_proj.",),
    "qformer": ("query_tokens", "Qformer."),
    "projector": ("llama_proj.", "llama_proj2."),
    "llm": ("llama_model.",),
    "experts": ("query_expert_dict.", "query_router."),
}
"""Which part a published tensor belongs to, by how its name begins."""


class MiniGPT3D(nn.Module):
    """The five parts in a row; what trains is the recipe's choice.

    point_encoder : (samples, points, 6) -> (samples, tokens, encoder width)
    mlp           : -> (samples, tokens, Q-Former input)
    qformer       : -> (samples, queries, Q-Former width), the target
    projector     : -> (samples, queries, LLM width), layer 0 at the point tokens
    llm           : any causal language model of transformers, bare or wrapped by peft
    experts       : query experts of stage IV, where there are some; expert 0 is `query_tokens`
    """

    def __init__(
        self,
        *,
        point_encoder: PointBERT,
        mlp: PointMLP,
        qformer: QFormer,
        projector: ModalityProjector,
        llm: nn.Module,
        experts: MixtureOfQueryExperts | None = None,
    ):
        super().__init__()
        self.point_encoder = point_encoder
        self.mlp = mlp
        self.qformer = qformer
        self.projector = projector
        self.llm = llm
        self.experts = experts
        if experts is not None:
            experts.share_queries(qformer.query_tokens)
        self.train()  # modules are born in training mode, the front's dropout would be on

    def train(self, mode: bool = True) -> MiniGPT3D:
        """Set the mode of projector, MLP and LLM; encoder and Q-Former always evaluate.

        The encoder's BatchNorm must keep its statistics. The published code also evaluates the
        Q-Former, except for its LoRA dropout, which by accident it leaves on for ever: the frozen
        target would then differ from call to call. Here it is off, in training too, unless
        `faithful` asks for it.
        """
        super().train(mode)
        self.point_encoder.eval()
        self.qformer.eval()
        return self

    def faithful(self, *, fps_start: str, qformer_dropout: bool, neighbour_precision: str) -> None:
        """Let the frozen front do what the released code does and we would not, or stop it.

        fps_start           : "first", or "random": patches begin at another point each time.
        qformer_dropout     : LoRA dropout in the Q-Former, in training and evaluation alike.
        neighbour_precision : "float32", or "float16": distances that decide who is in a patch.

        Both draws come from torch's global generator. The release does all three: two calls on one
        object give two targets, and a cache of targets is no longer the same as computing them.
        """
        self.point_encoder.start = "random" if fps_start == "random" else 0
        half = neighbour_precision == "float16"
        self.point_encoder.neighbour_dtype = torch.float16 if half else None
        self.qformer.drop_always = qformer_dropout
        self.qformer.train(self.qformer.training)

    def mixed(self) -> AbstractContextManager:
        """What every pass through the LLM runs in: autocast where its matrices are half precision.

        Its norms and LoRA are float32 beside them, as published. Everything before the LLM has the
        precision of its own weights, and the residual stream is float32 throughout.
        """
        if self.held_in() in (torch.float16, torch.bfloat16):
            return torch.autocast(next(self.llm.parameters()).device.type, self.held_in())
        return nullcontext()

    def held_in(self) -> torch.dtype:
        """Precision of the LLM's own matrices."""
        return cast(Tensor, bare(self.llm).get_input_embeddings().weight).dtype

    def encode(self, points: Tensor) -> Tensor:
        """Clouds (samples, points, 6) as targets (samples, queries, Q-Former width).

        Never in mixed precision, so that targets computed on the way equal those of a cache.
        """
        with torch.autocast(points.device.type, enabled=False):
            return self.read(self.point_encoder(points))

    def read(self, features: Tensor) -> Tensor:
        """Encoder tokens (samples, tokens, encoder width) as targets, through the query experts
        where there are some."""
        states = self.mlp(features)
        if self.experts is None:
            return self.qformer(states)
        return self.experts(features, states, self.qformer)

    def embed(self, batch: Batch, target: Tensor) -> Tensor:
        """What enters the LLM, (samples, tokens, LLM width): text, and at `point_mask` the cloud.

        target : (samples, queries, Q-Former width)

        Of half-precision embeddings the values are half, as published, and the dtype is float32:
        Phi-2's residual stream widens in block 1 in any case, those of stock classes would not.
        """
        self._check(batch, target)
        text = bare(self.llm).get_input_embeddings()(batch.input_ids)
        points = self.projector(target).to(text.dtype)
        filled = text.masked_scatter(batch.point_mask[..., None], points)
        return filled.to(torch.promote_types(filled.dtype, torch.float32))

    def forward(
        self,
        batch: Batch,
        *,
        points: Tensor | None = None,
        target: Tensor | None = None,
        logits: bool = False,
    ) -> CausalLMOutputWithPast:
        """Next-token loss of a batch: the mean over all its labelled tokens.

        points : (samples, points, 6), or
        target : (samples, queries, Q-Former width), what `encode` made of them.
        logits : also return (samples, tokens, vocabulary); without, `logits` is None and the head
                 runs at the labelled tokens only, a small part of a sequence.

        `loss` is None when nothing is labelled and logits were asked for.
        """
        if points is not None and target is None:
            target = self.encode(points)
        elif points is not None or target is None:
            raise ValueError("give either points or target, exactly one of them")
        llm = bare(self.llm)
        body, head = llm.base_model, llm.get_output_embeddings()
        embeds = self.embed(batch, target)
        with self.mixed():
            hidden = body(
                inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False
            ).last_hidden_state
            every = head(hidden) if logits else None
        follows = batch.labels[:, 1:]  # token t predicts token t + 1
        counted = follows != UNLABELLED
        if not counted.any():
            if logits:
                return CausalLMOutputWithPast(logits=every)
            raise ValueError(f"a batch of {len(follows)} samples without one labelled token")
        if every is None:
            with self.mixed():
                scores = head(hidden[:, :-1][counted])
        else:
            scores = every[:, :-1][counted]
        loss = F.cross_entropy(scores.float(), follows[counted])
        return CausalLMOutputWithPast(loss=loss, logits=every)

    def load_published(self, state_dict: Mapping[str, object]) -> None:
        """Load a whole model under its published names.

        The published files each hold a part: merge Phi-2, BLIP-2, the encoder and the stages, in
        this order, and load once. A model with query experts needs all of theirs too, expert 0
        equal to `query_tokens`. `alignment_projector.*` is not part of this model.

        Raises ValueError that names every tensor missing, unexpected or mis-shaped, part by part;
        nothing is loaded then.
        """
        owners = {part: names for part, names in OWNERS.items() if getattr(self, part) is not None}
        parts: dict[str, dict[str, object]] = {part: {} for part in owners}
        problems = []
        for key, value in state_dict.items():
            start = str(key)
            owner = next((part for part, names in owners.items() if start.startswith(names)), None)
            if owner is None:
                problems.append(f"unexpected {key}")
            else:
                parts[owner][key] = value
        if self.experts is not None and "query_tokens" in state_dict:
            parts["experts"]["query_tokens"] = state_dict["query_tokens"]
        weights: dict[str, Tensor] = {}
        for part, given in parts.items():
            try:
                if part == "llm":
                    found = phi.published_weights(self.llm, given)
                else:
                    found = getattr(self, part).published_weights(given)
            except ValueError as error:
                problems.append(str(error))
            else:
                weights |= {f"{part}.{name}": value for name, value in found.items()}
        if problems:
            raise ValueError("; ".join(problems))
        self.load_state_dict(weights, strict=False)

    def _check(self, batch: Batch, target: Tensor) -> None:
        counts = batch.point_mask.sum(dim=1)
        if len(target) != len(counts) or (counts != target.shape[1]).any():
            raise ValueError(
                f"{len(counts)} prompts with {counts.tolist()} point tokens for a target of shape "
                f"{tuple(target.shape)}: (samples, queries, dim)"
            )


def set_switches(model: MiniGPT3D, config: Stage2Config) -> None:
    """What a stage-2 config asks of a model beside its sizes: front, attention, checkpointing."""
    model.faithful(
        fps_start=config.fps_start,
        qformer_dropout=config.qformer_dropout,
        neighbour_precision=config.neighbour_precision,
    )
    set_attention(model.llm, config.attention)
    if config.gradient_checkpointing:
        checkpoint_blocks(model.llm)


def build(
    config: ModelConfig,
    seed: int = 0,
    branch_scale: float = 1.0,
    lora: bool = True,
    language: PreTrainedModel | None = None,
) -> MiniGPT3D:
    """A model of these sizes with random weights, the same for the same seed.

    branch_scale : as in `phi.build_phi`.
    lora         : with the LoRA of Q-Former and LLM, as from the published stage II on.
    language     : a language model that is already there, of the sizes of `config` (see
                   `llm.sizes_of`), instead of one with random weights.

    torch's own generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if language is None:
            language = build_llm(config, branch_scale=branch_scale)
        llm = add_lora(language, config) if lora else language
        return MiniGPT3D(
            point_encoder=PointBERT(
                width=config.encoder_width,
                depth=config.encoder_depth,
                heads=config.encoder_heads,
                groups=config.groups,
                group_size=config.group_size,
                patch_width=config.patch_width,
            ),
            mlp=PointMLP(config.encoder_width, config.mlp_width, config.qformer_input),
            qformer=QFormer(
                hidden_size=config.qformer_width,
                layers=config.qformer_depth,
                heads=config.qformer_heads,
                intermediate_size=config.qformer_ffn,
                encoder_width=config.qformer_input,
                queries=config.queries,
                lora_rank=config.qformer_lora_rank if lora else 0,
                lora_dropout=config.qformer_lora_dropout,
            ),
            projector=ModalityProjector(
                config.qformer_width, config.projector_width, config.llm_width
            ),
            llm=llm,
            experts=build_experts(config) if config.experts else None,
        )


def build_experts(config: ModelConfig) -> MixtureOfQueryExperts:
    """Query experts of these sizes, drawn from torch's generator."""
    return MixtureOfQueryExperts(
        feature_width=config.encoder_width,
        hidden_size=config.qformer_width,
        queries=config.queries,
        experts=config.experts,
        router_width=config.router_width,
        router=config.router,
    )
