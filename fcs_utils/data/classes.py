"""The classes of an image folder, and images that stand in two places of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from fcs_utils.errors import StudyError

Picture = tuple[str, str, np.ndarray]  # class, file name, pixels (size, size, 3)


def labels_of(folders: set[PurePosixPath], root: PurePosixPath, test: str) -> set[str]:
    """The classes that have a folder, with images or without."""
    inside = [folder.relative_to(root).parts for folder in folders if folder.is_relative_to(root)]
    return {parts[1] for parts in inside if len(parts) > 1 and parts[0] in ("train", test)}


def class_names(source: Path, parts: dict[str, list[Picture]], labels: set[str], notes: list[str]) -> list[str]:
    """Class names in order. Raises StudyError for a name that cannot be shown and for a class with too few images."""
    for label in sorted(labels):
        if not label.isprintable():
            raise StudyError(f"{source}: the class name {label!r} has characters that cannot be shown; rename its folder")
    counts = {part: Counter(label for label, _, _ in pictures) for part, pictures in parts.items()}
    (train, _), (test, _) = parts.items()
    few = [
        f"{label!r} has {counts[train][label]} and {counts[test][label]}"
        for label in sorted(labels)
        if counts[train][label] < 2 or not counts[test][label]
    ]
    if few or len(labels) < 2:
        why = f"{', '.join(few[:5])}{', ...' if few[5:] else ''}" if few else f"it has {len(labels)}"
        raise StudyError(
            f"{source} needs two classes or more, each with two images in {train}/ and one in {test}/; " + "; ".join([why, *notes])
        )
    return sorted(labels)


def in_two_places(train: Sequence[Picture], test: Sequence[Picture], part: str) -> list[str]:
    """What to say of images that are the same pixel by pixel: training images of two classes, and test images in ``train/`` too."""
    first: dict[bytes, tuple[str, str]] = {}
    mixed, shared = [], []
    for label, name, pixels in train:
        other = first.setdefault(pixels.tobytes(), (label, name))
        if other[0] != label:
            mixed.append((f"train/{label}/{name}", "train/{}/{}".format(*other)))
    for label, name, pixels in test:
        if (key := pixels.tobytes()) in first:
            shared.append((f"{part}/{label}/{name}", "train/{}/{}".format(*first[key])))
    return [
        f"{len(both):,} of {count:,} {where} (such as {both[0][0]!r} and {both[0][1]!r})"
        for both, count, where in (
            (mixed, len(train), "training images are in another class, too"),
            (shared, len(test), "test images are in train/ too"),
        )
        if both
    ]
