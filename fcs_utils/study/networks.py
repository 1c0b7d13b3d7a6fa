"""The workbench: data, networks and statistics behind a study's runs, and how each kind of run is done."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fcs_utils.data.dataset import Dataset, load_dataset
from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, set_aside, tensors_sum, write_tensors
from fcs_utils.machine import one_thread
from fcs_utils.models import build_seeded, count_macs
from fcs_utils.pruning.criteria import importance, needs
from fcs_utils.pruning.layers import Scope, prunable_layers
from fcs_utils.pruning.plan import PruningPlan, make_plan
from fcs_utils.pruning.statistics import ChannelStatistics, collect_statistics
from fcs_utils.pruning.sums import Extra, Reading
from fcs_utils.pruning.surgery import prune, recalibrate
from fcs_utils.study.guards import Deadline, file_lock
from fcs_utils.study.records import Store, read_record
from fcs_utils.study.runs import Pruning, Reference, Run, describe
from fcs_utils.training.checkpoint import Checkpoint
from fcs_utils.training.loop import Epoch, fit
from fcs_utils.training.passes import Mode

Result = dict[str, Any]
OnMacs = Callable[[int], None]


class Bench:
    """One data set on one device and the networks trained on it; remembers the last network and its statistics."""

    def __init__(self, store: Store, dataset: str, data: str | Path | None, device: torch.device, passes: Mode = "plain") -> None:
        self.store, self.device, self.passes = store, device, passes
        self.deadline = Deadline()  # when trainings here must end
        self._source = (dataset, data)
        self._dataset: Dataset | None = None
        self._trained: tuple[str, nn.Module] | None = None
        self._gathered: tuple[tuple[Reading, ...], tuple[Extra, ...]] = ((), ())
        self._statistics: tuple[tuple[object, ...], dict[str, ChannelStatistics]] | None = None

    @property
    def dataset(self) -> Dataset:
        """Loaded at first use. Raises StudyError when it cannot be found or read."""
        if self._dataset is None:
            self._dataset = load_dataset(*self._source, device=self.device)
        return self._dataset

    @property
    def example(self) -> Tensor:
        """One normalised image (1, C, H, W), for counting."""
        return self.dataset.normalise(self.dataset.train.images[:1])

    def calibration_images(self, seed: int, count: int) -> Tensor:
        """Normalised calibration images (N, C, H, W) of a seed."""
        return self.dataset.normalise(self.dataset.calibration(count, seed).images)

    def untrained(self, reference: Reference, images: Tensor | None = None) -> nn.Module:
        """The reference network as its seed made it, before training.

        images: normalised images that its BatchNorm sees. As it is made, BatchNorm is the identity, and the network
        would differ from a trained one in its statistics besides what training taught.
        """
        network = build_seeded(
            reference.seed, reference.network, num_classes=len(self.dataset.classes), width=reference.width,
            in_channels=self.dataset.channels, shortcut=reference.shortcut,
        )  # fmt: skip
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if images is not None:
            recalibrate(network, images)
        return network

    def trained(self, reference: Reference) -> nn.Module:
        """The trained reference, in eval mode; shared, so copy before changing it.

        Weights that are not on this machine are trained again, with a warning where they differ from those
        behind the record.
        """
        run = Run(reference=reference)
        if self._trained is None or self._trained[0] != run.identity:
            network = self.untrained(reference)
            state = self._load_weights(run)
            network.load_state_dict(self._train_again(run, network) if state is None else state)
            self._trained = (run.identity, network.eval())
        return self._trained[1]

    def _train_again(self, run: Run, network: nn.Module) -> dict[str, Tensor]:
        record = read_record(self.store, run.kind, run.identity)
        if record:
            print(f"weights of {describe(run)} are not on this machine: training them again", file=sys.stderr)
        with file_lock(self.store.lock(run.identity), describe(run)):
            state = self._load_weights(run)  # another process may have trained it meanwhile
            if state is None:
                with one_thread():  # as it was behind the record
                    self.train_reference(run, network)
                state = network.state_dict()
        if record and record["result"]["weights_sha256"] != self.weights_sha256(run):
            warnings.warn(
                f"{describe(run)}, trained again here, is not bit-equal to the one behind the records (made on "
                f"{record['provenance']['device']}): its pictures may differ a little; --fresh does all here",
                stacklevel=3,
            )
        return state

    def _load_weights(self, run: Run) -> dict[str, Tensor] | None:
        path = self.store.there(self.store.weights(run.identity))
        if not path.exists():
            return None
        try:
            return read_tensors(path)[0]
        except StudyError as error:
            set_aside(path, f"{error}; trained again")
            return None

    def weights_sha256(self, run: Run) -> str:
        """Checksum of the weights of a run's reference network, as the file holds them."""
        path = self.store.weights(Run(reference=run.reference).identity)
        return tensors_sum(read_tensors(self.store.there(path))[0])

    def statistics(
        self,
        reference: Reference,
        calibration: int,
        seed: int | None = None,
        *,
        scope: Scope = "inner",
        readings: Sequence[Reading] = ("pooled",),
        extras: Sequence[Extra] = (),
    ) -> dict[str, ChannelStatistics]:
        """Channel statistics of a trained reference; one pass serves every criterion that asks for the same images.

        seed: of the calibration images; default the reference's. A pass is made again only for readings or
        extras that the last one did not gather.
        """
        seed = reference.seed if seed is None else seed
        key = (Run(reference=reference).identity, calibration, seed, scope)
        had_readings, had_extras = self._gathered if self._statistics and self._statistics[0] == key else ((), ())
        if not had_readings or set(readings) - set(had_readings) or set(extras) - set(had_extras):
            self._gathered = (tuple(dict.fromkeys((*had_readings, *readings))), tuple(dict.fromkeys((*had_extras, *extras))))
            images, dense = self.calibration_images(seed, calibration), self.trained(reference)
            layers = list(prunable_layers(dense, images, scope))
            found = collect_statistics(dense, images, layers=layers, readings=self._gathered[0], extras=self._gathered[1])
            self._statistics = (key, found)
        assert self._statistics is not None
        return self._statistics[1]

    def importance(self, reference: Reference, pruning: Pruning) -> dict[str, Tensor]:
        """A criterion's importance of the trained reference's channels."""
        readings, extras = needs(pruning.criterion, pruning.options)
        seed = reference.seed if pruning.calibration_seed is None else pruning.calibration_seed
        statistics = self.statistics(reference, pruning.calibration, seed, scope=pruning.scope, readings=readings, extras=extras)
        calibration = self.dataset.calibration(pruning.calibration, seed)
        return importance(
            pruning.criterion, model=self.trained(reference), statistics=statistics,
            images=self.dataset.normalise(calibration.images), labels=calibration.labels,
            **{"seed": reference.seed, **pruning.options},  # type: ignore[arg-type]
        )  # fmt: skip

    def plan(self, run: Run) -> PruningPlan:
        """Which channels of the trained reference a run keeps."""
        pruning, dense = run.pruning, self.trained(run.reference)
        assert pruning is not None
        scores = self.importance(run.reference, pruning)
        return make_plan(dense, self.example, scores, ratio=pruning.ratio, macs=pruning.macs, scope=pruning.scope)

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
        pruning, network = run.pruning, self.cut(run, plan)
        assert pruning is not None
        if pruning.recalibrate:
            seed = run.reference.seed if pruning.calibration_seed is None else pruning.calibration_seed
            recalibrate(network, self.calibration_images(seed, pruning.calibration))
        return network

    def checkpoint(self, run: Run) -> Checkpoint:
        """Where the training of a run goes on after it was cut off."""
        start = "" if run.kind == "reference" else self.weights_sha256(run)  # other weights are another training
        return Checkpoint(self.store.unfinished(run.identity), f"{run.identity} {start}")

    def train_reference(self, run: Run, network: nn.Module, on_macs: OnMacs = lambda macs: None) -> list[Epoch]:
        """Train a reference in place and keep its weights; returns its history.

        Filters are rounded to half precision, once and before anything is measured on them: a repository can then
        carry them in half the bytes.
        """
        history = fit([network], self.dataset, run.reference.training, seed=run.reference.seed,
                      precision=run.reference.precision, passes=self.passes, label=describe(run),
                      on_epoch=on_macs, on_batch=self.deadline.check, checkpoint=self.checkpoint(run))  # fmt: skip
        state = {name: _halved(tensor).cpu().contiguous() for name, tensor in network.state_dict().items()}
        network.load_state_dict(state)  # what is measured is what the file holds
        write_tensors(self.store.weights(run.identity), state)
        self.checkpoint(run).remove()
        return history


