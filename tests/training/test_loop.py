"""The losses against hand-computed values, and the one loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError
from fcs_utils.models import count_macs
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.evaluate import accuracy, evaluate, predict
from fcs_utils.training.loop import PLAIN, Callbacks, Epoch, fit, fit_in_steps
from fcs_utils.training.losses import cross_entropy, distance, mutual
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution

LN = math.log


class Tiny(nn.Module):
    """Enough of a network for the loop: 8x8 means, one convolution, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.avg_pool2d(self.bn(self.conv(x)).relu(), 8).flatten(1))


def tiny(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny()


def train(
    networks: list[Any],
    data: Dataset,
    training: Training,
    arm: Arm | str = "tft",
    seed: int = 0,
    execution: Execution = PLAIN,
    **beside: Any,
) -> list[Epoch]:
    """``fit`` on a data set's own batches, evaluated on its validation split after each epoch."""
    precision = execution.precision
    callbacks = Callbacks(evaluate=lambda nets: evaluate(nets, data.in_order(data.validation), precision), **beside)
    return fit(networks, training, data.batches(training.batch_size), arm, seed=seed, execution=execution, callbacks=callbacks)


def mlft(**options: Any) -> Arm:
    return ARMS["mlft"].with_options(**options)


def test_tft_is_the_mean_cross_entropy() -> None:
    # Softmax of (ln 3, 0) is (3/4, 1/4): losses -ln 3/4 and -ln 1/4.
    logits = torch.tensor([[LN(3), 0.0], [LN(3), 0.0]])
    (loss,) = cross_entropy([logits], torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(-(LN(3 / 4) + LN(1 / 4)) / 2, rel=1e-6)


def test_distance_is_the_hand_computed_divergence() -> None:
    own, peer = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN(3), 0.0]])
    # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2.
    assert distance(own, peer, 1.0).item() == pytest.approx(0.75 * LN(1.5) + 0.25 * LN(0.5), rel=1e-5)
    # T = 2 halves the logits: the peer is (r, 1) / (1 + r) with r = sqrt 3; T^2 = 4 in front.
    r = math.sqrt(3)
    p, q = r / (1 + r), 1 / (1 + r)
    assert distance(own, peer, 2.0).item() == pytest.approx(4 * (p * LN(2 * p) + q * LN(2 * q)), rel=1e-5)


def test_mlft_adds_the_distance_to_each_side() -> None:
    compact, peer, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([[LN(3), 0.0]]), torch.tensor([0])
    first, second = mutual(temperature=1.0, strength=0.5)([compact, peer], labels)
    forward = 0.75 * LN(1.5) + 0.25 * LN(0.5)  # KL(peer || compact)
    backward = 0.5 * LN(2 / 3) + 0.5 * LN(2)  # KL(compact || peer)
    assert first.item() == pytest.approx(LN(2) + 0.5 * forward, rel=1e-5)
    assert second.item() == pytest.approx(-LN(3 / 4) + 0.5 * backward, rel=1e-5)
    first, second = mutual()([compact, peer], labels)  # by default the distance counts once, at T = 1
    assert first.item() == pytest.approx(LN(2) + forward, rel=1e-5)
    assert second.item() == pytest.approx(-LN(3 / 4) + backward, rel=1e-5)


def test_every_network_answers_for_the_images_and_classes_of_the_labels() -> None:
    with pytest.raises(StudyError, match="labels="):
        mutual()([torch.zeros(2, 3), torch.zeros(1, 3)], torch.tensor([0, 1]))
    with pytest.raises(StudyError, match="labels='0 to 3' is not allowed; allowed: 0 to 2"):
        mutual()([torch.zeros(2, 3), torch.zeros(2, 3)], torch.tensor([0, 3]))


