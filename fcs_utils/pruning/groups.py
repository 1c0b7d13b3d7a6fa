"""What a layer's channels meet on their way: who reads them, what must shrink with them, and what forbids it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from fcs_utils.pruning.flow import Consumer, Flow, Node
from fcs_utils.pruning.graph import cut_by, walk
from fcs_utils.pruning.kinds import TRANSPOSED, Prunable, depthwise, grouped, held_axis, in_width, out_width
from fcs_utils.pruning.moves import Graph, Indices
from fcs_utils.pruning.reached import Reached, to_all
from fcs_utils.pruning.shares import ANY, Shares, runs_of, shares_of, tying
from fcs_utils.shortcuts import PadShortcut

MIXING = Prunable | PadShortcut  # layers that mix channels, or move them: indices before and behind differ
# What may lie between two layers: it treats each channel by itself, so that one can go without changing another.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNELWISE = (*NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU)
LARGE = 512  # operations of a group from which on its layers share one walk


@dataclass
class ChannelGroup:
    """What a layer's channels meet. members: itself and the layers that lose the same channels.

    read_by, joined_by: the shortcuts of option A that read its channels, and those whose output is added to them. again: which
    modules are called more than once in a forward pass, and whether the channels flow into them. uneven: those of the barriers
    that say that channels do not match one to one. maps: by layer that loses other indices, for each of its own indices the
    channel that it belongs to, -1 for none. clash: whether an index belongs to several channels that are no unit. root: whether
    the channels decide for all these layers. parted: by part of a chunk or a split, which of the channels it gets (C,). tied:
    whether some of the channels go only together, since they meet in an operation.
    """

    members: list[str]
    consumers: list[Consumer]
    followers: list[str]
    barriers: list[str]
    channels: int
    large: bool = False
    shares: Shares = ANY
    read_by: list[Consumer] = field(default_factory=list)
    joined_by: list[str] = field(default_factory=list)
    again: dict[str, bool] = field(default_factory=dict)
    uneven: list[str] = field(default_factory=list)
    maps: dict[str, Tensor] = field(default_factory=dict)
    clash: bool = False
    root: bool = False
    parted: list[Tensor] = field(default_factory=list)
    tied: bool = False

    def bar(self, reason: str) -> None:
        """Enter why the channels stay, unless a layer is found whose channels decide for these."""
        self.barriers.append(reason)
        self.uneven.append(reason)

    def join(self, shares: Shares, what: str) -> None:
        """Enter what something asks of the choices of channels, or that it leaves no choice."""
        shares = self.shares.joined(shares)
        if self.channels % shares.step or 1 < self.channels == shares.step:
            self.barriers.append(f"none of its channels can go without others, because of {what}")
        else:
            self.shares = shares


class GroupFinder:
    """Reads the groups of one network off its graphs. walls: the nodes of the layers that mix channels."""

    def __init__(self, model: nn.Module, graph: Graph, flow: Flow, walls: set[Node]) -> None:
        self.model, self.graph, self.flow, self.walls = model, graph, flow, walls
        self.names = {module: name for name, module in model.named_modules()}
        self.parameters: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self.parameters.setdefault(id(parameter), []).append(name)
        self.gates, self.largest = flow.gates(walls), 4 * flow.largest
        self.to_results, self.to_ends = (flow.leading_to(ends, walls) for ends in (flow.results, flow.ends))
        joined = {node for node in flow.order if node.name().startswith("Cat")}  # side by side is no sum
        self.to_images = {one: flow.leading_to(flow.reach([one], walls | joined), walls) for one in flow.sources}
        self.shared: dict[str, ChannelGroup] = {}

    def group(self, name: str, module: Prunable) -> ChannelGroup:
        if name in self.shared:
            return self.shared[name]
        group = ChannelGroup([name], [], [], [], out_width(module))
        ties: list[Indices | None] = []
        found = walk(self.graph, module, self.largest, ties)
        if found is None:
            group.barriers.append("its channels go through reshapes that cannot be followed")
        joined = [one for one in ties if one is not None]
        asked = tying(group.channels, joined) if ties and len(joined) == len(ties) else None
        group.tied = asked is not None
        group.clash, units = bool(ties) and asked is None, asked.units(group.channels) if asked else None
        known: dict[tuple[int, bool], Reached] = {}  # most operations have the very same indices
        for dependency, indices in found or []:
            target = dependency.target.module
            called = self.names.get(target)
            if called is not None:
                reads = not self.graph.is_out_channel_pruning_fn(dependency.handler)
                if (key := (id(indices), reads and units is not None)) not in known:
                    pairs = torch.from_numpy(indices.copy())
                    known[key] = Reached(pairs if units is None or not reads else to_all(pairs, units), group.channels)
                self.meet(group, module, target, called, known[key], reads)
            elif isinstance(target, nn.Parameter):
                places = self.parameters[id(target)]
                if len(places) > 1 or held_axis(target, indices[0].tolist()) is None:
                    group.barriers.append(f"its channels meet {places[0]}, a parameter that does not lie along them alone")
            elif bounds := getattr(target, "bounds", None):
                inside = [indices[1][(indices[0] >= start) & (indices[0] < end)] for start, end in pairwise(bounds)]
                group.parted += [_marked(torch.from_numpy(own), group.channels) for own in inside]
        if group.uneven and not (group.clash or group.again):
            self.lead(group)
        for covered in group.parted if group.root or not group.uneven else ():
            group.join(runs_of(covered), "a split that parts them")
        if asked and (group.root or not group.uneven):
            group.join(asked, "an operation in which they meet, such as a PixelShuffle")
        self.surroundings(group)
        group.large = len(found or []) > LARGE and len(group.members) > 1 and not group.uneven
        if group.large:
            self.shared |= dict.fromkeys(group.members, group)
        return group

    def meet(self, group: ChannelGroup, module: Prunable, target: nn.Module, called: str, reached: Reached, reads: bool) -> None:
        """Enter one module that a group's channels meet."""
        channels, indices = group.channels, reached.indices
        if self.flow.calls[called] > 1:
            inwards = reads or depthwise(target) or not isinstance(target, MIXING)
            group.again[called] = inwards or group.again.get(called, False)
        there = [n for n in ("weight", "bias") if isinstance(getattr(target, n, None), Tensor)]  # a GRU's bias is a truth value
        if computed := [n for n in there if n not in target._parameters | target._buffers]:
            group.barriers.append(f"the {computed[0]} of {called} is computed, such as by weight_norm or a mask, and cannot be cut")
        if isinstance(target, Prunable):
            width = in_width(target) if reads else out_width(target)
            more = {n: p.shape for n, p in target._parameters.items() if p is not None and n not in ("weight", "bias")}
            if held := [n for n, shape in more.items() if width > 1 and width in shape]:
                group.barriers.append(
                    f"{called}, a {type(target).__name__}, has {held[0]}, a parameter that is not cut with the channels"
                )
        if grouped(target) or isinstance(target, nn.GroupNorm):
            self.share(group, target, called, indices, reads)
        if isinstance(target, TRANSPOSED) and target.groups > 1:
            group.barriers.append(f"meets the transposed convolution {called}, which has groups")
        if target is module and not reads:
            return
        if isinstance(target, PadShortcut):
            if len(indices) != channels:
                group.barriers.append(f"meets {called}, whose channels do not match one to one")
            elif reads:
                group.read_by.append(Consumer(called, indices.reshape(channels, 1)))
            else:
                group.joined_by.append(called)
        elif _reads_positions(target, indices, reads):
            group.barriers.append(f"read by {called}, a {type(target).__name__}, which mixes channels")
        elif isinstance(target, Prunable) and not reads:
            gate = all(node in self.gates for node in self.flow.outputs.get(called, [None]))
            (group.followers if depthwise(target) or gate else group.members).append(called)
            owners, known = reached.owners_in(out_width(target))
            group.clash = group.clash or not known or reached.unlike
            if not owners.equal(torch.arange(channels)):
                group.maps[called] = owners
                group.bar(f"shares a residual sum with {called}, whose channels do not match one to one")
        elif isinstance(target, MIXING):
            flat = any(len(shape) < 2 for shape in self.flow.shapes.get((called, "input"), ()))
            odd = f"{called} reads its channels in a way that cannot be followed"
            if flat or not group.tied and reached.unlike:
                group.barriers.append(odd)
                return
            if len(indices) % channels:
                group.bar(odd)
            group.consumers.append(Consumer(called, reached.positions))
        elif not isinstance(target, (*CHANNELWISE, nn.GroupNorm)) and not cut_by(self.graph, target):
            group.barriers.append(f"read by {called}, a {type(target).__name__}, which mixes channels")

    def share(self, group: ChannelGroup, target: nn.Module, called: str, indices: Tensor, reads: bool) -> None:
        """Enter what a grouped convolution or a GroupNorm asks of a group's channels."""
        what = f"the {'GroupNorm' if isinstance(target, nn.GroupNorm) else 'grouped convolution'} {called}"
        found = shares_of(target, indices, reads) if len(indices) == group.channels else None
        if found is None:
            group.barriers.append(f"its channels share groups of {what} with others")
        else:
            group.join(found, what)

    def lead(self, group: ChannelGroup) -> None:
        """Let a group's channels decide for layers of other widths, where each index of these belongs to one of the channels."""
        if any((owners < 0).any() for owners in group.maps.values()):
            return
        group.root, group.barriers = True, [reason for reason in group.barriers if reason not in group.uneven]
        for name, owners in group.maps.items():
            group.join(runs_of(_marked(owners, group.channels)), f"{name}, which meets a part of them")
        for one in group.consumers:
            group.join(runs_of((one.positions >= 0).any(1)), f"{one.name}, which reads a part of them")

    def surroundings(self, group: ChannelGroup) -> None:
        """Enter why a group's channels cannot go that the modules alone do not tell."""
        flow = self.flow
        nodes = [node for name in group.members for node in flow.outputs.get(name, ())]
        if group.again:
            self.calls(group)
        if any(node in self.to_results for node in nodes):
            group.barriers.append("its channels are the network's outputs")
        elif any(node in self.to_ends for node in nodes):
            group.barriers.append("its channels flow on without gradients, as behind a detach, and cannot be followed")
        if not group.consumers:
            group.barriers.append("no layer was found that reads its channels alone")
        pinned = [one for one, width in flow.sources.items() if width in (None, group.channels)]  # others are spread over channels
        if any(node in self.to_images[one] for one in pinned for node in nodes):
            group.barriers.append("shares a residual sum with the images, whose channels stay")
        shapes = ((s, flow.axes[one.name]) for one in group.consumers for s in flow.shapes.get((one.name, "input"), ()))
        widths = {group.channels} | {shape[axis] for shape, axis in shapes if len(shape) > 1}
        for name, shape in flow.met_buffers(flow.reach(nodes, self.walls), self.walls) if flow.buffers else []:
            owner = self.model.get_submodule(name.rpartition(".")[0])
            if widths & {*shape} and not cut_by(self.graph, owner):
                group.barriers.append(f"its channels meet {name}, a buffer of a {type(owner).__name__} that cannot be cut")

    def calls(self, group: ChannelGroup) -> None:
        """Enter where the calls of a module that runs more than once do not agree."""
        flow, yielding = self.flow, (*group.members, *group.followers)
        reached = flow.reach([node for name in yielding for node in flow.outputs.get(name, ())], self.walls)
        for called, inwards in group.again.items():
            often, outputs = f"{called} is called more than once in a forward pass", flow.outputs.get(called, [None])
            if None in outputs:
                group.barriers.append(f"{often}, and not each time with gradients")
            elif inwards and not reached.issuperset(flow.inputs.get(called, [None])):
                group.barriers.append(f"{often}, and not each time with channels that go together")
            elif called in group.members and not self.gates.isdisjoint(outputs):
                group.barriers.append(f"{often}, and only some of its calls gate another layer's channels")


def _reads_positions(target: nn.Module, indices: Tensor, reads: bool) -> bool:
    """Whether a convolution of one channel takes a layer's channels for positions, as ECA's does."""
    return isinstance(target, nn.Conv1d) and (in_width(target) if reads else out_width(target)) == 1 < len(indices)


def _marked(owners: Tensor, channels: int) -> Tensor:
    marked = torch.zeros(channels, dtype=torch.bool)
    marked[owners] = True
    return marked
