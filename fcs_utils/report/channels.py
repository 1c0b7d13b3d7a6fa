"""Pictures of one network's channels: maps, norms, bins, similarities, plans. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from fcs_utils.report.plots import COLOURS, WIDTH, short_names, without_paper


def bin_colours(count: int) -> list[str]:
    """A colour for each bin, from the lowest norms to the highest. None is so dark that it glares where a dark page inverts it."""
    return [to_hex(colour) for colour in plt.get_cmap("viridis")(np.linspace(0.25, 0.92, count))]


def _grid(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Squares with room for a line above each."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * (WIDTH / columns + 0.2)), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, list(axes.flat)


def _show_map(axis: Axes, values: Tensor, beside: Tensor) -> None:
    """Show a map (H, W); the colours span 0 and all values of ``beside``. Only maps that no ReLU has passed go below 0."""
    lowest, highest = min(0.0, float(beside.min())), max(0.0, float(beside.max()))
    axis.imshow(values, cmap="magma", vmin=lowest, vmax=highest if highest > lowest else 1.0)


def map_gallery(image: Tensor, maps: Tensor, norms: Tensor, title: str, limit: int = 31) -> Figure:
    """One image (H, W, C uint8) and its channels' maps (C, H, W), largest norms (C,) first."""
    order = norms.argsort(descending=True)[:limit].tolist()
    figure, axes = _grid(len(order) + 1, 8)
    axes[0].imshow(image.squeeze(), cmap="gray")
    axes[0].set_title("image", fontsize=8)
    for axis, channel in zip(axes[1:], order, strict=False):
        _show_map(axis, maps[channel], maps[channel])
        axis.set_title(f"{channel}", fontsize=8)
    figure.suptitle(title, fontsize=11, wrap=True)
    return without_paper(figure)


def strongest_images(images: Tensor, norms: Tensor, channels: Sequence[int], count: int = 8) -> Figure:
    """What a channel sees: for each channel, the images (N, H, W, C) whose maps have the largest norm (N, C)."""
    figure, axes = _grid(len(channels) * count, count)
    for row, channel in enumerate(channels):
        best = norms[:, channel].argsort(descending=True)[:count].tolist()
        for axis, index in zip(axes[row * count :], best, strict=False):
            axis.imshow(images[index].squeeze(), cmap="gray")
        axes[row * count].set_title(f"channel {channel}", fontsize=8, loc="left")
    return without_paper(figure)


def norm_profile(norms: Mapping[str, Tensor]) -> Figure:
    """Spread of the channels' L1 norms in every layer, relative to the layer's mean; dead channels at zero."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(norms) + 0.9))
    np.random.seed(0)  # seaborn's jitter draws from numpy's global generator: equal data must give equal pictures
    names = short_names(norms)
    table = pd.DataFrame([{"layer": names[name], "norm": value} for name, n in norms.items() for value in (n / n.mean()).tolist()])
    sns.stripplot(table, x="norm", y="layer", ax=axis, size=3, alpha=0.6, color="#0072B2", jitter=0.25)
    axis.axvline(1, color="#6b6b6b", lw=0.8, ls=":")
    axis.set(xlabel="L1 norm / layer mean", ylabel="")
    return figure


def bins_over_norms(norms: Tensor, labels: Tensor, layer: str, kept: Sequence[int] | None = None) -> Figure:
    """K-Means bins over the L1 norms of one layer's channels, both (C,); with ``kept``, those that go are faint."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3))
    order, entries, found = norms.argsort(), [], labels.unique().tolist()
    for label, colour in zip(sorted(found), bin_colours(len(found)), strict=True):
        at = [rank for rank, channel in enumerate(order.tolist()) if labels[channel] == label]
        bars = axis.bar(at, norms[order[at]], color=colour, width=0.85)
        entries.append(Patch(color=colour, label=f"bin {label}: {len(at)}"))
        for bar, channel in zip(bars, order[at].tolist(), strict=True):
            bar.set_alpha(0.3 if kept is not None and channel not in kept else 1)
    axis.set(xlabel="channels by L1 norm", ylabel="L1 norm $a_c$")
    axis.set_title(layer, loc="left", wrap=True)
    figure.legend(handles=entries, title="channels in each bin", loc="outside lower left", ncols=4, alignment="left")
    return figure


