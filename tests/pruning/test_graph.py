"""Which indices of which operations go with a convolution's channels, and how modules of vectors are cut, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch_pruning.dependency import index_mapping as maps

from fcs_utils.pruning import graph as graph_module
from fcs_utils.pruning.cutters import PerChannel, channels_held, cutters
from fcs_utils.pruning.graph import dependency_graph, traceable, walk
from fcs_utils.shortcuts import PadShortcut


def test_a_flattened_channel_takes_its_positions_along_up_to_a_bound() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    with traceable(net):
        graph = dependency_graph(net, torch.zeros(1, 1, 2, 2))
        found = walk(graph, net[0])
        assert found is not None and walk(graph, net[0], largest=12) is not None
        assert walk(graph, net[0], largest=11) is None  # the last index is 11, though of three channels only
    (own, channels), *_ = [pairs.tolist() for step, pairs in found if step.target.module is net[3]]
    assert own == [*range(12)] and channels == [0] * 4 + [1] * 4 + [2] * 4
    first, pairs = found[0]
    assert first.target.module is net[0] and pairs.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("layers", "begun", "made"),
    [
        # A flatten makes 4 of each of the 6 numbers, and on the way back it looks at 4 times these 24.
        ([nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)], 6, 24 + 96),
        # Two by two, 8 channels and their indices are 16 numbers behind, and 4 times as many on the way back.
        ([nn.Conv2d(1, 8, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1)], 16, 16 + 64),
    ],
)
def test_a_walk_that_makes_more_indices_than_its_budget_ends(
    layers: list[nn.Module], begun: int, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(*layers).eval()
    with traceable(net):
        graph = dependency_graph(net, torch.zeros(1, 1, 2, 2))
        for spared in (0, 1):
            monkeypatch.setattr(graph_module, "BUDGET", made - 64 * begun - spared)  # 64 times what it begins with is free
            assert (walk(graph, net[0]) is None) == bool(spared)


@pytest.mark.parametrize(
    ("mapping", "indices", "channels"),
    [
        (maps._FlattenIndexMapping(stride=2), [0, 1, 4, 5, 10, 11], [7, 7, 8, 8, 9, 9]),
        (maps._FlattenIndexMapping(stride=2, reverse=True), [0, 1, 2], [7, 8, 9]),
        (maps._FlattenIndexMapping(stride=3, reverse=True), [0, 1], [7, 9]),  # 0 and 2 lie in one map, whose first counts
        (maps._ConcatIndexMapping((3, 9)), [3, 5, 8], [7, 8, 9]),
        (maps._ConcatIndexMapping((2, 5), reverse=True), [0], [8]),  # 2 to 4 are this input's
        (maps._SplitIndexMapping((2, 6)), [0, 3], [8, 9]),
        (maps._SplitIndexMapping((2, 6), reverse=True), [2, 4, 7], [7, 8, 9]),
        (maps._SliceIndexMapping(1, start=2, step=3, end=6), [0, 1], [8, 9]),
        (maps._SliceIndexMapping(1, start=2, step=3, end=5), [0], [8]),
        (maps._SliceIndexMapping(1, start=0, step=2, end=6), [0, 1], [7, 8]),
        (maps._SliceIndexMapping(1, start=2, step=3, end=6, reverse=True), [2, 8, 17], [7, 8, 9]),
        (maps._GQAIndexMapping(repeat=2, head_dim=2), [], []),
    ],
)
def test_what_becomes_of_the_indices_0_2_and_5_of_channels_7_8_and_9(mapping: Any, indices: list[int], channels: list[int]) -> None:
    assert graph_module._mapped(mapping, np.array([[0, 2, 5], [7, 8, 9]])).tolist() == [indices, channels]


def test_of_positions_that_become_one_channel_the_first_decides_the_place() -> None:
    back = maps._FlattenIndexMapping(stride=2, reverse=True)
    assert graph_module._mapped(back, np.array([[4, 5, 0, 1], [8, 8, 7, 7]])).tolist() == [[2, 0], [8, 7]]


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(float(np.prod(shape))).reshape(shape))


def test_vectors_of_two_channels_are_cut_to_one() -> None:
    cut = PerChannel()
    norm = torchvision.ops.FrozenBatchNorm2d(2)
    norm.weight.copy_(torch.tensor([3.0, 4.0]))
    assert cut.get_out_channels(norm) == cut.get_in_channels(norm) == 2
    assert cut.prune_out_channels(norm, [0]) is norm and norm.weight.tolist() == [4] and norm.running_var.tolist() == [1]
    column = Scale(1, 4, 1)
    cut.prune_in_channels(column, [3, 0])
    assert column.scale.tolist() == [[[1.0], [2.0]]] and isinstance(column.scale, nn.Parameter)
    instance = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    cut.prune_out_channels(instance, [1])
    assert instance.num_features == 2 and len(instance.bias) == len(instance.running_mean) == 2
    assert instance.num_batches_tracked == 0  # one number is no vector


@pytest.mark.parametrize(
    ("module", "width"),
    [
        (nn.ReLU(), 0),
        (nn.PReLU(1), 0),
        (nn.PReLU(2), 2),
        (Scale(8, 1, 1), 8),
        (Scale(2, 2), 0),
        (Scale(2, 3, 1), 0),
        (nn.Sequential(Scale(2)), 0),  # its children hold them
    ],
)
def test_how_many_channels_a_module_holds_one_number_for(module: nn.Module, width: int) -> None:
    assert channels_held(module) == width


def test_a_type_is_cut_by_vectors_where_all_of_its_modules_hold_vectors() -> None:
    assert {*cutters(nn.Sequential(Scale(4), nn.PReLU(4), nn.Conv2d(1, 4, 1)))} == {Scale, PadShortcut}
    assert {*cutters(nn.Sequential(Scale(4), Scale(4, 4)))} == {*cutters(nn.Sequential(Scale(4, 4), Scale(4)))} == {PadShortcut}
    two = Scale(4)
    two.shift = nn.Parameter(torch.zeros(5))
    assert {*cutters(two)} == {PadShortcut}  # of two lengths
    two.shift = nn.Parameter(torch.zeros(2, 2))
    assert channels_held(two) == 0  # four numbers each, of which only one is a vector


def test_flags_of_parameters_come_back_and_whole_numbers_take_none() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
    net[0].weight.requires_grad_(False)
    net.count = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    with torch.no_grad(), traceable(net):
        assert torch.is_grad_enabled()
        assert all(parameter.requires_grad == parameter.is_floating_point() for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
