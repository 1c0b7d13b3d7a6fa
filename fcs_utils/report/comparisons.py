"""The paired comparisons behind each of the paper's claims."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import product
from typing import Any

import pandas as pd

from fcs_utils.report.inference import detectable, holm, paired, seed_differences, verdict
from fcs_utils.training.arms import arm_label


def counted(number: int, word: str) -> str:
    """'1 epoch', '5 seeds'."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


Row = dict[str, Any]
ArmEpochs = tuple[str, int]  # method and epochs of its schedule


# What a row of the ledger says beside its numbers. decisive: others inform and take no part in the correction or the verdict.
# role: which condition of a verdict the row is for, or "network" for one network's part of an effect. epochs, against: of our
# schedule and of theirs. slack: points added to the effect, within which two results count as equal. compute: our training
# MACs over theirs.
UNSAID = {"decisive": True, "role": "", "epochs": 0, "network": "", "theirs": "", "against": 0, "slack": 0.0, "compute": math.nan}


def compare(claim: str, label: str, question: str, ours: pd.DataFrame, theirs: pd.DataFrame, value: str, /, **about: Any) -> Row:
    """Two sets of runs, paired by seed, as a row of the ledger, before the correction for several rows.

    label: short, for a figure's axis. about: what differs from ``UNSAID``.
    """
    row = {"claim": claim, "label": label, "comparison": question, "unit": "points", **UNSAID, **about}
    return row | asdict(paired(seed_differences(ours, theirs, value) + row["slack"]))


SHARES = {"near_duplicates": "channels with a near-duplicate beyond chance", "pairs": "pairs more similar than chance"}


def c1(similarity: pd.DataFrame) -> list[Row]:
    """Do trained channels have a near-duplicate more often than untrained ones? One decisive row per network.

    The untrained network's BatchNorm has seen the calibration images. The comparison with the network as made, whose
    BatchNorm is the identity, and the share of similar pairs are for information only.
    """
    rows = []
    for network, group in similarity.groupby("network", sort=False):
        for value, state in product(SHARES, ("untrained", "untrained, BatchNorm as made")):
            decisive = (value, state) == ("near_duplicates", "untrained")
            label = str(network) if decisive else f"{network}, {value.replace('_', '-')}, {state}"
            question = f"{network}: {SHARES[value]}, trained minus {state}"
            role = "as made" if value == "near_duplicates" and not decisive else ""
            trained, other = (group[group.state == name] for name in ("trained", state))
            rows.append(compare("C1", label, question, trained, other, value, decisive=decisive, role=role, network=network))
    return rows


# The paper's claim names these two; comparisons with other criteria are for information only.
BASELINES = {"kernel_l1": "kernel L1 norm", "feature_norm": "layer-wise feature norm"}


def c2(tuned: pd.DataFrame) -> list[Row]:
    """FCS against every other criterion at equal MACs after identical fine-tuning, over all networks and ratios.

    With several networks, the effect in each of them is shown for information, as they may disagree.
    """
    found = list(tuned.criterion.unique())
    if "fcs" not in found:
        return []
    order = [name for name in dict.fromkeys([*BASELINES, *found]) if name in found and name != "fcs"]
    networks = list(tuned.network.unique()) if tuned.network.nunique() > 1 else []
    rows = []
    for network, name in [("", name) for name in order] + [(one, name) for name in order if name in BASELINES for one in networks]:
        part = tuned[tuned.network == network] if network else tuned
        ours, theirs = part[part.criterion == "fcs"], part[part.criterion == name]
        if network and ours.merge(theirs, on=["seed", "ratio"]).empty:
            continue  # an incomplete grid
        prefix, scope = (f"{network}: ", "all ratios") if network else ("", "all networks and ratios")
        word = f"{BASELINES[name]} ({name})" if name in BASELINES else name
        question = f"{prefix}test top-1 after fine-tuning, FCS minus {word}, {scope}"
        about = {"decisive": name in BASELINES and not network, "role": "network" if network else "", "network": network}
        rows.append(compare("C2", f"{prefix}FCS − {name}", question, ours, theirs, "test", theirs=name, **about))
    return rows


