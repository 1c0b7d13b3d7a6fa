"""Every path of a results folder, its records, and what the first start fixes for all later ones."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import (
    read_checksummed,
    read_or_set_aside,
    set_aside,
    write_checksummed,
)
from fcs_utils.machine import pick_precision
from fcs_utils.study.packed import Record, read_lines, to_lines

ABANDONED = 3600.0  # seconds after which nobody writes to a temporary file any more


class Store:
    """The files of one profile's results, under ``out/profile``.

    What is published is committed; what this machine makes goes to ``work``, which git ignores. This is the whole table of paths::

        README.md  claims.json        what was found, to read on GitHub and by programs
        records.jsonl                 published: all records, one a line, sorted by identity
        study.json                    settings fixed by the first start: the resolved precision
        measurements.json             what scoring cost, how fast machines train, how fast compact networks run
        tables/NAME.csv|md  weights/ID.safetensors
        figures/  notebooks/          published for the profile that leads the README
        work/records/KIND-ID.json     a run of this machine, written atomically
        work/weights|tables|figures|notebooks/, work/study.json|claims.json|measurements.json    as above, not published
        work/unfinished/ID.safetensors   where a training that was cut off goes on
        work/locks/ID.lock            held by the process that does a run
        work/failed/NAME.ipynb        the copy of a notebook that failed
        work/explored/NAME.safetensors   compact networks saved from the explorer
        work/index.html  work/pages/NAME.html   the page to open, and the notebooks to read
        work/state/NAME               what was up to date when
    """

    def __init__(self, out: str | Path, profile: str) -> None:
        self.name = profile
        self.profile = re.sub(r"[^\w.-]+", "-", profile).strip(".-")  # 'paper:cifar100' is the folder paper-cifar100
        self.root = Path(out) / self.profile
        self.work = self.root / "work"

    def published(self, path: Path) -> Path:
        """Where a file of ``work`` stands once it is published."""
        return self.root / path.relative_to(self.work)

    def there(self, path: Path) -> Path:
        """Where to read a file of ``work``: the published one where there is one, for it belongs to the published records."""
        return published if (published := self.published(path)).exists() else path

    def packed(self) -> Path:
        return self.root / "records.jsonl"

    def settings(self) -> Path:
        return self.work / "study.json"

    def record(self, kind: str, identity: str) -> Path:
        return self.work / "records" / f"{kind}-{identity}.json"

    def all_records(self) -> list[Path]:
        """The files of this machine's own records."""
        return sorted((self.work / "records").glob("*.json"))

    def weights(self, identity: str) -> Path:
        return self.work / "weights" / f"{identity}.safetensors"

    def unfinished(self, identity: str) -> Path:
        return self.work / "unfinished" / f"{identity}.safetensors"

    def lock(self, identity: str) -> Path:
        return self.work / "locks" / f"{identity}.lock"

    def executed(self, name: str) -> Path:
        return self.work / "notebooks" / f"{name}.ipynb"

    def failed(self, name: str) -> Path:
        return self.work / "failed" / f"{name}.ipynb"

    def page(self, name: str) -> Path:
        return self.work / "pages" / f"{name}.html"

    def figure(self, name: str, suffix: str = "png") -> Path:
        return self.work / "figures" / f"{name}.{suffix}"

    def table(self, name: str, suffix: str = "csv") -> Path:
        return self.work / "tables" / f"{name}.{suffix}"

    def claims(self) -> Path:
        return self.work / "claims.json"

    def explored(self, name: str) -> Path:
        return self.work / "explored" / f"{name}.safetensors"

    def measurements(self) -> Path:
        return self.work / "measurements.json"

    def index(self) -> Path:
        return self.work / "index.html"

    def state(self, name: str) -> Path:
        return self.work / "state" / name

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


def read_record(store: Store, kind: str, identity: str) -> Record | None:
    """The record of a run, or None where there is none. It may be shared: do not change it.

    A published record counts before one of this machine; where the two differ in their result, a warning says so. A damaged
    one, and a file that belongs to another run, is named and left out, so that the run is done again.
    """
    packed = read_packed(store).get(identity)
    path = store.record(kind, identity)
    loose = read_or_set_aside(path)
    if loose is not None and not _is_of(loose, kind, identity):
        set_aside(path, f"{path} is not the record of {kind} {identity}; the run is done again")
        loose = None
    if packed is None or not _is_of(packed, kind, identity):
        return loose
    if loose is not None and loose["result"] != packed["result"]:
        warnings.warn(f"{path} has another result than {store.packed()}, which is used", stacklevel=2)
    return packed


def _is_of(record: Record, kind: str, identity: str) -> bool:
    parts = {"id", "kind", "config", "result", "provenance", "volatile"}
    return record.keys() >= parts and (record["id"], record["kind"]) == (identity, kind)


def write_record(store: Store, record: Record) -> None:
    """Keep a record that was made on this machine, atomically."""
    write_checksummed(store.record(record["kind"], record["id"]), record)


def read_packed(store: Store) -> dict[str, Record]:
    """The published records by identity. They are shared: do not change them."""
    return read_lines(store.packed())


def pack(store: Store) -> bytes:
    """All records, published and of this machine, as the content of ``records.jsonl``.

    Raises StudyError for a record of this machine whose result is not the published one's.
    """
    found = dict(read_packed(store))
    for path in store.all_records():
        own = read_checksummed(path)
        if own["result"] != found.setdefault(own["id"], own)["result"]:
            raise StudyError(f"{path} has another result than the published record of the same run; remove one of the two")
    return to_lines(found)


class Settings:
    """A folder's precision, and of its data what tables need without having the data.

    The precision is part of every run's identity, so it belongs to the folder and not to the machine that opens it: records that
    come home from a GPU must be found on a laptop. Raises StudyError for an unknown precision.
    """

    def __init__(
        self, store: Store, precision: Literal["auto", "fp32", "bf16"], device: torch.device, dataset: Callable[[], Dataset]
    ) -> None:
        self._path, self._profile, self._dataset = store.there(store.settings()), store.name, dataset
        self._kept: dict[str, Any] = read_or_set_aside(self._path) or {}
        known = self._kept
        if not known:  # no runs yet, or a damaged file: the records still tell
            own = (read_or_set_aside(record) for record in store.all_records())
            records = chain(read_packed(store).values(), own)
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
        """How many images the validation split has: its size sets how finely accuracy is measured."""
        images: int = self._kept.get("validation_images") or len(self._dataset().validation)
        return images

    def keep(self) -> None:
        """Write them, where they are not yet."""
        if not self._path.exists():
            self._kept = {
                "precision": self.precision,
                "profile": self._profile,
                "dataset": self.title,
                "validation_images": self.validation_images,
            }
            write_checksummed(self._path, self._kept)
