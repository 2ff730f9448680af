"""CONTRIBUTING.md: its examples run as they stand, and the commands of all guides exist."""

import re
import shutil

import pytest

from tests.test_readme import COMMANDS, ROOT
from tests.test_readme import test_every_flag_in_a_command_is_known_to_its_help as flags_are_known

GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"## Add a ([a-z ]+)\n.*?```python\n(.*?)```", GUIDE, flags=re.DOTALL))
NOTEBOOKS = [path.read_text() for path in sorted((ROOT / "notebooks").glob("[0-9]_*.py"))]
CALLS = re.findall(
    r"python\s(?:#\s)?-m\s(?:#\s)?((?:train|probe|store|notebooks)[^\n&|#`]*)",
    "\n".join([GUIDE, *NOTEBOOKS]),
)


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


@pytest.mark.parametrize("module", sorted({call.split()[0] for call in CALLS}))
def test_every_flag_of_the_guide_and_the_notebooks_is_known(module):
    """One call of --help a module; what the README says too is tested there."""
    said = {flag for call in COMMANDS for flag in call.split() if call.split()[0] == module}
    flags = {word for call in CALLS if call.split()[0] == module for word in call.split()}
    new = sorted(flag for flag in flags - said if flag.startswith("--"))
    if new:
        flags_are_known(" ".join([module, *new]))


def test_the_files_and_folders_that_the_guide_names_are_there():
    named = re.findall(r"`((?:tests|probe|train|store|dashboards|notebooks)/[\w/.]*)`", GUIDE)
    assert named and all((ROOT / name).exists() for name in named), named
