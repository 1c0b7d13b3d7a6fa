"""Independent runs side by side: a process each, one thread each.

With one thread a run's result does not depend on how many cores the machine has. Small networks in small batches use a
second thread badly: two runs at once then finish up to twice as much as one run on two threads. In larger batches the two
ways are about equal; notebook 08 measures both.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any

from fcs_utils.errors import Elsewhere, StudyError, refuse
from fcs_utils.study.guards import Deadline
from fcs_utils.study.runs import Run

Outcome = tuple[Run, StudyError | None]


class Workers:
    """Processes that do runs of one study; each opens the study for itself. One worker is this process.

    A context manager: they start with the first runs and end with it. Raises StudyError for fewer than one.
    """

    def __init__(self, count: int, study: Any) -> None:
        if count < 1:
            raise refuse("workers", count, "1 or more")
        self._count, self._study = count, study
        self._context = multiprocessing.get_context("spawn")  # a forked torch hangs
        self._macs: Any = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            if kind is not None:  # whoever interrupts does not want to wait for the runs in hand
                for process in multiprocessing.active_children():
                    process.terminate()

    def do(self, groups: Sequence[Sequence[Run]], on_macs: Callable[[int], None]) -> Iterator[Outcome]:
        """Do groups of runs; yields each run when its group is done, with its error. ``on_macs`` hears of every epoch.

        Groups are independent of each other. What another start on the same results has in hand comes last, so that
        the two share the work. Raises StudyError when a process dies.
        """
        elsewhere: list[Sequence[Run]] = []
        for run, error in self._once(groups, on_macs, wait=False):
            if isinstance(error, Elsewhere):
                elsewhere.append([run])
            else:
                yield run, error
        yield from self._once(elsewhere, on_macs, wait=True)

    def _once(self, groups: Sequence[Sequence[Run]], on_macs: Callable[[int], None], wait: bool) -> Iterator[Outcome]:
        if self._count == 1:
            for group in groups:
                yield from _settle(self._study, group, on_macs, wait)
            return
        if self._pool is None and groups:
            self._macs = self._context.SimpleQueue()
            start = (type(self._study), self._study.arguments, self._study.bench.deadline, self._macs)
            self._pool = ProcessPoolExecutor(self._count, self._context, initializer=_start, initargs=start)
        waiting = {self._pool.submit(_do, group, wait) for group in groups} if self._pool else set()
        while waiting:
            finished, waiting = futures.wait(waiting, timeout=0.2, return_when=futures.FIRST_COMPLETED)
            while not self._macs.empty():
                on_macs(self._macs.get())
            for future in finished:
                try:
                    yield from future.result()
                except BrokenProcessPool as error:
                    raise StudyError(
                        "a worker process died, for want of memory (take fewer --workers) or because a script started it outside "
                        "of if __name__ == '__main__'; finished runs have their records, start again to go on"
                    ) from error


def _settle(study: Any, group: Sequence[Run], on_macs: Callable[[int], None], wait: bool) -> Iterator[Outcome]:
    for run in group:
        try:
            study.ensure(run, on_macs, wait=wait)
        except StudyError as error:
            yield run, error
        else:
            yield run, None


# -- in the worker -------------------------------------------------------------------------------------------------

_here: dict[str, Any] = {}


def _start(opened: Callable[..., Any], arguments: tuple[Any, ...], deadline: Deadline, macs: Any) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _here["study"], _here["macs"] = opened(*arguments), macs
    _here["study"].bench.deadline = deadline


def _die_with_parent() -> None:
    # Killed outright, a parent cannot tell its workers to stop.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _do(group: Sequence[Run], wait: bool) -> list[Outcome]:
    return list(_settle(_here["study"], group, _here["macs"].put, wait))
