"""What networks yield with constants in place of chance, and how far that is from what others yield, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.pruning.outcomes import defined_in, first_run, gap_between, outputs_of
from tests.pruning.toys import Net

NAN, INF = float("nan"), float("inf")


def yielding(route: Callable[[nn.Module, Tensor], object]) -> Net:
    return Net(route, a=nn.Linear(2, 1))  # type: ignore[arg-type]


def test_the_first_images_on_which_a_network_runs_count() -> None:
    net, wide, fitting = yielding(lambda n, x: n.a(x)), torch.ones(1, 3), torch.ones(4, 2)
    (run,), error = first_run(net, [wide, fitting, 2 * fitting], True)
    assert error is None and run.training and run.images is fitting and run.outputs[0].equal(net.a(fitting))
    assert net.training


def test_where_a_network_runs_on_none_the_first_failure_is_told() -> None:
    net = yielding(lambda n, x: n.a(x)).train()
    runs, error = first_run(net, [torch.ones(1, 3), torch.ones(1, 4)], False)
    assert runs == [] and "1x3" in str(error) and not net.training
    assert first_run(net, [], False) == ([], None)


CHANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "normal numbers": torch.randn_like,
    "uniform numbers": lambda x: x.new_empty(1, 2).uniform_(3, 4),
    "a coin": lambda x: torch.bernoulli(0 * x),
    "numbers of a shape": lambda x: torch.rand(1, 2),
}


@pytest.mark.parametrize("case", CHANCE)
def test_every_random_number_is_one_half(case: str) -> None:
    (found,) = outputs_of(yielding(lambda _n, x: CHANCE[case](x)), torch.ones(1, 2), True)
    assert found.tolist() == [[0.5, 0.5]]


def test_dropout_that_a_gpu_calls_keeps_all_numbers_in_a_tensor_of_its_own() -> None:
    def route(_net: nn.Module, x: Tensor) -> object:
        kept, mask = torch.native_dropout(x, 0.9, True)
        return x, kept.add_(1), mask

    given, kept, mask = outputs_of(yielding(route), torch.ones(1, 2), True)
    assert given.tolist() == [[1, 1]] and kept.tolist() == [[2, 2]] and mask.tolist() == [[True, True]]


WINDOWS = itertools.product([3, (1, 5), (2, 3)], [1, (2, 1), 3], [0, (3, 2)], [1, (2, 3)], [True, False])


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "bias"), WINDOWS)
def test_a_depthwise_convolution_in_float64_is_torchs_own(
    kernel: Any, stride: Any, padding: Any, dilation: Any, bias: bool
) -> None:
    layer = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups=4, bias=bias).double().requires_grad_(False)
    images = torch.randn(2, 4, 17, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found,) = outputs_of(layer, images, False)
    torch.testing.assert_close(found, layer(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(1, 1, 3),
        nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4),
        nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="circular"),
    ],
)
def test_other_convolutions_in_float64_are_torchs_own(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    layer.double().requires_grad_(False)
    images = torch.randn(2, layer.in_channels, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (found,) = outputs_of(layer, images, False)
    torch.testing.assert_close(found, layer(images), rtol=1e-12, atol=1e-12)


def test_other_operations_get_all_that_they_are_given() -> None:
    (found,) = outputs_of(yielding(lambda _n, x: x.sum(1, keepdim=True, dtype=torch.float64)), torch.ones(1, 2), True)
    assert found.dtype == torch.float64 and found.tolist() == [[2]]


def test_random_slopes_are_their_mean() -> None:
    (found,) = outputs_of(yielding(lambda _n, x: nn.functional.rrelu(x, 0.25, 0.75, True)), torch.tensor([[-4.0, 4.0]]), True)
    assert found.tolist() == [[-2, 4]]


@pytest.mark.parametrize(
    ("wanted", "got", "gap"),
    [
        ([1.0, -4.0], [1.0, -3.0], 0.25),  # a share of the largest number, whatever its sign
        ([1.0, 4.0], [3.0, 4.0], 0.5),
        ([4.0, 1.0], [4.0, 1.0], 0),
        ([0.0, 0.0], [0.0, -0.25], 0.25),  # of nothing there is no share
        ([NAN, 2.0], [NAN, 1.0], 0.5),
        ([NAN, 2.0], [INF, 2.0], 0),
        ([NAN, 2.0], [1.0, 2.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([NAN, INF], [NAN, NAN], 0),
        ([3 + 4j, 0], [0, 0], 1),
        ([True, False], [True, True], 1),
    ],
)
def test_the_largest_difference_as_a_share_of_the_largest_value(wanted: list[complex], got: list[complex], gap: float) -> None:
    assert gap_between([torch.tensor(wanted)], [torch.tensor(got)]) == gap


def test_the_worst_of_several_outputs_counts_and_all_have_one_shape() -> None:
    one, near, far = torch.tensor([8.0]), torch.tensor([7.0]), torch.tensor([4.0])
    assert gap_between([one, one], [near, far]) == gap_between([one, one], [far, near]) == 0.5
    assert gap_between([], []) == 0
    for others in ([one], [one, one, one], [one, one[None]]):
        assert gap_between([one, one], others) == INF


def test_one_finite_number_of_one_output_is_something() -> None:
    nothing = torch.tensor([NAN, INF])
    assert defined_in([nothing, torch.tensor([NAN, 0.0])]) is True
    assert defined_in([nothing, nothing]) is False and defined_in([]) is False
