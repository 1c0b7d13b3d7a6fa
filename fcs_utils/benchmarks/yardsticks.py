"""What people wait for, each against the same work done another way: forward passes, peers, steps one by one.

The two take turns within one process, so that a busy minute slows both, and the ratio of a round is of one moment.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.deployed import plan_by_norms
from fcs_utils.benchmarks.isolated import in_turns
from fcs_utils.benchmarks.operators import operator_shares
from fcs_utils.benchmarks.scoring import PROCEDURES, forward
from fcs_utils.benchmarks.widths import CPU
from fcs_utils.config import Config, Count, Width
from fcs_utils.data.archives import entries
from fcs_utils.data.imagefolder import decode_image
from fcs_utils.data.side_by_side import in_order
from fcs_utils.machine import describe_measurement, pick_precision
from fcs_utils.models import build_seeded, network_title
from fcs_utils.pruning.baselines import taylor
from fcs_utils.pruning.graph import traceable
from fcs_utils.pruning.layers import Scope, prunable_layers
from fcs_utils.pruning.pruners import Library
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from fcs_utils.training.loop import fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution, autocast


class Yardsticks(Config):
    """What is measured.

    scored: networks with their scope, pixels and images; a scope ``all`` scores residual sums, too. few: images for criteria that
    decompose maps, and for Torch-Pruning's. trained: the network of the training steps, and its width. steps: batches in one
    measured training. files: pictures in the archive.
    """

    scored: tuple[tuple[str, Scope, Count, Count], ...] = (
        ("vgg16", "inner", 32, 512),
        ("resnet56", "inner", 32, 512),
        ("resnet56", "all", 32, 512),
        ("torchvision/resnet50", "all", 224, 64),
    )
    decomposed: tuple[str, ...] = ("vgg16", "resnet56")
    few: Count = 64
    trained: tuple[str, Width] = ("vgg16", 0.25)
    batch_size: Count = 128
    steps: Count = 8
    files: Count = 6000
    rounds: Count = 5


class Pair(NamedTuple):
    """One measurement: what takes how many times as long as what, and both as calls."""

    what: str
    against: str
    call: Callable[[], object]
    other: Callable[[], object]


def measure_yardsticks(wanted: Yardsticks) -> dict[str, Any]:
    """This machine's measurements on the CPU: ``rows`` with the seconds of both sides of every pair, round by round.

    Of the first side, also the operators that take most of its time.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in _pairs(wanted, Path(folder)):
            taken = in_turns({"call": pair.call, "other": pair.other}, wanted.rounds, warm_up=1)
            row = {"what": pair.what, "against": pair.against, "seconds": taken["call"], "other_seconds": taken["other"]}
            rows.append({**row, "operators": operator_shares(pair.call)})
    asked = {"asked": wanted.model_dump(mode="json"), "precision": pick_precision(CPU)}
    return {**describe_measurement(CPU), **asked, "rows": rows}


def _pairs(wanted: Yardsticks, folder: Path) -> Iterator[Pair]:
    yield from _scoring_passes(wanted)
    yield from _decomposing(wanted)
    yield from _training(wanted)
    yield _decoding(wanted, folder / "pictures.tar.xz")
    python = partial(subprocess.run, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.DEVNULL)
    yield Pair(
        "fcs-mlft --help",
        "importing torch",
        partial(python, [sys.executable, "-m", "fcs_utils", "--help"]),
        partial(python, [sys.executable, "-c", "import torch"]),
    )


