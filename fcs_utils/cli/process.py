"""How the process of a command starts and ends, so that neither takes longer than it must."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys

# glibc keeps what a step frees for the next one, and takes it in huge pages: up to a seventh of a training step's time.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483647"


def start_again_with_allocator() -> None:
    """glibc reads its settings when a process starts, so on Linux this one starts itself again with them; the user's own stay."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is meant


def import_torch() -> None:
    """Import torch without the garbage collector, which would look again and again through objects that all stay."""
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        gc.freeze()
        gc.enable()


class QuickEnd:
    """Ends the process with ``status`` after everything that others have registered for its end.

    Python would go on and free torch's million objects one by one, which takes about as long as their import. Without a status, as
    after an error that nobody caught, it does.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        atexit.register(self._end)  # what is registered first is called last

    def _end(self) -> None:
        if self.status is not None:
            let_go()
            os._exit(self.status)


def let_go() -> None:
    """Write out what was printed, where its reader has not gone, as ``| head -1`` has; Python would complain of it at its end."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.pipe()[1], number)  # takes the rest, which nobody reads
