"""Every command that the README, the guides, the notebooks and the docstrings show is real.

Those on a finished run are run here, on the run that ships. All others are read by their own
parser, flags and values and all, up to where the work would begin: they train for minutes, or want
weights or data. Other tests run each of those modules at a size that is quick.
"""

import re
import runpy
import shlex
import shutil

import pytest

from tests.commands import ROOT, parsed, shown
from train.cli import read_config
from train.config import STAGE2, with_recipe

README = (ROOT / "README.md").read_text()
SHOWN = shown()
COMMANDS = sorted({command for commands in SHOWN.values() for command in commands})
OURS = [one for one in COMMANDS if one.startswith(("python -m train", "python -m probe"))]
STORE = [one for one in COMMANDS if one.startswith("python -m store ")]
NEEDS_RUN = ("train.evaluate", "train.explain", "train.tables")
NOT_OURS = ("pytest",)
ARGUMENTS = {
    "export": ["RUN", "part.npz"],
    "merge": ["both", "RUN", "RUN2"],
    "prune": ["RUN", "--layers", "8"],
}


def test_the_readme_has_the_main_job_and_the_tests_that_ci_runs():
    assert "python -m train.stage2 --capture-layers 4,8,...,32" in SHOWN["README.md"]
    tests = next(one for one in SHOWN["README.md"] if one.startswith("python -m pytest"))
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_every_picture_and_file_the_readme_links_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and all((ROOT / link).is_file() for link in links), links


def test_commands_are_found_where_readers_find_them():
    assert {"README.md", "CONTRIBUTING.md", "notebooks/5_which.py", "train/stage1.py"} <= set(SHOWN)
    assert "python -m store verify RUN" in SHOWN["README.md"]
    assert len(OURS) > 20 and len(STORE) > 3


def test_every_module_that_is_shown_is_run_by_a_test():
    tests = {p.name: p.read_text() for p in (ROOT / "tests").glob("test_*.py")}
    del tests["test_readme.py"]
    for module in {one.split()[2] for one in COMMANDS if one.startswith("python -m ")}:
        package, _, name = module.rpartition(".")
        uses = (
            rf"(from|import) {module}\b|from {package or module} import .*\b{name}\b|\"{module}\""
        )
        if module not in NOT_OURS:
            assert any(re.search(uses, text) for text in tests.values()), module


@pytest.mark.parametrize("command", OURS)
def test_a_command_is_read_by_its_own_parser(command, monkeypatch, capsys):
    if "--help" in command:
        with pytest.raises(SystemExit) as left:
            parsed(command, monkeypatch)
        assert left.value.code == 0 and "usage:" in capsys.readouterr().out
        return
    if command.split()[2] in NEEDS_RUN and len(command.split()) == 3:
        command += " RUN"  # named without its run, as the name of the command
    try:
        config = parsed(command, monkeypatch)
    except SystemExit as left:
        raise AssertionError(f"{command}: {capsys.readouterr().err}") from left
    if command.split()[2] == "train.sweep":
        sweep, rest = config
        for name, values in (one.split("=") for one in sweep.over):
            for value in values.split(","):
                flags = [f"--{name.replace('_', '-')}", value.replace("+", ",")]
                read_config(STAGE2, arguments=[*rest, *flags], recipe=with_recipe)
    assert config is not None


@pytest.mark.parametrize("command", STORE)
def test_a_command_on_a_run_does_its_work_on_the_run_that_ships(
    command, tmp_path, monkeypatch, capsys
):
    shutil.unpack_archive(ROOT / "dashboards" / "demo" / "shapes.zip", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in ("RUN", "RUN2"):
        shutil.copytree("runs/demo-shapes", name)
    words = shlex.split(command)[2:]
    whole = ARGUMENTS.get(words[1], [])
    if len(words) - 2 < len(whole):  # named without all its arguments, as the name of the command
        words[2:] = whole
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "store" / "__main__.py"), run_name="__main__")
    assert not left.value.code, capsys.readouterr().err
    assert capsys.readouterr().out


def test_commands_of_other_programs_name_what_is_there():
    ci = (ROOT / ".ci" / "run").read_text()
    for one in COMMANDS:
        if one.startswith("ruff "):
            assert one in ci, one
        if one.startswith("streamlit run "):
            assert (ROOT / one.split()[2]).is_file()
        if one.startswith("accelerate "):
            assert "accelerate" in (ROOT / "tests" / "test_processes.py").read_text()
        if one.startswith("pip install "):
            extras = re.search(r"'\.\[([a-z0-9,]+)\]'", one)[1].split(",")
            project = (ROOT / "pyproject.toml").read_text()
            assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