def _at_random(name: str, pixels: int, count: int, width: float = 1.0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of random weights in eval mode, random images (N, 3, H, W) and labels (N,)."""
    network = build_seeded(0, name, num_classes=10, width=width).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    return network, images, torch.arange(count) % 10


def _alone(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        forward(network, images)


def _scoring_passes(wanted: Yardsticks) -> Iterator[Pair]:
    for name, scope, pixels, count in wanted.scored:
        network, images, _ = _at_random(name, pixels, count)
        where = {"inner": "layers outside of residual sums", "all": "all layers"}[scope]
        what = f"one scoring pass of {network_title(name)}, {where}, {count} images of {pixels} pixels"
        yield Pair(
            what,
            "a forward pass",
            partial(collect_statistics, network, images, scope=scope),
            partial(_alone, network, images),
        )


def _decomposing(wanted: Yardsticks) -> Iterator[Pair]:
    for name in wanted.decomposed:
        network, images, labels = _at_random(name, 32, wanted.few)
        title, plain = network_title(name), partial(_alone, network, images)
        for criterion, method in (("HRank", "ranks"), ("CHIP", "drops")):
            call = torch.no_grad()(partial(PROCEDURES[method].run, network, images))
            yield Pair(f"{criterion} of {title}, {wanted.few} images", "a forward pass", call, plain)
        own = partial(taylor, network, images, labels)
        for criterion, key in (("group Taylor", "tp_group_taylor"), ("group Hessian", "tp_group_hessian")):
            what = f"Torch-Pruning's {criterion} of {title}, {wanted.few} images"
            yield Pair(what, "this study's Taylor", partial(_as_the_library_does, key, network, images, labels), own)


def _as_the_library_does(key: str, shared: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Score the groups of a network by one of Torch-Pruning's importances."""
    network = copy.deepcopy(shared)
    with traceable(network):
        Library(key, network, images, labels, [*prunable_layers(shared, images)]).ratios()


def _training(wanted: Yardsticks) -> Iterator[Pair]:
    name, width = wanted.trained
    dense, images, labels = _at_random(name, 32, wanted.batch_size, width)
    compact = prune(dense, plan_by_norms(dense, images[:1], scope="inner", macs=0.5))
    batches = [(images, labels)] * wanted.steps
    how, training = Execution(pick_precision(CPU)), Training(epochs=1, learning_rate=0.001, batch_size=wanted.batch_size)

    def train(*networks: nn.Module, arm: str = "tft") -> None:
        fit(networks, training, lambda seed, epoch: batches, arm, execution=how)

    def teach() -> None:
        for seen, _ in batches:
            with torch.no_grad(), autocast(CPU, how.precision):
                dense(seen)

    def one_by_one(second: Callable[[], None]) -> None:
        train(compact)
        second()

    title = network_title(name, width)
    mutual = partial(train, compact, dense, arm="mlft"), partial(one_by_one, partial(train, dense))
    yield Pair(f"MLFT of {title} at half of the MACs", "TFT of each of its two networks", *mutual)
    taught = partial(train, compact, dense, arm="kd"), partial(one_by_one, teach)
    yield Pair(f"KD of {title} at half of the MACs", "TFT and the teacher's forward passes", *taught)


def _decoding(wanted: Yardsticks, path: Path) -> Pair:
    from PIL import Image

    draw = np.random.default_rng(0)
    with tarfile.open(path, "w:xz") as archive:
        for number in range(wanted.files):
            buffer = BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
            member = tarfile.TarInfo(f"train/{number % 10}/{number}.png")
            member.size = buffer.tell()
            archive.addfile(member, BytesIO(buffer.getvalue()))
    decode = partial(decode_image, size=32)

    def contents() -> Iterator[bytes]:
        return (entry.content for entry in entries(path, (".png",)) if entry.content is not None)

    return Pair(
        f"decoding {wanted.files:,} pictures of 32 pixels from a .tar.xz file",
        "decoding them one by one",
        lambda: sum(1 for _ in in_order(contents(), decode, len)),
        lambda: sum(1 for _ in map(decode, contents())),
    )


def yardstick_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """How many times as long as its yardstick each thing takes: median, lowest and highest of the rounds' ratios."""
    rows = []
    for one in found["rows"]:
        ratios = np.divide(one["seconds"], one["other_seconds"])
        times = {"times as long": f"{np.median(ratios):.2f}", "lowest to highest": f"{ratios.min():.2f} to {ratios.max():.2f}"}
        rows.append({"what": one["what"], "compared with": one["against"], **times})
    return pd.DataFrame(rows)
