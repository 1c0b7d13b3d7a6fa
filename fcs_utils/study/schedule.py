"""The order in which runs are done: each after what it builds on, those on the longest chain of runs first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import count
from statistics import fmean
from typing import NamedTuple

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import Elsewhere, OutOfTime, StudyError, first_line, refuse
from fcs_utils.models import count_macs
from fcs_utils.study.networks import Bench
from fcs_utils.study.runs import Run

Errors = Sequence[StudyError | None]


class Group(NamedTuple):
    """Runs that one worker does, one after the other, because they share a pass over the calibration images."""

    turn: int  # groups of an earlier turn come first
    way: int  # minus the MACs of the longest chain of runs that starts here
    number: int  # in the order of adding
    runs: list[Run]
    wait: bool = False  # for another process that is doing them


class Schedule:
    """Which runs can be done now. Runs may be added at any time, each after what it builds on, the longest chain of runs first.

    What builds on a failed run is not done; ``dropped`` counts it. What another process is doing comes last.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._done: dict[str, bool | None] = {}  # by identity; None is open, False has failed
        self._number = count()
        self._ready: list[Group] = []  # a heap
        self._behind: dict[str, list[Group]] = {}  # by the run whose end they wait for
        self._elsewhere: list[Group] = []

    def add(
        self,
        runs: Iterable[Run],
        macs: Mapping[str, int],
        behind: Mapping[str, int] | None = None,
        turns: Mapping[int, int] | None = None,
    ) -> None:
        """macs: what each run is expected to take. behind: further MACs that wait for some runs. turns: the place of each seed."""
        new, ways, order = [run for run in runs if run.identity not in self._done], dict(behind or {}), turns or {}
        groups: dict[object, list[Run]] = {}
        for run in reversed(new):
            ways[run.identity] = macs[run.identity] + ways.get(run.identity, 0)
            if parent := run.parent():
                ways[parent.identity] = max(ways.get(parent.identity, 0), ways[run.identity])
        for run in new:
            cut = run.pruning if run.kind == "pruned" else None
            key = (run.reference, cut.criterion, cut.calibration, cut.calibration_seed) if cut else run.identity
            groups.setdefault(key, []).append(run)
            self._done[run.identity] = None
        for group in groups.values():
            before = parent.identity if (parent := group[0].parent()) else ""
            way, turn = max(ways[run.identity] for run in group), order.get(group[0].reference.seed, 0)
            self._behind.setdefault(before, []).append(Group(turn, -way, next(self._number), group))
            if (done := self._done.get(before, True)) is not None:  # a run that is not known here has its record
                self._release(before, failed=not done)

    def _release(self, parent: str, *, failed: bool) -> None:
        """Let go on, or drop, what waited for a run."""
        for group in self._behind.pop(parent, []):
            if not failed:
                heapq.heappush(self._ready, group)
                continue
            self.dropped += len(group.runs)
            for run in group.runs:
                self._done[run.identity] = False
                self._release(run.identity, failed=True)

    def pop(self, *, idle: bool) -> Group | None:
        """What to do next, or None. idle: no run is in progress here, so waiting for other processes is allowed."""
        if self._ready:
            return heapq.heappop(self._ready)
        return self._elsewhere.pop(0) if idle and self._elsewhere else None

    def settle(self, run: Run, error: StudyError | None) -> None:
        """A run has its record, has failed, or turned out to be in progress elsewhere."""
        if isinstance(error, Elsewhere):
            self._elsewhere.append(Group(0, 0, 0, [run], wait=True))
        else:
            self._done[run.identity] = error is None
            self._release(run.identity, failed=error is not None)


def attempt(ensure: Callable[..., object], runs: Sequence[Run], wait: bool) -> Errors:
    """Do runs one after the other, where the executor has its workers; returns each one's error, or None."""
    errors: list[StudyError | None] = [None] * len(runs)
    for number, run in enumerate(runs):
        try:
            ensure(run, wait=wait)
        except StudyError as error:
            errors[number] = error
    return errors


