"""The command on a run made by hand: the models loaded are those captured, the results are kept."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from probe.__main__ import ProbeConfig, main
from probe.patching import states_at
from probe.plots_causal import causal_figure, lens_figure
from probe.plots_style import BAND
from store import open_run
from store.writer import create_run
from tests.conftest import CLASSES, TINY
from train.capture import capture_objects
from train.checkpoint import load_model, sha256, write_tensors
from train.explain import cli
from train.finished import ask, describe, load_variant
from train.models.minigpt3d import build
from train.prompts import prefix
from train.variants import UNTRAINED_SEED

LAYERS = [0, 2, 4]
VARIANTS = ("stage1", "baseline", "aligned", "untrained")


def moved(model, variant):
    """Weights as training leaves them: LoRA and norms of the LLM, each variant's own."""
    draw = torch.Generator().manual_seed(VARIANTS.index(variant))
    return {
        f"llm.{name}": tensor + 0.3 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in model.llm.named_parameters()
        if "lora_" in name or "layernorm" in name
    }


def variant_of(checkpoint, variant):
    """The model of a variant, made without the code under test."""
    model, tokenizer, _ = load_model(checkpoint)
    if variant == "untrained":
        model.llm = build(TINY, seed=UNTRAINED_SEED + 5, branch_scale=TINY.llm_branch_scale).llm
    elif variant != "stage1":
        model.load_state_dict(model.state_dict() | moved(model, variant))
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """Folder of a finished run, and the checkpoint it began with."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    count = 36
    labels = np.arange(count) % len(CLASSES)
    targets = torch.randn(count, 4, 16, generator=torch.Generator().manual_seed(0))
    targets += torch.eye(16)[labels][:, None] * 3
    targets = targets.half().float()
    writer = create_run(
        folder,
        samples={
            "id": [f"{CLASSES[label]}-{row}" for row, label in enumerate(labels)],
            "label": labels,
            "class_name": [CLASSES[label] for label in labels],
            "split": ["gallery"] * 18 + ["query"] * 18,
            "caption": [f"A {CLASSES[label]}, number {row}." for row, label in enumerate(labels)],
        },
        layers=LAYERS,
        variants=VARIANTS,
        tokens=4,
        dim=TINY.llm_width,
        target_dim=16,
        points=None,
        dtype="float32",
        provenance={},
    )
    for start in range(0, count, writer.chunk):
        rows = slice(start, min(start + writer.chunk, count))
        writer.append_target(rows, targets[rows].numpy())
    for variant in VARIANTS:
        model, tokenizer = variant_of(tiny_checkpoint, variant)
        capture_objects(model, targets, prefix(tokenizer, 4), LAYERS, writer, variant)
        if variant in ("baseline", "aligned"):
            tensors = {
                f"model.{name}": each
                for name, each in moved(load_model(tiny_checkpoint)[0], variant).items()
            }
            tensors["alignment_projector.weight"] = torch.zeros(1)
            write_tensors(folder / "checkpoints" / variant / "model.safetensors", tensors)
    writer.finish()
    record = {
        "config": {"preset": "nano", "stage1": str(tiny_checkpoint), "weights": None, "seed": 5},
        "hashes": {"stage1": sha256(tiny_checkpoint / "model.safetensors")},
        "status": "complete",
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_variant_has_the_states_that_were_captured(made, variant):
    run = open_run(made)
    model, tokenizer = load_variant(made, variant)
    about = describe(run, "query", 18, "class", seed=0)
    asked = ask(model, tokenizer, about)
    states = states_at(model.llm, asked, asked.point_mask, LAYERS)
    stored = run.hidden(variant).sel(sample=about.ids).values
    np.testing.assert_allclose(states.view(3, 18, 4, -1), stored, atol=1e-4)


def without_its_beginning(run):
    """The same run, which can't find the weights that its models began with."""
    record = json.loads((run / "run.json").read_text())
    record["config"]["stage1"] = str(run / "moved")
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_the_probes_command_has_them_measured_and_ends_as_they_do(made, tmp_path, capfd):
    run = shutil.copytree(made, tmp_path / "run")
    main(ProbeConfig(run=str(run), probes="causal", layers="2,4"))
    found = open_run(run).probes("causal")
    assert found.layer.values.tolist() == [0, 2, 4] and found.sizes["variant"] == 4
    assert "python -m train.explain" in capfd.readouterr().out
    without_its_beginning(run)
    with pytest.raises(SystemExit) as ended:
        main(ProbeConfig(run=str(run), probes="lens"))
    assert ended.value.code == 2 and "moved" in capfd.readouterr().err


