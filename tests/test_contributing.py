"""CONTRIBUTING.md: its examples run as they stand, its map is true, its reference can be built."""

import ast
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.commands import ROOT, shown

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"## Add a ([a-z ]+)\n.*?```python\n(.*?)```", GUIDE, flags=re.DOTALL))


def test_there_is_an_example_of_a_probe_a_host_and_a_data_set_under_60_lines():
    assert list(EXAMPLES) == ["probe", "host", "data set"]
    assert all(len(code.splitlines()) < 60 for code in EXAMPLES.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_guide_runs_as_it_stands(name, tmp_path, monkeypatch):
    shutil.unpack_archive(ROOT / "dashboards" / "demo" / "shapes.zip", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "example"}
    exec(compile(EXAMPLES[name], f"CONTRIBUTING.md, {name}", "exec"), names)
    for key, value in names.items():
        if key.startswith("test_"):
            value()


def test_the_norms_of_the_probe_are_those_of_the_stored_tokens(tmp_path, monkeypatch):
    import numpy as np

    import store

    test_an_example_of_the_guide_runs_as_it_stands("probe", tmp_path, monkeypatch)
    run = store.open_run(tmp_path / "runs" / "demo-shapes")
    states = run.hidden("aligned").sel(layer=32).astype(np.float64)
    asked = (run.samples().split == "query").values
    length = ((states**2).sum("dim") ** 0.5).mean("token")[asked].mean()
    found = run.probes("norms").sel(variant="aligned", layer=32)
    assert float(found.norm_mean) == pytest.approx(float(length))
    assert found.norm_low < found.norm_mean < found.norm_high


def test_the_files_and_folders_that_the_guide_names_are_there():
    named = re.findall(r"`((?:tests|probe|train|store|dashboards|notebooks)/[\w/.]*)`", GUIDE)
    assert named and all((ROOT / name).exists() for name in named), named


def test_every_module_says_what_it_is():
    files = [f for package in ("store", "probe", "train") for f in (ROOT / package).rglob("*.py")]
    silent = [
        str(file.relative_to(ROOT))
        for file in files
        if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent


@pytest.mark.slow
def test_the_reference_is_built_and_its_links_lead_somewhere(tmp_path):
    """By the guide's own command; nothing that a reader opens is fetched from a network."""
    pytest.importorskip("pdoc")
    command = next(one for one in shown()["CONTRIBUTING.md"] if one.startswith("pdoc "))
    assert "-o build/reference" in command
    words = shlex.split(command.replace("-o build/reference", f"-o {tmp_path}"))
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert tmp_path / "probe" / "knn.html" in pages and len(pages) > 80
    for page, text in pages.items():
        assert not re.search(r'(src="https?:|<link[^>]+https?:|@import|url\(["\']?https?:)', text)
        body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        for link in re.findall(r'href="([^"]+)"', body):
            file = link.partition("#")[0]
            if file and not link.startswith(("http", "data:")):
                assert (page.parent / file).resolve() in pages, f"{page}: {link}"
