"""A time budget: an epoch that would not end within it is not begun, and one that takes longer than the last is given up."""

from __future__ import annotations

import time
from collections.abc import Callable

from fcs_utils.errors import OutOfTime


class Deadline:
    """A moment by ``time.monotonic()``, or never."""

    def __init__(self, at: float | None = None) -> None:
        self.at = at

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
