"""The objective of stage 2: where, how hard and toward what it pulls, against plain arithmetic."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import TINY
from tests.golden import assert_close, golden, golden_json
from tests.test_minigpt3d import golden_batches, golden_clouds, golden_model
from tests.test_prompts import BOS, Bytes
from train.alignment import Stage2Objective, release_positions, weight_at
from train.batches import Drawn
from train.checkpoint import train_only
from train.config import ModelConfig, Stage2Config
from train.forecast import trains
from train.losses import AlignmentProjector, contrastive_alignment
from train.models.llm import checkpoint_blocks
from train.models.minigpt3d import MiniGPT3D, build
from train.objectives import language_parameters
from train.prompts import Encoded, collate, encode_conversation

SIZES = replace(TINY, llm_dropout=0.0, llm_lora_dropout=0.0, projector_width=24)
CONFIG = Stage2Config(align_layer="2", seed=5, steps=11)
TURNS = [
    [("What is this?", "A chair.")],
    [("Describe the thing that you see here, all of it.", "A red lamp on one leg.")],
    [("What is it?", "A car."), ("Its color?", "Blue."), ("Can it move?", "Yes, on four wheels.")],
    [("And this, what could it be?", "A table that somebody painted.")],
    [("Name it.", "A bed.")],
]


@pytest.fixture(scope="module")
def model() -> MiniGPT3D:
    model = build(SIZES, seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def batch() -> Drawn:
    encoded = [encode_conversation(Bytes(), turns, points=SIZES.queries) for turns in TURNS]
    shown = torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(3))
    tokens = collate(encoded, BOS)
    longest = max(
        next(place for place, label in enumerate(one.labels) if label >= 0) for one in encoded
    )
    return Drawn(tokens, shown, torch.arange(5), longest_prompt=longest)


def objective_of(model, weight=0.1, **settings) -> Stage2Objective:
    """An objective that trains what stage 2 trains."""
    objective = Stage2Objective(model, replace(CONFIG, **settings), weight)
    train_only(objective, trains(objective))
    return objective.train()


def gradients(objective, loss) -> dict[str, torch.Tensor]:
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(learning.values()))
    return dict(zip(learning, grads, strict=True))


def hidden_states(model, batch) -> tuple[torch.Tensor, ...]:
    """The residual stream by transformers' own count, its last entry normed."""
    return model.llm(
        inputs_embeds=model.embed(batch.tokens, batch.shown),
        attention_mask=batch.tokens.attention_mask,
        output_hidden_states=True,
    ).hidden_states


# --- what it minimises --------------------------------------------------------------------------


def test_lora_trains_with_the_norms_of_the_llm_or_without_as_the_paper_says(model):
    found = {}
    for train_norms in (True, False):
        objective = objective_of(model, train_norms=train_norms)
        found[train_norms] = {n for n, p in objective.named_parameters() if p.requires_grad}
    lora = {name for name, _ in objective.named_parameters() if ".llm." in name and "lora_" in name}
    projector = {
        f"alignment_projector.projector.{n}.{k}" for n in "024" for k in ("weight", "bias")
    }
    assert found[False] == lora | projector
    assert found[True] - found[False] == {
        f"model.llm.{name}" for name in language_parameters(model.llm) if "lora_" not in name
    }
    assert len(found[True] - found[False]) == 4 * SIZES.llm_depth + 1


def test_without_a_weight_it_is_the_next_token_loss_of_the_model(model, batch):
    objective = objective_of(model, weight=0.0)
    losses = objective(batch)
    assert losses.keys() == {"loss", "ntp_loss"}
    assert losses["loss"] == model(batch.tokens, target=batch.shown).loss
    assert not [name for name, _ in objective.named_parameters() if "alignment" in name]


def test_point_tokens_at_the_layer_are_pulled_to_the_targets_of_their_object(model, batch):
    objective = objective_of(model, weight=0.3)
    losses = objective(batch)
    points = hidden_states(model, batch)[2][batch.tokens.point_mask].view(5, 4, -1)
    projected = objective.alignment_projector(points)
    expected = (1 - F.cosine_similarity(projected, batch.shown, dim=-1)).mean()
    torch.testing.assert_close(losses["align_loss"], expected.detach())
    torch.testing.assert_close(losses["loss"], losses["ntp_loss"] + 0.3 * losses["align_loss"])
    assert losses.keys() == {"loss", "ntp_loss", "align_loss"}


