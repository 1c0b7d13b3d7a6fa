"""What was found, in sentences made from effects and intervals. No sentence says more than its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from fcs_utils.report.comparisons import BASELINES, counted
from fcs_utils.report.inference import LEVEL, holm, paired, seed_differences

POINTS = "points of top-1"
SIDES = ("above", "below")


def sentence(
    effect: float,
    low: float,
    high: float,
    n: int = 0,
    *,
    ours: str = "",
    theirs: str = "",
    verb: str = "ends",
    unit: str = POINTS,
    sides: tuple[str, str] = SIDES,
    p: float = math.nan,
) -> str:
    """'FCS ends 1.5 points of top-1 below random channels (95 % interval 0.8 to 2.2, 3 seeds)', without the full stop.

    low, high: 95 % interval of the effect; NaN for one seed. If it contains zero, the sentence says 'no
    clear difference'. p: corrected for other comparisons; if it is not significant although the interval excludes zero,
    the sentence says so. sides: the words for more and for less. Without ``ours`` the result is an item of a list.
    """
    known = not math.isnan(low) and low != high
    clear = known and low * high > 0
    digits = 1 if all(abs(value) >= 0.05 for value in (effect, low, high) if not math.isnan(value)) else 2
    distance = " ".join(filter(None, (f"{abs(effect):.{digits}f}", unit, sides[effect < 0])))
    ends = [f"{abs(end):.{digits}f}" + ("" if clear else f" {sides[end < 0]}") for end in (low, high)]
    interval = " to ".join(sorted(ends, key=float) if clear else ends) if known else "no interval"
    if n:
        seeds = counted(n, "seed")
        interval = f"95 % interval {interval}, {seeds}" if known else f"{seeds}, {interval}"
    if clear and p >= LEVEL:
        interval += "; not clear after correction for several comparisons"
    if not ours:
        return f"{distance} {theirs} ({'no clear difference: ' if known and not clear else ''}{interval})"
    if not clear:
        return f"{ours} shows no clear difference from {theirs}: {distance} on average ({interval})"
    return f"{ours} {verb} {distance} {theirs} ({interval})"


def difference(ours: pd.DataFrame, theirs: pd.DataFrame, value: str = "test", /, **words: Any) -> str:
    """What ``sentence`` says, in these words, of two sets of runs that are paired by seed."""
    found = paired(seed_differences(ours, theirs, value))
    return sentence(found.effect, found.low, found.high, found.n, **words)


def best_and_worst(runs: pd.DataFrame, by: str, base: str, verb: str = "is") -> str:
    """The kinds of runs with the highest and the lowest mean top-1 against one of them, corrected for all comparisons with it."""
    kinds = dict(iter(runs.groupby(by, sort=False)))
    own = kinds.pop(base)
    found = {str(name): paired(seed_differences(other, own, "test")) for name, other in kinds.items()}
    corrected = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    order = sorted(found, key=lambda name: found[name].effect)
    return "; ".join(
        sentence(one.effect, one.low, one.high, one.n, ours=f"`{name}`", theirs=f"`{base}`", verb=verb, p=corrected[name])
        for name, one in ((name, found[name]) for name in dict.fromkeys([*order[-1:], *order[:1]]))
    )


def findings(ledger: pd.DataFrame) -> dict[str, str]:
    """What was found about each claim: a few sentences, from effects and intervals alone."""
    words = {"C1": _redundancy, "C2": _criteria, "C3": _epochs, "C3 by compute": _at_equal_compute}
    return {claim: ". ".join(words[claim](rows)) + "." for claim, rows in ledger.groupby("claim", sort=False)}


def headlines(ledger: pd.DataFrame) -> dict[str, str]:
    """The sentences of ``findings`` that a first page needs: all but those on single networks."""
    return findings(ledger[ledger.role != "network"])


def _enumerated(rows: pd.DataFrame, name: Callable[[Any], str], unit: str = POINTS, sides: tuple[str, str] = SIDES) -> str:
    """'0.8 points of top-1 above after 2 epochs (95 % interval 0.3 to 1.3, 5 seeds) and 0.6 above after 4 (0.2 to 1.0)'."""
    parts: list[str] = []
    for row in rows.itertuples():
        shifted = [value - row.slack for value in (row.effect, row.low, row.high)]
        p = math.nan if row.slack else row.p_holm  # of the difference from the margin, not from zero
        first = {"n": row.n, "unit": unit} if not parts else {"unit": ""}
        parts.append(sentence(*shifted, **first, theirs=name(row), sides=sides, p=p))
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _headline(verdicts: pd.Series, subject: str, more: str, less: str, rest: str, cases: str) -> str:
    """'MLFT is ahead of TFT at equal epochs', in the words that the rows' verdicts allow. cases: what the rows differ in."""
    found = set(verdicts)
    if found == {"undecided"}:
        return f"{subject} is not shown to be {more} or {less} {rest}"
    sides = [word for verdict, word in (("supported", more), ("contradicted", less)) if verdict in found]
    if len(found) == 1:
        return f"{subject} is {sides[0]} {rest}"
    return f"{subject} is clearly {' or '.join(sides)} {rest} {cases}"


