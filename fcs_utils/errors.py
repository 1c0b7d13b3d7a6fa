"""The one exception for what a user can put right, and the one way to word it."""

from __future__ import annotations


class StudyError(Exception):
    """Something the user can put right; the command line prints it as one line, without a traceback."""


def refuse(parameter: str, value: object, allowed: str) -> StudyError:
    """The error for a bad value: names the parameter, the value and what is allowed."""
    return StudyError(f"{parameter}={value!r} is not allowed; allowed: {allowed}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has no class of its own for it on the CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


class OutOfTime(StudyError):
    """The time budget is used up; what is done is kept."""


class Elsewhere(StudyError):
    """Another process has the run in hand."""
