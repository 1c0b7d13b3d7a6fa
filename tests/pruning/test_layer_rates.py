"""A rate for each layer: by name, in order, and in a paper's shorthand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import CifarResNet, build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.layer_rates import check_goal, rates_by_layer, read_rates
from fcs_utils.pruning.layers import trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm
from tests.pruning.test_plan import EXAMPLE, chain

SCORES = {"0": torch.arange(4.0), "2": torch.arange(10.0), "4": torch.arange(6.0)}
IMAGE = torch.zeros(1, 3, 32, 32)


def resnet8(width: float = 0.25) -> nn.Module:
    """One block a stage: 4, 8 and 16 channels."""
    torch.manual_seed(0)
    return warm(CifarResNet(1, 3, width, 3, "A"), images=8)


def test_texts_stand_for_numbers() -> None:
    assert read_rates("[0.]+[0.15]*2 + [.4]*3") == (0, 0.15, 0.15, 0.4, 0.4, 0.4)
    assert read_rates("[0.5]*9999+[0.25]") == (0.5,) * 9999 + (0.25,)  # at most 10,000 numbers
    with pytest.raises(ValueError, match="of at most 10000 numbers"):
        read_rates("[0.5]*9999+[0.25]*2")
    assert read_rates({"a": 0}) == {"a": 0.0} and read_rates([0, 0.5]) == (0.0, 0.5)
    for bad in (
        "",
        "0.15*2",
        "[0.15]*2+",
        "[1.5]",
        "[-0.1]",
        "[0.1]*99999",
        [],
        [1],
        [True],
        ["a"],
        {"a": float("nan")},
        {1: 0.5},
        3,
    ):
        with pytest.raises(ValueError, match="numbers"):
            read_rates(bad)


def test_rates_by_name_and_in_order() -> None:
    net = chain(4, 10, 6)
    plan = make_plan(net, EXAMPLE, SCORES, rates={"0": 0.5, "4": 0.34})
    # 10 channels stay whole; 0.34 of 6 is 2.04. MACs of a position: 2 * 4 + 4 * 10 + 10 * 6 + 6 * 2 = 120, then 4 + 20 + 40 + 8.
    assert plan.kept == {"0": [2, 3], "4": [2, 3, 4, 5]} and plan.macs_left == pytest.approx(72 / 120)
    assert plan.skipped["2"] == "its rate is 0" and plan.rates == {"0": 0.5, "4": 0.34}
    assert (plan.ratio, plan.macs, plan.rounding) == (None, None, "study")
    for rates in ([0.5, 0.0, 0.34], (0.5, 0, 0.34), "[0.5]+[0.]+[0.34]"):
        assert make_plan(net, EXAMPLE, SCORES, rates=rates) == plan
    # Down: 0.66 of 6 is 3.96.
    down = make_plan(net, EXAMPLE, SCORES, rates={"0": 0.5, "4": 0.34}, rounding="chip")
    assert down.kept == {"0": [2, 3], "4": [3, 4, 5]} and down.rounding == "chip"
    assert make_plan(net, EXAMPLE, SCORES, ratio=0.34, rounding="chip").kept["4"] == [3, 4, 5]


def test_plans_with_rates_are_stored_and_others_stay_as_they_were() -> None:
    net = chain(4, 10, 6)
    plan = make_plan(net, EXAMPLE, SCORES, rates={"4": 0.34}, rounding="chip")
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    assert not {"rates", "rounding"} & make_plan(net, EXAMPLE, SCORES, ratio=0.5).model_dump().keys()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two goals": (
        {"rates": [0.5] * 3, "ratio": 0.5},
        "give one of ratio, macs, rates and latency; got ratio=0.5, macs=None, rates=",
    ),
    "too few": ({"rates": [0.5, 0.5]}, "rates='2 numbers' is not allowed; allowed: 3 numbers, one for each layer of scope 'inner'"),
    "too many": ({"rates": "[0.5]*4"}, "rates='4 numbers' is not allowed; allowed: 3 numbers"),
    "too few for chip": ({"rates": [0.5] * 3, "rates_as": "chip"}, "allowed: 2 numbers, one for each convolution but the last"),
    "unknown": ({"rates": {"9": 0.5}}, r"rates=\['9'\] is not allowed; allowed: the network's convolutions: 0, 2, 4, 6"),
    "an output": (
        {"rates": {"6": 0.5}},
        "rates.6=0.5 is not allowed; allowed: 0 in scope 'inner', for this layer its channels",
    ),
    "one": ({"rates": [0.5, 1, 0.5]}, "rates=.* is not allowed; allowed: numbers of 0 and above and below 1, .*; 2 has 1"),
    "a number": ({"rates": 0.5}, "rates=0.5 is not allowed; allowed: numbers by layer name, a list of numbers, or a text"),
    "all zero": ({"rates": [0, 0, 0]}, "nothing to prune: .*0: its rate is 0"),
    "a mapping as chip": ({"rates": {"0": 0.5}, "rates_as": "chip"}, "rates_as='chip' is not allowed; allowed: None"),
    "no rates as chip": ({"ratio": 0.5, "rates_as": "chip"}, "rates_as='chip' is not allowed; allowed: None"),
    "unknown shorthand": ({"rates": [0.5] * 3, "rates_as": "chop"}, "rates_as='chop' is not allowed; allowed: 'chip'"),
    "unknown rounding": ({"ratio": 0.5, "rounding": "up"}, "rounding='up' is not allowed; allowed: 'study' or 'chip'"),
    "rounding with macs": ({"macs": 0.5, "rounding": "chip"}, "rounding='chip' is not allowed; allowed: 'study' where macs"),
    "one threshold": (
        {"rates": [0.5] * 3, "ranking": "network"},
        "ranking='network' is not allowed; allowed: 'layer' where",
    ),
    "no share": ({"macs": 1.0}, r"macs=1.0 is not allowed; allowed: above 0 and below 1"),
    "no goal": ({}, r"give one of ratio, macs, rates"),
    "its rounding": ({"ratio": 0.5, "rounding": "chip", "ranking": "network"}, "rounding='chip' is not allowed; allowed: 'study'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_rates_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        make_plan(chain(4, 10, 6), EXAMPLE, SCORES, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("goal", ["ratio", "macs"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5])
def test_a_goal_is_a_share_above_zero_and_below_one(goal: str, value: float) -> None:
    goals = dict.fromkeys(("ratio", "macs", "rates"))
    check_goal({**goals, goal: 0.5}, None, None)
    with pytest.raises(StudyError, match=f"^{goal}={value} is not allowed; allowed: .*above 0 and below 1"):
        check_goal({**goals, goal: value}, None, None)


def test_a_layer_with_a_rate_needs_an_importance() -> None:
    with pytest.raises(StudyError, match="rates.2=0.5 is not allowed; allowed: 0 here: no importance given"):
        make_plan(chain(4, 10, 6), EXAMPLE, {"0": torch.arange(4.0)}, rates=[0.5, 0.5, 0])


def test_layers_that_lose_the_same_channels_have_one_rate() -> None:
    net = warm(build_seeded(0, "resnet20", num_classes=3, width=0.25), images=8)
    layers = trace_layers(net, IMAGE)
    with pytest.raises(StudyError, match="rates differ in layers .*: stage2.0.conv2=0.5, stage2.[12].conv2=0$"):
        rates_by_layer({"stage2.0.conv2": 0.5}, None, layers, "all")
    with pytest.raises(StudyError, match=r"rates.stage2.0.conv2=0.5 is not allowed; allowed: 0 in scope 'inner', .* residual sum"):
        rates_by_layer({"stage2.0.conv2": 0.5}, None, layers, "inner")
    with pytest.raises(StudyError, match="rates='9 numbers' is not allowed; allowed: 19 numbers"):
        rates_by_layer([0.5] * 9, None, layers, "all")
    stage = {f"stage2.{block}.conv2": 0.5 for block in range(3)}  # the other side of a shortcut may have another one
    found = rates_by_layer(stage, None, layers, "all")
    assert {name for name, rate in found.items() if rate} == stage.keys() and len(found) == 19


def test_what_chips_numbers_stand_for() -> None:
    names = ["conv", "stage1.0.conv2", "stage2.0.conv2", "stage1.0.conv1", "stage2.0.conv1", "stage3.0.conv1"]
    rates = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = rates_by_layer(rates, "chip", trace_layers(resnet8(), IMAGE), "all")
    assert found == {**dict(zip(names, rates, strict=True)), "stage3.0.conv2": 0}


def zeros_where_lost(net: nn.Module, plan: PruningPlan, images: Tensor) -> Tensor:
    """The output of ``resnet8`` with zeros in dropped channels, written out: what each reader sees, and the shortcuts, too."""

    def keep(name: str, x: Tensor) -> Tensor:
        mask = torch.zeros(x.shape[1])
        mask[plan.kept.get(name, [*range(x.shape[1])])] = 1
        return x * mask[:, None, None]

    x = keep("conv", net.bn(net.conv(images)).relu())
    for stage in ("stage1", "stage2", "stage3"):
        block = net.get_submodule(stage)[0]
        y = keep(f"{stage}.0.conv1", block.bn1(block.conv1(x)).relu())
        before = (block.conv2.out_channels - x.shape[1]) // 2
        beside = torch.zeros_like(out := block.bn2(block.conv2(y)))
        beside[:, before : before + x.shape[1]] = x[:, :, :: block.stride, :: block.stride]
        x = keep(f"{stage}.0.conv2", (out + beside).relu())
    return net.head(x.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize(
    "rates",
    [
        [0.0, 0.5, 0.5, 0.5, 0.5, 0.5],  # the first stage is narrower than the stem
        [0.5, 0.0, 0.5, 0.0, 0.0, 0.0],  # and wider: zeros take the place of what the stem lost
        [0.25, 0.75, 0.25, 0.25, 0.0, 0.5],
    ],
)
def test_option_as_padded_channels_follow(rates: list[float], tmp_path: Any) -> None:
    net, images = resnet8(), torch.randn(3, 3, 32, 32)
    scores = importance("random", model=net, seed=4)
    plan = make_plan(net, IMAGE, scores, rates=rates, rates_as="chip", scope="all")
    compact = prune(net, plan, example=images)
    torch.testing.assert_close(compact(images), zeros_where_lost(net, plan, images), rtol=1e-4, atol=1e-4)
    # Stem and first stage are ranked together: the narrower one keeps some of what the wider one keeps.
    stem, first = (set(plan.kept.get(name, range(4))) for name in ("conv", "stage1.0.conv2"))
    assert stem <= first or first <= stem
    save_compact(tmp_path / "file", compact, plan)
    assert load_compact(tmp_path / "file", resnet8())(images).equal(compact(images))
