"""Running a profile: every run at most once, each leaving one record.

Notebooks and the command line call the same ``Study.run``. A run that has a record is not run again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fcs_utils.errors import OutOfTime, StudyError, is_out_of_memory, refuse
from fcs_utils.machine import describe_machine, describe_moment, one_thread, pick_device
from fcs_utils.study.grid import STAGES, Rates, Stage, grid
from fcs_utils.study.guards import file_lock
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench, OnMacs, expected_macs
from fcs_utils.study.pool import Outcome, Workers
from fcs_utils.study.profiles import Profile, get_profile
from fcs_utils.study.rates import choose_learning_rates, margin
from fcs_utils.study.records import Settings, Store, read_record, write_record
from fcs_utils.study.runs import SCHEMA, Run, describe
from fcs_utils.training.passes import Mode, check_mode

Record = dict[str, Any]


class Study:
    """A profile's runs, their records in ``out/profile``, and ``bench``, the networks behind them.

    passes: how training passes are asked to be done, which records say: results differ by rounding, as between machines.
    Raises StudyError for an unknown profile or device, or passes that it lacks. Nothing is created before ``run``.
    """

    def __init__(
        self,
        profile: str | Profile,
        out: str | Path = "results",
        data: str | Path | None = None,
        device: str = "auto",
        passes: Mode = "plain",
    ) -> None:
        self.arguments = (profile, out, data, device, passes)  # a worker opens the same study
        self.profile = profile if isinstance(profile, Profile) else get_profile(profile)
        self.store = Store(out, self.profile.name)
        self.bench = Bench(self.store, self.profile.dataset, data, pick_device(device), passes)
        check_mode(passes, self.bench.device)
        self.settings = Settings(self.store, self.profile.precision, self.bench.device, lambda: self.bench.dataset)
        self.precision = self.settings.precision
        self.grid = grid(self.profile, self.precision)
        self._rates: Rates | None = None
        self._failed: set[str] = set()

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
                self._rates = choose_learning_rates((r for r in records if r is not None), margin(self.settings.validation_images))
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
        return read_record(self.store, run.kind, run.identity)

    def records(self, stages: Iterable[Stage] | None = None, only: str = "") -> list[Record]:
        """The records of some stages, reading only. Raises StudyError naming the missing ones."""
        runs = _picked(self.runs(stages), only)
        if missing := self.without_record(runs):
            shown = "; ".join(missing[:5]) + ("; ..." if len(missing) > 5 else "")
            raise StudyError(
                f"{len(missing)} of {len(runs)} runs of profile {self.profile.name} have no record in {self.store.root}: "
                f"{shown}; {self._how_to_go_on()}"
            )
        return [record for run in runs if (record := self.record(run)) is not None]

    def found(self) -> dict[Stage, list[Record]]:
        """The records that are there, by stage."""
        self.rates()
        runs = {stage: self.grid.get(stage, []) for stage in STAGES}
        return {stage: [r for run in some if (r := self.record(run)) is not None] for stage, some in runs.items()}

    def without_record(self, runs: Iterable[Run]) -> list[str]:
        return [f"{run.kind}-{run.identity} ({describe(run)})" for run in runs if self.record(run) is None]

    def run(self, stages: Iterable[Stage] | None = None, *, workers: int = 1, only: str = "") -> list[Record]:
        """Do what has no record yet, then return all records of the stages.

        workers: runs at once; more than one need a script to start under ``if __name__ == "__main__":``, for every
        worker imports it. only: words that a run's description must contain; the records returned are then of
        those runs. A run that fails leaves the others intact; what failed is raised as one StudyError at the end.
        """
        wanted: tuple[Stage, ...] = STAGES if stages is None else tuple(stages)
        open_end = "arms" in wanted and self.rates() is None  # what stage arms holds is not known yet
        runs = self.runs(stage for stage in wanted if not (open_end and stage == "arms"))  # refuses unknown names before any work
        possible = [*runs, *(self._possible_arms() if open_end else [])]
        if possible and not _picked(possible, only):
            raise refuse("only", only, f"words of a run's description, such as {describe(possible[0])!r}")
        failures: list[str] = []
        self.store.sweep()
        self.settings.keep()
        with Workers(workers, self) as pool:
            for stage in sorted(set(wanted), key=STAGES.index):
                if stage == "arms" and self.rates() is None:
                    failures += self._do_stage("rates", pool, only)
                    if self.rates() is None:  # runs failed, or only a part was wanted
                        wanted = tuple(stage for stage in wanted if stage != "arms")
                        continue
                failures += self._do_stage(stage, pool, only)
        if failures:
            raise StudyError(f"{len(failures)} runs failed, the others have their records. First: {failures[0]}")
        return self.records(wanted, only)

    def _possible_arms(self) -> list[Run]:
        """What stage ``arms`` may come to hold: its runs at every learning rate of the list."""
        arms = self.profile.arms
        keys = [(network, method) for network in arms.networks for method in arms.methods]
        grids = (grid(self.profile, self.precision, dict.fromkeys(keys, rate)) for rate in arms.learning_rates)
        return [run for one in grids for run in one["arms"]]

    def _do_stage(self, stage: Stage, pool: Workers, only: str) -> list[str]:
        """Do a stage's runs that have no record; returns what failed."""
        runs = _picked(self.runs([stage]), only)
        todo = self.with_ancestors(run for run in runs if self.record(run) is None)
        if not todo:
            return []
        _ = self.bench.dataset  # missing data is an error before any work starts
        expected = dict(zip((run.identity for run in todo), expected_macs(self.bench, todo), strict=True))
        failures = []
        with tqdm(total=sum(expected.values()), desc=f"{self.profile.name}: {stage}",
                 bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}") as whole:  # fmt: skip
            settled, number, late = 0, 0, None
            for run, error in self._perform(todo, expected, pool, whole.update):
                if isinstance(error, OutOfTime):
                    late = error  # the other workers come to their own end; what waits ends at once
                    continue
                settled, number = settled + expected[run.identity], number + 1
                whole.update(max(0, settled - whole.n))  # expected and real MACs differ a little
                whole.set_postfix_str(f"{number} of {len(todo)} runs, last: {describe(run)}", refresh=False)
                if error is not None:
                    self._failed.add(run.identity)
                    failures.append(str(error))
        if late is not None:
            raise late
        return failures

    def with_ancestors(self, runs: Iterable[Run]) -> list[Run]:
        """Runs, each behind what it builds on and has no record yet."""
        todo: dict[str, Run] = {}
        for run in runs:
            line, parent = [run], run.parent()
            while parent is not None and self.record(parent) is None:
                line.insert(0, parent)
                parent = parent.parent()
            todo |= {one.identity: one for one in line}
        return list(todo.values())

    def _perform(self, todo: Sequence[Run], expected: dict[str, int], pool: Workers, on_macs: OnMacs) -> Iterator[Outcome]:
        """Each run with its error, those that others build on first; trainings from the longest to the shortest."""
        phases = [[r for r in todo if r.kind in kinds] for kinds in (("reference",), ("similarity", "pruned"), ("tuned",))]
        phases[2].sort(key=lambda run: -expected[run.identity])  # nobody waits long for the last one
        for runs in phases:
            barred = [run for run in runs if self._barred(run)]
            yield from ((run, StudyError(f"{describe(run)} failed before")) for run in barred)
            # Runs that share a pass over the calibration images stay together.
            groups: dict[object, list[Run]] = {}
            for run in (run for run in runs if run not in barred):
                cut = run.pruning if run.kind == "pruned" else None
                key = (run.reference, cut.criterion, cut.calibration, cut.calibration_seed) if cut else run.identity
                groups.setdefault(key, []).append(run)
            yield from pool.do(list(groups.values()), on_macs)

    def _barred(self, run: Run) -> bool:
        parent = run.parent()
        return run.identity in self._failed or (parent is not None and self._barred(parent))

    def ensure(self, run: Run, on_macs: OnMacs = lambda macs: None, *, wait: bool = True) -> Record:
        """The record of a run, doing it and what it builds on where there is none.

        Raises Elsewhere where another process has it in hand and that is not to be waited for.
        """
        if (record := self.record(run)) is not None:
            return record
        parent = run.parent()
        parent_record = self.ensure(parent, wait=wait) if parent else None
        with file_lock(self.store.lock(run.identity), describe(run), self.bench.deadline, wait=wait):
            if (record := self.record(run)) is not None:  # another process was faster
                return record
            record = self._done(run, parent_record, on_macs)
            write_record(self.store, record)
            self.bench.checkpoint(run).remove()
        return record

    def _done(self, run: Run, parent: Record | None, on_macs: OnMacs) -> Record:
        started = time.perf_counter()
        with one_thread():
            try:
                result, volatile = do(self.bench, run, parent, self.bench.deadline.watch(on_macs))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise StudyError(f"{describe(run)}: memory ran out; take fewer --workers or free some ({error})") from error
            machine = describe_machine(self.bench.device) | ({"passes": self.bench.passes} if self.bench.passes != "plain" else {})
        return {
            "schema": SCHEMA, "id": run.identity, "kind": run.kind,
            "config": run.model_dump(mode="json"), "result": result, "provenance": machine,
            "volatile": {**volatile, "seconds": time.perf_counter() - started, **describe_moment()},
        }  # fmt: skip


def _picked(runs: Sequence[Run], only: str) -> list[Run]:
    """Runs whose description has all of some words."""
    return [run for run in runs if set(only.split()) <= set(describe(run).replace(",", "").split())]
