"""What scoring channels costs: this study's one pass, and how others do it, against the plain forward pass.

Times are taken in turns with the plain forward pass within one process, so that their ratio is of one machine at one moment. Peak
memory is that of a process of its own.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.isolated import in_turns, measure_isolated
from fcs_utils.config import Config, Count, Width
from fcs_utils.machine import describe_measurement
from fcs_utils.models import build_seeded, network_title
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.spectra import map_ranks, nuclear_drops
from fcs_utils.pruning.statistics import collect_statistics, tapped

if TYPE_CHECKING:
    import pandas as pd

BATCH = 256


class Scoring(Config):
    """What notebook 08 measures the cost of scoring on.

    images: numbers of them, the last for the comparison with the forward pass. heavy: images for procedures
    that keep every map. literal: images for HRank and CHIP, here and as published, one decomposition at a time. Over few, finding
    the layers takes longer than the forward pass.
    """

    networks: tuple[str, ...] = ("vgg16", "resnet56")
    images: tuple[Count, ...] = (256, 512, 2048)
    widths: tuple[Width, ...] = (0.25, 0.5)
    heavy: Count = 512
    literal: Count = 64


class ScoringJob(Config):
    """One measurement: a procedure on a network with random weights and random 32x32 images."""

    network: str
    width: Width = 1.0
    images: Count
    method: str  # a key of PROCEDURES
    device: str = "cpu"
    memory: bool = False  # peak memory instead of time


# -- the procedures: each takes a network and images (N, 3, 32, 32) and returns nothing -----------------------------


def forward(network: nn.Module, images: Tensor) -> None:
    """The network alone, in batches."""
    for batch in images.split(BATCH):
        network(batch.contiguous(memory_format=torch.channels_last))


def _store_all(network: nn.Module, images: Tensor) -> None:
    layers = prunable_layers(network, images)
    kept: dict[str, list[Tensor]] = {name: [] for name in layers}
    with tapped(network, layers.values(), lambda name, maps: kept[name].append(maps.cpu())):
        forward(network, images)
    for maps in kept.values():
        _cosines(torch.cat(maps).numpy())


def _pass_per_layer(network: nn.Module, images: Tensor) -> None:
    """CHIP's procedure, with cosines for its score: the network runs once for each layer, and each batch of maps is a file."""
    for layer in prunable_layers(network, images).values():
        with tempfile.TemporaryDirectory() as folder:
            files: list[Path] = []

            def keep(_name: str, maps: Tensor, files: list[Path] = files, folder: str = folder) -> None:
                files.append(Path(folder) / f"{len(files)}.npy")
                np.save(files[-1], maps.contiguous().cpu().numpy())

            with tapped(network, [layer], keep):
                forward(network, images)
            _cosines(np.concatenate([np.load(file) for file in files]))


def _cosines(maps: np.ndarray) -> np.ndarray:
    """Scikit-learn's cosines (C, C) of flattened channels; maps: (N, C, H, W)."""
    from sklearn.metrics.pairwise import cosine_similarity

    return cosine_similarity(maps.reshape(*maps.shape[:2], -1).swapaxes(0, 1).reshape(maps.shape[1], -1))


def _on_maps(score: Callable[[Tensor], Any], network: nn.Module, images: Tensor) -> None:
    """Call ``score`` with each batch of every layer's maps (B, C, H, W)."""
    with tapped(network, prunable_layers(network, images).values(), lambda _name, maps: score(maps)):
        forward(network, images)


def _ranks_as_published(maps: Tensor) -> None:
    for one in maps.flatten(0, 1):
        torch.linalg.matrix_rank(one if one.dim() == 2 else one[None])


def _drops_as_published(maps: Tensor) -> None:
    for image in maps.flatten(2):
        torch.linalg.matrix_norm(image, "nuc")
        for channel in range(len(image)):
            without = image.clone()
            without[channel] = 0
            torch.linalg.matrix_norm(without, "nuc")


class Procedure(NamedTuple):
    """A way to score channels; ``rounds``: how often it is timed (the slow ones once)."""

    title: str
    run: Callable[[nn.Module, Tensor], object]
    rounds: int = 1


PROCEDURES = {
    "forward": Procedure("plain forward pass", forward),
    "pass": Procedure(
        "one pass, Gram matrices (this study)", partial(collect_statistics, scope="inner", batch_size=BATCH), rounds=3
    ),
    "trace": Procedure("of which finding the layers", prunable_layers, rounds=3),
    "store": Procedure("store all maps, scikit-learn's cosine", _store_all, rounds=3),
    "per_layer": Procedure("one pass a layer, maps to disk (CHIP's procedure)", _pass_per_layer),
    "ranks": Procedure("HRank in the pass (this study)", partial(_on_maps, map_ranks), rounds=3),
    "ranks_literal": Procedure("HRank as published, a decomposition a map", partial(_on_maps, _ranks_as_published)),
    "drops": Procedure("CHIP in the pass (this study)", partial(_on_maps, lambda maps: nuclear_drops(maps.flatten(2))), rounds=3),
    "drops_literal": Procedure("CHIP as published, a decomposition a channel", partial(_on_maps, _drops_as_published)),
}


