"""One process at a time for one piece of work, so that two starts on one results folder share it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile

from filelock import FileLock, Timeout

from fcs_utils.errors import Elsewhere, OutOfTime, StudyError, counted


def check_writable(folder: Path) -> None:
    """Raises StudyError where the folder cannot be made or written to. Nothing is left there."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise StudyError(f"cannot write to {folder}: {error.strerror or error}") from error


@contextmanager
def file_lock(path: Path, what: str, deadline: Deadline | None = None, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file at ``path``. If another process holds it, wait, or raise Elsewhere when ``wait`` is false.

    The lock is the operating system's, so it ends with the process that holds it, even a killed one. Raises OutOfTime when the
    deadline comes first, StudyError when the file cannot be made.
    """
    deadline = deadline or Deadline()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if not wait:
                raise Elsewhere(f"{what} is being done by another process") from error
            print(f"{what} is being done by another process: waiting", file=sys.stderr)
            lock.acquire(timeout=-1 if deadline.at is None else max(0.0, deadline.left))
    except Timeout as error:
        raise OutOfTime("the time budget is used up") from error
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class Deadline:
    """A moment by ``time.monotonic()``, or never. To another process it goes by the wall clock, which machines share."""

    def __init__(self, at: float | None = None) -> None:
        self.at = at

    def __getstate__(self) -> dict[str, float | None]:
        return {"moment": None if self.at is None else time.time() + self.left}

    def __setstate__(self, state: dict[str, float | None]) -> None:
        moment = state["moment"]
        self.at = None if moment is None else time.monotonic() + moment - time.time()

    @property
    def left(self) -> float:
        """Seconds; infinity where there is no deadline."""
        return float("inf") if self.at is None else self.at - time.monotonic()

    def check(self, needed: float = 0.0) -> None:
        """Raises OutOfTime when fewer seconds than ``needed`` are left."""
        if self.left <= needed:
            raise OutOfTime("the time budget is used up")

    def watch(self, on_macs: Callable[[int], None]) -> Callable[[int], None]:
        """Passes on what an epoch spent; raises OutOfTime after one when the next would not end in time."""
        self.check()
        last = time.monotonic()

        def checked(macs: int) -> None:
            nonlocal last
            on_macs(macs)
            now = time.monotonic()
            self.check(now - last)
            last = now

        return checked


def telling(tell: Callable[[str], None], epochs: int, on_macs: Callable[[int], None]) -> Callable[[int], None]:
    """``on_macs`` that also tells, in words, how many epochs of a training were done here. It may go on from a checkpoint."""
    done = count(1)

    def heard(macs: int) -> None:
        tell(f"training, {counted(next(done), 'epoch')} of at most {epochs} done")
        on_macs(macs)

    return heard
