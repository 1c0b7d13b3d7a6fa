"""How fast training and evaluation are, against a loop written the usual way, in turns within one run.

The usual way: PIL images, torchvision's transforms, a DataLoader with workers, fp32, NCHW memory. Both do the same
steps on the same network with the same batch; only the way differs. ``python -m fcs_utils.speed JSON`` is one
measurement; each has a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fcs_utils import passes
from fcs_utils.allocator import huge_pages, keep_freed_memory
from fcs_utils.config import Config, Count, Positive, Training
from fcs_utils.data import Dataset, Split
from fcs_utils.design import Speed
from fcs_utils.errors import StudyError
from fcs_utils.finetune import accuracy, fit
from fcs_utils.measure import count_macs
from fcs_utils.models import build_seeded
from fcs_utils.passes import autocast
from fcs_utils.provenance import describe_machine, describe_moment, pick_precision
from fcs_utils.sealed import read_or_set_aside, write_sealed
from fcs_utils.store import Store

Way = Literal["usual", "study", "study, compiled", "study, graphs", "study, two at once", "convolutions alone"]
PASSES: dict[Way, passes.Way] = {"study": "plain", "study, compiled": "compiled", "study, graphs": "graphs"}
EPOCHS = 3  # the first one warms up


class Job(Config):
    """One measurement: so many images, again and again, through one network in one way."""

    network: str
    width: Positive
    batch_size: Count
    images: Count
    what: Literal["training", "evaluation"]
    way: Way
    device: str = "cpu"


def measure(job: Job) -> float:
    """Images a second, the median of the epochs after the first."""
    pixels = torch.randint(0, 256, (job.images, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(job.images) % 10
    network = build_seeded(0, job.network, num_classes=10, width=job.width).to(job.device)
    how = {"usual": _usual, "convolutions alone": _convolutions}.get(job.way, _study)
    seconds = how(job, network, pixels, labels)
    return job.images / statistics.median(seconds[1:])


def _study(job: Job, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    device = torch.device(job.device)
    train, few = Split(pixels, labels), Split(pixels[:1], labels[:1])
    channels = torch.full((3,), 127.0)
    data = Dataset("random", "random", tuple("0123456789"), train, few, few, channels, channels / 2, True, "").to(device)
    precision, training = pick_precision(device), Training(epochs=EPOCHS, learning_rate=0.01, batch_size=job.batch_size)
    if job.what == "training":
        history = fit([network], data, training, seed=0, precision=precision, passes=PASSES.get(job.way, "plain"))
        ends = [epoch.seconds for epoch in history]
        return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _timed(lambda: accuracy(network, data, data.train, precision, job.batch_size), device)


def _convolutions(job: Job, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    """The study's convolutions, forward and backward, and nothing else: what no better loop can go below."""
    device = torch.device(job.device)
    keep_freed_memory()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    met: list[tuple[Any, Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda layer, taken: met.append((layer, taken[0].detach())))
             for layer in network.modules() if isinstance(layer, nn.Conv2d)]  # fmt: skip
    with autocast(device, pick_precision(device)):
        network(pixels[: job.batch_size].to(device).permute(0, 3, 1, 2).float())
    for hook in hooks:
        hook.remove()
    inputs = [(layer, maps.requires_grad_(number > 0)) for number, (layer, maps) in enumerate(met)]  # images need no gradient

    def epoch() -> None:
        for _ in range(job.images // job.batch_size):
            for layer, maps in inputs:
                with autocast(device, pick_precision(device)):
                    out = layer(maps)
                torch.autograd.grad(out, [layer.weight, *([maps] if maps.requires_grad else [])], out.detach())

    return _timed(epoch, device)


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """PIL images behind torchvision's transforms."""

    def __init__(self, pixels: np.ndarray, labels: list[int], augment: bool) -> None:
        from PIL import Image
        from torchvision import transforms as t

        self.images, self.labels = [Image.fromarray(one) for one in pixels], labels
        shift = [t.RandomCrop(32, padding=4, padding_mode="reflect"), t.RandomHorizontalFlip()] if augment else []
        self.transform = t.Compose([*shift, t.ToTensor(), t.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def _usual(job: Job, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    device, train = torch.device(job.device), job.what == "training"
    pictures = Pictures(pixels.numpy(), labels.tolist(), augment=train)
    loader = DataLoader(pictures, job.batch_size, shuffle=train, num_workers=2, persistent_workers=True, drop_last=train)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch() -> None:
        right = 0
        for images, truth in loader:
            images, truth = images.to(device), truth.to(device)
            logits = network(images)
            if train:
                optimiser.zero_grad()
                F.cross_entropy(logits, truth).backward()
                optimiser.step()
            right += (logits.argmax(1) == truth).sum().item()

    network.train(train)
    with torch.set_grad_enabled(train):
        return _timed(epoch, device)


def _timed(do: Any, device: torch.device) -> list[float]:
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def measure_apart(job: Job) -> float:
    """Images a second in a process of its own, so that no way inherits another one's allocator or threads.

    Two at once have one thread each, as in a study, and count together; on a CPU, convolutions alone too. Raises
    StudyError when one fails.
    """
    count = 2 if job.way == "study, two at once" or (job.way == "convolutions alone" and job.device == "cpu") else 1
    command = [sys.executable, "-m", "fcs_utils.speed", job.model_dump_json()]
    folder = Path(__file__).parents[1]
    with huge_pages() if count > 1 else nullcontext():  # as workers have them, and a lone process does not
        environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if count > 1 else {})}
        at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) for _ in range(count)]  # noqa: S603
    texts = [process.communicate()[0] for process in at_once]
    if any(process.returncode for process in at_once):
        raise StudyError(f"measuring {job.what} of {job.network}, way {job.way!r}, failed")
    return sum(json.loads(text) for text in texts)


