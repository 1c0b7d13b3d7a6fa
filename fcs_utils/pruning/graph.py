"""Torch-Pruning's dependency graph: which operations lose the same channels as a convolution.

Only that lowest layer of the library is used. The library's own walk compares lists of indices in pairs and follows reshapes
for ever. Here each operation passes an index on once, so a walk takes as long as what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency import Dependency, index_mapping

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, first_of, parts_of
from fcs_utils.pruning.kinds import Prunable, map_axes, out_width
from fcs_utils.pruning.moves import Graph, Indices, Moving, clash
from fcs_utils.pruning.splits import Parted, count_parts, place_slices, sizes_of
from fcs_utils.running import run_network, shared, tensors_in
from fcs_utils.shortcuts import PadShortcut

BUDGET = 1 << 22  # indices that one walk may make besides those it began with; reshapes of attention make them without end
# Layers with weights of their own, one or more a channel, that the library knows how to cut.
KNOWN = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.PReLU, nn.GroupNorm, nn.LayerNorm)


@contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Let the graph be built, then put gradient flags back. One thread at a time: the library's graphs share state.

    The library follows gradients, so in a frozen network it silently finds nothing.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    with shared:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            with torch.enable_grad():
                yield
        finally:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)


def dependency_graph(model: nn.Module, example: Inputs) -> Graph:
    """The dependency graph of a network; call inside ``traceable``; it is left in eval mode.

    Raises StudyError for a network whose channels the library cannot follow.
    """
    model.eval()
    try:
        return _graph_of(model, example, guess=True)
    except StudyError:
        raise
    except Exception:  # the library fails at reshapes that it takes for something else
        try:
            return _graph_of(model, example, guess=False)
        except Exception as error:  # any error in the library means the same here
            shapes = ", ".join(str(tuple(one.shape)) for one in parts_of(example))
            raise StudyError(f"the network's channels cannot be followed on images {shapes}: {error}") from error


def _graph_of(model: nn.Module, example: Inputs, guess: bool) -> Graph:
    failed, parted, moving = list[StudyError](), Parted(), Moving()

    def run(network: nn.Module, images: Inputs) -> Any:
        try:
            with parted, moving:
                return run_network(network, images)
        except StudyError as error:  # kept until the library has removed its hooks
            failed.append(error)
            return []

    graph = Graph(moving, guess).build_dependency(
        model,
        example_inputs=first_of(example),
        forward_fn=run,
        output_transform=lambda output: [tensor for tensor in tensors_in(output) if tensor.grad_fn],
        customized_pruners=cutters(model),
        # One slope for all channels loses none. As an operation it has a node for each of its calls, which need not agree.
        ignored_layers=[one for one in model.modules() if isinstance(one, nn.PReLU) and one.num_parameters == 1],
        verbose=False,
    )
    if failed:
        raise failed[0]
    count_parts(graph, parted.chunks, sizes_of(parted.splits, model, example))
    if graph._2d_4d:  # else a linear layer reads the last of three axes, and so may slices
        for axes in map_axes(model) - {4}:
            place_slices(graph, axes)
    return graph


class PerChannel(tp.BasePruningFunc):  # type: ignore[misc]
    """Cuts modules that hold vectors of one number a channel, such as FrozenBatchNorm2d, LayerScale or a custom affine."""

    def prune_out_channels(self, layer: nn.Module, idxs: Sequence[int]) -> nn.Module:
        width = channels_held(layer)
        keep = sorted(set(range(width)) - set(idxs))
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.numel() > 1:
                small = tensor.detach().index_select(tensor.shape.index(width), torch.tensor(keep, device=tensor.device))
                setattr(layer, name, nn.Parameter(small) if isinstance(tensor, nn.Parameter) else small)
        if "num_features" in vars(layer):
            vars(layer)["num_features"] = len(keep)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int:
        return channels_held(layer)

    get_in_channels = get_out_channels


class BySides(tp.BasePruningFunc):  # type: ignore[misc]
    """Cuts a ``PadShortcut`` on either side by itself: what it lacks on the other side, it fills with zeros."""

    def prune_out_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> nn.Module:
        layer.lose_outputs(idxs)
        return layer

    def prune_in_channels(self, layer: PadShortcut, idxs: Sequence[int]) -> nn.Module:
        layer.lose_inputs(idxs)
        return layer

    def get_out_channels(self, layer: PadShortcut) -> int:
        return len(layer.positions)

    def get_in_channels(self, layer: PadShortcut) -> int:
        return layer.channels


def cutters(model: nn.Module) -> dict[type, tp.BasePruningFunc]:
    """What cuts the types of modules that the library does not know."""
    return {**dict.fromkeys(_per_channel_types(model), PerChannel()), PadShortcut: BySides()}


def channels_held(module: nn.Module) -> int:
    """How many channels a module without children has one number for in each of its vectors; 0 if it is no such module."""
    own = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.numel() > 1]
    lengths = {tensor.numel() for tensor in own}
    vectors = all(max(tensor.shape) == tensor.numel() for tensor in own)
    return lengths.pop() if len(lengths) == 1 and vectors and not [*module.children()] else 0


def _per_channel_types(model: nn.Module) -> list[type]:
    fits: dict[type, bool] = {}
    for module in model.modules():
        plain = type(module) is nn.Module  # the library would take every module for one of this type
        if not plain and not isinstance(module, (*KNOWN, PadShortcut, nn.MultiheadAttention, nn.Embedding, nn.RNNBase)):
            fits[type(module)] = fits.get(type(module), True) and channels_held(module) > 0
    return [kind for kind, good in fits.items() if good]


def cut_by(graph: tp.DependencyGraph, module: object) -> bool:
    """Whether a module is cut vector by vector, see ``PerChannel``."""
    return type(module) in graph.CUSTOMIZED_PRUNERS


def walk(
    graph: Graph, module: Prunable, largest: int = BUDGET, ties: list[Any] | None = None
) -> list[tuple[Dependency, Indices]] | None:
    """What shrinks when a layer loses all its output channels: operations and indices (2, n), in order of discovery.

    The first row holds an operation's own indices, the second the channels that they belong to; the channels come in order. None
    where reshapes make indices beyond ``largest``, the numbers that a tensor of this network holds, or too many of them. ties: gets
    pairs of channels (2, n) that one index of an operation belongs to, as where the halves of a layer are multiplied, and None for
    a split whose parts have sizes of their own.
    """
    cut, root = graph.get_pruner_of_module(module).prune_out_channels, graph.module2node[module]
    first, whole = Dependency(cut, cut, source=root, target=root), np.tile(np.arange(out_width(module)), (2, 1))
    found: dict[tuple[int, Any], tuple[Dependency, Indices]] = {(id(root), cut): (first, whole)}
    waiting, passed, made, most = [(first, whole)], set(), 0, BUDGET + 64 * whole.size
    joined = [] if ties is None else ties
    while waiting:
        done, indices = waiting.pop()
        passed.add(id(done.target))
        for step in done.target.dependencies:
            if not step.is_triggered_by(done.handler):
                continue
            if (over := _along(graph, done.target, step, indices, joined, most)) is None:
                return None
            reached, longer = over
            made += longer
            if not reached.size:
                continue
            if made > most or reached[0].max() >= largest or getattr(step.target.module, "unknown", False):
                return None
            key = (id(step.target), step.handler)
            known = found.get(key)
            if getattr(step.target.module, "fixed", False):
                joined.append(None)
            if ties is not None and known is not None and (met := clash(known[1], reached)) is not None:
                joined.append(met)
            if known is None:
                found[key] = (step, reached)
            elif known[1] is not reached and (new := reached[:, ~np.isin(reached[0], known[1][0])]).size:
                found[key] = (known[0], np.concatenate([known[1], new], 1))
            elif id(step.target) in passed:
                continue
            waiting.append((step, reached))
    return [*found.values()]


def _along(graph: Graph, source: Any, step: Dependency, indices: Indices, ties: list[Any], most: int) -> tuple[Indices, int] | None:
    """A node's indices at the other end of an edge, and how many numbers that made; None where they cannot be followed."""
    made = 0
    if (moved := graph.moves.get(source)) and step.target in source.inputs:
        if (over := moved.back(indices, ties)) is None:
            return None
        indices = over
        made += indices.size
    # From a concatenation back into a part: first out of the one, then into the other.
    back = isinstance(step.index_mapping[1], index_mapping._ConcatIndexMapping) and step.index_mapping[1].reverse
    for mapping in step.index_mapping[::-1] if back else step.index_mapping:
        if mapping is not None and indices.size:
            if len(getattr(mapping, "offset", (0, 0))) != 2:
                return None  # the library lost count, as of the outputs of a recurrent layer
            # The library guesses how many indices a reshape makes of one, at times absurdly many or fewer than none.
            if not 0 < (longer := getattr(mapping, "_stride", 1) * indices.size) <= most:
                return None
            indices = _mapped(mapping, indices)
            made += longer
    if indices.size and (moved := graph.moves.get(step.target)) and step.target in source.outputs:
        if (over := moved.onwards(indices, ties)) is None:
            return None
        indices = over
        made += indices.size
    return indices, made


