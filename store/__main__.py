"""python -m store ls|info|verify|export|merge|prune: what runs hold, whether they are whole."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg
from tyro.extras import subcommand_cli_from_dict

Numbers = Annotated[str, arg(metavar="N,N,...")]


def ls(folder: Positional[str] = "runs") -> int:
    """List the runs in a folder: samples, layers, variants, whether they are complete.

    Args:
        folder: Folder whose children are runs, one run, or an fsspec URL as s3://bucket/runs.
    """
    from store.place import Place
    from store.reader import open_run
    from store.schema import STORE, StoreError

    place = Place(folder)
    if place.local is not None and not place.local.is_dir():
        return _wrong(f"{folder} is no folder")
    inside = [place.child(name) for name in sorted(place.names(""))]
    runs = [run for run in [place, *inside] if run.exists(STORE)]
    for run in runs:
        try:
            print(repr(open_run(run.name))[1:-1])
        except StoreError as error:
            print(error)
    if not runs and not place.exists():
        return _wrong(f"{folder} is no folder or bucket")
    if not runs:
        print(f"{folder} holds no runs")
    return 0


def info(run: Positional[str]) -> int:
    """Say what a run holds and what made it.

    Args:
        run: Run folder, or an fsspec URL.
    """
    import json

    from store.place import Place
    from store.reader import open_run
    from store.writer import say

    opened = open_run(run)
    hidden = ("digests", "provenance", "seal", "title", "nonfinite")
    attrs = {k: v for k, v in opened.attrs.items() if k not in hidden}
    attrs["finished samples"] = {name: opened.done(name) for name in ["target", *opened.variants]}
    attrs["size"] = f"{Place(run).child(opened.store.name).size() / 2**20:,.1f} MiB"
    attrs["probes"] = ", ".join(opened.probe_names()) or "none"
    unknown = "counted when the run is finished"
    attrs["not finite"] = (say(opened.nonfinite()) or "none") if opened.complete else unknown
    for name, value in attrs.items():
        text = value if isinstance(value, str) else json.dumps(value)
        print(f"{name:18}{text}")
    print("provenance", json.dumps(opened.attrs["provenance"], indent=2, ensure_ascii=False))
    return 0


def verify(run: Positional[str]) -> int:
    """Read every file of a run and say what is damaged; exit code 1 if anything is.

    Args:
        run: Run folder, or an fsspec URL.
    """
    from store.integrity import verify_run

    problems = verify_run(run)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{run}: {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0


def export(
    run: Positional[str],
    out: Positional[str],
    *,
    variants: str = "",
    layers: Numbers = "",
    samples: str = "all",
    format: Literal["auto", "npz", "safetensors", "netcdf", "huggingface"] = "auto",
) -> int:
    """Write a part of a run in a format that other programs read.

    Args:
        run: Run folder, or an fsspec URL.
        out: File to write: .npz, .safetensors or .nc; a folder for a Hugging Face dataset.
        variants: Models, with commas between them (default: all).
        layers: Layers, with commas between them (default: all).
        samples: all, gallery, query, rows as 0-99, or ids with commas between them.
        format: Format, where the ending of OUT does not say it.
    """
    from store.export import export as write
    from store.export import subset
    from store.reader import open_run

    if "://" in out:
        return _wrong(f"{out}: a part is written to this disk; name a file, and copy it from there")
    names = variants.split(",") if variants else None
    part = subset(open_run(run), variants=names, layers=_numbers(layers), samples=samples)
    write(part, Path(out), format)
    print(f"{out}: {part.sizes['sample']} samples, {part.sizes['layer']} layers")
    return 0


def merge(out: Positional[str], runs: Positional[tuple[str, ...]]) -> int:
    """Join complete runs of one data set (other variants, other seeds) into a new run.

    Args:
        out: Folder of the new run, or an fsspec URL.
        runs: The runs. A variant that several have in different states gets their names.
    """
    from store.edit import merge as join

    if len(runs) < 2:
        return _wrong("merge needs two runs or more")
    print(repr(join(runs, out))[1:-1])
    return 0


def prune(run: Positional[str], *, layers: Numbers = "", steps: Numbers = "", out: str = "") -> int:
    """Drop layers or steps from a run; the rest is written beside first, nothing gets lost.

    Args:
        run: Run folder, or an fsspec URL.
        layers: Layers to drop, with commas between them.
        steps: Training steps to drop, with commas between them.
        out: A new run to write, instead of changing this one.
    """
    from store.edit import prune as drop

    if not layers and not steps:
        return _wrong("say what to drop: --layers 4,8 or --steps 40,80")
    left = drop(run, layers=_numbers(layers) or (), steps=_numbers(steps) or (), out=out or None)
    print(repr(left)[1:-1])
    return 0


def _numbers(text: str) -> list[int] | None:
    if progression := re.fullmatch(r"(\d+),(\d+),\.\.\.,(\d+)", text):
        first, second, last = map(int, progression.groups())
        if first < second <= last:
            return list(range(first, last + 1, second - first))
    try:
        return [int(number) for number in text.split(",")] if text else None
    except ValueError:
        raise ValueError(
            f"{text!r}: numbers with commas between them, as 4,8,12 or 4,8,...,32"
        ) from None


def _wrong(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def main() -> int:
    from store.lock import Locked

    commands: dict[str, Callable[..., int]] = {
        "ls": ls,
        "info": info,
        "verify": verify,
        "export": export,
        "merge": merge,
        "prune": prune,
    }
    try:
        return subcommand_cli_from_dict(
            commands, prog="python -m store", description=__doc__, sort_subcommands=False
        )
    except (ValueError, FileNotFoundError, FileExistsError, Locked) as error:
        return _wrong(str(error))
    except OSError as error:  # a full disk, a network that is away
        where = f" ({error.filename or 'while writing'})" if error.strerror else ""
        print(f"{error.strerror or error}{where}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
