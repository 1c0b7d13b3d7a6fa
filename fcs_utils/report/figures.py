"""The figures of the results. Each function takes data, draws one figure and returns it; nothing is saved here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas.api.typing import SeriesGroupBy

from fcs_utils.report.inference import half_width, paired
from fcs_utils.report.registry import Registry
from fcs_utils.report.tables import macs_left

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
DARK: Style = ("#6b6b6b", "o")
PALE = "#c4c4c4"
BIN_COLOURS = ["#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#0072B2", "#D55E00", "#F0E442", "#8c8c8c"]
VERDICT_COLOURS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#6b6b6b"}

FIGURES = Registry[Figure]()
as_figure = FIGURES.enter


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


def by_epoch(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with their ``history`` unrolled: one row an epoch, none of a network that was given."""
    rows = runs[runs.history.map(len) > 0].explode("history", ignore_index=True)
    return rows.drop(columns="history").join(pd.json_normalize(rows.history.tolist()), rsuffix=" of the epoch")


def panels(
    runs: pd.DataFrame, by: str, width: float, height: float, **options: Any
) -> tuple[Figure, list[tuple[Axes, Any, pd.DataFrame]]]:
    """One panel for each value of a column, side by side: its axis, titled with the value, the value, and its rows."""
    groups = list(runs.groupby(by, sort=False))
    figure, axes = plt.subplots(1, len(groups), figsize=(width * len(groups), height), squeeze=False, **options)
    for axis, (value, _) in zip(axes.flat, groups, strict=True):
        axis.set_title(value)
    return figure, [(axis, value, rows) for axis, (value, rows) in zip(axes.flat, groups, strict=True)]


def error_bars(axis: Axes, values: SeriesGroupBy, style: Style, **look: Any) -> None:
    """Each group's mean against its key, with the mean's 95 % t interval over seeds, none for one seed."""
    x, groups = zip(*values, strict=True)
    means, halves = [group.mean() for group in groups], np.nan_to_num([half_width(group) for group in groups])
    options = {"ms": 5, "lw": 1.3, "capsize": 2, "elinewidth": 0.9, "color": style[0], "marker": style[1], **look}
    axis.errorbar(x, means, halves, **options)


def effects(axis: Axes, rows: Iterable[tuple[str, float, float, float, Style]], **look: Any) -> None:
    """One effect a line, top down, from its label, mean, ends of its interval (NaN for none) and style; a line marks zero."""
    labels = []
    for y, (label, effect, low, high, (colour, marker)) in enumerate(rows):
        ends = np.nan_to_num([[effect - low], [high - effect]])
        axis.errorbar(effect, -y, xerr=ends, color=colour, marker=marker, ls="none", **look)
        labels.append(label)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=[-y for y in range(len(labels))], yticklabels=labels)


def gains(runs: pd.DataFrame, by: str, base: str, label: str, styles: Mapping[str, Style], ranked: bool = False) -> Figure:
    """What every kind of runs gains over one of them, averaged over the rest and paired by seed; one panel a network."""
    figure, parts = panels(runs, "network", 5.2, 0.3 * runs[by].nunique() + 1.1)
    for axis, _, part in parts:
        means = part.groupby([by, "seed"], sort=False).test.mean().unstack("seed")
        above = {str(name): paired(row.dropna()) for name, row in (means - means.loc[base]).iterrows() if name != base}
        names = sorted(above, key=lambda name: -above[name].effect) if ranked else list(above)
        found = [(name, above[name], styles.get(name, styles[""])) for name in names]
        effects(axis, [(name, one.effect, one.low, one.high, style) for name, one, style in found], ms=5, capsize=2, elinewidth=0.9)
        axis.set(xlabel=label)
    return figure


def training_curves(references: pd.DataFrame) -> Figure:
    """Validation top-1 of the reference networks by epoch, one line per seed; a dashed line where the weights were given."""
    figure, parts = panels(references, "network", 5, 3.2, sharey=True)
    for axis, _, part in parts:
        for seed, history in part.groupby("seed").history.first().items():
            if not history:
                axis.axhline(part.validation.iloc[0], color=PALE, ls="--", label="given, not trained here")
                break
            curve = pd.DataFrame(history)
            axis.plot(curve.epoch, curve.validation, color=BIN_COLOURS[seed % len(BIN_COLOURS)], label=f"seed {seed}")
        axis.set(xlabel="epoch", ylabel="validation top-1 (%)")
    figure.axes[0].legend()
    return figure


