"""How tensors flow through one forward pass, read off autograd's graph.

Answers what the dependency graph does not: which tensor a layer really hands to its consumers, where the
consumers' paths part, and whether a convolution gates another one's channels (squeeze-and-excitation).
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, of_each, parts_of
from fcs_utils.pruning.kinds import Prunable, channel_axis
from fcs_utils.running import run_network, tensors_in, untouched

Node = Any  # an autograd node; torch has no public type for it
GATES = re.compile(r"(Hard)?[Ss]igmoid|Tanh|Softmax|Clamp|Hardtanh")


@dataclass(frozen=True)
class Consumer:
    """A layer that reads a convolution's channels.

    ``positions`` (C, k): for each output channel, the consumer's input indices that come from it. k is 1 for most convolutions and
    height times width for a linear layer behind a flatten. A channel that it reads less often than others has -1 in place of some.
    """

    name: str
    positions: Tensor

    @property
    def laid_out(self) -> bool:
        """Whether several channels become one on their way, laid out side by side in its map, as by a PixelShuffle."""
        return self.read.unique().numel() < self.read.numel()

    @property
    def read(self) -> Tensor:
        """All of its input indices that come from the layer, (n,)."""
        return self.positions[self.positions >= 0]

    @property
    def even(self) -> bool:
        """Whether it reads each channel equally often."""
        return bool((self.positions >= 0).all())


@dataclass(frozen=True)
class Tap:
    """Where a layer's channels can be seen: a module's input or output, and which of its indices (C, k) they are.

    positions: None where all indices are meant, in order. axis: of the indices, the last one where a linear layer reads. size:
    the sides of the map that lies flattened in the k indices of a channel, where they are known. calls: how often the module
    runs in a forward pass; each time it shows some of the layer's positions.
    """

    module: str
    side: Literal["input", "output"]
    positions: Tensor | None = None
    size: tuple[int, ...] | None = None
    axis: int = 1
    calls: int = 1

    def view(self, seen: Tensor) -> Tensor:
        """The layer's own maps (N, C, ...) in the tensor that is seen there."""
        seen = seen.movedim(self.axis, 1)
        if self.positions is not None:  # a flattened map in front of a linear layer, or one of several inputs
            at = self.positions if self.positions.shape[1] > 1 else self.positions[:, 0]
            seen = seen[:, at.to(seen.device)]
            seen = seen.unflatten(2, self.size) if self.size else seen
        return seen if seen.dim() > 2 else seen[:, :, None]


