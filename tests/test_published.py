"""Published files at a reduced size: what a folder of them becomes, and what is refused."""

import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import TINY
from train.checkpoint import train_only
from train.config import ModelConfig
from train.losses import AlignmentProjector
from train.models import phi, qformer
from train.models.experts import MixtureOfQueryExperts
from train.models.minigpt3d import build
from train.models.phi import fuse_split
from train.objectives import CaptionObjective, language_parameters
from train.prompts import collate, encode_conversation
from train.published import load_folder, published_names
from train.published_files import CHAINS, FINETUNE, STAGE3, STAGE4, TINYGPTV, find_files
from train.stages import add_experts, learner, trained_in
from train.weight_files import read_weights, weight_files

PHI = phi.PUBLISHED_PREFIX
PATHS = {
    "encoder": "pc_encoder/point_model.pth",
    "blip2": "blip2_pretrained_flant5xxl.pth",
    "tinygpt-v": "TinyGPT_V_stage_3/TinyGPT-V_for_Stage3.pth",
    "stage-3": "MiniGPT_3D_stage_3/MiniGPT_3D_stage_3.pth",
    "stage-4": "MiniGPT_3D_stage_4/MiniGPT_3D_stage_4.pth",
    "pretrain": "pointalign/pretrain.pth",
    "finetune": "pointalign/finetune.pth",
}


def values(shapes, seed):
    """A random tensor for each name; those of integer buffers stay integers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in shapes.items():
        if tensor.is_floating_point():
            drawn = 0.2 * torch.randn(tensor.shape, generator=generator)
            state[name] = drawn.abs() + 0.5 if name.endswith("running_var") else drawn
        else:
            state[name] = torch.tensor(seed)
    return state


def in_memory(path):
    """Tensors of a file that is about to be overwritten: they must not lie in it any more."""
    return {name: value.clone() for name, value in read_weights(path).items()}


def some(state, wanted):
    return {name: value for name, value in state.items() if wanted(name)}


def encoder_copies(state):
    """What every stage file holds beside what it trained: the encoder, halved, and buffers."""
    copies = {}
    for name, value in some(state, lambda n: n.startswith("point_encoder.")).items():
        linear = value.ndim > 1 and "cls_" not in name
        copies[name] = value.half() if linear else value
        if "running_" in name or "num_batches" in name:
            copies[name.replace("point_encoder.", "pc_encoder.")] = value
    return copies | {qformer.POSITION_IDS: torch.arange(8)[None]}


def save_stage(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    rest = {"optimizer": {"state": {}}, "config": {"run": {"lr": 1e-5}}, "scaler": {}, "epoch": 2}
    torch.save({"model": tensors} | rest, path)


def split_by_head(state, heads):
    """Fused projections as today's Phi-2 has them: three of them, names without prefix."""
    apart = {}
    for name, value in state.items():
        name = name.removeprefix(PHI)
        if ".query_key_value." in name:
            by_head = value.unflatten(0, (heads, 3, -1))
            for index, part in enumerate("qkv"):
                own = by_head[:, index].flatten(0, 1).contiguous()
                apart[name.replace("query_key_value", f"{part}_proj")] = own
        else:
            apart[name] = value
    return apart


