"""Running a profile: every run at most once, each leaving one record.

Notebooks and the command line call the same ``Study.run``. A run that has a record is not run again.
"""

from __future__ import annotations

import hashlib
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fcs_utils import store as files
from fcs_utils.activations import ChannelStatistics, collect_statistics
from fcs_utils.config import SCHEMA, Reference, Run
from fcs_utils.criteria import importance
from fcs_utils.data import Dataset, load_dataset
from fcs_utils.errors import StudyError, refuse
from fcs_utils.finetune import accuracy, cross_entropy, fit, mutual
from fcs_utils.measure import count_macs, measure_cost, measure_latency
from fcs_utils.models import build_seeded
from fcs_utils.profiles import STAGES, Profile, Stage, get_profile, grid
from fcs_utils.progress import bar
from fcs_utils.provenance import describe_machine, describe_moment, pick_device, pick_precision
from fcs_utils.pruning import PruningPlan, make_plan, prune, recalibrate
from fcs_utils.similarity import twin_shares

Record = dict[str, Any]


class Study:
    """A profile's runs, their records in ``out/profile``, and the networks behind them.

    Raises StudyError for an unknown profile or device. Nothing is created before ``run``.
    """

    def __init__(
        self,
        profile: str | Profile,
        out: str | Path = "results",
        data: str | Path | None = None,
        device: str = "auto",
    ) -> None:
        self.profile = profile if isinstance(profile, Profile) else get_profile(profile)
        self.store = files.Store(out, self.profile.name)
        self.device = pick_device(device)
        self._data = data or None
        self._dataset: Dataset | None = None
        self._statistics: tuple[tuple[str, int], dict[str, ChannelStatistics]] | None = None
        self._trained: tuple[str, nn.Module] | None = None
        self._failed: set[str] = set()
        # The precision is part of every identity, so it belongs to the folder, not to the machine that
        # happens to open it: records that come home from a GPU must be found on a laptop.
        settings = files.read_json(self.store.settings()) if self.store.settings().exists() else {}
        precision = settings.get("precision", pick_precision(self.device))
        if precision not in ("fp32", "bf16"):
            raise StudyError(f"{self.store.settings()}: precision={precision!r} is not allowed; allowed: fp32, bf16")
        self.precision: Literal["fp32", "bf16"] = precision
        self.grid = grid(self.profile, self.precision)

    # -- the grid ---------------------------------------------------------------------------------------------

    def runs(self, stages: Iterable[Stage] | None = None) -> list[Run]:
        """The runs of some stages (default: all), each once, in order. Raises StudyError for an unknown stage."""
        stages = STAGES if stages is None else tuple(stages)
        if unknown := [stage for stage in stages if stage not in STAGES]:
            raise refuse("stages", unknown, ", ".join(STAGES))
        return list({run.identity: run for stage in stages for run in self.grid[stage]}.values())

    def record(self, run: Run) -> Record | None:
        """The record of a run, or None where it has not been done."""
        return files.read_record(self.store, run.kind, run.identity)

    def records(self, stages: Iterable[Stage] | None = None) -> list[Record]:
        """The records of some stages, reading only. Raises StudyError naming how many are missing."""
        found = [(run, self.record(run)) for run in self.runs(stages)]
        missing = [f"{run.kind}-{run.identity}" for run, record in found if record is None]
        if missing:
            raise StudyError(
                f"{len(missing)} of {len(found)} runs of profile {self.profile.name} have no record in {self.store.root} "
                f"(first: {missing[0]}); do them with: python -m fcs_utils run --profile {self.profile.name}"
            )
        return [record for _, record in found if record is not None]

    def run(self, stages: Iterable[Stage] | None = None) -> list[Record]:
        """Do what has no record yet, then return all records of the stages.

        A run that fails leaves the others intact; what failed is raised as one StudyError at the end.
        """
        runs = self.runs(stages)
        todo = [run for run in runs if self.record(run) is None]
        if todo:
            self.dataset  # noqa: B018 - missing data is an error before any work starts
            if not self.store.settings().exists():
                files.write_json(self.store.settings(), {"precision": self.precision, "profile": self.profile.name})
            self._do(todo, done=len(runs) - len(todo))
        return self.records(stages)

    def _do(self, todo: Sequence[Run], done: int) -> None:
        expected = {run.identity: self._expected_macs(run) for run in todo}
        failures = []
        with bar(total=sum(expected.values()), desc=self.profile.name,
                 bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}") as whole:  # fmt: skip
            for number, run in enumerate(todo, start=done + 1):
                whole.set_postfix_str(f", run {number}/{done + len(todo)} {describe(run)}", refresh=False)
                start = whole.n
                try:
                    self.ensure(run, on_macs=whole.update)
                except StudyError as error:
                    failures.append(str(error))
                whole.update(start + expected[run.identity] - whole.n)  # expected and real MACs differ a little
        if failures:
            raise StudyError(f"{len(failures)} of {len(todo)} runs failed; the others have their records. First: {failures[0]}")

    def _expected_macs(self, run: Run) -> int:
        # For the estimate of the time left only; records count the MACs of the real networks.
        reference = run.reference
        macs = self._dense_macs.setdefault((reference.network, reference.width), 0) or count_macs(
            self.untrained(reference), self.example)  # fmt: skip
        self._dense_macs[reference.network, reference.width] = macs
        images = len(self.dataset.train)
        if run.tuning and run.pruning:
            compact = (1 - run.pruning.ratio) * macs
            return round(3 * run.tuning.training.epochs * images * (compact + macs * (run.tuning.method == "mlft")))
        if run.kind == "reference":
            return 3 * reference.training.epochs * images * macs
        return 2 * self.profile.calibration * macs

    # -- what runs are made of --------------------------------------------------------------------------------

    @property
    def dataset(self) -> Dataset:
        if self._dataset is None:
            self._dataset = load_dataset(self.profile.dataset, self._data, self.device)
            self._dense_macs: dict[tuple[str, float], int] = {}
        return self._dataset

    @property
    def example(self) -> Tensor:
        """One normalised test image (1, C, H, W), for counting."""
        return self.dataset.normalise(self.dataset.test.images[:1])

    def calibration_images(self, seed: int, count: int | None = None) -> Tensor:
        """Normalised calibration images (N, C, H, W) of a seed."""
        return self.dataset.normalise(self.dataset.calibration(count or self.profile.calibration, seed).images)

    def untrained(self, reference: Reference) -> nn.Module:
        """The reference network as its seed made it, before training."""
        network = build_seeded(
            reference.seed, reference.network, num_classes=len(self.dataset.classes), width=reference.width,
            in_channels=self.dataset.channels, shortcut=reference.shortcut,
        )  # fmt: skip
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def trained(self, reference: Reference) -> nn.Module:
        """The trained reference network, in eval mode. Weights that are not on this machine are trained again."""
        run = Run(reference=reference)
        if self._trained is None or self._trained[0] != run.identity:
            path = self.store.weights(run.identity)
            network = self.untrained(reference)
            try:
                state = load(path.read_bytes())
            except FileNotFoundError:
                state = None
            except (SafetensorError, OSError) as error:
                aside = path.with_suffix(".corrupt")
                path.replace(aside)
                warnings.warn(f"{path} cannot be read ({error}); set aside as {aside.name}, trained again", stacklevel=2)
                state = None
            if state is None:
                if self.record(run) is not None:
                    print(f"weights of {describe(run)} are not on this machine: training them again", file=sys.stderr)
                self._train_reference(reference, network)
                self._warn_if_different(run, path)
            else:
                network.load_state_dict(state)
            self._trained = (run.identity, network.eval())
        return self._trained[1]

    def _warn_if_different(self, run: Run, path: Path) -> None:
        record = self.record(run)
        if record and record["result"]["weights_sha256"] != file_sha256(path):
            warnings.warn(
                f"{describe(run)}, trained again here, is not bit-equal to the one behind the published records "
                f"({record['provenance']['device']}); pictures of it may differ a little. --fresh does everything here.",
                stacklevel=3,
            )

    def statistics(self, reference: Reference, calibration: int) -> dict[str, ChannelStatistics]:
        """Channel statistics of a trained reference; one pass serves every criterion."""
        key = (Run(reference=reference).identity, calibration)
        if self._statistics is None or self._statistics[0] != key:
            images = self.calibration_images(reference.seed, calibration)
            self._statistics = (key, collect_statistics(self.trained(reference), images))
        return self._statistics[1]

    def compact(self, run: Run, plan: PruningPlan | None = None) -> nn.Module:
        """The compact network that fine-tuning starts from, rebuilt from its record's plan."""
        pruning = run.pruning
        assert pruning is not None
        if plan is None:
            record = self.ensure(run.model_copy(update={"tuning": None}))
            plan = PruningPlan.model_validate(record["result"]["plan"])
        network = prune(self.trained(run.reference), plan)
        if pruning.recalibrate:
            recalibrate(network, self.calibration_images(run.reference.seed, pruning.calibration))
        return network

    # -- doing a run ------------------------------------------------------------------------------------------

    def ensure(self, run: Run, on_macs: Any = lambda macs: None) -> Record:
        """The record of a run, doing it and what it builds on where there is none."""
        if (record := self.record(run)) is not None:
            return record
        if run.identity in self._failed:
            raise StudyError(f"{describe(run)} failed before")
        try:
            if parent := run.parent():
                self.ensure(parent)
            started = time.perf_counter()
            do = {"reference": self._reference, "similarity": self._similarity, "pruned": self._pruned, "tuned": self._tuned}
            result, volatile = do[run.kind](run, on_macs)
        except StudyError:
            self._failed.add(run.identity)
            raise
        record = {
            "schema": SCHEMA, "id": run.identity, "kind": run.kind,
            "config": run.model_dump(mode="json"),
            "result": {**result, "dataset_fingerprint": self.dataset.fingerprint},
            "provenance": describe_machine(self.device),
            "volatile": {**volatile, "seconds": time.perf_counter() - started, **describe_moment()},
        }  # fmt: skip
        files.write_json(self.store.record(run.kind, run.identity), record)
        return record

    def _train_reference(self, reference: Reference, network: nn.Module, on_macs: Any = lambda macs: None) -> list[Any]:
        run = Run(reference=reference)
        history = fit([network], self.dataset, reference.training, seed=reference.seed,
                      precision=reference.precision, label=describe(run), on_epoch=on_macs)  # fmt: skip
        state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        files.write_atomic(self.store.weights(run.identity), save(state))
        return history

    def _reference(self, run: Run, on_macs: Any) -> tuple[Record, Record]:
        network = self.untrained(run.reference)
        history = self._train_reference(run.reference, network, on_macs)
        return {
            "cost": measure_cost(network, self.example).as_dict(),
            "weights_sha256": file_sha256(self.store.weights(run.identity)),
            **self._outcome(network, history, run),
        }, self._timing(network, history)

    def _similarity(self, run: Run, on_macs: Any) -> tuple[Record, Record]:
        assert run.similarity is not None
        images = self.calibration_images(run.reference.seed, run.similarity.calibration)
        networks = {"trained": self.trained(run.reference), "untrained": self.untrained(run.reference)}
        shares = {name: twin_shares(network, images, run.similarity.quantile, run.reference.seed)
                  for name, network in networks.items()}  # fmt: skip
        return {"shares": shares, "reference_sha256": self._reference_sha256(run)}, {}

    def _pruned(self, run: Run, on_macs: Any) -> tuple[Record, Record]:
        pruning, dense = run.pruning, self.trained(run.reference)
        assert pruning is not None
        scores = importance(
            pruning.criterion, model=dense, statistics=self.statistics(run.reference, pruning.calibration),
            seed=run.reference.seed, **pruning.options,
        )  # fmt: skip
        plan = make_plan(dense, self.example, scores, ratio=pruning.ratio, scope=pruning.scope)
        compact, plain = self.compact(run, plan), prune(dense, plan)
        return {
            "plan": plan.model_dump(mode="json"),
            "cost": measure_cost(compact, self.example).as_dict(),
            "dense_cost": measure_cost(dense, self.example).as_dict(),
            "reference_sha256": self._reference_sha256(run),
            "before_recalibration": self._accuracies(plain, run),
            "before_tuning": self._accuracies(compact, run),
        }, {"latency_ms": self._latency(compact), "dense_latency_ms": self._latency(dense)}

    def _tuned(self, run: Run, on_macs: Any) -> tuple[Record, Record]:
        tuning = run.tuning
        assert tuning is not None
        compact, networks, losses = self.compact(run), [], cross_entropy
        networks.append(compact)
        if tuning.method == "mlft":  # the unpruned original learns on, beside the compact network
            peer = self.untrained(run.reference)
            peer.load_state_dict(self.trained(run.reference).state_dict())
            networks.append(peer)
            losses = mutual(tuning.temperature, tuning.strength)
        history = fit(networks, self.dataset, tuning.training, seed=run.reference.seed, losses=losses,
                      precision=run.reference.precision, label=describe(run), on_epoch=on_macs)  # fmt: skip
        result = {
            "cost": measure_cost(compact, self.example).as_dict(),
            "dense_cost": measure_cost(self.trained(run.reference), self.example).as_dict(),
            "reference_sha256": self._reference_sha256(run),
            **self._outcome(compact, history, run),
        }
        if len(networks) > 1:
            result["peer"] = self._accuracies(networks[1], run)
        return result, self._timing(compact, history)

    def _accuracies(self, network: nn.Module, run: Run) -> dict[str, float]:
        parts = {"validation": self.dataset.validation, "test": self.dataset.test}
        return {name: accuracy(network, self.dataset, split, run.reference.precision) for name, split in parts.items()}

    def _outcome(self, network: nn.Module, history: list[Any], run: Run) -> Record:
        return {
            **self._accuracies(network, run),  # of the final epoch
            "best_validation_epoch": max(history, key=lambda epoch: epoch.validation).epoch,
            "history": [{k: v for k, v in vars(epoch).items() if k != "seconds"} for epoch in history],
        }

    def _timing(self, network: nn.Module, history: list[Any]) -> Record:
        return {"epoch_seconds": [epoch.seconds for epoch in history], "latency_ms": self._latency(network)}

    def _latency(self, network: nn.Module) -> float:
        batch = self.dataset.normalise(self.dataset.test.images[:64])
        return measure_latency(network, batch, repeats=5)

    def _reference_sha256(self, run: Run) -> str:
        return file_sha256(self.store.weights(Run(reference=run.reference).identity))


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


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
