"""Tokens and directions that outweigh all others: found and named, never averaged in silently.

A few positions of a trained LLM carry norms hundreds of times the usual (Sun et al. 2024,
arXiv:2402.17762), and a few dimensions most of the variance (Timkey & van Schijndel 2021,
arXiv:2109.04404). Both can decide a cosine or a CKA on their own, and neither is geometry.
"""

import numpy as np

FACTOR = 10.0  # times the median norm of a layer's tokens
TOPS = (1, 3, 10)


def massive_tokens(norms: np.ndarray, factor: float = FACTOR) -> np.ndarray:
    """Whether the norm of a token is over `factor` medians, for norms (samples, tokens)."""
    return norms > factor * np.median(norms)


def largest_norm(norms: np.ndarray) -> float:
    """The largest norm of a token, in medians. norms : (samples, tokens)."""
    return float(norms.max() / np.median(norms))


def mean_without(tokens: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Mean token of each object (samples, dim) but for those left out, (samples, tokens).

    An object none of whose tokens is left keeps them all.
    """
    keep = np.where(left_out.all(axis=1, keepdims=True), True, ~left_out)[..., None]
    return (tokens * keep).sum(axis=1, dtype=np.float64) / keep.sum(axis=1)


def top_variance(x: np.ndarray, tops: tuple[int, ...] = TOPS) -> np.ndarray:
    """Share of the variance in the 1, 3 and 10 dimensions that vary most. x : (samples, dim)."""
    variance = np.sort(np.asarray(x, np.float64).var(axis=0))[::-1]
    if variance.sum() == 0:
        raise ValueError("x is constant: no dimension has a share of its variance")
    return np.array([variance[:top].sum() for top in tops]) / variance.sum()
