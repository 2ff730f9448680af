"""The alignment projector and its loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.losses import AlignmentProjector, alignment_loss


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
    with pytest.raises(ValueError, match=r"projector\.2\.bias"):
        other.load_published(published)


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
