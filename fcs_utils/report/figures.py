"""The figures of the results. Each function takes data, draws one figure and returns it; nothing is saved here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fcs_utils.report.inference import half_width
from fcs_utils.report.registry import Registry, enter

# Okabe and Ito's palette, distinguishable with colour-blind eyes; one colour and marker a criterion, everywhere.
STYLE = {
    "random": ("#8c8c8c", "x"),
    "kernel_l1": ("#E69F00", "s"),
    "feature_norm": ("#009E73", "^"),
    "fcs": ("#0072B2", "o"),
    "fcs_greedy": ("#56B4E9", "D"),
    "fcs_linear": ("#CC79A7", "v"),
}
Style = tuple[str, str]  # colour and marker
PLAIN: Style = ("#0072B2", "o")
BIN_COLOURS = ["#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#8c8c8c"]
VERDICT_COLOURS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#6b6b6b"}


FIGURES: Registry[Figure] = {}


def as_figure(name: str, *needs: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Publish what the function draws as figure ``name``, made from these attributes of a ``Report``."""
    return enter(FIGURES, name, needs)


def use_house_style() -> None:
    """Set matplotlib's defaults for every figure of the study."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "svg.hashsalt": "fcs-mlft",
        },
    )


def error_bars(
    axis: Axes, x: Sequence[float] | np.ndarray, groups: Iterable[Sequence[float]], style: Style, across: bool = False, **look: Any
) -> None:
    """Each group's mean with its 95 % t interval over seeds, none for one seed; across: x runs upwards, means to the right."""
    means, halves = zip(*((np.mean(group), half_width(list(group))) for group in groups), strict=True)
    errors = np.nan_to_num(halves)
    options: dict[str, Any] = {"ms": 5, "lw": 1.3, "capsize": 2, "elinewidth": 0.9, "color": style[0], "marker": style[1], **look}
    if across:
        axis.errorbar(means, x, xerr=errors, ls="none", **options)
    else:
        axis.errorbar(x, means, errors, **options)


def gains(axis: Axes, table: pd.DataFrame, title: str, label: str, styles: Mapping[str, Style]) -> None:
    """One row a name of ``table``, top down: the mean over its columns, which are seeds, and its 95 % interval."""
    for y, (name, row) in enumerate(table.iterrows()):
        error_bars(axis, [-y], [row.dropna().tolist()], style=styles.get(str(name), PLAIN), across=True)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(title=title, xlabel=label, yticks=[-y for y in range(len(table))], yticklabels=table.index)


def training_curves(references: pd.DataFrame) -> Figure:
    """Validation top-1 of the reference networks by epoch, one line per seed."""
    networks = references.network.unique()
    figure, axes = plt.subplots(1, len(networks), figsize=(5 * len(networks), 3.2), squeeze=False, sharey=True)
    for axis, network in zip(axes.flat, networks, strict=True):
        for row in references[references.network == network].itertuples():
            curve = [epoch["validation"] for epoch in row.history]
            axis.plot(range(1, len(curve) + 1), curve, color=BIN_COLOURS[row.seed % len(BIN_COLOURS)], label=f"seed {row.seed}")
        axis.set(title=network, xlabel="epoch", ylabel="validation top-1 (%)")
    axes.flat[0].legend()
    return figure


@as_figure("near_duplicates_by_layer", "similarity")
def near_duplicates_by_layer(similarity: pd.DataFrame) -> Figure:
    """Share of channels with a near-duplicate by layer, trained against untrained: mean and range over seeds."""
    networks = similarity.network.unique()
    colours = {"trained": "#0072B2", "untrained": "#E69F00", "untrained, BatchNorm as made": "#c4c4c4"}
    figure, axes = plt.subplots(1, len(networks), figsize=(5.5 * len(networks), 3.6), squeeze=False, sharey=True)
    for axis, network in zip(axes.flat, networks, strict=True):
        part = similarity[similarity.network == network]
        sns.pointplot(
            part,
            x="layer",
            y="near_duplicates",
            hue="state",
            errorbar=("pi", 100),
            ax=axis,
            markersize=4,
            linewidth=1.2,
            palette=colours,
            err_kws={"linewidth": 1},
        )
        axis.set(title=network, xlabel="", ylabel="channels with a near-duplicate (%)", ylim=(-3, 103))
        axis.tick_params(axis="x", rotation=75)
    return figure


def before_tuning(pruned: pd.DataFrame) -> Figure:
    """Test top-1 after surgery and BatchNorm recalibration, before any training."""
    return _accuracy_panels(pruned, "test top-1 (%) before fine-tuning")


@as_figure("accuracy_against_macs", "tuned", "references")
def accuracy_against_macs(tuned: pd.DataFrame, references: pd.DataFrame) -> Figure:
    """Test top-1 after identical fine-tuning against the MACs that are left."""
    figure = _accuracy_panels(tuned, "test top-1 (%)")
    for axis in figure.axes:
        dense = references[references.network == axis.get_title()].test.mean()
        axis.axhline(dense, color="black", lw=0.8, ls=":")
        axis.annotate("dense", (axis.get_xlim()[1], dense), fontsize=8, ha="right", va="bottom")
    return figure


