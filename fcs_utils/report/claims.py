"""The ledger of comparisons, the verdict on each of the paper's claims, and what was found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from fcs_utils.report.comparisons import BASELINES, Comparison, counted
from fcs_utils.report.inference import LEVEL, Verdict, holm, verdict
from fcs_utils.report.tables import as_table

STATEMENTS = {
    "C1": "Feature channels of a trained CNN are redundant by similarity, more than those of the untrained network",
    "C2": "Pruning by FCS beats kernel-norm and layer-wise feature-norm criteria",
    "C3": "MLFT reaches the accuracy of TFT in fewer epochs",
    "C3 by compute": "MLFT is ahead of TFT at equal training compute",
}


def ledger(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """All comparisons as rows, Holm-corrected over the decisive ones of each claim, each with its verdict."""
    rows: list[dict[str, Any]] = []
    for claim in dict.fromkeys(c.claim for c in comparisons):
        decisive = [c for c in comparisons if c.claim == claim and c.decisive]
        informative = [c for c in comparisons if c.claim == claim and not c.decisive]
        corrected = holm([c.result.p for c in decisive]) + [c.result.p for c in informative]
        for comparison, p in zip(decisive + informative, corrected, strict=True):
            result, fields = comparison.result, {**vars(comparison)}
            del fields["claim"], fields["label"], fields["question"], fields["result"]
            rows.append({
                "claim": claim, "label": comparison.label, "statement": STATEMENTS[claim], "comparison": comparison.question,
                **asdict(result), "p_holm": p, "detectable": result.detectable(len(decisive) if comparison.decisive else 1),
                **fields, "verdict": verdict(result.effect, p),
            })  # fmt: skip
    return pd.DataFrame(rows)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim with several comparisons is supported by all of them, contradicted by any."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "undecided"


def claim_verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict per claim, from a ledger.

    C1, C2 and C3 by compute need every decisive row. C3 needs one shorter schedule at which MLFT is no worse than
    TFT's longest and better than TFT's of the same length, while that one is not shown to be no worse itself; it
    is contradicted when at every shorter schedule one of the two is.
    """
    verdicts: dict[str, Verdict] = {}
    for claim, group in table.groupby("claim", sort=False):
        verdicts[str(claim)] = overall(group[group.decisive].verdict.tolist())
        if claim == "C3":
            schedules = [dict(zip(rows.role, rows.verdict, strict=True)) for _, rows in group[group.role != ""].groupby("epochs")]
            won = [s for s in schedules if s.get("no worse") == s.get("better") == "supported"
                   and s.get("no worse itself") != "supported"]  # fmt: skip
            lost = [s for s in schedules if "contradicted" in (s.get("no worse"), s.get("better"))]
            verdicts["C3"] = "supported" if won else "contradicted" if schedules and lost == schedules else "undecided"
    return verdicts


# Of rows that inform: the paper's claims do not stand or fall with them.
SIGNS = {"supported": "above zero", "contradicted": "below zero", "undecided": "no clear difference"}


