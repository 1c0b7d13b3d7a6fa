"""What layers' channels meet: groups, shortcuts, norms and obstacles, on networks small enough to be read off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.models import CifarResNet
from fcs_utils.pruning import groups as groups_module
from fcs_utils.pruning.flow import Consumer, Tap
from fcs_utils.pruning.groups import ChannelGroup, GroupFinder
from fcs_utils.pruning.layers import Layer, prunable_layers, trace_layers
from fcs_utils.pruning.shares import ANY, Shares
from fcs_utils.shortcuts import PadShortcut
from tests.pruning.toys import Net, conv, mean

IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("channels", "asked", "shares", "barriers"),
    [
        (12, [Shares(unit=3)], Shares(unit=3), 0),
        (12, [Shares(unit=3), Shares(parts=2)], Shares(unit=3, parts=2), 0),
        (12, [Shares(unit=3), Shares(unit=4)], Shares(unit=3), 1),  # 12 by 12 together: all of them
        (12, [Shares(unit=3), Shares(parts=8), Shares(parts=2)], Shares(unit=3, parts=2), 1),  # 12 is no multiple of 24
        (2, [Shares(unit=2)], ANY, 1),
        (2, [Shares(parts=2)], ANY, 1),
        (2, [ANY], ANY, 0),
        (1, [ANY], ANY, 0),
    ],
)
def test_what_several_modules_ask_of_one_layers_channels(channels: int, asked: list[Shares], shares: Shares, barriers: int) -> None:
    group = ChannelGroup(["a"], [], [], [], channels)
    for one in asked:
        group.join(one, "the module m")
    assert group.shares == shares
    assert group.barriers == ["none of its channels can go without others, because of the module m"] * barriers


def test_a_group_that_decides_keeps_its_other_obstacles() -> None:
    maps = {"b": torch.tensor([0, 1, 0, 1])}
    group = ChannelGroup(["a"], [], [], ["read by x", "b has another width"], 2, maps=maps, uneven=["b has another width"])
    GroupFinder.lead(object(), group)  # type: ignore[arg-type]
    assert group.root and group.barriers == ["read by x"]


def led(maps: dict[str, Tensor], positions: list[list[int]]) -> ChannelGroup:
    """A group of four channels that decides where it can."""
    group = ChannelGroup(["a"], [Consumer("c", torch.tensor(positions))], [], [], 4, maps=maps)
    assert not (group.large or group.clash or group.root or group.tied)
    group.bar("b has another width")
    GroupFinder.lead(object(), group)  # type: ignore[arg-type]
    return group


def test_layers_that_meet_a_part_of_the_channels_that_decide_ask_for_as_many_of_the_others() -> None:
    whole, half = [[0], [1], [2], [3]], [[0, -1], [1, 2], [-1, -1], [-1, -1]]
    assert led({"b": torch.tensor([0, 1, 2, 3, 0])}, whole).shares == ANY
    assert led({"b": torch.tensor([0, 1, 1])}, whole).shares == led({}, half).shares == Shares(parts=2)


def test_channels_do_not_decide_for_an_index_that_belongs_to_none() -> None:
    group = led({"b": torch.tensor([0, 1, 2, 3]), "c": torch.tensor([0, 1, -1])}, [[0], [1], [2], [3]])
    assert not group.root and group.barriers == group.uneven == ["b has another width"]


def layer(name: str = "a", barrier: str | None = None, coupled: tuple[str, ...] = (), beyond: tuple[str, ...] = ()) -> Layer:
    return Layer(name, 4, None, (), (), coupled, Tap(name, "output"), False, barrier, beyond=beyond)


def test_an_obstacle_names_a_hundred_layers_at_most() -> None:
    assert layer().obstacle() is layer(coupled=("b",)).obstacle("all") is layer(beyond=("b",)).obstacle("all") is None
    assert layer(barrier="why").obstacle("all") == layer(barrier="why", coupled=("b",)).obstacle() == "why"
    assert layer(coupled=("a", "b"), beyond=("c",)).obstacle() == "shares a residual sum with b, c"  # not with itself
    names = tuple(f"c{number}" for number in range(103))
    assert layer(coupled=names[:100]).obstacle() == f"shares a residual sum with {', '.join(names[:100])}"
    assert layer(coupled=names).obstacle() == f"shares a residual sum with {', '.join(names[:100])} and 3 more"


def test_a_layer_alone_shares_no_sum_however_large_its_walk_is(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 4), nn.ReLU(), conv(4, 2)).eval()
    monkeypatch.setattr(groups_module, "LARGE", 0)
    layers = trace_layers(net, IMAGE)
    assert {name: found.coupled for name, found in layers.items()} == {"0": (), "2": (), "4": ()}
    assert prunable_layers(net, IMAGE).keys() == {"0", "2"}


def test_the_norm_of_a_layer_is_the_batchnorm_that_alone_reads_it() -> None:
    layers = {"a": conv(3, 6), "norm": nn.BatchNorm2d(6), "b": conv(6, 4), "last": nn.BatchNorm2d(4), "head": nn.Linear(4, 2)}
    net = Net(lambda n, x: n.head(mean(n.last(n.b(n.norm(n.a(x)).relu())))), **layers).eval()
    assert {name: found.norm for name, found in trace_layers(net, IMAGE).items()} == {"a": "norm", "b": "last"}
    for beside in (
        lambda n, x: n.head(mean(n.last(n.b(n.norm(y := n.a(x)).relu() + y)))),  # another reads it, too
        lambda n, x: n.head(mean(n.last(n.b(n.norm(n.a(x).relu()))))),  # something lies between
        lambda n, x: n.head(mean(n.last(n.b(n.norm(n.norm(n.a(x))))))),  # it runs twice
    ):
        net.route = beside
        found = trace_layers(net, IMAGE)
        assert found["a"].norm is None and found["b"].norm == "last"


def test_layers_on_both_sides_of_a_shortcut_know_one_another() -> None:
    layers = trace_layers(CifarResNet(1, 3, 0.25, 3, "A").eval(), torch.zeros(1, 3, 32, 32))
    sums = ["conv", "stage1.0.conv2", "stage2.0.conv2", "stage3.0.conv2"]
    assert {name: layers[name].beyond for name in sums} == {
        "conv": ("stage1.0.conv2",),
        "stage1.0.conv2": ("conv", "stage2.0.conv2"),
        "stage2.0.conv2": ("stage1.0.conv2", "stage3.0.conv2"),
        "stage3.0.conv2": ("stage2.0.conv2",),
    }
    # In the first stage the shortcut copies every channel; the others pad with zeros.
    assert {name: layers[name].aligned for name in sums} == {
        "conv": ("stage1.0.conv2",),
        "stage1.0.conv2": ("conv",),
        "stage2.0.conv2": (),
        "stage3.0.conv2": (),
    }
    shortcuts = {name: [(one.name, one.positions.tolist()) for one in layers[name].shortcuts] for name in sums}
    assert shortcuts["conv"] == [("stage1.0.shortcut", [[0], [1], [2], [3]])] and shortcuts["stage3.0.conv2"] == []
    assert shortcuts["stage2.0.conv2"] == [("stage3.0.shortcut", [[n] for n in range(8)])]
    assert all(not layers[name].coupled for name in sums) and not layers["stage1.0.conv1"].beyond


def test_layers_beyond_a_shortcut_are_aligned_where_each_channel_meets_one() -> None:
    def route(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, c = net.a(x), net.c(x)
        narrow, wide = net.same(a) + c, net.padded(a) + torch.cat([c, net.e(x)], 1)
        return mean(net.d(narrow)) + mean(net.g(wide)) + mean(net.f(net.beside(torch.cat([a, net.b(x)], 1)) + net.w(x)))

    layers: dict[str, nn.Module] = {name: conv(3, 4) for name in "abc"} | {"e": conv(3, 3), "w": conv(3, 8)}
    layers |= {"d": conv(4, 2), "g": conv(7, 2), "f": conv(8, 2)}
    shortcuts = {"same": PadShortcut(4, 4, 1), "padded": PadShortcut(4, 7, 1), "beside": PadShortcut(8, 8, 1)}
    found = trace_layers(Net(route, **layers, **shortcuts).eval(), IMAGE)
    # One shortcut between a and c copies all channels, another one pads them. The channels of w are those of a, and others.
    assert (found["a"].beyond, found["a"].aligned) == (("c", "e", "w"), ("c",))
    assert (found["w"].beyond, found["w"].aligned) == (("a", "b"), ())


@pytest.mark.parametrize(("others", "more"), [(100, ""), (101, " and 1 more")])
def test_a_reason_names_a_hundred_layers_at_most(others: int, more: str) -> None:
    names = tuple(f"layer{number}" for number in range(others))
    layer = Layer("a", 4, None, (), (), ("a", *names), Tap("a", "output", axis=1), False, None)
    assert layer.obstacle() == f"shares a residual sum with {', '.join(names[:100])}{more}" and layer.obstacle("all") is None


def test_channels_beside_the_images_are_no_sum_with_them() -> None:
    net = Net(lambda n, x: mean(n.b(torch.cat([x, n.a(x)], 1))), a=conv(3, 4), b=conv(7, 2)).eval()
    assert "sum with the images" not in str(trace_layers(net, IMAGE)["a"].barrier)
    net = Net(lambda n, x: mean(n.b(x.relu() + n.a(x))), a=conv(3, 3), b=conv(3, 2)).eval()
    assert trace_layers(net, IMAGE)["a"].barrier == "shares a residual sum with the images, whose channels stay"


def test_two_channels_that_one_group_normalises_cannot_part() -> None:
    net = Net(lambda n, x: mean(n.b(n.g(n.a(x)))), a=conv(3, 2), g=nn.GroupNorm(1, 2), b=conv(2, 4)).eval()
    assert trace_layers(net, IMAGE)["a"].barrier == "none of its channels can go without others, because of the GroupNorm g"
