"""What figures are made of: colours, panels, dots with intervals, legends."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from os.path import commonprefix
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

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
BLUE: Style = ("#0072B2", "o")
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8c8c8c"]
VERDICT_COLOURS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#6b6b6b"}
WIDTH = 5.2  # inches; panels stand below one another, and a phone shows words of 9 points large enough to read
ON_ANY_PAPER = "#767d86"  # words as easy to read on white as on a dark page


def png(figure: Figure) -> bytes:
    """A figure as a PNG for a live view; closes it."""
    plt.close(figure)
    return print_figure(figure, dpi=90)


def drawn(figure: Figure, suffix: str = "png", **options: Any) -> bytes:
    """A figure as the content of a file, with options of ``savefig``.

    A PNG without pictures has 256 colours, which makes it a third as large: pages hold a dozen, and people read them on phones.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, **options)
    if suffix != "png" or any(axis.images for axis in figure.axes):
        return buffer.getvalue()
    about, few = PngInfo(), io.BytesIO()
    with Image.open(buffer, formats=["PNG"]) as picture:
        for name, text in picture.text.items():  # type: ignore[attr-defined]
            about.add_text(name, text)
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            few, "PNG", optimize=True, pnginfo=about, dpi=picture.info["dpi"]
        )
    return few.getvalue()


def without_paper(figure: Figure) -> Figure:
    """The figure on whatever a page is made of. For photographs and maps, whose colours a dark page must not turn round."""
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
        axis.tick_params(colors=ON_ANY_PAPER)
        axis.spines[:].set_edgecolor(ON_ANY_PAPER)
    for words in figure.findobj(Text):
        words.set(color=ON_ANY_PAPER)
    return figure


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
            "legend.title_fontsize": 9,
            "legend.frameon": False,
            "svg.hashsalt": "fcs-mlft",
        },
    )


def by_epoch(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with their ``history`` unrolled: one row an epoch, none of a network that was given."""
    rows = runs[runs.history.map(len) > 0].explode("history", ignore_index=True)
    return rows.drop(columns="history").join(pd.json_normalize(rows.history.tolist()), rsuffix=" of the epoch")


def panels(
    runs: pd.DataFrame, by: str, height: Callable[[pd.DataFrame], float]
) -> tuple[Figure, list[tuple[Axes, Any, pd.DataFrame]]]:
    """One panel for each value of a column, below one another: its axis, titled with the value, the value, and its rows.

    height: inches that a panel needs for its rows.
    """
    groups = list(runs.groupby(by, sort=False))
    heights = [height(rows) for _, rows in groups]
    size = (WIDTH, sum(heights))
    figure, axes = plt.subplots(len(groups), 1, figsize=size, squeeze=False, height_ratios=heights)
    for axis, (value, _) in zip(axes.flat, groups, strict=True):
        axis.set_title(value, loc="left")
    return figure, [(axis, value, rows) for axis, (value, rows) in zip(axes.flat, groups, strict=True)]


def legend_above(axis: Axes, ncols: int = 3) -> None:
    """A legend between the panel's title and its data, where it hides nothing."""
    title = axis.get_title(loc="left")
    look: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "columnspacing": 1, "handlelength": 1.5}
    legend = axis.legend(title=title, ncols=ncols, alignment="left", **look)
    legend.get_title().set(weight="bold", size=11)
    axis.set_title("", loc="left")


def short_names(layers: Iterable[str]) -> dict[str, str]:
    """Layers by what differs in their names: 'features.conv1' and 'features.conv2' as 'conv1' and 'conv2'."""
    names = list(layers)
    shared = commonprefix(names).rpartition(".")[0] if len(names) > 1 else ""
    return {name: name.removeprefix(f"{shared}.") if shared else name for name in names}


def effects(axis: Axes, rows: Iterable[tuple[str, float, float, float, Style]], **look: Any) -> None:
    """One effect a line, top down, from its label, mean, ends of its interval (NaN for none) and style; a line marks zero.

    Where the mean is NaN, which stands for a number that is not known, the interval is shown without it.
    """
    labels = []
    for y, (label, effect, low, high, (colour, marker)) in enumerate(rows):
        known, middle = not np.isnan(effect), (low + high) / 2
        ends = np.nan_to_num([[effect - low], [high - effect]] if known else [[middle - low], [high - middle]])
        marker = marker if known else ""
        axis.errorbar(effect if known else middle, -y, xerr=ends, color=colour, marker=marker, ls="none", **look)
        labels.append(label)
    axis.axvline(0, color="black", lw=0.8)
    axis.set(yticks=[-y for y in range(len(labels))], yticklabels=labels)


def dots(axis: Axes, found: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    """Several series as dots with intervals, a line of the figure for each ``row``, top down, the series side by side in it.

    found: columns row, series, effect, low and high (NaN for none). styles: of the series, in their order within a row.
    """
    rows, series = list(found.row.unique()), [name for name in styles if name in set(found.series)]
    step = 0.7 / max(1, len(series))
    for number, name in enumerate(series):
        own = found[found.series == name]
        y = [-rows.index(row) - step * (number - (len(series) - 1) / 2) for row in own.row]
        ends = np.nan_to_num([own.effect - own.low, own.high - own.effect])
        colour, marker = styles[name]
        look: dict[str, Any] = {"ms": 4.5, "elinewidth": 1, "ls": "none"}
        axis.errorbar(own.effect, y, xerr=ends, color=colour, marker=marker, label=name, **look)
    for line in range(0, len(rows), 2):
        axis.axhspan(-line - 0.5, -line + 0.5, color="#f3f3f3", lw=0, zorder=0)
    axis.set(yticks=[-line for line in range(len(rows))], yticklabels=rows, ylim=(-len(rows) + 0.5, 0.5))
    axis.tick_params(axis="y", length=0)
