"""What further runs would take: how many replicates a difference needs, and the hours of what has no record yet."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd

from fcs_utils.errors import counted
from fcs_utils.pretrained import network_label
from fcs_utils.report.comparisons import BASELINES, LITERAL_READING
from fcs_utils.report.inference import MANY, detectable, needed, paired, replicate_of, seed_differences
from fcs_utils.report.tables import as_table
from fcs_utils.study.catalogue import ABOUT_STAGES, STAGES, Stage
from fcs_utils.study.grid import name_criterion
from fcs_utils.study.packed import Record, seconds_of
from fcs_utils.study.rates import best_rates
from fcs_utils.study.runs import Run
from fcs_utils.study.study import Study
from fcs_utils.training.arms import arm_label

HOURS = "core-hours (ESTIMATE)"
WORTH = 0.5  # points of top-1, the difference that the study wants to find
Key = tuple[object, ...]


@as_table("power", "ledger", "rates", "slack")
def power_table(ledger: pd.DataFrame, rates: pd.DataFrame, slack: float) -> pd.DataFrame:
    """How many replicates 0.5 points need: 80 % power, two-sided 5 %, from the spread of paired differences and of the pilots."""
    known = ledger[(ledger.unit == "points") & ~ledger.claim.isin(("C1a", "C1b"))]
    rows = [(r.claim, r.comparison, r.replicate, r.n, r.error) for r in known.itertuples()]
    rows += [("pilots", *row) for row in _pilots(rates, slack)]

    def row(claim: str, comparison: str, replicate: str, n: int, error: float) -> dict[str, Any]:
        spread = error * math.sqrt(n)
        wanted = needed(spread, WORTH)
        return {
            "claim": claim,
            "comparison": comparison,
            "spread of differences (points)": "" if math.isnan(spread) else f"{spread:.2f}",
            "n": n,
            "replicate": replicate,
            "smallest effect to be found, not corrected": "" if math.isnan(found := detectable(error, n)) else f"{found:.2f}",
            f"n for {WORTH:g} points": "" if math.isnan(wanted) else f"over {MANY}" if math.isinf(wanted) else f"{wanted}",
        }

    return pd.DataFrame([row(*one) for one in rows])


def _pilots(rates: pd.DataFrame, slack: float) -> list[tuple[str, str, int, float]]:
    """Validation differences from TFT, each arm at the rate that was chosen, on the pilot seeds."""
    chosen = best_rates(rates, slack)
    own = rates[[chosen[row.network, row.method] == row.learning_rate for row in rates.itertuples()]]
    rows = []
    for (network, method), runs in own.groupby(["network", "method"], sort=False):
        tft = own[(own.network == network) & (own.method == "tft")]
        if method != "tft" and len(tft):
            found = paired(seed_differences(runs, tft, "validation"))
            words = (
                f"{network}: validation top-1 after {counted(runs.epochs.max(), 'epoch')} each, {arm_label(str(method))} minus TFT"
            )
            rows.append((words, replicate_of(runs), found.n, found.error))
    return rows


def _keys(run: Run) -> list[Key]:
    """What a run's cost follows from, the best description first; each is looked up in runs that have a record."""
    network = run.reference.network, run.reference.width
    if run.tuning and run.pruning:
        method, goal = run.tuning.method, run.pruning.goal
        return [("tuned", *network, method, goal), ("tuned", *network, method), ("tuned", *network)]
    return [(run.kind, *network, run.pruning.criterion if run.pruning else ""), (run.kind, *network)]


def _epochs_of(run: Run) -> int:
    training = run.tuning.training if run.tuning else run.reference.training if run.kind == "reference" else None
    return training.epochs if training else 1


def hours_of(runs: Iterable[Run], records: Iterable[Record]) -> list[float]:
    """Hours of one core that each run takes, by the records of runs that are most like it; NaN where none is."""
    seconds: dict[Key, list[float]] = {}
    for record in records:
        run = Run.model_validate(record["config"])
        for key in _keys(run):
            seconds.setdefault(key, []).append(seconds_of(record) / _epochs_of(run))
    found = ((run, next((seconds[key] for key in _keys(run) if key in seconds), None)) for run in runs)
    return [math.nan if like is None else mean(like) * _epochs_of(run) / 3600 for run, like in found]


