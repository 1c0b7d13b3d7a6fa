"""Layers that mix channels, seen alike: convolutions, transposed convolutions and linear layers, of signals, images and volumes."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.inputs import Inputs, images_in_words, parts_of
from fcs_utils.running import check_hooks

DIRECT = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # the others are transposed
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (*DIRECT, *TRANSPOSED)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Prunable = Convolution | nn.Linear
SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}  # of images, by the number of their axes


def out_width(module: Prunable) -> int:
    """How many channels a layer yields; of a linear layer, its output features."""
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def in_width(module: Prunable) -> int:
    """How many channels a layer reads; of a linear layer, its input features."""
    return module.in_features if isinstance(module, nn.Linear) else module.in_channels


def kernel(module: Prunable) -> Tensor:
    """A layer's weight (O, I, ...), outputs first, without its gradient; I are the inputs of one group. It shares its memory."""
    weight = module.weight.detach()
    return weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight


def channel_axis(module: object) -> int:
    """Which axis of a layer's input and output holds the channels: the last one of linear layers."""
    return -1 if isinstance(module, nn.Linear) else 1


def depthwise(module: object) -> bool:
    """Whether a module is a convolution that treats each channel by itself."""
    return multiplier(module) > 0


def multiplier(module: object) -> int:
    """How many outputs a depthwise convolution has for each input; 0 for other modules."""
    if not isinstance(module, DIRECT) or not module.groups == module.in_channels > 1:
        return 0
    return module.out_channels // module.in_channels


def grouped(module: object) -> bool:
    """Whether a module is a convolution of several groups that mix channels."""
    return isinstance(module, DIRECT) and module.groups > 1 and not depthwise(module)


def held_axis(parameter: Tensor, indices: Collection[int]) -> int | None:
    """The one axis of a parameter whose places are these indices, all of them; of a vector, some. None for none, or several."""
    vector = max(parameter.shape, default=0) == parameter.numel()
    axes = [n for n, size in enumerate(parameter.shape) if {*range(size)} == {*indices} or vector and {*range(size)} > {*indices}]
    return axes[0] if len(axes) == 1 else None


def map_axes(model: nn.Module) -> set[int]:
    """How many axes the inputs of a network's convolutions have: 3 of signals, 4 of images, 5 of volumes."""
    return {len(module.kernel_size) + 2 for module in model.modules() if isinstance(module, CONVOLUTIONS)}


def check_axes(model: nn.Module, images: Inputs | None, parameter: str = "images", home: torch.device | None = None) -> None:
    """Raises StudyError, which names the parameter, for images that are not float, are elsewhere, or have other axes.

    Several inputs may have any axes: how a network brings them to its convolutions is its own affair.
    """
    if images is None:
        return
    axes, where = map_axes(model), f" on {home}" if home else ""
    away = home is not None and any(one.device != home for one in parts_of(images))
    if not isinstance(images, Tensor):
        if away:
            raise refuse(parameter, images_in_words(images), f"tensors{where}")
    elif axes and (away or images.dim() not in axes or not images.numel() or not images.is_floating_point()):
        wanted = " or ".join(SHAPES[number] for number in sorted(axes))
        given = f"{images.dtype} {tuple(images.shape)} on {images.device}"
        raise refuse(parameter, given, f"a float tensor {wanted} with N of 1 or more{where}")


def check_images(model: nn.Module, images: Inputs, parameter: str = "images") -> None:
    """Raises StudyError for what no network takes as images, and for a compiled one. Whether this one runs shows when it runs."""
    check_hooks(model)
    if not map_axes(model):
        raise StudyError("nothing to prune: the network has no convolution")
    check_axes(model, images, parameter, next((one.device for one in model.parameters()), parts_of(images)[0].device))
