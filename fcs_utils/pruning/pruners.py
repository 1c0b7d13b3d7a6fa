"""Torch-Pruning's own pruners as criteria: the library decides which channels go, and a plan says which.

Only what follows from its choice is this study's: the plan, the surgery, its proof, and the search for the ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.pruner.importance import Importance

from fcs_utils.config import Images, Labels, Model, Ratio, checked
from fcs_utils.errors import StudyError, first_line, is_out_of_memory, refuse
from fcs_utils.inputs import Inputs, first_of, split_batches
from fcs_utils.pruning.baselines import check_classes, check_labels
from fcs_utils.pruning.costs import Costs
from fcs_utils.pruning.counts import nearest_ratio
from fcs_utils.pruning.criteria import CRITERIA, Function, check_options, criterion, importance, ranking_of
from fcs_utils.pruning.cutters import cutters
from fcs_utils.pruning.cutting import Cuts, duplicate
from fcs_utils.pruning.draft import REACH
from fcs_utils.pruning.graph import traceable
from fcs_utils.pruning.input_shapes import shape_fields
from fcs_utils.pruning.kinds import CONVOLUTIONS
from fcs_utils.pruning.layers import Scope, trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.proof import Proof
from fcs_utils.running import run_network

STEPS = 16  # in which the ratio is raised until few enough MACs are left
ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)  # what the library prunes unless told to leave it
WHERE = {"": ("layer", "in each layer", ""), "_global": ("global", "over the whole network", ", global")}  # channels are ranked


def _ranked(name: str, words: str) -> Callable[[Function], Function]:
    """Enter a pruner twice: channels ranked in each layer, and, under a name that ends so, over the whole network."""

    def enter(function: Function) -> Function:
        for suffix, (quota, place, more) in WHERE.items():
            reading, title = f"Torch-Pruning's {words}, ranked {place}", f"Torch-Pruning's {words}{more}"
            criterion(name + suffix, reads="pruner", reading=reading, fixed={"quota": quota}, title=title)(function)
        return function

    return enter


@_ranked("tp_group_norm", "group L2 norm")
def tp_group_norm(network: nn.Module, images: Inputs, labels: Tensor) -> Importance:
    """Squared L2 norm of all weights that go with a channel, mean over the modules that hold them (Fang et al. 2023)."""
    return tp.importance.GroupMagnitudeImportance(p=2)


@_ranked("tp_bn_scale", "BatchNorm scale")
def tp_bn_scale(network: nn.Module, images: Inputs, labels: Tensor) -> Importance:
    """|gamma| of the BatchNorms of a group (Liu et al. 2017), without their sparsity training."""
    return tp.importance.BNScaleImportance()


@_ranked("tp_group_taylor", "group Taylor")
def tp_group_taylor(network: nn.Module, images: Inputs, labels: Tensor) -> Importance:
    """Sum of |weight times gradient| of a group's weights (Molchanov et al. 2019); gradients of the mean loss over all images."""
    for losses in _losses(network, images, labels, 64):
        (losses.sum() / len(labels)).backward()  # type: ignore[no-untyped-call]
    return tp.importance.GroupTaylorImportance()


@_ranked("tp_group_hessian", "group Hessian")
def tp_group_hessian(network: nn.Module, images: Inputs, labels: Tensor) -> Importance:
    """Sum of weight^2 times h of a group's weights (LeCun et al. 1989); h is the mean over images of the squared gradient.

    The squares are summed here: ``accumulate_grad`` of version 1.6.1 looks parameters up by name in a dict that holds them by
    value, finds none, and so keeps the last image's alone.
    """
    squares = {parameter: torch.zeros_like(parameter) for parameter in network.parameters()}
    for losses in _losses(network, images, labels, 1):
        network.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for parameter, total in squares.items():
            if parameter.grad is not None:
                total += parameter.grad.square()
    for parameter, total in squares.items():
        parameter.grad = total / len(labels)  # where the library looks for them
    return tp.importance.GroupHessianImportance()