def test_gradients_do_not_cross_between_the_networks() -> None:
    compact = torch.tensor([[0.3, -0.2]], requires_grad=True)
    peer = torch.tensor([[1.0, 0.5]], requires_grad=True)
    first, second = mutual()([compact, peer], torch.tensor([1]))
    assert torch.autograd.grad(first, peer, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(second, compact, allow_unused=True) == (None,)


QUICK = Training(epochs=2, learning_rate=0.05, batch_size=128)


def test_mlft_with_strength_zero_is_tft_bit_for_bit(digits: Dataset) -> None:
    alone, beside, peer = tiny(), tiny(), tiny(1)
    train([alone], digits, QUICK, seed=3)
    train([beside, peer], digits, QUICK, mlft(strength=0.0), seed=3)
    for name, tensor in alone.state_dict().items():
        assert tensor.equal(beside.state_dict()[name]), name


def test_kd_is_mutual_learning_with_a_frozen_peer(digits: Dataset) -> None:
    """Against a literal loop: teacher in eval mode and without gradients, one optimiser."""
    compact, teacher, own = tiny(), tiny(1), tiny()
    before = copy.deepcopy(teacher.state_dict())
    train([compact, teacher], digits, QUICK, ARMS["kd"].with_options(temperature=2.0, strength=0.7), seed=3)
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())  # statistics included
    teacher.eval()
    sgd = torch.optim.SGD(own.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.05, total_steps=14, cycle_momentum=False)
    for epoch in (1, 2):
        own.train()
        for images, labels in digits.batches(128)(3, epoch):
            with torch.no_grad():
                soft = (teacher(images) / 2.0).softmax(1)
            logits = own(images)
            kl = (soft * (soft.log() - (logits / 2.0).log_softmax(1))).sum(1).mean()
            sgd.zero_grad()
            (nn.functional.cross_entropy(logits, labels) + 0.7 * 4.0 * kl).backward()
            sgd.step()
            cycle.step()
    for name, tensor in compact.state_dict().items():
        torch.testing.assert_close(tensor, own.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_frozen_peer_costs_one_forward_pass(digits: Dataset) -> None:
    macs = count_macs(tiny(), digits.normalise(digits.train.images[:1]))
    once = QUICK.model_copy(update={"epochs": 1})
    for arm, share in ((ARMS["kd"], 4), (ARMS["mlft"], 6), (mlft(updates="sequential"), 7)):
        history = train([tiny(), tiny(1)], digits, once, arm)
        assert history[0].training_macs == share * macs * 896


def test_sequential_updates_change_the_peer_and_not_the_first_step_of_the_compact_network(digits: Dataset) -> None:
    results = {}
    for updates in ("simultaneous", "sequential"):
        compact, peer = tiny(), tiny(1)
        one_batch = Training(epochs=1, learning_rate=0.05, batch_size=1000)
        train([compact, peer], digits, one_batch, mlft(updates=updates))
        results[updates] = compact.head.weight, peer.head.weight
    both, one = results["simultaneous"], results["sequential"]
    assert one[0].equal(both[0]) and not one[1].equal(both[1])


def test_the_peer_may_learn_at_its_own_rate(digits: Dataset) -> None:
    compact, peer = tiny(), tiny(1)
    start = copy.deepcopy(peer)
    train([compact, peer], digits, QUICK, mlft(strength=0.0, peer_learning_rate=1e-9))
    torch.testing.assert_close(peer.head.weight, start.head.weight, rtol=1e-5, atol=1e-6)
    alone = tiny()
    train([alone], digits, QUICK)
    assert compact.head.weight.equal(alone.head.weight)


def test_history_tells_how_far_the_peers_predictions_are(digits: Dataset) -> None:
    compact, peer = tiny(), tiny(1)
    before = evaluate([compact, peer], digits.in_order(digits.validation))
    history = train([compact, peer], digits, QUICK.model_copy(update={"epochs": 6}), "mlft")
    assert history[-1].peer_kl < before["peer_kl"]
    logits, _ = predict([compact, peer], digits.in_order(digits.validation))
    want = distance(logits[0], logits[1], 1.0).item()
    assert history[-1].peer_kl == pytest.approx(want, rel=1e-5)
    assert evaluate([compact], digits.in_order(digits.validation))["peer_kl"] is None


def test_equal_seeds_give_equal_networks_and_others_do_not(digits: Dataset) -> None:
    networks = [tiny(), tiny(), tiny()]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        train([network], digits, QUICK, seed=seed)
    weights = [network.head.weight for network in networks]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


def test_training_learns_and_counts_its_compute(digits: Dataset) -> None:
    network, peer = tiny(), tiny(1)
    before = accuracy(network, digits, digits.validation)
    history = train([network, peer], digits, QUICK.model_copy(update={"epochs": 4}), "mlft")
    assert history[-1].validation > before + 20
    assert history[-1].validation == accuracy(network, digits, digits.validation)
    assert history[-1].peer_validation == accuracy(peer, digits, digits.validation)
    example = digits.normalise(digits.train.images[:1])
    # 1,000 images in batches of 128: seven full ones, 896 images; two networks; backward costs twice forward.
    one_epoch = 3 * 2 * count_macs(network, example) * 896
    assert [epoch.training_macs for epoch in history] == [one_epoch * e for e in (1, 2, 3, 4)]


def test_the_peer_learns_too_in_mlft(digits: Dataset) -> None:
    network, peer = tiny(), tiny(1)
    start = copy.deepcopy(peer.state_dict())
    train([network, peer], digits, QUICK.model_copy(update={"epochs": 1}), "mlft")
    assert not peer.head.weight.equal(start["head.weight"])


def test_momentum_of_batchnorm_survives_training(digits: Dataset) -> None:
    network = tiny()
    train([network], digits, QUICK.model_copy(update={"epochs": 1}))
    assert network.bn.momentum == 0.1


def test_a_loss_that_is_not_finite_names_run_epoch_and_learning_rate(digits: Dataset) -> None:
    network = tiny()
    network.head.weight.data[0, 0] = torch.nan
    with pytest.raises(StudyError, match=r"tiny run: .*epoch 1 of 2 at learning_rate=0.05"):
        train([network], digits, QUICK, label="tiny run")


def test_accuracy_is_exact_and_keeps_the_mode(digits: Dataset) -> None:
    class Oracle(nn.Module):
        """Predicts class 3 for every image."""

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 3), 10).float()

    oracle = Oracle().train()
    share = 100 * (digits.test.labels == 3).double().mean().item()
    assert accuracy(oracle, digits, digits.test, batch_size=77) == pytest.approx(share)
    assert oracle.training


def test_a_training_pauses_before_each_batch_and_ends_where_it_is_closed(digits: Dataset) -> None:
    training, batches = Training(epochs=2, learning_rate=0.05, batch_size=250), digits.batches(250)
    network, other = tiny(), tiny()
    before = torch.get_rng_state()
    steps = fit_in_steps([network], training, batches, "tft", 0, PLAIN, Callbacks())
    assert sum(1 for _ in steps) == 2 * len(batches(0, 1)) == 8
    fit([other], training, batches)
    assert all(one.equal(two) for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
    steps = fit_in_steps([network], training, batches, "tft", 0, PLAIN, Callbacks())
    next(steps)
    steps.close()
    assert torch.get_rng_state().equal(before)
    assert all(one.equal(two) for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
