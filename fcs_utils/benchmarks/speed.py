"""How fast training and evaluation are, in images a second, against a loop written the usual way.

The usual loop: PIL images, torchvision's transforms, a DataLoader with two workers, fp32, NCHW memory. Every loop does the same
steps on the same network with the same batch. Each measurement has a process of its own, and the loops take turns, so that a busy
minute slows all of them.
"""

from __future__ import annotations

import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from fcs_utils.benchmarks.isolated import in_turns, measure_isolated
from fcs_utils.config import Config, Count, Width
from fcs_utils.data.dataset import Dataset, Split
from fcs_utils.errors import StudyError
from fcs_utils.machine import describe_measurement, pick_device, pick_precision
from fcs_utils.models import build_seeded
from fcs_utils.training.evaluate import accuracy
from fcs_utils.training.loop import fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import FELL_BACK, Execution, Mode, autocast

EPOCHS = 3  # the first one warms up and is not counted


class Speed(Config):
    """What notebook 08 measures the speed of training and evaluation on: networks with widths, images, batches.

    images: on a CPU; a GPU takes eight times as many. compiled: torch.compile too; it takes a minute a network.
    """

    networks: tuple[tuple[str, Width], ...] = (("vgg16", 0.25), ("resnet20", 1.0))
    images: Count = 2048
    batches: tuple[Count, ...] = (32, 64, 256)
    rounds: Count = 3
    compiled: bool = True


class SpeedJob(Config):
    """One measurement: so many images, again and again, through one network in one loop.

    way: the loop's name: 'usual', 'convolutions alone', or the study's own, from ``study_loop``.
    """

    network: str
    width: Width
    batch_size: Count
    images: Count
    what: Literal["training", "evaluation"]
    way: str
    device: str = "cpu"


def study_loop(passes: Mode = "plain", two_at_once: bool = False) -> str:
    """The name of the study's own loop in an execution mode, in one process or in two at once with one thread each."""
    return "study" + ("" if passes == "plain" else f", {passes}") + (", two at once" if two_at_once else "")


