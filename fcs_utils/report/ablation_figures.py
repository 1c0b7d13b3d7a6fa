"""Figures of the ablations. Each function takes frames of ``ablations``, draws one figure and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.report.figures import BIN_COLOURS, as_figure, by_epoch, error_bars
from fcs_utils.report.tables import macs_left


def stability(overlaps: pd.DataFrame, chance: float) -> Figure:
    """Jaccard of the kept channels between draws of calibration images, against their number; a dot a seed."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for colour, (network, part) in zip(BIN_COLOURS, overlaps.groupby("network", sort=False), strict=False):
        axis.plot(part.images, part.jaccard, "o", color=colour, alpha=0.5, ms=4)
        means = part.groupby("images").jaccard.mean()
        axis.plot(means.index, means, color=colour, label=network)
    axis.axhline(chance, color="#6b6b6b", ls="--", lw=1, label=f"two random choices: {chance:.2f}")
    axis.set(xscale="log", xlabel="calibration images", ylabel="same channels (Jaccard)", ylim=(0, 1.03))
    axis.set_xticks(numbers := sorted(overlaps.images.unique()), map(str, numbers))
    axis.minorticks_off()
    axis.legend()
    return figure


@as_figure("merge_panels", "merges")
def merge_panels(merges: pd.DataFrame) -> Figure:
    """Test top-1 before training against MACs left: plain or merged surgery, with and without recalibration."""
    networks, criteria = merges.network.unique(), merges.criterion.unique()
    size = (3.9 * len(criteria), 3.0 * len(networks))
    figure, axes = plt.subplots(len(networks), len(criteria), figsize=size, squeeze=False, sharey="row")
    styles = {
        ("none", False): ("plain", ("#8c8c8c", "x")),
        ("none", True): ("plain, recalibrated", ("#E69F00", "s")),
        ("merge", False): ("merged", ("#56B4E9", "D")),
        ("merge", True): ("merged, recalibrated", ("#0072B2", "o")),
    }
    for row, network in zip(axes, networks, strict=True):
        for axis, criterion in zip(row, criteria, strict=True):
            part = merges[(merges.network == network) & (merges.criterion == criterion)]
            for (how, recalibrated), (label, style) in styles.items():
                own = part[(part.compensate == how) & (part.recalibrated == recalibrated)]
                error_bars(axis, own.test.groupby(macs_left(own)), style, label=label)
            axis.set(title=f"{network}, {criterion}", xlabel="MACs left (%)")
            axis.set_ylim(top=min(axis.get_ylim()[1], 101), bottom=max(axis.get_ylim()[0], -1))
            axis.invert_xaxis()
        row[0].set_ylabel("test top-1 (%), before fine-tuning")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def headstart_curves(headstart: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch of the same fine-tuning from plain and merged weights: mean and 95 % interval."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    styles = {"none": ("plain", "#E69F00", "s", -0.03), "merge": ("merged", "#0072B2", "o", 0.03)}
    for how, (start, colour, marker, shift) in styles.items():
        own = by_epoch(headstart[headstart.compensate == how])
        error_bars(axis, own["validation of the epoch"].groupby(own.epoch + shift), (colour, marker), label=f"from {start} weights")
    axis.set(xlabel="epoch of fine-tuning", ylabel="validation top-1 (%)", xticks=range(1, headstart.epochs.max() + 1))
    axis.legend()
    return figure
