"""Query experts against the published numbers, and what the three routers mean."""

import pytest
import torch
import torch.nn.functional as F

from tests.golden import assert_close, golden, recipe_rng, recipe_state
from train.models.experts import ROUTERS, MixtureOfQueryExperts
from train.models.qformer import QFormer

SMALL = {"feature_width": 6, "hidden_size": 10, "queries": 3, "experts": 4, "router_width": 8}


def small_experts(router: str = "sparse", seed: int = 0) -> MixtureOfQueryExperts:
    torch.manual_seed(seed)
    return MixtureOfQueryExperts(router=router, **SMALL)


def features(samples: int = 5) -> torch.Tensor:
    return 4 * torch.randn(samples, 9, 6, generator=torch.Generator().manual_seed(2))


class RememberedQFormer:
    """A Q-Former that reads one sample with one set of queries only once."""

    def __init__(self, qformer: QFormer):
        self.qformer, self.known = qformer, {}

    def __call__(self, states: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        rows = []
        for sample, (read, own) in enumerate(zip(states, queries, strict=True)):
            key = (sample, float(own.double().sum()))
            if key not in self.known:
                self.known[key] = self.qformer(read[None], own[None])
            rows.append(self.known[key])
        return torch.cat(rows)


class Published:
    """All that one golden of the experts needs, in one precision."""

    def __init__(self, name: str, dtype: torch.dtype):
        self.meta, self.arrays = golden(name)
        weights = recipe_state(self.meta["state_dict"], self.meta["seed"])
        inside = {"query_tokens"} | {key for key in weights if key.startswith("Qformer.")}
        qformer = QFormer().eval()
        qformer.load_published({key: weights[key] for key in inside})
        self.qformer = RememberedQFormer(qformer.to(dtype))
        self.expert_weights = {
            key: value
            for key, value in weights.items()
            if key.startswith("query_") and key != "query_tokens"
        }
        self.weights = {key: value.to(dtype) for key, value in weights.items()}
        self.features = self._features().to(dtype)
        hidden = F.gelu(self.linear(self.features, "point_2_Qformer_proj.0"))
        self.states = self.linear(hidden, "point_2_Qformer_proj.2")
        self.dtype = dtype

    def _features(self) -> torch.Tensor:
        facts = self.meta["inputs"]["input.point_features"]
        drawn = recipe_rng("input.point_features", self.meta["seed"])
        values = drawn.standard_normal(facts["shape"])
        for row, offset, scale in zip(values, facts["offset"], facts["scale"], strict=True):
            row[0] += offset
            row[1:] *= scale
        return torch.from_numpy(values.astype("float32"))

    def linear(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(hidden, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def experts(self, router: str) -> MixtureOfQueryExperts:
        experts = MixtureOfQueryExperts(router=router)
        experts.load_published(self.expert_weights)
        return experts.to(self.dtype)


@pytest.mark.parametrize("name", ["mqe", "mqe_spread"])
@torch.no_grad()
def test_experts_equal_the_published_numbers(name):
    there = Published(name, torch.float32)
    meta, arrays, selected = there.meta, there.arrays, there.meta["selected_queries"]
    assert_close(there.features[:, :2, :4], arrays, meta, "features_first4")
    for router in ROUTERS:
        experts = there.experts(router)
        pooled = experts(there.features, there.states, there.qformer)
        llm_tokens = there.linear(there.linear(pooled, "llama_proj"), "llama_proj2")
        assert_close(pooled[:, selected], arrays, meta, f"{router}_pooled_selected")
        assert_close(pooled.norm(dim=-1), arrays, meta, f"{router}_pooled_norms")
        assert_close(llm_tokens[:, selected], arrays, meta, f"{router}_llm_tokens_selected")
    sparse = there.experts("sparse")
    logits = sparse.router_logits(there.features)
    chosen, weights = sparse.route(there.features)
    assert_close(logits, arrays, meta, "router_logits")
    assert_close(logits.softmax(-1), arrays, meta, "router_probs")
    assert_close(chosen, arrays, meta, "sparse_selected_experts")
    assert_close(weights, arrays, meta, "sparse_selected_weights")


@pytest.mark.parametrize("name", ["mqe", "mqe_spread"])
@pytest.mark.parametrize(
    "routers",
    [
        ["sparse"],
        # Every expert reads every sample here, in double precision.
        pytest.param(["soft", "constant"], marks=pytest.mark.slow),
    ],
    ids="-".join,
)
@torch.no_grad()
def test_experts_in_double_precision_equal_the_published_numbers(name, routers):
    there = Published(name, torch.float64)
    meta, arrays, selected = there.meta, there.arrays, there.meta["selected_queries"]
    for router in routers:
        experts = there.experts(router)
        pooled = experts(there.features, there.states, there.qformer)
        assert_close(pooled[:, selected], arrays, meta, f"{router}_pooled_selected_f64")
        probabilities = experts.router_logits(there.features).softmax(-1)
        assert_close(probabilities, arrays, meta, "router_probs_f64")


def test_full_size_counts_are_the_published_ones():
    experts = MixtureOfQueryExperts()
    assert sum(parameter.numel() for parameter in experts.parameters()) == 395_528
    assert sum(parameter.numel() for parameter in experts.query_router.parameters()) == 198_920


def test_sparse_weights_are_the_two_largest_probabilities_in_order_of_the_experts():
    experts = small_experts()
    chosen, weights = experts.route(features())
    probabilities = experts.router_logits(features()).softmax(-1)
    for row, picked, weight in zip(probabilities, chosen, weights, strict=True):
        largest = sorted(row.argsort(descending=True)[:2].tolist())
        assert picked.tolist() == largest
        assert torch.equal(weight, row[largest])
    assert (weights.sum(-1) < 1).all()


def test_sparse_router_with_all_experts_is_the_soft_router():
    soft, sparse = small_experts("soft"), small_experts("sparse")
    sparse.top_k = 4
    for ours, theirs in zip(sparse.route(features()), soft.route(features()), strict=True):
        assert torch.equal(ours, theirs)


def test_constant_router_weighs_every_expert_alike():
    chosen, weights = small_experts("constant").route(features())
    assert chosen.tolist() == [[0, 1, 2, 3]] * 5
    assert torch.equal(weights, torch.full((5, 4), 0.25))


@pytest.mark.parametrize("router", ROUTERS)
def test_output_is_the_weighted_sum_over_the_experts(router):
    experts = small_experts(router)
    states = torch.randn(5, 3, 10)

    def read(states, queries):
        return states * queries

    output = experts(features(), states, read)
    chosen, weights = experts.route(features())
    for sample in range(5):
        parts = [
            weight * read(states[sample], experts.query_expert_dict[str(expert)][0])
            for expert, weight in zip(chosen[sample].tolist(), weights[sample], strict=True)
        ]
        torch.testing.assert_close(output[sample], sum(parts))


def test_sparse_routing_trains_the_router_and_the_chosen_experts():
    experts = small_experts()
    experts(
        features(1), torch.randn(1, 3, 10), lambda states, queries: states * queries
    ).sum().backward()
    chosen, _ = experts.route(features(1))
    moved = [
        int(name)
        for name, expert in experts.query_expert_dict.items()
        if expert.grad is not None and expert.grad.any()
    ]
    assert moved == chosen[0].tolist()
    assert experts.query_router[0].weight.grad.any()


def test_expert_0_can_be_the_queries_of_a_qformer():
    experts = small_experts()
    queries = torch.nn.Parameter(torch.zeros(1, 3, 10))
    experts.share_queries(queries)
    assert experts.query_expert_dict["0"] is queries
    with pytest.raises(ValueError, match=r"\(1, 2, 10\) cannot be expert 0, which is \(1, 3, 10\)"):
        experts.share_queries(torch.nn.Parameter(torch.zeros(1, 2, 10)))


def test_experts_begin_from_queries_of_which_the_first_has_its_own():
    experts = small_experts()
    own = torch.nn.Parameter(torch.zeros(1, 3, 10))
    experts.share_queries(own)
    experts.begin_from(torch.full((1, 3, 10), 2.0))
    assert not own.any()
    others = [expert for name, expert in experts.query_expert_dict.items() if name != "0"]
    assert len(others) == 3 and all((expert == 2).all() for expert in others)
    assert all(expert.requires_grad for expert in others)


def test_published_names_restore_the_experts():
    source, target = small_experts(seed=1), small_experts(seed=2)
    state = source.state_dict() | {"query_tokens": source.query_expert_dict["0"].detach()}
    target.load_published({"model": state})
    assert all(torch.equal(target.state_dict()[name], w) for name, w in source.state_dict().items())
    other = small_experts(seed=3)  # expert 0 under its other name only
    other.load_published({n: w for n, w in state.items() if n != "query_expert_dict.0"})
    assert torch.equal(other.query_expert_dict["0"], source.query_expert_dict["0"])
    with pytest.raises(ValueError, match=r"1 missing \(query_expert_dict\.0\)"):
        other.load_published(
            {n: w for n, w in source.state_dict().items() if n != "query_expert_dict.0"}
        )
    with pytest.raises(ValueError, match=r"'query_tokens' and 'query_expert_dict\.0' differ"):
        target.load_published(source.state_dict() | {"query_tokens": torch.zeros(1, 3, 10)})


def test_strict_loading_names_every_bad_key():
    target = small_experts()
    state = dict(target.state_dict())
    del state["query_expert_dict.3"]
    state["query_expert_dict.4"] = torch.zeros(1, 3, 10)
    state["query_router.2.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as refused:
        target.load_published(state)
    for part in (
        "1 missing (query_expert_dict.3)",
        "1 not known (query_expert_dict.4)",
        "1 of another shape (query_router.2.bias (5,) instead of (4,))",
    ):
        assert part in str(refused.value)


def test_a_router_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'hard' must be one of sparse, soft, constant"):
        MixtureOfQueryExperts(router="hard")
    with pytest.raises(ValueError, match=r"top_k=9 must be 1 to 8"):
        MixtureOfQueryExperts(top_k=9)
    with pytest.raises(ValueError, match=r"\(5, 9, 5\): must be \(samples, tokens, 6\)"):
        small_experts().route(features()[..., :5])
