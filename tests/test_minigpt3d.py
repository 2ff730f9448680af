"""The whole model against the published code's numbers, and the properties a recipe relies on."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.golden import assert_close, golden, golden_clouds, recipe_state
from tests.test_prompts import BOS, Bytes
from train.capture import capture_hidden_states, short_forward
from train.config import NANO, ModelConfig
from train.losses import AlignmentProjector, alignment_loss
from train.models.experts import MixtureOfQueryExperts
from train.models.minigpt3d import MiniGPT3D, build
from train.models.phi import NEVER_PUBLISHED, trainable_norms
from train.prompts import (
    TEMPLATE,
    Batch,
    collate,
    encode_conversation,
    encode_prompts,
    encode_question,
    prefix,
)
from train.published import published_names

TINY = replace(
    NANO,
    points=256,
    encoder_width=48,
    encoder_depth=2,
    groups=16,
    group_size=8,
    patch_width=32,
    mlp_width=48,
    qformer_input=64,
    qformer_width=48,
    qformer_depth=2,
    qformer_ffn=64,
    projector_width=48,
    llm_width=48,
    llm_depth=4,
    llm_heads=4,
    llm_ffn=64,
    vocabulary=320,
    llm_dropout=0.0,
    llm_lora_dropout=0.0,
)
TURNS = [
    [("What is this?", "A chair.")],
    [("Describe the thing that you see here, all of it.", "A red lamp on one leg.")],
    [("What is it?", "A car."), ("Its color?", "Blue."), ("Can it move?", "Yes, on four wheels.")],
]


@pytest.fixture(scope="module")
def model() -> MiniGPT3D:
    model = build(TINY, seed=1).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith(("proj.second.weight", "embed_tokens.weight")):
            torch.nn.init.normal_(parameter)
    return model


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(len(TURNS), 256, 6, generator=generator)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return collate([encode_conversation(Bytes(), turns) for turns in TURNS], BOS)


def one(batch: Batch, row: int) -> Batch:
    """A row alone, without its padding."""
    tokens = int((batch.labels[row] != -100).nonzero().max()) + 1
    parts = (batch.input_ids, batch.labels, batch.attention_mask, batch.point_mask)
    return Batch(*(part[row : row + 1, :tokens] for part in parts))


# --- against the published code ---------------------------------------------------------------


def golden_model(meta: dict) -> tuple[MiniGPT3D, dict]:
    """The model of a golden with its weights, and the tensors that belong to another module."""
    phi = meta["config"]["phi"]
    sizes = replace(
        ModelConfig(),
        llm_width=phi["hidden_size"],
        llm_ffn=phi["intermediate_size"],
        llm_depth=phi["num_hidden_layers"],
        llm_heads=phi["num_attention_heads"],
        llm_context=phi["max_position_embeddings"],
        vocabulary=phi["vocab_size"],
        llm_dropout=0.0,
        llm_lora_dropout=0.0,
    )
    state = recipe_state(meta["state_dict"], meta["seed"])
    others = ("alignment_projector.", "query_expert_dict.", "query_router.")
    rest = {key: state.pop(key) for key in list(state) if key.startswith(others)}
    model = build(sizes)
    model.load_published(state)
    return model, rest


def golden_batches(meta: dict) -> dict[str, Batch]:
    """The single-round and the multi-round batch of a golden, each as wide as the golden's."""
    inputs, sequence = meta["inputs"], meta["sequence"]
    rows = {"": [([each["prompt"]], [each["answer"]]) for each in inputs["samples"]]}
    if "multi_round_samples" in inputs:
        rows["multi_"] = [
            ([TEMPLATE.format(question) for question in each["questions"]], each["answers"])
            for each in inputs["multi_round_samples"]
        ]
        widths = {"": sequence["single"]["length"], "multi_": sequence["multi_round"]["length"]}
    else:
        widths = {"": sequence["length"]}
    batches = {}
    for kind, conversations in rows.items():
        encoded = [encode_prompts(Bytes(), *each, points=32) for each in conversations]
        batches[kind] = widened(collate(encoded, BOS), widths[kind])
    return batches


