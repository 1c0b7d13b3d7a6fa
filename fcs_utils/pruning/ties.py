"""Parameters that stand in several modules (weight tying): what surgery must do alike to all of them, and tying them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch_pruning as tp
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.kinds import Prunable
from fcs_utils.pruning.moves import Indices

Place = tuple[nn.Module, str]  # a module, and the name under which it has a parameter


def tied_parameters(model: nn.Module) -> list[list[Place]]:
    """The places of every parameter that has more than one. A module with two names has its parameters in one place each."""
    places: dict[nn.Parameter, list[Place]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places[parameter].append((module, name))
    return [found for found in places.values() if len(found) > 1]


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
    return next((tie for tie in ties if any(cuts.get(place) != cuts.get(tie[0]) for place in tie)), None)


def tie_again(ties: Iterable[list[Place]]) -> None:
    """Let the places share one parameter again, after each was cut. Raises StudyError where they were not cut alike."""
    for first, *others in ties:
        parameter = first[0].get_parameter(first[1])
        for module, name in others:
            if not parameter.equal(module.get_parameter(name)):
                raise StudyError(f"the plan does not fit this network: two layers share a {name}, and it cuts them differently")
            setattr(module, name, parameter)
