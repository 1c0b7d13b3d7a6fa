"""Accuracy against measured time: what a network's accuracy costs in milliseconds, not only in multiply-adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.benchmarks.latency import BATCHES
from fcs_utils.report.figures import as_figure
from fcs_utils.report.inference import half_width
from fcs_utils.report.plots import STYLE, dots, legend_above, panels
from fcs_utils.report.tables import macs_left
from fcs_utils.study.grid import titled


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
    figure, parts = panels(timed, "network", lambda part: 0.75 * part.ratio.nunique() + 1.5)
    for axis, _, part in parts:
        seeds = part.groupby(["ratio", "criterion"]).seed.transform("nunique")
        part = part[seeds == seeds.groupby(part.ratio).transform("max")]  # means of other seeds are no comparison
        rows = []
        for (_, milliseconds, criterion), own in part[part.criterion.isin(STYLE)].groupby(["ratio", "milliseconds", "criterion"]):
            half, mean = half_width(own.test), own.test.mean()
            row = f"{milliseconds:.3f} ms,\n{macs_left(own).mean():.0f} % of MACs"
            rows.append({"row": row, "series": titled(criterion), "effect": mean, "low": mean - half, "high": mean + half})
        dots(axis, pd.DataFrame(rows), {titled(name): style for name, style in STYLE.items()})
        legend_above(axis, 2)
    figure.axes[-1].set_xlabel("test top-1 (%)")
    figure.supylabel(f"time of an image in a batch of {BATCHES[-1]}", fontsize=10)
    return figure
