"""How a command of this package ends."""

import sys
from collections.abc import Callable


def exit_code(job: Callable[[], None]) -> int:
    """Do the job; 0, or 2 with one sentence where the call or the run was wrong."""
    from store import StoreError  # a call for --help doesn't wait for zarr

    try:
        job()
    except (StoreError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0
