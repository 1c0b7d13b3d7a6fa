"""The comparisons behind each of the paper's claims, and the verdict on it. Computed, never typed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from fcs_utils.report.inference import Paired, Verdict, holm, paired, seed_differences, verdict
from fcs_utils.training.arms import arm_label


def counted(epochs: int) -> str:
    """'1 epoch', '2 epochs'."""
    return f"{epochs} epoch" + ("" if epochs == 1 else "s")


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
    role: str = ""  # what a verdict with several conditions needs the row for, or "network" for a network's part of an effect
    epochs: int = 0  # of the schedule that the role is about


def c1(similarity: pd.DataFrame) -> list[Comparison]:
    """Do trained channels have a twin more often than untrained ones? One row per network.

    The untrained network's BatchNorm has seen the calibration images; against the network as it is made, whose
    BatchNorm is the identity, the comparison only informs, as does the share of similar pairs.
    """
    rows = []
    for network, group in similarity.groupby("network", sort=False):
        for value, what in (("twins", "channels with a twin beyond chance"), ("pairs", "pairs more similar than chance")):
            for state in ("untrained", "untrained, BatchNorm as made"):
                trained, other = (group[group.state == name] for name in ("trained", state))
                decisive = value == "twins" and state == "untrained"
                label = str(network) if decisive else f"{network}, {value}, {state}"
                result = paired(seed_differences(trained, other, value))
                rows.append(Comparison("C1", label, f"{network}: {what}, trained minus {state}", "points", result, decisive))
    return rows


# The paper's claim names the first two; against the others the table only informs.
BASELINES = {"kernel_l1": "kernel-norm", "feature_norm": "layer-wise feature-norm"}
OTHERS = ("random", "kernel_l2", "fpgm", "bn_scale", "apoz", "taylor", "hrank", "chip", "fcs_greedy", "fcs_linear")


def c2(tuned: pd.DataFrame) -> list[Comparison]:
    """FCS against each baseline at equal MACs after identical fine-tuning, over all networks and ratios.

    Where there are several networks, what each one has of the effect informs: they may disagree.
    """
    rows = []
    ours = tuned[tuned.criterion == "fcs"]
    for baseline in (*BASELINES, *OTHERS):
        if not len(theirs := tuned[tuned.criterion == baseline]):
            continue
        word = f"{BASELINES[baseline]} ({baseline})" if baseline in BASELINES else baseline
        question = f"test top-1 after fine-tuning, FCS minus {word}, all networks and ratios"
        result = paired(seed_differences(ours, theirs, "test"))
        rows.append(Comparison("C2", f"FCS − {baseline}", question, "points", result, decisive=baseline in BASELINES))
    networks = list(dict.fromkeys(tuned.network))
    for baseline in BASELINES if len(networks) > 1 else ():
        for network in networks:
            pair = ours[ours.network == network], tuned[(tuned.criterion == baseline) & (tuned.network == network)]
            if set.intersection(*(set(zip(part.seed, part.ratio, strict=True)) for part in pair)):
                question = f"{network}: test top-1 after fine-tuning, FCS minus {BASELINES[baseline]} ({baseline}), all ratios"
                result = paired(seed_differences(*pair, "test"))
                rows.append(
                    Comparison("C2", f"{network}: FCS − {baseline}", question, "points", result, decisive=False, role="network")
                )
    return rows


def c2_details(tuned: pd.DataFrame, value: str = "test") -> pd.DataFrame:
    """The same comparison at each network and ratio, Holm-corrected over all of them."""
    rows = []
    for (network, ratio), group in tuned.groupby(["network", "ratio"], sort=False):
        ours = group[group.criterion == "fcs"]
        for baseline in (*BASELINES, "random"):
            theirs = group[group.criterion == baseline]
            if not len(ours) or not len(theirs):
                continue
            result = paired(seed_differences(ours, theirs, value))
            rows.append({"network": network, "ratio": ratio, "baseline": baseline, **asdict(result),
                         "detectable": result.detectable()})  # fmt: skip
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p.tolist())
    table["verdict"] = [verdict(row.effect, row.p_holm) for row in table.itertuples()]
    return table.drop(columns="error")


def c3(arms: pd.DataFrame, slack: float) -> list[Comparison]:
    """Does MLFT equal TFT's longest schedule with fewer epochs, and not just because TFT does too?

    By final test accuracy of completed schedules. Two decisive rows per shorter schedule: MLFT's minus TFT's
    longest plus the slack within which they count as equal ("no worse"), and MLFT's minus TFT's of the same
    length ("better"). TFT's own shorter schedules against its longest, and the other arms, inform.
    """
    long = arms.epochs.max()
    rows = []
    for epochs in sorted(set(arms.epochs)):
        for method, role in (("mlft", "no worse"), ("tft", "no worse itself")):
            pair = _arm(arms, method, epochs), _arm(arms, "tft", long)
            if epochs < long and all(map(len, pair)):
                name = arm_label(method)
                question = (f"test top-1, {name} of {counted(epochs)} minus TFT of {long}, plus {slack:.2f} points within which "
                            "they count as equal")  # fmt: skip
                result = paired(seed_differences(*pair, "test") + slack)
                label = f"{name} {epochs} − TFT {long} epochs"
                rows.append(Comparison("C3", label, question, "points", result, method == "mlft", role, epochs))
        for ours, theirs in (("mlft", "tft"), ("mlft", "kd"), ("mlft", "twin")):
            pair = _arm(arms, ours, epochs), _arm(arms, theirs, epochs)
            if all(map(len, pair)):
                words = f"{arm_label(ours)} minus {arm_label(theirs)}"
                result = paired(seed_differences(*pair, "test"))
                decisive = theirs == "tft" and epochs < long
                rows.append(Comparison("C3", f"{arm_label(ours)} − {arm_label(theirs)}, {epochs} epochs",
                                       f"test top-1 after {counted(epochs)} each, {words}", "points", result, decisive,
                                       "better" if decisive else "", epochs))  # fmt: skip
    return rows


def _arm(arms: pd.DataFrame, method: str, epochs: int) -> pd.DataFrame:
    return arms[(arms.method == method) & (arms.epochs == epochs)]


def c3_by_compute(arms: pd.DataFrame) -> list[Comparison]:
    """MLFT against the TFT schedule whose training MACs are nearest: a longer one, for a peer's training is paid for."""
    rows = []
    for network, group in arms.groupby("network", sort=False):
        macs = group.groupby(["method", "epochs"]).training_macs.mean()
        if not {"tft", "mlft"} <= set(group.method):
            continue
        found = []
        for epochs, spent in macs["mlft"].items():
            nearest = min(macs["tft"].index, key=lambda other: abs(math.log(macs["tft", other] / spent)))  # noqa: B023 - used at once
            found.append((abs(math.log(spent / macs["tft", nearest])), epochs, nearest, spent / macs["tft", nearest]))
        # Within a factor of one and a half they cost about the same; where no pair does, the nearest must do.
        for _, epochs, nearest, factor in [pair for pair in found if pair[0] < math.log(1.5)] or [min(found)]:
            question = (f"{network}: test top-1, MLFT of {epochs} minus TFT of {nearest} epochs, MLFT spending {factor:.2f} times "
                        "TFT's training MACs")  # fmt: skip
            result = paired(seed_differences(_arm(group, "mlft", epochs), _arm(group, "tft", nearest), "test"))
            label = f"MLFT {epochs} − TFT {nearest} epochs, like compute"
            label = label if arms.network.nunique() == 1 else f"{network}: {label}"
            rows.append(Comparison("C3 by compute", label, question, "points", result))
    return rows


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
            rows.append({
                "claim": claim, "label": comparison.label, "statement": STATEMENTS[claim], "comparison": comparison.question,
                **asdict(comparison.result), "unit": comparison.unit, "p_holm": p, "decisive": comparison.decisive,
                "detectable": comparison.result.detectable(len(decisive) if comparison.decisive else 1),
                "role": comparison.role, "epochs": comparison.epochs, "verdict": verdict(comparison.result.effect, p),
            })  # fmt: skip
    return pd.DataFrame(rows)


