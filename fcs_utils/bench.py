"""The workbench: data, networks and statistics behind a study's runs, and how each kind of run is done."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fcs_utils.activations import ChannelStatistics, collect_statistics
from fcs_utils.config import Reference, Run
from fcs_utils.criteria import importance
from fcs_utils.data import Dataset, load_dataset
from fcs_utils.finetune import Epoch, accuracy, cross_entropy, fit, mutual
from fcs_utils.measure import measure_cost, measure_latency
from fcs_utils.models import build_seeded
from fcs_utils.plans import PruningPlan, make_plan
from fcs_utils.pruning import prune, recalibrate
from fcs_utils.similarity import twin_shares
from fcs_utils.store import Store, read_record, write_atomic

Result = dict[str, Any]
OnMacs = Callable[[int], None]


class Bench:
    """One data set on one device and the networks trained on it; remembers the last network and its statistics."""

    def __init__(self, store: Store, dataset: str, data: str | Path | None, device: torch.device) -> None:
        self.store, self.device = store, device
        self._source = (dataset, data)
        self._dataset: Dataset | None = None
        self._trained: tuple[str, nn.Module] | None = None
        self._statistics: tuple[tuple[str, int], dict[str, ChannelStatistics]] | None = None

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

    def untrained(self, reference: Reference) -> nn.Module:
        """The reference network as its seed made it, before training."""
        network = build_seeded(
            reference.seed, reference.network, num_classes=len(self.dataset.classes), width=reference.width,
            in_channels=self.dataset.channels, shortcut=reference.shortcut,
        )  # fmt: skip
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def trained(self, reference: Reference) -> nn.Module:
        """The trained reference, in eval mode; shared, so copy before changing it.

        Weights that are not on this machine are trained again, with a warning where they differ from those
        behind the record.
        """
        run = Run(reference=reference)
        if self._trained is None or self._trained[0] != run.identity:
            network = self.untrained(reference)
            state = self._load_weights(run)
            if state is None:
                record = read_record(self.store, run.kind, run.identity)
                if record:
                    print(f"weights of {describe(run)} are not on this machine: training them again", file=sys.stderr)
                self._train_reference(run, network)
                if record and record["result"]["weights_sha256"] != self.weights_sha256(run):
                    warnings.warn(
                        f"{describe(run)}, trained again here, is not bit-equal to the one behind the records (made on "
                        f"{record['provenance']['device']}): its pictures may differ a little; --fresh does all here",
                        stacklevel=2,
                    )
            else:
                network.load_state_dict(state)
            self._trained = (run.identity, network.eval())
        return self._trained[1]

    def _load_weights(self, run: Run) -> dict[str, Tensor] | None:
        path = self.store.weights(run.identity)
        try:
            return load(path.read_bytes())
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            aside = path.with_suffix(".corrupt")
            path.replace(aside)
            warnings.warn(f"{path} cannot be read ({error}); set aside as {aside.name}, trained again", stacklevel=3)
            return None

    def weights_sha256(self, run: Run) -> str:
        """Hash of the weights file of a run's reference network."""
        return hashlib.sha256(self.store.weights(Run(reference=run.reference).identity).read_bytes()).hexdigest()

    def statistics(self, reference: Reference, calibration: int) -> dict[str, ChannelStatistics]:
        """Channel statistics of a trained reference; one pass serves every criterion."""
        key = (Run(reference=reference).identity, calibration)
        if self._statistics is None or self._statistics[0] != key:
            images = self.calibration_images(reference.seed, calibration)
            self._statistics = (key, collect_statistics(self.trained(reference), images))
        return self._statistics[1]

    def compact(self, run: Run, plan: PruningPlan) -> nn.Module:
        """The compact network that fine-tuning starts from, made from the trained reference by a plan."""
        assert run.pruning is not None
        network = prune(self.trained(run.reference), plan)
        if run.pruning.recalibrate:
            recalibrate(network, self.calibration_images(run.reference.seed, run.pruning.calibration))
        return network

    # -- the four kinds of run ----------------------------------------------------------------------------------

    def do(self, run: Run, parent: Mapping[str, Any] | None, on_macs: OnMacs) -> tuple[Result, Result]:
        """Do a run: (what is equal in equal runs, what is volatile). ``parent``: the record it builds on.

        ``on_macs`` is told the training MACs of every epoch. Raises StudyError when the run cannot be done.
        """
        if run.kind == "reference":
            result, volatile = self._reference(run, on_macs)
        elif run.kind == "similarity":
            result, volatile = self._similarity(run)
        elif run.kind == "pruned":
            result, volatile = self._pruned(run)
        else:
            assert parent is not None
            result, volatile = self._tuned(run, PruningPlan.from_data(parent["result"]["plan"]), on_macs)
        if run.kind != "reference":
            result["reference_sha256"] = self.weights_sha256(run)
        return {**result, "dataset_fingerprint": self.dataset.fingerprint}, volatile

    def _train_reference(self, run: Run, network: nn.Module, on_macs: OnMacs = lambda macs: None) -> list[Epoch]:
        history = fit([network], self.dataset, run.reference.training, seed=run.reference.seed,
                      precision=run.reference.precision, label=describe(run), on_epoch=on_macs)  # fmt: skip
        state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        write_atomic(self.store.weights(run.identity), save(state))
        return history

    def _reference(self, run: Run, on_macs: OnMacs) -> tuple[Result, Result]:
        network = self.untrained(run.reference)
        history = self._train_reference(run, network, on_macs)
        result = {
            "cost": measure_cost(network, self.example).as_dict(),
            "weights_sha256": self.weights_sha256(run),
            **self._outcome(network, history, run),
        }
        return result, self._timing(network, history)

    def _similarity(self, run: Run) -> tuple[Result, Result]:
        assert run.similarity is not None
        seed, options = run.reference.seed, run.similarity
        images = self.calibration_images(seed, options.calibration)
        networks = {"trained": self.trained(run.reference), "untrained": self.untrained(run.reference)}
        return {"shares": {name: twin_shares(net, images, options.quantile, seed) for name, net in networks.items()}}, {}

    def _pruned(self, run: Run) -> tuple[Result, Result]:
        pruning, dense = run.pruning, self.trained(run.reference)
        assert pruning is not None
        scores = importance(
            pruning.criterion, model=dense, statistics=self.statistics(run.reference, pruning.calibration),
            seed=run.reference.seed, **pruning.options,
        )  # fmt: skip
        plan = make_plan(dense, self.example, scores, ratio=pruning.ratio, scope=pruning.scope)
        compact = self.compact(run, plan)
        result = {
            "plan": plan.model_dump(mode="json"),
            "cost": measure_cost(compact, self.example).as_dict(),
            "dense_cost": measure_cost(dense, self.example).as_dict(),
            "before_recalibration": self._accuracies(prune(dense, plan), run),
            "before_tuning": self._accuracies(compact, run),
        }
        return result, {"latency_ms": self._latency(compact), "dense_latency_ms": self._latency(dense)}

    def _tuned(self, run: Run, plan: PruningPlan, on_macs: OnMacs) -> tuple[Result, Result]:
        tuning = run.tuning
        assert tuning is not None
        compact = self.compact(run, plan)
        networks, losses = [compact], cross_entropy
        if tuning.method == "mlft":  # the unpruned original learns on, beside the compact network
            peer = self.untrained(run.reference)
            peer.load_state_dict(self.trained(run.reference).state_dict())
            networks, losses = [compact, peer], mutual(tuning.temperature, tuning.strength)
        history = fit(networks, self.dataset, tuning.training, seed=run.reference.seed, losses=losses,
                      precision=run.reference.precision, label=describe(run), on_epoch=on_macs)  # fmt: skip
        result = {
            "cost": measure_cost(compact, self.example).as_dict(),
            "dense_cost": measure_cost(self.trained(run.reference), self.example).as_dict(),
            **self._outcome(compact, history, run),
        }
        if len(networks) > 1:
            result["peer"] = self._accuracies(networks[1], run)
        return result, self._timing(compact, history)

    def _accuracies(self, network: nn.Module, run: Run) -> dict[str, float]:
        parts = {"validation": self.dataset.validation, "test": self.dataset.test}
        return {name: accuracy(network, self.dataset, split, run.reference.precision) for name, split in parts.items()}

    def _outcome(self, network: nn.Module, history: list[Epoch], run: Run) -> Result:
        return {
            **self._accuracies(network, run),  # of the final epoch; the best one is only named
            "best_validation_epoch": max(history, key=lambda epoch: epoch.validation).epoch,
            "history": [{k: v for k, v in vars(epoch).items() if k != "seconds"} for epoch in history],
        }

    def _timing(self, network: nn.Module, history: list[Epoch]) -> Result:
        return {"epoch_seconds": [epoch.seconds for epoch in history], "latency_ms": self._latency(network)}

    def _latency(self, network: nn.Module) -> float:
        return measure_latency(network, self.dataset.normalise(self.dataset.test.images[:64]), repeats=5)


def describe(run: Run) -> str:
    """A run in a few words, for progress bars and errors."""
    reference = run.reference
    words = [f"{reference.network} x{reference.width:g} seed {reference.seed}"]
    if run.similarity:
        words.append("similarity")
    if run.pruning:
        words.append(f"{run.pruning.criterion} {run.pruning.ratio:g}")
    if run.tuning:
        words.append(f"{run.tuning.method} {run.tuning.training.epochs} epochs lr {run.tuning.training.learning_rate:g}")
    return ", ".join(words)
