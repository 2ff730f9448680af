"""Q-Former: a fixed number of queries reads a sequence of any length into as many tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from train.models.pointbert import check_names, only_tensors

POSITION_IDS = "Qformer.bert.embeddings.position_ids"
"""A buffer of the original text branch that published files still hold; nothing reads it."""

TRAINED_NORMS = re.compile(r"(attention\.output|output_query)\.LayerNorm\.weight$")
"""Norms whose weights the published stages train: self-attention, cross-attention, feed-forward."""


class QFormer(nn.Module):
    """The Q-Former of BLIP-2 without its text branch, with its queries and optional LoRA.

    The defaults are the published sizes: 105,137,664 parameters, 24,576 in the queries and 724,992
    in LoRA, which has alpha twice its rank and sits on query, key and value of every attention. A
    rank of 0 leaves LoRA out. Every parameter can be trained at first; a recipe freezes what it
    does not train.
    """

    def __init__(
        self,
        *,
        hidden_size: int = 768,
        layers: int = 12,
        heads: int = 12,
        intermediate_size: int = 3072,
        encoder_width: int = 1408,
        queries: int = 32,
        lora_rank: int = 8,
        lora_dropout: float = 0.1,
    ):
        super().__init__()
        if hidden_size % heads:
            raise ValueError(f"hidden size {hidden_size} cannot be split over {heads} heads")
        self.encoder_width, self.lora_rank = encoder_width, lora_rank
        self.drop_always = False
        """Keep LoRA's dropout on in evaluation too: the published code does, by accident, since
        its LoRA was injected after the rest had been put to evaluate for good."""
        config = Blip2QFormerConfig(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=intermediate_size,
            encoder_hidden_size=encoder_width,
            cross_attention_frequency=2,
            use_qformer_text_input=False,
            # The published model keeps its own Q-Former in evaluation mode while it trains the LoRA
            # inside, so the only dropout that ever acts is LoRA's. In our `eval()` none does.
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = Blip2QFormerModel(config)
        # Only this implementation returns the attention maps; it takes 5 % longer than sdpa.
        self.bert.set_attn_implementation("eager")
        self.query_tokens = nn.Parameter(torch.empty(1, queries, hidden_size).normal_(0, 0.02))
        if lora_rank:
            lora = LoraConfig(
                r=lora_rank,
                lora_alpha=2 * lora_rank,
                lora_dropout=lora_dropout,
                target_modules=["query", "key", "value"],
            )
            inject_adapter_in_model(lora, self.bert)
            self.bert.requires_grad_(True)  # peft freezes what it wraps

    def train(self, mode: bool = True) -> QFormer:
        """Set the mode; with `drop_always`, LoRA's dropouts train in every mode."""
        super().train(mode)
        if self.drop_always:
            for name, module in self.named_modules():
                if name.endswith("lora_dropout"):
                    module.train()
        return self

    def forward(
        self, states: Tensor, query_tokens: Tensor | None = None, return_attention: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """What the queries read out of `states`.

        states       : (samples, tokens, encoder_width)
        query_tokens : (1 or samples, queries, hidden_size); the module's own if not given

        Returns (samples, queries, hidden_size). With `return_attention` also the cross-attention
        maps, (cross_layers, samples, heads, queries, tokens): what each query reads, summing to 1
        over the tokens.
        """
        if states.ndim != 3 or states.shape[2] != self.encoder_width:
            raise ValueError(
                f"states of shape {tuple(states.shape)}: must be (samples, tokens, "
                f"{self.encoder_width})"
            )
        tokens = self.query_tokens if query_tokens is None else query_tokens
        output = self.bert(
            query_embeds=tokens.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            output_attentions=return_attention,
        )
        if return_attention:
            return output.last_hidden_state, torch.stack(output.cross_attentions)
        return output.last_hidden_state

    def lora_and_norm_parameters(self) -> list[str]:
        """Names of the parameters that the published stages II and III train.

        They are the LoRA factors, the weights but not the biases of the norms behind attention and
        feed-forward, and the query tokens. The norm of the queries at the entrance stays frozen.
        """
        return [
            name
            for name, _ in self.named_parameters()
            if name == "query_tokens" or ".lora_" in name or TRAINED_NORMS.search(name)
        ]

    def load_published(self, state_dict: Mapping[str, object], *, expect: str = "all") -> None:
        """Load the weights of a published Q-Former.

        state_dict : `query_tokens` and names that begin with `Qformer.bert.`, perhaps inside
                     `model`. Names of other modules must be taken out before.
        expect     : what must be there: "all" (with LoRA where this module has it), "base" (all but
                     LoRA, as in BLIP-2; this module's LoRA stays as it is) or "trained" (all of
                     `lora_and_norm_parameters`, what a later stage saves).

        Raises ValueError that names all that is missing, not known or of another shape; nothing is
        loaded then.
        """
        self.load_state_dict(self.published_weights(state_dict, expect=expect), strict=False)

    def published_weights(
        self, state_dict: Mapping[str, object], *, expect: str = "all"
    ) -> dict[str, Tensor]:
        """What `load_published` would load, by the names of this module; raises as it does."""
        if expect not in ("all", "base", "trained"):
            raise ValueError(f"expect={expect!r} must be 'all', 'base' or 'trained'")
        if isinstance(inner := state_dict.get("model"), Mapping):
            state_dict = inner
        given = only_tensors("QFormer", state_dict)
        given.pop(POSITION_IDS, None)
        own = self.state_dict()
        ours = {published_name(name): name for name in own}
        if expect == "base":
            ours = {name: each for name, each in ours.items() if ".lora_" not in name}
        needed = set(self.lora_and_norm_parameters() if expect == "trained" else ours.values())
        wanted = {name: own[each] for name, each in ours.items() if name in given or each in needed}
        check_names("QFormer", wanted, given)
        return {ours[name]: value for name, value in given.items()}


def published_name(name: str) -> str:
    """The published name of a parameter of this module.

    Published files name layers as LAVIS does, and their peft left the base weight of an adapted
    layer at its own name; today's peft moves it into a `base_layer`.
    """
    if name == "query_tokens":
        return name
    name = name.replace(".base_layer.", ".").removeprefix("bert.")
    name = re.sub(r"(attention)\.attention\.", r"\1.self.", name)
    return "Qformer.bert." + re.sub(r"^layernorm\.", "embeddings.LayerNorm.", name)