def test_a_single_layer_has_the_published_names_and_its_seed_draws_the_weights(model):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(CONFIG.seed)
    projector = AlignmentProjector(32, 16).state_dict()
    torch.manual_seed(11)
    own = objective_of(model).state_dict()
    assert torch.equal(torch.rand(1), expected)
    names = {name for name in own if not name.startswith("model.")}
    assert names == {
        f"alignment_projector.projector.{n}.{p}" for n in "024" for p in ("weight", "bias")
    }
    assert all(torch.equal(own[f"alignment_projector.{n}"], each) for n, each in projector.items())


@pytest.mark.parametrize("layers", ["1,3", "2-4"])
def test_several_layers_have_the_mean_of_the_losses_of_each(model, batch, layers):
    several = objective_of(model, align_layer=layers)
    losses = []
    for layer, projector in several.projectors.items():
        single = objective_of(model, align_layer=str(layer))
        single.alignment_projector.load_state_dict(projector.state_dict())
        losses.append(single(batch)["align_loss"])
    assert len({loss.item() for loss in losses}) == len(losses)
    torch.testing.assert_close(several(batch)["align_loss"], torch.stack(losses).mean())
    names = {name.split(".")[1] for name, _ in several.named_parameters() if "model." not in name}
    assert names == {str(layer) for layer in several.layers}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("0,3", "--align-layer 0,3: must be 1 to 4; nothing before layer 0"),
        ("all", "--align-layer all: must be 1 to 4"),
        ("5", "--align-layer must be 1 to 4: .* there is no layer 5"),
        ("two", "--align-layer must be 1 to 4: .* bad item 'two'"),
    ],
)
def test_a_layer_that_cannot_be_aligned_is_named_with_the_depth(model, layers, said):
    with pytest.raises(ValueError, match=said):
        objective_of(model, align_layer=layers)
    assert objective_of(model, align_layer="4,1-2").layers == [1, 2, 4]


def test_targets_are_inside_and_after_the_projector(model, batch):
    embeds = model.embed(batch.tokens, batch.shown)[batch.tokens.point_mask].view(5, 4, -1)
    first = model.projector.first
    middle = batch.shown @ first.weight.T + first.bias
    for name, target in (
        ("qformer", batch.shown),
        ("projector-mid", middle),
        ("projector", embeds),
    ):
        objective = objective_of(model, align_target=name, align_loss="l2")
        projector = objective.alignment_projector
        width = (32 + target.shape[-1]) // 2
        biases = [len(p) for name, p in projector.named_parameters() if name.endswith("bias")]
        assert biases == [width, width, target.shape[-1]]
        points = hidden_states(model, batch)[2][batch.tokens.point_mask].view(5, 4, -1)
        expected = (projector(points) - target).square().mean()
        losses = objective(batch)
        torch.testing.assert_close(losses["align_loss"], expected.detach())
        losses["loss"].backward()
        assert all(parameter.grad is None for parameter in model.projector.parameters())


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        ("qformer", [1_966_848, 5_540_224, 8_310_784, 11_081_344]),
        # Widths 2560, 3328, 4096 and 2560 throughout.
        ("projector-mid", [10_489_856, 22_158_592, 33_237_504, 44_316_416]),
        ("projector", [6_556_160, 13_112_320, 19_668_480, 26_224_640]),
    ],
)
def test_projectors_of_published_size_have_the_published_number_of_parameters(target, counts):
    with torch.device("meta"):
        model = build(ModelConfig())
        for layers, count in enumerate(counts, 1):
            settings = {"align_projector_layers": layers, "align_target": target}
            for text, many in (("16", 1), ("8,16,24", 3)):
                config = Stage2Config(align_layer=text, **settings)
                own = Stage2Objective(model, config, 0.1).named_parameters()
                sizes = [p.numel() for name, p in own if name.startswith("alignment_")]
                assert sum(sizes) == many * count


