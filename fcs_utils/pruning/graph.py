"""Torch-Pruning's dependency graph: which operations lose the same channels as a convolution.

Only that lowest layer of the library is used. The library's own walk compares lists of indices in pairs and follows reshapes
for ever. Here each operation passes an index on once, so a walk takes as long as what it finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency import Dependency, index_mapping

from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, first_of, parts_of
from fcs_utils.pruning.cutters import cutters
from fcs_utils.pruning.flow import candidates, dead_ends
from fcs_utils.pruning.kinds import Prunable, map_axes, out_width
from fcs_utils.pruning.moves import Graph, Indices, Moving, Units, across, clash
from fcs_utils.pruning.splits import Parted, count_parts, place_slices, sizes_of
from fcs_utils.running import run_network, shared, tensors_in

BUDGET = 1 << 22  # indices that one walk may make besides those it began with; reshapes of attention make them without end


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
        written: dict[Any, Tensor] = {}

        def note(_module: nn.Module, _images: object, output: object) -> None:
            written.update((one.grad_fn, one) for one in tensors_in(output))

        hooks = [module.register_forward_hook(note) for _, module in candidates(network)]
        try:
            with parted, moving:
                found = tensors_in(run_network(network, images))
            return found + [written[node] for node in dead_ends([one.grad_fn for one in found if one.grad_fn], written)]
        except StudyError as error:  # kept until the library has removed its hooks
            failed.append(error)
            return []
        finally:
            for hook in hooks:
                hook.remove()

    graph = Graph(moving, guess).build_dependency(
        model,
        example_inputs=first_of(example),
        forward_fn=run,
        output_transform=lambda output: [tensor for tensor in output if tensor.grad_fn],
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
        low, high = indices[0].min(), indices[0].max()
        for one in _steps(graph, done):
            step, window = one.dependency, one.window
            if window and (high < window[0] or low >= window[1]):  # of a concatenation of many parts, most are elsewhere
                made += indices.size
                continue
            if (over := _along(one, indices, joined, most)) is None:
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


class _Step(NamedTuple):
    """What leads on from an operation.

    mappings: of its indices, in turn. window: the indices that alone get through, where not all do. leaves, enters: how the
    operator that the indices come out of by its front moves channels, and the one that they go into.
    """

    dependency: Dependency
    mappings: list[Any]
    window: Sequence[int] | None
    leaves: Units | None
    enters: Units | None


def _steps(graph: Graph, done: Dependency) -> list[_Step]:
    """What leads on from an operation, worked out once for all walks through a graph."""
    known, node = graph.known_steps, done.target
    if (key := (id(node), done.handler)) not in known:
        known[key] = []
        for one in node.dependencies:
            if one.is_triggered_by(done.handler):
                # From a concatenation back into a part: first out of the one, then into the other.
                back = isinstance(one.index_mapping[1], index_mapping._ConcatIndexMapping) and one.index_mapping[1].reverse
                mappings = [m for m in (one.index_mapping[::-1] if back else one.index_mapping) if m is not None]
                leaves = graph.moves.get(node) if one.target in node.inputs else None
                enters = graph.moves.get(one.target) if one.target in node.outputs else None
                takes = leaves is None and mappings and _takes_part(mappings[0]) and len(mappings[0].offset) == 2
                known[key].append(_Step(one, mappings, mappings[0].offset if takes else None, leaves, enters))
    return known[key]


def _takes_part(mapping: Any) -> bool:
    """Whether a map takes the indices between its offsets, out of a concatenation or a split."""
    joins = isinstance(mapping, index_mapping._ConcatIndexMapping)
    return (joins or isinstance(mapping, index_mapping._SplitIndexMapping)) and mapping.reverse == joins


def _along(step: _Step, indices: Indices, ties: list[Any], most: int) -> tuple[Indices, int] | None:
    """An operation's indices at the other end of a step, and how many numbers that made; None where they cannot be followed."""
    made = 0
    if step.leaves is not None:
        if (over := across(step.leaves.behind, step.leaves.before, indices, ties)) is None:
            return None
        indices = over
        made += indices.size
    for mapping in step.mappings:
        if indices.size:
            if len(getattr(mapping, "offset", (0, 0))) != 2:
                return None  # the library lost count, as of the outputs of a recurrent layer
            # The library guesses how many indices a reshape makes of one, at times absurdly many or fewer than none.
            if not 0 < (longer := getattr(mapping, "_stride", 1) * indices.size) <= most:
                return None
            indices = _mapped(mapping, indices)
            made += longer
    if indices.size and step.enters is not None:
        if (over := across(step.enters.before, step.enters.behind, indices, ties)) is None:
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
        if not _takes_part(mapping):
            return np.stack([indices + start, channels])
        inside = (indices >= start) & (indices < end)
        return np.stack([indices[inside] - start, channels[inside]])
    if isinstance(mapping, index_mapping._SliceIndexMapping):
        if reverse:
            return np.stack([indices * mapping.step + mapping.start, channels])
        inside = (indices >= mapping.start) & (indices < mapping.end) & ((indices - mapping.start) % mapping.step == 0)
        return np.stack([(indices[inside] - mapping.start) // mapping.step, channels[inside]])
    return pairs[:, :0]  # the map of attention with grouped queries, through which no convolution's channels get
