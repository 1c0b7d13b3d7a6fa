"""The C library's allocator, told to keep what is freed and to take memory in huge pages."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30


@cache
def keep_freed_memory() -> None:
    """Let this process keep large blocks that are freed, for the next tensors; results stay the same to the last bit.

    By default glibc gives the map of every layer back to the system and takes it again, zeroed page by page, in the
    next step: up to a seventh of a training step's time. Nothing happens where the C library knows no ``mallopt``.
    """
    with suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        if not libc.mallopt(M_MMAP_THRESHOLD, GIBIBYTE):  # glibc before 2.35 takes no more than half an arena
            libc.mallopt(M_MMAP_THRESHOLD, 32 * MEBIBYTE)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * GIBIBYTE - 1)


@contextmanager
def huge_pages() -> Iterator[None]:
    """Processes that start within take memory in huge pages where Linux leaves that to programs; results stay the same.

    Training's large maps then cost fewer translations of addresses: a few percent of a step. glibc reads this setting
    when a process starts, so the running one cannot change its own. What the user has set is left alone.
    """
    before = os.environ.get("GLIBC_TUNABLES")
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("GLIBC_TUNABLES", None)