def test_a_learned_distance_begins_as_the_cosine_and_trains(model, batch):
    learned, plain = objective_of(model, align_loss="learned"), objective_of(model)
    losses = learned(batch)
    torch.testing.assert_close(losses["align_loss"], plain(batch)["align_loss"])
    assert gradients(learned, losses["loss"])["alignment_distance.logits"].abs().max() > 0


def test_contrastive_alignment_tells_the_objects_of_the_batch_apart(model, batch):
    objective = objective_of(model, align_loss="contrastive")
    points = hidden_states(model, batch)[2][batch.tokens.point_mask].view(5, 4, -1)
    expected = contrastive_alignment(objective.alignment_projector(points), batch.shown)
    torch.testing.assert_close(objective(batch)["align_loss"], expected.detach())


# --- the weight over training -------------------------------------------------------------------


def test_the_weight_rises_or_falls_in_a_straight_line_between_first_and_last_step():
    assert [weight_at(step, 5, 0.2, "constant") for step in (0, 4)] == [0.2, 0.2]
    assert [weight_at(step, 5, 0.2, "rise") for step in (0, 1, 4)] == [0, 0.05, 0.2]
    assert [weight_at(step, 5, 0.2, "fall") for step in (0, 1, 4)] == pytest.approx([0.2, 0.15, 0])
    assert [weight_at(0, 1, 0.2, schedule) for schedule in ("rise", "fall")] == [0, 0.2]


@pytest.mark.parametrize(("schedule", "weight"), [("rise", 0.03), ("fall", 0.07)])
def test_the_weight_of_a_step_is_used_and_logged(model, batch, schedule, weight):
    losses = objective_of(model, align_schedule=schedule)(replace(batch, step=3))
    assert losses["align_weight"].item() == pytest.approx(weight)
    total = losses["ntp_loss"] + weight * losses["align_loss"]
    torch.testing.assert_close(losses["loss"], total)


# --- positions of the released code -------------------------------------------------------------


def row(before: int, after: int, answer: int) -> Encoded:
    """bos, text, 32 points, text, answer."""
    prompt = 1 + before + 32 + after
    labels = [-100] * prompt + [7] * answer
    return Encoded([7] * len(labels), labels, [1] * len(labels), 1 + before, 32)


def test_release_positions_are_those_of_the_worked_example():
    """Fact sheet of the published code: suffixes of 8 and 25 tokens, a prompt of 60."""
    batch = collate([row(3, 8, 5), row(3, 25, 11)], 0)
    assert batch.input_ids.shape == (2, 72)
    mask = release_positions(batch)
    assert [each.nonzero().flatten().tolist() for each in mask] == [list(range(29, 61))] * 2
    assert (mask & batch.point_mask).sum(dim=1).tolist() == [7, 7]
    assert (mask & (batch.labels >= 0)).sum(dim=1).tolist() == [5, 0]
    assert (mask & (batch.attention_mask == 0)).sum(dim=1).tolist() == [12, 0]
    alone = release_positions(collate([row(3, 8, 5)], 0))
    assert alone.nonzero()[:, 1].tolist() == list(range(12, 44))
    part = release_positions(batch.rows(slice(0, 1)), longest_prompt=61)
    assert torch.equal(part, mask[:1])


def test_release_positions_are_as_many_as_the_point_tokens(batch):
    mask = release_positions(batch.tokens)
    assert mask.sum(dim=1).tolist() == [SIZES.queries] * 5
    assert mask[0].nonzero().max() == batch.longest_prompt - 1


@pytest.mark.parametrize("name", ["pointalign_step", "pointalign_step_spread"])
def test_release_positions_are_those_of_the_published_code(name):
    meta = golden_json(name)
    for kind, batch in golden_batches(meta).items():
        spans = meta["positions"]["multi_round" if kind else "single"]
        for each in release_positions(batch):
            assert each.nonzero().flatten().tolist() == spans["released_slice"]


