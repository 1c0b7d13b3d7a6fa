"""Which pictures a folder holds, in the layouts that people have: paths and labels, nothing is decoded."""

from __future__ import annotations

import csv
import io
import os
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fcs_utils.data.archives import MOST_FILES, is_junk, unread_in_words, walk_folder, why_unread
from fcs_utils.data.imagefolder import SUFFIXES
from fcs_utils.errors import StudyError
from fcs_utils.files import read_bytes

Labelled = list[tuple[Path, str]]  # path and class
Unread = dict[str, list[PurePosixPath]]  # by reason, what is not read
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

    In a folder with ``val/`` and ``test/``, ``val/`` is taken. Paths of a CSV file are relative to its folder. Warns of what is not
    read.

    Raises StudyError for another layout, a class without a picture in a part, a label that ``train`` has not, and a picture that a
    CSV file puts into two classes or parts.
    """
    if not source.exists():
        raise StudyError(f"images {str(source)!r} not found; give a folder or CSV file: {LAYOUTS}")
    unread: Unread = defaultdict(list)
    train, val, folders = (*_from_csv(source, unread), set[str]()) if source.is_file() else _from_folder(source, unread)
    notes = unread_in_words(unread)
    classes = tuple(sorted({label for _, label in train} | folders))
    counts = [Counter(label for _, label in part) for part in (train, val)]
    rest = "; ".join(["", *notes])
    if odd := sorted(counts[1].keys() - counts[0].keys()):
        raise StudyError(f"{source}: class {odd[0]!r} has validation pictures and no training pictures{rest}")
    if odd := [label for label in classes if not counts[0][label]]:
        raise StudyError(f"{source}: class {odd[0]!r} has no pictures{rest}")
    if odd := [label for label in classes if not counts[1][label]]:
        raise StudyError(f"{source}: class {odd[0]!r} has training pictures and no validation pictures{rest}")
    if len(classes) < 2 or not all(label.isprintable() for label in classes):
        raise StudyError(f"{source} has {len(classes)} classes that can be shown; two or more are needed: {LAYOUTS}{rest}")
    for note in notes:
        warnings.warn(f"{source}: {note}", stacklevel=2)
    number = {label: index for index, label in enumerate(classes)}
    return Listing(classes, *(tuple((path, number[label]) for path, label in sorted(part)) for part in (train, val)))


def _pictures(folder: Path, label: Callable[[tuple[str, ...]], str | None], unread: Unread) -> Labelled:
    """The pictures below a folder whose path, in parts, has a class. Adds what is not read by reason."""
    found: Labelled = []
    for path, _, state in walk_folder(folder):
        if is_junk(path) or (state and stat.S_ISDIR(state.st_mode)):
            continue
        name = label(path.parts)
        if why := why_unread(path, state, SUFFIXES) or ("" if name is not None else "pictures without a class"):
            unread[why].append(PurePosixPath(folder.name) / path)
        elif name is not None:
            found.append((folder / path, name))
        if len(found) > MOST_FILES:
            raise StudyError(f"{folder} has more than {MOST_FILES:,} pictures")
    return found


def _by_class(parts: tuple[str, ...]) -> str | None:
    return parts[0] if len(parts) > 1 else None  # CLASS/... at any depth, as Tiny-ImageNet's CLASS/images/*


def _from_folder(folder: Path, unread: Unread) -> tuple[Labelled, Labelled, set[str]]:
    """Pictures for training and for validation, and the folders of classes."""
    if not (folder / "train").is_dir():
        return *_parted(_pictures(folder, _by_class, unread)), _folders(folder)
    judges = [folder / part for part in ("val", "test") if (folder / part).is_dir()]
    if not judges:
        raise StudyError(f"{folder} has train/ but neither val/ nor test/; layouts: {LAYOUTS}")
    train = _pictures(folder / "train", _by_class, unread)
    if others := [path for judge in judges[1:] for path, _ in _pictures(judge, _by_class, defaultdict(list))]:
        unread["pictures in test/, since there is val/"] = [PurePosixPath(path.relative_to(folder)) for path in others]
    notes, known = judges[0] / "val_annotations.txt", _folders(folder / "train")
    if not notes.is_file():
        return train, _pictures(judges[0], _by_class, unread), known | _folders(judges[0])
    lines = (line.split("\t") for line in read_bytes(notes).decode(errors="replace").splitlines())
    labels = {words[0]: words[1] for words in lines if len(words) > 1}
    val = _pictures(judges[0], lambda parts: labels.get(parts[-1]), unread)
    unread.pop("files ending in .txt", None)  # its boxes and annotations
    return train, val, known


def _folders(folder: Path) -> set[str]:
    """The folders right below one."""
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_junk(PurePosixPath(entry.name))}


def _parted(found: Labelled) -> tuple[Labelled, Labelled]:
    """Every tenth picture of each class, the fifth first, for validation."""
    seen: Counter[str] = Counter()
    parts: tuple[Labelled, Labelled] = ([], [])
    for path, label in sorted(found, key=lambda one: (one[1], one[0])):
        parts[seen[label] % 10 == 4].append((path, label))
        seen[label] += 1
    return parts


def _from_csv(path: Path, unread: Unread) -> tuple[Labelled, Labelled]:
    parts: dict[str, Labelled] = {"train": [], "val": [], "test": [], "all": []}
    seen: dict[str, tuple[int, str, str]] = {}  # by picture, its line, part and label
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig", errors="replace")))
        columns = rows.fieldnames or ()
        if missing := [name for name in ("path", "label") if name not in columns]:
            raise StudyError(f"{path} has no column {missing[0]!r}; layouts: {LAYOUTS}")
        if double := [name for name, count in Counter(columns).items() if count > 1]:
            raise StudyError(f"{path} has the column {double[0]!r} twice")
        for number, row in enumerate(rows, 2):
            place, part = path.parent / (row["path"] or ""), row["split"] if "split" in columns else "all"
            if part not in parts or not row["label"] or place.suffix.lower() not in SUFFIXES or None in row:
                raise StudyError(f"{path}, line {number}: a picture's path, a label and a split (train, val or test) are needed")
            first, *before = seen.setdefault(os.path.normpath(place), (number, part, row["label"]))
            if before != [part, row["label"]] or (first < number and part == "all"):
                raise StudyError(
                    f"{path}, line {number}: {row['path']} is on line {first}, too: one class and one split are needed"
                )
            parts[part].append((place, row["label"]))
    except csv.Error as error:
        raise StudyError(f"{path} is not a whole CSV file: {error}") from error
    if parts["val"] and parts["test"]:
        unread["pictures of the split test, since there is val"] = [PurePosixPath(place) for place, _ in parts["test"]]
    return _parted(parts["all"]) if "split" not in columns else (parts["train"], parts["val"] or parts["test"])


def check_present(paths: Iterable[Path]) -> None:
    """Raises StudyError for the first path that is no file."""
    if (gone := next((path for path in paths if not path.is_file()), None)) is not None:
        raise StudyError(f"{gone} is listed, but there is no such file")
