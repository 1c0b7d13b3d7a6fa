"""One training loop. The method is how the loss is made and who trains, and nothing else.

References, TFT, MLFT, KD and training from scratch run the same code with the same draws. MLFT trains a second
network, the peer, beside the first; KD is the same with a peer that is frozen in eval mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.allocator import keep_freed_memory
from fcs_utils.checkpoint import Checkpoint
from fcs_utils.config import Training
from fcs_utils.data import Dataset, Split
from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.measure import count_macs
from fcs_utils.passes import Way, autocast, training_passes
from fcs_utils.structure import evaluating

# Logits of every network -> one loss per network.
Losses = Callable[[Sequence[Tensor], Tensor], list[Tensor]]


def cross_entropy(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
    """(M10) TFT: logits (B, K) of one network, labels (B,) -> its mean cross-entropy."""
    return [F.cross_entropy(one, labels) for one in logits]


def distance(own: Tensor, peer: Tensor, temperature: float) -> Tensor:
    """T^2 KL(peer || own) of softened predictions, mean over the batch; the peer is a fixed target.

    T^2 keeps the gradient's size when T changes (Hinton et al. 2015).
    """
    target = F.log_softmax(peer.detach() / temperature, 1)
    return temperature**2 * F.kl_div(F.log_softmax(own / temperature, 1), target, reduction="batchmean", log_target=True)


def mutual(temperature: float = 1.0, strength: float = 1.0) -> Losses:
    """(M11) MLFT: each network learns from the labels and from the other (Zhang et al. 2018)."""

    def losses(logits: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        compact, peer = logits
        return [
            F.cross_entropy(compact, labels) + strength * distance(compact, peer, temperature),
            F.cross_entropy(peer, labels) + strength * distance(peer, compact, temperature),
        ]

    return losses


@dataclass(frozen=True)
class Epoch:
    """State after one epoch; accuracies in percent, training MACs cumulative over all networks."""

    epoch: int
    loss: float  # mean training loss of the first network
    validation: float
    validation_loss: float  # mean cross-entropy in nats
    peer_validation: float | None
    peer_kl: float | None  # KL(peer || first) on the validation split, in nats
    training_macs: int
    seconds: float


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int = 500) -> Tensor:
    """Logits (N, K) float32, in eval mode. The mode is put back."""
    with evaluating(model), autocast(split.images.device, precision):
        return torch.cat([model(dataset.normalise(images)).float() for images in split.images.split(batch_size)])


def accuracy(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int = 500) -> float:
    """Top-1 in percent, in eval mode. The mode is put back."""
    return top1(predict(model, dataset, split, precision, batch_size), split.labels)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent: logits (N, K), labels (N,)."""
    return 100 * (logits.argmax(1) == labels).sum().item() / len(labels)


def standing(networks: Sequence[nn.Module], dataset: Dataset, precision: str) -> dict[str, float | None]:
    """Validation accuracy and loss of one or two networks, and how far the second one's predictions are from the first's."""
    logits = [predict(network, dataset, dataset.validation, precision) for network in networks]
    peer = logits[1] if len(logits) > 1 else None
    return {
        "validation": top1(logits[0], dataset.validation.labels),
        "validation_loss": F.cross_entropy(logits[0], dataset.validation.labels).item(),
        "peer_validation": None if peer is None else top1(peer, dataset.validation.labels),
        "peer_kl": None if peer is None else distance(logits[0], peer, 1.0).item(),
    }


