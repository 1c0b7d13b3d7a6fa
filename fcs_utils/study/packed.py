"""Records packed into one file: one a line, sorted by identity, plans as ranges of kept channels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from fcs_utils.errors import StudyError
from fcs_utils.files import check_checksum, parse_json
from fcs_utils.study.right import is_right, text_digest
from fcs_utils.unchanged import keeping_all, while_unchanged

Record = dict[str, Any]
MOST_CHANNELS = 1_000_000  # of a layer: a damaged range must not take the memory


class Packed(dict[str, Record]):
    """The records of a file by identity. unchecked: those whose content was not looked at yet, with what their text goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.unchecked: dict[str, str] = {}


def read_lines(path: Path) -> Packed:
    """The records of a file by identity, read once and again when the file has changed; none where there is no file.

    A line that is damaged is named in a warning and left out, and so is a run with two results. Raises StudyError for a file
    that cannot be read.
    """
    try:
        return _by_identity(path)
    except StudyError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Packed()
        raise


@while_unchanged
def _by_identity(path: Path, content: bytes) -> Packed:
    """The records of a file; none of a run that has two with other results: nobody knows which is right."""
    found = Packed()
    torn = set()
    with keeping_all():
        for digest, record in _parse_lines(path, content):
            name = record["id"]
            if name not in found and not is_right(digest):
                found.unchecked[name] = digest
            if found.setdefault(name, record)["result"] != record["result"]:
                torn.add(name)
    for name in sorted(torn):
        del found[name]
        warnings.warn(f"{path} has two records of run {name} with other results; this run is done again", stacklevel=5)
    return found


def _parse_lines(path: Path, content: bytes) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(content.splitlines(), 1):
        where = f"line {number} of {path}"
        try:
            record, digest = _change_plan(parse_json(line, where), _unpack_plan), text_digest("line", line)
            if not is_right(digest):
                check_checksum(record, where)
            if not isinstance(record["id"], str):
                raise TypeError("its id is no text")
            yield digest, record
        except (StudyError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, StudyError) else f"{where} is damaged ({error})"
            warnings.warn(f"{why}; this run is done again, the other lines count", stacklevel=5)


def seconds_of(record: Record) -> float:
    """What a run took. A training that was cut off and went on counts from its first epoch; the record has its last start alone."""
    volatile = record["volatile"]
    return max(volatile["seconds"], (volatile.get("epoch_seconds") or [0.0])[-1])


def to_lines(records: Mapping[str, Record]) -> bytes:
    """The content of a file that holds these records."""
    # Keys keep their order: layers run from input to output.
    lines = (json.dumps(_change_plan(records[name], _pack), separators=(",", ":"), allow_nan=False) for name in sorted(records))
    return "".join(line + "\n" for line in lines).encode()


def _change_plan(record: Record, change: Callable[[Any], Any]) -> Record:
    plan = record.get("result", {}).get("plan")
    if plan is None:
        return record
    kept = {layer: change(channels) for layer, channels in plan["kept"].items()}
    return {**record, "result": {**record["result"], "plan": {**plan, "kept": kept}}}


def _pack(channels: list[int]) -> str:
    """[0, 1, 2, 5] -> '0-2 5'."""
    runs: list[list[int]] = []
    for channel in channels:
        if runs and channel == runs[-1][1] + 1:
            runs[-1][1] = channel
        else:
            runs.append([channel, channel])
    return " ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def _unpack_plan(text: str) -> list[int]:
    runs = [_ends_of(part) for part in text.split()]
    if sum(end - first for first, end in runs) > MOST_CHANNELS:
        raise ValueError("a layer with too many channels")
    return [channel for first, end in runs for channel in range(first, end)]


@lru_cache(2**16)  # most of a study's plans are made of the same parts
def _ends_of(part: str) -> tuple[int, int]:
    ends = list(map(int, part.split("-")))
    return ends[0], ends[-1] + 1
