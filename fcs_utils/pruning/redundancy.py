"""How redundant channels are, against a null (claim C1)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.machine import steady_batch
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics, shuffle_pixels


def pairs(similarity: Tensor) -> Tensor:
    """The upper triangle of a similarity matrix: (C, C) -> (C (C - 1) / 2,)."""
    rows, columns = torch.triu_indices(len(similarity), len(similarity), offset=1)
    return similarity[rows, columns]


def best_match(similarity: Tensor) -> Tensor:
    """Each channel's highest similarity to another: (C, C) -> (C,)."""
    return similarity.clone().fill_diagonal_(-1).amax(1)


def null_similarity(model: nn.Module, images: Tensor, seed: int) -> dict[str, Tensor]:
    """Pooled similarity (C, C) by layer when every map's pixels are shuffled: what values alone would give."""
    shuffle = partial(shuffle_pixels, generator=torch.Generator().manual_seed(seed))
    return {name: known.similarity() for name, known in _inner_statistics(model, images, transform=shuffle).items()}


def _inner_statistics(model: nn.Module, images: Tensor, **options: Any) -> dict[str, ChannelStatistics]:
    return collect_statistics(model, images, scope="inner", batch_size=steady_batch(images), **options)


def near_duplicate_shares(model: nn.Module, images: Tensor, quantile: float, seed: int) -> dict[str, dict[str, float]]:
    """By layer, over its live channels: the share with a near-duplicate, and that of pairs more similar than chance.

    A channel has a near-duplicate when its best similarity to another exceeds ``threshold``, the quantile of the *best*
    similarities in the null: by chance alone 1 - quantile of the channels would, however many they are. ``pairs``
    is the share of pairs above the same quantile of the null's pairs. Layers of one position a map are left
    out (shuffling a single pixel changes nothing), and so are layers with fewer than two live channels.
    """
    null = null_similarity(model, images, seed)
    shares = {}
    for name, statistics in _inner_statistics(model, images).items():
        live = (statistics.l1 > 0).nonzero()[:, 0]
        if statistics.positions == 1 or len(live) < 2:
            continue
        similarity, chance = (matrix[live][:, live] for matrix in (statistics.similarity(), null[name]))
        threshold = best_match(chance).quantile(quantile)
        shares[name] = {
            "threshold": threshold.item(),
            "twins": (best_match(similarity) > threshold).double().mean().item(),
            "pairs": (pairs(similarity) > pairs(chance).quantile(quantile)).double().mean().item(),
            "live": len(live) / len(statistics.l1),
        }
    return shares
