"""Which criterion, which surgery and which arm to combine, at equal MACs and about equal training compute."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fcs_utils.report.inference import mean_interval, paired, seed_differences
from fcs_utils.report.tables import as_table, by_group
from fcs_utils.training.arms import arm_label

SURGERY = {"none": "plain", "merge": "merged"}
COMBINATION = ["network", "criterion", "compensate", "method"]


@as_table("recipe", "recipe", "default")
def recipe_table(recipe: pd.DataFrame, default: str) -> pd.DataFrame:
    """Every combination against plain surgery by the default criterion and TFT, best mean validation accuracy first.

    While runs are missing, those with more seeds come before: means over other seeds tell no order.
    """
    tables = [_of_network(runs, default) for _, runs in recipe.groupby("network", sort=False)]
    return pd.concat(tables, ignore_index=True)


def _of_network(recipe: pd.DataFrame, default: str) -> pd.DataFrame:
    base = recipe[(recipe.criterion == default) & (recipe.compensate == "none") & (recipe.method == "tft")]

    def row(g: pd.DataFrame) -> dict[str, Any]:
        first, other = g.iloc[0], set(g.id) != set(base.id)
        found = paired(seed_differences(g, base, "test")) if other and len(base) else None
        return {
            "compensate": SURGERY[first.compensate],
            "method": arm_label(first.method),
            "epochs": first.epochs,
            "training MACs (T)": f"{g.training_macs.mean() / 1e12:.3f}",
            "validation top-1 (%)": mean_interval(g.validation),
            "test top-1 (%)": mean_interval(g.test),
            f"minus {default}, plain, TFT (points)": f"{found.effect:+.2f}" if found else "",
            "95 % interval, uncorrected": found.interval if found else "",
            "n": len(g),
        }

    order = recipe.groupby(COMBINATION[1:], sort=False).validation.agg(["count", "mean"]).reset_index()
    ranked = recipe.merge(order, on=COMBINATION[1:]).sort_values(["count", "mean"], ascending=False, kind="stable")
    return by_group(ranked, COMBINATION, row).rename(columns={"compensate": "surgery", "method": "arm"})
