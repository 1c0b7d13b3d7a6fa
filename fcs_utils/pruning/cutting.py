"""Cutting channels out of a copy of a network, for any choice of channels, after one look at how its layers hang together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fcs_utils.errors import StudyError, first_line, is_out_of_memory
from fcs_utils.inputs import Inputs, blank_like, placed
from fcs_utils.pruning.graph import dependency_graph, traceable, walk
from fcs_utils.pruning.groups import MIXING
from fcs_utils.pruning.kinds import Prunable, depthwise, held_axis, out_width
from fcs_utils.pruning.moves import Graph
from fcs_utils.pruning.shares import cut_of
from fcs_utils.pruning.splits import resizes
from fcs_utils.pruning.ties import end_of, sharing, tie_again, tied_parameters
from fcs_utils.running import in_turn

Stays = Mapping[str, Sequence[int]]  # by convolution, the channels that stay


def duplicate(model: nn.Module, like: Tensor | None = None, share: bool = False) -> nn.Module:
    """A deep copy of a network, also of one that keeps computed tensors, such as its last maps.

    like: the parameters and buffers come where it is, and those that are floating point in its precision.
    share: the parameters are those of the network itself.
    """
    with in_turn(model):  # a copy would take the hooks that another thread has on the network just now
        kept = [leaf for module in model.modules() for leaf in tree_leaves(list(vars(module).values()))]
        # Python refuses to copy a tensor that autograd computed.
        computed: dict[int, Any] = {
            id(leaf): leaf.detach().clone() for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf
        }
        for tensor in (*model.parameters(), *model.buffers()) if like is not None else ():
            if type(tensor) in (Tensor, nn.Parameter) and tensor.is_leaf and tensor.is_floating_point():
                cast = tensor.detach().to(like, copy=True)  # at once: a copy that is cast later takes twice the time
                computed[id(tensor)] = nn.Parameter(cast, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cast
        computed |= {id(one): one for one in model.parameters()} if share else _together(model, like)
        try:
            made = copy.deepcopy(model, computed)
        except (AttributeError, NotImplementedError, RecursionError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise StudyError(f"the network cannot be copied: {_uncopied(model)}{first_line(error)}") from error
    return made if like is None else made.to(like.device, like.dtype)


def _together(model: nn.Module, like: Tensor | None) -> dict[int, Any]:
    """Copies of parameters that share memory, by identity: they share it, too. Python would give each a piece of its own."""
    found: dict[int, Any] = {}
    for views in sharing(model.parameters()):
        if len(views) > 1:
            start, end = views[0].storage_offset(), max(map(end_of, views))
            memory = views[0].detach().as_strided((end - start,), (1,), start)
            copied = memory.clone() if like is None else memory.to(like, copy=True)
            for one in views:
                view = copied.as_strided(one.shape, one.stride(), one.storage_offset() - start)
                found[id(one)] = nn.Parameter(view, one.requires_grad)
    return found


def _uncopied(model: nn.Module) -> str:
    """The attribute of a module that Python refuses to copy, in words; nothing where none is found by itself."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not isinstance(value, dict | Tensor):  # of parameters, buffers, hooks and parts
                try:
                    copy.deepcopy(value)
                except (AttributeError, NotImplementedError, RecursionError, RuntimeError, TypeError, ValueError):
                    return f"{f'{name}.{key}'.lstrip('.')} is a {type(value).__name__}: "
    return ""


@dataclass(frozen=True)
class Part:
    """What one module loses with a convolution's channels.

    cut: the function that removes indices, mostly Torch-Pruning's. reads: whether they are inputs of a layer that mixes channels.
    indices: by channel of the convolution, those of the module.
    """

    module: str
    cut: Any
    reads: bool
    indices: Mapping[int, list[int]]


@dataclass(frozen=True)
class Narrow:
    """Removes indices from an axis of a parameter of a module."""

    name: str
    axis: int

    def __call__(self, module: nn.Module, gone: Sequence[int]) -> None:
        wide = module.get_parameter(self.name).detach()
        keep = sorted({*range(wide.shape[self.axis])} - {*gone})
        module._parameters[self.name] = nn.Parameter(wide.index_select(self.axis, torch.tensor(keep, device=wide.device)))


