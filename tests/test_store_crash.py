"""Killed, crowded, full, flipped: what is in a store is right, or verify says what is not."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import store
from tests.test_store import ROOT, contents, fill, plan, states, targets

SMALL = {"variants": ["stage1", "aligned"], "points": None}

# Imports once; forks a child for each line that it is given, a path, which captures until killed.
NURSERY = """
import os, sys
from tests.test_store import *

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        fill(store.create_run(line.strip(), **plan(points=None), resume=True), pause=0.002)
        os._exit(0)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    fill(store.create_run(path, **plan(points=None)))
    return contents(path)


def kills(path, count, seed, whole):
    """Children capture to `path`, each killed once; a finished run is begun anew."""
    draw = random.Random(seed)
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def child(folder, seconds=None):
        """Seconds that a child took, which is killed after some."""
        nursery.stdin.write(f"{folder}\n".encode())
        nursery.stdin.flush()
        process, begun = int(nursery.stdout.readline()), time.monotonic()
        if seconds is not None:
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert nursery.stdout.readline() == b"ended\n"
        return time.monotonic() - begun

    with nursery:
        longest = child(path)
        for _ in range(count):
            if (path / "activations.zarr").exists():
                check_what_is_there(path)
                if store.open_run(path).complete:
                    assert contents(path) == whole
                    shutil.rmtree(path)
            child(path, draw.uniform(0, longest))
        nursery.stdin.close()
    fill(store.create_run(path, **plan(points=None), resume=True))
    assert contents(path) == whole


def check_what_is_there(path):
    """Every sample that counts as finished is the one that was captured, at every layer."""
    assert store.verify_run(path) == []
    run = store.open_run(path)
    for variant in run.variants:
        done = run.done(variant)
        if done:
            found = run.hidden(variant)[:, :done] if run.complete else None
            if found is None:
                with pytest.warns(store.UnfinishedRunWarning) if done < 300 else nothing():
                    found = run.hidden(variant)
            np.testing.assert_array_equal(found, states(variant)[:, :done])


@contextmanager
def nothing():
    yield


def test_a_capture_survives_kills_at_random_moments(tmp_path, whole):
    kills(tmp_path / "run", 3, 0, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_a_capture_survives_hundreds_of_kills(tmp_path, whole, seed):
    kills(tmp_path / "run", 25, seed, whole)


@pytest.mark.parametrize(
    "failing",
    [n if n in (2, 7, 19) else pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20)],
)
def test_a_capture_that_stops_at_any_write_goes_on_to_the_same_bytes(
    tmp_path, whole, monkeypatch, failing
):
    """The process ends before its n-th rename, the moment at which a file comes to be.

    There are two for each of nine appends, and one that seals; before them the store is laid out.
    """
    calls = []

    class Killed(BaseException):
        pass

    def replace(self, target):
        if ".activations.zarr.partial" not in self.parts:
            calls.append(self)
        if len(calls) == failing:
            raise Killed
        return rename(self, target)

    rename = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with suppress(Killed):
            fill(store.create_run(tmp_path / "run", **plan(points=None)))
    assert len(calls) == failing
    check_what_is_there(tmp_path / "run")
    fill(store.create_run(tmp_path / "run", **plan(points=None), resume=True))
    assert contents(tmp_path / "run") == whole


