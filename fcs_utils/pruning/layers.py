"""Which channels belong together, who reads them, and what is left whole and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.pruning.flow import Consumer, Flow, Node, Tap, check_images, convolutions, run_once
from fcs_utils.pruning.graph import cut_by, dependency_graph, traceable, walk
from fcs_utils.pruning.segments import Segments
from fcs_utils.pruning.shares import ANY, Shares, depthwise, grouped, shares_of
from fcs_utils.pruning.ties import tied_parameters, unlike
from fcs_utils.running import untouched
from fcs_utils.shortcuts import PadShortcut

MIXING = (nn.Conv2d, nn.Linear, PadShortcut)  # layers that mix channels, or move them: indices before and behind differ
# What may lie between: treats each channel by itself, so a channel can go without changing another.
CHANNELWISE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.PReLU)
NAMED = 100  # layers that one reason lists
LARGE = 512  # operations of a group from which on its layers share one walk
ROUTE = "whether the forward pass leads through it depends on the image"
Scope = Literal["inner", "all"]


@dataclass(frozen=True)
class Layer:
    """A convolution, who reads its output, and what must shrink with it.

    norm: the BatchNorm that alone reads it. followers: depthwise convolutions and gates that lose the same
    channels. coupled: convolutions that share a residual sum with it (of very many, itself too) and lose the same channels.
    shortcuts: those of option A that read it. beyond: convolutions on the other side of a shortcut of option A that reads it or
    adds to it; they share a residual sum with it, but keep channels of their own. aligned: those of them whose channels lie one
    to one beside its own. tap: the tensor that its consumers read. parted: consumers read different tensors, and the tap is the
    last one that they have in common. barrier: why no scope may shrink it. shares: which channels go only together, or in equal
    numbers.
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
    shortcuts: tuple[Consumer, ...] = ()
    beyond: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    shares: Shares = ANY

    def obstacle(self, scope: Scope = "inner") -> str | None:
        """Why a scope leaves this layer whole (M7), or None where it may shrink."""
        if self.barrier:
            return self.barrier
        if scope == "inner" and (self.coupled or self.beyond):
            others = [name for name in (*self.coupled, *self.beyond) if name != self.name]
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            return f"shares a residual sum with {', '.join(others[:NAMED])}{more}"
        return None


def trace_layers(model: nn.Module, example: Tensor) -> dict[str, Layer]:
    """Every convolution of a network, in module order. ``example``: one image or more, (N, C, H, W).

    Raises StudyError for images that do not fit, with the network's own words where it does not run on them.
    """
    check_images(model, example)
    example = example.detach()[:1].contiguous()
    with untouched(model), traceable(model):
        flow = run_once(model, example, CHANNELWISE)
        with untouched(model):
            graph = dependency_graph(model, example)
        mixing = [name for name, module in model.named_modules() if isinstance(module, MIXING) and not depthwise(module)]
        layers = _Tracer(model, graph, flow, {flow.outputs[name] for name in mixing if name in flow.outputs}).layers()
        with untouched(model):
            segments = Segments(model, example, mixing)
        return _apart(layers, segments)


def _apart(layers: dict[str, Layer], segments: Segments) -> dict[str, Layer]:
    """The layers, with a barrier where channels mix on the way to a reader."""
    missed = [name for name, layer in layers.items() if not layer.barrier and name not in segments.outputs]
    layers |= {name: replace(layers[name], barrier=ROUTE) for name in missed}
    free = {name: layer for name, layer in layers.items() if not layer.barrier}
    readers = {name: {c.name: c.positions for c in (*layer.consumers, *layer.shortcuts)} for name, layer in free.items()}
    halves: dict[str, Tensor] = {}
    for name, layer in free.items():
        if name not in halves:
            halves |= dict.fromkeys((name, *layer.coupled), segments.half(layer.channels, layer.shares.unit))
    for name in sorted(segments.suspects(readers, halves)):
        if reader := segments.crossing(name, readers[name], layers[name].shares.unit):
            layers[name] = replace(layers[name], barrier=f"channels mix on the way to {reader}")
    return layers


def prunable_layers(model: nn.Module, images: Tensor, scope: Scope = "inner") -> dict[str, Layer]:
    """The convolutions that a scope may shrink, by name (M7)."""
    return {name: layer for name, layer in trace_layers(model, images).items() if layer.obstacle(scope) is None}


