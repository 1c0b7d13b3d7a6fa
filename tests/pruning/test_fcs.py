"""FCS and backward elimination on toy statistics whose answers are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fcs_utils.pruning.counts import select
from fcs_utils.pruning.fcs import ALONE, DEAD, assign_bins, break_ties, fcs, redundancy_in_bin
from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.linear import RIDGE, elimination_order
from fcs_utils.pruning.statistics import ChannelStatistics


def toy(norms: list[float], similarity: list[list[float]]) -> ChannelStatistics:
    """Statistics with the given L1 norms and pooled similarities; Gram = similarity, zero rows for the dead."""
    gram = torch.tensor(similarity, dtype=torch.float64)
    l1 = torch.tensor(norms, dtype=torch.float64)
    gram[l1 == 0, :] = gram[:, l1 == 0] = 0
    return ChannelStatistics(gram, l1, l1 / 4, count=4, positions=4, consumers=(Consumer("next", torch.arange(len(l1))[:, None]),))


# Two bins of norms {1, 1.1, 1.2} and {9, 9.1, 9.2}; inside the first, 0 and 1 are near-duplicates.
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
    assert inside.equal(SIX.similarity()[:3, :3])  # as it was


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


def test_order_by_norm_empties_the_lowest_bin_first() -> None:
    # The ranks inside the bins are those of the test above: 1 0 2 and 1 2 0. Importance is (bin + (rank + 1/2) / 3) / 2 bins.
    got = fcs(SIX, bins=2, order="norm")
    torch.testing.assert_close(got, torch.tensor([1.5, 0.5, 2.5, 4.5, 5.5, 3.5]).double() / 6)
    # Greedy: 0 before 1 as above; in bin two the pair (3, 5) is most similar, then (4, 5): 3 goes first, then 4.
    got = fcs(SIX, bins=2, order="norm", redundancy="greedy")
    torch.testing.assert_close(got, torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5]).double() / 6)
    assert select(got, 2) == [4, 5]  # quota by bin would keep the last of each bin, 2 and 5


def test_order_by_norm_keeps_to_the_rules_for_ties_dead_and_single_channels() -> None:
    # Bins {0, 1, 1.1}, {50} and {90, 91}: the dead one is last of all and the one that is alone first, whatever its bin.
    similarity = torch.full((6, 6), 0.5).fill_diagonal_(1).tolist()
    odd = toy([1.1, 0.0, 1.1, 50.0, 91.0, 90.0], similarity)
    for redundancy in ("mean", "max", "greedy"):
        got = fcs(odd, bins=3, order="norm", redundancy=redundancy)
        assert got.isfinite().all() and got[3] == ALONE and got[1] == DEAD
        # Equal redundancy: of 0 and 2 with one norm the lower index stays, of 4 and 5 the larger norm.
        assert got.argsort(descending=True).tolist() == [3, 4, 5, 0, 2, 1]


def test_one_threshold_for_all_layers_gives_the_numbers_of_quota_layer() -> None:
    assert fcs(SIX, bins=2, quota="global").equal(fcs(SIX, bins=2, quota="layer"))


def test_greedy_keeps_one_of_two_copies_and_mean_drops_both() -> None:
    # One bin; 0 and 1 are copies, 2 and 3 resemble nothing.
    copies = toy([2.0, 2.0, 2.1, 1.9], [[1, 1, 0.1, 0.1], [1, 1, 0.1, 0.1], [0.1, 0.1, 1, 0], [0.1, 0.1, 0, 1]])
    assert select(fcs(copies, bins=1), 2) == [2, 3]
    kept = select(fcs(copies, bins=1, redundancy="greedy"), 3)
    assert kept == [0, 2, 3]  # equal norms: the higher index goes


def test_a_channel_alone_in_its_bin_is_kept_and_a_dead_one_goes_first() -> None:
    # Norms 0, 1, 1.1, 50: with three bins {0, 1, 1.1} would be split; two bins give {0, 1, 1.1} and {50}.
    odd = toy([0.0, 1.0, 1.1, 50.0], [[0, 0, 0, 0], [0, 1, 0.5, 0.2], [0, 0.5, 1, 0.2], [0, 0.2, 0.2, 1]])
    got = fcs(odd, bins=2)
    assert got[3] == ALONE == 2 and got[0] == DEAD == -1  # (M6)
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
    # Each is as similar to the other as the other to it. Rounding once decided between them instead of their norms.
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
    assert values[:3].tolist() == [0.5] * 3 and len({*got.tolist()}) == 4  # the caller's own stay


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
