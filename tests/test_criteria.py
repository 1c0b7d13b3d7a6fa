"""Every criterion on toy statistics whose answers are worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fcs_utils.activations import ChannelStatistics
from fcs_utils.criteria import CRITERIA, describe, importance, keep_count, select
from fcs_utils.errors import StudyError
from fcs_utils.fcs import ALONE, DEAD, assign_bins, break_ties, fcs, redundancy_in_bin


def toy(norms: list[float], similarity: list[list[float]]) -> ChannelStatistics:
    """Statistics with the given L1 norms and pooled similarities; Gram = similarity, zero rows for the dead."""
    gram = torch.tensor(similarity, dtype=torch.float64)
    l1 = torch.tensor(norms, dtype=torch.float64)
    gram[l1 == 0, :] = gram[:, l1 == 0] = 0
    return ChannelStatistics(gram, l1, l1 / 4, count=4, positions=4, consumers=("next",))


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


@pytest.mark.parametrize("name", CRITERIA)
def test_contract(name: str) -> None:
    got = importance(name, model=layer([[1.0, 2.0]] * 6), statistics={"0": SIX})["0"]
    assert got.shape == (6,) and got.dtype == torch.float64 and got.isfinite().all()
    assert describe(name)


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
