"""Every criterion on toy statistics whose answers are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fcs_utils.activations import ChannelStatistics, collect_statistics
from fcs_utils.criteria import CRITERIA, describe, importance, keep_count, select
from fcs_utils.errors import StudyError
from fcs_utils.fcs import ALONE, DEAD, assign_bins, break_ties, fcs, redundancy_in_bin
from fcs_utils.linear import RIDGE, elimination_order
from fcs_utils.structure import Consumer
from fcs_utils.sums import EXTRAS, READINGS


def toy(norms: list[float], similarity: list[list[float]]) -> ChannelStatistics:
    """Statistics with the given L1 norms and pooled similarities; Gram = similarity, zero rows for the dead."""
    gram = torch.tensor(similarity, dtype=torch.float64)
    l1 = torch.tensor(norms, dtype=torch.float64)
    gram[l1 == 0, :] = gram[:, l1 == 0] = 0
    return ChannelStatistics(gram, l1, l1 / 4, count=4, positions=4, consumers=(Consumer("next", torch.arange(len(l1))[:, None]),))


# Two bins of norms {1, 1.1, 1.2} and {9, 9.1, 9.2}; inside the first, 0 and 1 are near twins.
SIX = toy(
    [1.0, 1.1, 1.2, 9.0, 9.1, 9.2],
    [
        [1.0, 0.9, 0.2, 0.5, 0.5, 0.5],
        [0.9, 1.0, 0.3, 0.5, 0.5, 0.5],
        [0.2, 0.3, 1.0, 0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 1.0, 0.1, 0.8],
        [0.5, 0.5, 0.5, 0.1, 1.0, 0.4],
        [0.5, 0.5, 0.5, 0.8, 0.4, 1.0],
    ],
)


@pytest.mark.parametrize(
    ("channels", "ratio", "kept"),
    # Peers disagree at 16 and 0.1: int(16 * 0.9) keeps 14, 16 - int(1.6) keeps 15; here 16 - round(1.6) = 14.
    [(16, 0.1, 14), (10, 0.7, 3), (64, 0.5, 32), (5, 0.5, 3), (3, 0.5, 1), (1, 0.9, 1), (2, 0.99, 1), (4, 0.01, 4)],
)
def test_one_rounding_rule(channels: int, ratio: float, kept: int) -> None:
    assert keep_count(channels, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_ratio_outside_zero_to_one_is_refused(ratio: float) -> None:
    with pytest.raises(StudyError, match="ratio"):
        keep_count(8, ratio)


def test_select_keeps_the_largest_sorted_and_breaks_ties_to_the_lower_index() -> None:
    assert select(torch.tensor([0.1, 0.9, 0.5, 0.9]), 2) == [1, 3]
    assert select(torch.tensor([1.0, 1.0, 1.0]), 2) == [0, 1]


def test_exact_bins_are_the_optimum() -> None:
    # {1, 2}, {10}, {20, 21} cost 0.5 + 0 + 0.5 = 1; every other split in three costs more.
    assert assign_bins(torch.tensor([20.0, 1.0, 10.0, 2.0, 21.0]), 3).tolist() == [2, 0, 1, 0, 2]


def test_sklearn_bins_are_numbered_by_norm_too() -> None:
    norms = torch.tensor([20.0, 1.0, 10.0, 2.0, 21.0])
    assert assign_bins(norms, 3, "sklearn", seed=3).tolist() == [2, 0, 1, 0, 2]


def test_fewer_distinct_norms_than_bins() -> None:
    assert assign_bins(torch.tensor([3.0, 3.0, 7.0]), 8).tolist() == [0, 0, 1]
    assert assign_bins(torch.tensor([5.0]), 4).tolist() == [0]


def test_mean_and_max_redundancy() -> None:
    inside, norms = SIX.similarity()[:3, :3], SIX.l1[:3]
    # Means over the two others: (0.9 + 0.2) / 2, (0.9 + 0.3) / 2, (0.2 + 0.3) / 2.
    torch.testing.assert_close(redundancy_in_bin(inside, norms, "mean"), torch.tensor([0.55, 0.6, 0.25]).double())
    torch.testing.assert_close(redundancy_in_bin(inside, norms, "max"), torch.tensor([0.9, 0.9, 0.3]).double())


def test_greedy_drops_the_smaller_of_the_most_similar_pair_first() -> None:
    # Pair (0, 1) at 0.9: 0 has the smaller norm and goes. Then (1, 2) at 0.3: 1 goes. 2 is left: -1.
    got = redundancy_in_bin(SIX.similarity()[:3, :3], SIX.l1[:3], "greedy")
    torch.testing.assert_close(got, torch.tensor([0.9, 0.3, -1.0]).double())


def test_fcs_ranks_inside_each_bin() -> None:
    # Bin one, redundancies .55 .6 .25: ranks 1 0 2. Bin two, means .45 .25 .6: ranks 1 2 0. (rank + 1/2) / 3.
    want = torch.tensor([1.5, 0.5, 2.5, 1.5, 2.5, 0.5]).double() / 3
    torch.testing.assert_close(fcs(SIX, bins=2), want)


def test_fcs_ties_between_bins_go_to_the_larger_norm() -> None:
    # Ranks tie across the bins; of the two middle channels 0 and 3, norm 9 beats norm 1.
    assert select(fcs(SIX, bins=2), 3) == [2, 3, 4]


def test_fcs_over_the_whole_layer_is_minus_the_redundancy() -> None:
    want = -torch.tensor([0.55, 0.6, 0.25, 0.45, 0.25, 0.6]).double()
    torch.testing.assert_close(fcs(SIX, bins=2, quota="layer"), want)


def test_greedy_keeps_one_of_two_copies_and_mean_drops_both() -> None:
    # One bin; 0 and 1 are copies, 2 and 3 resemble nothing.
    copies = toy([2.0, 2.0, 2.1, 1.9], [[1, 1, 0.1, 0.1], [1, 1, 0.1, 0.1], [0.1, 0.1, 1, 0], [0.1, 0.1, 0, 1]])
    assert select(fcs(copies, bins=1), 2) == [2, 3]
    kept = select(fcs(copies, bins=1, redundancy="greedy"), 3)
    assert kept == [0, 2, 3]  # equal norms: the higher index goes


def test_alone_is_kept_first_and_dead_goes_first() -> None:
    # Norms 0, 1, 1.1, 50: with three bins {0, 1, 1.1} would be split; two bins give {0, 1, 1.1} and {50}.
    odd = toy([0.0, 1.0, 1.1, 50.0], [[0, 0, 0, 0], [0, 1, 0.5, 0.2], [0, 0.5, 1, 0.2], [0, 0.2, 0.2, 1]])
    got = fcs(odd, bins=2)
    assert got[3] == ALONE and got[0] == DEAD
    # The dead one takes rank 0; 1 and 2 tie at mean .25 and the larger norm ranks higher.
    torch.testing.assert_close(got[1:3], torch.tensor([1.5, 2.5]).double() / 3)
    for quota in ("bin", "layer"):
        for redundancy in ("mean", "max", "greedy"):
            score = fcs(odd, bins=2, quota=quota, redundancy=redundancy)
            assert score.isfinite().all() and score.argmin() == 0 and score.argmax() == 3


@pytest.mark.parametrize("norms", [[0.0, 0.0, 0.0], [0.0], [2.0]])
def test_all_dead_and_single_channels_stay_finite(norms: list[float]) -> None:
    size = len(norms)
    one = toy(norms, torch.eye(size).tolist())
    assert fcs(one).isfinite().all() and len(fcs(one)) == size


@pytest.mark.parametrize("seed", range(20))
def test_of_two_channels_in_a_bin_the_larger_norm_stays(seed: int) -> None:
    # Each is as similar to the other as the other to it. Rounding once told them apart instead of their norms.
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(50, 2, generator=generator).double()
    norms = maps.abs().mean(0)
    two = replace(toy(norms.tolist(), [[1, 0], [0, 1]]), gram=maps.T @ maps)
    for redundancy in ("mean", "max", "greedy"):
        assert fcs(two, bins=1, redundancy=redundancy).argmax() == norms.argmax()


def test_break_ties_prefers_norm_then_index_and_moves_nothing_else() -> None:
    values = torch.tensor([0.5, 0.5, 0.5, 0.1]).double()
    got = break_ties(values, torch.tensor([1.0, 3.0, 1.0, 9.0]).double())
    assert got.argsort(descending=True).tolist() == [1, 0, 2, 3]
    torch.testing.assert_close(got, values)


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
        [0.75, 0.5], pytest.approx([3.0, 2.0]), pytest.approx([0.1, 0.9]),
    ]  # fmt: skip
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
    got = importance("taylor", model=model, images=images, labels=labels)["0"]
    torch.testing.assert_close(got, want / want.norm(), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("labels", "message"),
    [(None, "needs images and labels"), (torch.zeros(3).long(), "labels"), (torch.zeros(4), "labels"),
     (torch.full((4,), 9), "labels='9 to 9'")],
)  # fmt: skip
def test_taylor_asks_for_labels_that_fit(small_vgg: nn.Module, labels: torch.Tensor | None, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        importance("taylor", model=small_vgg, images=torch.randn(4, 3, 32, 32), labels=labels)


def test_linear_elimination_sees_what_pairs_do_not() -> None:
    # Channel 2 is the sum of the orthogonal 0 and 1: its cosine to each is only 0.71, yet it is fully redundant.
    # Channel 3 is orthogonal to all. Reads of weight one; any of 0, 1, 2 could go, the cheapest first is the smallest norm.
    gram = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 2, 0], [0, 0, 0, 0.3]]).double()
    order = elimination_order(gram, torch.ones(4).double(), torch.tensor([1.0, 1.0, 1.4, 0.5]).double())
    assert order[0] in (0, 1, 2) and order[1] == 3  # after one of the three has gone, the other two are needed
    # A consumer that hardly reads channel 3 lets it go first, though nothing rebuilds it.
    assert elimination_order(gram, torch.tensor([1, 1, 1, 1e-9]).double(), torch.tensor([1.0, 1.0, 1.4, 0.5]).double())[0] == 3


@pytest.mark.parametrize("seed", range(3))
def test_linear_elimination_equals_its_literal_version(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(200, 12, generator=generator).double() @ torch.randn(12, 12, generator=generator).double()
    gram, weights = maps.T @ maps, torch.rand(12, generator=generator).double() + 0.1
    left, want = list(range(12)), []
    scale = gram.diagonal().mean()
    while left:
        part = gram[left][:, left] / scale + RIDGE * torch.eye(len(left)).double()
        cost = weights[left] / torch.linalg.inv(part).diagonal()
        want.append(left.pop(int(cost.argmin())))
    assert elimination_order(gram, weights, maps.abs().sum(0)) == want


def test_linear_elimination_drops_the_dead_first_and_breaks_ties_by_norm() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])).double()
    assert elimination_order(gram, torch.ones(4).double(), torch.tensor([3.0, 0.0, 2.0, 2.0]).double()) == [1, 3, 2, 0]


@pytest.fixture(scope="module")
def everything(small_vgg: nn.Module) -> dict[str, object]:
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    statistics = collect_statistics(small_vgg, images, readings=READINGS, extras=EXTRAS)
    return {"statistics": statistics, "images": images, "labels": torch.arange(12) % 5}


@pytest.mark.parametrize("name", CRITERIA)
def test_contract(small_vgg: nn.Module, everything: dict, name: str) -> None:
    got = importance(name, model=small_vgg, **everything)
    assert list(got) == list(everything["statistics"]) and describe(name)
    for layer, score in got.items():
        channels = small_vgg.get_submodule(layer).out_channels
        assert score.shape == (channels,) and score.dtype == torch.float64 and score.isfinite().all()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("redundancy", ["mean", "max", "greedy"])
@pytest.mark.parametrize("quota", ["bin", "layer"])
def test_every_reading_of_fcs(small_vgg: nn.Module, everything: dict, reading: str, redundancy: str, quota: str) -> None:
    got = importance("fcs", model=small_vgg, reading=reading, redundancy=redundancy, quota=quota, **everything)
    assert all(len(score.unique()) == len(score) for score in got.values())  # no ties left


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsc", {}, "criterion='fsc'"),
        ("fcs", {"bins": 0}, "bins=0"),
        ("fcs", {"bins": 2.5}, "bins"),
        ("fcs", {"redundancy": "median"}, "redundancy='median'"),
        ("fcs", {"quota": "network"}, "quota='network'"),
        ("fcs", {"binning": "magic"}, "binning='magic'"),
        ("fcs", {"depth": 3}, "depth"),
        ("fcs", {"reading": "pairs"}, "reading='pairs'"),
        ("fcs", {"reading": "per_image"}, "was not collected"),
        ("fcs_greedy", {"redundancy": "mean"}, "redundancy"),
        ("kernel_l1", {"bins": 4}, "bins"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        importance(name, model=layer([[1, 1]] * 6), statistics={"0": SIX}, **options)


def test_statistics_are_asked_for() -> None:
    with pytest.raises(StudyError, match="needs statistics"):
        importance("fcs", model=layer([[1, 1]]))


def test_nan_weights_are_an_error_and_not_the_largest_importance() -> None:
    with pytest.raises(StudyError, match="NaN"):
        importance("kernel_l1", model=layer([[1, math.nan], [1, 1]]))


def test_statistics_of_another_network_are_refused() -> None:
    with pytest.raises(StudyError, match="another network"):
        importance("fcs", model=layer([[1, 1]] * 5), statistics={"0": SIX})
