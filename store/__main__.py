"""python -m store ls|info|verify: what runs there are, what one holds, whether it is whole."""

import sys
from collections.abc import Callable
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import subcommand_cli_from_dict


def ls(folder: Positional[Path] = Path("runs")) -> int:
    """List the runs in a folder.

    Args:
        folder: Folder whose children are runs.
    """
    from store.reader import open_run
    from store.schema import STORE

    if not folder.is_dir():
        return _wrong(f"{folder} is no folder")
    for path in sorted(store.parent for store in folder.glob(f"*/{STORE}")):
        print(repr(open_run(path))[1:-1])
    return 0


def info(run: Positional[Path]) -> int:
    """Say what a run holds and what made it.

    Args:
        run: Run folder.
    """
    import json

    from store.reader import open_run

    opened = open_run(run)
    attrs = {k: v for k, v in opened.attrs.items() if k not in ("digests", "provenance")}
    attrs["finished samples"] = {name: opened.done(name) for name in ["target", *opened.variants]}
    attrs["bytes on disk"] = sum(f.stat().st_size for f in opened.store.rglob("*") if f.is_file())
    attrs["provenance"] = opened.attrs["provenance"]
    for name, value in attrs.items():
        text = value if isinstance(value, str) else json.dumps(value)
        print(f"{name:18}{text}")
    return 0


def verify(run: Positional[Path]) -> int:
    """Read every chunk of a run and say what is damaged; exit code 1 if anything is.

    Args:
        run: Run folder.
    """
    from store.integrity import verify_run

    problems = verify_run(run)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{run}: {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0


def _wrong(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def main() -> int:
    from store.schema import StoreError

    commands: dict[str, Callable[..., int]] = {"ls": ls, "info": info, "verify": verify}
    try:
        return subcommand_cli_from_dict(
            commands, prog="python -m store", description=__doc__, sort_subcommands=False
        )
    except StoreError as error:
        return _wrong(str(error))


if __name__ == "__main__":
    sys.exit(main())