def _accuracy_panels(frame: pd.DataFrame, ylabel: str) -> Figure:
    networks = frame.network.unique()
    figure, axes = plt.subplots(1, len(networks), figsize=(5.4 * len(networks), 3.8), squeeze=False)
    for axis, network in zip(axes.flat, networks, strict=True):
        part = frame[frame.network == network]
        width = 1.2
        for criterion in part.criterion.unique():
            if criterion not in STYLE:  # a thin grey line: they are compared by name in the ranking
                groups = part[part.criterion == criterion].groupby("ratio", sort=False)
                axis.plot(
                    *zip(*((100 * (g.macs / g.dense_macs).iloc[0], g.test.mean()) for _, g in groups), strict=True),
                    color="#c4c4c4",
                    lw=0.8,
                    zorder=1,
                    label="others",
                )
        for number, criterion in enumerate(name for name in part.criterion.unique() if name in STYLE):
            groups = part[part.criterion == criterion].groupby("ratio", sort=False)
            x = [100 * (g.macs / g.dense_macs).iloc[0] + width * (number - 2) / 2 for _, g in groups]  # side by side
            error_bars(axis, x, [g.test for _, g in groups], style=STYLE[criterion], label=criterion)
        axis.set(xlabel="MACs left (%)", ylabel=ylabel, title=network)
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))  # an interval may pass 100 %, accuracy cannot
        axis.invert_xaxis()
    handles, names = axes.flat[0].get_legend_handles_labels()
    entries = dict(zip(names, handles, strict=True))  # one for all the others
    axes.flat[0].legend(entries.values(), entries.keys())
    return figure


@as_figure("ranking", "tuned")
def ranking(frame: pd.DataFrame, value: str = "test") -> Figure:
    """Every criterion's top-1 minus random's, averaged over ratios and paired by seed: mean and 95 % interval."""
    networks = frame.network.unique()
    figure, axes = plt.subplots(
        1, len(networks), figsize=(5.2 * len(networks), 0.3 * frame.criterion.nunique() + 1.1), squeeze=False
    )
    for axis, network in zip(axes.flat, networks, strict=True):
        means = frame[frame.network == network].groupby(["criterion", "seed"])[value].mean().unstack("seed")
        above = means.drop(index="random") - means.loc["random"]
        above = above.loc[above.mean(axis=1).sort_values(ascending=False).index]
        gains(
            axis, above, network, "points above random channels", {name: STYLE.get(name, ("#6b6b6b", "o")) for name in above.index}
        )
    return figure


@as_figure("claims", "ledger")
def forest(ledger: pd.DataFrame) -> Figure:
    """Every comparison behind the verdicts: effect and 95 % interval, coloured by verdict."""
    rows = max((ledger.claim == "C1").sum(), (ledger.claim != "C1").sum())
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.27 * rows + 1.2), width_ratios=(1, 1))
    # C1 is in points of channels, the others in points of accuracy: two scales, two panels.
    for axis, (title, part) in zip(
        axes,
        (("C1: channels, points", ledger[ledger.claim == "C1"]), ("C2, C3: top-1, points", ledger[ledger.claim != "C1"])),
        strict=True,
    ):
        labels = []
        for y, row in enumerate(part.itertuples()):
            colour = VERDICT_COLOURS[row.verdict] if row.decisive else "#b0b0b0"
            axis.errorbar(
                row.effect,
                -y,
                xerr=np.nan_to_num([[row.effect - row.low], [row.high - row.effect]]),
                color=colour,
                marker="o",
                capsize=3,
            )
            labels.append(row.label)
        axis.axvline(0, color="black", lw=0.8)
        axis.set(yticks=[-y for y in range(len(labels))], yticklabels=labels, title=title, ylim=(-len(labels) + 0.4, 0.6))
    return figure


def cost_growth(costs: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Time and peak memory of scoring against calibration images and against width, a line a procedure."""
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 5.8))
    styles = {"forward": ("#8c8c8c", "x"), "pass": ("#0072B2", "o"), "store": ("#D55E00", "s")}
    first = costs[costs.network == costs.network.iloc[0]]
    heavy = first.sort_values("width").images.iloc[0]  # the narrowest network has one number of images
    for column, (x, part, label) in enumerate(
        (
            ("images", first[first.width == 1], "calibration images"),
            ("width", first[first.images == heavy], f"width of the network ({heavy} images)"),
        )
    ):
        for row, (y, title) in enumerate((("seconds", "seconds"), ("memory_mb", "peak memory (MB)"))):
            axis = axes[row, column]
            for method, (colour, marker) in styles.items():
                own = part[part.method == method].groupby(x)[y].median()
                axis.plot(own.index, own, color=colour, marker=marker, ms=5, label=names[method])
            axis.set(xlabel=label, ylabel=title, ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    return figure
