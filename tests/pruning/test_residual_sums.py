"""Layers whose outputs are added: they lose the same channels, or stay whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.layers import prunable_layers
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.statistics import collect_statistics


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


def test_under_one_threshold_coupled_layers_count_by_their_mean() -> None:
    # Means 2, 2.5, 3, 9 beside 2.2, 4, 4, 4, 4: of nine channels two go, 2 and 2.2. By sums, 2.2 and the first 4 would go.
    scores = {"inner": torch.tensor([4.0, 2.2, 4, 4, 4]), "a": torch.tensor([3.0, 2, 1, 9]), "b": torch.tensor([1.0, 3, 5, 9])}
    plan = make_plan(Sum().eval(), torch.zeros(1, 3, 4, 4), scores, ratio=2 / 9, scope="all", ranking="network")
    assert plan.kept == {"inner": [0, 2, 3, 4], "a": [1, 2, 3], "b": [1, 2, 3]}


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
