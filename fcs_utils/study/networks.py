"""The workbench of a study: its data set, the networks trained on it, their statistics, and what pruning makes of them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fcs_utils.builders import code_of_network
from fcs_utils.data.dataset import Dataset, load_dataset
from fcs_utils.errors import refuse
from fcs_utils.machine import some_threads, steady_batch
from fcs_utils.models import build_seeded
from fcs_utils.pruning.criteria import CRITERIA, code_of, importance, needs, ranking_of
from fcs_utils.pruning.layers import Scope
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.pruners import pruner_plan
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.sums import Extra, Reading, Where
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.study.guards import Deadline, file_lock, telling
from fcs_utils.study.records import Store, read_record
from fcs_utils.study.runs import Pruning, Reference, Run, describe
from fcs_utils.study.weights import keep_weights, load_given, load_weights
from fcs_utils.training.arms import ARMS, Arm
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.evaluate import evaluate
from fcs_utils.training.loop import Callbacks, Epoch, fit
from fcs_utils.training.optimiser import Training
from fcs_utils.training.passes import Execution, Mode

Result = dict[str, Any]
OnMacs = Callable[[int], None]


class Trained(NamedTuple):
    """A reference network, trained or given, in eval mode, with the checksum of its weights.

    again: whether these are not the weights behind its record, but were trained again on another machine.
    """

    network: nn.Module
    sha256: str
    again: bool


class Bench:
    """One data set on one device and its networks; keeps the last network and few statistics. deadline: when work here must end."""

    def __init__(self, store: Store, dataset: str, data: str | Path | None, device: torch.device, passes: Mode = "plain") -> None:
        self.store, self.device, self.passes = store, device, passes
        self.deadline = Deadline()
        self._source = (dataset, data)
        self.tell: Callable[[str], None] = lambda words: None  # hears how far the training of a reference has come
        self.load = lru_cache(maxsize=1)(self._load_or_train)
        self._statistics = lru_cache(maxsize=4)(self._collect)

    @cached_property
    def dataset(self) -> Dataset:
        """Loaded at first use. Raises StudyError when it cannot be found or read."""
        return load_dataset(*self._source, device=self.device)

    @property
    def example(self) -> Tensor:
        """One image (1, C, H, W), for counting only: it is not normalised for any reference."""
        return self.dataset.normalise(self.dataset.train.images[:1])

    def data(self, reference: Reference) -> Dataset:
        """The data set as a reference's networks see it: a given one brings its own mean and standard deviation.

        Whatever a network of this reference sees comes from here. Raises StudyError where these do not fit the images.
        """
        if reference.normalisation is None:
            return self.dataset
        own = [torch.tensor(values, device=self.device) * 255 for values in reference.normalisation]
        if len(own[0]) != self.dataset.channels:
            raise refuse("mean", own[0].tolist(), f"{self.dataset.channels} numbers: {self.dataset.name} has so many channels")
        return replace(self.dataset, mean=own[0], std=own[1])

    def calibration_images(self, reference: Reference, count: int, seed: int | None = None) -> Tensor:
        """Calibration images (N, C, H, W), normalised for a reference; the seed that draws them is by default the reference's."""
        data = self.data(reference)
        return data.normalise(data.calibration(count, reference.seed if seed is None else seed).images)

    def untrained(self, reference: Reference, images: Tensor | None = None) -> nn.Module:
        """The reference network as its seed made it, before training.

        images: normalised images that its BatchNorm sees. Without them it is the identity, a difference besides training.
        """
        if (code := code_of_network(reference.network)) != reference.code:
            raise refuse(f"code of network {reference.network}", reference.code, f"{code}: its module was edited; start again")
        network = build_seeded(
            reference.seed,
            reference.network,
            num_classes=len(self.dataset.classes),
            width=reference.width,
            in_channels=self.dataset.channels,
            shortcut=reference.shortcut,
        )
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if images is not None:
            recalibrate(network, images, steady_batch(images))
        return network

    @contextmanager
    def in_hand(self, run: Run, *, wait: bool = True) -> Iterator[None]:
        """Hold a run's lock while this process does it; once it is done, the checkpoint of its training is removed.

        Raises OutOfTime when the deadline comes before the lock is free, Elsewhere when ``wait`` is false and it is taken.
        """
        with file_lock(self.store.lock(run.identity), describe(run), self.deadline, wait=wait):
            yield
            self.store.unfinished(run.identity).unlink(missing_ok=True)

    def trained(self, reference: Reference) -> nn.Module:
        """The trained or given reference, in eval mode; shared, so copy before changing it.

        Weights that are not on this machine, and weights that are not this reference's, are trained again, with a warning
        where they then differ from those behind the record. Raises OutOfTime when the deadline comes first.
        """
        return self.load(reference).network

    def _load_or_train(self, reference: Reference) -> Trained:
        run, network = Run(reference=reference), self.untrained(reference)
        if reference.weights:
            return Trained(network.eval(), load_given(reference, network, self._source[1]), again=False)
        record = read_record(self.store, run)
        recorded = record["result"]["weights_sha256"] if record else None
        if (found := load_weights(self.store, run, network, recorded)) is None:
            if record:
                print(f"weights of {describe(run)} are not on this machine: training them again", file=sys.stderr)
            with self.in_hand(run):
                if (found := load_weights(self.store, run, network, recorded)) is None:  # no other process has trained it meanwhile
                    with some_threads(1):  # as it was behind the record
                        _, found = self.train_reference(run, network, self.deadline.watch(lambda macs: None))
            if record and found != recorded:
                warnings.warn(
                    f"{describe(run)}, trained again here, is not bit-equal to the one behind the records (made on "
                    f"{record['provenance']['device']}); runs on it say so and are not compared with those on the other; "
                    "--fresh repeats every run here",
                    stacklevel=4,
                )
        return Trained(network.eval(), found, again=record is not None and found != recorded)

    def statistics(
        self,
        reference: Reference,
        calibration: int,
        seed: int | None = None,
        *,
        scope: Scope = "inner",
        readings: Sequence[Reading] = ("pooled",),
        extras: Sequence[Extra] = (),
        tap: Where = "reader",
    ) -> dict[str, ChannelStatistics]:
        """Channel statistics of a trained reference; one pass serves every criterion that reads the same.

        seed: of the calibration images; default the reference's.
        """
        seed = reference.seed if seed is None else seed
        return self._statistics(reference, calibration, seed, scope=scope, readings=tuple(readings), extras=tuple(extras), tap=tap)

    def _collect(self, reference: Reference, count: int, seed: int, **wanted: Any) -> dict[str, ChannelStatistics]:
        shown = self.calibration_images(reference, count, seed)
        return collect_statistics(self.trained(reference), shown, batch_size=steady_batch(shown), **wanted)

    def importance(self, reference: Reference, pruning: Pruning) -> dict[str, Tensor]:
        """A criterion's importance of the trained reference's channels. Raises StudyError as ``plan`` does."""
        wanted, seed = needs(pruning.criterion, pruning.options)._asdict(), _draw(reference, pruning)
        statistics = self.statistics(reference, pruning.calibration, seed, scope=pruning.scope, **wanted)
        options: dict[str, Any] = {"seed": reference.seed, **pruning.options}
        return importance(pruning.criterion, statistics=statistics, **self._shown(reference, pruning), **options)

    def _shown(self, reference: Reference, pruning: Pruning) -> dict[str, Any]:
        """What every criterion and pruner is shown: the trained reference and its labelled calibration images."""
        if (code := code_of(pruning.criterion)) != pruning.source:
            raise refuse(f"source of criterion {pruning.criterion}", pruning.source, f"{code}: its module was edited; start again")
        drawn = (data := self.data(reference)).calibration(pruning.calibration, _draw(reference, pruning))
        return {"model": self.trained(reference), "images": data.normalise(drawn.images), "labels": drawn.labels}

    def plan(self, run: Run) -> PruningPlan:
        """Which channels of the trained reference a run keeps.

        Where one threshold decides for all layers, or Torch-Pruning does, a ratio stands for the MACs that it leaves when every
        layer loses that share, and so do rates: at one ratio, criteria are compared at MACs as near as whole channels allow.

        Raises StudyError where the criterion's module was edited after this process or the study imported it.
        """
        pruning, dense = run.pruning, self.trained(run.reference)
        assert pruning is not None
        pruner, ranking = CRITERIA[pruning.criterion].reads == "pruner", ranking_of(pruning.criterion, pruning.options)
        scores = importance("kernel_l1", model=dense) if pruner else self.importance(run.reference, pruning)
        example = (data := self.data(run.reference)).normalise(data.train.images[:1])
        make = partial(make_plan, dense, example, scores, scope=pruning.scope)
        goal: dict[str, Any] = pruning.model_dump(include={"ratio", "macs", "rates", "rates_as", "rounding"})
        if (pruner or ranking == "network") and pruning.macs is None:
            goal = {"macs": make(**goal).macs_left}
        if pruner:
            return pruner_plan(pruning.criterion, macs=goal["macs"], scope=pruning.scope, **self._shown(run.reference, pruning))
        return make(**goal, ranking=ranking)

    def cut(self, run: Run, plan: PruningPlan) -> nn.Module:
        """The compact network straight after surgery and compensation."""
        pruning, dense = run.pruning, self.trained(run.reference)
        assert pruning is not None
        if pruning.compensate == "none":
            return prune(dense, plan)
        statistics = self.statistics(run.reference, pruning.calibration, pruning.calibration_seed, scope=pruning.scope)
        return prune(dense, plan, compensate=pruning.compensate, statistics=statistics)

    def compact(self, run: Run, plan: PruningPlan) -> nn.Module:
        """The compact network that fine-tuning starts from, made from the trained reference by a plan."""
        return self.settle(run, self.cut(run, plan))

    def settle(self, run: Run, network: nn.Module) -> nn.Module:
        """Recalibrate what ``cut`` returned, in place, where the run asks for it."""
        pruning = run.pruning
        assert pruning is not None
        if pruning.recalibrate:
            shown = self.calibration_images(run.reference, pruning.calibration, pruning.calibration_seed)
            recalibrate(network, shown, steady_batch(shown))
        return network

    def checkpoint(self, run: Run) -> Checkpoint:
        """Where the training of a run goes on after it was cut off."""
        start = "" if run.kind == "reference" else self.load(run.reference).sha256  # from other weights it is another training
        return Checkpoint(self.store.unfinished(run.identity), f"{run.identity} {start}")

    def train(self, run: Run, networks: Sequence[nn.Module], training: Training, arm: Arm, on_macs: OnMacs) -> list[Epoch]:
        """Train the networks of a run in place, within the deadline and from its checkpoint; returns the history."""
        data, precision = self.data(run.reference), run.reference.precision
        callbacks = Callbacks(
            on_batch=self.deadline.check,
            on_epoch=on_macs,
            evaluate=lambda networks: evaluate(networks, data.in_order(data.validation), precision),
            checkpoint=self.checkpoint(run),
            label=describe(run),
        )
        execution, batches = Execution(precision, self.passes), data.batches(training.batch_size)
        return fit(networks, training, batches, arm, seed=run.reference.seed, execution=execution, callbacks=callbacks)

    def train_reference(self, run: Run, network: nn.Module, on_macs: OnMacs = lambda macs: None) -> tuple[list[Epoch], str]:
        """Train a reference in place and keep its weights; returns its history and their checksum."""
        assert (training := run.reference.training) is not None
        on_epoch = telling(self.tell, training.epochs, on_macs)
        history = self.train(run, [network], training, ARMS["tft"], on_epoch)
        return history, keep_weights(self.store, run, network)


def _draw(reference: Reference, pruning: Pruning) -> int:
    """The seed of the calibration images."""
    return reference.seed if pruning.calibration_seed is None else pruning.calibration_seed