class Writers(RuleBasedStateMachine):
    """Three processes of one run append, die and come back in any order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.writers, self.appended = {}, set()

    @initialize()
    def begin(self):
        self.writers[0] = store.create_run(self.folder / "run", **plan(**SMALL))

    @rule(number=st.sampled_from([0, 1, 2]))
    def open_again(self, number):
        if number in self.writers:
            self.writers.pop(number).close()
        self.writers[number] = store.resume_run(
            self.folder / "run", **plan(**SMALL), process=number
        )

    @rule(data=st.data(), name=st.sampled_from(["target", "stage1", "aligned"]))
    def append(self, data, name):
        number = data.draw(st.sampled_from(sorted(self.writers)))
        rows = next(iter(self.writers[number].pending(name, number, 3)), None)
        if rows is None:
            return
        if name == "target":
            self.writers[number].append_target(rows, targets()[rows])
        else:
            self.writers[number].append(name, rows, states(name)[:, rows])
        self.appended.add((name, rows.start))

    @rule(number=st.sampled_from([0, 1, 2]), name=st.sampled_from(["stage1", "aligned"]))
    @precondition(lambda self: self.writers)
    def lose_a_half_written_file(self, number, name):
        """As a kill leaves one; nobody may take it for a shard."""
        folder = self.folder / "run" / "activations.zarr" / name
        for cut in ("hidden/c.0.1.0.0", "hidden_crc32c/c.1"):
            (folder / f"{cut}.{number}.partial").write_bytes(b"cut")

    @invariant()
    def what_is_there_was_appended(self):
        if not self.writers:
            return
        writer = next(iter(self.writers.values()))
        for name in ("target", "stage1", "aligned"):
            starts = {start for other, start in self.appended if other == name}
            missing = {rows.start for rows in writer.pending(name)}
            assert missing == {0, 128, 256} - starts

    def teardown(self):
        for writer in self.writers.values():
            writer.close()
        if self.writers:
            fill(store.create_run(self.folder / "run", **plan(**SMALL), resume=True))
            Writers.results.append(contents(self.folder / "run"))
        shutil.rmtree(self.folder)

    results: list = []  # noqa: RUF012


@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_writers_in_any_order_end_with_the_same_bytes(whole, examples):
    from hypothesis.stateful import run_state_machine_as_test

    Writers.results.clear()
    run_state_machine_as_test(
        Writers,
        settings=settings(
            max_examples=examples,
            stateful_step_count=max(8, examples // 3),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Writers.results and all(result == whole for result in Writers.results)


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 KiB; only the administrator can mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("cannot mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_a_capture_which_then_goes_on(tiny_disk, whole):
    ballast = tiny_disk / "ballast"
    writer = store.create_run(tiny_disk / "run", **plan(points=None))
    for rows in writer.pending("target"):
        writer.append_target(rows, targets()[rows])
    free = shutil.disk_usage(tiny_disk).free
    ballast.write_bytes(bytes(max(0, free - 40_000)))
    with pytest.raises(OSError, match="No space left on device"):
        fill(writer)
    assert store.verify_run(tiny_disk / "run") == []
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    fill(writer)
    assert contents(tiny_disk / "run") == whole


def test_a_file_that_may_not_grow_stops_a_capture_which_then_goes_on(tmp_path, whole):
    """As a full disk, by the system's limit on the size of a file."""
    writer = store.create_run(tmp_path / "run", **plan(points=None))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            fill(writer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "run").rglob("*.partial"))
    fill(writer)
    assert contents(tmp_path / "run") == whole


