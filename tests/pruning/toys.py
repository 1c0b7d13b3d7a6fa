"""Small networks written in one line, and what surgery has to equal, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.pruning import proof
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import ChannelStatistics
from fcs_utils.pruning.surgery import prune

SCORES = {"0": torch.arange(20.0), "2": torch.arange(12.0)}  # of a chain of 20 and 12 channels


def counts(plan: PruningPlan) -> dict[str, int]:
    """The channels that each pruned layer keeps."""
    return {name: len(kept) for name, kept in plan.kept.items()}


class Net(nn.Module):
    """Layers by name and a forward pass over them, written in one line."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.route = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.route(self, x)


class Gated(nn.Module):
    """The halves of a body's output, one times the sigmoid of the other."""

    def __init__(self, body: nn.Module, chunks: bool) -> None:
        super().__init__()
        self.body, self.chunks = body, chunks

    def forward(self, x: Tensor) -> Tensor:
        if self.chunks:
            one, two = self.body(x).chunk(2, 1)
            return one * two.sigmoid()
        return F.glu(self.body(x), 1)


def conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def zeroed(model: nn.Module, plan: PruningPlan, images: Tensor) -> Tensor:
    """The dense network's output when every consumer reads zeros in the dropped channels."""
    lost: dict[str, list[int]] = {}
    for name, layer in trace_layers(model, images).items():
        for consumer in (*layer.consumers, *layer.shortcuts) if name in plan.kept else ():
            dropped = sorted(set(range(layer.channels)) - set(plan.kept[name]))
            lost.setdefault(consumer.name, []).extend(i for i in consumer.positions[dropped].flatten().tolist() if i >= 0)
    with proof.zeroed(model, lost):
        return model(images)


def halved(
    net: nn.Module, images: Tensor, left: Mapping[str, int], statistics: Mapping[str, ChannelStatistics]
) -> tuple[PruningPlan, nn.Module]:
    """A network at ratio 0.5 by two criteria, each exact and with so many channels left; returns the last plan and what it made."""
    for criterion in ("kernel_l1", "fcs_linear"):
        scores = importance(criterion, model=net, statistics=statistics)
        plan = make_plan(net, images, scores, ratio=0.5, scope="all")
        assert {name: len(plan.kept[name]) for name in left} == left
        compact = prune(net, plan)
        assert inexactness(net, compact, images[:1]) is None
    return plan, compact
