"""Paired comparisons over seeds, and the verdict on each of the paper's claims. Computed, never typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from fcs_utils.errors import StudyError

Verdict = Literal["supported", "contradicted", "undecided"]
LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """A mean paired difference with its 95 % paired-t interval.

    p: two-sided p value. detectable: the smallest true effect that n pairs with this spread would have
    found in 80 % of studies. NaN where n = 1 leaves them undefined.
    """

    effect: float
    low: float
    high: float
    n: int
    p: float
    detectable: float


def paired(differences: Sequence[float] | np.ndarray) -> Paired:
    """Student's paired t on differences, one per seed. Raises StudyError when there are none or one is NaN."""
    values = np.asarray(differences, float)
    if not len(values) or not np.isfinite(values).all():
        raise StudyError(f"paired comparison needs finite differences, one per seed; got {values.tolist()}")
    n, effect = len(values), float(values.mean())
    if n == 1:
        return Paired(effect, math.nan, math.nan, 1, math.nan, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    critical = float(stats.t.ppf(1 - LEVEL / 2, n - 1))
    if error <= 1e-9 * max(1.0, abs(effect)):  # the same difference in every seed
        return Paired(effect, effect, effect, n, 1.0 if abs(effect) < 1e-9 else 0.0, 0.0)
    p = float(2 * stats.t.sf(abs(effect) / error, n - 1))
    detectable = (critical + float(stats.t.ppf(POWER, n - 1))) * error
    return Paired(effect, effect - critical * error, effect + critical * error, n, p, detectable)


def half_width(values: Sequence[float]) -> float:
    """Half of the mean's 95 % t interval; NaN for fewer than two values."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def mean_interval(values: Sequence[float] | pd.Series, digits: int = 2) -> str:
    """'97.20 ± 0.81' (mean and half of its 95 % interval), or the value alone at n = 1."""
    half = half_width(list(values))
    return f"{np.mean(values):.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order; NaN stays NaN and counts as a test."""
    order = sorted(range(len(p_values)), key=lambda i: (math.isnan(p_values[i]), p_values[i]))
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        if not math.isnan(p_values[i]):
            running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
            adjusted[i] = running
    return adjusted


def verdict(effect: float, p: float) -> Verdict:
    """Supported or contradicted where the corrected test excludes zero; undecided otherwise, and at n = 1."""
    if not p < LEVEL:  # NaN too
        return "undecided"
    return "supported" if effect > 0 else "contradicted"


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim with several comparisons is supported by all of them, contradicted by any."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "undecided"


@dataclass(frozen=True)
class Comparison:
    """One row of the ledger, before the correction for several rows."""

    claim: str
    label: str  # short, for a figure's axis
    question: str
    unit: str
    result: Paired
    decisive: bool = True  # rows that only inform take no part in the correction or in the verdict


def seed_differences(ours: pd.DataFrame, theirs: pd.DataFrame, value: str) -> np.ndarray:
    """Differences of two sets of runs by seed, each first averaged over all else that they share.

    Raises StudyError when the seeds differ, when a seed's runs come from different reference networks, or
    from different device types: such runs are not pairs.
    """
    both = pd.concat([ours, theirs])
    for column, word in (("reference_sha256", "reference networks"), ("device_type", "device types")):
        if column in both and (both.groupby(["network", "seed"])[column].nunique() > 1).any():
            raise StudyError(f"runs of one seed come from different {word} and cannot be paired; start again with --fresh")
    means = [frame.groupby("seed")[value].mean().sort_index() for frame in (ours, theirs)]
    if list(means[0].index) != list(means[1].index):
        raise StudyError(f"seeds differ: {list(means[0].index)} against {list(means[1].index)}")
    return (means[0] - means[1]).to_numpy()


def c1(similarity: pd.DataFrame) -> list[Comparison]:
    """Do trained channels have a twin more often than untrained ones? One row per network."""
    rows = []
    for network, group in similarity.groupby("network", sort=False):
        parts = [group[group.state == state] for state in ("trained", "untrained")]
        question = f"{network}: channels with a twin above the null, trained minus untrained"
        rows.append(Comparison("C1", network, question, "points", paired(seed_differences(*parts, "twins"))))
    return rows


# The paper's claim names the first two; against the others the table only informs.
BASELINES = {"kernel_l1": "kernel-norm", "feature_norm": "layer-wise feature-norm"}
OTHERS = ("random", "kernel_l2", "fpgm", "bn_scale", "apoz", "taylor", "hrank", "chip", "fcs_greedy", "fcs_linear")


def c2(tuned: pd.DataFrame) -> list[Comparison]:
    """FCS against each baseline at equal MACs after identical fine-tuning, over all networks and ratios."""
    rows = []
    ours = tuned[tuned.criterion == "fcs"]
    for baseline in (*BASELINES, *OTHERS):
        if not len(theirs := tuned[tuned.criterion == baseline]):
            continue
        word = f"{BASELINES[baseline]} ({baseline})" if baseline in BASELINES else baseline
        question = f"test top-1 after fine-tuning, FCS minus {word}, all networks and ratios"
        result = paired(seed_differences(ours, theirs, "test"))
        rows.append(Comparison("C2", f"FCS − {baseline}", question, "points", result, decisive=baseline in BASELINES))
    return rows


def c2_details(tuned: pd.DataFrame, value: str = "test") -> pd.DataFrame:
    """The same comparison at each network and ratio, Holm-corrected over all of them."""
    rows = []
    for (network, ratio), group in tuned.groupby(["network", "ratio"], sort=False):
        ours = group[group.criterion == "fcs"]
        for baseline in (*BASELINES, "random"):
            result = paired(seed_differences(ours, group[group.criterion == baseline], value))
            rows.append({"network": network, "ratio": ratio, "baseline": baseline, **asdict(result)})
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p.tolist())
    table["verdict"] = [verdict(row.effect, row.p_holm) for row in table.itertuples()]
    return table


