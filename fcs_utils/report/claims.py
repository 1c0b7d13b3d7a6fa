"""The ledger of comparisons, the verdict on each of the paper's claims, and what was found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fcs_utils.report.inference import Verdict, detectable, holm, verdict
from fcs_utils.report.tables import as_table

STATEMENTS = {
    "C1": "Feature channels of a trained CNN are redundant by similarity, more than those of the untrained network",
    "C2": "Pruning by FCS beats kernel-norm and layer-wise feature-norm criteria",
    "C3": "MLFT reaches the accuracy of TFT in fewer epochs",
    "C3 by compute": "MLFT is ahead of TFT at equal training compute",
}


def ledger(comparisons: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All comparisons, the decisive ones of each claim first and Holm-corrected (``p_holm``), each with its verdict."""
    table = pd.DataFrame(comparisons)
    if table.empty:
        return table
    table = table.sort_values("decisive", ascending=False, kind="stable")
    table = table.sort_values("claim", key=lambda claim: claim.map([*STATEMENTS].index), kind="stable", ignore_index=True)
    family = table[table.decisive].groupby("claim").p
    table["p_holm"] = family.transform(holm)
    sizes = family.transform("size").reindex(table.index, fill_value=1)
    table["detectable"] = [detectable(*row) for row in zip(table.error, table.n, sizes, strict=True)]
    deciding = table.p_holm.fillna(table.p)  # rows that inform have the uncorrected p alone
    table["verdict"] = [verdict(*row) for row in zip(table.effect, deciding, strict=True)]
    return table.assign(statement=table.claim.map(STATEMENTS))


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
    verdicts = {}
    for claim, rows in table.groupby("claim", sort=False):
        verdicts[str(claim)] = overall(rows.verdict[rows.decisive].tolist())
        if claim == "C3":
            schedules = [dict(zip(part.role, part.verdict, strict=True)) for _, part in rows[rows.role != ""].groupby("epochs")]
            won = [s for s in schedules if s.get("no worse") == s.get("better") == "supported" != s.get("no worse itself")]
            lost = [s for s in schedules if "contradicted" in (s.get("no worse"), s.get("better"))]
            verdicts["C3"] = "supported" if won else "contradicted" if schedules and lost == schedules else "undecided"
    return verdicts


# For rows that only inform: the verdicts on the paper's claims do not depend on them.
SIGNS = {"supported": "above zero", "contradicted": "below zero", "undecided": "no clear difference"}


@as_table("claims", "ledger")
def claims_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for readers; rows that only inform have a side of zero in place of a corrected p and a verdict."""

    def row(one: Any) -> dict[str, Any]:
        p = "" if math.isnan(one.p_holm) else "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}"
        return {
            "claim": one.claim,
            "comparison": one.comparison,
            "effect": f"{one.effect:+.2f} {one.unit}",
            "95 % interval, uncorrected": "undefined at n = 1" if math.isnan(one.low) else f"{one.low:+.2f} to {one.high:+.2f}",
            "p (Holm)": p,
            "smallest effect to be found": "" if math.isnan(one.detectable) else f"{one.detectable:.2f}",
            "n": one.n,
            "verdict": one.verdict if one.decisive else f"({SIGNS[one.verdict]})",
        }

    return pd.DataFrame([row(one) for one in ledger.itertuples()])
