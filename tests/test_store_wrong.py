"""What a store can't take is refused in one sentence, before anything is written."""

import numpy as np
import pytest

import store
from tests.test_store import DIM, LAYERS, SAMPLES, TOKENS, plan

WRONG = {
    "rows": [slice(None, 128), slice(0, None), slice(None), 5, [0, 1], None, slice(0.0, 128.0)],
    "values": [np.int64, complex, object, bool, str, np.float16(1), [[1.0], [1.0, 2.0]], None],
}


def test_what_no_append_takes_is_one_sentence(tmp_path):
    """Whatever is wrong: no row is written, and the error is a ValueError that names the part."""
    writer = store.create_run(tmp_path / "run", **plan(patches=3, encoder_dim=2))
    rows, count = slice(0, 128), 128
    calls = {
        "stage1": (writer.append, "stage1", [np.ones((len(LAYERS), count, TOKENS, DIM))]),
        "target": (writer.append_target, None, [np.ones((count, TOKENS, 6))]),
        "encoder": (writer.append_encoder, None, [np.ones((count, 2))]),
        "attention": (
            writer.append_attention,
            None,
            [np.ones((count, TOKENS, 3)), np.ones((count, 3, 3))],
        ),
    }
    for name, (append, variant, arrays) in calls.items():
        first = [variant] if variant else []
        for wrong in WRONG["rows"]:
            with pytest.raises(ValueError, match="give a slice of two numbers"):
                append(*first, wrong, *arrays)
        for at, array in enumerate(arrays):
            more, flat = np.concatenate([array, array], axis=-3 if variant else 0), array[..., 0]
            for wrong in [more, flat, array[None], *WRONG["values"]]:
                given = array.astype(wrong) if isinstance(wrong, type) else wrong
                said = f"{name} rows 0-128: .*(the store takes|is no array)"
                with pytest.raises(ValueError, match=said):
                    append(*first, rows, *arrays[:at], given, *arrays[at + 1 :])
        assert writer.done(name) == 0
    for wrong in ("target", "attention", "other", None, ["stage1"]):
        with pytest.raises(ValueError, match=r"has no variant .*: it has stage1, aligned"):
            writer.append(wrong, rows, *calls["stage1"][2])
    for process in ((-1, 2), (2, 2), (0, 0), ("a", 2)):
        with pytest.raises(ValueError, match="they are numbered from 0"):
            list(writer.pending("stage1", *process))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, "layers None: need a list"),
        ({"layers": "all"}, "layers 'all': need a list"),
        ({"layers": [0.5]}, r"layers \[0.5\]: need whole numbers"),
        ({"variants": "stage1"}, "variants 'stage1': need a list"),
        ({"variants": ["label"]}, "variant 'label'"),
        ({"tokens": 4.5}, "tokens=4.5, dim=8, target_dim=6: must be whole numbers"),
        ({"dim": None}, "dim=None"),
        ({"patches": "a"}, "patches='a'"),
        ({"encoder_dim": 1.5}, "encoder_dim=1.5"),
        ({"steps": 3}, "steps of stage1 3: need a list"),
        ({"steps": [1.5]}, r"steps of stage1 \[1.5\]: need whole numbers"),
        ({"provenance": [1]}, "provenance is list"),
        ({"points": [[1]]}, r"points have shape \(\), expected \(300, n, 6\)"),
        ({"points": np.zeros((SAMPLES, 2, 6), complex)}, "points are complex128"),
        ({"samples": None}, "samples are NoneType"),
        ({"samples": {"label": [0.5] * SAMPLES}}, "label is float64: give whole numbers"),
        ({"samples": {"id": None}}, "column id holds objects"),
        ({"samples": {"caption": [None] * SAMPLES}}, "column caption holds objects"),
        ({"samples": {"extra": [1j] * SAMPLES}}, "column extra is complex128"),
        ({"samples": {"a/b": [1] * SAMPLES}}, "column 'a/b': letters"),
    ],
)
def test_a_plan_of_the_wrong_kind_is_one_sentence(tmp_path, change, message):
    if change.get("samples"):
        change = {"samples": plan()["samples"] | change["samples"]}
    with pytest.raises(ValueError, match=message):
        store.create_run(tmp_path / "run", **(plan(points=None) | change))
    assert not (tmp_path / "run").exists()
