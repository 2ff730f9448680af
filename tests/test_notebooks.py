"""The notebooks run on the run that ships, use no logic of their own and are kept with outputs."""

import ast
import shutil

import numpy as np
import pandas as pd
import pytest

import store
from tests.test_imports import ROOT

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from notebooks import execute, which_alignment  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebooks' folder with the shipped run beside it, so that nothing is written here."""
    (tmp_path / "dashboards").symlink_to(ROOT / "dashboards")
    (tmp_path / "notebooks").mkdir()
    for table in (ROOT / "notebooks").glob("*.csv"):
        (tmp_path / "notebooks" / table.name).symlink_to(table)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the kernel, where nothing is installed
    return tmp_path / "notebooks"


def test_there_is_a_notebook_for_each_of_six_questions():
    assert [name[0] for name in execute.NAMES] == list("123456")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", execute.NAMES)
def test_a_notebook_runs_on_the_shipped_run_and_shows_what_is_committed(name, folder):
    found = execute.executed(name, folder)
    kept = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert [kinds(cell) for cell in found.cells] == [kinds(cell) for cell in kept.cells]
    assert any("image/png" in kind for cell in found.cells for kind in kinds(cell))


@pytest.mark.parametrize("name", execute.NAMES)
def test_a_committed_notebook_is_its_script_with_outputs(name):
    script = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    kept = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    assert [c.source for c in script.cells] == [c.source for c in kept.cells]
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert not any(cell.execution_count or cell.metadata for cell in kept.cells if cell in code)
    assert not any(out.get("name") == "stderr" for cell in code for out in cell.outputs)


@pytest.mark.parametrize("name", execute.NAMES)
def test_a_notebook_has_no_logic_of_its_own(name):
    """No function, class, loop or private name: only calls of what the packages make public."""
    tree = ast.parse((ROOT / "notebooks" / f"{name}.py").read_text())
    wrong = (ast.FunctionDef, ast.ClassDef, ast.While, ast.Try, ast.With)
    assert not [node for node in ast.walk(tree) if isinstance(node, wrong)]
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [a.name for node in imports for a in node.names if a.name.startswith("_")]
    assert not [node.module for node in imports if (node.module or "").startswith("dashboards")]


def test_the_table_of_notebook_5_is_what_the_sweeps_of_its_runs_hold(tmp_path, capsys):
    shutil.unpack_archive(ROOT / "dashboards" / "demo" / "shapes.zip", tmp_path)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "demo-shapes").rename(tmp_path / "sweep" / "align_weight=0.5-seed0")
    (tmp_path / "sweep" / "align_weight=0.5-seed1").mkdir()  # not begun
    table = tmp_path / "table.csv"
    which_alignment.main([str(tmp_path / "sweep"), "--table", str(table)])
    assert "1 runs" in capsys.readouterr().out
    found = pd.read_csv(table).set_index("layer")
    pair = store.open_run(tmp_path / "sweep" / "align_weight=0.5-seed0").probes("sweep")
    pair = pair.sel(comparison="aligned - baseline", k=10)
    np.testing.assert_allclose(found.knn_mean, pair.knn_difference, rtol=1e-5)
    np.testing.assert_allclose(found.drift_high, pair.drift_centred_difference_high, rtol=1e-5)
    assert set(found.setting) == {"align_weight=0.5"} and set(found.trained_on) == {1920}
    kept = pd.read_csv(which_alignment.TABLE)
    assert list(kept.columns) == list(found.reset_index().columns)
    with pytest.raises(SystemExit):
        which_alignment.main([str(tmp_path / "nowhere")])
    assert "no finished run in" in capsys.readouterr().err


def kinds(cell) -> list[str]:
    """What a cell shows: the types of its outputs."""
    outputs = cell.get("outputs", [])
    return [kind for out in outputs for kind in sorted(out.get("data", [out.get("name")]))]
