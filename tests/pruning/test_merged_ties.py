"""Weights that several readers share are merged once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.pruning.linear import reconstruction
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.pruning.tied import IMAGES, conv, plan_of, two_readers
from tests.pruning.toys import Net


def folded(weight: Tensor, statistics: ChannelStatistics, kept: list[int], intercept: bool) -> tuple[Tensor, Tensor]:
    """What a pointwise reader's weight (O, C) becomes, and the constant (O,), worked out again: W_K + W_D A and W_D b."""
    gone = [channel for channel in range(weight.shape[1]) if channel not in kept]
    blend, offset = reconstruction(statistics, kept, gone, intercept)
    return weight[:, kept] + weight[:, gone] @ blend, weight[:, gone] @ offset


@pytest.mark.parametrize(
    ("first", "second", "intercept"),
    [
        (lambda: conv(8, 4), lambda: conv(8, 4), True),
        (lambda: conv(8, 4), lambda: conv(8, 4, padding=1), False),  # the border of the second would be wrong
        (lambda: conv(8, 4), lambda: conv(8, 4, bias=False), False),  # no place for the second's constant
    ],
    ids=["both", "one pads", "one without a bias"],
)
@torch.no_grad()
def test_a_shared_weight_is_folded_once(first: Callable[[], nn.Module], second: Callable[[], nn.Module], intercept: bool) -> None:
    net = two_readers(first(), second())
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    compact = prune(net, plan, compensate="merge", statistics=statistics)
    weight, constant = folded(net.one.weight[:, :, 0, 0].double(), statistics["a"], plan.kept["a"], intercept)
    assert compact.one.weight is compact.two.weight
    torch.testing.assert_close(compact.one.weight[:, :, 0, 0].double(), weight, rtol=1e-5, atol=1e-6)
    for before, after in ((net.one, compact.one), (net.two, compact.two)):
        if before.bias is not None:
            torch.testing.assert_close(after.bias.double(), before.bias.double() + constant, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_two_readers_of_one_weight_are_merged_as_well_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    apart = copy.deepcopy(net)
    apart.two.weight = nn.Parameter(apart.two.weight.clone())
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    assert apart(IMAGES).equal(net(IMAGES))
    shared, single = (prune(one, plan, compensate="merge", statistics=statistics)(IMAGES) for one in (net, apart))
    torch.testing.assert_close(shared, single)


@torch.no_grad()
def test_a_bias_that_both_readers_share_takes_the_constant_once() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    net.two.bias = net.one.bias
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    compact = prune(net, plan, compensate="merge", statistics=statistics)
    _, constant = folded(net.one.weight[:, :, 0, 0].double(), statistics["a"], plan.kept["a"], intercept=True)
    assert compact.two.bias is compact.one.bias
    torch.testing.assert_close(compact.one.bias.double(), net.one.bias.double() + constant, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_bias_that_a_stranger_shares_takes_no_constant() -> None:
    net = two_readers(conv(8, 4), conv(8, 4))
    net.two.weight = nn.Parameter(net.two.weight.clone())
    net.route = lambda net, images: net.head(
        torch.cat([net.one(net.a(images).relu()), net.two(images[:, [0] * 8, 1:-1, 1:-1])], 1).mean((2, 3))
    )
    net.two.bias = net.one.bias
    plan, statistics = plan_of(net), collect_statistics(net, IMAGES)
    compact = prune(net, plan, compensate="merge", statistics=statistics)
    assert compact.two.bias is compact.one.bias and compact.one.bias.equal(net.one.bias)
    weight, _ = folded(net.one.weight[:, :, 0, 0].double(), statistics["a"], plan.kept["a"], intercept=False)
    torch.testing.assert_close(compact.one.weight[:, :, 0, 0].double(), weight, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_batchnorm_that_two_layers_use_takes_no_constant() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda net, images: net.head(
            torch.cat([net.norm(net.two(images)), net.norm(net.one(net.a(images).relu()))], 1).relu().mean((2, 3))
        ),
        a=conv(3, 8),
        one=conv(8, 4, bias=False),
        two=conv(3, 4, bias=False),
        norm=nn.BatchNorm2d(4),
        head=nn.Linear(8, 2),
    ).eval()
    plan = make_plan(net, IMAGES, {"a": torch.arange(8.0)}, ratio=0.5)
    compact = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))
    assert compact.norm.running_mean.equal(net.norm.running_mean) and not compact.one.weight.equal(prune(net, plan).one.weight)
