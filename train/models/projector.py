"""The two maps between parts: encoder tokens to the Q-Former, Q-Former tokens to the LLM."""

from __future__ import annotations

from collections.abc import Mapping

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
        """(samples, tokens, input_size) -> (samples, tokens, output_size)."""
        return self.second(nn.functional.gelu(self.first(tokens)))

    def load_published(self, state_dict: Mapping[str, Tensor]):
        """Load `point_2_Qformer_proj.{0,2}.{weight,bias}`; ValueError names every other key."""
        self.load_state_dict(self.published_weights(state_dict))

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `load_published` would load, by the names of this module; raises as it does."""
        names = {"first": f"{self.PUBLISHED}0", "second": f"{self.PUBLISHED}2"}
        return linears(self, names, state_dict)


class ModalityProjector(nn.Module):
    """Q-Former tokens (samples, queries, input_size) as LLM embeddings (..., output_size).

    Two linear maps and nothing between them: one linear map with a wide middle, as published.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int):
        super().__init__()
        self.first = nn.Linear(input_size, hidden_size)
        self.second = nn.Linear(hidden_size, output_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """(samples, queries, input_size) -> (samples, queries, output_size)."""
        return self.second(self.first(tokens))

    def load_published(self, state_dict: Mapping[str, Tensor]):
        """Load `llama_proj.*` and `llama_proj2.*`; ValueError names every other key."""
        self.load_state_dict(self.published_weights(state_dict))

    def published_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `load_published` would load, by the names of this module; raises as it does."""
        return linears(self, {"first": "llama_proj", "second": "llama_proj2"}, state_dict)


def linears(
    part: nn.Module, names: Mapping[str, str], state_dict: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Linear layers {our name: published name}, by our names; the error names every other key."""
    own = part.state_dict()
    spelt = {
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    check_names(
        type(part).__name__, {theirs: own[ours] for ours, theirs in spelt.items()}, state_dict
    )
    return {ours: state_dict[theirs] for ours, theirs in spelt.items()}
