"""Plans of other kinds: by hand, as JSON of every kind so far, printed as a table, and one after the other in rounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.by_hand import plan_by_hand
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from fcs_utils.study.packed import read_lines
from fcs_utils.study.rounds import prune_in_rounds
from tests.conftest import ROOT, warm
from tests.pruning.test_plan import EXAMPLE, chain

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return warm(build_seeded(0, "resnet20", num_classes=3, width=0.5), images=8)


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
    with pytest.raises(StudyError, match="kept: 2 cannot lose channels: its channels are the net"):
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
    "multiples": {**COMMON, "multiple": 2, "min_channels": 2},
    "the most of all": {
        **COMMON,
        "input_shape": [4, 2**14, 2**14],
        "macs_left": 1.0,
        "ratio": None,
        "rates": {"a": 0.34, "b": 0.0},
    },
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


def test_a_printed_plan_shortens_reasons_and_leaves_out_layers_of_which_it_says_nothing() -> None:
    macs = {"b": (4, 4), "a": (10, 5), "head": (6, 3), "c": (0, 0)}
    plan = PruningPlan.from_data({**COMMON, "skipped": {"b": "x" * 61, "c": "y" * 60}, "macs_left": None, "layer_macs": macs})
    assert str(plan).splitlines() == [
        "layer  kept  of  MACs (%)  left (%)",
        f"b       all          20.0      20.0  {'x' * 57}...",
        "a         2   3      50.0      25.0",
        f"c       all           0.0       0.0  {'y' * 60}",
    ]


@pytest.mark.parametrize(
    ("goal", "left", "said"),
    [
        ("12.5ms", 12.34, "12.3ms of the latency is left, 12.5ms was the goal"),
        (0.5, 0.512, "51.2% of the latency is left, 50.0% was the goal"),
    ],
)
def test_a_printed_plan_tells_the_latency_in_the_unit_of_its_goal(goal: object, left: float, said: str) -> None:
    plan = PruningPlan.from_data({**COMMON, "latency": goal, "latency_left": left})
    assert str(plan).splitlines()[-2:] == ["50.0% of the MACs are left", said]


def test_importances_may_be_whole_or_short_numbers() -> None:
    for kind in (torch.int64, torch.float16, torch.bool):
        scores = {"0": torch.tensor([0, 1, 0, 1]).to(kind)}
        assert make_plan(chain(4), EXAMPLE, scores, ratio=0.5).kept == {"0": [1, 3]}


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
    with pytest.raises(StudyError, match="the goal of pruning in rounds is macs, not ratio"):
        prune_in_rounds(net, EXAMPLE, score, tune, macs=0.4, ratio=0.5)


def test_a_round_that_leaves_a_network_of_another_precision_is_named() -> None:
    with pytest.raises(StudyError, match="the network does not run on images torch.float32"):
        prune_in_rounds(
            chain(4, 4), EXAMPLE, lambda net: importance("kernel_l1", model=net), lambda net, number: net.half(), macs=0.3
        )
