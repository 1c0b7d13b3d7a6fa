"""The comparisons behind the claims on epochs and on compute: TFT, MLFT and their controls by schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from fcs_utils.errors import counted
from fcs_utils.report.comparisons import Row, by_replicate, compare, judge
from fcs_utils.report.crossing import Crossing, Differences, between, crossing
from fcs_utils.report.inference import replicate_of, seed_differences
from fcs_utils.training.arms import arm_label

ArmEpochs = tuple[str, int]  # method and epochs of its schedule


def longest_tft(arms: pd.DataFrame) -> int:
    """TFT's longest schedule that every seed with TFT has completed."""
    seeds = arms[arms.method == "tft"].groupby("epochs").seed.nunique()
    return int(seeds.index[seeds == seeds.max()].max())


def from_goal(arms: pd.DataFrame, method: str) -> Differences:
    """An arm's differences from TFT's longest schedule by the epochs of its own, of one network; see ``crossing``.

    Schedules that some of the seeds lack are left out.
    """
    goal = arms[(arms.method == "tft") & (arms.epochs == longest_tft(arms))]
    own = arms[arms.method == method].groupby("epochs")
    complete = {int(epochs): runs for epochs, runs in own if set(goal.seed) <= set(runs.seed)}
    return {epochs: seed_differences(runs, goal, "test") for epochs, runs in complete.items()}


def tft_needs(arms: pd.DataFrame) -> Crossing:
    """TFT's own crossing: its longest schedule is the goal, so it needs no more than that."""
    own = crossing(from_goal(arms, "tft"))
    return replace(own, high=float(longest_tft(arms)) if own.n > 1 else math.nan)


def per_epoch(arms: pd.DataFrame, method: str) -> float:
    """Training MACs of an epoch."""
    own = arms[arms.method == method]
    return float((own.training_macs / own.epochs).mean())


