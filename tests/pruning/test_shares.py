"""GroupNorm and grouped convolutions: channels that go together or in equal numbers, against results worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.counts import Limits, select
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.linear import read_weights
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.shares import Shares, run_width
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune, recalibrate
from tests.pruning.toys import Net, conv, mean, zeroed

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_choices_by_hand() -> None:
    score = torch.tensor([5.0, 1, 6, 2, 9, 8, 7, 0])
    assert select(score, 4) == [2, 4, 5, 6]
    assert select(score, 4, Shares(parts=2)) == [0, 2, 4, 5]
    assert select(score, 4, Shares(unit=2)) == [2, 3, 4, 5]
    assert select(score, 4, Shares(unit=2, parts=2)) == [2, 3, 4, 5]
    assert Shares(unit=4).joined(Shares(unit=6, parts=2)) == Shares(unit=12, parts=2)
    assert Limits(8).stepped(Shares(unit=6)) == Limits(24) and Limits(1, 3).stepped(Shares(parts=4)).fit(5, 16) == 8


@pytest.mark.parametrize(
    ("ids", "width"),
    [([0, 0, 1, 1], 2), ([1, 1, 0, 0], 2), ([0, 1, 2, 3], 1), ([5, 5, 5, 5], 4), ([0, 1, 1, 2], None), ([0, 1, 0, 1], None)],
)
def test_runs_of_equal_ids(ids: list[int], width: int | None) -> None:
    assert run_width(torch.tensor(ids)) == width


NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Shares]]] = {
    "read by groups": (
        lambda: Net(lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 8), b=conv(8, 12, groups=2), c=conv(12, 5)),
        {"a": Shares(parts=2), "b": Shares(parts=2)},
    ),
    "groups of groups": (
        lambda: Net(
            lambda n, x: mean(n.d(n.c(n.b(n.a(x).relu()).relu()))),
            a=conv(3, 16),
            b=conv(16, 24, groups=2),
            c=conv(24, 12, groups=4),
            d=conv(12, 3),
        ),
        {"a": Shares(parts=2), "b": Shares(parts=4), "c": Shares(parts=4)},
    ),
    "normalised in groups": (
        lambda: Net(lambda n, x: mean(n.b(n.g(n.a(x)).relu())), a=conv(3, 12), g=nn.GroupNorm(4, 12), b=conv(12, 5)),
        {"a": Shares(unit=3)},
    ),
    "no affine": (
        lambda: Net(lambda n, x: mean(n.b(n.g(n.a(x)))), a=conv(3, 8), g=nn.GroupNorm(4, 8, affine=False), b=conv(8, 5)),
        {"a": Shares(unit=2)},
    ),
    "both": (
        lambda: Net(lambda n, x: mean(n.b(n.g(n.a(x)).relu())), a=conv(3, 16), g=nn.GroupNorm(8, 16), b=conv(16, 6, groups=2)),
        {"a": Shares(unit=2, parts=2)},
    ),
    "in a residual sum": (
        lambda: Net(
            lambda n, x: mean(n.d(n.g(y := n.a(x)).relu() + n.c(n.b(y).relu()))),
            a=conv(3, 8),
            g=nn.GroupNorm(4, 8),
            b=conv(8, 6),
            c=conv(6, 8, groups=2),
            d=conv(8, 3),
        ),
        {"a": Shares(unit=2, parts=2), "b": Shares(parts=2), "c": Shares(unit=2, parts=2)},
    ),
    "laid out in space": (
        lambda: Net(lambda n, x: mean(n.b(n.p(n.a(x)).relu())), a=conv(3, 16), p=nn.PixelShuffle(2), b=conv(4, 5)),
        {"a": Shares(unit=4)},
    ),
    "laid out twice, behind a normalisation": (
        lambda: Net(
            lambda n, x: mean(n.c(F.pixel_shuffle(n.b(n.g(F.pixel_shuffle(n.a(x), 2)).relu()), 2))),
            a=conv(3, 24),
            g=nn.BatchNorm2d(6),
            b=conv(6, 12),
            c=conv(3, 4),
        ),
        {"a": Shares(unit=4), "b": Shares(unit=4)},
    ),
    "side by side": (
        lambda: Net(
            lambda n, x: mean(n.c(n.g(torch.cat([n.a(x), n.b(x)], 1)))),
            a=conv(3, 6),
            b=conv(3, 9),
            g=nn.GroupNorm(5, 15),
            c=conv(15, 4),
        ),
        {"a": Shares(unit=3), "b": Shares(unit=3)},
    ),
}


@pytest.mark.parametrize("kind", NETS)
@torch.no_grad()
def test_surgery_is_exact_and_respects_the_groups(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shares = NETS[kind]
    net = build().eval()
    layers = trace_layers(net, IMAGES)
    assert {name: layers[name].shares for name in shares} == shares
    assert all(layers[name].obstacle("all") is None for name in shares)
    for criterion in ("kernel_l1", "fcs", "fcs_linear"):
        statistics = collect_statistics(net, IMAGES)
        scores = importance(criterion, model=net, statistics=statistics)
        plan = make_plan(net, IMAGES, scores, ratio=0.5, scope="all")
        assert shares.keys() <= plan.kept.keys()
        for name, own in shares.items():
            assert own.fault(plan.kept[name], plan.channels[name]) is None and len(plan.kept[name]) < plan.channels[name]
        compact, want = prune(net, plan), zeroed(net, plan, IMAGES)
        assert (compact(IMAGES) - want).norm() < 1e-5 * want.norm() < (net(IMAGES) - want).norm()
    recalibrate(compact, IMAGES)
    save_compact(tmp_path / "compact.safetensors", compact, plan)
    again = load_compact(tmp_path / "compact.safetensors", build()).eval()
    assert again(IMAGES).equal(compact(IMAGES))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (
            Net(lambda n, x: mean(n.b(F.pixel_shuffle(n.a(x), 2))), a=conv(3, 4), b=conv(1, 5)),
            {"a": "none of its channels can go without others, because of an operation in which they meet, such as a PixelShuffle"},
        ),
        (
            Net(lambda n, x: mean(n.c(n.b(n.a(x)))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 8, 2, groups=2), c=conv(8, 3)),
            {"a": "meets the transposed convolution b, which has groups", "b": "meets the transposed convolution b"},
        ),
    ],
)
def test_what_stays_whole_and_why(net: nn.Module, says: dict[str, str]) -> None:
    layers = trace_layers(net.eval(), IMAGES)
    for name, reason in says.items():
        assert reason in str(layers[name].obstacle("all"))


def test_merging_leaves_out_channels_that_are_laid_out_in_space() -> None:
    net = NETS["laid out in space"][0]().eval()
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5)
    with pytest.warns(UserWarning, match=r"a \(several of its channels become one on the way to a consumer\)"):
        merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))
    assert merged(IMAGES).equal(prune(net, plan)(IMAGES))


def test_the_macs_of_grouped_convolutions_by_hand() -> None:
    net = NETS["read by groups"][0]().eval()
    plan = make_plan(net, IMAGES, importance("kernel_l1", model=net), ratio=0.5)
    # Kernels a position: 3 * 8, 8 * 12 / 2 and 12 * 5; half of a and half of b: 3 * 4, 4 * 6 / 2 and 6 * 5.
    assert plan.macs_left == pytest.approx((12 + 12 + 30) / (24 + 48 + 60))


@torch.no_grad()
def test_the_weights_that_a_grouped_convolution_reads_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2))
    net[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4]])[:, :, None, None])
    found = read_weights(net, Consumer("0", torch.tensor([[2], [0], [3]])))
    assert found[:, :, 0].tolist() == [[0, 1, 0], [3, 0, 4]]


@torch.no_grad()
def test_merge_rebuilds_within_a_group() -> None:
    """Channel 1 is twice channel 0 of its group, and channel 5 of the other group, of which its readers see nothing."""
    torch.manual_seed(0)
    net = Net(lambda n, x: mean(n.c(n.b(n.a(x).relu()).relu())), a=conv(3, 8), b=conv(8, 6, groups=2), c=conv(6, 4)).eval()
    for copied, factor, source in ((1, 2.0, 0), (5, 3.0, 4)):
        net.a.weight[copied], net.a.bias[copied] = factor * net.a.weight[source], factor * net.a.bias[source]
    plan = plan_by_hand(net, IMAGES, {"a": [0, 2, 3, 4, 6, 7]})
    merged = prune(net, plan, compensate="merge", statistics=collect_statistics(net, IMAGES))(IMAGES)
    plain, want = prune(net, plan)(IMAGES), net(IMAGES)
    assert (merged - want).norm() < 1e-4 * want.norm() < (plain - want).norm()


@pytest.mark.parametrize(
    ("kind", "kept", "says"),
    [
        ("read by groups", [0, 1, 2, 3, 4], "as many of each 4 channels, because they are read in 2 equal parts"),
        ("normalised in groups", [0, 1, 2, 3], "channels 3 by 3 together"),
        ("both", [*range(4), *range(8, 10)], "as many of each 8 channels"),
    ],
)
def test_a_plan_by_hand_that_breaks_groups_is_refused(kind: str, kept: list[int], says: str) -> None:
    with pytest.raises(StudyError, match=f"kept.a=.* is not allowed; allowed: .*{says}"):
        plan_by_hand(NETS[kind][0]().eval(), IMAGES, {"a": kept})


@pytest.mark.parametrize(
    ("kind", "kept", "says"),
    [
        ("read by groups", [0, 1, 2, 3, 4], "each of the 2 groups of a convolution must keep equally many input channels"),
        ("normalised in groups", [0, 1, 2, 3], "the groups of 3 channels of a GroupNorm must go as a whole"),
    ],
)
def test_an_edited_plan_that_breaks_groups_is_refused_and_changes_nothing(kind: str, kept: list[int], says: str) -> None:
    net = NETS[kind][0]().eval()
    plan = make_plan(net, IMAGES, {"a": torch.arange(float(net.a.out_channels))}, ratio=0.5)
    data = plan.model_dump() | {"kept": {"a": kept}}
    before: Tensor = net(IMAGES)
    with pytest.raises(StudyError, match=says):
        prune(net, PruningPlan.from_data(data))
    assert net(IMAGES).equal(before)


def test_sensitivity_and_thresholds_respect_the_groups() -> None:
    torch.manual_seed(0)
    net = NETS["groups of groups"][0]().eval()
    statistics = collect_statistics(net, IMAGES)
    scores = importance("fcs_linear", model=net, statistics=statistics)
    ways = [{"allocation": "global"}, {"ranking": "network"}, {"allocation": "sensitivity", "statistics": statistics}]
    ways.append({"allocation": "sensitivity", "evaluate": lambda network: network(IMAGES).abs().mean().item()})
    for way in ways:
        plan = make_plan(net, IMAGES, scores, macs=0.6, **way)
        for name, kept in plan.kept.items():
            assert NETS["groups of groups"][1][name].fault(kept, plan.channels[name]) is None
