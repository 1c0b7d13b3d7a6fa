"""Layers that mix channels, seen alike: convolutions, transposed convolutions and linear layers."""

from __future__ import annotations

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
Prunable = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


def out_width(module: Prunable) -> int:
    """How many channels a layer yields; of a linear layer, its output features."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def in_width(module: Prunable) -> int:
    """How many channels a layer reads; of a linear layer, its input features."""
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def kernel(module: Prunable) -> Tensor:
    """A layer's weight (O, I, ...), outputs first, without its gradient; I are the inputs of one group. It shares its memory."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else weight


def channel_axis(module: object) -> int:
    """Which axis of a layer's input and output holds the channels: the last one of linear layers."""
    return -1 if isinstance(module, nn.Linear) else 1


def depthwise(module: object) -> bool:
    """Whether a module is a convolution that treats each channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def grouped(module: object) -> bool:
    """Whether a module is a convolution of several groups that mix channels, or give several outputs for one input."""
    return isinstance(module, nn.Conv2d) and module.groups > 1 and not depthwise(module)
