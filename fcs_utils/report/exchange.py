"""What fine-tuning buys: epochs saved against compute spent, and whether more of it changes the order of criteria."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from scipy import stats

from fcs_utils.errors import counted
from fcs_utils.report.comparisons import SIMPLE
from fcs_utils.report.crossing import crossing
from fcs_utils.report.inference import LEVEL, mean_interval, paired, seed_differences
from fcs_utils.report.schedules import from_goal, longest_tft, of_both, per_epoch, tft_needs
from fcs_utils.report.tables import as_table, by_group, macs_left
from fcs_utils.training.arms import arm_label


def _ends(low: float, high: float, digits: int) -> str:
    """'10.2 to 14.7'; an infinite end, or zero epochs, is open."""
    if math.isnan(low):
        return ""
    return " to ".join("open" if math.isinf(end) or (end == 0 and digits == 1) else f"{end:.{digits}f}" for end in (low, high))


@as_table("exchange", "schedules")
def exchange_table(schedules: pd.DataFrame) -> pd.DataFrame:
    """Epochs and training MACs that each arm needs for the accuracy of TFT's longest schedule, and its accuracy at that compute."""
    tables = [_exchange(group) for _, group in schedules.groupby("network", sort=False) if "tft" in set(group.method)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _exchange(arms: pd.DataFrame) -> pd.DataFrame:
    goal = longest_tft(arms)
    own = arms[(arms.method == "tft") & (arms.epochs == goal)]
    rows, leads = [], dict[str, float]()
    for method in arms.method.unique():
        if not (differences := from_goal(arms, method)):
            continue
        found = tft_needs(arms) if method == "tft" else crossing(differences)
        saved, low, high = found.saved(goal)
        factor = per_epoch(arms, method) / per_epoch(arms, "tft")
        row: dict[str, Any] = {
            "network": arms.network.iloc[0],
            "method": arm_label(method),
            f"epochs to TFT's {goal}": "not reached" if math.isnan(saved) else f"{found.epochs:.1f}",
            "95 % interval": _ends(found.low, found.high, 1),
            "epochs saved (%)": "open" if math.isnan(saved) else f"{saved:.1f}",
            "95 % interval, saved": _ends(low, high, 2),
            "training MACs (T)": "open" if math.isnan(saved) else f"{found.epochs * per_epoch(arms, method) / 1e12:.3f}",
            "times TFT's": "open" if math.isnan(saved) else f"{found.epochs * factor / goal:.2f}",
        }
        leads[arm_label(method)], at = _lead_at_equal_compute(arms, own, method, goal)
        rows.append({**row, **at, "n": found.n})
    first = max(lead for lead in leads.values() if not math.isnan(lead))
    best = [name for name, lead in leads.items() if lead == first]
    return pd.DataFrame([{**row, "best at equal compute": " or ".join(best)} for row in rows])


def _lead_at_equal_compute(arms: pd.DataFrame, own: pd.DataFrame, method: str, goal: int) -> tuple[float, dict[str, Any]]:
    """Lead over TFT's longest schedule at about its training MACs, 0 where it is not clear; NaN without such a schedule."""
    spent = arms[arms.method == method].groupby("epochs").training_macs.mean() / own.training_macs.mean()
    complete = from_goal(arms, method)  # of all seeds
    near = [(epochs, factor) for epochs, factor in spent.items() if epochs in complete and abs(math.log(factor)) < math.log(1.5)]
    names = ("schedule at equal compute", "top-1 there (%)", "minus TFT (points)", "95 % interval, difference")
    if not near:
        return math.nan, dict(zip(names, ("none within a factor of 1.5", "", "", ""), strict=True))
    epochs, factor = min(near, key=lambda one: abs(math.log(one[1])))
    runs = arms[(arms.method == method) & (arms.epochs == epochs)]
    found = paired(seed_differences(runs, own, "test"))
    words = f"{counted(epochs, 'epoch')} ({factor:.2f} times)", mean_interval(runs.test), f"{found.effect:+.2f}", found.interval
    return found.effect if found.p < LEVEL else 0.0, dict(
        zip(names, words if method != "tft" else (*words[:2], "", ""), strict=True)
    )


@as_table("order", "tuned", "longer")
def order_table(tuned: pd.DataFrame, longer: pd.DataFrame) -> pd.DataFrame:
    """Whether the order of criteria changes with longer fine-tuning: Kendall's tau of their mean top-1 after both schedules.

    While runs are missing, of the criteria that have the most seeds in the long schedule, and the same ones in the short.
    """

    def row(g: pd.DataFrame) -> dict[str, Any]:
        most = max(_seeds(g), key=len)
        short = tuned[(tuned.network == g.network.iloc[0]) & (tuned.ratio == g.ratio.iloc[0]) & tuned.seed.isin(most)]
        g, short = (part[part.criterion.isin(_seeds(part).index[_seeds(part) == most])] for part in (g, short))
        both = pd.concat([part.groupby("criterion", sort=False).test.mean() for part in (short, g)], axis=1, join="inner")
        tau = stats.kendalltau(*both.to_numpy().T)
        ranked = [" > ".join(both.index[both.iloc[:, k].argsort(kind="stable")[::-1]]) for k in (0, 1)]
        return {
            "epochs": f"{short.epochs.max()} against {g.epochs.max()}",
            "criteria": len(both),
            "Kendall's tau": "" if math.isnan(tau.statistic) else f"{tau.statistic:.2f}",
            "p": "" if math.isnan(tau.pvalue) else f"{tau.pvalue:.3f}",
            "order, short": ranked[0],
            "order, long": ranked[1],
            "largest change (points)": f"{_largest_change(both):+.2f}",
            "n": g.seed.nunique(),
        }

    return by_group(longer, ["network", "ratio"], row)


@as_table("further", "tuned", "further")
def further_table(tuned: pd.DataFrame, further: pd.DataFrame) -> pd.DataFrame:
    """Criteria and ratios that decide no claim, fine-tuned like the others: test top-1, and the difference from a baseline."""
    runs = further.assign(**{"MACs left (%)": macs_left(further).map("{:.1f}".format)})
    known = pd.concat([tuned[~tuned.given], further], ignore_index=True)

    def row(g: pd.DataFrame) -> dict[str, Any]:
        level = known[(known.criterion == SIMPLE) & (known.network == g.network.iloc[0]) & (known.ratio == g.ratio.iloc[0])]
        compared = g.criterion.iloc[0] != SIMPLE and not level.merge(g, on="seed").empty
        found = paired(seed_differences(g, level, "test")) if compared else None
        return {
            "test top-1 (%)": mean_interval(g.test),
            f"minus {SIMPLE} (points)": f"{found.effect:+.2f}" if found else "",
            "95 % interval, uncorrected": found.interval if found else "",
            "epochs": g.epochs.iloc[0],
            "n": len(g),
        }

    return by_group(runs, ["network", "ratio", "MACs left (%)", "criterion", "reading"], row)


@as_table("longer_arms", "longer_arms")
def longer_arms_table(longer_arms: pd.DataFrame) -> pd.DataFrame:
    """Arms after schedules that decide no claim: test top-1, and the difference from TFT after as many epochs."""

    def row(g: pd.DataFrame) -> dict[str, Any]:
        level = longer_arms[(longer_arms.method == "tft") & (longer_arms.epochs == g.epochs.iloc[0])]
        ours, theirs = of_both(g, level[level.network == g.network.iloc[0]])
        found = paired(seed_differences(ours, theirs, "test")) if g.method.iloc[0] != "tft" and len(ours) else None
        return {
            "method": arm_label(g.method.iloc[0]),
            "test top-1 (%)": mean_interval(g.test),
            "minus TFT (points)": f"{found.effect:+.2f}" if found else "",
            "95 % interval, uncorrected": found.interval if found else "",
            "training MACs (T)": f"{g.training_macs.mean() / 1e12:.3f}",
            "n": len(g),
        }

    return by_group(longer_arms, ["network", "method", "epochs"], row)


def _seeds(runs: pd.DataFrame) -> pd.Series:
    """The seeds of each criterion, as a set."""
    return runs.groupby("criterion", sort=False).seed.agg(frozenset)


def _largest_change(both: pd.DataFrame) -> float:
    """By how much a criterion's distance from the mean of all moves most, from the first schedule to the second."""
    moved = (both - both.mean()).diff(axis=1).iloc[:, 1]
    return float(moved.loc[moved.abs().idxmax()])
