"""The exception for what a user can correct, and the wording of refusals."""

from __future__ import annotations


class StudyError(Exception):
    """An error that the user can correct; the command line prints it as one line, without a traceback."""


def refuse(parameter: str, value: object, allowed: str) -> StudyError:
    """The error for a bad value: names the parameter, the value and what is allowed."""
    return StudyError(f"{parameter}={value!r} is not allowed; allowed: {allowed}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU PyTorch raises a RuntimeError for it, known by its message."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


class OutOfTime(StudyError):
    """The time budget is used up. Finished runs are kept."""


class Elsewhere(StudyError):
    """Another process is doing the run."""
