"""Figures of the ablations. Each function takes frames of ``ablations``, draws one figure and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.report.figures import BIN_COLOURS, as_figure, error_bars, gains


@as_figure("variation_gains", "variations")
def variation_gains(variations: pd.DataFrame) -> Figure:
    """Each variation of FCS minus the literal reading, before fine-tuning: mean and 95 % interval over seeds."""
    networks = variations.network.unique()
    size = (5.2 * len(networks), 0.3 * variations.variant.nunique() + 1.1)
    figure, axes = plt.subplots(1, len(networks), figsize=size, squeeze=False)
    for axis, network in zip(axes.flat, networks, strict=True):
        part = variations[variations.network == network]
        means = part.groupby(["variant", "seed"], sort=False).test.mean().unstack("seed")
        above = (means - means.loc["literal reading"]).drop(index="literal reading")
        gains(axis, above, network, "points above the literal reading", {})
    return figure


def stability(stability: pd.DataFrame, chance: float) -> Figure:
    """Jaccard of the kept channels between draws of calibration images, against their number; a dot a seed."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for colour, (network, part) in zip(BIN_COLOURS, stability.groupby("network", sort=False), strict=False):
        axis.plot(part.images, part.jaccard, "o", color=colour, alpha=0.5, ms=4)
        means = part.groupby("images").jaccard.mean()
        axis.plot(means.index, means, color=colour, label=network)
    axis.axhline(chance, color="#6b6b6b", ls="--", lw=1, label=f"two random choices: {chance:.2f}")
    axis.set(xscale="log", xlabel="calibration images", ylabel="same channels (Jaccard)", ylim=(0, 1.03))
    axis.set_xticks(sorted(stability.images.unique()), [f"{n}" for n in sorted(stability.images.unique())])
    axis.minorticks_off()
    axis.legend()
    return figure


@as_figure("merge_panels", "merges")
def merge_panels(merge: pd.DataFrame) -> Figure:
    """Test top-1 before training against MACs left: plain or merged surgery, with and without recalibration."""
    networks, criteria = merge.network.unique(), merge.criterion.unique()
    figure, axes = plt.subplots(
        len(networks), len(criteria), figsize=(3.9 * len(criteria), 3.0 * len(networks)), squeeze=False, sharey="row"
    )
    styles = {
        ("none", False): ("#8c8c8c", "x", "plain"),
        ("none", True): ("#E69F00", "s", "plain, recalibrated"),
        ("merge", False): ("#56B4E9", "D", "merged"),
        ("merge", True): ("#0072B2", "o", "merged, recalibrated"),
    }
    for row, network in zip(axes, networks, strict=True):
        for axis, criterion in zip(row, criteria, strict=True):
            part = merge[(merge.network == network) & (merge.criterion == criterion)]
            for (how, recalibrated), (colour, marker, label) in styles.items():
                own = part[(part.compensate == how) & (part.recalibrated == recalibrated)]
                groups = [g for _, g in own.groupby("ratio")]
                x = [100 * (g.macs / g.dense_macs).mean() for g in groups]
                error_bars(axis, x, [g.test for g in groups], style=(colour, marker), label=label)
            axis.set(title=f"{network}, {criterion}", xlabel="MACs left (%)")
            axis.set_ylim(top=min(axis.get_ylim()[1], 101), bottom=max(axis.get_ylim()[0], -1))
            axis.invert_xaxis()
        row[0].set_ylabel("test top-1 (%), before fine-tuning")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def headstart_curves(headstart: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch of the same fine-tuning from plain and merged weights: mean and 95 % interval."""
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    curves = pd.DataFrame(
        [
            {
                "start": {"none": "plain", "merge": "merged"}[row.compensate],
                "epoch": epoch["epoch"],
                "validation": epoch["validation"],
            }
            for row in headstart.itertuples()
            for epoch in row.history
        ]
    )
    for start, colour, marker in (("plain", "#E69F00", "s"), ("merged", "#0072B2", "o")):
        groups = [g.validation.tolist() for _, g in curves[curves.start == start].groupby("epoch")]
        shift = -0.03 if start == "plain" else 0.03
        x = np.arange(1, len(groups) + 1) + shift
        error_bars(axis, x, groups, style=(colour, marker), label=f"from {start} weights")
    axis.set(xlabel="epoch of fine-tuning", ylabel="validation top-1 (%)", xticks=sorted(curves.epoch.unique()))
    axis.legend()
    return figure
