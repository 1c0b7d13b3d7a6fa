"""Every path and file format of a results folder. Nobody else builds a path or writes a file there."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fcs_utils.errors import StudyError

LARGEST = 64 * 1024 * 1024  # bytes of a JSON file that is read at all
ABANDONED = 3600.0  # seconds after which nobody writes to a temporary file any more


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
        _sync_folder(path.parent)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}; what was there before is kept") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    # Without this a power cut can take back the new name, though not leave a part of the file.
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


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
        explored/NAME.safetensors     compact networks saved from the explorer (not published)
        figures/NAME.png|svg          tables/NAME.csv|md|tex
        claims.json  index.html       the verdicts; the page to open
        cost.json                     what scoring cost on the machine that measured it
        speed.json                    how fast that machine trains and evaluates
        deploy.json                   how much faster compact networks ran there
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

    def explored(self, name: str) -> Path:
        return self.root / "explored" / f"{name}.safetensors"

    def cost(self) -> Path:
        return self.root / "cost.json"

    def speed(self) -> Path:
        return self.root / "speed.json"

    def deploy(self) -> Path:
        return self.root / "deploy.json"

    def index(self) -> Path:
        return self.root / "index.html"

    def state(self, name: str) -> Path:
        return self.root / "state" / name

    def sweep(self) -> None:
        """Remove temporary files that a kill or a power cut left behind: those too old to be in use."""
        for left in self.root.rglob("*.tmp"):
            with suppress(FileNotFoundError):  # another process finished with it
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()

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
    """Read a JSON object. Raises StudyError for a file that is missing, truncated, foreign or absurdly large."""
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise StudyError(f"{path} has {size:,} bytes; files of this study have at most {LARGEST:,}")
        value = json.loads(path.read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise StudyError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
