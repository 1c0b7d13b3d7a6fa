"""Networks of any form are traced, and fail in their own words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune as cut
from fcs_utils.pruning.surgery import recalibrate
from tests.pruning.toys import Net, conv, mean, zeroed


def pruned_exactly(net: nn.Module, images: Tensor, scope: str = "inner") -> PruningPlan:
    """The plan that leaves half of every layer, where the compact network equals the dense one with channels zeroed."""
    net.eval()
    plan = make_plan(net, images, importance("random", model=net), ratio=0.5, scope=scope)  # type: ignore[arg-type]
    with torch.no_grad():
        want, got, dense = zeroed(net, plan, images), cut(net, plan)(images), net(images)
    assert (got - want).norm() <= 1e-5 * want.norm() < (dense - want).norm()
    return plan


# Forms of networks


@dataclass
class Both:
    maps: Tensor
    size: int


class Says(nn.Module):
    """Gives what it was made with, whatever it is called with."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Tensor], Tensor]]] = {
    "an int": (lambda x: x.shape[2], lambda got, x: x * (got / 8)),
    "nothing": (lambda x: None, lambda got, x: x),
    "a dict": (lambda x: {"out": x.relu(), "size": 8}, lambda got, x: got["out"]),
    "a dataclass": (lambda x: Both(x.relu(), 8), lambda got, x: got.maps),
    "lists": (lambda x: [[x.relu()], [None, "text"]], lambda got, x: got[0][0]),
    "a shape": (lambda x: x.shape, lambda got, x: x.reshape(got)),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_modules_may_return_anything(case: str) -> None:
    give, use = ANSWERS[case]
    net = Net(
        lambda n, x: n.head(mean(n.b(use(n.says(y := n.a(input=x)), y)).relu())),
        a=conv(3, 6),
        says=Says(give),
        b=conv(6, 4),
        head=nn.Linear(4, 2),
    )
    images = torch.randn(3, 3, 8, 8)
    assert set(collect_statistics(net, images)) == {"a", "b"}
    assert set(pruned_exactly(net, images).kept) == {"a", "b"}


def test_a_network_may_return_objects() -> None:
    net = Net(lambda n, x: Both(n.head(mean(n.a(x))), 3), a=conv(3, 6), head=nn.Linear(6, 2)).eval()
    assert trace_layers(net, torch.zeros(1, 3, 8, 8))["a"].barrier is None
    assert collect_statistics(net, torch.randn(3, 3, 8, 8))["a"].count == 3


def test_a_branch_that_is_one_pixel_large_is_read_beside_others() -> None:
    """The image pooling of DeepLab, and a global context that is added to a wider map's branch."""

    def route(net: nn.Module, x: Tensor) -> Tensor:
        y = net.stem(x).relu()
        pooled = F.interpolate(net.pool(F.adaptive_avg_pool2d(y, 1)).relu(), y.shape[2:])
        return net.head(mean(net.project(torch.cat([net.one(y).relu(), pooled], 1)).relu()))

    net = Net(
        route, stem=conv(3, 6), one=nn.Conv2d(6, 4, 1), pool=nn.Conv2d(6, 5, 1), project=conv(9, 6), head=nn.Linear(6, 2)
    ).eval()
    images = torch.randn(4, 3, 8, 8)
    got = collect_statistics(net, images)
    with torch.no_grad():
        rows = F.adaptive_avg_pool2d(net.stem(images).relu(), 1)
        rows = net.pool(rows).relu().expand(-1, -1, 8, 8).double().movedim(1, -1).reshape(-1, 5)
    torch.testing.assert_close(got["pool"].gram, rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert feature_maps(net, images, "pool").shape == (4, 5, 8, 8)
    assert {"one", "pool", "project"} <= set(pruned_exactly(net, images).kept)


class LeNet(nn.Module):
    def __init__(self, flatten: Callable[[Tensor], Tensor], colours: int = 1) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c, self.flatten = (
            nn.Conv2d(colours, 6, 5),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 3),
            nn.Linear(32, 4),
            flatten,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.flatten(F.max_pool2d(self.b(F.max_pool2d(self.norm(self.a(x)).relu(), 2)).relu(), 2)))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all but images": lambda x: x.view(x.size(0), -1),
    "by width": lambda x: x.view(-1, 32),
    "maps as rows": lambda x: x.view(-1, 2, 2).view(-1, 32),
}


