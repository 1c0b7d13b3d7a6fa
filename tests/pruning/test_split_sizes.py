"""Splits whose sizes stand in a module's attributes: the attributes shrink with the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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
from tests.pruning.toys import Net as Toy
from tests.pruning.toys import conv, halved, mean

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Res2(nn.Module):
    """A block of Res2Net (Gao et al. 2019): a convolution in ``scale`` parts, each added to what became of the last one."""

    def __init__(self, channels: int, width: int, scale: int = 3, first: bool = False) -> None:
        super().__init__()
        self.width, self.first = width, first
        self.inside, self.outside = conv(channels, width * scale), conv(width * scale, channels)
        self.convs = nn.ModuleList(conv(width, width) for _ in range(scale - 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts, done = torch.split(self.inside(x).relu(), self.width, 1), []
        for part, layer, norm in zip(parts[:-1], self.convs, self.norms, strict=True):
            done.append(norm(layer(part if self.first or not done else part + done[-1])).relu())
        return self.outside(torch.cat([*done, parts[-1]], 1))


class Partial(nn.Module):
    """Convolves the first of the input's channels and leaves the rest, as PConv (Chen et al. 2023), of sizes in a list."""

    def __init__(self, channels: int, some: int) -> None:
        super().__init__()
        self.sizes, self.conv = [some, channels - some], conv(some, some)

    def forward(self, x: Tensor) -> Tensor:
        one, rest = x.split(dim=1, split_size=self.sizes)
        return torch.cat([self.conv(one), rest], 1)


class Scaled(nn.Module):
    """Adds such a block's output, scaled by channel, as InceptionNeXt (Yu et al. 2024) does."""

    def __init__(self, channels: int, some: int) -> None:
        super().__init__()
        self.mixer, self.scale = Partial(channels, some), nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(x) * self.scale.reshape(1, -1, 1, 1)


class Net(nn.Module):
    """A convolution, a block and a reader. ``shift`` is an attribute that happens to equal a part's size."""

    def __init__(self, block: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.a, self.block, self.b, self.shift = conv(3, channels), block, conv(channels, 4), 4

    def forward(self, x: Tensor) -> Tensor:
        return mean(self.b(self.block(self.a(x).relu()))) + self.shift


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, int], object]] = {
    # By layer, how many channels are left of a half; and what the attribute is then.
    "Res2Net": (
        lambda: Net(Res2(8, 4)),
        {"a": 4, "block.inside": 6, "block.convs.0": 2, "block.convs.1": 2, "block.outside": 4},
        2,
    ),
    "the first of a stage": (lambda: Net(Res2(8, 4, first=True)), {"a": 4, "block.inside": 6, "block.convs.0": 2}, 2),
    "parts of two sizes": (lambda: Net(Partial(12, 4), 12), {"a": 6, "block.conv": 2}, [2, 4]),
    "parts in residual sums": (
        lambda: Net(nn.Sequential(Scaled(12, 4), Scaled(12, 4)), 12),
        {"a": 6, "block.0.mixer.conv": 2, "block.1.mixer.conv": 2},
        [2, 4],
    ),
}


def held(net: nn.Module) -> object:
    return next(one.width if isinstance(one, Res2) else one.sizes for one in net.modules() if isinstance(one, Res2 | Partial))


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_surgery_is_exact_and_the_attribute_follows(kind: str, tmp_path: Path) -> None:
    build, left, after = NETS[kind]
    torch.manual_seed(0)
    net = settled(build(), IMAGES)
    before = held(net)
    statistics = collect_statistics(net, IMAGES)
    plan, compact = halved(net, IMAGES, left, statistics)
    assert held(compact) == after and held(net) == before and compact.shift == 4
    number = held(compact) if isinstance(after, int) else held(compact)[0]
    assert type(number) is int and type(held(net)) is type(before)
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    again = load_compact(tmp_path / "compact.safetensors", build())
    assert again.eval()(IMAGES).equal(compact(IMAGES)) and held(again) == after
    with pytest.warns(UserWarning, match="merge left out"):
        merged = prune(net, plan, compensate="merge", statistics=statistics)
    assert held(merged) == after and merged(IMAGES).isfinite().all()
    second = make_plan(compact, IMAGES, importance("kernel_l1", model=compact), ratio=0.5, scope="all")
    assert inexactness(compact, twice := prune(compact, second), IMAGES[:1]) is None
    save_compact(tmp_path / "twice.safetensors", twice, [plan, second])
    assert load_compact(tmp_path / "twice.safetensors", build()).eval()(IMAGES).equal(twice(IMAGES))


