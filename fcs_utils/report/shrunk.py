"""The page about one network that was made smaller: numbers before and after, and pictures."""

from __future__ import annotations

import base64
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fcs_utils.files import read_bytes, write_atomic
from fcs_utils.report.notebook import html_table
from fcs_utils.report.pages import HERE, TEMPLATES
from fcs_utils.report.plots import drawn, legend_above, use_house_style
from fcs_utils.study.shrink import Shrunk


def before_and_after(measured: dict[str, Any]) -> pd.DataFrame:
    """One row a quantity: dense, compact, and how many times smaller or faster."""
    top1, cost = measured["top1"], measured["cost"]
    rows = [("top-1 (%)", f"{top1['dense']:.1f}", f"{top1['compact']:.1f}", f"{top1['compact'] - top1['dense']:+.1f} points")]
    for name, title in (("macs", "MACs of one image"), ("params", "parameters"), ("bytes", "bytes of weights")):
        dense, compact = cost["dense"][name], cost["compact"][name]
        rows.append((title, f"{dense:,}", f"{compact:,}", f"{dense / compact:.2f} times fewer"))
    for case, taken in measured["milliseconds"].items():
        runtime, name, batch = case.split()
        if name == "dense":
            other = measured["milliseconds"][f"{runtime} compact {batch}"]
            faster = median(one / two for one, two in zip(taken, other, strict=True))
            title = f"ms for a batch of {batch}, {runtime}"
            rows.append((title, f"{median(taken):.1f}", f"{median(other):.1f}", f"{faster:.2f} times the speed"))
    return pd.DataFrame(rows, columns=["", "dense", "compact", "change"])


NARROW = 4.4  # inches: a phone shows it without making its words small


def tuning_curve(measured: dict[str, Any]) -> Figure:
    """Top-1 by epoch, from the pruned network on, beside the dense one's: all on the same pictures."""
    figure, axis = plt.subplots(figsize=(NARROW, 2.6))
    epochs = [0, *(one["epoch"] for one in measured["history"])]
    watched = measured["watched"]
    found = [watched["pruned"], *(one["validation"] for one in measured["history"])]
    axis.plot(epochs, found, marker="o", color="#0072B2", label="compact")
    axis.axhline(watched["dense"], color="#6b6b6b", ls="--", label="dense")
    axis.set(
        xlabel="epoch of tuning",
        ylabel=f"top-1 (%) on {watched['pictures']:,} pictures",
        xticks=epochs[:: max(1, len(epochs) // 10)],
    )
    legend_above(axis)
    return figure


def widths(shrunk: Shrunk) -> Figure:
    """Channels of each pruned layer before and after, and what its MACs fall to."""
    plan = shrunk.plan
    names = list(plan.kept)
    figure, axes = plt.subplots(2, 1, figsize=(NARROW, 2 * (0.2 * len(names) + 0.9)))
    for axis, dense, left, title in (
        (axes[0], [plan.channels[n] for n in names], [len(plan.kept[n]) for n in names], "channels"),
        (axes[1], [plan.layer_macs[n][0] / 1e6 for n in names], [plan.layer_macs[n][1] / 1e6 for n in names], "million MACs"),
    ):
        axis.barh(names, dense, color="#d5d5d5", label="dense")
        axis.barh(names, left, color="#0072B2", label="compact")
        axis.set(xlabel=title)
        axis.invert_yaxis()
    legend_above(axes[0])
    return figure


def write_shrunk(shrunk: Shrunk, out: Path) -> Path:
    """Write ``index.html`` with its pictures into the folder; returns its path. It needs no other file and no network."""
    use_house_style()
    figures = {
        "Channels and MACs of each pruned layer": widths(shrunk),
        "Accuracy while tuning": tuning_curve(shrunk.measured),
    }
    pictures = []
    for title, figure in figures.items():
        pictures.append((title, base64.b64encode(drawn(figure, bbox_inches="tight")).decode()))
        plt.close(figure)
    page = TEMPLATES.get_template("shrunk.html.j2").render(
        style=read_bytes(HERE / "style.css").decode(),
        asked=shrunk.measured["asked"],
        machine=shrunk.measured["machine"],
        date=shrunk.measured["date"][:10],
        table=html_table(before_and_after(shrunk.measured)),
        plan=str(shrunk.plan),
        pictures=pictures,
    )
    write_atomic(out / "index.html", page.encode())
    return out / "index.html"
