"""How much faster small networks are at about half of their MACs, with channel counts as they come and with those that fit vectors.

Most of a small layer's time is overhead, and a count of channels that fills no vector is padded to one that does. Time does not
depend on the values of weights. So these are random, and channels are chosen by their kernels' norms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.benchmarks.deployed import plan_by_norms
from fcs_utils.benchmarks.isolated import in_turns
from fcs_utils.benchmarks.latency import title_of
from fcs_utils.config import Config, Count, Ratio, Width
from fcs_utils.machine import describe_measurement, pick_precision, some_threads
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.surgery import prune
from fcs_utils.training.optimiser import Optimiser, Training
from fcs_utils.training.passes import autocast

CPU = torch.device("cpu")


class Widths(Config):
    """What is measured. networks: names and widths. multiples: of channels, 1 for none. steps: batches in one measured time.

    macs: at half of them, a ResNet's counts would be multiples of 8 by themselves.
    """

    networks: tuple[tuple[str, Width], ...] = (("vgg16", 0.25), ("resnet56", 1.0))
    macs: Ratio = 0.55
    multiples: tuple[Count, ...] = (1, 8)
    batch_size: Count = 128
    steps: Count = 4
    rounds: Count = 5
    threads: Count = 1


def measure_widths(wanted: Widths) -> dict[str, Any]:
    """This machine's measurements: ``rows`` by network, the ``machine``, its ``precision``, the ``date`` and what was ``asked``.

    rows: MACs by name, 'dense' and 'multiple-M', and seconds of every round by 'training NAME' and 'inference NAME', all in turns.
    """
    images = torch.randn(wanted.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    precision, rows = pick_precision(CPU), []
    for name, width in wanted.networks:
        dense = build_seeded(0, name, num_classes=10, width=width).eval()
        plans = {f"multiple-{one}": plan_by_norms(dense, images[:2], macs=wanted.macs, multiple=one) for one in wanted.multiples}
        networks = {"dense": dense, **{one: prune(dense, plan) for one, plan in plans.items()}}
        calls: dict[str, Callable[[], object]] = {}
        for one, network in networks.items():
            for what, step in _study_steps(network, images, precision).items():
                calls[f"{what} {one}"] = partial(_again, step, wanted.steps)
        with some_threads(wanted.threads):
            seconds = in_turns(calls, wanted.rounds, warm_up=1)
        macs = {one: count_macs(network, images[:1]) for one, network in networks.items()}
        rows.append({"network": f"{name} x{width:g}", "macs": macs, "seconds": seconds})
    measured = describe_measurement(CPU, threads=wanted.threads)
    return {**measured, "precision": precision, "asked": wanted.model_dump(mode="json"), "rows": rows}


def _again(step: Callable[[], object], count: int) -> None:
    for _ in range(count):
        step()


def _study_steps(shared: nn.Module, images: Tensor, precision: str) -> dict[str, Callable[[], object]]:
    """A step of training and one of inference as a study does them, on a copy of the network: images (B, C, H, W)."""
    network = copy.deepcopy(shared)
    optimiser = Optimiser(network, Training(epochs=1, learning_rate=0.01), 0.01, steps=10**6)
    batch, labels = images.contiguous(memory_format=torch.channels_last), torch.arange(len(images)) % 10

    def training() -> None:
        with autocast(CPU, precision):
            logits = network.train()(batch)
        optimiser.update(F.cross_entropy(logits.float(), labels))

    def inference() -> None:
        with torch.no_grad(), autocast(CPU, precision):
            network.eval()(batch)

    return {"training": training, "inference": inference}


def widths_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """Speed of every compact network as a multiple of the dense one's: median, lowest and highest of the rounds' ratios.

    found: what ``measure_widths`` returns.
    """
    rows = []
    for one in found["rows"]:
        for name in [name for name in one["macs"] if name != "dense"]:
            line = {
                "network": title_of(one["network"]),
                "channels in multiples of": name.removeprefix("multiple-"),
                "MACs left (%)": f"{100 * one['macs'][name] / one['macs']['dense']:.1f}",
            }
            for what in ("training", "inference"):
                gains = np.divide(one["seconds"][f"{what} dense"], one["seconds"][f"{what} {name}"])
                line[what] = f"{np.median(gains):.2f}x ({gains.min():.2f} to {gains.max():.2f})"
            rows.append(line)
    return pd.DataFrame(rows)
