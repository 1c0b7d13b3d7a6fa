"""Letting kept channels stand in for dropped ones, without training (M8; beyond the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.layers import Consumer, Layer, trace_layers
from fcs_utils.pruning.linear import read_weights, reconstruction
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.statistics import ChannelStatistics


@torch.no_grad()
def merge(model: nn.Module, plan: PruningPlan, statistics: Mapping[str, ChannelStatistics]) -> dict[str, str]:
    """Fold the dropped channels' least-squares reconstruction into their consumers, in place, before surgery.

    F_D ~ A F_K + b turns W_K F_K + W_D F_D into (W_K + W_D A) F_K + W_D b. The constant goes into the
    consumer's bias or out of the running mean of the BatchNorm behind it. It is fitted only where one of the
    two exists and the consumer does not pad with zeros, since a shifted constant would be wrong at the borders.

    statistics: of this network, unpruned. Returns why layers were left out, and warns of them once. Raises
    StudyError for statistics that do not fit.
    """
    weight = next(model.parameters())
    layers = trace_layers(model, torch.zeros(1, *plan.input_shape, device=weight.device, dtype=weight.dtype))
    followers = {follower for name in plan.kept for follower in layers[name].followers}
    skipped: dict[str, str] = {}
    for name, kept in plan.kept.items():
        layer = layers[name]
        if name in followers:
            continue
        if reason := _obstacle(layer, statistics.get(name)):
            skipped[name] = reason
            continue
        known = statistics[name]
        if known.tap != "consumer":
            raise StudyError(
                f"merge needs statistics of what the consumers read; those of {name} were taken with tap={known.tap!r}"
            )
        if len(known.l1) != layer.channels:
            raise StudyError(f"statistics are of another network: {name} has {layer.channels} channels, they {len(known.l1)}")
        for consumer in layer.consumers:
            _fold(model, layers, consumer, known, kept)
    if skipped:
        warnings.warn(
            f"merge left out {len(skipped)} of {len(plan.kept)} layers: "
            + "; ".join(f"{name} ({why})" for name, why in skipped.items()),
            stacklevel=3,
        )
    return skipped


def _obstacle(layer: Layer, statistics: ChannelStatistics | None) -> str | None:
    if layer.coupled:
        return "a residual sum reads its channels besides the consumers"
    if layer.parted:
        return "its consumers read different tensors"
    return "no statistics of it" if statistics is None else None


def _fold(
    model: nn.Module, layers: Mapping[str, Layer], consumer: Consumer, statistics: ChannelStatistics, kept: list[int]
) -> None:
    module = model.get_submodule(consumer.name)
    norm = layers[consumer.name].norm if consumer.name in layers else None
    if norm is not None and model.get_submodule(norm).running_mean is None:  # it uses each batch's own mean
        norm = None
    padded = isinstance(module, nn.Conv2d) and module.padding not in (0, (0, 0), "valid") and module.padding_mode == "zeros"
    shift = module.bias if isinstance(module.bias, Tensor) else None
    blend, offset = reconstruction(statistics, kept, intercept=not padded and (shift is not None or norm is not None))
    weight, read = module.weight, read_weights(model, consumer)  # (O, C, k)
    assert isinstance(weight, Tensor)
    dropped = [channel for channel in range(len(statistics.l1)) if channel not in set(kept)]
    lost = read[:, dropped]  # (O, D, k)
    blended = read[:, kept] + torch.einsum("odk,dc->ock", lost, blend.to(read))
    columns = consumer.positions[kept].to(weight.device)  # (K, k)
    if weight.dim() == 2:
        weight[:, columns] = blended.to(weight)
    else:
        weight[:, columns[:, 0]] = blended.unflatten(2, weight.shape[2:]).to(weight)
    constant = torch.einsum("odk,d->o", lost, offset.to(read))
    if shift is not None:
        shift += constant.to(shift)
    elif norm is not None:
        mean = model.get_submodule(norm).running_mean
        assert isinstance(mean, Tensor)
        mean -= constant.to(mean)
