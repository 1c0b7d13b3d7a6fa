"""Which channels belong together: a small adapter around Torch-Pruning's dependency graph.

Only that lowest layer of the library is used; importance and selection are this project's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

MIXING = (nn.Conv2d, nn.Linear)  # layers that mix channels; all else treats each channel by itself


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a convolution's channels.

    ``positions`` (C, k): for each output channel, the consumer's input indices that come from it. k is 1
    for a convolution and height times width for a linear layer behind a flatten.
    """

    name: str
    positions: Tensor


@dataclass(frozen=True)
class Layer:
    """A convolution, who reads its output, and which other convolutions must shrink with it."""

    name: str
    channels: int
    consumers: tuple[Consumer, ...]
    coupled: tuple[str, ...]
    grouped: bool

    def obstacle(self) -> str | None:
        """Why inner scope leaves this layer whole (M7), or None where it may shrink."""
        if self.grouped:
            return "grouped convolution"
        if not self.consumers:
            return "its channels are the network's outputs"
        if self.coupled:
            return f"shares a residual sum with {', '.join(self.coupled)}"
        if self.channels == 1:
            return "one channel only"
        return None


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let the graph be built, then put modes and gradient flags back.

    The library follows gradients, finds nothing in a frozen network without a word, and leaves the network
    in eval mode.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)


def dependency_graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    """The dependency graph of a network; call inside ``traceable``. ``example``: images (N, C, H, W)."""
    model.eval()
    return tp.DependencyGraph().build_dependency(model, example_inputs=example[:1], verbose=False)


def trace_layers(model: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Every convolution of a network, in module order. ``example``: one image or more, (N, C, H, W)."""
    model = copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}
    layers = {}
    with traceable(model):
        graph = dependency_graph(model, example)
        for module, name in names.items():
            if not isinstance(module, nn.Conv2d) or module not in graph.module2node:
                continue
            channels = module.out_channels
            consumers, coupled = [], []
            for dependency, indices in graph.get_pruning_group(module, tp.prune_conv_out_channels, list(range(channels))):
                target = dependency.target.module
                if not isinstance(target, MIXING) or target is module:
                    continue
                if graph.is_out_channel_pruning_fn(dependency.handler):
                    coupled.append(names[target])
                else:
                    positions = torch.as_tensor(list(indices)).reshape(channels, -1)
                    consumers.append(Consumer(names[target], positions))
            layers[name] = Layer(name, channels, tuple(consumers), tuple(coupled), module.groups != 1)
    return layers
