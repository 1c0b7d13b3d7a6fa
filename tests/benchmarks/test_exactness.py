"""The check of narrower networks finds what was cut from the weights alone, and every kind of wrong cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.benchmarks.exactness import inexactness, lost_inputs, part_of
from fcs_utils.errors import StudyError

IMAGES = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
KEPT = [0, 2, 3, 5]


def dense_network(groups: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=groups), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Flatten()
    ).eval()


def cut(layer: nn.Conv2d, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
    weight = layer.weight.detach()
    if rows is not None:
        weight, layer.bias = weight[rows], nn.Parameter(layer.bias.detach()[rows])
    layer.weight = nn.Parameter(weight if columns is None else weight[:, columns])


def narrowed(columns: list[int] | None = None) -> tuple[nn.Sequential, nn.Sequential]:
    """A network and a copy that lost channels of its first layer; ``columns``: those that the next layer reads, if others."""
    dense = dense_network()
    narrow = copy.deepcopy(dense)
    cut(narrow[0], rows=KEPT)
    cut(narrow[2], columns=KEPT if columns is None else columns)
    return dense, narrow


def test_an_exact_cut_is_exact_and_its_inputs_are_found() -> None:
    dense, narrow = narrowed()
    assert inexactness(dense, narrow, IMAGES) is None
    assert lost_inputs(dense[2], narrow[2]) == [1, 4, 6, 7] and lost_inputs(dense[0], narrow[0]) == []


@pytest.mark.parametrize("columns", [[0, 2, 3, 6], [2, 0, 3, 5], [0, 2, 3]])
def test_a_layer_that_reads_other_channels_is_found(columns: list[int]) -> None:
    fault = inexactness(*narrowed(columns), IMAGES)
    assert fault is not None and (fault.startswith("its outputs are off by ") or fault.startswith("it does not run: "))


def test_weights_that_are_no_part_and_layers_that_are_gone_are_named() -> None:
    dense, narrow = narrowed()
    with torch.no_grad():
        narrow[2].weight[3, 1, 0, 1] += 1
    assert inexactness(dense, narrow, IMAGES) == "the weights of 2 are no part of the dense ones"
    del narrow[4]
    narrow[2].weight = dense[2].weight
    assert inexactness(dense, narrow, IMAGES) == "it has no 4" or "4" in str(inexactness(dense, narrow, IMAGES))


def test_another_shape_of_outputs_is_wrong() -> None:
    dense, narrow = narrowed()
    cut(narrow[4], rows=[0, 1, 2])
    assert inexactness(dense, narrow, IMAGES) == "its outputs have other shapes"


def test_a_check_that_cannot_see_the_cut_is_refused() -> None:
    dense, narrow = narrowed()
    for network in (dense, narrow):
        nn.init.zeros_(network[4].weight)
    with pytest.raises(StudyError, match="the check sees nothing"):
        inexactness(dense, narrow, IMAGES)


def test_a_grouped_convolution_is_looked_up_group_by_group() -> None:
    dense = nn.Conv2d(8, 8, 3, groups=2)
    narrow = copy.deepcopy(dense)
    # Of each group of four outputs and four inputs, two stay: other ones in the second group.
    narrow.weight = nn.Parameter(torch.cat([dense.weight[[0, 3]][:, [0, 1]], dense.weight[[4, 6]][:, [2, 3]]]).detach())
    assert lost_inputs(dense, narrow) == [2, 3, 4, 5]
    narrow.weight = nn.Parameter(torch.cat([dense.weight[[0, 4]][:, [0, 1]], dense.weight[[5, 6]][:, [2, 3]]]).detach())
    assert lost_inputs(dense, narrow) is None  # one group would read inputs of two


def test_transposed_and_depthwise_convolutions() -> None:
    dense, single = nn.ConvTranspose2d(6, 4, 2), nn.Conv2d(6, 6, 3, groups=6)
    narrow = copy.deepcopy(dense)
    narrow.weight = nn.Parameter(dense.weight.detach()[[1, 2, 5]])
    assert lost_inputs(dense, narrow) == [0, 3, 4]
    assert lost_inputs(single, nn.Conv2d(4, 4, 3, groups=4)) == lost_inputs(single, nn.Conv2d(1, 1, 3)) == []
    assert lost_inputs(single, nn.Conv2d(4, 4, 3)) is None


@pytest.mark.parametrize("kernel", [(), (1, 1), (2, 3)])
def test_rows_and_columns_are_found_in_any_order_and_among_equal_numbers(kernel: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    wide: Tensor = torch.randint(0, 50, (12, 9, *kernel), generator=generator).float()  # many numbers are equal
    wide[:, 0] = torch.arange(12.0).reshape(12, *[1] * len(kernel))
    found = part_of(wide, wide[[1, 4, 9]][:, [0, 3, 4, 8]])
    assert found is not None and wide[found[0]][:, found[1]].equal(wide[[1, 4, 9]][:, [0, 3, 4, 8]])
    assert part_of(wide, wide[[1, 4, 9]][:, [0, 3, 4, 8]] + 100) is None
