"""Image folders and archives: every bit depth, turned pictures, layouts, and what is said of what is not read."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcs_utils.data.imagefolder import decode_image, read_image_folder
from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, write_tensors

SIZE = 8
RAMP = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE)  # each pixel another value, 0..63


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def plain(value: int) -> bytes:
    """A picture of one colour: two values give two different pictures."""
    return saved(Image.new("RGB", (SIZE, SIZE), (value, 0, 0)))


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


# -- pixels ---------------------------------------------------------------------------------------------------------


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


# -- layouts --------------------------------------------------------------------------------------------------------


def as_tar(mode: str) -> Callable[[Path, Path], None]:
    def pack(folder: Path, to: Path) -> None:
        with tarfile.open(to, mode) as archive:
            archive.add(folder, "./pets" if mode == "w" else "")

    return pack


def as_zip(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder.parent))


def as_zip_of_windows(folder: Path, to: Path) -> None:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            info = zipfile.ZipInfo("x")
            info.filename = str(path.relative_to(folder)).replace("/", "\\")
            archive.writestr(info, path.read_bytes())


ARCHIVES = {
    "a.tar": as_tar("w"),
    "b.tar.gz": as_tar("w:gz"),
    "c.tgz": as_tar("w:gz"),
    "d.tar.bz2": as_tar("w:bz2"),
    "e.tar.xz": as_tar("w:xz"),
    "f.zip": as_zip,
    "g.zip": as_zip_of_windows,
    "gzipped.tar": as_tar("w:gz"),  # the ending does not say so
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_archive_reads_like_the_folder(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    ARCHIVES[name](folder, tmp_path / name)
    want, classes = quietly(folder)
    found, same = quietly(tmp_path / name.partition(".")[0])
    assert classes == same == ("cat", "dog") and all(map(np.array_equal, want, found))
    assert want[0][:, 0, 0, 0].tolist() == [0, 1, 10, 11] and want[1].tolist() == [0, 0, 1, 1]  # in the order of the names


def test_what_systems_leave_behind_is_no_data(tmp_path: Path) -> None:
    left = ["train/.ipynb_checkpoints/cat.png", "train/cat/.ipynb_checkpoints/0-checkpoint.png", "__MACOSX/train/cat/._0.png",
            "train/cat/._1.png", ".DS_Store", "train/.DS_Store", "test/dog/Thumbs.db", "._train", "test/desktop.ini"]  # fmt: skip
    want = quietly(put(tmp_path / "pets", FILES))
    found = quietly(put(tmp_path / "full", FILES | dict.fromkeys(left, b"no picture")))
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train/cat/a.gif": b"", "train/dog/b.gif": b""}, "files ending in .gif (2, such as 'train/cat/a.gif')"),
        ({"train/cat/a.tif": b"", "README": b""}, "files without an ending (1, such as 'README'); files ending in .tif (1,"),
        ({"train/cat/young/a.png": plain(7)}, "test/CLASS/ or val/CLASS/ (1, such as 'train/cat/young/a.png')"),
        ({"a.png": plain(7), "Test/cat/b.JPG": plain(8)}, "images that are not in train/CLASS/, test/CLASS/ or val/CLASS/ (2"),
        (
            {"val/cat/a.png": plain(7), "val/dog/a.png": plain(8)},
            "images in val/, since there is test/ (2, such as 'val/cat/a.png')",
        ),
    ],
)
def test_what_is_not_read_is_counted_and_said_each_time(tmp_path: Path, more: dict[str, bytes], words: str) -> None:
    folder = put(tmp_path / "pets", FILES | more)
    for text in (said(folder), said(folder)):  # decoded, and from the cache
        assert "pets: not read: " in text and words in text


def test_pipes_devices_and_broken_links_are_said_and_not_waited_for(tmp_path: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    os.mkfifo(folder / "train/cat/pipe.png")
    (folder / "train/cat/zero.png").symlink_to("/dev/zero")
    (folder / "train/dog/nothing.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str((folder / "s.png").relative_to(Path.cwd())) if len(str(folder)) > 90 else str(folder / "s.png"))
        text = said(folder)
    assert "pipes, sockets and devices (3," in text and "broken links (1, such as 'train/dog/nothing.png')" in text


def test_linked_folders_and_files_are_read_and_circles_end(tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere", {"0.png": plain(70), "1.png": plain(71)})
    (elsewhere / "back").symlink_to(tmp_path / "pets")
    folder = put(tmp_path / "pets", FILES | {"test/owl/0.png": plain(80)})
    (folder / "train/owl").symlink_to(elsewhere)
    (folder / "train/cat/2.png").symlink_to(elsewhere / "0.png")
    (train, labels, *_), classes = quietly(folder)
    assert classes == ("cat", "dog", "owl") and labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert train[:, 0, 0, 0].tolist() == [0, 1, 70, 10, 11, 70, 71]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {f"{fold}/{name}": content for fold in "ab" for name, content in FILES.items()},
            "'a/test', 'a/train', 'b/test', 'b/train'",
        ),
        (FILES | {"docs/train/shots/1.png": plain(9)}, "'test', 'train', 'docs/train'"),
        ({f"x/{name}" if "train" in name else f"y/{name}": content for name, content in FILES.items()}, "'x/train', 'y/test'"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_images_in_several_places_are_refused_with_both_named(
    tmp_path: Path, files: dict[str, bytes], words: str, packed: bool
) -> None:
    folder = put(tmp_path / "pets", files)
    if packed:
        as_zip(folder, tmp_path / "packed.zip")
        words = ", ".join(f"'pets/{place[1:]}" for place in words.split(", "))
    with pytest.raises(StudyError, match=f"has images in several places, {words}: keep one"):
        read(tmp_path / "packed" if packed else folder)


@pytest.mark.parametrize(
    ("more", "less", "words"),
    [
        ({"train/owl/x.txt": b"", "test/owl/0.png": plain(9)}, "", r"'owl' has 0 and 1; not read: files ending in \.txt"),
        ({"train/owl/0.png": plain(8), "test/owl/0.png": plain(9)}, "", "'owl' has 1 and 1"),
        ({"train/owl/0.png": plain(8), "train/owl/1.png": plain(9)}, "", "'owl' has 2 and 0"),
        ({"test/owl/0.png": plain(9), "test/elk/0.png": plain(8)}, "", "'elk' has 0 and 1, 'owl' has 0 and 1"),
        (
            {"train/owl/deep/0.png": plain(8), "test/owl/0.png": plain(9)},
            "",
            "'owl' has 0 and 1; not read: images that are not in",
        ),
        ({}, "dog", "two classes or more, .*; it has 1"),
    ],
)
def test_a_class_with_too_few_images_is_an_error(tmp_path: Path, more: dict[str, bytes], less: str, words: str) -> None:
    files = {name: content for name, content in FILES.items() if not less or less not in name}
    with pytest.raises(StudyError, match=words):
        read(put(tmp_path / "pets", files | more))


def test_an_empty_class_folder_is_an_error(tmp_path: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    quietly(folder)
    (folder / "train/owl").mkdir()
    with pytest.raises(StudyError, match="'owl' has 0 and 0"):  # though the images are in the cache
        read(folder)
    as_zip(folder, tmp_path / "packed.zip")
    with pytest.raises(StudyError, match="'owl' has 0 and 0"):
        read(tmp_path / "packed")


@pytest.mark.parametrize(
    "name", ["a\nb", "bell\a", "tab\tbed", "\x1b[31mred", b"\xff\xfe".decode(errors="surrogateescape"), "a\u2028b"]
)
def test_a_class_name_that_cannot_be_shown_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="class name .* has characters that cannot be shown") as refused:
        read(
            put(
                tmp_path / "pets",
                FILES | {f"{part}/{name}/{i}.png": plain(50 + i) for i, part in ((1, "train"), (2, "train"), (3, "test"))},
            )
        )
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["Katze, groß", "猫", "a b's"])
def test_other_class_names_stay_as_they_are(tmp_path: Path, name: str) -> None:
    folder = put(tmp_path / "pets", {path.replace("cat", name): content for path, content in FILES.items()})
    assert set(quietly(folder)[1]) == set(quietly(folder)[1]) == {name, "dog"}


def test_a_file_that_is_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for name, content in [*FILES.items(), ("train/cat/0.png", plain(9))]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(StudyError, match="has 'train/cat/0.png' twice"):
        read(tmp_path / "twice")


def test_images_in_both_train_and_test_are_said(tmp_path: Path) -> None:
    again = saved(Image.open(io.BytesIO(plain(10))).quantize(2), "BMP")  # the same pixels in another format
    folder = put(tmp_path / "pets", FILES | {"test/cat/seen.png": plain(1), "test/dog/seen.bmp": again})
    for text in (said(folder), said(folder)):
        assert "2 of 6 test images are in train/ too (such as 'test/cat/seen.png' and 'train/cat/1.png')" in text


# -- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a file", "read-only", "no home"])
def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    want = quietly(folder)
    if place == "a file":
        (tmp_path / "taken").write_text("")
        monkeypatch.setenv("FCS_CACHE", str(tmp_path / "taken"))
    elif place == "read-only":
        monkeypatch.setenv("FCS_CACHE", "/proc/fcs-mlft")
    else:
        monkeypatch.delenv("FCS_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(
            Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("Could not determine home directory."))
        )
    with pytest.warns(UserWarning, match="cannot write .*decoded images are not cached, FCS_CACHE names a folder"):
        found = read(folder)
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


def test_the_cache_follows_the_files(tmp_path: Path, cache: Path) -> None:
    folder = put(tmp_path / "pets", FILES)
    assert len(quietly(folder)[0][0]) == 4
    (folder / "train/cat/9.png").write_bytes(plain(99))
    assert len(quietly(folder)[0][0]) == 5 and len(list(cache.iterdir())) == 2
    (folder / "train/cat/9.png").write_bytes(plain(98) + b" ")
    assert 98 in quietly(folder)[0][0]


def in_bmp(red: int) -> dict[str, bytes]:
    """Files of equal names and sizes, whatever the colour."""
    return {
        name.replace(".png", ".bmp"): saved(Image.new("RGB", (SIZE, SIZE), (red + number, 0, 0)), "BMP")
        for number, name in enumerate(FILES)
    }


def as_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def of_one_time(place: Path) -> None:
    for path in (place, *place.rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize("kind", ["other folder", "other archive", "overwritten", "link"])
def test_files_of_equal_names_sizes_and_times_are_not_taken_for_one_another(tmp_path: Path, kind: str) -> None:
    one, other = tmp_path / "one" / "pets", tmp_path / "other" / "pets"
    for place, red in ((one, 0), (other, 100)):
        if kind == "other archive":
            as_tar(place.with_name("pets.tar"), in_bmp(red))
        else:
            put(place, in_bmp(red))
        of_one_time(place.parent)
    if kind == "link":
        link = tmp_path / "pets"
        link.symlink_to(one)
        assert quietly(link)[0][0].max() < 100
        link.unlink()
        link.symlink_to(other)
        other = link
    else:
        assert quietly(one)[0][0].max() < 100
        if kind == "overwritten":
            put(one, in_bmp(100))
            of_one_time(one)
            other = one
    red = quietly(other)[0][0][:, 0]
    assert set(red.flatten().tolist()) == {100, 101, 102, 103}  # the four training images of the second set


@pytest.mark.parametrize("wrong", ["labels", "size", "missing", "classes"])
def test_a_whole_cache_with_wrong_content_is_decoded_again(tmp_path: Path, cache: Path, wrong: str) -> None:
    folder = put(tmp_path / "pets", FILES)
    want = quietly(folder)
    (cached,) = cache.iterdir()
    tensors, metadata = read_tensors(cached)
    if wrong == "labels":
        tensors["train_labels"] += 1
    elif wrong == "size":
        tensors["test_images"] = tensors["test_images"][..., :-1].contiguous()
    elif wrong == "missing":
        del tensors["test_labels"]
    else:
        metadata["classes"] = json.dumps(["cat"])
    write_tensors(cached, tensors, metadata)
    with pytest.warns(UserWarning, match="decoded again .set aside as"):
        found = read(folder)
    assert found[1] == want[1] and all(map(np.array_equal, want[0], found[0]))


@pytest.mark.parametrize("cut", ["between two files", "without the checksum", "in the checksum"])
def test_the_end_of_an_archive_is_looked_at(tmp_path: Path, cut: str) -> None:
    as_tar(tmp_path / "pets.tar", FILES)
    whole = (tmp_path / "pets.tar").read_bytes()
    quietly(tmp_path / "pets")
    if cut == "between two files":
        with tarfile.open(tmp_path / "pets.tar") as archive:
            last = archive.getmembers()[-1]
        assert last.name == "test/dog/1.png"  # the second of two: without it, no class lacks an image
        (tmp_path / "pets.tar").write_bytes(whole[: last.offset])
    else:
        (tmp_path / "pets.tar").unlink()
        packed = bytearray(gzip.compress(whole + bytes(2**16)))  # the end is not read by the way
        packed[-6] ^= 1
        (tmp_path / "pets.tar.gz").write_bytes(packed[:-8] if cut == "without the checksum" else packed)
    with pytest.raises(StudyError, match="pets.tar.* cannot be read"):
        read(tmp_path / "pets")


def test_an_archive_with_much_behind_its_end_is_refused(tmp_path: Path) -> None:
    as_tar(tmp_path / "pets.tar", FILES)
    with (tmp_path / "pets.tar").open("ab") as file:
        file.write(bytes(2**24 + 1))
    with pytest.raises(StudyError, match="goes on for more than 16,777,216 bytes behind its end mark"):
        read(tmp_path / "pets")