def of_both(ours: pd.DataFrame, theirs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of two arms with a partner of the same network, seed and schedule, in the schedules of which most seeds have one.

    All seeds then stand for the same schedules, so that a mean over them is one.
    """
    keys = ["network", "seed", "epochs"]
    pairs = ours[keys].drop_duplicates().merge(theirs[keys].drop_duplicates())
    who = pairs.groupby("epochs")[["network", "seed"]].apply(lambda rows: frozenset(rows.itertuples(index=False, name=None)))
    whole = who.index[who == max(who, key=len)] if len(who) else []
    shared = {tuple(row) for row in pairs[pairs.epochs.isin(whole)].itertuples(index=False)}
    first, second = ([tuple(row) in shared for row in runs[keys].itertuples(index=False)] for runs in (ours, theirs))
    return ours[first], theirs[second]


def c3(arms: pd.DataFrame) -> list[Row]:
    """How many epochs less does MLFT need for the final test accuracy of TFT's longest schedule? One decisive row a network.

    The row's effect is the share of epochs saved; its p is that of the difference after as many epochs as the goal has, or
    after MLFT's longest schedule where that is shorter. It is left undefined where nothing may be claimed: where MLFT's schedules
    end below the goal before they are as long, and where TFT, too, is not shown to be below its longest schedule after as many
    epochs as MLFT needs. The shares of the other arms, TFT's own, and completed schedules by themselves inform.
    """
    rows = []
    for part, decides in by_replicate(arms):
        for network, group in part.groupby("network", sort=False):
            if "tft" in set(group.method):
                rows += _network(str(network), group, f"{network}: " if arms.network.nunique() > 1 else "", decides)
    return rows


def _network(network: str, arms: pd.DataFrame, prefix: str, decides: bool) -> list[Row]:
    goal, there = longest_tft(arms), list(arms.method.unique())
    order = ["mlft", "tft", *(method for method in there if method not in ("mlft", "tft"))]
    rows = [
        _saved_epochs(network, arms, method, prefix, decides and method == "mlft") for method in order if from_goal(arms, method)
    ]
    for epochs in sorted(set(arms.epochs)):
        length = counted(epochs, "epoch")
        for method in ("mlft", "tft") if epochs != goal else ():
            question = f"{prefix}test top-1, {arm_label(method)} of {length} minus TFT of {goal}"
            label = f"{prefix}{arm_label(method)} {epochs} − TFT {goal} epochs"
            pair = (method, epochs), ("tft", goal)
            rows += _schedules(arms, *pair, "C3", label, question, decisive=False, role="to longest", network=network)
        for theirs in ("tft", "kd", "twin"):
            label = f"{prefix}MLFT − {arm_label(theirs)}, {length}"
            question = f"{prefix}test top-1 after {length} each, MLFT minus {arm_label(theirs)}"
            pair, role = (("mlft", epochs), (theirs, epochs)), "same epochs" if theirs == "tft" else ""
            rows += _schedules(arms, *pair, "C3", label, question, decisive=False, role=role, network=network)
    return rows


def _saved_epochs(network: str, arms: pd.DataFrame, method: str, prefix: str, decides: bool) -> Row:
    """The share of TFT's epochs that an arm saves, as a row of the ledger."""
    goal, differences = longest_tft(arms), from_goal(arms, method)
    own = tft_needs(arms)
    found = own if method == "tft" else crossing(differences)
    at = min(goal, max(differences))
    row = judge(
        "C3",
        f"{prefix}{arm_label(method)}, epochs",
        f"{prefix}epochs that {arm_label(method)} saves at the accuracy of TFT's longest schedule ({goal} epochs)",
        between(differences, at),
        **{"decisive": decides, "role": "saving" if method == "mlft" else "saving of another", "network": network},
        **{"replicate": replicate_of(arms), "unit": "% of epochs", "epochs": at, "theirs": method, "against": goal},
        **{"length": found.epochs, "shortest": found.low, "longest": found.high},
        compute=found.epochs * per_epoch(arms, method) / (goal * per_epoch(arms, "tft")),
    )
    ahead, (effect, low, high) = row["effect"] > 0, found.saved(goal)
    may_be_claimed = effect > 0 and found.epochs < own.low if ahead else at == goal and not effect > 0
    return row | {"effect": effect, "low": low, "high": high, "error": math.nan, "p": row["p"] if may_be_claimed else math.nan}


def c3_by_compute(arms: pd.DataFrame) -> list[Row]:
    """MLFT against the TFT schedule of nearest training MACs, a longer one, because training the peer costs MACs too."""
    rows = []
    for part, decides in by_replicate(arms):
        for network, group in part.groupby("network", sort=False):
            for epochs, nearest, factor in like_compute(group, "mlft"):
                label = f"MLFT {epochs} − TFT {nearest} epochs, like compute"
                label = label if arms.network.nunique() == 1 else f"{network}: {label}"
                question = (
                    f"{network}: test top-1, MLFT of {epochs} minus TFT of {nearest} epochs, MLFT spending {factor:.2f} times "
                )
                question += "TFT's training MACs"
                pair = ("mlft", epochs), ("tft", nearest)
                rows += _schedules(group, *pair, "C3 by compute", label, question, network=str(network), decisive=decides)
    return rows


def like_compute(arms: pd.DataFrame, method: str) -> list[tuple[int, int, float]]:
    """An arm's schedules with TFT's of nearest training MACs, and the factor between the two, of one network.

    Within a factor of 1.5 they cost about the same; if no pair lies within it, the nearest pair is the only one.
    """
    macs = arms.groupby(["method", "epochs"]).training_macs.mean()
    if not {"tft", method} <= set(arms.method):
        return []
    found = []
    for epochs, spent in macs[method].items():
        factors = spent / macs["tft"]
        nearest = factors.map(math.log).abs().idxmin()
        found.append((abs(math.log(factors[nearest])), int(epochs), int(nearest), float(factors[nearest])))
    return [pair[1:] for pair in found if pair[0] < math.log(1.5)] or [min(found)[1:]]


def _schedules(
    arms: pd.DataFrame, ours: ArmEpochs, theirs: ArmEpochs, claim: str, label: str, question: str, **about: Any
) -> list[Row]:
    """One schedule against another; nothing where they have no seed in common."""
    first, second = (arms[(arms.method == method) & (arms.epochs == epochs)] for method, epochs in (ours, theirs))
    if not set(first.seed) & set(second.seed):
        return []
    about |= {"epochs": ours[1], "theirs": theirs[0], "against": theirs[1]}
    compute = first.training_macs.mean() / second.training_macs.mean()
    return [compare(claim, label, question, first, second, "test", compute=compute, **about)]
