"""What a plan says of MACs is what the compact network has, and a goal that cannot be reached is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import all_macs, build_seeded, count_macs
from fcs_utils.pruning.costs import Costs
from fcs_utils.pruning.counts import distinct_ratios, nearest_ratio
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_residual_sums import Sum
from tests.pruning.toys import Net, conv, mean

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def non_local(net: nn.Module, x: Tensor) -> Tensor:
    """Every position attends to every other (Wang et al. 2018); the maps' own channels are compared."""
    h = net.a(x).relu()
    query, key = net.query(h).flatten(2), net.key(h).flatten(2)
    weights = (query.mT @ key / 8).softmax(-1)  # (N, P, P)
    return mean(net.out((net.value(h).flatten(2) @ weights).view(len(x), -1, 8, 8)))


def attending(net: nn.Module, x: Tensor) -> Tensor:
    """Positions attend to those near them, by fixed weights."""
    near = torch.softmax(-(torch.arange(64.0)[:, None] - torch.arange(64.0)).abs(), -1)
    return mean(net.out((net.a(x).relu().flatten(2) @ near.to(x)).view(len(x), -1, 8, 8)))


def transposed(net: nn.Module, x: Tensor) -> Tensor:
    return mean(net.out(net.up(net.b(net.a(x).relu()).relu()).relu()))


def by_function(net: nn.Module, x: Tensor) -> Tensor:
    """A smoothing kernel on each channel, which is no module."""
    h = net.a(x).relu()
    return mean(net.out(F.conv2d(h, torch.ones(h.shape[1], 1, 3, 3).to(h) / 9, padding=1, groups=h.shape[1])))


OTHERS: dict[str, Callable[[], Net]] = {
    "transposed convolution": lambda: Net(
        transposed, a=conv(3, 8), b=conv(8, 8), up=nn.ConvTranspose2d(8, 8, 2, 2), out=conv(8, 4)
    ),
    "non-local block": lambda: Net(
        non_local, a=conv(3, 8), query=nn.Conv2d(8, 6, 1), key=nn.Conv2d(8, 6, 1), value=nn.Conv2d(8, 6, 1), out=conv(6, 4)
    ),
    "products of maps": lambda: Net(attending, a=conv(3, 8), out=conv(8, 4)),
    "convolution by a function": lambda: Net(by_function, a=conv(3, 8), out=conv(8, 4)),
}


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("goal", [{"ratio": 0.5}, {"macs": 0.8}, {"macs": 0.9}])
def test_the_share_of_macs_is_that_of_the_compact_network(case: str, goal: dict[str, float]) -> None:
    torch.manual_seed(0)
    net = OTHERS[case]().eval()
    scores = {name: torch.arange(net.get_submodule(name).out_channels).double() for name in ("a", "b") if hasattr(net, name)}
    plan = make_plan(net, IMAGES, scores, **goal)  # type: ignore[arg-type]

    def left(one: nn.Module) -> float:
        return count_macs(one, IMAGES) / count_macs(net, IMAGES)

    assert plan.macs_left == left(prune(net, plan))
    if "macs" in goal:  # and no other choice comes nearer
        others = [make_plan(net, IMAGES, scores, ratio=ratio) for ratio in distinct_ratios({8})]
        shares = [left(prune(net, other)) for other in others]
        assert abs(plan.macs_left - goal["macs"]) == pytest.approx(min(abs(share - goal["macs"]) for share in shares))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (None, r"0\.\d+ to 0\.\d+, which pruning 9 of 19 convolutions leaves; 10 stay whole, such as conv: .*residual sum"),
        (["stage1.0.conv1"], "which pruning 1 of 19 convolutions leaves; 18 stay whole"),
    ],
)
def test_a_goal_out_of_reach_is_refused_with_what_can_be_reached(layers: list[str] | None, says: str) -> None:
    net = build_seeded(0, "resnet20", num_classes=3, width=0.25).eval()
    scores = importance("kernel_l1", model=net)
    scores = scores if layers is None else {name: scores[name] for name in layers}
    with pytest.raises(StudyError, match=f"macs=0.05 is not allowed; allowed: .*{says}"):
        make_plan(net, torch.zeros(1, 3, 32, 32), scores, macs=0.05)


def test_what_depthwise_convolutions_with_a_multiplier_leave() -> None:
    """a's channels alone can go, and they are a small share of the MACs."""
    wide = [part for n in range(3) for part in (nn.Conv2d(16 << n, 32 << n, 3, padding=1, groups=16 << n), nn.ReLU())]
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 16), nn.ReLU(), *wide, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.eval()
    # MACs a position: 108 + 576 + 9 * (32 + 64 + 128) = 2700, with one channel of four 3 * (27 + 144) less: 0.81 at least.
    with pytest.raises(
        StudyError, match=r"allowed: 0\.810 to 0\.937, which pruning 1 of 5 convolutions leaves; 4 stay whole, such as 2:"
    ):
        make_plan(net, IMAGES, importance("kernel_l1", model=net), macs=0.5)
    assert make_plan(net, IMAGES, importance("kernel_l1", model=net), macs=0.87).macs_left == pytest.approx((2700 - 342) / 2700)