def widened(batch: Batch, tokens: int) -> Batch:
    """The published code pads prompts and answers apart, so its rows are longer than needed."""
    more = (0, tokens - batch.input_ids.shape[1])
    return Batch(
        F.pad(batch.input_ids, more, value=BOS),
        F.pad(batch.labels, more, value=-100),
        F.pad(batch.attention_mask, more),
        F.pad(batch.point_mask, more),
    )


@pytest.fixture(scope="module", params=["pointalign_step", "pointalign_step_spread"])
def step(request):
    meta, arrays = golden(request.param)
    model, rest = golden_model(meta)
    projector = AlignmentProjector(meta["config"]["phi"]["hidden_size"], 768)
    projector.load_published(rest)
    with torch.no_grad():
        target = model.train().encode(golden_clouds(meta))
    return meta, arrays, model, projector, target, golden_batches(meta)


def test_targets_and_point_tokens_are_those_of_the_published_code(step):
    meta, arrays, model, _, target, _ = step
    some = meta["selected_queries"]
    assert_close(target[:, some], arrays, meta, "qformer_selected")
    assert_close(target.norm(dim=-1), arrays, meta, "qformer_norms")
    with torch.no_grad():
        tokens = model.projector(target)
    assert_close(tokens[:, some], arrays, meta, "pc_embeds_selected")
    assert_close(tokens.norm(dim=-1), arrays, meta, "pc_embeds_norms")


def test_targets_in_double_precision_are_the_published_ones_to_nine_digits():
    meta, arrays = golden("pointalign_step_spread")
    model, _ = golden_model(meta)
    some = meta["selected_queries"]
    with torch.no_grad():
        target = model.double().encode(golden_clouds(meta).double())
        tokens = model.projector(target)
    assert_close(target[:, some], arrays, meta, "qformer_selected_f64")
    assert_close(tokens[:, some], arrays, meta, "pc_embeds_selected_f64")


@pytest.mark.parametrize("kind", ["", "multi_"])
def test_both_losses_of_pointalign_are_those_of_the_published_code(step, kind):
    meta, arrays, model, projector, target, batches = step
    batch = batches[kind]
    layer, weight = meta["config"]["align_hidden_state_index"], meta["config"]["align_weight"]
    spans = meta["positions"]["multi_round" if kind else "single"]
    released = torch.zeros_like(batch.point_mask)
    released[:, spans["released_slice"]] = True
    with torch.no_grad(), capture_hidden_states(model.llm, [layer]) as states:
        output = model(batch, target=target, logits=True)
    hidden = states[layer]
    assert_close(output.loss, arrays, meta, f"{kind}ntp_loss")
    assert_close(output.logits.norm(dim=-1), arrays, meta, f"{kind}logits_norms")
    assert_close(hidden.norm(dim=-1), arrays, meta, f"{kind}hidden15_norms")
    embeds = model.embed(batch, target)
    assert_close(embeds.norm(dim=-1), arrays, meta, f"{kind}inputs_embeds_norms")
    for name, mask in (("released", released), ("point_positions", batch.point_mask)):
        projected = projector(hidden[mask].view(len(hidden), 32, -1))
        loss = alignment_loss(projected, target)
        cosine = F.cosine_similarity(projected, target, dim=-1)
        assert_close(loss, arrays, meta, f"{kind}align_loss_{name}")
        assert_close(cosine, arrays, meta, f"{kind}cosine_{name}")
        assert_close(output.loss + weight * loss, arrays, meta, f"{kind}total_loss_{name}")
    if not kind:
        some = hidden[batch.point_mask].view(len(hidden), 32, -1)[:, meta["selected_queries"]]
        assert_close(some, arrays, meta, "hidden15_point_positions_selected")
        last = torch.tensor(meta["sequence"]["single"]["prompt_lengths_without_bos"])
        scores = output.logits[torch.arange(len(last)), last]
        assert_close(scores, arrays, meta, "logits_last_prompt_token")


