"""Layers that run more than once in a forward pass: shared heads, branches with one set of weights, and loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.shares import Shares
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.toys import Net, conv, mean, zeroed

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Pyramid(nn.Module):
    """Two stages, a pyramid of four levels and the head of RetinaNet (Lin et al. 2017), narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 8), conv(8, 16, stride=2)
        self.pyramid = FeaturePyramidNetwork([8, 16], 12, extra_blocks=LastLevelP6P7(12, 12))
        self.head = RetinaNetHead(12, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x).relu()
        found = self.head([*self.pyramid({"one": one, "two": self.two(one).relu()}).values()])
        return torch.cat([*found.values()], 2)


def levels(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Two levels of a pyramid, of different sizes."""
    return [net.a(x).relu(), net.b(F.max_pool2d(x, 2)).relu()]


def gated(net: nn.Module, y: Tensor) -> Tensor:
    return y * net.up(net.down(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid()


def repeated(body: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    for _ in range(3):
        y = body(y)
    return y


def both(body: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What one set of weights makes of two images."""
    return (body(x) - body(x.flip(3))).abs()


NETS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "RetinaNet": (
        Pyramid,
        {"one", "two", "pyramid.extra_blocks.p6", "pyramid.extra_blocks.p7"}
        | {f"pyramid.{part}_blocks.{level}.0" for part in ("inner", "layer") for level in range(2)}
        | {f"head.{part}_head.conv.{number}.0" for part in ("classification", "regression") for number in range(4)},
    ),
    "a head for two levels": (
        lambda: Net(
            lambda n, x: sum(mean(n.out(n.two(n.one(y).relu()).relu())) for y in levels(n, x)),
            **{"a": conv(3, 6), "b": conv(3, 6), "one": conv(6, 8), "two": conv(8, 7), "out": conv(7, 4)},
        ),
        {"a", "b", "one", "two"},
    ),
    "a head with normalisations of its own and of each level": (
        lambda: Net(
            lambda n, x: sum(
                mean(n.out(n.two(n.g(norm(n.one(y))).relu()).relu())) for norm, y in zip((n.n1, n.n2), levels(n, x), strict=True)
            ),
            **{"a": conv(3, 6), "b": conv(3, 6), "one": conv(6, 8), "n1": nn.BatchNorm2d(8), "n2": nn.BatchNorm2d(8)},
            **{"g": nn.GroupNorm(4, 8), "two": conv(8, 7), "out": conv(7, 4)},
        ),
        {"a", "b", "one", "two"},
    ),
    "branches that are compared": (
        lambda: Net(
            lambda n, x: n.head(mean(both(lambda y: n.b(n.relu(n.norm(n.a(y)))), x))),
            **{"a": conv(3, 6), "norm": nn.BatchNorm2d(6), "relu": nn.ReLU(inplace=True), "b": conv(6, 8), "head": nn.Linear(8, 3)},
        ),
        {"a", "b"},
    ),
    "linear layers of branches": (
        lambda: Net(
            lambda n, x: n.head(both(lambda y: n.fc2(n.fc(n.a(y).relu().flatten(1)).relu()), x)),
            **{"a": conv(3, 4), "fc": nn.Linear(256, 6), "fc2": nn.Linear(6, 5), "head": nn.Linear(5, 2)},
        ),
        {"a", "fc", "fc2"},
    ),
    "a loop": (
        lambda: Net(
            lambda n, x: mean(n.b(repeated(lambda y: n.a(y).relu(), n.stem(x)))), stem=conv(3, 6), a=conv(6, 6), b=conv(6, 4)
        ),
        {"stem", "a"},
    ),
    "a loop of residual blocks": (
        lambda: Net(
            lambda n, x: mean(n.c(repeated(lambda y: y + n.b(n.norm(n.a(y)).relu()), n.stem(x).relu()))),
            **{"stem": conv(3, 6), "a": conv(6, 5), "norm": nn.BatchNorm2d(5), "b": conv(5, 6), "c": conv(6, 4)},
        ),
        {"stem", "a", "b"},
    ),
    "two layers with one reader": (
        lambda: Net(lambda n, x: mean(n.b(n.a(x)) + n.b(n.c(x))), a=conv(3, 4), c=conv(3, 4), b=conv(4, 2)),
        {"a", "c"},
    ),
    "a gate and a depthwise convolution for two levels": (
        lambda: Net(
            lambda n, x: sum(mean(n.out(gated(n, n.deep(n.one(y).relu())))) for y in levels(n, x)),
            **{"a": conv(3, 6), "b": conv(3, 6), "one": conv(6, 8), "deep": conv(8, 8, groups=8)},
            **{"down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1), "out": conv(8, 4)},
        ),
        {"a", "b", "one", "deep", "down", "up"},
    ),
    "one slope for layers of different widths": (
        lambda: Net(
            lambda n, x: mean(n.c(n.slope(n.b(n.slope(n.a(x)))))), a=conv(3, 6), b=conv(6, 8), c=conv(8, 4), slope=nn.PReLU()
        ),
        {"a", "b"},
    ),
    "slopes of both branches": (
        lambda: Net(lambda n, x: mean(both(lambda y: n.b(n.slope(n.a(y))), x)), a=conv(3, 6), b=conv(6, 4), slope=nn.PReLU(6)),
        {"a"},
    ),
    "branches side by side": (
        lambda: Net(lambda n, x: mean(n.b(torch.cat([n.a(x), n.a(x.flip(3))], 1))), a=conv(3, 4), b=conv(8, 2)),
        {"a"},
    ),
    "layers side by side in two orders": (
        lambda: Net(
            lambda n, x: mean(n.b(torch.cat([n.a(x), n.c(x)], 1)) + n.b(torch.cat([n.c(x), n.a(x)], 1))),
            **{"a": conv(3, 4), "c": conv(3, 4), "b": conv(8, 2)},
        ),
        {"a", "c"},
    ),
    "one reader of both halves": (
        lambda: Net(lambda n, x: mean(sum(n.b(y) for y in n.a(x).relu().chunk(2, 1))), a=conv(3, 8), b=conv(4, 2)),
        {"a"},
    ),
}


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_surgery_is_exact_for_all_calls(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, wanted = NETS[kind]
    net = build().eval()
    for tensor in net.parameters():
        tensor.add_(0.1 * torch.rand_like(tensor))  # no zeros and no equal vectors, which hide mistakes
    for criterion in ("kernel_l1", "fcs", "fcs_linear"):
        statistics = collect_statistics(net, IMAGES)
        scores = importance(criterion, model=net, statistics=statistics)
        plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
        assert set(plan.kept) == wanted
        compact, want = prune(net, plan), zeroed(net, plan, IMAGES)
        assert (compact(IMAGES) - want).norm() < 1e-5 * want.norm() < (net(IMAGES) - want).norm()
        assert inexactness(net, compact, IMAGES[:1]) is None
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    assert load_compact(tmp_path / "compact.safetensors", build()).eval()(IMAGES).equal(compact(IMAGES))


def test_what_a_head_for_two_levels_shows_by_hand() -> None:
    net = NETS["a head for two levels"][0]().eval()
    layers = trace_layers(net, IMAGES)
    assert {name: layer.calls for name, layer in layers.items()} == {"a": 1, "b": 1, "one": 2, "two": 2, "out": 2}
    assert layers["a"].coupled == ("b",) and layers["b"].coupled == ("a",)
    assert layers["a"].obstacle() == "shares a residual sum or a reader with b" and layers["one"].obstacle() is None
    # Each call of ``two`` reads one of ``one``. Of the calls of ``one``, which reads a and b, only one each does.
    assert (layers["one"].tap.module, layers["one"].tap.side, layers["one"].tap.calls) == ("two", "input", 2)
    assert (layers["a"].tap.module, layers["a"].tap.side, layers["a"].tap.calls) == ("a", "output", 1)
    assert [layers[name].parted for name in ("a", "b", "one", "two")] == [True, True, False, False]
    assert layers["out"].obstacle("all") == "its channels are the network's outputs"


def test_norms_count_where_they_follow_every_call() -> None:
    kinds = ("branches that are compared", "a head with normalisations of its own and of each level")
    (first, second) = (trace_layers(NETS[kind][0]().eval(), IMAGES) for kind in kinds)
    assert (first["a"].norm, second["one"].norm) == ("norm", None) and second["one"].shares == Shares(unit=2)


@torch.no_grad()
def test_merge_rebuilds_what_all_calls_read() -> None:
    """Channel 1 of ``one`` is twice channel 0: its consumer loses nothing, in either call."""
    torch.manual_seed(0)
    net = NETS["a head for two levels"][0]().eval()
    net.one.weight[1], net.one.bias[1] = 2 * net.one.weight[0], 2 * net.one.bias[0]
    plan, statistics = plan_by_hand(net, IMAGES, {"one": [0, *range(2, 8)]}), collect_statistics(net, IMAGES)
    plain, merged, want = prune(net, plan)(IMAGES), prune(net, plan, compensate="merge", statistics=statistics)(IMAGES), net(IMAGES)
    assert (merged - want).norm() < 1e-4 * want.norm() < (plain - want).norm()


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("a head for two levels", "a", "other layers share its consumers"),
        ("a loop", "a", "other layers share its consumers"),
    ],
)
def test_merge_leaves_out_layers_whose_readers_read_others_too(kind: str, name: str, says: str) -> None:
    net = NETS[kind][0]().eval()
    width = trace_layers(net, IMAGES)[name].channels
    plan = plan_by_hand(net, IMAGES, {name: [*range(width - 1)]})
    with pytest.warns(UserWarning, match=rf"\b{name}\b.* \({says}\)"):
        merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))
    assert merged(IMAGES).equal(prune(net, plan)(IMAGES))


@torch.no_grad()
def test_recalibration_averages_over_the_calls() -> None:
    net = Net(lambda n, x: n.norm(x) + n.norm(F.max_pool2d(x, 2)).mean((2, 3), keepdim=True), norm=nn.BatchNorm2d(3)).eval()
    recalibrate(net, IMAGES)
    parts = (IMAGES, F.max_pool2d(IMAGES, 2))
    torch.testing.assert_close(net.norm.running_mean, torch.stack([one.mean((0, 2, 3)) for one in parts]).mean(0))
    torch.testing.assert_close(net.norm.running_var, torch.stack([one.var((0, 2, 3)) for one in parts]).mean(0))
