"""Which layers may shrink, where their channels are seen, and what is left whole and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.pruning.toys import Net, conv, mean, zeroed


def branching(pool: bool) -> Net:
    def route(net: nn.Module, x: Tensor) -> Tensor:
        y = net.relu(net.a(x))
        return mean(net.b(y) + net.c(F.max_pool2d(y, 3, 1, 1) if pool else y))

    return Net(route, a=conv(3, 6), relu=nn.ReLU(inplace=True), b=conv(6, 4), c=conv(6, 4)).eval()


@pytest.mark.parametrize("pool", [False, True])
def test_consumers_that_see_different_tensors_are_noticed(pool: bool) -> None:
    net, images = branching(pool), torch.randn(5, 3, 8, 8)
    layer = trace_layers(net, images)["a"]
    assert {consumer.name for consumer in layer.consumers} == {"b", "c"} and layer.parted == pool
    got = collect_statistics(net, images, layers=["a"])["a"]
    rows = net.a(images).relu().double().movedim(1, -1).reshape(-1, 6)  # before the paths split
    torch.testing.assert_close(got.gram, rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_after_a_functional_relu_the_last_tensor_that_a_module_shows_is_taken() -> None:
    net = Net(
        lambda n, x: mean(n.b(y := F.relu(n.bn(n.a(x)))) + n.c(F.avg_pool2d(y, 3, 1, 1))),
        a=conv(3, 6),
        bn=nn.BatchNorm2d(6),
        b=conv(6, 4),
        c=conv(6, 4),
    ).eval()
    layer = trace_layers(net, torch.zeros(1, 3, 8, 8))["a"]
    # b reads the tensor at which the paths split.
    assert (layer.tap.module, layer.tap.side, layer.parted) == ("b", "input", True)
    pooled = Net(
        lambda n, x: mean(n.b(F.max_pool2d(y := F.relu(n.bn(n.a(x))), 2)) + n.c(F.avg_pool2d(y, 2))),
        a=conv(3, 6),
        bn=nn.BatchNorm2d(6),
        b=conv(6, 4),
        c=conv(6, 4),
    ).eval()
    layer = trace_layers(pooled, torch.zeros(1, 3, 8, 8))["a"]
    assert (layer.tap.module, layer.tap.side, layer.parted) == ("bn", "output", True)


def test_concatenated_channels_are_sliced_out() -> None:
    net = Net(lambda n, x: mean(n.c(torch.cat([n.a(x).relu(), n.b(x).relu()], 1))), a=conv(3, 4), b=conv(3, 5), c=conv(9, 2)).eval()
    images = torch.randn(3, 3, 6, 6)
    got = collect_statistics(net, images)
    for name in "ab":
        rows = net.get_submodule(name)(images).relu().double().movedim(1, -1).reshape(-1, len(got[name].l1))
        torch.testing.assert_close(got[name].gram, rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert got["b"].consumers[0].positions[:, 0].tolist() == [4, 5, 6, 7, 8]


def test_a_flattened_map_keeps_its_height_and_width() -> None:
    net = Net(lambda n, x: n.head(n.pool(n.a(x)).flatten(1)), a=conv(3, 4), pool=nn.AvgPool2d(2), head=nn.Linear(4 * 12, 2)).eval()
    layer = trace_layers(net, torch.zeros(1, 3, 8, 6))["a"]
    assert layer.tap.size == (4, 3)
    got = collect_statistics(net, torch.randn(5, 3, 8, 6), extras=("hrank",))["a"]
    assert got.positions == 12 and got.extras["hrank"].tolist() == [3.0] * 4


def squeeze_excite() -> Net:
    def route(net: nn.Module, x: Tensor) -> Tensor:
        y = net.relu(net.depth(net.relu0(net.expand(x))))
        return mean(net.project(y * torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(y, 1)))))))

    return Net(
        route,
        expand=nn.Conv2d(3, 8, 1),
        relu0=nn.ReLU(),
        depth=conv(8, 8, groups=8),
        relu=nn.ReLU(),
        down=nn.Conv2d(8, 2, 1),
        up=nn.Conv2d(2, 8, 1),
        project=nn.Conv2d(8, 4, 1),
    ).eval()


@torch.no_grad()
def test_a_layer_that_reads_the_sum_that_it_adds_to_is_among_its_readers() -> None:
    net = Net(lambda n, x: mean(n.b((y := n.stem(x).relu()) + n.a(y))), stem=conv(3, 6), a=conv(6, 6), b=conv(6, 4)).eval()
    images = torch.randn(4, 3, 8, 8)
    layers = trace_layers(net, images)
    assert all({consumer.name for consumer in layers[name].consumers} == {"a", "b"} for name in ("stem", "a"))
    scores = importance("fcs_linear", model=net, statistics=collect_statistics(net, images))
    # The least needed channel of each is the first that backward elimination drops, by the weights of both readers.
    net.a.weight[:, 2], net.b.weight[:, 2] = 0, 0
    assert importance("fcs_linear", model=net, statistics=collect_statistics(net, images))["a"].argmin() == 2
    net.a.weight[:, 2] = 100.0
    assert importance("fcs_linear", model=net, statistics=collect_statistics(net, images))["a"].argmin() != 2
    plan = make_plan(net, images, scores, ratio=0.5, scope="all")
    want = zeroed(net, plan, images)
    assert set(plan.kept) == {"stem", "a"} and (prune(net, plan)(images) - want).norm() / want.norm() < 1e-5


@torch.no_grad()
def test_depthwise_and_gating_convolutions_follow() -> None:
    net, images = squeeze_excite(), torch.randn(4, 3, 8, 8)
    layers = trace_layers(net, images)
    assert set(layers["expand"].followers) == {"depth", "up"} and layers["expand"].parted
    assert (layers["expand"].tap.module, layers["expand"].tap.side) == ("relu", "output")
    assert "depthwise" in layers["depth"].obstacle("all") and "gates" in layers["up"].obstacle("all")
    plan = make_plan(net, images, importance("random", model=net), ratio=0.5)
    assert plan.kept["expand"] == plan.kept["depth"] == plan.kept["up"] and "depth" not in plan.skipped
    want, got = zeroed(net, plan, images), prune(net, plan)(images)
    assert (got - want).norm() / want.norm() < 1e-5 < (net(images) - want).norm() / want.norm()


WHOLE = {
    "called twice": (
        lambda: Net(lambda n, x: mean(n.b(n.a(n.a(x).relu()).relu())), a=conv(3, 3), b=conv(3, 2)),
        "a is called more than once",
    ),
    "one output a group": (
        lambda: Net(lambda n, x: mean(n.b(n.a(x))), a=nn.Conv2d(6, 3, 1, groups=3), b=conv(3, 2)),
        "none of its channels can go without others, because of the grouped convolution a",
    ),
    "depthwise": (
        lambda: Net(lambda n, x: mean(n.b(n.a(x))), a=nn.Conv2d(3, 3, 1, groups=3), b=conv(3, 2)),
        "depthwise",
    ),
    "beside others in a group": (
        lambda: Net(
            lambda n, x: mean(n.b(torch.cat([n.a(x), n.c(x)], 1))), a=conv(3, 3), c=conv(3, 3), b=nn.Conv2d(6, 2, 1, groups=2)
        ),
        "its channels share groups of the grouped convolution b with others",
    ),
    "output": (lambda: Net(lambda n, x: mean(n.a(x)), a=conv(3, 4)), "network's outputs"),
    "output besides": (
        lambda: Net(lambda n, x: (mean(n.b(y := n.a(x).relu())), y), a=conv(3, 4), b=conv(4, 2)),
        "network's outputs",
    ),
    "group norm": (
        lambda: Net(lambda n, x: mean(n.b(n.g(n.a(x)))), a=conv(3, 4), g=nn.GroupNorm(1, 4), b=conv(4, 2)),
        "none of its channels can go without others, because of the GroupNorm g",
    ),
    "sum with the images": (
        lambda: Net(lambda n, x: mean(n.b(x + n.a(x))), a=conv(3, 3), b=conv(3, 2)),
        "residual sum with the images",
    ),
    "unused": (
        lambda: Net(lambda n, x: mean(n.b(x)), a=conv(3, 4), b=conv(3, 2)),
        "does not lead through it",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_shrink_exactly_is_left_whole_with_the_reason(case: str) -> None:
    build, reason = WHOLE[case]
    net = build().eval()
    inputs = next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    layers = trace_layers(net, torch.zeros(1, inputs, 6, 6))
    assert reason in layers["a"].obstacle("all")
    with pytest.raises(StudyError, match="nothing to prune"):
        make_plan(net, torch.zeros(1, inputs, 6, 6), {"a": torch.ones(layers["a"].channels)}, ratio=0.5)


def head(read: Callable[[Tensor], Tensor], inputs: int) -> Callable[[], Net]:
    """A convolution of six channels, an operation, and a linear layer that reads the operation's output."""
    return lambda: Net(lambda n, x: n.b(read(n.a(x))), a=conv(3, 6), b=nn.Linear(inputs, 2))


