"""What a cluster's engine costs a run, measured on this machine: ``python -m fcs_utils.study.cluster_cost``.

It starts a scheduler and workers of its own on loopback addresses. docs/cluster.md shows what was found.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fcs_utils.machine import describe_measurement
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.cluster import Away, marked, on_cluster
from fcs_utils.study.grid import grid
from fcs_utils.study.measurements import keep, kept
from fcs_utils.study.packed import Record
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.records import Store
from fcs_utils.study.runs import Run
from fcs_utils.study.schedule import Schedule, perform
from fcs_utils.study.study import Study

PUBLISHED = Path(__file__).parents[2] / "results"
LONG = 10.0  # seconds of the run that the overhead is compared with


class Idle:
    """A study whose runs do nothing: it goes the whole way of one, but for the files of records."""

    def __init__(self, out: Path) -> None:
        self.store = Store(out, "smoke")

    def record(self, run: Run) -> Record | None:
        return None

    def ensure(self, run: Run, *, wait: bool = True) -> Record:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _idle, (None, "smoke", self.store.root.parent, ".")


def _idle(deadline: None, profile: str, out: Path, data: Path | None) -> Idle:
    return Idle(out)


@contextmanager
def loopback(workers: int) -> Iterator[str]:
    """A scheduler and so many workers on this machine, which have imported all that a run needs; their address."""
    import dask
    import yaml
    from distributed import LocalCluster

    settings = yaml.safe_load(Path(__file__).with_name("cluster.yaml").read_text())
    options: dict[str, Any] = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None, "death_timeout": 60}
    dask.config.update(dask.config.config, settings)
    with LocalCluster(n_workers=workers, **options) as cluster:
        with on_cluster(cluster.scheduler_address) as engine:
            engine.everywhere(len, [Study])  # sent by name, so that its module is imported
        yield cluster.scheduler_address


def memory() -> int:
    """Bytes that this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def idle_runs(address: str, count: int, at_once: int, folder: Path, marks: Sequence[int] = ()) -> tuple[float, list[int]]:
    """Seconds that so many runs take which do nothing, and this process's memory after some of them."""
    (first, *_) = grid(get_profile("smoke"), "fp32")["reference"]
    runs = [first.model_copy(update={"reference": first.reference.model_copy(update={"seed": seed})}) for seed in range(count)]
    schedule, held, study = Schedule(), [], Idle(folder)
    schedule.add(runs, {run.identity: 1 for run in runs})
    with ThreadPoolExecutor(1) as desk, on_cluster(address) as engine, marked(study.store) as mark:
        started = time.perf_counter()
        for number, (_, error) in enumerate(perform(schedule, Away(study, engine, mark, desk), at_once, study.ensure), 1):
            assert error is None
            held += [memory()] if number in marks else []
        return time.perf_counter() - started, held


def study_runs(profile: str, folder: Path, **where: Any) -> float:
    """Runs a second of real, small ones: two networks on few images, pruned and tuned."""
    study = Study(get_profile(profile).model_copy(update={"dataset": "digits[:256]"}), folder)
    study.run(["reference"])
    started = time.perf_counter()
    return len(study.run(["pruned", "tuned"], **where)) / (time.perf_counter() - started)


def measure_cluster(count: int = 10_000, workers: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """All of it; takes some minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows: list[dict[str, Any]] = []
        for number in workers:
            with loopback(number) as address:
                row = {"workers": number, "runs_per_second": study_runs("smoke", place / f"on-{number}", cluster=address)}
                seconds, _ = idle_runs(address, count // 10, number, place / "idle")
                rows.append({**row, "idle_per_second": count // 10 / seconds})
        here = study_runs("smoke", place / "here")
        with loopback(2) as address:
            one, _ = idle_runs(address, count // 50, 1, place / "idle")
            seconds, (early, late) = idle_runs(address, count, 16, place / "idle", (count // 10, count))
    return {
        **describe_measurement(torch.device("cpu"), cores=os.cpu_count(), load=os.getloadavg()[0]),
        "here_per_second": here,
        "rows": rows,
        "overhead_seconds": one / (count // 50),
        "grid": {
            "runs": count,
            "per_second": count / seconds,
            "bytes": late,
            "bytes_per_run": (late - early) / (count - count // 10),
        },
    }


def cost_block() -> str:
    """What was measured, as Markdown, for docs/cluster.md."""
    (found, *_) = kept(Store(PUBLISHED, HEADLINE), "cluster")
    machine, simulated = found["machine"], found["grid"]
    table = pd.DataFrame(
        [
            {
                "workers": row["workers"],
                "small runs a second": f"{row['runs_per_second']:.2f}",
                "runs that do nothing, a second": f"{row['idle_per_second']:.0f}",
            }
            for row in found["rows"]
        ]
    )
    took = found["overhead_seconds"]
    return "\n\n".join(
        [
            f"Measured on {machine['device']}, {machine['cores']} cores, torch {machine['torch']}, {found['date'][:10]}. At the "
            f"end the load was {machine['load']:.1f}, its own workers included.",
            table.to_markdown(index=False, disable_numparse=True),
            f"In one process without a cluster, {found['here_per_second']:.2f} of the same small runs are done a second. The "
            f"engine takes {1000 * took:.0f} ms a run, {took / LONG:.1%} of a run of {LONG:.0f} s. Of a simulated grid of "
            f"{simulated['runs']:,} runs that do nothing, with 16 in hand on two workers, {simulated['per_second']:.0f} are done a "
            f"second. The client, with the scheduler in the same process here, then holds {simulated['bytes'] / 1e6:.0f} MB, and "
            f"each run adds {simulated['bytes_per_run'] / 1e3:.1f} kB.",
        ]
    )


if __name__ == "__main__":
    here = Store("results", HEADLINE)
    keep(here, "cluster", measure_cluster())
    print(f"saved in {here.measurements()}; publish it with: fcs-mlft publish --profile {HEADLINE}")
