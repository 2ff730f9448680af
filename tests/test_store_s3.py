"""A run behind a URL has the guarantees of a run on a disk: a real S3 server, and memory."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import fsspec
import numpy as np
import pytest
import xarray as xr

import store
from store.__main__ import main as command
from store.lock import LEASE, Lease
from store.place import Place
from store.remote import PART
from tests.test_store import ROOT, SAMPLES, contents, fill, plan, states, targets


@pytest.fixture
def bucket(server):
    """URL of a bucket on it."""
    return "s3://runs"


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request):
    """URL under which runs may be made."""
    if request.param == "s3":
        yield request.getfixturevalue("bucket") + "/" + request.node.name.partition("[")[0]
    else:
        yield "memory://runs"
        fsspec.filesystem("memory").rm("/runs", recursive=True)


def remote_contents(url):
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    below = len(f"{root}/activations.zarr/".lstrip("/"))
    return {
        name.lstrip("/")[below:]: fs.cat_file(name) for name in fs.find(f"{root}/activations.zarr")
    }


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "run"
    fill(store.create_run(path, **plan()))
    return contents(path)


def test_a_run_behind_a_url_has_the_bytes_of_one_on_a_disk(place, on_disk):
    url = f"{place}/whole"
    fill(store.create_run(url, **plan()))
    assert remote_contents(url) == on_disk
    run = store.open_run(url)
    assert run.complete and run.path.name == "whole"
    np.testing.assert_array_equal(run.hidden("aligned"), states("aligned"))
    np.testing.assert_array_equal(
        run.hidden("aligned")[1, [299, 5]], states("aligned")[1, [299, 5]]
    )
    np.testing.assert_array_equal(run.points(), plan()["points"])
    assert store.verify_run(url) == []


@pytest.mark.parametrize("where", ["memory://runs", "s3://runs"])
def test_a_large_file_behind_a_url_is_sent_in_parts_and_seen_whole_or_not_at_all(where, server):
    place, some = Place(f"{where}/parts"), [np.full(PART // 4 + 7, n, np.uint8) for n in range(10)]
    uploads = lambda: fsspec.filesystem("s3").list_multipart_uploads("runs")  # noqa: E731
    place.write("whole", some)
    assert place.read("whole") == b"".join(some)

    def cut_short():
        yield from some
        assert uploads() or where != "s3://runs"
        assert not place.exists("half") or where != "s3://runs"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        place.write("half", cut_short())
    assert not place.exists("half") and not uploads()
    if where == "s3://runs":
        with network_lost(server), pytest.raises(store.Unreachable, match="Could not connect"):
            place.write("lost", some)
        assert not place.exists("lost")
    place.clear()


def test_a_small_run_in_a_bucket_goes_on_where_it_was_cut(bucket, monkeypatch):
    url, small = f"{bucket}/small", plan(points=None, variants=["stage1"])
    store.create_run(url, **small).close()
    writer = store.resume_run(url, **small)
    with pytest.raises(store.Locked, match=f"written by process {os.getpid()}"):
        lock_of_another(url, monkeypatch)
    for rows in writer.pending("target"):
        writer.append_target(rows, targets()[rows])
        writer.append("stage1", rows, states()[:, rows])
    writer.finish()
    np.testing.assert_array_equal(store.open_run(url).hidden("stage1"), states())
    assert store.verify_run(url) == []


def lock_of_another(url, monkeypatch):
    """What a second process would get that asks for the lock of this one."""
    lease = Lease.__new__(Lease)
    lease._run, lease._key = Place(url), ".writer-0.lock"
    with monkeypatch.context() as patch:
        patch.setattr("store.lock._DRAWN", "another")
        lease._take()


def test_an_interrupted_run_behind_a_url_goes_on(place, on_disk):
    url = f"{place}/cut"
    writer = store.create_run(url, **plan())
    writer.append_target(slice(0, 128), targets()[:128])
    writer.close()
    with pytest.raises(FileExistsError, match="already holds a run"):
        store.create_run(url, **plan())
    with pytest.raises(ValueError, match=r"layers is \[0, 4, 8\] in the store and \[0, 4\] now"):
        store.resume_run(url, **plan(layers=[0, 4]))
    with pytest.warns(store.UnfinishedRunWarning, match="target has 128 of 300"):
        np.testing.assert_array_equal(store.open_run(url).target(), targets()[:128])
    Place(url).write("activations.zarr/.making", [b""])  # as a kill right after laying it out does
    fill(store.resume_run(url, **plan()))
    assert remote_contents(url) == on_disk


def test_results_behind_a_url_replace_older_ones(place):
    url = f"{place}/probes"
    fill(store.create_run(url, **plan()))
    run = store.open_run(url)
    for value in (1.0, 2.0):
        run.write_probe("knn", xr.Dataset({"mean": ("layer", [value] * 3)}))
    assert store.open_run(url).probes("knn")["mean"].values.tolist() == [2, 2, 2]
    assert store.verify_run(url) == []


def test_damage_behind_a_url_is_found(place):
    url = f"{place}/damaged"
    fill(store.create_run(url, **plan()))
    fs, root = fsspec.core.url_to_fs(url)
    key = f"{root}/activations.zarr/aligned/hidden/c.0.1.0.0"
    content = bytearray(fs.cat_file(key))
    content[len(content) // 2] ^= 4
    fs.pipe_file(key, bytes(content))
    (problem,) = store.verify_run(url)
    assert problem.startswith("aligned, layer 4, samples 128-255 (object-0128 to object-0255)")


def test_an_upload_of_an_empty_store_that_was_cut_short_is_begun_anew(place, monkeypatch):
    url = f"{place}/half"
    fs, root = fsspec.core.url_to_fs(url)
    key = Place._key

    def lost(self, name):
        if name == "label/zarr.json":
            raise OSError("the network is down")
        return key(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Place, "_key", lost)
        with pytest.raises(OSError, match="the network is down"):
            store.create_run(url, **plan(points=None))
    assert fs.exists(f"{root}/activations.zarr/caption/c/0")
    with pytest.raises(store.StoreError, match=r"holds no activations\.zarr"):
        store.open_run(url)
    fill(store.create_run(url, **plan()))
    assert store.verify_run(url) == []
    assert not fs.exists(f"{root}/activations.zarr/.making")


def test_a_store_that_lost_its_root_is_not_written_over(place):
    url = f"{place}/headless"
    store.create_run(url, **plan()).close()
    fs, root = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{root}/activations.zarr/zarr.json")
    with pytest.raises(FileExistsError, match="a damaged store or none of ours"):
        store.create_run(url, **plan())


KILLED = (
    "import sys; from tests.test_store import *\n"
    "fill(store.create_run(sys.argv[1], **plan(), resume=True), pause=0.2)"
)


@pytest.mark.slow
def test_a_capture_to_s3_that_is_killed_goes_on_to_the_same_bytes(bucket, on_disk):
    url = f"{bucket}/killed"
    fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    child = subprocess.Popen([sys.executable, "-c", KILLED, url], cwd=ROOT)
    deadline = time.time() + 180
    while not fs.glob(f"{root}/activations.zarr/stage1/hidden/c.*") and time.time() < deadline:
        time.sleep(0.05)
    with pytest.raises(store.Locked, match=f"is being written by process {child.pid} on "):
        store.resume_run(url, **plan())
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    writer = store.resume_run(url, **plan())  # its process is gone, so its lock is left behind
    assert writer.done("target") == SAMPLES and writer.done("aligned") < SAMPLES
    fill(writer)
    assert remote_contents(url) == on_disk


@contextmanager
def network_lost(server):
    """Inside, nothing answers at the server's address; afterwards it does, with what it had."""
    host, port = server.get_host_and_port()
    server.stop()
    try:
        yield
    finally:
        server._ip_address, server._port = host, port
        server.start()


