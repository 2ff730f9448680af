"""An ordinary read never makes up numbers: what is lost or damaged is one sentence."""

import json
import re
import time

import fsspec
import google_crc32c
import numpy as np
import pytest
import xarray as xr

import store
from store.files import COIN, DiskFile
from store.place import Place
from store.schema import StoreError
from tests.test_store import fill, plan, states

PATCHES = 3


@pytest.fixture(params=["disk", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def run(request, tmp_path):
    """Where a complete run lies that has everything a run can have."""
    where = {"disk": str(tmp_path / "run"), "memory": "memory://read/run", "s3": "s3://runs/read"}
    if request.param == "s3":
        request.getfixturevalue("server")
    url = where[request.param]
    rng = np.random.default_rng(0)
    writer = store.create_run(url, **plan(patches=PATCHES, encoder_dim=2))
    for rows in writer.pending("attention"):
        shape = (rows.stop - rows.start, PATCHES)
        weights = np.full((shape[0], plan()["tokens"], PATCHES), 1 / PATCHES)
        writer.append_attention(rows, weights, rng.random((*shape, 3)))
        writer.append_encoder(rows, rng.random((shape[0], 2)))
    fill(writer)
    mean = ("layer", [0.5] * 3, {"chance": 0.1})
    store.open_run(url).write_probe("knn", xr.Dataset({"mean": mean}))
    yield url
    Place(url).clear()


READS = {
    "aligned": lambda run: run.hidden("aligned"),
    "target": lambda run: run.target(),
    "encoder": lambda run: run.encoder(),
    "attention": lambda run: run.attention().to_array(),
    "points": lambda run: run.points(),
    "sample": lambda run: run.samples().to_array(),
    "label": lambda run: run.hidden("aligned")["label"],
    "caption": lambda run: run.samples()["caption"],
    "probes": lambda run: run.probes("knn")["mean"],
}


def test_what_is_lost_or_cut_is_a_sentence_and_never_numbers(run):
    before = {name: read(store.open_run(run)).load() for name, read in READS.items()}
    place, found = Place(run).child("activations.zarr"), set()
    besides = ("crc32c", "nonfinite")  # of which none is read as numbers
    planned = ("layer", "channel")  # the plan says them too
    names = [key for key in sorted(place.keys()) if not key.endswith("zarr.json")]
    kinds = {re.sub("/c([./].*)?$", "", key): key for key in names}  # the last file of each array
    for array, key in kinds.items():
        group = array.partition("/")[0]
        if group == "stage1" or any(name in array for name in besides):
            continue
        content = place.read(key)
        for damaged in (None, b"", content[: len(content) // 2]):
            place.remove(key) if damaged is None else place.write(key, [damaged])
            for name in [group] if "/" in array else ["sample", "label", "caption"]:
                try:
                    values = READS[name](store.open_run(run)).load()
                except StoreError as error:
                    assert "is damaged" in str(error) and "\n" not in str(error), error
                    found.add(name)
                else:
                    xr.testing.assert_identical(values, before[name])
                    unread = name in ("label", "caption") and array != name
                    assert unread or array.endswith(planned), f"{key} is not missed"
            place.write(key, [content])
    assert found == set(READS)


def test_a_part_of_a_lost_object_is_a_sentence_and_others_are_read(run):
    Place(run).child("activations.zarr").remove("aligned/hidden/c.0.1.0.0")
    hidden = store.open_run(run).hidden("aligned")
    np.testing.assert_array_equal(hidden[1, [299, 5]], states("aligned")[1, [299, 5]])
    with pytest.raises(StoreError, match=r"aligned/hidden/c\.0\.1\.0\.0 is lost"):
        hidden[2, [299, 130, 5]].load()


def test_a_stock_reader_finds_nothing_like_data_where_a_file_is_lost(tmp_path):
    writer = store.create_run(tmp_path / "run", **plan(patches=PATCHES, encoder_dim=2))
    writer.close()  # nothing is appended: every file of states is missing
    lost = ("label", "points/points", "stage1/layer")
    for name in lost:
        for file in (tmp_path / "run/activations.zarr" / name).rglob("*"):
            file.unlink() if file.is_file() and file.name != "zarr.json" else None
    with xr.open_datatree(tmp_path / "run/activations.zarr", engine="zarr") as tree:
        for name in ("stage1/hidden", "target/tokens", "encoder/pooled", "points/points"):
            assert tree[name].isnull().all(), name
        assert tree["attention/weights"].isnull().all() and tree["attention/centres"].isnull().all()
        assert not tree["stage1/hidden_crc32c"].any()
        assert (tree["label"] < -(10**18)).all() and (tree["stage1/layer"] < -(10**18)).all()
    with pytest.raises(StoreError, match="label of the samples is lost"):
        store.open_run(tmp_path / "run").samples()


def test_a_chunk_is_checked_once_and_again_when_its_file_is_written(tmp_path, monkeypatch):
    fill(store.create_run(tmp_path / "run", **plan()))
    hidden = store.open_run(tmp_path / "run").hidden("aligned")
    chunk, sizes = hidden[1].nbytes * 128 // 300, []
    value = google_crc32c.value
    monkeypatch.setattr(google_crc32c, "value", lambda d: [sizes.append(len(d)), value(d)][1])
    hidden[1].load()
    assert sizes.count(chunk) == 3
    hidden[1].load(), hidden[:, 5].load()
    assert sizes.count(chunk) == 3 + 2  # of the sample, the two layers that were not read before
    with (tmp_path / "run/activations.zarr/aligned/hidden/c.0.1.0.0").open("r+b") as file:
        file.seek(chunk + 4)
        byte = file.read(1)[0]
        file.seek(chunk + 4)
        file.write(bytes([byte ^ 1]))
    hidden[1, [5, 299]].load()  # of other files
    with pytest.raises(StoreError, match=r"aligned/hidden/c\.0\.1\.0\.0: its checksum is wrong"):
        hidden[1].load()


def test_what_the_disk_has_to_fetch_is_told_at_once_and_half_of_large_parts_is_read_past_the_cache(
    tmp_path, monkeypatch
):
    fill(store.create_run(tmp_path / "run", **plan()))
    hidden, told, past = store.open_run(tmp_path / "run").hidden("aligned"), [], []
    fetch, direct = DiskFile.fetch, DiskFile.direct
    monkeypatch.setattr(DiskFile, "fetch", lambda *given: [told.append(given[1]), fetch(*given)])
    monkeypatch.setattr(
        DiskFile, "direct", lambda *given: [past.append(given[1:]), direct(*given)][1]
    )
    monkeypatch.setattr("store.lazy.THREADS", 1)
    hidden[1].load()
    assert not told  # it was written just now
    monkeypatch.setattr("store.files.NOWAIT", None)  # as if nothing were in the page cache
    np.testing.assert_array_equal(hidden[:, :, 1].values, states("aligned")[:, :, 1])
    size = states()[0, :128].nbytes + 4
    layers = [(at * size, at * size + size) for at in range(3)]
    assert told == [layers] * 3 and not past

    monkeypatch.setattr(DiskFile, "cached", lambda *given: 0)  # the system says so itself
    monkeypatch.setattr("store.files.LARGE", size)
    monkeypatch.setattr(COIN, "random", iter([1, 0, 1]).__next__)
    told.clear()
    np.testing.assert_array_equal(hidden.values, states("aligned"))
    assert told == [layers] * 2 and past == [(at, size) for at, _ in layers]  # of the second file
    file = tmp_path / "run/activations.zarr/aligned/hidden/c.0.1.0.0"
    content = file.read_bytes()
    wrong = content[: size + 9] + bytes([content[size + 9] ^ 1]) + content[size + 10 :]
    monkeypatch.setattr(COIN, "random", lambda: 0)
    for damaged, said in ((wrong, "its checksum is wrong"), (content[:-9000], "it is cut off")):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(hidden[0, 128:256].values, states("aligned")[0, 128:256])
        with pytest.raises(StoreError, match=rf"aligned/hidden/c\.0\.1\.0\.0: {said}"):
            hidden[:, 128:256].load()


def test_reading_behind_a_url_asks_for_the_parts_that_are_read(monkeypatch):
    url = "memory://parts/run"
    fill(store.create_run(url, **plan()))
    hidden = store.open_run(url).hidden("aligned")
    asked = []
    kind = type(fsspec.filesystem("memory"))
    cat_file = kind.cat_file

    def spy(*args, **more):
        asked.append(cat_file(*args, **more))
        return asked[-1]

    monkeypatch.setattr(kind, "cat_file", spy)
    hidden[1, 150].load()
    whole = Place(url).child("activations.zarr").length("aligned/hidden/c.0.1.0.0")
    assert sum(map(len, asked)) < whole
    Place(url).clear()


def test_clouds_that_are_not_finite_are_refused_by_number(tmp_path):
    points = plan()["points"].copy()
    points[201, 3, 0] = np.nan
    with pytest.raises(ValueError, match="points of sample 201: a coordinate or colour"):
        store.create_run(tmp_path / "run", **plan(points=points))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "change",
    [{"steps": 3}, {"dtype": "x"}, {"patches": "../x"}, {"points": 1}, {"digests": {"../x": "0"}}],
)
def test_a_plan_that_describes_no_run_is_a_sentence(tmp_path, change):
    store.create_run(tmp_path / "run", **plan()).close()
    root = tmp_path / "run/activations.zarr/zarr.json"
    about = json.loads(root.read_text())
    about["attributes"] |= change
    root.write_text(json.dumps(about))
    with pytest.raises(StoreError, match="its attributes do not describe a run"):
        store.open_run(tmp_path / "run")


def test_verify_of_a_plan_of_a_billion_samples_ends(tmp_path):
    """It looks at the files that are there, and counts those that aren't."""
    path = tmp_path / "run"
    fill(store.create_run(path, **plan()))
    for file in (path / "activations.zarr").rglob("zarr.json"):
        file.write_text(re.sub(r"\b300\b", str(10**9), file.read_text()))
    for file in (path / "activations.zarr").glob("*/c/0"):
        file.unlink()
    begun = time.monotonic()
    problems = store.verify_run(path)
    assert time.monotonic() - begun < 10 and len(problems) < 50
    said = "\n".join(problems)
    assert "points, samples 384-999999999: 7812497 chunks are lost" in said
    assert "aligned lacks 7812497 of 7812500 chunks of samples" in said
