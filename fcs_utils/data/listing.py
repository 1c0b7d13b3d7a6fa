"""Which pictures a folder holds, in the layouts that people have: paths and labels, nothing is decoded."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fcs_utils.data.archives import MOST_FILES, walk_folder
from fcs_utils.data.imagefolder import SUFFIXES
from fcs_utils.errors import StudyError
from fcs_utils.files import read_bytes

Labelled = list[tuple[Path, str]]  # path and class
LAYOUTS = (
    "train/CLASS/* and val/CLASS/* (or test/); CLASS/*; Tiny-ImageNet's train/CLASS/images/* and val/val_annotations.txt; "
    "or a CSV file with the columns path, label and split (train or val)"
)


@dataclass(frozen=True)
class Listing:
    """Pictures and labels (indices of ``classes``) for training, and others for validation."""

    classes: tuple[str, ...]
    train: tuple[tuple[Path, int], ...]
    val: tuple[tuple[Path, int], ...]


def list_pictures(source: Path) -> Listing:
    """The pictures of a folder or CSV file, in a fixed order; see ``LAYOUTS``. Class folders alone give every tenth for ``val``.

    In a folder with ``val/`` and ``test/``, ``val/`` is taken. Paths of a CSV file are relative to its folder.

    Raises StudyError for another layout, a class without a picture in a part, and a label that ``train`` has not.
    """
    if not source.exists():
        raise StudyError(f"images {str(source)!r} not found; give a folder or CSV file: {LAYOUTS}")
    train, val = _from_csv(source) if source.is_file() else _from_folder(source)
    classes = tuple(sorted({label for _, label in train}))
    counts = [Counter(label for _, label in part) for part in (train, val)]
    if odd := sorted(counts[1].keys() - counts[0].keys()):
        raise StudyError(f"{source}: class {odd[0]!r} has validation pictures and no training pictures")
    if odd := [label for label in classes if not counts[1][label]]:
        raise StudyError(f"{source}: class {odd[0]!r} has training pictures and no validation pictures")
    if len(classes) < 2 or not all(label.isprintable() for label in classes):
        raise StudyError(f"{source} has {len(classes)} classes that can be shown; two or more are needed: {LAYOUTS}")
    number = {label: index for index, label in enumerate(classes)}
    return Listing(classes, *(tuple((path, number[label]) for path, label in sorted(part)) for part in (train, val)))


def _pictures(folder: Path, label: Callable[[tuple[str, ...]], str | None]) -> Labelled:
    """The pictures below a folder whose path, in parts, has a class."""
    found: Labelled = []
    for path, _, _ in walk_folder(folder):
        if path.suffix.lower() in SUFFIXES and (name := label(path.parts)) is not None:
            found.append((folder / path, name))
        if len(found) > MOST_FILES:
            raise StudyError(f"{folder} has more than {MOST_FILES:,} pictures")
    return found


def _by_class(parts: tuple[str, ...]) -> str | None:
    return parts[0] if len(parts) > 1 else None  # CLASS/... at any depth, as Tiny-ImageNet's CLASS/images/*


def _from_folder(folder: Path) -> tuple[Labelled, Labelled]:
    if not (folder / "train").is_dir():
        found = _pictures(folder, _by_class)
        return _parted(found)
    judge = next((folder / part for part in ("val", "test") if (folder / part).is_dir()), None)
    if judge is None:
        raise StudyError(f"{folder} has train/ but neither val/ nor test/; layouts: {LAYOUTS}")
    train, notes = _pictures(folder / "train", _by_class), judge / "val_annotations.txt"
    if not notes.is_file():
        return train, _pictures(judge, _by_class)
    lines = (line.split("\t") for line in read_bytes(notes).decode(errors="replace").splitlines())
    labels = {words[0]: words[1] for words in lines if len(words) > 1}
    return train, _pictures(judge, lambda parts: labels.get(parts[-1]))


def _parted(found: Labelled) -> tuple[Labelled, Labelled]:
    """Every tenth picture of each class, the fifth first, for validation."""
    seen: Counter[str] = Counter()
    parts: tuple[Labelled, Labelled] = ([], [])
    for path, label in sorted(found, key=lambda one: (one[1], one[0])):
        parts[seen[label] % 10 == 4].append((path, label))
        seen[label] += 1
    return parts


def _from_csv(path: Path) -> tuple[Labelled, Labelled]:
    rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig", errors="replace")))
    columns = rows.fieldnames or ()
    if missing := [name for name in ("path", "label") if name not in columns]:
        raise StudyError(f"{path} has no column {missing[0]!r}; layouts: {LAYOUTS}")
    parts: dict[str, Labelled] = {"train": [], "val": [], "test": [], "all": []}
    try:
        for number, row in enumerate(rows, 2):
            place, part = path.parent / (row["path"] or ""), row["split"] if "split" in columns else "all"
            if part not in parts or not row["label"] or place.suffix.lower() not in SUFFIXES:
                raise StudyError(f"{path}, line {number}: a picture's path, a label and a split (train, val or test) are needed")
            parts[part].append((place, row["label"]))
    except csv.Error as error:
        raise StudyError(f"{path} is not a whole CSV file: {error}") from error
    return _parted(parts["all"]) if "split" not in columns else (parts["train"], parts["val"] or parts["test"])


def check_present(paths: Iterable[Path]) -> None:
    """Raises StudyError for the first path that is no file."""
    if (gone := next((path for path in paths if not path.is_file()), None)) is not None:
        raise StudyError(f"{gone} is listed and not there")
