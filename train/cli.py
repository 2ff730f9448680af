"""Command lines of the recipes: a dataclass becomes flags; presets and files are its defaults."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
import yaml

Config = TypeVar("Config")
LONGEST = 2000
"""Characters of an error that names hundreds of tensors, before it is cut."""


def fail(message: str, code: int) -> NoReturn:
    """End the program with one sentence: code 2 for a wrong call, 1 for a job that failed."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def read_config(
    presets: Mapping[str, Config],
    default: str = "nano",
    arguments: list[str] | None = None,
    recipe: Callable[[Config, str], Config] | None = None,
) -> Config:
    """The config that the command line asks for: preset, recipe, `--config FILE`, then flags.

    presets   : name -> config, all of one dataclass.
    arguments : the command line, `sys.argv` when None.
    recipe    : makes of a preset what `--recipe NAME` asks for.

    Leaves the program with code 2 and a sentence on an unknown flag, key, preset or value.
    """
    words = sys.argv[1:] if arguments is None else arguments
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--recipe")
    first.add_argument("--config", type=Path)
    early, _ = first.parse_known_args(words)
    from_file = _file_flags(early.config) if early.config else []
    named, _ = first.parse_known_args(from_file)
    preset = presets.get(early.preset or named.preset or default, presets[default])
    if recipe and (asked := early.recipe or named.recipe):
        preset = recipe(preset, asked)
    kind = type(preset)
    # What the flags say is checked here, for a sentence; tyro would draw a box around it.
    own = {"__post_init__": lambda _: None, "__doc__": kind.__doc__, "__module__": kind.__module__}
    unchecked: Any = type(kind.__name__, (kind,), own)
    said = tyro.cli(
        unchecked, prog=_program(), default=unchecked(**vars(preset)), args=[*from_file, *words]
    )
    try:
        return kind(**vars(said))
    except ValueError as error:
        fail(_sentence(error), 2)


def _program() -> str | None:
    """The command as it was typed, for the help."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else None


def _file_flags(path: Path) -> list[str]:
    """The settings of a YAML file as the flags they stand for."""
    try:
        settings = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fail(f"--config {path} can't be read: {' '.join(str(error).split())}", 2)
    if not isinstance(settings, dict):
        fail(f"--config {path}: wanted lines such as 'align_weight: 0.2'", 2)
    flags = []
    for key, value in settings.items():
        flag = f"--{str(key).replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
        elif value is not None:
            flags += [flag, str(value)]
    return flags


def run(main: Callable[[Any], None], config: Any) -> None:
    """Run a recipe; a mistake of the user's ends as one sentence, not as a traceback.

    What is wrong with the call or its input (ValueError, a missing or existing file) is code 2;
    what fails on the way (disk full, no memory, a loss that is not finite) is code 1.
    """
    try:
        main(config)
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        fail(_sentence(error), 2)
    except (OSError, FloatingPointError, MemoryError) as error:
        fail(_sentence(error), 1)
    except RuntimeError as error:
        fail(_failure(error), 1)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on from what it had kept", 130)


def _failure(error: RuntimeError) -> str:
    """What to say of a job that had to stop; raises what is no sentence of ours."""
    import torch

    from store.lock import Locked
    from train.verify import CaptureError

    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"not enough memory on the GPU ({str(error).split('. ')[0]}); try "
            "--gradient-checkpointing, or smaller batches and --accumulate: the same command then "
            "goes on from the last checkpoint"
        )
    if isinstance(error, CaptureError):
        return f"the capture can't be proven right, nothing was stored: {error}"
    if isinstance(error, Locked):
        return str(error)
    raise error


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            f"the disk is full ({error.filename or 'while writing the run'}); free some space, "
            "then the same command goes on where it stopped"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'while writing'}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... and so on"