def _redundancy(rows: pd.DataFrame) -> list[str]:
    def listed(part: pd.DataFrame) -> str:
        return _enumerated(part, lambda row: f"in {row.network}", "points", ("higher", "lower"))

    own = rows[rows.decisive]
    lead = _headline(
        own.verdict,
        "The share of channels with a near-duplicate",
        "larger",
        "smaller",
        "in trained networks than in untrained ones",
        "(not in every network)",
    )
    said = [f"{lead}: {listed(own)}"]
    if len(made := rows[rows.role == "as made"]):
        said.append(f"Against untrained networks whose BatchNorm has seen no image, the share is {listed(made)}")
    return said


def _criteria(rows: pd.DataFrame) -> list[str]:
    def against(row: Any, name: str) -> str:
        return sentence(row.effect, row.low, row.high, row.n, ours="FCS", theirs=name, p=row.p_holm)

    said = ["; ".join(against(row, f"pruning by the {BASELINES[row.theirs]}") for row in rows[rows.decisive].itertuples())]
    said = [f"At equal MACs, {one}" for one in said if one]
    for baseline, name in BASELINES.items():
        apart = rows[(rows.role == "network") & (rows.theirs == baseline)]
        if (apart.verdict != "undecided").any() and (apart.effect > 0).nunique() > 1:
            said.append(f"By network, against the {name}, FCS ends {_enumerated(apart, lambda row: f'on {row.network}')}")
    return [*said, *(against(row, "pruning random channels") for row in rows[rows.theirs == "random"].itertuples())]


def _after(row: Any) -> str:
    return f"after {counted(row.epochs, 'epoch')}"


def _epochs(rows: pd.DataFrame) -> list[str]:
    same, short = rows[rows.role == "better"], rows[rows.role == "no worse"]
    if not len(short) or not len(same):
        return ["MLFT and TFT have no shorter schedule in common, so nothing is known about fewer epochs"]
    lead = _headline(same.verdict, "MLFT", "ahead of", "behind", "TFT at equal epochs", "for some schedules only")
    said = [f"{lead}: {_enumerated(same, _after)}, at {same.compute.mean():.1f} times the training compute"]
    goal, slack = f"TFT's longest schedule ({counted(short.against.max(), 'epoch')})", f"within {short.slack.max():.2g} points"
    reached, itself = (
        sorted(rows[(rows.role == role) & (rows.verdict == "supported")].epochs) for role in ("no worse", "no worse itself")
    )
    if reached:
        lead = f"MLFT comes {slack} of {goal} or above it after {' and '.join(map(str, reached))} epochs"
        lead += f", and so does TFT after {' and '.join(map(str, itself))}" if itself else ""
    elif set(short.verdict) == {"contradicted"}:
        lead = f"MLFT does not reach the accuracy of {goal} in fewer epochs"
    else:
        lead = f"It is not shown that MLFT comes {slack} of {goal} in fewer epochs"
    return [*said, f"{lead}: {_enumerated(short, _after)}"]


def _at_equal_compute(rows: pd.DataFrame) -> list[str]:
    lead = _headline(rows.verdict, "MLFT", "ahead of", "behind", "TFT at similar training compute", "for some schedules only")
    several = rows.network.nunique() > 1

    def name(row: Any) -> str:
        place = f" on {row.network}" if several else ""
        return f"{_after(row)} against TFT's {row.against}{place}, at {row.compute:.2f} times TFT's training compute"

    return [f"{lead}: {_enumerated(rows, name)}"]
