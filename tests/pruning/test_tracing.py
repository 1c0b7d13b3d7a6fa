"""Networks of any form are traced in work that grows with their size, are left as they were, and fail in their own words."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from fcs_utils.errors import StudyError
from fcs_utils.pruning import layers as layers_module
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import export_onnx, save_compact
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics, feature_maps
from fcs_utils.pruning.surgery import prune as cut
from fcs_utils.pruning.surgery import recalibrate
from fcs_utils.pruning.torch_pruning import FCSImportance
from tests.pruning.test_layers import Net, conv, mean
from tests.pruning.test_surgery import zeroed


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pruned_exactly(net: nn.Module, images: Tensor, scope: str = "inner") -> PruningPlan:
    """The plan that leaves half of every layer, where the compact network equals the dense one with channels zeroed."""
    net.eval()
    plan = make_plan(net, images, importance("random", model=net), ratio=0.5, scope=scope)  # type: ignore[arg-type]
    with torch.no_grad():
        want, got, dense = zeroed(net, plan, images), cut(net, plan)(images), net(images)
    assert (got - want).norm() <= 1e-5 * want.norm() < (dense - want).norm()
    return plan


# Work


def chain(depth: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 1),
        *(m for _ in range(depth) for m in (nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


class Block(nn.Module):
    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.inner = nn.Conv2d(width, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, width, 1), inner

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.last(self.inner(self.norm(self.first(x))))).relu()


def residual(depth: int) -> nn.Module:
    blocks = [Block(4, nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(nn.Conv2d(1, 4, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def branches(depth: int) -> nn.Module:
    """Four ways from block to block: the number of paths is 4 to the power of the depth."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ways = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(3))
            self.skip = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return (self.skip(x) + self.ways[0](x) + self.ways[1](x) + self.ways[2](x)).relu()

    return nn.Sequential(
        nn.Conv2d(1, 4, 1), *(Branches() for _ in range(depth)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def attention(depth: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 1),
        *(Attention(8, "matrices") for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def calls(net: nn.Module) -> int:
    """How many functions are called while a network is traced."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        trace_layers(net, torch.zeros(1, 1, 2, 2))
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("build", [chain, residual, branches, attention])
def test_work_doubles_when_the_depth_doubles(build: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "LARGE", 20)
    assert calls(build(16).eval()) < 2.3 * calls(build(8).eval())


def test_layers_of_a_large_sum_share_one_walk_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = residual(6).eval(), torch.zeros(1, 1, 2, 2)
    apart = trace_layers(net, image)
    monkeypatch.setattr(layers_module, "LARGE", 10)
    for name, layer in trace_layers(net, image).items():
        one = apart[name]
        assert {*layer.coupled} - {name} == {*one.coupled} and layer.tap == one.tap and layer.barrier == one.barrier
        assert {c.name for c in layer.consumers} == {c.name for c in one.consumers}
        named, names = (
            set((found.obstacle() or "").removeprefix("shares a residual sum with ").split(", ")) for found in (layer, one)
        )
        assert named == names == {*one.coupled} or not one.coupled


def test_a_thousand_layers_and_ten_thousand_channels() -> None:
    deep = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(1000)), nn.Flatten(), nn.Linear(8, 2)).eval()
    found = trace_layers(deep, torch.zeros(1, 2, 2, 2))
    assert len(found) == 1000 and not any(layer.barrier for layer in found.values())
    wide = nn.Sequential(nn.Conv2d(2, 10_000, 1), nn.ReLU(), nn.Conv2d(10_000, 2, 1), nn.Flatten(), nn.Linear(8, 2)).eval()
    (consumer,) = trace_layers(wide, torch.zeros(1, 2, 2, 2))["0"].consumers
    assert consumer.positions[:, 0].equal(torch.arange(10_000))
    flat = nn.Sequential(nn.Conv2d(2, 10_000, 1), nn.Flatten(), nn.Linear(40_000, 2)).eval()
    (consumer,) = trace_layers(flat, torch.zeros(1, 2, 2, 2))["0"].consumers
    assert consumer.positions.equal(torch.arange(40_000).reshape(10_000, 4))


class Attention(nn.Module):
    """Self-attention over positions, as timm and others write it with reshapes."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.qkv, self.project, self.norm, self.kind = (
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            kind,
        )

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if self.kind == "matrices":
            q, k, v = self.qkv(self.norm(x)).reshape(n, 3, 2, c // 2, h * w).unbind(1)
            y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        elif self.kind == "chunks":
            q, k, v = (part.reshape(n, 2, c // 2, h * w) for part in self.qkv(self.norm(x)).chunk(3, 1))
            y = v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)
        else:
            q, k, v = self.qkv(self.norm(x)).view(n, 2, 3 * (c // 2), h * w).chunk(3, dim=2)
            y = F.scaled_dot_product_attention(*(t.transpose(-1, -2).contiguous() for t in (q, k, v))).transpose(-1, -2)
        return x + self.project(y.reshape(n, c, h, w))


@pytest.mark.parametrize("kind", ["matrices", "chunks", "library"])
def test_attention_by_reshapes_is_left_whole_and_the_rest_is_pruned(kind: str) -> None:
    net = nn.Sequential(
        conv(3, 6),
        nn.ReLU(),
        conv(6, 8),
        Attention(8, kind),
        Attention(8, kind),
        conv(8, 6),
        nn.ReLU(),
        conv(6, 4),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    plan = pruned_exactly(net, torch.randn(2, 3, 4, 4))
    assert {"0", "5", "7"} == set(plan.kept) and {"2", "3.qkv", "3.project"} <= set(plan.skipped)


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


# Layers that hold more than weights


def with_norm(norm: nn.Module) -> nn.Module:
    return Net(
        lambda n, x: n.head(mean(n.c(n.norm(n.b(n.a(x).relu())).relu()).relu())),
        a=conv(3, 6),
        b=conv(6, 8),
        norm=norm,
        c=conv(8, 6),
        head=nn.Linear(6, 2),
    )


class Affine(nn.Module):
    def __init__(self, shape: tuple[int, ...], buffer: bool = False) -> None:
        super().__init__()
        (self.register_buffer if buffer else self.register_parameter)("scale", nn.Parameter(torch.rand(shape) + 0.5))
        self.register_buffer("one", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(1, -1, 1, 1) * self.one


def frozen() -> nn.Module:
    norm = torchvision.ops.FrozenBatchNorm2d(8)
    for tensor in norm.buffers():
        tensor.copy_(torch.rand(8) + 0.5)
    return norm


def instance() -> nn.Module:
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    norm.running_mean.copy_(torch.randn(8))
    norm.running_var.copy_(torch.rand(8) + 0.5)
    return norm


VECTORS = {
    "frozen batch norm": frozen,
    "instance norm": instance,
    "layer scale": lambda: Affine((8, 1, 1)),
    "scale of buffers": lambda: Affine((1, 8, 1, 1), buffer=True),
    "slopes": lambda: nn.PReLU(8),
}


@pytest.mark.parametrize("case", VECTORS)
def test_modules_of_one_number_a_channel_are_cut(case: str) -> None:
    net, images = with_norm(VECTORS[case]()), torch.randn(3, 3, 8, 8)
    plan = pruned_exactly(net, images)
    assert set(plan.kept) == {"a", "b", "c"}
    norm = cut(net, plan).norm
    assert all(t.numel() in (1, 4) for t in [*norm.parameters(), *norm.buffers()])
    assert all(t.numel() in (1, 8) for t in [*net.norm.parameters(), *net.norm.buffers()])


class Blur(nn.Module):
    """A fixed filter for each channel, as anti-aliased networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(8, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=8)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nchw->nohw", self.weights, x)


class Holder(nn.Module):
    """A block whose own parameter or buffer meets the channels of the layers inside it."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.inside = nn.ReLU()
        (self.register_buffer if buffer else self.register_parameter)("gain", nn.Parameter(torch.rand(8, 1, 1) + 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) * self.gain


WHOLE = {
    "filters of buffers": (Blur, "norm.kernel"),
    "a matrix of its own": (Mixture, "norm.weights"),
    "a block's parameter": (lambda: Holder(False), "norm.gain"),
    "a block's buffer": (lambda: Holder(True), "norm.gain"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_cut_is_named_and_the_rest_is_pruned(case: str) -> None:
    build, name = WHOLE[case]
    plan = pruned_exactly(with_norm(build()), torch.randn(3, 3, 8, 8))
    assert set(plan.kept) == {"a", "c"} and name in plan.skipped["b"]


COMPUTED: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm,
    "mask": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "mask of biases": lambda layer: prune.random_unstructured(layer, "bias", 0.3),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("case", COMPUTED)
@pytest.mark.parametrize("layer", ["b", "c", "head"])
def test_layers_with_computed_weights_are_left_whole(case: str, layer: str) -> None:
    net, images = with_norm(nn.BatchNorm2d(8)), torch.randn(3, 3, 8, 8)
    COMPUTED[case](net.get_submodule(layer))
    with torch.no_grad():
        net.eval()(images)
    plan = make_plan(net, images, importance("random", model=net), ratio=0.5)
    whole = {"b": {"a", "b"}, "c": {"b", "c"}, "head": {"c"}}[layer]  # what it writes and what it reads
    assert set(plan.skipped) == whole and set(plan.kept) == {"a", "b", "c"} - whole
    kind = "bias" if "bias" in case else "weight"
    assert all(f"the {kind} of {layer} is computed" in reason for reason in plan.skipped.values())


# Readers of one dimension, recurrent readers, routes that depend on the image, compiled networks

ODD: dict[str, Callable[[], Net]] = {
    "GRU": lambda: Net(
        lambda n, x: n.head(n.read(n.b(n.a(x).relu()).relu().flatten(2).transpose(1, 2))[0][:, -1]),
        **{"a": conv(3, 6), "b": conv(6, 8), "read": nn.GRU(8, 5, batch_first=True), "head": nn.Linear(5, 3)},
    ),
    "LSTM": lambda: Net(
        lambda n, x: n.head(n.read(n.b(n.a(x).relu()).relu().mean(3).transpose(1, 2))[0][:, -1]),
        **{"a": conv(3, 6), "b": conv(6, 8), "read": nn.LSTM(8, 5, batch_first=True), "head": nn.Linear(5, 3)},
    ),
    "squeezed": lambda: Net(
        lambda n, x: n.head(n.b(n.a(x).relu()).relu().mean((2, 3)).squeeze()),
        **{"a": conv(3, 6), "b": conv(6, 8), "head": nn.Linear(8, 3)},
    ),
    "filters from a mean": lambda: Net(
        lambda n, x: mean(F.conv2d(h := n.b(n.a(x).relu()).relu(), n.make(h.mean((0, 2, 3))).view(3, 8, 1, 1))),
        **{"a": conv(3, 6), "b": conv(6, 8), "make": nn.Linear(8, 24)},
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_what_an_odd_reader_reads_stays_whole_and_the_rest_is_pruned(case: str) -> None:
    torch.manual_seed(0)
    plan = pruned_exactly(ODD[case]().eval(), torch.randn(3, 3, 4, 4))
    assert set(plan.kept) == {"a"} and set(plan.skipped) == {"b"}


def bright(n: nn.Module, x: Tensor) -> Tensor:
    h = n.a(x).relu()
    return mean(n.c(n.b(h).relu() if x.mean() > 1 else n.d(h).relu()))


def test_a_layer_that_only_some_images_reach_stays_whole() -> None:
    net = Net(bright, a=conv(3, 6), b=conv(6, 6), d=conv(6, 6), c=conv(6, 4)).eval()
    images = torch.rand(2, 3, 8, 8) + 2
    scores = {name: torch.arange(6.0) for name in ("a", "b", "d")}
    with pytest.raises(StudyError, match="b: whether the forward pass leads through it depends on the image"):
        make_plan(net, images, scores, ratio=0.5)
    plan = make_plan(net, images - 2, scores, ratio=0.5)  # another route: b waits for bright images
    assert "b" not in plan.kept
    made = PruningPlan(kept={"b": [0, 1]}, channels={"b": 6}, input_shape=(3, 8, 8), ratio=0.5)
    with pytest.raises(StudyError, match="b cannot be cut as planned: the forward pass of a plain image does not lead through it"):
        cut(net, made)


@pytest.mark.parametrize("part", ["all", "a part"])
def test_a_compiled_network_is_refused_by_name(part: str) -> None:
    net = Net(lambda n, x: mean(n.b(n.a(x).relu())), a=conv(3, 6), b=conv(6, 4)).eval()
    plan, images = make_plan(net, torch.randn(2, 3, 8, 8), {"a": torch.arange(6.0)}, ratio=0.5), torch.randn(2, 3, 8, 8)
    assert set(plan.kept) == {"a"}
    if part == "all":
        net = torch.compile(net, backend="eager")
    else:
        net.b = torch.compile(net.b, backend="eager")
    for call in (lambda: collect_statistics(net, images), lambda: make_plan(net, images, {}, ratio=0.5)):
        with pytest.raises(StudyError, match="made by torch.compile.*_orig_mod"):
            call()


def test_a_layer_named_twice_is_counted_once_and_importances_are_real() -> None:
    net, images = Net(lambda n, x: mean(n.b(n.a(x).relu())), a=conv(3, 6), b=conv(6, 4)).eval(), torch.randn(2, 3, 8, 8)
    once, twice = (collect_statistics(net, images, layers=layers)["a"] for layers in (["a"], ["a", "a"]))
    assert once.count == twice.count == 2 * 8 * 8 and once.gram.equal(twice.gram)
    for kind in (torch.complex64, torch.complex128):
        with pytest.raises(StudyError, match="importance of a must be 6 finite numbers, got torch.complex"):
            make_plan(net, images, {"a": torch.zeros(6, dtype=kind)}, ratio=0.5)


# Nothing is left behind


class Failing(nn.Module):
    """Raises when the module of a number runs; 0 is the first."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.parts = nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 4), nn.Flatten(), nn.Linear(256, 3))
        self.at, self.error = at, error
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        for number, part in enumerate(self.parts):
            if number == self.at:
                raise self.error
            x = self.latest = part(x)
        return x


def state(net: nn.Module) -> list[Any]:
    """Everything that a network holds, by value or identity."""
    tensors = {n: (id(t), t.detach().clone(), t.requires_grad, t.grad) for n, t in [*net.named_parameters(), *net.named_buffers()]}
    tables = [
        (name, key, [*value.items()] if isinstance(value, dict) else value)
        for name, module in net.named_modules()
        for key, value in vars(module).items()
    ]
    return [tensors, tables]


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.equal(two)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return one is two or one == two


IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
PLAN = PruningPlan(kept={"parts.0": [0, 2]}, channels={"parts.0": 6}, input_shape=(3, 8, 8), ratio=0.5)
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "collect_statistics": lambda net: collect_statistics(net, IMAGES, batch_size=3),
    "feature_maps": lambda net: feature_maps(net, IMAGES, "parts.0"),
    "importance": lambda net: importance("taylor", model=net, images=IMAGES, labels=LABELS),
    "importance of weights": lambda net: importance("kernel_l1", model=net),
    "make_plan": lambda net: make_plan(net, IMAGES, {"parts.0": torch.arange(6.0)}, macs=0.7),
    "make_plan of nothing": lambda net: make_plan(net, IMAGES, {"parts.9": torch.arange(6.0)}, ratio=0.5),
    "prune": lambda net: cut(net, PLAN),
    "prune with a damaged plan": lambda net: cut(net, PLAN.model_copy(update={"channels": {"parts.0": 7}})),
    "FCSImportance": lambda net: FCSImportance(net, IMAGES)._score(),
    "trace_layers": lambda net: trace_layers(net, IMAGES),
    "trace_layers of wrong images": lambda net: trace_layers(net, IMAGES[:, :2]),
    "save_compact": lambda net: save_compact("/nowhere/at/all.safetensors", net, PLAN),
    "export_onnx": lambda net: export_onnx(net, "/nowhere/at/all.onnx", IMAGES[:1]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [None, RuntimeError("half-way"), KeyError("half-way"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", [0, 3, 5])
def test_no_call_changes_a_network(call: str, error: BaseException | None, at: int) -> None:
    net = Failing(at if error else -1, error or ValueError()).train()
    net.parts[1].eval()
    net.parts[3].weight.requires_grad_(False)
    net.parts[0].weight.grad = torch.ones_like(net.parts[0].weight)
    net.parts[3].register_forward_hook(print_nothing)
    before, generator = state(net), torch.random.get_rng_state()
    for _ in range(2):
        try:
            CALLS[call](net)
        except (StudyError, RuntimeError, KeyError, KeyboardInterrupt) as raised:
            assert isinstance(raised, StudyError | KeyboardInterrupt), repr(raised)
    assert same(state(net), before)
    assert torch.random.get_rng_state().equal(generator)
    net.error = None  # type: ignore[assignment]
    torch.save(net, io.BytesIO())


def print_nothing(*_: object) -> None:
    """A hook of the user's own."""
