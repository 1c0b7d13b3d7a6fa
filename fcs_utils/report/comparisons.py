"""The paired comparisons behind each of the paper's claims."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd

from fcs_utils.report.inference import Paired, holm, paired, seed_differences, verdict
from fcs_utils.training.arms import arm_label


def counted(number: int, word: str) -> str:
    """'1 epoch', '5 seeds'."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


@dataclass(frozen=True)
class Comparison:
    """One row of the ledger, before the correction for several rows.

    label: short, for a figure's axis. decisive: others inform and take no part in the correction or the verdict.
    role: which condition of a verdict the row is for, or "network" for one network's part of an effect.
    epochs, against: of our schedule and of theirs. slack: points already added to the effect, within which two
    results count as equal. compute: our training MACs over theirs.
    """

    claim: str
    label: str
    question: str
    unit: str
    result: Paired
    decisive: bool = True
    role: str = ""
    epochs: int = 0
    network: str = ""
    theirs: str = ""
    against: int = 0
    slack: float = 0.0
    compute: float = math.nan


def c1(similarity: pd.DataFrame) -> list[Comparison]:
    """Do trained channels have a near-duplicate more often than untrained ones? One decisive row per network.

    The untrained network's BatchNorm has seen the calibration images. The comparison with the network as made, whose
    BatchNorm is the identity, and the share of similar pairs are for information only.
    """
    rows = []
    for network, group in similarity.groupby("network", sort=False):
        shares = (("near_duplicates", "channels with a near-duplicate beyond chance"), ("pairs", "pairs more similar than chance"))
        for value, what in shares:
            for state in ("untrained", "untrained, BatchNorm as made"):
                trained, other = (group[group.state == name] for name in ("trained", state))
                decisive = value == "near_duplicates" and state == "untrained"
                label = str(network) if decisive else f"{network}, {value.replace('_', '-')}, {state}"
                result = paired(seed_differences(trained, other, value))
                question = f"{network}: {what}, trained minus {state}"
                role = "as made" if value == "near_duplicates" and not decisive else ""
                rows.append(Comparison("C1", label, question, "points", result, decisive, role, network=str(network)))
    return rows


# The paper's claim names these two; comparisons with other criteria are for information only.
BASELINES = {"kernel_l1": "kernel L1 norm", "feature_norm": "layer-wise feature norm"}


def c2(tuned: pd.DataFrame) -> list[Comparison]:
    """FCS against every other criterion at equal MACs after identical fine-tuning, over all networks and ratios.

    With several networks, the effect in each of them is shown for information, as they may disagree.
    """
    ours = tuned[tuned.criterion == "fcs"]
    if not len(ours):
        return []

    def compare(criterion: str, network: str = "") -> Comparison | None:
        mine, its = (part[part.network == network] if network else part for part in (ours, tuned[tuned.criterion == criterion]))
        if network and not {*zip(mine.seed, mine.ratio, strict=True)} & {*zip(its.seed, its.ratio, strict=True)}:
            return None  # an incomplete grid
        word = f"{BASELINES[criterion]} ({criterion})" if criterion in BASELINES else criterion
        prefix, scope = (f"{network}: ", "all ratios") if network else ("", "all networks and ratios")
        question = f"{prefix}test top-1 after fine-tuning, FCS minus {word}, {scope}"
        decisive, role = criterion in BASELINES and not network, "network" if network else ""
        result = paired(seed_differences(mine, its, "test"))
        label = f"{prefix}FCS − {criterion}"
        return Comparison("C2", label, question, "points", result, decisive, role, network=network, theirs=criterion)

    found = [name for name in tuned.criterion.unique() if name != "fcs"]
    order = [*(name for name in BASELINES if name in found), *(name for name in found if name not in BASELINES)]
    networks = list(tuned.network.unique()) if tuned.network.nunique() > 1 else []
    rows = [compare(name) for name in order]
    rows += [compare(name, network) for name in order if name in BASELINES for network in networks]
    return [row for row in rows if row is not None]