def c2_details(tuned: pd.DataFrame) -> pd.DataFrame:
    """FCS against the claim's baselines and random at each network and ratio, Holm-corrected over all of them."""
    rows = []
    for (network, ratio), group in tuned.groupby(["network", "ratio"], sort=False):
        runs = dict(iter(group.groupby("criterion")))
        for baseline in (*BASELINES, "random"):
            if {"fcs", baseline} <= runs.keys():
                result = paired(seed_differences(runs["fcs"], runs[baseline], "test"))
                row = {"network": network, "ratio": ratio, "baseline": baseline, **asdict(result)}
                rows.append({**row, "detectable": detectable(result.error, result.n)})
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p)
    table["verdict"] = [verdict(row.effect, row.p_holm) for row in table.itertuples()]
    return table.drop(columns=["p", "error"])


def c3(arms: pd.DataFrame, slack: float) -> list[Row]:
    """Does MLFT equal TFT's longest schedule with fewer epochs, and not just because TFT does too?

    By final test accuracy of completed schedules. Two decisive rows per shorter schedule: MLFT's minus TFT's
    longest plus the slack within which they count as equal ("no worse"), and MLFT's minus TFT's of the same
    length ("better"). TFT's own shorter schedules against its longest, and the other arms, inform.
    """
    longest, rows = int(arms.epochs.max()), []
    equal = f"minus TFT of {longest}, plus {slack:.2f} points within which they count as equal"
    for epochs in sorted(set(arms.epochs)):
        length, shorter = counted(epochs, "epoch"), epochs < longest
        for method, role in (("mlft", "no worse"), ("tft", "no worse itself")) if shorter else ():
            label = f"{arm_label(method)} {epochs} − TFT {longest} epochs"
            question = f"test top-1, {arm_label(method)} of {length} {equal}"
            pair = (method, epochs), ("tft", longest)
            rows += _schedules(arms, *pair, "C3", label, question, slack=slack, decisive=method == "mlft", role=role)
        for theirs in ("tft", "kd", "twin"):
            label = f"MLFT − {arm_label(theirs)}, {length}"
            question = f"test top-1 after {length} each, MLFT minus {arm_label(theirs)}"
            decides = shorter and theirs == "tft"
            pair, role = (("mlft", epochs), (theirs, epochs)), "better" if decides else ""
            rows += _schedules(arms, *pair, "C3", label, question, decisive=decides, role=role)
    return rows


def c3_by_compute(arms: pd.DataFrame) -> list[Row]:
    """MLFT against the TFT schedule of nearest training MACs, a longer one, because training the peer costs MACs too."""
    rows = []
    for network, group in arms.groupby("network", sort=False):
        macs = group.groupby(["method", "epochs"]).training_macs.mean()
        if not {"tft", "mlft"} <= set(group.method):
            continue
        found = []
        for epochs, spent in macs["mlft"].items():
            factors = spent / macs["tft"]
            nearest = factors.map(math.log).abs().idxmin()
            found.append((abs(math.log(factors[nearest])), epochs, nearest, factors[nearest]))
        # Within a factor of 1.5 they cost about the same; if no pair lies within it, the nearest pair is used.
        for _, epochs, nearest, factor in [pair for pair in found if pair[0] < math.log(1.5)] or [min(found)]:
            label = f"MLFT {epochs} − TFT {nearest} epochs, like compute"
            label = label if arms.network.nunique() == 1 else f"{network}: {label}"
            question = f"{network}: test top-1, MLFT of {epochs} minus TFT of {nearest} epochs, MLFT spending {factor:.2f} times "
            question += "TFT's training MACs"
            pair = ("mlft", epochs), ("tft", nearest)
            rows += _schedules(group, *pair, "C3 by compute", label, question, network=str(network))
    return rows


def _schedules(
    arms: pd.DataFrame, ours: ArmEpochs, theirs: ArmEpochs, claim: str, label: str, question: str, **about: Any
) -> list[Row]:
    """One schedule against another; nothing where one of them has no runs."""
    first, second = (arms[(arms.method == method) & (arms.epochs == epochs)] for method, epochs in (ours, theirs))
    if first.empty or second.empty:
        return []
    about |= {"epochs": ours[1], "theirs": theirs[0], "against": theirs[1]}
    compute = first.training_macs.mean() / second.training_macs.mean()
    return [compare(claim, label, question, first, second, "test", compute=compute, **about)]
