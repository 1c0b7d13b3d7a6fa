"""The paired comparisons behind the claims on redundancy and on criteria, and what every comparison is a row of."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from fcs_utils.report.inference import detectable, holm, paired, replicate_of, seed_differences, verdict
from fcs_utils.study.grid import titled

Row = dict[str, Any]

# What a row of the ledger says beside its numbers. decisive: others inform and take no part in the correction or the verdict.
# role: what a finding takes the row for, such as "network" for one network's part of an effect. replicate: what the n pairs are.
# epochs, against: of our schedule and of theirs. length, shortest, longest: the epochs that are needed for the accuracy of the
# other's longest schedule, and the ends of their interval. compute: our training MACs over theirs.
UNSAID = {
    **{"decisive": True, "role": "", "replicate": "", "network": "", "theirs": "", "compute": math.nan},
    **{"epochs": 0, "against": 0, "length": math.nan, "shortest": math.nan, "longest": math.nan},
}


def compare(claim: str, label: str, question: str, ours: pd.DataFrame, theirs: pd.DataFrame, value: str, /, **about: Any) -> Row:
    """Two sets of runs, paired by seed, as a row of the ledger, before the correction for several rows.

    label: short, for a figure's axis. about: what differs from ``UNSAID``.
    """
    replicate = replicate_of(pd.concat([ours, theirs]))
    return judge(claim, label, question, seed_differences(ours, theirs, value), **{"replicate": replicate, **about})


def judge(claim: str, label: str, question: str, differences: Sequence[float] | np.ndarray, /, **about: Any) -> Row:
    """Differences, one a replicate, as a row of the ledger; see ``compare``."""
    row = {"claim": claim, "label": label, "comparison": question, "unit": "points", **UNSAID, **about}
    return row | asdict(paired(differences))


def by_replicate(runs: pd.DataFrame) -> list[tuple[pd.DataFrame, bool]]:
    """Runs on references trained here and on given ones, apart, and whether they decide a claim: given ones only inform."""
    if "given" not in runs:
        return [(runs, True)]
    return [(part, not given) for given, part in runs.groupby("given", sort=True)]  # those trained here come first


def await_plan(rows: Sequence[Row], planned: int, waiting: Collection[str] = ()) -> list[Row]:
    """The rows; those with fewer pairs than so many planned seeds, and those of claims that wait for other runs, only inform.

    A verdict on part of the plan would be a look at the results before it is done.
    """
    return [row | {"decisive": row["decisive"] and row["n"] >= planned and row["claim"] not in waiting} for row in rows]


SHARES = {"near_duplicates": "channels with a near-duplicate beyond chance", "pairs": "pairs more similar than chance"}


def c1(similarity: pd.DataFrame) -> list[Row]:
    """C1a: do trained channels have a near-duplicate more often than chance gives? C1b: more often than untrained ones?

    Both have one decisive row a network. C1b's untrained network has its BatchNorm estimated on the calibration images. The
    comparison with the network as made, whose BatchNorm is the identity, and the share of similar pairs inform. Given networks
    are the replicates of one row.
    """
    rows: list[Row] = []
    for part, decides in by_replicate(similarity):
        several = not decides and part.network.nunique() > 1
        for network, group in [("given networks", part)] if several else part.groupby("network", sort=False):
            rows += _shares_of(str(network), group, decides)
    return rows


def _shares_of(network: str, group: pd.DataFrame, decides: bool) -> list[Row]:
    states, replicate = dict(iter(group.groupby("state"))), replicate_of(group)
    trained, about = states["trained"], {"network": network, "replicate": replicate}
    unit = "network" if replicate == "network" else "seed"
    chance = trained.chance.iloc[0] if "chance" in trained else 1.0
    above = trained.groupby(unit).near_duplicates.mean() - chance  # of layers first, and of a network's seeds
    question = f"{network}: channels with a near-duplicate, trained, minus the {chance:g} % that chance gives"
    rows = [judge("C1a", network, question, above.to_numpy(), decisive=decides, theirs=f"{chance:g} %", **about)]
    for value, state in product(SHARES, ("untrained", "untrained, BatchNorm as made")):
        decisive = (value, state) == ("near_duplicates", "untrained")
        label = network if decisive else f"{network}, {value.replace('_', '-')}, {state}"
        question = f"{network}: {SHARES[value]}, trained minus {state}"
        role = "as made" if value == "near_duplicates" and not decisive else ""
        more = {**about, "decisive": decides and decisive, "role": role}
        if state not in states or not {*trained[unit]} & {*states[state][unit]}:
            continue  # an incomplete grid
        rows.append(compare("C1b", label, question, trained, states[state], value, **more))
    return rows


# The paper's claim names these two; comparisons with other criteria are for information only.
SIMPLE = "kernel_l1"  # the baseline that needs no images
BASELINES = {"kernel_l1": "kernel L1 norm", "feature_norm": "layer-wise feature norm"}
LITERAL_READING = "fcs"


def c2(tuned: pd.DataFrame, best: str | None = None) -> list[Row]:
    """FCS against every other criterion at equal MACs after identical fine-tuning, over all networks and ratios.

    best: the criterion that is the best reading of FCS; it has a claim of its own beside the literal reading's. With several
    networks, the effect in each of them is shown for information, as they may disagree. So is that in given networks.
    """
    readings = {"C2": (LITERAL_READING, "FCS"), "C2, best reading": (best, f"best reading of {titled(best or LITERAL_READING)}")}
    rows = []
    for claim, (criterion, words) in readings.items():
        if claim == "C2" or best != LITERAL_READING:
            for part, decides in by_replicate(tuned):
                rows += _one_reading(claim, str(criterion), words, part, decides)
    return rows


def _one_reading(claim: str, criterion: str, words: str, tuned: pd.DataFrame, decides: bool) -> list[Row]:
    found = list(tuned.criterion.unique())
    if criterion not in found:
        return []
    order = [name for name in dict.fromkeys([*BASELINES, *found]) if name in found and name != criterion]
    given = not decides
    networks = list(tuned.network.unique()) if tuned.network.nunique() > 1 and not given else []
    short, rows = "FCS" if criterion == LITERAL_READING else criterion, []
    for network, name in [("", name) for name in order] + [(one, name) for name in order if name in BASELINES for one in networks]:
        part = tuned[tuned.network == network] if network else tuned
        ours, theirs = part[part.criterion == criterion], part[part.criterion == name]
        pairs = ours.merge(theirs, on=["seed", "network", "ratio"])
        if pairs.empty:
            continue  # an incomplete grid
        # Of the ratios, those that all seeds have: with another one, a seed's mean would be of other runs.
        every = pairs.groupby("ratio", dropna=False).seed.nunique()
        ratios = [*every.index[every == every.max()]]
        ours, theirs = ours[ours.ratio.isin(ratios)], theirs[theirs.ratio.isin(ratios)]
        prefix = f"{network}: " if network else "given networks: " if given else ""
        scope = "all ratios" if network else "all networks and ratios"
        if len(ratios) == 1:
            scope = ("all networks, " if networks and not network else "") + f"ratio {ratios[0]:g}"
        question = f"{prefix}test top-1 after fine-tuning, {words} minus {titled(name)}, {scope}"
        role = "network" if network else "given" if given else ""
        about = {"decisive": decides and name in BASELINES and not network, "role": role, "network": network}
        rows.append(compare(claim, f"{prefix}{short} − {name}", question, ours, theirs, "test", theirs=name, **about))
    return rows


def c2_details(tuned: pd.DataFrame, criterion: str = LITERAL_READING) -> pd.DataFrame:
    """A reading of FCS against the claim's baselines and random at each network and ratio, Holm-corrected over all of them."""
    rows = []
    for (network, ratio), group in tuned.groupby(["network", "ratio"], sort=False):
        runs = dict(iter(group.groupby("criterion")))
        for baseline in (*BASELINES, "random"):
            if {criterion, baseline} <= runs.keys():
                result = paired(seed_differences(runs[criterion], runs[baseline], "test"))
                row = {"network": network, "ratio": ratio, "baseline": baseline, **asdict(result)}
                rows.append({**row, "detectable": detectable(result.error, result.n)})
    table = pd.DataFrame(rows)
    table["p_holm"] = holm(table.p)
    table["verdict"] = [verdict(row.effect, row.p_holm) for row in table.itertuples()]
    return table.drop(columns=["p", "error"])
