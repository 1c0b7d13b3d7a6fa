"""Which records were found right, kept beside the decoded images, so that no other process checks them again.

They go by the checksum of their text and by that of the code that checks them: neither a changed record nor one that changed rules
refuse can be taken for one that was found right.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydantic

from fcs_utils.data.imagefolder import cache_folder
from fcs_utils.errors import StudyError
from fcs_utils.files import read_or_set_aside, write_checksummed
from fcs_utils.machine import sources_sum

WORTH_SAYING = 100  # records found right since the file was written, for which it is written again
MOST_LISTED = 500_000  # that it lists, the latest
_right: dict[str, None] = {}
_lists_read: set[Path] = set()  # the files whose lists are in it
_unsaid: set[str] = set()  # what no file lists yet


def text_digest(form: str, text: bytes) -> str:
    """What a record goes by. form: whether its text is a line of a file or a file."""
    return hashlib.sha256(form.encode() + b"\n" + text).hexdigest()


def is_right(digest: str) -> bool:
    """Whether the record was found right, here or by another process with the same code."""
    if (file := _list_file()) not in _lists_read:
        _lists_read.add(file)
        with suppress(OSError):  # a folder that may not be entered
            kept = read_or_set_aside(file, _check_list) or {}
            _right.update(dict.fromkeys(kept["right"] if kept.get("code") == _code() else ()))
    return digest in _right


def found_right(digest: str) -> None:
    """Tell that a record matches its checksum and has a content that makes sense."""
    _right[digest] = None
    _unsaid.add(digest)


def share() -> None:
    """Let other processes know, where it is worth it. Where the file cannot be written, each of them checks for itself."""
    if len(_unsaid) >= WORTH_SAYING:
        with suppress(StudyError):
            write_checksummed(_list_file(), {"code": _code(), "right": [*_right][-MOST_LISTED:]})
        _unsaid.clear()


def _list_file() -> Path:
    return cache_folder() / "right-records.json"


def _check_list(kept: dict[str, Any]) -> None:
    if not isinstance(kept.get("right"), list) or not all(isinstance(digest, str) for digest in kept["right"]):
        raise StudyError(f"{_list_file()} lists no checksums")


def _code() -> str:
    """The package's sources, and the version of the library that checks types."""
    return f"{sources_sum()} {pydantic.VERSION}"
