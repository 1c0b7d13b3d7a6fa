"""What the runs that a profile still lacks will take, here or on a cluster: an estimate, from some seconds of training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import pandas as pd
import torch

from fcs_utils.benchmarks.speed import SpeedJob, measure_speed, study_loop
from fcs_utils.machine import pick_device, pick_workers
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.study.catalogue import STAGES
from fcs_utils.study.schedule import expected_macs
from fcs_utils.study.sections import Network
from fcs_utils.study.study import Study
from fcs_utils.training.passes import Mode

Throughput = Callable[[Network], float]  # multiply-adds a second


def training_throughput(device: torch.device, passes: Mode = "plain") -> Throughput:
    """Measures a network's training as a study does it here: one run on a GPU, one a core on a CPU.

    Two at once are measured, and further cores taken to do as much each. What compiling or capturing takes beforehand is
    not counted.
    """
    return partial(pace, device=device.type, passes=passes, at_once=pick_workers(None, device))


def cluster_throughput(workers: Executor, slots: Callable[[], int], passes: Mode = "plain") -> Throughput:
    """Measures one run on one worker of a cluster, and takes all that are there now to do as much each."""
    return lambda network: slots() * workers.submit(pace, network, passes=passes).result()


def pace(network: Network, *, device: str | None = None, passes: Mode = "plain", at_once: int = 1) -> float:
    """Multiply-adds a second of a network's training by so many runs at once; device: by default the best that is here."""
    assert network.training is not None
    device = device or pick_device("auto").type
    job = SpeedJob(
        network=network.network,
        width=network.width,
        batch_size=network.training.batch_size,
        what="training",
        images=16_384 if device == "cuda" else 1024,
        device=device,
        way=study_loop(passes, two_at_once=at_once > 1 and device == "cpu"),
    )
    model = build_seeded(0, network.network, num_classes=10, width=network.width)
    return max(1, at_once / 2) * measure_speed(job) * 3 * count_macs(model, torch.zeros(1, 3, 32, 32))


def estimate(study: Study, throughput: Throughput) -> pd.DataFrame:
    """Runs, multiply-adds and hours by stage, and in all; a run that several stages need counts in the first of them.

    Hours take every network for as fast as its dense original at equal multiply-adds; pruned ones are slower.
    Raises StudyError where the data set is missing.
    """
    pending = {run.identity: (stage, run) for stage in reversed(STAGES) for run in study.pending([stage])}
    runs = [run for _, run in pending.values()]
    macs, needed = expected_macs(study.bench, runs), {run.reference.network for run in runs}
    used = [network for network in study.profile.networks if network.network in needed]
    as_tuned = {"training": study.profile.tuning, "weights": None}  # a given network has no schedule of its own
    rates = {one.network: throughput(one if one.training else one.model_copy(update=as_tuned)) for one in used}
    rows = [
        (stage, 1, macs[run.identity] / 1e12, macs[run.identity] / rates[run.reference.network] / 3600)
        for stage, run in pending.values()
    ]
    table = pd.DataFrame(rows, columns=["stage", "runs", "10^12 MACs", "hours (ESTIMATE)"]).groupby("stage").sum()
    table = table.reindex([*STAGES], fill_value=0)
    table.loc["all"] = table.sum()
    return table.reset_index().astype({"runs": int})
