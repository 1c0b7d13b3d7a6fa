"""Every path of a results folder, its records, and what the first start fixes for all later ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import read_or_set_aside, set_aside, write_checksummed
from fcs_utils.machine import pick_precision

ABANDONED = 3600.0  # seconds after which nobody writes to a temporary file any more


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
        self.name = profile
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


def read_record(store: Store, kind: str, identity: str) -> dict[str, Any] | None:
    """The record of a run, or None where there is none.

    A file that is damaged or belongs to another run is set aside with a warning, so the run is done again.
    """
    path = store.record(kind, identity)
    record = read_or_set_aside(path)
    if record is None:
        return None
    missing = {"id", "kind", "config", "result", "provenance", "volatile"} - record.keys()
    if missing or (record["id"], record["kind"]) != (identity, kind):
        set_aside(path, f"{path} is not the record of {kind} {identity}; the run is done again")
        return None
    return record


def write_record(store: Store, record: Mapping[str, Any]) -> None:
    """Keep the record of a run. Raises StudyError where the disk refuses it."""
    write_checksummed(store.record(record["kind"], record["id"]), record)


class Settings:
    """A folder's precision, and of its data what tables need without having the data.

    The precision is part of every run's identity, so it belongs to the folder and not to the machine that opens it: records that
    come home from a GPU must be found on a laptop. Raises StudyError for a precision that there is not.
    """

    def __init__(
        self, store: Store, precision: Literal["auto", "fp32", "bf16"], device: torch.device, dataset: Callable[[], Dataset]
    ) -> None:
        self._path, self._profile, self._dataset = store.settings(), store.name, dataset
        self._kept: dict[str, Any] = read_or_set_aside(self._path) or {}
        known = self._kept
        if not known:  # no runs yet, or a damaged file: the records still tell
            records = (read_or_set_aside(record) for record in store.all_records())
            known = next((record["config"]["reference"] for record in records if record), {})
        chosen: Any = known.get("precision") or (pick_precision(device) if precision == "auto" else precision)
        if chosen not in ("fp32", "bf16"):
            raise refuse(f"{self._path}: precision", chosen, "fp32, bf16")
        self.precision: Literal["fp32", "bf16"] = chosen

    @property
    def title(self) -> str:
        """Of the data set."""
        title: str = self._kept.get("dataset") or self._dataset().title
        return title

    @property
    def validation_images(self) -> int:
        """How many images the validation split has: its grain decides what counts as equal."""
        images: int = self._kept.get("validation_images") or len(self._dataset().validation)
        return images

    def keep(self) -> None:
        """Write them, where they are not yet."""
        if not self._path.exists():
            self._kept = {"precision": self.precision, "profile": self._profile, "dataset": self.title,
                          "validation_images": self.validation_images}  # fmt: skip
            write_checksummed(self._path, self._kept)
