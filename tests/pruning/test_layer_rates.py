"""A rate for each layer: by name, in order, and in a paper's shorthand, with that paper's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import VGG, CifarResNet, CifarVGG, build_seeded, count_macs, measure_cost
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.export import load_compact, save_compact
from fcs_utils.pruning.layer_rates import rates_by_layer, read_rates
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


@pytest.mark.parametrize(
    ("channels", "rate", "study", "chip"),
    # 13.6 of 16 channels are 14 to the nearest, and 13 downwards. A layer keeps one channel at least.
    [
        (16, 0.1, 14, 14),
        (16, 0.05, 15, 15),
        (16, 0.15, 14, 13),
        (32, 0.15, 27, 27),
        (64, 0.4, 38, 38),
        (2, 0.9, 1, 1),
        (16, 0.4, 10, 9),
    ],
)
def test_each_papers_rounding(channels: int, rate: float, study: int, chip: int) -> None:
    assert (keep_count(channels, rate), keep_count(channels, rate, "chip")) == (study, chip)


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
    "two goals": ({"rates": [0.5] * 3, "ratio": 0.5}, "give one of ratio, macs and rates; got ratio=0.5, macs=None, rates="),
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
    "its rounding": ({"ratio": 0.5, "rounding": "chip", "ranking": "network"}, "rounding='chip' is not allowed; allowed: 'study'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_rates_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        make_plan(chain(4, 10, 6), EXAMPLE, SCORES, **arguments)
    assert "\n" not in str(caught.value)


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


class ChipVGG(CifarVGG):
    """VGG-16 as CHIP has it: biases in the convolutions, and a hidden layer of 512 with BatchNorm before the logits."""

    def __init__(self) -> None:
        super().__init__(VGG["vgg16"], 10, 1.0, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.bias = nn.Parameter(torch.zeros(module.out_channels))
        self.head = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10))


def normalised(network: nn.Module) -> tuple[int, int]:
    """Outputs of BatchNorm for one image, and its parameters."""
    numbers, parameters = [], 0
    hooks = []
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            parameters += 2 * module.num_features
            hooks.append(module.register_forward_hook(lambda _m, _i, out: numbers.append(out.numel())))
    network(IMAGE)
    for hook in hooks:
        hook.remove()
    return sum(numbers), parameters


@torch.no_grad()
def test_chips_resnet56_comes_out_as_published() -> None:
    net = build_seeded(0, "resnet56", num_classes=10).eval()
    plan = make_plan(net, IMAGE, importance("random", model=net), rates="[0.]+[0.15]*2+[0.4]*27", rates_as="chip", scope="all")
    widths = {name: len(kept) for name, kept in plan.kept.items()}
    for stage, (inside, out) in {"stage1": (9, 13), "stage2": (19, 27), "stage3": (38, None)}.items():
        assert all(widths[f"{stage}.{block}.conv1"] == inside for block in range(9))
        assert all(widths.get(f"{stage}.{block}.conv2") == out for block in range(9))
    assert "conv" not in widths and plan.rounding == "chip"
    compact = prune(net, plan)
    dense, left = measure_cost(net, IMAGE), measure_cost(compact, IMAGE)
    assert (dense.macs, left.macs, dense.params, left.params) == (125_485_696, 65_168_128, 853_018, 485_413)
    # The published counts: 125.49 M without BatchNorm, 65.94 M with two operations for each of its outputs; likewise parameters.
    macs = left.macs + 2 * normalised(compact)[0]
    assert macs == 65_935_872 and round(left.params / 1e6, 2) == 0.49
    assert 100 * (1 - macs / dense.macs) == pytest.approx(47.4, abs=0.2)
    assert 100 * (1 - left.params / (dense.params - normalised(net)[1])) == pytest.approx(42.8, abs=0.2)
    # By one rule before and after:
    assert plan.macs_left == pytest.approx(0.5193, abs=1e-4) and left.params / dense.params == pytest.approx(0.5691, abs=1e-4)


@torch.no_grad()
def test_chips_vgg16_comes_out_as_published() -> None:
    torch.manual_seed(0)
    net = ChipVGG().eval()
    plan = make_plan(net, IMAGE, importance("random", model=net), rates="[0.21]*7+[0.75]*5", rates_as="chip")
    assert [len(kept) for kept in plan.kept.values()] == [50] * 2 + [101] * 2 + [202] * 3 + [128] * 5
    assert "features.conv13" not in plan.kept  # the last stays whole
    compact = prune(net, plan)

    def biased(network: nn.Module) -> int:  # MACs with one addition for each output of a convolution
        return count_macs(network, IMAGE) + normalised(network)[0] - 512

    macs, params = biased(compact) + 2 * normalised(compact)[0], measure_cost(compact, IMAGE).params
    dense_params = measure_cost(net, IMAGE).params - normalised(net)[1]
    # Published: 313.73 M and 14.98 M without BatchNorm, 131.17 M and 2.76 M with it.
    assert (biased(net), macs, dense_params, params) == (313_740_288, 131_173_888, 14_982_474, 2_766_541)
    assert 100 * (1 - macs / biased(net)) == pytest.approx(58.1, abs=0.2)
    assert 100 * (1 - params / dense_params) == pytest.approx(81.6, abs=0.2)
    # The network of this study, which has one linear head and no biases:
    own = build_seeded(0, "vgg16", num_classes=10).eval()
    plan = make_plan(own, IMAGE, importance("random", model=own), rates="[0.21]*7+[0.75]*5", rates_as="chip")
    assert plan.macs_left == pytest.approx(130_304_384 / 313_201_664)
