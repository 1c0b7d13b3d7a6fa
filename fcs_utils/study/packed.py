"""Records packed into one file: one a line, sorted by identity, plans as ranges of kept channels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fcs_utils.errors import StudyError
from fcs_utils.files import check_checksum, parse_json, read_bytes

Record = dict[str, Any]
MOST_CHANNELS = 1_000_000  # of a layer: a damaged range must not take the memory
_read: dict[Path, tuple[tuple[int, int], dict[str, Record]]] = {}  # by file: its time and size, and what it held


def read_lines(path: Path) -> dict[str, Record]:
    """The records of a file by identity, read once and again when the file has changed; none where there is no file.

    A line that is damaged is named in a warning and left out, and so is a run with two results. Raises StudyError for a file
    that cannot be read.
    """
    try:
        state = path.stat()
        stamp = (state.st_mtime_ns, state.st_size)
        if path not in _read or _read[path][0] != stamp:
            _read[path] = (stamp, _by_identity(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    return _read[path][1]


def _by_identity(path: Path) -> dict[str, Record]:
    """The records of a file; none of a run that has two with other results: nobody knows which is right."""
    found: dict[str, Record] = {}
    torn = set()
    for name, record in _parse_lines(path):
        if found.setdefault(name, record)["result"] != record["result"]:
            torn.add(name)
    for name in sorted(torn):
        del found[name]
        warnings.warn(f"{path} has two records of run {name} with other results; this run is done again", stacklevel=4)
    return found


def _parse_lines(path: Path) -> Iterator[tuple[str, Record]]:
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        where = f"line {number} of {path}"
        try:
            record = check_checksum(_change_plan(parse_json(line, where), _unpack_plan), where)
            if not isinstance(record["id"], str):
                raise TypeError("its id is no text")
            yield record["id"], record
        except (StudyError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = str(error) if isinstance(error, StudyError) else f"{where} is damaged ({error})"
            warnings.warn(f"{why}; this run is done again, the other lines count", stacklevel=4)


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
    ends = [list(map(int, part.split("-"))) for part in text.split()]
    if sum(end[-1] - end[0] + 1 for end in ends) > MOST_CHANNELS:
        raise ValueError("a layer with too many channels")
    return [channel for end in ends for channel in range(end[0], end[-1] + 1)]
