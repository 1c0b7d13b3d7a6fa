"""How tensors flow through one forward pass, read off autograd's graph.

Answers what the dependency graph does not: which tensor a layer really hands to its consumers, where the
consumers' paths part, and whether a convolution gates another one's channels (squeeze-and-excitation).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Node = Any  # an autograd node; torch has no public type for it
GATES = re.compile(r"(Hard)?[Ss]igmoid|Tanh|Softmax|Clamp|Hardtanh")


class Flow:
    """One forward pass of a network whose parameters require gradients.

    calls: how often each module ran. source: the images' node. inputs, outputs: by module name, the node of
    the first tensor that it read and of the tensor that it returned. shapes: by name and side, their shapes.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, Node] = {}
        self.outputs: dict[str, Node] = {}
        self.shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda _m, args, name=name: self._seen(self.inputs, "input", name, args)))
            hooks.append(module.register_forward_hook(lambda _m, _a, out, name=name: self._seen(self.outputs, "output", name, out)))
        # A node of the images themselves, to see where else they flow than into convolutions.
        images = example.detach().requires_grad_().clone()
        self.source = images.grad_fn
        try:
            result = model(images)
        finally:
            for hook in hooks:
                hook.remove()
        self.results = [tensor.grad_fn for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and tensor.grad_fn]
        self.users: dict[Node, list[Node]] = {}
        self._link(self.results)

    def _seen(self, table: dict[str, Node], side: str, name: str, value: object) -> None:
        if side == "output":
            self.calls[name] += 1
        tensors = [tensor for tensor in tree_leaves(value) if isinstance(tensor, Tensor)]
        if tensors:
            table[name] = tensors[0].grad_fn
            self.shapes[name, side] = tuple(tensors[0].shape)

    def _link(self, ends: Iterable[Node]) -> None:
        waiting, known = list(ends), set(ends)
        while waiting:
            node = waiting.pop()
            for before, _ in node.next_functions:
                # A leaf's node (a parameter, an image) has no place in the order of the forward pass.
                if before is None or before.name().endswith("AccumulateGrad"):
                    continue
                self.users.setdefault(before, []).append(node)
                if before not in known:
                    known.add(before)
                    waiting.append(before)
        self.order = sorted(known, key=lambda node: node._sequence_nr())

    def reach(self, start: Node, walls: set[Node]) -> set[Node]:
        """Nodes that the tensor of ``start`` flows into, without passing through a wall."""
        found, waiting = {start}, [start]
        while waiting:
            for after in self.users.get(waiting.pop(), []):
                if after not in found and after not in walls:
                    found.add(after)
                    waiting.append(after)
        return found

    def gate(self, start: Node) -> bool:
        """Whether a tensor flows, unbranched and through a squashing function, into a product."""
        squashed, node = False, start
        while len(users := self.users.get(node, [])) == 1:
            node = users[0]
            squashed |= bool(GATES.match(node.name()))
            if node.name().startswith("MulBackward"):
                return squashed
        return False

    def narrows(self, start: Node, ends: Iterable[Node]) -> list[Node]:
        """Nodes that every path from ``start`` to each of ``ends`` passes through, the latest first.

        A node lies on every path when the number of paths through it is the number of all paths.
        """
        inside = [node for node in self.order if node._sequence_nr() >= start._sequence_nr()]
        ahead = _count_paths([start], inside, self.users)
        shared: set[Node] = set(inside)
        for end in ends:
            behind = {end: 1}
            for node in reversed(inside):
                if node is not end and (ways := sum(behind.get(after, 0) for after in self.users.get(node, []))):
                    behind[node] = ways
            shared &= {node for node in behind if ahead.get(node, 0) * behind[node] == ahead.get(end, 0) > 0}
        return sorted(shared, key=lambda node: -node._sequence_nr())


def _count_paths(starts: Iterable[Node], order: Iterable[Node], users: dict[Node, list[Node]]) -> dict[Node, int]:
    ways = dict.fromkeys(starts, 1)
    for node in order:
        if node in ways:
            for after in users.get(node, []):
                ways[after] = ways.get(after, 0) + ways[node]
    return ways


class Segments:
    """The forward pass cut behind every layer that mixes channels: what reaches a reader from one layer alone.

    A gradient that crosses between channels here comes from an operation that mixes them besides the layers, such
    as a softmax or a mean over channels, or from a reader's indices that were attributed to the wrong channel.
    """

    def __init__(self, model: nn.Module, example: Tensor, mixing: Iterable[str]) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)
        with ExitStack() as hooks:
            for name in mixing:
                module = model.get_submodule(name)

                def cut(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> Tensor:
                    self.outputs[name] = output.detach().requires_grad_()
                    return self.outputs[name].clone()  # a leaf itself could not be overwritten in place

                def seen(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                    self.inputs[name] = inputs[0]

                hooks.enter_context(module.register_forward_hook(cut))
                hooks.enter_context(module.register_forward_pre_hook(seen))
            # Random images: at a plain zero, gradients of rectifiers vanish and would hide a crossing.
            model(torch.randn(example.shape, generator=self.generator).to(example))

    def crossing(self, name: str, readers: Mapping[str, Tensor]) -> str | None:
        """A reader in which a channel reaches indices that are not its own, or None.

        readers: by name, the input indices (C, k) of each of the layer's C channels.
        """
        output = self.outputs[name]
        half = torch.rand(output.shape[1], generator=self.generator) < 0.5
        half[0], half[-1] = True, False
        for reader, positions in readers.items():
            seen = self.inputs[reader]
            if positions.max() >= seen.shape[1]:
                return reader
            if not seen.requires_grad:
                continue
            own = torch.zeros(seen.shape[1], dtype=torch.bool)
            own[positions[half].flatten()] = True
            weights = torch.rand(seen.shape, generator=self.generator).to(seen) + 0.5
            for inside, others in ((own, ~half), (~own, half)):
                masked = (seen * weights)[:, inside.to(seen.device)].sum()
                (gradient,) = torch.autograd.grad(masked, output, retain_graph=True, allow_unused=True)
                if gradient is not None and gradient[:, others.to(gradient.device)].count_nonzero():
                    return reader
        return None


def convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    """Every 2-D convolution by name, in module order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def run_once(model: nn.Module, example: Tensor) -> Flow:
    """The flow of one image; ``example`` (N, C, H, W) may hold more."""
    with torch.enable_grad():
        return Flow(model, example[:1])
