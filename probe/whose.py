"""Errors in the states of one layer that say where they are, and of which object."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from probe.tokens import Tokens
from store import Run


@contextmanager
def errors_of(where: str, run: Run, tokens: Tokens) -> Iterator[None]:
    """A ValueError inside begins with `where`; of states that are not finite it names the object.

    tokens : (samples, tokens, dim), of the first objects of the run
    """
    try:
        yield
    except ValueError as error:
        bad = ~np.isfinite(tokens.pooled).all(axis=1)
        if not bad.any():
            raise ValueError(f"{where}: {error}") from None
        first = run.samples()["sample"].values[bad.argmax()]
        raise ValueError(
            f"{where}: {first} has values that are not finite ({bad.sum()} of {len(bad)} objects)"
        ) from None