class Flow:
    """One forward pass of a network whose parameters require gradients; call inside ``untouched``, which removes its hooks.

    calls: how often each module ran. sources: the images' nodes, with the numbers of their channels where there are several inputs.
    inputs, outputs: by module name, for each of its calls the node of the first tensor that it read and of the tensor that it
    returned. shapes: by name and side, their shapes. axes: by name, which holds the channels. shown: by node, the modules that
    returned it. buffers: by node, the name and shape of a buffer. ends: see ``dead_ends``.
    """

    def __init__(self, model: nn.Module, example: Inputs, buffers: Mapping[str, Tensor]) -> None:
        self.calls: Counter[str] = Counter()
        self.inputs: dict[str, list[Node]] = {}
        self.outputs: dict[str, list[Node]] = {}
        self.shapes: dict[tuple[str, str], list[tuple[int, ...]]] = {}
        self.axes = {name: channel_axis(module) for name, module in model.named_modules()}
        self.largest = max(one[0].numel() for one in parts_of(example))
        running: list[str] = []

        def before(name: str, given: object) -> None:
            running.append(name)
            self._seen(self.inputs, "input", name, given)

        def after(name: str, returned: object) -> None:
            running.pop()
            self.calls[name] += 1
            self._seen(self.outputs, "output", name, returned)

        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda _m, args, more, name=name: before(name, (args, more)), with_kwargs=True)
            module.register_forward_hook(lambda _m, _a, out, name=name: after(name, out))
        # Buffers get nodes too, to see which channels they meet.
        self.buffers: dict[Node, tuple[str, tuple[int, ...]]] = {}
        for name, buffer in buffers.items():
            owner, _, last = name.rpartition(".")
            marked = buffer.detach().clone().requires_grad_().clone()
            self.buffers[marked.grad_fn] = (name, tuple(buffer.shape))
            model.get_submodule(owner)._buffers[last] = marked
        # Nodes of the images themselves, to see where else they flow than into convolutions.
        images = of_each(example, lambda one: one.detach().requires_grad_().clone() if one.is_floating_point() else one)
        alone = isinstance(images, Tensor)
        widths = {one.grad_fn: None if alone else one.shape[1:2].numel() for one in parts_of(images) if one.grad_fn}
        self.sources: dict[Node, int | None] = widths
        try:
            result = run_network(model, images)
        except StudyError as error:
            where = [f"{name}, a {type(model.get_submodule(name)).__name__}" for name in running if name]
            raise StudyError(f"{error}" + (f" (in {where[-1]})" if where else "")) from error
        if not any(node for name, _ in candidates(model) for node in self.outputs.get(name, [None])):
            raise StudyError("the network's channels cannot be followed: its forward pass makes no gradients, as in torch.no_grad")
        self.results, self.users = [tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn], dict[Node, list[Node]]()
        self.ends = dead_ends(self.results, [node for name, _ in candidates(model) for node in self.outputs.get(name, ())])
        self._link([*self.results, *self.ends])
        self.shown: dict[Node, list[str]] = {}
        for name, nodes in self.outputs.items():
            for node in nodes:
                self.shown.setdefault(node, []).append(name)

    def _seen(self, table: dict[str, list[Node]], side: str, name: str, value: object) -> None:
        if tensors := tensors_in(value):
            table.setdefault(name, []).append(tensors[0].grad_fn)
            self.shapes.setdefault((name, side), []).append(tuple(tensors[0].shape))
            self.largest = max(self.largest, *(tensor.numel() for tensor in tensors))

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

    def reach(self, starts: Iterable[Node], walls: set[Node]) -> set[Node]:
        """Nodes that the tensors of ``starts`` flow into, without passing through a wall."""
        waiting = [*starts]
        found = set(waiting)
        while waiting:
            for after in self.users.get(waiting.pop(), []):
                if after not in found and after not in walls:
                    found.add(after)
                    waiting.append(after)
        return found

    def leading_to(self, goals: Iterable[Node], walls: set[Node]) -> set[Node]:
        """Nodes from which ``reach`` finds one of ``goals``."""
        found = set(goals)
        for node in reversed(self.order):
            if any(after in found and after not in walls for after in self.users.get(node, [])):
                found.add(node)
        return found

    def gates(self, walls: set[Node]) -> set[Node]:
        """Nodes whose tensor flows, unbranched, through a squashing function and through no wall, into a product."""
        squashed: dict[Node, bool] = {}  # of nodes that flow unbranched into a product: whether through such a function
        for node in reversed(self.order):
            if len(users := self.users.get(node, [])) == 1:
                if users[0].name().startswith("MulBackward"):
                    squashed[node] = False
                elif users[0] in squashed and users[0] not in walls:
                    squashed[node] = squashed[users[0]] or bool(GATES.match(users[0].name()))
        return {node for node, through in squashed.items() if through}

    def narrows(self, start: Node, ends: set[Node]) -> list[Node]:
        """Nodes that every path from ``start`` to each of ``ends`` passes through, the latest first.

        In the order of the forward pass, a node lies on every path when no other one waits to be visited. None lies
        behind the first end.
        """
        found, known, waiting = [], {start}, [(start._sequence_nr(), id(start), start)]
        while waiting:
            _, _, node = heapq.heappop(waiting)
            if not waiting:
                found.append(node)
            if node in ends:
                return found[::-1]
            for after in self.users.get(node, []):
                if after not in known:
                    known.add(after)
                    heapq.heappush(waiting, (after._sequence_nr(), id(after), after))
        return []

    def met_buffers(self, region: set[Node], walls: set[Node]) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of the buffers that flow into a region of nodes, other than beside it in a concatenation."""
        met, known = [], set(region)
        waiting = [node for node in region if not node.name().startswith("Cat")] if self.buffers else []
        while waiting:
            for before, _ in waiting.pop().next_functions:
                if before is None or before in known or before in walls:
                    continue
                known.add(before)
                waiting.append(before)
                met += [self.buffers[before]] if before in self.buffers else []
        return sorted(met)


def dead_ends(results: Sequence[Node], written: Iterable[Node | None]) -> list[Node]:
    """The last tensors that layers wrote where gradients end before the network's results.

    For example, a detector detaches its proposals, and the index of the largest value has no gradient.
    """
    known, ends = set[Node](), list[Node]()
    late = sorted((node for node in {*written} if node), key=lambda node: -node._sequence_nr())
    for node in [*results, *late]:
        if node not in known:
            ends.append(node)
            known.add(node)
            waiting = [node]
            while waiting:
                new = {before for before, _ in waiting.pop().next_functions if before is not None} - known
                known |= new
                waiting += new
    return [node for node in ends if node not in results]


def candidates(model: nn.Module) -> Iterator[tuple[str, Prunable]]:
    """Every layer that mixes channels by name, in module order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Prunable))


def run_once(model: nn.Module, example: Inputs, known: tuple[type, ...]) -> Flow:
    """The flow of one image (1, C, ...). Buffers of modules of ``known`` types are not followed."""
    owners = {name for name, module in model.named_modules() if isinstance(module, known)}
    held = {
        n: b for n, b in model.named_buffers() if b.numel() > 1 and b.is_floating_point() and n.rpartition(".")[0] not in owners
    }
    if held:
        try:
            with untouched(model):
                return Flow(model, example, held)
        except StudyError:
            pass  # a network may use its buffers in ways that tensors with gradients do not allow
    with untouched(model):
        return Flow(model, example, {})
