"""How measurements are taken: in turns within one process, or each in a process of its own."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import validate_call

from fcs_utils.config import Config
from fcs_utils.errors import StudyError

Job = TypeVar("Job", bound=Config)
Found = TypeVar("Found")


def in_turns(procedures: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 0) -> dict[str, list[float]]:
    """Seconds of every procedure in every round; within a round each runs once, one after the other.

    A busy minute of the machine then slows all procedures alike, so two times of the same round can be compared. ``warm_up``
    rounds come first and are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in procedures}
    for turn in range(warm_up + rounds):
        for name, procedure in procedures.items():
            started = time.perf_counter()
            procedure()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU still computes when the call is over
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_isolated(
    measure: Callable[[Job], Found], jobs: Sequence[Job], environment: Mapping[str, str | None] | None = None
) -> list[Found]:
    """``measure(job)`` for all jobs at the same time, each in a process of its own.

    No measurement then inherits another one's allocator, threads or peak memory. measure: a function of a module, whose parameter
    is annotated with the job's class; it returns JSON. environment: variables to set; None removes one.

    Raises StudyError with the last line that a failing process wrote. All processes end with this call, however it ends.
    """
    processes = [_begin(measure, job, environment or {}) for job in jobs]
    try:
        answers = [process.communicate() for process in processes]
    finally:  # no process outlives an interrupt
        for process in processes:
            process.kill()
    for job, process, (_, errors) in zip(jobs, processes, answers, strict=True):
        if process.returncode:
            raise StudyError(f"measuring {job} failed: {_last_words(process.returncode, errors)}")
    return [json.loads(text.splitlines()[-1]) for text, _ in answers]


class Stopped(StudyError):
    """A measurement that came to no result: its process took too long, too much memory, or died."""


def measure_limited(
    measure: Callable[[Job], Found], job: Job, seconds: float, memory: int, environment: Mapping[str, str | None] | None = None
) -> Found:
    """``measure(job)`` in a process of its own that may take so many seconds, and so many bytes of address space.

    measure, environment: as in ``measure_isolated``. Whatever the measured code does, the call ends: after the time, the process is
    killed. macOS sets no limit to memory.

    Raises Stopped with the reason in one line.
    """
    process = _begin(measure, job, environment or {}, str(memory))
    try:
        text, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Stopped(f"no end in {seconds:g} s") from None
    finally:
        process.kill()
        process.wait()
    if process.returncode < 0:
        raise Stopped(f"the process was ended by {signal.Signals(-process.returncode).name}")
    if process.returncode or not text.strip():  # measured code may also call sys.exit
        raise Stopped(_last_words(process.returncode, errors))
    found: Found = json.loads(text.splitlines()[-1])
    return found


def _begin(measure: Callable[[Job], Found], job: Job, environment: Mapping[str, str | None], *limits: str) -> subprocess.Popen[str]:
    settings = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-m", __name__, measure.__module__, measure.__name__, job.model_dump_json(), *limits]
    folder = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=settings)  # noqa: S603


def _last_words(status: int, errors: str) -> str:
    return (errors.strip().splitlines() or [f"exit status {status}"])[-1]


def _main(module: str, name: str, job: str, memory: str = "") -> None:
    if memory and sys.platform != "darwin":
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = int(memory) if most == resource.RLIM_INFINITY else min(int(memory), most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    measure = validate_call(getattr(importlib.import_module(module), name))  # makes the job from its fields
    print(f"\n{json.dumps(measure(json.loads(job)))}", flush=True)  # a line of its own, whatever was printed before
    os._exit(0)  # Python would free torch's million objects one by one, which takes about as long as their import


if __name__ == "__main__":
    _main(*sys.argv[1:])
