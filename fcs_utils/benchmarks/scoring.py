"""What scoring costs: the one pass against the plain forward pass and against how others do it, side by side.

Times are taken in turns with the plain forward pass within one process, so that their ratio is of one machine at
one moment. Peak memory is that of a process of its own (``python -m fcs_utils.benchmarks.scoring JSON``).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fcs_utils.benchmarks.procedures import METHODS, Method, forward
from fcs_utils.config import Config, Count, Positive
from fcs_utils.errors import StudyError
from fcs_utils.machine import describe_machine, describe_moment
from fcs_utils.models import build_seeded


class Job(Config):
    """One measurement: a method on a network with random weights and random 32x32 images."""

    network: str
    width: Positive = 1.0
    images: Count
    method: Method
    device: str = "cpu"
    memory: bool = False  # peak memory instead of time


def measure(job: Job) -> dict[str, Any]:
    """Median seconds of the method and of the forward pass in turns with it; or peak bytes above the start."""
    device, method = torch.device(job.device), METHODS[job.method]
    network = build_seeded(0, job.network, num_classes=10, width=job.width).eval()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(job.images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    for first in (forward, method):
        first(network, images[:8])  # libraries allocate and compile at their first use
    if job.memory:
        start = _peak(device, reset=True)
        method(network, images)
        return {**job.model_dump(), "bytes": _peak(device) - start}
    seconds: dict[str, list[float]] = {"forward": [], "method": []}
    for _ in range(3 if job.method in ("pass", "trace", "store") else 1):
        for name, run in (("forward", forward), ("method", method)):
            started = time.perf_counter()
            run(network, images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {**job.model_dump(), "seconds": middle["method"], "forward_seconds": middle["forward"]}


def _peak(device: torch.device, reset: bool = False) -> int:
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage starts at the parent's peak
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_isolated(job: Job) -> dict[str, Any]:
    """The measurement in a process of its own. Raises StudyError when that fails."""
    # Large blocks go back to the system when freed: what remains is what is in use, not what the heap holds.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fcs_utils.benchmarks.scoring", job.model_dump_json()]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=3600)  # noqa: S603
    if done.returncode:
        raise StudyError(f"measuring {job.method} on {job.network} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def scoring_jobs(scoring: Scoring, device: str) -> list[Job]:
    """Every measurement of notebook 08, each once: times first, then memory."""
    first, most, heavy = scoring.networks[0], scoring.images[-1], scoring.heavy
    times = [
        *(Job(method=m, network=n, images=most, device=device) for n in scoring.networks for m in ("pass", "trace")),
        *(Job(method=m, network=n, images=heavy, device=device) for n in scoring.networks for m in ("pass", "store", "per_layer")),
        *(Job(method="pass", network=first, images=n, device=device) for n in scoring.images),
        *(Job(method="store", network=first, images=n, device=device) for n in scoring.images if n <= heavy),
        *(Job(method=m, network=first, width=w, images=heavy, device=device) for w in scoring.widths for m in ("pass", "store")),
    ]  # fmt: skip
    literal = [Job(method=m, network=first, images=scoring.literal, device=device)
               for m in ("ranks", "ranks_literal", "drops", "drops_literal")]  # fmt: skip
    plain = [job.model_copy(update={"method": "forward"}) for job in times if job.method == "pass"]
    memory = [job.model_copy(update={"memory": True}) for job in (*plain, *times)
              if job.method != "trace" and (job.method == "pass" or job.images in (heavy, most))]  # fmt: skip
    return list(dict.fromkeys([*times, *literal, *memory]))


def measure_scoring(scoring: Scoring, device: str) -> dict[str, Any]:
    """All measurements, of one machine at one moment: ``jobs``, ``rows``, and the ``machine``."""
    jobs = scoring_jobs(scoring, device)
    rows = [measure(job) for job in jobs if not job.memory]
    with ThreadPoolExecutor(2) as pool:  # memory is of each process, whatever runs beside it
        rows += pool.map(measure_isolated, (job for job in jobs if job.memory))
    return {"machine": describe_machine(torch.device(device)), "date": describe_moment()["date"],
            "jobs": [job.model_dump(mode="json") for job in jobs], "rows": rows}  # fmt: skip


def cost_frame(costs: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method, network, width and number of images: seconds, their ratio to the forward pass, memory in MB."""
    rows = pd.DataFrame(costs["rows"])
    keys = ["network", "width", "images", "method"]
    times, memory = (rows[rows.memory == kind] for kind in (False, True))
    passes = times[times.method == "pass"]
    plain = passes.assign(method="forward", seconds=passes.forward_seconds)
    frame = pd.concat([plain, times]).sort_values(["network", "width", "images"], ascending=[False, False, False], kind="stable")
    frame = frame.set_index(keys)[["seconds", "forward_seconds"]]
    frame = frame.join((memory.set_index(keys).bytes / 1e6).rename("memory_mb")).reset_index()
    return frame.assign(ratio=frame.seconds / frame.forward_seconds)


NAMES = {
    "forward": "plain forward pass", "pass": "one pass, Gram matrices (this study)", "trace": "of which finding the layers",
    "store": "store all maps, scikit-learn's cosine", "per_layer": "one pass a layer, maps to disk (CHIP's procedure)",
    "ranks": "HRank in the pass (this study)", "ranks_literal": "HRank as published, a decomposition a map",
    "drops": "CHIP in the pass (this study)", "drops_literal": "CHIP as published, a decomposition a channel",
}  # fmt: skip


def cost_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Time as a multiple of the forward pass over the same images, and peak memory above the start."""
    rows = []
    for row in frame.itertuples():
        network = row.network + ("" if row.width == 1 else f" x{row.width:g}")
        rows.append({"network": network, "images": row.images, "procedure": NAMES[row.method],
                     "times the forward pass": f"{row.ratio:.2f}", "seconds": f"{row.seconds:.2f}",
                     "forward pass in turns with it (s)": f"{row.forward_seconds:.2f}",
                     "peak memory (MB)": "" if np.isnan(row.memory_mb) else f"{row.memory_mb:.0f}"})  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print(json.dumps(measure(Job.model_validate_json(sys.argv[1]))))


class Scoring(Config):
    """What notebook 08 measures the cost of scoring on.

    images: numbers of them, the last for the comparison with the forward pass. heavy: images for procedures
    that keep every map. literal: images for criteria as published, one decomposition at a time.
    """

    networks: tuple[str, ...] = ("vgg16", "resnet56")
    images: tuple[int, ...] = (256, 512, 2048)
    widths: tuple[float, ...] = (0.25, 0.5)
    heavy: int = 512
    literal: int = 8
