"""The commands that a reader is shown, and what their own parsers make of them."""

import ast
import re
import runpy
import shlex
from pathlib import Path
from typing import Any, NoReturn

import tyro

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md")
PACKAGES = ("store", "probe", "train", "notebooks", "dashboards")
STARTS = ("python -m ", "streamlit run ", "accelerate launch ", "pip install ", "pdoc ", "ruff ")


class Parsed(BaseException):
    """Raised in the place of the work, with what the command line was read as."""


def shown() -> dict[str, list[str]]:
    """Commands as they are written, a list a page, notebook or module."""
    found = {page: _of_markdown((ROOT / page).read_text()) for page in PAGES}
    for path in sorted((ROOT / "notebooks").glob("[0-9]_*.py")):
        text = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
        found[f"notebooks/{path.name}"] = _of_markdown(text)
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            said = ast.get_docstring(ast.parse(path.read_text())) or ""
            found.setdefault(str(path.relative_to(ROOT)), _of_docstring(said))
    return {where: commands for where, commands in found.items() if commands}


def _of_markdown(text: str) -> list[str]:
    """Lines of bash blocks, and code between backticks that is a command.

    A row `python -m store ls runs`, `info RUN` goes on with the commands of the same program.
    """
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    found = [part for line in lines for part in line.partition(" #")[0].split(" && ")]
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        program = ""
        for code in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
            if code.startswith(STARTS):
                program = "python -m store " if code.startswith("python -m store ") else ""
                found.append(code)
            elif program:
                found.append(program + code)
    words = (" ".join(one.split()) for one in found)
    return [one for one in words if one.startswith(STARTS) and one not in STARTS]


def _of_docstring(text: str) -> list[str]:
    """Indented lines that are commands, and the one that a first line names."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = [line.strip() for line in lines if line.startswith("    python -m ")]
    first = re.search(r"python -m [\w.]+\w", lines[0]) if lines else None
    if first is None:
        return found
    words = first[0].split()
    for word in lines[0][first.end() :].split():
        if not (
            word.startswith("--")
            or words[-1].startswith("--")
            or re.fullmatch(r"[A-Z]+[.:]?", word)
        ):
            break
        words.append(word.rstrip(".:"))
    return [*found, " ".join(words)]


def parsed(command: str, monkeypatch) -> Any:
    """What `python -m MODULE ...` reads its words as; it stops before any work is done.

    Raises SystemExit with the parser's own code where it refuses them.
    """
    _, _, module, *words = shlex.split(command)
    place = ROOT / Path(*module.split("."))
    file = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    real = tyro.cli

    def stop(*args: Any, **settings: Any) -> NoReturn:
        raise Parsed(real(*args, **settings))

    with monkeypatch.context() as patch:
        patch.setattr(tyro, "cli", stop)
        patch.setattr("sys.argv", [str(file), *words])
        try:
            runpy.run_path(str(file), run_name="__main__")
        except Parsed as read:
            return read.args[0]
    raise AssertionError(f"{command} was never read by tyro")
