"""The classes of an image folder, and images that stand in two places of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from fcs_utils.errors import StudyError

Picture = tuple[str, str, np.ndarray]  # class, file name, pixels (size, size, 3)
Placed = tuple[object, str, np.ndarray]  # class, path, pixels


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


def in_two_places(train: Iterable[Placed], judged: Iterable[Placed], judges: str) -> list[str]:
    """What to say of images that are equal pixel by pixel: training images of two classes, and images of ``judges`` among them."""
    first: dict[int, Placed] = {}  # by a hash, for the pixels themselves would take their memory once more
    mixed, shared, counts = [], [], [0, 0]
    for label, place, pixels in train:
        counts[0] += 1
        other = first.setdefault(hash(pixels.tobytes()), (label, place, pixels))
        if other[0] != label and np.array_equal(other[2], pixels):
            mixed.append((place, other[1]))
    for _, place, pixels in judged:
        counts[1] += 1
        known = first.get(hash(pixels.tobytes()))
        if known and np.array_equal(known[2], pixels):
            shared.append((place, known[1]))
    words = ((mixed, "training images are in another class, too"), (shared, f"{judges} images are training images, too"))
    return [
        f"{len(both):,} of {count:,} {what} (such as {both[0][0]!r} and {both[0][1]!r})"
        for (both, what), count in zip(words, counts, strict=True)
        if both
    ]