@torch.no_grad()
def measure_procedure(job: ScoringJob) -> dict[str, Any]:
    """The job's fields with median ``seconds`` and ``forward_seconds``, or with peak ``bytes`` above the start."""
    device, procedure = torch.device(job.device), PROCEDURES[job.method]
    network = build_seeded(0, job.network, num_classes=10, width=job.width).eval()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(job.images, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    for first in (forward, procedure.run):
        first(network, images[:8])  # libraries allocate and compile at their first use
    if job.memory:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = _peak_bytes(device)
        procedure.run(network, images)
        return {**job.model_dump(), "bytes": _peak_bytes(device) - start}
    taken = in_turns(
        {"forward": partial(forward, network, images), "procedure": partial(procedure.run, network, images)}, procedure.rounds
    )
    seconds, plain = statistics.median(taken["procedure"]), statistics.median(taken["forward"])
    return {**job.model_dump(), "seconds": seconds, "forward_seconds": plain}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage starts at the parent's peak
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def scoring_jobs(scoring: Scoring, device: str) -> list[ScoringJob]:
    """Every measurement of notebook 08, each once: times first, then memory."""
    first, most, heavy, job = scoring.networks[0], scoring.images[-1], scoring.heavy, partial(ScoringJob, device=device)
    times = [
        *(job(method=m, network=n, images=most) for n in scoring.networks for m in ("pass", "trace")),
        *(job(method=m, network=n, images=heavy) for n in scoring.networks for m in ("pass", "store", "per_layer")),
        *(job(method="pass", network=first, images=n) for n in scoring.images),
        *(job(method="store", network=first, images=n) for n in scoring.images if n <= heavy),
        *(job(method=m, network=first, width=w, images=heavy) for w in scoring.widths for m in ("pass", "store")),
    ]
    published = ("ranks", "ranks_literal", "drops", "drops_literal")
    literal = [job(method=m, network=first, images=scoring.literal) for m in published]
    plain = [one.model_copy(update={"method": "forward"}) for one in times if one.method == "pass"]
    held = [one for one in (*plain, *times) if one.method != "trace" and (one.method == "pass" or one.images in (heavy, most))]
    return list(dict.fromkeys([*times, *literal, *(one.model_copy(update={"memory": True}) for one in held)]))


def measure_scoring(scoring: Scoring, device: str) -> dict[str, Any]:
    """This machine's costs: ``jobs`` and ``rows``, the ``machine`` and the ``date``. Raises StudyError when a process fails."""
    jobs = scoring_jobs(scoring, device)
    rows = [measure_procedure(job) for job in jobs if not job.memory]
    memory = [job for job in jobs if job.memory]
    # glibc gives large blocks back when they are freed, so that the peak is what is in use and not what the heap holds.
    settings = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000", "OMP_NUM_THREADS": "1"}
    for start in range(0, len(memory), 2):  # peak memory is per process, so other processes do not matter
        rows += measure_isolated(measure_procedure, memory[start : start + 2], settings)
    return {**describe_measurement(torch.device(device)), "jobs": [job.model_dump(mode="json") for job in jobs], "rows": rows}


def cost_frame(costs: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method, network, width and number of images: seconds, their ratio to the forward pass, memory in MB.

    costs: what ``measure_scoring`` returns.
    """
    import pandas as pd

    rows = pd.DataFrame(costs["rows"])
    keys = ["network", "width", "images", "method"]
    times, memory = (rows[rows.memory == kind] for kind in (False, True))
    passes = times[times.method == "pass"]
    plain = passes.assign(method="forward", seconds=passes.forward_seconds)
    frame = pd.concat([plain, times]).sort_values(["network", "width", "images"], ascending=[False, False, False], kind="stable")
    frame = frame.set_index(keys)[["seconds", "forward_seconds"]]
    frame = frame.join((memory.set_index(keys).bytes / 1e6).rename("memory_mb")).reset_index()
    return frame.assign(ratio=frame.seconds / frame.forward_seconds)


def cost_table(frame: pd.DataFrame) -> pd.DataFrame:
    """``cost_frame`` for readers: time as a multiple of the forward pass over the same images, peak memory above the start."""
    import pandas as pd

    return pd.DataFrame(
        {
            "network": [*map(network_title, frame.network, frame.width)],
            "images": frame.images,
            "procedure": frame.method.map({name: procedure.title for name, procedure in PROCEDURES.items()}),
            "times the forward pass": frame.ratio.map("{:.2f}".format),
            "seconds": frame.seconds.map("{:.2f}".format),
            "forward pass in turns with it (s)": frame.forward_seconds.map("{:.2f}".format),
            "peak memory (MB)": frame.memory_mb.map("{:.0f}".format, na_action="ignore").fillna(""),
        }
    ).reset_index(drop=True)
