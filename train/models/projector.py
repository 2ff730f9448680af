"""The two maps between parts: encoder tokens to the Q-Former, Q-Former tokens to the LLM."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from train.models.pointbert import check_names


class PointMLP(nn.Module):
    """Linear, GELU, Linear: encoder tokens (samples, tokens, input_size) for the Q-Former to read.

    No norm stands between this and the Q-Former's cross-attention, unlike in BLIP-2.
    """

    PUBLISHED = "point_2_Qformer_proj."

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.first = nn.Linear(input_size, hidden_size)
        self.second = nn.Linear(hidden_size, output_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(nn.functional.gelu(self.first(tokens)))

    def load_published(self, state_dict: Mapping[str, Tensor]):
        """Load `point_2_Qformer_proj.{0,2}.{weight,bias}`; ValueError names every other key."""
        load_linears(
            self, {"first": f"{self.PUBLISHED}0", "second": f"{self.PUBLISHED}2"}, state_dict
        )


class ModalityProjector(nn.Module):
    """Q-Former tokens (samples, queries, input_size) as LLM embeddings (..., output_size).

    Two linear maps and nothing between them: one linear map with a wide middle, as published.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.first = nn.Linear(input_size, hidden_size)
        self.second = nn.Linear(hidden_size, output_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.second(self.first(tokens))

    def load_published(self, state_dict: Mapping[str, Tensor]):
        """Load `llama_proj.*` and `llama_proj2.*`; ValueError names every other key."""
        load_linears(self, {"first": "llama_proj", "second": "llama_proj2"}, state_dict)


def load_linears(part: nn.Module, names: Mapping[str, str], state_dict: Mapping[str, Tensor]):
    """Copy linear layers {our name: published name}; every key used or named in the error."""
    own = part.state_dict()
    wanted = {
        f"{theirs}.{kind}": own[f"{ours}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    check_names(type(part).__name__, wanted, state_dict)
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(state_dict[key])
