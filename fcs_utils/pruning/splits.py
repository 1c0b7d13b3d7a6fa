"""Chunks and slices in Torch-Pruning's dependency graph: which part each of their readers reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch_pruning.dependency import index_mapping

CHUNKS = {torch.chunk, torch.Tensor.chunk}


class Chunked(TorchFunctionMode):
    """Collects the autograd nodes of chunks while a network runs.

    Those of splits look alike, but a size that is written into a network's code does not shrink with the channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in CHUNKS:
            self.nodes |= {part.grad_fn for part in result if isinstance(part, Tensor)}
        return result


def count_parts(graph: tp.DependencyGraph, chunked: set[Any]) -> None:
    """Tell the graph how wide the parts of a chunk are and which one each edge reads, where the library guesses both.

    chunked: the autograd nodes of chunks. Other splits of channels are marked ``fixed``.
    """
    nodes = [*graph.module2node.values()]
    splits = [node for node in nodes if node.type == tp.ops.OPTYPE.SPLIT and getattr(node.grad_fn, "_saved_dim", None) == 1]
    for node in splits:
        node.module.fixed = node.grad_fn not in chunked
    splits = [node for node in splits if not node.module.fixed]
    for node in splits:
        node.module.split_sizes = [node.grad_fn._saved_split_size] * len(node.outputs)
        node.module.offsets = [number * node.grad_fn._saved_split_size for number in range(len(node.outputs) + 1)]
    for node in nodes if splits else ():
        if node.type == tp.ops.OPTYPE.CONCAT:
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
                        start = number * node.grad_fn._saved_split_size
                        edge.index_mapping[0].offset = [start, start + node.grad_fn._saved_split_size]


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
