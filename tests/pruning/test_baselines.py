"""The other criteria, on toy layers whose answers are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.baselines import taylor
from fcs_utils.pruning.criteria import importance
from fcs_utils.pruning.statistics import collect_statistics
from tests.pruning.test_fcs import SIX, toy


def layer(weights: list[list[float]]) -> nn.Module:
    conv = nn.Conv2d(2, len(weights), 1, bias=False)
    conv.weight.data = torch.tensor(weights, dtype=torch.float32)[:, :, None, None]
    return nn.Sequential(conv)


def test_kernel_l1_is_the_filter_norm() -> None:
    got = importance("kernel_l1", model=layer([[1, -2], [0.5, 0.5], [0, 0]]))
    torch.testing.assert_close(got["0"], torch.tensor([3.0, 1.0, 0.0]).double())


def test_feature_norm_is_the_l1_norm() -> None:
    got = importance("feature_norm", model=layer([[1, 1]] * 6), statistics={"0": SIX})
    assert got["0"].tolist() == SIX.l1.tolist()


def test_random_depends_on_its_seed_only() -> None:
    model = layer([[1, 1]] * 6)
    first, again, other = (importance("random", model=model, seed=seed)["0"] for seed in (1, 1, 2))
    assert first.equal(again) and not first.equal(other)
    assert importance("random", model=model)["0"].equal(importance("random", model=model, seed=0)["0"])


def test_random_gives_layers_of_one_width_numbers_of_their_own() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))
    found = importance("random", model=model, seed=1)
    assert len({value for scores in found.values() for value in scores.tolist()}) == 12


def test_kernel_l2_is_the_euclidean_filter_norm() -> None:
    got = importance("kernel_l2", model=layer([[3, -4], [1, 0], [0, 0]]))
    torch.testing.assert_close(got["0"], torch.tensor([5.0, 1.0, 0.0]).double())


def test_fpgm_sums_distances_to_the_other_filters() -> None:
    # On a line at 0, 3 and 4: distances 3 + 4, 3 + 1, 4 + 1. The middle filter is nearest to the median.
    got = importance("fpgm", model=layer([[0, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(got["0"], torch.tensor([7.0, 4.0, 5.0]).double())


def test_bn_scale_reads_the_norm_behind_and_misses_it_where_there_is_none() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model[1].weight.data = torch.tensor([0.5, -2.0, 0.0])
    statistics = collect_statistics(model, torch.randn(4, 2, 3, 3), layers=["0"])
    assert importance("bn_scale", model=model, statistics=statistics)["0"].tolist() == [0.5, 2.0, 0.0]
    with pytest.raises(StudyError, match="needs a BatchNorm"):
        importance("bn_scale", model=model, statistics=collect_statistics(model, torch.randn(4, 2, 3, 3)))


def test_criteria_from_the_pass_hand_over_what_it_found() -> None:
    extras = {"apoz": torch.tensor([0.25, 0.5]), "hrank": torch.tensor([3.0, 2.0]), "chip": torch.tensor([0.1, 0.9])}
    two = replace(toy([1.0, 2.0], [[1, 0], [0, 1]]), extras=extras)
    assert [importance(n, model=layer([[1, 1]] * 2), statistics={"0": two})["0"].tolist() for n in extras] == [
        [0.75, 0.5],
        pytest.approx([3.0, 2.0]),
        pytest.approx([0.1, 0.9]),
    ]
    with pytest.raises(StudyError, match="extras"):
        importance("chip", model=layer([[1, 1]] * 6), statistics={"0": SIX})


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_taylor_is_activation_times_gradient(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3 * 16, 2)).eval()
    images, labels = scale * torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 1, 0, 1])
    want = torch.zeros(3, dtype=torch.float64)
    for image, label in zip(images, labels, strict=True):
        maps = model[0](image[None]).relu().detach().requires_grad_()
        nn.functional.cross_entropy(model[3](maps.flatten(1)), label[None]).backward()
        want += (maps * maps.grad).sum((0, 2, 3)).abs().double()
    model.zero_grad()
    with pytest.raises(StudyError, match="labels='-1 to 1'"):
        taylor(model, images, torch.where(labels == 0, -1, 1))
    got = importance("taylor", model=model, images=images, labels=labels)["0"]
    torch.testing.assert_close(got, want / want.norm(), rtol=1e-4, atol=1e-6)
    uneven = taylor(model, images, labels, batch_size=4)["0"]  # each image counts alike, in whatever batch
    torch.testing.assert_close(uneven, got, rtol=1e-5, atol=1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_takes_the_values_before_an_activation_in_place_overwrites_them() -> None:
    class Parted(nn.Module):
        """Reads a's maps before and after a ReLU."""

        def __init__(self, inplace: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c, self.relu = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.ReLU(inplace)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.a(images)
            return (self.b(maps * 2) + self.c(self.relu(maps))).square().mean((2, 3))

    images, labels = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 1, 0, 1])
    plain, in_place = (importance("taylor", model=Parted(one), images=images, labels=labels)["a"] for one in (False, True))
    torch.testing.assert_close(in_place, plain)


def test_taylor_of_a_dead_layer_is_zero() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    nn.init.constant_(model[0].bias, -1e6)
    found = importance("taylor", model=model, images=torch.randn(2, 1, 2, 2), labels=torch.tensor([0, 1]))
    assert found["0"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs images and labels"),
        (torch.zeros(3).long(), "labels"),
        (torch.zeros(4), "labels"),
        (torch.full((4,), 9), "labels='9 to 9'"),
        (torch.tensor([0, 5, 1, 2]), "labels='0 to 5'"),  # five classes
        (torch.tensor([0, -1, 1, 2]), "labels=Tensor"),
    ],
)
def test_taylor_asks_for_labels_that_fit(small_vgg: nn.Module, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        importance("taylor", model=small_vgg, images=torch.randn(4, 3, 32, 32), labels=labels)
