"""What a reader misses of channels that are dropped, from Gram matrices that are written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fcs_utils.pruning.linear import RIDGE
from fcs_utils.pruning.plan import make_plan
from fcs_utils.pruning.sensitivity import _root, reconstruction_curve
from fcs_utils.pruning.statistics import collect_statistics
from tests.pruning.test_plan import chain
from tests.pruning.toys import SCORES, counts

ENOUGH, FEW = 5, 4  # positions for two channels
EQUAL, OPPOSITE = torch.ones(2, 2).double(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double()


def missed(gram: Tensor, count: int, *weights: float) -> list[float]:
    """The curve of channels that are dropped from the last one on and read by these weights."""
    net = chain(len(gram))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].weight[0, :, 0, 0] = torch.tensor(weights)
    (known,) = collect_statistics(net, torch.ones(1, 2, 4, 4)).values()
    return reconstruction_curve(net, replace(known, gram=gram, count=count), range(len(gram))).tolist()


def test_a_copy_is_rebuilt_from_two_and_a_half_positions_a_channel_on() -> None:
    # Of (1 + 2)^2 the reader misses 2^2 where the second channel is not rebuilt from the first, its copy.
    assert missed(EQUAL, FEW, 1, 2) == pytest.approx([1, 4 / 9, 0])
    assert missed(EQUAL, ENOUGH, 1, 2) == pytest.approx([1, 0, 0], abs=1e-5)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
@pytest.mark.parametrize("count", [FEW, ENOUGH])
def test_a_curve_does_not_depend_on_the_scale_of_the_maps(count: int, scale: float) -> None:
    left = 4 / 9 if count == FEW else 0
    assert missed(scale * EQUAL, count, 1, 2) == pytest.approx([1, left, 0], abs=1e-5)
    assert missed(scale * OPPOSITE, count, 1, -2) == pytest.approx([1, left, 0], abs=1e-5)  # its mean is zero


@pytest.mark.parametrize("count", [FEW, ENOUGH])
def test_maps_of_zeros_and_maps_that_nobody_reads_lose_nothing(count: int) -> None:
    assert missed(0 * EQUAL, count, 1, 2) == missed(EQUAL, count, 0, 0) == [0, 0, 0]


def test_a_dead_layer_is_planned_by_sensitivity() -> None:
    net, images = chain(20, 12), torch.randn(8, 2, 4, 4)
    with torch.no_grad():
        net[2].bias.fill_(-1e3)
    plan = make_plan(net, images, SCORES, ratio=10 / 32, allocation="sensitivity", statistics=collect_statistics(net, images))
    assert counts(plan)["2"] == 2  # as few as any layer may keep


@pytest.mark.parametrize(
    ("gram", "near"),
    [
        ([[8.0, 2.0], [2.0, 2.0]], [[8.0, 2.0], [2.0, 2.0]]),
        # Eigenvalues 2.0001 and -0.0001, by the rounding of sums. The second counts as zero: half of the first stays everywhere.
        ([[1.0, 1.0001], [1.0001, 1.0]], [[1.00005, 1.00005], [1.00005, 1.00005]]),
    ],
)
def test_a_root_of_a_gram_matrix_and_a_millionth_of_its_trace(gram: list[list[float]], near: list[list[float]]) -> None:
    known = torch.tensor(gram, dtype=torch.float64)
    lower = _root(known)
    want = torch.tensor(near, dtype=torch.float64) + RIDGE * known.trace() * torch.eye(2)
    assert lower.triu(1).eq(0).all()
    torch.testing.assert_close(lower @ lower.T, want, rtol=0, atol=1e-12)
