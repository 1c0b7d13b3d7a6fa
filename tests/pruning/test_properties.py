"""Properties that hold for every network, importance and ratio, on random examples from hypothesis."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fcs_utils.benchmarks.small import C2f
from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import Limits, keep_count, select
from fcs_utils.pruning.criteria import importance, scoring
from fcs_utils.pruning.fcs import assign_bins, fcs
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.linear import elimination_order
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.sums import EXTRAS, READINGS
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_moves import Stage
from tests.pruning.test_partial_sums import Ghost
from tests.pruning.test_split_sizes import Res2
from tests.pruning.toys import Gated, zeroed


@st.composite
def statistics(draw: st.DrawFn) -> ChannelStatistics:
    """Statistics of random maps with copies, dead and constant channels among them."""
    channels, count = draw(st.integers(1, 24)), draw(st.integers(1, 30))
    maps = torch.randn(count, channels, generator=torch.Generator().manual_seed(draw(st.integers(0, 10_000)))).double().relu()
    maps *= torch.tensor(draw(st.lists(st.sampled_from([0.0, 1e-6, 1.0, 1.0, 1e4]), min_size=channels, max_size=channels))).double()
    for target in draw(st.lists(st.integers(0, channels - 1), max_size=4)):
        maps[:, target] = draw(st.sampled_from([0.5, 1.0, 2.0])) * maps[:, draw(st.integers(0, channels - 1))]
    consumer = Consumer("next", torch.arange(channels)[:, None])
    return ChannelStatistics(maps.T @ maps, maps.abs().mean(0), maps.mean(0), count, 1, (consumer,))


@given(statistics(), st.sampled_from(["mean", "max", "greedy"]), st.sampled_from(["bin", "layer"]), st.integers(1, 9))
def test_fcs_is_a_finite_strict_order_with_the_dead_last(one: ChannelStatistics, redundancy: str, quota: str, bins: int) -> None:
    score = fcs(one, redundancy=redundancy, quota=quota, bins=bins)  # type: ignore[arg-type]
    assert score.isfinite().all() and len(score.unique()) == len(one.l1)
    dead = one.l1 == 0
    # A dead channel alone in its bin would still be the first to go.
    assert not dead.any() or dead.all() or score[dead].max() < score[~dead].min()


@given(statistics(), st.integers(1, 9))
def test_scale_does_not_matter_to_the_bins(one: ChannelStatistics, bins: int) -> None:
    assert assign_bins(one.l1, bins).equal(assign_bins(4.0 * one.l1, bins))  # a power of two: exact


@given(statistics(), st.permutations(range(24)))
def test_fcs_does_not_care_where_a_channel_stands(one: ChannelStatistics, order: list[int]) -> None:
    order = [index for index in order if index < len(one.l1)]
    moved = ChannelStatistics(one.gram[order][:, order], one.l1[order], one.mean[order], one.count, 1, one.consumers)
    values = one.l1.tolist()
    if len(set(values)) == len(values):  # only equal norms are ordered by index
        first, second = fcs(one, redundancy="max"), fcs(moved, redundancy="max")
        assert first[order].argsort().tolist() == second.argsort().tolist()


@given(statistics())
def test_elimination_names_every_channel_once_and_the_dead_first(one: ChannelStatistics) -> None:
    order = elimination_order(one.gram, torch.ones(len(one.l1)).double(), one.l1)
    dead = (one.l1 == 0).nonzero()[:, 0].tolist()
    assert sorted(order) == list(range(len(one.l1))) and set(order[: len(dead)]) == set(dead)


@given(st.integers(1, 600), st.floats(0.001, 0.999))
def test_keep_count_is_monotone_and_within_bounds(channels: int, ratio: float) -> None:
    assert 1 <= keep_count(channels, ratio) <= channels
    assert keep_count(channels, min(0.999, ratio * 1.1)) <= keep_count(channels, ratio)
    assert abs(channels - keep_count(channels, ratio) - ratio * channels) <= 0.5 or keep_count(channels, ratio) == 1


class Shared(nn.Module):
    """Runs one body several times: in a loop, on both of two images, or on two levels of a pyramid."""

    def __init__(self, kind: str, body: nn.Module) -> None:
        super().__init__()
        self.kind, self.body = kind, body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "loop":
            return self.body(self.body(self.body(x)))
        if self.kind == "pair":
            return (self.body(x) - self.body(x.flip(3))).abs()
        return self.body(x) + F.interpolate(self.body(F.avg_pool2d(x, 2)), size=x.shape[2:])


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Scaled(Residual):
    """A residual block whose output meets a parameter that belongs to no layer."""

    def __init__(self, body: nn.Module, channels: int) -> None:
        super().__init__(body)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.body(x)


KINDS = ["plain", "plain", "residual", "depthwise", "grouped", "pool", "loop", "pair", "levels", "halves", "ghost"]
KINDS += ["parts", "stage", "shuffle", "gate", "multiplied", "scaled"]  # operators that move channels, and what they need


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """Small classifiers: convolutions, norms or none, activations, pools, and blocks of the kinds above."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layers: list[nn.Module] = []
    channels, size = 3, 8

    def unit(inputs: int, outputs: int, groups: int = 1) -> list[nn.Module]:
        groups_of = [nn.GroupNorm(n, outputs) for n in range(2, outputs + 1) if outputs % n == 0]
        norm = draw(st.sampled_from([[], [nn.BatchNorm2d(outputs)], groups_of[:1], groups_of[-1:]]))
        activation = draw(st.sampled_from([nn.ReLU(inplace=True), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Identity()]))
        kernel = draw(st.sampled_from([1, 3]))
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw(st.booleans()))
        return [conv, *norm, activation]

    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(KINDS))
        if kind == "plain":
            width = draw(st.integers(2, 9))
            layers += unit(channels, width)
            channels = width
        elif kind == "residual":
            layers.append(Residual(nn.Sequential(*unit(channels, width := draw(st.integers(2, 6))), *unit(width, channels))))
        elif kind in ("loop", "pair", "levels"):
            width = channels if kind == "loop" else draw(st.integers(2, 9))
            kind = "pair" if kind == "levels" and size == 2 else kind  # a GroupNorm refuses single numbers
            layers.append(Shared(kind, nn.Sequential(*unit(channels, width), *unit(width, width))))
            channels = width
        elif kind == "halves":
            width = 2 * draw(st.integers(2, 5))
            layers.append(C2f(channels, width, draw(st.integers(1, 2))))
            channels = width
        elif kind == "ghost":
            inside = 2 * draw(st.integers(2, 4))
            layers.append(Ghost(channels, inside))
            layers += [Residual(Ghost(inside, inside))] if draw(st.booleans()) else []
            channels = inside
        elif kind == "depthwise":
            layers += unit(channels, channels, groups=channels)
        elif kind == "multiplied":
            layers += unit(channels, width := channels * draw(st.integers(2, 3)), groups=channels)
            layers += unit(width, channels := draw(st.integers(2, 9)))
        elif kind == "parts":
            layers.append(Res2(channels, draw(st.integers(2, 3)), draw(st.integers(2, 4)), first=draw(st.booleans())))
        elif kind == "stage":
            layers.append(Stage(channels, half := draw(st.integers(2, 5))))
            channels = 2 * half
        elif kind == "shuffle":
            layers.append(nn.ChannelShuffle(draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))))
        elif kind == "gate":
            width = draw(st.integers(2, 5))
            layers.append(Gated(nn.Sequential(*unit(channels, 2 * width)), chunks=draw(st.booleans())))
            channels = width
        elif kind == "scaled":
            body = nn.Sequential(*unit(channels, width := draw(st.integers(2, 6))), *unit(width, channels))
            layers.append(Scaled(body, channels))
        elif kind == "grouped":
            groups, inside, width = draw(st.sampled_from([2, 3])), 12, draw(st.sampled_from([6, 12, 18]))
            layers += [*unit(channels, inside), *unit(inside, width, groups=groups)]
            channels = width
        elif size > 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    layers += unit(channels, 6)
    flat = draw(st.booleans())
    pool = [nn.Flatten()] if flat else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    features = 6 * size * size if flat else 6
    hidden = draw(
        st.sampled_from([[], [nn.Linear(features, 5), nn.ReLU()], [nn.Linear(features, 8), nn.BatchNorm1d(8), nn.GELU()]])
    )
    head = [*pool, *hidden, nn.Linear(hidden[0].out_features if hidden else features, 4)]
    network = nn.Sequential(*layers, *head).train()
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(16, 3, 8, 8))
    return network.eval()


