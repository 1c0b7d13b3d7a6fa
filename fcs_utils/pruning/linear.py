"""Least squares on the Gram matrix: which channels the others rebuild, and how (beyond the paper).

A pair of near-duplicates is the smallest case of linear dependence. The Gram matrix, which pairwise similarity needs
anyway, holds all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.pruning.criteria import criterion
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.kinds import grouped, kernel
from fcs_utils.pruning.statistics import ChannelStatistics

POSITIONS = 2.5  # for each kept channel: a fit to about as many positions as channels is exact on them and wild elsewhere
RIDGE = 1e-6  # of the mean diagonal: keeps singular Gram matrices invertible, too small to blur a scaled copy


def read_together(module: Any, consumer: Consumer) -> list[tuple[slice, list[int]]]:
    """The rows of a consumer's weight, by group of a convolution, and the layer's channels that they read."""
    if not grouped(module):
        return [(slice(None), [*range(len(consumer.positions))])]
    owner = consumer.positions[:, 0] // (module.in_channels // module.groups)
    rows = module.out_channels // module.groups
    return [(slice(n * rows, (n + 1) * rows), (owner == n).nonzero()[:, 0].tolist()) for n in range(module.groups)]


def read_weights(model: nn.Module, consumer: Consumer) -> Tensor:
    """The consumer's weights that read a layer's C channels: (O, C, k), k kernel or map positions; float64.

    They are zero where an output of a grouped convolution does not read a channel, or where a channel is read less often than
    others.
    """
    module: Any = model.get_submodule(consumer.name)
    weight = kernel(module)
    positions = consumer.positions.to(weight.device)
    if not grouped(module):
        read = weight[:, positions].double()  # (O, C, places, kernel), of a linear layer (O, C, places)
        read[:, positions < 0] = 0
        return read.flatten(2)
    kernels = weight.flatten(2).double()  # (O, inputs of a group, k)
    read = kernels.new_zeros(len(kernels), len(positions), kernels.shape[2])
    for rows, channels in read_together(module, consumer):
        read[rows, channels] = kernels[rows, positions[channels, 0] % kernels.shape[1]]
    return read


def elimination_order(gram: Tensor, weights: Tensor, norms: Tensor) -> list[int]:
    """Channels in the order in which backward elimination drops them, the least needed first.

    gram: (C, C). weights: (C,), what a unit of squared error in a channel costs. norms: (C,).

    Channel j's residual after its best reconstruction from all other channels left is 1 / (G^-1)_jj; the
    channel with the smallest weighted residual goes, and the inverse of the rest follows by one rank-one
    step. Dead channels go first; ties to the smaller norm, then to the higher index.
    """
    channels = len(gram)
    scale = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    inverse = torch.linalg.inv(gram / scale + RIDGE * torch.eye(channels, dtype=gram.dtype))
    weights = torch.where(norms > 0, weights, 0.0)
    by_norm = sorted(range(channels), key=lambda c: (norms[c].item(), -c))  # the first of equals goes
    left = torch.ones(channels, dtype=torch.bool)
    order: list[int] = []
    for _ in range(channels):
        cost = torch.where(left, weights / inverse.diagonal(), math.inf)
        gone = by_norm[int(cost[by_norm].argmin())]
        order.append(gone)
        left[gone] = False
        column = inverse[:, gone].clone()
        inverse -= column[:, None] * (column / column[gone])
        inverse[gone, gone] = 1.0  # already dropped; keeps the division above defined
    return order


@criterion("fcs_linear", reads="network", title="FCS by least squares", reading="residual of least squares on the kept channels")
def fcs_linear(model: nn.Module, statistics: ChannelStatistics) -> Tensor:
    """The place in backward elimination, as a share in (0, 1): what goes last matters most (M13).

    The squared error of a channel is weighted by the squared weights with which its consumers read it.
    """
    weights = torch.stack([read_weights(model, consumer).square().sum((0, 2)).cpu() for consumer in statistics.consumers]).sum(0)
    order = elimination_order(statistics.gram, weights, statistics.l1)
    importance = torch.empty_like(statistics.l1)
    importance[order] = (torch.arange(len(order), dtype=importance.dtype) + 0.5) / len(order)
    return importance


def reconstruction(
    statistics: ChannelStatistics, kept: Sequence[int], dropped: Sequence[int], intercept: bool
) -> tuple[Tensor, Tensor]:
    """How dropped maps are blended from kept ones, F_D ~ A F_K + b (M8): A (D, K) and b (D,), zeros without intercept.

    Ridge least squares over all images and positions.
    """
    keep, drop = torch.tensor(kept), torch.tensor(dropped)
    products = statistics.gram / statistics.count
    size = products.diagonal()[keep].mean()
    ridge = RIDGE * (size if size > 0 else 1.0)  # all channels dead: the solution is then zero
    if intercept:
        products = products - statistics.mean[:, None] * statistics.mean
    inner = products[keep][:, keep]
    blend = torch.linalg.solve(inner + ridge * torch.eye(len(keep), dtype=inner.dtype), products[keep][:, drop]).T
    offset = statistics.mean[drop] - blend @ statistics.mean[keep]
    return blend, offset if intercept else torch.zeros_like(offset)
