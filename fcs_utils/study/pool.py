"""Executors for runs side by side: processes of one thread each, or this process.

With one thread a run's result does not depend on how many cores the machine has. Small networks in small batches use a
second thread badly: two runs at once then finish up to twice as much as one run on two threads. In larger batches the two
ways are about equal; notebook 08 measures both.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import wait
from typing import Any

from fcs_utils.errors import StudyError

# After a second interrupt Python's helper process clears up the semaphores, and would warn of each time that it had to.
QUIET = "ignore::UserWarning:multiprocessing.resource_tracker"

_listeners: list[Callable[[int], None]] = []  # at most one: who hears of the MACs that runs in this process spend


def report_macs(macs: int) -> None:
    """Report how many MACs an epoch took to the process that waits for this one's runs."""
    for listener in _listeners:
        listener(macs)


@contextmanager
def listening(on_macs: Callable[[int], None]) -> Iterator[None]:
    """``on_macs`` hears of every epoch of runs in this process inside the block."""
    _listeners.append(on_macs)
    try:
        yield
    finally:
        _listeners.remove(on_macs)


class Here(Executor):
    """This process as an executor: what is submitted is done before ``submit`` returns."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


class Workers(ProcessPoolExecutor):
    """Processes that no interrupt reaches, not even while they start. Ctrl-C goes to the whole group; the parent ends them."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a process that this starts inherits it
        try:
            return super().submit(function, *args, **keywords)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def executor(workers: int, on_macs: Callable[[int], None]) -> Iterator[Executor]:
    """An executor of so many processes, or of this one for one worker; ``on_macs`` hears of every epoch.

    Processes start when they are needed. They end with the block, at once where an error leaves it, and with this process,
    however that ends. Raises StudyError when one of them dies.
    """
    with listening(on_macs) if workers == 1 else nullcontext(), Here() if workers == 1 else processes(workers, on_macs) as pool:
        yield pool


@contextmanager
def processes(workers: int, on_macs: Callable[[int], None]) -> Iterator[Executor]:
    """An executor of processes, also where it is one; see ``executor``."""
    if QUIET not in sys.warnoptions:
        sys.warnoptions.append(QUIET)
    context = multiprocessing.get_context("spawn")  # a forked torch hangs
    queue, done, others = context.SimpleQueue(), threading.Event(), set(multiprocessing.active_children())
    pool = Workers(workers, context, initializer=_start, initargs=(queue,))
    threading.Thread(target=_listen, args=(queue, done, on_macs), daemon=True).start()
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:  # after an interrupt, do not wait for runs in progress
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenExecutor):
            raise StudyError(
                "a worker process died, perhaps because memory ran out (take fewer --workers) or because a script started it "
                "outside of if __name__ == '__main__'; finished runs have their records, start again to go on"
            ) from error
        raise
    finally:
        done.set()


def _listen(queue: Any, done: threading.Event, on_macs: Callable[[int], None]) -> None:
    # In a daemon thread: a killed worker may leave a half-written number, and nothing must wait for the rest.
    while not done.wait(0.2):
        while not queue.empty():
            on_macs(queue.get())


# -- in the worker -------------------------------------------------------------------------------------------------


def _start(queue: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # what a run starts may ask for interrupts
    threading.Thread(target=_die_with_parent, daemon=True).start()
    atexit.register(os._exit, 0)  # Python would free torch's million objects one by one while the parent waits
    _listeners.append(queue.put)


def _die_with_parent() -> None:
    # Killed outright, a parent cannot tell its workers to stop.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
