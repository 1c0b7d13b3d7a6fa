"""The sentence that opens each section of the index, from records alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fcs_utils.benchmarks.latency import title_of
from fcs_utils.benchmarks.scoring import cost_frame
from fcs_utils.errors import counted
from fcs_utils.report.ablations import LITERAL
from fcs_utils.report.answers import KD, at_equal_epochs, if_paired
from fcs_utils.report.findings import best_and_worst, difference, headlines
from fcs_utils.report.frames import Report
from fcs_utils.report.inference import half_width, replicate_of
from fcs_utils.report.planning import HOURS
from fcs_utils.report.recipe import COMBINATION, SURGERY
from fcs_utils.report.tables import published_table
from fcs_utils.study.grid import titled
from fcs_utils.study.measurements import kept
from fcs_utils.study.records import Store
from fcs_utils.training.arms import arm_label

Lead = Callable[[Report, Store], str]
LEADS: dict[str, Lead] = {}


def lead(name: str) -> Callable[[Lead], Lead]:
    """A decorator: ``lead = "name"`` in ``index.toml`` opens a section with what the function says; with '' it has no opening."""

    def register(say: Lead) -> Lead:
        LEADS[name] = if_paired(say)
        return say

    return register


@lead("claims")
def _decided(report: Report, store: Store) -> str:
    rows = report.ledger[report.ledger.decisive] if len(report.ledger) else report.ledger
    if rows.empty:
        return ""
    above, below = ((rows.verdict == word).sum() for word in ("supported", "contradicted"))
    return (
        f"Of the {counted(len(rows), 'comparison')} that decide the claims, {above} {'is' if above == 1 else 'are'} clearly above "
        f"zero, {below} clearly below, and {len(rows) - above - below} neither, corrected for several comparisons within a claim."
    )


@lead("references")
def _dense_networks(report: Report, store: Store) -> str:
    said: list[str] = []
    for network, own in report.references.groupby("network", sort=False) if len(report.references) else ():
        half = half_width(own.test)
        interval = f"95 % interval {own.test.mean() - half:.1f} to {own.test.mean() + half:.1f}, " if np.isfinite(half) else ""
        single = "given" in own and own.given.all() and len(own) == 1  # as it was given, without a spread
        said.append(f"{network} {own.test.mean():.1f} %" + f" ({interval}{counted(len(own), replicate_of(own))})" * (not single))
    return f"Before pruning, the networks classify this share of the test images right: {'; '.join(said)}." if said else ""


def _claims(*names: str) -> Lead:
    def say(report: Report, store: Store) -> str:
        known = headlines(report.ledger) if len(report.ledger) else {}
        return "\n\n".join(f"**{name}.** {known[name]}" for name in names if name in known)

    return say


LEADS |= {"C1": _claims("C1a", "C1b"), "C2": _claims("C2", "C2, best reading")}


@lead("C3")
def _arms(report: Report, store: Store) -> str:
    said = _claims("C3", "C3 by compute")(report, store), at_equal_epochs(report.schedules, "kd", KD)
    return "\n\n".join(filter(None, said))


@lead("variations")
def _variations(report: Report, store: Store) -> str:
    if not len(report.variations) or LITERAL not in set(report.variations.variant):
        return ""
    found = best_and_worst(report.variations, "variant", LITERAL)
    return f"Before fine-tuning, the variations with the highest and the lowest mean, against the literal reading: {found}."


@lead("merging")
def _merging(report: Report, store: Store) -> str:
    if not len(report.merges):
        return ""
    plain, merged = (report.merges[report.merges.recalibrated & (report.merges.compensate == how)] for how in ("none", "merge"))
    said = difference(merged, plain, ours="merged surgery", verb="is", theirs="plain surgery")
    return f"Before fine-tuning, with BatchNorm recalibrated, {said}."


@lead("milliseconds")
def _milliseconds(report: Report, store: Store) -> str:
    said = []
    for found in kept(store, "latency")[:1]:
        for one in found["rows"]:
            macs, taken = one["macs"], one["milliseconds"]
            half = min((ratio for ratio in macs if ratio != "dense"), key=lambda ratio: abs(macs[ratio] / macs["dense"] - 0.5))
            pairs = [(key, key.replace(" dense ", f" {half} ")) for key in taken if " dense " in key]
            gains = [float(np.median(np.divide(taken[dense], taken[compact]))) for dense, compact in pairs if compact in taken]
            share = 100 * macs[half] / macs["dense"]
            if gains:
                name = title_of(one["network"])
                said.append(f"{name} at {share:.0f} % of its MACs runs {min(gains):.2f} to {max(gains):.2f} times as fast")
    return f"By runtime and batch, {'; '.join(said)} (medians of one machine)." if said else ""


@lead("scoring")
def _scoring(report: Report, store: Store) -> str:
    for costs in kept(store, "scoring")[:1]:
        frame = cost_frame(costs)
        own = frame[frame.method == "pass"].ratio
        return f"One pass for the statistics of all layers takes {own.min():.2f} to {own.max():.2f} times a plain forward pass."
    return ""


@lead("recipe")
def _combinations(report: Report, store: Store) -> str:
    said, count = [], 0
    for network, own in report.recipe.groupby("network", sort=False) if len(report.recipe) else ():
        every = {key: runs for key, runs in own.groupby(COMBINATION[1:], sort=False)}
        most = max((set(runs.seed) for runs in every.values()), key=len)
        kinds = {key: runs for key, runs in every.items() if set(runs.seed) == most}  # means over other seeds tell no order
        count += len(kinds)
        best, base = max(kinds, key=lambda key: kinds[key].validation.mean()), (report.default, "none", "tft")
        words = f"in {network}, {titled(best[0], article=True)} with {SURGERY[best[1]]} surgery and {arm_label(best[2])}"
        if best != base and base in kinds:
            others = f"{titled(report.default, article=True)} with plain surgery and TFT"
            words += f" (on test, {difference(kinds[best], kinds[base], ours='it', theirs=others)})"
        said.append(words)
    begun = "recipe" in set(report.unfinished.get("stage", ()))
    whole = f"the {counted(count, 'combination')} that have the most seeds so far" if begun else "all combinations"
    return f"The highest mean validation accuracy of {whole}: {'; '.join(said)}." if said else ""


@lead("reported")
def _reported(report: Report, store: Store) -> str:
    frame = published_table()
    base, pruned = (pd.to_numeric(frame[f"{which} top-1 (%)"], errors="coerce") for which in ("base", "pruned"))
    change = (pruned - base).dropna()
    return (
        f"In the {counted(len(change), 'result')} quoted with both accuracies, "
        f"the pruned network's top-1 minus the unpruned one's is {change.min():+.2f} to {change.max():+.2f} points."
    )


@lead("not run")
def _not_run(report: Report, store: Store) -> str:
    if report.unfinished.empty:
        return ""
    runs, hours = int(report.unfinished.runs.sum()), report.unfinished[HOURS]
    least = "over " if hours.isna().any() else ""
    return f"{counted(runs, 'planned run')} without a record would take {least}{hours.sum():.1f} core-hours (an estimate)."