def found_so_far(study: Study) -> dict[Stage, list[Record]]:
    """The records of each stage; none of the rates while some are still to be tried, for then none is chosen."""
    return study.found() | ({"rates": []} if study.rates() is None else {})


def found_with_parents(study: Study) -> dict[Stage, list[Record]]:
    """The records of each stage and of what its runs build on, such as the pilots' references, each once in a stage."""

    def line(run: Run) -> list[Run]:
        return [*(line(parent) if (parent := run.parent()) else ()), run]

    runs = {stage: {one.identity: one for run in study.grid.get(stage, ()) for one in line(run)} for stage in study.found()}
    return {stage: [record for run in own.values() if (record := study.record(run))] for stage, own in runs.items()}


def claims_that_wait(study: Study) -> set[str]:
    """Claims that have no verdict yet, because some of the planned runs that decide them have no record."""
    pending = {stage: [run for run in study.pending([stage]) if run.tuning] for stage in ("tuned", "arms")}
    criteria = {name_criterion(run.pruning.criterion, run.pruning.options) for run in pending["tuned"] if run.pruning}
    arms = {run.tuning.method for run in pending["arms"] if run.tuning}
    awaited = {
        "C2": criteria & {LITERAL_READING, *BASELINES},
        "C2, best reading": criteria & {study.profile.best, *BASELINES},
        **dict.fromkeys(("C3", "C3 by compute"), arms & {"tft", "mlft"}),
    }
    return {claim for claim, missing in awaited.items() if missing}


def not_run(study: Study) -> pd.DataFrame:
    """Runs without a record by stage, network and what they do, with the core-hours that they would take.

    A run of several stages counts in the first of them. While the arms' rates are open, the first of the list stands for them.
    Hours are NaN where no record is like the runs.
    """
    pending = {run.identity: (stage, run) for stage in reversed(STAGES) for run in study.pending([stage])}
    runs = [one for stage in STAGES for one in pending.values() if one[0] == stage]
    records = [record for found in study.found().values() for record in found]
    hours = hours_of([run for _, run in runs], records)
    rows = [
        {
            "stage": stage,
            "network": network_label(run.reference.model_dump()),
            "what": " ".join(filter(None, (_of_pruning(run), _of_tuning(run)))) or run.kind,
            "runs": 1,
            HOURS: taken,
        }
        for (stage, run), taken in zip(runs, hours, strict=True)
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows).groupby(["stage", "network", "what"], sort=False).agg({"runs": "sum", HOURS: _sum})
    return frame.reset_index()


def stages_not_run(unfinished: pd.DataFrame) -> pd.DataFrame:
    """What ``not_run`` returns, by stage alone: what the stage does, how many runs it lacks, and their hours as far as known."""

    def words(hours: pd.Series) -> str:
        return "not known" if hours.isna().all() else ("over " if hours.isna().any() else "") + f"{hours.sum():.1f}"

    frame = unfinished.groupby("stage", sort=False).agg({"runs": "sum", HOURS: words}).reset_index()
    frame.insert(1, "what it does", [ABOUT_STAGES[stage] for stage in frame.stage])
    return frame


@as_table("not_run", "unfinished")
def not_run_table(unfinished: pd.DataFrame) -> pd.DataFrame:
    """What the profile plans and has no records for, with its core-hours."""
    if unfinished.empty:
        return unfinished
    words = unfinished[HOURS].map(lambda hours: "no record like it" if math.isnan(hours) else f"{hours:.2f}")
    return unfinished.assign(**{HOURS: words})


def _sum(hours: pd.Series) -> float:
    return float(np.sum(hours.to_numpy()))  # NaN where one of them is


def _of_pruning(run: Run) -> str:
    return f"{name_criterion(run.pruning.criterion, run.pruning.options)} {run.pruning.goal}" if run.pruning else ""


def _of_tuning(run: Run) -> str:
    return f"{run.tuning.method} {counted(run.tuning.training.epochs, 'epoch')}" if run.tuning else ""
