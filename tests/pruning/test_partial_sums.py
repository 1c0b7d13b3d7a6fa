"""Sums in which the channels of layers do not match one to one: those of one layer decide which of the others go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.benchmarks.small import C2f
from fcs_utils.errors import StudyError
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.shares import Shares, runs_of
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.toys import Net, conv, mean, zeroed

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Ghost(nn.Module):
    """Half of the maps by a convolution, the other half from those by a depthwise one, as in GhostNet (Han et al. 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main, self.cheap = conv(inputs, outputs // 2), conv(outputs // 2, outputs // 2, groups=outputs // 2)
        self.norm, self.outputs = nn.BatchNorm2d(outputs // 2), outputs

    def forward(self, x: Tensor) -> Tensor:
        half = self.norm(self.main(x)).relu()
        return torch.cat([half, self.cheap(half)], 1)[:, : self.outputs]


class DualPath(nn.Module):
    """Adds the first of its channels to those that came, and lays the others beside them, as in DPN (Chen et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = conv(width, 5), conv(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(x).relu())
        return torch.cat([x[:, :4] + y[:, :4], x[:, 4:], y[:, 4:]], 1)


def halves(net: nn.Module, x: Tensor) -> Tensor:
    one, two = net.a(x).relu().chunk(2, 1)
    return mean(net.b(one) + net.c(two))


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, str | None]]] = {
    "C2f": (
        lambda: Net(lambda n, x: mean(n.b(n.block(n.a(x).relu()))), a=conv(3, 6), block=C2f(6, 8), b=conv(8, 4)),
        {"a": None, "block.first.0": "block.first.0", "block.between.0.two.0": "block.first.0", "block.last.0": None},
    ),
    "C2f of two bottlenecks": (
        lambda: Net(lambda n, x: mean(n.b(n.block(n.a(x).relu()))), a=conv(3, 6), block=C2f(6, 8, 2), b=conv(8, 4)),
        {f"block.{name}.0": "block.first.0" for name in ("first", "between.0.two", "between.1.two")},
    ),
    "ghosts in a residual sum": (
        lambda: Net(
            lambda n, x: mean(n.b((y := n.a(x).relu()) + n.two(n.one(y)))),
            a=conv(3, 8),
            one=Ghost(8, 12),
            two=Ghost(12, 8),
            b=conv(8, 4),
        ),
        {"a": "two.main", "two.main": "two.main", "one.main": None},
    ),
    "a ghost with a gate": (
        lambda: Net(
            lambda n, x: mean(n.b((y := n.one(x)) * n.up(n.down(F.adaptive_avg_pool2d(y, 1)).relu()).sigmoid())),
            **{"one": Ghost(3, 12), "down": nn.Conv2d(12, 4, 1), "up": nn.Conv2d(4, 12, 1), "b": conv(12, 4)},
        ),
        {"one.main": "one.main", "down": None},
    ),
    "two layers side by side in a sum": (
        lambda: Net(
            lambda n, x: mean(n.d(torch.cat([n.a(x), n.b(x)], 1) + n.c(x))), a=conv(3, 4), b=conv(3, 4), c=conv(3, 8), d=conv(8, 3)
        ),
        dict.fromkeys("abc", "c"),
    ),
    "halves that are read apart": (lambda: Net(halves, a=conv(3, 8), b=conv(4, 5), c=conv(4, 5)), {"a": "a"}),
    "a PixelShuffle in a sum": (
        lambda: Net(
            lambda n, x: mean(n.c(F.pixel_shuffle(n.a(x), 2) + F.interpolate(n.b(x), scale_factor=2.0))),
            **{"a": conv(3, 16), "b": conv(3, 4), "c": conv(4, 5)},
        ),
        dict.fromkeys("ab", "b"),
    ),
    "two poolings": (
        lambda: Net(lambda n, x: n.b(torch.cat([mean(y := n.a(x)), y.amax((2, 3))], 1)), a=conv(3, 6), b=nn.Linear(12, 2)),
        {"a": None},
    ),
    "CReLU": (
        lambda: Net(lambda n, x: mean(n.b(torch.cat([(y := n.a(x)).relu(), (-y).relu()], 1))), a=conv(3, 6), b=conv(12, 4)),
        {"a": None},
    ),
}


def built(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[kind][0]().train()
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(0.1 * torch.rand_like(tensor))  # no zeros and no equal vectors, which hide mistakes
        net(torch.randn(16, 3, 8, 8))
    return net.eval()


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_surgery_is_exact_and_one_layer_decides(kind: str, tmp_path: Path) -> None:
    net, roots = built(kind), NETS[kind][1]
    layers = trace_layers(net, IMAGES)
    assert {name: layers[name].root for name in roots} == roots
    for criterion in ("kernel_l1", "fcs", "fcs_linear"):
        scores = importance(criterion, model=net, statistics=collect_statistics(net, IMAGES))
        plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
        assert {name: 2 * len(plan.kept[name]) for name in roots} == {name: plan.channels[name] for name in roots}
        for name, root in roots.items():
            assert root is None or plan.kept[name] == layers[root].follow(name, plan.kept[root])
        compact, want = prune(net, plan), zeroed(net, plan, IMAGES)
        assert (compact(IMAGES) - want).norm() < 1e-5 * want.norm() < (net(IMAGES) - want).norm()
        assert inexactness(net, compact, IMAGES[:1]) is None
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    assert load_compact(tmp_path / "compact.safetensors", NETS[kind][0]()).eval()(IMAGES).equal(compact(IMAGES))


def test_many_concatenations_of_slices_are_followed() -> None:
    net = nn.Sequential(conv(3, 8), *(DualPath(8 + 2 * number) for number in range(12)), conv(32, 4)).eval()
    layers = trace_layers(net, IMAGES)
    plan = make_plan(net, IMAGES, {name: torch.arange(float(one.channels)) for name, one in layers.items()}, ratio=0.4, scope="all")
    assert {f"{number}.inner" for number in range(1, 13)} <= plan.kept.keys()
    assert inexactness(net, prune(net, plan), IMAGES[:1]) is None


def test_which_channels_belong_together_by_hand() -> None:
    net = built("C2f")
    layers = trace_layers(net, IMAGES)
    first = layers["block.first.0"]
    # The second half of the first convolution's 8 channels is added to the bottleneck's 4; each half keeps equally many.
    assert first.shares == Shares(parts=2) and {name: owners.tolist() for name, owners in first.maps.items()} == {
        "block.between.0.two.0": [4, 5, 6, 7]
    }
    last = next(consumer.positions for consumer in first.consumers if consumer.name == "block.last.0")
    assert last.tolist() == [[0, -1], [1, -1], [2, -1], [3, -1], [4, 8], [5, 9], [6, 10], [7, 11]]
    assert first.follow("block.between.0.two.0", [0, 1, 4, 7]) == [0, 3]
    score = first.mean("block.between.0.two.0", torch.tensor([1.0, 2, 3, 4]))
    assert score[:4].isnan().all() and score[4:].tolist() == [1, 2, 3, 4]
    main = trace_layers(built("ghosts in a residual sum"), IMAGES)["two.main"]
    assert main.maps["a"].tolist() == [0, 1, 2, 3] * 2 and main.follow("a", [1, 2]) == [1, 2, 5, 6]
    assert main.mean("a", torch.arange(8.0)).tolist() == [2, 3, 4, 5]


def test_the_mean_of_all_layers_decides() -> None:
    net = built("C2f")
    zeros = {name: torch.zeros(layer.channels) for name, layer in trace_layers(net, IMAGES).items() if layer.barrier is None}
    scores = zeros | {
        "block.first.0": torch.tensor([4.0, 3, 2, 1, 4, 3, 2, 1]),
        "block.between.0.two.0": torch.tensor([0.0, 0, 4, 9]),
    }
    # Means of the second half: 2, 1.5, 3, 5.
    plan = make_plan(net, IMAGES, scores, rates={"block.first.0": 0.5, "block.between.0.two.0": 0.5}, scope="all")
    assert plan.kept == {"block.first.0": [0, 1, 6, 7], "block.between.0.two.0": [2, 3]}


def test_runs_of_channels_by_hand() -> None:
    for covered, parts in (("11111111", 1), ("00001111", 2), ("00110011", 4), ("01111111", 8), ("110000", 3)):
        assert runs_of(torch.tensor([one == "1" for one in covered])) == Shares(parts=parts)


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (
            {"block.between.0.two.0": [0, 1]},
            "name block.first.0 in place of block.between.0.two.0: its channels decide which of",
        ),
        ({"block.first.0": [0, 1, 2, 4]}, "as many of each 4 channels"),
        ({"block.first.0": [0, 1, 4, 5], "block.between.0.two.0": [2, 3]}, r"\[0, 1\], the channels of its residual sum"),
    ],
)
def test_plans_by_hand(kept: dict[str, list[int]], says: str) -> None:
    net = built("C2f")
    with pytest.raises(StudyError, match=says):
        plan_by_hand(net, IMAGES, kept)
    plan = plan_by_hand(net, IMAGES, {"block.first.0": [0, 1, 4, 5]})
    assert plan.kept == {"block.first.0": [0, 1, 4, 5], "block.between.0.two.0": [0, 1]}
    edited = PruningPlan.from_data(plan.model_dump() | {"kept": plan.kept | {"block.between.0.two.0": [2, 3]}})
    with pytest.raises(StudyError, match="the plan is damaged: block.between.0.two.0 must lose the same channels as block.first.0"):
        prune(net, edited)


@torch.no_grad()
def test_other_ways_to_spread_the_loss() -> None:
    net = built("ghosts in a residual sum")
    statistics = collect_statistics(net, IMAGES)
    scores = importance("fcs_linear", model=net, statistics=statistics)
    ways = [{"allocation": "global"}, {"ranking": "network"}, {"allocation": "sensitivity", "statistics": statistics}]
    ways.append({"allocation": "sensitivity", "evaluate": lambda network: network(IMAGES).abs().mean().item()})
    for way in ways:
        plan = make_plan(net, IMAGES, scores, macs=0.5, scope="all", **way)
        assert abs(plan.macs_left - 0.5) < 0.1 and inexactness(net, prune(net, plan), IMAGES[:1]) is None
    with pytest.warns(UserWarning, match="merge left out"):
        merged = prune(net, plan, compensate="merge", statistics=statistics)
    assert merged(IMAGES).shape == net(IMAGES).shape


WHOLE: dict[str, tuple[Callable[[], Net], dict[str, str]]] = {
    "no layer decides for the others": (
        lambda: Net(
            lambda n, x: mean(n.e(torch.cat([n.a(x), n.b(x)], 1) + torch.cat([n.c(x), n.d(x)], 1))),
            **{"a": conv(3, 4), "b": conv(3, 8), "c": conv(3, 8), "d": conv(3, 4), "e": conv(12, 3)},
        ),
        dict.fromkeys("abcd", "whose channels do not match one to one"),
    ),
    "parts of a fixed size": (
        lambda: Net(lambda n, x: mean(n.b((y := n.a(x).split(4, 1))[0]) + n.c(y[1])), a=conv(3, 8), b=conv(4, 2), c=conv(4, 2)),
        {"a": "reads its channels in a way that cannot be followed"},
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_stays_whole_and_why(case: str) -> None:
    net, says = WHOLE[case][0]().eval(), WHOLE[case][1]
    scores = {name: torch.arange(float(trace_layers(net, IMAGES)[name].channels)) for name in says}
    with pytest.raises(StudyError, match="nothing to prune: ") as caught:
        make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
    parts = dict(part.split(": ", 1) for part in str(caught.value).removeprefix("nothing to prune: ").split("; "))
    assert all(reason in parts[name] for name, reason in says.items())