class Cuts:
    """What goes with the channels of some convolutions of a network, found once for any choice of channels.

    model: stays as it was. names: one convolution of each group that shrinks together. images: a plain one of their size is
    followed. groups: by those names, the convolutions of the group. unseen: those of the names that a plain image does not reach.
    Raises StudyError for a network whose channels cannot be followed.
    """

    def __init__(self, model: nn.Module, names: Iterable[str], images: Inputs) -> None:
        self.model, self.groups = model, dict[str, list[str]]()
        self._parts: dict[str, list[Part]] = {}
        self._own: dict[str, dict[str, dict[int, list[int]]]] = {}
        self.unseen: list[str] = []
        copied, seen = duplicate(model, share=True), set[str]()
        weight = next(copied.parameters())
        called = {module: name for name, module in copied.named_modules()}
        with in_turn(model), traceable(copied):  # whose parameters are the network's own
            graph = dependency_graph(copied, placed(blank_like(images), weight))
            for name in names:
                if name in seen:  # goes with a convolution before it
                    continue
                if copied.get_submodule(name) not in graph.module2node:
                    self.unseen.append(name)
                    continue
                parts, layers, leads = _parts(graph, name, called)
                if not leads:  # another layer's channels may decide which of these go
                    found = ((one, *_parts(graph, one, called)) for one in layers if one != name)
                    name, parts, layers, _ = next((one for one in found if one[3]), (name, parts, layers, leads))
                self._parts[name], self.groups[name], self._own[name] = parts, [*layers], layers
                seen.update(layers)

    def check(self, kept: Stays) -> None:
        """Raises StudyError where convolutions of one group would keep different channels."""
        for name in self.groups:
            for other, stays in self.spread(name, kept[name]).items() if name in kept else ():
                if list(kept.get(other, ())) != stays:
                    raise StudyError(f"the plan is damaged: {other} must lose the same channels as {name}, which it follows")

    def spread(self, name: str, kept: Sequence[int]) -> dict[str, list[int]]:
        """What the convolutions of a group keep, where the one that names it keeps these channels."""
        stays, found = set(kept), dict[str, list[int]]()
        for other, own in self._own[name].items():
            lost = {index for channel, indices in own.items() if channel not in stays for index in indices}
            width = out_width(self.model.get_submodule(other))  # type: ignore[arg-type]
            found[other] = [index for index in range(width) if index not in lost]
        return found

    def lost_inputs(self, kept: Stays) -> dict[str, list[int]]:
        """By layer that mixes channels, the indices of its input that the dropped channels come from."""
        lost: dict[str, list[int]] = {}
        for part, indices in self._lost(kept):
            if part.reads:
                lost.setdefault(part.module, []).extend(indices)
        return lost

    def compact(self, kept: Stays) -> nn.Module:
        """A copy of the network, in its own modes and with its own gradient flags, that has only the channels to keep.

        Raises StudyError where modules that share a parameter would not be cut alike.
        """
        compact = duplicate(self.model)
        ties = tied_parameters(compact)
        together: dict[tuple[str, Any], set[int]] = {}
        for part, indices in self._lost(kept):
            together.setdefault((part.module, part.cut), set()).update(indices)
        for (name, cut), gone in together.items():
            cut(compact.get_submodule(name), sorted(gone))
        tie_again(ties)
        for name, parameter in self.model.named_parameters():
            compact.get_parameter(name).requires_grad_(parameter.requires_grad)
        return compact

    def _lost(self, kept: Stays) -> Iterable[tuple[Part, list[int]]]:
        for name, parts in self._parts.items():
            if name in kept:
                stays, gone = set(kept[name]), dict[int, list[int]]()
                for part in parts:
                    if (key := id(part.indices)) not in gone:  # most parts have the very same
                        gone[key] = [at for channel, indices in part.indices.items() if channel not in stays for at in indices]
                    yield part, gone[key]


def _parts(graph: Graph, name: str, called: Mapping[nn.Module, str]) -> tuple[list[Part], dict[str, dict[int, list[int]]], bool]:
    """The parts of a layer's group, and which indices of the layers among them belong to each of its channels, itself first.

    Last whether its channels decide for all of these: each of their indices belongs to one channel.
    """
    parts: list[Part] = []
    layers: dict[str, dict[int, list[int]]] = {}
    ties, whole = list[object](), True
    module = next(one for one, path in called.items() if path == name)
    assert isinstance(module, Prunable)
    known: dict[int, dict[int, list[int]]] = {}
    for dependency, pairs in walk(graph, module, ties=ties) or []:
        target = dependency.target.module
        if id(pairs) not in known:  # most operations have the very same indices
            known[id(pairs)] = {}
            for index, channel in pairs.T.tolist():
                known[id(pairs)].setdefault(channel, []).append(index)
        indices = known[id(pairs)]
        parts += [Part(called[owner], cut, False, indices) for owner, cut in resizes(target)]
        if isinstance(target, nn.Parameter) and (axis := held_axis(target, pairs[0].tolist())) is not None:
            places = [(called[one], key) for one in called for key, held in one._parameters.items() if held is target]
            parts += [Part(owner, Narrow(key, axis), False, indices) for owner, key in places]
        if target not in called:  # an operation, not a layer
            continue
        written = graph.is_out_channel_pruning_fn(dependency.handler)
        reads = isinstance(target, MIXING) and not depthwise(target) and not written
        parts.append(Part(called[target], cut_of(target, written, dependency.handler), reads, indices))
        if written and isinstance(target, Prunable) and called[target] not in layers:
            layers[called[target]] = indices
            whole = whole and sum(map(len, indices.values())) == out_width(target)
    return parts, layers, whole and not ties
