"""Which channels belong together, who reads them, and what is left whole and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from fcs_utils.inputs import Inputs, first_of, of_each
from fcs_utils.pruning.flow import Consumer, Flow, Node, Tap, candidates, run_once
from fcs_utils.pruning.graph import dependency_graph, traceable, walk
from fcs_utils.pruning.groups import CHANNELWISE, MIXING, NORMS, ChannelGroup, GroupFinder
from fcs_utils.pruning.kinds import Prunable, check_images, depthwise, out_width
from fcs_utils.pruning.moves import Graph
from fcs_utils.pruning.segments import Segments
from fcs_utils.pruning.shares import ANY, Shares
from fcs_utils.pruning.taps import find_tap
from fcs_utils.pruning.ties import tied_parameters, unlike
from fcs_utils.running import untouched

NAMED = 100  # at most so many layers are listed in a reason
ROUTE = "whether the forward pass leads through it depends on the image"
Scope = Literal["inner", "all"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, who reads its output, and what must shrink with it.

    norm: the BatchNorm that alone reads it. followers: depthwise convolutions and gates that lose the same
    channels. coupled: convolutions that share a residual sum with it (of very many, itself too) and lose the same channels.
    shortcuts: those of option A that read it. beyond: convolutions on the other side of a shortcut of option A that reads it or
    adds to it; they share a residual sum with it, but keep channels of their own. aligned: those of them whose channels lie one
    to one beside its own. tap: the tensor that its consumers read. parted: consumers read different tensors, and the tap is the
    last one that they have in common. barrier: why no scope may shrink it. shares: which channels go only together, or in equal
    numbers. linear: whether it is a linear layer. calls: how often it runs in a forward pass. again: whether it or a module that
    its channels meet runs more than once. root: the layer whose channels decide which of this one go, where their channels do not
    match one to one. maps: of a root, by layer, for each of that layer's channels the one of its own that it belongs to.
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
    linear: bool = False
    calls: int = 1
    again: bool = False
    root: str | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    def obstacle(self, scope: Scope = "inner") -> str | None:
        """Why a scope leaves this layer whole (M7), or None where it may shrink."""
        if self.barrier:
            return self.barrier
        if scope == "inner" and (self.coupled or self.beyond):
            others = [name for name in (*self.coupled, *self.beyond) if name != self.name]
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            what = "a residual sum or a reader" if self.again else "a residual sum"
            return f"shares {what} with {', '.join(others[:NAMED])}{more}"
        return None

    def follow(self, name: str, kept: Sequence[int]) -> list[int]:
        """The channels that another layer keeps where this one, which decides for it, keeps these."""
        owners = self.maps.get(name)
        if owners is None:
            return [*kept]
        return torch.isin(owners, torch.tensor(kept)).nonzero()[:, 0].tolist()

    def mean(self, name: str, scores: Tensor) -> Tensor:
        """The scores of another layer's channels as scores of this one's (C,): means of those that belong to it, NaN for none."""
        owners = self.maps.get(name)
        if owners is None:
            return scores
        return scores.new_zeros(self.channels).index_add(0, owners, scores) / owners.bincount(minlength=self.channels)


def trace_layers(model: nn.Module, example: Inputs, parameter: str = "images") -> dict[str, Layer]:
    """Every convolution and hidden linear layer of a network, in module order. ``example``: one image or more.

    Raises StudyError, which names the parameter, for images that do not fit, with the network's own words where it does not run
    on them.
    """
    check_images(model, example, parameter)
    example = of_each(first_of(example), lambda one: one.detach().contiguous())
    with untouched(model), traceable(model):
        flow = run_once(model, example, CHANNELWISE)
        with untouched(model):
            graph = dependency_graph(model, example)
        mixing = [name for name, module in model.named_modules() if isinstance(module, MIXING) and not depthwise(module)]
        walls = {node for name in mixing for node in flow.outputs.get(name, ())}
        layers = _Tracer(model, graph, flow, walls).layers()
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
        if name not in halves and layer.root:
            root = layers[layer.root]
            half = segments.half(root.channels, root.shares)
            halves |= {one: half[root.maps.get(one, torch.arange(root.channels))] for one in (layer.root, *root.coupled)}
        elif name not in halves:
            halves |= dict.fromkeys((name, *layer.coupled), segments.half(layer.channels, layer.shares))
    for name in sorted(segments.suspects(readers, halves)):
        if reader := segments.crossing(name, readers[name], layers[name].shares):
            layers[name] = replace(layers[name], barrier=f"channels mix on the way to {reader}")
    return layers


def with_followers(names: Iterable[str], layers: Mapping[str, Layer]) -> list[str]:
    """These layers, and those that follow them, each once."""
    members = [*names]
    return [*dict.fromkeys([*members, *(follower for member in members for follower in layers[member].followers)])]


def prunable_layers(model: nn.Module, images: Inputs, scope: Scope = "inner") -> dict[str, Layer]:
    """The convolutions and linear layers that a scope may shrink, by name (M7)."""
    return {name: layer for name, layer in trace_layers(model, images).items() if layer.obstacle(scope) is None}


class _Tracer:
    """Reads the layers of one network off its graphs. walls: the nodes of the layers that mix channels."""

    def __init__(self, model: nn.Module, graph: Graph, flow: Flow, walls: set[Node]) -> None:
        self.model, self.graph, self.flow = model, graph, flow
        self.all, self.groups = GroupFinder(model, graph, flow, walls), dict[str, ChannelGroup]()
        norms = [name for name, module in model.named_modules() if isinstance(module, NORMS)]
        self.roots: dict[str, str] = {}  # by layer, the one whose channels decide
        self.norms = {node: name for name in norms for node in flow.outputs.get(name, ())}

    def layers(self) -> dict[str, Layer]:
        found = {name: module for name, module in candidates(self.model) if not self.is_head(name, module)}
        reached = {name: module for name, module in found.items() if self.is_reached(name, module)}
        self.groups = {name: self.all.group(name, module) for name, module in reached.items()}
        for name, group in sorted(self.groups.items(), key=lambda one: one[1].tied):  # those that go one by one first
            decides = not depthwise(reached[name]) and not self.all.gates.issuperset(self.flow.outputs[name])
            if group.root and decides and name not in self.roots:
                self.roots |= {one: name for one in group.members if one in self.groups and one not in self.roots}
        layers, ties = {name: self.layer(name, module) for name, module in found.items()}, tied_parameters(self.model)
        for name, module in found.items() if ties else ():
            if layers[name].barrier is None and (tie := unlike(self.graph, walk(self.graph, module, self.all.largest) or [], ties)):
                places = ", ".join(f"{self.all.names[owner]}.{parameter}".lstrip(".") for owner, parameter in tie)
                layers[name] = replace(layers[name], barrier=f"shares a parameter that would not shrink alike: {places}")
        return {name: self.with_beyond(layer) for name, layer in layers.items()}

    def is_reached(self, name: str, module: Prunable) -> bool:
        return module in self.graph.module2node and not {*self.flow.outputs.get(name, ())} <= {None}

    def is_head(self, name: str, module: Prunable) -> bool:
        """Whether a linear layer yields the network's outputs, as the last one of every classifier does."""
        return isinstance(module, nn.Linear) and self.all.to_results.issuperset(self.flow.outputs.get(name, [None]))

    def with_beyond(self, layer: Layer) -> Layer:
        """A layer with the convolutions on the other side of the shortcuts that it meets."""
        if not (group := self.groups.get(layer.name)) or not (group.read_by or group.joined_by):
            return layer
        read_by, joined_by = {reader.name for reader in group.read_by}, {*group.joined_by}
        links = {name: read_by & {*g.joined_by} | joined_by & {r.name for r in g.read_by} for name, g in self.groups.items()}
        beyond = tuple(name for name, through in links.items() if through)
        alike = {n for n in beyond if self.groups[n].channels == layer.channels}
        aligned = tuple(n for n in beyond if n in alike and any(self.model.get_submodule(s).zeros == (0, 0) for s in links[n]))
        return replace(layer, beyond=beyond, aligned=aligned)

    def layer(self, name: str, module: Prunable) -> Layer:
        channels, nodes = out_width(module), self.flow.outputs.get(name, [])
        whole = Tap(name, "output", axis=self.flow.axes[name])
        if name not in self.groups:
            return Layer(name, channels, None, (), (), (), whole, False, "the forward pass does not lead through it")
        barriers = []
        if depthwise(module):
            barriers.append("depthwise convolution: follows the layer before it")
        elif self.all.gates.issuperset(nodes):
            barriers.append("gates another layer's channels and follows that layer")
        group, root = self.groups[name], self.roots.get(name)
        barriers += [reason for reason in group.barriers if root is None or reason not in group.uneven]
        if channels == 1:
            barriers.append("one channel only")
        coupled = tuple(group.members) if group.large else tuple(group.members[1:])
        if root is not None:
            coupled = tuple(one for one in self.groups[root].members if one != name)
        tap, parted = (whole, False) if barriers else find_tap(self.flow, name, channels, [*group.consumers, *group.read_by])
        consumers, followers, barrier = tuple(group.consumers), tuple(group.followers), next(iter(barriers), None)
        layer = Layer(name, channels, self.norm(name), consumers, followers, coupled, tap, parted, barrier)
        layer = replace(layer, shortcuts=tuple(group.read_by), shares=group.shares, linear=isinstance(module, nn.Linear))
        layer = replace(layer, calls=len(nodes), again=bool(group.again), root=root)
        return replace(layer, maps=group.maps) if root == name else layer

    def norm(self, name: str) -> str | None:
        """The BatchNorm that alone reads a layer, in each of its calls, and nothing else."""
        users = [self.flow.users.get(node, []) for node in self.flow.outputs[name]]
        norms = {self.norms.get(one[0]) if len(one) == 1 else None for one in users}
        norm = norms.pop()
        return norm if norm and not norms and self.flow.calls[norm] == self.flow.calls[name] else None
