"""Parameters that stand in several modules (weight tying): what surgery must do alike to all of them, and tying them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.kinds import Prunable
from fcs_utils.pruning.moves import Indices

Place = tuple[nn.Module, str]  # a module, and the name under which it has a parameter


def tied_parameters(model: nn.Module) -> list[list[Place]]:
    """The places of every parameter that has more than one, or whose memory is another's, too.

    A module with two names has its parameters in one place each.
    """
    places: dict[nn.Parameter, list[Place]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places[parameter].append((module, name))
    tied = [[place for one in views for place in places[one]] for views in sharing(places)]
    return [found for found in tied if len(found) > 1]


def sharing(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters, those together that have some of their memory in common."""
    blocks: dict[object, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        blocks[memory_of(parameter) or parameter].append(parameter)
    for block in blocks.values():
        views: list[nn.Parameter] = []
        end = 0  # of these views
        for one in sorted(block, key=Tensor.storage_offset):
            if views and one.storage_offset() >= end:
                yield views
                views, end = [], 0
            views.append(one)
            end = max(end, end_of(one))
        yield views


def end_of(parameter: Tensor) -> int:
    """The number behind its last one, in the memory that it lies in."""
    return (
        int(parameter.storage_offset())
        + 1
        + sum((n - 1) * step for n, step in zip(parameter.shape, parameter.stride(), strict=True))
    )


def memory_of(parameter: Tensor) -> int:
    """Where the memory begins that a parameter lies in; 0 where nothing can be said of it, as on some devices."""
    with suppress(RuntimeError):
        return parameter.untyped_storage().data_ptr()
    return 0


def _one_view(tie: list[Place]) -> bool:
    """Whether the places of a tie read its memory in one way; another view of it cannot be cut alike."""
    found = [getattr(module, name) for module, name in tie]
    return len({(one.storage_offset(), one.shape, one.stride()) for one in found}) == 1


def unlike(
    graph: tp.DependencyGraph, group: Iterable[tuple[tp.Dependency, Indices]], ties: Sequence[list[Place]]
) -> list[Place] | None:
    """The first tied parameter that a group's surgery would cut in one place and not, or not alike, in another; None if none."""
    cuts: dict[Place, list[tuple[bool, list[int]]]] = defaultdict(list)
    for dependency, indices in group:
        module, out = dependency.target.module, graph.is_out_channel_pruning_fn(dependency.handler)
        reads = not out and isinstance(module, Prunable)  # inputs are columns of the weight alone
        for name in ("weight",) if reads else dict(module.named_parameters(recurse=False) if isinstance(module, nn.Module) else ()):
            cuts[module, name].append((out, indices[0].tolist()))
    return next(
        (
            tie
            for tie in ties
            if any(cuts.get(place) != cuts.get(tie[0]) for place in tie) or (tie[0] in cuts and not _one_view(tie))
        ),
        None,
    )


def tie_again(ties: Iterable[list[Place]]) -> None:
    """Let the places share one parameter again, after each was cut. Raises StudyError where they were not cut alike."""
    for first, *others in ties:
        memory = {memory_of(getattr(module, name)) for module, name in (first, *others)}
        if len(memory) == 1 and 0 not in memory:
            continue  # not cut
        parameter = first[0].get_parameter(first[1])
        for module, name in others:
            if not parameter.equal(module.get_parameter(name)):
                raise StudyError(f"the plan does not fit this network: two layers share a {name}, and it cuts them differently")
            setattr(module, name, parameter)
