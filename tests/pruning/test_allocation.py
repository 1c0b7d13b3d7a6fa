"""How many channels each layer loses: rules for counts, layers that stay whole, allocations, a measured latency, plans by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.counts import Limits
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.sensitivity import Descent, reconstruction_curve
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from fcs_utils.study.packed import read_lines
from fcs_utils.study.rounds import prune_in_rounds
from tests.conftest import ROOT, warm
from tests.pruning.test_plan import EXAMPLE, chain

IMAGE = torch.zeros(1, 3, 32, 32)
SCORES = {"0": torch.arange(20.0), "2": torch.arange(12.0)}


def counts(plan: PruningPlan) -> dict[str, int]:
    return {name: len(kept) for name, kept in plan.kept.items()}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return warm(build_seeded(0, "resnet20", num_classes=3, width=0.5), images=8)


@pytest.mark.parametrize(
    ("keep", "channels", "multiple", "least", "fits"),
    [
        (9, 20, 8, 1, 16),
        (16, 20, 8, 1, 16),
        (17, 20, 8, 1, 20),
        (1, 20, 8, 9, 16),
        (3, 4, 8, 1, 4),
        (2, 20, 1, 5, 5),
        (2, 4, 1, 9, 4),
    ],
)
def test_limits_never_take_what_the_goal_leaves(keep: int, channels: int, multiple: int, least: int, fits: int) -> None:
    assert Limits(multiple, least).fit(keep, channels) == fits


def test_channels_in_multiples_and_at_least_so_many() -> None:
    net = chain(20, 12)
    # A ratio of 0.5 leaves 10 and 6 channels.
    assert counts(make_plan(net, EXAMPLE, SCORES, ratio=0.5, multiple=4)) == {"0": 12, "2": 8}
    plan = make_plan(net, EXAMPLE, SCORES, ratio=0.5, multiple=8)
    assert counts(plan) == {"0": 16, "2": 8} and plan.multiple == 8
    assert counts(make_plan(net, EXAMPLE, SCORES, ratio=0.75, min_channels=7)) == {"0": 7, "2": 7}
    plan = make_plan(net, EXAMPLE, SCORES, rates={"0": 0.05, "2": 0.5}, multiple=8)  # 19 of 20 would be 24
    assert counts(plan) == {"2": 8} and plan.skipped["0"] == "ratio 0.05 of 20 channels in multiples of 8 rounds to none"
    # MACs of a position: 2 a + a b + 2 b; 304 with all, and with 16 and 8 channels 176, with 8 and 8 96.
    for macs, kept in ((0.6, {"0": 16, "2": 8}), (0.3, {"0": 8, "2": 8})):
        assert counts(make_plan(net, EXAMPLE, SCORES, macs=macs, multiple=8)) == kept


def test_layers_to_keep_by_name_module_and_pattern(resnet: nn.Module) -> None:
    scores = importance("kernel_l1", model=resnet)
    for keep, kept in {
        ("stage2.0.conv1",): {"stage2.0.conv1"},
        ("stage2.1",): {"stage2.1.conv1", "stage2.0.conv2", "stage2.1.conv2", "stage2.2.conv2"},  # conv2 writes into the sum
        ("stage?.2.conv1", "conv"): {"stage1.2.conv1", "stage2.2.conv1", "stage3.2.conv1", "conv"},
    }.items():
        plan = make_plan(resnet, IMAGE, scores, ratio=0.5, scope="all", keep=list(keep))
        whole = {name for name, why in plan.skipped.items() if why.startswith("keep names")}
        assert kept <= whole and not kept & plan.kept.keys()
        assert whole - kept <= {f"stage1.{block}.conv2" for block in range(3)}  # the other side of the stem's sum
    assert plan.skipped["stage1.2.conv1"] == "keep names stage?.2.conv1"
    plan = make_plan(resnet, IMAGE, scores, ratio=0.5, scope="all", keep=["stage2.1"])
    assert plan.skipped["stage2.2.conv2"] == "keep names stage2.1, and so stage2.1.conv2 loses no channel"
    with pytest.raises(StudyError, match=r"keep=\['stage4'\] is not allowed; allowed: names, modules or patterns"):
        make_plan(resnet, IMAGE, scores, ratio=0.5, keep=["stage4", "stage1"])
    with pytest.raises(StudyError, match="rates.stage2.0.conv1=0.5 is not allowed; allowed: 0 here: keep names stage2$"):
        make_plan(resnet, IMAGE, scores, rates={"stage2.0.conv1": 0.5}, keep=["stage2"])


def test_a_depthwise_follower_to_keep_keeps_the_layer_before_it() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    ).eval()
    plan = make_plan(net, EXAMPLE, {"0": torch.arange(8.0), "4": torch.arange(6.0)}, ratio=0.5, keep=["2"])
    assert counts(plan) == {"4": 3} and plan.skipped["0"] == "keep names 2, and so 2 loses no channel"


def test_rates_by_pattern() -> None:
    net = chain(20, 12, 4)
    scores = {**SCORES, "4": torch.arange(4.0)}
    plan = make_plan(net, EXAMPLE, scores, rates={"*": 0.5, "[24]": 0.25, "2": 0.75})  # the last layer, "6", cannot be pruned
    assert plan.rates == {"0": 0.5, "2": 0.75, "4": 0.25} and counts(plan) == {"0": 10, "2": 3, "4": 3}
    assert make_plan(net, EXAMPLE, scores, rates={"[24]": 0.25, "2": 0.75, "*": 0.5}) == plan
    with pytest.raises(StudyError, match=r"rates: '\[24\]' and '\[34\]' ask for different rates of 4; name it by itself"):
        make_plan(net, EXAMPLE, scores, rates={"[24]": 0.25, "[34]": 0.5})
    with pytest.raises(StudyError, match=r"rates=\['x\*'\] is not allowed; allowed: the network's convolutions"):
        make_plan(net, EXAMPLE, scores, rates={"x*": 0.25})


def test_one_ranking_over_layers_after_scaling() -> None:
    # Layer 0 has a hundredth of the numbers of layer 2; scaled, only its even spread counts. Layer 2 has few that matter.
    scores = {"0": torch.full((20,), 0.01), "2": torch.tensor([1.0] * 2 + [0.01] * 10)}
    net = chain(20, 12)
    assert counts(make_plan(net, EXAMPLE, scores, ratio=10 / 32, ranking="network")) == {"0": 10}  # equals: the first layer's go
    plan = make_plan(net, EXAMPLE, scores, ratio=10 / 32, allocation="global")
    assert counts(plan) == {"2": 2} and plan.kept["2"] == [0, 1] and plan.allocation == "global"
    assert plan.skipped["0"] == "its channels lie above the threshold"
    # A tenth of each layer stays, rounded up: 2 of 20 and 2 of 12, or as many as are asked for.
    assert counts(make_plan(net, EXAMPLE, scores, ratio=0.95, allocation="global")) == {"0": 2, "2": 2}
    assert counts(make_plan(net, EXAMPLE, scores, ratio=0.95, allocation="global", min_channels=5)) == {"0": 5, "2": 5}


def test_what_reconstruction_loses_by_hand() -> None:
    """Channels 0 and 1 are equal, 2 is orthogonal to them; each has energy 1 an image and is read by a weight of 1, 2 and 3."""
    net = chain(3)
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.zero_()
        for channel, source in enumerate((0, 0, 1)):
            net[0].weight[channel, source] = 1
        net[2].weight.zero_()
        net[2].weight[0, :, 0, 0] = torch.tensor([1.0, 2.0, 3.0])
    images = torch.eye(2)[:, :, None, None].expand(2, 2, 4, 4).contiguous()
    (known,) = collect_statistics(net, images).values()
    # The reader's input has energy (1 + 2)^2 + 3^2 = 18. Without 1, channel 0 stands in; without 2 the half is lost.
    torch.testing.assert_close(
        reconstruction_curve(net, known, [2, 0, 1]), torch.tensor([1, 0.5, 0, 0]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        reconstruction_curve(net, known, [0, 1, 2]), torch.tensor([1, 0.5, 0.5, 0]).double(), atol=1e-5, rtol=0
    )
    # With too few positions nothing is rebuilt: without 1 its energy is missed, 2^2.
    few = reconstruction_curve(net, replace(known, count=7), [2, 0, 1])
    torch.testing.assert_close(few, torch.tensor([1, 9 / 18, 4 / 18, 0]).double())


def test_a_descent_weighs_harm_against_macs_by_hand() -> None:
    """Both layers lose 0.1 a channel; a channel of b saves twice the MACs. A dear step with free ones behind it is taken as one."""
    curves = {"a": torch.tensor([0.4, 0.3, 0.2, 0.1, 0]).double(), "b": torch.tensor([0.4, 0.3, 0.3, 0.3, 0]).double()}
    share = lambda found: (found["a"] + 2 * found["b"]) / 12  # noqa: E731
    path = Descent(curves, share, Limits(), {"a": 1, "b": 1}).path
    assert [(one["a"], one["b"]) for one in path] == [(4, 4), (4, 3), (4, 2), (4, 1), (3, 1), (2, 1), (1, 1)]
    steep = {**curves, "b": 10 * curves["b"]}
    assert [(one["a"], one["b"]) for one in Descent(steep, share, Limits(2), {"a": 1, "b": 1}).path] == [(4, 4), (2, 4), (2, 2)]


@torch.no_grad()
def test_each_allocation_makes_another_plan_and_sensitivity_rebuilds_better() -> None:
    """Half of the channels of two of five layers are copies of the others: those can go without loss."""
    widths, layers = (3, 16, 16, 16, 16, 16), list[nn.Module]()
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    for conv in (layers[2], layers[6]):
        conv.weight[8:], conv.bias[8:] = conv.weight[:8], conv.bias[:8]
    net = nn.Sequential(*layers, nn.Conv2d(16, 4, 3), nn.Flatten()).eval()
    images, fresh = torch.randn(2, 32, 3, 8, 8)
    statistics, scores = collect_statistics(net, images), importance("random", model=net, seed=3)
    ways: dict[str, dict[str, Any]] = {"uniform": {}, "global": {}, "sensitivity": {"statistics": statistics}}
    plans = {way: make_plan(net, images, scores, macs=0.6, allocation=way, **more) for way, more in ways.items()}
    assert len({json.dumps(counts(plan)) for plan in plans.values()}) == 3
    assert all(plan.macs_left == pytest.approx(0.6, abs=0.04) for plan in plans.values())
    wanted = net(fresh)
    gaps = {
        way: (prune(net, plan, compensate="merge", statistics=statistics)(fresh) - wanted).square().sum().item()
        for way, plan in plans.items()
    }
    assert gaps["sensitivity"] < 0.7 * gaps["uniform"]
    again = PruningPlan.from_json(plans["sensitivity"].model_dump_json())
    assert again == plans["sensitivity"] and again.allocation == "sensitivity"


def test_sensitivity_by_a_users_measure() -> None:
    """The measure falls with the channels of layer 0 alone: so layer 2 is pruned to its floor first."""
    seen: list[tuple[int, int]] = []

    def evaluate(network: nn.Module) -> float:
        seen.append((network[0].out_channels, network[2].out_channels))
        return float(network[0].out_channels)

    net = chain(20, 12)
    plan = make_plan(net, EXAMPLE, SCORES, ratio=10 / 32, allocation="sensitivity", evaluate=evaluate)
    assert counts(plan) == {"2": 2} and plan.skipped["0"] == "other layers save MACs at less harm"
    assert seen == [(20, 12), (15, 12), (10, 12), (5, 12), (20, 9), (20, 6), (20, 3)] and net[0].out_channels == 20
    for bad, says in (
        (lambda net: "good", "must return a number, got str"),
        (lambda net: float("nan"), "must return a finite number, got nan"),
    ):
        with pytest.raises(StudyError, match=f"evaluate {says}"):
            make_plan(net, EXAMPLE, SCORES, ratio=0.5, allocation="sensitivity", evaluate=bad)  # type: ignore[arg-type]


def test_channels_of_multiples_follow_sensitivity_too() -> None:
    net = chain(20, 12)
    plan = make_plan(
        net,
        EXAMPLE,
        SCORES,
        macs=0.4,
        multiple=4,
        allocation="sensitivity",
        statistics=collect_statistics(net, torch.randn(8, 2, 4, 4)),
    )
    assert all(count % 4 == 0 for count in counts(plan).values()) and plan.macs_left == pytest.approx(0.4, abs=0.1)


def linear_time(network: nn.Module) -> float:
    """10 ms for any network and 90 for the dense one's MACs, by the clock of nobody."""
    return 10 + 90 * count_macs(network, EXAMPLE) / 4864  # 304 a position


