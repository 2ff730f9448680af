"""Progress bars with the time left, on a terminal; one plain line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 20
COLUMNS = (
    TextColumn("{task.description:<22}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("elapsed"),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


def track(items: Iterable[Item], label: str, *, total: int, completed: int = 0) -> Iterator[Item]:
    """Pass `items` on, showing how far it is and the time to go at the speed of the last minute."""
    # Of several processes, as torchrun and accelerate number them, the first one speaks.
    console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")
    if not console.is_terminal:
        yield from _lines(items, label, total, completed, console)
        return
    with Progress(*COLUMNS, console=console, speed_estimate_period=60) as progress:
        task = progress.add_task(label, total=total, completed=completed)
        for item in items:
            yield item
            progress.advance(task)


def _lines(
    items: Iterable[Item], label: str, total: int, completed: int, console: Console
) -> Iterator[Item]:
    begun = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said > SECONDS_BETWEEN_LINES:
            left = (now - begun) / done * (total - completed - done)
            console.print(f"{label}: {completed + done}/{total}, about {left:.0f} s left")
            said = now
    console.print(f"{label}: done in {time.monotonic() - begun:.0f} s")
