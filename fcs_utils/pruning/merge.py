"""Letting kept channels stand in for dropped ones, without training (M8; beyond the paper)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, blank_like, placed
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.kinds import DIRECT, TRANSPOSED, kernel
from fcs_utils.pruning.layers import Layer, trace_layers
from fcs_utils.pruning.linear import POSITIONS, read_together, read_weights, reconstruction
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.statistics import ChannelStatistics, check_weights
from fcs_utils.pruning.ties import tied_parameters


@torch.no_grad()
def merge(model: nn.Module, plan: PruningPlan, statistics: Mapping[str, ChannelStatistics], images: Inputs) -> dict[str, str]:
    """Fold the dropped channels' least-squares reconstruction into their consumers, in place, before surgery.

    F_D ~ A F_K + b turns W_K F_K + W_D F_D into (W_K + W_D A) F_K + W_D b. The constant goes into the
    consumer's bias or out of the running mean of the BatchNorm behind it. It is fitted only where one of the
    two exists and the consumer does not pad with zeros, since a shifted constant would be wrong at the borders.
    A weight that consumers share changes once, and its constant is fitted only where all of them have a place for it.

    statistics: of this network, unpruned; a layer needs ``POSITIONS`` times as many positions, over all images, as it
    keeps channels. images: of the plan's size. Returns why layers were left out, and warns of them
    once. Raises StudyError for statistics that do not fit.
    """
    check_weights(model, {name: statistics[name] for name in plan.kept if name in statistics})  # before a fold changes them
    weight = next(model.parameters())
    layers = trace_layers(model, placed(blank_like(images), weight))
    followers = {follower for name in plan.kept for follower in layers[name].followers}
    skipped: dict[str, str] = {}
    for name, kept in plan.kept.items():
        layer = layers[name]
        if name in followers:
            continue
        if reason := _obstacle(layer, statistics.get(name), len(kept)):
            skipped[name] = reason
            continue
        known = statistics[name]
        if len(known.l1) != layer.channels:
            raise StudyError(f"statistics are of another network: {name} has {layer.channels} channels, they {len(known.l1)}")
        if known.tap != "reader":
            raise StudyError(f"merging needs the maps that readers see; these statistics were collected with tap={known.tap!r}")
        readers: dict[object, list[Consumer]] = {}  # those of one weight together; one module may read a layer in two places
        for consumer in layer.consumers:
            key = model.get_submodule(consumer.name).weight, tuple(consumer.positions.flatten().tolist())
            readers.setdefault(key, []).append(consumer)
        for alike in readers.values():
            _fold(model, layers, alike, known, kept)
    if skipped:
        names = {why: ", ".join(name for name in skipped if skipped[name] == why) for why in skipped.values()}
        listed = "; ".join(f"{which} ({why})" for why, which in names.items())
        left_out = f"merge left out {len(skipped)} of {len(plan.kept)} layers: {listed}"
        warnings.warn(left_out, stacklevel=5)  # the caller of prune
    return skipped


def _obstacle(layer: Layer, statistics: ChannelStatistics | None, kept: int) -> str | None:
    if layer.coupled:
        return "other layers share its consumers" if layer.again else "a residual sum reads its channels besides the consumers"
    if any(consumer.laid_out for consumer in layer.consumers):
        return "several of its channels become one on the way to a consumer"
    if layer.parted:
        return "its consumers read different tensors"
    if not all(consumer.even and (layer.tap.axis == -1 or consumer.positions.shape[1] == 1) for consumer in layer.consumers):
        return "a consumer reads some of its channels in several places"
    if statistics is None:
        return "no statistics of it"
    if statistics.count < (least := math.ceil(POSITIONS * kept)):
        return f"{statistics.count} positions for {kept} kept channels; at least {least} are needed: take more images"
    return None


def _fold(
    model: nn.Module, layers: Mapping[str, Layer], readers: list[Consumer], statistics: ChannelStatistics, kept: list[int]
) -> None:
    """Change the weight that these consumers share, and where each of them takes up the constant."""
    places = [_place(model, layers, reader.name, {model.get_submodule(one.name) for one in readers}) for reader in readers]
    module: Any = model.get_submodule(readers[0].name)
    positions, stays = readers[0].positions, set(kept)
    weight, read = kernel(module), read_weights(model, readers[0])  # (O, C, k)
    constant = read.new_zeros(len(read))
    for rows, channels in read_together(module, readers[0]):  # a group of a convolution sees no channels but its own
        keep, drop = [c for c in channels if c in stays], [c for c in channels if c not in stays]
        blend, offset = reconstruction(statistics, keep, drop, intercept=None not in places)
        lost = read[rows, drop]  # (O, D, k)
        blended = read[rows, keep] + torch.einsum("odk,dc->ock", lost, blend.to(read))
        columns = positions[keep].to(weight.device)  # (K, k)
        if weight.dim() == 2:
            weight[rows, columns] = blended.to(weight)
        else:
            weight[rows, columns[:, 0] % weight.shape[1]] = blended.unflatten(2, weight.shape[2:]).to(weight)
        constant[rows] = torch.einsum("odk,d->o", lost, offset.to(read))
    for tensor, sign in {id(place[0]): place for place in places if place}.values():  # a bias, too, may be shared
        tensor += sign * constant.to(tensor)


def _place(model: nn.Module, layers: Mapping[str, Layer], name: str, readers: set[nn.Module]) -> tuple[Tensor, int] | None:
    """The tensor that takes up a constant in front of a consumer, and with which sign; None where no tensor can."""
    module = model.get_submodule(name)
    if isinstance(module, TRANSPOSED):
        return None  # near the borders, and with a stride, a position is reached by some of the kernel only
    padded = isinstance(module, DIRECT) and module.padding != "valid" and any(module.padding)
    if padded and module.padding_mode == "zeros":
        return None
    if isinstance(module.bias, Tensor):
        tie = next((tie for tie in tied_parameters(model) if (module, "bias") in tie), [])
        return (module.bias, 1) if {other for other, _ in tie} <= readers else None  # others must not feel the change
    norm = layers[name].norm if name in layers else None
    mean = model.get_submodule(norm).running_mean if norm else None  # None where it uses each batch's own mean
    return (mean, -1) if isinstance(mean, Tensor) else None
