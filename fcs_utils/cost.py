"""What scoring costs: the one pass against the plain forward pass and against how others do it, side by side.

Each measurement is a process of its own (``python -m fcs_utils.cost JSON``), so that peak memory is that of one
method, and runs the plain forward pass in turns with it, so that their ratio is of one machine at one moment.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
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
from fcs_utils.store import Store, read_json, write_json
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
    repeats: Count = 3
    device: Literal["cpu", "cuda"] = "cpu"


def measure(job: Job) -> dict[str, Any]:
    """The job's own process runs this: seconds of the method and of the forward pass, peak bytes above the start."""
    device = torch.device(job.device)
    network = build_seeded(0, job.network, num_classes=10, width=job.width).eval()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(job.images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    forward(network, images[:8])  # libraries allocate at their first use
    METHODS[job.method](network, images[:8])
    start = _peak(device, reset=True)
    METHODS[job.method](network, images)
    memory = _peak(device) - start
    seconds: dict[str, list[float]] = {"method": [], "forward": []}
    for _ in range(job.repeats):
        for name, run in (("forward", forward), ("method", METHODS[job.method])):
            started = time.perf_counter()
            run(network, images)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {**job.model_dump(), "seconds": middle["method"], "forward_seconds": middle["forward"], "memory": memory}


def _peak(device: torch.device, reset: bool = False) -> int:
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_jobs(jobs: list[Job]) -> list[dict[str, Any]]:
    """Every job in a process of its own, one after the other. Raises StudyError for one that fails."""
    rows = []
    for job in jobs:
        command = [sys.executable, "-m", "fcs_utils.cost", job.model_dump_json()]
        folder = Path(__file__).parents[1]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=3600)  # noqa: S603
        if done.returncode:
            raise StudyError(f"measuring {job.method} on {job.network} failed: {done.stderr.strip().splitlines()[-1:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def scoring_jobs(scoring: Scoring, device: str) -> list[Job]:
    """Every measurement of notebook 08, each once."""
    first, most = scoring.networks[0], scoring.images[-1]

    def job(method: Method, network: str = first, images: int = most, width: float = 1.0, repeats: int = 3) -> Job:
        return Job(network=network, width=width, images=images, method=method, repeats=repeats, device=device)

    jobs = [
        *(job(method, network) for network in scoring.networks for method in ("forward", "pass", "trace")),
        *(job(method, network, scoring.heavy, repeats=1) for network in scoring.networks
          for method in ("forward", "pass", "store", "per_layer")),
        *(job(method, images=images) for images in scoring.images for method in ("forward", "pass")),
        *(job("store", images=images, repeats=1) for images in scoring.images if images <= scoring.heavy),
        *(job(method, width=width, images=scoring.heavy, repeats=1) for width in (*scoring.widths, 1.0)
          for method in ("forward", "pass", "store")),
        *(job(method, images=scoring.literal, repeats=1) for method in ("ranks", "ranks_literal", "drops", "drops_literal")),
    ]  # fmt: skip
    return list(dict.fromkeys(jobs))


def scoring_costs(store: Store, scoring: Scoring, device: str) -> dict[str, Any]:
    """The measurements of a results folder, made at the first call and kept: ``rows`` and the ``machine``.

    They are of one machine at one moment; to measure again, remove ``cost.json``.
    """
    jobs = scoring_jobs(scoring, device)
    if store.cost().exists():
        found = read_json(store.cost())
        if found.get("jobs") == [job.model_dump(mode="json") for job in jobs]:
            return found
    rows = run_jobs(jobs)
    found = {"machine": describe_machine(torch.device(device)), "date": describe_moment()["date"],
             "jobs": [job.model_dump(mode="json") for job in jobs], "rows": rows}  # fmt: skip
    write_json(store.cost(), found)
    return found


def cost_frame(costs: Mapping[str, Any]) -> pd.DataFrame:
    """One row per measurement, with the ratio to the forward pass that ran in turns with it, memory in MB."""
    frame = pd.DataFrame(costs["rows"])
    return frame.assign(ratio=frame.seconds / frame.forward_seconds, memory_mb=frame.memory / 1e6)


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
                     "peak memory (MB)": f"{row.memory_mb:.0f}"})  # fmt: skip
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
        with tapped(network, layers.values(), lambda _name, maps: score(maps)):
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
