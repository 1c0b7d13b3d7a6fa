"""What a training's history says, and what it asks for, by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.data.dataset import Batch
from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.training import checkpoint, loop, losses
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.loop import Callbacks, fit
from fcs_utils.training.losses import Losses, cross_entropy
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution

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


@pytest.mark.parametrize(("every", "saved"), [(1e9, 0), (0, 2)])
def test_where_a_training_is_cut_off_says_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, saved: int
) -> None:
    left = [7]
    monkeypatch.setattr(checkpoint, "EVERY", every)

    def tick() -> None:
        left[0] -= 1
        if not left[0]:
            raise OutOfTime("the time is over")

    with pytest.raises(OutOfTime, match=f"^the time is over, within epoch 3 of mine; {saved} of its epochs are saved$"):
        fit(
            [linear()],
            Training(epochs=4, learning_rate=1e-12),
            lambda seed, epoch: BATCHES,
            callbacks=Callbacks(on_batch=tick, label="mine", checkpoint=Checkpoint(tmp_path / "c", "k")),
        )


def test_an_epoch_with_more_batches_ends_at_the_first_one_too_many() -> None:
    asked: list[int] = []

    def batches(seed: int, epoch: int) -> Iterator[Batch]:
        for number in range(2 if epoch == 1 else 9):
            asked.append(epoch)
            yield BATCHES[number % 3]

    with pytest.raises(StudyError, match="training: epoch 2 has more or fewer batches than the 2 of epoch 1"):
        fit([linear()], STILL, batches)
    assert asked == [1, 1, 1, 1, 2, 2, 2]  # epoch 1 is counted first


def test_losses_see_float32_whatever_the_precision_of_the_passes() -> None:
    kinds: list[torch.dtype] = []

    def watched() -> Losses:
        def of_each(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
            kinds.extend(one.dtype for one in logits)
            return cross_entropy(logits, labels)

        return of_each

    in_turn = Arm("in turn", "in turn", loss=watched, peer="original").with_options(updates="sequential")
    for arm in (in_turn, Arm("taught", "taught", loss=watched, peer="original", frozen=True)):
        fit([linear(), linear()], STILL, lambda seed, epoch: BATCHES, arm, execution=Execution(precision="bf16"))
    assert {*kinds} == {torch.float32} and len(kinds) == 2 * 3 * (4 + 2)


def test_some_weights_may_stay_as_they_are_but_not_all_of_those_that_learn() -> None:
    network, teacher = linear(), linear()
    network.bias.requires_grad_(False)
    fit([network], Training(epochs=1, learning_rate=0.1), lambda seed, epoch: BATCHES)
    assert network.weight.any() and not network.bias.any()
    with pytest.raises(StudyError, match="those that learn parameters that require a gradient"):
        fit([linear().requires_grad_(False), teacher], STILL, lambda seed, epoch: BATCHES, "kd")


def test_with_sequential_updates_the_peer_is_taught_by_the_renewed_network() -> None:
    first, peer, student, once = linear(), linear(0.5), linear(0.5), Training(epochs=1, learning_rate=0.5)
    fit([first, peer], once, lambda seed, epoch: BATCHES[:1], ARMS["mlft"].with_options(updates="sequential"))
    fit([student, first], once, lambda seed, epoch: BATCHES[:1], "kd")
    assert torch.allclose(peer.weight, student.weight) and (peer.weight != 0.5).any() and first.weight.any()


def test_labels_on_the_host_are_looked_at_before_they_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "on_the_host", lambda labels: False)  # as where the network is on a GPU
    wrong = BATCHES[0][0], BATCHES[0][1] + 1
    with pytest.raises(StudyError, match="labels='1 to 4' is not allowed; allowed: 0 to 3"):
        fit([linear()], STILL, lambda seed, epoch: [BATCHES[0], wrong])