@given(networks(), st.sampled_from(scoring()), st.floats(0.2, 0.8), st.sampled_from(["inner", "all"]))
@torch.no_grad()
def test_surgery_is_exact_and_plans_survive_json(network: nn.Module, criterion: str, ratio: float, scope: str) -> None:
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4
    statistics = collect_statistics(network, images, readings=READINGS, extras=EXTRAS)
    if criterion == "bn_scale" and any(one.norm is None for one in statistics.values()):
        criterion = "fcs"
    scores = importance(criterion, model=network, statistics=statistics, images=images, labels=labels)
    try:
        plan = make_plan(network, images, scores, ratio=ratio, scope=scope)  # type: ignore[arg-type]
    except StudyError as error:
        assert str(error).startswith("nothing to prune: ") and "rounds to none" in str(error)
        reject()
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    for name, layer in trace_layers(network, images).items():
        if name in plan.kept:
            assert layer.shares.fault(plan.kept[name], layer.channels) is None
        if name in plan.kept and name in scores and scope == "inner":
            keep = Limits().stepped(layer.shares).fit(keep_count(layer.channels, ratio), layer.channels)
            assert plan.kept[name] == select(scores[name], keep, layer.shares)
    # In float64: a GroupNorm of nearly constant maps makes differences of rounding several hundred times larger.
    compact, want = prune(network, plan).double(), zeroed(network.double(), plan, images.double())
    assert (compact(images.double()) - want).norm() <= 1e-9 * want.norm() + 1e-12


