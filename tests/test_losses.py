"""The alignment projector and its losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from train.losses import AlignmentProjector, LearnedCosine, alignment_loss, contrastive_alignment


def pair(samples: int = 3, tokens: int = 2, size: int = 5, seed: int = 0):
    """Projected tokens, which learn, and targets, both in double precision."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, samples, tokens, size, generator=generator, dtype=torch.float64)
    return both[0].clone().requires_grad_(), both[1]


def parameters(layers: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AlignmentProjector(2560, 768, layers).parameters())


def test_the_projector_has_the_published_number_of_parameters():
    counts = [parameters(layers) for layers in (1, 2, 3, 4)]
    assert counts == [1_966_848, 5_540_224, 8_310_784, 11_081_344]


def test_published_names_load_and_a_wrong_one_is_named():
    source, other = AlignmentProjector(6, 4), AlignmentProjector(6, 4)
    published = {
        f"alignment_projector.{name}": value for name, value in source.state_dict().items()
    }
    other.load_published(published)
    hidden = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(source(hidden), other(hidden))
    del published["alignment_projector.projector.2.bias"]
    prefix = "alignment_projector.projector."
    with pytest.raises(ValueError) as refused:
        other.load_published(
            published | {f"{prefix}9.bias": torch.ones(1), f"{prefix}0.bias": torch.ones(7)}
        )
    for part in (
        f"1 missing ({prefix}2.bias)",
        f"1 not known ({prefix}9.bias)",
        f"1 of another shape ({prefix}0.bias (7,) instead of (5,))",
    ):
        assert part in str(refused.value)
    with pytest.raises(ValueError, match=r"9\.bias' is a list, not a tensor"):
        other.load_published(published | {f"{prefix}9.bias": [0.0]})


@given(scale=st.floats(0.1, 10))
def test_cosine_loss_of_a_scaled_target_is_zero_and_of_its_opposite_two(scale):
    target = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1))
    assert alignment_loss(scale * target, target).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(-scale * target, target).item() == pytest.approx(2, abs=1e-6)


def test_l1_and_l2_are_means_of_absolute_and_squared_differences():
    projected, target = torch.full((1, 2, 3), 3.0), torch.full((1, 2, 3), 1.0)
    assert alignment_loss(projected, target, "l1").item() == 2
    assert alignment_loss(projected, target, "l2").item() == 4


def test_the_target_learns_nothing():
    projected = torch.ones(1, 2, 3, requires_grad=True)
    target = torch.rand(1, 2, 3, requires_grad=True)
    alignment_loss(projected, target).backward()
    assert projected.grad is not None and target.grad is None


@pytest.mark.parametrize(
    ("projected", "target", "kind", "said"),
    [
        ((1, 2, 3), (1, 2, 4), "cosine", r"\(1, 2, 3\)"),
        ((1, 0, 3), (1, 0, 3), "cosine", "no point token"),
        ((1, 2, 3), (1, 2, 3), "cosin", "cosine, l1 or l2"),
    ],
)
def test_a_loss_that_cannot_be_computed_stops(projected, target, kind, said):
    with pytest.raises(ValueError, match=said):
        alignment_loss(torch.ones(projected), torch.ones(target), kind)


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cosine", "l1", "l2"])
def test_gradients_are_those_of_finite_differences(kind):
    projected, target = pair()
    assert torch.autograd.gradcheck(lambda x: alignment_loss(x, target, kind), projected)


def test_gradients_of_l1_and_l2_are_sign_and_twice_the_difference_over_the_count():
    projected, target = pair()
    count, apart = projected.numel(), (projected - target).detach()
    (l1,) = torch.autograd.grad(alignment_loss(projected, target, "l1"), projected)
    (l2,) = torch.autograd.grad(alignment_loss(projected, target, "l2"), projected)
    torch.testing.assert_close(l1, apart.sign() / count)
    torch.testing.assert_close(l2, 2 * apart / count)


def test_the_cosine_gradient_turns_a_token_and_does_not_stretch_it():
    projected, target = pair()
    (gradient,) = torch.autograd.grad(alignment_loss(projected, target), projected)
    torch.testing.assert_close(
        (gradient * projected.detach()).sum(-1), torch.zeros(3, 2, dtype=torch.float64)
    )
    assert gradient.abs().max() > 0.01


# --- a cosine that learns -----------------------------------------------------------------------


