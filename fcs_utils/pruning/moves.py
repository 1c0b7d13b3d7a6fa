"""Operators that move channels in Torch-Pruning's dependency graph: which channels on their two sides go together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fcs_utils.pruning.kinds import multiplier
from fcs_utils.pruning.shares import staying_units
from fcs_utils.pruning.splits import parted_width

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Units:
    """Which channels go together that an operator moves. before: (C,), the unit of each channel in front of it. behind: (D,).

    The units of one side have one size.
    """

    before: Indices
    behind: Indices


def across(here: Indices, there: Indices, pairs: Indices, ties: list[Any]) -> Indices | None:
    """All indices there of the units that have an index here. pairs: (2, n), indices here and the channels that they belong to.

    ties: gets the pairs of channels that this joins. None for indices beyond ``here``.
    """
    if pairs.size and pairs[0].max() >= len(here):
        return None
    units = here[pairs[0]]
    if (joined := meeting(np.stack([units, pairs[1]]))).size:
        ties.append(joined)
    members = there.argsort(kind="stable").reshape(there.max() + 1, -1)[units]
    found = np.stack([members.ravel(), pairs[1].repeat(members.shape[1])])
    return found[:, np.sort(np.unique(found, axis=1, return_index=True)[1])]


def meeting(pairs: Indices) -> Indices:
    """Pairs of channels (2, m) that have an index in common. pairs: (2, n), indices and channels."""
    indices, channels = pairs[:, np.lexsort(pairs[::-1])]
    same = (indices[1:] == indices[:-1]) & (channels[1:] != channels[:-1])
    return np.stack([channels[:-1][same], channels[1:][same]])


def clash(known: Indices, reached: Indices) -> Indices | None:
    """The pairs of channels that meet where an index that belongs to a channel is reached from another one, too; else None."""
    if known is reached or known.shape == reached.shape and (known == reached).all():
        return None
    span = 1 + max(known[1].max(), reached[1].max())
    pairs, others = (indices[0] * span + indices[1] for indices in (known, reached))
    if not (np.isin(reached[0], known[0]) & ~np.isin(others, pairs)).any():
        return None
    return meeting(np.concatenate([known, reached], 1))


def pixel_shuffle(given: Tensor, result: Tensor, *_more: object, **_named: object) -> Units:
    """So many neighbours become one map as it is larger."""
    channels, maps = given.shape[1], result.shape[1]
    return Units(np.arange(channels) // (channels // maps), np.arange(maps))


def glu(given: Tensor, result: Tensor, dim: int = -1) -> Units | None:
    """The halves of a gated linear unit are multiplied."""
    half = result.shape[1]
    return Units(np.arange(2 * half) % half, np.arange(half)) if dim % given.dim() == 1 else None


# By name of the function, how it moves channels, given its arguments and its result. An entry is all that an operator needs.
MOVES: dict[str, Callable[..., Units | None]] = {"pixel_shuffle": pixel_shuffle, "glu": glu}
# Functions that only move numbers to other places.
RESHAPES = {
    "channel_shuffle",
    "contiguous",
    "flatten",
    "movedim",
    "permute",
    "reshape",
    "swapaxes",
    "transpose",
    "unflatten",
    "view",
}
JOINS = {"cat", "concat", "concatenate"}


class Moving(TorchFunctionMode):
    """Collects the operators that move channels while a network runs.

    units: by the autograd node of an operator's result. inside: the nodes of reshapes that together shuffle channels or leave
    them in place; the last of them is in ``units``. flat: those of reshapes to (N, n). joined: by the node of a concatenation of
    channels, how many each part has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.units: dict[Any, Units] = {}
        self.inside, self.flat = set[Any](), set[Any]()
        self.joined: dict[Any, list[int]] = {}
        self._chains: dict[Any, tuple[Any, torch.Size, list[Callable[[Tensor], Tensor]]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, named = func(*args, **(kwargs or {})), kwargs or {}
        name = getattr(func, "__name__", "")
        if name in JOINS and result.grad_fn is not None:
            self._joined(result, *args, **named)
        tensors = args and isinstance(args[0], Tensor) and isinstance(result, Tensor)
        if (name in MOVES or name in RESHAPES) and tensors and result.grad_fn is not None:
            given, *rest = args
            if name in RESHAPES:
                self._reshaped(given, result, lambda numbers: func(numbers, *rest, **named))
            elif units := MOVES[name](given, result, *rest, **named):
                self.units[result.grad_fn] = units
        return result

    def _joined(self, result: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_named: object) -> None:
        """Enter a concatenation of channels. A part without gradients has no place in the graph: then the library counts."""
        if result.dim() > 1 and dim % result.dim() == 1 and all(one.requires_grad for one in tensors):
            self.joined[result.grad_fn] = [one.shape[1] for one in tensors]

    def _reshaped(self, given: Tensor, result: Tensor, again: Callable[[Tensor], Tensor]) -> None:
        """Enter a reshape; where it gives back the shape from which the ones before it began, they shuffle channels or nothing."""
        start, shape, steps = self._chains.get(given.grad_fn, (given.grad_fn, given.shape, []))
        if given.grad_fn is None or result.grad_fn is given.grad_fn:  # a parameter, or nothing was to be done
            return
        self.flat |= {result.grad_fn} if result.dim() == 2 else set()
        steps = [*steps, again]
        if result.shape != shape or len(shape) < 3:
            self._chains[result.grad_fn] = start, shape, steps
        elif groups := _shuffled(shape, steps):
            self.units[result.grad_fn] = shuffle(shape[1], groups)
            node = result.grad_fn
            while node is not start and node is not None:
                self.inside.add(node)
                node = node.next_functions[0][0]


def shuffle(channels: int, groups: int) -> Units:
    """A shuffle of channels (Zhang et al. 2018): those at the same place of each group come to lie side by side."""
    each = channels // groups
    return Units(np.arange(channels) % each, np.arange(channels) // groups)


def _shuffled(shape: torch.Size, steps: Sequence[Callable[[Tensor], Tensor]]) -> int:
    """The number of groups in the shuffle that some reshapes make: 1 where each channel keeps its place, 0 where it is none."""
    moved = numbers = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    for step in steps:
        moved = step(moved)
    channels = shape[1]
    sources = moved[0].flatten(1)[:, 0].long() // shape[2:].numel()
    each = int(sources[1]) if channels > 1 else 1
    groups = 1 if each == 1 else channels // max(each, 1)
    order = torch.arange(channels).reshape(groups, -1).T.flatten() if channels % groups == 0 else sources[:0]
    return groups if moved.equal(numbers[:, order]) else 0


class Multiplied(tp.BasePruningFunc):  # type: ignore[misc]
    """Cuts a depthwise convolution of several outputs for each input; indices are those of its outputs."""

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        each = multiplier(layer)
        what = f"the {each} outputs of an input of a depthwise convolution"
        keep = staying_units(idxs, layer.out_channels, each, what).to(layer.weight.device)
        layer.out_channels, layer.in_channels = len(keep), len(keep) // each
        layer.groups = layer.in_channels
        for name, tensor in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(tensor.detach()[keep]))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: Any) -> int:
        return layer.out_channels

    def get_in_channels(self, layer: Any) -> int:
        return layer.in_channels


MULTIPLIED = Multiplied()


class Graph(tp.DependencyGraph):  # type: ignore[misc]
    """Torch-Pruning's graph, in which operators that move channels are known. moves: their units, by node of the graph.

    Indices at such a node are those behind it. joined: how many channels the parts of a concatenation have, by node, where they
    were seen; the library searches for them, and gives up in a network of many concatenations. known_steps: what leads on from an
    operation, for all walks. guess: whether the library may guess what other reshapes do; where it may not, those but a flatten are
    ``unknown``.
    """

    def __init__(self, moving: Moving, guess: bool) -> None:
        super().__init__()
        self.moving, self.guess, self.moves = moving, guess, dict[Any, Units]()
        self.joined: dict[Any, list[int]] = {}
        self.known_steps: dict[tuple[int, Any], list[Any]] = {}

    def _trace(self, *args: Any, **kwargs: Any) -> Any:
        nodes = super()._trace(*args, **kwargs)
        for module, node in nodes.items():
            if node.type == tp.ops.OPTYPE.RESHAPE:
                module.unknown = not self.guess and node.grad_fn not in self.moving.inside | self.moving.flat
                if module.unknown or node.grad_fn in self.moving.inside:
                    node.type = tp.ops.OPTYPE.ELEMENTWISE  # of which the library guesses nothing
            if node.grad_fn in self.moving.joined:
                self.joined[node] = module.concat_sizes = self.moving.joined[node.grad_fn]
            if node.grad_fn in self.moving.units:
                self.moves[node] = self.moving.units[node.grad_fn]
            if multiplier(module) > 1:
                outputs = np.arange(module.out_channels) // multiplier(module)
                self.moves[node] = Units(np.arange(module.in_channels), outputs)
        return nodes

    def get_pruner_of_module(self, module: Any) -> Any:
        return MULTIPLIED if multiplier(module) > 1 else super().get_pruner_of_module(module)

    def is_out_channel_pruning_fn(self, fn: Any) -> bool:
        return fn == MULTIPLIED.prune_out_channels or super().is_out_channel_pruning_fn(fn)

    def get_out_channels(self, module_or_node: Any) -> Any:
        units = self.moves.get(module_or_node)
        return len(units.behind) if units else self._width_joined(module_or_node) or super().get_out_channels(module_or_node)

    def get_in_channels(self, module_or_node: Any) -> Any:
        units = self.moves.get(module_or_node)
        known = len(units.before) if units else self._width_joined(module_or_node) or parted_width(module_or_node)
        return known or super().get_in_channels(module_or_node)

    def _width_joined(self, module_or_node: Any) -> int:
        return sum(self.joined.get(module_or_node, ()))
