"""Running a profile: every run at most once, each leaving one record.

Notebooks and the command line call the same ``Study.run``. A run that has a record is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fcs_utils import store as files
from fcs_utils.bench import Bench, OnMacs, describe
from fcs_utils.config import SCHEMA, Run
from fcs_utils.errors import StudyError, refuse
from fcs_utils.measure import count_macs
from fcs_utils.profiles import STAGES, Profile, Rates, Stage, get_profile, grid
from fcs_utils.progress import bar
from fcs_utils.provenance import describe_machine, describe_moment, pick_device, pick_precision
from fcs_utils.report import Report, choose_learning_rates
from fcs_utils.runs import do

Record = dict[str, Any]


class Study:
    """A profile's runs, their records in ``out/profile``, and ``bench``, the networks behind them.

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
        self.bench = Bench(self.store, self.profile.dataset, data, pick_device(device))
        self.precision = self._precision()
        self.grid = grid(self.profile, self.precision)
        self._rates: Rates | None = None
        self._failed: set[str] = set()

    def _precision(self) -> Literal["fp32", "bf16"]:
        # The precision is part of every identity, so it belongs to the folder and not to the machine that
        # happens to open it: records that come home from a GPU must be found on a laptop.
        path, wanted = self.store.settings(), self.profile.precision
        if path.exists():
            precision = files.read_json(path).get("precision")
        else:
            precision = pick_precision(self.bench.device) if wanted == "auto" else wanted
        if precision not in ("fp32", "bf16"):
            raise refuse(f"{path}: precision", precision, "fp32, bf16")
        return precision

    def runs(self, stages: Iterable[Stage] | None = None) -> list[Run]:
        """The runs of some stages (default: all), each once, in order. Raises StudyError for an unknown stage."""
        wanted = STAGES if stages is None else tuple(stages)
        if unknown := [stage for stage in wanted if stage not in STAGES]:
            raise refuse("stages", unknown, ", ".join(STAGES))
        if "arms" in wanted and self.rates() is None:
            raise StudyError("the arms' runs follow from stage 'rates', which is not complete: " + self._how_to_go_on())
        return list({run.identity: run for stage in wanted for run in self.grid[stage]}.values())

    def rates(self) -> Rates | None:
        """The learning rate of every arm, chosen on validation from stage ``rates``; None while that is incomplete."""
        if self._rates is None:
            records = [self.record(run) for run in self.grid["rates"]]
            if all(record is not None for record in records):
                self._rates = choose_learning_rates(record for record in records if record is not None)
                self.grid = grid(self.profile, self.precision, self._rates)
        return self._rates

    def missing(self) -> dict[Stage, int]:
        """How many runs of each stage have no record yet; stages that are complete are left out."""
        counts = {stage: sum(self.record(run) is None for run in self.grid.get(stage, ())) for stage in STAGES}
        if self.rates() is None:
            counts["arms"] = 1
        return {stage: count for stage, count in counts.items() if count}

    def _how_to_go_on(self) -> str:
        return f"do it with: python -m fcs_utils run --profile {self.profile.name}"

    def record(self, run: Run) -> Record | None:
        """The record of a run, or None where it has not been done."""
        return files.read_record(self.store, run.kind, run.identity)

    def records(self, stages: Iterable[Stage] | None = None) -> list[Record]:
        """The records of some stages, reading only. Raises StudyError naming the missing ones."""
        runs = self.runs(stages)
        if missing := self._without_record(runs):
            shown = "; ".join(missing[:5]) + ("; ..." if len(missing) > 5 else "")
            raise StudyError(
                f"{len(missing)} of {len(runs)} runs of profile {self.profile.name} have no record in {self.store.root}: "
                f"{shown}; {self._how_to_go_on()}"
            )
        return [record for run in runs if (record := self.record(run)) is not None]

    def _without_record(self, runs: Iterable[Run]) -> list[str]:
        return [f"{run.kind}-{run.identity} ({describe(run)})" for run in runs if self.record(run) is None]

    def report(self, *, allow_missing: bool = False) -> Report:
        """Tables and verdicts from a profile's records, reading only.

        Raises StudyError naming the missing ones; where they are allowed, they are listed in a table instead.
        """
        images = len(self.bench.dataset.validation)
        if not allow_missing:
            return Report({stage: self.records([stage]) for stage in STAGES}, images)
        self.rates()
        runs = {stage: self.runs([stage]) if stage in self.grid else [] for stage in STAGES}
        missing = list(dict.fromkeys(word for stage in runs.values() for word in self._without_record(stage)))
        if "arms" not in self.grid:
            missing.append("every run of stage arms, whose learning rates follow from stage rates")
        found = {stage: [record for run in some if (record := self.record(run)) is not None] for stage, some in runs.items()}
        return Report(found, images, missing)

    def run(self, stages: Iterable[Stage] | None = None) -> list[Record]:
        """Do what has no record yet, then return all records of the stages.

        A run that fails leaves the others intact; what failed is raised as one StudyError at the end.
        """
        wanted: tuple[Stage, ...] = STAGES if stages is None else tuple(stages)
        if "arms" in wanted and self.rates() is None:
            self.run(stage for stage in wanted if stage not in ("rates", "arms"))
            self.run(["rates"])
        runs = self.runs(wanted)
        todo = [run for run in runs if self.record(run) is None]
        if todo:
            _ = self.bench.dataset  # missing data is an error before any work starts
            if not self.store.settings().exists():
                files.write_json(self.store.settings(), {"precision": self.precision, "profile": self.profile.name})
            self._do(todo, done=len(runs) - len(todo))
        return self.records(wanted)

    def _do(self, todo: Sequence[Run], done: int) -> None:
        expected = self._expected_macs(todo)
        failures = []
        with bar(total=sum(expected), desc=self.profile.name,
                 bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}") as whole:  # fmt: skip
            for number, (run, macs) in enumerate(zip(todo, expected, strict=True), start=done + 1):
                whole.set_postfix_str(f", run {number} of {done + len(todo)}: {describe(run)}", refresh=False)
                start = whole.n
                try:
                    self.ensure(run, on_macs=whole.update)
                except StudyError as error:
                    failures.append(str(error))
                whole.update(start + macs - whole.n)  # expected and real MACs differ a little
        if failures:
            raise StudyError(f"{len(failures)} of {len(todo)} runs failed, the others have their records. First: {failures[0]}")

    def _expected_macs(self, runs: Sequence[Run]) -> list[int]:
        # For the estimate of the time left only; records count the MACs of the real networks.
        networks = {(r.reference.network, r.reference.width): r.reference for r in runs}
        dense = {key: count_macs(self.bench.untrained(reference), self.bench.example) for key, reference in networks.items()}
        images = len(self.bench.dataset.train)
        expected = []
        for run in runs:
            macs = dense[run.reference.network, run.reference.width]
            if run.tuning and run.pruning:
                left = run.pruning.macs or 1 - (run.pruning.ratio or 0)
                share = left + {"tft": 0.0, "scratch": 0.0, "twin": left, "mlft": 1.0, "kd": 1 / 3}[run.tuning.method]
                if run.tuning.budget == "macs":
                    share = 1.0
                expected.append(round(3 * run.tuning.training.epochs * images * share * macs))
            elif run.kind == "reference":
                expected.append(3 * run.reference.training.epochs * images * macs)
            else:  # a few passes over calibration and test images
                expected.append(2 * images * macs)
        return expected

    def ensure(self, run: Run, on_macs: OnMacs = lambda macs: None) -> Record:
        """The record of a run, doing it and what it builds on where there is none."""
        if (record := self.record(run)) is not None:
            return record
        if run.identity in self._failed:
            raise StudyError(f"{describe(run)} failed before")
        try:
            parent = run.parent()
            parent_record = self.ensure(parent) if parent else None
            started = time.perf_counter()
            result, volatile = do(self.bench, run, parent_record, on_macs)
        except StudyError:
            self._failed.add(run.identity)
            raise
        record = {
            "schema": SCHEMA, "id": run.identity, "kind": run.kind,
            "config": run.model_dump(mode="json"), "result": result,
            "provenance": describe_machine(self.bench.device),
            "volatile": {**volatile, "seconds": time.perf_counter() - started, **describe_moment()},
        }  # fmt: skip
        files.write_json(self.store.record(run.kind, run.identity), record)
        return record
