"""The options of a plan: rules for counts, layers that stay whole, rates by pattern, a measured latency, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.counts import Limits
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from tests.pruning.test_plan import EXAMPLE, chain
from tests.pruning.toys import SCORES, counts


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


def test_layers_to_keep_by_name_module_and_pattern() -> None:
    resnet, image = build_seeded(0, "resnet20", num_classes=3, width=0.5).eval(), torch.zeros(1, 3, 32, 32)
    scores = importance("kernel_l1", model=resnet)
    for keep, kept in {
        ("stage2.0.conv1",): {"stage2.0.conv1"},
        ("stage2.1",): {"stage2.1.conv1", "stage2.0.conv2", "stage2.1.conv2", "stage2.2.conv2"},  # conv2 writes into the sum
        ("stage?.2.conv1", "conv"): {"stage1.2.conv1", "stage2.2.conv1", "stage3.2.conv1", "conv"},
    }.items():
        plan = make_plan(resnet, image, scores, ratio=0.5, scope="all", keep=list(keep))
        whole = {name for name, why in plan.skipped.items() if why.startswith("keep names")}
        assert kept <= whole and not kept & plan.kept.keys()
        assert whole - kept <= {f"stage1.{block}.conv2" for block in range(3)}  # the other side of the stem's sum
    assert plan.skipped["stage1.2.conv1"] == "keep names stage?.2.conv1"
    plan = make_plan(resnet, image, scores, ratio=0.5, scope="all", keep=["stage2.1"])
    assert plan.skipped["stage2.2.conv2"] == "keep names stage2.1, and so stage2.1.conv2 loses no channel"
    with pytest.raises(StudyError, match=r"keep=\['stage4'\] is not allowed; allowed: names, modules or patterns"):
        make_plan(resnet, image, scores, ratio=0.5, keep=["stage4", "stage1"])
    with pytest.raises(StudyError, match="rates.stage2.0.conv1=0.5 is not allowed; allowed: 0 here: keep names stage2$"):
        make_plan(resnet, image, scores, rates={"stage2.0.conv1": 0.5}, keep=["stage2"])


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
