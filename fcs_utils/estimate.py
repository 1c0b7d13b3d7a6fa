"""What the runs that a profile still lacks will take on this machine: an estimate, from some seconds of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from fcs_utils.config import Run
from fcs_utils.design import Network
from fcs_utils.grid import Stage, expected_macs, grid
from fcs_utils.measure import count_macs
from fcs_utils.models import build_seeded
from fcs_utils.passes import Way as Passes
from fcs_utils.speed import Job, Way, measure_apart
from fcs_utils.study import Study
from fcs_utils.workers import pick_workers

Throughput = Callable[[Network], float]  # multiply-adds a second
LARGER = ("paper-core", "paper")
CAVEAT = (
    "All hours are estimates. The GPU's speed is what this study aims at on one H100; nobody has measured it. The smaller number "
    "takes pruned networks for faster by as much as they have fewer multiply-adds, the larger one for no faster than dense ones. "
    "Evaluation and scoring cost more than their multiply-adds: reckon with more."
)
ASSUMED = {"vgg16": 50_000.0, "resnet56": 50_000 / 1.5}  # training images a second: what the study aims at on one H100


def lacking(study: Study) -> dict[Stage, list[Run]]:
    """Runs without a record by stage, each once and with what it builds on.

    While the arms' learning rates are open, the first of the list stands for the chosen one: the cost is the same.
    """
    arms = study.profile.arms
    rates = study.rates() or {(name, method): arms.learning_rates[0] for name in arms.networks for method in arms.methods}
    found: dict[Stage, list[Run]] = {}
    seen: set[str] = set()
    for stage, runs in grid(study.profile, study.precision, rates).items():
        missing = study.with_ancestors(run for run in runs if study.record(run) is None)
        todo = {run.identity: run for run in missing if run.identity not in seen}
        seen |= todo.keys()
        found[stage] = list(todo.values())
    return found


def training_throughput(device: torch.device, passes: Passes = "plain") -> Throughput:
    """Measures a network's training as a study does it here: one run on a GPU, one a core on a CPU.

    Two at once are measured, and further cores taken to do as much each. What compiling or capturing takes beforehand is
    not counted.
    """
    at_once = pick_workers(None, device)
    ways: dict[Passes, Way] = {"plain": "study", "compiled": "study, compiled", "graphs": "study, graphs"}
    if at_once > 1 and device.type == "cpu":
        ways = {"plain": "study, two at once", "compiled": "study, compiled, two at once"}

    def measured(network: Network) -> float:
        job = Job(network=network.network, width=network.width, batch_size=network.training.batch_size, what="training",
                  images=16_384 if device.type == "cuda" else 1024, device=device.type,
                  way=ways[passes])  # fmt: skip
        model = build_seeded(0, network.network, num_classes=10, width=network.width)
        return max(1, at_once / 2) * measure_apart(job) * 3 * count_macs(model, torch.zeros(1, 3, 32, 32))

    return measured


def estimate(study: Study, throughput: Throughput) -> pd.DataFrame:
    """Runs, multiply-adds and hours by stage, and in all.

    Hours take every network for as fast as its dense original at equal multiply-adds; pruned ones are slower.
    Raises StudyError where the data set is missing.
    """
    stages = lacking(study)
    needed = {run.reference.network for runs in stages.values() for run in runs}
    rates = {network.network: throughput(network) for network in study.profile.networks if network.network in needed}
    rows: list[dict[str, Any]] = []
    for stage, runs in stages.items():
        macs = expected_macs(study.bench, runs) if runs else []
        seconds = sum(count / rates[run.reference.network] for count, run in zip(macs, runs, strict=True))
        rows.append({"stage": stage, "runs": len(runs), "10^12 MACs": sum(macs) / 1e12, "hours (ESTIMATE)": seconds / 3600})
    totals = {name: sum(row[name] for row in rows) for name in list(rows[0])[1:]}
    return pd.DataFrame([*rows, {"stage": "all", **totals}])


def larger_studies(study: Study, throughput: float, machine: str) -> pd.DataFrame:
    """What the profiles for a GPU would take on this study's data set, from nothing: counted runs and multiply-adds.

    throughput: multiply-adds a second of a machine. Hours are estimates; those on a GPU take ``ASSUMED`` for granted.
    """
    rows = []
    rates = " and ".join(f"{rate:,.0f} images/s of {name}" for name, rate in ASSUMED.items())
    for name in LARGER:
        other = Study(f"{name}:{study.profile.dataset}", study.store.root / "larger")  # a folder without records
        runs = [run for stage in lacking(other).values() for run in stage]
        dense = {n.network: count_macs(build_seeded(0, n.network, num_classes=10, width=n.width), torch.zeros(1, 3, 32, 32))
                 for n in other.profile.networks}  # fmt: skip
        names = [run.reference.network for run in runs]
        macs = expected_macs(study.bench, runs)
        there = [sum(count / (3 * dense[network] * ASSUMED[network]) / 3600 for network, count in zip(names, counts, strict=True))
                 for counts in (macs, expected_macs(study.bench, runs, shrink=False))]  # fmt: skip
        rows.append({
            "profile": name, "runs": f"{len(runs):,}", "10^15 MACs": f"{sum(macs) / 1e15:,.1f}",
            f"hours on {machine} (ESTIMATE)": _two_digits(sum(macs) / throughput / 3600),
            f"GPU-hours at {rates} (ESTIMATE)": " to ".join(map(_two_digits, there)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _two_digits(hours: float) -> str:
    return f"{float(f'{hours:.2g}'):,.10g}"
