"""How much faster compact networks really are: milliseconds in PyTorch and, where it is installed, in onnxruntime.

Fewer multiply-adds are not fewer milliseconds, so the speed-up is measured: on one thread, dense and compact in turns.
onnxruntime needs the extra packages of ``pip install -e .[deploy]``.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.isolated import in_turns
from fcs_utils.machine import some_threads
from fcs_utils.models import network_title
from fcs_utils.pruning.export import export_onnx, has_onnx, session

BATCHES = (1, 64)
RUNTIME_TITLES = {"pytorch": "PyTorch", "onnxruntime": "onnxruntime"}
RUNTIMES = tuple(RUNTIME_TITLES)
ROUNDS = 25


def latencies(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    threads: int = 1,
    runtimes: Sequence[str] = RUNTIMES,
) -> dict[str, list[float]]:
    """Milliseconds of every round by 'runtime network batch', such as 'pytorch dense 64'; all take turns, on the CPU.

    networks: by name; they stay as they are. example: a batch (N, C, H, W) of the images' shape. threads: of each runtime.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = {batch: torch.randn(batch, *example.shape[1:], generator=generator) for batch in batches}
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder, some_threads(threads), torch.no_grad():
        for name, shared in networks.items():
            network = copy.deepcopy(shared).eval().cpu()
            for batch, images in inputs.items() if "pytorch" in runtimes else ():
                calls[f"pytorch {name} {batch}"] = partial(network, images.contiguous(memory_format=torch.channels_last))
            if has_onnx() and "onnxruntime" in runtimes:
                pair = torch.randn(2, *example.shape[1:], generator=torch.Generator().manual_seed(1))
                runner = session(export_onnx(network, Path(folder) / name, pair), threads)
                for batch, images in inputs.items():
                    calls[f"onnxruntime {name} {batch}"] = partial(runner.run, None, {"images": images.numpy()})
        seconds = in_turns(calls, rounds, warm_up=2)
    return {name: [1000 * one for one in taken] for name, taken in seconds.items()}


def stopwatch(
    dense: nn.Module, example: Tensor, runtime: str, *, batch: int = 1, rounds: int = ROUNDS, threads: int = 1
) -> Callable[[nn.Module], float]:
    """A network's milliseconds for a batch, to be handed to ``make_plan`` as ``measure``.

    Each measurement takes turns with the dense network, so that a busy machine slows both: it is the dense network's median of the
    first measurement times the median ratio of the two. runtime: ``pytorch`` or ``onnxruntime``. example: as in ``latencies``.
    """
    first: list[float] = []

    def measure(network: nn.Module) -> float:
        both = {"dense": dense, "compact": network}
        taken = latencies(both, example, batches=(batch,), rounds=rounds, threads=threads, runtimes=(runtime,))
        full, short = taken[f"{runtime} dense {batch}"], taken[f"{runtime} compact {batch}"]
        first.append(float(np.median(full)))
        return first[0] * float(np.median(np.divide(short, full)))

    return measure


def title_of(architecture: str) -> str:
    """'VGG-16 x0.25' of 'vgg16 x0.25', as measurements name it."""
    name, _, width = architecture.partition(" x")
    return network_title(name, float(width or 1))


def speed_up(dense: Sequence[float], compact: Sequence[float]) -> str:
    """'1.42x (1.35 to 1.50)': dense over compact times of the same rounds, median and middle half."""
    low, middle, high = np.quantile(np.divide(dense, compact), (0.25, 0.5, 0.75))
    return f"{middle:.2f}x ({low:.2f} to {high:.2f})"


def deployment_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """MACs and speed-up of every compact network: dense over compact milliseconds of the same round, median and middle half.

    found: ``rows``, each with a ``network``, its ``macs`` by ratio ('dense' first), and its ``milliseconds`` from ``latencies``.
    """
    rows = []
    for measured in found["rows"]:
        taken, macs = measured["milliseconds"], measured["macs"]
        for ratio in list(macs)[1:]:
            line = {
                "network": title_of(measured["network"]),
                "ratio": ratio,
                "MACs left (%)": f"{100 * macs[ratio] / macs['dense']:.1f}",
                "MACs reduction": f"{macs['dense'] / macs[ratio]:.2f}x",
            }
            for runtime, title in RUNTIME_TITLES.items():
                for batch in BATCHES:
                    if f"{runtime} dense {batch}" in taken:
                        both = taken[f"{runtime} dense {batch}"], taken[f"{runtime} {ratio} {batch}"]
                        line[f"speed-up, {title}, batch {batch}"] = speed_up(*both)
            rows.append(line)
    return pd.DataFrame(rows)
