"""Reads a folder of images or a tar archive of one; decoded images are cached outside the repository.

Layout: ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/``). Archives are read member by member and never
unpacked, so no path inside one can reach the disk.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, set_aside, write_tensors

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
LARGEST_FILE, LARGEST_IMAGE = 2**26, 2**26  # bytes of a member, pixels of an image
Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def cache_folder() -> Path:
    """Where decoded images are kept: FCS_CACHE, else the user's cache folder."""
    return Path(os.environ.get("FCS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fcs-mlft")


def read_image_folder(folder: Path, name: str, size: int) -> tuple[Parts, tuple[str, ...]]:
    """Train images, train labels, test images, test labels, and the class names.

    Images become RGB uint8 (N, 3, size, size): the shorter side is resized to ``size``, then the centre is cropped.
    Raises StudyError when nothing is found, the layout is wrong, or an image cannot be decoded.
    """
    places = [folder / name] + [folder / f"{name}{suffix}" for suffix in (".tar", ".tar.gz", ".tar.xz")]
    source = next((place for place in places if place.is_dir() or place.is_file()), None)
    if source is None:
        raise StudyError(
            f"data set 'imagefolder:{name}' not found. Looked in: {', '.join(map(str, places))}. Put a folder there with "
            "train/CLASS/*.jpg and test/CLASS/*.jpg (or val/), or a tar of one; name the data folder with --data DIR or FCS_DATA"
        )
    cached = cache_folder() / f"{name}-{size}-{_listing_sum(source)}.safetensors"
    if cached.exists():
        try:
            return _unpack({key: tensor.numpy() for key, tensor in read_tensors(cached)[0].items()})
        except (StudyError, KeyError, ValueError) as error:
            set_aside(cached, f"{error}; decoded again")
    packed = _decode(source, size)
    write_tensors(cached, {key: torch.from_numpy(array) for key, array in packed.items()})
    return _unpack(packed)


def _listing_sum(source: Path) -> str:
    """Hash of the files' names, sizes and times. Contents are not read, so it takes milliseconds."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat()
        digest.update(f"{path.relative_to(source.parent)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _members(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield PurePosixPath(path.relative_to(source).as_posix()), path.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.suffix.lower() not in SUFFIXES:  # links and devices are not followed
                    continue
                if member.size > LARGEST_FILE:
                    raise StudyError(f"{name} in {source} has {member.size:,} bytes, too many for an image; remove it")
                if file := archive.extractfile(member):
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise StudyError(f"{source} cannot be read: {error}; it may be truncated, replace the file") from error


def _decode(source: Path, size: int) -> dict[str, np.ndarray]:
    from PIL import Image, ImageOps

    found: dict[str, list[tuple[str, str, np.ndarray]]] = {"train": [], "test": [], "val": []}
    for path, content in tqdm(_members(source), f"decoding {source.name}", unit="file", leave=False):
        if len(path.parts) < 3 or path.parts[-3] not in found:
            continue
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > LARGEST_IMAGE:  # the header says so before memory is taken
                    raise StudyError(f"{image.width} x {image.height} pixels are too many")
                pixels = np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
        except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for a damaged file
            raise StudyError(f"image {path} in {source} cannot be decoded: {error}; replace or remove it") from error
        found[path.parts[-3]].append((path.parts[-2], path.name, pixels))
    test = "test" if found["test"] else "val"
    if not found["train"] or not found[test]:
        raise StudyError(
            f"{source} has no images under train/CLASS/ and test/CLASS/ (or val/CLASS/); found "
            + ", ".join(f"{len(images)} in {part}/" for part, images in found.items())
        )
    classes = sorted({label for label, _, _ in found["train"]})
    unknown = sorted({label for label, _, _ in found[test]} - set(classes))
    if unknown:
        raise StudyError(f"{source}: classes {', '.join(unknown)} are in {test}/ but not in train/")
    packed = {"classes": np.frombuffer("\n".join(classes).encode(), np.uint8).copy()}
    for part, images in (("train", found["train"]), ("test", found[test])):
        images.sort(key=lambda item: item[:2])  # the order of an archive is arbitrary
        packed[f"{part}_images"] = np.stack([pixels for _, _, pixels in images]).transpose(0, 3, 1, 2).copy()
        packed[f"{part}_labels"] = np.array([classes.index(label) for label, _, _ in images], np.int64)
    return packed


def _unpack(packed: dict[str, np.ndarray]) -> tuple[Parts, tuple[str, ...]]:
    classes = tuple(packed["classes"].tobytes().decode().split("\n"))
    parts = (packed["train_images"], packed["train_labels"], packed["test_images"], packed["test_labels"])
    return parts, classes
