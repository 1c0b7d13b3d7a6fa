"""CHIP's networks at its published rates come out with its published counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcs_utils.models import VGG, CifarVGG, build_seeded, count_macs, measure_cost
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.surgery import prune

IMAGE = torch.zeros(1, 3, 32, 32)


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