def fit(
    networks: Sequence[nn.Module],
    dataset: Dataset,
    training: Training,
    *,
    seed: int,
    losses: Losses = cross_entropy,
    trained: int | None = None,
    peer_learning_rate: float | None = None,
    sequential: bool = False,
    precision: str = "fp32",
    passes: Way = "plain",
    label: str = "training",
    on_epoch: Callable[[int], None] = lambda macs: None,
    on_batch: Callable[[], None] = lambda: None,
    checkpoint: Checkpoint | None = None,
) -> list[Epoch]:
    """Train the networks in place, the first being the one that is studied; returns one entry per epoch.

    trained: how many train, from the first on (default all); the others are frozen in eval mode.
    peer_learning_rate: the second network's, default the same. sequential: the first network's update comes
    before the second one's losses are made, from its renewed predictions, as in Zhang et al.; the default is
    simultaneous, all losses from the same forward passes. passes: plain, through torch.compile, or as CUDA graphs.

    Draws depend on the seed alone: shuffling and augmentation are the same for every method. The last epoch
    counts, no best epoch is picked. ``on_epoch`` receives the training MACs of each epoch, for progress bars;
    ``on_batch`` is called before each batch and may raise OutOfTime: what the last checkpoint does not hold starts over.
    checkpoint: where a training that was cut off goes on, bit for bit.

    Raises StudyError, naming run, epoch and learning rate, when a loss is NaN or infinite.
    """
    keep_freed_memory()
    device = dataset.train.images.device
    generator = torch.Generator().manual_seed(seed)
    trained = len(networks) if trained is None else trained
    again = 1 if sequential and trained > 1 else 0
    # Backward is two more multiply-adds for each of the forward pass: one for inputs, one for weights.
    macs = [count_macs(network, dataset.normalise(dataset.train.images[:1])) for network in networks]
    macs_per_image = 3 * sum(macs[:trained]) + sum(macs[trained:]) + again * macs[0]
    batches = max(1, len(dataset.train) // training.batch_size)
    seen = batches * min(training.batch_size, len(dataset.train))
    rates = [training.learning_rate, peer_learning_rate or training.learning_rate]
    optimisers = [Optimiser(network, training, rate, batches) for network, rate in zip(networks[:trained], rates, strict=False)]
    sample = dataset.normalise(dataset.train.images[: training.batch_size])

    saved = 0

    def step(images: Tensor, labels: Tensor) -> Tensor:
        """One batch; returns the losses (trained,), detached."""
        with autocast(device, precision):
            logits = [forward(images).float() for forward in forwards[:trained]]
            with torch.no_grad():
                logits += [forward(images).float() for forward in forwards[trained:]]
        found = losses(logits, labels)[:trained]
        if again:
            optimisers[0].update(found[0])
            with autocast(device, precision), torch.no_grad():
                logits[0] = forwards[0](images).float()
            found[1] = losses(logits, labels)[1]
            optimisers[1].update(found[1])
        else:  # targets are detached: no gradient crosses over
            for optimiser, loss in zip(optimisers, found, strict=True):
                optimiser.update(loss)
        return torch.stack(found).detach()

    def keep() -> None:
        nonlocal saved
        if checkpoint:
            saved = len(history)
            checkpoint.save(networks, optimisers, generator, [asdict(entry) for entry in history])

    with (
        training_passes(networks, trained, passes, sample, precision) as forwards,
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(seed)  # for dropout, where a network has it
        history = [Epoch(**row) for row in checkpoint.restore(networks, optimisers, generator)] if checkpoint else []
        saved = len(history)
        started = time.perf_counter() - (history[-1].seconds if history else 0.0)
        for epoch in range(len(history) + 1, training.epochs + 1):
            for number, network in enumerate(networks):
                network.train(number < trained)
            total = torch.zeros(trained, device=device)  # summed on the device: no wait for it in an epoch
            for images, labels in dataset.epoch(training.batch_size, generator):
                try:
                    on_batch()
                except OutOfTime as error:
                    raise OutOfTime(f"{error}, within epoch {epoch} of {label}; {saved} of its epochs are saved") from error
                total += step(images, labels)
            if not total.isfinite().all():
                raise StudyError(f"{label}: the loss is NaN or infinite in epoch {epoch} of {training.epochs} at "
                                 f"learning_rate={training.learning_rate}; use a smaller one")  # fmt: skip
            now: dict[str, Any] = standing(networks, dataset, precision)
            history.append(Epoch(epoch, total[0].item() / batches, **now, training_macs=macs_per_image * seen * epoch,
                                 seconds=time.perf_counter() - started))  # fmt: skip
            try:
                on_epoch(macs_per_image * seen)
            except OutOfTime:
                keep()
                raise
            if epoch < training.epochs and checkpoint and checkpoint.due:
                keep()
    return history


class Optimiser:
    """SGD with momentum under a one-cycle learning rate."""

    def __init__(self, network: nn.Module, training: Training, rate: float, batches: int) -> None:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sgd = torch.optim.SGD(network.parameters(), rate, training.momentum, weight_decay=training.weight_decay,
                                   nesterov=training.momentum > 0,
                                   fused=next(network.parameters()).device.type == "cuda")  # fmt: skip
        # Total steps of 1 leave OneCycle no room between its phases.
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(
            self.sgd, rate, total_steps=max(2, training.epochs * batches), cycle_momentum=False
        )

    def update(self, loss: Tensor) -> None:
        """One step down a loss."""
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        self.cycle.step()
