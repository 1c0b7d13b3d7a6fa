"""Accuracy against measured time: what a network's accuracy costs in milliseconds, not only in multiply-adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.benchmarks.latency import BATCHES
from fcs_utils.report.figures import STYLE, as_figure, error_bars, panels


def latency_frame(measured: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row a compact network: ``architecture`` (vgg16 x0.25), ``ratio``, median ``milliseconds`` an image of the largest batch."""
    batch = BATCHES[-1]
    rows = [
        {"architecture": one["network"], "ratio": float(ratio), "milliseconds": float(np.median(times)) / batch}
        for found in measured
        for one in found["rows"]
        for ratio in one["macs"]
        if ratio.replace(".", "", 1).isdigit() and (times := one["milliseconds"].get(f"pytorch {ratio} {batch}"))
    ]
    return pd.DataFrame(rows, columns=["architecture", "ratio", "milliseconds"]).drop_duplicates(["architecture", "ratio"])


def with_latency(tuned: pd.DataFrame, latency: pd.DataFrame) -> pd.DataFrame:
    """Runs whose network was timed, with its ``milliseconds``; widths, and so the time, follow from the ratio alone."""
    return tuned.merge(latency, on=["architecture", "ratio"])


@as_figure("accuracy_against_latency", "timed")
def accuracy_against_latency(timed: pd.DataFrame) -> Figure:
    """Test top-1 after identical fine-tuning against measured milliseconds an image: PyTorch, one thread."""
    figure, parts = panels(timed, "network", 5.4, 3.8)
    for axis, _, part in parts:
        step = 0.01 * float(np.ptp(part.milliseconds))
        for number, (name, own) in enumerate(part[part.criterion.isin(STYLE)].groupby("criterion", sort=False)):
            x = own.milliseconds + step * (number - 2)  # side by side
            error_bars(axis, own.test.groupby(x), STYLE[str(name)], label=name)
        axis.set(xlabel=f"milliseconds an image (batch of {BATCHES[-1]})", ylabel="test top-1 (%)")
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))
    figure.axes[0].legend()
    return figure