def c3(arms: pd.DataFrame) -> list[Comparison]:
    """MLFT against TFT by final accuracy per completed schedule; arms at their chosen learning rates.

    The claim is about epochs: at equal epochs MLFT must be ahead. ``C3 by compute`` gives TFT the longest
    schedule and MLFT the shortest: what remains of the lead when a peer's training is paid for.
    """
    rows = []
    for epochs, group in arms.groupby("epochs"):
        parts = [group[group.method == method] for method in ("mlft", "tft")]
        question = f"test top-1 after {epochs} epochs each, MLFT minus TFT"
        rows.append(Comparison("C3", f"MLFT − TFT, {epochs} epochs", question, "points", paired(seed_differences(*parts, "test"))))
    short, long = arms.epochs.min(), arms.epochs.max()
    if short < long:
        mlft = arms[(arms.method == "mlft") & (arms.epochs == short)]
        tft = arms[(arms.method == "tft") & (arms.epochs == long)]
        factor = mlft.training_macs.mean() / tft.training_macs.mean()
        question = f"test top-1, MLFT of {short} minus TFT of {long} epochs, MLFT spending {factor:.1f} times TFT's training MACs"
        rows.append(
            Comparison(
                "C3 by compute",
                f"MLFT {short} − TFT {long} epochs",
                question,
                "points",
                paired(seed_differences(mlft, tft, "test")),
            )
        )
    return rows


STATEMENTS = {
    "C1": "Feature channels of a trained CNN are redundant by similarity",
    "C2": "Pruning by FCS beats kernel-norm and layer-wise feature-norm criteria",
    "C3": "MLFT reaches the accuracy of TFT in fewer epochs",
    "C3 by compute": "MLFT's lead survives when its training compute is counted",
}


def ledger(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """All comparisons as rows, Holm-corrected over the decisive ones of each claim, each with its verdict."""
    rows: list[dict[str, Any]] = []
    for claim in dict.fromkeys(c.claim for c in comparisons):
        decisive = [c for c in comparisons if c.claim == claim and c.decisive]
        informative = [c for c in comparisons if c.claim == claim and not c.decisive]
        corrected = holm([c.result.p for c in decisive]) + [c.result.p for c in informative]
        for comparison, p in zip(decisive + informative, corrected, strict=True):
            rows.append({
                "claim": claim, "label": comparison.label, "statement": STATEMENTS[claim], "comparison": comparison.question,
                **asdict(comparison.result), "unit": comparison.unit, "p_holm": p, "decisive": comparison.decisive,
                "verdict": verdict(comparison.result.effect, p),
            })  # fmt: skip
    return pd.DataFrame(rows)


def claim_verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict per claim, from the decisive rows of a ledger."""
    decisive = table[table.decisive]
    return {claim: overall(group.verdict.tolist()) for claim, group in decisive.groupby("claim", sort=False)}
