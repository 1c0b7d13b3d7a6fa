"""How many channels stay, and which."""

from __future__ import annotations

import math

import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import distinct_ratios, keep_count, nearest_ratio, network_counts, select


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


def test_one_ratio_for_every_set_of_counts() -> None:
    assert distinct_ratios({1}) == [0.75]  # its one channel stays up to a half, and beyond because one must
    # A layer of 2 loses one at 1/4 and 3/4, one of 3 at 1/6, 1/2 and 5/6; between two of these and 1 nothing changes.
    assert distinct_ratios({2, 3}) == pytest.approx([5 / 24, 3 / 8, 5 / 8, 19 / 24, 11 / 12])


@pytest.mark.parametrize(
    ("macs", "ratio"),
    [(0.99, 0.125), (0.875, 0.125), (0.8, 0.25), (0.625, 0.25), (0.6, 0.5), (0.5, 0.5), (0.4, 0.5), (0.3, 0.75), (0.01, 0.75)],
)
def test_the_ratio_whose_share_is_nearest_and_of_two_the_one_that_leaves_more(macs: float, ratio: float) -> None:
    assert nearest_ratio([0.125, 0.25, 0.5, 0.75], lambda one: 1 - one, macs) == ratio


def test_of_ratios_that_leave_as_many_macs_the_first_counts() -> None:
    shares = {0.125: 0.9, 0.25: 0.5, 0.5: 0.5, 0.75: 0.1}
    assert nearest_ratio([*shares], shares.__getitem__, 0.5) == 0.25
    assert nearest_ratio([0.25], shares.__getitem__, 0.1) == 0.25


def test_of_a_thousand_equals_under_one_threshold_those_of_the_first_layer_go() -> None:
    scores = {"a": torch.zeros(500), "b": torch.zeros(500)}
    assert network_counts(scores, 0.25) == {"a": 250, "b": 500}
