"""Mixture of query experts: each object is read with the queries that suit its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from train.models.pointbert import check_names, only_tensors

ROUTERS = ("sparse", "soft", "constant")


class MixtureOfQueryExperts(nn.Module):
    """Several sets of queries for one Q-Former, and the router that weighs them.

    router : `sparse` takes the `top_k` likeliest experts of each object and weighs them with their
             probabilities as they are, which do not sum to 1; `soft` takes all with their
             probabilities; `constant` takes all with equal weights.

    The published model (MiniGPT-3D, stage IV) is sparse with two of eight experts: 395,528
    parameters. Its expert 0 is the Q-Former's own `query_tokens`; `share_queries` ties the two.
    """

    def __init__(
        self,
        *,
        feature_width: int = 384,
        hidden_size: int = 768,
        queries: int = 32,
        experts: int = 8,
        top_k: int = 2,
        router_width: int = 256,
        router: str = "sparse",
    ):
        super().__init__()
        if router not in ROUTERS:
            raise ValueError(f"router {router!r} must be one of {', '.join(ROUTERS)}")
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k={top_k} must be 1 to {experts}, the number of experts")
        self.experts, self.top_k, self.router = experts, top_k, router
        self.feature_width = feature_width
        self.query_expert_dict = nn.ParameterDict(
            {
                str(expert): nn.Parameter(torch.empty(1, queries, hidden_size).normal_(0, 0.02))
                for expert in range(experts)
            }
        )
        self.query_router = nn.Sequential(
            nn.Linear(2 * feature_width, router_width), nn.GELU(), nn.Linear(router_width, experts)
        )

    def forward(
        self, point_features: Tensor, states: Tensor, qformer: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The Q-Former's outputs under the chosen experts, weighted and summed.

        point_features : (samples, tokens, feature_width), what the point encoder returns
        states         : (samples, tokens, encoder_width), what the queries read
        qformer        : (states, query_tokens) -> (samples, queries, hidden_size)

        Returns (samples, queries, hidden_size).
        """
        chosen, weights = self.route(point_features)
        experts = torch.cat(list(self.query_expert_dict.values()))  # (experts, queries, hidden)
        read = [
            weight[:, None, None] * qformer(states, experts[expert])
            for expert, weight in zip(chosen.T, weights.T, strict=True)
        ]
        return torch.stack(read).sum(dim=0)

    def route(self, point_features: Tensor) -> tuple[Tensor, Tensor]:
        """Which experts read each sample, and with what weights.

        Returns (samples, chosen), the experts in rising order, and their weights, same shape:
        `top_k` of them under the sparse router, else all.
        """
        probabilities = self.router_logits(point_features).softmax(dim=-1)
        if self.router == "sparse":
            chosen = probabilities.topk(self.top_k, dim=-1).indices.sort(dim=-1).values
            return chosen, probabilities.gather(1, chosen)
        chosen = torch.arange(self.experts, device=probabilities.device).expand_as(probabilities)
        if self.router == "soft":
            return chosen, probabilities
        return chosen, torch.full_like(probabilities, 1 / self.experts)

    def router_logits(self, point_features: Tensor) -> Tensor:
        """Scores (samples, experts), from the class token and the largest of the other tokens."""
        if point_features.ndim != 3 or point_features.shape[2] != self.feature_width:
            raise ValueError(
                f"point features of shape {tuple(point_features.shape)}: must be (samples, "
                f"tokens, {self.feature_width})"
            )
        whole, patches = point_features[:, 0], point_features[:, 1:]
        return self.query_router(torch.cat([whole, patches.amax(dim=1)], dim=-1))

    def share_queries(self, query_tokens: nn.Parameter) -> None:
        """Make expert 0 the very `query_tokens` (1, queries, hidden_size) of a Q-Former."""
        own = self.query_expert_dict["0"]
        if query_tokens.shape != own.shape:
            raise ValueError(
                f"query tokens of shape {tuple(query_tokens.shape)} cannot be expert 0, which is "
                f"{tuple(own.shape)}"
            )
        self.query_expert_dict["0"] = query_tokens

    def begin_from(self, queries: Tensor) -> None:
        """Copy `queries` (1, queries, hidden_size) into every expert but the shared one, 0.

        The published stage IV takes those of BLIP-2, although expert 0 has gone through stage III.
        """
        with torch.no_grad():
            for name, expert in self.query_expert_dict.items():
                if name != "0":
                    expert.copy_(queries)

    def load_published(self, state_dict: Mapping[str, object]) -> None:
        """Load the experts and the router of a published stage IV file.

        state_dict : `query_expert_dict.N` and `query_router.{0,2}.{weight,bias}`, perhaps inside
                     `model`. `query_tokens` may stand beside expert 0, and must then be equal to
                     it, or in its place: they are one tensor. Names of other modules must be
                     taken out before.

        Raises ValueError that names all that is missing, not known, of another shape or
        contradictory; nothing is loaded then.
        """
        self.load_state_dict(self.published_weights(state_dict))

    def published_weights(self, state_dict: Mapping[str, object]) -> dict[str, Tensor]:
        """What `load_published` would load, by the names of this module; raises as it does."""
        if isinstance(inner := state_dict.get("model"), Mapping):
            state_dict = inner
        given = only_tensors("MixtureOfQueryExperts", state_dict)
        queries = given.pop("query_tokens", None)
        if queries is not None:
            given.setdefault("query_expert_dict.0", queries)
        check_names("MixtureOfQueryExperts", self.state_dict(), given)
        first = given["query_expert_dict.0"]
        if queries is not None and not torch.equal(first.double(), queries.double()):
            raise ValueError(
                "MixtureOfQueryExperts: 'query_tokens' and 'query_expert_dict.0' differ, "
                "must be equal"
            )
        return given
