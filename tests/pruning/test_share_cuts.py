"""Cutting grouped convolutions and GroupNorm: what stays of their weights, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fcs_utils.errors import StudyError
from fcs_utils.pruning.shares import ANY, Shares, cut_of, shares_of, staying_units


def grouped() -> nn.Conv2d:
    """Two groups; outputs 0 and 1 read inputs 0 and 1 by the weights 0, 1 and 2, 3; outputs 2 and 3 read inputs 2 and 3."""
    layer = nn.Conv2d(4, 4, 1, groups=2)
    layer.weight.data = torch.arange(8.0).reshape(4, 2, 1, 1)
    layer.bias.data = torch.arange(4.0)
    return layer


def normalised() -> nn.GroupNorm:
    layer = nn.GroupNorm(2, 4)
    layer.weight.data, layer.bias.data = torch.arange(4.0), 10 + torch.arange(4.0)
    return layer


def usual(layer: nn.Module, gone: Sequence[int]) -> None:
    """What the library does."""


def cut(layer: nn.Module, gone: Sequence[int], written: bool) -> None:
    cut_of(layer, written, usual)(layer, gone)


def test_inputs_go_from_the_group_that_reads_them() -> None:
    layer = grouped()
    cut(layer, [0, 3], written=False)
    assert layer.weight.flatten().tolist() == [1, 3, 4, 6] and layer.weight.shape == (4, 1, 1, 1)
    assert (layer.in_channels, layer.out_channels, layer.bias.tolist()) == (2, 4, [0, 1, 2, 3])


def test_outputs_go_with_their_biases() -> None:
    layer = grouped()
    cut(layer, [1, 2], written=True)
    assert layer.weight.flatten(1).tolist() == [[0, 1], [6, 7]] and layer.bias.tolist() == [0, 3]
    assert (layer.in_channels, layer.out_channels) == (4, 2)
    plain = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    cut(plain, [1, 2], written=True)
    assert plain.bias is None and len(plain.weight) == 2


def test_of_a_thousand_equals_the_first_come_first() -> None:
    assert ANY.order(torch.zeros(1000)) == [*range(1000)]
    assert Shares(unit=2).order(torch.zeros(1000)) == [*range(1000)]
    assert Shares(parts=2).order(torch.zeros(1000)) == torch.arange(1000).reshape(2, 500).T.flatten().tolist()


def test_an_importance_may_be_whole_numbers() -> None:
    assert ANY.order(torch.tensor([1, 3, 2])) == [1, 2, 0]
    assert Shares(unit=2).order(torch.tensor([1, 1, 0, 3])) == [2, 3, 0, 1]  # by their means, 1 and 1.5


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("gone", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]])
def test_groups_keep_equally_many_channels_and_one_at_least(gone: list[int], written: bool) -> None:
    what = "output" if written else "input"
    with pytest.raises(
        StudyError, match=f"each of the 2 groups of a convolution must keep equally many {what} channels, one or more"
    ):
        cut(grouped(), gone, written)


@pytest.mark.parametrize("written", [True, False])
def test_whole_groups_of_a_norm_go(written: bool) -> None:
    layer = normalised()
    cut(layer, [0, 1], written)
    assert (layer.num_groups, layer.num_channels, layer.weight.tolist(), layer.bias.tolist()) == (1, 2, [2, 3], [12, 13])
    assert isinstance(layer.weight, nn.Parameter)
    for gone in ([0], [1, 2], [0, 1, 2, 3]):
        with pytest.raises(
            StudyError, match="the groups of 2 channels of a GroupNorm must go as a whole, and one of them must stay"
        ):
            cut(normalised(), gone, written)


def test_of_units_of_two_those_stay_of_which_nothing_goes() -> None:
    assert staying_units([2, 3], 6, 2, "units").tolist() == [0, 1, 4, 5] and staying_units([], 2, 2, "units").tolist() == [0, 1]
    for gone in ([1], [0, 1, 2], [0, 1, 2, 3, 4, 5]):
        with pytest.raises(StudyError, match="^units must go as a whole, and one of them must stay"):
            staying_units(gone, 6, 2, "units")


def test_other_modules_are_cut_as_usual() -> None:
    for module in (nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Linear(4, 4)):
        assert cut_of(module, True, usual) is usual


@pytest.mark.parametrize(
    ("module", "indices", "reads", "shares"),
    [
        (nn.Conv2d(8, 12, 1, groups=2), [*range(8)], True, Shares(parts=2)),
        (nn.Conv2d(8, 12, 1, groups=2), [*range(12)], False, Shares(parts=2)),
        (nn.Conv2d(8, 12, 1, groups=2), [*range(4)], True, None),  # one group of them: the other has other channels
        (nn.Conv2d(8, 12, 1, groups=2), [*range(8)], False, None),
        (nn.Conv2d(8, 12, 1, groups=2), [4, 5, 6, 7, 0, 1, 2, 3], True, Shares(parts=2)),
        (nn.Conv2d(8, 12, 1, groups=2), [0, 4, 1, 5, 2, 6, 3, 7], True, None),
        (nn.GroupNorm(2, 4), [0, 1, 2, 3], True, Shares(unit=2)),
        (nn.GroupNorm(3, 6), [2, 3, 4, 5], True, Shares(unit=2)),  # the first group is of others
        (nn.GroupNorm(2, 4), [0, 2, 1, 3], True, None),
        (nn.GroupNorm(2, 4), [1, 2], True, None),
    ],
)
def test_what_a_module_asks_of_the_channels_at_its_indices(
    module: nn.Module, indices: list[int], reads: bool, shares: Shares | None
) -> None:
    assert shares_of(module, torch.tensor(indices), reads) == shares


@pytest.mark.parametrize(
    ("shares", "kept", "fault"),
    [
        (ANY, [2], None),
        (Shares(unit=2), [0, 1], None),
        (Shares(unit=2), [1, 2], "channels 2 by 2 together, because a GroupNorm or a PixelShuffle joins them"),
        (Shares(unit=2), [0, 1, 2], "channels 2 by 2 together, because a GroupNorm or a PixelShuffle joins them"),
        (Shares(parts=2), [1, 2], None),
        (Shares(parts=2), [0, 1], "as many of each 2 channels, because they are read in 2 equal parts"),
        (Shares(alike=2), [0, 2], None),
        (Shares(alike=2), [0, 1], "the same places of each 2 channels, because these meet, as in a gated linear unit"),
        (Shares(alike=2), [0, 1, 2], "the same places of each 2 channels, because these meet, as in a gated linear unit"),
        (Shares(parts=2), [0, 1, 3], "as many of each 2 channels, because they are read in 2 equal parts"),
    ],
)
def test_why_channels_of_four_are_no_choice(shares: Shares, kept: list[int], fault: str | None) -> None:
    assert shares.fault(kept, 4) == fault
