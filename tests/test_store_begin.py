"""A run that begins with what another one captured already."""

from typing import Any

import numpy as np
import pytest

import store
from store.begin import begin_like

SAMPLES, TOKENS, DIM = 6, 2, 3
RNG = np.random.default_rng(0)
STATES = {
    name: RNG.random((2, SAMPLES, TOKENS, DIM), np.float32) for name in ("baseline", "aligned")
}
STEPS = {"aligned": [10, 20]}
PLAN: dict[str, Any] = {
    "samples": {
        "id": [f"o{at}" for at in range(SAMPLES)],
        "label": [0, 1] * 3,
        "class_name": ["a", "b"] * 3,
        "split": ["gallery"] * 3 + ["query"] * 3,
        "caption": ["a shape"] * SAMPLES,
    },
    "layers": [0, 4],
    "variants": ["baseline", "aligned"],
    "tokens": TOKENS,
    "dim": DIM,
    "target_dim": 4,
    "points": RNG.random((SAMPLES, 5, 6), np.float32),
    "encoder_dim": 5,
    "patches": 7,
    "steps": STEPS,
    "dtype": "float32",
    "provenance": {"seed": 3, "hashes": {"query": "aa"}},
}
TARGET = RNG.random((SAMPLES, TOKENS, 4), np.float32)
ENCODED = RNG.random((SAMPLES, 5), np.float32)
WEIGHTS, CENTRES = RNG.random((SAMPLES, TOKENS, 7)), RNG.random((SAMPLES, 7, 3))


def capture(writer, variant):
    for step in STEPS.get(variant, [None]):
        for rows in writer.pending(variant, step=step):
            writer.append(variant, rows, STATES[variant][:, rows] * (step or 1), step=step)


@pytest.fixture
def run(tmp_path):
    writer = store.create_run(tmp_path / "run", **PLAN)
    for rows in writer.pending("target"):
        writer.append_target(rows, TARGET[rows])
        writer.append_encoder(rows, ENCODED[rows])
    for rows in writer.pending("attention"):
        writer.append_attention(rows, WEIGHTS[rows], CENTRES[rows])
    for variant in STATES:
        capture(writer, variant)
    return writer


@pytest.mark.parametrize("without", [["aligned"], ["baseline"]])
def test_only_what_was_left_out_is_still_to_capture(run, tmp_path, without):
    run.finish()
    begin_like(tmp_path / "run", tmp_path / "new", without=without)
    writer = store.create_run(tmp_path / "new", **PLAN, resume=True)
    shared = {"baseline", "aligned", "target", "encoder", "attention"} - set(without)
    assert {name for name in shared if writer.done(name) == SAMPLES} == shared
    assert writer.done(without[0]) == 0
    with pytest.raises(ValueError, match="0 of 6 samples"):
        writer.finish()
    capture(writer, without[0])
    writer.finish()
    old, new = (store.open_run(tmp_path / name) for name in ("run", "new"))
    for name in PLAN["variants"]:
        np.testing.assert_array_equal(new.hidden(name), old.hidden(name))
    np.testing.assert_array_equal(new.target(), old.target())
    np.testing.assert_array_equal(new.encoder(), ENCODED)
    assert new.attention().identical(old.attention()) and new.samples().equals(old.samples())
    assert store.verify_run(tmp_path / "new") == []


def test_an_unfinished_run_or_a_strange_variant_is_refused(run, tmp_path):
    run.close()
    with pytest.raises(ValueError, match="is not complete"):
        begin_like(tmp_path / "run", tmp_path / "new", without=["aligned"])
    writer = store.create_run(tmp_path / "run", **PLAN, resume=True)
    writer.finish()
    with pytest.raises(ValueError, match="no variant 'other'"):
        begin_like(tmp_path / "run", tmp_path / "new", without=["other"])
    assert not (tmp_path / "new").exists()