@pytest.mark.slow
def test_a_capture_to_s3_goes_on_when_the_network_is_back(server, bucket, on_disk):
    url = f"{bucket}/lost"
    writer = store.create_run(url, **plan())
    for rows in writer.pending("target"):
        writer.append_target(rows, targets()[rows])
    writer.append("stage1", slice(0, 128), states()[:, :128])
    with network_lost(server), pytest.raises(store.Unreachable, match="Could not connect"):
        fill(writer)
    assert writer.done("stage1") == 128
    fill(writer)
    assert remote_contents(url) == on_disk
    assert store.verify_run(url) == []


def said(capsys, monkeypatch, *words):
    """Code and last line of `python -m store`."""
    monkeypatch.setattr("sys.argv", ["store", *words])
    capsys.readouterr()
    return command(), capsys.readouterr().err.strip()


def test_a_network_that_is_away_is_one_sentence(server, bucket, capsys, monkeypatch):
    url, small = f"{bucket}/away", plan(points=None, variants=["stage1"])
    writer = store.create_run(url, **small)
    states_there = store.open_run(url).hidden
    writer.append("stage1", slice(0, 128), states()[:, :128])
    with pytest.warns(store.UnfinishedRunWarning):
        lazy = states_there("stage1")
    with network_lost(server):
        sentence = f"{url}.* can't be reached .*Could not connect.*: check the network.* goes on"
        for call in (
            lambda: store.open_run(url),
            lambda: store.verify_run(url),
            lambda: store.resume_run(url, **small),
            lambda: store.create_run(f"{url}2", **small),
            lambda: writer.append("stage1", slice(128, 256), states()[:, 128:256]),
            lambda: lazy[0].values,
        ):
            with pytest.raises(store.Unreachable, match=sentence):
                call()
        writer.close()  # says nothing: its lock ends with this process
        for words in (["info", url], ["verify", url], ["ls", bucket]):
            code, line = said(capsys, monkeypatch, *words)
            assert code == 1 and "can't be reached" in line and len(line.splitlines()) == 1
    writer = store.resume_run(url, **small)
    assert writer.done("stage1") == 128
    writer.close()


