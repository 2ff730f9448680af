"""Runs damaged in many ways: every page says what is wrong, and none ends in a traceback."""

import json
import shutil

import numpy as np
import pytest

import store
from probe.objects import objects
from probe.sweep import sweep
from store.schema import STORE
from tests.test_dashboard import fresh_caches, look, text, write_run  # noqa: F401

PROBES = f"{STORE}/probes"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = write_run(tmp_path_factory.mktemp("whole") / "one", patches=5)
    run = store.open_run(path)
    run.write_probe("sweep", sweep(run, ["knn", "drift", "dimension"], k=(1, 10)))
    run.write_probe("objects", objects(run))
    return path


def garbage(path):
    """Every chunk and every description in a folder, overwritten."""
    for file in [one for one in path.rglob("*") if one.is_file()]:
        file.write_bytes(b"\x00none of ours\xff" * 3)


def lost(path):
    shutil.rmtree(path)


def odd(path):
    """Valid JSON of another shape."""
    path.write_text("[1, 2]")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nonsense(path):
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"config": [1], "versions": 3, "status": ["?"]}))


def strange(path):
    lines = [3, {"variant": {}, "step": "x"}, {"variant": "aligned", "step": 1, "loss": "high"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\x00\n{")


def garbled(path):
    path.write_bytes(b"\xff\xfe\x00")


DAMAGE = {  # what is done to which part of a run, and the pages that read it
    "scores are garbage": (garbage, f"{PROBES}/sweep", ("degradation", "provenance")),
    "a score is lost": (lost, f"{PROBES}/sweep/knn_mean", ("degradation",)),
    "a score's chunks are garbage": (garbage, f"{PROBES}/sweep/cka_mean/c", ("degradation",)),
    "scores are something else": (odd, f"{PROBES}/sweep/zarr.json", ("degradation", "compare")),
    "objects are cut short": (cut, f"{PROBES}/objects/zarr.json", ("explorer", "object")),
    "neighbours are lost": (lost, f"{PROBES}/objects/neighbour", ("explorer", "object")),
    "states are garbage": (garbage, f"{STORE}/aligned", ("object", "provenance")),
    "the target is lost": (lost, f"{STORE}/target", ("object", "provenance")),
    "the plan is cut short": (cut, f"{STORE}/zarr.json", ("training", "causes")),
    "the record is no record": (odd, "run.json", ("training", "provenance")),
    "the record is nonsense": (nonsense, "run.json", ("training", "provenance", "degradation")),
    "the log is strange": (strange, "metrics.jsonl", ("training",)),
    "the log is garbage": (garbled, "metrics.jsonl", ("training",)),
}
UNSEEN = ("a score is lost", "states are garbage", "the target is lost", "the log is strange")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_shown_as_such(whole, tmp_path, look, kind):  # noqa: F811
    shutil.copytree(whole, tmp_path / "one")
    damage, at, pages = DAMAGE[kind]
    damage(tmp_path / "one" / at)
    said = ""
    for page in pages:
        app = look(tmp_path, page, run="one")
        assert not app.exception, (page, [one.message for one in app.exception])
        said += text(app) + " ".join(one.value for one in app.error)
    assert kind in UNSEEN or "cannot" in said


def test_nan_where_numbers_should_be_is_no_traceback(whole, tmp_path, look):  # noqa: F811
    shutil.copytree(whole, tmp_path / "one")
    run = store.open_run(tmp_path / "one")
    for name in ("sweep", "objects"):
        found = run.probes(name)
        floats = [key for key in found if found[key].dtype.kind == "f"]
        run.write_probe(name, found.assign({key: found[key] * np.nan for key in floats}))
    for page, choices in (("degradation", {"measure": "knn"}), ("object", {})):
        app = look(tmp_path, page, **choices)
        assert not app.exception, (page, [one.message for one in app.exception])
