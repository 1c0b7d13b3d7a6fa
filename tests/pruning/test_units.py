"""Channels that go only together, in numbers alone: units on both sides of an operator, and what ties of channels ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcs_utils.errors import StudyError
from fcs_utils.pruning.moves import MOVES, MULTIPLIED, across, meeting, shuffle
from fcs_utils.pruning.shares import Shares, tying
from tests.pruning.toys import conv


def test_units_by_hand() -> None:
    assert shuffle(6, 2).before.tolist() == [0, 1, 2, 0, 1, 2] and shuffle(6, 2).behind.tolist() == [0, 0, 1, 1, 2, 2]
    ties: list[object] = []
    pairs = np.array([[1, 4, 5], [1, 4, 5]])  # channels 1 and 4 share unit 1, 5 is in unit 2
    found = across(shuffle(6, 2).before, shuffle(6, 2).behind, pairs, ties)
    assert found is not None and found.T.tolist() == [[2, 1], [3, 1], [2, 4], [3, 4], [4, 5], [5, 5]]
    assert [one.tolist() for one in ties] == [[[1], [4]]]
    assert across(np.arange(2), np.arange(2), np.array([[2], [0]]), ties) is None  # an index that the operator does not have
    assert meeting(np.array([[3, 1, 3, 1], [0, 0, 2, 0]])).tolist() == [[0], [2]]


@pytest.mark.parametrize(
    ("channels", "ties", "asks"),
    [
        (6, [], Shares()),
        (6, [(0, 3), (1, 4), (2, 5)], Shares(alike=2)),
        (6, [(0, 1), (2, 3), (4, 5)], Shares(unit=2)),
        (8, [(0, 1), (2, 3), (4, 5), (6, 7), (0, 4), (2, 6)], Shares(unit=2, alike=2)),
        (6, [(0, 1)], None),  # others go alone
        (6, [(0, 5), (1, 4), (2, 3)], None),
    ],
)
def test_what_ties_ask_by_hand(channels: int, ties: list[tuple[int, int]], asks: Shares | None) -> None:
    assert tying(channels, [np.array(ties).reshape(-1, 2).T]) == asks


def test_choices_of_equal_places_by_hand() -> None:
    both = Shares(parts=2).joined(Shares(alike=2))
    assert both.step == 2 and Shares(parts=4, alike=2).step == 4 and Shares(3, 2, 4).step == 12
    # Places 0 to 3 of both halves have means 1, 4, 3, 2.
    assert both.order(torch.tensor([0.0, 4, 6, 2, 2, 4, 0, 2])) == [1, 5, 2, 6, 3, 7, 0, 4]
    # Of each quarter as many as of the others: the better of places 0 and 1, and of 2 and 3, then the rest.
    assert Shares(parts=4, alike=2).order(torch.tensor([0.0, 4, 6, 2, 2, 4, 0, 2])) == [1, 2, 5, 6, 0, 3, 4, 7]
    assert Shares(unit=2, alike=2).units(8).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_gated_linear_unit_halves_its_last_axis_by_default() -> None:
    flat, maps = torch.zeros(2, 6), torch.zeros(2, 6, 4, 4)
    units = MOVES["glu"](flat, F.glu(flat))
    assert units and units.before.tolist() == [0, 1, 2, 0, 1, 2] and units.behind.tolist() == [0, 1, 2]
    assert MOVES["glu"](maps, F.glu(maps)) is None and MOVES["glu"](maps, F.glu(maps, 1), 1) is not None


def test_the_outputs_of_one_input_go_together() -> None:
    layer = conv(3, 6, groups=3)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with pytest.raises(StudyError, match="the 2 outputs of an input of a depthwise convolution must go as a whole"):
        MULTIPLIED.prune_out_channels(layer, [0])
    MULTIPLIED.prune_out_channels(layer, [2, 3])
    assert (layer.in_channels, layer.groups, layer.out_channels) == (2, 2, 4)
    assert layer.weight.equal(weight[[0, 1, 4, 5]]) and layer.bias.equal(bias[[0, 1, 4, 5]])
