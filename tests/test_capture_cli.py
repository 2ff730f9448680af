"""python -m train.capture: what it stores, what it proves first, and what it refuses."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from probe.findings import findings
from probe.sweep import sweep
from store import open_run
from store.place import Place
from tests.conftest import TINY
from tests.test_store_s3 import network_lost, remote_contents
from train import capture_job
from train.capture import main
from train.capture_job import capture
from train.captured import shown_points
from train.checkpoint import load_model, read_tensors, write_tensors
from train.config import CaptureConfig
from train.data.modelnet import modelnet
from train.finished import point_tokens
from train.frozen import kept_rows
from train.hosts.minigpt3d import MiniGPTHost
from train.models.minigpt3d import MiniGPT3D
from train.prompts import collate, encode_conversation
from train.record import check_new

SAMPLES = 90


def config(out, checkpoint, data, **more):
    settings = {"layers": "0,1,3,4", "data": "modelnet", "dtype": "float32", "threads": 1}
    return CaptureConfig(
        out=out,
        checkpoint=checkpoint,
        data_root=data,
        **(settings | {"gallery_per_class": 0} | more),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint, solids_folder):
    """make(name, **settings): folder of a finished run, made once."""
    root, done = tmp_path_factory.mktemp("captures"), {}

    def make(name, **more):
        if name not in done:
            capture(config(root / name, tiny_checkpoint, solids_folder, **more))
            done[name] = root / name
        return done[name]

    return make


@pytest.fixture(scope="module")
def plain(made):
    return made("plain")


def files(folder):
    """Every file of the captured states, not what probes wrote beside them."""
    store = folder / "activations.zarr"
    found = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("probes/")}


def asked(tokenizer, captions):
    return [
        encode_conversation(
            tokenizer, [("What is this?", caption)], points=TINY.queries, context=256
        )
        for caption in captions
    ]


def whole_forward(checkpoint, data, rows):
    """What transformers returns for whole conversations, one object at a time."""
    model, tokenizer, _ = load_model(checkpoint)
    objects = modelnet(data).gallery
    for row in rows:
        batch = collate(asked(tokenizer, [objects.captions[row]]), 0)
        cloud = torch.from_numpy(objects.points(row)[:, kept_rows(objects, TINY.points)])
        with torch.no_grad():
            embeds = model.embed(batch, model.encode(cloud))
            yield batch, model.llm(inputs_embeds=embeds, output_hidden_states=True).hidden_states


def test_the_states_are_those_that_transformers_returns_in_a_whole_conversation(
    plain, tiny_checkpoint, solids_folder
):
    run = open_run(plain)
    assert run.complete and run.layers == [0, 1, 3, 4] and run.attrs["samples"] == SAMPLES
    stored = run.hidden("stage1")
    for row, (batch, theirs) in enumerate(whole_forward(tiny_checkpoint, solids_folder, range(3))):
        for layer in (0, 1, 3):  # the last of transformers is behind the final norm
            expected = theirs[layer][batch.point_mask].numpy()
            np.testing.assert_allclose(stored.sel(layer=layer)[row], expected, atol=1e-5)


def test_the_proofs_are_recorded_in_the_store_and_beside_it(plain):
    record = json.loads((plain / "run.json").read_text())
    proofs = record["proofs"]["stage1"]
    assert record["status"] == "complete" and len(proofs) >= 15
    assert proofs["layer 0"] == "the projector's output, bit for bit"
    assert open_run(plain).attrs["provenance"]["proofs"] == record["proofs"]


def test_the_clouds_are_kept_as_they_are_read(plain, solids_folder):
    data = modelnet(solids_folder)
    shown = shown_points(data)
    stored, before = open_run(plain).points(), len(data.gallery)
    assert shown.shape == stored.shape
    np.testing.assert_array_equal(stored, shown[:])
    across = slice(before - 2, before + 3)  # the last of one split, the first of the other
    expected = [data.gallery.points([before - 2, before - 1]), data.query.points(range(3))]
    np.testing.assert_array_equal(shown[across], np.concatenate(expected)[:, shown.keep])


def test_the_run_can_be_probed(plain):
    results = sweep(open_run(plain), k=(1,))
    assert set(results.layer.values) == {0, 1, 3, 4}


def test_attention_says_which_patches_each_token_reads(plain):
    tree = xr.open_datatree(plain / "activations.zarr", engine="zarr")
    weights, centres = tree["attention"]["weights"], tree["attention"]["centres"]
    assert weights.shape == (SAMPLES, TINY.queries, TINY.groups)
    np.testing.assert_allclose(weights.astype("f4").sum("patch"), 1, atol=2e-3)
    assert centres.shape == (SAMPLES, TINY.groups, 3)
    assert float(np.linalg.norm(centres, axis=-1).max()) <= 1 + 1e-6


def test_the_encoders_readout_is_stored(plain, tiny_checkpoint, solids_folder):
    model, *_ = load_model(tiny_checkpoint)
    objects = modelnet(solids_folder).gallery
    rows = kept_rows(objects, TINY.points)
    with torch.no_grad():
        tokens = model.eval().point_encoder(torch.from_numpy(objects.points(range(3))[:, rows]))
    expected = np.c_[tokens[:, 0].numpy(), tokens[:, 1:].numpy().max(axis=1)]
    np.testing.assert_allclose(open_run(plain).encoder()[:3], expected, atol=1e-5)


def test_branches_are_stored_in_runs_of_their_own_and_add_up(made):
    folder = made("sites", layers="0-4", sites="resid,attn,mlp")
    stream, attn, mlp = (open_run(folder / part).hidden("stage1") for part in (".", "attn", "mlp"))
    assert list(attn.layer.values) == list(mlp.layer.values) == [1, 2, 3, 4]
    assert "what the feed-forward of each block adds" in mlp.attrs["long_name"]
    added = stream.sel(layer=slice(1, 4)).values - stream.sel(layer=slice(0, 3)).values
    np.testing.assert_allclose(attn.values + mlp.values, added, atol=1e-5)


def test_pooling_is_the_mean_over_the_tokens(made, plain):
    pooled, every = open_run(made("pooled", pool="mean")), open_run(plain)
    for name in ("hidden", "target"):
        arguments = ["stage1"] if name == "hidden" else []
        mean = getattr(every, name)(*arguments).values.mean(axis=-2, keepdims=True)
        np.testing.assert_allclose(getattr(pooled, name)(*arguments), mean, atol=1e-6)


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_tokens_of_padded_conversations_are_pooled_as_if_each_were_alone(
    tokens, made, tiny_checkpoint, solids_folder
):
    stored = open_run(made(tokens, tokens=tokens, pool="mean")).hidden("stage1")
    for row, (batch, theirs) in enumerate(whole_forward(tiny_checkpoint, solids_folder, range(3))):
        counted = batch.labels[0] >= 0 if tokens == "answer" else slice(None)
        for layer in (1, 3):
            expected = theirs[layer][0, counted].mean(dim=0).numpy()
            np.testing.assert_allclose(stored.sel(layer=layer)[row, 0], expected, atol=1e-5)


def test_tokens_of_many_lengths_are_stored_one_by_one_and_probed_by_their_mean(
    made, tiny_checkpoint, solids_folder
):
    run = open_run(made("every", tokens="all", batch_size=3))
    means = open_run(made("all", tokens="all", pool="mean"))
    hidden, own = run.hidden("stage1"), run.samples().n_tokens.values
    assert len(set(own)) > 1 and own.max() == hidden.sizes["token"]
    assert not hidden.values[:, np.arange(own.max()) >= own[:, None]].any()
    for row, (_, theirs) in enumerate(whole_forward(tiny_checkpoint, solids_folder, range(3))):
        for layer in (1, 3):
            found = hidden.sel(layer=layer)[row, : own[row]]
            np.testing.assert_allclose(found, theirs[layer][0].numpy(), atol=1e-5)
    np.testing.assert_allclose(run.target(), means.target(), atol=1e-6)
    one, other = (sweep(each, ["knn", "drift"], [4]) for each in (run, means))
    xr.testing.assert_allclose(one, other, atol=1e-4)
    with pytest.raises(ValueError, match="holds the mean of the point tokens"):
        point_tokens(means)


def test_smaller_batches_and_bfloat16_store_the_same_up_to_rounding(made, plain):
    exact = open_run(plain).hidden("stage1").values
    small = open_run(made("small", batch_size=7)).hidden("stage1").values
    np.testing.assert_allclose(small, exact, atol=1e-5)
    rounded = open_run(made("bfloat16", dtype="bfloat16")).hidden("stage1").values
    expected = torch.from_numpy(exact).bfloat16().float().numpy()
    np.testing.assert_array_equal(rounded, expected)


def test_matrices_of_half_precision_change_states_by_their_rounding(made, plain):
    exact = open_run(plain).hidden("stage1").values
    half = open_run(made("half", precision="bf16")).hidden("stage1").values
    assert 0 < np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_another_draw_is_a_second_capture_of_the_same_objects(made, plain):
    one, two = open_run(plain), open_run(made("drawn", draw=1))
    assert one.samples().equals(two.samples())
    target, again = (run.target().values.mean(axis=1) for run in (one, two))
    assert not np.array_equal(target, again)
    apart = np.linalg.norm(target[:, None] - again, axis=-1)
    assert apart.diagonal().mean() < apart.mean()
    found = sweep(one, ["knn", "drift"], [0, 4], again=two)
    assert "same objects captured again" in " ".join(findings(found))


def test_a_model_of_stage_2_is_captured_beside_the_one_it_was_trained_from(
    made, tmp_path, tiny_checkpoint
):
    model, _, _ = load_model(tiny_checkpoint)
    name = "llm.base_model.model.model.layers.2.input_layernorm.weight"
    changed = dict(model.named_parameters())[name].detach() * 2
    write_tensors(tmp_path / "aligned" / "model.safetensors", {f"model.{name}": changed})
    run = open_run(made("trained", trained=(tmp_path / "aligned",)))
    assert run.variants == ["stage1", "aligned"]
    before, after = (run.hidden(name) for name in run.variants)
    assert np.array_equal(before.sel(layer=1), after.sel(layer=1))
    assert not np.allclose(before.sel(layer=3), after.sel(layer=3), atol=1e-3)


def command(out, checkpoint, data, *more):
    words = [sys.executable, "-m", "train.capture", "--out", out, "--checkpoint", checkpoint]
    words += ["--data-root", data, "--data", "modelnet", "--layers", "0,1,3,4"]
    words += ["--dtype", "float32", "--threads", "1", "--gallery-per-class", "0"]
    return [*map(str, words), *more]


def test_a_killed_capture_goes_on_and_ends_with_the_same_bytes(
    plain, tmp_path, tiny_checkpoint, solids_folder
):
    out, here = tmp_path / "run", Path(__file__).parents[1]
    words = command(out, tiny_checkpoint, solids_folder)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": here}
    with subprocess.Popen(words, **quiet) as job:
        while (
            not (out / "activations.zarr/target/tokens_crc32c/c.0").exists() and job.poll() is None
        ):
            time.sleep(0.001)
        os.kill(job.pid, signal.SIGKILL)
    assert json.loads((out / "run.json").read_text())["status"] == "running"
    capture(config(out, tiny_checkpoint, solids_folder))
    assert files(out) == files(plain)


def test_writing_in_the_background_stores_the_bytes_of_writing_at_once(
    plain, tmp_path, tiny_checkpoint, solids_folder, monkeypatch
):
    class AtOnce:
        def __init__(self, write):
            self.write, self.kept = write, {}

        def keep(self, site, layer, states):
            self.kept.setdefault(site, {})[layer] = states.clone()

        def put(self, rows, beside):
            whole = {site: torch.stack(list(kept.values())) for site, kept in self.kept.items()}
            self.write(rows, {name: some.numpy() for name, some in (whole | beside).items()})

    monkeypatch.setattr(capture_job, "in_background", lambda write, *_: nullcontext(AtOnce(write)))
    capture(config(tmp_path / "run", tiny_checkpoint, solids_folder))
    assert files(tmp_path / "run") == files(plain)


def in_two(out, checkpoint, data, *more):
    words = command(out, checkpoint, data, *more)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [words[0], *launcher, *words[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [None, 0, 1])
@pytest.mark.parametrize("scheme", ["", "s3"])
def test_two_processes_store_the_bytes_of_one(
    scheme, killed, plain, tmp_path, tiny_checkpoint, solids_folder, server
):
    """Also where one of them is killed while they write, and the same command follows."""
    out, url = tmp_path / "run", f"s3://runs/two-{killed}"
    more = ["--store", url] if scheme else []
    words = in_two(out, tiny_checkpoint, solids_folder, *more)
    here = Path(__file__).parents[1]
    if killed is not None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": here}
        with subprocess.Popen(words, **quiet) as job:
            place = Place(url if scheme else out)
            while not place.exists("activations.zarr/zarr.json") and job.poll() is None:
                time.sleep(0.001)
            workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            os.kill(int(workers[killed]), signal.SIGKILL)
        assert job.returncode and not open_run(place.name).complete
    subprocess.run(words, check=True, cwd=here)
    if not scheme:
        assert files(out) == files(plain)
        return
    stored = remote_contents(url)
    assert {n: data for n, data in stored.items() if not n.startswith("probes/")} == files(plain)


def refuse(capsys, settings, code, *words):
    from train.cli import run

    with pytest.raises(SystemExit) as left:
        run(main, settings)
    said = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == code and said.startswith("error: ")
    assert all(word in said for word in words), said


def test_another_config_is_refused_with_the_difference_named(
    plain, tmp_path, tiny_checkpoint, solids_folder, capsys
):
    refuse(capsys, config(plain, tiny_checkpoint, solids_folder), 2, "complete run", "--out")
    out = tmp_path / "run"
    out.mkdir()
    record = json.loads((plain / "run.json").read_text()) | {"status": "running"}
    (out / "run.json").write_text(json.dumps(record))
    other = config(out, tiny_checkpoint, solids_folder, seed=5, pool="mean")
    refuse(capsys, other, 2, "seed was 0, now 5", "pool was none, now mean")


def test_what_has_moved_goes_on_and_what_has_changed_does_not(
    plain, tmp_path, tiny_checkpoint, solids_folder, capsys
):
    """Digests say which model and which objects a stopped capture was of, not folders."""
    out, weights, data = (tmp_path / name for name in ("run", "weights", "data"))
    shutil.copytree(tiny_checkpoint, weights)
    shutil.copytree(solids_folder, data)
    out.mkdir()
    record = json.loads((plain / "run.json").read_text()) | {"status": "running"}
    (out / "run.json").write_text(json.dumps(record))
    tensors = read_tensors(weights / "model.safetensors")
    changed = tensors | {"projector.second.bias": tensors["projector.second.bias"] + 1}
    write_tensors(weights / "model.safetensors", changed)
    refuse(capsys, config(out, weights, data), 2, "(stage1 was", "another --out")
    shutil.copy(tiny_checkpoint / "model.safetensors", weights)
    capture(config(out, weights, data, question="Why?"))  # which stands behind the point tokens
    assert files(out) == files(plain)


def test_a_second_run_in_a_folder_is_told_before_it_changes_anything(
    tmp_path, tiny_checkpoint, solids_folder, capsys
):
    with (tmp_path / ".writer-0.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refuse(capsys, config(tmp_path, tiny_checkpoint, solids_folder), 1, "is being written")
    assert [path.name for path in tmp_path.iterdir()] == [".writer-0.lock"]


def test_a_run_begins_where_one_was_killed_before_it_had_a_record(tmp_path):
    for left in (".writer-0.lock", "run.new"):
        (tmp_path / left).write_text("{")
    check_new(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileExistsError, match="is no run of ours"):
        check_new(tmp_path)


def test_a_capture_that_cannot_be_proven_stores_nothing(
    tmp_path, tiny_checkpoint, solids_folder, capsys, monkeypatch
):
    embed = MiniGPT3D.embed
    monkeypatch.setattr(MiniGPT3D, "embed", lambda *all: embed(*all).roll(1, dims=1))
    out = tmp_path / "run"
    refuse(capsys, config(out, tiny_checkpoint, solids_folder), 1, "layer 0", "nothing was stored")
    assert not out.exists()


def test_means_that_count_the_padding_are_not_stored(
    tmp_path, tiny_checkpoint, solids_folder, capsys, monkeypatch
):
    monkeypatch.setattr(MiniGPTHost, "_means", mean_over_all)
    settings = config(tmp_path / "run", tiny_checkpoint, solids_folder, tokens="all", pool="mean")
    refuse(capsys, settings, 1, "pool: layer 0 of sample", "when the sample is alone")
    assert not (tmp_path / "run").exists()


def mean_over_all(_host, _batch, keep):
    return lambda site, layer, states: keep(site, layer, states.mean(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": "40"}, ["40", "0", "4"]),
        ({"checkpoint": Path("no-such-folder")}, ["no-such-folder"]),
        ({"data_root": Path("no-such-data")}, ["no-such-data"]),
        ({"trained": (Path("no-such-variant"),)}, ["no-such-variant", "train.stage2"]),
        ({"layers": "0", "sites": "resid,attn"}, ["blocks add nothing before layer 1"]),
    ],
)
def test_a_wrong_call_is_one_sentence(
    settings, words, tmp_path, tiny_checkpoint, solids_folder, capsys
):
    out = tmp_path / "run"
    own = {"checkpoint": tiny_checkpoint, "data_root": solids_folder, "layers": "all"}
    refuse(capsys, CaptureConfig(out=out, data="modelnet", **(own | settings)), 2, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sites": "resid,heads"}, "'heads' is none of resid, attn, mlp"),
        ({"sites": "mlp"}, "resid is always among them"),
        ({"threads": -1}, "--threads -1: 0 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        CaptureConfig(**settings)


def test_a_capture_whose_network_is_lost_goes_on_and_ends_with_the_same_bytes(
    plain,
    tmp_path,
    tiny_checkpoint,
    solids_folder,
    capsys,
    monkeypatch,
    server,
):
    settings = config(tmp_path / "run", tiny_checkpoint, solids_folder, store="s3://runs/lost")
    write = Place.write
    with ExitStack() as stack, monkeypatch.context() as patch:

        def lose(self, key, *rest):
            if key == "stage1/hidden/c.0.1.0.0":
                stack.enter_context(network_lost(server))
            write(self, key, *rest)

        patch.setattr(Place, "write", lose)
        refuse(
            capsys, settings, 1, "s3://runs/lost", "can't be reached", "the same command goes on"
        )
    assert not open_run("s3://runs/lost").complete
    capture(settings)
    stored = remote_contents("s3://runs/lost")
    assert {n: data for n, data in stored.items() if not n.startswith("probes/")} == files(plain)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    tmp_path,
    tiny_checkpoint,
    capsys,
    server,
):
    nowhere = config(tmp_path / "run", tiny_checkpoint, Path("no-such-data"), store="s3://none/run")
    refuse(capsys, nowhere, 2, "s3://none/run can't be written", "make its bucket")
    with network_lost(server):
        refuse(capsys, replace(nowhere, store="s3://runs/run"), 1, "can't be reached")


def test_the_states_can_lie_elsewhere_than_the_record(
    plain, tmp_path, tiny_checkpoint, solids_folder
):
    elsewhere = tmp_path / "bucket"
    capture(config(tmp_path / "run", tiny_checkpoint, solids_folder, store=f"file://{elsewhere}"))
    assert files(elsewhere) == files(plain)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