MIXED = {
    "softmax": head(lambda y: mean(torch.softmax(y, 1)), 6),
    "centred": head(lambda y: mean(y - y.mean(1, keepdim=True)), 6),
    "normalised": head(lambda y: mean(F.normalize(y, dim=1)), 6),
    "response norm": head(lambda y: mean(F.local_response_norm(y, 3, alpha=1.0)), 6),
    "channels last": head(lambda y: y.permute(0, 2, 3, 1).flatten(1), 6 * 36),
    "shuffled": head(lambda y: mean(F.pixel_shuffle(F.pad(y, (0, 0, 0, 0, 0, 2)), 2)), 2),
    "group norm": head(lambda y: mean(F.group_norm(y, 2)), 6),
}


@pytest.mark.parametrize("case", MIXED)
def test_channels_that_mix_on_the_way_are_left_whole(case: str) -> None:
    net = MIXED[case]().eval()
    assert trace_layers(net, torch.zeros(1, 3, 6, 6))["a"].obstacle("all")
    with pytest.raises(StudyError, match="nothing to prune"):
        make_plan(net, torch.zeros(1, 3, 6, 6), {"a": torch.arange(6.0)}, ratio=0.5)


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.GELU(), nn.Sigmoid(), nn.SiLU(inplace=True), nn.PReLU(6)])
@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_any_activation_without_batchnorm_and_frozen(activation: nn.Module, frozen: bool) -> None:
    net = Net(
        lambda n, x: n.head(mean(n.act2(n.b(n.act(n.a(x)))))),
        a=conv(3, 6),
        act=activation,
        b=conv(6, 8),
        act2=nn.ReLU(),
        head=nn.Linear(8, 3),
    ).eval()
    net.requires_grad_(not frozen)
    images = torch.randn(6, 3, 8, 8)
    scores = importance("fcs", model=net, statistics=collect_statistics(net, images))
    plan = make_plan(net, images, scores, ratio=0.5)
    want, compact = zeroed(net, plan, images), prune(net, plan)
    assert plan.kept.keys() == {"a", "b"}
    assert (compact(images) - want).norm() / want.norm() < 1e-5
    assert all(parameter.requires_grad != frozen for parameter in compact.parameters())


def test_one_image_is_traced_as_a_batch() -> None:
    # The graph library would call this network on an image without batch, and lose layers behind in-place operations.
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1)).eval()
    assert trace_layers(net, torch.zeros(1, 2, 7, 7))["0"].obstacle() is None


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(StudyError, match="no convolution"):
        trace_layers(nn.Linear(3, 2), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 8, 8).long(), torch.zeros(1, 3, 8, 8, device="meta")],
)
def test_what_no_network_takes_as_images_is_refused(images: Tensor) -> None:
    with pytest.raises(
        StudyError, match=r"images='torch.* is not allowed; allowed: a float tensor \(N, C, H, W\) with N of 1 or more"
    ):
        trace_layers(conv(3, 4), images)
