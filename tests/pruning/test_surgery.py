"""Plans and surgery: the compact network equals the dense one with the dropped channels zeroed."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.errors import StudyError
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning import proof
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import prunable_layers, trace_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import collect_statistics
from fcs_utils.pruning.surgery import prune
from tests.conftest import warm

FAMILIES = [
    ("vgg16", {"width": 0.125}, 32, "inner"),
    ("vgg19", {"width": 0.125}, 32, "inner"),
    ("resnet20", {"width": 0.5}, 32, "inner"),
    ("resnet20", {"width": 0.5}, 32, "all"),
    ("resnet20", {"width": 0.5, "shortcut": "B"}, 32, "inner"),
    ("resnet20", {"width": 0.5, "shortcut": "B"}, 32, "all"),
    ("resnet56", {"width": 0.25}, 32, "inner"),
    ("resnet56", {"width": 0.25, "shortcut": "B"}, 32, "all"),
    ("torchvision/resnet18", {}, 64, "inner"),
    ("torchvision/resnet18", {}, 64, "all"),
    pytest.param("torchvision/resnet50", {}, 64, "inner", marks=pytest.mark.slow),
    pytest.param("torchvision/resnet50", {}, 64, "all", marks=pytest.mark.slow),
    pytest.param("torchvision/vgg16_bn", {}, 64, "inner", marks=pytest.mark.slow),
    ("torchvision/mobilenet_v2", {}, 64, "inner"),
    pytest.param("torchvision/mobilenet_v2", {}, 64, "all", marks=pytest.mark.slow),
    ("torchvision/mobilenet_v3_small", {}, 64, "all"),
    pytest.param("torchvision/densenet121", {}, 64, "inner", marks=pytest.mark.slow),
    ("torchvision/squeezenet1_1", {}, 64, "inner"),
]


def zeroed(model: nn.Module, plan: PruningPlan, images: Tensor) -> Tensor:
    """The dense network's output when every consumer reads zeros in the dropped channels."""
    lost: dict[str, list[int]] = {}
    for name, layer in trace_layers(model, images).items():
        for consumer in (*layer.consumers, *layer.shortcuts) if name in plan.kept else ():
            dropped = sorted(set(range(layer.channels)) - set(plan.kept[name]))
            lost.setdefault(consumer.name, []).extend(consumer.positions[dropped].flatten().tolist())
    with proof.zeroed(model, lost):
        return model(images)


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
    assert plan.kept.keys() == layers.keys() | followers
    for layer, kept in plan.kept.items():
        assert compact.get_submodule(layer).out_channels == len(kept) == keep_count(plan.channels[layer], 0.4)
    # The MACs that the plan predicts are those of the pruned network.
    assert plan.macs_left == pytest.approx(count_macs(compact, images) / count_macs(model, images), rel=1e-9)


class Sum(nn.Module):
    """Two convolutions of four channels that share a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(4, 2, 1)
        self.a, self.b = nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x).relu()
        return self.head((self.a(x) + self.b(x)).relu()).mean((2, 3))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ([9.0, 0, 0, 3], [0.0, 10, 1, 3], [0, 1]),  # means 4.5, 5, 0.5, 3
        ([9.0, 0, 0, 3], [0.0, 4, 1, 3], [0, 3]),  # means 4.5, 2, 0.5, 3
        ([0.0, 1, 2, 3], [3.0, 2, 1, 0.5], [0, 3]),  # means 1.5, 1.5, 1.5, 1.75: the last, and of equals the first
    ],
)
def test_coupled_layers_keep_the_same_channels_by_the_mean_of_all(first: list[float], second: list[float], kept: list[int]) -> None:
    scores = {"a": torch.tensor(first), "b": torch.tensor(second)}
    plan = make_plan(Sum().eval(), torch.zeros(1, 3, 6, 6), scores, ratio=0.5, scope="all")
    assert plan.kept == {"a": kept, "b": kept} and plan.skipped["inner"] == "no importance given"


def test_a_sum_stays_whole_without_the_importance_of_one_of_its_layers() -> None:
    net, scores = Sum().eval(), {"a": torch.arange(4.0), "inner": torch.arange(5.0)}
    plan = make_plan(net, torch.zeros(1, 3, 6, 6), scores, ratio=0.4, scope="all")
    assert plan.kept == {"inner": [2, 3, 4]}
    assert plan.skipped["a"] == plan.skipped["b"] == "no importance given for b of its residual sum"
    model = build_seeded(0, "resnet20", num_classes=2, width=0.25, shortcut="B")
    scores = importance("kernel_l1", model=model)
    del scores["stage2.0.project.0"], scores["stage3.1.conv1"]
    plan = make_plan(model, torch.zeros(1, 3, 32, 32), scores, ratio=0.5, scope="all")
    assert "conv" in plan.kept and "stage3.1.conv2" in plan.kept and plan.skipped["stage3.1.conv1"] == "no importance given"
    whole = [name for name, why in plan.skipped.items() if why == "no importance given for stage2.0.project.0 of its residual sum"]
    assert whole == ["stage2.0.conv2", "stage2.0.project.0", "stage2.1.conv2", "stage2.2.conv2"]


@pytest.mark.parametrize("criterion", ["fcs", "taylor"])
def test_scope_all_needs_no_other_statistics(criterion: str) -> None:
    net, images = Sum().eval(), torch.randn(4, 3, 6, 6)
    known = (
        {"statistics": collect_statistics(net, images)}
        if criterion == "fcs"
        else {"images": images, "labels": torch.ones(4).long()}
    )
    scores = importance(criterion, model=net, **known)
    assert make_plan(net, images, scores, ratio=0.5, scope="all").kept.keys() == {"inner", "a", "b"}
    assert make_plan(net, images, scores, ratio=0.5).kept.keys() == {"inner"}
    assert collect_statistics(net, images, scope="inner").keys() == {"inner"}


class Padded(nn.Module):
    """Option A's shortcut as other packages write it: nothing but operations."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))


