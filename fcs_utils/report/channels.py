"""Pictures of one network's channels: maps, norms, bins, similarities, plans. Nothing is saved here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from fcs_utils.report.figures import BIN_COLOURS


def _grid(count: int, columns: int, size: float = 0.9) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * size, rows * size), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, list(axes.flat)


def map_gallery(image: Tensor, maps: Tensor, norms: Tensor, title: str, limit: int = 31) -> Figure:
    """One image (H, W, C uint8) and its channels' maps (C, H, W), largest norms (C,) first."""
    order = norms.argsort(descending=True)[:limit].tolist()
    figure, axes = _grid(len(order) + 1, 8)
    axes[0].imshow(image.squeeze(), cmap="gray")
    axes[0].set_title("image", fontsize=8)
    for axis, channel in zip(axes[1:], order, strict=False):
        axis.imshow(maps[channel], cmap="magma", vmin=0)
        axis.set_title(f"{channel}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def strongest_images(images: Tensor, norms: Tensor, channels: Sequence[int], count: int = 8) -> Figure:
    """What a channel sees: for each channel, the images (N, H, W, C) whose maps have the largest norm (N, C)."""
    figure, axes = _grid(len(channels) * count, count)
    for row, channel in enumerate(channels):
        best = norms[:, channel].argsort(descending=True)[:count].tolist()
        for axis, index in zip(axes[row * count :], best, strict=False):
            axis.imshow(images[index].squeeze(), cmap="gray")
        axes[row * count].set_title(f"channel {channel}", fontsize=8, loc="left")
    return figure


def norm_profile(norms: Mapping[str, Tensor]) -> Figure:
    """Spread of the channels' L1 norms in every layer, relative to the layer's mean; dead channels at zero."""
    figure, axis = plt.subplots(figsize=(9, 3.4))
    np.random.seed(0)  # seaborn's jitter draws from numpy's global generator: equal data must give equal pictures
    table = pd.DataFrame([{"layer": name, "norm": value} for name, n in norms.items() for value in (n / n.mean()).tolist()])
    sns.stripplot(table, x="layer", y="norm", ax=axis, size=3, alpha=0.6, color="#0072B2", jitter=0.25)
    axis.axhline(1, color="#6b6b6b", lw=0.8, ls=":")
    axis.set(ylabel="L1 norm / layer mean", xlabel="")
    axis.tick_params(axis="x", rotation=60)
    return figure


def bins_over_norms(norms: Tensor, labels: Tensor, layer: str, kept: Sequence[int] | None = None) -> Figure:
    """K-Means bins over the L1 norms of one layer's channels, both (C,); with ``kept``, those that go are pale."""
    figure, axis = plt.subplots(figsize=(9, 3))
    order, entries = norms.argsort(), []
    for label in labels.unique().tolist():
        at = [rank for rank, channel in enumerate(order.tolist()) if labels[channel] == label]
        colour = BIN_COLOURS[label % len(BIN_COLOURS)]
        bars = axis.bar(at, norms[order[at]], color=colour, width=0.85)
        entries.append(Patch(color=colour, label=f"bin {label}: {len(at)}"))
        for bar, channel in zip(bars, order[at].tolist(), strict=True):
            bar.set_alpha(0.3 if kept is not None and channel not in kept else 1)
    axis.set(xlabel="channels by L1 norm", ylabel="L1 norm $a_c$", title=layer)
    axis.legend(handles=entries, title="bin: channels", ncols=4)
    return figure


def similarity_by_bin(similarity: Tensor, labels: Tensor, norms: Tensor, layer: str) -> Figure:
    """Similarity matrix (C, C) ordered by bin, then by norm; lines between bins."""
    order = sorted(range(len(labels)), key=lambda c: (int(labels[c]), float(norms[c])))
    figure, axis = plt.subplots(figsize=(5.6, 4.8))
    picture = axis.imshow(similarity[order][:, order], cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    edges = np.cumsum([int((labels == label).sum()) for label in labels.unique().tolist()])
    for edge in edges[:-1] - 0.5:
        axis.axhline(edge, color="white", lw=1)
        axis.axvline(edge, color="white", lw=1)
    starts = np.concatenate([[0], edges[:-1]])
    axis.set_xticks((starts + edges - 1) / 2, [f"bin {i}" for i in range(len(edges))])
    axis.set_yticks((starts + edges - 1) / 2, [f"bin {i}" for i in range(len(edges))])
    axis.tick_params(length=0)
    axis.set_title(layer)
    figure.colorbar(picture, ax=axis, label="cosine similarity")
    return figure


def similarity_against_null(pairs: Mapping[str, np.ndarray], threshold: float) -> Figure:
    """Distributions of pair similarities by name, with the null's quantile that counts as 'similar'."""
    figure, axis = plt.subplots(figsize=(8, 3.4))
    colours = {"trained": "#0072B2", "untrained": "#E69F00", "shuffled-pixel null": "#6b6b6b"}
    for name, values in pairs.items():
        sns.kdeplot(x=values, ax=axis, label=name, color=colours[name], fill=True, alpha=0.25, clip=(-1, 1), cut=0)
    axis.axvline(threshold, color="#6b6b6b", ls="--", lw=1, label=f"99th percentile of shuffled pairs: {threshold:.2f}")
    axis.set(xlabel="cosine similarity of a pair of channels", ylabel="density")
    axis.legend()
    return figure


def channel_pairs(maps: Tensor, chosen: Sequence[tuple[str, int, int, float]]) -> Figure:
    """Pairs of channels side by side on the same images: maps (N, C, H, W), pairs (name, i, j, similarity)."""
    figure, axes = plt.subplots(len(chosen), 2 * len(maps), figsize=(1.05 * 2 * len(maps), 1.25 * len(chosen)), squeeze=False)
    for row, (name, i, j, similarity) in zip(axes, chosen, strict=True):
        for n, one in enumerate(maps):
            for axis, channel in ((row[2 * n], i), (row[2 * n + 1], j)):
                axis.imshow(one[channel], cmap="magma", vmin=0)
                axis.set_axis_off()
                axis.set_title(str(channel), fontsize=7, pad=2)
        row[0].text(-0.15, 0.5, f"{name}\n{similarity:.2f}", transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def dropped_beside_kept(image: Tensor, maps: Tensor, dropped: int, kept: int, similarity: float) -> Figure:
    """A dropped channel beside the kept one that is most similar to it: image (H, W, C) uint8, its maps (C, H, W)."""
    figure, axes = _grid(3, 3, 1.9)
    axes[0].imshow(image.squeeze(), cmap="gray")
    axes[0].set_title("image", fontsize=9)
    top = float(maps[[dropped, kept]].max())
    for axis, channel, word in ((axes[1], dropped, "goes"), (axes[2], kept, "stays")):
        axis.imshow(maps[channel], cmap="magma", vmin=0, vmax=top or 1)
        axis.set_title(f"{channel} {word}", fontsize=9)
    figure.suptitle(f"cosine over all images {similarity:.3f}", fontsize=9)
    return figure


def who_goes(norms: Tensor, redundancy: Tensor, labels: Tensor, kept: Sequence[int], layer: str) -> Figure:
    """Which channels go and why: norm against redundancy inside the bin, all (C,); crosses are removed."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    stays = np.isin(np.arange(len(norms)), kept)
    for label in labels.unique().tolist():
        colour, inside = BIN_COLOURS[label % len(BIN_COLOURS)], (labels == label).numpy()
        axis.scatter(norms[inside & stays], redundancy[inside & stays], color=colour, s=34, label=f"bin {label}")
        axis.scatter(norms[inside & ~stays], redundancy[inside & ~stays], color=colour, s=34, marker="x")
    axis.set(xlabel="L1 norm $a_c$", ylabel="mean similarity to its bin", title=f"{layer}: dots stay, crosses go")
    axis.legend(ncols=4)
    return figure


def kept_map(kept: Mapping[str, Sequence[int]], channels: Mapping[str, int]) -> Figure:
    """Every layer of a plan as a strip of its channels: dark stays, light goes."""
    figure, axis = plt.subplots(figsize=(9, 0.28 * len(kept) + 0.9))
    picture = np.full((len(kept), max(channels.values())), np.nan)
    for row, name in enumerate(kept):
        picture[row, : channels[name]] = np.isin(np.arange(channels[name]), kept[name])
    colours = ListedColormap(["#F5C9A8", "#0072B2"])
    axis.imshow(picture, aspect="auto", cmap=colours, norm=BoundaryNorm([-0.5, 0.5, 1.5], 2), interpolation="nearest")
    axis.set(yticks=range(len(kept)), yticklabels=list(kept), xlabel="channel: blue stays, orange goes")
    axis.grid(False)
    return figure
