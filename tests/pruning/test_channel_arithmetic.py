"""The arithmetic behind operators that move or part channels, on small numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fcs_utils.pruning.moves import Units, _shuffled, across, clash, glu, meeting, pixel_shuffle, shuffle
from fcs_utils.pruning.splits import Resize, Size, _bounds, _signed, resizes


def listed(*units: Units | None) -> list[tuple[list[int], list[int]]]:
    return [(one.before.tolist(), one.behind.tolist()) for one in units if one]


def test_which_channels_go_together() -> None:
    maps = torch.zeros(3, 8, 2, 2)
    assert listed(pixel_shuffle(maps, torch.zeros(3, 2, 4, 4))) == [([0, 0, 0, 0, 1, 1, 1, 1], [0, 1])]
    gated = ([0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3])
    assert listed(glu(maps, maps[:, :4], 1), glu(maps, maps[:, :4], -3)) == [gated, gated]
    flat = maps[..., 0, 0]
    assert glu(maps, maps[..., :1]) is None and listed(glu(flat, flat[:, :4])) == [gated]  # by default along the last dimension
    assert listed(shuffle(6, 2)) == [([0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 2, 2])]
    assert listed(shuffle(6, 3)) == [([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1])]


def test_from_the_indices_on_one_side_to_those_on_the_other() -> None:
    def found(here: list[int], there: list[int], pairs: list[list[int]]) -> tuple[Any, list[Any]]:
        ties: list[Any] = []
        reached = across(np.array(here), np.array(there), np.array(pairs), ties)
        return reached if reached is None else reached.tolist(), [one.tolist() for one in ties]

    assert found([0, 0, 1, 1], [0, 1], [[2, 3], [5, 5]]) == ([[1], [5]], [])
    assert found([0, 0, 1, 1], [0, 1], [[2, 3], [5, 6]]) == ([[1, 1], [5, 6]], [[[5], [6]]])  # one map behind two channels
    assert found([0, 1], [0, 1, 0, 1], [[1, 0], [7, 8]]) == ([[1, 3, 0, 2], [7, 7, 8, 8]], [])  # in the order of their coming
    assert found([0, 1], [0, 1], [[1, 2], [7, 7]]) == (None, [])  # there are two
    assert meeting(np.array([[3, 1, 3, 1], [0, 0, 2, 0]])).tolist() == [[0], [2]]
    assert meeting(np.array([[3, 1], [0, 0]])).tolist() == [[], []]


def test_channels_clash_where_one_index_is_reached_from_two() -> None:
    known = np.array([[0, 1, 2], [0, 1, 2]])  # indices, and the channels that they belong to
    assert clash(known, known.copy()) is None and clash(known, np.array([[3, 1], [5, 1]])) is None  # a new index, a known pair
    assert (clash(known, np.array([[0, 1], [0, 2]])) == [[1], [2]]).all()  # index 0 as before, index 1 of another channel
    assert (clash(known, np.array([[2], [0]])) == [[0], [2]]).all()
    assert (clash(known, np.array([[0, 1, 2], [0, 1, 0]])) == [[0], [2]]).all()
    assert (clash(np.array([[0, 1], [0, 1]]), np.array([[0, 5], [3, 0]])) == [[0], [3]]).all()  # of a later channel
    assert (clash(np.array([[0, 2], [1, 1]]), np.array([[2], [0]])) == [[0], [1]]).all()
    assert (clash(np.array([[0, 1, 2], [0, 0, 2]]), np.array([[1], [1]])) == [[0], [1]]).all()


@pytest.mark.parametrize(
    ("channels", "step", "groups"),
    [
        (6, lambda x: x.view(1, 2, 3, 2, 3).transpose(1, 2).reshape(1, 6, 2, 3), 2),
        (6, lambda x: x.view(1, 3, 2, 2, 3).transpose(1, 2).reshape(1, 6, 2, 3), 3),
        (6, lambda x: x, 1),
        (1, lambda x: x, 1),
        (6, lambda x: x.flip(1), 0),
        (6, lambda x: x.roll(1, 1), 0),
        (6, lambda x: x.transpose(2, 3).reshape(1, 6, 2, 3), 0),  # channels stay, positions do not
        (5, lambda x: x[:, [0, 2, 4, 1, 3]], 0),  # two groups do not part five channels
    ],
)
def test_how_many_groups_reshapes_shuffle(channels: int, step: Callable[[Tensor], Tensor], groups: int) -> None:
    shape = torch.Size((1, channels, 2, 3))
    assert _shuffled(shape, [step]) == groups
    assert _shuffled(shape, [lambda x: x.flatten(2), lambda x: x.view(shape), step]) == groups


def test_where_the_parts_of_a_split_begin() -> None:
    width: dict[str, Sequence[int]] = {"_saved_self_sym_sizes": (2, 10, 4)}
    assert _bounds(SimpleNamespace(**width, _saved_split_size=4)) == [0, 4, 8, 10]
    assert _bounds(SimpleNamespace(**width, _saved_split_sizes=[3, 6, 1])) == [0, 3, 9, 10]
    assert [_signed(number) for number in (5, 2**63 - 1, 2**63, 2**64 - 1)] == [5, 2**63 - 1, -(2**63), -1]


def test_attributes_follow_the_parts_that_they_size() -> None:
    module = nn.Module()
    module.width, module.sizes, module.pair = 4, [4, 3], (4, 3)  # type: ignore[assignment]
    for cut in (Resize("width", None, 4, 4), Resize("sizes", 1, 4, 3), Resize("pair", 0, 0, 4)):
        cut(module, [0, 3, 4, 6, 7, 8])  # of 4 to 7 three go, of 4 to 6 two, of 0 to 3 two
    assert (module.width, module.sizes, module.pair) == (1, [4, 1], (2, 3))
    one = Size.of(4, module, "width")
    twice = SimpleNamespace(sized=[one, one, Size.of(3, module, "sizes", 1)], bounds=[0, 4, 8, 11])
    assert resizes(twice) == [(module, Resize("width", None, 0, 4)), (module, Resize("sizes", 1, 8, 3))]
    assert resizes(SimpleNamespace()) == []
