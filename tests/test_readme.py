"""The README's commands are real: files, modules and flags that they name are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CODE = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL))
COMMANDS = sorted(set(re.findall(r"python -m ((?:train|probe|store)[^\n&|#]*)", CODE)))


def test_the_readme_has_the_main_job_and_the_tests_that_ci_runs():
    assert "python -m train.stage2 --capture-layers 4,8,...,32" in CODE
    tests = re.search(r"python -m pytest[^\n`]*", CODE)[0]
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_every_picture_and_file_the_readme_links_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and all((ROOT / link).is_file() for link in links), links


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_in_a_command_is_known_to_its_help(command):
    words = shlex.split(command)
    help_text = subprocess.run(
        [sys.executable, "-m", words[0], "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"COLUMNS": "300", "PATH": ""},
    ).stdout
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"{word.partition('=')[0]}\b", help_text), word