def _mapped(mapping: Any, pairs: Indices) -> Indices:
    """A library's map of indices, for all of them at once."""
    indices, channels = pairs
    reverse = mapping.reverse
    if isinstance(mapping, index_mapping._FlattenIndexMapping):
        stride = mapping._stride
        if reverse:
            back = np.stack([indices // stride, channels])
            return back[:, np.sort(np.unique(back[0], return_index=True)[1])]
        return np.stack([(indices[:, None] * stride + np.arange(stride)).ravel(), channels.repeat(stride)])
    if isinstance(mapping, index_mapping._ConcatIndexMapping | index_mapping._SplitIndexMapping):
        start, end = mapping.offset
        if reverse != isinstance(mapping, index_mapping._ConcatIndexMapping):
            return np.stack([indices + start, channels])
        inside = (indices >= start) & (indices < end)
        return np.stack([indices[inside] - start, channels[inside]])
    if isinstance(mapping, index_mapping._SliceIndexMapping):
        if reverse:
            return np.stack([indices * mapping.step + mapping.start, channels])
        inside = (indices >= mapping.start) & (indices < mapping.end) & ((indices - mapping.start) % mapping.step == 0)
        return np.stack([(indices[inside] - mapping.start) // mapping.step, channels[inside]])
    return pairs[:, :0]  # of attention with grouped queries: no convolution's channels get through
