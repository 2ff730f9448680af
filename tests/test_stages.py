"""The four stages at a size of seconds: what each trains, the chain from one to the next."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3ForCausalLM

from store import open_run
from tests.conftest import CLASSES, TINY, solids
from tests.test_published import PATHS, Weights
from train import stage1, stage2
from train.beginning import check_start
from train.checkpoint import load_first_queries, load_model, own_tensors, save_model
from train.config import MODELS, STAGE1, ModelConfig, Stage1Config, Stage2Config
from train.models.llm import bare
from train.models.minigpt3d import MiniGPT3D, build
from train.stages import ORDER, parse_stages, plan, trained_in

TRAINED = {"I": "I-mlp", "II": "II-brief", "III": "III-mixed", "IV": "IV-experts"}
STEPS = dict.fromkeys(
    ("language_steps", "encoder_steps", "bridge_steps", "mlp_steps", "brief_steps"), 2
) | {"mixed_steps": 4, "expert_steps": 6}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Folder of nine solids in the published layout, with conversations of every kind."""
    folder = tmp_path_factory.mktemp("annotated")
    (folder / "8192_npy").mkdir()
    points, labels = solids(9, 2)
    rows = {"train": [], "query": []}
    for at, (cloud, label) in enumerate(zip(points, labels, strict=True)):
        many = np.tile(cloud, (32, 1))
        colours = np.full((8192, 3), 0.5)
        np.save(folder / "8192_npy" / f"s{at}_8192.npy", np.hstack([many, colours]).astype("f4"))
        what = f"a {CLASSES[label]}"
        for kind, turns in {
            "simple_description": [("What is this?", what)],
            "detailed_description": [("Tell me all.", f"{what}, round or not")],
            "single_round": [("Is it big?", "yes")],
            "multi_round": [("What?", what), ("Sure?", "yes")],
        }.items():
            said = [
                {"from": who, "value": text}
                for pair in turns
                for who, text in zip(("human", "gpt"), pair, strict=True)
            ]
            row = {"object_id": f"s{at}", "conversation_type": kind, "conversations": said}
            rows["query" if at >= 6 else "train"].append(row)
    for split, listed in rows.items():
        (folder / f"{split}.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture(scope="module", autouse=True)
def tiny_presets():
    """The presets train, in this file, a model of a second."""
    kept = dict(MODELS)
    MODELS.update(nano=TINY, minigpt3d=TINY)
    yield
    MODELS.update(kept)


def config(annotated, out, stages, **settings) -> Stage1Config:
    settings = {"preset": "nano", "batch_size": 3, "save_every": 1, **STEPS, **settings}
    return Stage1Config(
        stages=stages, out=out, data="objaverse", data_root=annotated, threads=1, **settings
    )


@pytest.fixture(scope="module")
def chain(annotated, tmp_path_factory):
    """Stage -> folder of its run; each went on from the checkpoint of the one before."""
    folder, start, runs = tmp_path_factory.mktemp("chain"), None, {}
    for stage in ORDER:
        runs[stage] = folder / stage
        stage1.main(config(annotated, runs[stage], stage, start=start))
        start = runs[stage] / "checkpoint"
    return runs


@pytest.mark.parametrize("stage", ORDER[1:])
def test_a_stage_changes_what_it_trains_and_no_bit_of_the_rest(chain, stage):
    before, after = (chain[ORDER[ORDER.index(stage) - n]] / "checkpoint" for n in (1, 0))
    first, last = (load_file(folder / "model.safetensors") for folder in (before, after))
    model = load_model(after)[0]
    wanted = trained_in(stage, model)
    names = {n for n, _ in model.named_parameters() if wanted(f"model.{n}")}
    for name, value in first.items():
        if name not in names:
            assert torch.equal(last[name], value), name
    kept = load_file(chain[stage] / "training" / TRAINED[stage] / "trainer.safetensors")
    assert {n.removeprefix("model/model.") for n in kept if n.startswith("model/")} == names
    start = dict(load_model(before)[0].named_parameters())
    moved = {
        name for name in names & start.keys() if not kept[f"model/model.{name}"].equal(start[name])
    }
    # A Q-Former without cross-attention norms or an LLM without LoRA would train less than it says.
    assert moved == names & start.keys()
    assert last.keys() == first.keys() | (names - start.keys() if stage == "IV" else set())
    card = json.loads((after / "card.json").read_text())
    assert card["stage"] == stage and card["hashes"].keys() == {"data", "start"}


def test_stage_one_leaves_the_lora_of_the_qformer_without_effect(chain):
    model = load_model(chain["I"] / "checkpoint")[0]
    factors = [p for name, p in model.qformer.named_parameters() if ".lora_B." in name]
    assert factors and not any(factor.any() for factor in factors)


def test_patches_of_the_release_are_drawn_at_every_step_and_the_same_each_time(
    chain, annotated, tmp_path, monkeypatch
):
    """A random first centre and half-precision neighbours; each run reads its clouds anew."""
    asked, losses = [], {}
    faithful = MiniGPT3D.faithful
    monkeypatch.setattr(
        MiniGPT3D, "faithful", lambda *args, **kept: asked.append(kept) or faithful(*args, **kept)
    )
    released = {"fps_start": "random", "neighbour_precision": "float16", "mlp_steps": 3}
    start = chain["priors"] / "checkpoint"
    for name, more in {"one": released, "same": released, "ours": {"mlp_steps": 3}}.items():
        stage1.main(config(annotated, tmp_path / name, "I", start=start, **more))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["one"] == losses["same"] != losses["ours"]
    assert [(each["fps_start"], each["neighbour_precision"]) for each in asked] == [
        *[("random", "float16"), ("first", "float16")] * 2,
        *[("first", "float32")] * 2,
    ]


def test_experts_begin_with_the_queries_before_stage_two_and_share_the_first(chain):
    bridged = load_model(chain["priors"] / "checkpoint")[0].qformer.query_tokens
    first = load_first_queries(chain["IV"] / "checkpoint")
    torch.testing.assert_close(first, bridged, rtol=1e-3, atol=1e-5)  # the checkpoint is half
    later = load_model(chain["III"] / "checkpoint")[0].qformer.query_tokens
    assert not torch.equal(later, bridged)
    experts = load_model(chain["IV"] / "checkpoint")[0].experts
    for name, expert in experts.query_expert_dict.items():
        near, far = (later, bridged) if name == "0" else (bridged, later)
        assert (expert - near).abs().max() < (expert - far).abs().max(), name


def test_a_checkpoint_with_experts_loads_and_routes(chain):
    folder = chain["IV"] / "checkpoint"
    model, _, sizes = load_model(folder)
    assert (sizes.experts, sizes.router) == (8, "sparse") and not model.training
    assert model.experts.query_expert_dict["0"] is model.qformer.query_tokens
    held = load_file(folder / "model.safetensors")
    assert held.keys() == own_tensors(model).keys()
    assert "experts.query_expert_dict.0" not in held and "experts.query_expert_dict.7" in held
    clouds = torch.rand(3, TINY.points, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = model.point_encoder(clouds)
        chosen, weights = model.experts.route(features)
        states = model.mlp(features)
        for row in range(3):
            by_hand = sum(
                weight
                * model.qformer(states[row : row + 1], model.experts.query_expert_dict[str(e)])
                for e, weight in zip(chosen[row].tolist(), weights[row], strict=True)
            )
            torch.testing.assert_close(model.encode(clouds)[row], by_hand[0])


def test_a_model_with_experts_is_saved_and_read_bit_by_bit(tmp_path, tiny_tokenizer):
    sizes = replace(TINY, experts=3, router="soft", router_width=5)
    model = build(sizes, seed=4).eval()
    save_model(tmp_path / "whole", model, tiny_tokenizer, sizes, {}, half=False)
    read, _, again = load_model(tmp_path / "whole")
    assert again == sizes and load_first_queries(tmp_path / "whole") is None
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name
    assert [p.requires_grad for p in read.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    half, _, _ = load_model(tmp_path / "whole", torch.bfloat16)
    kinds = {name: value.dtype for name, value in half.state_dict().items()}
    assert kinds["experts.query_expert_dict.1"] == torch.float32
    assert kinds["llm.base_model.model.model.embed_tokens.weight"] == torch.bfloat16


KILLED = """
import json, os, signal, sys
from pathlib import Path
import tests.conftest, train.config, train.loop
from train import stage1
train.config.MODELS["nano"] = tests.conftest.TINY
keep, count = train.loop.save_trainer, [0]
def keep_and_die(*arguments):
    keep(*arguments)
    count[0] += 1
    if count[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
train.loop.save_trainer = keep_and_die
settings = json.loads(sys.argv[1])
settings |= {name: Path(settings[name]) for name in ("out", "start", "data_root")}
stage1.main(stage1.Stage1Config(**settings))
"""


def test_a_killed_stage_goes_on_and_ends_as_one_that_was_not(chain, annotated, tmp_path):
    asked = config(annotated, tmp_path / "run", "III", start=chain["II"] / "checkpoint")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
    call = [sys.executable, "-c", KILLED, json.dumps(settings)]
    ended = subprocess.run(call, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    trainer = tmp_path / "run" / "training" / "III-mixed" / "trainer.safetensors"
    assert trainer.is_file() and not (tmp_path / "run" / "checkpoint").exists()
    with pytest.raises(ValueError, match=r"other settings \(seed was 0, now 1\); repeat"):
        stage1.main(replace(asked, seed=1))
    stage1.main(asked)
    ours, theirs = (
        folder / "checkpoint" / "model.safetensors" for folder in (tmp_path / "run", chain["III"])
    )
    assert ours.read_bytes() == theirs.read_bytes()


def test_several_stages_in_one_call_are_the_chain_but_for_its_rounding(chain, annotated, tmp_path):
    start = chain["I"] / "checkpoint"
    stage1.main(config(annotated, tmp_path / "run", "II,III", start=start, cache=False))
    here = losses(tmp_path / "run")
    # The encoder sees 3 clouds at once instead of 6, in float32; between the stages of the chain
    # the checkpoint keeps 11 bits.
    assert here["II-brief"] == pytest.approx(losses(chain["II"])["II-brief"], rel=1e-5)
    assert here["III-mixed"] == pytest.approx(losses(chain["III"])["III-mixed"], rel=1e-3)


def losses(folder: Path) -> dict[str, float]:
    """Phase -> loss of its last step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["variant"]: line["loss"] for line in lines}


# --- the published start ----------------------------------------------------------------------


@pytest.fixture
def other_precision():
    """accelerate keeps the precision of a process: here it may change."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("stage", ["I", "IV"])
@pytest.mark.usefixtures("other_precision")
def test_published_weights_are_a_start(annotated, tmp_path, tiny_tokenizer, stage, monkeypatch):
    """Of the sizes in the folder's config.json; the next stage goes on from its checkpoint."""
    monkeypatch.setitem(MODELS, "minigpt3d", ModelConfig())
    weights = Weights(tmp_path / "weights", tiny_tokenizer)
    (weights.folder / "config.json").write_text(json.dumps(asdict(TINY)))
    call = config(
        annotated,
        tmp_path / "run",
        stage,
        preset="minigpt3d",
        weights=weights.folder,
        precision="bf16",
        batch_size=0,
        qformer_dropout="always",
        gradient_checkpointing=True,
        cache=False,
        clip=0.0,
    )
    stage1.main(call)
    _, tokenizer, sizes = load_model(tmp_path / "run" / "checkpoint")
    assert tokenizer.to_str() == tiny_tokenizer.to_str()
    first = load_first_queries(tmp_path / "run" / "checkpoint")
    assert torch.equal(first, weights.blip2["query_tokens"])
    held = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    for name, value in held.items():
        base = name.startswith("llm.") and "lora_" not in name and "norm" not in name
        assert value.dtype == (torch.bfloat16 if base else torch.float32) or name.endswith(
            "batches_tracked"
        )
    norm = held["llm.base_model.model.model.final_layernorm.weight"]
    file = weights.tinygptv if stage == "I" else weights.stage3
    assert torch.equal(norm, next(v for n, v in file.items() if "final_layernorm.weight" in n))
    assert replace(sizes, experts=0) == TINY and sizes.experts == (8 if stage == "IV" else 0)
    if stage == "I":
        after = {"stages": "II", "out": tmp_path / "next", "start": tmp_path / "run" / "checkpoint"}
        check_start(replace(call, weights=None, **after), "II")
    else:
        moved = (held["experts.query_expert_dict.5"] - first).abs().max()
        assert 0 < moved < 1e-3
    card = json.loads((tmp_path / "run" / "checkpoint" / "card.json").read_text())
    place = Path(PATHS["tinygpt-v" if stage == "I" else "stage-3"])
    assert f"{place.parent.name}/{place.name}" in card["hashes"]


def test_a_llama_from_a_folder_takes_phi_2s_place_and_goes_on(
    annotated, solids_folder, tmp_path, tiny_tokenizer
):
    torch.manual_seed(8)
    grouped = LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    llama = LlamaForCausalLM(grouped)
    llama.save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save(str(tmp_path / "llama" / "tokenizer.json"))
    weights = Weights(tmp_path / "weights", tiny_tokenizer)
    for path in ("Phi_2/config.json", "TinyGPT_V_stage_3/TinyGPT-V_for_Stage3.pth"):
        (weights.folder / path).unlink()  # nothing of Phi-2 is asked for
    large = {"preset": "minigpt3d", "precision": "no"}
    first = config(
        annotated, tmp_path / "I", "I", weights=weights.folder, llm=tmp_path / "llama", **large
    )
    stage1.main(first)
    second = tmp_path / "I" / "checkpoint"
    stage1.main(config(annotated, tmp_path / "III", "II,III", start=second, **large))
    model, _, sizes = load_model(tmp_path / "III" / "checkpoint")
    assert (sizes.llm_type, sizes.llm_depth, sizes.llm_width) == ("llama", 3, 24)
    assert bare(model.llm).config.num_key_value_heads == 2
    body, theirs = bare(model.llm).base_model, llama.base_model
    assert torch.equal(body.embed_tokens.weight, theirs.embed_tokens.weight)
    mlp = "layers.2.mlp.gate_proj.weight"
    assert torch.equal(body.get_parameter(mlp), theirs.get_parameter(mlp))
    encoder = model.point_encoder.state_dict()["norm.weight"]
    assert torch.equal(encoder, weights.encoder["point_encoder.norm.weight"])
    out = tmp_path / "stage2"
    stage2.main(
        Stage2Config(
            preset="minigpt3d",
            stage1=tmp_path / "III" / "checkpoint",
            data="modelnet",
            data_root=solids_folder,
            out=out,
            capture_layers="all",
            align_layer=2,
            steps=2,
            batch_size="2",
            neighbours="1",
            precision="no",
            threads=1,
        )
    )
    assert open_run(out).hidden("aligned").sizes["layer"] == 4


def test_a_phi_3_from_nothing_is_a_flag(annotated, tmp_path):
    stage1.main(config(annotated, tmp_path / "run", "priors,I", llm_type="phi-3"))
    model, _, sizes = load_model(tmp_path / "run" / "checkpoint")
    assert sizes.llm_type == "phi-3" and isinstance(bare(model.llm), Phi3ForCausalLM)


def test_the_published_rates_batches_and_steps():
    phases = {stage: plan(stage, STAGE1["minigpt3d"])[0] for stage in ORDER[1:]}
    assert [phases[stage].schedule.steps for stage in phases] == [70_000, 70_000, 30_000, 10_000]
    rates = {stage: phase.schedule.rate for stage, phase in phases.items()}
    # The fact sheet of the release: the cosine counts from step 0, so the rate steps down.
    assert rates["I"](6999) == pytest.approx(2.9996e-5, rel=1e-4)
    assert rates["I"](7000) == pytest.approx(2.9511e-5, rel=1e-4)
    assert rates["III"](2999) == pytest.approx(9.997e-6, rel=1e-4)
    assert rates["III"](3000) == pytest.approx(9.780e-6, rel=1e-4)
    assert rates["IV"](0) == 1e-6 and rates["IV"](9999) == pytest.approx(1e-6, rel=1e-3)
    assert rates["II"] is not rates["I"] and rates["II"](35_000) == pytest.approx(2e-5)
    mix = phases["III"]
    total = sum(mix.kinds.values())
    mean = sum(mix.size[kind] * often for kind, often in mix.kinds.items()) / total
    assert mean == 6.75  # 202.5 thousand samples in stage III
    assert phases["IV"].kinds == mix.kinds and phases["IV"].size == mix.size
    assert phases["I"].size[next(iter(phases["I"].kinds))] == 9
    assert math.isclose(sum(p.schedule.steps for p in phases.values()), 180_000)


# --- wrong calls ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "settings", "sentence"),
    [
        ("III,II", {}, "II does not follow III; the order is priors, I, II, III, IV"),
        ("I,III", {}, "III does not follow I"),
        ("I,V", {}, "there is no stage 'V'; they are priors, I, II, III, IV"),
        ("", {}, "there is no stage ''"),
        ("IV", {}, "stage IV begins with a checkpoint of stage III: give --from DIR"),
        ("I", {"preset": "minigpt3d"}, "of the priors: give --from .*, or --weights DIR"),
        ("II", {"preset": "minigpt3d", "weights": Path("w")}, "stage I, which was not published"),
        ("priors", {"weights": Path("w")}, "begin with nothing: leave out --from and --weights"),
        ("II", {"preset": "minigpt3d", "llm": Path("l")}, "--llm goes with --weights"),
        ("IV", {"weights": Path("w")}, "goes with --preset minigpt3d, not with nano"),
        ("IV", {"weights": Path("w"), "start": Path("x")}, "give one of the two"),
        ("I", {"start": Path("x"), "llm_type": "llama"}, "--llm-type llama is of an LLM with rand"),
        ("priors", {"batch_size": 0}, "the priors have none"),
    ],
)
def test_a_wrong_call_is_one_sentence(tmp_path, stages, settings, sentence):
    call = {"stages": stages, "out": tmp_path / "run", **settings}
    with pytest.raises(ValueError, match=sentence):
        stage1.main(Stage1Config(**call))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_stage_or_size_is_refused(chain, annotated, tmp_path):
    with pytest.raises(
        ValueError, match="is of stage I, and stage III begins with one of stage II"
    ):
        stage1.main(config(annotated, tmp_path, "III", start=chain["I"] / "checkpoint"))
    with pytest.raises(ValueError, match="is of another size than --preset small: points 128"):
        call = config(annotated, tmp_path, "II", start=chain["I"] / "checkpoint", preset="small")
        stage1.main(call)
    with pytest.raises(ValueError, match="holds the checkpoint of --from"):
        stage1.main(config(annotated, chain["I"], "II", start=chain["I"] / "checkpoint"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        stage1.main(config(annotated, tmp_path, "II", start=tmp_path / "nothing"))


def test_stages_are_read_as_written():
    assert parse_stages("priors, I,II") == ["priors", "I", "II"]
    assert parse_stages("IV") == ["IV"]


def test_a_dry_run_says_what_trains_and_writes_nothing(tmp_path, capsys):
    call = Stage1Config(
        preset="minigpt3d", stages="I,II,III,IV", weights=tmp_path / "absent", dry_run=True
    )
    with pytest.raises(FileNotFoundError, match=r"--weights .*absent: there is no such folder"):
        stage1.main(call)
    stage1.main(replace(call, weights=tmp_path, out=tmp_path / "run", router="constant"))
    said = capsys.readouterr().out
    assert "begins with NOT COMPLETE: " in said and "has no Phi-2 (looked for Phi_2)" in said
    model = build(TINY)
    mlp = sum(p.numel() for p in model.mlp.parameters())
    assert f"I-mlp: {mlp:,} parameters, 4 tensors" in said
    experts = 8 * TINY.queries * TINY.qformer_width  # the constant router does not train
    assert f"IV-experts: {experts:,} parameters, 8 tensors" in said
    assert "detailed_description (2 in 8)" in said
    assert not any(tmp_path.iterdir())
    assert os.listdir(tmp_path) == []