@dataclass
class _Group:
    """What a convolution's channels meet. members: itself and the convolutions that lose the same channels.

    read_by, joined_by: the shortcuts of option A that read its channels, and those whose output is added to them.
    """

    members: list[str]
    consumers: list[Consumer]
    followers: list[str]
    barriers: list[str]
    large: bool = False
    shares: Shares = ANY
    read_by: list[Consumer] = field(default_factory=list)
    joined_by: list[str] = field(default_factory=list)


class _Tracer:
    """Reads the layers of one network off its graphs. walls: the nodes of the layers that mix channels."""

    def __init__(self, model: nn.Module, graph: tp.DependencyGraph, flow: Flow, walls: set[Node]) -> None:
        self.model, self.graph, self.flow, self.walls = model, graph, flow, walls
        self.names = {module: name for name, module in model.named_modules()}
        self.parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        norms = [name for module, name in self.names.items() if isinstance(module, nn.BatchNorm2d) and flow.calls[name] == 1]
        self.norms = {flow.outputs[name]: name for name in norms}
        self.gates, self.largest = flow.gates(), 4 * flow.largest
        self.to_results = flow.leading_to(flow.results, walls)
        joined = {node for node in flow.order if node.name().startswith("Cat")}  # side by side is no sum
        self.to_images = flow.leading_to(flow.reach([flow.source], walls | joined), walls)
        self.shared: dict[str, _Group] = {}
        self.groups: dict[str, _Group] = {}

    def layers(self) -> dict[str, Layer]:
        layers, ties = {name: self.layer(name, module) for name, module in convolutions(self.model)}, tied_parameters(self.model)
        for name, module in convolutions(self.model) if ties else ():
            if layers[name].barrier is None and (tie := unlike(self.graph, walk(self.graph, module, self.largest) or [], ties)):
                places = ", ".join(f"{self.names[owner]}.{parameter}".lstrip(".") for owner, parameter in tie)
                layers[name] = replace(layers[name], barrier=f"shares a parameter that would not shrink alike: {places}")
        return {name: self.with_beyond(layer) for name, layer in layers.items()}

    def with_beyond(self, layer: Layer) -> Layer:
        """A layer with the convolutions on the other side of the shortcuts that it meets."""
        if not (group := self.groups.get(layer.name)) or not (group.read_by or group.joined_by):
            return layer
        read_by, joined_by = {reader.name for reader in group.read_by}, {*group.joined_by}
        links = {name: read_by & {*g.joined_by} | joined_by & {r.name for r in g.read_by} for name, g in self.groups.items()}
        beyond = tuple(name for name, through in links.items() if through)
        alike = {n for n in beyond if self.model.get_submodule(n).out_channels == layer.channels}
        aligned = tuple(n for n in beyond if n in alike and any(self.model.get_submodule(s).zeros == (0, 0) for s in links[n]))
        return replace(layer, beyond=beyond, aligned=aligned)

    def layer(self, name: str, module: nn.Conv2d) -> Layer:
        channels, node = module.out_channels, self.flow.outputs.get(name)
        whole = Tap(name, "output")
        if module not in self.graph.module2node or node is None:
            return Layer(name, channels, None, (), (), (), whole, False, "the forward pass does not lead through it")
        barriers = []
        if depthwise(module):
            barriers.append("depthwise convolution: follows the layer before it")
        elif node in self.gates:
            barriers.append("gates another layer's channels and follows that layer")
        group = self.groups[name] = self.shared.get(name) or self.group(name, module)
        barriers += group.barriers
        if channels == 1:
            barriers.append("one channel only")
        users = self.flow.users.get(node, [])
        norm = self.norms.get(users[0]) if len(users) == 1 else None
        coupled = tuple(group.members) if group.large else tuple(group.members[1:])
        tap, parted = (whole, False) if barriers else self.flow.tap(name, channels, [*group.consumers, *group.read_by])
        consumers, followers, barrier = tuple(group.consumers), tuple(group.followers), next(iter(barriers), None)
        read_by = tuple(group.read_by)
        return Layer(name, channels, norm, consumers, followers, coupled, tap, parted, barrier, read_by, shares=group.shares)

    def group(self, name: str, module: nn.Conv2d) -> _Group:
        group = _Group([name], [], [], [])
        found = walk(self.graph, module, self.largest)
        if found is None:
            group.barriers.append("its channels go through reshapes that cannot be followed")
        for dependency, indices in found or []:
            target = dependency.target.module
            called = self.names.get(target)
            if called is not None:
                reads = target is not module and not self.graph.is_out_channel_pruning_fn(dependency.handler)
                self.meet(group, module, target, called, torch.from_numpy(indices[0].copy()), reads)
            elif isinstance(target, nn.Parameter):
                group.barriers.append(f"its channels meet {self.parameters[id(target)]}, a parameter that belongs to no layer")
        self.surroundings(group, module.out_channels)
        group.large = len(found or []) > LARGE and len(group.members) > 1
        if group.large:
            self.shared |= dict.fromkeys(group.members, group)
        return group

    def meet(self, group: _Group, module: nn.Conv2d, target: nn.Module, called: str, indices: Tensor, reads: bool) -> None:
        """Enter one module that a group's channels meet."""
        channels = module.out_channels
        if self.flow.calls[called] > 1:
            group.barriers.append(f"{called} is called more than once in a forward pass")
        if computed := [n for n in ("weight", "bias") if hasattr(target, n) and n not in target._parameters | target._buffers]:
            group.barriers.append(f"the {computed[0]} of {called} is computed, such as by weight_norm or a mask, and cannot be cut")
        if grouped(target) or isinstance(target, nn.GroupNorm):
            self.share(group, target, called, indices, channels, reads)
        if target is module:
            return
        if isinstance(target, PadShortcut):
            if len(indices) != channels:
                group.barriers.append(f"meets {called}, whose channels do not match one to one")
            elif reads:
                group.read_by.append(Consumer(called, indices.reshape(channels, 1)))
            else:
                group.joined_by.append(called)
        elif isinstance(target, nn.Conv2d | nn.Linear) and not reads:
            gate = isinstance(target, nn.Conv2d) and self.flow.outputs.get(called) in self.gates
            (group.followers if depthwise(target) or gate else group.members).append(called)
            if target.weight.shape[0] != channels:
                group.barriers.append(f"shares a residual sum with {called}, whose channels do not match one to one")
        elif isinstance(target, MIXING):
            if len(indices) % channels or len(self.flow.shapes.get((called, "input"), (0, 0))) < 2:
                group.barriers.append(f"{called} reads its channels in a way that cannot be followed")
            else:
                group.consumers.append(Consumer(called, indices.reshape(channels, -1)))
        elif not isinstance(target, (*CHANNELWISE, nn.GroupNorm)) and not cut_by(self.graph, target):
            group.barriers.append(f"read by {called}, a {type(target).__name__}, which mixes channels")

    def share(self, group: _Group, target: nn.Module, called: str, indices: Tensor, channels: int, reads: bool) -> None:
        """Enter what a grouped convolution or a GroupNorm asks of a group's channels."""
        what = f"the {'GroupNorm' if isinstance(target, nn.GroupNorm) else 'grouped convolution'} {called}"
        found = shares_of(target, indices, reads) if len(indices) == channels else None
        shares = group.shares.joined(found) if found else ANY
        if found is None:
            group.barriers.append(f"its channels share groups of {what} with others")
        elif channels % shares.step or shares.step == channels:
            group.barriers.append(f"none of its channels can go without others, because of {what}")
        else:
            group.shares = shares

    def surroundings(self, group: _Group, channels: int) -> None:
        """Enter why a group's channels cannot go that the modules alone do not tell."""
        flow = self.flow
        nodes = [flow.outputs[name] for name in group.members if name in flow.outputs]
        if any(node in self.to_results for node in nodes):
            group.barriers.append("its channels are the network's outputs")
        if not group.consumers:
            group.barriers.append("no layer was found that reads its channels alone")
        if any(node in self.to_images for node in nodes):
            group.barriers.append("shares a residual sum with the images, whose channels stay")
        widths = {channels}.union(*(flow.shapes.get((consumer.name, "input"), ())[1:2] for consumer in group.consumers))
        for name, shape in flow.met_buffers(flow.reach(nodes, self.walls), self.walls) if flow.buffers else []:
            owner = self.model.get_submodule(name.rpartition(".")[0])
            if widths & {*shape} and not cut_by(self.graph, owner):
                group.barriers.append(f"its channels meet {name}, a buffer of a {type(owner).__name__} that cannot be cut")
