"""Operators that move channels: shuffles, gated linear units and depthwise convolutions of several outputs for each input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness
from fcs_utils.errors import StudyError
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, has_onnx, load_compact, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.shares import Shares
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.axes import settled
from tests.pruning.toys import Net, conv, halved, mean

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Forward = Callable[[nn.Module, Tensor], Tensor]


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(batch, channels, height, width)


class Stage(nn.Module):
    """Two units of ShuffleNetV2 (Ma et al. 2018): (N, inputs, H, W) to (N, 2 half, H, W)."""

    def __init__(self, inputs: int, half: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*depth(inputs), nn.Conv2d(inputs, half, 1), nn.BatchNorm2d(half), nn.ReLU())
        self.two, self.three = self.branch(inputs, half), self.branch(half, half)

    @staticmethod
    def branch(inputs: int, half: int) -> nn.Sequential:
        inside = (nn.Conv2d(inputs, half, 1), nn.BatchNorm2d(half), nn.ReLU(), *depth(half))
        return nn.Sequential(*inside, nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        stays, goes = shuffled(torch.cat([self.one(x), self.two(x)], 1)).chunk(2, 1)
        return shuffled(torch.cat([stays, self.three(goes)], 1))


def depth(channels: int) -> tuple[nn.Module, ...]:
    return conv(channels, channels, groups=channels), nn.BatchNorm2d(channels)


def chain(forward: Forward, **layers: nn.Module) -> Callable[[], Net]:
    return lambda: Net(lambda n, x: mean(n.b(forward(n, n.a(x)))), **layers)


# By network, how many channels are left at a ratio of a half, by layer, and which choices its first layer has.
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, int], Shares]] = {
    "a shuffle": (chain(lambda n, x: shuffled(x.relu()), a=conv(3, 8), b=conv(8, 4)), {"a": 4}, Shares(alike=2)),
    "a shuffle of the library": (
        chain(lambda n, x: F.channel_shuffle(x, 3), a=conv(3, 12), b=conv(12, 4)),
        {"a": 6},
        Shares(alike=3),
    ),
    "a shuffle of permutations": (
        chain(lambda n, x: x.unflatten(1, (2, -1)).permute(0, 2, 1, 3, 4).contiguous().flatten(1, 2), a=conv(3, 8), b=conv(8, 4)),
        {"a": 4},
        Shares(alike=2),
    ),
    "there and back": (chain(lambda n, x: x.flatten(2).relu().view(x.shape), a=conv(3, 8), b=conv(8, 4)), {"a": 4}, Shares()),
    "a stage of ShuffleNetV2": (
        lambda: Net(lambda n, x: mean(n.b(n.stage(n.a(x).relu()))), a=conv(3, 6), stage=Stage(6, 8), b=conv(16, 4)),
        {"a": 3, "stage.two.0": 4, "stage.two.5": 4, "stage.one.2": 4, "stage.three.0": 4, "stage.three.5": 4},
        Shares(),
    ),
    "a gated linear unit": (chain(lambda n, x: F.glu(x, 1), a=conv(3, 8), b=conv(4, 4)), {"a": 4}, Shares(alike=2)),
    "a gate of chunks": (
        chain(lambda n, x: (y := n.norm(x).chunk(2, 1))[0] * y[1].sigmoid(), a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(4, 4)),
        {"a": 4},
        Shares(parts=2, alike=2),
    ),
    "a gate in a residual sum": (
        lambda: Net(lambda n, x: mean(n.b((y := n.a(x).relu()) + F.glu(n.c(y), 1))), a=conv(3, 4), c=conv(4, 8), b=conv(4, 4)),
        {"a": 2, "c": 4},
        Shares(),
    ),
    "a gate of a linear layer": (
        lambda: Net(lambda n, x: n.b(F.glu(n.c(mean(n.a(x))))), a=conv(3, 6), c=nn.Linear(6, 8), b=nn.Linear(4, 4)),
        {"a": 3, "c": 4},
        Shares(),
    ),
    "a gate of grouped convolutions": (
        chain(lambda n, x: F.glu(n.c(x), 1), a=conv(3, 6), c=conv(6, 12, groups=2), b=conv(6, 4)),
        {"a": 4, "c": 6},  # as many of each half of a's channels
        Shares(parts=2),
    ),
    "two outputs for each input": (
        chain(lambda n, x: n.norm(n.d(x.relu())), a=conv(3, 6), d=conv(6, 12, groups=6), norm=nn.BatchNorm2d(12), b=conv(12, 4)),
        {"a": 3, "d": 6},
        Shares(),
    ),
    "two outputs in a residual sum": (
        lambda: Net(
            lambda n, x: mean(n.b(n.c(x) + n.d(n.a(x)))), a=conv(3, 4), d=conv(4, 12, groups=4), c=conv(3, 12), b=conv(12, 4)
        ),
        {"a": 2, "c": 6, "d": 6},
        Shares(),
    ),
}


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:merge left out")
def test_surgery_is_exact(kind: str, tmp_path: Path) -> None:
    build, left, shares = NETS[kind]
    torch.manual_seed(0)
    net = settled(build(), IMAGES)
    assert trace_layers(net, IMAGES)["a"].shares == shares
    statistics = collect_statistics(net, IMAGES)
    plan, compact = halved(net, IMAGES, left, statistics)
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    assert load_compact(tmp_path / "compact.safetensors", build()).eval()(IMAGES).equal(compact(IMAGES))
    merged = prune(net, plan, compensate="merge", statistics=statistics)
    assert merged(IMAGES).shape == net(IMAGES).shape and merged(IMAGES).isfinite().all()


def test_which_channels_belong_together_by_hand() -> None:
    layers = trace_layers(settled(NETS["a shuffle"][0](), IMAGES), IMAGES)
    # Channels 0 and 4 come to lie at 0 and 1, 1 and 5 at 2 and 3.
    assert layers["a"].consumers[0].positions.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] * 2
    layers = trace_layers(settled(NETS["a gated linear unit"][0](), IMAGES), IMAGES)
    assert layers["a"].consumers[0].positions[:, 0].tolist() == [0, 1, 2, 3] * 2
    layers = trace_layers(settled(NETS["two outputs for each input"][0](), IMAGES), IMAGES)
    assert layers["a"].consumers[0].positions.tolist() == [[2 * n, 2 * n + 1] for n in range(6)]
    assert layers["a"].root == "a" and layers["a"].maps["d"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert layers["d"].barrier == "depthwise convolution: follows the layer before it"


def test_a_stage_of_shufflenet_by_hand() -> None:
    net = settled(NETS["a stage of ShuffleNetV2"][0](), IMAGES)
    layers = trace_layers(net, IMAGES)
    first = layers["stage.one.2"]
    # The first shuffle puts channel n of both branches at 2 n and 2 n + 1. The first half of these, from n = 0 to 3, stays, and the
    # second shuffle puts these eight beside the eight of the third branch. So channel n decides for its channels 2 n and 2 n + 1.
    assert first.root == "stage.one.2" and first.shares == Shares(parts=2)
    assert set(first.coupled) == {"stage.two.5", "stage.three.5"}
    assert {name: owners.tolist() for name, owners in first.maps.items()} == {"stage.three.5": [0, 0, 1, 1, 2, 2, 3, 3]}
    reads = {consumer.name: consumer.positions.tolist() for consumer in first.consumers}
    assert reads["stage.three.0"] == [[-1, -1]] * 4 + [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert reads["b"] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]] + [[-1] * 4] * 4
    plan = plan_by_hand(net, IMAGES, {"stage.one.2": [0, 3, 4, 5]})
    assert plan.kept["stage.three.5"] == [0, 1, 6, 7] and plan.kept["stage.two.5"] == [0, 3, 4, 5]
    assert inexactness(net, prune(net, plan), IMAGES[:1]) is None
    with pytest.raises(StudyError, match="as many of each 4 channels"):
        plan_by_hand(net, IMAGES, {"stage.one.2": [0, 1, 2, 4]})


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ([0, 1, 4, 6], "the same places of each 4 channels, because these meet"),
        ([0, 1, 2, 3], "the same places"),
        ([0, 2, 4, 6], None),
    ],
)
def test_a_gate_keeps_the_same_places_of_both_halves(kept: list[int], says: str | None) -> None:
    net = settled(NETS["a gated linear unit"][0](), IMAGES)
    if says:
        with pytest.raises(StudyError, match=says):
            plan_by_hand(net, IMAGES, {"a": kept})
    else:
        assert prune(net, plan_by_hand(net, IMAGES, {"a": kept})).b.weight.equal(net.b.weight[:, [0, 2]])


def test_the_mean_of_both_halves_decides() -> None:
    net = settled(NETS["a gated linear unit"][0](), IMAGES)
    plan = make_plan(net, IMAGES, {"a": torch.tensor([5.0, 1, 2, 3, 0, 1, 4, 1])}, ratio=0.5)  # means 2.5, 1, 3, 2
    assert plan.kept == {"a": [0, 2, 4, 6]}


WHOLE: dict[str, tuple[Callable[[], Net], str]] = {
    # Four channels a group, written into the code: without some of them, the last reshape fails or groups differ.
    "groups of a fixed size": (
        chain(lambda n, x: x.view(len(x), -1, 4, 8, 8).transpose(1, 2).reshape(len(x), -1, 8, 8), a=conv(3, 8), b=conv(8, 4)),
        "without some",
    ),
    "an order that is no shuffle": (
        chain(lambda n, x: x[:, [1, 0, 2, 3]], a=conv(3, 4), b=conv(4, 4)),
        "channels mix on the way to b",
    ),
    "gates of other places": (
        chain(lambda n, x: (y := x.chunk(2, 1))[0] * y[1].flip(1), a=conv(3, 8), b=conv(4, 4)),
        "channels mix on the way to b",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_stays_whole_and_why(case: str) -> None:
    build, says = WHOLE[case]
    net = settled(build(), IMAGES)
    layers = trace_layers(net, IMAGES)
    with pytest.raises(StudyError, match=f"nothing to prune: a: .*{says}"):
        make_plan(net, IMAGES, {"a": torch.arange(float(layers["a"].channels))}, ratio=0.5, scope="all")


class PartAttention(nn.Module):
    """Attention among the positions of half of the channels, as in SHViT (Yun and Ro 2024). The library's graph fails at it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.two = conv(3, 8), conv(8, 4), conv(8, 8)
        self.inner, self.keys = nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 8)), conv(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        part, rest = (x + self.inner(x)).split([4, 4], 1)
        query, key, value = (one.flatten(2) for one in self.keys(part).split([1, 1, 4], 1))
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        y = (value @ weights.transpose(1, 2)).reshape(part.shape)
        return mean(self.b(self.two(torch.cat([y, rest], 1).relu())))


def test_layers_beside_a_reshape_that_cannot_be_followed_shrink() -> None:
    net = settled(PartAttention(), IMAGES)
    barriers = {name: layer.barrier for name, layer in trace_layers(net, IMAGES).items()}
    reasons = dict.fromkeys(("a", "inner.2"), "keys reads its channels in a way that cannot be followed")
    reasons |= {"keys": "its channels go through reshapes that cannot be followed", "b": "its channels are the network's outputs"}
    assert barriers == {"inner.0": None, "two": None} | reasons
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"inner.0": 3, "two": 4}
    assert inexactness(net, prune(net, plan), IMAGES[:1]) is None
    # A flatten beside it is followed.
    net = Net(lambda n, x: n.head(n.c(x).flatten(1)) + n.attends(x), c=conv(3, 4), head=nn.Linear(256, 4), attends=PartAttention())
    found = trace_layers(net.eval(), IMAGES)
    assert found["c"].barrier is None and found["attends.keys"].barrier == reasons["keys"]


def test_a_reshape_of_an_argument_by_name_is_left_to_the_library() -> None:
    net = Net(lambda n, x: n.b(torch.flatten(input=n.a(x), start_dim=1)), a=conv(3, 4), b=nn.Linear(256, 2)).eval()
    assert trace_layers(net, IMAGES)["a"].consumers[0].positions[:, 0].tolist() == [0, 64, 128, 192]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a stage of ShuffleNetV2", "a gate in a residual sum", "two outputs in a residual sum"])
@torch.no_grad()
def test_onnx(kind: str, tmp_path: Path) -> None:
    if not has_onnx():
        pytest.skip("needs onnx")
    net = settled(NETS[kind][0](), IMAGES)
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope="all")
    assert export_onnx(prune(net, plan), tmp_path / "net.onnx", IMAGES).exists()
