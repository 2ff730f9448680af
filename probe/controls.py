"""What a probe scores where there is nothing to find."""

import numpy as np


def shuffled_labels(labels: np.ndarray, *, shuffles: int = 10, seed: int = 0) -> np.ndarray:
    """Labels dealt out anew among the objects, (shuffles, samples): class sizes stay.

    labels : (samples,), one an object, so that all tokens of an object move together.
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(np.asarray(labels)) for _ in range(shuffles)])


def chance_level(gallery_labels: np.ndarray, query_labels: np.ndarray) -> float:
    """Accuracy of always naming the gallery's most frequent class (the smaller of equals)."""
    names, counts = np.unique(gallery_labels, return_counts=True)
    return float((np.asarray(query_labels) == names[counts.argmax()]).mean())
