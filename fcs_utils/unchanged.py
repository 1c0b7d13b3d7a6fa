"""What was made from files, kept in memory for as long as they are as they were.

A file counts as unchanged where its place on the disk, its size and its times are the same. Its own time can be set, as unpacking
an archive does; the time of its last change (ctime) cannot. Where these leave a doubt, its content decides.
"""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from fcs_utils.errors import StudyError
from fcs_utils.files import LARGEST, read_bytes

FromFile = TypeVar("FromFile")
SECOND = 1_000_000_000  # nanoseconds
TICK = SECOND // 20  # within which two changes of a file may get one time


class _Kept(NamedTuple, Generic[FromFile]):
    stamp: tuple[int, ...] | None  # None: changed so shortly before that another change may show nowhere but in the content
    digest: bytes
    made: FromFile


def while_unchanged(make: Callable[[Path, bytes], FromFile], most: int = LARGEST) -> Callable[[Path], FromFile]:
    """A function of a path from one of a path and the file's content, which is called again only where the content has changed.

    What it returns is shared: do not change it. Where it raises, nothing is kept. Raises StudyError as ``read_bytes`` does, and
    whatever the function raises.
    """
    known: dict[Path, _Kept[FromFile]] = {}

    @wraps(make)
    def call(path: Path) -> FromFile:
        stamp = _stamp(path)  # before it is read: what changes after this shows at the next call
        if (before := known.pop(path, None)) is None or stamp is None or before.stamp != stamp:
            digest = hashlib.sha256(content := read_bytes(path, most)).digest()
            made = before.made if before is not None and before.digest == digest else make(path, content)
            before = _Kept(stamp, digest, made)
        known[path] = before
        return before.made

    return call


def _stamp(path: Path) -> tuple[int, ...] | None:
    now = time.time_ns()
    try:
        state = os.stat(path)
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    tick = TICK if state.st_ctime_ns % SECOND else 2 * SECOND  # some disks count whole seconds
    if state.st_ctime_ns <= now <= state.st_ctime_ns + tick:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@contextmanager
def keeping_all() -> Iterator[None]:
    """Read very many small things that all stay. Python's collector would walk all of them again and again, and find nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
