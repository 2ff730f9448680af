"""The notebooks run on the run that ships, use no logic of their own and are kept with outputs."""

import ast

import pytest

from tests.test_imports import ROOT

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from notebooks import execute  # noqa: E402

FAST = "1_where"
NAMES = [pytest.param(n, marks=[] if n == FAST else pytest.mark.slow) for n in execute.NAMES]


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
@pytest.mark.parametrize("name", NAMES)
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


def kinds(cell) -> list[str]:
    """What a cell shows: the types of its outputs."""
    outputs = cell.get("outputs", [])
    return [kind for out in outputs for kind in sorted(out.get("data", [out.get("name")]))]
