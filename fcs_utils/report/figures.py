"""The figures of the results. Each function takes data, draws one figure and returns it; nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fcs_utils.report.comparisons import SIMPLE
from fcs_utils.report.inference import paired, seed_differences
from fcs_utils.report.plots import (
    BLUE,
    COLOURS,
    VERDICT_COLOURS,
    WIDTH,
    Style,
    dots,
    effects,
    legend_above,
    panels,
    short_names,
)
from fcs_utils.report.registry import Registry
from fcs_utils.report.tables import macs_left
from fcs_utils.study.grid import titled

FIGURES = Registry[Figure]()
as_figure = FIGURES.enter


def base_of(runs: pd.DataFrame) -> str:
    """What other criteria are shown against: random channels, else the filters' norm, else the first.

    It is one that has all seeds of every network and ratio, and where none has, one that has some of each.
    """
    names = list(dict.fromkeys(["random", SIMPLE, *runs.criterion]))
    counts = runs.groupby(["network", "ratio"]).criterion.value_counts().unstack(fill_value=0)
    for fits in (counts.eq(counts.max(axis=1), axis=0), counts > 0):
        if found := [name for name in names if name in fits and fits[name].all()]:
            return found[0]
    return str(runs.criterion.iloc[0])


def gains(runs: pd.DataFrame, by: str, base: str, label: str, styles: Mapping[str, Style]) -> Figure:
    """What every kind of runs gains over one of them, averaged over the rest and paired by seed; one panel a network."""
    figure, parts = panels(runs, "network", lambda part: 0.3 * part[by].nunique() + 0.9)
    for axis, _, part in parts:
        means = part.groupby([by, "seed"], sort=False).test.mean().unstack("seed")
        above = {str(name): paired(row.dropna()) for name, row in (means - means.loc[base]).iterrows() if name != base}
        found = [(name.replace(" = ", ": ").replace("_", " "), one, styles.get(name, styles[""])) for name, one in above.items()]
        effects(axis, [(name, one.effect, one.low, one.high, style) for name, one, style in found], ms=5, capsize=2, elinewidth=0.9)
        axis.set(xlabel=label)
    return figure


def training_curves(references: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch of the reference networks that were trained here, one line per seed."""
    figure, parts = panels(references[references.epochs > 0], "network", lambda _: 2.3)
    for axis, _, part in parts:
        for seed, history in part.groupby("seed").history.first().items():
            curve = pd.DataFrame(history)
            axis.plot(curve.epoch, curve.validation, color=COLOURS[seed % len(COLOURS)], lw=1.2, label=f"seed {seed}")
        axis.set(ylabel="validation top-1 (%)")
        axis.legend(loc="lower right")
    figure.axes[-1].set_xlabel("epoch")
    return figure


@as_figure("near_duplicates_by_layer", "similarity")
def near_duplicates_by_layer(similarity: pd.DataFrame) -> Figure:
    """Share of channels with a near-duplicate by layer, trained against untrained: mean and range over seeds.

    Networks that are given, and so decide no claim, are drawn where there are no others.
    """
    if not similarity.given.all():
        similarity = similarity[~similarity.given]
    figure, parts = panels(similarity, "network", lambda part: 0.27 * part.layer.nunique() + 1.1)
    styles = {"trained": BLUE, "untrained": ("#E69F00", "s"), "untrained, BatchNorm as made": ("#8c8c8c", "D")}
    for axis, _, part in parts:
        found = part.groupby(["layer", "state"], sort=False).near_duplicates.agg(effect="mean", low="min", high="max").reset_index()
        dots(axis, found.assign(row=found.layer.map(short_names(part.layer.unique())), series=found.state), styles)
        if "chance" in part:
            axis.axvline(part.chance.iloc[0], color="black", lw=0.8, ls=":", label=f"chance: {part.chance.iloc[0]:g} %")
        axis.set(xlim=(-3, 103))
        legend_above(axis, 2)
    figure.axes[-1].set_xlabel("channels with a near-duplicate (%)")
    return figure


def before_tuning(pruned: pd.DataFrame) -> Figure:
    """Test top-1 after surgery and BatchNorm recalibration, before any training, minus that of ``base_of`` the criteria."""
    return _against_base(pruned)


@as_figure("accuracy_against_macs", "compared")
def accuracy_against_macs(tuned: pd.DataFrame) -> Figure:
    """Each criterion's test top-1 after identical fine-tuning minus that of one of them, by the MACs that are left."""
    return _against_base(tuned)


def compared(tuned: pd.DataFrame) -> pd.DataFrame:
    """Runs of the networks that were pruned by more than one criterion."""
    return tuned[tuned.groupby("network").criterion.transform("nunique") > 1] if len(tuned) else tuned


