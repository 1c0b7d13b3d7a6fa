"""What was found, in sentences made from effects and intervals. No sentence says more than its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from fcs_utils.errors import counted, enumerated
from fcs_utils.report.comparisons import BASELINES
from fcs_utils.report.inference import LEVEL, holm, paired, replicate_of, seed_differences
from fcs_utils.study.grid import titled

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
    replicate: str = "trained seed",
) -> str:
    """'FCS ends 1.5 points of top-1 below random channels (95 % interval 0.8 to 2.2, 3 trained seeds)', without the full stop.

    low, high: 95 % interval of the effect; NaN for one pair, infinite where an end is open. If it contains zero, the sentence
    says 'no clear difference'. p: corrected for other comparisons; if it is not significant although the interval excludes zero,
    the sentence says so. sides: the words for more and for less, which may end in 'than'. replicate: what n counts. Without
    ``ours`` the result is an item of a list.
    """
    known = not math.isnan(low) and low != high
    clear = known and low * high > 0
    digits = 1 if all(abs(value) >= 0.05 for value in (effect, low, high) if not math.isnan(value)) else 2
    alone = [side.removesuffix(" than") for side in sides]
    distance = " ".join(filter(None, (f"{abs(effect):.{digits}f}", unit, (sides if clear else alone)[effect < 0])))
    nearest = sorted((low, high), key=abs) if clear else (low, high)
    said = [f"{abs(end):.{digits}f}" + ("" if clear else f" {alone[end < 0]}") for end in nearest]
    ends = ["an open end" if math.isinf(end) else words for end, words in zip(nearest, said, strict=True)]
    interval = " to ".join(ends) if known else "no interval"
    if n:
        seeds = counted(n, replicate)
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
    replicate = replicate_of(pd.concat([ours, theirs]))
    return sentence(found.effect, found.low, found.high, found.n, **{"replicate": replicate, **words})


def best_and_worst(runs: pd.DataFrame, by: str, base: str) -> str:
    """The kinds of runs with the highest and the lowest mean top-1 against one of them, corrected for all comparisons with it."""
    kinds = dict(iter(runs.groupby(by, sort=False)))
    own = kinds.pop(base)
    found = {str(name): paired(seed_differences(other, own, "test")) for name, other in kinds.items()}
    corrected = dict(zip(found, holm([one.p for one in found.values()]), strict=True))
    order = sorted(found, key=lambda name: found[name].effect)
    replicate = replicate_of(runs)
    return "; ".join(
        sentence(
            *(one.effect, one.low, one.high),
            n=one.n,
            ours=titled(name),
            theirs=titled(base),
            verb="is",
            p=corrected[name],
            replicate=replicate,
        )
        for name, one in ((name, found[name]) for name in dict.fromkeys([*order[-1:], *order[:1]]))
    )


def findings(ledger: pd.DataFrame) -> dict[str, str]:
    """What was found about each claim: a few sentences, from effects and intervals alone."""
    words = {
        "C1a": _against_chance,
        "C1b": _against_untrained,
        "C2": _criteria,
        "C2, best reading": _criteria,
        "C3": _epochs,
        "C3 by compute": _at_equal_compute,
    }
    return {claim: ". ".join(words[claim](rows)) + "." for claim, rows in ledger.groupby("claim", sort=False)}


def headlines(ledger: pd.DataFrame) -> dict[str, str]:
    """The sentences of ``findings`` that a first page needs: all but those on single networks."""
    return findings(ledger[ledger.role != "network"])


def _of(row: Any, ours: str, theirs: str, **words: Any) -> str:
    """What ``sentence`` says of a row of the ledger."""
    return sentence(row.effect, row.low, row.high, row.n, replicate=row.replicate, p=row.p_holm, ours=ours, theirs=theirs, **words)


def _enumerated(rows: pd.DataFrame, name: Callable[[Any], str], unit: str = POINTS, sides: tuple[str, str] = SIDES) -> str:
    """'0.8 points of top-1 above after 2 epochs (95 % interval 0.3 to 1.3, 5 trained seeds) and 0.6 above after 4 (0.2 to 1.0)'."""
    parts: list[str] = []
    said: tuple[object, ...] = ()
    for row in rows.itertuples():
        counts = {} if (row.n, row.replicate) == said else {"n": row.n, "replicate": row.replicate}  # an item's, where they change
        words = {**counts, "unit": "" if parts else unit}
        parts.append(sentence(row.effect, row.low, row.high, **words, theirs=name(row), sides=sides, p=row.p_holm))
        said = (row.n, row.replicate)
    return enumerated(parts)


def _headline(verdicts: pd.Series, theirs: str) -> str:
    """'MLFT is ahead of TFT at equal epochs', in the words that the verdicts of several schedules allow. theirs: from 'TFT' on."""
    found = set(verdicts)
    if found == {"undecided"}:
        return f"MLFT is not shown to be ahead of or behind {theirs}"
    sides = [word for verdict, word in (("supported", "ahead of"), ("contradicted", "behind")) if verdict in found]
    if len(found) == 1:
        return f"MLFT is {sides[0]} {theirs}"
    return f"MLFT is clearly {' or '.join(sides)} {theirs} for some schedules only"


def _by_network(rows: pd.DataFrame, subject: str, theirs: str) -> str:
    """A result for each network, so that none speaks for another."""
    found = [
        _of(row, f"in {row.network}, {'it' if number else subject}", theirs, unit="points", verb="is")
        for number, row in enumerate(rows.itertuples())
    ]
    return "; ".join(found)[:1].upper() + "; ".join(found)[1:]


def _against_chance(rows: pd.DataFrame) -> list[str]:
    subject = "the share of live channels with a near-duplicate after training"
    return [_by_network(rows, subject, f"the {rows.theirs.iloc[0]} that chance gives")]


def _against_untrained(rows: pd.DataFrame) -> list[str]:
    own = rows[rows.label == rows.network]
    said = [_by_network(own, "the share of channels with a near-duplicate after training", "that in untrained networks")]
    if len(made := rows[rows.role == "as made"]):
        listed = _enumerated(made, lambda row: f"in {row.network}", "points", ("higher", "lower"))
        said.append(f"Against untrained networks whose BatchNorm has seen no image, the share is {listed}")
    return said


def _criteria(rows: pd.DataFrame) -> list[str]:
    reading = titled(rows.label.iloc[0].split(" − ")[0].rpartition(": ")[2])
    own = reading if rows.claim.iloc[0] == "C2" else f"the best reading of {reading}"

    def against(part: pd.DataFrame, start: str) -> list[str]:
        words = [_of(row, own, f"pruning by the {BASELINES[row.theirs]}") for row in part.itertuples() if row.theirs in BASELINES]
        return [start + "; ".join(words)] if words else []

    said = against(rows[rows.role == ""], "At equal MACs, ")
    for baseline, name in BASELINES.items():
        apart = rows[(rows.role == "network") & (rows.theirs == baseline)]
        if (apart.verdict != "undecided").any() and (apart.effect > 0).nunique() > 1:
            said.append(f"By network, against the {name}, {own} ends {_enumerated(apart, lambda row: f'on {row.network}')}")
    own_rows = rows[rows.role == ""]
    for row in own_rows[own_rows.theirs == "random"].itertuples():
        scope = row.comparison.rpartition(", ")[2]
        apart = scope.startswith("ratio ") and bool((own_rows.comparison.str.rpartition(", ")[2] != scope).any())
        said.append(_of(row, own, "pruning random channels" + f" at {scope} alone" * apart))
    said += against(rows[rows.role == "given"], "In the given networks, whose intervals are not corrected, ")
    return [one[:1].upper() + one[1:] for one in said]


def _after(row: Any) -> str:
    return f"after {counted(row.epochs, 'epoch')}"


def _epochs(rows: pd.DataFrame) -> list[str]:
    said = []
    for network, part in rows.groupby("network", sort=False):
        place = f"on {network}, " if rows.network.nunique() > 1 else ""
        saving, same = part[part.role == "saving"], part[part.role == "same epochs"]
        for row in saving.itertuples():
            (tft,) = part[(part.role == "saving of another") & (part.theirs == "tft")].itertuples()
            said += [place + one for one in _saving(row, tft)]
        if len(same):
            lead = _headline(same.verdict, "TFT at equal epochs")
            said.append(f"{place}{lead}: {_enumerated(same, _after)}, at {same.compute.mean():.1f} times the training compute")
    if not said:
        return ["MLFT and TFT have no schedule in common, so nothing is known about fewer epochs"]
    return [one[:1].upper() + one[1:] for one in said]


def _saving(row: Any, tft: Any) -> list[str]:
    """What MLFT saves of TFT's epochs, and whether TFT itself needs as many."""
    goal = f"TFT's longest schedule ({counted(row.against, 'epoch')})"
    if math.isnan(row.effect):
        never = f"no schedule of MLFT, up to {counted(row.epochs, 'epoch')}, reaches the accuracy of {goal} on average"
        known = "no interval" if row.n == 1 else "95 % interval"
        most = f": {row.high:.1f} % at most" if math.isfinite(row.high) else ""
        return [f"{never}, so the share of epochs that it saves is open{most} ({known}, {counted(row.n, row.replicate)})"]
    interval = f" ({' to '.join(_length(end) for end in (row.shortest, row.longest))})" if row.n > 1 else ""
    words = {"unit": "%", "verb": "needs", "sides": ("fewer epochs than", "more epochs than")}
    lead = _of(row, "MLFT", f"{goal} for the same accuracy", **words)
    said = [f"{lead}: {row.length:.1f} epochs by interpolation{interval}, at {row.compute:.1f} times TFT's training MACs"]
    if not tft.n > 1:
        return said
    own = f"TFT itself needs {tft.length:.1f} epochs ({_length(tft.shortest)} to {tft.longest:.1f})"
    if tft.shortest > tft.against - 0.05:
        own = "every shorter schedule of TFT ends below that"
    elif row.low > 0 and tft.shortest <= row.length:
        own += ", so it is not shown to need more than MLFT, and nothing is claimed"
    return [*said, own]


def _length(end: float) -> str:
    return "an open end" if math.isinf(end) or not end else f"{end:.1f}"


def _at_equal_compute(rows: pd.DataFrame) -> list[str]:
    lead = _headline(rows.verdict, "TFT at similar training compute")
    several = rows.network.nunique() > 1

    def name(row: Any) -> str:
        place = f" on {row.network}" if several else ""
        return f"{_after(row)} against TFT's {row.against}{place}, at {row.compute:.2f} times TFT's training compute"

    return [f"{lead}: {_enumerated(rows, name)}"]