def c2_details(tuned: pd.DataFrame, value: str = "test") -> pd.DataFrame:
    """FCS against the claim's baselines and random at each network and ratio, Holm-corrected over all of them."""
    rows = []
    for (network, ratio), group in tuned.groupby(["network", "ratio"], sort=False):
        ours = group[group.criterion == "fcs"]
        for baseline in (*BASELINES, "random"):
            theirs = group[group.criterion == baseline]
            if len(ours) and len(theirs):
                result = paired(seed_differences(ours, theirs, value))
                row = {"network": network, "ratio": ratio, "baseline": baseline, **asdict(result)}
                rows.append({**row, "detectable": result.detectable()})
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
    long = int(arms.epochs.max())
    rows = []
    for epochs in sorted(set(arms.epochs)):
        for method, role in (("mlft", "no worse"), ("tft", "no worse itself")):
            pair = _arm(arms, method, epochs), _arm(arms, "tft", long)
            if epochs < long and all(map(len, pair)):
                name = arm_label(method)
                question = (
                    f"test top-1, {name} of {counted(epochs, 'epoch')} minus TFT of {long}, plus {slack:.2f} points within which "
                    "they count as equal"
                )
                result = paired(seed_differences(*pair, "test") + slack)
                label = f"{name} {epochs} − TFT {long} epochs"
                rows.append(
                    Comparison(
                        "C3",
                        label,
                        question,
                        "points",
                        result,
                        method == "mlft",
                        role,
                        epochs,
                        theirs="tft",
                        against=long,
                        slack=slack,
                        compute=_compute(*pair),
                    )
                )
        for theirs in ("tft", "kd", "twin"):
            pair = _arm(arms, "mlft", epochs), _arm(arms, theirs, epochs)
            if all(map(len, pair)):
                result = paired(seed_differences(*pair, "test"))
                decisive = theirs == "tft" and epochs < long
                question = f"test top-1 after {counted(epochs, 'epoch')} each, MLFT minus {arm_label(theirs)}"
                label = f"MLFT − {arm_label(theirs)}, {counted(epochs, 'epoch')}"
                rows.append(
                    Comparison(
                        "C3",
                        label,
                        question,
                        "points",
                        result,
                        decisive,
                        "better" if decisive else "",
                        epochs,
                        theirs=theirs,
                        against=epochs,
                        compute=_compute(*pair),
                    )
                )
    return rows


def _arm(arms: pd.DataFrame, method: str, epochs: int) -> pd.DataFrame:
    return arms[(arms.method == method) & (arms.epochs == epochs)]


def _compute(ours: pd.DataFrame, theirs: pd.DataFrame) -> float:
    return float(ours.training_macs.mean() / theirs.training_macs.mean())


def c3_by_compute(arms: pd.DataFrame) -> list[Comparison]:
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
            found.append((abs(math.log(factors[nearest])), epochs, nearest))
        # Within a factor of 1.5 they cost about the same; if no pair lies within it, the nearest pair is used.
        for _, epochs, nearest in [pair for pair in found if pair[0] < math.log(1.5)] or [min(found)]:
            pair = _arm(group, "mlft", epochs), _arm(group, "tft", nearest)
            factor = _compute(*pair)
            question = (
                f"{network}: test top-1, MLFT of {epochs} minus TFT of {nearest} epochs, MLFT spending {factor:.2f} times "
                "TFT's training MACs"
            )
            label = f"MLFT {epochs} − TFT {nearest} epochs, like compute"
            label = label if arms.network.nunique() == 1 else f"{network}: {label}"
            result = paired(seed_differences(*pair, "test"))
            rows.append(
                Comparison(
                    "C3 by compute",
                    label,
                    question,
                    "points",
                    result,
                    epochs=epochs,
                    network=str(network),
                    theirs="tft",
                    against=nearest,
                    compute=factor,
                )
            )
    return rows
