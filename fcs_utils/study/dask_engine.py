"""Dask as the engine of a cluster. Other modules see an ``Executor``, ``slots`` and ``everywhere``, and nothing of Dask."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import multiprocessing
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_worker
from tqdm import tqdm

from fcs_utils import __version__
from fcs_utils.errors import OutOfTime, StudyError, first_line
from fcs_utils.machine import sources_sum
from fcs_utils.study.pool import listening

PATIENCE = 10  # seconds in which a scheduler that is there answers
TRACE = 4000  # characters of what went wrong in a worker


class Lost(StudyError):
    """The worker of a piece of work was lost, as were those that it was given to afterwards."""


class Engine(Executor):
    """A cluster's workers. ``again`` counts what was begun once more because a worker was lost."""

    def __init__(self, client: Client, on_macs: Callable[[int], None]) -> None:
        self.again = self._workers = 0
        self._look = time.monotonic()
        self._client, self._on_macs = client, on_macs
        self._topic, self._numbers, self._begun = f"fcs-{secrets.token_hex(8)}", itertools.count(), set[int]()
        client.subscribe_topic(self._topic, self._hear)
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        # Where some workers have a GPU, all runs go there: records of two kinds of machines are not compared.
        self._gpus = any("GPU" in one["resources"] for one in workers)
        self._resources = {"GPU": 1} if self._gpus else None
        self._open = set[Any]()  # Dask drops work whose future nobody keeps

    def _hear(self, event: tuple[float, tuple[int, int]]) -> None:
        number, macs = event[1]
        if macs:
            self._on_macs(macs)
        elif number in self._begun:
            self.again += 1
            tqdm.write("a worker was lost: what it did is begun again", file=sys.stderr)
        else:
            self._begun.add(number)

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        """The future raises Lost or BrokenExecutor where the engine has no result, so no state of its own passes for success."""
        if self._client.status != "running":
            raise BrokenExecutor("the scheduler is gone")
        number, future = next(self._numbers), Future[Any]()

        def pass_on(inner: Any) -> None:
            self._begun.discard(number)
            self._open.discard(inner)
            try:
                future.set_result(inner.result())
            except KilledWorker as error:
                times = error.allowed_failures + 1
                future.set_exception(Lost(f"its worker was lost {times} times, the last time {error.last_worker.address}"))
            except CancelledError:  # no exception tells why
                gone = self._client.status != "running"
                future.set_exception(BrokenExecutor("the scheduler is gone") if gone else Lost("the cluster cancelled it"))
            except BaseException as error:
                future.set_exception(error)

        # Dask's own executor never ends a future whose result was on its way when the scheduler went.
        work = _work, self._topic, number, function, args, keywords
        inner = self._client.submit(*work, pure=False, resources=self._resources)  # pure: equal work is one piece of work
        self._open.add(inner)
        inner.add_done_callback(pass_on)
        if self._client.status != "running":  # Dask cancels what it knows when the scheduler goes, perhaps before this
            raise BrokenExecutor("the scheduler is gone")
        return future

    def slots(self) -> int:
        """How many pieces of work to have in hand now: one a worker. What waited at a lost worker would count as lost with it."""
        if self._client.status == "running" and time.monotonic() >= self._look:  # a question to the scheduler takes milliseconds
            found = self._client.scheduler_info(n_workers=-1 if self._gpus else 0)
            self._workers = (
                sum("GPU" in one["resources"] for one in found["workers"].values()) if self._gpus else found["n_workers"]
            )
            self._look = time.monotonic() + 1
        return max(1, self._workers)

    def everywhere(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What a function returns on every worker that is there now."""
        return list(self._client.run(function, *args).values())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._client.status == "running":
            self._client.cancel([*self._open])  # what is in hand ends at its next epoch


@contextmanager
def connect(address: str, on_macs: Callable[[int], None]) -> Iterator[tuple[Engine, str]]:
    """The cluster whose scheduler answers at ``address``, and the address of its dashboard.

    Waits for a first worker. Raises StudyError where no scheduler answers, where a worker may not take part, and when the scheduler
    is gone.
    """
    for name in [one for one in logging.root.manager.loggerDict if one.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # whatever the user must know is one line of ours
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False, name="fcs-mlft")
    except (OSError, TypeError, ValueError) as error:
        raise StudyError(f"cluster={address!r}: no scheduler answers ({first_line(error)}); see docs/cluster.md") from error
    try:
        expected = versions()
        for worker, why in client.run(refusal, expected).items():
            if why:
                raise StudyError(f"worker {worker} cannot take part: {why}")
        client.register_plugin(Joining(expected), name="fcs-mlft")
        scheduler = client.scheduler_info(n_workers=1)
        if not scheduler["workers"]:
            tqdm.write("no worker yet: waiting for the first", file=sys.stderr)
        client.wait_for_workers(1)
        engine = Engine(client, on_macs)
        try:
            yield engine, client.dashboard_link if "dashboard" in scheduler["services"] else "none"
        finally:
            engine.shutdown()
    except (BrokenExecutor, OSError) as error:
        if client.status == "running":
            raise
        raise StudyError(f"the scheduler at {address} is gone; finished runs have their records, start again to go on") from error
    finally:
        with suppress(Exception):
            client.close(timeout=2)


@cache
def versions() -> dict[str, str]:
    """What must be the same wherever runs are done: torch, and the source of this package."""
    found = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")}
    return {**found, "fcs_utils": f"{__version__} (source {sources_sum()[:8]})"}


# -- in the worker -------------------------------------------------------------------------------------------------


class Joining(WorkerPlugin):
    """Ends every worker that joins later and may not take part."""

    def __init__(self, expected: dict[str, str]) -> None:
        self.expected = expected

    def setup(self, worker: Worker) -> None:
        if why := refusal(self.expected, worker):
            print(f"this worker cannot take part: {why}", file=sys.stderr, flush=True)
            worker.loop.add_callback(worker.close, reason=why)


def refusal(expected: dict[str, str], dask_worker: Worker) -> str:
    """Why a worker may not take part, or nothing."""
    own, worker = versions(), dask_worker
    for name, version in expected.items():
        if own[name] != version:
            return f"it has {name} {own[name]}, the client {version}"
    if worker.state.nthreads != 1:
        return f"it has {worker.state.nthreads} threads; start it with --nthreads 1, and more workers"
    if not worker.death_timeout:
        return "it would outlive its scheduler; start it with --death-timeout 60"
    gpus = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    if "GPU" in worker.state.total_resources and (worker.state.total_resources["GPU"] != 1 or len(gpus) != 1):
        return f"it has GPU={worker.state.total_resources['GPU']:g} and CUDA_VISIBLE_DEVICES={','.join(gpus)!r}; give it one of one"
    memory = worker.memory_manager
    if multiprocessing.current_process().daemon or memory.memory_spill_fraction or memory.memory_target_fraction:
        return "it was started without DASK_CONFIG=fcs_utils/study/cluster.yaml"
    return ""


def own_folder() -> Path:
    """A folder of this worker alone, which Dask removes when it ends."""
    return Path(get_worker().local_directory)


def _work(topic: str, number: int, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    worker = get_worker()
    key = worker.get_current_task()
    worker.log_event(topic, (number, 0))

    def tell(macs: int) -> None:
        worker.log_event(topic, (number, macs))
        if (task := worker.state.tasks.get(key)) is None or task.state == "cancelled":
            raise OutOfTime("nobody waits for this run any more")

    with listening(tell):
        try:
            return function(*args, **keywords)
        except StudyError:
            raise
        except Exception as error:  # goes home as text: one that cannot be pickled would not arrive, and the client wait for ever
            trace = "".join(traceback.format_exception(error))[-TRACE:]
    raise RuntimeError(trace)
