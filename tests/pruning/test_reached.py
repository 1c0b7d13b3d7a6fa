"""Which indices of an operation belong to which channel, by hand."""

from __future__ import annotations

import pytest
import torch

from fcs_utils.pruning.reached import Reached, to_all


@pytest.mark.parametrize(
    ("indices", "owners", "positions"),
    [
        ([5, 4, 0, 1], [0, 0, 1, 1], [[5, 4], [0, 1]]),  # in the order in which they come
        ([0, 1, 2, 3], [1, 1, 0, 0], [[2, 3], [0, 1]]),
        ([3, 2, 1, 0], [0, 1, 0, 1], [[1, 3], [0, 2]]),
        ([3, 1, 2], [0, 0, 1], [[1, 3], [2, -1]]),
        ([0, 1, 2, 3], [0, 0, 0, 1], [[0, 1, 2], [3, -1, -1]]),
        ([7, 4], [2, 0], [[4], [-1], [7]]),
    ],
)
def test_the_indices_of_each_channel(indices: list[int], owners: list[int], positions: list[list[int]]) -> None:
    assert Reached(torch.tensor([indices, owners]), len(positions)).positions.tolist() == positions


def test_many_indices_of_a_channel_come_in_their_order() -> None:
    found = Reached(torch.stack([torch.arange(200), torch.arange(200).flip(0) % 2]), 2).positions
    assert found.tolist() == [[*range(1, 200, 2)], [*range(0, 200, 2)]]


def test_whether_channels_share_an_index() -> None:
    assert Reached(torch.tensor([[0, 1, 0], [0, 1, 2]]), 3).unlike and not Reached(torch.tensor([[0, 1, 2], [0, 1, 0]]), 2).unlike


def test_whose_an_index_is() -> None:
    reached = Reached(torch.tensor([[0, 2, 4], [1, 0, 1]]), 2)
    for width, owners, all_of_them in ((3, [1, -1, 0], False), (4, [1, -1, 0, -1], False), (5, [1, -1, 0, -1, 1], True)):
        found, known = reached.owners_in(width)
        assert (found.tolist(), known) == (owners, all_of_them)


def test_an_index_goes_to_all_channels_of_a_unit() -> None:
    # Channels 0 and 2 are one unit, and 1 and 3 the other.
    units = torch.tensor([0, 1, 0, 1])
    assert to_all(torch.tensor([[5, 6], [0, 1]]), units).tolist() == [[5, 6, 5, 6], [0, 1, 2, 3]]
    assert to_all(torch.tensor([[5, 5, 4], [0, 2, 2]]), units).tolist() == [[4, 5, 4, 5], [0, 0, 2, 2]]
