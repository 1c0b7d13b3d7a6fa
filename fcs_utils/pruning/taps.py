"""Where a layer's channels can be seen: the last tensor on every path to its readers that a module's input or output shows."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from fcs_utils.pruning.flow import Consumer, Flow, Node, Tap

Ways = Sequence[Sequence[Node]]  # by call of a layer, the nodes that every path to its readers passes, the latest first


def find_tap(flow: Flow, name: str, channels: int, consumers: Sequence[Consumer]) -> tuple[Tap, bool]:
    """A layer's tap, and whether its consumers read other tensors than the one that it shows.

    The tap of a layer that is called several times shows each of its calls once, or what several of them lead to, and nothing of
    other layers' calls.
    """
    axis = flow.axes[name]
    read = {consumer.name: flow.inputs.get(consumer.name, [None]) for consumer in consumers}
    ends = {node for nodes in read.values() for node in nodes}
    ways = [flow.narrows(start, ends) for start in flow.outputs[name]]
    parted = not all(_shows(nodes, ways) for nodes in read.values())
    for node in ways[0]:
        for consumer in consumers:
            seen = read[consumer.name]
            indices, at = consumer.positions.shape[1], flow.axes[consumer.name]
            once = consumer.even and not consumer.laid_out and (indices == 1 or at == -1)
            if node in seen and once and _shows(seen, ways):
                if indices == 1 and flow.shapes[consumer.name, "input"][0][at] == channels:
                    return Tap(consumer.name, "input", axis=at, calls=len(seen)), parted
                size = _map_size(flow, ways, channels, indices) if indices > 1 else None
                return Tap(consumer.name, "input", consumer.positions, size, at, len(seen)), parted
        if shown := _shown(flow, node, ways, channels, axis):
            return Tap(shown[-1], "output", axis=axis, calls=len(flow.outputs[shown[-1]])), parted
    return Tap(name, "output", axis=axis, calls=len(ways)), parted


def _shows(nodes: Collection[Node], ways: Ways) -> bool:
    """Whether the calls of a module, by the nodes that they show, lie on the ways alone, and one on each way."""
    found = set(nodes)
    once = len(nodes) == len(found) <= len(ways) and found <= {node for way in ways for node in way}
    return once and all(len(found.intersection(way)) == 1 for way in ways)


def _shown(flow: Flow, node: Node, ways: Ways, channels: int, axis: int = 1) -> list[str]:
    """Modules that show a node's tensor, where it has this many channels, and such tensors of all ways."""
    names = [name for name in flow.shown.get(node, []) if _shows(flow.outputs[name], ways)]
    shapes = ((name, flow.shapes[name, "output"][flow.outputs[name].index(node)]) for name in names)
    return [name for name, shape in shapes if len(shape) > 1 and shape[axis] == channels]


def _map_size(flow: Flow, ways: Ways, channels: int, indices: int) -> tuple[int, ...] | None:
    """The sides of the last map on each way that has as many positions as a channel has indices; None if they differ."""
    sizes = set()
    for way in ways:
        shown = ((node, names[-1]) for node in way if (names := _shown(flow, node, ways, channels)))
        shapes = (flow.shapes[name, "output"][flow.outputs[name].index(node)] for node, name in shown)
        sizes.add(next((s[2:] for s in shapes if len(s) > 3 and math.prod(s[2:]) == indices), None))
    return sizes.pop() if len(sizes) == 1 else None
