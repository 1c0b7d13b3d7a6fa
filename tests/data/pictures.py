"""Small image folders for tests."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcs_utils.data.imagefolder import read_image_folder

SIZE = 8
RAMP = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)  # each pixel another value, 0..63


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(value: int) -> bytes:
    """A picture of one colour: two values give two different pictures."""
    return saved(Image.new("RGB", (SIZE, SIZE), (value, 0, 0)))


def one_colour(size: int) -> Callable[[int], bytes]:
    """``number`` -> a PNG of that colour: one encoder's file whose palette is exchanged, as 21,000 of them would take a while."""
    image, out = Image.new("P", (size, size)), io.BytesIO()
    image.putpalette(bytes(3))
    image.save(out, "PNG", bits=1)
    before, rest = out.getvalue().split(b"PLTE" + bytes(3), 1)

    def of(number: int) -> bytes:
        chunk = b"PLTE" + number.to_bytes(3, "big")
        return before + chunk + zlib.crc32(chunk).to_bytes(4, "big") + rest[4:]

    return of


FILES = {f"{part}/{label}/{i}.png": plain(value + i) for part, label, value in (
    ("train", "cat", 0), ("train", "dog", 10), ("test", "cat", 20), ("test", "dog", 30)) for i in range(2)}  # fmt: skip


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    arrays, classes = read_image_folder(folder.parent, folder.name, SIZE)
    return [arrays[f"{part}_{what}"] for part in ("train", "test") for what in ("images", "labels")], tuple(classes)


def quietly(folder: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """``read`` that says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(folder)


def said(folder: Path) -> str:
    with pytest.warns(UserWarning) as caught:
        read(folder)
    return " | ".join(str(one.message) for one in caught)
