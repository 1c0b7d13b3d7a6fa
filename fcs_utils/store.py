"""Every path and file format of a results folder. Nobody else builds a path or writes a file there."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcs_utils.errors import StudyError


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN. Identities are hashes of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Raises StudyError when the disk refuses (full, read-only); the old file is then untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # NamedTemporaryFile makes it private; results are meant to be read
        os.replace(temporary, path)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}; what was there before is kept") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


class Store:
    """The files of one profile's results, under ``out/profile``.

    This is the whole table of paths::

        study.json                    settings fixed by the first start: the resolved precision
        records/KIND-ID.json          one run each, written atomically
        weights/ID.safetensors        trained reference networks
        unfinished/ID.safetensors     where a training that was cut off goes on (not published)
        locks/ID.lock                 held by the process that does a run (not published)
        notebooks/NAME.ipynb          executed copies; pages/NAME.html the same to read
        failed/NAME.ipynb             the copy of a notebook that failed
        figures/NAME.png|svg          tables/NAME.csv|md|tex
        claims.json  index.html       the verdicts; the page to open
        cost.json                     what scoring cost on the machine that measured it
        speed.json                    how fast that machine trains and evaluates
        state/NAME                    what was up to date when (not published)
    """

    def __init__(self, out: str | Path, profile: str) -> None:
        self.profile = re.sub(r"[^\w.-]+", "-", profile).strip(".-")  # 'paper:cifar100' is the folder paper-cifar100
        self.root = Path(out) / self.profile

    def settings(self) -> Path:
        return self.root / "study.json"

    def record(self, kind: str, identity: str) -> Path:
        return self.root / "records" / f"{kind}-{identity}.json"

    def all_records(self) -> list[Path]:
        return sorted((self.root / "records").glob("*.json"))

    def weights(self, identity: str) -> Path:
        return self.root / "weights" / f"{identity}.safetensors"

    def unfinished(self, identity: str) -> Path:
        return self.root / "unfinished" / f"{identity}.safetensors"

    def lock(self, identity: str) -> Path:
        return self.root / "locks" / f"{identity}.lock"

    def executed(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    def failed(self, name: str) -> Path:
        return self.root / "failed" / f"{name}.ipynb"

    def page(self, name: str) -> Path:
        return self.root / "pages" / f"{name}.html"

    def figure(self, name: str, suffix: str = "png") -> Path:
        return self.root / "figures" / f"{name}.{suffix}"

    def table(self, name: str, suffix: str = "csv") -> Path:
        return self.root / "tables" / f"{name}.{suffix}"

    def claims(self) -> Path:
        return self.root / "claims.json"

    def cost(self) -> Path:
        return self.root / "cost.json"

    def speed(self) -> Path:
        return self.root / "speed.json"

    def index(self) -> Path:
        return self.root / "index.html"

    def state(self, name: str) -> Path:
        return self.root / "state" / name

    def set_aside(self) -> Path | None:
        """Move the whole folder out of the way, deleting nothing; returns where it went."""
        if not self.root.exists():
            return None
        number = 1
        while (kept := self.root.with_name(f"{self.profile}.previous-{number}")).exists():
            number += 1
        try:
            self.root.rename(kept)
        except OSError as error:
            raise StudyError(f"cannot move {self.root} to {kept}: {error.strerror or error}") from error
        return kept


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON for people and programs, atomically. NaN and infinity are refused."""
    # Keys stay in the order they were made in: layers from input to output, epochs after accuracies.
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises StudyError for a missing, truncated or foreign file."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise StudyError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StudyError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_record(store: Store, kind: str, identity: str) -> dict[str, Any] | None:
    """The record of a run, or None where there is none.

    A file that is truncated or belongs to another run is set aside (``.corrupt``) with a warning, so the
    run is done again and the file can still be looked at.
    """
    path = store.record(kind, identity)
    if not path.exists():
        return None
    try:
        record = read_json(path)
        missing = {"id", "kind", "config", "result", "provenance", "volatile"} - record.keys()
        if missing or (record["id"], record["kind"]) != (identity, kind):
            raise StudyError(f"{path} is not the record of {kind} {identity}")
    except StudyError as error:
        aside = path.with_suffix(".corrupt")
        path.replace(aside)
        warnings.warn(f"{error}; set aside as {aside.name}, the run is done again", stacklevel=2)
        return None
    return record
