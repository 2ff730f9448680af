"""python -m probe.hosts: the depth curves of several systems in one figure and one table."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from probe.hosts import cli, depth_curves, table
from store import create_run, open_run


def swept(layers, variants=("stage1",), rise=0.0) -> xr.Dataset:
    """A sweep whose accuracy is 0.5 + rise * layer, CKA 1 - layer / 100, drift layer / 100."""
    shape = (len(variants), len(layers))
    depth = np.broadcast_to(np.array(layers, float), shape)
    values = {"knn": 0.5 + rise * depth, "cka": 1 - depth / 100, "drift_centred": depth / 100}
    results = xr.Dataset(coords={"variant": list(variants), "layer": list(layers), "k": [1, 10]})
    for score, mean in values.items():
        dims = ("variant", "layer")
        if score == "knn":
            mean, dims = np.stack([mean - 0.1, mean], axis=-1), (*dims, "k")
        for part, shift in (("mean", 0), ("low", -0.05), ("high", 0.05)):
            results[f"{score}_{part}"] = (dims, mean + shift)
    results["knn_target_mean"] = ("k", [0.6, 0.7])
    return results


def test_layers_are_laid_on_one_depth_and_each_system_keeps_its_target():
    values = depth_curves({"ours": swept([0, 16, 32]), "theirs": swept([1, 2, 4], rise=0.05)}, 10)
    ours, theirs = (values[values.system == name] for name in ("ours", "theirs"))
    assert ours[ours.score == "cka"].depth.tolist() == [0, 0.5, 1]
    knn = theirs[theirs.score == "knn"]
    assert knn.depth.tolist() == [0.25, 0.5, 1]
    assert knn["mean"].tolist() == pytest.approx([55, 60, 70])
    assert knn.target.tolist() == [70] * 3 and theirs[theirs.score == "cka"].target.isna().all()
    assert "| theirs | 4 | 1.00 | 70.0 [65.0, 75.0] | 0.960 [0.910, 1.010] |" in table(values)
    several = depth_curves({"ours": swept([0, 4], ["baseline", "aligned"])}, 1)
    assert set(several.system) == {"ours: baseline", "ours: aligned"}
    with pytest.raises(ValueError, match=r"ours was asked for K = \[1, 10\], not 5"):
        depth_curves({"ours": swept([0, 4])}, 5)
    linear = swept([0, 4])[["k"]].assign(linear_mean=(("variant", "layer"), np.zeros((1, 2))))
    with pytest.raises(ValueError, match="theirs was swept without knn and drift"):
        depth_curves({"ours": swept([0, 4]), "theirs": linear}, 10)


def run_with(path, results):
    """A finished run of two samples that holds these results of a sweep."""
    layers, variants = results.layer.values.tolist(), results.variant.values.astype(str).tolist()
    table = {"id": ["a", "b"], "label": [0, 1], "class_name": ["x", "y"], "caption": ["", ""]}
    sizes = {"tokens": 1, "dim": 2, "target_dim": 2}
    table |= {"split": ["gallery", "query"]}
    writer = create_run(path, samples=table, layers=layers, variants=variants, **sizes)
    for rows in writer.pending("target"):
        count = rows.stop - rows.start
        writer.append_target(rows, np.zeros((count, 1, 2)))
        for variant in variants:
            writer.append(variant, rows, np.zeros((len(layers), count, 1, 2)))
    writer.finish()
    open_run(path).write_probe("sweep", results)
    return str(path)


def test_the_command_writes_a_picture_and_two_tables(tmp_path, capsys):
    one = run_with(tmp_path / "one", swept([0, 2], ["stage1", "untrained"]))
    two = run_with(tmp_path / "two", swept([1, 2, 3], ["pointllm"]))
    out = ["--out", str(tmp_path / "out")]
    assert cli([one, two, "--variants", "stage1,pointllm", *out]) == 0
    numbers = pd.read_csv(tmp_path / "out/depth.csv")
    assert set(numbers.system) == {"one", "two"} and len(numbers) == 3 * 5
    assert (tmp_path / "out/depth.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out/depth.md").read_text().count("| two |") == 3
    capsys.readouterr()
    assert cli([one, two, "--variants", "aligned", *out]) == 2
    assert "one has none of them, it has stage1, untrained" in capsys.readouterr().err
    assert cli([one, one, *out]) == 2
    assert "two runs are called one" in capsys.readouterr().err
    assert cli([one, "--names", "a", "b", *out]) == 2
