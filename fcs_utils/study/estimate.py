"""What the runs that a profile still lacks will take on this machine: an estimate, from some seconds of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from fcs_utils.benchmarks.speed import SpeedJob, measure_speed, study_loop
from fcs_utils.machine import pick_workers
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.study.grid import Stage, grid
from fcs_utils.study.networks import expected_macs
from fcs_utils.study.profiles import Network
from fcs_utils.study.runs import Run
from fcs_utils.study.study import Study
from fcs_utils.training.passes import Mode

Throughput = Callable[[Network], float]  # multiply-adds a second


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


def training_throughput(device: torch.device, passes: Mode = "plain") -> Throughput:
    """Measures a network's training as a study does it here: one run on a GPU, one a core on a CPU.

    Two at once are measured, and further cores taken to do as much each. What compiling or capturing takes beforehand is
    not counted.
    """
    at_once = pick_workers(None, device)
    way = study_loop(passes, two_at_once=at_once > 1 and device.type == "cpu")

    def measured(network: Network) -> float:
        job = SpeedJob(network=network.network, width=network.width, batch_size=network.training.batch_size, what="training",
                       images=16_384 if device.type == "cuda" else 1024, device=device.type, way=way)  # fmt: skip
        model = build_seeded(0, network.network, num_classes=10, width=network.width)
        return max(1, at_once / 2) * measure_speed(job) * 3 * count_macs(model, torch.zeros(1, 3, 32, 32))

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
