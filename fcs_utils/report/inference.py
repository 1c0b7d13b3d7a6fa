"""Paired comparisons over seeds: Student's intervals, Holm's correction, verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from fcs_utils.errors import StudyError

TRAINED_SEED = "trained seed"
Verdict = Literal["supported", "contradicted", "undecided"]
LEVEL = 0.05
POWER = 0.8
MANY = 1000  # pairs; nobody plans for more


class NoPairs(StudyError):
    """Two sets of runs have no seed in common, as happens in an incomplete grid."""


@dataclass(frozen=True)
class Paired:
    """A mean paired difference with its 95 % paired-t interval, not corrected for other comparisons.

    error: standard error of the mean. p: two-sided p value. NaN where n = 1 leaves them undefined, and p where
    all differences are equal: accuracies move in steps of one image, so a lack of spread shows how coarse they are,
    not how certain.
    """

    effect: float
    low: float
    high: float
    n: int
    p: float
    error: float

    @property
    def interval(self) -> str:
        """'+0.27 to +1.34', or nothing at n = 1."""
        return "" if math.isnan(self.low) else f"{self.low:+.2f} to {self.high:+.2f}"


def detectable(error: float, n: int, comparisons: int = 1) -> float:
    """The smallest true effect that n pairs with this standard error would have found in 80 % of studies, two-sided.

    comparisons: how many comparisons share the significance level, as at Holm's first step. NaN where there is no spread.
    """
    if not error > 0:  # NaN too
        return math.nan
    critical = float(stats.t.ppf(1 - LEVEL / comparisons / 2, n - 1))

    def missing(shift: float) -> float:
        power = stats.nct.sf(critical, n - 1, shift)  # the other tail is out of reach here
        return float(np.nan_to_num(power, nan=1.0)) - POWER  # scipy returns NaN far out, where power is 1

    return error * float(brentq(missing, 0.0, 10 * critical))


def needed(spread: float, effect: float) -> float:
    """How many pairs find a true effect in 80 % of studies, two-sided at 5 %, where differences have this standard deviation.

    Infinite for more than ``MANY``; NaN where there is no spread.

        >>> needed(1.0, 1.0), needed(1.0, 0.5)
        (10, 34)
    """
    if not spread > 0:  # NaN too
        return math.nan
    n = np.arange(2, MANY + 1)
    power = stats.nct.sf(stats.t.ppf(1 - LEVEL / 2, n - 1), n - 1, np.sqrt(n) * effect / spread)
    enough = n[np.nan_to_num(power, nan=1.0) >= POWER]  # scipy returns NaN far out, where power is 1
    return int(enough[0]) if len(enough) else math.inf


def paired(differences: Sequence[float] | np.ndarray) -> Paired:
    """Student's paired t on differences, one per seed. Raises StudyError when there are none or one is NaN."""
    values = np.asarray(differences, float)
    if not len(values) or not np.isfinite(values).all():
        raise StudyError(f"paired comparison needs finite differences, one per seed; got {values.tolist()}")
    n, effect = len(values), float(values.mean())
    if n == 1:
        return Paired(effect, math.nan, math.nan, 1, math.nan, math.nan)
    error = float(stats.sem(values))
    if error <= 1e-9 * max(1.0, abs(effect)):
        return Paired(effect, effect, effect, n, math.nan, 0.0)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    return Paired(effect, float(low), float(high), n, float(test.pvalue), error)


def half_width(values: Sequence[float] | pd.Series) -> float:
    """Half of the mean's 95 % t interval; NaN for fewer than two values."""
    return float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values)) if len(values) > 1 else math.nan


def mean_interval(values: Sequence[float] | pd.Series, digits: int = 2) -> str:
    """'97.20 ± 0.81' (mean and half of its 95 % interval), or the value alone at n = 1."""
    half = half_width(values)
    return f"{np.mean(values):.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def holm(p_values: Sequence[float] | pd.Series) -> list[float]:
    """Holm's step-down adjusted p values, in the given order; NaN stays NaN and counts as a test."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)  # NaN last
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


def verdict(effect: float, p: float) -> Verdict:
    """Supported or contradicted where the test excludes zero; undecided otherwise, and at n = 1."""
    if not p < LEVEL:  # NaN too
        return "undecided"
    return "supported" if effect > 0 else "contradicted"


def replicate_of(runs: pd.DataFrame) -> str:
    """What one pair of these runs is: a trained seed, a given network, or, of one given network, another tuning seed.

    given: whether a run's reference was given rather than trained here; without the column, all were trained. Raises
    StudyError for runs of both: their spread has two meanings.
    """
    given = set(runs.given) if "given" in runs else {False}
    if len(given) > 1:
        raise StudyError("one interval cannot cover runs on trained and on given references")
    if given != {True}:
        return TRAINED_SEED
    return "tuning seed" if runs.network.nunique() == 1 and runs.seed.nunique() > 1 else "network"


def seed_differences(ours: pd.DataFrame, theirs: pd.DataFrame, value: str) -> np.ndarray:
    """Differences of two sets of runs by seed, each first averaged over all else that they share.

    Where ``replicate_of`` says that networks are the replicates, by network. Networks and ratios that only one side has for a
    seed are left out, as happens in an incomplete grid. Raises NoPairs when no seed is left, and StudyError when a seed's runs
    come from different reference networks, or from different device types: such runs are not pairs.
    """
    both = pd.concat([ours, theirs])
    unit = "network" if replicate_of(both) == "network" else "seed"
    for column, word in (("reference_sha256", "reference networks"), ("device_type", "device types")):
        if column in both and (both.groupby(["network", "seed"])[column].nunique() > 1).any():
            raise StudyError(f"runs of one seed come from different {word} and cannot be paired; start again with --fresh")
    keys = ["seed", "network", *(name for name in ("ratio", "goal", "layer") if name in ours and name in theirs)]
    means = [frame.groupby(keys, dropna=False)[value].mean() for frame in (ours, theirs)]
    pairs = pd.concat(means, axis=1, keys=["ours", "theirs"], join="inner")
    if pairs.empty:
        raise NoPairs(f"no pairs: seeds are {sorted(set(ours.seed))} against {sorted(set(theirs.seed))}")
    by_seed = pairs.groupby(unit).mean()
    return (by_seed.ours - by_seed.theirs).to_numpy()