def test_other_peoples_padded_shortcuts_leave_residual_sums_whole_in_every_scope() -> None:
    model, images = build_seeded(0, "resnet20", num_classes=2, width=0.25), torch.zeros(1, 3, 32, 32)
    model.stage2[0].shortcut, model.stage3[0].shortcut = Padded(), Padded()
    plan = make_plan(model, images, importance("kernel_l1", model=model), ratio=0.5, scope="all")
    assert "stage1.0.conv1" in plan.kept and not any(name.endswith("conv2") for name in plan.kept)
    assert "one to one" in plan.skipped["stage1.0.conv2"] and "one to one" in plan.skipped["stage2.1.conv2"]


def test_option_a_shares_its_sums_in_the_scope_inner() -> None:
    model, images = build_seeded(0, "resnet20", num_classes=2, width=0.25), torch.zeros(1, 3, 32, 32)
    plan = make_plan(model, images, importance("kernel_l1", model=model), ratio=0.5)
    assert list(plan.kept) == [f"stage{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)]
    assert plan.skipped["conv"].startswith("shares a residual sum with stage1.0.conv2, stage1.1.conv2")
    assert {*prunable_layers(model, images, "all")} == {*plan.kept, *plan.skipped}


@pytest.mark.parametrize(
    ("name", "scope"),
    [("vgg16", "inner"), ("resnet20", "inner"), pytest.param("torchvision/mobilenet_v2", "all", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("target", [0.8, 0.5, 0.25])
def test_macs_find_the_nearest_reachable_network(name: str, scope: str, target: float) -> None:
    model = build_seeded(0, name, num_classes=3, **({} if "/" in name else {"width": 0.25})).eval()
    example = torch.zeros(1, 3, 64, 64)
    scores = importance("kernel_l1", model=model)
    plan = make_plan(model, example, scores, macs=target, scope=scope)
    left = count_macs(prune(model, plan), example) / count_macs(model, example)
    assert plan.macs == target and plan.macs_left == pytest.approx(left)
    # No ratio near it comes nearer, and the share falls as the ratio grows.
    others = [make_plan(model, example, scores, ratio=plan.ratio + step, scope=scope).macs_left for step in (-0.02, 0.02)]
    assert others[0] > left > others[1]
    assert abs(left - target) <= min(abs(other - target) for other in others) + 1e-12


def test_plan_keeps_the_most_important_and_names_what_stays_whole() -> None:
    model, images = build_seeded(0, "resnet20", num_classes=2, width=0.25), torch.zeros(1, 3, 32, 32)
    scores = {"stage1.0.conv1": torch.tensor([0.1, 0.4, 0.3, 0.2])}
    plan = make_plan(model, images, scores, ratio=0.5)
    assert plan.kept == {"stage1.0.conv1": [1, 2]} and plan.channels == {"stage1.0.conv1": 4}
    assert plan.skipped["stage1.1.conv1"] == "no importance given"
    assert "residual sum" in plan.skipped["stage1.0.conv2"]


def test_a_printed_plan_shows_channels_before_and_after_and_the_macs_left() -> None:
    plan = PruningPlan(
        kept={"features.conv1": [0, 2, 3], "head": [1]},
        channels={"features.conv1": 64, "head": 8},
        skipped={"conv9": "called twice"},
        input_shape=(3, 32, 32),
        ratio=0.5,
        macs=0.5,
        macs_left=0.5123,
    )
    assert str(plan).splitlines() == [
        "layer           channels    kept",
        "features.conv1        64       3",
        "head                   8       1",
        "51.2% of the MACs are left, 50.0% was the goal",
        "convolutions left whole: 1; plan.skipped gives the reasons",
    ]
    bare = plan.model_copy(update={"macs": None, "macs_left": None, "skipped": {}})
    assert str(bare).splitlines() == str(plan).splitlines()[:3]


def test_plan_goes_to_json_and_back(small_vgg: nn.Module) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.3)
    assert PruningPlan.from_json(plan.model_dump_json()) == plan
    with pytest.raises(StudyError, match="not a pruning plan"):
        PruningPlan.from_json(plan.model_dump_json()[:-40])


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
    with pytest.raises(StudyError, match="no such convolution"):
        prune(build_seeded(0, "resnet20", num_classes=5), plan)


@pytest.mark.parametrize("kept", [[], [3, 1], [0, 0], [-1, 2], [0, 8], None])
def test_an_edited_plan_is_refused(small_vgg: nn.Module, kept: list[int] | None) -> None:
    plan = make_plan(small_vgg, torch.zeros(1, 3, 32, 32), importance("kernel_l1", model=small_vgg), ratio=0.5)
    data = json.loads(plan.model_dump_json())
    if kept is None:
        del data["channels"]["features.conv1"]
    else:
        data["kept"]["features.conv1"] = kept
    with pytest.raises(StudyError, match="damaged"):
        PruningPlan.from_data(data)
    with pytest.raises(StudyError, match="damaged"):
        PruningPlan.from_json(json.dumps(data))


def test_a_follower_that_loses_other_channels_is_refused() -> None:
    model = build_seeded(0, "torchvision/mobilenet_v2", num_classes=3).eval()
    example = torch.zeros(1, 3, 64, 64)
    plan = make_plan(model, example, importance("kernel_l1", model=model), ratio=0.5)
    assert plan.kept["features.1.conv.0.0"] == plan.kept["features.0.0"]  # the depthwise convolution behind the stem
    data = json.loads(plan.model_dump_json())
    data["kept"]["features.1.conv.0.0"] = list(range(16))
    with pytest.raises(StudyError, match="features.1.conv.0.0 must lose the same channels"):
        prune(model, PruningPlan.from_data(data))
    del data["kept"]["features.1.conv.0.0"], data["channels"]["features.1.conv.0.0"]
    with pytest.raises(StudyError, match="features.1.conv.0.0 must lose the same channels"):
        prune(model, PruningPlan.from_data(data))


def test_nothing_to_prune_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(StudyError, match="network's outputs"):
        make_plan(model, torch.zeros(1, 3, 8, 8), {"0": torch.ones(4)}, ratio=0.5)


def test_one_channel_is_never_removed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    plan = make_plan(model, torch.zeros(1, 3, 12, 12), importance("kernel_l1", model=model), ratio=0.9)
    assert plan.skipped["0"] == "one channel only" and len(plan.kept["2"]) == 1


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        ({}, {"ratio": 1.5}, "ratio=1.5"),
        ({}, {"ratio": 0.5, "scope": "outer"}, "scope='outer'"),
        ({}, {"macs": 1.0}, "macs=1.0"),
        ({}, {"macs": -0.1}, "macs=-0.1"),
        ({}, {}, "one of ratio, macs and rates"),
        ({}, {"ratio": 0.5, "macs": 0.5}, "one of ratio, macs and rates"),
        ({"nowhere": torch.ones(3)}, {"ratio": 0.5}, "nowhere"),
        ({"features.conv1": torch.ones(3)}, {"ratio": 0.5}, "8 finite numbers"),
        ({"features.conv1": torch.full((8,), torch.nan)}, {"ratio": 0.5}, "8 finite numbers"),
    ],
)
def test_bad_plans_are_refused(small_vgg: nn.Module, scores: dict, arguments: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make_plan(small_vgg, torch.zeros(1, 3, 32, 32), scores, **arguments)