def _halved(tensor: Tensor) -> Tensor:
    # BatchNorm's vectors stay as they are: they are few, and variances may leave the range of half precision.
    return tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 else tensor


def expected_macs(bench: Bench, runs: Sequence[Run]) -> list[int]:
    """Training MACs of runs before they are done: for the time left and for what to do first.

    Records count the MACs of the real networks.
    """
    networks = {(r.reference.network, r.reference.width): r.reference for r in runs}
    dense = {key: count_macs(bench.untrained(reference), bench.example) for key, reference in networks.items()}
    images = len(bench.dataset.train)
    expected = []
    for run in runs:
        macs = dense[run.reference.network, run.reference.width]
        if run.tuning and run.pruning:
            left = run.pruning.macs or 1 - (run.pruning.ratio or 0)
            share = left + {"tft": 0.0, "scratch": 0.0, "twin": left, "mlft": 1.0, "kd": 1 / 3}[run.tuning.method]
            if run.tuning.budget == "macs":
                share = 1.0  # so many epochs that it is as much as the dense network's training
            expected.append(round(3 * run.tuning.training.epochs * images * share * macs))
        elif run.kind == "reference":
            expected.append(3 * run.reference.training.epochs * images * macs)
        else:  # no training: judged on the validation images, and before and after recalibration on the test images
            judged = len(bench.dataset.validation) + 2 * len(bench.dataset.test)
            expected.append(judged * macs)
    return expected