def _losses(network: nn.Module, images: Inputs, labels: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Cross-entropy of each image, batch by batch."""
    for batch, truth in zip(split_batches(images, batch_size), labels.split(batch_size), strict=True):
        logits = run_network(network, batch)
        check_classes(logits, truth)
        yield F.cross_entropy(logits, truth, reduction="none")


class Library:
    """One of the library's pruners on a copy of a network, asked what it would prune; to be used inside ``traceable(network)``.

    able: the convolutions that may shrink, with those that follow them.
    """

    def __init__(self, name: str, network: nn.Module, images: Inputs, labels: Tensor, able: Sequence[str]) -> None:
        self.called = {module: called for called, module in network.named_modules()}
        self.scores: dict[nn.Module, Tensor] = {}
        self.pruner = tp.pruner.BasePruner(
            network,
            first_of(images),
            customized_pruners=cutters(network),
            importance=self._score,
            global_pruning=ranking_of(name) == "network",
            ignored_layers=[module for module, called in self.called.items() if isinstance(module, ROOTS) and called not in able],
            # Its defaults are dicts that all pruners of a process would share.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
        self.judge = CRITERIA[name].function(network, images, labels)

    def _score(self, group: tp.Group) -> Tensor | None:
        """The library's importance of a group's channels, worked out once, since the copy stays whole while the ratio is sought."""
        root = group[0].dep.target.module
        if root not in self.scores and (found := self.judge(group)) is not None:
            if not found.isfinite().all():
                raise StudyError(f"Torch-Pruning's importance of {self.called[root]} has NaN or infinite values")
            self.scores[root] = found
        return self.scores.get(root)

    def groups(self, ratio: float) -> Iterator[tp.Group]:
        """What the library prunes at a ratio."""
        self.pruner.per_step_pruning_ratio, self.pruner.current_step = [0.0, ratio], 0
        yield from self.pruner.step(interactive=True)

    def kept(self, ratio: float) -> dict[str, list[int]]:
        """By convolution that loses channels at a ratio, those that stay."""
        gone: dict[str, set[int]] = {}
        for group in self.groups(ratio):
            for dependency, indices in group:
                module, written = dependency.target.module, self.pruner.DG.is_out_channel_pruning_fn(dependency.handler)
                if indices and written and isinstance(module, CONVOLUTIONS):  # in global mode, some groups lose nothing
                    gone.setdefault(self.called[module], set()).update(map(int, indices))
        widths = {called: module.out_channels for module, called in self.called.items() if called in gone}
        return {called: [c for c in range(widths[called]) if c not in lost] for called, lost in gone.items()}

    def ratios(self) -> list[float]:
        """One ratio, ascending, for every choice of channels that the library can make.

        It keeps int(C (1 - ratio)) of C channels, of each group or of all of them together.
        """
        next(self.groups(0.5), None)  # scores every group
        widths = [len(score) for score in self.scores.values()]
        if self.pruner.global_pruning:
            widths = [sum(widths)]
        steps = sorted({0.0, *(gone / width for width in widths for gone in range(1, width))})
        return [(low + high) / 2 for low, high in zip(steps, steps[1:], strict=False)]


@checked
def pruner_plan(
    name: str,
    *,
    model: Model,
    images: Images,
    labels: Labels,
    macs: Ratio,
    scope: Scope = "inner",
) -> PruningPlan:
    """What one of Torch-Pruning's own pruners prunes, as a plan.

    name: a criterion that reads "pruner", such as ``tp_group_norm``; those with ``_global`` rank the channels of the whole network.
    images (N, C, ...), normalised, and labels (N,): for gradients. macs: the share of the dense network's MACs to leave; the
    library's pruning ratio is searched for what comes nearest, and is the plan's ratio.
    scope: the library may prune the layers that ``make_plan`` would prune, and no others. The model stays as it was.

    Raises StudyError for a name that is no pruner, labels that do not fit, importances that are not finite, macs that the pruner
    does not reach, where the library fails, and where the plan does not say exactly what it prunes.

        plan = pruner_plan("tp_group_taylor_global", model=model, images=images, labels=labels, macs=0.5)
    """
    if check_options(name, {}).reads != "pruner":
        raise refuse("criterion", name, ", ".join(known for known, one in CRITERIA.items() if one.reads == "pruner"))
    check_labels(images, labels)
    example = first_of(images)
    whole = make_plan(model, example, importance("kernel_l1", model=model), ratio=0.5, scope=scope)  # every layer loses some
    costs, cuts = Costs(model, example, trace_layers(model, example)), Cuts(model, whole.kept, example)
    network = duplicate(model)
    with traceable(network), _in_one_line():
        library = Library(name, network.eval(), images, labels, list(whole.kept))
        kept = cache(library.kept)
        share = cache(lambda ratio: costs.measured(cuts.compact(kept(ratio))))
        if not (ratios := library.ratios()):
            raise StudyError(f"nothing to prune: criterion {name!r} finds no importance in any layer of this network")
        chosen = _nearest(ratios, share, macs)
        _check(model, example, cuts, kept(chosen), library, chosen)
    return PruningPlan(
        kept={layer: kept(chosen)[layer] for layer in whole.kept if layer in kept(chosen)},
        channels={layer: width for layer, width in whole.channels.items() if layer in kept(chosen)},
        skipped=whole.skipped | {layer: "the pruner leaves it whole" for layer in whole.kept if layer not in kept(chosen)},
        **shape_fields(example),
        ratio=chosen,
        scope=scope,
        macs=macs,
        macs_left=share(chosen),
        ranking=(ranking := ranking_of(name)),
        rounding="chip" if ranking == "layer" else "study",  # the library rounds as CHIP does
    )


@contextmanager
def _in_one_line() -> Iterator[None]:
    """The library's own errors as StudyError."""
    try:
        yield
    except StudyError:
        raise
    except Exception as error:  # the library raises many kinds
        if is_out_of_memory(error):
            raise
        raise StudyError(f"Torch-Pruning's pruner fails on this network: {type(error).__name__}: {first_line(error)}") from error


def _nearest(ratios: Sequence[float], share: Any, macs: float) -> float:
    """The ratio whose MACs are nearest to a goal, where they first fall below it.

    In global mode they may rise again: the library leaves a layer whole that would lose all its channels. Raises StudyError for
    a goal more than ``REACH`` outside of what the ratios leave.
    """
    steps = [*range(0, len(ratios), -(-len(ratios) // STEPS)), len(ratios) - 1]
    end = next((step for step in steps if share(ratios[step]) <= macs), min(steps, key=lambda step: share(ratios[step])))
    least, most = share(ratios[end]), share(ratios[0])
    if not least - REACH <= macs <= most + REACH:
        raise refuse("macs", macs, f"{least:.3f} to {most:.3f}, which this pruner leaves")
    return nearest_ratio(ratios[: end + 1], share, macs) if least <= macs else ratios[end]


def _check(model: nn.Module, example: Inputs, cuts: Cuts, kept: Mapping[str, list[int]], library: Library, ratio: float) -> None:
    """Prunes the library's copy. Raises StudyError where this study's surgery does not leave exactly the same network."""
    cuts.check(kept)
    compact = cuts.compact(kept)
    if fault := Proof(model, example, example).fault(compact, cuts.lost_inputs(kept)):
        raise StudyError(f"what Torch-Pruning prunes cannot be cut exactly: {fault}")
    for group in library.groups(ratio):
        group.prune()
    got, wanted = (dict([*net.named_parameters(), *net.named_buffers()]) for net in (compact, library.pruner.model))
    if odd := next((name for name in wanted if name not in got or not got[name].equal(wanted[name])), None):
        raise StudyError(f"no plan says what Torch-Pruning prunes: its network has another {odd} than this study's surgery leaves")
