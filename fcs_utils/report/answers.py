"""The answers on the index's first screen to the questions that bring people here, from records alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import pandas as pd

from fcs_utils.errors import counted, enumerated
from fcs_utils.report.claims import standing
from fcs_utils.report.comparisons import LITERAL_READING, SIMPLE
from fcs_utils.report.findings import difference, headlines
from fcs_utils.report.frames import Report
from fcs_utils.report.inference import NoPairs, paired, seed_differences
from fcs_utils.study.grid import titled

Asked = ParamSpec("Asked")


def if_paired(say: Callable[Asked, str]) -> Callable[Asked, str]:
    """Say nothing where no seed pairs the runs that are compared, as happens in an incomplete grid."""

    @wraps(say)
    def said(*arguments: Asked.args, **words: Asked.kwargs) -> str:
        try:
            return say(*arguments, **words)
        except NoPairs:
            return ""

    return said


def answers(report: Report) -> list[tuple[str, str, str]]:
    """The questions that bring people here, each with its answer in a sentence or two and the lead of the section behind it.

    Those without records are left out.
    """
    works = [_first(report, "C2"), _against_random(report)]
    worth = [
        _first(report, "C3", "Counted in epochs"),
        at_equal_epochs(report.schedules, "tft", "TFT"),
        _first(report, "C3 by compute", "Counted in compute"),
        at_equal_epochs(report.schedules, "kd", KD),
    ]
    redundant = [_first(report, "C1a"), _first(report, "C1b", "More than before training")]
    found = {
        ("Does FCS work?", "C2"): " ".join(filter(None, works)),
        ("Which criterion should I use?", "C2"): which_criterion(report),
        ("Is mutual learning worth it?", "C3"): " ".join(filter(None, worth)),
        ("Are channels redundant?", "C1"): " ".join(filter(None, redundant)),
    }
    return [(question, answer, section) for (question, section), answer in found.items() if answer]


KD = "distillation from the frozen network (KD)"
IN_A_WORD = {
    "supported": "yes",
    "contradicted": "no",
    "undecided": "not shown",
    "unfinished": "not decided yet",
    "untried": "not decided yet",
}
WHY_NOT_YET = {
    "unfinished": "Not all planned runs are done.",
    "untried": "Only networks whose weights were given have been compared.",
}


def _first(report: Report, claim: str, by: str = "") -> str:
    """The verdict on a claim in a word, and the first sentence of what was found about it; or why it has none yet.

    by: what is counted, where a claim has several answers.
    """
    if not len(report.ledger) or claim not in set(report.ledger.claim):
        return ""
    word = standing(report.ledger[report.ledger.claim == claim])[claim]
    head, stop, _ = headlines(report.ledger)[claim].partition(". ")
    verdict = f"{by}: **{IN_A_WORD[word]}.**" if by else f"**{IN_A_WORD[word].capitalize()}.**"
    return f"{verdict} {WHY_NOT_YET.get(word, head + '.' * bool(stop))}"


def _against_random(report: Report) -> str:
    ledger = report.ledger
    rows = ledger[(ledger.claim == "C2") & (ledger.role == "") & (ledger.theirs == "random")] if len(ledger) else ledger
    return headlines(rows)["C2"] if len(rows) else ""


@if_paired
def which_criterion(report: Report) -> str:
    """A criterion to begin with: the one with the highest mean validation accuracy after fine-tuning, or kernel L1.

    The first is chosen among those that have a run at every network, ratio and seed trained here, and then compared on test. Where
    it is not clearly ahead of the L1 norm of the kernels there, that norm is named: it needs no images.
    """
    tuned = report.tuned
    own = tuned[~tuned.given] if "given" in tuned else tuned
    if own.empty:
        return ""
    cells = own.groupby("criterion").size()
    full = own[own.criterion.isin(cells.index[cells == cells.max()])]
    kinds = dict(iter(full.groupby("criterion", sort=False)))
    means = full.groupby("criterion").validation.mean().sort_values(ascending=False, kind="stable")
    best = str(means.index[0])
    named = {name: titled(str(name), article=True) for name in kinds}
    level = [named[name] for name in means.index[1:] if means[name] > means[best] - report.slack]
    others = [name for name in (SIMPLE, LITERAL_READING, "random") if name in kinds and name != best][:2]
    said = [
        difference(kinds[best], kinds[name], ours=own, theirs=named[name])
        for own, name in zip((named[best], "it"), others, strict=False)
    ]
    clear = SIMPLE not in others or paired(seed_differences(kinds[best], kinds[SIMPLE], "test")).low > 0
    first, why = (best, ".") if clear else (SIMPLE, ", which needs no images.")
    advice = f"**Begin with `{first}`** ({titled(first)}){why}"
    count = f"{len(kinds)} criteria" + " so far" * ("tuned" in set(report.unfinished.get("stage", ())))
    epochs = counted(int(kinds[best].epochs.max()), "epoch")
    lead = f"{advice} After {epochs} of fine-tuning, {named[best]} has the highest mean validation accuracy of {count}"
    lead += f"; {enumerated(level)} {'is' if len(level) == 1 else 'are'} within {report.slack:g} points of it" * bool(level)
    return f"{lead}. On test, {'; '.join(said)}. These intervals are not corrected." if said else f"{lead}."


@if_paired
def at_equal_epochs(schedules: pd.DataFrame, method: str, name: str) -> str:
    """MLFT against another arm after the longest schedule that both have, with what MLFT costs beside it.

    While runs are missing, that of the schedules with the most pairs.
    """
    if not len(schedules):
        return ""
    mlft, other = (schedules[schedules.method == one] for one in ("mlft", method))
    keys = [{*zip(arm.epochs, arm.network, arm.seed, strict=True)} for arm in (mlft, other)]
    pairs = Counter(epochs for epochs, *_ in keys[0] & keys[1])
    if not pairs:
        return ""
    longest = max(pairs, key=lambda epochs: (pairs[epochs], epochs))
    mlft, other = (runs[runs.epochs == longest] for runs in (mlft, other))
    factor = mlft.training_macs.mean() / other.training_macs.mean()
    said = difference(mlft, other, ours="MLFT", theirs=name)
    return f"After {counted(longest, 'epoch')}, {said}, at {factor:.1f} times the training MACs."