def similarity_by_bin(similarity: Tensor, labels: Tensor, norms: Tensor, layer: str) -> Figure:
    """Similarity matrix (C, C) ordered by bin, then by norm; lines between bins.

    A channel's similarity to itself is left out, so that the colours span the others.
    """
    order = sorted(range(len(labels)), key=lambda c: (int(labels[c]), float(norms[c])))
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4))
    matrix = similarity[order][:, order].numpy().astype(float)
    np.fill_diagonal(matrix, np.nan)
    picture = axis.imshow(np.ma.masked_invalid(matrix), cmap="cividis", interpolation="nearest")
    edges = np.cumsum([int((labels == label).sum()) for label in sorted(labels.unique().tolist())])
    for edge in edges[:-1] - 0.5:
        axis.axhline(edge, color="white", lw=1)
        axis.axvline(edge, color="white", lw=1)
    starts = np.concatenate([[0], edges[:-1]])
    names = [f"bin {i}" for i in range(len(edges))] if len(edges) <= 6 else [str(i) for i in range(len(edges))]
    axis.set_xticks((starts + edges - 1) / 2, names)
    axis.set_yticks((starts + edges - 1) / 2, names)
    axis.tick_params(length=0)
    axis.set_title(layer, loc="left", wrap=True)
    figure.colorbar(picture, ax=axis, label="cosine similarity")
    return without_paper(figure)


def best_against_null(best: Mapping[str, np.ndarray], thresholds: Mapping[str, float]) -> Figure:
    """Distributions of the channels' highest similarity to another, by name, and from where on each has near-duplicates."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.4))
    colours = {"trained": "#0072B2", "untrained": "#E69F00", "trained, shuffled": "#6b6b6b"}
    for name, values in best.items():
        sns.kdeplot(
            x=values, ax=axis, label=name, color=colours[name], fill=True, alpha=0.25, clip=(-1, 1), cut=0, warn_singular=False
        )
    for name, threshold in thresholds.items():
        axis.axvline(threshold, color=colours[name], ls="--", lw=1, label=f"near-duplicates, {name}: above {threshold:.2f}")
    axis.set(xlabel="a channel's highest cosine similarity to another", ylabel="density")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def channel_pairs(images: Tensor, maps: Tensor, chosen: Sequence[tuple[str, int, int, float]]) -> Figure:
    """Pairs of channels side by side below the images (N, H, W, C uint8) of maps (N, C, H, W): pairs (name, i, j, similarity)."""
    rows, side = len(chosen) + 1, WIDTH / (2 * len(maps) + 1)  # inches; as much stands to the left
    figure, axes = plt.subplots(rows, 2 * len(maps), figsize=(WIDTH, rows * (side + 0.2)), squeeze=False)
    for axis in axes[0]:
        axis.set_axis_off()
    for n, image in enumerate(images[: len(maps)]):
        axes[0, 2 * n].imshow(image.squeeze(), cmap="gray")
    for row, (name, i, j, similarity) in zip(axes[1:], chosen, strict=True):
        for n, one in enumerate(maps):
            for axis, channel in ((row[2 * n], i), (row[2 * n + 1], j)):
                _show_map(axis, one[channel], one[channel])
                axis.set_axis_off()
                axis.set_title(str(channel), fontsize=8, pad=2)
        row[0].text(-0.15, 0.5, f"{name}\n{similarity:.2f}", transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    return without_paper(figure)


def dropped_beside_kept(image: Tensor, maps: Tensor, dropped: int, kept: int, similarity: float) -> Figure:
    """A dropped channel beside the kept one that is most similar to it: image (H, W, C) uint8, its maps (C, H, W)."""
    figure, axes = _grid(3, 3)
    axes[0].imshow(image.squeeze(), cmap="gray")
    axes[0].set_title("image", fontsize=9)
    for axis, channel, word in ((axes[1], dropped, "goes"), (axes[2], kept, "stays")):
        _show_map(axis, maps[channel], maps[[dropped, kept]])
        axis.set_title(f"{channel} {word}", fontsize=9)
    figure.suptitle(f"cosine over all images {similarity:.3f}", fontsize=9)
    return without_paper(figure)


def who_goes(norms: Tensor, value: Tensor, labels: Tensor, kept: Sequence[int], layer: str, what: str) -> Figure:
    """Which channels go and why: norm against the value that decides, all (C,); crosses are removed. what: the value, in words."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.8))
    stays, found = np.isin(np.arange(len(norms)), kept), sorted(labels.unique().tolist())
    for label, colour in zip(found, bin_colours(len(found)), strict=True):
        inside = (labels == label).numpy()
        axis.scatter(norms[inside & stays], value[inside & stays], color=colour, s=34, label=f"bin {label}")
        axis.scatter(norms[inside & ~stays], value[inside & ~stays], color=colour, s=34, marker="x")
    axis.set(xlabel="L1 norm $a_c$", ylabel=what)
    axis.set_title(layer, loc="left", wrap=True)
    entries = axis.get_legend_handles_labels()
    figure.legend(*entries, title="dots stay, crosses go", loc="outside lower left", ncols=4, alignment="left")
    return figure


