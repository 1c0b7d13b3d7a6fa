"""Reads a folder of images or an archive of one; decoded images are cached outside the repository.

Layout: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``), at any depth but in one place. What is not read is counted and said.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from fcs_utils.data.archives import ENDINGS, entries, unread_in_words, walk_folder
from fcs_utils.data.classes import Picture, class_names, in_two_places, labels_of
from fcs_utils.data.side_by_side import in_order
from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, set_aside, write_tensors

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")  # Pillow knows more, and starts other programs for some of them
PARTS = ("train", "test", "val")
DECODER = 2  # raised when decoding changes, so that no older cache is used
LARGEST_IMAGE, LARGEST_DATA = 2**26, 2**33  # pixels of an image, bytes of all images once they are decoded
LARGE_IMAGE = 2**22  # pixels of an image that is decoded while no other large one is
ONE_LARGE = threading.Lock()
Use = TypeVar("Use")


def cache_folder() -> Path:
    """Where decoded images are kept: FCS_CACHE, else the user's cache folder."""
    try:
        users = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        users = os.devnull  # no folder: nothing is kept
    return Path(os.environ.get("FCS_CACHE") or Path(users) / "fcs-mlft")


def read_image_folder(folder: Path, name: str, size: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The ``arrays`` and ``classes`` of ``Decoded``.

    Images become RGB uint8 (N, 3, size, size): turned as their EXIF data says, the shorter side resized to ``size``, the centre
    cropped. Warns of what is not read, of images that are in both parts, and of a cache that cannot be written. Raises StudyError
    when nothing is found, the layout is wrong, a class has too few images, or an image cannot be decoded.
    """
    source = _source(folder, name)
    cached = cache_folder() / f"{name}-{size}-{_listing_sum(source)}.safetensors"
    found = _from_cache(cached, size)
    if found is None:
        found = _decode(source, size)
        tensors = {key: torch.from_numpy(part) for key, part in found.arrays.items()}
        try:
            write_tensors(cached, tensors, {"classes": json.dumps(found.classes), "notes": json.dumps(found.notes)})
        except StudyError as error:
            warnings.warn(f"{error}; decoded images are not cached; name a folder for them with FCS_CACHE", stacklevel=2)
    for note in found.notes:
        warnings.warn(f"{source}: {note}", stacklevel=2)
    return found.arrays, found.classes


def _source(folder: Path, name: str) -> Path:
    places = [folder / name] + [folder / f"{name}{ending}" for ending in ENDINGS]
    source = next((place for place in places if place.exists()), None)
    if source is None:
        raise StudyError(
            f"data set 'imagefolder:{name}' not found. Looked in: {', '.join(map(str, places))}. Put a folder there with "
            "train/CLASS/*.jpg and test/CLASS/*.jpg (or val/), or its archive; name the data folder with --data DIR or FCS_DATA"
        )
    return source


def _listing_sum(source: Path) -> str:
    """Hash of the source's place and of its files' names, sizes, times and inodes. No content is read: it takes milliseconds.

    A file's own time can be set, as unpacking an archive does. The time of its last change (ctime) cannot.
    """
    digest = hashlib.sha256(f"{DECODER}\n{source.resolve()}\n".encode(errors="surrogateescape"))
    for path, _, state in walk_folder(source) if source.is_dir() else [(source.name, None, source.stat())]:
        plain = state is not None and not stat.S_ISDIR(state.st_mode)
        stamp = f"{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}|{state.st_ino}" if state and plain else ""
        digest.update(f"{path}|{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


class Decoded(NamedTuple):
    """arrays: ``train_images`` (N, 3, size, size) uint8, ``train_labels`` (N,) int64, and the same of test."""

    arrays: dict[str, np.ndarray]
    classes: list[str]
    notes: list[str]


def _from_cache(path: Path, size: int) -> Decoded | None:
    if not os.path.exists(path):  # Path.exists raises where a folder may not be entered
        return None
    try:
        tensors, metadata = read_tensors(path)
        classes, notes = (json.loads(metadata[key]) for key in ("classes", "notes"))
        for images, labels in ((tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test")):
            fits = images.dtype == torch.uint8 and images.shape == (len(labels), 3, size, size) and labels.dtype == torch.int64
            if not fits or sorted({*labels.tolist()}) != [*range(len(classes))]:
                raise StudyError(f"{path} is whole, but holds no images and labels of {len(classes)} classes")
        return Decoded({key: tensor.numpy() for key, tensor in tensors.items()}, classes, notes)
    except (StudyError, KeyError, ValueError, TypeError) as error:
        set_aside(path, f"{error}; decoded again")
        return None


Places = dict[PurePosixPath, dict[str, list[Picture]]]  # by the folder that holds train/ and test/, then by these


def _decode(source: Path, size: int) -> Decoded:
    found, folders, unread = _collect(source, size)
    if len(found) > 1:
        places = ", ".join(repr(str(root / part)) for root, parts in sorted(found.items()) for part in sorted(parts))
        raise StudyError(f"{source} has images in several places, {places}: keep one folder that holds train/ and test/")
    root, parts = next(iter(found.items()), (PurePosixPath(), {}))
    test = "test" if "test" in parts else "val"
    if test == "test" and "val" in parts:
        unread["images in val/, since there is test/"] = [root / "val" / label / name for label, name, _ in parts["val"]]
    notes = unread_in_words(unread)
    if not {"train", test} <= parts.keys():
        raise StudyError(
            f"{source} needs images under train/CLASS/ and test/CLASS/ (or val/CLASS/); " + " ".join(notes or ["it has none"])
        )
    arrays = {}
    classes = class_names(source, {part: parts[part] for part in ("train", test)}, labels_of(folders, root, test), notes)
    for part, pictures in (("train", parts["train"]), ("test", parts[test])):
        pictures.sort(key=lambda picture: picture[:2])  # the order of an archive is arbitrary
        arrays[f"{part}_images"] = np.stack([pixels for _, _, pixels in pictures]).transpose(0, 3, 1, 2).copy()
        arrays[f"{part}_labels"] = np.array([classes.index(label) for label, _, _ in pictures], np.int64)
    train, judged = ([(label, f"{part}/{label}/{name}", pixels) for label, name, pixels in parts[part]] for part in ("train", test))
    return Decoded(arrays, classes, notes + in_two_places(train, judged, "test"))


def _collect(source: Path, size: int) -> tuple[Places, set[PurePosixPath], dict[str, list[PurePosixPath]]]:
    """Decoded images by place, all folders, and what is not read by reason."""
    found: Places = {}
    folders: set[PurePosixPath] = set()
    unread: dict[str, list[PurePosixPath]] = defaultdict(list)

    def decoded(image: tuple[PurePosixPath, bytes]) -> tuple[PurePosixPath, np.ndarray]:
        path, content = image
        try:
            return path, decode_image(content, size)
        except Exception as error:  # Pillow raises many kinds for a damaged file
            raise StudyError(f"image {str(path)!r} in {source} cannot be decoded: {error}; replace or remove it") from error

    for path, pixels in in_order(_contents(source, size, folders, unread), decoded, lambda image: len(image[1])):
        found.setdefault(path.parents[2], defaultdict(list))[path.parts[-3]].append((path.parts[-2], path.name, pixels))
    return found, folders, unread


def _contents(
    source: Path, size: int, folders: set[PurePosixPath], unread: dict[str, list[PurePosixPath]]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Each image's path and content. Adds the folders that are there, and what is not read by reason."""
    names = set()
    for path, content, why in tqdm(entries(source, SUFFIXES), f"decoding {source.name}", unit="file", leave=False):
        folders.add(path if content is None and not why else path.parent)
        if why:
            unread[why].append(path)
        elif content is not None and (len(path.parts) < 3 or path.parts[-3] not in PARTS):
            unread["images that are not in train/CLASS/, test/CLASS/ or val/CLASS/"].append(path)
        elif content is not None:
            if path in names:
                raise StudyError(f"{source} has {str(path)!r} twice; remove one")
            names.add(path)
            if len(names) * 3 * size * size > LARGEST_DATA:
                raise StudyError(f"{source}: decoded images take more than {LARGEST_DATA:,} bytes; NAME@SIZE makes them smaller")
            yield path, content


def decode_image(content: bytes, size: int) -> np.ndarray:
    """An image file as RGB pixels (size, size, 3) uint8: the shorter side resized, the centre cropped."""
    from PIL import Image, ImageOps

    return as_rgb(content, lambda image: np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)))


def as_rgb(content: bytes, use: Callable[[Any], Use] = lambda image: image) -> Use:
    """What is made of an image file as Pillow's RGB image, turned as its EXIF data says. Transparent parts become white.

    use: makes it; by default, it is the image itself. Where several threads decode, one of them at a time has a large image.
    Raises StudyError for too many pixels and for floating-point ones, and Pillow's own errors for a broken file.
    """
    with _image_of(content) as opened:
        if (pixels := opened.width * opened.height) > LARGEST_IMAGE:  # the header says so before memory is taken
            raise StudyError(f"{opened.width} x {opened.height} pixels are too many")
        with ONE_LARGE if pixels > LARGE_IMAGE else nullcontext():
            return use(_rgb(opened))


def _image_of(content: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:  # its own words name an object of Python's
        raise UnidentifiedImageError("cannot identify image file: it is damaged, or in no format that is read") from error


def _rgb(opened: Any) -> Any:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode == "F":
        raise StudyError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits a pixel; convert would cut off all above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
