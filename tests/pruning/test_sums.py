"""Sums of maps that are small enough to be worked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fcs_utils.pruning.sums import EXTRAS, READINGS, Sums, gram

# Two images of two channels and two positions. Channel 1 of the second image is zero.
MAPS = torch.tensor([[[3.0, 4.0], [-4.0, 3.0]], [[1.0, 0.0], [0.0, 0.0]]])


@pytest.mark.parametrize("parts", [[MAPS], [MAPS[:1], MAPS[1:]]], ids=["at once", "image by image"])
def test_every_sum_by_hand(parts: list[Tensor]) -> None:
    found = Sums(READINGS, EXTRAS)
    for part in parts:
        found.add(part)
    assert (found.images, found.positions) == (2, 2) and found.finite()
    # 9 + 16 + 1; -12 + 12; 16 + 9.
    assert found.gram_of("gram", 1).tolist() == [[26, 0], [0, 25]] and found.gram_of("gram", 2).tolist() == [[13, 0], [0, 12.5]]
    assert found.mean("absolute", 2).tolist() == [4, 3.5] and found.mean("total", 4).tolist() == [2, -0.25]
    # Cosines of an image's maps with themselves are one, but for the zero map.
    torch.testing.assert_close(found.gram_of("per_image", 2), torch.tensor([[1, 0], [0, 0.5]]).double())
    assert found.mean("map", 2).tolist() == [[2, 2], [-2, 1.5]]
    assert found.mean("apoz", 4).tolist() == [0.25, 0.5]
    assert found.mean("hrank", 2).tolist() == [1, 0.5]
    # In the first image both rows have length 5 and are orthogonal, so each takes 5; in the second the live one takes 1.
    torch.testing.assert_close(found.mean("chip", 2), torch.tensor([3, 2.5]).double())
    assert all(value.dtype == torch.float64 for value in found.sums.values())


def test_only_what_is_asked_for_is_summed() -> None:
    found = Sums(("pooled",), ())
    found.add(MAPS.abs())  # nothing negative: the sum of absolute values is the sum
    assert set(found.sums) == {"gram", "absolute", "total"} and found.mean("absolute", 1).tolist() == [8, 7]
    found.add(MAPS.new_full((1, 2, 2), torch.inf))
    assert not found.finite()


@pytest.mark.parametrize("channels", [255, 256, 257, 391, 1024])
def test_a_gram_matrix_is_whole_at_every_width(channels: int) -> None:
    rows = torch.randn(64, channels, generator=torch.Generator().manual_seed(0))
    found, right = gram(rows), rows.double().T @ rows.double()
    assert (found - right).abs().max() <= 1e-5 * right.abs().max()


def test_sums_of_one_tensor_part_when_signs_change() -> None:
    sums = Sums(("pooled",), ())
    sums.add(torch.ones(1, 1, 2, dtype=torch.float64))
    sums.add(-torch.ones(1, 1, 2, dtype=torch.float64))
    assert sums.mean("absolute", 1).item() == 4 and sums.mean("total", 1).item() == 0


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_one_bad_number_is_seen_among_the_largest(bad: float) -> None:
    sums = Sums(("pooled",), ())
    sums.add(torch.full((4, 3, 5), 1e18))
    assert sums.finite()
    maps = torch.zeros(1, 3, 5)
    maps[0, 1, 2] = bad
    sums.add(maps)
    assert not sums.finite()
