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
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.models import count_macs
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.losses import Losses, cross_entropy
from fcs_utils.training.optimiser import Optimiser, Training
from fcs_utils.training.passes import Mode, autocast, training_passes


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
    passes: Mode = "plain",
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
            now: dict[str, Any] = evaluate(networks, dataset, precision)
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