@pytest.mark.parametrize("case", VIEWS)
def test_networks_that_view_their_maps_run_everywhere(case: str) -> None:
    # Of one colour, images in channels_last memory are contiguous, too.
    net, images, labels = LeNet(VIEWS[case], 3).eval(), torch.randn(5, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0])
    other = LeNet(lambda x: x.flatten(1), 3).eval()
    other.load_state_dict(net.state_dict())
    got, want = collect_statistics(net, images, batch_size=2), collect_statistics(other, images, batch_size=2)
    for name in got:
        torch.testing.assert_close(got[name].gram, want[name].gram, rtol=1e-5, atol=1e-4)
    taylor = importance("taylor", model=net, statistics=got, images=images, labels=labels)
    torch.testing.assert_close(
        taylor["a"], importance("taylor", model=other, images=images, labels=labels)["a"], rtol=1e-4, atol=1e-6
    )
    recalibrate(net, images, 2)
    recalibrate(other, images, 2)
    torch.testing.assert_close(net.norm.running_var, other.norm.running_var, rtol=1e-5, atol=1e-6)


FIRST = {
    "space to depth": Net(
        lambda n, x: mean(
            n.b(n.a(torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)).relu())
        ),
        a=conv(4, 6),
        b=conv(6, 4),
    ),
    "grey to colours": Net(lambda n, x: mean(n.b(n.a(x.expand(-1, 3, -1, -1)).relu())), a=conv(3, 6), b=conv(6, 4)),
    "head before stem": Net(lambda n, x: mean(n.b(n.a(x).relu())), b=conv(6, 4), a=conv(1, 6)),
    "linear stem": Net(
        lambda n, x: mean(n.b(n.a(n.lift(x.movedim(1, -1)).movedim(-1, 1)).relu())),
        b=conv(6, 4),
        lift=nn.Linear(1, 5),
        a=conv(5, 6),
    ),
}


@pytest.mark.parametrize("case", FIRST)
def test_the_network_itself_says_which_images_it_takes(case: str) -> None:
    plan = pruned_exactly(FIRST[case], torch.randn(3, 1, 8, 8))
    assert "a" in plan.kept
    assert "a" in collect_statistics(FIRST[case], torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(2, 3, 16, 16), r"expected input.*to have 1 channels, but got 3.* \(in a, a Conv2d\)"),
        (torch.zeros(2, 1, 4, 4), r"Kernel size can't be greater than actual input size.*in a, a Conv2d"),
        (torch.zeros(2, 1, 10, 10), "Output size is too small"),
        (torch.zeros(2, 1, 24, 24), "mat1 and mat2 shapes cannot be multiplied.*in c, a Linear"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.float64), "[Ii]nput type.*in a, a Conv2d"),
    ],
)
def test_why_a_network_does_not_run_is_said_in_its_own_words(images: Tensor, words: str) -> None:
    net = LeNet(lambda x: x.flatten(1)).eval()
    for call in (
        lambda: collect_statistics(net, images),
        lambda: make_plan(net, images, {"a": torch.ones(6)}, ratio=0.5),
        lambda: importance("taylor", model=net, images=images, labels=torch.zeros(2, dtype=torch.int64)),
        lambda: feature_maps(net, images, "a"),
    ):
        with pytest.raises(StudyError, match="does not run on images.*" + words):
            call()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_half_precision_networks_do_not_overflow(dtype: torch.dtype) -> None:
    net = Net(
        lambda n, x: n.head(mean(n.b(n.a(x).relu()))), a=nn.Conv2d(1, 3, 1), b=nn.Conv2d(3, 2, 1), head=nn.Linear(2, 2)
    ).eval()
    with torch.no_grad():
        net.a.weight.copy_(torch.tensor([1.0, 2, 3]).reshape(3, 1, 1, 1))
        net.a.bias.zero_()
    images = torch.full((4, 1, 16, 16), 64.0)
    got = collect_statistics(net.to(dtype), images.to(dtype))["a"]
    # 4 images of 256 positions with 64, 128 and 192: the sum of squares passes 65504, the largest number of float16.
    assert got.gram.tolist() == [[64.0 * 64 * i * j * 1024 for j in (1, 2, 3)] for i in (1, 2, 3)]
    assert got.l1.tolist() == [64.0 * 256 * i for i in (1, 2, 3)] and got.mean.tolist() == [64.0, 128.0, 192.0]
    labels = torch.tensor([0, 1, 0, 1])
    assert importance("taylor", model=net, images=images.to(dtype), labels=labels)["a"].isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_pass_without_gradients_is_named(mode: Callable[[], Any]) -> None:
    net = Net(mode()(lambda n, x: mean(n.b(n.a(x).relu()))), a=conv(3, 4), b=conv(4, 2))
    with pytest.raises(StudyError, match="its forward pass makes no gradients, as in torch.no_grad"):
        make_plan(net, torch.randn(1, 3, 8, 8), {"a": torch.arange(4.0)}, ratio=0.5)
