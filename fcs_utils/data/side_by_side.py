"""Work on many small things on all cores, as if it were done one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from fcs_utils.machine import cores

Thing = TypeVar("Thing")
Done = TypeVar("Done")
TOGETHER = 64  # items that a thread takes at once: handing over one costs as much as decoding a small picture
READ_AHEAD = 2**26  # what items may weigh together that are read and not done yet


def in_order(
    items: Iterable[Thing], work: Callable[[Thing], Done], weight: Callable[[Thing], int], together: int = TOGETHER
) -> Iterator[Done]:
    """The function's results in the order of the items. Threads, for what gives Python's lock away while it works.

    weight: of an item, such as the bytes that it holds; items are read ahead until they weigh ``READ_AHEAD``. Raises what reading
    them or the work raises, at the place where it would come one after the other.
    """

    def do(batch: list[Thing | Exception]) -> list[Done]:
        done = []
        for item in batch:
            if isinstance(item, Exception):
                raise item
            done.append(work(item))
        return done

    pool = ThreadPoolExecutor(cores())
    waiting: deque[tuple[int, Future[list[Done]]]] = deque()
    try:
        for heavy, batch in _batches(items, weight, together):
            waiting.append((heavy, pool.submit(do, batch)))
            while len(waiting) > 2 * cores() or sum(heavy for heavy, _ in waiting) > READ_AHEAD:
                yield from waiting.popleft()[1].result()
        while waiting:
            yield from waiting.popleft()[1].result()
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(
    items: Iterable[Thing], weight: Callable[[Thing], int], together: int
) -> Iterator[tuple[int, list[Thing | Exception]]]:
    """Items with what they weigh. What reading them raises comes last: work on those before it may have to raise first."""
    batch: list[Thing | Exception] = []
    heavy = 0
    for item in _and_error(items):
        batch.append(item)
        heavy += 0 if isinstance(item, Exception) else weight(item)
        if len(batch) == together or heavy > READ_AHEAD // 16:
            yield heavy, batch
            batch, heavy = [], 0
    if batch:
        yield heavy, batch


def _and_error(items: Iterable[Thing]) -> Iterator[Thing | Exception]:
    try:
        yield from items
    except Exception as error:  # raised again in its turn
        yield error
