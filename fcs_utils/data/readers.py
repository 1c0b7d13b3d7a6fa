"""One reader per data set; each returns uint8 arrays.

When data is missing, the error lists the places searched and the ways to get it.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcs_utils.data.arrays import Arrays, download
from fcs_utils.data.cifar import read_cifar
from fcs_utils.data.imagefolder import read_image_folder
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import read_bytes

LARGEST_IDX = 2**30  # bytes; a small archive can unpack to more than fits in memory
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def _digits(folder: Path) -> Arrays:
    # scikit-learn includes these 1,797 images, so the default profile needs no download.
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), 0..16 stretched to 0..255
    images = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BILINEAR)) for one in small])
    train, test = train_test_split(np.arange(len(images)), test_size=500, random_state=0, stratify=digits.target)
    labels = digits.target.astype(np.int64)
    return Arrays(
        "digits (scikit-learn)",
        tuple("0123456789"),
        images[train][:, None],
        labels[train],
        images[test][:, None],
        labels[test],
        flip=False,
    )


def read_idx(path: Path) -> np.ndarray:
    """An IDX file (LeCun's MNIST format), gzipped or not, as a uint8 array.

    Raises StudyError when the file is truncated or no IDX file of unsigned bytes.
    """
    content = read_bytes(path, LARGEST_IDX)
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(LARGEST_IDX + 1)
            if len(content) > LARGEST_IDX:
                raise StudyError(f"{path} unpacks to more than {LARGEST_IDX:,} bytes: no data set of this kind is so large")
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(f"{path} cannot be read: {error}; replace the file") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise StudyError(f"{path} is not an IDX file of unsigned bytes; replace the file")
    dimensions = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    data = content[4 + 4 * dimensions :]
    if len(data) != math.prod(shape):
        raise StudyError(f"{path} is truncated: {len(data)} bytes of {math.prod(shape)}; replace the file")
    return np.frombuffer(data, np.uint8).reshape(shape)


FASHION_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _fashion_mnist(folder: Path) -> Arrays:
    places = [folder / "FashionMNIST" / "raw", folder / "fashion-mnist", folder, DEBIAN_FASHION]

    def found() -> list[Path] | None:
        for place in places:
            files = [next((f for f in (place / name, place / f"{name}.gz") if f.is_file()), None) for name in FASHION_FILES]
            if all(files):
                return [file for file in files if file]
        return None

    if found() is None:
        import torchvision

        download(
            lambda: torchvision.datasets.FashionMNIST(str(folder), download=True),
            "fashion_mnist",
            places,
            "on Debian, install the package dataset-fashion-mnist",
        )
    files = found()
    if files is None:
        raise StudyError(f"fashion_mnist: torchvision's download left no IDX files in {places[0]}")
    train_images, train_labels, test_images, test_labels = (read_idx(file) for file in files)
    for images, labels, file in ((train_images, train_labels, files[0]), (test_images, test_labels, files[2])):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise StudyError(f"{file} and its labels are not Fashion-MNIST's: {images.shape} images, {labels.shape} labels")
    pad = ((0, 0), (2, 2), (2, 2))  # 28 -> 32: five halvings need 32 pixels
    return Arrays(
        "Fashion-MNIST",
        FASHION_CLASSES,
        np.pad(train_images, pad)[:, None],
        train_labels.astype(np.int64),
        np.pad(test_images, pad)[:, None],
        test_labels.astype(np.int64),
        flip=True,
    )


LONGEST_NAME = 200  # bytes of a folder's name; file systems allow 255, and an archive's ending comes behind


def _folder_and_size(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"imagefolder:([\w.-]+?)(?:@(\d+))?", name)
    if not match or set(match[1]) == {"."} or len(match[1].encode()) > LONGEST_NAME:
        allowed = f"NAME a folder or archive in the data folder, of at most {LONGEST_NAME} bytes"
        raise refuse("dataset", name, f"imagefolder:NAME or imagefolder:NAME@SIZE, {allowed}")
    size = int(match[2] or 32)
    if not 8 <= size <= 1024:
        raise refuse("dataset", name, "imagefolder:NAME@SIZE with a SIZE from 8 to 1024 pixels")
    return match[1], size


def _imagefolder(folder: Path, name: str) -> Arrays:
    place, size = _folder_and_size(name)
    arrays, classes = read_image_folder(folder, place, size)
    return Arrays(place, tuple(classes), **arrays, flip=True)


READERS: dict[str, Callable[[Path], Arrays]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": lambda folder: read_cifar(folder, "cifar10"),
    "cifar100": lambda folder: read_cifar(folder, "cifar100"),
}


def check_source(name: str) -> None:
    """Raises StudyError for a name that no reader takes; looks for no data."""
    if name.startswith("imagefolder:"):
        _folder_and_size(name)
    elif name not in READERS:
        raise refuse("dataset", name, ", ".join([*READERS, "imagefolder:NAME"]))


def read_arrays(name: str, folder: Path) -> Arrays:
    """Read a data set by name from a data folder.

    Raises StudyError for an unknown name, and for missing or damaged files with every place looked in.
    """
    check_source(name)
    return READERS[name](folder) if name in READERS else _imagefolder(folder, name)
