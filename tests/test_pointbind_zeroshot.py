"""Zero-shot classes, retrieval and arithmetic: published numbers, closed forms, scikit-learn."""

import hashlib
import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tests.golden import golden
from tests.golden_pointbind import close, normal, tensor
from tests.test_imagebind import merges, published
from train.data.modelnet import MODELNET40
from train.models.i2pmae import I2PMAE
from train.models.imagebind_inputs import clip_tokenizer, text_ids
from train.models.pointbind import FIRST_SCALE, PointBind, add_embeddings, contrastive_loss
from train.zeroshot import (
    TEMPLATES,
    average_precision,
    chance_precision,
    class_features,
    prompts,
    retrieval_precision,
    top_hits,
)


def test_templates_and_classes_are_the_published_ones():
    digest = hashlib.sha256("\n".join(TEMPLATES).encode()).hexdigest()
    assert digest == "f2d7885a07ae567c9396692bccba39dc6a8934d6987d31ca1f529827085e9200"
    digest = hashlib.sha256("\n".join(MODELNET40).encode()).hexdigest()
    assert digest == "96e752284692165a4810662e877c74d91e734f3ccd88f90fb8fcf990e162772f"
    assert prompts("night_stand")[0] == "a point cloud model of night stand."


def test_class_features_and_logits_equal_the_published_numbers():
    meta, arrays = golden("pointbind_zeroshot")

    def encode(texts: list[str]) -> torch.Tensor:
        label = MODELNET40.index(texts[0].removeprefix("a point cloud model of ").rstrip("."))
        prompt = normal(f"input.text_embeddings.{label}", [64, 1024], meta["seed"]).double()
        kind = normal(f"input.text_class.{label}", [1, 1024], meta["seed"]).double()
        return (100 * torch.nn.functional.normalize(prompt + 4 * kind, dim=1)).float()

    features = class_features(encode, MODELNET40)
    close(features, arrays["text_features"], "embedding")
    labels = torch.from_numpy(arrays["labels"]).long()
    logits = torch.from_numpy(arrays["pc_embeddings"]) @ features.T
    close(logits, arrays["logits_recipe"], "embedding")
    close((100 * logits).softmax(1), arrays["demo_softmax_recipe"], "logits")
    assert np.array_equal(logits.topk(5).indices, arrays["top5_recipe"])
    accuracy = [100 * top_hits(logits, labels, k).mean() for k in (1, 5)]
    np.testing.assert_allclose(accuracy, arrays["acc1_acc5_recipe"], rtol=1e-6)
    for name in ("i2pmae", "pointbert"):
        embedding = torch.from_numpy(golden(f"pointbind_{name}")[1]["embedding_1024"])
        close(embedding @ features.T, arrays[f"logits_{name}"], "embedding")


@pytest.mark.slow
@torch.no_grad()
def test_the_published_loop_ends_in_the_published_accuracy():
    meta, arrays = golden("pointbind_zeroshot")
    tiny, _, towers = published()
    tokenizer = clip_tokenizer(merges())
    features = class_features(lambda texts: towers("text", text_ids(tokenizer, texts)), MODELNET40)
    model = PointBind(I2PMAE(depths=(1, 1, 1)), 384).eval()
    weights = {
        f"{part}.{kind}": tensor(f"bind.modality_head_point.{part}.{kind}", shape, tiny["seed"])
        for part, kind, shape in (
            (0, "weight", [512]),
            (0, "bias", [512]),
            (2, "weight", [1024, 512]),
        )
    }
    model.head.load_state_dict(weights)
    given = normal(meta["loop"]["pc"]["name"], meta["loop"]["pc"]["shape"], meta["seed"])
    logits = torch.nn.functional.normalize(model.head(given), dim=1) @ features.T
    close(logits, arrays["loop_logits"], "embedding")
    labels = torch.arange(24) % 40
    accuracy = [100 * top_hits(logits, labels, k).mean() for k in (1, 5)]
    assert accuracy == pytest.approx([meta["loop"]["acc1"], meta["loop"]["acc5"]])


def test_the_loss_of_one_right_answer_is_its_closed_form():
    one = torch.eye(3)
    scale = 2.0
    expected = math.log(math.exp(scale) + 2) - scale
    assert contrastive_loss(one, one, scale).item() == pytest.approx(expected, rel=1e-6)
    assert math.exp(FIRST_SCALE) == pytest.approx(1 / 0.07)


def test_equal_anchors_are_no_false_negatives():
    """Against targets spread evenly over the objects of one anchor: loss up to a constant, grad."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.tensor([0, 0, 1, 2, 2, 2])
    anchors = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=1)[kinds]
    points = torch.randn(6, 5, generator=generator)
    even = (kinds[:, None] == kinds).float()
    even /= even.sum(1, keepdim=True)
    gradients, losses = [], []
    for spread in (False, True):
        drawn = points.clone().requires_grad_()
        vectors = torch.nn.functional.normalize(drawn, dim=1)
        if spread:
            logits = 7 * vectors @ anchors.T
            one = torch.nn.functional.cross_entropy(logits, even)
            loss = (one + torch.nn.functional.cross_entropy(logits.T, even)) / 2
        else:
            loss = contrastive_loss(vectors, anchors, 7)
        loss.backward()
        gradients.append(drawn.grad)
        losses.append(loss.item())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_average_precision_is_scikit_learns_and_the_check_value():
    assert average_precision([[True, False, True]])[0] == pytest.approx(0.8333, abs=1e-4)
    rng = np.random.default_rng(0)
    relevant = rng.random((20, 40)) < 0.2
    relevant[:, 3] = True
    theirs = [average_precision_score(row, -np.arange(40)) for row in relevant]
    np.testing.assert_allclose(average_precision(relevant), theirs)
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        average_precision([[True], [False]])


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
@settings(max_examples=30, deadline=None)
def test_chance_is_the_mean_over_all_orders(relevant):
    labels = np.array(relevant, int)
    orders = np.array(list(permutations(relevant)))
    expected = average_precision(orders).mean()
    assert chance_precision(np.array([1]), labels) == pytest.approx(expected)


def test_retrieval_finds_its_own_class_first():
    generator = torch.Generator().manual_seed(0)
    gallery_labels = np.arange(40) % 4
    centres = torch.eye(4, 8)
    gallery = centres[gallery_labels] + 0.1 * torch.randn(40, 8, generator=generator)
    exact = retrieval_precision(3 * centres, gallery, np.arange(4), gallery_labels)
    np.testing.assert_allclose(exact, 1)
    noise, other = torch.randn(2, 400, 8, generator=generator)
    noise = retrieval_precision(noise, other[:40], np.arange(400) % 4, gallery_labels)
    assert noise.mean() == pytest.approx(chance_precision(np.arange(4), gallery_labels), abs=0.03)


def test_sums_do_not_depend_on_the_length_of_their_parts():
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
    half = torch.tensor([1.0, 1, 0]) / math.sqrt(2)
    torch.testing.assert_close(add_embeddings([a, 20 * b]), half)
    torch.testing.assert_close(add_embeddings([a, 20 * b], [1, 0]), a)
    with pytest.raises(ValueError, match="it has no direction"):
        add_embeddings([a, -a])
    with pytest.raises(ValueError, match="1 weights for 2 embeddings"):
        add_embeddings([a, b], [1])
    with pytest.raises(ValueError, match="embeddings of 3, 2 numbers lie in different spaces"):
        add_embeddings([a, b[:2]])
