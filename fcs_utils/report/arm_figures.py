"""Figures of the arms: TFT, MLFT and their controls. Each function draws one figure and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from fcs_utils.report.comparisons import counted
from fcs_utils.report.figures import as_figure, error_bars
from fcs_utils.training.arms import arm_label, arm_style, is_searched


def _curve(axis: Axes, x: np.ndarray, curves: np.ndarray, method: str) -> None:
    """Mean over seeds with a band from the lowest to the highest; curves (seeds, len(x))."""
    colour, marker = arm_style(method)
    axis.plot(x, curves.mean(0), color=colour, marker=marker, ms=4, lw=1.3, label=arm_label(method))
    axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)


def fine_tuning_curves(arms: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch, one panel a schedule: mean over seeds, band over their range.

    What the arms start from is left out: so far below that it would press them into one line.
    """
    schedules = sorted(arms.epochs.unique())
    figure, axes = plt.subplots(1, len(schedules), figsize=(4.2 * len(schedules), 3.5), squeeze=False, sharey=True)
    for axis, epochs in zip(axes.flat, schedules, strict=True):
        for method, group in arms[arms.epochs == epochs].groupby("method", sort=False):
            curves = [[epoch["validation"] for epoch in history] for history in group.history]
            _curve(axis, np.arange(1, epochs + 1), np.array(curves), str(method))
        step = max(1, epochs // 4)
        axis.set(
            xlabel="epoch", title=f"schedule of {counted(epochs, 'epoch')}", xticks=[1, *range(max(2, step), epochs + 1, step)]
        )
    axes[0, 0].set_ylabel("validation top-1 (%)")
    axes[0, -1].legend()
    return figure


@as_figure("accuracy_against_budget", "arms")
def accuracy_against_budget(runs: pd.DataFrame) -> Figure:
    """Final test top-1 of each completed schedule against epochs and against training MACs of all networks."""
    searched = runs.method.map(is_searched)
    arms, scratch = runs[searched], runs[~searched]  # the others train by the reference's schedule
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.8), sharey=True)
    columns = (("epochs", "epochs of the schedule", 1.0), ("training_macs", "training MACs (T), all networks", 1e12))
    for axis, (column, label, scale) in zip(axes, columns, strict=True):
        for method, group in arms.groupby("method", sort=False):
            parts, name = [g for _, g in group.groupby("epochs")], str(method)
            x = [g[column].mean() / scale for g in parts]
            error_bars(axis, x, [g.test for g in parts], style=arm_style(name), label=arm_label(name))
        for (method, group), shape in zip(scratch.groupby("method", sort=False), "P*", strict=False):
            x = [group[column].mean() / scale]
            error_bars(axis, x, [group.test], style=("#6b6b6b", shape), ms=7, label=arm_label(str(method)))
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))
    axes[0].set_xticks(ticks := sorted({*arms.epochs, *scratch.epochs}), [f"{tick}" for tick in ticks])
    axes[0].set_ylabel("test top-1 (%), final epoch")
    axes[1].legend(fontsize=8)
    return figure


@as_figure("together", "schedules")
def together(arms: pd.DataFrame) -> Figure:
    """How far the peer's predictions are from the compact network's, and the peer's own accuracy, by epoch."""
    longest = arms[(arms.epochs == arms.epochs.max()) & arms.peer.map(bool)]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
    panels = (("peer_kl", "KL(peer || compact), nats"), ("peer_validation", "peer's validation top-1 (%)"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        for method, group in longest.groupby("method", sort=False):
            curves = [
                [start[key], *(epoch[key] for epoch in history)] for start, history in zip(group.start, group.history, strict=True)
            ]
            _curve(axis, np.arange(len(curves[0])), np.array(curves), str(method))
        axis.set(xlabel="epoch", ylabel=label, xticks=range(len(curves[0])))
    axes[0].set_yscale("log")
    axes[0].legend()
    return figure