def test_which_channels_belong_together_by_hand() -> None:
    net = settled(Net(Res2(8, 4)), IMAGES)
    layers = trace_layers(net, IMAGES)
    inside = layers["block.inside"]
    # Three parts of four. What the first convolution yields is added to the second part, and the third part is read as it is.
    assert inside.shares == Shares(parts=3) and inside.root == layers["block.convs.0"].root == "block.inside"
    assert {name: owners.tolist() for name, owners in inside.maps.items()} == {"block.convs.0": [4, 5, 6, 7]}
    reads = {consumer.name: consumer.positions[:, 0].tolist() for consumer in inside.consumers}
    assert reads["block.convs.0"] == [0, 1, 2, 3] + [-1] * 8 and reads["block.convs.1"] == [-1] * 4 + [0, 1, 2, 3] + [-1] * 4
    # The outer one reads the second part beside the sum: the first convolution's channels come first there, then the second's.
    assert reads["block.outside"] == [-1] * 4 + [0, 1, 2, 3] + [8, 9, 10, 11]
    assert layers["block.convs.1"].root is None and layers["block.convs.1"].shares == Shares()
    with pytest.raises(StudyError, match="as many of each 4 channels"):
        plan_by_hand(net, IMAGES, {"block.inside": [0, 1, 4, 5, 8]})
    plan = plan_by_hand(net, IMAGES, {"block.inside": [0, 3, 4, 7, 8, 9]})
    assert plan.kept == {"block.inside": [0, 3, 4, 7, 8, 9], "block.convs.0": [0, 3]}
    assert prune(net, plan).block.width == 2


@pytest.mark.slow
@torch.no_grad()
def test_onnx(tmp_path: Path) -> None:
    if not has_onnx():
        pytest.skip("needs onnx")
    net = settled(Net(Res2(8, 4)), IMAGES)
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope="all")
    assert export_onnx(prune(net, plan), tmp_path / "net.onnx", IMAGES).exists()


class Fixed(Res2):
    """Whose sizes are no attributes, or attributes that mean something else, too."""

    def __init__(self, how: str) -> None:
        super().__init__(8, 4, 2)
        self.how = how

    def sizes(self) -> object:
        if self.how == "computed":
            return self.width * 1
        if self.how == "checked" and type(self.width) is not int:
            raise TypeError("no such width")
        return 4 if self.how == "written" else self.width

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.split(self.inside(x).relu(), self.sizes(), 1)
        if self.how == "twice":
            two = torch.cat(torch.cat([two, two], 1).split(self.width, dim=1)[:1], 1)
        if self.how == "a factor":
            two = two * self.width
        return self.outside(torch.cat([self.convs[0](one), two], 1))


@pytest.mark.parametrize("how", ["written", "computed", "checked", "twice", "a factor"])
def test_other_sizes_leave_the_layer_whole(how: str) -> None:
    net = settled(Net(Fixed(how)), IMAGES)
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5, scope="all")
    assert "block.inside" not in plan.kept and plan.skipped["block.inside"] and "a" in plan.kept
    assert inexactness(net, prune(net, plan), IMAGES[:1]) is None
    assert vars(net.block)["width"] == 4 and type(vars(net.block)["width"]) is int


@pytest.mark.parametrize("width", [8, 264])
@pytest.mark.parametrize("behind", [False, True])
def test_halves_of_a_signal_are_cut_by_slices(width: int, behind: bool) -> None:
    """Counted from the first channel or, where ``behind``, from the last one, with more channels than positions."""

    def gated(net: nn.Module, x: Tensor) -> Tensor:
        h = net.first(x)
        half = h.shape[1] // 2
        one, other = (h[:, :-half], h[:, -half:]) if behind else (h[:, :half], h[:, half:])
        return net.last(net.second(one.tanh() * other.sigmoid()).relu()).mean(2)

    net = Toy(gated, first=nn.Conv1d(2, width, 3), second=nn.Conv1d(width // 2, 6, 1), last=nn.Conv1d(6, 3, 1)).eval()
    scores = {"first": torch.arange(float(width)), "second": torch.arange(6.0)}
    plan = make_plan(net, torch.randn(2, 2, 8), scores, ratio=0.5)
    quarter = width // 4
    assert plan.kept["first"] == [*range(quarter, 2 * quarter), *range(3 * quarter, width)]
