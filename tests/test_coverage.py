"""95 % intervals hold the truth in 94 to 96 simulated runs of 100, tests cry wolf in 4 to 6.

Data with a known truth are drawn thousands of times and go through the functions that the sweep
calls. `python -m tests.test_coverage` prints the rates. Intervals of the layer of a fall are in
test_verdict.py, those over seeds in test_seeds.py, of groups left out in test_dimension.py.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from probe import intervals
from probe.cka import cka, cka_difference, cka_interval
from probe.sheet_states import _adjust

RUNS = 4000
OBJECTS = 300
Rates = tuple[np.ndarray, np.ndarray]  # covered, alarm; of bool, one a simulated run


def shares(rng, runs: int) -> Rates:
    """Wilson's interval of accuracies of 60 to 90 %."""
    share = rng.uniform(0.6, 0.9, runs)  # on average over shares, as hits are whole
    found = intervals.wilson(rng.binomial(OBJECTS, share), OBJECTS)
    return (found.low <= share) & (share <= found.high), np.zeros(runs, bool)


def paired_hits(rng, runs: int) -> Rates:
    """Accuracies of two models on the same objects, 3 points apart; equal for McNemar's test."""
    own = rng.random((2, runs, OBJECTS))
    a, b = (rng.random((runs, OBJECTS)) + 0.3 * own) / 1.3
    found = intervals.paired_difference(a < 0.72, b < 0.69, resamples=1000, permutations=1)
    true = 1.3 * (0.72 - 0.69)  # of the sum of two uniform numbers, where its density is flat
    p = np.array([intervals.mcnemar(*pair) for pair in zip(a < 0.72, b < 0.72, strict=True)])
    return (found.low <= true) & (true <= found.high), p < 0.05


def drift(rng, runs: int) -> Rates:
    """Mean drift, skewed as distances are; the difference of two models that drift alike."""
    one, two = rng.gamma(4, 0.05, (2, runs, OBJECTS))
    found = intervals.bootstrap(one, resamples=1000)
    p = intervals.paired_difference(one, two, resamples=2, permutations=1000).p
    return (found.low <= 0.2) & (found.high >= 0.2), p < 0.05


def simultaneous(rng, runs: int) -> Rates:
    """Bounds and p-values of 9 layers at once, which share most of an object's noise."""
    found = []
    for _ in range(runs):
        gaps = rng.normal(size=(9, OBJECTS)) + 1.5 * rng.normal(size=OBJECTS)
        one = intervals.paired_difference(
            gaps, np.zeros_like(gaps), resamples=500, permutations=300, simultaneous=True
        )
        held = ((one.low <= 0) & (one.high >= 0)).all()
        found.append((held, (one.p_adjusted < 0.05).any()))
    return tuple(np.array(found).T)


def similar(rng, runs: int) -> Rates:
    """CKA with the target; and the difference of two models that are equally like it."""
    found = []
    for _ in range(runs):
        x, other, y = _models(rng, OBJECTS)
        one, gap = cka_interval(x, y), cka_difference(x, other, y)
        found.append((one.low <= _truth() <= one.high, gap.p < 0.05))
    return tuple(np.array(found).T)


def similar_over_layers(rng, runs: int) -> Rates:
    """The p of CKA's difference over 6 layers at once; the interval of the first."""
    found = []
    for _ in range(runs):
        x, other, y = _models(rng, OBJECTS)
        size = 0.2 * np.arange(1, 7)
        pairs = [[z + s * rng.normal(size=z.shape) for z in (x, other)] for s in size]
        each = [cka_difference(*pair, y) for pair in pairs]
        mean, out = np.array([one.mean for one in each]), np.stack([one.left_out for one in each])
        held = each[0].low <= 0 <= each[0].high
        found.append((held, (_adjust(mean, out, 0) < 0.05).any()))
    return tuple(np.array(found).T)


def _models(rng, objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two models that see the target through noise of their own, and the target."""
    y = rng.normal(size=(objects, 8)) * np.linspace(1, 2, 8)
    return y + rng.normal(size=y.shape), y + rng.normal(size=y.shape), y


@cache
def _truth() -> float:
    x, _, y = _models(np.random.default_rng(99), 200_000)
    return cka(x, y)


def rates(simulate: Callable, runs: int = RUNS) -> tuple[float, float]:
    """Share of the runs whose interval holds the truth, and whose test finds what is not there."""
    parts = [simulate(np.random.default_rng([7, at]), 100) for at in range(runs // 100)]
    covered, alarms = (np.concatenate(part).mean() for part in zip(*parts, strict=True))
    return float(covered), float(alarms)


SIMULATED = {  # and what its test may find that is not there
    shares: (0, 0),
    paired_hits: (0.02, 0.06),  # exact, and so below its level where few objects differ
    drift: (0.04, 0.06),
    simultaneous: (0.04, 0.06),
    similar: (0.04, 0.06),
    similar_over_layers: (0.04, 0.06),
}


@pytest.mark.slow
@pytest.mark.parametrize("simulate", SIMULATED)
def test_intervals_and_tests_keep_their_level(simulate):
    covered, alarms = rates(simulate)
    least, most = SIMULATED[simulate]
    assert 0.94 <= covered <= 0.96 and least <= alarms <= most


if __name__ == "__main__":
    for one in SIMULATED:
        covered, alarms = rates(one)
        print(f"{one.__name__}: covered {covered:.3f}, false alarms {alarms:.3f}", flush=True)