def perform(
    schedule: Schedule, executor: Executor, at_once: int | Callable[[], int], ensure: Callable[..., object]
) -> Iterator[tuple[Run, StudyError | None]]:
    """Do all runs of a schedule, ``at_once`` groups at a time; yields each with its error when its group is done.

    at_once: a number, or what tells it each second where workers come and go.
    ensure: called with a run and ``wait``: whether to wait for another process that is doing it, or to raise Elsewhere.
    When time is up no further run starts; OutOfTime is raised after the runs in progress have ended.
    """
    flying: dict[Future[Errors], Group] = {}
    late: OutOfTime | None = None
    while True:
        idle, most = not flying, at_once if isinstance(at_once, int) else at_once()
        while late is None and len(flying) < most and (group := schedule.pop(idle=idle)):
            flying[executor.submit(attempt, ensure, group.runs, group.wait)] = group
        if not flying:
            break
        for future in wait(flying, None if isinstance(at_once, int) else 1.0, FIRST_COMPLETED).done:
            for run, error in zip(flying.pop(future).runs, future.result(), strict=True):
                if isinstance(error, OutOfTime):
                    late = error
                    continue
                schedule.settle(run, error)
                if not isinstance(error, Elsewhere):
                    yield run, error
    if late is not None:
        raise late


def check_needs(bench: Bench, runs: Sequence[Run], calibration: int) -> None:
    """Raises StudyError where the data set has too few training images for some runs, or images that their networks cannot take.

    It raises it, too, where the weights of a given reference are missing or do not fit.

    calibration: images that notebooks take, whatever the runs.
    """
    data, counts = bench.dataset, {"calibration": calibration, "batch_size": 1}
    for run in runs:
        cut, training = run.pruning or run.similarity, run.tuning.training if run.tuning else run.reference.training
        counts["calibration"] = max(counts["calibration"], cut.calibration if cut else 1)
        counts["batch_size"] = max(counts["batch_size"], training.batch_size if training else 1)
    for name, needed in counts.items():
        if needed > len(data.train):
            raise refuse(name, needed, f"1 to {len(data.train)}, the training split of {data.name}")
    for reference in {(r.reference.network, r.reference.width, r.reference.weights): r.reference for r in runs}.values():
        network, image = bench.untrained(reference), bench.data(reference).normalise(data.train.images[:1])
        try:
            count_macs(network, image)
        except StudyError as error:
            own = first_line(error.__cause__ or error)  # the network's words
            why = f"a network that takes the {data.size}x{data.size} images of {data.name} ({own})"
            raise refuse("network", reference.network, why) from error
        if reference.weights:
            bench.trained(reference)  # a file that is missing, or weights of another network


def expected_macs(bench: Bench, runs: Sequence[Run]) -> dict[str, int]:
    """Training MACs of runs before they are done, by identity: for the time left and for what to do first.

    Records count the MACs of the real networks.
    """
    networks = {(r.reference.network, r.reference.width): r.reference for r in runs}
    dense = {key: count_macs(bench.untrained(reference), bench.example) for key, reference in networks.items()}
    data = bench.dataset
    return {r.identity: round(_passes(r, data) * dense[r.reference.network, r.reference.width]) for r in runs}


def _passes(run: Run, data: Dataset) -> float:
    """Forward passes of the dense network, one image each, that a run costs as much as; a training step is three."""
    if run.tuning and run.pruning:
        rates = run.pruning.rates or (run.pruning.ratio or 0,)
        left = run.pruning.macs or 1 - fmean(rates.values() if isinstance(rates, dict) else rates)
        if run.tuning.budget == "macs":
            left = 1.0  # so many epochs that it is as much as the dense network's training
        arm = run.tuning.arm
        peer = {"none": [], "original": [1.0], "compact": [left]}[arm.peer]
        return run.tuning.training.epochs * len(data.train) * arm.macs_per_image([left, *peer])
    if run.kind == "reference" and (training := run.reference.training):
        return 3 * training.epochs * len(data.train)
    # No training: judged on the validation images, and before and after recalibration on the test images.
    return len(data.validation) + 2 * len(data.test)
