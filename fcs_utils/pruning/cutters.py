"""What cuts channels out of modules that Torch-Pruning does not know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch_pruning as tp
from torch import nn

from fcs_utils.shortcuts import PadShortcut

# Layers with weights of their own, one or more a channel, that the library knows how to cut.
KNOWN = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.PReLU, nn.GroupNorm, nn.LayerNorm)


class PerChannel(tp.BasePruningFunc):  # type: ignore[misc]
    """Cuts modules that hold vectors of one number a channel, such as FrozenBatchNorm2d, LayerScale or a custom affine."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        width = channels_held(layer)
        keep = sorted(set(range(width)) - set(idxs))
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.numel() > 1:
                small = tensor.detach().index_select(tensor.shape.index(width), torch.tensor(keep, device=tensor.device))
                setattr(layer, name, nn.Parameter(small) if isinstance(tensor, nn.Parameter) else small)
        if "num_features" in vars(layer):
            vars(layer)["num_features"] = len(keep)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return channels_held(layer)

    get_in_channels = get_out_channels


class BySides(tp.BasePruningFunc):  # type: ignore[misc]
    """Cuts a ``PadShortcut`` on either side by itself: what it lacks on the other side, it fills with zeros."""

    def prune_out_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> nn.Module:
        layer.lose_outputs(idxs)
        return layer

    def prune_in_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> nn.Module:
        layer.lose_inputs(idxs)
        return layer

    def get_out_channels(self, layer: PadShortcut) -> int:
        return len(layer.positions)

    def get_in_channels(self, layer: PadShortcut) -> int:
        return layer.channels


def cutters(model: nn.Module) -> dict[type, tp.BasePruningFunc]:
    """What cuts the types of modules that the library does not know."""
    return {**dict.fromkeys(_per_channel_types(model), PerChannel()), PadShortcut: BySides()}


def channels_held(module: nn.Module) -> int:
    """How many channels a module without children has one number for in each of its vectors; 0 if it is no such module."""
    own = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.numel() > 1]
    lengths = {tensor.numel() for tensor in own}
    vectors = all(max(tensor.shape) == tensor.numel() for tensor in own)
    return lengths.pop() if len(lengths) == 1 and vectors and not [*module.children()] else 0


def _per_channel_types(model: nn.Module) -> list[type]:
    fits: dict[type, bool] = {}
    for module in model.modules():
        plain = type(module) is nn.Module  # the library would take every module for one of this type
        if not plain and not isinstance(module, (*KNOWN, PadShortcut, nn.MultiheadAttention, nn.Embedding, nn.RNNBase)):
            fits[type(module)] = fits.get(type(module), True) and channels_held(module) > 0
    return [kind for kind, good in fits.items() if good]
