"""Pruning in rounds, with training between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from fcs_utils.config import Count, Images, Model, Ratio, checked
from fcs_utils.errors import StudyError
from fcs_utils.models import count_macs
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune


class Pruned(NamedTuple):
    """A compact network, and the plans that made it, in their order: what ``save_compact`` takes."""

    network: nn.Module
    plans: tuple[PruningPlan, ...]


@checked
def prune_in_rounds(
    model: Model,
    example: Images,
    score: Callable[[nn.Module], Mapping[str, Tensor]],
    tune: Callable[[nn.Module, int], object],
    *,
    macs: Ratio,
    rounds: Count = 3,
    **options: Any,
) -> Pruned:
    """Prune to a share of MACs in rounds: score, plan, prune, train, and again; the network stays as it was.

    example: images (N, C, ...), one is enough. score: takes a network and returns importances, as ``importance`` does. tune: takes
    the compact network and the round, from 1, and trains it in place; what it returns is not used. macs: the share of the dense
    network's MACs that the last round leaves. Each round leaves the same share of what the one before left. options: further ones
    of ``make_plan``, such as ``scope`` or ``multiple``.

    Raises StudyError for options that fix another goal, and as ``make_plan`` does.

        prune_in_rounds(model, images, lambda net: fcs_utils.importance("kernel_l1", model=net), tune, macs=0.5, rounds=3)
    """
    if odd := sorted(options.keys() & {"ratio", "rates", "latency", "measure"}):
        raise StudyError(f"the goal of pruning in rounds is macs, not {odd[0]}")
    total, network, plans = count_macs(model, example), model, list[PruningPlan]()
    for number in range(1, rounds + 1):
        share = macs ** (number / rounds) * total / count_macs(network, example)
        plans.append(make_plan(network, example, score(network), macs=share, **options))
        network = prune(network, plans[-1], example=example)
        tune(network, number)
    return Pruned(network, tuple(plans))