def test_estimates_of_macs_by_hand() -> None:
    images, one = torch.zeros(2, 3, 8, 8), {"a": ["a"], "b": ["b"]}
    net = Net(lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 8), b=conv(8, 6), c=conv(6, 4)).eval()
    costs = Costs(net, images, trace_layers(net, images))
    # MACs of a position: 9 * (3 * 8 + 8 * 6 + 6 * 4) = 864.
    assert costs.estimate(one, {"a": 8, "b": 6}) == 1
    assert costs.estimate(one, {"a": 6, "b": 3}) == pytest.approx(9 * (3 * 6 + 6 * 3 + 3 * 4) / 864)
    net = Net(lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 8), b=conv(8, 8, groups=8), c=conv(8, 4)).eval()
    costs = Costs(net, images, trace_layers(net, images))
    # The depthwise convolution follows, with nine MACs a channel: 9 * (3 * 8 + 8 + 8 * 4) = 576.
    assert costs.estimate({"a": ["a"]}, {"a": 6}) == pytest.approx(9 * (3 * 6 + 6 + 6 * 4) / 576)
    net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)).eval()
    costs = Costs(net, images, trace_layers(net, images))
    # In all 64 * 9 * 3 * 8 + 512 * 2 = 14,848, each channel 64 * 9 * 3 + 64 * 2 = 1,856 of them.
    assert costs.estimate({"0": ["0"]}, {"0": 5}) == pytest.approx(1 - 3 * 1856 / 14848)
    net = OTHERS["products of maps"]().eval()
    costs = Costs(net, images, trace_layers(net, images))
    # The layers have 64 * 9 * (3 * 8 + 8 * 4) = 32,256, a channel of a 64 * 9 * 7 = 4,032; the products' 64 * 64 * 8 = 32,768 stay.
    assert costs.estimate({"a": ["a"]}, {"a": 6}) == pytest.approx(1 - 2 * 4032 / (32256 + 32768))


def test_ratios_stand_for_every_set_of_counts_once() -> None:
    # Of 2 channels one goes from a ratio of 1/4 on (1/4 rounds to even, so above it), of 3 from 1/6 and 1/2.
    assert distinct_ratios({2, 3}) == pytest.approx(
        [(1 / 6 + 1 / 4) / 2, (1 / 4 + 1 / 2) / 2, (1 / 2 + 3 / 4) / 2, (3 / 4 + 5 / 6) / 2, 11 / 12]
    )
    shares = {0.1: 0.9, 0.2: 0.6, 0.3: 0.4, 0.4: 0.1}
    for macs, ratio in ((0.95, 0.1), (0.7, 0.2), (0.5, 0.2), (0.49, 0.3), (0.0, 0.4)):
        assert nearest_ratio(list(shares), shares.__getitem__, macs) == ratio


def test_estimates_of_sums_and_of_channels_laid_out_in_space_by_hand() -> None:
    images, net = torch.zeros(1, 3, 8, 8), Sum().eval()
    costs = Costs(net, images, trace_layers(net, images))
    # MACs of a position: 15 + 9 * 20 + 20 + 8 = 223. The head loses one input, though both layers lose a channel.
    assert costs.estimate({"a": ["a", "b"]}, {"a": 3}) == pytest.approx((15 + 135 + 15 + 6) / 223)
    assert costs.estimate({"inner": ["inner"], "a": ["a", "b"]}, {"inner": 2, "a": 1}) == pytest.approx((6 + 18 + 2 + 2) / 223)
    plan = make_plan(net, images, importance("kernel_l1", model=net), ratio=0.25, scope="all")
    assert costs.measured(net) == 1
    assert costs.by_layer(prune(net, plan)) == {
        name: (64 * dense, 64 * left) for name, dense, left in (("inner", 15, 12), ("head", 8, 6), ("a", 180, 108), ("b", 20, 12))
    }
    net = Net(lambda n, x: mean(n.b(F.pixel_shuffle(n.a(x), 2))), a=conv(3, 16), b=conv(4, 5)).eval()
    costs = Costs(net, images, trace_layers(net, images))
    assert [costs.estimate({"a": ["a"]}, {"a": keep}) for keep in (16, 12, 8)] == pytest.approx([1, 0.75, 0.5])


def test_macs_by_shapes_alone_are_those_of_a_pass_with_numbers() -> None:
    net, images = build_seeded(0, "resnet20", width=0.5, num_classes=3, in_channels=3), torch.randn(2, 3, 16, 16)
    held = [(id(one), one.clone()) for one in (*net.parameters(), *net.buffers())]
    assert all_macs(net, images, shapes_only=True) == all_macs(net, images)
    after = (*net.parameters(), *net.buffers())
    assert all(id(one) == name and one.equal(value) for one, (name, value) in zip(after, held, strict=True))


def test_macs_of_a_compact_network_that_asks_for_a_number_are_counted_with_numbers() -> None:
    def route(net: nn.Module, x: Tensor) -> Tensor:
        h = net.a(x)
        return mean(net.out(h if h.shape[1] == 8 or h.sum() > -1e9 else -h))

    net = Net(route, a=conv(3, 8), out=conv(8, 4))
    narrow = Net(route, a=conv(3, 4), out=conv(4, 4))
    costs = Costs(net, IMAGES, trace_layers(net, IMAGES), shapes_only=True)
    assert costs.measured(narrow) == count_macs(narrow, IMAGES) / count_macs(net, IMAGES)
