"""What scoring costs: the one pass against the plain forward pass and against how others do it, side by side.

Times are taken in turns with the plain forward pass within one process, so that their ratio is of one machine at
one moment. Peak memory is that of a process of its own (``python -m fcs_utils.cost JSON``).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fcs_utils.activations import collect_statistics, tapped
from fcs_utils.config import Config, Count, Positive
from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded
from fcs_utils.profiles import Scoring
from fcs_utils.provenance import describe_machine, describe_moment
from fcs_utils.sealed import read_or_set_aside, write_sealed
from fcs_utils.store import Store
from fcs_utils.structure import prunable_layers
from fcs_utils.sums import map_ranks, nuclear_drops

Method = Literal["forward", "pass", "trace", "store", "per_layer", "ranks", "ranks_literal", "drops", "drops_literal"]
BATCH = 256


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
    for _ in range(3 if job.method in ("pass", "trace") else 1):
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


def measure_apart(job: Job) -> dict[str, Any]:
    """The measurement in a process of its own. Raises StudyError when that fails."""
    # Large blocks go back to the system when freed: what remains is what is in use, not what the heap holds.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fcs_utils.cost", job.model_dump_json()]
    folder = Path(__file__).parents[1]
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


def scoring_costs(store: Store, scoring: Scoring, device: str) -> dict[str, Any]:
    """The measurements of a results folder, made at the first call and kept: ``rows`` and the ``machine``.

    They are of one machine at one moment; to measure again, remove ``cost.json``.
    """
    jobs = scoring_jobs(scoring, device)
    found = read_or_set_aside(store.cost())
    if found and found.get("jobs") == [job.model_dump(mode="json") for job in jobs]:
        return found
    rows = [measure(job) for job in jobs if not job.memory]
    with ThreadPoolExecutor(2) as pool:  # memory is of each process, whatever runs beside it
        rows += pool.map(measure_apart, (job for job in jobs if job.memory))
    found = {"machine": describe_machine(torch.device(device)), "date": describe_moment()["date"],
             "jobs": [job.model_dump(mode="json") for job in jobs], "rows": rows}  # fmt: skip
    write_sealed(store.cost(), found)
    return found


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
                     "peak memory (MB)": "" if np.isnan(row.memory_mb) else f"{row.memory_mb:.0f}"})  # fmt: skip
    return pd.DataFrame(rows)


# -- the methods, each on a network and images (N, 3, 32, 32) ------------------------------------------------------


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> None:
    """The network alone."""
    for batch in images.split(BATCH):
        network(batch.contiguous(memory_format=torch.channels_last))


def one_pass(network: nn.Module, images: Tensor) -> None:
    """This study: Gram matrices of all layers in one pass, tracing included."""
    collect_statistics(network, images, batch_size=BATCH)


def trace(network: nn.Module, images: Tensor) -> None:
    """Finding the layers and where to tap them: the part of the pass that does not grow with the images."""
    prunable_layers(network, images)


@torch.no_grad()
def store_all(network: nn.Module, images: Tensor) -> None:
    """Keep every map of every layer, then ask scikit-learn for the cosines of flattened channels."""
    from sklearn.metrics.pairwise import cosine_similarity

    layers = prunable_layers(network, images)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    with tapped(network, layers.values(), lambda name, maps: kept[name].append(maps.cpu())):
        forward(network, images)
    for maps in kept.values():
        cosine_similarity(torch.cat(maps).flatten(2).transpose(0, 1).flatten(1).numpy())


@torch.no_grad()
def one_pass_per_layer(network: nn.Module, images: Tensor) -> None:
    """CHIP's procedure, with cosines for its score: one run of the network a layer, each batch of maps a file."""
    from sklearn.metrics.pairwise import cosine_similarity

    for layer in prunable_layers(network, images).values():
        with tempfile.TemporaryDirectory() as folder:
            files: list[Path] = []

            def keep(_name: str, maps: Tensor, files: list[Path] = files, folder: str = folder) -> None:
                files.append(Path(folder) / f"{len(files)}.npy")
                np.save(files[-1], maps.contiguous().cpu().numpy())

            with tapped(network, [layer], keep):
                forward(network, images)
            maps = np.concatenate([np.load(file) for file in files])
        cosine_similarity(maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1).reshape(maps.shape[1], -1))


def _over_maps(score: Callable[[Tensor], object]) -> Callable[[nn.Module, Tensor], None]:
    @torch.no_grad()
    def run(network: nn.Module, images: Tensor) -> None:
        layers = prunable_layers(network, images)

        def receive(_name: str, maps: Tensor) -> None:
            score(maps)

        with tapped(network, layers.values(), receive):
            forward(network, images)

    return run


def ranks_literal(maps: Tensor) -> None:
    """HRank as published: one decomposition of each map."""
    for one in maps.flatten(0, 1):
        torch.linalg.matrix_rank(one if one.dim() == 2 else one[None])


def drops_literal(maps: Tensor) -> None:
    """CHIP as published: one decomposition of all of an image's maps for each channel left out."""
    for image in maps.flatten(2):
        torch.linalg.matrix_norm(image, "nuc")
        for channel in range(len(image)):
            without = image.clone()
            without[channel] = 0
            torch.linalg.matrix_norm(without, "nuc")


METHODS: dict[Method, Callable[[nn.Module, Tensor], None]] = {
    "forward": forward,
    "pass": one_pass,
    "trace": trace,
    "store": store_all,
    "per_layer": one_pass_per_layer,
    "ranks": _over_maps(map_ranks),
    "ranks_literal": _over_maps(ranks_literal),
    "drops": _over_maps(lambda maps: nuclear_drops(maps.flatten(2))),
    "drops_literal": _over_maps(drops_literal),
}

if __name__ == "__main__":
    print(json.dumps(measure(Job.model_validate_json(sys.argv[1]))))
