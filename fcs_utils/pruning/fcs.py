"""Feature channels similarity (Yang and Xiao 2022): bins of the L1 norms, redundancy inside them, importance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import kmeans1d
import torch
from torch import Tensor

from fcs_utils.errors import refuse
from fcs_utils.pruning.criteria import criterion
from fcs_utils.pruning.statistics import ChannelStatistics
from fcs_utils.pruning.sums import Reading, Where

ALONE, DEAD = 2.0, -1.0  # (M6), quota "bin": outside the open interval (0, 1) of the ranks


def assign_bins(norms: Tensor, bins: int, binning: Literal["exact", "sklearn"] = "exact", seed: int = 0) -> Tensor:
    """K-Means on the channels' L1 norms (M2): (C,) norms -> (C,) bin numbers, 0 = smallest norms.

    ``exact`` finds the one-dimensional optimum by dynamic programming and is the same every time;
    ``sklearn`` is Lloyd's algorithm with its seed. Fewer distinct norms than bins give fewer bins.
    """
    if bins < 1:
        raise refuse("bins", bins, "1 or more")
    bins = min(bins, len(norms.unique()))
    if binning == "exact":
        return torch.tensor(kmeans1d.cluster(norms.tolist(), bins).clusters)
    if binning != "sklearn":
        raise refuse("binning", binning, "'exact' or 'sklearn'")
    from sklearn.cluster import KMeans

    fitted = KMeans(bins, n_init=10, random_state=seed).fit(norms[:, None].numpy())
    order = fitted.cluster_centers_[:, 0].argsort().argsort()  # cluster number -> rank of its centre
    return torch.as_tensor(order[fitted.labels_])


def redundancy_in_bin(similarity: Tensor, norms: Tensor, redundancy: Literal["mean", "max", "greedy"]) -> Tensor:
    """How well its bin's other members stand in for each channel (M4).

    similarity: (n, n) and norms: (n,) of the bin's members, n of 2 or more. Returns (n,) in -1..1.
    ``mean`` and ``max`` are over the other members. ``greedy`` drops one channel of the most similar pair at a
    time; a channel's redundancy is then its similarity to the other one, and the last channel gets -1.
    """
    others = similarity.clone()
    if redundancy == "mean":
        return others.fill_diagonal_(0).sum(1) / (len(norms) - 1)
    others.fill_diagonal_(-math.inf)
    if redundancy == "max":
        return others.amax(1)
    dropped_at = torch.full((len(norms),), -1.0, dtype=similarity.dtype)
    for _ in range(len(norms) - 1):
        first, second = divmod(int(others.argmax()), len(norms))  # the first of equal pairs: first < second
        # The smaller norm goes; of two equals, the higher index.
        loser = first if norms[first] < norms[second] else second
        dropped_at[loser] = others[first, second]
        others[loser, :] = others[:, loser] = -math.inf
    return dropped_at


def break_ties(importance: Tensor, norms: Tensor) -> Tensor:
    """Nudge equal values apart by single float64 steps: the larger norm first, then the lower index (M5)."""
    order = sorted(range(len(norms)), key=lambda c: (importance[c].item(), norms[c].item(), -c))
    values, last = importance.clone(), -math.inf
    for channel in order:
        last = max(importance[channel].item(), math.nextafter(last, math.inf))
        values[channel] = last
    return values


def in_words(options: Mapping[str, Any]) -> str:
    """A choice of options as tables name it; ``order`` and ``tap`` appear only where they are not the default."""
    share = "one threshold for all layers" if options["quota"] == "global" else f"quota by {options['quota']}"
    if options["order"] == "norm":
        share = "lowest-norm bin first"
    tap = "" if options["tap"] == "reader" else ", raw convolution output"
    return f"{options['reading']} cosine, {options['redundancy']}, {share}, B = {options['bins']}{tap}"


@criterion("fcs_greedy", reads="statistics", title="FCS (greedy)", reading=in_words, fixed={"redundancy": "greedy"})
@criterion("fcs", reads="statistics", title="FCS", reading=in_words)
def fcs(
    statistics: ChannelStatistics,
    *,
    reading: Reading = "pooled",
    redundancy: Literal["mean", "max", "greedy"] = "mean",
    quota: Literal["bin", "layer", "global"] = "bin",
    order: Literal["similarity", "norm"] = "similarity",
    bins: int = 4,
    binning: Literal["exact", "sklearn"] = "exact",
    tap: Where = "reader",
    seed: int = 0,
) -> Tensor:
    """Feature channels similarity (Yang and Xiao 2022), (M1) to (M6); the defaults read the abstract literally.

    Channels of similar L1 norm share a bin; inside it the channels that the others resemble go first. With
    ``quota="bin"`` every bin gives about the same share: importance is (rank in the bin + 1/2) / bin size.
    With ``quota="layer"`` it is minus the redundancy and the whole layer is ranked. ``quota="global"`` gives the same numbers,
    and a plan with ``ranking="network"`` then compares them between layers. With ``order="norm"`` one bin is emptied after the
    other, the smallest norms first: importance is (bin + rank in the bin, as above) / number of bins. ``tap`` says where the
    maps were taken, as ``collect_statistics`` does. Returns (C,), higher = keep.

    Raises StudyError for an unknown option, fewer than one bin, a quota beside ``order="norm"``, and a reading that was not
    collected.
    """
    if quota not in ("bin", "layer", "global"):
        raise refuse("quota", quota, "'bin', 'layer' or 'global'")
    if order not in ("similarity", "norm"):
        raise refuse("order", order, "'similarity' or 'norm'")
    if order == "norm" and quota != "bin":
        raise refuse("quota", quota, "none but the default beside order='norm', which empties one bin after the other")
    if redundancy not in ("mean", "max", "greedy"):
        raise refuse("redundancy", redundancy, "'mean', 'max' or 'greedy'")
    norms, similarity = statistics.l1, statistics.similarity(reading)
    dead = norms == 0
    labels = assign_bins(norms, bins, binning, seed)
    importance, found = torch.empty_like(norms), labels.unique()
    for label in found:
        members = (labels == label).nonzero()[:, 0]
        if len(members) == 1:
            importance[members] = ALONE
            continue
        inside = -redundancy_in_bin(similarity[members][:, members], norms[members], redundancy)
        if quota == "bin":
            inside = torch.where(dead[members], -math.inf, inside)
            ranks = break_ties(inside, norms[members]).argsort(stable=True).argsort(stable=True)
            inside = (ranks + 0.5) / len(members)
        if order == "norm":
            inside = (label + inside) / len(found)
        importance[members] = inside.to(importance.dtype)
    # Without a quota by bin, -redundancy spans -1..1, so a dead channel needs a value below that.
    importance[dead] = DEAD if quota == "bin" else -ALONE
    return break_ties(importance, norms)
