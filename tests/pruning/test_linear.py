"""Least squares on small Gram matrices, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fcs_utils.pruning.flow import Consumer
from fcs_utils.pruning.linear import RIDGE, elimination_order, fcs_linear, read_together, read_weights, reconstruction
from fcs_utils.pruning.statistics import ChannelStatistics


def statistics(*maps: list[float]) -> ChannelStatistics:
    """Of maps (C, P) on one image."""
    rows = torch.tensor(maps).double()
    consumer = Consumer("next", torch.arange(len(rows))[:, None])
    return ChannelStatistics(rows @ rows.T, rows.abs().sum(1), rows.mean(1), rows.shape[1], rows.shape[1], (consumer,))


def test_a_dropped_channel_is_rebuilt_with_and_without_a_constant() -> None:
    # F1 = 2 F0 + 3. Means of products: 14/4 = 3.5 and 46/4 = 11.5; the ridge is a millionth of 3.5.
    two = statistics([0, 1, 2, 3], [3, 5, 7, 9])
    blend, offset = reconstruction(two, [0], [1], intercept=False)
    assert blend.tolist() == [[pytest.approx(11.5 / (3.5 * (1 + 1e-6)), rel=1e-12)]] and offset.tolist() == [0]
    # Variance 3.5 - 1.5^2 = 1.25, covariance 11.5 - 1.5 * 6 = 2.5.
    blend, offset = reconstruction(two, [0], [1], intercept=True)
    slope = 2.5 / (1.25 + 3.5e-6)
    assert blend.tolist() == [[pytest.approx(slope, rel=1e-12)]] and offset.tolist() == [pytest.approx(6 - 1.5 * slope, rel=1e-9)]


def test_of_faint_maps_the_ridge_is_as_small() -> None:
    # An eighth of the maps above: means of squares of 3.5 / 64, and of products of 11.5 / 64.
    faint = statistics([0, 0.125, 0.25, 0.375], [0.375, 0.625, 0.875, 1.125])
    blend, _ = reconstruction(faint, [0], [1], intercept=False)
    assert blend.tolist() == [[pytest.approx(11.5 / (3.5 * (1 + 1e-6)), rel=1e-12)]]


@pytest.mark.parametrize(("faint", "order"), [(1e-6, [1, 2, 0]), (0.5e-6, [2, 1, 0])])
def test_a_copy_is_left_as_much_as_the_ridge_says(faint: float, order: list[int]) -> None:
    # Of mean energy 2 / 3, the ridge is 0.67e-6: a copy's residual is twice that, 1.33e-6, and that of the faint channel, which
    # nothing rebuilds, its energy and the ridge: 1.67e-6 or 1.17e-6. With another ridge, both would go in one order.
    gram = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, faint]]).double()
    assert elimination_order(gram, torch.ones(3).double(), torch.tensor([2.0, 1.0, 0.001]).double()) == order


def test_maps_too_faint_to_be_squared_go_by_what_reads_them() -> None:
    norms = torch.full((2,), 1e-30).double()
    assert elimination_order(torch.zeros(2, 2).double(), torch.tensor([1.0, 2.0]).double(), norms) == [0, 1]


def test_kept_channels_share_in_what_was_dropped() -> None:
    # F1 = F0 + F3 and F2 = 3 F3 with orthogonal F0 and F3, whose mean square is 2.5 and 1: the ridge is 1.75e-6.
    four = statistics([1, 2, 0, 0], [1, 2, 1, 1], [0, 0, 3, 3], [0, 0, 1, 1])
    blend, _ = reconstruction(four, [0, 3], [1, 2], intercept=False)
    one, other = 1.25 / (1.25 + 0.875e-6), 0.5 / (0.5 + 0.875e-6)
    torch.testing.assert_close(blend, torch.tensor([[one, other], [0, 3 * other]], dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_dead_channels_rebuild_nothing() -> None:
    blend, offset = reconstruction(statistics([0, 0], [1, 3], [0, 0]), [0, 2], [1], intercept=True)
    assert blend.tolist() == [[0, 0]] and offset.tolist() == [2]  # the mean is all that is left


def test_the_weights_that_read_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(4, 2, (1, 3)), nn.Linear(6, 5))
    at = torch.tensor([[3], [1]])  # the two channels of a layer are inputs 3 and 1
    found = read_weights(model, Consumer("0", at))
    assert found.shape == (2, 2, 3) and found.dtype == torch.float64 and not found.requires_grad
    assert found.float().equal(model[0].weight.detach()[:, [3, 1], 0])
    flat = torch.tensor([[0, 1, 2], [3, 4, 5]])  # three positions a channel
    found = read_weights(model, Consumer("1", flat))
    assert found.shape == (5, 2, 3) and found[:, 1].float().equal(model[1].weight.detach()[:, 3:])


def test_a_channel_that_is_read_less_often_than_others_has_zeros() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, (1, 3)), nn.Linear(3, 5))
    uneven = torch.tensor([[0, 1], [2, -1]])
    for name, kernel in (("0", 3), ("1", 1)):
        weight = model.get_submodule(name).weight.detach().double().reshape(-1, 3, kernel)
        want = torch.stack([weight[:, :2].flatten(1), torch.cat([weight[:, 2], torch.zeros(len(weight), kernel)], 1)], 1)
        assert read_weights(model, Consumer(name, uneven)).equal(want)


def test_the_weights_of_a_grouped_convolution() -> None:
    # Rows 0 and 1 read inputs 0, 1, 2, and rows 2 and 3 the others. The layer's three channels are inputs 5, 0 and 2.
    module = nn.Conv2d(6, 4, (1, 2), groups=2)
    consumer = Consumer("0", torch.tensor([[5], [0], [2]]))
    weight, want = module.weight.detach()[:, :, 0].double(), torch.zeros(4, 3, 2).double()
    want[:2, 1], want[:2, 2], want[2:, 0] = weight[:2, 0], weight[:2, 2], weight[2:, 2]
    assert read_weights(nn.Sequential(module), consumer).equal(want)
    assert read_together(module, consumer) == [(slice(0, 2), [1, 2]), (slice(2, 4), [0])]


def test_what_the_others_rebuild_best_goes_first() -> None:
    # Channel 2 is the sum of 0 and 1 plus a little of its own: 0.01. Its residual after the others is 0.01, that of 0 and 1
    # is 1 - 1 * 1 / (1 + 0.01) = 0.0099. Reads of 2, 3 and 1 cost 0.0198, 0.0297 and 0.01: channel 2 goes, then 0, then 1.
    gram = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 2.01]]).double()
    assert RIDGE == 1e-6  # of the mean diagonal, 1.34: far below these residuals
    norms = torch.ones(3).double()
    assert elimination_order(gram, torch.tensor([2.0, 3, 1]).double(), norms) == [2, 0, 1]
    assert elimination_order(gram, torch.tensor([1.0, 3, 1.1]).double(), norms) == [0, 2, 1]
    # After 0 has gone, 2's residual is 2.01 - 1 = 1.01 at 1.1, and 1's is 1 - 1 / 2.01 = 0.50 at 3: 1.11 against 1.51.


def test_a_dead_channel_goes_before_one_that_is_hardly_read() -> None:
    # The dead one's residual is the ridge alone, a millionth; a live channel of residual one is read with weight 1e-9.
    gram = torch.diag(torch.tensor([1.0, 0.0])).double()
    assert elimination_order(gram, torch.tensor([1e-9, 1.0]).double(), torch.tensor([1.0, 0.0]).double()) == [1, 0]


def test_weights_are_squared_before_they_are_summed() -> None:
    # Orthonormal maps, read by (3, 0) and by (2, 2): channel 0 costs 9, channel 1 costs 4 + 4 = 8. Sums of weights are 3 and 4.
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[3.0, 2], [0, 2]])
    two = replace(statistics([1, 0], [0, 1]), consumers=(Consumer("0", torch.arange(2)[:, None]),))
    assert fcs_linear(model, two).tolist() == [0.75, 0.25]


def test_squares_of_all_readers_add_up() -> None:
    # Orthonormal maps. Channel 0 is read once with weight 3, channel 1 by four filters with weight 2: it costs 9 and 16 to
    # drop them. Channel 2 is read by both: 1 + 4 * 4 = 17.
    model = nn.ModuleDict({"a": nn.Conv2d(3, 1, 1), "b": nn.Conv2d(3, 4, 1)})
    for name, weights in (("a", [3.0, 0, 1]), ("b", [0.0, 2, 2])):
        model[name].weight.data = torch.tensor(weights).expand(len(model[name].weight), 3)[:, :, None, None].clone()
    at = torch.arange(3)[:, None]
    three = replace(statistics([1, 0, 0], [0, 1, 0], [0, 0, 1]), consumers=(Consumer("a", at), Consumer("b", at)))
    assert fcs_linear(model, three).tolist() == [0.5 / 3, 1.5 / 3, 2.5 / 3]
