"""The README's picture of the method: a drawing, no data."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

INK, SOFT, GONE = "#1d2229", "#5b6470", "#D55E00"
BINS = ["#56B4E9", "#009E73", "#E69F00"]
# Nine made-up channels: (bin, size, which pattern their map shows). In every bin two share a pattern, and one of them goes.
CHANNELS = [
    (0, 0.22, 0),
    (0, 0.28, 0),
    (0, 0.33, 1),
    (1, 0.52, 2),
    (1, 0.57, 3),
    (1, 0.62, 3),
    (2, 0.84, 4),
    (2, 0.92, 5),
    (2, 1.0, 4),
]
DROPPED = {0, 4, 6}


def method_picture() -> Figure:
    """From feature maps to a fine-tuned compact network, in four steps."""
    figure, axes = plt.subplots(1, 4, figsize=(12.6, 3.5), width_ratios=(1, 1.05, 1.05, 1.35))
    titles = ("1  collect feature maps", "2  bin their L1 norms", "3  drop similar ones in each bin", "4  fine-tune: TFT or MLFT")
    for axis, title, draw in zip(axes, titles, (_maps, _norms, _similarity, _tuning), strict=True):
        axis.set(xlim=(0, 1), ylim=(0, 1))
        axis.set_axis_off()
        axis.set_title(title, fontsize=11, loc="left", color=INK)
        draw(axis)
    return figure


def _pattern(kind: int) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, 12), np.linspace(-1, 1, 12))
    kinds = (
        np.sin(5 * x),
        np.exp(-4 * (x**2 + y**2)),
        np.abs(x) < 0.35,
        np.sin(5 * y),
        np.abs(np.hypot(x, y) - 0.6) < 0.2,
        x + y > 0,
    )
    return np.asarray(kinds[kind], float)


def _map(axis: Axes, channel: int, left: float, bottom: float, size: float) -> None:
    which, _, kind = CHANNELS[channel]
    axis.imshow(_pattern(kind), extent=(left, left + size, bottom, bottom + size), cmap="magma", aspect="auto", zorder=2)
    axis.add_patch(Rectangle((left, bottom), size, size, fill=False, ec=BINS[which], lw=2, zorder=3))


def _maps(axis: Axes) -> None:
    for channel in range(9):
        row, column = divmod(channel, 3)
        _map(axis, channel, 0.02 + 0.3 * column, 0.66 - 0.3 * row, 0.25)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.text(0.0, -0.04, "one layer's channels on\ncalibration images", fontsize=9, color=SOFT, va="top")


def _norms(axis: Axes) -> None:
    for rank, (which, size, _) in enumerate(CHANNELS):
        axis.bar(0.05 + 0.1 * rank, 0.85 * size, width=0.075, bottom=0.06, color=BINS[which])
    for which, colour in enumerate(BINS):
        axis.text(0.15 + 0.3 * which, 0.005, f"bin {which}", fontsize=9, ha="center", color=colour, weight="bold", va="center")
    axis.text(0.0, -0.04, "exact one-dimensional K-Means:\nchannels of like size compete", fontsize=9, color=SOFT, va="top")


def _similarity(axis: Axes) -> None:
    for channel in range(9):
        row, column = divmod(channel, 3)
        left, bottom = 0.02 + 0.3 * column, 0.66 - 0.3 * row
        _map(axis, channel, left, bottom, 0.25)
        if channel in DROPPED:
            axis.plot([left, left + 0.25], [bottom, bottom + 0.25], color=GONE, lw=3, zorder=4)
            axis.plot([left, left + 0.25], [bottom + 0.25, bottom], color=GONE, lw=3, zorder=4)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.text(0.0, -0.04, "cosine similarity inside a bin;\nthe most redundant go", fontsize=9, color=SOFT, va="top")


def _network(axis: Axes, left: float, bottom: float, heights: list[float], label: str, colour: str) -> None:
    for layer, height in enumerate(heights):
        box = (left + 0.09 * layer, bottom - height / 2)
        axis.add_patch(FancyBboxPatch(box, 0.05, height, boxstyle="round,pad=0.005", fc=colour, ec="none", alpha=0.85))
    axis.text(
        left + 0.09 * len(heights) / 2 - 0.02,
        bottom - max(heights) / 2 - 0.045,
        label,
        fontsize=9,
        ha="center",
        va="top",
        color=INK,
    )


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=colour, lw=1.6,
                                   connectionstyle=f"arc3,rad={bend}"))  # fmt: skip


def _tuning(axis: Axes) -> None:
    _network(axis, 0.02, 0.77, [0.16, 0.2, 0.16], "compact", "#0072B2")
    axis.text(0.36, 0.77, "labels", fontsize=9, va="center", color=SOFT)
    _arrow(axis, (0.35, 0.77), (0.28, 0.77), SOFT)
    axis.text(0.62, 0.77, "TFT", fontsize=12, weight="bold", va="center", color=INK)
    _network(axis, 0.02, 0.27, [0.16, 0.2, 0.16], "compact", "#0072B2")
    _network(axis, 0.66, 0.27, [0.26, 0.34, 0.26], "unpruned peer", "#E69F00")
    _arrow(axis, (0.3, 0.31), (0.62, 0.31), "#0072B2", -0.25)
    _arrow(axis, (0.62, 0.23), (0.3, 0.23), "#E69F00", -0.25)
    axis.text(0.46, 0.27, "predictions", fontsize=9, ha="center", va="center", color=SOFT)
    axis.text(0.46, 0.46, "MLFT", fontsize=12, weight="bold", ha="center", va="center", color=INK)
    axis.text(0.0, -0.04, "each also learns from the labels;\nonly the compact network is kept", fontsize=9, color=SOFT, va="top")
