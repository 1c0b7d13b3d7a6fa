"""From a plan to a compact network: surgery, and BatchNorm recalibration (M9)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fcs_utils.errors import StudyError, refuse
from fcs_utils.models import evaluating
from fcs_utils.pruning.layers import dependency_graph, traceable
from fcs_utils.pruning.merge import merge
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.statistics import ChannelStatistics
from fcs_utils.pruning.ties import tie_again, tied_parameters

Compensate = Literal["none", "merge"]


def prune(
    model: nn.Module,
    plan: PruningPlan,
    *,
    compensate: Compensate = "none",
    statistics: Mapping[str, ChannelStatistics] | None = None,
) -> nn.Module:
    """Return a compact copy of the network without the channels that the plan drops; the original stays as it was.

    plan: from ``make_plan`` for this architecture. compensate: ``merge`` adds each dropped channel's best
    reconstruction from the kept ones to the weights that read it (M8), from this network's ``statistics`` by layer;
    a warning names the layers where it cannot. Gradient flags and train or eval mode are copied.
    Example: ``compact = prune(model, make_plan(model, images, scores, ratio=0.5))``.

    Raises StudyError for an unknown compensate, missing statistics, and a plan that is damaged or of another network.
    """
    if compensate not in ("none", "merge"):
        raise refuse("compensate", compensate, "'none' or 'merge'")
    for name, width in plan.channels.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Conv2d) or module.out_channels != width:
            there = f"{module.out_channels} channels" if isinstance(module, nn.Conv2d) else "no such convolution"
            raise StudyError(f"the plan does not fit this network: it expects {name} with {width} channels, found {there}")
    compact = copy.deepcopy(model)
    if compensate == "merge":
        if statistics is None:
            raise StudyError("compensate='merge' needs statistics: pass what collect_statistics returns")
        merge(compact, plan, statistics)
    weight = next(compact.parameters())
    names = {module: name for name, module in compact.named_modules()}
    ties, cut = tied_parameters(compact), set[str]()
    with traceable(compact):
        graph = dependency_graph(compact, torch.zeros(1, *plan.input_shape, device=weight.device, dtype=weight.dtype))
        for name, indices in plan.kept.items():
            if name in cut:  # gone with the layer that it follows
                continue
            dropped = sorted(set(range(plan.channels[name])) - set(indices))
            group = graph.get_pruning_group(compact.get_submodule(name), tp.prune_conv_out_channels, dropped)
            for dependency, gone in group:
                other = names.get(dependency.target.module, "")
                if isinstance(dependency.target.module, nn.Conv2d) and graph.is_out_channel_pruning_fn(dependency.handler):
                    left = set(range(plan.channels.get(other, 0))) - {int(index) for index in gone}
                    if other not in plan.kept or set(plan.kept[other]) != left:
                        raise StudyError(f"the plan is damaged: {other} must lose the same channels as {name}, which it follows")
                    cut.add(other)
            group.prune()
    tie_again(ties)
    for name, indices in plan.kept.items():
        if (found := compact.get_submodule(name).out_channels) != len(indices):
            raise StudyError(f"surgery went wrong: {name} has {found} channels, planned {len(indices)}")
    try:
        with evaluating(compact), torch.no_grad():
            compact(torch.zeros(1, *plan.input_shape, device=weight.device, dtype=weight.dtype))
    except RuntimeError as error:
        raise StudyError(f"surgery left a network that does not run, something in it expects the old widths: {error}") from error
    return compact


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, batch_size: int = 256) -> None:
    """Estimate the BatchNorm statistics again on calibration images, in place (M9); nothing to do without BatchNorm.

    images: (N, C, H, W), normalised. Momentum and mode come back as they were: a momentum left at None would
    make every later training evaluate with lagging statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        try:
            for batch in _even_batches(images, batch_size):
                model(batch.contiguous(memory_format=torch.channels_last))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _even_batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    # Batches count alike in the average, so they must be of nearly one size.
    return torch.tensor_split(images, -(-len(images) // batch_size))
