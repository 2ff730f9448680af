"""The encoder's output beside every curve: captured, read out, compared with, shown."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

import store
from probe.cka import cka, cka_interval
from probe.findings import findings
from probe.geometry import factors
from probe.knn import knn_accuracy
from probe.linear import linear_probe
from probe.page import write_report
from probe.plots import depth_figure
from probe.plots_properties import properties_figure
from probe.report import print_table
from probe.sweep import sweep
from tests.conftest import TINY
from train.attention import read_attention
from train.models.minigpt3d import build

SAMPLES, CLASSES, LAYERS, TOKENS, DIM, TARGET_DIM, WIDTH = 120, 4, [0, 8], 2, 12, 10, 9
SYMMETRY = np.array(["none", "mirror", "round"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The encoder holds class and size, the target the class alone, and deep states nothing."""
    rng = np.random.default_rng(0)
    label = np.arange(SAMPLES) % CLASSES
    classes, size = 2 * rng.normal(size=(CLASSES, 6))[label], rng.normal(size=SAMPLES)
    encoder = np.c_[classes, 2 * size, 2 * size, rng.normal(size=SAMPLES)]
    target = (classes @ rng.normal(size=(6, TARGET_DIM)))[:, None].repeat(TOKENS, axis=1)
    target = target + rng.normal(size=target.shape)
    path = tmp_path_factory.mktemp("encoder") / "run"
    writer = store.create_run(
        path,
        samples={
            "id": [f"object-{i}" for i in range(SAMPLES)],
            "label": label,
            "class_name": [f"class {i}" for i in label],
            "split": np.where(np.arange(SAMPLES) < 70, "gallery", "query"),
            "caption": [""] * SAMPLES,
            "factor_size": size,
            "factor_symmetry": SYMMETRY[label % 3],
            "factor_constant": np.ones(SAMPLES),
        },
        layers=LAYERS,
        variants=["baseline", "aligned"],
        tokens=TOKENS,
        dim=DIM,
        target_dim=TARGET_DIM,
        encoder_dim=WIDTH,
        dtype="float32",
    )
    for rows in writer.pending("target"):
        writer.append_target(rows, target[rows])
        writer.append_encoder(rows, encoder[rows])
    for kept in ("baseline", "aligned"):
        share = np.array([1, kept == "aligned"])[:, None, None, None]
        states = share * encoder[:, None] @ rng.normal(size=(WIDTH, DIM))
        states = states + rng.normal(size=(len(LAYERS), SAMPLES, TOKENS, DIM))
        for rows in writer.pending(kept):
            writer.append(kept, rows, states[:, rows])
    writer.finish()
    return store.open_run(path)


@pytest.fixture(scope="module")
def results(run):
    found = sweep(run, ("knn", "drift", "linear", "geometry"), k=(1, 5), keep=False)
    run.write_probe("sweep", found)
    return found


def parts(run):
    table = run.samples()
    gallery = table.split.values == "gallery"
    return table.label.values, gallery, run.encoder().values


def test_its_read_outs_are_those_of_the_probes_alone(run, results):
    labels, gallery, encoder = parts(run)
    halves = encoder[gallery], encoder[~gallery], labels[gallery], labels[~gallery]
    for k in (1, 5):
        assert float(results.knn_encoder_mean.sel(k=k)) == knn_accuracy(*halves, k=k)
    probe = linear_probe(halves[0], halves[2], halves[1], halves[3], shuffles=10)
    own = [float(results[f"linear_encoder_{part}"]) for part in ("mean", "low", "high")]
    assert own == pytest.approx(list(probe.accuracy))
    size = results.sel(property="factor_size")
    assert float(size.geometry_encoder_mean) > 0.9 > 0.3 > float(size.geometry_target_mean)
    assert results.attrs["constant"] == ["factor_constant"]


def test_the_states_are_compared_with_it_and_the_loss_is_found(run, results):
    _, gallery, encoder = parts(run)
    for name in ("baseline", "aligned"):
        states = run.hidden(name).sel(layer=8).values[~gallery].mean(axis=1)
        value = float(results.encoder_cka_mean.sel(variant=name, layer=8))
        assert value == pytest.approx(cka(states, encoder[~gallery]), abs=1e-6)
    target = run.target().values[~gallery].mean(axis=1)
    alike = cka_interval(target, encoder[~gallery])
    assert float(results.encoder_cka_target_mean) == pytest.approx(alike.mean, abs=1e-6)
    pair = results.sel(comparison="aligned - baseline")
    assert (pair.encoder_cka_difference_p_adjusted.values < 0.05).tolist() == [False, True]
    assert float(results.encoder_cka_fall_p.sel(variant="baseline")) < 0.05


def test_it_is_named_in_the_table_the_figures_and_the_report(run, results, tmp_path):
    screen = io.StringIO()
    print_table(results, Console(file=screen, width=200))
    value = f"encoder's output {100 * float(results.knn_encoder_mean.sel(k=5)):.1f}"
    assert value in " ".join(screen.getvalue().split())
    said = findings(results)
    assert any(one.startswith("The encoder's output, which the Q-Former reads") for one in said)
    assert any(one.startswith("Hubness at layer 8") for one in said)
    assert any("Aligned less baseline in CKA to the encoder's output" in one for one in said)
    figure = depth_figure(results)
    noted = {trace.name for trace in figure.data} | {a.text for a in figure.layout.annotations}
    assert any("encoder's output" in (name or "") for name in noted)
    heat = properties_figure(results)
    assert list(heat.data[-1].x) == ["target", "encoder"]
    _, text = write_report(run, tmp_path)
    page = text.read_text()
    assert "Debiased CKA with the encoder's output" in page and "factor\\_size" in page


def test_factors_in_words_become_a_number_a_word(run):
    table = factors(run.samples())
    found = {str(name) for name in table.data_vars}
    words = {f"factor_symmetry_{word}" for word in SYMMETRY}
    assert found == {"factor_size", "factor_constant"} | words
    np.testing.assert_array_equal(sum(table[word] for word in words), 1)
    label = run.samples().label.values
    np.testing.assert_array_equal(table.factor_symmetry_round, label % 3 == 2)


def test_an_older_run_has_no_such_line(run, tmp_path):
    from store.begin import begin

    like = store.open_run(run.path)
    like.attrs["encoder_dim"] = None
    steps = {name: [] for name in run.variants}
    writer = begin(like, tmp_path / "old", layers=LAYERS, steps=steps, provenance={})
    for name in run.variants:
        for rows in writer.pending(name):
            writer.append(name, rows, run.hidden(name)[:, rows].values)
    writer.finish()
    found = sweep(store.open_run(tmp_path / "old"), ("knn", "drift"), k=(1,), keep=False)
    assert not [name for name in found if "encoder" in str(name)]
    assert not any("encoder" in one for one in findings(found))


def test_a_capture_reads_class_token_and_largest_patch():
    model = build(TINY, seed=0).eval()
    points = torch.rand(3, 40, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), read_attention(model) as reading:
        model.encode(points)
        tokens = model.point_encoder(points)
    assert reading.encoder is not None
    width = tokens.shape[2]
    assert torch.equal(reading.encoder[:, :width], tokens[:, 0])
    assert torch.equal(reading.encoder[:, width:], tokens[:, 1:].max(dim=1).values)
