"""Rollout against what attention must come to in closed form, and on a whole front."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TINY
from train.attention import read_attention, rollout
from train.models.minigpt3d import build


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul(2).softmax(dim=-1)


def test_uniform_attention_reads_every_token_alike():
    steps = [maps(2, 4, 4), torch.full((2, 4, 7), 1 / 7), maps(2, 4, 4, seed=1)]
    steps.append(torch.full((2, 4, 7), 1 / 7))
    assert torch.allclose(rollout(steps, 4), torch.full((2, 4, 7), 1 / 7))


def test_one_hot_cross_attention_is_recovered_where_queries_keep_to_themselves():
    looked_at = torch.eye(7)[torch.tensor([[3, 0, 6, 2], [1, 1, 5, 4]])]
    itself = torch.eye(4).expand(2, 4, 4)
    assert torch.equal(rollout([itself, looked_at, itself, looked_at], 4), looked_at)


def test_what_one_query_read_reaches_the_others_through_self_attention():
    first = torch.eye(5)[torch.tensor([[0, 1]])]  # query 0 reads token 0, query 1 token 1
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    read = rollout([first, swap], 2)
    assert torch.allclose(read[0, 0], torch.tensor([0.5, 0.5, 0, 0, 0]))


@given(st.integers(0, 1000), st.integers(1, 4))
def test_rows_sum_to_one_and_equal_the_product_over_the_joint_graph(seed, layers):
    """The paper's own form: one matrix over queries and tokens, multiplied layer by layer."""
    queries, tokens = 3, 6
    steps, joint = [], torch.eye(queries + tokens)
    for layer in range(layers):
        for width in (queries, tokens):
            attention = maps(1, queries, width, seed=seed + 10 * layer + width)
            steps.append(attention)
            full = torch.eye(queries + tokens)
            full[:queries] = 0
            columns = slice(0, queries) if width == queries else slice(queries, None)
            full[:queries, columns] = attention[0]
            joint = (full + torch.eye(queries + tokens)) / 2 @ joint
    expected = joint[:queries, queries:]
    read = rollout(steps, queries)
    assert torch.allclose(read.sum(-1), torch.ones(1, queries), atol=1e-5)
    assert torch.allclose(read[0], expected / expected.sum(-1, keepdim=True), atol=1e-5)


def test_maps_that_read_nothing_are_refused():
    with pytest.raises(ValueError, match="needs cross-attention"):
        rollout([torch.eye(4)[None]], 4)


def test_a_front_says_which_patches_it_read_and_gives_the_same_target():
    model = build(TINY, seed=0).eval()
    points = torch.rand(3, 128, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model.encode(points)
        with read_attention(model) as reading:
            target = model.encode(points)
    assert torch.equal(plain, target)
    weights = reading.weights()
    assert weights.shape == (3, TINY.queries, TINY.groups)
    assert torch.allclose(weights.sum(-1), torch.ones(3, TINY.queries), atol=1e-5)
    centres, _ = model.point_encoder.group(points)
    assert torch.equal(reading.centres, centres)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_patch_that_is_looked_at_most_moves_the_query_most():
    """With keys that pick one patch, rollout names the patch whose features matter."""
    model = build(TINY, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 1 + TINY.groups, TINY.qformer_input, generator=generator)
    for layer in model.qformer.bert.encoder.layer:
        if layer.has_cross_attention:
            layer.crossattention.attention.key.base_layer.weight.data.mul_(40)
            layer.crossattention.attention.query.base_layer.weight.data.mul_(40)
    states.requires_grad_()
    with read_attention(model) as reading:
        target = model.qformer(states)
    weights = reading.weights()[0]
    for query in range(TINY.queries):
        (slope,) = torch.autograd.grad(target[0, query].norm(), states, retain_graph=True)
        moved = slope[0, 1:].norm(dim=-1)
        rank = moved.argsort(descending=True).tolist().index(int(weights[query].argmax()))
        assert rank < 3, (query, rank)