def claim_verdicts(table: pd.DataFrame) -> dict[str, Verdict]:
    """The verdict per claim, from a ledger.

    C1, C2 and C3 by compute need every decisive row. C3 needs one shorter schedule at which MLFT is no worse than
    TFT's longest and better than TFT's of the same length, while that one is not shown to be no worse itself; it
    is contradicted when at every shorter schedule one of the two is.
    """
    verdicts: dict[str, Verdict] = {}
    for claim, group in table.groupby("claim", sort=False):
        decisive = group[group.decisive]
        verdicts[str(claim)] = overall(decisive.verdict.tolist())
        if claim == "C3":
            schedules = [dict(zip(rows.role, rows.verdict, strict=True)) for _, rows in group[group.role != ""].groupby("epochs")]
            won = [s for s in schedules if s.get("no worse") == s.get("better") == "supported"
                   and s.get("no worse itself") != "supported"]  # fmt: skip
            lost = [s for s in schedules if "contradicted" in (s.get("no worse"), s.get("better"))]
            verdicts["C3"] = "supported" if won else "contradicted" if schedules and lost == schedules else "undecided"
    return verdicts


def c3_sentence(table: pd.DataFrame) -> str:
    """A clause on what is behind C3's verdict: the schedules at which a condition is shown, or its reverse."""

    def at(role: str, word: Verdict) -> str:
        epochs = [str(epochs) for epochs in table[(table.role == role) & (table.verdict == word)].epochs]
        return f"at {', '.join(epochs)} epochs" if epochs else "at no schedule"

    same = f"better than TFT of the same length {at('better', 'supported')} and worse {at('better', 'contradicted')}"
    longest = f"no worse than TFT's longest {at('no worse', 'supported')} and worse {at('no worse', 'contradicted')}"
    return f"MLFT is shown {same}; {longest}"


def findings(table: pd.DataFrame) -> dict[str, str]:
    """What was found about each claim of a ledger, in sentences with effect, interval and number of seeds."""
    return {
        str(claim): " ".join(
            f"{row.comparison}: {row.effect:+.2f} {row.unit} (95 % interval {row.low:+.2f} to {row.high:+.2f}, n = {row.n})."
            for row in rows[rows.decisive].itertuples()
        )
        for claim, rows in table.groupby("claim", sort=False)
    }
