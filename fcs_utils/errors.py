"""The exception for what a user can correct, and the wording of refusals and of numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 200  # characters of a value in an error
ESCAPES = re.compile(r"\x1b\[[\d;]*m")  # codes for a terminal, which some libraries put into their errors
# In place of pydantic's words, where these say what is wrong and not what is allowed, or are a programmer's.
WORDS = {
    "bool_parsing": "true or false",
    "callable_type": "a function",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "sequence_str": "a list of strings",
    "string_too_short": "a string that is not empty",
    "string_type": "a string",
}


class StudyError(Exception):
    """An error that the user can correct; the command line prints it as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """How IPython shows it, in notebooks, too."""
        return [f"{type(self).__name__}: {self}"]


def refuse(parameter: str, value: object, allowed: str) -> StudyError:
    """The error for a bad value: names the parameter, the value, what is allowed, and the name that is nearest to a typo."""
    return StudyError(f"{parameter}={_short(value)} is not allowed; allowed: {allowed}{did_you_mean(value, allowed.split(', '))}")


def _short(value: object) -> str:
    """A value in one line: tensors and arrays by kind and shape, alone or several; long texts and networks by their beginning."""
    if getattr(value, "is_nested", False):  # which has no shape
        return "a nested tensor"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    inside = [*(value.values() if isinstance(value, Mapping) else value)] if isinstance(value, Mapping | tuple | list) else []
    if inside and all(hasattr(one, "dtype") for one in inside):
        return f"{type(value).__name__} of {', '.join(map(_short, inside))}"[:LONGEST]
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def refuse_field(error: ValidationError, where: str = "") -> StudyError:
    """The error for the first field that pydantic refuses: names it, its value and the rule."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "the whole"
    if first["type"] == "missing":
        return StudyError(f"{where}{field} is missing")
    said = first["msg"]
    known = said.startswith("Input should be ") or first["type"] in WORDS
    rule = f"; allowed: {allowed_by(first)}" if known else f": {said.removeprefix('Value error, ')}"
    return StudyError(f"{where}{field}={_short(first['input'])} is not allowed{rule}")


def allowed_by(error: Mapping[str, Any]) -> str:
    """What one of pydantic's errors says is allowed."""
    said = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return WORDS.get(error["type"], said)


def did_you_mean(value: object, names: Iterable[str], prefix: str = "") -> str:
    """The end of an error about a name: the most similar one that is allowed, written behind a prefix, or nothing."""
    near = difflib.get_close_matches(value, names, 1) if isinstance(value, str) and " " not in value else []
    return f" (did you mean {prefix}{near[0]}?)" if near else ""


def counted(number: int, word: str) -> str:
    """'1 epoch', '5 seeds'."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def enumerated(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (ESCAPES.sub("", str(error)).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On the CPU PyTorch raises a RuntimeError for it, known by its message."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "can't start new thread")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error) for word in words))


class OutOfTime(StudyError):
    """The time budget is used up. Finished runs are kept."""


class Elsewhere(StudyError):
    """Another process is doing the run."""