@pytest.mark.slow
@given(networks(), st.floats(0.5, 0.7))
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:merge left out")
def test_merge_reconstructs_no_worse_than_dropping(network: nn.Module, ratio: float) -> None:
    """On the calibration images, at the first pruned layer's consumer, where nothing before has changed."""
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    statistics = collect_statistics(network, images, scope="inner")
    first = next(iter(statistics))
    plan = make_plan(network, images, {first: importance("kernel_l1", model=network, statistics=statistics)[first]}, ratio=ratio)
    reader = statistics[first].consumers[0].name
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def read(name: str, model: nn.Module) -> torch.Tensor:
        with model.get_submodule(reader).register_forward_hook(lambda _m, _i, out: seen[name].append(out.flatten().clone())):
            model(images)
        return torch.cat(seen[name])  # of all its calls

    want = read("dense", network)
    plain = read("plain", prune(network, plan))
    merged = read("merged", prune(network, plan, compensate="merge", statistics=statistics))
    # Least squares on single positions bounds the error of readers of single positions, but not of kernels over
    # nine of them, nor of weights on a whole flattened map. A loop reads what its own changes have made.
    module, single = network.get_submodule(reader), statistics[first].consumers[0].positions.shape[1] == 1
    looped = any(isinstance(one, Shared) and one.kind == "loop" for one in network)
    if single and not looped and module.bias is not None and getattr(module, "kernel_size", (1, 1)) == (1, 1):
        assert (merged - want).norm() <= (plain - want).norm() * (1 + 1e-3) + 1e-4
