"""Runs are done after what they build on, the longest way first, by any executor that can submit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from copy import copy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fcs_utils.errors import Elsewhere, OutOfTime, StudyError
from fcs_utils.study.grid import grid
from fcs_utils.study.guards import Deadline
from fcs_utils.study.pool import Here, Workers, executor, report_macs
from fcs_utils.study.profiles import get_profile
from fcs_utils.study.runs import Run
from fcs_utils.study.schedule import Schedule, perform
from fcs_utils.study.study import Study
from tests.study.nodes import until

GRID = grid(get_profile("smoke"), "fp32")
VGG, RESNET = GRID["reference"]
CUTS = [run for run in GRID["pruned"] if run.pruning and run.pruning.criterion in ("fcs", "kernel_l1")]
TUNED = [run for run in GRID["tuned"] if run.parent() in CUTS]


def scheduled(runs: Sequence[Run], macs: dict[str, int] | None = None) -> Schedule:
    schedule = Schedule()
    schedule.add(runs, macs or {run.identity: 1 for run in runs})
    return schedule


class Stuck(Executor):
    """Does what is submitted at once, but for one run, which never ends; keeps what was submitted."""

    def __init__(self, run: Run) -> None:
        self.run, self.groups = run, list[list[Run]]()

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        self.groups.append(list(args[1]))
        return Future() if self.run in args[1] else Here().submit(function, *args, **keywords)


class Together(Executor):
    """Holds a first submission until there is a second one, so that both are in hand at once."""

    def __init__(self) -> None:
        self.held: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        self.held.append((Future(), partial(function, *args, **keywords)))
        if len(self.held) == 2:
            for future, do in self.held:
                future.set_result(do())
        return self.held[-1][0]


def test_every_run_comes_after_its_parent_whatever_the_executor() -> None:
    runs = [VGG, RESNET, *CUTS, *TUNED]
    with ThreadPoolExecutor(3) as threads:
        for pool, at_once in ((Here(), 1), (threads, 3)):
            done: list[str] = []

            def ensure(run: Run, *, wait: bool, done: list[str] = done) -> None:
                parent = run.parent()
                assert parent is None or parent.identity in done
                done.append(run.identity)

            ends = list(perform(scheduled(runs), pool, at_once, ensure))
            assert not any(error for _, error in ends)
            assert sorted(done) == sorted(run.identity for run in runs) == sorted(run.identity for run, _ in ends)


def test_what_the_longest_way_hangs_on_comes_first() -> None:
    (long,) = (run for run in TUNED if run.parent() == CUTS[-1])
    assert long.reference == RESNET.reference
    runs = [VGG, RESNET, CUTS[-1], long]
    order = [
        run
        for run, _ in perform(
            scheduled(runs, {VGG.identity: 5, RESNET.identity: 1, CUTS[-1].identity: 1, long.identity: 9}),
            Here(),
            1,
            lambda run, wait: None,
        )
    ]
    assert order == [RESNET, CUTS[-1], long, VGG]


def test_within_a_budget_one_seed_is_done_after_the_other() -> None:
    profile = get_profile("smoke").model_copy(update={"seeds": (3, 1)})
    assert [*profile.turns] == [*profile.arms.pilot_seeds, 3, 1, *profile.arms.further_seeds]
    runs = grid(profile, "fp32")["reference"]
    macs = {run.identity: 10 if run.reference.seed == 1 else 1 for run in runs}  # the longer ones have the later turn
    schedule = Schedule()
    schedule.add(runs, macs, turns=profile.turns)
    done = [run.reference.seed for run, _ in perform(schedule, Here(), 1, lambda run, wait: None)]
    assert done == [3] * (len(runs) // 2) + [1] * (len(runs) // 2) and len(done) > 2


def test_runs_that_share_a_pass_are_one_submission_and_no_stage_is_waited_for() -> None:
    runs = [VGG, RESNET, *CUTS, *TUNED]
    free = [run for run in runs if run.reference == VGG.reference]
    stuck = Stuck(RESNET)
    ends = islice(perform(scheduled(runs), stuck, 2, lambda run, wait: None), len(free))
    assert sorted(run.identity for run, _ in ends) == sorted(run.identity for run in free)  # though RESNET is still in hand
    pruned = [group for group in stuck.groups if group[0].kind == "pruned"]
    assert len(pruned) == 2 and all(len({run.pruning.criterion for run in group if run.pruning}) == 1 for group in pruned)
    assert [len(group) for group in pruned] == [1, 1]  # the smoke profile has one ratio


def test_a_failed_run_fails_what_builds_on_it_and_nothing_else() -> None:
    schedule, tried = scheduled([VGG, RESNET, *CUTS, *TUNED]), []

    def ensure(run: Run, *, wait: bool) -> None:
        tried.append(run)
        if run == VGG:
            raise StudyError("broke")

    ends = list(perform(schedule, Here(), 1, ensure))
    assert [run for run, error in ends if error] == [VGG]
    assert schedule.dropped == sum(run.reference == VGG.reference for run in (*CUTS, *TUNED))
    assert len(tried) == 1 + sum(run.reference == RESNET.reference for run in (RESNET, *CUTS, *TUNED))
    schedule.add(TUNED, {run.identity: 1 for run in TUNED})  # what failed or is done is not done again
    assert not list(perform(schedule, Here(), 1, ensure))


def test_runs_may_be_added_while_others_are_done() -> None:
    schedule, done = scheduled([VGG, *CUTS]), []
    macs = {run.identity: 1 for run in (VGG, RESNET, *CUTS, *TUNED)}
    for run, _ in perform(schedule, Here(), 1, lambda run, wait: None):
        done.append(run)
        if run == VGG:  # ties, and a run that is known already
            schedule.add([VGG, RESNET, *TUNED], macs)
    assert {run.identity for run in done} == macs.keys() and len(done) == len(macs)


def test_what_is_in_hand_elsewhere_comes_last_and_is_then_waited_for() -> None:
    seen: list[tuple[Run, bool]] = []

    def ensure(run: Run, *, wait: bool) -> None:
        seen.append((run, wait))
        if run == VGG and not wait:
            raise Elsewhere("by another process")

    ends = [run for run, _ in perform(scheduled([VGG, RESNET, *TUNED, *CUTS][:2]), Here(), 1, ensure)]
    assert seen == [(VGG, False), (RESNET, False), (VGG, True)] and ends == [RESNET, VGG]


def test_when_time_is_up_runs_in_hand_end_and_no_other_begins() -> None:
    both, ended = Together(), []

    def ensure(run: Run, *, wait: bool) -> None:
        if run == VGG:
            raise OutOfTime("enough")
        ended.append(run)

    with pytest.raises(OutOfTime):
        list(perform(scheduled([VGG, RESNET, *CUTS]), both, 2, ensure))
    assert ended == [RESNET] and len(both.held) == 2


def test_an_interrupt_leaves_this_process_as_executor_at_once() -> None:
    def interrupted(run: Run, *, wait: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Here().submit(interrupted, VGG, wait=True)


def test_workers_tell_of_every_epoch_and_a_dead_one_is_an_error() -> None:
    heard = threading.Event()
    with executor(2, lambda macs: heard.set()) as pool:
        pool.submit(report_macs, 7).result()
        assert heard.wait(60)
    with pytest.raises(StudyError, match="a worker process died"), executor(2, lambda macs: None) as pool:
        pool.submit(os._exit, 1).result()
    # They were told to end. While another thread waits for one, too, it counts as active for a moment longer.
    until(lambda: not multiprocessing.active_children())


class Interrupts:
    """Interrupts the process that reads it, as Ctrl-C may while a worker is starting."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').kill(__import__('os').getpid(), 2)",)


def test_no_interrupt_reaches_a_worker_that_is_starting() -> None:
    deaf = Workers(1, multiprocessing.get_context("spawn"), initializer=repr, initargs=(Interrupts(),))
    with deaf:
        assert deaf.submit(pow, 2, 3).result() == 8
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT}, "this process does hear it"


def test_a_worker_opens_a_study_once_and_hears_of_every_deadline(tmp_path: Path) -> None:
    study = Study("smoke", tmp_path)
    first = copy(study)  # by the same means as when it is sent to a worker
    study.bench.deadline = Deadline(5.0)
    assert copy(study) is first and first is not study
    assert first.bench.deadline.at == 5.0 and first.store.root == study.store.root
