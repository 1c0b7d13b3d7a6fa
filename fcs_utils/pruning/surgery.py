"""From a plan to a compact network: surgery, and BatchNorm recalibration (M9)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import InstanceOf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fcs_utils.config import Count, Images, Model, checked
from fcs_utils.errors import StudyError
from fcs_utils.inputs import Inputs, laid_out, split_batches
from fcs_utils.models import images_at_once
from fcs_utils.pruning.apart import check_apart
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.pruning.kinds import Prunable, check_axes, check_images, map_axes, out_width
from fcs_utils.pruning.merge import merge
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.pruning.proof import Proof, exact_groups
from fcs_utils.pruning.statistics import ChannelStatistics
from fcs_utils.running import evaluating, memory_format, run_network

Compensate = Literal["none", "merge"]


@checked
def prune(
    model: Model,
    plan: InstanceOf[PruningPlan],
    *,
    compensate: Compensate = "none",
    statistics: Mapping[str, ChannelStatistics] | None = None,
    example: Images | None = None,
) -> nn.Module:
    """Return a compact copy of the network without the channels that the plan drops; the original stays as it was.

    plan: from ``make_plan`` for this architecture. compensate: ``merge`` adds each dropped channel's best
    reconstruction from the kept ones to the weights that read it (M8), from this network's ``statistics`` by layer;
    a warning names the layers where it cannot. Gradient flags and train or eval mode are copied.
    Example: ``compact = prune(model, make_plan(model, images, scores, ratio=0.5))``.

    The compact network is compared with the dense one whose dropped channels are zeros where the next layers read them, with the
    weights that compensation leaves (``proof.Proof``): on random images of the plan's size, in eval and train mode, and, where the
    network runs on them, of half and one and a half times that size, in eval mode. If your network takes another route at still
    other sizes, pass ``example`` images (N, C, ...) of yours: they are compared, too. A network that reads whole numbers, such as
    labels or tokens, needs them, since these cannot be drawn; of several inputs they say the size, too. This takes eight forward
    passes of one to 16 images, in float64, ten with an example; for large images most are of small ones, where the network does
    the same with these (``routes.same_route``). A warning says when it does not run in train mode.

    Raises StudyError for an unknown compensate, missing statistics, a plan that is damaged or of another network, a network that
    cannot be copied, and one that the plan cannot cut exactly, with the name of a layer.
    """
    _check_fit(model, plan, example)
    images = plan.images(example)
    check_apart(model, images)
    dense = duplicate(model)
    if compensate == "merge":
        if statistics is None:
            raise StudyError("compensate='merge' needs statistics: pass what collect_statistics returns")
        merge(dense, plan, statistics, images)
    cuts = Cuts(dense, plan.kept, images)
    if cuts.unseen:
        raise StudyError(f"{cuts.unseen[0]} cannot be cut as planned: the forward pass of a plain image does not lead through it")
    cuts.check(plan.kept)
    compact = cuts.compact(plan.kept)
    for name, indices in plan.kept.items():
        if (found := out_width(compact.get_submodule(name))) != len(indices):  # type: ignore[arg-type]
            raise StudyError(f"surgery went wrong: {name} has {found} channels, planned {len(indices)}")
    proof = Proof(dense, images, example)
    if fault := proof.fault(compact, cuts.lost_inputs(plan.kept)):
        groups = {name: {member: plan.kept[member] for member in members} for name, members in cuts.groups.items()}
        name, fault = next(iter(exact_groups(cuts, groups, proof)[1].items()), ("the network", fault))
        raise StudyError(f"{name} cannot be cut as planned: {fault}")
    if proof.untrained:
        warnings.warn(
            f"surgery was checked in eval mode only, since in train mode the network fails: {proof.untrained}", stacklevel=3
        )
    return compact


def _check_fit(model: nn.Module, plan: PruningPlan, example: Inputs | None) -> None:
    """Raises StudyError for a plan of another network, and for an example that no network takes."""
    for name, width in plan.channels.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, Prunable) or out_width(module) != width:
            there = f"{out_width(module)} channels" if isinstance(module, Prunable) else "no such layer"
            raise StudyError(f"the plan does not fit this network: it expects {name} with {width} channels, found {there}")
    if not plan.inputs and len(plan.input_shape) + 1 not in map_axes(model):
        raise StudyError(f"the plan does not fit this network: its convolutions do not read images of {plan.input_shape}")
    if example is not None:
        check_images(model, example, "example")


@checked
@torch.no_grad()
def recalibrate(model: Model, images: Images, batch_size: Count | None = None) -> None:
    """Estimate the BatchNorm statistics again on calibration images, in place (M9); nothing to do without BatchNorm.

    images: (N, C, ...), normalised, or several inputs as for ``make_plan``. batch_size: the most images of a batch; by default 256,
    or fewer where memory is short. Batches are of nearly one size and count alike.
    This concerns BatchNorm1d, 2d and 3d and SyncBatchNorm that keep running statistics and that the images reach in eval mode.
    Others keep theirs. Momentum and mode come back as they were: a momentum left at None would make every later
    training evaluate with lagging statistics.

    Raises StudyError for images on which the network does not run or yields NaN or infinity. All is then as before.

        recalibrate(compact, images)
    """
    check_axes(model, images)
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    norms = [norm for norm in norms if norm.num_batches_tracked is not None]  # without its count there is no plain average
    before = [(norm, [(buffer, buffer.clone()) for buffer in norm.buffers(recurse=False)]) for norm in norms]
    measured: list[_BatchNorm] = []
    try:
        with evaluating(model):
            layout, most = memory_format(model, images), batch_size or images_at_once(model, images)
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches; ``evaluating`` puts it back
                norm.train()
            for batch in split_batches(images, most, even=True):  # since they count alike
                run_network(model, laid_out(batch, layout))
        reached = [norm for norm in norms if norm.num_batches_tracked]
        if not all(buffer.isfinite().all() for norm in reached for buffer in norm.buffers(recurse=False)):
            raise StudyError("the network's activations are NaN or infinite on these images; it keeps its old statistics")
        measured = reached
    finally:
        for norm, buffers in before:
            for buffer, value in buffers if norm not in measured else ():
                buffer.copy_(value)
