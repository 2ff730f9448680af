"""Drift through the trained projector: it is the loss that training made small, and no more."""

import json
import sys

import numpy as np
import pytest
import torch

import store
from probe.__main__ import cli
from probe.alignment import alignment, findings, projectors
from train.checkpoint import write_tensors
from train.losses import AlignmentProjector, alignment_loss

LAYERS, TOKENS, DIM, TARGET_DIM, SAMPLES = [0, 2, 4], 3, 6, 5, 24


def states(seed, width):
    return np.random.default_rng(seed).normal(size=(SAMPLES, TOKENS, width)).astype(np.float32)


def make(path, tensors, **config):
    number = np.arange(SAMPLES)
    writer = store.create_run(
        path,
        samples={
            "id": [f"object-{i}" for i in number],
            "label": number % 3,
            "class_name": [f"class {i % 3}" for i in number],
            "split": np.where(number < 14, "gallery", "query"),
            "caption": [""] * SAMPLES,
        },
        layers=LAYERS,
        variants=["baseline", "aligned"],
        tokens=TOKENS,
        dim=DIM,
        target_dim=TARGET_DIM,
        dtype="float32",
    )
    for rows in writer.pending("target"):
        writer.append_target(rows, states(0, TARGET_DIM)[rows])
    for v, name in enumerate(("baseline", "aligned")):
        for rows in writer.pending(name):
            each = [states(10 * v + at, DIM)[rows] for at in range(1, 4)]
            writer.append(name, rows, np.stack(each))
    writer.finish()
    for name, own in tensors.items():
        (path / "checkpoints" / name).mkdir(parents=True)
        write_tensors(path / "checkpoints" / name / "model.safetensors", own)
    (path / "run.json").write_text(
        json.dumps({"config": {"align_target": "qformer", "align_layer": 2} | config})
    )
    return store.open_run(path)


def trained(prefix, seed=0, layers=3):
    torch.manual_seed(seed)
    module = AlignmentProjector(DIM, TARGET_DIM, layers)
    return module, {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_the_loss_that_the_trained_projector_has(tmp_path, layers):
    module, tensors = trained("alignment_projector", layers=layers)
    other = {"model.llm.weight": torch.zeros(2)}
    run = make(tmp_path / "run", {"aligned": tensors | other, "baseline": other})
    results = alignment(run)
    assert results.variant.values.tolist() == ["aligned"] and results.trained.values == [2]
    query = torch.from_numpy(states(0, TARGET_DIM)[14:])
    for at, layer in enumerate(LAYERS):
        with torch.no_grad():
            loss = alignment_loss(module(torch.from_numpy(states(11 + at, DIM)[14:])), query)
        mean, low, high = (
            float(
                results[f"through_alignment_{part}"].sel(variant="aligned", trained=2, layer=layer)
            )
            for part in ("mean", "low", "high")
        )
        assert low < mean < high and mean == pytest.approx(float(loss), abs=1e-6)
    np.testing.assert_array_equal(results.object, [f"object-{i}" for i in range(14, SAMPLES)])
    for score in ("through_alignment", "through_alignment_centred"):
        each = results[score]
        assert each.dims == ("variant", "trained", "layer", "object") and each.dtype == "float32"
        np.testing.assert_allclose(each.mean("object"), results[f"{score}_mean"], atol=1e-6)
    said = " ".join(findings(results))
    assert "circular" in said and "undefined for baseline, which has no projector" in said


def test_each_of_several_layers_has_its_own_projector(tmp_path):
    parts = [trained(f"alignment_projectors.{layer}", seed=layer) for layer in (2, 4)]
    tensors = parts[0][1] | parts[1][1]
    run = make(tmp_path / "run", {"aligned": tensors}, align_layer="2,4")
    x = states(5, DIM)
    found = projectors(run, "aligned")
    for layer, (module, _) in zip((2, 4), parts, strict=True):
        with torch.no_grad():
            wanted = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(found[layer](x), wanted, atol=1e-6)
    assert alignment(run).trained.values.tolist() == [2, 4]


def test_a_run_without_a_projector_to_the_target_is_refused(tmp_path):
    run = make(tmp_path / "none", {})
    with pytest.raises(ValueError, match="has no alignment projector in checkpoints/"):
        alignment(run)
    tensors = trained("alignment_projector")[1]
    run = make(tmp_path / "other", {"aligned": tensors}, align_target="projector")
    with pytest.raises(ValueError, match="does not lead to the target's space"):
        alignment(run)


def test_the_command_tables_it_and_keeps_it_in_the_run(tmp_path, monkeypatch, capsys):
    make(tmp_path / "run", {"aligned": trained("alignment_projector")[1]})
    given = ["probe", str(tmp_path / "run"), "--probes", "alignment"]
    monkeypatch.setattr(sys, "argv", given)
    assert cli() == 0
    assert "This is circular" in capsys.readouterr().out
    assert "through_alignment_mean" in store.open_run(tmp_path / "run").probes("alignment")