def damaged_copy(path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    return copy / "activations.zarr"


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A run with every kind of file: steps, attention, clouds, NaN, results of a probe."""
    path = tmp_path_factory.mktemp("kinds") / "run"
    small = {n: (v[:9] if hasattr(v, "__len__") else v) for n, v in plan()["samples"].items()}
    writer = store.create_run(
        path,
        samples=small,
        layers=[0, 4],
        variants=["stage1", "aligned"],
        tokens=2,
        dim=3,
        target_dim=3,
        points=np.random.default_rng(0).random((9, 5, 6)),
        encoder_dim=5,
        patches=4,
        steps={"aligned": [10, 20]},
    )
    rng = np.random.default_rng(1)
    for rows in writer.pending("target"):
        count = rows.stop - rows.start
        writer.append_target(rows, rng.random((count, 2, 3)))
        writer.append_encoder(rows, rng.random((count, 5)))
        writer.append_attention(rows, rng.random((count, 2, 4)), rng.random((count, 4, 3)))
        hidden = rng.random((2, count, 2, 3))
        hidden[0, 0, 0, 0] = np.nan
        writer.append("stage1", rows, hidden)
        for step in (10, 20):
            writer.append("aligned", rows, rng.random((2, count, 2, 3)), step=step)
    with pytest.warns(store.NonFiniteWarning):
        writer.finish()
    results = xr.Dataset({"mean": ("layer", [0.1, 0.2])}, {"layer": [0, 4], "name": ("n", ["a"])})
    store.open_run(path).write_probe("knn", results)
    assert store.verify_run(path) == []
    return path


def kinds(path):
    """One file of each kind: the first by name of those that differ in their numbers only."""
    found = {}
    for file in sorted((path / "activations.zarr").rglob("*")):
        if file.is_file():
            key = file.relative_to(path / "activations.zarr").as_posix()
            found.setdefault("".join(c for c in key if not c.isdigit()), key)
    return sorted(found.values())


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_any_kind_of_file_is_found(every_kind, tmp_path, every):
    keys = kinds(every_kind)
    assert len(keys) > 45
    keys = keys[::every]
    copy = damaged_copy(every_kind, tmp_path)
    draw = random.Random(0)
    missed = []
    for key in keys:
        content = (copy / key).read_bytes()
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        (copy / key).write_bytes(flipped)
        try:
            if not store.verify_run(copy.parent):
                missed.append(key)
        except store.StoreError:
            pass  # the root itself: there is no run to open
        (copy / key).write_bytes(content)
    assert missed == []
    assert store.verify_run(copy.parent) == []


@pytest.mark.slow
def test_a_lost_or_cut_file_of_any_kind_is_found(every_kind, tmp_path):
    copy = damaged_copy(every_kind, tmp_path)
    missed = []
    for number, key in enumerate(kinds(every_kind)):
        content = (copy / key).read_bytes()
        if number % 2:
            (copy / key).unlink()
        else:
            (copy / key).write_bytes(content[: len(content) // 2])
        try:
            if not store.verify_run(copy.parent):
                missed.append(key)
        except store.StoreError:
            pass
        (copy / key).write_bytes(content)
    assert missed == []


def test_two_whole_shards_that_changed_places_are_found(tmp_path):
    fill(store.create_run(tmp_path / "run", **plan(points=None)))
    folder = tmp_path / "run" / "activations.zarr" / "aligned" / "hidden"
    shards = [folder / "c.0.0.0.0", folder / "c.0.1.0.0"]
    for shard, content in zip(shards, [shard.read_bytes() for shard in shards[::-1]], strict=True):
        shard.write_bytes(content)
    problems = store.verify_run(tmp_path / "run")
    assert len(problems) == 2 and all("not the file that was written there" in p for p in problems)


def test_a_shard_that_a_loss_of_power_cut_is_written_again(tmp_path, whole):
    path = tmp_path / "run"
    writer = store.create_run(path, **plan(points=None))
    writer.append("stage1", slice(0, 128), states()[:, :128])
    writer.close()
    shard = path / "activations.zarr" / "stage1" / "hidden" / "c.0.0.0.0"
    for file in (shard, path / "activations.zarr/stage1/hidden_crc32c/c.0"):
        file.write_bytes(b"")
        writer = store.resume_run(path, **plan(points=None))
        assert writer.done("stage1") == 0
        writer.append("stage1", slice(0, 128), states()[:, :128])
        writer.close()
    writer = store.resume_run(path, **plan(points=None))
    fill(writer)
    assert contents(path) == whole


def test_a_second_process_is_told_who_is_writing(tmp_path):
    path = tmp_path / "run"
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from tests.test_store import *\n"
            "writer = store.create_run(sys.argv[1], **plan(points=None))\n"
            "print('holds', flush=True); time.sleep(60)",
            str(path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline()
    with pytest.raises(store.Locked, match=f"is being written by process {child.pid} on .*python"):
        store.resume_run(path, **plan(points=None))
    store.resume_run(path, **plan(points=None), process=1).close()  # another of the same run
    child.kill()
    child.wait()
    child.stdout.close()
    store.resume_run(path, **plan(points=None)).close()


COUNTING = """
import os, sys, time
from pathlib import Path
from store.lock import Locked, lock
from store.place import Place

run, count = Place(sys.argv[1]), Path(sys.argv[1]) / "count"
children = []
for _ in range(4):
    if child := os.fork():
        children.append(child)
        continue
    left = 25
    while left:
        try:
            held = lock(run, 0)
        except Locked:
            time.sleep(0.001)
            continue
        count.write_text(str(int(count.read_text()) + 1))
        held.release()
        left -= 1
    os._exit(0)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_a_lock_whose_file_is_removed_is_held_by_one_process_at_a_time(tmp_path):
    (tmp_path / "count").write_text("0")
    subprocess.run([sys.executable, "-c", COUNTING, str(tmp_path)], cwd=ROOT, check=True)
    assert (tmp_path / "count").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


RESULTS = """
import os, sys
import numpy as np
import xarray as xr
import store

run = store.open_run(sys.argv[1])
children = []
for value in range(3):
    if child := os.fork():
        children.append(child)
        continue
    found = xr.Dataset({f"score_{i}": ("layer", np.full(3, float(value))) for i in range(20)})
    for _ in range(5):
        run.write_probe("knn", found.assign_attrs(by=value))
    os._exit(0)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_processes_that_write_results_at_once_leave_those_of_one(tmp_path):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan(points=None)))
    subprocess.run([sys.executable, "-c", RESULTS, str(path)], cwd=ROOT, check=True, timeout=120)
    found = store.open_run(path).probes("knn")
    assert len(found) == 20 and (found.to_array() == found.attrs["by"]).all()
    assert store.verify_run(path) == []
    assert [file.name for file in path.iterdir()] == ["activations.zarr"]


def test_a_disk_that_fills_leaves_the_older_results_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan(points=None)))
    run, found = store.open_run(path), xr.Dataset({"mean": ("layer", np.ones(3))})
    run.write_probe("knn", found)
    plain = store.reader._write_results

    def full(folder, results):
        plain(folder, results)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.reader, "_write_results", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_probe("knn", found + 1)
    assert run.probes("knn").equals(found) and store.verify_run(path) == []
    assert [file.name for file in path.iterdir()] == ["activations.zarr"]


def test_a_link_out_of_a_store_is_not_followed(tmp_path):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan(points=None)))
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    shard = path / "activations.zarr" / "aligned" / "hidden" / "c.0.0.0.0"
    kept = shard.read_bytes()
    shard.unlink()
    shard.symlink_to(secret)
    with pytest.raises(store.StoreError, match="leads out of the store"):
        store.open_run(path).hidden("aligned").load()
    assert any("leads out of the store" in problem for problem in store.verify_run(path))
    shard.unlink()
    shard.write_bytes(kept)
    label = path / "activations.zarr" / "label"
    label.rename(tmp_path / "label")
    label.symlink_to(tmp_path / "label")
    with pytest.raises(store.StoreError, match="label is a link, it is not followed"):
        store.open_run(path).samples()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]}, "encoded by numcodecs"),
        ({"data_type": "object"}, "of type object, which is not read"),
        ({"data_type": {"name": "numpy.datetime64"}}, "which is not read"),
    ],
)
def test_what_is_no_number_or_text_is_not_read(tmp_path, change, message):
    path = tmp_path / "run"
    fill(store.create_run(path, **plan(points=None)))
    about = path / "activations.zarr" / "caption" / "zarr.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | change))
    with pytest.raises(store.StoreError, match=message):
        store.open_run(path).samples()
    assert store.verify_run(path)


@pytest.mark.parametrize("variant", ["../../else", "a/b", "..", ""])
def test_a_variant_that_leads_elsewhere_is_refused(tmp_path, variant):
    path = tmp_path / "run"
    store.create_run(path, **plan(points=None)).close()
    root = path / "activations.zarr" / "zarr.json"
    about = json.loads(root.read_text())
    about["attributes"]["variants"] = ["stage1", variant]
    root.write_text(json.dumps(about))
    with pytest.raises(store.StoreError, match="is no name of a variant"):
        store.open_run(path)