@pytest.mark.slow
def test_its_losses_are_those_of_the_published_code():
    meta, arrays = golden("pointalign_step_spread")
    model, rest = golden_model(meta)
    with torch.no_grad():
        target = model.encode(golden_clouds(meta))
    for config, name in (
        (Stage2Config(align_layer="15", align_positions="release"), "released"),
        (Stage2Config(align_layer="15"), "point_positions"),
    ):
        objective = Stage2Objective(model, config, meta["config"]["align_weight"]).train()
        objective.alignment_projector.load_published(rest)
        for kind, batch in golden_batches(meta).items():
            with torch.no_grad():
                losses = objective(Drawn(batch, target, torch.arange(len(target))))
            assert_close(losses["ntp_loss"], arrays, meta, f"{kind}ntp_loss")
            assert_close(losses["align_loss"], arrays, meta, f"{kind}align_loss_{name}")
            assert_close(losses["loss"], arrays, meta, f"{kind}total_loss_{name}")


# --- parts of a batch, recomputed blocks, half precision ----------------------------------------


def part_of(batch: Drawn, process: int, processes: int) -> Drawn:
    own, labelled = slice(process, None, processes), batch.tokens.labels >= 0
    return replace(
        batch,
        tokens=batch.tokens.rows(own),
        shown=batch.shown[own],
        share=int(labelled[own].sum()) / int(labelled.sum()) * processes,
        row_share=len(batch.shown[own]) / len(batch.shown) * processes,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"align_positions": "release"},
        {"align_layer": "1,3", "align_loss": "l1", "align_schedule": "rise"},
        {"align_loss": "contrastive"},
    ],
)
def test_the_mean_over_the_parts_of_a_batch_is_the_whole(model, batch, settings, monkeypatch):
    objective = objective_of(model, weight=0.4, **settings)
    batch = replace(batch, step=3)
    whole = objective(batch)
    order, losses = torch.cat([torch.arange(5)[0::2], torch.arange(5)[1::2]]), []
    for process, offset in ((0, 0), (1, 3)):
        everyone = (batch.shown[order], offset)
        monkeypatch.setattr("train.alignment.every_target", lambda _, everyone=everyone: everyone)
        losses.append(objective(part_of(batch, process, 2)))
    for name, value in whole.items():
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, value, msg=name)
    ours = gradients(objective, (losses[0]["loss"] + losses[1]["loss"]) / 2)
    for name, gradient in gradients(objective, whole["loss"]).items():
        torch.testing.assert_close(ours[name], gradient, msg=name, atol=1e-6, rtol=1e-4)


PROCESS = """
import sys, torch, torch.distributed as dist
from train.alignment import every_target
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
from accelerate import PartialState
PartialState(cpu=True)
targets = torch.arange(60.0).view(5, 4, 3)
every, offset = every_target(targets[:2] if rank else targets[2:])
assert torch.equal(every, targets[[2, 3, 4, 0, 1]]), every
assert offset == (3 if rank else 0)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_see_all_targets_and_know_which_are_their_own(tmp_path):
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said


def test_recomputed_blocks_give_the_gradients_of_kept_ones(batch):
    model = build(SIZES, seed=1)
    objective = objective_of(model, weight=0.5, align_layer="1,3")
    plain = gradients(objective, objective(batch)["loss"])
    checkpoint_blocks(model.llm)
    assert any(getattr(block, "gradient_checkpointing", False) for block in model.llm.modules())
    for name, gradient in gradients(objective, objective(batch)["loss"]).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
    alone = objective_of(model, weight=0.0)
    first = "model.llm.base_model.model.model.layers.0.post_layernorm.weight"
    assert not torch.allclose(plain[first], gradients(alone, alone(batch)["loss"])[first])


def test_beside_a_half_precision_llm_the_alignment_is_in_single(batch):
    model = build(SIZES, seed=1)
    single = objective_of(model)(batch)["align_loss"]
    for name, parameter in model.llm.named_parameters():
        if parameter.ndim == 2 and "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    objective = objective_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(batch)
    assert losses["align_loss"].dtype == torch.float32
    torch.testing.assert_close(losses["align_loss"], single, atol=0.02, rtol=0)
    found = gradients(objective, losses["loss"])
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["alignment_projector.projector.0.weight"].dtype == torch.float32
