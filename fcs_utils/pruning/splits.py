"""Chunks, splits and slices in Torch-Pruning's dependency graph: which part each of their readers reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_pruning.dependency import index_mapping
from torch_pruning.dependency.node import Node

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs
from fcs_utils.running import evaluating, run_network

CHUNKS = {torch.chunk, torch.Tensor.chunk}
SPLITS: set[Any] = {torch.split, torch.Tensor.split, torch.split_with_sizes, torch.Tensor.split_with_sizes}


class Size(int):
    """A whole number in an attribute of a module, alone or in a list: a split that is given this object has its size from there.

    owner: the module. name: the attribute's. place: in the list; None where the number stands alone.
    """

    owner: nn.Module
    name: str
    place: int | None

    @classmethod
    def of(cls, value: int, owner: nn.Module, name: str, place: int | None = None) -> Size:
        made = cls(value)
        made.owner, made.name, made.place = owner, name, place
        return made


@dataclass(frozen=True)
class Resize:
    """Lowers an attribute of a module that is the size of a part by what this part loses.

    name, place: of the attribute, see ``Size``. start: where the part begins.
    """

    name: str
    place: int | None
    start: int
    size: int

    def __call__(self, module: nn.Module, gone: Sequence[int]) -> None:
        left = self.size - sum(self.start <= index < self.start + self.size for index in gone)
        old = vars(module)[self.name]
        new = left if self.place is None else type(old)([*old[: self.place], left, *old[self.place + 1 :]])
        vars(module)[self.name] = new


class Parted(TorchFunctionMode):
    """Collects the autograd nodes of chunks and splits while a network runs.

    chunks: the nodes of chunks. splits: by call, the node and the size of each part as it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chunks: set[Any] = set()
        self.splits: list[tuple[Any, list[int]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in CHUNKS:
            self.chunks |= {part.grad_fn for part in result if isinstance(part, Tensor)}
        elif func in SPLITS:
            given = args[1] if len(args) > 1 else next(value for name, value in kwargs.items() if name.startswith("split"))
            self.splits.append((result[0].grad_fn, [given] * len(result) if isinstance(given, int) else [*given]))
        return result


def resizes(operation: Any) -> list[tuple[nn.Module, Resize]]:
    """What must change with the parts of a split, and of which modules; nothing for other operations."""
    found: dict[tuple[nn.Module, str, int | None], Resize] = {}
    for one, start in zip(getattr(operation, "sized", ()), getattr(operation, "bounds", ()), strict=False):
        found.setdefault((one.owner, one.name, one.place), Resize(one.name, one.place, start, int(one)))
    return [(owner, cut) for (owner, _, _), cut in found.items()]


def _mark(model: nn.Module, values: Collection[int]) -> None:
    """Make whole numbers of these values in the modules' attributes ``Size``: what is computed from them is not."""
    for module in model.modules():
        for name, value in [*vars(module).items()]:
            numbers = value if type(value) in (list, tuple) else [value]
            if {*map(type, numbers)} == {int} and not {*numbers}.isdisjoint(values):
                made = [Size.of(number, module, name, place) for place, number in enumerate(numbers)]
                vars(module)[name] = type(value)(made) if numbers is value else Size.of(value, module, name)


def sizes_of(splits: Sequence[tuple[Any, list[int]]], model: nn.Module, example: Inputs) -> dict[Any, list[Size]]:
    """By node of a split of channels, the attributes that hold the sizes of its parts, where no other split is given them.

    splits: those of one run. In a second run with marked numbers, the same splits tell.
    """
    values = {size for node, sizes in splits if getattr(node, "_saved_dim", None) == 1 for size in sizes}
    again = Parted()
    if values:
        try:
            with evaluating(model), again:  # which puts attributes back
                _mark(model, values)
                run_network(model, example)
        except StudyError:
            return {}  # the network does not take such numbers
    if [sizes for _, sizes in splits] != [sizes for _, sizes in again.splits]:
        return {}
    used = Counter(place for _, sizes in again.splits for place in {(n.owner, n.name) for n in sizes if isinstance(n, Size)})
    found = {}
    for (node, given), (_, sizes) in zip(splits, again.splits, strict=True):
        own = [one for one in sizes if isinstance(one, Size) and used[one.owner, one.name] == 1]
        if len(own) == len(given):
            found[node] = own
    return found


def count_parts(graph: tp.DependencyGraph, chunked: set[Any], sized: Mapping[Any, list[Size]]) -> None:
    """Tell the graph how wide the parts of a chunk are and which one each edge reads, where the library guesses both.

    chunked: the autograd nodes of chunks. sized: see ``sizes_of``. Other splits of channels are marked ``fixed``: a size that is
    written into a network's code does not shrink with the channels.
    """
    nodes = [*graph.module2node.values()]
    splits = [node for node in nodes if parted_width(node)]
    for node in splits:
        node.module.sized = sized.get(node.grad_fn, [])
        node.module.fixed = node.grad_fn not in chunked and not node.module.sized
    splits = [node for node in splits if not node.module.fixed]
    for node in splits:
        node.module.bounds, numbers = _bounds(node.grad_fn), _parts_read(node)
        node.module.split_sizes = [node.module.bounds[number + 1] - node.module.bounds[number] for number in numbers]
        node.module.offsets = [*accumulate(node.module.split_sizes, initial=0)]
    for node in nodes if splits else ():
        if node.type == tp.ops.OPTYPE.CONCAT and node not in graph.joined:
            node.module.concat_sizes = None  # which follow from the parts
    if splits:
        index_mapping.update_index_mapping(graph)
    for node in splits:
        for reader in {*node.outputs}:
            read = [number for before, number in reader.grad_fn.next_functions if before is node.grad_fn]
            for source, target in ((node, reader), (reader, node)):
                edges = [edge for edge in source.dependencies if edge.target is target]
                for edge, number in zip(edges, read, strict=True) if len(edges) == len(read) else ():
                    if isinstance(edge.index_mapping[0], index_mapping._SplitIndexMapping):
                        edge.index_mapping[0].offset = node.module.bounds[number : number + 2]


def parted_width(node: Any) -> int:
    """How many channels a split or a chunk of them takes apart, by its node in the graph; 0 for all others."""
    parts = isinstance(node, Node) and node.type == tp.ops.OPTYPE.SPLIT and getattr(node.grad_fn, "_saved_dim", None) == 1
    return int(node.grad_fn._saved_self_sym_sizes[1]) if parts else 0


def _bounds(node: Any) -> list[int]:
    """Where the parts of a split begin, and where the last one ends."""
    width, size = node._saved_self_sym_sizes[1], getattr(node, "_saved_split_size", 0)
    return [*range(0, width, size), width] if size else [*accumulate(node._saved_split_sizes, initial=0)]


def _parts_read(node: Any) -> list[int]:
    """By edge of a split to a reader, in the library's order, the part that it reads."""
    waiting = {reader: [n for before, n in reader.grad_fn.next_functions if before is node.grad_fn] for reader in node.outputs}
    return [waiting[reader].pop(0) if waiting[reader] else 0 for reader in node.outputs]  # a module that runs again has one node


def place_slices(graph: tp.DependencyGraph, axes: int) -> None:
    """Let slices of tensors of so many axes cut the channels where they cut axis 1.

    The library takes the last of three axes for the channels, as in transformers, and every one of five.
    """
    kind = index_mapping._SliceIndexMapping
    for node in graph.module2node.values():
        sizes: Sequence[int] = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
        if node.type != tp.ops.OPTYPE.SLICE or len(sizes) != axes:
            continue
        made, (dim, start, end) = node.module, (_signed(getattr(node.module, name)) for name in ("dim", "start", "end"))
        start, end = (min(place + sizes[1] if place < 0 else place, sizes[1]) for place in (start, end))
        for before in node.inputs:
            for steps, target, back in ((before.dependencies, node, False), (node.dependencies, before, True)):
                for step in steps:
                    known = step.index_mapping[0]
                    if step.target is target and (known is None or isinstance(known, kind)):
                        step.index_mapping[0] = kind(1, start, made.step, end, back) if dim % axes == 1 else None


def _signed(number: int) -> int:
    """A number that autograd saved: it shows negative ones as if they had no sign."""
    return number - 2**64 if number >= 2**63 else number
