"""One step of SGD with Nesterov momentum and weight decay by hand, and the one cycle of its rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcs_utils.training.optimiser import Optimiser, Training


def weight(value: float) -> nn.Module:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, value)
    return network


def test_two_steps_by_hand() -> None:
    # The cycle of 10 steps begins at 1/25 of the peak: 0.04. Its first part has 0.3 * 10 - 1 = 2 steps, so the second rate
    # is half of the way on a cosine: (0.04 + 1) / 2 = 0.52. The loss 3w has gradient 3, and the decay adds 0.5 w.
    network, training = weight(2.0), Training(epochs=1, learning_rate=9.0, momentum=0.5, weight_decay=0.5)
    optimiser = Optimiser(network, training, 1.0, steps=10)  # the rate that is given counts, not the schedule's
    optimiser.update(3 * network.weight.sum())
    # g = 3 + 1 = 4; the momentum is 4; Nesterov looks ahead: 4 + 0.5 * 4 = 6.
    assert network.weight.item() == pytest.approx(first := 2 - 0.04 * 6)
    optimiser.update(3 * network.weight.sum())  # gradients do not add up from step to step
    gradient = 3 + 0.5 * first
    momentum = 0.5 * 4 + gradient
    assert network.weight.item() == pytest.approx(first - 0.52 * (gradient + 0.5 * momentum))
    assert optimiser.sgd.param_groups[0]["momentum"] == 0.5  # momentum does not cycle


def test_without_momentum_it_is_plain_descent() -> None:
    network = weight(2.0)
    optimiser = Optimiser(network, Training(epochs=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0), 1.0, steps=10)
    optimiser.update(3 * network.weight.sum())
    assert network.weight.item() == pytest.approx(2 - 0.04 * 3)


def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    network, rates = weight(1.0), []
    optimiser = Optimiser(network, Training(epochs=1, learning_rate=0.5), 0.5, steps=20)
    for _ in range(20):
        rates.append(optimiser.sgd.param_groups[0]["lr"])
        optimiser.update(network.weight.sum())
    # From 1/25 of the peak to the peak at step 0.3 * 20 - 1 = 5, and on to 1/10,000 of the first rate.
    assert [rates[0], rates[5], rates[19]] == pytest.approx([0.02, 0.5, 2e-6]) and rates.index(max(rates)) == 5


def test_a_schedule_of_one_step_is_possible() -> None:
    network = weight(1.0)
    Optimiser(network, Training(epochs=1, learning_rate=0.5), 0.5, steps=1).update(network.weight.sum())
    assert network.weight.item() < 1


def test_weights_lie_channels_last_and_defaults_are_those_of_the_papers() -> None:
    network = nn.Conv2d(3, 4, 3)
    Optimiser(network, Training(epochs=1, learning_rate=0.1), 0.1, steps=5)
    assert network.weight.is_contiguous(memory_format=torch.channels_last) and not network.weight.is_contiguous()
    training = Training(epochs=1, learning_rate=0.1)
    assert (training.batch_size, training.momentum, training.weight_decay) == (128, 0.9, 5e-4)


def test_a_network_with_volumes_keeps_its_layout() -> None:
    network = nn.ModuleList([nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3)])
    Optimiser(network, Training(epochs=1, learning_rate=0.1), 0.1, steps=5)
    assert all(one.weight.is_contiguous() for one in network)
