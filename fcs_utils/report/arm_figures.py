"""Figures of the arms: TFT, MLFT and their controls, as differences from TFT. Each function draws one figure and returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fcs_utils.errors import counted
from fcs_utils.report.figures import as_figure
from fcs_utils.report.inference import paired
from fcs_utils.report.plots import WIDTH, by_epoch, panels
from fcs_utils.training.arms import arm_label, arm_style


def _curves(axis: Axes, epochs: pd.DataFrame, value: str) -> None:
    """Each arm's mean over seeds by epoch, with a band from the lowest to the highest."""
    for method, own in epochs.groupby("method", sort=False):
        (colour, marker), found = arm_style(str(method)), own.groupby("epoch")[value].agg(["mean", "min", "max"])
        axis.plot(found.index, found["mean"], color=colour, marker=marker, ms=4, lw=1.3, label=arm_label(str(method)))
        axis.fill_between(found.index, found["min"], found["max"], color=colour, alpha=0.15, lw=0)


def fine_tuning_curves(arms: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch minus TFT's of the same seed, one panel a schedule: mean over seeds, band over their range."""
    figure, parts = panels(arms.sort_values("epochs", kind="stable"), "epochs", lambda _: 2.1)
    for axis, epochs, part in parts:
        rows = by_epoch(part)
        tft = rows[rows.method == "tft"].set_index(["network", "seed", "epoch"])["validation of the epoch"].rename("tft")
        both = rows[rows.method != "tft"].join(tft, on=["network", "seed", "epoch"])
        _curves(axis, both.assign(above=both["validation of the epoch"] - both.tft), "above")
        axis.axhline(0, color="black", lw=0.8)
        ticks = [1, *range(max(2, step := max(1, epochs // 4)), epochs + 1, step)]
        axis.set(xticks=ticks)
        axis.set_title(f"schedule of {counted(epochs, 'epoch')}", loc="left")
    figure.supylabel("validation top-1 minus TFT's (points)", fontsize=10)
    figure.axes[-1].set_xlabel("epoch")
    entries = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside upper right", ncols=3)
    return figure


@as_figure("accuracy_against_budget", "schedules")
def accuracy_against_budget(schedules: pd.DataFrame) -> Figure:
    """Final test top-1 of completed schedules minus TFT's: after as many epochs, and for as many training MACs of all networks.

    Between its schedules, TFT is linear in the logarithm of their MACs, which are the marks of the axis. An arm has no dot
    beyond them.
    """
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 6))
    for number, (method, own) in enumerate(schedules[schedules.method != "tft"].groupby("method", sort=False)):
        (colour, marker), look = arm_style(str(method)), {"ms": 5, "lw": 1.2, "capsize": 2, "elinewidth": 0.9}
        for axis, found in zip(axes, (_for_equal_epochs(schedules, own), _for_equal_macs(schedules, own)), strict=True):
            x = found.x * (1 + 0.02 * number)  # beside one another
            ends = np.nan_to_num([found.effect - found.low, found.high - found.effect])
            axis.errorbar(x, found.effect, ends, color=colour, marker=marker, label=arm_label(str(method)), **look)
    titles = {"after as many epochs": "epochs of the schedule", "for as much training compute": "training MACs (T), all networks"}
    for axis, (title, label) in zip(axes, titles.items(), strict=True):
        axis.axhline(0, color="black", lw=0.8)
        axis.set(xlabel=label, xscale="log")
        axis.set_title(title, loc="left")
        axis.minorticks_off()
    axes[0].set_xticks(ticks := sorted(schedules.epochs.unique()), map(str, ticks))
    spent = schedules[schedules.method == "tft"].groupby("epochs").training_macs.mean() / 1e12
    axes[1].set_xticks(spent, [f"{macs:.3g}\n(TFT {epochs})" for epochs, macs in spent.items()])
    figure.supylabel("test top-1 minus TFT's (points)", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def _effects(rows: dict[float, np.ndarray]) -> pd.DataFrame:
    found = {x: paired(values) for x, values in rows.items() if len(values)}
    return pd.DataFrame(
        [{"x": x, "effect": one.effect, "low": one.low, "high": one.high} for x, one in found.items()], columns=COLUMNS
    )


COLUMNS = ["x", "effect", "low", "high"]
SEED = ["network", "seed"]


def _for_equal_epochs(schedules: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """An arm's paired differences from TFT of as many epochs."""
    tft = schedules[schedules.method == "tft"].set_index([*SEED, "epochs"]).test.rename("tft")
    both = own.join(tft, on=[*SEED, "epochs"]).dropna(subset="tft")
    return _effects({float(epochs): (rows.test - rows.tft).to_numpy() for epochs, rows in both.groupby("epochs")})


def _for_equal_macs(schedules: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """An arm's paired differences from TFT of as many training MACs, between TFT's shortest and longest schedule."""
    tft = {key: rows.sort_values("training_macs") for key, rows in schedules[schedules.method == "tft"].groupby(SEED)}
    rows: dict[float, np.ndarray] = {}
    for _, runs in own.groupby("epochs"):
        above = []
        for run in runs.itertuples():
            base = tft.get((run.network, run.seed))
            if base is not None and base.training_macs.iloc[0] <= run.training_macs <= base.training_macs.iloc[-1]:
                above.append(run.test - np.interp(np.log(run.training_macs), np.log(base.training_macs), base.test))
        if len(above) == len(runs):  # of all seeds
            rows[runs.training_macs.mean() / 1e12] = np.array(above)
    return _effects(rows)


def taught(arms: pd.DataFrame) -> pd.DataFrame:
    """Runs with a peer, of the longest schedule and of the seeds that all arms with one have."""
    own = arms[arms.peer.map(bool)] if len(arms) else arms
    if own.empty:
        return own
    shared = set.intersection(*(set(runs.epochs) for _, runs in own.groupby("method")))
    own = own[own.epochs == max(shared, default=own.epochs.max())]
    seeds = set.intersection(*(set(runs.seed) for _, runs in own.groupby("method")))
    return own[own.seed.isin(seeds)] if seeds else own


@as_figure("together", "taught")
def together(arms: pd.DataFrame) -> Figure:
    """How far the peer's predictions are from the compact network's, and the peer's own accuracy, by epoch."""
    longest = taught(arms)
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.4), sharex=True)
    labels = {"peer_kl": "KL(peer || compact), nats", "peer_validation": "peer's validation top-1 (%)"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        start = longest.assign(epoch=0, **{key: [start[key] for start in longest.start]})
        _curves(axis, pd.concat([start, by_epoch(longest)]), key)
        axis.set(ylabel=label)
    axes[0].set_yscale("log")
    last = int(longest.epochs.max())
    axes[1].set(xlabel="epoch", xticks=range(0, last + 1, max(1, last // 8)))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return figure


def accuracy_by_epoch(found: Mapping[str, Sequence[float]], dense: float, images: int) -> Figure:
    """Top-1 in percent before tuning and after each epoch, a line for each arm. dense: the unpruned network's."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3))
    for arm, accuracies in found.items():
        (colour, marker), label = arm_style(arm), arm_label(arm)
        axis.plot(range(len(accuracies)), accuracies, color=colour, marker=marker, ms=5, label=label)
    axis.axhline(dense, color="black", lw=0.8, ls=":", label="unpruned")
    last = max(1, *(len(accuracies) - 1 for accuracies in found.values()))
    axis.set(xlabel="epochs of fine-tuning", ylabel=f"top-1 (%), {images} images", xlim=(-0.1, last + 0.1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=4)
    return figure