def test_gradients_of_the_released_loss_are_those_of_the_published_code(step):
    meta, _, model, projector, target, batches = step
    layer, weight = meta["config"]["align_hidden_state_index"], meta["config"]["align_weight"]
    released = torch.zeros_like(batches[""].point_mask)
    released[:, meta["positions"]["single"]["released_slice"]] = True
    norms = set(trainable_norms(model.llm))
    for name, parameter in model.llm.named_parameters():
        parameter.requires_grad_("lora_" in name or name in norms)
    model.zero_grad()
    projector.zero_grad()
    with capture_hidden_states(model.llm, [layer], released, detach=False) as states:
        loss = model(batches[""], target=target).loss
    (loss + weight * alignment_loss(projector(states[layer]), target)).backward()
    ours = {
        f"llama_model.{name}": parameter.grad
        for name, parameter in model.llm.named_parameters()
        if parameter.requires_grad
    }
    ours |= {
        f"alignment_projector.{name}": parameter.grad
        for name, parameter in projector.named_parameters()
    }
    theirs = meta["grad_l2_norms_of_total_loss_released"]
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        # The json gives no tolerance for gradients: 1e-5 as for what they come from.
        assert gradient.double().norm().item() == pytest.approx(theirs[name], rel=1e-5), name


def test_query_experts_lead_to_the_loss_of_the_published_code():
    meta, arrays = golden("minigpt3d_mqe_step_spread")
    model, rest = golden_model(meta)
    model.eval()
    experts = MixtureOfQueryExperts()
    experts.load_published(rest)
    with torch.no_grad():
        features = model.point_encoder(golden_clouds(meta))
        chosen, _ = experts.route(features)
        target = experts(features, model.mlp(features), model.qformer)
        tokens = model.projector(target)
        output = model(golden_batches(meta)[""], target=target, logits=True)
        embeds = model.embed(golden_batches(meta)[""], target)
    some = meta["selected_queries"]
    probabilities = experts.router_logits(features).softmax(dim=-1)
    assert_close(probabilities, arrays, meta, "router_probs")
    assert_close(chosen, arrays, meta, "selected_experts")
    assert_close(features.norm(dim=-1), arrays, meta, "point_token_norms")
    assert_close(target[:, some], arrays, meta, "pooled_selected")
    assert_close(target.norm(dim=-1), arrays, meta, "pooled_norms")
    assert_close(tokens[:, some], arrays, meta, "pc_embeds_selected")
    assert_close(tokens.norm(dim=-1), arrays, meta, "pc_embeds_norms")
    assert_close(embeds.norm(dim=-1), arrays, meta, "inputs_embeds_norms")
    assert_close(output.logits.norm(dim=-1), arrays, meta, "logits_norms")
    assert_close(output.loss, arrays, meta, "loss")


# --- properties -------------------------------------------------------------------------------


def test_published_sizes_have_the_published_counts():
    with torch.device("meta"):
        model = build(ModelConfig())

    def count(part):
        return sum(parameter.numel() for parameter in part.parameters())

    assert count(model.point_encoder) == 21_859_200
    assert count(model.mlp) == 1_378_432
    assert count(model.qformer) == 105_137_664 + 724_992 + 24_576
    assert count(model.projector) == 3_149_824 + 10_488_320
    assert count(model.llm) == 2_811_233_280


def test_the_same_seed_builds_the_same_model_and_leaves_the_generator_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = build(TINY, seed=5), build(TINY, seed=5), build(TINY, seed=6)
    assert torch.equal(torch.rand(1), expected)
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.llm.lm_head.weight, other.llm.lm_head.weight)


def test_without_lora_there_is_none_anywhere():
    assert not [name for name, _ in build(TINY, lora=False).named_parameters() if "lora" in name]


def test_the_loss_at_labelled_tokens_is_the_loss_of_the_full_head(model, batch, points):
    with torch.no_grad():
        short, full = model(batch, points=points), model(batch, points=points, logits=True)
        theirs = model.llm(
            inputs_embeds=model.embed(batch, model.encode(points)),
            attention_mask=batch.attention_mask,
            labels=batch.labels,
        )
    assert short.logits is None
    torch.testing.assert_close(full.logits, theirs.logits)
    torch.testing.assert_close(short.loss, theirs.loss)
    torch.testing.assert_close(full.loss, theirs.loss)


