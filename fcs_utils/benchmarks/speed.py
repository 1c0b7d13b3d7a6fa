"""How fast training and evaluation are, against a loop written the usual way, in turns within one run.

The usual way: PIL images, torchvision's transforms, a DataLoader with workers, fp32, NCHW memory. Both do the same
steps on the same network with the same batch; only the way differs. ``python -m fcs_utils.benchmarks.speed JSON`` is one
measurement; each has a process of its own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fcs_utils.config import Config, Count, Positive
from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.errors import StudyError
from fcs_utils.machine import describe_machine, describe_moment, pick_device, pick_precision
from fcs_utils.models import build_seeded
from fcs_utils.training import passes
from fcs_utils.training.evaluate import accuracy
from fcs_utils.training.loop import fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import FELL_BACK, Execution, autocast


class Speed(Config):
    """What notebook 08 measures the speed of training and evaluation on: networks with widths, images, batches.

    images: on a CPU; a GPU takes eight times as many. compiled: torch.compile too; it takes a minute a network.
    """

    networks: tuple[tuple[str, float], ...] = (("vgg16", 0.25), ("resnet20", 1.0))
    images: int = 2048
    batches: tuple[int, ...] = (32, 64, 256)
    rounds: int = 3
    compiled: bool = True


Way = Literal[
    "usual", "study", "study, compiled", "study, graphs", "study, two at once", "study, compiled, two at once",
    "convolutions alone",
]  # fmt: skip
PASSES: dict[Way, passes.Mode] = {  # plain otherwise
    "study, compiled": "compiled", "study, compiled, two at once": "compiled", "study, graphs": "graphs",
}  # fmt: skip
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
    device = pick_device(job.device)  # which settles what a study settles
    train, few = Split(pixels, labels), Split(pixels[:1], labels[:1])
    channels = torch.full((3,), 127.0)
    data = Dataset("random", "random", tuple("0123456789"), train, few, few, channels, channels / 2, True, "").to(device)
    precision, training = pick_precision(device), Training(epochs=EPOCHS, learning_rate=0.01, batch_size=job.batch_size)
    if job.what == "training":
        with warnings.catch_warnings():  # what fell back to plain passes must not count as another way
            warnings.filterwarnings("error", message=FELL_BACK)
            execution = Execution(precision, PASSES.get(job.way, "plain"))
            history = fit([network], training, data.batches(job.batch_size), execution=execution)
        ends = [epoch.seconds for epoch in history]
        return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _timed(lambda: accuracy(network, data, data.train, precision, job.batch_size), device)


def _convolutions(job: Job, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    """The study's convolutions, forward and backward, and nothing else: what no loop that calls them one by one can go below."""
    device = pick_device(job.device)
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


def measure_isolated(job: Job) -> float:
    """Images a second in a process of its own, so that no way inherits another one's allocator or threads.

    Two at once have one thread each, as in a study, and count together; on a CPU, convolutions alone too. Raises
    StudyError when one fails.
    """
    count = 2 if "two at once" in job.way or (job.way == "convolutions alone" and job.device == "cpu") else 1
    command = [sys.executable, "-m", "fcs_utils.benchmarks.speed", job.model_dump_json()]
    folder = Path(__file__).parents[2]
    # A usual loop knows nothing of the allocator's settings that a study starts with.
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES" or job.way != "usual"}
    environment = {**inherited, **({"OMP_NUM_THREADS": "1"} if count > 1 else {})}
    at_once = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment)  # noqa: S603
        for _ in range(count)
    ]
    try:
        answers = [process.communicate() for process in at_once]
    finally:  # whoever interrupts does not want them to go on
        for process in at_once:
            process.kill()
    if failed := [errors for process, (_, errors) in zip(at_once, answers, strict=True) if process.returncode]:
        last = (failed[0].strip().splitlines() or ["no message"])[-1]
        raise StudyError(f"measuring {job.what} of {job.network}, way {job.way!r}, failed: {last}")
    return sum(json.loads(text) for text, _ in answers)


def speed_jobs(speed: Speed, device: str) -> list[Job]:
    """Every measurement: all ways on every network, then growth with the batch on the first."""
    on_gpu = device == "cuda"
    compiled: Way = "study, compiled" if on_gpu else "study, compiled, two at once"  # a study on a CPU does its runs side by side
    training_only: list[Way] = ["study, two at once"]
    training_only += ["study, graphs"] if on_gpu else []
    training_only += [compiled] if speed.compiled else []
    training_only += ["convolutions alone"]
    images = speed.images * (8 if on_gpu else 1)  # which takes them in less time
    jobs = [
        Job(network=network, width=width, batch_size=128, images=images, what=what, way=way, device=device)
        for network, width in speed.networks for what in ("training", "evaluation")
        for way in ("usual", "study", *(training_only if what == "training" else ()))
    ]  # fmt: skip
    first = jobs[0].model_copy(update={"way": "study"})
    return list(dict.fromkeys([*jobs, *(first.model_copy(update={"batch_size": batch}) for batch in speed.batches)]))


def measure_speeds(speed: Speed, device: str) -> dict[str, Any]:
    """This machine's measurement of all jobs, in turns, so that a busy minute meets every way.

    A way that this machine has not, such as compiling, is left out and said. Raises StudyError when another fails.
    """
    jobs = speed_jobs(speed, device)
    taken: dict[Job, list[float]] = {job: [] for job in jobs}
    for job in tqdm(jobs * speed.rounds, "measuring", unit="measurement", leave=False):
        try:
            taken[job].append(measure_isolated(job))
        except StudyError as error:
            if job.way in ("usual", "study", "convolutions alone"):  # which tables are made of
                raise
            print(error, file=sys.stderr)
    rows = [{**listed([job])[0], "images_per_second": statistics.median(rates)} for job, rates in taken.items() if rates]
    return {"machine": describe_machine(torch.device(device)), "precision": pick_precision(torch.device(device)),
            "date": describe_moment()["date"], "jobs": listed(jobs), "rows": rows}  # fmt: skip


def listed(jobs: list[Job]) -> list[dict[str, Any]]:
    return [job.model_dump(mode="json") for job in jobs]


if __name__ == "__main__":
    print(json.dumps(measure(Job.model_validate_json(sys.argv[1]))))
