"""How many epochs an arm needs for the accuracy of another: where its curve over completed schedules crosses that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import stats

from fcs_utils.report.inference import LEVEL, paired

# Differences from the goal by the epochs of a completed schedule, shortest first; one number a seed, in the same order.
Differences = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Crossing:
    """The number of epochs at which an arm's mean accuracy first equals the goal, with its 95 % interval.

    epochs: NaN where no completed schedule reaches the goal; the shortest schedule where that one is at the goal or above it.
    low, high: the first and the last number of epochs at which the paired 95 % interval of the difference from the goal
    contains zero. low is 0, an open end, where the shortest schedule is not shown to be below the goal; high is infinite,
    an open end, where the longest is not shown to be above it. Both are NaN for one pair. n: pairs.
    """

    epochs: float
    low: float
    high: float
    n: int

    def saved(self, goal: int) -> tuple[float, float, float]:
        """The share that is saved of the goal's epochs, in percent, and its interval; an open end is infinite."""
        return 100 * (1 - self.epochs / goal), 100 * (1 - self.high / goal), 100 * (1 - self.low / goal) if self.low else math.inf


def between(differences: Differences, epochs: float) -> np.ndarray:
    """Each seed's difference at a number of epochs, linear in log2(epochs) between its completed schedules."""
    lengths, values = np.log2([*differences]), np.array([*differences.values()])
    return np.array([np.interp(math.log2(epochs), lengths, one) for one in values.T])


def crossing(differences: Differences) -> Crossing:
    """Where the differences reach zero, linear in log2(epochs) between schedules.

    One seed's differences of -2 after 4 epochs and of 1 after 32 cross zero after two thirds of the way from log2 4 to log2 32:

        >>> crossing({4: np.array([-2.0]), 32: np.array([1.0])}).epochs
        16.0
    """
    # Equal accuracies have a mean difference of zero, which sums of decimal fractions miss by a rounding error.
    lengths, means = [*differences], [round(float(values.mean()), 9) for values in differences.values()]
    n = len(differences[lengths[0]])
    epochs = float(lengths[0]) if means[0] >= 0 else math.nan
    for (before, after), (short, long) in zip(pairwise(means), pairwise(lengths), strict=True):
        if math.isnan(epochs) and before < 0 <= after:
            epochs = short * (long / short) ** (-before / (after - before))
    if n == 1:
        return Crossing(epochs, math.nan, math.nan, n)
    ends = [end for pair in pairwise(lengths) for end in _ends_between(differences, *pair)]
    first, last = (_side(differences[length]) for length in (lengths[0], lengths[-1]))
    low = 0.0 if first >= 0 else min(ends, default=lengths[-1])
    high = math.inf if last <= 0 else max(ends, default=lengths[0])
    return Crossing(epochs, float(low), float(high), n)


def _side(values: np.ndarray) -> int:
    """On which side of zero an interval lies: -1, 1, or 0 where it contains zero or is undefined."""
    found = paired(values)
    return int(math.copysign(1, found.effect)) if found.p < LEVEL else 0


def _ends_between(differences: Differences, short: int, long: int) -> list[float]:
    """The numbers of epochs between two schedules at which an end of the interval is zero."""
    first, step = differences[short], differences[long] - differences[short]
    n, critical = len(first), stats.t.ppf(1 - LEVEL / 2, len(first) - 1)
    # At the share u of the way, the mean is a + b u and its squared half width c (A + 2 B u + C u^2): equal at the roots.
    (spread, shared), (_, steep) = np.cov(first, step) * critical**2 / n
    a, b = first.mean(), step.mean()
    roots = np.roots([b**2 - steep, 2 * (a * b - shared), a**2 - spread])
    return [short * (long / short) ** u.real for u in roots if abs(u.imag) < 1e-12 and 0 <= u.real <= 1]
