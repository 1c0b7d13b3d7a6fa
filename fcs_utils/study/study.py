"""Running a profile: every run at most once, each leaving one record. Notebooks and the command line call it alike."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import InstanceOf
from tqdm import tqdm

from fcs_utils.config import checked
from fcs_utils.errors import StudyError, counted, is_out_of_memory, refuse
from fcs_utils.machine import describe_machine, describe_moment, pick_device, some_threads
from fcs_utils.pruning.criteria import CRITERIA
from fcs_utils.study.catalogue import AFTER_RATES, STAGES, Stage
from fcs_utils.study.cluster import runs_on
from fcs_utils.study.grid import Rates, check_stages, grid
from fcs_utils.study.guards import Deadline
from fcs_utils.study.kinds import do
from fcs_utils.study.networks import Bench, OnMacs
from fcs_utils.study.packed import Record
from fcs_utils.study.pool import report_macs
from fcs_utils.study.profiles import Profile, check_fields, get_profile, import_plugins
from fcs_utils.study.rates import choose_learning_rates, margin
from fcs_utils.study.records import Settings, Store, read_record, reading_many, write_record
from fcs_utils.study.runs import SCHEMA, Run, describe
from fcs_utils.study.schedule import Schedule, check_needs, expected_macs, perform
from fcs_utils.study.selection import parse_only
from fcs_utils.study.weights import with_sums
from fcs_utils.training.arms import ARMS
from fcs_utils.training.passes import Mode, check_mode


class Study:
    """A profile's runs, their records in ``out/profile``, and ``bench``, the networks behind them.

    passes: how training passes are done; records say it, because results differ by rounding, as between machines.
    plugins: modules that add criteria or arms, besides those that the profile names.
    Raises StudyError for an unknown profile or a wrong field of one, an unknown device, passes that it lacks, and a plugin that
    cannot be imported. In the results folder, nothing is created before ``run``.
    """

    @checked
    def __init__(
        self,
        profile: str | InstanceOf[Profile],
        out: str | Path = "results",
        data: str | Path | None = None,
        device: str = "auto",
        passes: Mode = "plain",
        plugins: Sequence[str] = (),
    ) -> None:
        import_plugins(plugins)
        self.profile = check_fields(profile.model_dump()) if isinstance(profile, Profile) else get_profile(profile)
        self.profile = with_sums(self.profile, data)
        self._arguments, self._plugins = (self.profile, out, data, device, passes), plugins
        self.store = Store(out, self.profile.name)
        self.bench = Bench(self.store, self.profile.dataset, data, pick_device(device), passes)
        check_mode(passes, self.bench.device)
        self.settings = Settings(self.store, self.profile.precision, self.bench.device, lambda: self.bench.dataset)
        self.precision = self.settings.precision
        self.grid = grid(self.profile, self.precision)
        self._rates: Rates | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker opens the same study once and keeps it, with its networks and statistics.
        found = [one.module for one in CRITERIA.values() if one.outside and one.code]  # imported by hand, perhaps
        outside = [*found, *(arm.module for arm in ARMS.values() if arm.code)]
        return _reopen, (self.bench.deadline, *self._arguments, tuple(dict.fromkeys((*self._plugins, *outside))))

    def runs(self, stages: Iterable[Stage] | None = None, only: Sequence[str] = ()) -> list[Run]:
        """The runs of some stages (default: all), each once, in order; ``only`` as in ``run``.

        Raises StudyError for an unknown stage, for ``arms`` while its runs are not known, and as ``parse_only`` does.
        """
        runs, likely = self._wanted(stages, only)
        if likely:
            raise StudyError("the arms' runs follow from stage 'rates', which is not complete: " + self._how_to_go_on())
        return runs

    def _wanted(self, stages: Iterable[Stage] | None, only: Sequence[str]) -> tuple[list[Run], list[Run]]:
        """The runs that are known; and while those of the arms are not, runs at one of their rates, which cost the same."""
        wanted, selection, arms = check_stages(stages), parse_only(only), self.profile.arms
        late = [stage for stage in wanted if stage in AFTER_RATES]
        if unknown := bool(late) and self.rates() is None:
            keys = [(network, method) for network in arms.networks for method in arms.methods]
            grids = [grid(self.profile, self.precision, dict.fromkeys(keys, rate)) for rate in arms.learning_rates]
        else:
            grids = [self.grid]
        selection.check(*({stage: one[stage] for stage in wanted} for one in grids))
        known = selection.pick({stage: grids[0][stage] for stage in wanted if not (unknown and stage in late)})
        likely = [selection.pick({stage: one[stage] for stage in late}) for one in grids] if unknown else []
        return known, next(filter(None, likely), [])

    def rates(self) -> Rates | None:
        """The learning rate of every arm, chosen on validation from stage ``rates``; None while that is incomplete."""
        if self._rates is None:
            records = [record for run in self.grid["rates"] if (record := self.record(run)) is not None]
            if len(records) == len(self.grid["rates"]):
                self._rates = choose_learning_rates(records, margin(self.settings.validation_images))
                self.grid = grid(self.profile, self.precision, self._rates)
        return self._rates

    def missing(self) -> dict[Stage, int]:
        """How many runs of each stage have no record yet; stages that are complete are left out."""
        undecided = () if self.rates() is not None else self.profile.after_rates
        counts = {stage: len(self.without_record(runs)) for stage, runs in self.grid.items()} | dict.fromkeys(undecided, 1)
        return {stage: count for stage, count in counts.items() if count}

    def _how_to_go_on(self) -> str:
        return f"do it with: python -m fcs_utils run --profile {self.profile.name}"

    def record(self, run: Run) -> Record | None:
        """The record of a run, or None where it has not been done. All readers share it: copy it before changing it."""
        return read_record(self.store, run)

    @reading_many()
    def records(self, stages: Iterable[Stage] | None = None, only: Sequence[str] = ()) -> list[Record]:
        """The records of some stages, reading only, and shared as that of ``record``. Raises StudyError naming the missing ones."""
        found = [(run, self.record(run)) for run in self.runs(stages, only)]
        if missing := [_named(run) for run, record in found if record is None]:
            raise StudyError(
                f"{len(missing)} of {len(found)} runs of profile {self.profile.name} have no record in {self.store.root}: "
                f"{'; '.join(missing[:5] + ['...'] * (len(missing) > 5))}; {self._how_to_go_on()}"
            )
        return [record for _, record in found if record is not None]

    @reading_many()
    def found(self) -> dict[Stage, list[Record]]:
        """The records that are there, by stage, each once in a stage."""
        self.rates()
        runs = {stage: {run.identity: run for run in self.grid.get(stage, ())} for stage in STAGES}
        return {stage: [record for run in runs[stage].values() if (record := self.record(run)) is not None] for stage in STAGES}

    def without_record(self, runs: Iterable[Run]) -> list[str]:
        return [_named(run) for run in runs if self.record(run) is None]

    def pending(self, stages: Iterable[Stage] | None = None, only: Sequence[str] = ()) -> list[Run]:
        """What ``run`` would do, each run after what it builds on.

        While the arms' learning rates are open, the first of the list stands for the chosen one.
        Raises StudyError for an unknown stage, and for a selection that no run can meet.
        """
        certain, likely = self._pending(stages, only)
        return [*certain, *likely]

    def _pending(self, stages: Iterable[Stage] | None, only: Sequence[str]) -> tuple[list[Run], list[Run]]:
        """Runs to do, and those that stand for what stage ``arms`` will hold while that is not known."""
        runs, likely = self._wanted(stages, only)
        certain = self._with_ancestors([*runs, *(self.grid["rates"] if likely else [])])
        known = {run.identity for run in certain}
        return certain, [run for run in self._with_ancestors(likely) if run.identity not in known]

    def _with_ancestors(self, runs: Iterable[Run]) -> list[Run]:
        """Those of some runs that have no record, each once and after what it builds on."""
        todo: dict[str, Run] = {}
        for run in runs:
            line: list[Run] = []
            one: Run | None = run
            while one is not None and one.identity not in todo and self.record(one) is None:
                line.insert(0, one)
                one = one.parent()
            todo |= {one.identity: one for one in line}
        return list(todo.values())

    def run(
        self, stages: Iterable[Stage] | None = None, *, workers: int = 1, only: Sequence[str] = (), cluster: str | None = None
    ) -> list[Record]:
        """Do what has no record yet, then return all records of the stages.

        workers: runs at once; more than one need a script to start under ``if __name__ == "__main__":``, for every worker imports
        it. only: words such as ``criterion=fcs``, see ``parse_only``; the records returned are then of those runs. cluster: a
        scheduler whose workers do the runs instead, see ``on_cluster``. What a run needs and the data set lacks is refused
        before any work. A run that fails leaves the others intact; what failed is raised as one StudyError at the end.
        """
        wanted = check_stages(stages)
        if workers < 1:
            raise refuse("workers", workers, "1 or more")
        certain, likely = self._pending(wanted, only)
        if certain:
            check_needs(self.bench, [*certain, *likely], self.profile.calibration)
        self.store.sweep()
        self.settings.keep()
        if certain:
            self._perform(wanted, only, (workers, cluster), certain, likely)
        return self.records(wanted, only)

    def _perform(
        self, stages: Sequence[Stage], only: Sequence[str], place: tuple[int, str | None], certain: list[Run], likely: list[Run]
    ) -> None:
        expected = expected_macs(self.bench, [*certain, *likely])
        pilots = {run.identity: max((expected[arm.identity] for arm in likely), default=0) for run in self.grid["rates"]}
        schedule, failures, done = Schedule(), [], 0
        turns = {} if self.bench.deadline.at is None else self.profile.turns  # what a budget leaves whole can be compared
        schedule.add(certain, expected, pilots, turns)
        bar = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left{postfix}"
        whole = tqdm(total=sum(expected.values()), desc=self.profile.name, bar_format=bar)
        with whole, runs_on(self, *place, whole.update) as (pool, at_once):
            for number, (run, error) in enumerate(perform(schedule, pool, at_once, self.ensure), 1):
                if likely and run.identity in pilots and self.rates() is not None:  # stage arms is known from here on
                    likely, pending = [], self._pending(stages, only)[0]
                    expected = expected_macs(self.bench, [*certain, *pending])
                    schedule.add(pending, expected, turns=turns)
                    whole.total = sum(expected.values())
                done += expected[run.identity]
                whole.update(max(0, done - whole.n))  # expected and real MACs differ a little
                whole.set_postfix_str(f"{number} of {len(expected)} runs, last: {describe(run)}", refresh=False)
                if error is not None:
                    failures.append(str(error))
        if failures:
            more = f" and {schedule.dropped} that build on them were not done" if schedule.dropped else ""
            raise StudyError(f"{counted(len(failures), 'run')} failed{more}, the others have their records. First: {failures[0]}")

    def ensure(self, run: Run, on_macs: OnMacs = report_macs, *, wait: bool = True) -> Record:
        """The record of a run, doing it and what it builds on where there is none.

        Raises Elsewhere when another process is doing it and ``wait`` is false.
        """
        if (record := self.record(run)) is not None:
            return record
        parent_record = self.ensure(parent, wait=wait) if (parent := run.parent()) else None
        with self.bench.in_hand(run, wait=wait):
            if (record := self.record(run)) is None:  # no other process was faster
                record = self._done(run, parent_record, on_macs)
                write_record(self.store, record)
        return record

    def _done(self, run: Run, parent: Record | None, on_macs: OnMacs) -> Record:
        started = time.perf_counter()
        with some_threads(1):
            try:
                result, volatile = do(self.bench, run, parent, self.bench.deadline.watch(on_macs))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise StudyError(f"{describe(run)}: memory ran out; take fewer --workers or free some ({error})") from error
            machine = describe_machine(self.bench.device) | ({"passes": self.bench.passes} if self.bench.passes != "plain" else {})
            if run.kind != "reference" and self.bench.load(run.reference).again:
                machine["reference"] = "trained again"
        config = {"schema": SCHEMA, "id": run.identity, "kind": run.kind, "config": run.model_dump(mode="json")}
        volatile |= {"seconds": time.perf_counter() - started, **describe_moment()}
        return {**config, "result": result, "provenance": machine, "volatile": volatile}


def _named(run: Run) -> str:
    return f"{run.kind}-{run.identity} ({describe(run)})"


_opened: list[tuple[tuple[Any, ...], Study]] = []  # in a worker, one


def _reopen(deadline: Deadline, *arguments: Any) -> Study:
    if not _opened or _opened[0][0] != arguments:  # compared, because a profile cannot be hashed
        _opened[:] = [(arguments, Study(*arguments))]
    study = _opened[0][1]
    study.bench.deadline = deadline
    return study
