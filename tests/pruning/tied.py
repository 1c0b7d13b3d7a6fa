"""Networks whose layers share weights, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from tests.pruning.toys import Net

IMAGES = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(inputs: int, outputs: int, kernel: int = 1, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


def two_readers(first: nn.Module, second: nn.Module) -> Net:
    """Both readers of ``a`` have one weight."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        maps = net.a(images).relu()
        return net.head(torch.cat([net.one(maps).relu().mean((2, 3)), net.two(maps).relu().mean((2, 3))], 1))

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 8, 3), one=first, two=second, head=nn.Linear(8, 2)).eval()
    net.two.weight = net.one.weight
    return net


def two_heads() -> Net:
    """Two linear layers with one weight behind a flatten."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        flat = net.a(images).relu().flatten(1)
        return net.one(flat) + net.two(flat).relu()

    torch.manual_seed(0)
    net = Net(flow, a=conv(3, 6, 3, stride=2), one=nn.Linear(54, 4), two=nn.Linear(54, 4)).eval()
    net.two.weight = net.one.weight
    return net


def a_sum() -> Net:
    """Two layers with one weight and one bias, whose outputs are added."""

    def flow(net: nn.Module, images: Tensor) -> Tensor:
        return net.head((net.one(images) + net.two(images.flip(3))).relu()).mean((2, 3))

    torch.manual_seed(0)
    net = Net(flow, one=conv(3, 6, 3), two=conv(3, 6, 3), head=conv(6, 4)).eval()
    net.two.weight, net.two.bias = net.one.weight, net.one.bias
    return net


def two_names() -> Net:
    """One layer under two names."""
    net = two_readers(conv(8, 4), conv(8, 4))
    net.alias, net.also = net.a, net.one
    return net


def plan_of(net: nn.Module, scope: str = "inner") -> PruningPlan:
    return make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope=scope)  # type: ignore[arg-type]


def two_norms() -> Net:
    """BatchNorms of different layers with one scale."""
    torch.manual_seed(0)
    net = Net(
        lambda net, images: net.head(net.n2(net.two(net.n1(net.one(images)).relu())).relu().mean((2, 3))),
        one=conv(3, 6),
        n1=nn.BatchNorm2d(6),
        two=conv(6, 6),
        n2=nn.BatchNorm2d(6),
        head=nn.Linear(6, 2),
    ).eval()
    net.n2.weight = net.n1.weight
    return net