def kept_by_bin(kept: Mapping[str, Sequence[int]], bins: Mapping[str, Tensor]) -> Figure:
    """Every layer of a plan as one bar of its channels, from the bin of the lowest norms to that of the highest.

    bins: each layer's bin of each channel, (C,). In each bin, what stays is in full colour and what goes is faint.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.34 * len(kept) + 1.3))
    names = short_names(kept)
    count = 1 + max(int(labels.max()) for labels in bins.values())
    for row, (name, stay) in enumerate(kept.items()):
        labels, start = bins[name], 0.0
        for label, colour in enumerate(bin_colours(count)):
            members = (labels == label).nonzero()[:, 0].tolist()
            left = 100 * len(set(members) & set(stay)) / len(labels)
            whole = 100 * len(members) / len(labels)
            axis.barh(-row, left, left=start, color=colour, height=0.72)
            axis.barh(-row, whole - left, left=start + left, color=colour, alpha=0.25, height=0.72)
            start += whole
            axis.plot([start, start], [-row - 0.42, -row + 0.42], color="white", lw=2)
    axis.set(
        yticks=[-row for row in range(len(kept))],
        yticklabels=[f"{names[name]}: {len(stay)} of {len(bins[name])}" for name, stay in kept.items()],
        xlim=(0, 100),
        xlabel="channels of the layer (%)",
    )
    entries = [Patch(color=colour, label=f"bin {label}") for label, colour in enumerate(bin_colours(count))]
    figure.legend(handles=entries, title="full colour stays, faint goes", loc="outside upper left", ncols=4, alignment="left")
    return figure


def accuracy_over_ratios(found: Mapping[str, pd.DataFrame], dense: float, images: int) -> Figure:
    """Top-1 without fine-tuning against the share of channels removed, by criterion: plain and merged surgery.

    found: columns ratio, plain and merged, in percent. dense: the unpruned network's. images: behind the accuracies.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for colour, (name, rows) in zip(COLOURS, found.items(), strict=False):
        axis.plot(rows.ratio, rows.plain, color=colour, marker="o", ms=4, label=f"{name}, plain")
        axis.plot(rows.ratio, rows.merged, color=colour, marker="D", ms=4, ls="--", label=f"{name}, merged")
    axis.axhline(dense, color="black", lw=0.8, ls=":", label="unpruned")
    axis.set(xlabel="share of every layer's channels removed", ylabel=f"top-1 (%), {images} images", ylim=(0, 101))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure
