"""What a training's history says, and what it asks for, by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcs_utils.data.dataset import Batch
from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.training import loop
from fcs_utils.training.arms import Arm
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.optimiser import Training

BATCHES = [(torch.randn(count, 2), torch.arange(count) % 4) for count in (6, 6, 3)]
STILL = Training(epochs=2, learning_rate=1e-12)  # nothing moves


def linear(weight: float = 0.0) -> nn.Module:
    network = nn.Linear(2, 4)
    nn.init.constant_(network.weight, weight)
    nn.init.zeros_(network.bias)
    return network


@pytest.fixture(autouse=True)
def _plain_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear networks of two numbers an image have no MACs of an image; they count 10."""
    monkeypatch.setattr(loop, "count_macs", lambda network, image: 10 * len(image))


def test_the_loss_is_the_mean_over_batches_of_the_first_network() -> None:
    for epoch in fit([linear()], STILL, lambda seed, epoch: BATCHES):
        assert epoch.loss == pytest.approx(math.log(4))  # of four classes, none is more likely
    biased = linear()
    biased.bias.data = torch.tensor([math.log(3), 0.0, 0.0, 0.0])  # shares 1/2, 1/6, 1/6, 1/6
    two = [([0, 0], 2.0), ([1, 2, 3, 0], 4.0)]
    batches = [(torch.zeros(len(labels), 2), torch.tensor(labels)) for labels, _ in two]
    first, _ = fit([biased, linear()], STILL, lambda seed, epoch: batches, "mlft")
    divergence = 0.25 * (math.log(0.25 / 0.5) + 3 * math.log(0.25 * 6))  # KL(peer || first)
    losses = [math.log(2), (math.log(2) + 3 * math.log(6)) / 4]
    assert first.loss == pytest.approx(sum(losses) / 2 + divergence, rel=1e-5)
    assert first.training_macs == 3 * 2 * 10 * 6  # six images of two networks


def test_batches_are_asked_for_by_seed_and_epoch_once_more_for_a_look() -> None:
    asked: list[tuple[int, int]] = []

    def batches(seed: int, epoch: int) -> list[Batch]:
        asked.append((seed, epoch))
        return BATCHES

    fit([linear()], STILL, batches)
    fit([linear()], STILL, batches, seed=5)
    assert asked == [(0, 1), (0, 1), (0, 2), (5, 1), (5, 1), (5, 2)]


def test_dropout_draws_from_the_seed_at_the_first_batch() -> None:
    images, labels = torch.randn(8, 2), torch.arange(8) % 4
    network = nn.Sequential(nn.Dropout(0.5), linear(1.0))
    network[1].weight.data[0] = 3.0
    for seed in (0, 7):
        (epoch,) = fit([network], STILL.model_copy(update={"epochs": 1}), lambda s, e: [(images, labels)], seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            assert epoch.loss == pytest.approx(F.cross_entropy(network.train()(images), labels).item(), rel=1e-6)


def test_seconds_run_on_from_those_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = iter(range(100, 200))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))  # a second at each look
    assert [epoch.seconds for epoch in fit([linear()], STILL, lambda seed, epoch: BATCHES)] == [1.0, 2.0]

    def stop(macs: int) -> None:
        assert macs == 3 * 10 * 15
        raise OutOfTime("enough")

    with pytest.raises(OutOfTime):
        fit([linear()], STILL, lambda s, e: BATCHES, callbacks=Callbacks(on_epoch=stop, checkpoint=Checkpoint(tmp_path / "c", "k")))
    for _ in range(10):
        next(ticks)  # meanwhile nothing is trained
    history = fit([linear()], STILL, lambda s, e: BATCHES, callbacks=Callbacks(checkpoint=Checkpoint(tmp_path / "c", "k")))
    assert [(epoch.epoch, epoch.seconds, epoch.training_macs) for epoch in history] == [(1, 1.0, 450), (2, 2.0, 900)]


def test_one_network_whose_loss_is_not_finite_ends_the_training() -> None:
    broken = linear()
    broken.weight.data[0, 0] = torch.nan
    apart = Arm("apart", "apart", peer="original")  # neither looks at the other, so that one loss is finite
    for networks, arm in itertools.product(([linear(), broken], [broken, linear()]), ("mlft", apart)):
        with pytest.raises(StudyError, match="training: the loss is NaN or infinite in epoch 1 of 2 at learning_rate=1e-12"):
            fit(networks, STILL, lambda seed, epoch: BATCHES, arm)


def test_where_a_training_is_cut_off_says_what_is_saved(tmp_path: Path) -> None:
    left = [7]

    def tick() -> None:
        left[0] -= 1
        if not left[0]:
            raise OutOfTime("the time is over")

    with pytest.raises(OutOfTime, match="^the time is over, within epoch 3 of mine; 0 of its epochs are saved$"):
        fit(
            [linear()],
            Training(epochs=4, learning_rate=1e-12),
            lambda seed, epoch: BATCHES,
            callbacks=Callbacks(on_batch=tick, label="mine", checkpoint=Checkpoint(tmp_path / "c", "k")),
        )