@as_table("claims", "ledger")
def claims_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger as people read it; in parentheses what informs only: its p-value is uncorrected, its verdict none."""

    def p_value(row: Any) -> str:
        shown = "" if math.isnan(row.p_holm) else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        return f"({shown})" if shown and not row.decisive else shown

    def interval(row: Any) -> str:
        return "undefined at n = 1" if math.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"

    return pd.DataFrame([
        {"claim": row.claim, "comparison": row.comparison, "effect": f"{row.effect:+.2f} {row.unit}",
         "95 % interval, uncorrected": interval(row), "p (Holm)": p_value(row),
         "smallest effect to be found": "" if math.isnan(row.detectable) else f"{row.detectable:.2f}", "n": row.n,
         "verdict": row.verdict if row.decisive else f"({SIGNS[row.verdict]})"}
        for row in ledger.itertuples()
    ])  # fmt: skip


# -- in words -----------------------------------------------------------------------------------------------------

POINTS = "points of top-1"
SIDES = ("above", "below")


def sentence(effect: float, low: float, high: float, n: int = 0, *, ours: str = "", theirs: str = "", verb: str = "ends",
             unit: str = POINTS, sides: tuple[str, str] = SIDES, p: float = math.nan) -> str:  # fmt: skip
    """'FCS ends 1.5 points of top-1 below random channels (95 % interval 0.8 to 2.2, 3 seeds)', without the full stop.

    low, high: 95 % interval of the effect; NaN for one seed. Where it holds zero the sentence says 'no clear
    difference'. p: corrected for other comparisons; where it is not significant in spite of the interval, the text
    says so. sides: the words for more and for less. Without ours it is an item of a list.
    """
    digits = 1 if all(abs(value) >= 0.05 for value in (effect, low, high) if not math.isnan(value)) else 2

    def size(value: float) -> str:
        return f"{abs(value):.{digits}f}"

    def side(value: float) -> str:
        return sides[value < 0]

    clear = low * high > 0 and low != high  # False for NaN
    if math.isnan(low) or low == high:
        interval = f"{counted(n, 'seed')}, no interval" if n else "no interval"
    else:
        ends = sorted((size(low), size(high)), key=float) if clear else (f"{size(low)} {sides[1]}", f"{size(high)} {sides[0]}")
        interval = " to ".join(ends)
        interval = f"95 % interval {interval}, {counted(n, 'seed')}" if n else interval
    if clear and p >= LEVEL:
        interval += "; not clear after correction for several comparisons"
    distance = " ".join(filter(None, (size(effect), unit, side(effect))))
    if not ours:
        return f"{distance} {theirs} ({interval})"
    if not clear:
        return f"{ours} shows no clear difference from {theirs}: {distance} on average ({interval})"
    return f"{ours} {verb} {distance} {theirs} ({interval})"


def findings(table: pd.DataFrame) -> dict[str, str]:
    """What was found about each claim of a ledger: one to three sentences, from its effects and intervals alone."""
    if table.empty:
        return {}
    words = {"C1": _redundancy, "C2": _criteria, "C3": _epochs, "C3 by compute": _compute}
    return {str(claim): ". ".join(words[str(claim)](rows)) + "." for claim, rows in table.groupby("claim", sort=False)}


def _listed(rows: pd.DataFrame, name: Callable[[Any], str], unit: str = POINTS, sides: tuple[str, str] = SIDES) -> str:
    """'0.8 points of top-1 above after 2 epochs (95 % interval 0.3 to 1.3, 5 seeds) and 0.6 above after 4 (0.2 to 1.0)'."""
    parts: list[str] = []
    for row in rows.itertuples():
        shifted = [value - row.slack for value in (row.effect, row.low, row.high)]
        p = math.nan if row.slack else row.p_holm  # of the difference from the margin, not from zero
        first = {"n": row.n, "unit": unit} if not parts else {"unit": ""}
        parts.append(sentence(*shifted, **first, theirs=name(row), sides=sides, p=p))
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _headline(verdicts: pd.Series, supported: str, contradicted: str, undecided: str, mixed: str) -> str:
    known = {"supported": supported, "contradicted": contradicted, "undecided": undecided}
    return known[verdicts.iloc[0]] if verdicts.nunique() == 1 else mixed


def _redundancy(rows: pd.DataFrame) -> list[str]:
    def listed(part: pd.DataFrame) -> str:
        return _listed(part, lambda row: f"in {row.network}", "points", ("more", "fewer"))

    own = rows[rows.decisive]
    lead = _headline(
        own.verdict,
        "Trained networks have more channels with a near-duplicate than untrained ones",
        "Trained networks have fewer channels with a near-duplicate than untrained ones, not more",
        "Trained and untrained networks show no clear difference in channels with a near-duplicate",
        "The networks disagree on whether training adds channels with a near-duplicate"
        if "supported" in set(own.verdict)
        else "No trained network has clearly more channels with a near-duplicate than the untrained one",
    )
    said = [f"{lead}: {listed(own)}"]
    if len(made := rows[rows.role == "as made"]):
        said.append(f"Against networks as they are made, whose BatchNorm has seen no image, the trained ones have {listed(made)}")
    return said


def _criteria(rows: pd.DataFrame) -> list[str]:
    def against(row: Any, name: str) -> str:
        return sentence(row.effect, row.low, row.high, row.n, ours="FCS", theirs=name, p=row.p_holm)

    said = ["; ".join(against(row, f"the {BASELINES[row.theirs]} at equal MACs") for row in rows[rows.decisive].itertuples())]
    for baseline, name in BASELINES.items():
        apart = rows[(rows.role == "network") & (rows.theirs == baseline)]
        if (apart.verdict != "undecided").any() and (apart.effect > 0).nunique() > 1:
            said.append(f"The networks disagree about the {name}: FCS ends {_listed(apart, lambda row: f'on {row.network}')}")
    return [*filter(None, said), *(against(row, "random channels") for row in rows[rows.theirs == "random"].itertuples())]


def _after(row: Any) -> str:
    return f"after {counted(row.epochs, 'epoch')}"


def _epochs(rows: pd.DataFrame) -> list[str]:
    same, short = rows[rows.role == "better"], rows[rows.role == "no worse"]
    if not len(short) or not len(same):
        return ["No shorter schedule of both MLFT and TFT is there, so nothing is known about fewer epochs"]
    lead = _headline(
        same.verdict,
        "MLFT is ahead of TFT at equal epochs",
        "MLFT is behind TFT at equal epochs",
        "MLFT and TFT show no clear difference at equal epochs",
        "Whether MLFT is ahead of TFT at equal epochs depends on the schedule",
    )
    said = [f"{lead}: MLFT ends {_listed(same, _after)}, at {same.compute.mean():.1f} times the training compute"]
    goal, slack = f"TFT's longest schedule ({counted(short.against.max(), 'epoch')})", f"within {short.slack.max():.2g} points"
    reached, itself = (
        sorted(rows[(rows.role == role) & (rows.verdict == "supported")].epochs) for role in ("no worse", "no worse itself")
    )
    if reached:
        lead = f"MLFT comes {slack} of {goal} or above it after {' and '.join(map(str, reached))} epochs"
        lead += f", and so does TFT after {' and '.join(map(str, itself))}" if itself else ""
    elif set(short.verdict) == {"contradicted"}:
        lead = f"MLFT does not reach {goal} in fewer epochs"
    else:
        lead = f"It is not shown that MLFT comes {slack} of {goal} in fewer epochs"
    return [*said, f"{lead}: MLFT ends {_listed(short, _after)}"]


def _compute(rows: pd.DataFrame) -> list[str]:
    lead = _headline(
        rows.verdict,
        "MLFT is ahead of TFT at like training compute",
        "MLFT is behind TFT at like training compute",
        "MLFT and TFT show no clear difference at like training compute",
        "Whether MLFT is ahead of TFT at like training compute depends on the schedule",
    )
    several = rows.network.nunique() > 1

    def name(row: Any) -> str:
        place = f" on {row.network}" if several else ""
        return f"{_after(row)} against TFT's {row.against}{place}, at {row.compute:.2f} times its training compute"

    return [f"{lead}: MLFT ends {_listed(rows, name)}"]