def _against_base(runs: pd.DataFrame) -> Figure:
    """Paired differences by criterion, the best on average first, with a series for each ratio; what lacks a ratio stands last.

    A network has a panel; given networks share one, for they are the replicates.
    """
    given = runs.given if "given" in runs else pd.Series(False, runs.index)
    title = f"{runs.network[given].nunique()} given networks" if runs.network[given].nunique() > 1 else None
    runs = runs.assign(panel=runs.network.mask(given, title) if title else runs.network)
    figure, parts = panels(runs, "panel", lambda part: 0.3 * part.criterion.nunique() + 1.2)
    base = base_of(runs)
    against = titled(base)
    for axis, _, part in parts:
        rows, styles = [], {}
        for (ratio, own), style in zip(part.groupby("ratio"), zip(COLOURS, "osD^v<>P", strict=True), strict=False):
            level = own[own.criterion == base]
            series = f"{macs_left(own).median():.0f} % of the MACs ({against}: {level.test.mean():.1f} %)"
            styles[series] = style
            for name, one in own.groupby("criterion", sort=False):
                if name != base:
                    found = paired(seed_differences(one, level, "test"))
                    rows.append({"row": titled(str(name)), "series": series, "ratio": ratio, **asdict(found)})
        found = pd.DataFrame(rows)
        order = (
            found.groupby("row").effect.agg(["size", "mean"]).sort_values(["size", "mean"], ascending=False, kind="stable").index
        )
        dots(axis, found.set_index("row").loc[order].reset_index(), styles)
        axis.axvline(0, color="black", lw=0.8)
        legend_above(axis, 1)
    figure.axes[-1].set_xlabel(f"top-1 minus that of {against} (points)")
    return figure


@as_figure("variation_gains", "variations")
def variation_gains(variations: pd.DataFrame) -> Figure:
    """Each variation of FCS minus the literal reading, before fine-tuning: mean and 95 % interval over seeds."""
    return gains(variations, "variant", "literal reading", "top-1 minus that of the literal reading (points)", {"": BLUE})


# What the effects of some claims are in: a scale, and a panel, for each.
SCALES = {
    "Redundancy": (("C1a", "C1b"), "near-duplicates, difference (points)"),
    "Accuracy": (("C2", "C2, best reading", "C3 by compute"), "test top-1, difference (points)"),
    "Epochs": (("C3",), "epochs saved (%)"),
}


@as_figure("claims", "ledger")
def forest(ledger: pd.DataFrame) -> Figure:
    """Effect and 95 % interval of every comparison that decides a claim, coloured by the verdict on it.

    Where none decides, as with given networks alone, all of them are shown.
    """
    deciding = (ledger[ledger.decisive] if ledger.decisive.any() else ledger).assign(
        scale=lambda rows: rows.claim.map({claim: title for title, (claims, _) in SCALES.items() for claim in claims})
    )
    figure, parts = panels(deciding, "scale", lambda part: 0.36 * len(part) + 0.95)
    for axis, title, part in parts:
        styles = [(VERDICT_COLOURS[word], "o") for word in part.verdict]
        ends = part[["low", "high"]].clip(-100, 100) if title == "Epochs" else part[["low", "high"]]  # an end may be open
        labels = part.claim.str.removesuffix(" by compute").str.removesuffix(", best reading") + "  " + part.label.map(_spelled_out)
        effects(axis, zip(labels, part.effect, ends.low, ends.high, styles, strict=True), capsize=3)
        axis.set(xlabel=SCALES[title][1], ylim=(-len(part) + 0.4, 0.6))
    if parts:
        marks = [Line2D([], [], color=colour, marker="o", ls="none", label=word) for word, colour in VERDICT_COLOURS.items()]
        figure.legend(handles=marks, loc="outside upper left", ncols=3)
    return figure


def _spelled_out(label: str) -> str:
    """A comparison's label with its criteria in words, in lines that leave room for the picture."""
    prefix, colon, sides = label.rpartition(": ")
    return fill(prefix + colon + " minus ".join(map(titled, sides.split(" − "))), 26)


def cost_growth(costs: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Time and peak memory of scoring against calibration images and against width, a line a procedure."""
    figure, axes = plt.subplots(4, 1, figsize=(WIDTH, 8.4))
    styles = {"forward": ("#8c8c8c", "x"), "pass": ("#0072B2", "o"), "store": ("#D55E00", "s")}
    first = costs[costs.network == costs.network.iloc[0]]
    heavy = first.sort_values("width").images.iloc[0]  # the narrowest network has one number of images
    parts = {"images": first[first.width == 1], "width": first[first.images == heavy]}
    labels = {"images": "calibration images", "width": f"width of the network ({heavy} images)"}
    titles = {"seconds": "seconds", "memory_mb": "peak memory (MB)"}
    for axis, (x, y) in zip(axes, product(parts, titles), strict=True):
        for method, (colour, marker) in styles.items():
            own = parts[x][parts[x].method == method].groupby(x)[y].median()
            axis.plot(own.index, own, color=colour, marker=marker, ms=5, label=names[method])
        axis.set(xlabel=labels[x], ylabel=titles[y], ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left")
    return figure