@pytest.mark.parametrize(("latency", "milliseconds"), [(0.6, 60.0), ("60ms", 60.0), ("37.5 ms", 37.5), (0.85, 85.0)])
def test_a_measured_latency_is_reached(latency: float | str, milliseconds: float) -> None:
    calls: list[float] = []

    def measure(network: nn.Module) -> float:
        calls.append(linear_time(network))
        return calls[-1]

    plan = make_plan(chain(20, 12), EXAMPLE, SCORES, latency=latency, measure=measure)
    assert linear_time(prune(chain(20, 12), plan)) == pytest.approx(milliseconds, rel=0.05)
    assert calls[0] == 100 and len(calls) <= 11
    assert plan.latency == latency and plan.latency_left == pytest.approx(
        milliseconds / (1 if isinstance(latency, str) else 100), rel=0.05
    )
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    assert ("ms of the latency is left" if isinstance(latency, str) else "% of the latency is left") in str(plan)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no measure": ({"latency": 0.5}, "latency without measure"),
    "no latency": ({"ratio": 0.5, "measure": linear_time}, "measure without latency"),
    "a share above one": ({"latency": 2.0, "measure": linear_time}, "latency=2.0 is not allowed; allowed: a share of the dense"),
    "seconds": ({"latency": "2s", "measure": linear_time}, "latency='2s' is not allowed"),
    "out of reach": ({"latency": 0.05, "measure": linear_time}, r"latency=0.05 is not allowed; allowed: 0\.\d+ and more"),
    "out of reach in ms": (
        {"latency": "5ms", "measure": linear_time},
        r"latency='5ms' is not allowed; allowed: 11\.\d+ms|1\d\.\d+ms",
    ),
    "no time": ({"latency": 0.5, "measure": lambda net: 0.0}, "measure must return milliseconds above 0, got 0.0"),
    "two goals": ({"latency": 0.5, "macs": 0.5, "measure": linear_time}, "give one of ratio, macs, rates and latency"),
    "no statistics": ({"macs": 0.5, "allocation": "sensitivity"}, "needs either statistics, from collect_statistics, or evaluate"),
    "evaluate for nothing": ({"macs": 0.5, "evaluate": linear_time}, "evaluate='a function' is not allowed; allowed: None unless"),
    "two rankings": ({"macs": 0.5, "allocation": "global", "ranking": "network"}, "allocation='global' is not allowed"),
    "rates beside": ({"rates": [0.5, 0.5], "allocation": "global"}, "allocation='global' is not allowed; allowed: 'uniform' where"),
    "rounding beside": ({"ratio": 0.5, "allocation": "global", "rounding": "chip"}, "rounding='chip' is not allowed"),
    "no allocation": ({"macs": 0.5, "allocation": "greedy"}, "allocation='greedy' is not allowed; allowed: 'uniform', 'global' or"),
    "multiple": ({"macs": 0.5, "multiple": 0}, "multiple=0 is not allowed"),
    "keep": ({"macs": 0.5, "keep": "0"}, "keep='0' is not allowed; allowed: a list of strings"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        make_plan(chain(20, 12), EXAMPLE, SCORES, **arguments)
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_a_plan_by_hand_is_completed(resnet: nn.Module) -> None:
    half = [*range(0, 16, 2)]
    plan = plan_by_hand(resnet, IMAGE, {"stage2.1.conv2": half[::-1], "stage3.0.conv1": [*range(5)], "stage1.0.conv1": [*range(8)]})
    assert plan.kept == {"stage2.0.conv2": half, "stage2.1.conv2": half, "stage2.2.conv2": half, "stage3.0.conv1": [*range(5)]}
    assert (plan.allocation, plan.ratio, plan.rates) == ("hand", None, None) and PruningPlan.from_json(
        plan.model_dump_json()
    ) == plan
    assert plan.macs_left == count_macs(prune(resnet, plan), IMAGE) / count_macs(resnet, IMAGE)
    short = {"kept": plan.kept, "channels": plan.channels, "input_shape": [3, 32, 32], "ratio": None, "allocation": "hand"}
    images = torch.randn(2, 3, 32, 32)
    assert prune(resnet, PruningPlan.from_data(short))(images).equal(prune(resnet, plan)(images))
    for bad, says in (
        ({"stage9": [0]}, "kept='stage9' is not allowed; allowed: the network's convolutions"),
        ({"stage2.1.conv1": [0, 16]}, "kept.stage2.1.conv1=.0, 16. is not allowed; allowed: different channels of 0 to 15"),
        ({"stage2.1.conv1": [1, 1]}, "different channels of 0 to 15"),
        ({"stage2.1.conv1": []}, "different channels of 0 to 15, one or more"),
        ({"stage2.1.conv2": [0], "stage2.0.conv2": [1]}, "the channels of its residual sum"),
        ({"stage2.1.conv1": [*range(16)]}, "nothing to prune: every layer in kept keeps all"),
        ({"stage2.1.conv1": [0.5]}, "kept.stage2.1.conv1.0=0.5 is not allowed"),
    ):
        with pytest.raises(StudyError, match=says):
            plan_by_hand(resnet, IMAGE, bad)  # type: ignore[arg-type]
    with pytest.raises(
        StudyError, match="kept.2=.* is not allowed; allowed: nothing: it cannot lose channels, its channels are the net"
    ):
        plan_by_hand(chain(4), EXAMPLE, {"2": [0]})


COMMON = {"kept": {"a": [0, 2]}, "channels": {"a": 3}, "skipped": {"b": "why"}, "input_shape": [3, 8, 8], "ratio": 0.5}
COMMON |= {"scope": "inner", "macs": None, "macs_left": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "a ratio": COMMON,
    "MACs": {**COMMON, "macs": 0.5, "macs_left": 0.49},
    "all layers": {**COMMON, "scope": "all"},
    "one threshold": {**COMMON, "ranking": "network"},
    "rates": {**COMMON, "ratio": None, "rates": {"a": 0.34}},
    "rates as CHIP's": {**COMMON, "ratio": None, "rates": {"a": 0.34}, "rounding": "chip"},
    "published": next(
        one["result"]["plan"] for one in read_lines(ROOT / "results/quick/records.jsonl").values() if "plan" in one["result"]
    ),
}


@pytest.mark.parametrize("plan", KINDS.values(), ids=KINDS)
def test_plans_of_every_kind_so_far_load_unchanged(plan: dict[str, Any]) -> None:
    assert PruningPlan.from_data(plan).model_dump(mode="json") == plan
    assert PruningPlan.from_json(json.dumps(plan)).model_dump(mode="json") == plan


def test_a_printed_plan_is_a_table_by_layer() -> None:
    plan = make_plan(chain(4, 10), EXAMPLE, {"0": torch.arange(4.0), "2": torch.arange(10.0)}, ratio=0.5, keep=["0"])
    # MACs of a position: 8 + 40 + 20 = 68, then 8 + 20 + 10.
    assert str(plan).splitlines() == [
        "layer  kept  of  MACs (%)  left (%)",
        "0       all          11.8      11.8  keep names 0",
        "2         5  10      58.8      29.4",
        "4       all          29.4      14.7  its channels are the network's outputs",
        "55.9% of the MACs are left",
    ]


def test_rounds_prune_a_little_more_each_time() -> None:
    seen: list[tuple[int, int]] = []

    def tune(network: nn.Module, number: int) -> None:
        seen.append((number, count_macs(network, EXAMPLE)))
        with torch.no_grad():
            network[0].weight += 1

    net = chain(20, 12)
    before = net[0].weight.clone()

    def score(network: nn.Module) -> dict[str, Tensor]:
        return {"0": torch.arange(float(network[0].out_channels)), "2": torch.arange(float(network[2].out_channels))}

    found = prune_in_rounds(net, EXAMPLE, score, tune, macs=0.4, rounds=2)
    total = count_macs(net, EXAMPLE)
    assert [number for number, _ in seen] == [1, 2] and len(found.plans) == 2
    assert [macs / total for _, macs in seen] == pytest.approx([0.4**0.5, 0.4], abs=0.04)
    assert count_macs(found.network, EXAMPLE) == seen[-1][1] and net[0].weight.equal(before)
    kept = found.plans[0].kept["0"]
    second = found.plans[1].kept["0"]
    torch.testing.assert_close(found.network[0].weight, before[kept][[*second]] + 2)
    with pytest.raises(StudyError, match="ratio is another goal than macs"):
        prune_in_rounds(net, EXAMPLE, score, tune, macs=0.4, ratio=0.5)
