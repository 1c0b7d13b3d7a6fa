"""Images of every bit depth, palette and rotation become the pixels that a viewer shows."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcs_utils.data.imagefolder import decode_image
from fcs_utils.errors import StudyError
from tests.data.pictures import FILES, RAMP, SIZE, put, read, saved


def png(depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of a kind that Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    step = len(rows) // SIZE
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, depth, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + rows[i : i + step] for i in range(0, len(rows), step))))
        + chunk(b"IEND", b"")
    )


HIGH = (RAMP * 1024 + 1023).astype(np.uint16)  # 16 bits: the high bytes are 3, 7, ..., 255
OPAQUE = np.full((SIZE, SIZE), 65535, np.uint16)
GREY = (RAMP * 4 + 3).astype(np.uint8)
SIXTEEN = {
    "grey": saved(Image.fromarray(HIGH)),
    "grey, big-endian PGM": b"P5 8 8 65535\n" + HIGH.astype(">u2").tobytes(),
    "RGB": png(16, 2, np.stack([HIGH] * 3, -1).astype(">u2").tobytes()),
    "grey and alpha": png(16, 4, np.stack([HIGH, OPAQUE], -1).astype(">u2").tobytes()),
    "RGBA": png(16, 6, np.stack([HIGH] * 3 + [OPAQUE], -1).astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_sixteen_bits_are_scaled_to_eight(kind: str) -> None:
    assert (decode_image(SIXTEEN[kind], SIZE) == GREY[..., None]).all()


def test_few_bits_are_scaled_to_eight() -> None:
    bits = np.indices((SIZE, SIZE)).sum(0) % 2 == 1
    assert (decode_image(saved(Image.fromarray(bits)), SIZE)[..., 0] == np.where(bits, 255, 0)).all()
    fours = (RAMP % 16).astype(np.uint8)  # two pixels a byte, 0..15
    packed = ((fours[:, ::2] << 4) | fours[:, 1::2]).tobytes()
    assert (decode_image(png(4, 0, packed), SIZE)[..., 0] == fours * 17).all()


def test_colours_are_those_of_the_palette_and_of_cmyk() -> None:
    image = Image.new("RGB", (SIZE, SIZE), (200, 40, 90))
    assert (decode_image(saved(image.quantize(4)), SIZE) == (200, 40, 90)).all()
    ink = Image.new("CMYK", (SIZE, SIZE), (0, 255, 0, 0))  # magenta
    red, green, blue = decode_image(saved(ink, "JPEG", quality=100), SIZE)[0, 0].tolist()
    assert red > 240 and green < 15 and blue > 240


@pytest.mark.parametrize(("alpha", "value"), [(255, 100), (0, 255), (51, 224)])  # 51 is a fifth: 0.2 * 100 + 0.8 * 255
def test_what_is_transparent_becomes_white(alpha: int, value: int) -> None:
    both = Image.merge("LA", [Image.new("L", (SIZE, SIZE), level) for level in (100, alpha)])
    for image in (both, both.convert("RGBA")):
        assert (decode_image(saved(image), SIZE) == value).all()


def test_a_transparent_colour_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([9, 9, 9, 70, 80, 90])
    assert (decode_image(saved(image), SIZE) == (70, 80, 90)).all()
    assert (decode_image(saved(image, transparency=1), SIZE) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_picture_is_turned_as_its_exif_data_says(kind: str, orientation: int) -> None:
    upright = Image.new("L", (SIZE, SIZE), 0)
    upright.paste(255, (0, 0, SIZE, SIZE // 2))
    upright.paste(128, (0, 0, SIZE // 2, SIZE // 2))  # bright at the top, and less so at the left: no two turns are alike
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    # As the camera saw it: the turn that EXIF asks for gives the upright picture. 90 degrees are undone by 270.
    seen = upright.transpose(Image.Transpose[turn[orientation]]) if orientation > 1 else upright
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    found = decode_image(saved(seen.convert("RGB"), kind, exif=exif.tobytes(), **options), SIZE)
    assert np.abs(found[..., 0].astype(int) - np.asarray(upright)).max() < 12
    assert np.abs(found - np.asarray(ImageOps.fit(seen.convert("RGB"), (SIZE, SIZE))).astype(int)).max() > 100 or orientation == 1


NOT_IMAGES = {
    "floating-point numbers": (b"Pf 8 8 -1.0\n" + bytes(4 * 64), "floating-point"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "cannot identify"),
    "GIF": (saved(Image.new("P", (8, 8)), "GIF"), "cannot identify"),
    "TIFF": (saved(Image.new("RGB", (8, 8)), "TIFF"), "cannot identify"),
    "an icon": (saved(Image.new("RGB", (16, 16)), "ICO"), "cannot identify"),
}


@pytest.mark.parametrize("kind", NOT_IMAGES)
@pytest.mark.parametrize("ending", ["png", "jpg", "ppm"])
def test_other_formats_are_no_images_whatever_their_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript is started"))
    content, why = NOT_IMAGES[kind]
    with pytest.raises(StudyError, match=f"image 'train/cat/bad.{ending}' in .* cannot be decoded: .*{why}"):
        read(put(tmp_path / "pets", FILES | {f"train/cat/bad.{ending}": content}))