@pytest.mark.slow
def test_the_probes_command_measures_by_default_what_is_missing(made, tmp_path, capfd):
    run = shutil.copytree(made, tmp_path / "run")
    main(ProbeConfig(run=str(run), layers="4", k="1"))
    assert {"lens", "causal"} <= set(open_run(run).probe_names())
    capfd.readouterr()
    without_its_beginning(run)
    main(ProbeConfig(run=str(run), layers="4", k="1"))
    said = capfd.readouterr().out
    assert "point tokens" in said and "train.explain" not in said  # those that are kept
    shutil.rmtree(run / "activations.zarr" / "probes" / "lens")
    main(ProbeConfig(run=str(run), layers="4", k="1"))
    assert "Without lens, for the reason above." in capfd.readouterr().out


def test_objects_come_in_equal_numbers_of_each_class(made):
    run = open_run(made)
    about = describe(run, "query", 9, "caption", seed=0)
    assert np.bincount(about.labels).tolist() == [3, 3, 3]
    assert about.answers == about.captions and about.class_names == list(CLASSES)
    assert all(
        name.startswith(CLASSES[label]) for name, label in zip(about.ids, about.labels, strict=True)
    )
    assert len(np.unique(describe(run, "query", 4, "class", seed=0).labels)) == 2


def test_the_command_writes_both_probes_and_says_what_they_show(made, capsys):
    cli([str(made), "--objects", "12", "--layers", "2"])
    said = capsys.readouterr().out
    assert "untrained" in said and "12 query objects" in said
    assert "Text can't read the points behind layer L: change of the answer in nats" in said
    assert "In brackets: 95% intervals over them" in said and "* an effect, p < 0.05 over" in said
    lens, causal = (open_run(made).probes(name) for name in ("lens", "causal"))
    assert lens.layer.values.tolist() == causal.layer.values.tolist() == [0, 2, 4]
    assert lens.word.shape == (4, 2, 3, 12, 4) and causal.change.shape == (4, 6, 3, 12)
    assert (causal.change.sel(layer=4) == 0).all() and (
        causal.transplant.sel(layer=[0, 4]) == 0
    ).all()
    assert (causal.change_low <= causal.change_mean).all()
    assert np.abs(causal.change.sel(layer=0, intervention="unread")).max() > 0
    assert lens.kl.sel(lens="tuned").mean() < lens.kl.sel(lens="logit").mean()
    assert len(lens_figure(lens).data) > 12
    bands = [trace for trace in causal_figure(causal).data if trace.legendgroup == BAND]
    assert len(bands) == 4 * 7 + 2 + 1  # each curve of each panel has its own; and the legend
    shares = [causal[f"transplant_share{part}"] for part in ("_wide_low", "_low", "_mean")]
    assert all(((a <= b) | a.isnull()).all() for a, b in pairwise(shares))
    cli([str(made), "--objects", "12", "--layers", "2", "--probes", "causal"])
    assert open_run(made).probes("causal").identical(causal)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--probes", "lens,cause"), "--probes 'cause': a list of lens and causal"),
        (("--variants", "later"), "--variants 'later'"),
        (("--layers", "9"), "there are layers 0"),
        (("--objects", "3"), "--objects 3"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_code_2(made, capsys, flags, sentence):
    with pytest.raises(SystemExit) as ended:
        cli([str(made), *flags])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and "Traceback" not in said


def test_other_starting_weights_and_a_lost_record_are_refused(made, tmp_path, tiny_tokenizer):
    from train.checkpoint import save_model

    save_model(tmp_path / "other", build(TINY, seed=4), tiny_tokenizer, TINY, {})
    with pytest.raises(ValueError, match="did not begin with the weights that are found now"):
        load_variant(made, "baseline", tmp_path / "other")
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json"):
        load_variant(tmp_path / "copy", "baseline")
