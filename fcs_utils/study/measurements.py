"""What things cost on the machines that measured it, kept in one file of a results folder beside the records."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

from fcs_utils.benchmarks.deployed import Deployed, bound_table, deployed_table, goals_table, measure_deployed
from fcs_utils.benchmarks.latency import latencies
from fcs_utils.benchmarks.scoring import Scoring, measure_scoring, scoring_jobs
from fcs_utils.benchmarks.speed import Speed, listed, measure_speeds, speed_jobs
from fcs_utils.benchmarks.speed_tables import machine_name
from fcs_utils.benchmarks.widths import Widths, measure_widths, widths_table
from fcs_utils.benchmarks.yardsticks import Yardsticks, measure_yardsticks, yardstick_table
from fcs_utils.files import read_or_set_aside, write_checksummed
from fcs_utils.machine import describe_measurement
from fcs_utils.models import count_macs
from fcs_utils.pruning.export import has_onnx
from fcs_utils.study.contents import MEASUREMENTS, conform
from fcs_utils.study.records import Store
from fcs_utils.study.study import Study

Measured = Literal["scoring", "speed", "latency", "deployed", "widths", "yardsticks", "cluster"]
Valid = Callable[[Any], bool]


def _measured(path: Path) -> dict[str, Any]:
    """A file of measurements; nothing where there is none or a damaged or wrong one, which is set aside."""
    return read_or_set_aside(path, lambda found: conform(MEASUREMENTS, found, path)) or {}


def kept(store: Store, what: Measured) -> list[dict[str, Any]]:
    """Measurements of one sort that are there: those of this machine, then the published ones."""
    files = (_measured(path) for path in (store.measurements(), store.published(store.measurements())))
    return [file[what] for file in files if file.get(what)]


def keep(store: Store, what: Measured, found: dict[str, Any]) -> None:
    """Add what was measured here to this machine's file, or renew it there."""
    write_checksummed(store.measurements(), {**_measured(store.measurements()), what: found})


def scoring_costs(store: Store, scoring: Scoring, device: str) -> dict[str, Any]:
    """What scoring costs, measured at the first call and kept; to measure again, remove it from ``measurements.json``."""
    wanted = [job.model_dump(mode="json") for job in scoring_jobs(scoring, device)]
    for found in kept(store, "scoring"):
        if found.get("jobs") == wanted:
            return found
    measured = measure_scoring(scoring, device)
    keep(store, "scoring", measured)
    return measured


def by_machine(store: Store, what: Measured, valid: Valid = bool) -> list[dict[str, Any]]:
    """Measurements that each machine adds to, the latest last. A file of this machine holds the published ones too."""
    files = ([*filter(valid, file["measured"])] for file in kept(store, what))
    return next(filter(None, files), [])


def _add(store: Store, what: Measured, measure: Callable[[], dict[str, Any]], valid: Valid = bool) -> list[dict[str, Any]]:
    """Add this machine's measurements to those of others, or renew them; returns all."""
    keep(store, what, {"measured": by_machine(store, what, valid)})  # so that an unwritable folder fails before the work
    mine = measure()
    others = [one for one in by_machine(store, what, valid) if machine_name(one) != machine_name(mine)]
    keep(store, what, {"measured": [*others, mine]})
    return [*others, mine]


def of_jobs(speed: Speed) -> Valid:
    """Whether measurements are of these speeds."""
    return lambda one: bool(one["jobs"] == listed(speed_jobs(speed, one["machine"]["device_type"])))


def speeds(store: Store, speed: Speed, device: str) -> list[dict[str, Any]]:
    """What was measured of these speeds, by machine, the latest last; measured on this machine where there are none."""
    return by_machine(store, "speed", of_jobs(speed)) or measure_here(store, speed, device)


def measure_here(store: Store, speed: Speed, device: str) -> list[dict[str, Any]]:
    """Add this machine's speeds, or renew them; returns ``speeds``. Raises StudyError as ``measure_speeds`` does."""
    return _add(store, "speed", partial(measure_speeds, speed, device), of_jobs(speed))


def measure_latencies(store: Store) -> Iterator[pd.DataFrame]:
    """Measure what takes time on this machine, keep each part as soon as it is known, and yield its tables.

    What people wait for comes first, then small networks, then large ones. It needs idle cores and 16 GB of memory.
    """
    yield yardstick_table(_add(store, "yardsticks", partial(measure_yardsticks, Yardsticks()))[-1])
    yield widths_table(_add(store, "widths", partial(measure_widths, Widths()))[-1])
    large = _add(store, "deployed", partial(measure_deployed, Deployed()))[-1]
    yield from (table(large) for table in (deployed_table, bound_table, goals_table))


def deployment(study: Study) -> dict[str, Any]:
    """Latencies of every network of a profile, dense and pruned at each ratio; measured at the first call and kept.

    Widths, and so speed, follow from the ratio alone: the first seed's FCS stands for every criterion. To measure again,
    remove ``latency`` from ``measurements.json``.
    """
    runs = {
        run.identity: run
        for run in study.grid["pruned"]
        if run.reference.seed == study.profile.seeds[0] and run.pruning and run.pruning.criterion == "fcs"
    }
    for found in kept(study.store, "latency"):
        if found.get("runs") == list(runs):
            return found
    rows: list[dict[str, Any]] = []
    for reference in dict.fromkeys(run.reference for run in runs.values()):
        networks = {"dense": study.bench.trained(reference)}
        networks |= {
            run.pruning.goal.removeprefix("ratio "): study.bench.compact(run, study.bench.plan(run))
            for run in runs.values()
            if run.pruning and run.reference == reference
        }
        macs = {name: count_macs(network, study.bench.example) for name, network in networks.items()}
        rows.append(
            {
                "network": f"{reference.network} x{reference.width:g}",
                "macs": macs,
                "milliseconds": latencies(networks, study.bench.example),
            }
        )
    version = importlib.metadata.version("onnxruntime") if has_onnx() else None
    measured = {
        **describe_measurement(torch.device("cpu"), threads=1),
        "onnxruntime": version,
        "runs": list(runs),
        "rows": rows,
    }
    keep(study.store, "latency", measured)
    return measured
