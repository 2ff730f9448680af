"""How a command of this package ends."""

import sys
from collections.abc import Callable


def exit_code(job: Callable[[], None]) -> int:
    """Do the job; 0, or one sentence: with 2 where the call or the run was wrong, with 1 where the
    disk or the network was, with 130 for one that was stopped."""
    from store import StoreError  # a call for --help doesn't wait for zarr

    try:
        job()
    except (StoreError, ValueError) as error:
        return _ended(str(error), 2)
    except OSError as error:
        where = f" ({error.filename or 'while writing'})" if error.strerror else ""
        return _ended(f"{error.strerror or error}{where}", 1)
    except KeyboardInterrupt:
        return _ended("stopped; the same command goes on with what is left", 130)
    return 0


def _ended(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr)
    return code