def test_a_bucket_that_is_not_there_is_named(server, capsys, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"s3://nowhere/run can't be written .*bucket"):
        store.create_run("s3://nowhere/run", **plan(points=None))
    assert said(capsys, monkeypatch, "ls", "s3://nowhere") == (
        2,
        "s3://nowhere is no folder or bucket",
    )
    code, line = said(capsys, monkeypatch, "info", "s3://nowhere/run")
    assert code == 2 and "s3://nowhere/run is no run" in line


def test_credentials_that_are_missing_are_one_sentence(server, capsys, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "_cache", {})  # as in a new process
    code, line = said(capsys, monkeypatch, "info", "s3://runs/run")
    assert code == 1 and line.startswith("s3://runs/run") and "Unable to locate credentials" in line
    assert len(line.splitlines()) == 1


def sign(url, **about):
    """Put another process's lock there; that of a machine elsewhere is judged by its age."""
    holder = {"host": "elsewhere", "process": 7, "token": "another", "alive": time.time()}
    Place(url).write(".writer-0.lock", [json.dumps(holder | about).encode()])


def test_a_lock_of_another_machine_ends_when_it_is_silent(place):
    url = f"{place}/lease"
    store.create_run(url, **plan(points=None)).close()
    sign(url)
    with pytest.raises(store.Locked, match="written by process 7 on elsewhere"):
        store.resume_run(url, **plan(points=None))
    sign(url, alive=time.time() - LEASE - 5)
    store.resume_run(url, **plan(points=None)).close()
    assert not Place(url).exists(".writer-0.lock")


def test_a_writer_that_was_silent_too_long_writes_no_more(place, monkeypatch):
    url = f"{place}/taken"
    writer = store.create_run(url, **plan(points=None))
    writer.append_target(slice(0, 128), targets()[:128])
    sign(url)
    later = time.time() + LEASE
    monkeypatch.setattr("store.lock.time.time", lambda: later)
    with pytest.raises(store.Locked, match="written by process 7 on elsewhere"):
        writer.append_target(slice(128, 256), targets()[128:256])
    writer.close()
    assert Place(url).exists(".writer-0.lock")  # it is the other's
