"""The ledger of comparisons, the verdict on each of the paper's claims, and what was found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from fcs_utils.report.comparisons import Comparison
from fcs_utils.report.inference import Verdict, holm, verdict
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
            rows.append(
                {
                    "claim": claim,
                    "label": comparison.label,
                    "statement": STATEMENTS[claim],
                    "comparison": comparison.question,
                    **asdict(result),
                    "p_holm": p,
                    "detectable": result.detectable(len(decisive) if comparison.decisive else 1),
                    **fields,
                    "verdict": verdict(result.effect, p),
                }
            )
    return pd.DataFrame(rows)


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim with several comparisons is supported by all of them, contradicted by any."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "undecided"


def claim_verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict per claim, from a ledger.

    C1, C2 and C3 by compute need every decisive row. C3 needs one shorter schedule at which MLFT is no worse than
    TFT's longest and better than TFT's of the same length, unless the latter is shown to be no worse itself. C3
    is contradicted when at every shorter schedule one of the two comparisons is.
    """
    verdicts: dict[str, Verdict] = {}
    for claim, group in table.groupby("claim", sort=False):
        verdicts[str(claim)] = overall(group[group.decisive].verdict.tolist())
        if claim == "C3":
            schedules = [dict(zip(rows.role, rows.verdict, strict=True)) for _, rows in group[group.role != ""].groupby("epochs")]
            won = [
                s
                for s in schedules
                if s.get("no worse") == s.get("better") == "supported" and s.get("no worse itself") != "supported"
            ]
            lost = [s for s in schedules if "contradicted" in (s.get("no worse"), s.get("better"))]
            verdicts["C3"] = "supported" if won else "contradicted" if schedules and lost == schedules else "undecided"
    return verdicts


# For rows that only inform: the verdicts on the paper's claims do not depend on them.
SIGNS = {"supported": "above zero", "contradicted": "below zero", "undecided": "no clear difference"}


@as_table("claims", "ledger")
def claims_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for readers; parentheses mark rows that only inform, with an uncorrected p-value and no verdict."""

    def p_value(row: Any) -> str:
        shown = "" if math.isnan(row.p_holm) else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        return f"({shown})" if shown and not row.decisive else shown

    def interval(row: Any) -> str:
        return "undefined at n = 1" if math.isnan(row.low) else f"{row.low:+.2f} to {row.high:+.2f}"

    return pd.DataFrame(
        [
            {
                "claim": row.claim,
                "comparison": row.comparison,
                "effect": f"{row.effect:+.2f} {row.unit}",
                "95 % interval, uncorrected": interval(row),
                "p (Holm)": p_value(row),
                "smallest effect to be found": "" if math.isnan(row.detectable) else f"{row.detectable:.2f}",
                "n": row.n,
                "verdict": row.verdict if row.decisive else f"({SIGNS[row.verdict]})",
            }
            for row in ledger.itertuples()
        ]
    )
