"""Who may import whom, read from the import lines; and nothing heavy on import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"store", "probe", "train", "dashboards"}
MAY_IMPORT = {
    "store": set(),
    "probe": {"store"},
    "train": {"store", "probe"},
    "dashboards": {"store", "probe"},
}


def imported(file):
    """Top-level names of all imports in a file, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrows(package):
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in (ROOT / package).rglob("*.py")
        for name in sorted(set(imported(file)) & (OURS - MAY_IMPORT[package] - {package}))
    ]
    assert not wrong


def test_only_recipes_of_train_import_probe():
    for folder in ("models", "data", "hosts"):
        for file in (ROOT / "train" / folder).rglob("*.py"):
            assert "probe" not in set(imported(file)), file


def test_the_store_and_the_probes_load_without_torch():
    modules = "store, probe.knn, probe.cka, probe.drift, probe.sweep, probe.plots, probe.report"
    script = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
