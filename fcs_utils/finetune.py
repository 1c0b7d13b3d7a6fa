"""One training loop. The method is how the loss is made, and nothing else.

References, TFT and MLFT run the same code with the same draws; MLFT trains a second network beside the
first. Updates are simultaneous: both networks' losses come from the same forward passes, before either
network moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcs_utils.config import Training
from fcs_utils.data import Dataset, Split
from fcs_utils.errors import StudyError
from fcs_utils.measure import count_macs

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
    """State after one epoch; accuracies in percent, training MACs cumulative over all trained networks."""

    epoch: int
    loss: float  # mean training loss of the first network
    validation: float
    peer_validation: float | None
    training_macs: int
    seconds: float


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Dataset, split: Split, precision: str = "fp32", batch_size: int = 500) -> float:
    """Top-1 in percent, in eval mode. The mode is put back."""
    training = model.training
    model.eval()
    right = torch.zeros((), device=split.labels.device)
    for images, labels in zip(split.images.split(batch_size), split.labels.split(batch_size), strict=True):
        with autocast(images.device, precision):
            right += (model(dataset.normalise(images)).argmax(1) == labels).sum()
    model.train(training)
    return 100 * right.item() / len(split)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def fit(
    networks: Sequence[nn.Module],
    dataset: Dataset,
    training: Training,
    *,
    seed: int,
    losses: Losses = cross_entropy,
    precision: str = "fp32",
    label: str = "training",
    on_epoch: Callable[[int], None] = lambda macs: None,
) -> list[Epoch]:
    """Train the networks in place, the first being the one that is studied; returns one entry per epoch.

    Draws depend on the seed alone: shuffling and augmentation are the same for every method. The last epoch
    counts, no best epoch is picked. ``on_epoch`` receives the training MACs of each epoch, for progress bars.

    Raises StudyError, naming run, epoch and learning rate, when a loss is NaN or infinite.
    """
    device = dataset.train.images.device
    generator = torch.Generator().manual_seed(seed)
    example = dataset.normalise(dataset.train.images[:1])
    # Backward is two more multiply-adds for each of the forward pass: one for inputs, one for weights.
    macs_per_image = 3 * sum(count_macs(network, example) for network in networks)
    batches = max(1, len(dataset.train) // training.batch_size)
    seen = batches * min(training.batch_size, len(dataset.train))
    optimisers, schedules = [], []
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.SGD(network.parameters(), training.learning_rate, training.momentum,
                                    weight_decay=training.weight_decay, nesterov=training.momentum > 0)  # fmt: skip
        optimisers.append(optimiser)
        # Total steps of 1 leave OneCycle no room between its phases.
        schedules.append(torch.optim.lr_scheduler.OneCycleLR(
            optimiser, training.learning_rate, total_steps=max(2, training.epochs * batches), cycle_momentum=False,
        ))  # fmt: skip
    history: list[Epoch] = []
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # for dropout, where a network has it
        for epoch in range(1, training.epochs + 1):
            for network in networks:
                network.train()
            total = torch.zeros(len(networks), device=device)  # summed on the device: no wait for it in an epoch
            for images, labels in dataset.epoch(training.batch_size, generator):
                with autocast(device, precision):
                    logits = [network(images) for network in networks]
                batch_losses = losses([one.float() for one in logits], labels)
                for optimiser in optimisers:
                    optimiser.zero_grad()
                torch.stack(batch_losses).sum().backward()  # targets are detached: no gradient crosses over
                for optimiser, schedule in zip(optimisers, schedules, strict=True):
                    optimiser.step()
                    schedule.step()
                total += torch.stack(batch_losses).detach()
            if not total.isfinite().all():
                raise StudyError(f"{label}: the loss is NaN or infinite in epoch {epoch} of {training.epochs} at "
                                 f"learning_rate={training.learning_rate}; use a smaller one")  # fmt: skip
            validation = [accuracy(network, dataset, dataset.validation, precision) for network in networks]
            history.append(Epoch(
                epoch, total[0].item() / batches, validation[0], validation[1] if len(networks) > 1 else None,
                macs_per_image * seen * epoch, time.perf_counter() - started,
            ))  # fmt: skip
            on_epoch(macs_per_image * seen)
    return history
