"""Figures of the arms: TFT, MLFT and their controls. Each function draws one figure and returns it."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from fcs_utils.report.comparisons import counted
from fcs_utils.report.figures import as_figure, by_epoch, error_bars, panels
from fcs_utils.training.arms import arm_label, arm_style, is_searched


def _curves(axis: Axes, epochs: pd.DataFrame, value: str) -> None:
    """Each arm's mean over seeds by epoch, with a band from the lowest to the highest."""
    for method, own in epochs.groupby("method", sort=False):
        (colour, marker), found = arm_style(str(method)), own.groupby("epoch")[value].agg(["mean", "min", "max"])
        axis.plot(found.index, found["mean"], color=colour, marker=marker, ms=4, lw=1.3, label=arm_label(str(method)))
        axis.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.15, lw=0)


def fine_tuning_curves(arms: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch, one panel a schedule: mean over seeds, band over their range.

    What the arms start from is left out: so far below that it would press them into one line.
    """
    figure, parts = panels(arms.sort_values("epochs", kind="stable"), "epochs", 4.2, 3.5, sharey=True)
    for axis, epochs, part in parts:
        _curves(axis, by_epoch(part), "validation of the epoch")
        ticks = [1, *range(max(2, step := max(1, epochs // 4)), epochs + 1, step)]
        axis.set(xlabel="epoch", title=f"schedule of {counted(epochs, 'epoch')}", xticks=ticks)
    figure.axes[0].set_ylabel("validation top-1 (%)")
    figure.axes[-1].legend()
    return figure


@as_figure("accuracy_against_budget", "arms")
def accuracy_against_budget(arms: pd.DataFrame) -> Figure:
    """Final test top-1 of each completed schedule against epochs and against training MACs of all networks."""
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.8), sharey=True)
    columns = (("epochs", "epochs of the schedule", 1), ("training_macs", "training MACs (T), all networks", 1e12))
    for axis, (column, label, scale) in zip(axes, columns, strict=True):
        shapes = cycle("P*")  # of those that train by the reference's schedule
        for method, group in arms.groupby("method", sort=False):
            known = is_searched(str(method))
            style, look = (arm_style(str(method)), {}) if known else (("#6b6b6b", next(shapes)), {"ms": 7})
            x = group.groupby("epochs")[column].transform("mean") / scale
            error_bars(axis, group.test.groupby(x), style, label=arm_label(str(method)), **look)
        axis.set(xlabel=label, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.minorticks_off()
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))
    axes[0].set_xticks(ticks := sorted(arms.epochs.unique()), map(str, ticks))
    axes[0].set_ylabel("test top-1 (%), final epoch")
    axes[1].legend(fontsize=8)
    return figure


@as_figure("together", "schedules")
def together(arms: pd.DataFrame) -> Figure:
    """How far the peer's predictions are from the compact network's, and the peer's own accuracy, by epoch."""
    longest = arms[(arms.epochs == arms.epochs.max()) & arms.peer.map(bool)]
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4))
    labels = {"peer_kl": "KL(peer || compact), nats", "peer_validation": "peer's validation top-1 (%)"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        start = longest.assign(epoch=0, **{key: [start[key] for start in longest.start]})
        _curves(axis, pd.concat([start, by_epoch(longest)]), key)
        axis.set(xlabel="epoch", ylabel=label, xticks=range(longest.epochs.max() + 1))
    axes[0].set_yscale("log")
    axes[0].legend()
    return figure