def _study(job: SpeedJob, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    """Like the other loops: seconds of every epoch that counts. pixels: (N, 32, 32, 3) bytes; labels: (N,)."""
    device = pick_device(job.device)  # also sets what a study sets for this device
    train, few, channels = Split(pixels, labels), Split(pixels[:1], labels[:1]), torch.full((3,), 127.0)
    data = Dataset("random", "random", tuple("0123456789"), train, few, few, channels, channels / 2, True, "").to(device)
    precision = pick_precision(device)
    if job.what == "evaluation":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        epoch = partial(accuracy, network, data, data.train, precision, job.batch_size)
        return in_turns({"epoch": epoch}, EPOCHS - 1, warm_up=1)["epoch"]
    passes: Mode = next((mode for mode in get_args(Mode) if mode in job.way.split(", ")), "plain")
    training = Training(epochs=EPOCHS, learning_rate=0.01, batch_size=job.batch_size)
    with warnings.catch_warnings():  # a fallback to plain passes must not be counted as another loop
        warnings.filterwarnings("error", message=FELL_BACK)
        history = fit([network], training, data.batches(job.batch_size), execution=Execution(precision, passes))
    return np.diff([epoch.seconds for epoch in history]).tolist()


def _convolutions(job: SpeedJob, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    """The study's convolutions, forward and backward, and nothing else: no loop that calls them one by one can be faster."""
    device = pick_device(job.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    met: list[tuple[Any, Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, taken: met.append((layer, taken[0].detach())))
    with autocast(device, pick_precision(device)):
        network(pixels[: job.batch_size].to(device).permute(0, 3, 1, 2).float())
    # The images need no gradient. `forward` goes past the hooks.
    inputs = [(layer, maps.requires_grad_(number > 0)) for number, (layer, maps) in enumerate(met)]

    def epoch() -> None:
        for _ in range(job.images // job.batch_size):
            for layer, maps in inputs:
                with autocast(device, pick_precision(device)):
                    out = layer.forward(maps)
                torch.autograd.grad(out, [layer.weight, *([maps] if maps.requires_grad else [])], out.detach())

    return in_turns({"epoch": epoch}, EPOCHS - 1, warm_up=1)["epoch"]


def _transformed(transform: Callable[[Any], Tensor], pairs: Sequence[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([transform(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])


def _usual(job: SpeedJob, network: nn.Module, pixels: Tensor, labels: Tensor) -> list[float]:
    from PIL import Image
    from torchvision import transforms as t

    train = job.what == "training"
    shift = [t.RandomCrop(32, padding=4, padding_mode="reflect"), t.RandomHorizontalFlip()] if train else []
    transform = t.Compose([*shift, t.ToTensor(), t.Normalize((0.5,) * 3, (0.25,) * 3)])
    pictures: Any = list(zip(map(Image.fromarray, pixels.numpy()), labels.tolist(), strict=True))
    loader = DataLoader(
        pictures,
        job.batch_size,
        shuffle=train,
        num_workers=2,
        collate_fn=partial(_transformed, transform),
        persistent_workers=True,
        drop_last=train,
    )
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def epoch() -> None:
        right = 0
        for images, truth in loader:
            images, truth = images.to(job.device), truth.to(job.device)
            logits = network(images)
            if train:
                optimiser.zero_grad()
                F.cross_entropy(logits, truth).backward()
                optimiser.step()
            right += (logits.argmax(1) == truth).sum().item()

    network.train(train)
    with torch.set_grad_enabled(train):
        return in_turns({"epoch": epoch}, EPOCHS - 1, warm_up=1)["epoch"]


def images_per_second(job: SpeedJob) -> float:
    """Images a second in this process, the median of the epochs after the first."""
    pixels = torch.randint(0, 256, (job.images, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    network = build_seeded(0, job.network, num_classes=10, width=job.width).to(job.device)
    loop = {"usual": _usual, "convolutions alone": _convolutions}.get(job.way, _study)
    return job.images / statistics.median(loop(job, network, pixels, torch.arange(job.images) % 10))


def measure_speed(job: SpeedJob) -> float:
    """Images a second in processes of their own: ``measure_isolated``, which raises StudyError when one fails.

    Two at once have one thread each, as in a study, and count together; on a CPU, convolutions alone too.
    """
    count = 2 if "two at once" in job.way or (job.way == "convolutions alone" and job.device == "cpu") else 1
    environment: dict[str, str | None] = {"OMP_NUM_THREADS": "1"} if count > 1 else {}
    if job.way == "usual":  # a usual loop knows nothing of the allocator's settings that a study starts with
        environment["GLIBC_TUNABLES"] = None
    return sum(measure_isolated(images_per_second, [job] * count, environment))


def speed_jobs(speed: Speed, device: str) -> list[SpeedJob]:
    """Every measurement: all loops on every network, then the study's at other batches on the first network."""
    on_gpu = device == "cuda"
    more = [study_loop(two_at_once=True)]
    more += [study_loop("graphs")] if on_gpu else []
    more += (
        [study_loop("compiled", two_at_once=not on_gpu)] if speed.compiled else []
    )  # on a CPU a study does its runs side by side
    loops = {"training": ["usual", "study", *more, "convolutions alone"], "evaluation": ["usual", "study"]}
    images = speed.images * (8 if on_gpu else 1)  # a GPU takes more of them in less time
    jobs = [
        SpeedJob(network=network, width=width, batch_size=128, images=images, what=what, way=way, device=device)
        for network, width in speed.networks
        for what in ("training", "evaluation")
        for way in loops[what]
    ]
    grown = [jobs[0].model_copy(update={"way": "study", "batch_size": batch}) for batch in speed.batches]
    return list(dict.fromkeys([*jobs, *grown]))


def listed(jobs: Sequence[SpeedJob]) -> list[dict[str, Any]]:
    """Jobs as they are kept with their measurements."""
    return [job.model_dump(mode="json") for job in jobs]


def measure_speeds(speed: Speed, device: str) -> dict[str, Any]:
    """This machine's speeds: ``jobs`` and ``rows``, the ``machine``, its ``precision`` and the ``date``.

    A loop that this machine lacks, such as a compiled one, is left out with a message. Raises StudyError when another one fails.
    """
    jobs = speed_jobs(speed, device)
    taken: dict[SpeedJob, list[float]] = {job: [] for job in jobs}
    for job in tqdm(jobs * speed.rounds, "measuring", unit="measurement", leave=False):
        try:
            taken[job].append(measure_speed(job))
        except StudyError as error:
            if job.way in ("usual", "study", "convolutions alone"):  # which tables are made of
                raise
            print(error, file=sys.stderr)
    rows = [{**listed([job])[0], "images_per_second": statistics.median(rates)} for job, rates in taken.items() if rates]
    here = torch.device(device)
    return {**describe_measurement(here), "precision": pick_precision(here), "jobs": listed(jobs), "rows": rows}