def test_the_short_head_gives_the_gradients_of_the_full_one(model, batch, points):
    target = model.encode(points).detach()

    def gradients(logits):
        model.zero_grad()
        model(batch, target=target, logits=logits).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    short, full = gradients(False), gradients(True)
    assert short.keys() == full.keys() and len(short) == 4 + 4 * 4
    for name, gradient in short.items():
        torch.testing.assert_close(gradient, full[name], msg=name)


def test_a_batch_has_the_token_mean_of_its_rows(model, batch, points):
    with torch.no_grad():
        together = model(batch, points=points).loss
        rows = range(len(points))
        alone = [model(one(batch, row), points=points[row : row + 1]).loss for row in rows]
    tokens = (batch.labels != -100).sum(dim=1)
    assert len(set(tokens.tolist())) == 3
    torch.testing.assert_close(together, (torch.stack(alone) * tokens).sum() / tokens.sum())


def test_point_tokens_stand_at_the_placeholder_and_text_everywhere_else(model, points):
    prompts = ["Look there: <PointCloudHere> what?", "<PointCloudHere>?"]
    encoded = [encode_prompts(Bytes(), [prompt], ["That."], points=32) for prompt in prompts]
    batch = collate(encoded, BOS)
    with torch.no_grad():
        target = model.encode(points[:2])
        embeds = model.embed(batch, target)
        tokens, text = model.projector(target), model.llm.get_input_embeddings()(batch.input_ids)
    for row, start in enumerate(each.point_start for each in encoded):
        assert torch.equal(embeds[row, start : start + 32], tokens[row])
    assert torch.equal(embeds[~batch.point_mask], text[~batch.point_mask])


def test_the_short_prefix_has_the_point_tokens_of_every_conversation(model, batch, points):
    layers = [0, 1, 3, 4]
    with torch.no_grad():
        target = model.encode(points)
        short = collate([prefix(Bytes(), 32)] * len(points), BOS)
        early = short_forward(model.llm, model.embed(short, target), layers, short.point_mask)
        with capture_hidden_states(model.llm, layers, batch.point_mask) as full:
            model(batch, target=target)
    for layer in layers:
        assert early[layer].shape == (len(points), 32, 48)
        torch.testing.assert_close(early[layer], full[layer], atol=1e-5, rtol=1e-5)


def test_the_target_is_constant_from_the_moment_a_model_is_built(points):
    model = build(TINY)
    torch.nn.init.normal_(model.qformer.get_parameter(lora_of(model)))
    assert torch.equal(model.encode(points), model.encode(points))


def lora_of(model: MiniGPT3D) -> str:
    return next(name for name, _ in model.qformer.named_parameters() if "lora_B" in name)


def test_encoder_and_qformer_evaluate_while_the_rest_trains(model, points):
    model.train()
    assert model.llm.training and model.projector.training
    modes = {part.training for part in (*model.point_encoder.modules(), *model.qformer.modules())}
    assert modes == {False}
    before = {name: value.clone() for name, value in model.point_encoder.named_buffers()}
    assert torch.equal(model.encode(points), model.encode(points))
    after = dict(model.point_encoder.named_buffers())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    model.eval()
    assert not model.llm.training


def test_checkpointed_blocks_pass_gradients_to_lora_on_a_frozen_model(batch, points):
    model = build(TINY, seed=7).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("llm" in name and "lora_" in name)
    target = model.encode(points)

    def gradients():
        model.zero_grad()
        model(batch, target=target).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = gradients()
    llm = model.llm.get_base_model()
    getattr(llm, "activation_checkpointing_enable", llm.gradient_checkpointing_enable)()
    for ours, theirs in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_generation_continues_the_question(model, points):
    question = encode_question(Bytes(), "What is this?")
    batch = collate([question] * len(points), BOS)
    with torch.no_grad():
        target = model.encode(points)
        said = model.llm.generate(
            inputs_embeds=model.embed(batch, target),
            attention_mask=batch.attention_mask,
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=BOS,
        )
        first = model(batch, target=target, logits=True)
    assert first.loss is None
    assert torch.equal(said[:, 0], first.logits[:, -1].argmax(dim=-1))


