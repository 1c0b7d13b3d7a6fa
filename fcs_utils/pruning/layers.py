"""Which channels belong together and who reads them: a small adapter around Torch-Pruning's dependency graph.

Only that lowest layer of the library is used; importance and selection are this project's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.pruning.flow import Flow, Segments, convolutions, run_once
from fcs_utils.pruning.ties import tied_parameters, unlike

MIXING = (nn.Conv2d, nn.Linear)  # layers that mix channels
# What may lie between: treats each channel by itself, so a channel can go without changing another.
CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.PReLU)
Scope = Literal["inner", "all"]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a convolution's channels.

    ``positions`` (C, k): for each output channel, the consumer's input indices that come from it. k is 1
    for a convolution and height times width for a linear layer behind a flatten.
    """

    name: str
    positions: Tensor


@dataclass(frozen=True)
class Tap:
    """Where a layer's channels can be seen: a module's input or output, and which of its indices (C, k) they are.

    positions: None where all indices are meant, in order. size: height and width of the map that lies
    flattened in the k indices of a channel, where they are known.
    """

    module: str
    side: Literal["input", "output"]
    positions: Tensor | None = None
    size: tuple[int, int] | None = None

    def view(self, seen: Tensor) -> Tensor:
        """The layer's own maps (N, C, ...) in the tensor that is seen there."""
        if self.positions is not None:  # a flattened map in front of a linear layer, or one of several inputs
            at = self.positions if self.positions.shape[1] > 1 else self.positions[:, 0]
            seen = seen[:, at.to(seen.device)]
            seen = seen.unflatten(2, self.size) if self.size else seen
        return seen if seen.dim() > 2 else seen[:, :, None]


@dataclass(frozen=True)
class Layer:
    """A convolution, who reads its output, and what must shrink with it.

    norm: the BatchNorm that alone reads it. followers: depthwise convolutions and gates that lose the same
    channels. coupled: convolutions that share a residual sum with it. tap: the tensor that its consumers
    read. parted: consumers read different tensors, and the tap is the last one that they have in common.
    barrier: why no scope may shrink it.
    """

    name: str
    channels: int
    norm: str | None
    consumers: tuple[Consumer, ...]
    followers: tuple[str, ...]
    coupled: tuple[str, ...]
    tap: Tap
    parted: bool
    barrier: str | None

    def obstacle(self, scope: Scope = "inner") -> str | None:
        """Why a scope leaves this layer whole (M7), or None where it may shrink."""
        if self.barrier:
            return self.barrier
        if scope == "inner" and self.coupled:
            return f"shares a residual sum with {', '.join(self.coupled)}"
        return None


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let the graph be built, then put modes and gradient flags back.

    The library follows gradients, so in a frozen network it silently finds nothing. It also leaves the network
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
    """The dependency graph of a network; call inside ``traceable``. ``example``: images (N, C, H, W).

    Raises StudyError for a network whose channels the library cannot follow, such as ShuffleNet's.
    """
    model.eval()
    try:
        # In a tuple: a lone tensor would be unpacked, and the network traced on an image without its batch.
        return tp.DependencyGraph().build_dependency(model, example_inputs=(example[:1],), verbose=False)
    except Exception as error:  # any error in the forward pass or the library means the same here
        raise StudyError(f"the network's channels cannot be followed on images {tuple(example.shape)}: {error}") from error


def depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that treats each channel by itself."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1


def check_images(model: nn.Module, images: Tensor) -> None:
    """Raises StudyError for images that the network's first convolution cannot take."""
    first = next((module for _, module in convolutions(model)), None)
    if first is None:
        raise StudyError("nothing to prune: the network has no convolution")
    wanted = f"a float tensor (N, {first.in_channels}, H, W) with N of 1 or more on {first.weight.device}"
    shaped = images.dim() == 4 and len(images) and images.shape[1] == first.in_channels
    if not shaped or not images.is_floating_point() or images.device != first.weight.device:
        raise refuse("images", f"{images.dtype} {tuple(images.shape)} on {images.device}", wanted)


