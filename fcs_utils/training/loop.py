"""One training loop for references and for every arm of fine-tuning, with the same draws.

The arm says which networks take part, which of them learn, and how the loss is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from fcs_utils.config import Model, Seed, checked
from fcs_utils.errors import OutOfTime, StudyError, refuse
from fcs_utils.inputs import Inputs, first_of, moved
from fcs_utils.models import count_macs
from fcs_utils.running import run_network, seed_draws
from fcs_utils.training.arms import Arm, get_arm
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.fitting import InputBatch, check_fit, check_networks, checked_batch, first_look, in_training, layout_of
from fcs_utils.training.losses import check_logits, check_range, on_the_host
from fcs_utils.training.optimiser import Optimiser, Training
from fcs_utils.training.passes import Execution, Pass, autocast, check_mode, training_passes

Batches = Callable[[int, int], Iterable[InputBatch]]  # (seed, epoch), epochs from 1 on


@dataclass(frozen=True)
class Epoch:
    """State after one epoch. Accuracies are top-1 in percent; what was not evaluated is None."""

    epoch: int
    loss: float  # mean training loss of the first network, in nats
    validation: float | None
    validation_loss: float | None  # mean cross-entropy, in nats
    peer_validation: float | None
    peer_kl: float | None  # KL(peer || first) on the validation images, in nats
    training_macs: int  # of all networks, since the training began
    seconds: float  # since the training began


MEASURES = ("validation", "validation_loss", "peer_validation", "peer_kl")


@dataclass(frozen=True)
class Callbacks:
    """What happens beside a training; each part is optional.

    on_batch: called before each batch; may raise OutOfTime, and what the checkpoint does not hold is then lost.
    on_epoch: called after each epoch with its training MACs; when it raises OutOfTime, the checkpoint is saved first.
    evaluate: called with the networks after each epoch; returns measures of ``Epoch`` by name, as ``evaluate`` of
    ``fcs_utils.training.evaluate`` does. checkpoint: a training that was cut off goes on from it, bit for bit.
    label: names the training in errors.
    """

    on_batch: Callable[[], None] = lambda: None
    on_epoch: Callable[[int], None] = lambda macs: None
    evaluate: Callable[[Sequence[nn.Module]], Mapping[str, float | None]] = lambda networks: {}
    checkpoint: Checkpoint | None = None
    label: str = "training"


PLAIN, NOTHING_BESIDE = Execution(), Callbacks()


@checked
def fit(
    networks: Sequence[Model],
    training: InstanceOf[Training],
    batches: Batches,
    arm: InstanceOf[Arm] | str = "tft",
    *,
    seed: Seed = 0,
    execution: InstanceOf[Execution] = PLAIN,
    callbacks: InstanceOf[Callbacks] = NOTHING_BESIDE,
) -> list[Epoch]:
    """Train networks in place by an arm of fine-tuning; returns one ``Epoch`` for each epoch.

    networks: the network under study, then its peer where the arm has one; all on one device.
    training: epochs, peak learning rate, momentum and weight decay of SGD under a one-cycle schedule.
    batches: ``(seed, epoch) -> iterable of (images, labels)`` with images (B, C, ...) float and labels (B,) int64, or all inputs
    of the networks in place of images, as for ``make_plan``; epochs count from 1 and must have equally many batches. Batches are
    moved to the networks' device. An iterable without a length is gone through once before training, to count its batches.
    arm: one of tft, mlft, twin, kd, scratch, or an ``Arm``. seed: of the batches and of dropout.
    execution: precision and mode of passes. callbacks: evaluation, checkpoint, progress.

    The last epoch counts; no best epoch is picked. A frozen peer stays in eval mode. With updates ``sequential`` the
    first network moves before the peer's loss is made, from its renewed predictions, as in Zhang et al. (2018); by
    default both losses come from the same forward passes.

    Raises StudyError, before anything is trained, for an unknown arm, networks that do not fit the arm or one another, an
    execution mode that the device lacks, and a first batch that the networks do not take; later for batches that are not as
    the first, epochs of unequal length, and a loss that is NaN or infinite.

    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from fcs_utils import build_model, fit
    >>> from fcs_utils.training.optimiser import Training
    >>> loader = DataLoader(TensorDataset(torch.randn(64, 3, 32, 32), torch.arange(64) % 10), batch_size=32, shuffle=True)
    >>> compact, original = (build_model("resnet20", num_classes=10, width=width) for width in (0.25, 0.5))
    >>> schedule = Training(epochs=2, learning_rate=0.01)
    >>> history = fit([compact, original], schedule, lambda seed, epoch: loader, "mlft")
    >>> len(history), history[-1].loss > 0
    (2, True)
    """
    with in_training(), closing(fit_in_steps(networks, training, batches, arm, seed, execution, callbacks)) as steps:
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value


def fit_in_steps(
    networks: Sequence[nn.Module], training: Training, batches: Batches, arm: Arm | str, seed: int, how: Execution, also: Callbacks
) -> Generator[None, None, list[Epoch]]:
    """The training of ``fit``, with a pause before each batch, in which a program can answer. It raises what ``fit`` does.

    Dropout draws from torch's own generators: who draws from them in a pause must put their state back.
    """
    arm = get_arm(arm) if isinstance(arm, str) else arm
    check_networks(networks, arm)
    device = next(networks[0].parameters()).device
    check_mode(how.passes, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_draws(seed, device)
        sample, labels, steps = first_look(batches(seed, 1))
        sample = moved(sample, device)
        classes = check_fit(networks, arm.trained, sample, labels)
        rates = [training.learning_rate, arm.settings.get("peer_learning_rate") or training.learning_rate]
        count, learning = training.epochs * steps, zip(networks[: arm.trained], rates, strict=False)
        optimisers = [Optimiser(one, training, rate, count, layout_of(one, sample)) for one, rate in learning]
        macs = arm.macs_per_image([count_macs(network, first_of(sample)) for network in networks])
        with training_passes(networks, arm.trained, sample, how) as passes:
            seed_draws(seed, device)  # for dropout, where a network has it
            update = _Update(arm, passes, optimisers, how)
            run = _Run(networks, optimisers, update, steps, macs, classes, also)
            return (yield from run.train(training, lambda epoch: batches(seed, epoch)))


@dataclass(frozen=True)
class _Update:
    """One step of every network that learns."""

    arm: Arm
    passes: Sequence[Pass]
    optimisers: Sequence[Optimiser]
    execution: Execution

    def __call__(self, images: Inputs, labels: Tensor) -> Tensor:
        """The losses (trained,) of a batch, detached."""
        losses, trained, device = self.arm.losses(), self.arm.trained, labels.device
        with autocast(device, self.execution.precision):
            logits = [run_network(forward, images).float() for forward in self.passes[:trained]]
            with torch.no_grad():
                logits += [run_network(forward, images).float() for forward in self.passes[trained:]]
        check_logits(logits, labels)
        found = losses(logits, labels)[:trained]
        if self.arm.sequential:
            self.optimisers[0].update(found[0])
            with autocast(device, self.execution.precision), torch.no_grad():
                logits[0] = run_network(self.passes[0], images).float()
            found[1] = losses(logits, labels)[1]
            self.optimisers[1].update(found[1])
        else:  # targets are detached: no gradient crosses over
            for optimiser, loss in zip(self.optimisers, found, strict=True):
                optimiser.update(loss)
        return torch.stack(found).detach()


class _Run:
    """A training in progress: its networks, and its history so far."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimisers: Sequence[Optimiser],
        update: _Update,
        steps: int,
        macs: int,
        classes: int,
        callbacks: Callbacks,
    ) -> None:
        self.networks, self.optimisers, self.update = networks, optimisers, update
        self.steps, self.macs, self.classes, self.callbacks = steps, macs, classes, callbacks
        names, kept = [one.name for one in fields(Epoch)], callbacks.checkpoint
        self.history = [Epoch(**entry) for entry in (kept.restore(networks, optimisers, names) if kept else [])]
        self.saved = len(self.history)

    def train(self, training: Training, batches: Callable[[int], Iterable[InputBatch]]) -> Generator[None, None, list[Epoch]]:
        last = self.history[-1] if self.history else None
        started, spent = time.perf_counter() - (last.seconds if last else 0.0), last.training_macs if last else 0
        for epoch in range(len(self.history) + 1, training.epochs + 1):
            losses, images, strange = yield from self._epoch(epoch, batches(epoch))
            if not losses.isfinite().all():
                if strange:
                    raise StudyError(f"labels of epoch {epoch} must be 0 to {self.classes - 1}, the classes of the logits")
                raise StudyError(
                    f"{self.callbacks.label}: the loss is NaN or infinite in epoch {epoch} of {training.epochs} at "
                    f"learning_rate={training.learning_rate}; use a smaller one"
                )
            spent += self.macs * images
            measures = self._evaluate()
            seconds = time.perf_counter() - started
            self.history.append(Epoch(epoch, losses[0].item() / self.steps, **measures, training_macs=spent, seconds=seconds))
            try:
                self.callbacks.on_epoch(self.macs * images)
            except OutOfTime:
                self._save()
                raise
            if epoch < training.epochs and self.callbacks.checkpoint and self.callbacks.checkpoint.due:
                self._save()
        return self.history

    def _epoch(self, epoch: int, batches: Iterable[InputBatch]) -> Generator[None, None, tuple[Tensor, int, Tensor]]:
        """Losses (trained,), summed over an epoch's batches, how many images these had, whether a label has no class: then NaN."""
        trained = len(self.optimisers)
        for number, network in enumerate(self.networks):
            network.train(number < trained)
        device = next(self.networks[0].parameters()).device
        total, done, seen = torch.zeros(trained, device=device), 0, 0  # summed on the device: no wait for it in an epoch
        strange = torch.zeros((), dtype=torch.bool, device=device)
        for batch in batches:
            yield
            images, labels = checked_batch(batch, f"batch {done + 1} of epoch {epoch}")
            try:
                self.callbacks.on_batch()
            except OutOfTime as error:
                where = f"within epoch {epoch} of {self.callbacks.label}; {self.saved} of its epochs are saved"
                raise OutOfTime(f"{error}, {where}") from error
            if done == self.steps:
                break
            if on_the_host(labels):
                check_range(labels, self.classes)
            else:  # a label without a class would end the GPU's work for the whole process
                labels = labels.to(device)
                strange |= (labels < 0).any() | (labels >= self.classes).any()
                labels = labels.clamp(0, self.classes - 1)
            total += self.update(moved(images, device), labels.to(device))
            done, seen = done + 1, seen + len(labels)
        else:
            if done == self.steps:
                return total.masked_fill(strange, torch.nan), seen, strange
        raise StudyError(f"{self.callbacks.label}: epoch {epoch} has more or fewer batches than the {self.steps} of epoch 1")

    def _evaluate(self) -> dict[str, Any]:
        found = self.callbacks.evaluate(self.networks)
        if unknown := [name for name in found if name not in MEASURES]:
            raise refuse("name of a measure that evaluate returned", unknown[0], ", ".join(MEASURES))
        return {**dict.fromkeys(MEASURES), **found}

    def _save(self) -> None:
        if self.callbacks.checkpoint:
            self.saved = len(self.history)
            self.callbacks.checkpoint.save(self.networks, self.optimisers, [asdict(entry) for entry in self.history])
