"""CIFAR-10 and CIFAR-100, from torchvision's files or from the same images as a folder or an archive.

Both hold the same 60,000 pictures in different orders. Here they stand in an order of their own: by class, then by the SHA-256 of
their pixels. So either way gives the same tensors, splits and batches, and equal records.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fcs_utils.data.archives import ENDINGS
from fcs_utils.data.arrays import Arrays, download
from fcs_utils.data.imagefolder import read_image_folder
from fcs_utils.errors import StudyError
from fcs_utils.files import open_regular

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
IDENTITIES = {"cifar10": "6fed5d45e90a44d8f9be833d2af27cf996ace670fa82d03ce92f6a076ea3007a"}  # as ``identity`` gives it
BASES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}  # torchvision's folders
LARGEST_BATCHES = 2**30  # bytes of one of torchvision's files


def read_cifar(folder: Path, name: str) -> Arrays:
    """``cifar10`` or ``cifar100`` from a data folder, in this module's order.

    Looks for torchvision's files, then for ``NAME/train/CLASS/*`` and ``NAME/test/CLASS/*`` in a folder or an archive, then lets
    torchvision download its files. Those are pickles: torchvision opens them after its own MD5 check.

    Raises StudyError when nothing is found, when files are damaged, and when images called ``cifar10`` are not CIFAR-10's.
    """
    files, places = folder / BASES[name], [folder / f"{name}{ending}" for ending in ("", *ENDINGS)]
    source = files if files.exists() else next((place for place in places if place.exists()), files)
    arrays, classes = _torchvisions(folder, name) if source == files else read_image_folder(folder, name, 32)
    ordered = Arrays(TITLES[name], tuple(classes), **_in_order(arrays), flip=True)
    if (found := identity(ordered)) != IDENTITIES.get(name, found):
        raise StudyError(
            f"{source} is not {TITLES[name]} as published: its checksum is {found}, not {IDENTITIES[name]}; remove it, or give it "
            "another name and use it as imagefolder:NAME"
        )
    return ordered


def identity(arrays: Arrays) -> str:
    """SHA-256, in hexadecimal, that a data set has in whatever order its images stand.

    What is hashed has one line an image, sorted and joined by newlines: ``PIXELS PART CLASS``. PIXELS is the SHA-256 of its uint8
    values, row by row with the channels of a pixel side by side (H, W, C), in hexadecimal; PART is ``train`` or ``test``.
    """
    parts = (("train", arrays.train_images, arrays.train_labels), ("test", arrays.test_images, arrays.test_labels))
    lines = [
        f"{pixels.hex()} {part} {arrays.classes[label]}"
        for part, images, labels in parts
        for pixels, label in zip(_sums(images), labels, strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _in_order(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ordered: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        sums = _sums(images)
        order = sorted(range(len(labels)), key=lambda one: (labels[one], sums[one]))
        ordered |= {f"{part}_images": images[order], f"{part}_labels": labels[order]}
    return ordered


def _sums(images: np.ndarray) -> list[bytes]:
    """The SHA-256 of each image's pixels; images (N, C, H, W)."""
    return [hashlib.sha256(image.transpose(1, 2, 0).tobytes()).digest() for image in images]


def _torchvisions(folder: Path, name: str) -> tuple[dict[str, np.ndarray], list[str]]:
    import torchvision  # a second or two, for which images from elsewhere need not wait

    reader: Any = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    place = folder / BASES[name]
    for file in filter(Path.is_file, place.glob("*")):
        open_regular(file, LARGEST_BATCHES).close()  # torchvision would read a file of any size
    try:
        parts = [reader(str(folder), train=train, download=False) for train in (True, False)]
    except RuntimeError as error:  # torchvision raises it for missing files and for a failed MD5 check
        if place.exists():
            raise StudyError(f"{place} fails torchvision's MD5 check (truncated or changed); delete it and start again") from error
        images = folder / name
        other = f"unpack {reader.filename} there; put the same images into {images}/train/CLASS/ and {images}/test/CLASS/"
        download(lambda: reader(str(folder), download=True), name, [place, images], f"{other}, or their archive beside it")
        parts = [reader(str(folder), train=train, download=False) for train in (True, False)]
    arrays: dict[str, np.ndarray] = {}
    for part, found in zip(("train", "test"), parts, strict=True):
        arrays |= {f"{part}_images": found.data.transpose(0, 3, 1, 2), f"{part}_labels": np.asarray(found.targets, np.int64)}
    return arrays, list(parts[0].classes)
