"""Where a result comes from: command, commit, versions, settings, hashes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "zarr",
    "xarray",
    "scikit-learn",
    "numpy",
)


def provenance(config: Any, hashes: dict[str, str]) -> dict[str, Any]:
    """A record that can be written as JSON.

    config : the resolved config, a dataclass.
    hashes : what else went in, name -> digest.
    """
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config).items()
    }
    return {
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": commit(),
        "config": settings,
        "seed": settings.get("seed"),
        "versions": {"python": sys.version.split()[0]}
        | {package: version(package) for package in PACKAGES},
        "hashes": hashes,
    }


def commit() -> str:
    """The commit of the code, with `+` behind it when files differ; `unknown` outside git."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _module() -> str:
    main = sys.modules["__main__"].__spec__
    return main.name if main else Path(sys.argv[0]).name