@as_figure("near_duplicates_by_layer", "similarity")
def near_duplicates_by_layer(similarity: pd.DataFrame) -> Figure:
    """Share of channels with a near-duplicate by layer, trained against untrained: mean and range over seeds."""
    figure, parts = panels(similarity, "network", 5.5, 3.6, sharey=True)
    colours = {"trained": "#0072B2", "untrained": "#E69F00", "untrained, BatchNorm as made": PALE}
    look = {"errorbar": ("pi", 100), "palette": colours, "markersize": 4, "linewidth": 1.2, "err_kws": {"linewidth": 1}}
    for axis, _, part in parts:
        sns.pointplot(part, x="layer", y="near_duplicates", hue="state", ax=axis, **look)
        axis.set(xlabel="", ylabel="channels with a near-duplicate (%)", ylim=(-3, 103))
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


def _accuracy_panels(runs: pd.DataFrame, ylabel: str) -> Figure:
    figure, parts = panels(runs, "network", 5.4, 3.8)
    for axis, _, part in parts:
        kinds = dict(iter(part.groupby("criterion", sort=False)))
        for own in (own for name, own in kinds.items() if name not in STYLE):  # thin and grey: the ranking compares them by name
            curve = own.test.groupby(macs_left(own)).mean()
            axis.plot(curve.index, curve, color=PALE, lw=0.8, zorder=1, label="others")
        for number, name in enumerate(name for name in kinds if name in STYLE):
            x = macs_left(kinds[name]) + 0.6 * (number - 2)  # side by side
            error_bars(axis, kinds[name].test.groupby(x), STYLE[name], label=name)
        axis.set(xlabel="MACs left (%)", ylabel=ylabel)
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))  # an interval may pass 100 %, accuracy cannot
        axis.invert_xaxis()
    handles, names = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(names, handles, strict=True))  # one for all the others
    figure.axes[0].legend(entries.values(), entries.keys())
    return figure


@as_figure("ranking", "tuned")
def ranking(tuned: pd.DataFrame) -> Figure:
    """Every criterion's top-1 minus random's, averaged over ratios and paired by seed: mean and 95 % interval."""
    return gains(tuned, "criterion", "random", "points above random channels", {**STYLE, "": DARK}, ranked=True)


@as_figure("variation_gains", "variations")
def variation_gains(variations: pd.DataFrame) -> Figure:
    """Each variation of FCS minus the literal reading, before fine-tuning: mean and 95 % interval over seeds."""
    return gains(variations, "variant", "literal reading", "points above the literal reading", {"": PLAIN})


@as_figure("claims", "ledger")
def forest(ledger: pd.DataFrame) -> Figure:
    """Effect and 95 % interval of every comparison behind the verdicts, coloured by verdict."""
    channels, epochs = ledger.claim.isin(("C1a", "C1b")), ledger.unit == "% of epochs"
    # C1 is in points of channels, C3 in shares of epochs, the others in points of accuracy: three scales, three panels.
    titles = ("C1: channels, points", "C2, C3: top-1, points", "C3: epochs saved, %")
    found = [
        (title, ledger[rows]) for title, rows in zip(titles, (channels, ~channels & ~epochs, epochs), strict=True) if rows.any()
    ]
    height = 0.27 * max((len(part) for _, part in found), default=0) + 1.2
    figure, axes = plt.subplots(1, max(1, len(found)), figsize=(max(8, 5.5 * len(found)), height), squeeze=False)
    for axis, (title, part) in zip(axes.flat, found, strict=bool(found)):
        colours = part.verdict.map(VERDICT_COLOURS).where(part.decisive, "#b0b0b0")
        styles = ((colour, "o") for colour in colours)
        labels = part.claim.where(part.claim.isin(("C1a", "C1b")), "").str.cat(part.label, sep=" ").str.strip()
        ends = part[["low", "high"]].clip(-100, 100) if title == titles[-1] else part[["low", "high"]]  # an end may be open
        effects(axis, zip(labels, part.effect, ends.low, ends.high, styles, strict=True), capsize=3)
        axis.set(title=title, ylim=(-len(part) + 0.4, 0.6))
    return figure


def cost_growth(costs: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Time and peak memory of scoring against calibration images and against width, a line a procedure."""
    figure, axes = plt.subplots(2, 2, figsize=(9.6, 5.8))
    styles = {"forward": ("#8c8c8c", "x"), "pass": ("#0072B2", "o"), "store": ("#D55E00", "s")}
    first = costs[costs.network == costs.network.iloc[0]]
    heavy = first.sort_values("width").images.iloc[0]  # the narrowest network has one number of images
    parts = {"images": first[first.width == 1], "width": first[first.images == heavy]}
    labels = {"images": "calibration images", "width": f"width of the network ({heavy} images)"}
    for (y, title), row in zip((("seconds", "seconds"), ("memory_mb", "peak memory (MB)")), axes, strict=True):
        for x, axis in zip(parts, row, strict=True):
            for method, (colour, marker) in styles.items():
                own = parts[x][parts[x].method == method].groupby(x)[y].median()
                axis.plot(own.index, own, color=colour, marker=marker, ms=5, label=names[method])
            axis.set(xlabel=labels[x], ylabel=title, ylim=(0, None))
    axes[0, 0].legend(fontsize=8)
    return figure
