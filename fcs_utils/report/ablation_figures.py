"""Figures of the ablations. Each function takes frames of ``ablations``, draws one figure and returns it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.report.figures import as_figure
from fcs_utils.report.inference import half_width, paired, seed_differences
from fcs_utils.report.plots import BLUE, COLOURS, WIDTH, by_epoch, dots, effects, legend_above, panels
from fcs_utils.report.tables import macs_left
from fcs_utils.study.grid import titled


def stability(overlaps: pd.DataFrame, chance: float) -> Figure:
    """Jaccard of the kept channels between draws of calibration images, against their number; a dot a seed."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    for colour, (network, part) in zip(COLOURS, overlaps.groupby("network", sort=False), strict=False):
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
    """Test top-1 before training by criterion and MACs left: plain or merged surgery, with and without recalibration."""
    ways = {
        ("none", False): ("plain", ("#8c8c8c", "x")),
        ("none", True): ("plain, recalibrated", ("#E69F00", "s")),
        ("merge", False): ("merged", ("#56B4E9", "D")),
        ("merge", True): ("merged, recalibrated", BLUE),
    }
    keys = ["ratio", "criterion", "compensate", "recalibrated"]
    place = {name: number for number, name in enumerate(merges.criterion.unique())}
    merges = merges.assign(place=merges.criterion.map(place)).sort_values(["ratio", "place"], kind="stable")
    figure, parts = panels(merges, "network", lambda part: 0.42 * len(part[keys[:2]].drop_duplicates()) + 1.1)
    for axis, _, part in parts:
        rows = []
        for (_, criterion, how, recalibrated), own in part.groupby(keys, sort=False):
            half, mean = half_width(own.test), own.test.mean()
            row = f"{titled(criterion)},\n{macs_left(own).mean():.0f} % of MACs"
            rows.append(
                {"row": row, "series": ways[how, bool(recalibrated)][0], "effect": mean, "low": mean - half, "high": mean + half}
            )
        dots(axis, pd.DataFrame(rows), dict(ways.values()))
        legend_above(axis, 2)
    figure.axes[-1].set_xlabel("test top-1 (%), before fine-tuning")
    return figure


def headstart_curves(headstart: pd.DataFrame) -> Figure:
    """Validation top-1 by epoch of the same fine-tuning, from merged minus from plain weights: mean and 95 % interval."""
    figure, parts = panels(headstart, "network", lambda _: 2.7)
    for axis, _, part in parts:
        above = {}
        for epoch, rows in by_epoch(part).groupby("epoch"):
            plain, merged = (rows[rows.compensate == how] for how in ("none", "merge"))
            above[epoch] = paired(seed_differences(merged, plain, "validation of the epoch"))
        effects(axis, [(f"epoch {epoch}", one.effect, one.low, one.high, BLUE) for epoch, one in above.items()], ms=5, capsize=2)
        axis.set(ylim=(-len(above) + 0.4, 0.6))
    figure.axes[-1].set_xlabel("validation top-1, from merged minus from plain weights (points)")
    return figure