def trace_layers(model: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Every convolution of a network, in module order. ``example``: one image or more, (N, C, H, W).

    Raises StudyError for images that do not fit.
    """
    check_images(model, example)
    names = {module: name for name, module in model.named_modules()}
    with traceable(model):
        graph, flow = dependency_graph(model, example), run_once(model, example)
        mixing = [name for module, name in names.items() if isinstance(module, MIXING) and not depthwise(module)]
        segments = Segments(model, example[:1], mixing)
        layers = {name: _layer(name, module, graph, flow, segments, names) for name, module in convolutions(model)}
        ties = tied_parameters(model)
        for name, module in convolutions(model) if ties else ():
            if tie := unlike(graph, _group(graph, module), ties):
                shared = ", ".join(f"{names[owner]}.{parameter}".lstrip(".") for owner, parameter in tie)
                why = layers[name].barrier or f"shares a parameter that would not shrink alike: {shared}"
                layers[name] = replace(layers[name], barrier=why)
        return layers


def prunable_layers(model: nn.Module, images: Tensor, scope: Scope = "inner") -> dict[str, Layer]:
    """The convolutions that a scope may shrink, by name (M7)."""
    return {name: layer for name, layer in trace_layers(model, images).items() if layer.obstacle(scope) is None}


def _layer(
    name: str, module: nn.Conv2d, graph: tp.DependencyGraph, flow: Flow, segments: Segments, names: dict[nn.Module, str]
) -> Layer:
    channels, node = module.out_channels, flow.outputs.get(name)
    if module not in graph.module2node or node is None:
        return Layer(name, channels, None, (), (), (), Tap(name, "output"), False, "the forward pass does not lead through it")
    consumers: list[Consumer] = []
    followers: list[str] = []
    coupled: list[str] = []
    barriers: list[str] = []
    norm = None
    if module.groups != 1:
        barriers.append("depthwise convolution: follows the layer before it" if depthwise(module) else "grouped convolution")
    elif flow.gate(node):
        barriers.append("gates another layer's channels and follows that layer")
    for dependency, indices in _group(graph, module):
        target = dependency.target.module
        called = names.get(target)
        if called is None:
            if isinstance(target, nn.Parameter):
                barriers.append("its channels meet a parameter that belongs to no layer")
            continue
        if flow.calls[called] > 1:
            barriers.append(f"{called} is called more than once in a forward pass")
        if isinstance(target, nn.Conv2d) and target is not module and target.groups != 1 and not depthwise(target):
            barriers.append(f"read by the grouped convolution {called}")
        if isinstance(target, MIXING) and target is not module:
            if graph.is_out_channel_pruning_fn(dependency.handler):
                follows = depthwise(target) or (isinstance(target, nn.Conv2d) and flow.gate(flow.outputs[called]))
                (followers if follows else coupled).append(called)
                if target.weight.shape[0] != channels:
                    barriers.append(f"shares a residual sum with {called}, whose channels do not match one to one")
            else:
                if len(indices) % channels:
                    barriers.append(f"{called} reads its channels in a way that cannot be followed")
                    continue
                consumers.append(Consumer(called, torch.as_tensor(list(indices)).reshape(channels, -1)))
        elif isinstance(target, CHANNELWISE):
            alone = flow.calls[called] == 1 and flow.users.get(node) == [flow.outputs[called]]
            norm = called if alone and isinstance(target, nn.BatchNorm2d) else norm
        elif not isinstance(target, MIXING):
            barriers.append(f"read by {called}, a {type(target).__name__}, which mixes channels")
    walls = {flow.outputs[n] for m, n in names.items() if n in flow.outputs and isinstance(m, MIXING) and not depthwise(m)}
    reached = set().union(*(flow.reach(flow.outputs[n], walls) for n in (name, *coupled)))
    if reached & set(flow.results):
        barriers.append("its channels are the network's outputs")
    if not consumers:
        barriers.append("no layer was found that reads its channels alone")
    joined = {node for node in flow.order if node.name().startswith("Cat")}  # side by side is no sum
    if reached & flow.reach(flow.source, walls | joined):
        barriers.append("shares a residual sum with the images, whose channels stay")
    if channels == 1:
        barriers.append("one channel only")
    if not barriers and (reader := segments.crossing(name, {c.name: c.positions for c in consumers})):
        barriers.append(f"channels mix on the way to {reader}")
    tap, parted = _tap(name, channels, consumers, flow)
    return Layer(
        name, channels, norm, tuple(consumers), tuple(followers), tuple(coupled), tap, parted, barriers[0] if barriers else None
    )


def _group(graph: tp.DependencyGraph, module: nn.Conv2d) -> list[tuple[tp.Dependency, list[int]]]:
    """What shrinks with a convolution; just itself where the library cannot follow its channels."""
    try:
        return list(graph.get_pruning_group(module, tp.prune_conv_out_channels, list(range(module.out_channels))))
    except (IndexError, RuntimeError, ValueError, ZeroDivisionError):
        return []  # no consumers: left whole


def _tap(name: str, channels: int, consumers: list[Consumer], flow: Flow) -> tuple[Tap, bool]:
    """The last tensor on every path to this layer's readers that a module's input or output shows."""
    start = flow.outputs[name]
    downstream = flow.reach(start, set())
    own = [consumer for consumer in consumers if flow.inputs[consumer.name] in downstream]
    ends = [flow.inputs[consumer.name] for consumer in own]
    parted = len(set(ends)) > 1 or len(own) < len(consumers)
    outputs = {flow.outputs[n]: n for n, times in flow.calls.items() if times == 1 and flow.shapes[n, "output"][1:2] == (channels,)}
    narrows = flow.narrows(start, ends) if ends else []
    for node in narrows:
        for consumer in own:
            if flow.inputs[consumer.name] is node:
                indices = consumer.positions.shape[1]
                if indices == 1 and flow.shapes[consumer.name, "input"][1] == channels:
                    return Tap(consumer.name, "input"), parted
                maps = (flow.shapes[outputs[before], "output"] for before in narrows if before in outputs)
                sizes = [(shape[2], shape[3]) for shape in maps if len(shape) == 4 and shape[2] * shape[3] == indices]
                return Tap(consumer.name, "input", consumer.positions, sizes[0] if sizes else None), parted
        if node in outputs:
            return Tap(outputs[node], "output"), parted
    return Tap(name, "output"), parted
