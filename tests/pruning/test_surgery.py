"""Surgery: the compact network equals the dense one with the dropped channels zeroed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm
from tests.pruning.toys import Net, conv, mean, zeroed

FAMILIES = [
    ("vgg16", {"width": 0.125}, 32, "inner"),
    ("vgg19", {"width": 0.125}, 32, "inner"),
    ("resnet20", {"width": 0.5}, 32, "inner"),
    ("resnet20", {"width": 0.5}, 32, "all"),
    ("resnet20", {"width": 0.5, "shortcut": "B"}, 32, "inner"),
    ("resnet20", {"width": 0.5, "shortcut": "B"}, 32, "all"),
    pytest.param("resnet56", {"width": 0.25}, 32, "inner", marks=pytest.mark.slow),
    pytest.param("resnet56", {"width": 0.25, "shortcut": "B"}, 32, "all", marks=pytest.mark.slow),
    pytest.param("torchvision/resnet18", {}, 64, "inner", marks=pytest.mark.slow),
    ("torchvision/resnet18", {}, 64, "all"),
    pytest.param("torchvision/resnet50", {}, 64, "inner", marks=pytest.mark.slow),
    pytest.param("torchvision/resnet50", {}, 64, "all", marks=pytest.mark.slow),
    pytest.param("torchvision/vgg16_bn", {}, 64, "inner", marks=pytest.mark.slow),
    pytest.param("torchvision/mobilenet_v2", {}, 64, "inner", marks=pytest.mark.slow),
    pytest.param("torchvision/mobilenet_v2", {}, 64, "all", marks=pytest.mark.slow),
    ("torchvision/mobilenet_v3_small", {}, 64, "all"),
    pytest.param("torchvision/densenet121", {}, 64, "inner", marks=pytest.mark.slow),
    ("torchvision/squeezenet1_1", {}, 64, "inner"),
]


@pytest.mark.parametrize(("name", "options", "size", "scope"), FAMILIES)
@torch.no_grad()
def test_compact_equals_dense_with_the_channels_zeroed(name: str, options: dict[str, object], size: int, scope: str) -> None:
    model = warm(build_seeded(3, name, num_classes=7, **options), size, images=16)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(5))
    scores = importance("random", model=model, seed=2)
    plan = make_plan(model, images, scores, ratio=0.4, scope=scope)
    compact = prune(model, plan)
    want, got, dense = zeroed(model, plan, images), compact(images), model(images)
    assert (got - want).norm() / want.norm() < 1e-5
    assert (dense - want).norm() / want.norm() > 1e-3  # the check can fail: the dropped channels mattered
    layers = prunable_layers(model, images, scope)
    followers = {follower for layer in layers.values() for follower in layer.followers}
    assert plan.kept.keys() == {layer for layer, one in layers.items() if not one.linear} | followers
    for layer, kept in plan.kept.items():
        assert compact.get_submodule(layer).out_channels == len(kept) == keep_count(plan.channels[layer], 0.4)
    # The MACs that the plan predicts are those of the pruned network.
    assert plan.macs_left == pytest.approx(count_macs(compact, images) / count_macs(model, images), rel=1e-9)


@torch.no_grad()
def test_a_plan_replays_on_a_fresh_network(small_vgg: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32)
    plan = make_plan(small_vgg, images, importance("kernel_l1", model=small_vgg), ratio=0.3)
    fresh = build_seeded(9, "vgg16", num_classes=5, width=0.125).eval()
    fresh.load_state_dict(small_vgg.state_dict())
    assert prune(fresh, plan)(images).equal(prune(small_vgg, plan)(images))


def test_surgery_copies_and_keeps_mode_and_gradient_flags(small_vgg: nn.Module) -> None:
    images = torch.zeros(1, 3, 32, 32)
    plan = make_plan(small_vgg, images, importance("kernel_l1", model=small_vgg), ratio=0.5)
    small_vgg.train()
    for parameter in small_vgg.parameters():
        parameter.requires_grad_(False)
    try:
        compact = prune(small_vgg, plan)
        assert compact.training and not any(p.requires_grad for p in compact.parameters())
        assert compact.features.conv1.out_channels == 4 and small_vgg.features.conv1.out_channels == 8
    finally:
        small_vgg.eval()
        for parameter in small_vgg.parameters():
            parameter.requires_grad_(True)
    assert all(p.requires_grad for p in prune(small_vgg, plan).parameters())


def test_batchnorm_is_carried_over(small_vgg: nn.Module) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.5)
    kept, compact = plan.kept["features.conv1"], prune(small_vgg, plan)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(compact.features.bn1, name).equal(getattr(small_vgg.features.bn1, name)[kept])


def test_a_plan_for_another_network_is_refused(small_vgg: nn.Module) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.5)
    wider = build_seeded(0, "vgg16", num_classes=5, width=0.25)
    with pytest.raises(StudyError, match="features.conv1 with 8 channels, found 16"):
        prune(wider, plan)
    with pytest.raises(StudyError, match="no such layer"):
        prune(build_seeded(0, "resnet20", num_classes=5), plan)


def test_a_follower_that_loses_other_channels_is_refused() -> None:
    layers = {"stem": conv(3, 8), "depthwise": conv(8, 8, groups=8), "reader": conv(8, 4)}
    model = Net(lambda net, x: mean(net.reader(net.depthwise(net.stem(x).relu()).relu())), **layers).eval()
    plan = make_plan(model, torch.zeros(1, 3, 8, 8), importance("kernel_l1", model=model), ratio=0.5)
    assert plan.kept["depthwise"] == plan.kept["stem"] != [0, 1, 2, 3]
    data = json.loads(plan.model_dump_json())
    data["kept"]["depthwise"] = [0, 1, 2, 3]
    with pytest.raises(StudyError, match="depthwise must lose the same channels"):
        prune(model, PruningPlan.from_data(data))
    del data["kept"]["depthwise"], data["channels"]["depthwise"]
    with pytest.raises(StudyError, match="depthwise must lose the same channels"):
        prune(model, PruningPlan.from_data(data))
