"""Measures of networks whose answers are planted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset
from fcs_utils.training.evaluate import accuracy, evaluate, predict, top1


class Fixed(nn.Module):
    """Answers every image with the logits (ln a, ln b, ln c); its mode is noted."""

    def __init__(self, *odds: float) -> None:
        super().__init__()
        self.logits, self.modes = torch.tensor(odds).log(), set[bool]()

    def forward(self, images: Tensor) -> Tensor:
        self.modes.add(self.training)
        return self.logits.expand(len(images), -1)


def test_measures_are_means_over_all_images_of_the_first_network_and_its_peer() -> None:
    first, peer = Fixed(0.5, 0.25, 0.25).train(), Fixed(0.1, 0.8, 0.1).train()
    batches = [(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1])), (torch.zeros(1, 1, 2, 2), torch.tensor([2]))]
    found = evaluate([first, peer], batches)
    # Of the labels 0, 0, 1, 2 the first network gets two, the peer one; batches of unequal size do not count alike.
    assert (found["validation"], found["peer_validation"]) == (50.0, 25.0)
    assert found["validation_loss"] == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4)
    # KL(peer || first) = sum of p ln(p / q) over the peer's p.
    want = 0.1 * math.log(0.1 / 0.5) + 0.8 * math.log(0.8 / 0.25) + 0.1 * math.log(0.1 / 0.25)
    assert found["peer_kl"] == pytest.approx(want)
    assert first.modes == peer.modes == {False} and first.training and peer.training
    assert evaluate([first], batches) == {**found, "peer_validation": None, "peer_kl": None}


def test_predictions_stand_in_the_order_of_the_split(digits: Dataset) -> None:
    class Brightness(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.mean((1, 2, 3)), torch.zeros(len(images))], 1)

    (found,), _ = predict([Brightness()], digits.in_order(digits.test, 77))
    want = (digits.test.images.double() - digits.mean) / digits.std
    torch.testing.assert_close(found[:, 0].double(), want.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert found.shape == (500, 2) and found.dtype == torch.float32 and not found[:, 1].any()
    assert accuracy(Brightness(), digits, digits.test) == top1(found, digits.test.labels)


def test_bf16_is_of_the_passes_and_logits_are_float32() -> None:
    network = nn.Linear(1, 2, bias=False)
    nn.init.constant_(network.weight, 1 / 3)
    batches = [(torch.ones(1, 1), torch.tensor([0]))]
    for precision, third in (("fp32", 1 / 3), ("bf16", 171 / 512)):  # of eight digits in base 2
        (found,), _ = predict([network], batches, precision)
        assert found.dtype == torch.float32 and found.tolist() == [[pytest.approx(third, abs=1e-7)] * 2]
        assert evaluate([network], batches, precision)["validation_loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_top1_is_a_share_in_percent() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0], [0.0, 1.0]])
    assert top1(logits, torch.tensor([1, 0, 0, 0])) == 50.0
