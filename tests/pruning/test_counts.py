"""How many channels stay, and which."""

from __future__ import annotations

import math

import pytest
import torch

from fcs_utils.errors import StudyError
from fcs_utils.pruning.counts import keep_count, select


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
