"""Tracing takes work that grows with the network, however deep, wide or reshaped it is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.pruning import cutting as cutting_module
from fcs_utils.pruning import graph as graph_module
from fcs_utils.pruning import groups as groups_module
from fcs_utils.pruning import layers as layers_module
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import make_plan
from tests.pruning.test_tracing import pruned_exactly
from tests.pruning.toys import conv


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
    monkeypatch.setattr(groups_module, "LARGE", 20)
    few, many = calls(build(8).eval()), calls(build(16).eval())
    assert many < 2.3 * few, (few, many)


def test_layers_of_a_large_sum_share_one_walk_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = residual(6).eval(), torch.zeros(1, 1, 2, 2)
    apart = trace_layers(net, image)
    monkeypatch.setattr(groups_module, "LARGE", 10)
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


class Counted(nn.Conv2d):
    """Notes its forward passes."""

    seen: ClassVar[Counter[tuple[torch.dtype, int]]] = Counter()

    def __init__(self) -> None:
        super().__init__(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        Counted.seen[x.dtype, self.out_channels] += 1
        return super().forward(x)


class Scaled(nn.Conv2d):
    """Has numbers by channel that surgery does not cut, so that it does not run without some of its channels."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias)


def passes(depth: int, wide: bool = False) -> Counter[tuple[torch.dtype, int]]:
    """How often the last layer of a chain runs while a plan is made, by precision and width."""
    layers = [m for _ in range(depth) for m in (Scaled() if wide else nn.Conv2d(4, 4, 1), nn.ReLU())]
    net = nn.Sequential(nn.Conv2d(1, 4, 1), *layers, Counted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    scores = {name: torch.arange(4.0) for name, one in net.named_modules() if isinstance(one, nn.Conv2d)}
    Counted.seen.clear()
    make_plan(net, torch.randn(1, 1, 4, 4), scores, ratio=0.5)
    return Counter(Counted.seen)


def test_a_plan_takes_as_many_forward_passes_and_graphs_however_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []
    for module in (layers_module, cutting_module):
        build = module.dependency_graph
        monkeypatch.setattr(module, "dependency_graph", lambda *given, build=build: graphs.append(1) or build(*given))
    # Three to trace, one to cut, one of a copy that must stand by itself, one that counts the MACs, and five images in float64.
    wanted = {(torch.float32, 4): 6, (torch.float32, 2): 1, (torch.float64, 4): 5, (torch.float64, 2): 5}
    assert [passes(depth) for depth in (4, 8)] == [wanted, wanted] and len(graphs) == 4


def test_layers_that_cannot_be_cut_take_no_pass_of_the_dense_network_each() -> None:
    few, many = (passes(depth, wide=True) for depth in (4, 8))
    assert few[torch.float64, 4] == many[torch.float64, 4]


def test_a_concatenation_of_many_parts_is_left_by_the_way_that_leads_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dense(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(2 + 2 * number, 2, 1) for number in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            maps = [x]
            for layer in self.layers:
                maps.append(layer(torch.cat(maps, 1)).relu())
            return torch.cat(maps, 1)

    def mapped(depth: int) -> int:
        net = nn.Sequential(nn.Conv2d(1, 2, 1), Dense(depth), nn.Conv2d(2 + 2 * depth, 2, 1), nn.Flatten(), nn.Linear(8, 2)).eval()
        maps: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(graph_module, "_mapped", lambda *given, original=graph_module._mapped: maps.append(1) or original(*given))
            trace_layers(net, torch.zeros(1, 1, 2, 2))
        return len(maps)

    assert mapped(16) < 4.5 * mapped(8)  # pairs of a layer and a reader, of which there are four times as many