def test_a_forward_takes_points_or_target_and_not_both(model, batch, points):
    for given in ({}, {"points": points, "target": torch.zeros(3, 32, 48)}):
        with pytest.raises(ValueError, match="exactly one of them"):
            model(batch, **given)


def test_a_target_that_does_not_fit_the_prompts_is_an_error(model, batch):
    for target in (torch.zeros(3, 31, 48), torch.zeros(2, 32, 48)):
        with pytest.raises(ValueError, match=r"3 prompts with \[32, 32, 32\] point tokens"):
            model(batch, target=target)


def test_a_loss_of_nothing_is_an_error(model, points):
    batch = collate([encode_question(Bytes(), "What?")] * len(points), BOS)
    with pytest.raises(ValueError, match="3 samples without one labelled token"):
        model(batch, points=points)


def test_loading_names_the_faults_of_every_part(model):
    with pytest.raises(ValueError, match="unexpected alignment_projector") as error:
        model.load_published({"alignment_projector.projector.0.bias": torch.zeros(2)})
    for part in ("PointBERT", "PointMLP", "QFormer", "ModalityProjector", "LLM"):
        assert part in str(error.value)


def published(model: MiniGPT3D) -> dict[str, torch.Tensor]:
    """All tensors of a model under their published names, experts included."""
    own = model.state_dict()
    state = {name: own[ours] for name, ours in published_names(model).items()}
    if model.experts is not None:
        state |= model.experts.state_dict()
    return {name: value.clone() for name, value in state.items()}


def assert_same(model: MiniGPT3D, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in published(model).items())


@pytest.mark.parametrize("experts", [0, 3])
def test_each_missing_tensor_is_named_and_a_refused_state_changes_nothing(experts):
    sizes = replace(TINY, experts=experts, llm_depth=1, qformer_depth=2, encoder_depth=1)
    model, other = build(sizes, seed=1), build(sizes, seed=2)
    before, state = published(model), published(other)
    for lost in state:
        # Expert 0 is query_tokens, which is there too.
        if not NEVER_PUBLISHED.search(lost) and lost != "query_expert_dict.0":
            with pytest.raises(ValueError, match="1 missing") as refused:
                model.load_published({name: v for name, v in state.items() if name != lost})
            assert lost in str(refused.value)
    for name in state:
        with pytest.raises(ValueError) as refused:
            model.load_published(state | {name: torch.ones(1, 2, 3, 4, 5)})
        assert f"{name} (1, 2, 3, 4, 5) instead of" in str(refused.value)
        with pytest.raises(ValueError, match=f"'{name}' is a NoneType, not a tensor"):
            model.load_published(state | {name: None})
    assert_same(model, before)
    model.load_published(state)
    assert_same(model, state)


def test_all_of_many_missing_and_unexpected_tensors_are_named(model):
    unknown = [f"llama_model.extra.{at}" for at in range(20)] + ["stranger"]
    with pytest.raises(ValueError) as refused:
        model.load_published({name: torch.ones(1) for name in unknown})
    needed = [name for name in published(model) if not NEVER_PUBLISHED.search(name)]
    assert len(needed) > 150 and all(name in str(refused.value) for name in (*needed, *unknown))


def test_query_experts_load_with_their_model_and_are_unexpected_without():
    plain, sizes = build(TINY, seed=1), replace(TINY, experts=3)
    source, target = build(sizes, seed=2), build(sizes, seed=3)
    state = published(source)
    with pytest.raises(ValueError) as refused:
        plain.load_published(state)
    for name in source.experts.state_dict():
        assert f"unexpected {name}" in str(refused.value)
    target.load_published(state)
    assert_same(target, state)
    assert target.experts.query_expert_dict["0"] is target.qformer.query_tokens
    with pytest.raises(ValueError, match=r"'query_tokens' and 'query_expert_dict\.0' differ"):
        target.load_published(state | {"query_tokens": state["query_tokens"] + 1})
    with pytest.raises(ValueError, match=r"1 not known \(query_expert_dict\.3\)"):
        target.load_published(state | {"query_expert_dict.3": state["query_expert_dict.2"]})
    assert_same(target, state)