def speed_jobs(speed: Speed, device: str) -> list[Job]:
    """Every measurement: all ways on every network, then growth with the batch on the first."""
    training_only: tuple[Way, ...] = ("study, compiled",) if speed.compiled else ()
    training_only += ("study, two at once",) if device == "cpu" else ("study, graphs",)
    training_only += ("convolutions alone",)
    jobs = [
        Job(network=network, width=width, batch_size=128, images=speed.images, what=what, way=way, device=device)
        for network, width in speed.networks for what in ("training", "evaluation")
        for way in ("usual", "study", *(training_only if what == "training" else ()))
    ]  # fmt: skip
    first = jobs[0].model_copy(update={"way": "study"})
    return list(dict.fromkeys([*jobs, *(first.model_copy(update={"batch_size": batch}) for batch in speed.batches)]))


def speeds(store: Store, speed: Speed, device: str) -> dict[str, Any]:
    """The measurements of a results folder, made at the first call and kept; remove ``speed.json`` to measure again."""
    jobs = speed_jobs(speed, device)
    listed = [job.model_dump(mode="json") for job in jobs]
    if (found := read_or_set_aside(store.speed())) and found.get("jobs") == listed:
        return found
    taken: list[list[float]] = [[] for _ in jobs]
    for _ in range(speed.rounds):  # in turns, so that a busy minute meets every way
        for job, rates in zip(jobs, taken, strict=True):
            rates.append(measure_apart(job))
    rows = [{**one, "images_per_second": statistics.median(rates)} for one, rates in zip(listed, taken, strict=True)]
    found = {"machine": describe_machine(torch.device(device)), "precision": pick_precision(torch.device(device)),
             "date": describe_moment()["date"], "jobs": listed, "rows": rows}  # fmt: skip
    write_sealed(store.speed(), found)
    return found


def speed_table(found: dict[str, Any]) -> pd.DataFrame:
    """Images a second by way, and how many times the usual loop's."""
    rows = pd.DataFrame(found["rows"])
    rows["network"] = rows.network + rows.width.map(lambda width: "" if width == 1 else f" x{width:g}")
    usual = rows[rows.way == "usual"].set_index(["network", "what", "batch_size"]).images_per_second
    rows = rows[[key in usual.index for key in zip(rows.network, rows.what, rows.batch_size, strict=True)]]
    ratios = [row.images_per_second / usual[row.network, row.what, row.batch_size] for row in rows.itertuples()]
    return pd.DataFrame({
        "network": rows.network, "batch": rows.batch_size, "what": rows.what, "way": rows.way,
        "images/s": rows.images_per_second.map("{:,.0f}".format), "times the usual loop": [f"{ratio:.2f}" for ratio in ratios],
    })  # fmt: skip


def growth_table(found: dict[str, Any]) -> pd.DataFrame:
    """Training throughput against the batch, in images and in multiply-adds; then an estimate for ResNet-50."""
    import torchvision

    rows = pd.DataFrame(found["rows"])
    rows = rows[(rows.what == "training") & (rows.way == "study")].sort_values(["network", "batch_size"], ascending=[False, True])
    lines, best = [], 0.0
    for row in rows.itertuples():
        network = build_seeded(0, row.network, num_classes=10, width=row.width)
        rate = row.images_per_second * 3 * count_macs(network, torch.zeros(1, 3, 32, 32))
        best = max(best, rate)
        lines.append({"network": f"{row.network} x{row.width:g}", "data": "32x32 images", "batch": str(row.batch_size),
                      "images/s": f"{row.images_per_second:,.0f}", "10^9 MACs/s": f"{rate / 1e9:,.0f}",
                      "hours for one epoch": f"{45_000 / row.images_per_second / 3600:.2g} (45,000 images)"})  # fmt: skip
    large = 3 * count_macs(torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224))
    lines.append({"network": "resnet50", "data": "ImageNet, 224x224", "batch": "", "images/s": f"{best / large:,.1f}",
                  "10^9 MACs/s": f"{best / 1e9:,.0f}",
                  "hours for one epoch": f"{1_281_167 * large / best / 3600:,.0f} (ESTIMATE at the best rate above)"})  # fmt: skip
    return pd.DataFrame(lines)


if __name__ == "__main__":
    print(json.dumps(measure(Job.model_validate_json(sys.argv[1]))))
