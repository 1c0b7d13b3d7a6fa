"""The ledger of comparisons, the verdict on each of the paper's claims, and what was found, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import pandas as pd

from fcs_utils.report.comparisons import UNSAID
from fcs_utils.report.inference import TRAINED_SEED, Paired, Verdict, detectable, holm, verdict
from fcs_utils.report.tables import as_table

STATEMENTS = {
    "C1a": "Feature channels of a trained CNN are redundant by similarity",
    "C1b": "Training makes channels more redundant than they were (this study's own question)",
    "C2": "Pruning by FCS, read literally, beats kernel-norm and layer-wise feature-norm criteria",
    "C2, best reading": "Pruning by the best reading of FCS beats kernel-norm and layer-wise feature-norm criteria",
    "C3": "MLFT reaches the accuracy of TFT in fewer epochs",
    "C3 by compute": "MLFT is ahead of TFT at equal training compute",
}


Standing = Literal["unfinished", "untried"]
NOT_YET = {
    "untried": "no verdict yet, for no network trained here has been compared",
    "unfinished": "no verdict yet, for not all planned runs are done",
}
ADDED = ("p_holm", "detectable", "verdict", "statement")


def ledger(comparisons: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """All comparisons, the decisive ones of each claim first and Holm-corrected (``p_holm``), each with its verdict.

    Without comparisons it has its columns and no rows.
    """
    if not comparisons:
        return pd.DataFrame(
            columns=["claim", "label", "comparison", "unit", *UNSAID, *(one.name for one in fields(Paired)), *ADDED]
        )
    table = pd.DataFrame(comparisons)
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
    """A claim with several comparisons is supported by all of them, contradicted by any; one with none is undecided."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts and set(verdicts) == {"supported"} else "undecided"


def claim_verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict per claim, from the decisive rows of a ledger."""
    claims = table.groupby("claim", sort=False)
    return {str(claim): overall(rows.verdict[rows.decisive].tolist()) for claim, rows in claims}


def standing(table: pd.DataFrame) -> dict[str, Verdict | Standing]:
    """What is to be said of each claim: its verdict, or why it has none yet.

    'unfinished': the profile plans more runs than are done. 'untried': only given networks have been compared, which inform and
    decide nothing.
    """
    judged, begun = {*table.claim[table.decisive]}, {*table.claim[table.replicate == TRAINED_SEED]}
    verdicts = claim_verdicts(table).items()
    return {claim: word if claim in judged else "unfinished" if claim in begun else "untried" for claim, word in verdicts}


def interval_words(low: float, high: float) -> str:
    """'+0.27 to +1.34'; an infinite end is 'open'."""
    if math.isnan(low):
        return "undefined at n = 1"
    return " to ".join("open" if math.isinf(end) else f"{end:+.2f}" for end in (low, high))


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
            "effect": "open: no schedule reaches it" if math.isnan(one.effect) else f"{one.effect:+.2f} {one.unit}",
            "95 % interval, uncorrected": interval_words(one.low, one.high),
            "p (Holm)": p,
            "smallest effect to be found": "" if math.isnan(one.detectable) else f"{one.detectable:.2f}",
            "n": one.n,
            "replicate": one.replicate,
            "verdict": one.verdict if one.decisive else f"({SIGNS[one.verdict]})",
        }

    return pd.DataFrame([row(one) for one in ledger.itertuples()])
