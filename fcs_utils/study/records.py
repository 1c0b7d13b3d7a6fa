"""Every path of a results folder, its records, and what the first start fixes for all later ones."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import torch

from fcs_utils.data.dataset import Dataset
from fcs_utils.errors import StudyError
from fcs_utils.files import check_checksum, parse_json, read_or_set_aside, write_checksummed
from fcs_utils.machine import Precision, pick_precision
from fcs_utils.study.contents import SETTINGS, check_record, conform
from fcs_utils.study.packed import Packed, Record, read_lines, to_lines
from fcs_utils.study.right import found_right, is_right, share, text_digest
from fcs_utils.study.runs import Run, parse_run
from fcs_utils.unchanged import keeping_all, while_unchanged

ABANDONED = 3600.0  # seconds after which nobody writes to a temporary file any more


def _in_work(pattern: str) -> Callable[..., Path]:
    return lambda store, *names: store.work / pattern.format(*names)


class Store:
    """The files of one profile's results, under ``out/profile``.

    What is published is committed; what this machine makes goes to ``work``, which git ignores. A file of ``work`` is
    published under the same name one folder up, but for records, which become lines of ``records.jsonl``, sorted by identity.
    """

    record = _in_work("records/{}-{}.json")  # kind and identity: a run of this machine
    weights = _in_work("weights/{}.safetensors")  # by identity
    unfinished = _in_work("unfinished/{}.safetensors")  # where a training that was cut off goes on
    lock = _in_work("locks/{}.lock")  # held by the process that does a run
    settings = _in_work("study.json")  # fixed by the first start
    measurements = _in_work("measurements.json")  # what scoring cost, how fast machines train and compact networks run
    claims = _in_work("claims.json")  # what was found, for programs
    executed = _in_work("notebooks/{}.ipynb")
    failed = _in_work("failed/{}.ipynb")  # the copy of a notebook that failed
    explored = _in_work("explored/{}.safetensors")  # compact networks saved from the explorer
    index = _in_work("index.html")  # the page to open
    page = _in_work("pages/{}.html")
    state = _in_work("state/{}")  # what was up to date when

    def __init__(self, out: str | Path, profile: str) -> None:
        self.name = profile
        self.profile = re.sub(r"[^\w.-]+", "-", profile).strip(".-")  # 'paper:cifar100' is the folder paper-cifar100
        self.root = Path(out) / self.profile
        self.work = self.root / "work"

    def figure(self, name: str, suffix: str = "png") -> Path:
        return self.work / "figures" / f"{name}.{suffix}"

    def table(self, name: str, suffix: str = "csv") -> Path:
        return self.work / "tables" / f"{name}.{suffix}"

    def published(self, path: Path) -> Path:
        """Where a file of ``work`` stands once it is published."""
        return self.root / path.relative_to(self.work)

    def there(self, path: Path) -> Path:
        """Where to read a file of ``work``: the published one where there is one, for it belongs to the published records."""
        return published if (published := self.published(path)).exists() else path

    def packed(self) -> Path:
        return self.root / "records.jsonl"

    def all_records(self) -> list[Path]:
        """The files of this machine's own records."""
        return sorted((self.work / "records").glob("*.json"))

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
        names = (self.root.with_name(f"{self.profile}.previous-{number}") for number in count(1))
        kept = next(name for name in names if not name.exists())
        try:
            return self.root.rename(kept)
        except OSError as error:
            raise StudyError(f"cannot move {self.root} to {kept}: {error.strerror or error}") from error


def read_record(store: Store, run: Run) -> Record | None:
    """The record of a run, or None where there is none. It may be shared: do not change it.

    A published record counts before one of this machine; where the two differ in their result, a warning says so. One that
    is damaged, wrong or of another run is named and left out, so that the run is done again.
    """
    name, published = run.identity, read_packed(store)
    packed, path = published.get(name), store.record(run.kind, name)
    loose = read_or_set_aside(path, lambda record: _check_name(record, path, name), _own_record)
    if packed is None:
        return loose
    if name in published.unchecked:
        try:
            check_record(packed, f"record {name} in {store.packed()}", run)
        except StudyError as error:
            warnings.warn(f"{error}; this run is done again", stacklevel=2)
            return loose
        found_right(published.unchecked.pop(name))
    if loose is not None and loose["result"] != packed["result"]:
        warnings.warn(f"{path} has another result than {store.packed()}; the published one is used", stacklevel=2)
    return packed


@contextmanager
def reading_many() -> Iterator[None]:
    """For who reads the records of whole stages: faster, and what is found right need not be checked by other processes."""
    with keeping_all():
        yield
    share()


@while_unchanged
def _own_record(path: Path, content: bytes) -> Record:
    record, digest = parse_json(content, str(path)), text_digest("file", content)
    if not is_right(digest):
        check_record(check_checksum(record, str(path)), path)
        found_right(digest)
    return record


def _check_name(record: Record, path: Path, name: str) -> None:
    if record["id"] != name:
        raise StudyError(f"{path} is the record of another run")


def write_record(store: Store, record: Record) -> None:
    """Keep a record that was made on this machine, atomically."""
    write_checksummed(store.record(record["kind"], record["id"]), record)


def read_packed(store: Store) -> Packed:
    """The published records by identity. They are shared: do not change them."""
    return read_lines(store.packed())


def pack(store: Store) -> bytes:
    """All records, published and of this machine, as the content of ``records.jsonl``.

    Raises StudyError for a wrong record of this machine, and for one whose result is not the published one's.
    """
    found: dict[str, Record] = {**read_packed(store)}
    for path in store.all_records():
        own = _own_record(path)
        if own["result"] != found.setdefault(own["id"], own)["result"]:
            raise StudyError(f"{path} has another result than the published record of the same run; remove one of the two")
    return to_lines(found)


class Settings:
    """A folder's precision, and of its data what tables need without having the data.

    The precision is part of every run's identity, so it belongs to the folder and not to the machine that opens it: records that
    come home from a GPU must be found on a laptop. Settings that are damaged, wrong or of another profile are set aside.
    """

    precision: Precision

    def __init__(
        self, store: Store, precision: Literal["auto", "fp32", "bf16"], device: torch.device, dataset: Callable[[], Dataset]
    ) -> None:
        self._store, self._dataset = store, dataset
        self._kept: dict[str, Any] = read_or_set_aside(store.there(store.settings()), self._check) or {}
        if "precision" in self._kept:
            self.precision = self._kept["precision"]
        elif (known := _precision_of_records(store)) is not None:
            self.precision = known
        else:
            self.precision = pick_precision(device) if precision == "auto" else precision

    def _check(self, value: dict[str, Any]) -> None:
        path = self._store.there(self._store.settings())
        conform(SETTINGS, value, path)
        if value["profile"] != self._store.name:
            raise StudyError(f"{path} is of profile {value['profile']}, not of {self._store.name}")

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
        if not self._kept:
            self._kept = {
                "precision": self.precision,
                "profile": self._store.name,
                "dataset": self.title,
                "validation_images": self.validation_images,
            }
            write_checksummed(self._store.settings(), self._kept)


def _precision_of_records(store: Store) -> Precision | None:
    own = (read_or_set_aside(path) for path in store.all_records())
    for record in chain(read_packed(store).values(), own):
        with suppress(StudyError):
            if record:
                return parse_run(record.get("config")).reference.precision
    return None
