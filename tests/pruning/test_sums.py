"""Sums, ranks and nuclear norms of maps that are small enough to be worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fcs_utils.pruning import sums
from fcs_utils.pruning.sums import EXTRAS, READINGS, Sums, map_ranks, nuclear_drops

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


def test_a_rank_is_that_of_the_matrix_whichever_side_is_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    row, other = torch.tensor([1.0, 2, 0, 1]), torch.tensor([0.0, 1, 1, 0])
    wide = torch.stack([torch.stack([row, 2 * row]), torch.stack([row, other]), torch.zeros(2, 4)])[None]  # (1, 3, 2, 4)
    for maps in (wide, wide.mT):
        assert map_ranks(maps).tolist() == [[1, 2, 0]]
    assert map_ranks(wide.flatten(2)).tolist() == [[1, 1, 0]]  # a map without height and width is one row
    many = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    many[:, 0, 2:] = 0
    want = map_ranks(many)
    assert want.tolist() == [[2, 4, 4]] * 5
    for block in (1, 3 * 4 * 6, 3 * 4 * 6 * 2):  # one image at a time, one, two
        monkeypatch.setattr(sums, "BLOCK", block)
        assert map_ranks(many).equal(want)


def test_a_channel_takes_its_share_of_the_nuclear_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    # Orthogonal rows: the nuclear norm is the sum of their lengths, 5 and 2.
    wide = torch.tensor([[[3.0, 4, 0], [0, 0, 2]]])
    # One position: the nuclear norm is the length of the column, sqrt(1 + 4 + 4) = 3.
    tall = torch.tensor([[[1.0], [2], [2]]])
    drops = {"wide": [5.0, 2.0], "tall": [3 - math.sqrt(8), 3 - math.sqrt(5), 3 - math.sqrt(5)]}
    for block in (sums.BLOCK, 1, 9):
        monkeypatch.setattr(sums, "BLOCK", block)
        assert nuclear_drops(wide)[0].tolist() == pytest.approx(drops["wide"])
        assert nuclear_drops(tall)[0].tolist() == pytest.approx(drops["tall"])
    both = torch.cat([wide, 2 * wide])
    assert nuclear_drops(both).tolist() == [pytest.approx([5, 2]), pytest.approx([10, 4])]


def test_a_rank_counts_singular_values_above_the_rounding_of_float32() -> None:
    # At size 32 the tolerance is 32 * 1.19e-7 = 3.8e-6 of the largest singular value.
    maps = torch.zeros(1, 4, 32, 32)
    for channel, second in enumerate((1e-5, 4e-6, 3.6e-6, 1e-6)):
        maps[0, channel, 0, 0], maps[0, channel, 1, 1] = 1, second
    assert map_ranks(maps).tolist() == map_ranks(1000 * maps.mT).tolist() == [[2, 2, 1, 1]]


def test_no_more_numbers_than_a_block_are_decomposed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, decompose = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda grams: (seen.append(tuple(grams.shape)), decompose(grams))[1])
    monkeypatch.setattr(sums, "BLOCK", 8)  # two matrices of two rows and two columns
    nuclear_drops(torch.rand(1, 5, 2))
    assert sorted(seen) == [(1, 2, 2), (2, 2), (2, 2, 2), (2, 2, 2)]  # one channel less each, and all of them
    seen.clear()
    map_ranks(torch.rand(5, 1, 2, 2))
    assert seen == [(2, 1, 2, 2), (2, 1, 2, 2), (1, 1, 2, 2)]