def save_phi(folder, state, tokenizer, dtype=torch.float32):
    """Two shards, their index, config and tokenizer."""
    folder.mkdir(parents=True)
    state = {name: value.to(dtype) for name, value in state.items()}
    names = sorted(state)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for shard, held in shards.items():
        save_file({name: state[name].contiguous() for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {
        "hidden_size": TINY.llm_width,
        "num_attention_heads": TINY.llm_heads,
        "rope_parameters": {"partial_rotary_factor": TINY.llm_rotary},
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    tokenizer.save(str(folder / "tokenizer.json"))


class Weights:
    """A folder of published files, and what each of them says of the model's tensors."""

    def __init__(self, folder, tokenizer):
        self.folder = folder
        with torch.device("meta"):
            model = build(TINY)
        own = model.state_dict()
        shapes = {name: own[ours] for name, ours in published_names(model).items()}
        base = values(shapes, 0)
        never = set(some(shapes, phi.NEVER_PUBLISHED.search))
        self.base = {
            name: value
            for name, value in base.items()
            if name not in never and ".lora_" not in name and not added(name) and not mlp(name)
        }
        self.phi = some(self.base, lambda n: n.startswith("llama_model."))
        self.blip2 = some(self.base, lambda n: n.startswith(("Qformer.", "query_tokens")))
        self.encoder = some(self.base, lambda n: n.startswith("point_encoder."))
        self.tinygptv = some(values(shapes, 1), TINYGPTV.needs)
        self.stage3 = some(values(shapes, 2), STAGE3.needs)
        self.pretrain = some(values(shapes, 3), STAGE3.needs)
        self.finetune = some(values(shapes, 4), FINETUNE.needs)
        projector = AlignmentProjector(TINY.llm_width, TINY.qformer_width)
        names = {f"alignment_projector.{n}": v for n, v in projector.state_dict().items()}
        self.projector = values(names, 5)
        experts = MixtureOfQueryExperts(
            feature_width=TINY.encoder_width,
            hidden_size=TINY.qformer_width,
            queries=TINY.queries,
            experts=3,
            router_width=7,
        )
        self.experts = values(experts.state_dict(), 6)
        save_phi(folder / "Phi_2", split_by_head(self.phi, TINY.llm_heads), tokenizer)
        noise = {"ln_vision.weight": torch.ones(3), "t5_proj.bias": torch.ones(2)}
        noise["Qformer.bert.encoder.layer.0.intermediate.dense.bias"] = torch.ones(2)
        torch.save({"model": self.blip2 | noise}, folder / PATHS["blip2"])
        bare = {n.removeprefix("point_encoder."): value for n, value in self.encoder.items()}
        (folder / "pc_encoder").mkdir()
        torch.save({"base_model": bare}, folder / PATHS["encoder"])
        for name, trained in (
            ("tinygpt-v", self.tinygptv),
            ("stage-3", self.stage3),
            ("pretrain", self.pretrain),
            ("finetune", self.finetune | self.projector),
        ):
            self.save(name, trained)
        queries = {"query_tokens": self.experts["query_expert_dict.0"]}
        self.save("stage-4", self.experts | queries)

    def save(self, name, trained):
        save_stage(self.folder / PATHS[name], trained | encoder_copies(self.encoder))

    def expected(self, *stages):
        """Published tensors of the whole model, of equal names the last file's."""
        state = dict(self.base)
        for stage in stages:
            state |= stage
        return state


def added(name):
    return phi.ADDED.search(name) is not None


def mlp(name):
    return name.startswith("point_2_Qformer_proj.")


@pytest.fixture
def weights(tmp_path, tiny_tokenizer):
    return Weights(tmp_path / "weights", tiny_tokenizer)


def assert_holds(model, expected, fresh):
    own = model.state_dict()
    names = published_names(model)
    assert names.keys() == expected.keys() | set(fresh)
    for name, value in expected.items():
        assert torch.equal(own[names[name]], value), name


def batch(tokenizer):
    turns = [("What is this?", "a ball, a stick")]
    return collate([encode_conversation(tokenizer, turns, points=TINY.queries)], 0)


# --- a folder becomes a model -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("upto", "stages"),
    [
        ("stage-3", ["stage3"]),
        ("pointalign-pretrain", ["pretrain"]),
        ("pointalign-finetune", ["pretrain", "finetune"]),
    ],
)
def test_every_tensor_of_the_model_is_the_last_file_s(weights, upto, stages):
    found = load_folder(weights.folder, TINY, upto=upto)
    biases = {n for n in published_names(found.model) if phi.NEVER_PUBLISHED.search(n)}
    assert set(found.fresh) == biases and len(biases) == 2 * TINY.llm_depth
    expected = weights.expected(*(getattr(weights, stage) for stage in stages))
    assert_holds(found.model, expected, biases)
    zeros = [found.model.state_dict()[published_names(found.model)[name]] for name in biases]
    assert not any(zero.any() for zero in zeros)
    assert not any(t.is_meta for t in (*found.model.parameters(), *found.model.buffers()))


def test_the_loaded_model_computes_what_the_strict_loader_of_the_classes_computes(
    weights, tiny_tokenizer
):
    found = load_folder(weights.folder, TINY)
    plain = build(TINY, seed=8).eval()
    plain.load_published(weights.expected(weights.pretrain))
    points = torch.rand(1, TINY.points, 6, generator=torch.Generator().manual_seed(7))
    asked = batch(tiny_tokenizer)
    with torch.no_grad():
        ours = found.model(asked, points=points, logits=True)
        theirs = plain(asked, points=points, logits=True)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)
    assert found.tokenizer.to_str() == tiny_tokenizer.to_str()
    assert not found.model.training
    trains = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert {name for name, p in found.model.named_parameters() if p.requires_grad} == trains


def test_nothing_of_the_model_lies_in_the_files_any_more(weights):
    model = load_folder(weights.folder, TINY).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for source in load_folder(weights.folder, TINY).sources:
        with source.path.open("r+b") as file:
            file.write(bytes(source.path.stat().st_size))
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_before_stage_one_the_mlp_is_drawn_and_the_lora_does_nothing(weights):
    found = load_folder(weights.folder, TINY, upto="tinygpt-v", seed=4)
    expected = weights.expected(weights.tinygptv)
    assert_holds(found.model, expected, found.fresh)
    fresh = [n for n in found.fresh if not phi.NEVER_PUBLISHED.search(n)]
    assert all(mlp(name) or (name.startswith("Qformer.") and ".lora_" in name) for name in fresh)
    own, names = found.model.state_dict(), published_names(found.model)
    for name in fresh:
        assert bool(own[names[name]].any()) == (".lora_B." not in name), name
    again = load_folder(weights.folder, TINY, upto="tinygpt-v", seed=4).model.state_dict()
    other = load_folder(weights.folder, TINY, upto="tinygpt-v", seed=5).model.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert not torch.equal(own["mlp.first.weight"], other["mlp.first.weight"])


def test_stage_four_brings_the_query_experts_and_shares_the_queries(weights):
    found = load_folder(weights.folder, TINY, upto="stage-4")
    queries = found.model.qformer.query_tokens
    assert found.experts is found.model.experts
    assert found.experts.query_expert_dict["0"] is queries
    assert torch.equal(found.first_queries, weights.blip2["query_tokens"])
    for name, value in found.experts.state_dict().items():
        assert torch.equal(value, weights.experts[name]), name
    expected = weights.expected(weights.stage3, {"query_tokens": queries.detach()})
    assert_holds(found.model, expected, found.fresh)
    assert found.alignment_projector is None
    points = torch.rand(2, TINY.points, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        seen = found.model.point_encoder(points)
        read = found.experts(seen, found.model.mlp(seen), found.model.qformer)
        assert torch.equal(found.model.encode(points), read)


def test_pointalign_s_projector_comes_with_its_second_stage(weights):
    found = load_folder(weights.folder, TINY, upto="pointalign-finetune")
    for name, value in found.alignment_projector.state_dict().items():
        assert torch.equal(value, weights.projector[f"alignment_projector.{name}"]), name
    assert load_folder(weights.folder, TINY).alignment_projector is None


def test_each_tensor_of_each_file_is_used_or_a_copy_or_named(weights):
    found = load_folder(weights.folder, TINY)
    held = {}
    for source in found.sources:
        held[source.path.name] = len(read_weights(source.path))
        assert source.used + source.copies + len(source.dropped) == held[source.path.name]
        assert str(source.used) in str(source) and source.sha256[:12] in str(source)
    *_, blip2, encoder, pretrain = found.sources
    assert len(found.sources) == 5 and len(found.hashes()) == 5
    assert blip2.used == len(weights.blip2) and len(blip2.dropped) == 3
    assert "3 not read (Qformer 1, ln_vision 1, t5_proj 1)" in str(blip2)
    assert encoder.used == len(weights.encoder) and not encoder.dropped
    assert pretrain.used == len(weights.pretrain) and pretrain.dropped == (qformer.POSITION_IDS,)
    assert pretrain.copies == len(weights.encoder) + 6 and pretrain.replaced == 0


def test_another_encoder_in_a_later_file_wins_and_that_is_said(weights):
    other = {name: value.clone() for name, value in encoder_copies(weights.encoder).items()}
    other["point_encoder.norm.bias"] += 1
    save_stage(weights.folder / PATHS["pretrain"], weights.pretrain | other)
    found = load_folder(weights.folder, TINY)
    bias = found.model.state_dict()["point_encoder.norm.bias"]
    assert torch.equal(bias, weights.encoder["point_encoder.norm.bias"] + 1)
    assert found.sources[-1].replaced == 1
    assert "1 of the encoder differ from the file before and win" in str(found.sources[-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_only_the_llm_s_own_matrices_are_held_in_half_precision(weights, tiny_tokenizer, dtype):
    found = load_folder(weights.folder, TINY, dtype=dtype)
    for name, value in found.model.state_dict().items():
        if not value.is_floating_point():
            continue
        base = name.startswith("llm.") and "lora_" not in name and "norm" not in name
        assert value.dtype == (dtype if base else torch.float32), name
    whole = load_folder(weights.folder, TINY).model
    points = torch.rand(1, TINY.points, 6, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        exact = whole(batch(tiny_tokenizer), points=points).loss
        with torch.autocast("cpu", dtype=dtype):
            loss = found.model(batch(tiny_tokenizer), points=points).loss
    # bfloat16 keeps 8 bits: 4e-3 a number; the loss is a mean over rounding of both signs.
    torch.testing.assert_close(loss, exact, rtol=2e-2, atol=0)


# --- other forms of the same files ------------------------------------------------------------


def test_a_phi_folder_may_be_fused_or_split_shards_or_one_file(weights, tiny_tokenizer):
    split = in_memory(weights.folder / "Phi_2")
    fused = fuse_split({PHI + name: value for name, value in split.items()}, TINY.llm_heads)
    assert fused.keys() == weights.phi.keys()
    folder = weights.folder / "Phi_2"
    for file in weight_files(folder):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    torch.save({n.removeprefix(PHI): v for n, v in fused.items()}, folder / "pytorch_model.bin")
    assert_holds(
        load_folder(weights.folder, TINY).model,
        weights.expected(weights.pretrain),
        [n for n in published_names(build(TINY)) if phi.NEVER_PUBLISHED.search(n)],
    )


def test_the_q_former_may_come_from_the_converted_blip2_and_only_its_shard_is_opened(weights):
    (weights.folder / PATHS["blip2"]).unlink()
    folder = weights.folder / "blip2-flan-t5-xxl"
    folder.mkdir()
    converted = {}
    for name, value in weights.blip2.items():
        name = name.replace(".self.", ".attention.").replace("embeddings.LayerNorm", "layernorm")
        converted[name.replace("Qformer.bert.", "qformer.")] = value.contiguous()
    assert "qformer.encoder.layer.0.crossattention.attention.key.weight" in converted
    save_file(converted, folder / "model-00002-of-00002.safetensors")
    index = dict.fromkeys(converted, "model-00002-of-00002.safetensors")
    index["vision_model.embeddings.class_embedding"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    found = load_folder(weights.folder, TINY)
    assert_holds(found.model, weights.expected(weights.pretrain), found.fresh)


def test_an_encoder_as_pointllm_keeps_it_and_stages_as_safetensors_are_read(weights):
    bare = {n.removeprefix("point_encoder."): value for n, value in weights.encoder.items()}
    module = {f"module.point_encoder.{name}": value for name, value in bare.items()}
    module["module.logit_scale"] = torch.ones(())
    torch.save({"state_dict": module}, weights.folder / PATHS["encoder"])
    path = weights.folder / PATHS["pretrain"]
    save_file(in_memory(path), path.with_suffix(".safetensors"))
    path.unlink()
    found = load_folder(weights.folder, TINY)
    assert_holds(found.model, weights.expected(weights.pretrain), found.fresh)
    assert found.sources[-2].dropped == ("module.logit_scale",)


def test_a_phi_folder_that_has_the_added_norms_makes_up_for_a_stage_without(weights):
    norms = some(weights.pretrain, lambda n: added(n) and ".lora_" not in n)
    path = weights.folder / "Phi_2" / "model-00001-of-00002.safetensors"
    index = weights.folder / "Phi_2" / "model.safetensors.index.json"
    more = {name.removeprefix(PHI): value for name, value in norms.items()}
    listed = json.loads(index.read_text())["weight_map"] | dict.fromkeys(more, path.name)
    index.write_text(json.dumps({"weight_map": listed}))
    save_file(in_memory(path) | more, path)
    weights.save("pretrain", {n: v for n, v in weights.pretrain.items() if n not in norms})
    found = load_folder(weights.folder, TINY)
    assert_holds(found.model, weights.expected(weights.pretrain), found.fresh)


# --- what is refused --------------------------------------------------------------------------


def test_absent_files_are_listed_with_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_folder(tmp_path, TINY)
    for path in ("Phi_2", PATHS["blip2"], PATHS["encoder"], PATHS["pretrain"]):
        assert path in str(error.value)
    assert "finetune" not in str(error.value)


def test_a_phi_folder_without_tokenizer_or_a_shard_is_named(weights):
    (weights.folder / "Phi_2" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model-00002-of-00002\.safetensors, which"):
        load_folder(weights.folder, TINY)
    (weights.folder / "Phi_2" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no Phi_2/tokenizer\.json"):
        load_folder(weights.folder, TINY)


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(weights, tmp_path, form):
    path, ran = weights.folder / PATHS["pretrain"], tmp_path / "ran"
    content = {"model": weights.pretrain, "scaler": Payload(f"touch {ran}")}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": {}, "scaler": Payload(f"touch {ran}")}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    # Newer pickles than torch writes are refused at sight, before any name in them is read.
    wants = "a newer pickle than torch.save writes" if form == "pickle" else r"(posix|nt)\.system"
    with pytest.raises(ValueError, match=f"asks for {wants}, .* must not run code") as error:
        load_folder(weights.folder, TINY)
    assert "pretrain.pth" in str(error.value) and "\n" not in str(error.value)
    assert not ran.exists()


@pytest.mark.parametrize("old", [False, True])
def test_a_file_cut_short_anywhere_is_one_sentence(tmp_path, old):
    path = tmp_path / "cut.pth"
    state = {"model": {str(at): torch.ones(40, 40) for at in range(3)}}
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    assert read_weights(path).keys() == state["model"].keys()
    for length in [*range(0, 600, 13), *range(600, len(whole), 977), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pth (can't be read: it is cut|asks)") as error:
            read_weights(path)
        # Only in the old form a cut can fall into a name, which then is one that nobody knows.
        assert "\n" not in str(error.value) and (old or "asks" not in str(error.value))


def test_a_cut_safetensors_and_things_that_are_no_weights_are_one_sentence(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        read_weights(path)
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not tensors by name"):
        read_weights(tmp_path / "list.pth")
    torch.save({"model": {"a": torch.ones(2), "epoch": 3}}, tmp_path / "mixed.pth")
    with pytest.raises(ValueError, match="'epoch' is a int, not a tensor"):
        read_weights(tmp_path / "mixed.pth")
    torch.save({"model": {"a": torch.ones(2), 1: torch.ones(2)}}, tmp_path / "number.pth")
    with pytest.raises(ValueError, match=r"number\.pth: 1 is a int, not a name"):
        read_weights(tmp_path / "number.pth")
    for shards in (None, [], {"a": 1}, {"a": None}, {"a": "../x.safetensors"}):
        index = {} if shards is None else {"weight_map": shards}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="not an index of shards"):
            read_weights(tmp_path)


@pytest.mark.parametrize(
    ("place", "given", "sentence"),
    [
        ("pretrain", "stage-1", "is of stage I, and must be of stage II or III; it lacks"),
        ("pretrain", "stage-4", "is of stage IV, and must be of stage II or III"),
        ("pretrain", "finetune", "is of PointAlign's stage 2, and must be of stage II or III"),
        ("pretrain", "tinygpt-v", "is of TinyGPT-V, and must be of stage II or III"),
        ("finetune", "stage-3", "is of stage II or III, and must be of PointAlign's stage 2"),
        ("tinygpt-v", "stage-3", "is of stage II or III, and must be of TinyGPT-V"),
        ("stage-4", "stage-3", "is of stage II or III, and must be of stage IV"),
        ("stage-3", "nothing", "is of no stage, and must be of stage II or III"),
    ],
)
def test_a_file_of_another_stage_is_told_by_what_it_trained(weights, place, given, sentence):
    if given in PATHS:
        (weights.folder / PATHS[place]).write_bytes((weights.folder / PATHS[given]).read_bytes())
    else:
        weights.save(place, some(weights.stage3, mlp) if given == "stage-1" else {})
    with pytest.raises(ValueError, match=sentence):
        load_folder(weights.folder, TINY, upto=next(n for n in CHAINS if n.endswith(place)))


def test_without_the_added_norms_anywhere_one_sentence_says_so(weights):
    norms = some(weights.pretrain, lambda n: added(n) and ".lora_" not in n)
    assert len(norms) == 3 * TINY.llm_depth
    weights.save("pretrain", {n: v for n, v in weights.pretrain.items() if n not in norms})
    with pytest.raises(ValueError, match="12 norms that MiniGPT-3D adds to Phi-2 are") as error:
        load_folder(weights.folder, TINY)
    assert all(name in str(error.value) for name in norms)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("encoder", "blocks.blocks.0.attn.qkv.weight"),
        ("blip2", "query_tokens"),
        ("pretrain", f"{PHI}model.layers.3.self_attn.dense.lora_A.default.weight"),
        ("finetune", f"{PHI}model.final_layernorm.weight"),
    ],
)
def test_missing_unknown_and_mis_shaped_tensors_are_named_with_their_file(weights, file, name):
    path, upto = weights.folder / PATHS[file], "pointalign-finetune"
    whole = in_memory(path)
    wrong = [
        (whole | {name: torch.zeros(3, 5)}, rf"{name} \(3, 5\) instead of \("),
        ({other: value for other, value in whole.items() if other != name}, f"missing .*{name}"),
    ]
    if file != "blip2":  # of which all but the Q-Former is left aside
        wrong.append((whole | {"llama_proj3": torch.ones(2)}, "1 not known .*llama_proj3"))
    for state, sentence in wrong:
        torch.save({"model": state}, path)
        with pytest.raises(ValueError, match=sentence) as error:
            load_folder(weights.folder, TINY, upto=upto)
        assert path.name in str(error.value)


def test_a_phi_of_other_sizes_is_refused_by_its_config_or_its_shapes(weights):
    with pytest.raises(ValueError, match="num_attention_heads 2 instead of 4"):
        load_folder(weights.folder, replace(TINY, llm_heads=4))
    with pytest.raises(ValueError, match=r"partial_rotary_factor 0\.5 instead of 0\.25"):
        load_folder(weights.folder, replace(TINY, llm_rotary=0.25))
    with pytest.raises(ValueError, match=r"self_attn\.[qkv]_proj|fc1"):
        load_folder(weights.folder, replace(TINY, llm_ffn=48))
    with pytest.raises(ValueError, match="tokens, the model embeds 200"):
        load_folder(weights.folder, replace(TINY, vocabulary=200))
    for name in ("config.json", "tokenizer.json"):
        whole = (weights.folder / "Phi_2" / name).read_text()
        for text in (whole[:-9], "[]", '"a"', ""):
            (weights.folder / "Phi_2" / name).write_text(text)
            with pytest.raises(ValueError, match=f"{name} is not"):
                load_folder(weights.folder, TINY)
        (weights.folder / "Phi_2" / name).write_text(whole)
    path = weights.folder / "Phi_2" / "model-00001-of-00002.safetensors"
    state = in_memory(path)
    name = next(name for name in state if "q_proj.weight" in name or "k_proj.weight" in name)
    save_file(state | {name: torch.zeros(5, 7)}, path)
    with pytest.raises(ValueError, match=r"_proj\.weight \(5, 7\) instead of \(32, 32\)"):
        load_folder(weights.folder, TINY)


def test_a_phi_whose_json_is_of_something_else_is_one_sentence(weights):
    folder = weights.folder / "Phi_2"
    whole = (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"rope_parameters": [1]}')
    with pytest.raises(ValueError, match=r"config\.json: rope_parameters is a list"):
        load_folder(weights.folder, TINY)
    (folder / "config.json").write_text(whole)
    for text in ('{"a": 1}', "{}", '{"model": 3}'):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer") as error:
            load_folder(weights.folder, TINY)
        assert "\n" not in str(error.value)


def test_the_files_of_a_chain_are_found_without_opening_them(weights):
    for path in weights.folder.rglob("*.pth"):
        path.write_bytes(b"")
    found = find_files(weights.folder, "pointalign-finetune")
    assert tuple(found) == CHAINS["pointalign-finetune"]
    assert found[FINETUNE] == weights.folder / PATHS["finetune"]
    (weights.folder / PATHS["pretrain"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no PointAlign pretrain \(looked for"):
        find_files(weights.folder, "pointalign-finetune")


def test_two_unlike_copies_within_one_file_are_refused(weights):
    copies = encoder_copies(weights.encoder)
    name = "pc_encoder.encoder.first_conv.1.running_mean"
    save_stage(
        weights.folder / PATHS["pretrain"], weights.pretrain | copies | {name: copies[name] + 1}
    )
    with pytest.raises(ValueError, match="under two names, and the two differ"):
        load_folder(weights.folder, TINY)


def test_an_unknown_destination_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="upto='stage-5' must be one of tinygpt-v, stage-3"):
        load_folder(tmp_path, TINY, upto="stage-5")


# --- the counts of the published stages -------------------------------------------------------


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return CaptionObjective(build(ModelConfig()))


def test_each_stage_trains_as_many_parameters_as_published(full_size):
    sizes, union = ModelConfig(), {}
    with torch.device("meta"):
        model = build(sizes)
        for phase, count in (
            ("I-mlp", 1_378_432),
            ("II-brief", 47_417_984),
            ("III-mixed", 47_417_984),
            ("IV-experts", 395_528),
        ):
            if phase == "IV-experts":
                sizes = add_experts(model, sizes, None, "sparse", 0)
            trained = train_only(*learner(phase, model, sizes))
            assert sum(trained.values()) == count
            union |= trained
    assert sum(union.values()) == 47_788_936  # the paper's 47.8 M
    assert sum(p.numel() for p in model.experts.query_router.parameters()) == 198_920
    with torch.device("meta"):
        projector = AlignmentProjector(2560, 768)
    named = dict(full_size.named_parameters())
    language = {f"model.llm.{name}" for name in language_parameters(full_size.model.llm)}
    counted = sum(named[name].numel() for name in language)
    assert counted == 31_628_800
    assert counted + sum(p.numel() for p in projector.parameters()) == 39_939_584


def test_each_stage_file_must_hold_what_the_stage_trains(full_size):
    """The counts of the published files, less what all of them hold beside it."""
    model = full_size.model
    names = published_names(model)
    # The encoder under its second name, six buffers under its first, and one unread buffer.
    common = sum(name.startswith("point_encoder.") for name in names) + 6 + 1
    assert common == 167
    needed = {file: {n for n in names if file.needs(n)} for file in (STAGE3, STAGE4, FINETUNE)}
    parameters = [name for name, _ in full_size.named_parameters()]
    trained = set(filter(trained_in("III", model), parameters))
    assert {f"model.{names[name]}" for name in needed[STAGE3]} == trained
    language = {f"llm.{name}" for name in language_parameters(model.llm)}
    assert {names[name] for name in needed[FINETUNE]} == language
    assert len(list(filter(trained_in("I", model), parameters))) + common == 171
    assert len(needed[STAGE3]) + common == 571
    with torch.device("meta"):
        experts, projector = MixtureOfQueryExperts(), AlignmentProjector(2560, 768)
    assert len(needed[STAGE4]) + len(experts.state_dict()) + common == 180
    assert len(needed[FINETUNE]) + len(projector.state_dict()) + common == 430