def test_a_learned_cosine_begins_as_the_plain_one():
    projected, target = pair()
    assert torch.equal(LearnedCosine(5)(projected, target), alignment_loss(projected, target))


@given(st.lists(st.floats(-60, 60), min_size=2, max_size=9))
def test_learned_weights_sum_to_the_dimensions_and_none_falls_below_a_half(logits):
    distance = LearnedCosine(len(logits))
    distance.logits.data = torch.tensor(logits, dtype=torch.float64)
    assert distance.weights.min().item() >= 0.5
    assert distance.weights.sum().item() == pytest.approx(len(logits))


def test_a_learned_cosine_is_the_cosine_of_tokens_scaled_by_the_roots_of_its_weights():
    projected, target = pair()
    distance = LearnedCosine(5).double()
    distance.logits.data = torch.tensor([0.0, 1, 2, -1, 0.5], dtype=torch.float64)
    weights = (1 + 5 * distance.logits.softmax(0)) / 2
    inner = (weights * projected * target).sum(-1)
    lengths = [(weights * each.square()).sum(-1).sqrt() for each in (projected, target)]
    expected = (1 - inner / (lengths[0] * lengths[1])).mean()
    torch.testing.assert_close(distance(projected, target), expected)
    assert torch.autograd.gradcheck(
        lambda x, logits: torch.func.functional_call(distance, {"logits": logits}, (x, target)),
        (projected, distance.logits),
    )


def test_no_weights_make_tokens_agree_that_agree_in_one_dimension_only():
    target = torch.tensor([[[1.0, 3, -3]]])
    distance = LearnedCosine(3)
    optimizer = torch.optim.Adam(distance.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = distance(torch.tensor([[[1.0, -3, 3]]]), target)
        loss.backward()
        optimizer.step()
    assert distance.weights.argmax() == 0
    # Weights 2, 1/2, 1/2: 1 - (2 - 4.5 - 4.5) / (2 + 4.5 + 4.5)
    assert loss.item() == pytest.approx(18 / 11, abs=0.01)


# --- across the batch ---------------------------------------------------------------------------


def test_contrastive_alignment_is_the_cross_entropy_of_a_token_among_its_like():
    projected, target = pair(samples=4, tokens=3)
    losses = []
    for i in range(4):
        for j in range(3):
            scores = [F.cosine_similarity(projected[i, j], target[k, j], dim=0) for k in range(4)]
            losses.append(F.cross_entropy(torch.stack(scores) / 0.07, torch.tensor(i)))
    torch.testing.assert_close(contrastive_alignment(projected, target), torch.stack(losses).mean())
    assert torch.autograd.gradcheck(lambda x: contrastive_alignment(x, target, 0.5), projected)


def test_contrastive_alignment_of_targets_that_are_all_alike_is_chance():
    projected, target = pair(samples=6)
    alike = target[:1].expand_as(target)
    assert contrastive_alignment(projected, alike).item() == pytest.approx(math.log(6))
    apart = torch.eye(6, dtype=torch.float64)[:, None]
    assert contrastive_alignment(apart, apart).item() == pytest.approx(
        math.log(1 + 5 * math.exp(-1 / 0.07))
    )


@pytest.mark.parametrize("sizes", [(3, 3), (4, 2), (1, 5)])
def test_parts_of_a_batch_among_all_its_targets_make_up_the_whole(sizes):
    projected, target = pair(samples=6)
    whole = contrastive_alignment(projected, target)
    parts, offset = torch.tensor(0.0, dtype=torch.float64), 0
    for size in sizes:
        own = slice(offset, offset + size)
        loss = contrastive_alignment(projected[own], target[own], all_targets=target, offset=offset)
        parts, offset = parts + loss * size / 6, offset + size
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, projected)[0] for loss in (parts, whole))
    )


def test_one_sample_has_nothing_to_be_told_from():
    with pytest.raises(ValueError, match="of 1 sample: it needs 2 or more"):
        contrastive_alignment(*pair(samples=1))


@pytest.mark.parametrize("loss", [LearnedCosine(5), contrastive_alignment])
def test_the_target_of_the_other_losses_learns_nothing_and_has_the_same_shape(loss):
    projected, target = pair()
    target.requires_grad_()
    loss(projected, target).backward()
    assert projected.grad is not None and target.grad is None
    with pytest.raises(ValueError, match=r"\(3, 2, 5\) with a target of \(3, 1, 5\)"):
        loss(projected, target[:, :1])
